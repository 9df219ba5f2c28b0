"""Local-only training: nothing travels, everything is kept."""

from __future__ import annotations

import torch
from wardround.aggregators import Local
from wardround.aggregators.contract import HospitalInfo
from wardround.aggregators.toy import initial_state, make_world, run_round, take_turn


def test_nothing_travels_in_either_direction() -> None:
    world = make_world()
    server, memories = initial_state(Local(), world), {}
    for _ in range(2):
        last = run_round(Local(), world, server, memories)
        server, memories = last.after, last.memories
        assert all(download.traffic == {} for download in last.downloads.values())
        assert all(update.tensors == {} and update.extra == {} for update in last.updates)


def test_two_rounds_are_one_longer_training_of_each_hospital_alone() -> None:
    """Round 2 starts where round 1 ended, whoever else takes part."""
    world = make_world()
    start = initial_state(Local(), world)
    first = run_round(Local(), world, start)
    second = run_round(Local(), world, first.after, first.memories, cohort=["hospital-02"])
    download = Local().broadcast(start, world.hospital("hospital-02"))
    once = take_turn(Local.rule, world, "hospital-02", download, {}, {})
    twice = take_turn(Local.rule, world, "hospital-02", download, once.result.memory, {})
    for name, value in twice.result.memory.items():
        assert torch.equal(second.memories["hospital-02"][name], value)
        assert torch.equal(second.memories["hospital-01"][name], first.memories["hospital-01"][name])


def test_who_gets_which_model() -> None:
    world = make_world(ranks=(1, 2))
    last = run_round(Local(), world, initial_state(Local(), world))
    own = Local().deploy(last.after, world.hospital("hospital-01"), last.memories["hospital-01"])
    assert own is last.memories["hospital-01"]
    unseen = Local().deploy(last.after, None, {})
    assert all(torch.equal(unseen[name], value) for name, value in world.setting.trainable.items())
    newcomer = Local().deploy(last.after, HospitalInfo(name="new", num_examples=1, rank=1), {})
    assert newcomer["encoder.q.A"].shape == (1, 16)
