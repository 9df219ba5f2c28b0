"""Every aggregator of the table trains the experiment ``tiny`` for two rounds and is scored, as in a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rounds import advance

from wardround.aggregators import AGGREGATORS
from wardround.simulator.assembly import assemble, locate
from wardround.simulator.assessment import assess
from wardround.simulator.checkpoint import Checkpoints, state_hash
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.progress import Progress
from wardround.simulator.run import measure_round

NEEDS: dict[str, tuple[str, ...]] = {
    "fednova": ("training.optimizer={name: sgd, lr: 0.01}",),
    "fedbn": ("method=full",),
    "trimmed_mean": ("aggregator.fraction=0.34",),
    "krum": ("data.hospitals=5",),
    "multi_krum": ("data.hospitals=5",),
    "bulyan": ("data.hospitals=7",),
}
"""Settings that an aggregator cannot do without."""


OTHER_SPACE = {
    **dict.fromkeys(("fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "qfedavg"), "product"),
    **dict.fromkeys(("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median"), "factors"),
    "centred_clipping": "factors",
}
"""The space that is not the default, where an algorithm offers both."""


@pytest.mark.parametrize("name", AGGREGATORS)
def test_trains_tiny_for_two_rounds(name: str, tmp_path: Path) -> None:
    trains((f"aggregator={name}",), name, tmp_path)


@pytest.mark.parametrize("name", OTHER_SPACE)
def test_trains_in_the_other_space(name: str, tmp_path: Path) -> None:
    trains((f"aggregator={name}", f"aggregator.on={OTHER_SPACE[name]}"), name, tmp_path)


def test_every_algorithm_with_two_spaces_is_tried_in_both() -> None:
    assert set(OTHER_SPACE) == {name for name, cls in AGGREGATORS.items() if "on" in cls.__dataclass_fields__}


def trains(settings: tuple[str, ...], name: str, tmp_path: Path) -> None:
    """Two rounds, instruments, scores, and the second round again from a checkpoint, bit for bit."""
    experiment = load_experiment("tiny", open_file(PACKAGED), (*settings, *NEEDS.get(name, ())))
    assembled = assemble(experiment, locate(experiment, None), torch.device("cpu"), quiet=True)
    first = advance(assembled.federated, assembled.initial)
    last = advance(assembled.federated, first.checkpoint)
    losses = [row["value"] for row in last.rows["metrics"] if row["metric"] == "loss"]
    assert len(losses) == len(assembled.federated.hospitals)
    assert all(0 < loss < 10 for loss in losses)
    assert all(row["status"] == "ok" for row in last.rows["ledger"])
    for row in measure_round(assembled, last).get("metrics", []):
        assert math.isfinite(row["value"]), row
    with Progress(rounds=2, quiet=True) as progress:
        scores = assess(assembled.federated, assembled.assessor, last.checkpoint, progress, final=False)
    dice = [row for row in scores["metrics"] if row["metric"] == "dice"]
    assert {row["hospital"] for row in dice} == set(assembled.federated.hospitals)
    assert all(0 <= row["value"] <= 1 for row in dice)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(first.checkpoint, changed=list(first.checkpoint.memories))
    resumed = advance(assembled.federated, checkpoints.load(1, assembled.initial.server.setting))
    assert state_hash(resumed.checkpoint) == state_hash(last.checkpoint)
    assert resumed.rows == last.rows
    assert measure_round(assembled, resumed) == measure_round(assembled, last)
