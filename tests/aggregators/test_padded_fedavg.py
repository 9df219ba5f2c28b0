"""Means of factors of different ranks: with zeros, and over those who have the direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pairs import one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FedAvg, PaddedFedAvg
from wardround.aggregators.contract import ClientUpdate, Setting
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import streams

MEANS = ("zero", "rows")


@pytest.mark.parametrize(
    ("mean", "A", "B"),
    [
        ("zero", [[0.75, 0.5], [0.0, 1.0]], [[2.0, 1.0], [0.0, 0.0]]),
        ("rows", [[0.75, 0.5], [0.0, 4.0]], [[2.0, 4.0], [0.0, 0.0]]),
    ],
)
def test_two_by_two_by_hand(mean: str, A: list, B: list) -> None:
    """Hospital a has rank 1 and weight 3, b rank 2 and weight 1. Scale 1.

    Row 1 of A: (3 (1, 0) + (0, 2)) / 4 = (0.75, 0.5). Row 2 is b's (0, 4) alone, a quarter of it with zeros. Column 1
    of B: (3 (2, 0) + (2, 0)) / 4 = (2, 0), column 2 b's (4, 0). With zeros the product of direction 2 is 1/16 of b's.
    """
    updates = [
        update("a", 3.0, A=tensor([1.0, 0.0]), B=tensor([2.0], [0.0]), w=tensor(1.0)),
        update("b", 1.0, A=tensor([0.0, 2.0], [0.0, 4.0]), B=tensor([2.0, 4.0], [0.0, 0.0]), w=tensor(5.0)),
    ]
    after = PaddedFedAvg(mean=mean).aggregate(state(one_pair(ranks=(1, 2))), updates, streams).server
    assert after.tensors["A"].tolist() == A
    assert after.tensors["B"].tolist() == B
    assert after.tensors["w"] == 2.0


def reference(setting: Setting, updates: Sequence[ClientUpdate], rank: int, mean: str) -> tuple[np.ndarray, np.ndarray]:
    """B and A of all directions by loops over them, with the scale in B: (d_out, rank) and (rank, d_in)."""
    pair, d = setting.layout.pairs[0], setting.frozen["W"]
    B, A = np.zeros((d[0], rank)), np.zeros((rank, d[1]))
    for j in range(rank):
        have = [u for u in updates if u.tensors["A"].shape[0] > j]
        total = sum(u.weight for u in (have if mean == "rows" else updates))
        for u in have:
            scale = pair.scale(u.tensors["A"].shape[0])
            B[:, j] += u.weight / total * scale * u.tensors["B"][:, j].numpy()
            A[j] += u.weight / total * u.tensors["A"][j].numpy()
    return B, A


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_agrees_with_loops_over_directions(mean: str, power: float) -> None:
    """Ranks 1, 2, 4; what a hospital is handed has the product of the first directions at its own scale."""
    setting = one_pair(5, 6, ranks=(1, 2, 4), alpha=3.0, power=power)
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    after = PaddedFedAvg(mean=mean).aggregate(state(setting), updates, streams).server
    B, A = reference(setting, updates, 4, mean)
    for hospital in setting.hospitals:
        start = PaddedFedAvg(mean=mean).broadcast(after, hospital).start
        r = hospital.rank or 0
        assert start["A"].shape == (r, 6)
        np.testing.assert_allclose(product(setting, start).numpy(), B[:, :r] @ A[:r], rtol=1e-12)


@pytest.mark.parametrize("mean", MEANS)
def test_with_equal_ranks_it_is_fedavg(mean: str) -> None:
    setting = one_pair(5, 6, ranks=(3, 3, 3), alpha=2.0, power=1.0)
    updates = random_updates(setting, [1.0, 2.0, 4.0])
    ours, fedavg = (a.aggregate(state(setting), updates, streams).server for a in (PaddedFedAvg(mean=mean), FedAvg()))
    for name, value in fedavg.tensors.items():
        torch.testing.assert_close(ours.tensors[name], value, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("mean", MEANS)
def test_a_direction_that_nobody_of_the_round_has_stays(mean: str) -> None:
    """Only the hospitals of rank 1 and 2 answer: directions 3 and 4 are those of the round before."""
    setting = one_pair(5, 6, ranks=(1, 2, 4))
    full = PaddedFedAvg(mean=mean).aggregate(state(setting), random_updates(setting, [1.0, 1.0, 1.0]), streams).server
    after = PaddedFedAvg(mean=mean).aggregate(full, random_updates(setting, [1.0, 1.0, 1.0], 1)[:2], streams).server
    assert torch.equal(after.tensors["A"][2:], full.tensors["A"][2:])
    assert torch.equal(after.tensors["B"][:, 2:], full.tensors["B"][:, 2:])
    assert not torch.equal(after.tensors["A"][:2], full.tensors["A"][:2])


def test_row_means_keep_the_contract() -> None:
    check_aggregator(PaddedFedAvg(mean="rows"), Claims(identity="exact", gauge="not", ranks="mixed"))


def test_an_unknown_mean_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^mean: expected 'zero' or 'rows', got 'copy'"):
        PaddedFedAvg(mean="copy")
