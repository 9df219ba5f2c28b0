"""FedEx-LoRA: mean factors, and the residual in the frozen weight."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from pairs import ideal_mean, normal, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FedAvg, FedExLora
from wardround.aggregators.contract import ServerState
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import streams


def effective_weight(server: ServerState) -> torch.Tensor:
    return server.base["W"] + product(server.setting, server.tensors)


def test_two_by_two_by_hand() -> None:
    """The residual of two hospitals of equal weight.

    B_a A_a = diag(2, 0) and B_b A_b = diag(0, 1), so that M = diag(1, 0.5). The mean factors are B = (1, 0.5) and
    A = (0.5, 0.5) with B A = [[0.5, 0.5], [0.25, 0.25]]: they miss M by [[0.5, -0.5], [-0.25, 0.25]].
    """
    updates = [
        update("a", B=tensor([2.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(1.0)),
        update("b", B=tensor([0.0], [1.0]), A=tensor([0.0, 1.0]), w=tensor(5.0)),
    ]
    after = FedExLora().aggregate(state(one_pair()), updates, streams).server
    torch.testing.assert_close(after.tensors["B"], tensor([1.0], [0.5]))
    torch.testing.assert_close(after.tensors["A"], tensor([0.5, 0.5]))
    torch.testing.assert_close(after.base["W"], tensor([0.5, -0.5], [-0.25, 0.25]))
    assert after.tensors["w"] == 3.0


@pytest.mark.parametrize(("d_out", "d_in"), [(9, 4), (4, 9), (6, 6)])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_is_exact_and_not_transposed(d_out: int, d_in: int, power: float) -> None:
    """The published code adds the transposed residual. That fails on 9 x 4, and silently misses the mean on 6 x 6."""
    setting = one_pair(d_out, d_in, ranks=(2, 2, 2), alpha=4.0, power=power)
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    M = ideal_mean(setting, updates)
    after = FedExLora().aggregate(state(setting), updates, streams).server
    torch.testing.assert_close(effective_weight(after), M, rtol=1e-13, atol=1e-13)
    if d_out == d_in:
        transposed = product(setting, after.tensors) + after.base["W"].mT
        assert (transposed - M).norm() > 0.1 * M.norm()


def test_the_factors_are_those_of_fedit() -> None:
    setting = one_pair(5, 4, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    ours = FedExLora().aggregate(state(setting), updates, streams).server
    fedit = FedAvg().aggregate(state(setting), updates, streams).server
    assert all(torch.equal(value, ours.tensors[name]) for name, value in fedit.tensors.items())


def test_hospitals_that_share_a_factor_leave_no_residual() -> None:
    setting = one_pair(5, 4, ranks=(2, 2, 2))
    A = normal(2, 4, seed="A")
    updates = [update(name, B=normal(5, 2, seed=name), A=A, w=tensor(0.0)) for name in "abc"]
    assert not FedExLora().aggregate(state(setting), updates, streams).server.base["W"].any()


def test_the_residual_travels_with_one_block_fewer_than_hospitals() -> None:
    """Four hospitals of rank 2 on 20 x 30: LoRA of rank 2 and a residual of rank 6."""
    setting = one_pair(20, 30, ranks=(2, 2, 2, 2))
    server = FedExLora().init(setting, streams)
    assert set(FedExLora().broadcast(server, setting.hospitals[0]).traffic) == {"A", "B", "w"}
    updates = random_updates(setting, [1.0, 2.0, 3.0, 4.0])
    server = FedExLora().aggregate(server, updates, streams).server
    traffic = FedExLora().broadcast(server, setting.hospitals[0]).traffic
    sizes = {name: value.numel() for name, value in traffic.items()}
    assert sizes == {"A": 60, "B": 40, "w": 1, "merged/B": 120, "merged/A": 180}
    factors = traffic["merged/B"] @ traffic["merged/A"]
    dense = ideal_mean(setting, updates) - server.tensors["B"] @ server.tensors["A"]
    torch.testing.assert_close(factors, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_cut_residual_is_the_best_of_its_rank(rank: int) -> None:
    """Against a dense SVD: what is missing are the singular values that were cut, and FedIT misses more."""
    setting = one_pair(11, 9, ranks=(2, 2, 2), alpha=3.0)
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    M = ideal_mean(setting, updates)
    fedit = product(setting, FedAvg().aggregate(state(setting), updates, streams).server.tensors)
    after = FedExLora(residual_rank=rank).aggregate(state(setting), updates, streams).server
    missing = (M - effective_weight(after)).norm().item()
    assert missing == pytest.approx(np.linalg.norm(scipy.linalg.svdvals(M - fedit)[rank:]), rel=1e-12)
    assert missing < (M - fedit).norm().item()
    assert after.memory["merged/A"].shape == (rank, 9)


@pytest.mark.parametrize("rank", [4, 100])
def test_a_cut_that_cuts_nothing_is_exact(rank: int) -> None:
    """Three hospitals of rank 2 leave a residual of rank 4."""
    setting = one_pair(11, 9, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    after = FedExLora(residual_rank=rank).aggregate(state(setting), updates, streams).server
    torch.testing.assert_close(effective_weight(after), ideal_mean(setting, updates), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "all"])
def test_an_impossible_residual_rank_is_refused(rank: object) -> None:
    with pytest.raises(ValueError, match=r"^residual_rank: expected an integer of at least 1, got "):
        FedExLora(residual_rank=rank)  # type: ignore[arg-type]


def test_different_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="one LoRA rank for all hospitals"):
        FedExLora().init(one_pair(ranks=(1, 2)), streams)


def test_a_cut_residual_keeps_the_contract() -> None:
    check_aggregator(FedExLora(residual_rank=1), Claims(gauge="not"))
