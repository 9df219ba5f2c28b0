"""FLoRIST: one global pair, as thin as an energy threshold allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import ideal_mean, one_pair, product, random_updates, state, tensor, update
from torch import Tensor

from wardround.aggregators import FlexLora, Florist
from wardround.aggregators.arithmetic import effective
from wardround.aggregators.contract import Download, HospitalInfo, Setting
from wardround.aggregators.florist import adaptive_rank
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def diagonal_updates(*S: float) -> list:
    """One hospital whose product is diag(S)."""
    return [update("a", B=torch.eye(len(S)).double(), A=torch.diag(tensor(*S)), w=tensor(0.0))]


@pytest.mark.parametrize(("tau", "rank"), [(0.01, 1), (0.63, 1), (0.65, 2), (0.99, 2), (0.99995, 3), (1.0, 3)])
def test_adaptive_rank_by_hand(tau: float, rank: int) -> None:
    """Singular values 8, 6, 0.1 and 0: shares of the energy 64, 100, 100.01 and 100.01 in 100.01."""
    S = tensor(8.0, 6.0, 0.1, 0.0)
    assert adaptive_rank(S, tau, largest=4) == rank


def test_adaptive_rank_is_at_least_one_and_at_most_what_anyone_holds() -> None:
    assert adaptive_rank(tensor(0.0, 0.0), 0.9, largest=2) == 1
    assert adaptive_rank(tensor(1.0, 1.0, 1.0), 1.0, largest=2) == 2


def test_two_by_two_by_hand() -> None:
    """Product diag(3, 1): the first direction holds 9 / 10 of the energy.

    At tau 0.85 one direction travels, B = (3, 0) and A = (1, 0), and rank 2 is filled up; at 0.95 both travel.
    """
    setting = one_pair(ranks=(2,))
    thin, whole = (
        Florist(tau=tau).aggregate(state(setting), diagonal_updates(3.0, 1.0), streams) for tau in (0.85, 0.95)
    )
    sent = Florist().broadcast(thin.server, setting.hospitals[0]).traffic
    torch.testing.assert_close((sent["B"], sent["A"]), (tensor([3.0], [0.0]), tensor([1.0, 0.0])))
    torch.testing.assert_close(product(setting, thin.server.tensors), torch.diag(tensor(3.0, 0.0)))
    torch.testing.assert_close(product(setting, whole.server.tensors), torch.diag(tensor(3.0, 1.0)))
    assert Florist().broadcast(whole.server, setting.hospitals[0]).traffic["B"].shape == (2, 2)
    assert (thin.diagnostics, whole.diagnostics) == ({"adaptive_rank": 1.0}, {"adaptive_rank": 2.0})


def sent_product(setting: Setting, download: Download) -> Tensor:
    return effective(download.traffic, setting.layout.pairs[0])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tau", [0.5, 0.7, 0.8])
def test_keeps_just_enough_energy(tau: float, power: float) -> None:
    """Against a dense SVD: r* directions hold tau, r* - 1 do not; all hospitals are sent these, at the scale of r*."""
    setting = one_pair(11, 13, ranks=(1, 3, 6), alpha=4.0, power=power)
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    M = ideal_mean(setting, updates)
    U, S, Vh = np.linalg.svd(M.numpy())
    aggregator = Florist(tau=tau)
    server = aggregator.aggregate(state(setting), updates, streams).server
    for hospital in setting.hospitals:
        download = aggregator.broadcast(server, hospital)
        rank = len(download.traffic["A"])
        assert (S[: rank - 1] ** 2).sum() < tau * (S**2).sum() <= (S[:rank] ** 2).sum()
        np.testing.assert_allclose(
            sent_product(setting, download), (U[:, :rank] * S[:rank]) @ Vh[:rank], rtol=0, atol=1e-11
        )
        own = min(rank, hospital.rank or 0)
        np.testing.assert_allclose(
            product(setting, download.start), (U[:, :own] * S[:own]) @ Vh[:own], rtol=0, atol=1e-11
        )
        assert download.traffic.keys() == download.start.keys()


def test_no_pair_has_more_directions_than_the_largest_rank() -> None:
    """As the docstring says: four hospitals of rank 2 with nothing in common cannot keep 0.99 of the energy."""
    setting = one_pair(40, 30, ranks=(2, 2, 2, 2))
    updates = random_updates(setting, [1.0] * 4)
    S = np.linalg.svd(ideal_mean(setting, updates).numpy(), compute_uv=False)
    server = Florist(tau=0.99).aggregate(state(setting), updates, streams).server
    assert int(server.memory["rank/B"]) == 2
    energy = np.linalg.norm(product(setting, server.tensors).numpy()) ** 2 / (S**2).sum()
    assert energy == pytest.approx((S[:2] ** 2).sum() / (S**2).sum())
    assert 0.4 < energy < 0.6


def test_rows_that_fill_up_are_gaussian_and_cost_nothing() -> None:
    """Rank 40 for a product of rank 1: 39 rows of A are N(0, 0.02^2), their columns of B zero, and none travels."""
    setting = one_pair(50, 60, ranks=(40,))
    zeros = torch.zeros(50, 39, dtype=torch.float64)
    one = update(
        "a", B=torch.cat([tensor(*[1.0] * 50)[:, None], zeros], dim=1), A=setting.trainable["A"], w=tensor(0.0)
    )
    server = Florist().aggregate(state(setting), [one], streams).server
    A, B = server.tensors["A"], server.tensors["B"]
    assert not B[:, 1:].any()
    assert A[1:].std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(A[1:].mean().item()) < 5 * 0.02 / (39 * 60) ** 0.5
    download = Florist().broadcast(server, setting.hospitals[0])
    assert sum(value.numel() for value in download.traffic.values()) == 50 + 60 + 1
    assert torch.equal(download.start["A"], A)
    wide = Florist(padding_std=0.5).aggregate(state(setting), [one], streams).server
    torch.testing.assert_close(wide.tensors["A"][1:], 25 * A[1:])


def test_filling_is_drawn_from_the_stream_alone() -> None:
    setting = one_pair(6, 5, ranks=(3,))
    first, same, other = (
        Florist(tau=0.1).aggregate(state(setting), random_updates(setting, [1.0]), rng).server.tensors["A"]
        for rng in (streams, streams, lambda *keys: streams("other", *keys))
    )
    assert torch.equal(first, same)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1:], other[1:])


def test_at_threshold_one_it_is_flexlora() -> None:
    setting = one_pair(9, 8, ranks=(1, 2, 4), alpha=6.0, power=1.0)
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    ours, flex = (
        one.aggregate(state(setting), updates, streams).server.tensors for one in (Florist(tau=1.0), FlexLora())
    )
    for name in flex:
        torch.testing.assert_close(ours[name], flex[name], rtol=0, atol=1e-12)


def test_at_threshold_one_the_identity_holds() -> None:
    check_aggregator(Florist(tau=1.0), Claims(gauge="invariant", ranks="mixed"))


def test_pairs_have_ranks_of_their_own_and_hospitals_one() -> None:
    """In the toy federation: different r* per pair, mixed ranks of the hospitals, and every download still fits."""
    world = make_world((1, 2, 3))
    aggregator = Florist(tau=0.96)
    server = initial_state(aggregator, world)
    for _ in range(3):
        last = run_round(aggregator, world, server)
        server = last.after
    ranks = [int(server.memory[f"rank/{pair.B}"]) for pair in world.setting.layout.pairs]
    assert len(set(ranks)) > 1
    assert last.aggregated.diagnostics["adaptive_rank"] == pytest.approx(sum(ranks) / 3)
    for hospital in world.setting.hospitals:
        download = aggregator.broadcast(server, hospital)
        for pair, rank in zip(world.setting.layout.pairs, ranks, strict=True):
            assert len(download.start[pair.A]) == hospital.rank
            assert len(download.traffic[pair.A]) == download.traffic[pair.B].shape[1] == rank


def test_before_round_1_hospitals_are_sent_what_they_start_from() -> None:
    setting = one_pair(9, 8, ranks=(1, 4))
    server = Florist().init(setting, streams)
    download = Florist().broadcast(server, setting.hospitals[0])
    assert {name: value.shape for name, value in download.traffic.items()} == {"A": (1, 8), "B": (9, 1), "w": (1,)}


def test_without_pairs_it_is_fedavg() -> None:
    layout = replace(one_pair().layout, pairs=())
    setting = Setting(
        trainable={"w": tensor(0.0)},
        layout=layout,
        hospitals=(HospitalInfo(name="a", num_examples=1), HospitalInfo(name="b", num_examples=1)),
    )
    result = Florist().aggregate(state(setting), [update("a", w=tensor(1.0)), update("b", w=tensor(2.0))], streams)
    assert result.server.tensors == {"w": tensor(1.5)}
    assert result.diagnostics == {}


@pytest.mark.parametrize("tau", [0.0, -1.0, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match=r"^tau: expected a number above 0 and at most 1, got "):
        Florist(tau=tau)


@pytest.mark.parametrize("std", [0.0, -0.02, float("inf"), float("nan")])
def test_a_filling_that_cannot_learn_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match=r"^padding_std: expected a number above 0, got "):
        Florist(padding_std=std)
