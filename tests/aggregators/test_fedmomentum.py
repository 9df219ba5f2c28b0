"""FedMomentum: the first directions of the mean product stay trainable, the rest is merged."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from pairs import ideal_mean, normal, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FedMomentum, FlapSam
from wardround.aggregators.lowrank import Split
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


@pytest.mark.parametrize(
    ("split", "B", "A"),
    [
        ("right", tensor([0.0], [0.5]), tensor([0.0, 4.0])),
        ("left", tensor([0.0], [2.0]), tensor([0.0, 1.0])),
        ("symmetric", tensor([0.0], [1.0]), tensor([0.0, 2.0])),
    ],
)
def test_two_by_two_by_hand(split: str, B: torch.Tensor, A: torch.Tensor) -> None:
    """B_a A_a = diag(2, 0), B_b A_b = diag(0, 4), scale 2: M = diag(2, 4); 2 B A = diag(0, 4), W = diag(2, 0)."""
    updates = [
        update("a", B=tensor([2.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(1.0)),
        update("b", B=tensor([0.0], [4.0]), A=tensor([0.0, 1.0]), w=tensor(5.0)),
    ]
    after = FedMomentum(split=split).aggregate(state(one_pair(alpha=2.0)), updates, streams).server
    torch.testing.assert_close(after.tensors["B"], B)
    torch.testing.assert_close(after.tensors["A"], A)
    torch.testing.assert_close(after.base["W"], tensor([2.0, 0.0], [0.0, 0.0]))
    assert after.tensors["w"] == 3.0


@pytest.mark.parametrize("split", ["right", "left", "symmetric"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 2, 4)])
def test_every_hospital_starts_from_the_ideal_mean(split: str, power: float, ranks: tuple[int, ...]) -> None:
    """Whatever its rank: with ranks 1, 2, 4 one direction stays in the pair and all others are merged."""
    setting = one_pair(20, 18, ranks=ranks, alpha=6.0, power=power)
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    aggregator = FedMomentum(split=split)
    server = aggregator.aggregate(state(setting), updates, streams).server
    for hospital in (*setting.hospitals, None):
        start = aggregator.deploy(server, hospital, {})
        total = server.base["W"] + product(setting, start)
        torch.testing.assert_close(total, ideal_mean(setting, updates), rtol=1e-12, atol=1e-12)


def test_the_pair_is_that_of_flap_sam_and_the_rest_is_what_it_cuts() -> None:
    setting = one_pair(20, 18, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    ours = FedMomentum(split="right").aggregate(state(setting), updates, streams).server
    flap = FlapSam(split="right").aggregate(state(setting), updates, streams).server
    torch.testing.assert_close(ours.tensors["A"], flap.tensors["A"])
    torch.testing.assert_close(ours.tensors["B"], flap.tensors["B"])
    cut = ideal_mean(setting, updates) - product(setting, flap.tensors)
    torch.testing.assert_close(ours.base["W"], cut, rtol=1e-12, atol=1e-12)
    S = torch.from_numpy(scipy.linalg.svdvals(ideal_mean(setting, updates)))
    torch.testing.assert_close(torch.linalg.svdvals(ours.base["W"])[:4], S[2:6])


def test_directions_beyond_the_smallest_rank_are_fresh() -> None:
    """They add nothing and can learn: one factor is zero, the other is not."""
    setting = one_pair(20, 18, ranks=(1, 3))
    server = FedMomentum().aggregate(state(setting), random_updates(setting, [1.0, 2.0]), streams).server
    B, A = server.tensors["B"][:, 1:], server.tensors["A"][1:]
    assert not B.any()
    torch.testing.assert_close(A @ A.mT, torch.eye(2, dtype=torch.float64))


def test_a_b_that_does_not_start_at_zero_is_shared_from_the_first_merge_on() -> None:
    """As the docstring says: ranks 1 and 3 start from different products (``init_b: normal``), and never again."""
    setting = one_pair(20, 18, ranks=(1, 3))
    setting.trainable["B"].copy_(normal(20, 3, seed="B"))
    server = FedMomentum().init(setting, streams)
    merged = FedMomentum().aggregate(server, random_updates(setting, [1.0, 2.0]), streams).server
    for state_, equal in ((server, False), (merged, True)):
        one, other = (product(setting, FedMomentum().broadcast(state_, h).start) for h in setting.hospitals)
        assert torch.allclose(one, other, rtol=0, atol=1e-12) == equal


def test_the_rest_travels_as_factors() -> None:
    """Ranks 2 + 2 + 2 on 20 x 30: a pair of rank 2 and a rest of rank 4."""
    setting = one_pair(20, 30, ranks=(2, 2, 2))
    server = FedMomentum().init(setting, streams)
    assert set(FedMomentum().broadcast(server, setting.hospitals[0]).traffic) == {"A", "B", "w"}
    server = FedMomentum().aggregate(server, random_updates(setting, [1.0, 1.0, 1.0]), streams).server
    traffic = FedMomentum().broadcast(server, setting.hospitals[0]).traffic
    sizes = {name: value.numel() for name, value in traffic.items()}
    assert sizes == {"A": 60, "B": 40, "w": 1, "merged/B": 80, "merged/A": 120}


def test_hospitals_that_agree_leave_nothing_to_merge() -> None:
    """The mean has rank 2 again: no scalar travels beside the pair, and the base stays as it is."""
    setting = one_pair(20, 30, ranks=(2, 2))
    one = random_updates(setting, [1.0, 1.0])[0].tensors
    server = FedMomentum().aggregate(state(setting), [update("a", **one), update("b", **one)], streams).server
    assert not server.base["W"].any()
    traffic = FedMomentum().broadcast(server, setting.hospitals[0]).traffic
    assert traffic["merged/B"].numel() == traffic["merged/A"].numel() == 0


def test_trains_on_where_flap_sam_has_lost_something() -> None:
    """Three rounds on the toy problem, the same hospitals: a lower mean loss than with the same pair and no merging."""
    world = make_world((1, 1, 1))
    losses = {}
    for aggregator in (FedMomentum(split="right"), FlapSam(split="right")):
        server = initial_state(aggregator, world)
        for _ in range(3):
            server = run_round(aggregator, world, server).after
        losses[type(aggregator)] = sum(
            world.loss(h.name, server.tensors, server.base).item() for h in world.setting.hospitals
        )
    assert losses[FedMomentum] < losses[FlapSam]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^split: expected one of"):
        FedMomentum(split="middle")


@pytest.mark.parametrize("split", ["right", "left"])
def test_the_other_splits_keep_the_contract(split: Split) -> None:
    check_aggregator(FedMomentum(split=split), Claims(gauge="invariant", ranks="mixed"))
