"""The bare loop learns what our engine learns in the first round."""

from __future__ import annotations

import pytest
import torch

from wardround.simulator.bench import bare, ours
from wardround.simulator.bench.workload import Workload
from wardround.simulator.runtime import Runtime

CPU = torch.device("cpu")
SMALL = Workload(hospitals=3, image_size=16, batch_size=2, rank=2, steps=3, precision="fp64")


@pytest.mark.parametrize("method", ["flap_sam", "decoder", "full"])
@pytest.mark.parametrize("augment", ["none", "standard"])
def test_its_loss_is_ours_in_the_first_round(method: str, augment: str) -> None:
    work = Workload(**{**vars(SMALL), "method": method, "augment": augment, "aggregator": "fedavg"})
    loop, engine = bare.prepare(work, Runtime(), CPU), ours.prepare(work, Runtime(features_mb=0), CPU)
    assert loop.round() == pytest.approx(engine.round(), rel=1e-9)


def test_every_round_and_hospital_starts_from_the_initial_values() -> None:
    loop = bare.prepare(SMALL, Runtime(), CPU)
    first = loop.round()
    loop.number = 0  # the same batches again
    assert loop.round() == first


def test_it_trains() -> None:
    loop = bare.prepare(SMALL, Runtime(), CPU)
    loop.round()
    moved = sum(not torch.equal(value, start) for value, start in zip(loop.trained, loop.start, strict=True))
    assert moved > len(loop.trained) // 2
    assert loop.num_trained == sum(start.numel() for start in loop.start)
