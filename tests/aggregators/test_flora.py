"""FLoRA: stack, merge, start anew."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pairs import ideal_mean, one_pair, random_updates, state, tensor, update

from wardround.aggregators import Flora
from wardround.aggregators.contract import Setting
from wardround.aggregators.toy import streams


def test_two_by_two_by_hand() -> None:
    """B_a A_a = diag(2, 0), B_b A_b = diag(0, 4), weights 1 : 3, scale 2: W = 2 diag(2/4, 12/4) = diag(1, 6)."""
    updates = [
        update("a", 1.0, B=tensor([2.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(1.0)),
        update("b", 3.0, B=tensor([0.0], [4.0]), A=tensor([0.0, 1.0]), w=tensor(5.0)),
    ]
    after = Flora().aggregate(state(one_pair(alpha=2.0)), updates, streams).server
    torch.testing.assert_close(after.base["W"], tensor([1.0, 0.0], [0.0, 6.0]))
    assert not after.tensors["B"].any()
    assert after.tensors["w"] == 4.0


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_merges_the_ideal_mean_of_hospitals_of_different_ranks(power: float) -> None:
    """Against the dense sum, over two rounds: the second is added to the first."""
    setting = one_pair(9, 7, ranks=(1, 2, 4), alpha=6.0, power=power)
    rounds = [random_updates(setting, [1.0, 2.0, 5.0], seed=number) for number in range(2)]
    server = state(setting)
    for updates in rounds:
        server = Flora().aggregate(server, updates, streams).server
    expected = sum(ideal_mean(setting, updates) for updates in rounds)
    torch.testing.assert_close(server.base["W"], expected, rtol=1e-13, atol=1e-13)


def fresh(setting: Setting, number: int) -> torch.Tensor:
    updates = random_updates(setting, [1.0] * len(setting.hospitals))
    return Flora().aggregate(state(setting), updates, partial(streams, number)).server.tensors["A"]


def test_fresh_factors_have_the_initial_deviation_and_are_new_in_every_round() -> None:
    """20 000 normal draws have a deviation within 2 % of the right one (four standard errors)."""
    setting = one_pair(2, 2000, ranks=(10, 10))
    setting.trainable["A"].mul_(0.03)
    first, second = fresh(setting, 1), fresh(setting, 2)
    assert first.std().item() == pytest.approx(setting.trainable["A"].std().item(), rel=0.02)
    assert abs((first * second).mean().item()) < 4 * 0.03**2 / 20_000**0.5


def test_a_hospital_of_lower_rank_gets_the_first_rows() -> None:
    setting = one_pair(4, 5, ranks=(2, 3))
    server = Flora().aggregate(state(setting), random_updates(setting, [1.0, 1.0]), streams).server
    for hospital in setting.hospitals:
        start = Flora().broadcast(server, hospital).start
        torch.testing.assert_close(start["A"], server.tensors["A"][: hospital.rank])


def test_fresh_factors_do_not_travel() -> None:
    """Down go the dense tensor and, from round 2 on, the stacks: ranks 1 + 2 on 20 x 30."""
    setting = one_pair(20, 30, ranks=(1, 2))
    server = Flora().init(setting, streams)
    assert list(Flora().broadcast(server, setting.hospitals[0]).traffic) == ["w"]
    server = Flora().aggregate(server, random_updates(setting, [1.0, 1.0]), streams).server
    traffic = Flora().broadcast(server, setting.hospitals[0]).traffic
    assert {name: tuple(value.shape) for name, value in traffic.items()} == {
        "w": (1,),
        "merged/B": (20, 3),
        "merged/A": (3, 30),
    }
