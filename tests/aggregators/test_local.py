"""Local-only training: nothing travels, everything is kept."""

from __future__ import annotations

import math

import torch

from wardround.aggregators import Local
from wardround.aggregators.contract import HospitalInfo
from wardround.aggregators.toy import LR, STEPS_PER_EPOCH, initial_state, make_world, run_round


def test_nothing_travels_in_either_direction() -> None:
    world = make_world()
    server, memories = initial_state(Local(), world), {}
    for _ in range(2):
        last = run_round(Local(), world, server, memories)
        server, memories = last.after, last.memories
        assert all(download.traffic == {} for download in last.downloads.values())
        assert all(update.tensors == {} and update.extra == {} for update in last.updates)


def test_round_2_starts_where_round_1_ended() -> None:
    """A round takes steps of lr, lr/2, ... on ``1/2 (theta - t)^2``, each of which shrinks the distance by (1 - lr).

    Two rounds shrink it by the square of what one does; who else takes part does not matter.
    """
    world = make_world()
    first = run_round(Local(), world, initial_state(Local(), world))
    second = run_round(Local(), world, first.after, first.memories, cohort=["hospital-02"])
    shrunk = math.prod(1 - LR / (1 + step) for step in range(STEPS_PER_EPOCH))
    start, target = world.setting.trainable["head.bias"], world.targets["hospital-02"]["head.bias"]
    for power, last in ((1, first), (2, second)):
        reached = last.memories["hospital-02"]["head.bias"]
        torch.testing.assert_close(reached - target, shrunk**power * (start - target))
    assert second.memories["hospital-01"] is first.memories["hospital-01"]


def test_who_gets_which_model() -> None:
    world = make_world(ranks=(1, 2))
    last = run_round(Local(), world, initial_state(Local(), world))
    own = Local().deploy(last.after, world.hospital("hospital-01"), last.memories["hospital-01"])
    assert own is last.memories["hospital-01"]
    unseen = Local().deploy(last.after, None, {})
    assert all(torch.equal(unseen[name], value) for name, value in world.setting.trainable.items())
    newcomer = Local().deploy(last.after, HospitalInfo(name="new", num_examples=1, rank=1), {})
    assert newcomer["encoder.q.A"].shape == (1, 16)
