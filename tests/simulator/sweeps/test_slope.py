"""The line through the scores of variants: by hand, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from wardround.simulator.sweeps.slope import fit


def test_a_line_by_hand() -> None:
    """X = 1, 2, 3 and y = 0, 2, 1: slope 1 / 2, intercept 0; the residuals -1/2, 1, -1/2 have a sum of squares of 3/2.

    The variance of the slope is (3/2) / (n - 2) / 2 = 3/4, and t has one degree of freedom: 12.706; R^2 = 1/4.
    """
    line = fit([(10, 0.0), (100, 2.0), (1000, 1.0)])
    assert line is not None
    assert (line.per_decade, line.intercept, line.variants) == (pytest.approx(0.5), pytest.approx(0.0), 3)
    assert line.r_squared == pytest.approx(0.25)
    half = 12.7062 * np.sqrt(0.75)
    assert (line.low, line.high) == (pytest.approx(0.5 - half, rel=1e-4), pytest.approx(0.5 + half, rel=1e-4))
    assert line.at(10_000) == pytest.approx(2.0)


def test_a_line_needs_three_different_numbers_of_parameters() -> None:
    assert fit([(10, 0.1), (10, 0.2), (100, 0.3)]) is None
    assert fit([]) is None


@pytest.mark.parametrize("scores", [(0.5, 0.5, 0.5), (0.7, 0.7, 0.7), (0.3, 0.1 + 0.2, 0.3), (0.0, 0.0, 0.0)])
def test_equal_scores_are_a_flat_line_without_an_interval(scores: tuple[float, ...]) -> None:
    """Also those that are equal up to rounding; NaN would be no JSON."""
    line = fit([(10, scores[0]), (100, scores[1]), (1000, scores[2])])
    assert line is not None
    assert (line.per_decade, line.low, line.high, line.r_squared) == (0.0, None, None, None)
    assert line.at(1e6) == pytest.approx(scores[0])


def test_numbers_of_parameters_that_are_equal_up_to_rounding_are_one() -> None:
    """Their logarithms may be one number: there is no line through that."""
    assert fit([(1e9, 0.1), (1e9 + 1e-6, 0.2), (1e9 + 2e-6, 0.3)]) is None
    assert fit([(1e9, 0.1), (1e9 + 1e-6, 0.2), (1e3, 0.3)]) is None
