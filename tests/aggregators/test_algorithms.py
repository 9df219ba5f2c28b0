"""Subsets of the tensors that differ between hospitals and rounds."""

from __future__ import annotations

from functools import partial

import torch
from algorithms import DrawnPart

from wardround.aggregators.contract import ServerState
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


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


def test_states_are_made_by_init_alone() -> None:
    """Everything an aggregator adds to the state at the start comes from the setting and its streams."""
    world = make_world()
    rng = partial(streams, "again")
    first, second = (DrawnPart().init(world.setting, rng) for _ in range(2))
    assert isinstance(first, ServerState)
    assert all(torch.equal(first.memory[name], value) for name, value in second.memory.items())
