"""Run directories with made-up content, for what lists, compares and cleans them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

STAGES = {"broadcast_s": 0.1, "train_s": 1.0, "aggregate_s": 0.1, "evaluate_s": 0.2, "checkpoint_s": 0.1}

Scores = Mapping[str, Sequence[Mapping[str, float | None]]]
"""Per site the scores of its volumes by metric."""


def make_run(
    folder: Path,
    *,
    state: str = "finished",
    scores: Scores | None = None,
    rounds: int = 2,
    done: int | None = None,
    config: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    unseen: Sequence[str] = (),
    updates: bool = False,
) -> Path:
    """A run with one class, ``core``.

    Args:
        folder: Where.
        state: What its manifest says.
        scores: What was measured after the last round; volumes are called ``case-0`` and so on.
        rounds: Rounds it is to have.
        done: Rounds it has, None: all.
        config: Settings beside rounds and seed.
        manifest: Entries beside those of every run.
        unseen: Sites of the split ``unseen``.
        updates: Whether updates were recorded.
    """
    done = rounds if done is None else done
    scores = {"a": [{"dice": 0.5}]} if scores is None else scores
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "rounds": rounds, **(config or {})}))
    said = {
        "experiment": folder.parent.name,
        "id": folder.name,
        "environment": {"code_hash": "c0de", "threads": 1},
        "continued": [],
        "state": state,
        "error": None,
        "started": "2026-03-01T08:00:00+00:00",
        "finished": None if state == "running" else "2026-03-01T09:30:00+00:00",
        "seed": 0,
        "data_hash": "da7a",
        "weights_hash": "random",
        **(manifest or {}),
    }
    (folder / "manifest.json").write_text(json.dumps(said))
    metrics, cases = [], []
    for site, volumes in scores.items():
        place = {"round": done, "hospital": site, "split": "unseen" if site in unseen else "test"}
        dice = [volume["dice"] or 0.0 for volume in volumes]
        mean = sum(dice) / len(dice)
        metrics += [{**place, "metric": name, "value": mean} for name in ("dice", "dice/core")]
        for number, volume in enumerate(volumes):
            cases += [{**place, "case": f"case-{number}", "metric": name, "value": volume[name]} for name in volume]
    lines(folder / "metrics.jsonl", metrics)
    lines(folder / "cases.jsonl", cases)
    lines(folder / "timing.jsonl", [{"round": number, **STAGES} for number in range(1, done + 1)])
    if state == "finished":
        means = [row["value"] for row in metrics if row["metric"] == "dice" and row["split"] == "test"]
        summary = {"dice": {"mean": sum(means) / len(means)}, "rounds": rounds, "seconds": 3.0}
        (folder / "summary.json").write_text(json.dumps(summary))
    if done or state != "running":
        fill(folder / "checkpoint" / f"round-{done:04d}" / "server.safetensors", 400)
        (folder / "checkpoint" / "latest.json").write_text(json.dumps({"round": done}))
    fill(folder / "predictions" / "a" / "case-0.nii.gz", 70)
    if updates:
        fill(folder / "updates" / "setting.safetensors", 30)
    return folder


def make_plan(folder: Path, cells: Sequence[tuple[str, int, str]], failures: Mapping[str, str] | None = None) -> Path:
    """A sweep's folder: cells as (variant, seed, path of the run); failures by variant (of its seed 0)."""
    folder.mkdir(parents=True)
    entries = [
        {"key": f"{variant}, seed {seed}", "variant": variant, "seed": seed, "choice": None, "path": path}
        for variant, seed, path in cells
    ]
    (folder / "plan.json").write_text(json.dumps({"sweep": folder.name, "cells": entries}))
    for variant, error in (failures or {}).items():
        from wardround.simulator.files import file_stem

        key = f"{variant}, seed 0"
        run = next((entry["path"] for entry in entries if entry["key"] == key), None)
        path = folder / "failures" / f"{file_stem(key)}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"key": key, "path": run, "error": error}))
    return folder


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fill(path: Path, size: int) -> None:
    """Writes a file of so many bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
