"""FedAvg, which is FedIT on low-rank pairs."""

from __future__ import annotations

import pytest
import torch
from pairs import ideal_mean, normal, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import AGGREGATORS, FedAvg
from wardround.aggregators.contract import ServerState
from wardround.aggregators.toy import streams


def aggregated(server: ServerState, updates: list) -> ServerState:
    return FedAvg().aggregate(server, updates, streams).server


def test_the_mean_of_the_factors_by_hand() -> None:
    """B = ([2, 0] + [0, 4]) / 2 = [1, 2], A = [1/2, 1/2].

    So B A = [[1/2, 1/2], [1, 1]], although the ideal mean is diag(1, 2). With weights 3 : 1, B = [1.5, 1] and
    A = [3/4, 1/4].
    """
    server = state(one_pair())
    a = {"B": tensor([2.0], [0.0]), "A": tensor([1.0, 0.0]), "w": tensor(1.0)}
    b = {"B": tensor([0.0], [4.0]), "A": tensor([0.0, 1.0]), "w": tensor(5.0)}
    after = aggregated(server, [update("a", 1.0, **a), update("b", 1.0, **b)])
    assert (after.round, after.tensors["w"]) == (1, 3.0)
    assert torch.equal(product(server.setting, after.tensors), tensor([0.5, 0.5], [1.0, 1.0]))
    after = aggregated(server, [update("a", 3.0, **a), update("b", 1.0, **b)])
    assert after.tensors["w"] == 2.0
    assert torch.equal(after.tensors["B"], tensor([1.5], [1.0]))
    assert torch.equal(after.tensors["A"], tensor([0.75, 0.25]))


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_the_weighted_covariance_of_the_factors(seed: int) -> None:
    """``sum p_k B_k A_k - B A = sum p_k (B_k - B)(A_k - A)`` (times the scale), of rank at most (K - 1) r."""
    setting = one_pair(9, 8, ranks=(2, 2, 2), alpha=3.0, power=1.0)
    updates = random_updates(setting, [1.0, 2.0, 5.0], seed)
    after = aggregated(state(setting), updates).tensors
    error = ideal_mean(setting, updates) - product(setting, after)
    covariance = sum(
        p * 1.5 * (one.tensors["B"] - after["B"]) @ (one.tensors["A"] - after["A"])
        for p, one in zip((1 / 8, 2 / 8, 5 / 8), updates, strict=True)
    )
    torch.testing.assert_close(error, covariance, rtol=1e-12, atol=1e-12)
    assert error.norm() > 1.0
    assert torch.linalg.matrix_rank(error) == 4


@pytest.mark.parametrize("shared", ["A", "B"])
def test_a_shared_factor_makes_the_mean_exact(shared: str) -> None:
    setting = one_pair(9, 8, ranks=(2, 2, 2))
    common = normal(2, 8) if shared == "A" else normal(9, 2)
    updates = [
        update(one.hospital, one.weight, **{**one.tensors, shared: common})
        for one in random_updates(setting, [1.0, 2.0, 5.0])
    ]
    after = aggregated(state(setting), updates)
    torch.testing.assert_close(product(setting, after.tensors), ideal_mean(setting, updates), rtol=1e-12, atol=1e-12)


def test_a_tensor_nobody_sent_stays() -> None:
    server = state(one_pair())
    after = aggregated(server, [update("a", 1.0, w=tensor(7.0))])
    assert torch.equal(after.tensors["A"], server.tensors["A"])
    assert after.tensors["w"] == 7.0


def test_different_ranks_are_refused_with_the_alternative() -> None:
    with pytest.raises(ValueError, match=r"one LoRA rank for all hospitals, got \{'a': 1, 'b': 2\}.*use flap_sam"):
        FedAvg().init(one_pair(ranks=(1, 2)), streams)


def test_fedit_is_the_same_class() -> None:
    assert AGGREGATORS["fedit"] is AGGREGATORS["fedavg"] is FedAvg
