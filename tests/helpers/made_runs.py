"""Run directories with made-up numbers, in the documented formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CLASSES = ("kidney", "tumour")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(
    folder: Path,
    *,
    hospitals: int = 3,
    rounds: int = 5,
    planned: int | None = None,
    state: str = "finished",
    overlays: bool = True,
    names: list[str] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """A run directory with made-up numbers: the Dice of hospital k in round r rises with r and falls with k."""
    folder.mkdir(parents=True)
    names = names or [f"hospital-{number:02d}" for number in range(1, hospitals + 1)]
    for subject, rows in _rows(names, rounds).items():
        write_lines(folder / f"{subject}.jsonl", rows)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or run_config(planned or rounds), sort_keys=False))
    (folder / "manifest.json").write_text(json.dumps(_manifest(state)))
    if state == "finished":
        (folder / "summary.json").write_text(json.dumps({"dice": {"mean": 0.7}, "rounds": rounds, "seconds": 83.25}))
    if overlays:
        (folder / "overlays").mkdir()
        for place, name in enumerate(names):
            write_overlay(folder / "overlays" / f"{name}.npz", seed=place)
    return folder


def run_config(rounds: int) -> dict[str, Any]:
    return {
        "seed": 0,
        "rounds": rounds,
        "model": {"name": "sam", "size": "mini", "image_size": 64, "weights": "sam-mini"},
        "method": {"name": "flap_sam", "lora": {"rank": 8, "alpha": 1.0, "init_b": "zero"}},
        "aggregator": {"name": "flap_sam"},
        "dataset": {"name": "phantom", "hospitals": 3},
        "optimizer": {"name": "adamw", "lr": 0.0008, "betas": [0.9, 0.999]},
        "cohort": None,
        "ranks": {},
        "evaluation": {"every": 2, "surface_tolerance_mm": 2.0},
        "compile": False,
    }


def _manifest(state: str) -> dict[str, Any]:
    return {
        "experiment": "quickstart",
        "id": "0123456789ab",
        "seed": 0,
        "wardround": "0.1.0",
        "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
        "environment": {"device": "cpu", "cpu": "a processor", "threads": 2},
        "state": state,
        "error": "ValueError: loss is not finite" if state == "failed" else None,
        "started": "2026-01-01T00:00:00Z",
        "finished": None,
        "command": ["wardround", "run", "quickstart", "--set", "seed=0"],
    }


def _rows(names: list[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {"metrics": [], "cases": [], "ledger": [], "timing": []}
    for number in range(rounds + 1):
        for place, name in enumerate(names):
            _hospital_rows(rows, number, place, name, last=number == rounds)
        if number:
            _server_rows(rows, number)
    return rows


def _hospital_rows(rows: dict[str, list[dict[str, Any]]], number: int, place: int, name: str, *, last: bool) -> None:
    def measure(metric: str, value: float | None, split: str = "test") -> None:
        rows["metrics"].append({"round": number, "hospital": name, "split": split, "metric": metric, "value": value})

    kidney = round(max(0.0, 0.9 * (1 - 0.6**number) - 0.01 * place), 4) if number else 0.02
    tumour = round(kidney * 0.7, 4)
    measure("dice", (kidney + tumour) / 2)
    for label, value in zip(CLASSES, (kidney, tumour), strict=True):
        measure(f"dice/{label}", value)
        if last:
            empty = label == "tumour" and place == 0
            measure(f"hd95_mm/{label}", None if empty else 3.0 + place)
            measure(f"undefined/hd95_mm/{label}", 2 if empty else 0)
            measure(f"surface_dice/{label}", None if empty else 0.8)
            measure(f"undefined/surface_dice/{label}", 2 if empty else 0)
    for case in range(2):
        rows["cases"].append(
            {"round": number, "hospital": name, "split": "test", "case": f"{name}_case_{case}", "metric": "dice",
             "value": kidney}
        )  # fmt: skip
    if number:
        dropped = place == 1 and number in (2, 3)
        if not dropped:
            measure("loss", 1.0 / number + 0.03 * place, split="train")
        rows["ledger"].append(
            {"round": number, "hospital": name, "status": "dropped" if dropped else "ok", "bytes_down": 1_200_000,
             "bytes_up": 0 if dropped else 1_000_000, "examples": 40 + place, "steps": 0 if dropped else 3}
        )  # fmt: skip


def _server_rows(rows: dict[str, list[dict[str, Any]]], number: int) -> None:
    for metric, value in {"energy_kept": 1 - 0.1 / number, "update_norm": 2.0 / number, "rank": 8.0}.items():
        rows["metrics"].append(
            {"round": number, "hospital": None, "split": None, "metric": f"aggregate/{metric}", "value": value}
        )
    rows["timing"].append(
        {"round": number, "broadcast_s": 0.1, "train_s": 6.0, "aggregate_s": 0.4, "evaluate_s": 2.0,
         "checkpoint_s": 0.2}
    )  # fmt: skip


def write_overlay(path: Path, *, seed: int, slices: int = 3, side: int = 48, cut: int = 0) -> None:
    """Two nested discs on a noisy background; the prediction is the truth moved by a few pixels."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    image, truth, prediction = [], [], []
    for place in range(slices):
        distance = np.hypot(rows - side / 2, columns - side / 2 + seed)
        label = (distance < side / 4).astype(np.uint8) + (distance < side / 9)
        truth.append(label)
        prediction.append(np.roll(label, 1 + 2 * place, axis=1))
        image.append(0.25 + 0.2 * label + 0.05 * draw.standard_normal((side, side)))
    np.savez(
        path,
        image=np.clip(image, 0, 1).astype(np.float32),
        truth=np.array(truth, dtype=np.uint8),
        prediction=np.array(prediction, dtype=np.uint8)[:, cut:],
        case=np.array([f"secret_case_{seed}_{place}" for place in range(slices)]),
        slice=np.arange(10, 10 + slices),
        dice=np.array([0.912, 0.85, np.nan][:slices]),
        spacing_mm=np.tile([1.0, 1.5], (slices, 1)),
    )
