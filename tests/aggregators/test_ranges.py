"""Range checks of hyper-parameters."""

from __future__ import annotations

import math
from functools import partial

import pytest

from wardround.aggregators.ranges import (
    check_between,
    check_fraction,
    check_integer,
    check_not_negative,
    check_positive,
    check_share,
)


def test_what_fits_passes() -> None:
    check_positive(lr=1e-9, tau=3)
    check_not_negative(mu=0.0)
    check_fraction(beta=0.0, beta2=0.999)
    check_share(tau=1.0, gamma=1e-9)
    check_between(0, 1, lam=0.0, mu=1)
    check_integer(1, rank=1, period=10**9)


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (check_positive, 0.0, "a number above 0"),
        (check_positive, math.inf, "a number above 0"),
        (check_positive, math.nan, "a number above 0"),
        (check_not_negative, -1e-9, "a number of at least 0"),
        (check_not_negative, math.nan, "a number of at least 0"),
        (check_fraction, 1.0, r"a number in \[0, 1\)"),
        (check_fraction, -0.1, r"a number in \[0, 1\)"),
        (check_fraction, math.nan, r"a number in \[0, 1\)"),
        (check_share, 0.0, "a number above 0 and at most 1"),
        (check_share, 1.01, "a number above 0 and at most 1"),
        (check_share, math.nan, "a number above 0 and at most 1"),
        (partial(check_between, 0, 1), 1.01, "a number between 0 and 1"),
        (partial(check_between, 0, 1), -0.01, "a number between 0 and 1"),
        (partial(check_between, 0, 1), math.nan, "a number between 0 and 1"),
        (partial(check_integer, 1), 0, "an integer of at least 1"),
        (partial(check_integer, 0), 2.5, "an integer of at least 0"),
        (partial(check_integer, 0), 2.0, "an integer of at least 0"),
        (partial(check_integer, 0), True, "an integer of at least 0"),
        (partial(check_integer, 0), math.inf, "an integer of at least 0"),
    ],
)
def test_what_does_not_fit_is_named(check, value: float, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"^lr: expected {expected}, got {value}$"):
        check(lr=value)


def test_all_problems_are_told() -> None:
    with pytest.raises(ValueError, match=r"^a: expected .*; c: expected"):
        check_positive(a=-1.0, b=1.0, c=0.0)
