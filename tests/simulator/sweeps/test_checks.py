"""What is said of a sweep whose runs are not all there, or not alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps import MadeUp, make_sweep

from wardround.simulator.sweeps.checks import check_cells
from wardround.simulator.sweeps.records import SweepRecords

FEW = MadeUp(variants={"base": 0.0, "new": 0.1}, references=(), seeds=(0, 1), volumes=1, rounds=1)


def with_manifest(records: SweepRecords, key: str, **changes: Any) -> SweepRecords:
    """The sweep with other entries in the manifest of one run."""
    variants = [
        replace(
            variant,
            cells=tuple(
                replace(cell, records=replace(cell.measured, manifest={**cell.measured.manifest, **changes}))
                if cell.key == key
                else cell
                for cell in variant.cells
            ),
        )
        for variant in records.variants
    ]
    return replace(records, variants=tuple(variants))


def test_a_whole_sweep_of_equal_runs_is_not_spoken_of(tmp_path: Path) -> None:
    assert check_cells(make_sweep(tmp_path, FEW)) == ()


def test_runs_that_are_not_there(tmp_path: Path) -> None:
    states = {"base, seed 1": "failed", "new, seed 0": "missing", "new, seed 1": "missing"}
    assert check_cells(make_sweep(tmp_path, replace(FEW, states=states))) == (
        "1 run failed: base, seed 1",
        "2 runs not begun, or on another machine: new, seed 0; new, seed 1",
    )


def test_many_names_are_a_few_and_a_count(tmp_path: Path) -> None:
    made = replace(FEW, seeds=range(6), states={f"new, seed {seed}": "interrupted" for seed in range(5)})
    assert check_cells(make_sweep(tmp_path, made)) == (
        "5 runs interrupted: new, seed 0; new, seed 1; new, seed 2 and 2 more",
    )


def test_other_code(tmp_path: Path) -> None:
    made = replace(FEW, variants={"base": 0.0, "new": 0.1, "third": 0.1}, code={"new": "abc"})
    (text,) = check_cells(make_sweep(tmp_path, made))
    assert text.startswith("not all runs have the same code: new, seed 0; new, seed 1 (abc); the others have 63af3102f")


def test_other_precision_and_environment(tmp_path: Path) -> None:
    records = make_sweep(tmp_path, FEW)
    environment = records.cells[0].measured.manifest["environment"]
    other = {"environment": {**environment, "torch": "2.9.0", "device": "cuda"}, "precision": "bf16"}
    texts = check_cells(with_manifest(records, "new, seed 1", **other))
    assert [text.split(":")[0] for text in texts] == [
        "not all runs have the same version of PyTorch",
        "not all runs have the same device",
        "not all runs have the same precision",
    ]
    assert "new, seed 1 (2.9.0); the others have 2.13.0" in texts[0]


def test_other_random_numbers(tmp_path: Path) -> None:
    records = make_sweep(tmp_path, FEW)
    drawn = [{"cohorts": {"": {"of": "same", "drawn": [hashed]}}} for hashed in ("one", "two")]
    records = with_manifest(records, "base, seed 0", common_numbers=drawn[0])
    records = with_manifest(records, "new, seed 0", common_numbers=drawn[1])
    (text,) = check_cells(records)
    assert "drew other cohorts" in text


def test_a_value_at_the_edge(tmp_path: Path) -> None:
    (text,) = check_cells(make_sweep(tmp_path, replace(FEW, select=(1e-4, 1e-3))))
    assert text.startswith("the selected value is the lowest or highest one tried for base, new")
