"""How sure a mean over sites is: bootstrap intervals over volumes within sites, paired differences, spread over seeds.

::

    score of a volume = mean over seeds;   M = 1/S sum_s 1/n_s sum_i x_si          S sites, n_s volumes at site s
    interval: every site's n_s volumes are drawn again with replacement, 9,999 times; 2.5th and 97.5th percentile of M

The sites are not drawn again: a sweep speaks of these hospitals, for other patients of theirs. All sites count alike,
whatever their number of volumes, as in a run's own mean.

Source: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals); the
resampling is :func:`scipy.stats.bootstrap`'s. Of thousands of images that are right or wrong, it is drawn how often
each value comes (multinomial), which has the same distribution.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""How often an interval is meant to hold the true mean."""

RESAMPLES = 9_999
"""How often the volumes are drawn again."""

STREAM = 0
"""Seed of these draws, always the same one: equal scores give equal intervals."""

NUMBERS = 100_000
"""Volumes times resamples in memory at a time."""

MANY = 1_000
"""Cases of all sites together from which on equal ones are drawn by their number, where they are mostly equal."""

EQUAL = 8
"""Cases per different value from which on they are mostly equal."""

MIN_SEEDS = 3
"""With fewer, the spread over seeds is a guess: from two, its own 95 % interval is 0.45 to 32 times the estimate."""

MIN_VOLUMES = 5
"""With fewer at a site, less than 89 of 100 intervals hold the true mean: see :func:`mean_over_sites`."""

MIN_PAIRS = 20
"""Four sites with MIN_VOLUMES each. The mean of 20 has to be 0.44 (1.96 / sqrt(20)) of their spread to be
told from 0 in half of all cases."""

Volume = tuple[str, str]
"""Site and case."""

Scores = Mapping[int, Mapping[Volume, float | None]]
"""Per seed the score of every volume, None where it is undefined."""

Samples = Mapping[str, Sequence[float] | NDArray[np.float64]]
"""Per site a number per volume."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % bootstrap interval over volumes within sites; None where it cannot be had."""

    mean: float
    low: float | None
    high: float | None

    @property
    def includes_zero(self) -> bool:
        """Whether 0 is within the interval; also True where there is none, as then nothing can be told."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


def mean_over_sites(values: Samples) -> Interval:
    """The mean over sites of the means over volumes, with its interval.

    A site with a single volume counts in the mean and adds nothing to the interval's width. Where no site has two
    volumes there is no interval.

    Percentile intervals from few volumes are too narrow: they lack a factor sqrt(n / (n - 1)) and the tails of t. How
    many of 100 intervals held the true mean of four sites with n volumes each, in 1,000 simulations
    (``tests/simulator/sweeps/test_statistics.py``); skewed: minus a log-normal variable, sigma 1:

    ======  ===  ===  ===  ===
    n         3    5   10   20
    ======  ===  ===  ===  ===
    normal   82   89   93   93
    skewed   75   82   89   91
    ======  ===  ===  ===  ===

    Args:
        values: Per site a number per volume, at least one of each.

    Raises:
        ValueError: no site, or one without volumes.
    """
    middle = center(values)
    low, high = _percentiles([np.asarray(values[site], dtype=np.float64) for site in sorted(values)])
    return Interval(mean=middle, low=low, high=high)


def center(values: Samples) -> float:
    """The mean over sites of the means over volumes.

    Raises:
        ValueError: no site, or one without volumes.
    """
    if not values or any(len(numbers) == 0 for numbers in values.values()):
        raise ValueError(f"expected at least one site, and volumes at each, got {dict(values)!r}")
    return float(np.mean([np.mean(values[site]) for site in sorted(values)]))


def _percentiles(samples: Sequence[NDArray[np.float64]]) -> tuple[float | None, float | None]:
    """Ends of the interval. Sites that vary are drawn again; the others only shift the mean."""
    varied = [sample for sample in samples if sample.size > 1]
    if not varied:
        return None, None
    fixed = sum(float(sample[0]) for sample in samples if sample.size == 1)
    if mostly_equal(varied):
        means = (sum(_counted_means(varied)) + fixed) / len(samples)
        low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        return float(low), float(high)
    from scipy.stats import bootstrap  # takes a second to load: not for those who only look at runs

    def statistic(*drawn: NDArray[np.float64], axis: int = -1) -> Any:
        return (sum(sample.mean(axis=axis) for sample in drawn) + fixed) / len(samples)

    found = bootstrap(
        varied,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(NUMBERS // sum(sample.size for sample in varied), 1),
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(STREAM),
    ).confidence_interval
    return float(found.low), float(found.high)


def mostly_equal(samples: Sequence[NDArray[np.float64]]) -> bool:
    """Whether there are many cases with few different values, as of images told right or wrong with few seeds."""
    size = sum(sample.size for sample in samples)
    return size >= MANY and EQUAL * sum(np.unique(sample).size for sample in samples) <= size


def _counted_means(samples: Sequence[NDArray[np.float64]]) -> Iterator[NDArray[np.float64]]:
    """Per site the means of its cases drawn again: how often each value is drawn is multinomial.

    The same distribution as that of cases drawn one by one, in time and memory of the different values alone.
    """
    stream = np.random.default_rng(STREAM)
    for sample in samples:
        values, counts = np.unique(sample, return_counts=True)
        yield stream.multinomial(sample.size, counts / sample.size, size=RESAMPLES) @ values / sample.size


def over_seeds(scores: Scores) -> dict[Volume, float]:
    """Every volume's mean over the seeds in which its score is defined; volumes without any are left out."""
    gathered: dict[Volume, list[float]] = {}
    for of_seed in scores.values():
        for volume, value in of_seed.items():
            if value is not None:
                gathered.setdefault(volume, []).append(value)
    return {volume: float(np.mean(found)) for volume, found in gathered.items()}


