"""Stacked against sequential, kept against anew: equal in double precision, and a difference is seen."""

from __future__ import annotations

import torch

from wardround.simulator.bench import compare, ours
from wardround.simulator.bench.workload import Workload
from wardround.simulator.runtime import Runtime

CPU = torch.device("cpu")
SMALL = Workload(hospitals=3, image_size=16, batch_size=2, rank=2, steps=2)
RUNTIME = Runtime(stack=2)


def test_stacked_hospitals_learn_the_same() -> None:
    row = compare.stacked(SMALL, RUNTIME, 1)
    assert row.difference is not None
    assert row.difference < 1e-10
    assert (row.section, row.stack, row.cohort) == ("stacked", 2, "stacked")
    assert row.speedup_low == row.speedup == row.speedup_high
    assert row.speedup > 0


def test_kept_features_teach_the_same() -> None:
    row = compare.features(Workload(**{**vars(SMALL), "method": "decoder"}), Runtime(features_mb=50), 1)
    assert row.difference is not None
    assert row.difference < 1e-10
    assert (row.section, row.features_mb) == ("features", 50)


def test_with_a_budget_features_are_kept_and_without_they_are_not() -> None:
    work = Workload(**{**vars(SMALL), "method": "decoder"})
    kept = [ours.prepare(work, Runtime(features_mb=mb), CPU).federated.workplace.kept for mb in (50, 0)]
    assert kept[0] is not None
    assert kept[1] is None


def test_the_runtime_decides_how_many_hospitals_share_a_step() -> None:
    stacks = [
        ours.prepare(SMALL, Runtime(cohort=how, stack=4), CPU).federated.stack for how in ("sequential", "stacked")
    ]
    assert stacks == [1, 4]


def test_the_difference_is_relative_to_the_largest_value_of_a_tensor() -> None:
    """One tensor is made 1.5 times as large in one of two equal engines that then learn nothing more."""
    one, other = (ours.prepare(Workload(**{**vars(SMALL), "precision": "fp64"}), Runtime(), CPU) for _ in range(2))
    assert compare.difference(one, other) == 0
    name = next(iter(other.state.server.tensors))
    other.state.server.tensors[name].mul_(1.5)
    one.round = other.round = lambda: 1.0  # type: ignore[method-assign]
    assert abs(compare.difference(one, other) - 0.5) < 1e-12
