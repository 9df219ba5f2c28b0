"""Reading a sweep: states of runs, and the selection, on made-up records."""

from __future__ import annotations

import dataclasses
import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
from sweeps import MadeUp, make_sweep, write_sweep

from wardround.simulator.results import MetricRow, RunRecords
from wardround.simulator.sweeps.records import CellRecord, SweepRecords, VariantRecord, best_choice


def cell(choice: Any, dice: float | None, *, seed: int = 0, state: Any = "held", rounds: int = 1) -> CellRecord:
    """A run with one Dice on validation volumes after round 1, of so many rounds."""
    rows = [MetricRow(round=1, hospital="a", split="validation", metric="dice", value=dice)] if dice is not None else []
    records = RunRecords(path=Path("run"), config={"rounds": rounds}, manifest={}, metrics=rows)
    key = f"v, lr={choice}, seed {seed}"
    return CellRecord(
        key=key, variant="v", seed=seed, choice=choice, path=Path("run"), state=state, error="why", records=records
    )


def variant(*cells: CellRecord) -> VariantRecord:
    return VariantRecord(name="v", role="variant", cells=cells)


def test_the_best_mean_over_seeds_is_selected() -> None:
    """0.5 and 0.7 are 0.6 in the mean, 0.8 and 0.3 are 0.55: the best single run is not the best value."""
    found = variant(cell(1, 0.8), cell(2, 0.5), cell(1, 0.3, seed=1), cell(2, 0.7, seed=1))
    assert found.choice == 2
    assert [(one.choice, one.seed) for one in found.chosen] == [(2, 0), (2, 1)]
    assert found.tuning_runs == 4


def test_of_equals_the_first_is_selected() -> None:
    assert variant(cell(3, 0.5), cell(1, 0.5), cell(2, 0.5)).choice == 3
    assert best_choice([]) is None


def test_values_may_be_lists_and_mappings() -> None:
    found = variant(cell([1, 2], 0.2), cell({"name": "sgd"}, 0.4), cell("word", 0.3))
    assert found.choice == {"name": "sgd"}
    assert found.values == ([1, 2], {"name": "sgd"}, "word")
    assert not found.at_edge


@pytest.mark.parametrize("state", ["missing", "running", "interrupted"])
def test_nothing_is_selected_as_long_as_a_run_is_to_come(state: str) -> None:
    found = variant(cell(1, 0.5), cell(2, 0.1, state=state))
    assert found.choice is None
    assert found.chosen == ()


def test_a_value_that_failed_with_one_seed_is_left_out_and_named() -> None:
    """2 has the best run of all, but not with every seed."""
    seeds = [cell(1, 0.5), cell(2, 0.9), cell(1, 0.5, seed=1), cell(2, None, seed=1, state="failed")]
    found = variant(*seeds, cell(3, 0.4), cell(3, 0.4, seed=1))
    assert (found.choice, found.left_out) == (1, (2,))
    assert found.selection_warnings[0] == "left out of the selection, as it failed: v, lr=2, seed 1: why"


def test_nothing_is_selected_where_all_failed() -> None:
    found = variant(cell(1, None, state="failed"), cell(2, None, state="failed"))
    assert (found.choice, found.left_out, found.chosen) == (None, (1, 2), ())


def test_a_run_that_failed_on_its_test_volumes_was_compared() -> None:
    """Its scores on validation volumes after the last round are there; after an earlier round they do not count."""
    assert variant(cell(1, 0.5), cell(2, 0.9, state="failed", rounds=1)).choice == 2
    assert variant(cell(1, 0.5), cell(2, 0.9, state="failed", rounds=2)).choice == 1


@pytest.mark.parametrize(("best", "edge"), [(0, True), (1, False), (2, True)])
def test_the_edge_of_what_was_tried(best: int, edge: bool) -> None:
    """Values out of order: 1e-3 is the smallest, 1e-1 the largest."""
    values = (1e-3, 1e-2, 1e-1)
    order = (values[1], values[2], values[0])
    found = variant(*(cell(value, 0.9 if value == values[best] else 0.1) for value in order))
    assert found.at_edge is edge


def test_a_neighbour_that_failed_was_tried() -> None:
    """0.1 exploded: nothing better is to be found beyond 0.01."""
    found = variant(cell(0.001, 0.2), cell(0.01, 0.5), cell(0.1, None, state="failed"))
    assert (found.choice, found.at_edge) == (0.01, False)


def test_where_nothing_is_selected_all_runs_count() -> None:
    found = variant(cell(None, None, state="finished"), cell(None, None, seed=1, state="missing"))
    assert (found.choice, found.values, found.tuning_runs) == (None, (), 0)
    assert (len(found.chosen), len(found.finished)) == (2, 1)
    assert found.selection_warnings == ()


# ---- from disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep of two variants and one seed."""
    made = MadeUp(variants={"fedavg": 0.0, "flap_sam": 0.1}, seeds=[0], references=())
    return write_sweep(make_sweep(tmp_path, made))


def loaded(folder: Path) -> CellRecord:
    return SweepRecords.load(folder).cells[0]


def say(folder: Path, state: str) -> Path:
    path = loaded(folder).path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": state}))
    return path.parent


def test_running_without_a_process_is_interrupted(folder: Path) -> None:
    path = say(folder, "running")
    assert (loaded(folder).state, loaded(folder).error) == ("interrupted", "killed")
    with (path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert loaded(folder).state == "running"


def fail(folder: Path, **changes: Any) -> None:
    entry = json.loads((folder / "plan.json").read_text())["cells"][0]
    (folder / "failures").mkdir(exist_ok=True)
    from wardround.simulator.sweeps.records import failure_file

    failure = {"key": entry["key"], "path": entry["path"], "error": "ValueError: no", **changes}
    failure_file(folder, entry["key"]).write_text(json.dumps(failure))


def test_a_failure_counts_until_the_run_succeeds(folder: Path) -> None:
    fail(folder)
    assert loaded(folder).state == "finished"
    say(folder, "interrupted")
    assert (loaded(folder).state, loaded(folder).error) == ("failed", "ValueError: no")


def test_a_failure_of_a_run_of_an_earlier_plan_does_not_count(folder: Path) -> None:
    say(folder, "interrupted")
    fail(folder, path="prostate-small/another")
    assert loaded(folder).state == "interrupted"


def test_what_is_not_there_is_missing(folder: Path) -> None:
    (loaded(folder).path / "manifest.json").unlink()
    records = SweepRecords.load(folder)
    assert [one.state for one in records.cells] == ["missing", "finished"]
    assert [one.key for one in records.unfinished] == ["fedavg, seed 0"]


def test_what_is_no_sweep_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the folder of a sweep, but it has no plan\.json"):
        SweepRecords.load(tmp_path)
    (folder / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"plan\.json: expected the entries .*missing: sweep"):
        SweepRecords.load(folder)


def test_runs_that_count_and_are_not_finished() -> None:
    """Where a value is selected only its runs count; where none can be, those that wait are not to blame."""
    held, done = cell(1, 0.5), cell(2, 0.6, state="finished")
    missing = dataclasses.replace(cell(3, None), state="missing", records=None)
    plan = {"sweep": "s", "baseline": "v", "variants": [], "cells": []}
    assert SweepRecords(path=Path(), plan=plan, variants=(variant(held, done),)).unfinished == ()
    assert SweepRecords(path=Path(), plan=plan, variants=(variant(held, missing),)).unfinished == (missing,)