def undefined(scores: Scores) -> int:
    """How many scores are undefined: volumes times seeds."""
    return sum(value is None for of_seed in scores.values() for value in of_seed.values())


def by_site(values: Mapping[Volume, float]) -> dict[str, NDArray[np.float64]]:
    """The same numbers site by site, in the order of the names of sites and cases."""
    found: dict[str, list[float]] = {}
    for site, case in sorted(values):
        found.setdefault(site, []).append(values[site, case])
    return {site: np.array(numbers) for site, numbers in found.items()}


def per_seed(scores: Scores) -> dict[int, float]:
    """The mean over sites of the means over volumes, seed by seed; seeds without a defined score are left out."""
    means = {}
    for seed in sorted(scores):
        sites = by_site({volume: value for volume, value in scores[seed].items() if value is not None})
        if sites:
            means[seed] = center(sites)
    return means


def spread(values: Iterable[float]) -> float | None:
    """Standard deviation (of a sample: n - 1), None of fewer than two values."""
    found = list(values)
    return float(np.std(found, ddof=1)) if len(found) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Differences of two things, volume by volume and seed by seed.

    Args:
        differences: Left minus right, where both are defined.
        unpaired: Volumes that only one of the two was scored on, in the seeds of both.
        undefined: Pairs (volumes times seeds) that are left out as one of the two scores is undefined.
    """

    differences: Mapping[int, Mapping[Volume, float]]
    unpaired: int
    undefined: int


def paired(left: Scores, right: Scores) -> Paired:
    """Pairs two things in the seeds and on the volumes that both have."""
    differences: dict[int, dict[Volume, float]] = {}
    alone: set[Volume] = set()
    missing = 0
    for seed in sorted(left.keys() & right.keys()):
        ours, theirs = left[seed], right[seed]
        alone |= ours.keys() ^ theirs.keys()
        differences[seed] = {}
        for volume in sorted(ours.keys() & theirs.keys()):
            one, other = ours[volume], theirs[volume]
            if one is None or other is None:
                missing += 1
            else:
                differences[seed][volume] = one - other
    return Paired(differences=differences, unpaired=len(alone), undefined=missing)


# --- what the numbers are worth, in words -----------------------------------------------------------------------------


def too_few(values: Samples, seeds: int, where: str = "in all", case: str = "volume") -> tuple[str, ...]:
    """What is too small to say much, in plain words; nothing where all is large enough.

    Args:
        values: Per site a number per case.
        seeds: How many seeds are behind each.
        where: How all these cases together are called.
        case: What a case is: ``volume`` or ``image``.
    """
    sizes = {site: len(values[site]) for site in sorted(values)}
    small = [site for site, size in sizes.items() if size < MIN_VOLUMES]
    single = [site for site, size in sizes.items() if size == 1]
    found = []
    if seeds < MIN_SEEDS:
        found.append(f"{counted(seeds, 'seed')}: fewer than {MIN_SEEDS} say little about chance in training")
    if len(single) == len(sizes):
        found.append(f"one {case} at every site ({named(single)}): no interval can be had")
    elif small:
        found.append(f"fewer than {MIN_VOLUMES} {case}s at {named(small)}: the interval is too narrow")
    if single and len(single) < len(sizes):
        found.append(f"one {case} at {named(single)}: it counts in the mean, and the interval leaves out how it varies")
    if sum(sizes.values()) < MIN_PAIRS:
        found.append(
            f"{counted(sum(sizes.values()), case)} {where}: fewer than {MIN_PAIRS} can tell large differences only"
        )
    return tuple(found)


def verdict(difference: Interval, seeds_sd: float | None, where: str = "") -> tuple[str, ...]:
    """Reasons not to believe a difference, in plain words; nothing where there is none.

    Args:
        difference: Its mean and interval.
        seeds_sd: Standard deviation over seeds of the difference, None where it cannot be had.
        where: Which difference, in front of every sentence.
    """
    found = []
    if difference.includes_zero and difference.low is not None:
        found.append(f"{where}the interval includes 0: no difference can be told")
    if seeds_sd is not None and abs(difference.mean) < seeds_sd:
        found.append(
            f"{where}the difference ({difference.mean:+.4f}) is smaller than its spread over seeds ({seeds_sd:.4f})"
        )
    return tuple(found)


def adjusted(comparisons: int) -> float:
    """Level of each of several intervals at which all of them hold together in 95 % of cases at least (Bonferroni)."""
    return 1.0 - (1.0 - LEVEL) / comparisons


def counted(number: int, what: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def named(names: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """A few names, then how many more there are.

    Example:
        >>> named(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    shown = between.join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
