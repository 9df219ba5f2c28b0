"""The mean of every coordinate without its extremes."""

from __future__ import annotations

import pytest
import torch
from pairs import one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FedAvg, FlapSam, Median, TrimmedMean
from wardround.aggregators.toy import streams

FIVE = one_pair(6, 5, ranks=(2,) * 5)


def test_by_hand() -> None:
    """Values 1, 2, 3, 6, 100 without one value on each side: 11 / 3; of five values three are kept."""
    factors = {"A": tensor([1.0, 0.0]), "B": tensor([1.0], [0.0])}
    updates = [
        update(name, **factors, w=tensor(w)) for name, w in zip("abcde", (6.0, 1.0, 100.0, 2.0, 3.0), strict=True)
    ]
    result = TrimmedMean(fraction=0.2).aggregate(state(one_pair(ranks=(1,) * 5)), updates, streams)
    torch.testing.assert_close(result.server.tensors["w"], tensor(11 / 3))
    assert result.diagnostics == {"kept_weight": pytest.approx(0.6), "rejected": 2.0}


def test_dropping_nothing_is_the_mean() -> None:
    updates = random_updates(FIVE, [1.0] * 5)
    for on, mean in (("factors", FedAvg()), ("product", FlapSam())):
        trimmed = TrimmedMean(fraction=0.0, on=on).aggregate(state(FIVE), updates, streams).server.tensors
        expected = mean.aggregate(state(FIVE), updates, streams).server.tensors
        torch.testing.assert_close(product(FIVE, trimmed), product(FIVE, expected))


@pytest.mark.parametrize("on", ["factors", "product"])
def test_dropping_all_but_one_is_the_median(on: str) -> None:
    updates = random_updates(FIVE, [1.0] * 5)
    trimmed = TrimmedMean(fraction=0.4, on=on).aggregate(state(FIVE), updates, streams).server.tensors
    expected = Median(on=on).aggregate(state(FIVE), updates, streams).server.tensors
    torch.testing.assert_close(product(FIVE, trimmed), product(FIVE, expected))


@pytest.mark.parametrize(
    ("fraction", "number", "dropped"), [(0.2, 5, 1), (0.2, 9, 1), (0.3, 10, 3), (0.29, 100, 29), (0.49, 3, 1)]
)
def test_how_many_are_dropped(fraction: float, number: int, dropped: int) -> None:
    """0.29 * 100 is 28.999999999999996 in floating point, and means 29."""
    assert TrimmedMean(fraction=fraction).dropped(number) == dropped


def test_a_federation_of_which_nothing_would_be_dropped_is_refused() -> None:
    setting = one_pair(ranks=(1,) * 4)
    with pytest.raises(ValueError, match=r"at least 1 / fraction = 5 hospitals .* fraction = 0.2, got 4: nothing"):
        TrimmedMean().init(setting, streams)
    with pytest.raises(ValueError, match=r"^round 1: expected at least 1 / fraction = 5 hospitals"):
        TrimmedMean().aggregate(state(setting), random_updates(setting, [1.0] * 4), streams)


@pytest.mark.parametrize("fraction", [-0.1, 0.5])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"^fraction: expected a number in \[0, 0.5\), got {fraction}"):
        TrimmedMean(fraction=fraction)
