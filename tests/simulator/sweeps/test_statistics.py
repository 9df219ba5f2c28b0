"""Intervals over volumes within sites, pairs, seeds, and what is said where there is too little of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap

from wardround.simulator.sweeps.statistics import (
    RESAMPLES,
    STREAM,
    Interval,
    adjusted,
    by_site,
    counted,
    mean_over_sites,
    mostly_equal,
    named,
    over_seeds,
    paired,
    per_seed,
    spread,
    too_few,
    undefined,
    verdict,
)


def sample(seed: int, size: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=size)


# ---- means and intervals ---------------------------------------------------------------------------------------------


def test_mean_and_interval_by_hand() -> None:
    """Site a has 1 and 3, site b has 5: M = (2 + 5) / 2 = 3.5.

    Drawing a's two volumes again gives 1, 2 or 3 as its mean, with 1/4, 1/2 and 1/4: M is 3, 3.5 or 4. The 2.5th
    percentile lies among the quarter of 3, the 97.5th among that of 4.
    """
    assert mean_over_sites({"a": [1.0, 3.0], "b": [5.0]}) == Interval(mean=3.5, low=3.0, high=4.0)


def test_sites_count_alike_whatever_their_size() -> None:
    assert mean_over_sites({"a": [1.0] * 9, "b": [4.0]}).mean == 2.5


def test_one_site_is_what_scipy_says() -> None:
    values = sample(0, 12)
    theirs = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(STREAM)
    ).confidence_interval
    ours = mean_over_sites({"a": values})
    assert (ours.mean, ours.low, ours.high) == pytest.approx((values.mean(), theirs.low, theirs.high), abs=1e-12)


def test_sites_are_drawn_each_on_its_own() -> None:
    """A loop of our own, with its own draws, ends at the same place up to chance.

    The sites have equal volumes: were they drawn together, by one set of indices, the interval would be twice as wide.
    """
    values = {site: sample(1, 8) for site in "abcd"}
    rng = np.random.default_rng(5)
    means = [
        np.mean([np.mean([numbers[rng.integers(8)] for _ in range(8)]) for numbers in values.values()])
        for _ in range(2_000)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    ours = mean_over_sites(values)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.07 * (high - low))


def test_large_sites_are_drawn_in_parts() -> None:
    """6,000 volumes are more than are drawn at a time.

    Of so many, with a standard deviation of 1, the interval is 1.96 / sqrt(6000) on both sides, to a few percent.
    """
    values = {site: sample(seed, 2_000) for seed, site in enumerate("abc")}
    ours = mean_over_sites(values)
    assert ours.low is not None
    assert ours.mean - ours.low == pytest.approx(1.96 / np.sqrt(6_000), rel=0.05)


def test_equal_scores_have_equal_intervals() -> None:
    values = {"a": sample(2, 5), "b": sample(3, 7)}
    assert mean_over_sites(values) == mean_over_sites(dict(reversed(values.items())))


def test_a_site_with_one_volume_shifts_the_interval_and_does_not_widen_it() -> None:
    """M = (mean a + 8) / 2: every resampled M is half that of a alone, plus 4."""
    alone, both = mean_over_sites({"a": sample(4, 6)}), mean_over_sites({"a": sample(4, 6), "b": [8.0]})
    assert alone.low is not None
    assert alone.high is not None
    assert (both.low, both.high) == pytest.approx((alone.low / 2 + 4, alone.high / 2 + 4))


@pytest.mark.parametrize("values", [{"a": [0.5]}, {"a": [0.5], "b": [0.7]}])
def test_no_interval_where_no_site_has_two_volumes(values: dict[str, list[float]]) -> None:
    found = mean_over_sites(values)
    assert (found.low, found.high, found.includes_zero) == (None, None, True)


@pytest.mark.parametrize("values", [{}, {"a": [1.0], "b": []}])
def test_nothing_has_no_mean(values: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="expected at least one site, and volumes at each, got"):
        mean_over_sites(values)


@pytest.mark.parametrize(
    ("low", "high", "includes"), [(-1.0, 1.0, True), (0.0, 1.0, True), (0.1, 1.0, False), (-2.0, -1.0, False)]
)
def test_whether_zero_is_inside(low: float, high: float, includes: bool) -> None:
    assert Interval(mean=0.5, low=low, high=high).includes_zero is includes


@pytest.mark.slow
@pytest.mark.parametrize(("size", "least", "most"), [(3, 0.78, 0.87), (5, 0.85, 0.92), (20, 0.92, 0.97)])
def test_intervals_from_few_volumes_hold_less_often_than_they_say(size: int, least: float, most: float) -> None:
    """Four sites with different means, normal volumes around them: how often 1,000 intervals hold the true mean.

    What theory says: the interval has +-1.96 sqrt((n - 1) / n) s / sqrt(4 n), and a t of 4 (n - 1) degrees of freedom
    is within that in 85, 90, 94 of 100 cases at n = 3, 5, 20.
    """
    rng = np.random.default_rng([size, 7])
    held = 0
    for _ in range(1_000):
        found = mean_over_sites({str(site): site + rng.normal(size=size) for site in range(4)})
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.5 <= found.high
    assert least <= held / 1_000 <= most


# ---- seeds and pairs -------------------------------------------------------------------------------------------------

SCORES = {
    1: {("b", "x"): 0.4, ("a", "x"): 0.6, ("a", "y"): None},
    0: {("b", "x"): 0.2, ("a", "x"): 0.4, ("a", "y"): 0.9},
}


def test_seeds_are_averaged_volume_by_volume() -> None:
    """a/y is defined in one seed only and keeps that score; its mean over seeds is no mean with 0."""
    values = over_seeds(SCORES)
    assert values == {("b", "x"): pytest.approx(0.3), ("a", "x"): 0.5, ("a", "y"): 0.9}
    assert {site: list(numbers) for site, numbers in by_site(values).items()} == {
        "a": [0.5, 0.9],
        "b": [pytest.approx(0.3)],
    }
    assert undefined(SCORES) == 1


def test_means_seed_by_seed() -> None:
    """Seed 0: a (0.4 + 0.9) / 2 = 0.65, b 0.2, together 0.425. Seed 1: a 0.6, b 0.4, together 0.5."""
    found = per_seed({**SCORES, 2: {("a", "x"): None}})
    assert found == {0: pytest.approx(0.425), 1: pytest.approx(0.5)}
    assert list(found) == [0, 1]


def test_spread_is_that_of_a_sample() -> None:
    """1, 2, 3: squares 1 + 0 + 1 over n - 1 = 2."""
    assert spread([1.0, 2.0, 3.0]) == 1.0
    assert spread(iter([1.0])) is None
    assert spread([]) is None


def test_pairs_are_of_the_same_seed_and_volume() -> None:
    """Seed 1 is on the left only; b/x on the right only; a/y has no score on the right."""
    left = {0: {("a", "x"): 0.7, ("a", "y"): 0.5}, 1: {("a", "x"): 0.0}}
    right = {0: {("a", "x"): 0.4, ("a", "y"): None, ("b", "x"): 0.3}, 2: {("c", "x"): 0.0}}
    found = paired(left, right)
    assert found.differences == {0: {("a", "x"): pytest.approx(0.3)}}
    assert (found.unpaired, found.undefined) == (1, 1)


# ---- in words --------------------------------------------------------------------------------------------------------


def test_enough_is_not_spoken_of() -> None:
    assert too_few({"a": [0.0] * 15, "b": [0.0] * 5}, seeds=3) == ()


@pytest.mark.parametrize(
    ("sizes", "seeds", "expected"),
    [
        ([10, 10], 2, ["2 seeds: fewer than 3 say little about chance in training"]),
        ([10, 10], 1, ["1 seed: fewer than 3"]),
        ([16, 4], 3, ["fewer than 5 volumes at b: the interval is too narrow"]),
        ([5, 5], 3, ["10 volumes in all: fewer than 20 can tell large differences only"]),
        ([30, 1], 3, ["fewer than 5 volumes at b", "one volume at b: it counts in the mean, and the interval leaves"]),
        ([1, 1], 3, ["one volume at every site (a, b): no interval can be had", "2 volumes in all"]),
    ],
)
def test_too_few_in_words(sizes: list[int], seeds: int, expected: list[str]) -> None:
    found = too_few({site: [0.0] * size for site, size in zip("ab", sizes, strict=True)}, seeds)
    assert [text[: len(start)] for text, start in zip(found, expected, strict=True)] == expected


def test_reasons_not_to_believe_a_difference() -> None:
    sure, unsure = Interval(mean=0.02, low=0.01, high=0.03), Interval(mean=0.02, low=-0.01, high=0.05)
    assert verdict(sure, 0.01) == ()
    assert verdict(unsure, None) == ("the interval includes 0: no difference can be told",)
    assert verdict(sure, 0.03) == ("the difference (+0.0200) is smaller than its spread over seeds (0.0300)",)
    assert verdict(Interval(mean=-0.02, low=-0.03, high=-0.01), 0.01) == ()
    assert verdict(unsure, None, "at c: ")[0].startswith("at c: the interval")
    assert verdict(Interval(mean=0.0, low=None, high=None), None) == ()  # too_few says that there is none


def test_level_of_several_intervals() -> None:
    """Five that fail in 1 of 100 cases each fail together in 5 of 100 at most."""
    assert adjusted(1) == pytest.approx(0.95)
    assert adjusted(5) == pytest.approx(0.99)


def test_words() -> None:
    assert (counted(1, "seed"), counted(0, "seed")) == ("1 seed", "0 seeds")
    assert (named(["a"]), named(["a", "b"], between="; "), named(list("abcd"))) == ("a", "a; b", "a, b, c and 1 more")


def test_nothing_heavy_is_loaded() -> None:
    script = (
        "import sys, wardround.simulator.sweeps.results as _; sys.exit(bool({'torch', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-I", "-c", script], check=False).returncode == 0


def test_images_that_are_right_or_wrong_are_counted_and_not_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same distribution: ends agree within what 9,999 draws leave, a twentieth of the interval's width."""
    draw = np.random.default_rng(7)
    samples = {site: (draw.random(size) < 0.7).astype(float) for site, size in (("a", 1500), ("b", 700), ("c", 1))}
    assert mostly_equal([samples["a"], samples["b"]])
    counted = mean_over_sites(samples)
    monkeypatch.setattr("wardround.simulator.sweeps.statistics.MANY", 10**9)
    drawn = mean_over_sites(samples)
    assert counted.mean == drawn.mean
    assert counted != drawn  # another way
    width = drawn.high - drawn.low
    assert (counted.low, counted.high) == (
        pytest.approx(drawn.low, abs=0.05 * width),
        pytest.approx(drawn.high, abs=0.05 * width),
    )


def test_volumes_are_drawn_one_by_one() -> None:
    """Few of them, and many that all differ."""
    draw = np.random.default_rng(1)
    assert not mostly_equal([np.zeros(500)])
    assert not mostly_equal([draw.random(5000)])
