"""FedPer: the head stays at the hospital, the body is FedAvg's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pairs import one_pair
from quadratics import products, rounds

from wardround.aggregators import FedAvg, FedPer, FedRep
from wardround.aggregators.toy import initial_state, make_world, run_round, streams

HEAD = {"head.weight", "head.bias"}

both = pytest.mark.parametrize("aggregator", [FedPer(), FedRep(head_epochs=2.0)], ids=["fedper", "fedrep"])


@both
def test_the_head_stays_at_the_hospital(aggregator: Any) -> None:
    world = make_world()
    last = rounds(aggregator, world, 2)
    assert all(not HEAD & update.tensors.keys() and update.extra == {} for update in last.updates)
    assert all(not HEAD & download.traffic.keys() for download in last.downloads.values())
    assert all(set(memory) == HEAD for memory in last.memories.values())
    assert all(torch.equal(last.after.tensors[name], world.setting.trainable[name]) for name in HEAD)


@both
def test_who_gets_which_model(aggregator: Any) -> None:
    """The body is the same for all, the head one's own; a site never seen gets the initial head."""
    world = make_world()
    last = rounds(aggregator, world, 2)
    for hospital in world.setting.hospitals:
        own = aggregator.deploy(last.after, hospital, last.memories[hospital.name])
        assert all(torch.equal(own[name], last.memories[hospital.name][name]) for name in HEAD)
        assert torch.equal(own["decoder.token"], last.after.tensors["decoder.token"])
    unseen = aggregator.deploy(last.after, None, {})
    assert all(torch.equal(unseen[name], world.setting.trainable[name]) for name in HEAD)


@both
def test_a_hospital_goes_on_from_its_own_head_after_a_pause(aggregator: Any) -> None:
    """The toy's head is pulled to its target alone, so that two turns are two, whoever trains between."""
    world, cohort = make_world(), ["hospital-02"]
    first = run_round(aggregator, world, initial_state(aggregator, world), cohort=cohort)
    between = run_round(aggregator, world, first.after, first.memories, cohort=["hospital-01"])
    third = run_round(aggregator, world, between.after, between.memories, cohort=cohort)
    direct = run_round(aggregator, world, first.after, first.memories, cohort=cohort)
    for name in HEAD:
        torch.testing.assert_close(third.memories["hospital-02"][name], direct.memories["hospital-02"][name])
        assert not torch.equal(third.memories["hospital-02"][name], first.memories["hospital-02"][name])


def test_the_first_body_is_fedavgs() -> None:
    """All start from one head, so that the first round trains what FedAvg's does."""
    world = make_world()
    got, plain = (rounds(aggregator, world, 1).after.tensors for aggregator in (FedPer(), FedAvg()))
    for name, value in plain.items():
        assert torch.equal(got[name], value) == (name not in HEAD)


def test_body_and_head_move_together_by_hand() -> None:
    """1/2 (body head - 3)^2 from 1, 1: the gradient of both is -2, a step of 0.05 takes both to 1.1.

    With target -1 it is 2, to 0.9. The body becomes 1; the heads stay 1.1 and 0.9. Then the residuals are -1.9 and 1.9,
    the bodies 1 + 0.05 * 1.9 * 1.1 = 1.1045 and 1 - 0.05 * 1.9 * 0.9 = 0.9145, and their mean 1.0095.
    """
    world = products([3.0, -1.0])
    first = rounds(FedPer(), world, 1, epochs=0.25)
    assert first.after.tensors["body"].item() == pytest.approx(1.0)
    assert [memory["head"].item() for memory in first.memories.values()] == pytest.approx([1.1, 0.9])
    second = run_round(FedPer(), world, first.after, first.memories, epochs=0.25)
    assert [update.tensors["body"].item() for update in second.updates] == pytest.approx([1.1045, 0.9145])
    assert second.after.tensors["body"].item() == pytest.approx(1.0095)


def test_heads_fit_what_one_model_cannot() -> None:
    """Targets 3 and -1: one product for both ends near their mean, with a mean loss of 2; with own heads it is 0."""
    world = products([3.0, -1.0])

    def loss(aggregator: Any) -> float:
        last = rounds(aggregator, world, 60)
        models = {h.name: aggregator.deploy(last.after, h, last.memories[h.name]) for h in world.setting.hospitals}
        return sum(world.loss(name, model, {}).item() for name, model in models.items()) / 2

    assert loss(FedAvg()) == pytest.approx(2.0, abs=0.01)
    assert loss(FedPer()) < 1e-6


@both
def test_a_model_without_a_head_is_refused(aggregator: Any) -> None:
    setting = one_pair()
    headless = replace(setting, layout=replace(setting.layout, part=dict.fromkeys("ABw", "encoder")))
    with pytest.raises(ValueError, match=r"expected a head .* use one that trains the head"):
        aggregator.init(headless, streams)


@both
def test_a_model_that_is_only_a_head_is_refused(aggregator: Any) -> None:
    setting = one_pair()
    heads = replace(setting, layout=replace(setting.layout, part=dict.fromkeys("ABw", "head")))
    with pytest.raises(ValueError, match=r"expected a body to share, .* aggregator local"):
        aggregator.init(heads, streams)


@both
def test_different_ranks_are_refused(aggregator: Any) -> None:
    with pytest.raises(ValueError, match="expected one LoRA rank"):
        initial_state(aggregator, make_world(ranks=(1, 2)))
