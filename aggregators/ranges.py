"""Range checks of hyper-parameters: every message says which one, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Mapping


def check_positive(**values: float) -> None:
    """Raises ValueError unless every value is a finite number above 0."""
    _check("a number above 0", {name: 0 < value < math.inf for name, value in values.items()}, values)


def check_not_negative(**values: float) -> None:
    """Raises ValueError unless every value is a finite number of at least 0."""
    _check("a number of at least 0", {name: 0 <= value < math.inf for name, value in values.items()}, values)


def check_fraction(**values: float) -> None:
    """Raises ValueError unless every value is in [0, 1)."""
    _check("a number in [0, 1)", {name: 0 <= value < 1 for name, value in values.items()}, values)


def check_share(**values: float) -> None:
    """Raises ValueError unless every value is in (0, 1]."""
    _check("a number above 0 and at most 1", {name: 0 < value <= 1 for name, value in values.items()}, values)


def check_between(low: float, high: float, **values: float) -> None:
    """Raises ValueError unless every value is in [low, high]."""
    _check(f"a number between {low} and {high}", {name: low <= value <= high for name, value in values.items()}, values)


def check_integer(least: int, **values: object) -> None:
    """Raises ValueError unless every value is an integer of at least so much; True and False are none."""
    fits = {n: isinstance(v, int) and not isinstance(v, bool) and v >= least for n, v in values.items()}
    _check(f"an integer of at least {least}", fits, values)


def _check(expected: str, fits: Mapping[str, bool], values: Mapping[str, object]) -> None:
    problems = [f"{name}: expected {expected}, got {values[name]!r}" for name, fit in fits.items() if not fit]
    if problems:
        raise ValueError("; ".join(problems))
