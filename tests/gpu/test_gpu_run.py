"""Whole runs on a GPU: as on the CPU to rounding, and whole after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wardround.simulator import run as module
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.run import run

pytestmark = pytest.mark.gpu


def tiny(*settings: str):
    return load_experiment("tiny", open_file(PACKAGED), settings)


def outcome(folder: Path) -> dict[str, torch.Tensor]:
    """The server's tensors after the last of the two rounds."""
    return load_file(folder / "checkpoint" / "round-0002" / "server.safetensors")


@pytest.mark.parametrize(
    "settings",
    [(), ("runtime.windows=host",), ("runtime.cohort=stacked",), ("method=decoder", "augment=none")],
    ids=["device", "host", "stacked", "kept"],
)
def test_tiny_is_what_it_is_on_the_cpu(settings: tuple[str, ...], tmp_path: Path) -> None:
    same = ("training.optimizer={name: sgd, lr: 0.01}", "training.precision=fp64", "runtime.cohort=sequential")
    what = [setting for setting in settings if not setting.startswith("runtime.")]
    on_cpu = run(tiny(*same, *what, "runtime.device=cpu"), out=tmp_path / "cpu", quiet=True)
    on_gpu = run(tiny(*same, *settings, "runtime.device=cuda"), out=tmp_path / "gpu", quiet=True)
    there = outcome(on_gpu.path)
    for name, value in outcome(on_cpu.path).items():
        torch.testing.assert_close(there[name], value, rtol=1e-6, atol=1e-6)


SETTLED = ("runtime.device=cuda", "runtime.cohort=sequential", "training.precision=fp64")
"""Nothing that is chosen by the clock, and sums whose order does not show."""


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second round; on a GPU sums may be made in another order, so that the end is equal to rounding."""
    whole = run(tiny(*SETTLED), out=tmp_path / "whole", quiet=True)
    rounds = []
    train = module.run_round

    def stop(*arguments: object) -> object:
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return train(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "run_round", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(*SETTLED), out=tmp_path / "stopped", quiet=True)
    monkeypatch.undo()
    resumed = run(tiny(*SETTLED), out=tmp_path / "stopped", quiet=True)
    assert json.loads((resumed.path / "manifest.json").read_text())["state"] == "finished"
    expected = outcome(whole.path)
    for name, value in outcome(resumed.path).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
