"""The hard cases do what their papers say: reductions to FedAvg, exactness, personal tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from algorithms import (
    FFA,
    Ditto,
    DrawnPart,
    FedPer,
    FedProx,
    FedRep,
    FLoRA,
    Moon,
    QFedAvg,
    Scaffold,
)
from pairs import ideal_mean, one_pair, random_updates, state

from wardround.aggregators import FedAvg
from wardround.aggregators.contract import ServerState, Tensors
from wardround.aggregators.toy import Round, World, initial_state, make_world, run_round, streams


def after(aggregator: Any, world: World, rounds: int = 2) -> Round:
    last = run_round(aggregator, world, initial_state(aggregator, world))
    for _ in range(rounds - 1):
        last = run_round(aggregator, world, last.after, last.memories)
    return last


def assert_same(got: Tensors, expected: Tensors) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-12)


def differ(got: Tensors, expected: Tensors) -> bool:
    return any(not torch.allclose(got[name], value, rtol=1e-6) for name, value in expected.items())


def with_uniform_weights(world: World) -> World:
    hospitals = tuple(replace(hospital, num_examples=1) for hospital in world.setting.hospitals)
    return replace(world, setting=replace(world.setting, hospitals=hospitals))


@pytest.mark.parametrize("zero", [FedProx(mu=0.0), Moon(mu=0.0), Ditto(lam=0.7)], ids=["fedprox", "moon", "ditto"])
def test_reduces_to_fedavg(zero: Any) -> None:
    """FedProx without its term, MOON without its contrast; Ditto's global model whatever its personal ones do."""
    world = make_world()
    assert_same(after(zero, world).after.tensors, after(FedAvg(), world).after.tensors)


@pytest.mark.parametrize("full", [FedProx(mu=1.0), Moon(mu=1.0)], ids=["fedprox", "moon"])
def test_does_not_reduce_to_fedavg_otherwise(full: Any) -> None:
    world = make_world()
    assert differ(after(full, world).after.tensors, after(FedAvg(), world).after.tensors)


def test_scaffold_begins_as_fedavg_with_uniform_weights() -> None:
    world = with_uniform_weights(make_world())
    assert_same(after(Scaffold(), world, 1).after.tensors, after(FedAvg(), world, 1).after.tensors)
    assert differ(after(Scaffold(), world, 2).after.tensors, after(FedAvg(), world, 2).after.tensors)


def test_scaffold_keeps_the_mean_of_the_control_variates() -> None:
    """With everybody in the round, c is the mean of the c_k."""
    last = after(Scaffold(), make_world(), 2)
    for name, value in last.after.memory.items():
        own = torch.stack([memory[name] for memory in last.memories.values()])
        torch.testing.assert_close(value, own.mean(dim=0), rtol=1e-12, atol=1e-12)


def test_scaffold_counts_absent_hospitals() -> None:
    """One of three in round 1: c = (1/3) c_1+."""
    world = make_world()
    last = run_round(Scaffold(), world, initial_state(Scaffold(), world), cohort=["hospital-02"])
    for name, value in last.after.memory.items():
        torch.testing.assert_close(value, last.memories["hospital-02"][name] / 3)


def test_qfedavg_without_fairness_is_the_uniform_mean() -> None:
    """Q = 0: theta - sum L (theta - theta_k) / (K L)."""
    world = with_uniform_weights(make_world())
    assert_same(after(QFedAvg(q=0.0, lipschitz=7.0), world).after.tensors, after(FedAvg(), world).after.tensors)


def test_flora_is_exact_and_starts_anew() -> None:
    setting = one_pair(5, 6, ranks=(1, 2, 3), alpha=2.0, power=1.0)
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    server = FLoRA().aggregate(state(setting), updates, streams).server
    torch.testing.assert_close(server.base["W"], ideal_mean(setting, updates), rtol=1e-12, atol=1e-12)
    assert not server.tensors["B"].any()
    assert not torch.equal(server.tensors["A"], setting.trainable["A"])
    again = FLoRA().aggregate(server, updates, streams).server
    torch.testing.assert_close(again.base["W"], 2 * server.base["W"], rtol=1e-12, atol=1e-12)


