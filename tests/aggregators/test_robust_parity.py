"""The robust aggregators on the factors against flwr's legacy functions and SciPy, on one long vector per hospital.

What is known to differ is left out: byzfl's Krum counts n - f - 1 neighbours; flwr's newer ``Bulyan`` picks all updates
at once instead of one by one; flwr's Multi-Krum weighs by examples, which are equal here.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from pairs import one_pair, random_updates, state

from wardround.aggregators import Bulyan, Krum, Median, MultiKrum, TrimmedMean
from wardround.aggregators.contract import Aggregator, ClientUpdate
from wardround.aggregators.toy import streams

NAMES = ("A", "B", "w")
SETTINGS = {number: one_pair(6, 5, ranks=(2,) * number) for number in (5, 6, 7, 8)}


def results(updates: list[ClientUpdate]) -> list:
    """As flwr takes them: arrays and number of examples."""
    return [([one.tensors[name].numpy() for name in NAMES], 10) for one in updates]


def check(aggregator: Aggregator, updates: list[ClientUpdate], expected: list[np.ndarray]) -> None:
    setting = SETTINGS[len(updates)]
    got = aggregator.aggregate(state(setting), updates, streams).server.tensors
    for name, value in zip(NAMES, expected, strict=True):
        np.testing.assert_allclose(got[name].numpy(), value, rtol=1e-12, atol=1e-14)


@pytest.fixture(params=[(number, seed) for number in SETTINGS for seed in range(3)], ids=str)
def updates(request: pytest.FixtureRequest) -> list[ClientUpdate]:
    number, seed = request.param
    return random_updates(SETTINGS[number], [1.0] * number, seed)


def test_median(updates: list[ClientUpdate]) -> None:
    from flwr.server.strategy.aggregate import aggregate_median

    check(Median(on="factors"), updates, aggregate_median(results(updates)))


@pytest.mark.parametrize("fraction", [0.2, 0.25, 0.4])
def test_trimmed_mean(updates: list[ClientUpdate], fraction: float) -> None:
    from flwr.server.strategy.aggregate import aggregate_trimmed_avg

    check(TrimmedMean(fraction=fraction, on="factors"), updates, aggregate_trimmed_avg(results(updates), fraction))


@pytest.mark.parametrize("fraction", [0.2, 0.25, 0.4])
def test_trimmed_mean_of_scipy(updates: list[ClientUpdate], fraction: float) -> None:
    expected = [scipy.stats.trim_mean([one.tensors[name].numpy() for one in updates], fraction) for name in NAMES]
    check(TrimmedMean(fraction=fraction, on="factors"), updates, expected)


def test_krum(updates: list[ClientUpdate]) -> None:
    from flwr.server.strategy.aggregate import aggregate_krum

    check(Krum(on="factors"), updates, aggregate_krum(results(updates), num_malicious=1, to_keep=0))


def test_multi_krum(updates: list[ClientUpdate]) -> None:
    from flwr.server.strategy.aggregate import aggregate_krum

    check(MultiKrum(keep=3, on="factors"), updates, aggregate_krum(results(updates), num_malicious=1, to_keep=3))


def test_bulyan(updates: list[ClientUpdate]) -> None:
    from flwr.server.strategy.aggregate import aggregate_bulyan, aggregate_krum

    if len(updates) < 7:
        pytest.skip("Bulyan with one attacker needs seven hospitals")
    expected = aggregate_bulyan(results(updates), 1, aggregate_krum, to_keep=0)
    check(Bulyan(on="factors"), updates, expected)
