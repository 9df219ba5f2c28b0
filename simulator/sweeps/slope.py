"""What a tenfold more of parameters sent is worth: a straight line through the scores of a sweep's variants.

::

    score_i = a + b log10(P_i) + e_i        P_i numbers that variant i sends per round and hospital; b: slope per decade

Ordinary least squares over the variants (:func:`scipy.stats.linregress`), with the 95 % interval of b from Student's t
with n - 2 degrees of freedom. Where all scores are equal up to rounding, the line is flat and there is no interval: no
residual says how far the scores scatter. The line describes these variants: they differ in more than in what they send.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

LEVEL = 0.95
"""How often an interval is meant to hold the true slope."""

MIN_VARIANTS = 3
"""Different numbers of parameters that a line needs: two always lie on one."""

ROUNDING = 1e-9
"""Numbers that differ by no more than this share of them are equal."""


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A line through the scores of variants.

    Args:
        per_decade: What the score gains with ten times as many parameters sent.
        low: Lower end of its 95 % interval; None where all scores are equal.
        high: Upper end, likewise.
        intercept: The line at one parameter sent.
        r_squared: Share of the variance of the scores that the line explains; None where all scores are equal.
        variants: Variants behind it.
    """

    per_decade: float
    low: float | None
    high: float | None
    intercept: float
    r_squared: float | None
    variants: int

    def at(self, parameters: float) -> float:
        """The line where so many parameters are sent."""
        return self.intercept + self.per_decade * math.log10(parameters)


def fit(points: Sequence[tuple[float, float]]) -> Slope | None:
    """The line through variants; None with fewer than :data:`MIN_VARIANTS` different numbers of parameters.

    Args:
        points: Per variant the parameters that a hospital sends in a round, above 0, and the score.

    Example:
        >>> line = fit([(10, 0.5), (100, 0.6), (1000, 0.7)])
        >>> round(line.per_decade, 6), round(line.at(10_000), 6), round(line.r_squared, 6)
        (0.1, 0.8, 1.0)
    """
    decades, scores = [math.log10(parameters) for parameters, _ in points], [score for _, score in points]
    if _different(decades) < MIN_VARIANTS:
        return None
    if _different(scores) == 1:
        return _flat(fmean(scores), len(points))
    from scipy.stats import linregress, t  # takes a second to load: not for those who only look at runs

    found = linregress(decades, scores)
    half = float(t.ppf((1 + LEVEL) / 2, len(points) - 2)) * float(found.stderr)
    return Slope(
        per_decade=float(found.slope),
        low=float(found.slope) - half,
        high=float(found.slope) + half,
        intercept=float(found.intercept),
        r_squared=float(found.rvalue) ** 2,
        variants=len(points),
    )


def _different(values: Sequence[float]) -> int:
    """How many different numbers there are, up to rounding."""
    in_order = sorted(values)
    return len(in_order[:1]) + sum(not math.isclose(low, high, rel_tol=ROUNDING) for low, high in pairwise(in_order))


def _flat(score: float, variants: int) -> Slope:
    """The line of variants that all have one score."""
    return Slope(per_decade=0.0, low=None, high=None, intercept=score, r_squared=None, variants=variants)
