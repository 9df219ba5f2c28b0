"""raFLoRA: FlexLoRA in which a direction is averaged over those who have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import normal, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FlexLora, RaFlora
from wardround.aggregators.contract import ClientUpdate, ServerState, Setting
from wardround.aggregators.raflora import holders
from wardround.aggregators.toy import streams


def slot_mean(setting: Setting, updates: Sequence[ClientUpdate]) -> np.ndarray:
    """Slot by slot as the paper has it: slots lie between successive distinct ranks; dense NumPy."""
    pair, total = setting.layout.pairs[0], sum(one.weight for one in updates)
    ranks = sorted({len(one.tensors["A"]) for one in updates})
    M = np.zeros(setting.frozen["W"])
    for first, last in zip([0, *ranks], ranks, strict=False):
        holding = [one for one in updates if len(one.tensors["A"]) >= last]
        P = sum(one.weight / total for one in holding)
        for one in holding:
            B, A = one.tensors["B"].numpy(), one.tensors["A"].numpy()
            share = one.weight / total / P * pair.scale(len(A))
            M += share * B[:, first:last] @ A[first:last]
    return M


def test_two_by_two_by_hand() -> None:
    """Products diag(2) at rank 1 and diag(4, 6) at rank 2, equal weights, scale 1.

    Direction 1 is everybody's, (2 + 4) / 2 = 3; direction 2 is b's alone, 6 and not 6 / 2: M = diag(3, 6).
    """
    setting = one_pair(ranks=(1, 2))
    updates = [
        update("a", B=tensor([1.0], [0.0]), A=tensor([2.0, 0.0]), w=tensor(1.0)),
        update("b", B=torch.eye(2).double(), A=torch.diag(tensor(4.0, 6.0)), w=tensor(3.0)),
    ]
    server = RaFlora().aggregate(state(setting), updates, streams).server
    torch.testing.assert_close(product(setting, server.tensors), torch.diag(tensor(3.0, 6.0)))
    assert server.tensors["w"] == 2.0
    flex = FlexLora().aggregate(state(setting), updates, streams).server
    torch.testing.assert_close(product(setting, flex.tensors), torch.diag(tensor(3.0, 3.0)))
    a = RaFlora().broadcast(server, setting.hospitals[0]).start
    torch.testing.assert_close((a["B"], a["A"]), (tensor([0.0], [6.0]), tensor([0.0, 1.0])))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ranks", [(1, 2, 4), (3, 3, 1), (2, 4, 4, 1)])
def test_is_the_best_approximation_of_the_mean_by_slots(ranks: tuple[int, ...], power: float) -> None:
    setting = one_pair(11, 13, ranks=ranks, alpha=4.0, power=power)
    updates = random_updates(setting, [1.0, 2.0, 5.0, 3.0][: len(ranks)])
    U, S, Vh = np.linalg.svd(slot_mean(setting, updates))
    server = RaFlora().aggregate(state(setting), updates, streams).server
    for hospital in setting.hospitals:
        rank = hospital.rank or 0
        given = RaFlora().broadcast(server, hospital).start
        expected = (U[:, :rank] * S[:rank]) @ Vh[:rank]
        np.testing.assert_allclose(product(setting, given), expected, rtol=0, atol=1e-11)


def test_with_equal_ranks_it_is_flexlora() -> None:
    setting = one_pair(9, 8, ranks=(3, 3, 3), alpha=4.0, power=1.0)
    updates = random_updates(setting, [1.0, 2.0, 4.0])
    ours, flex = (one.aggregate(state(setting), updates, streams).server.tensors for one in (RaFlora(), FlexLora()))
    assert all(torch.equal(ours[name], flex[name]) for name in flex)


def test_ranks_do_not_collapse() -> None:
    """What runs into two directions in FlexLoRA (see its test) stays where it is: ranks 2, 2, 4, 8, nobody learns."""
    U, V = (torch.linalg.qr(normal(size, 8, seed=size)).Q for size in (32, 24))
    before = state(one_pair(32, 24, ranks=(2, 2, 4, 8)))
    S = tensor(3.0, 2.0, 1.5, 1.2, 1.1, 1.0, 0.9, 0.8)
    server = replace(before, tensors={**before.tensors, "B": U * S, "A": V.mT.contiguous()})
    for _ in range(5):
        server = redistributed(server)
        torch.testing.assert_close(torch.linalg.svdvals(product(server.setting, server.tensors))[:8], S)


def redistributed(server: ServerState) -> ServerState:
    updates = [update(one.name, **RaFlora().broadcast(server, one).start) for one in server.setting.hospitals]
    return RaFlora().aggregate(server, updates, streams).server


def test_the_order_of_the_directions_matters_once_ranks_differ() -> None:
    """Turning round b's two directions leaves its product, and FlexLoRA's result; here another one is shared."""
    setting = one_pair(5, 4, ranks=(1, 2))
    a, b = random_updates(setting, [1.0, 1.0])
    turned = replace(b, tensors={**b.tensors, "B": b.tensors["B"].flip(1), "A": b.tensors["A"].flip(0)})
    for aggregator, same in ((FlexLora(), True), (RaFlora(), False)):
        one, other = (aggregator.aggregate(state(setting), [a, last], streams).server.tensors for last in (b, turned))
        assert torch.allclose(product(setting, one), product(setting, other)) is same


def test_a_direction_that_only_weightless_hospitals_have_carries_nothing() -> None:
    setting = one_pair(5, 4, ranks=(1, 2))
    a, b = random_updates(setting, [1.0, 0.0])
    server = RaFlora().aggregate(state(setting), [a, b], streams).server
    torch.testing.assert_close(product(setting, server.tensors), product(setting, a.tensors))


def test_holders_by_hand() -> None:
    """Weights 1/2, 1/3, 1/6 at ranks 1, 4, 2: 1, then 1/2, then 1/3 twice."""
    torch.testing.assert_close(holders([1 / 2, 1 / 3, 1 / 6], [1, 4, 2]), tensor(1.0, 1 / 2, 1 / 3, 1 / 3))


def test_what_arrived_is_left_alone() -> None:
    setting = one_pair(5, 4, ranks=(1, 2))
    updates = random_updates(setting, [1.0, 2.0])
    before = [one.tensors["B"].clone() for one in updates]
    RaFlora().aggregate(state(setting), updates, streams)
    assert all(torch.equal(one.tensors["B"], B) for one, B in zip(updates, before, strict=True))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^split: expected one of 'right', 'left', 'symmetric', got 'middle'"):
        RaFlora(split="middle")
