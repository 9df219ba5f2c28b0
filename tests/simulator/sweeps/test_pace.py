"""Paces: read from runs by hand-made rows, and measured on the real model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.sweeps.pace import Kind, Pace, measure, pace_of_runs, spent
from wardround.simulator.sweeps.work import Work

STAGES = {"broadcast_s": 0.5, "aggregate_s": 0.5, "instruments_s": 0.0, "checkpoint_s": 1.0}


def a_run(folder: Path, train_s: float, evaluate_s: float, **manifest: Any) -> Path:
    """The folder of a run of two equal rounds."""
    folder.mkdir()
    head = {"state": "finished", "environment": {"device": "cpu"}, "continued": []}
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:00:30+00:00"}
    (folder / "manifest.json").write_text(json.dumps({**head, **times, **manifest}))
    row = {**STAGES, "train_s": train_s, "evaluate_s": evaluate_s}
    (folder / "timing.jsonl").write_text("".join(json.dumps({"round": n, **row}) + "\n" for n in (1, 2)))
    return folder


def test_what_a_run_took(tmp_path: Path) -> None:
    """From begin to end; of the rounds (2 x 8 s) where it was interrupted, is held, or its clock went back."""
    run = spent(a_run(tmp_path / "a", 4.0, 2.0))
    assert run is not None
    assert (run.seconds, run.device) == (30.0, "cpu")
    assert run.size == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    for name, manifest in {
        "continued": {"continued": [{}]},
        "held": {"state": "held", "finished": None},
        "back": {"finished": "2026-01-01T00:00:01+00:00"},
    }.items():
        found = spent(a_run(tmp_path / name, 4.0, 2.0, **manifest))
        assert found is not None
        assert found.seconds == 16.0, name


def test_what_is_not_done_took_nothing_yet(tmp_path: Path) -> None:
    assert spent(tmp_path / "nowhere") is None
    assert spent(a_run(tmp_path / "a", 1.0, 1.0, state="failed")) is None


def test_the_pace_of_runs_by_hand(tmp_path: Path) -> None:
    """8 + 2 s for 4 + 1 steps, 4 + 6 s for 10 + 10 slices; of 60 s, 20 s are neither: 20 s beside them for each."""
    runs = [spent(a_run(tmp_path / "a", 4.0, 2.0)), spent(a_run(tmp_path / "b", 1.0, 3.0))]
    done = [(run, Work(steps=steps, slices=10)) for run, steps in zip(runs, (4, 1), strict=True) if run is not None]
    pace = pace_of_runs(done)
    assert pace == Pace(step_s=2.0, slice_s=0.5, rest_s=20.0, runs=2)
    assert pace.seconds(Work(steps=3, slices=4)) == 6.0 + 2.0 + 20.0


def test_runs_that_took_no_step_tell_no_pace(tmp_path: Path) -> None:
    run = spent(a_run(tmp_path / "a", 0.0, 2.0))
    assert run is not None
    assert pace_of_runs([(run, Work(steps=0, slices=3))]) is None
    assert pace_of_runs([]) is None


def test_kinds_are_told_apart_by_what_costs_time() -> None:
    tiny = load_experiment("tiny", open_file(PACKAGED))
    same = replace(tiny, seed=3, rounds=9, model=replace(tiny.model, weights="some.pth"))
    assert Kind.of(same) == Kind.of(tiny)
    assert Kind.of(replace(tiny, training=replace(tiny.training, batch_size=1))) != Kind.of(tiny)
    assert Kind.of(replace(tiny, model=replace(tiny.model, image_size=64))) != Kind.of(tiny)


@pytest.mark.parametrize("overrides", [[], ["windows={depth: 3, normalise: window}", "ranks={hospital-1: 1}"]])
def test_a_pace_is_measured_on_the_real_model(overrides: list[str]) -> None:
    tiny = load_experiment("tiny", open_file(PACKAGED), overrides)
    pace = measure(tiny, 2, torch.device("cpu"), (6, 30, 34))
    assert pace.runs == 0
    assert 0 < pace.slice_s < pace.step_s  # a step is 8 slices, forward and back


def test_a_pace_is_measured_on_images() -> None:
    vit = load_experiment("vit-tiny", open_file(PACKAGED))
    pace = measure(vit, 5, torch.device("cpu"), (1, 32, 32))
    assert pace.runs == 0
    assert 0 < pace.slice_s < pace.step_s
