"""What a hospital sends, from shapes alone, is what the ledger of a real first round says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wardround.aggregators import AGGREGATORS
from wardround.aggregators.contract import HospitalInfo
from wardround.clients.optimizers import SGD
from wardround.simulator.assembly import assemble, locate
from wardround.simulator.checkpoint import Checkpoint
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.federation import Stopwatch, run_round
from wardround.simulator.progress import Progress
from wardround.simulator.resident import Resident
from wardround.simulator.sweeps.traffic import first_round

SETTINGS = ["training.steps=1", "training.batch_size=2", "data.hospitals=3"]


def tiny(*overrides: str) -> Experiment:
    return load_experiment("tiny", open_file(PACKAGED), [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def resident() -> Resident:
    return Resident()


def real_round(experiment: Experiment, resident: Resident) -> tuple[float, float, Checkpoint]:
    """Mean bytes up and down of the ledger of round 1, and the state after it."""
    made = assemble(experiment, locate(experiment, None, resident), torch.device("cpu"), resident=resident)
    with Progress(rounds=1, quiet=True) as progress:
        done = run_round(made.federated, made.initial, progress, Stopwatch())
    rows = done.rows["ledger"]
    up, down = (sum(row[key] for row in rows) / len(rows) for key in ("bytes_up", "bytes_down"))
    return up, down, done.checkpoint


def hospitals(experiment: Experiment, resident: Resident) -> list[HospitalInfo]:
    found = locate(experiment, None, resident).federation.hospitals
    return [HospitalInfo(name=name, num_examples=12) for name in sorted(found)]


ROBUST = {"bulyan", "krum", "multi_krum", "trimmed_mean"}
"""These need seven hospitals."""


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name != "fednova"])
def test_bytes_are_those_of_the_ledger(name: str, resident: Resident) -> None:
    experiment = tiny(f"aggregator={name}", *(["data.hospitals=7"] if name in ROBUST else []))
    found = first_round(experiment, 2, hospitals(experiment, resident))
    up, down, after = real_round(experiment, resident)
    assert (found.bytes_up, found.bytes_down) == (up, down)
    remembered = [sum(value.nbytes for value in memory.named().values()) for memory in after.memories.values()]
    assert found.memory_bytes == sum(remembered) / len(remembered)


@pytest.mark.parametrize(
    "overrides",
    [
        ["ranks={hospital-1: 1}", "aggregator=padded_fedavg"],
        ["stages.compression={name: top_k, fraction: 0.1}", "aggregator=fedavg"],
        ["stages.compression=int8", "stages.secure_sum={}", "aggregator=fedavg"],
        ["training.moments=keep", "aggregator=fedavg"],
    ],
    ids=["ranks", "compressed", "summed", "moments"],
)
def test_bytes_with_ranks_stages_and_kept_moments(overrides: list[str], resident: Resident) -> None:
    experiment = tiny(*overrides)
    found = first_round(experiment, 2, hospitals(experiment, resident))
    up, down, after = real_round(experiment, resident)
    assert (found.bytes_up, found.bytes_down) == (up, down)
    remembered = [sum(value.nbytes for value in memory.named().values()) for memory in after.memories.values()]
    assert found.memory_bytes == pytest.approx(sum(remembered) / len(remembered), rel=0.01)  # AdamW counts its steps


def test_parameters_that_are_trained_and_sent() -> None:
    """FFA-LoRA sends no A; ``local`` nothing at all, and still trains everything."""
    one = [HospitalInfo(name="a", num_examples=1)]
    flap, ffa, alone = (first_round(tiny(f"aggregator={name}"), 2, one) for name in ("fedavg", "ffa_lora", "local"))
    assert flap.trained == ffa.trained == alone.trained == flap.parameters_up
    assert 0 < ffa.parameters_up < flap.parameters_up
    assert (alone.parameters_up, alone.bytes_up, alone.bytes_down) == (0, 0, 0)


def test_shapes_of_a_large_sam_take_no_memory() -> None:
    """ViT-B, everything trained: 90 million numbers that are never written."""
    experiment = tiny("model={size: vit-b, image_size: 224}", "method=full", "aggregator=fedavg")
    assert first_round(experiment, 2, [HospitalInfo(name="a", num_examples=1)]).trained > 85e6


def test_what_cannot_work_is_told() -> None:
    with pytest.raises(ValueError, match="optimizer: expected 'sgd'"):
        first_round(tiny("aggregator=fednova"), 2, [HospitalInfo(name="a", num_examples=1)])
    sgd = replace(tiny("aggregator=fednova"), training=replace(tiny().training, optimizer=SGD(lr=0.1)))
    assert first_round(sgd, 2, [HospitalInfo(name="a", num_examples=1)]).bytes_up > 0