def test_ffa_is_exact_and_leaves_its_a_alone() -> None:
    """With A shared, the mean of B gives the mean of the products."""
    world = make_world()
    last = after(FFA(), world)
    for pair in world.setting.layout.pairs:
        assert torch.equal(last.after.tensors[pair.A], world.setting.trainable[pair.A])
        exact = sum(
            update.weight / 12 * update.tensors[pair.B] @ last.downloads[update.hospital].start[pair.A]
            for update in last.updates
        )
        torch.testing.assert_close(last.after.tensors[pair.B] @ last.after.tensors[pair.A], exact)


def test_ffa_sends_its_a_once() -> None:
    world = make_world()
    first, second = after(FFA(), world, 1), after(FFA(), world, 2)
    assert "encoder.q.A" in first.downloads["hospital-01"].traffic
    assert "encoder.q.A" not in second.downloads["hospital-01"].traffic
    assert "encoder.q.A" not in second.updates[0].tensors


def test_drawn_parts_are_averaged_over_those_who_drew_them() -> None:
    world = make_world()
    drawn = set()
    last = run_round(DrawnPart(), world, initial_state(DrawnPart(), world))
    for _ in range(4):
        for name, value in last.after.tensors.items():
            senders = [update for update in last.updates if name in update.tensors]
            total = sum(update.weight for update in senders)
            expected = sum((u.weight / total * u.tensors[name] for u in senders), start=torch.zeros(()))
            torch.testing.assert_close(value, expected if senders else last.before.tensors[name])
        drawn.add(tuple("encoder.q.A" in update.tensors for update in last.updates))
        last = run_round(DrawnPart(), world, last.after, last.memories)
    assert len(drawn) > 1


@pytest.mark.parametrize("aggregator", [FedPer(), FedRep()], ids=["fedper", "fedrep"])
def test_the_head_stays_at_the_hospital(aggregator: Any) -> None:
    world = make_world()
    last = after(aggregator, world)
    heads = {"head.weight", "head.bias"}
    assert all(not heads & update.tensors.keys() for update in last.updates)
    assert all(not heads & download.traffic.keys() for download in last.downloads.values())
    assert all(set(memory) == heads for memory in last.memories.values())
    for hospital in world.setting.hospitals:
        own = aggregator.deploy(last.after, hospital, last.memories[hospital.name])
        assert torch.equal(own["head.bias"], last.memories[hospital.name]["head.bias"])
    assert torch.equal(aggregator.deploy(last.after, None, {})["head.bias"], world.setting.trainable["head.bias"])


def test_a_hospital_goes_on_from_its_own_head_after_a_pause() -> None:
    """Dense tensors are pulled to their targets alone, so two turns of hospital 2 are two, whoever trains between."""
    world = make_world()
    aggregator, cohort = FedPer(), ["hospital-02"]
    first = run_round(aggregator, world, initial_state(aggregator, world), cohort=cohort)
    between = run_round(aggregator, world, first.after, first.memories, cohort=["hospital-01"])
    third = run_round(aggregator, world, between.after, between.memories, cohort=cohort)
    direct = run_round(aggregator, world, first.after, first.memories, cohort=cohort)
    assert_same(third.memories["hospital-02"], direct.memories["hospital-02"])


def test_fedper_refuses_a_model_without_a_head() -> None:
    setting = one_pair()
    headless = replace(setting, layout=replace(setting.layout, part=dict.fromkeys("ABw", "encoder")))
    with pytest.raises(ValueError, match="expected a head"):
        FedPer().init(headless, streams)


def test_dittos_personal_models_lie_between_global_and_local() -> None:
    """The stronger the pull, the closer each hospital's model is to the global one it was handed."""
    world = make_world()

    def distance(lam: float) -> float:
        last = after(Ditto(lam=lam), world, 1)
        start = last.before.tensors["head.bias"]
        return sum((memory["head.bias"] - start).norm().item() for memory in last.memories.values())

    assert distance(0.0) > distance(1.0) > distance(10.0)


def test_states_are_made_by_init_alone() -> None:
    """Everything an aggregator adds to the state at the start comes from the setting and its streams."""
    world = make_world()
    rng = partial(streams, "again")
    first, second = (DrawnPart().init(world.setting, rng) for _ in range(2))
    assert isinstance(first, ServerState)
    assert all(torch.equal(first.memory[name], value) for name, value in second.memory.items())
