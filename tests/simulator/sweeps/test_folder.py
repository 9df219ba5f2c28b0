"""The folder of a sweep: its plan, when that changes, and what stopped a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.sweeps.folder import forget_failure, plan_of, record_failure, write_plan
from wardround.simulator.sweeps.plan import Plan, make_plan
from wardround.simulator.sweeps.records import SweepRecords, failure_of


def plan(*settings: str) -> Plan:
    return make_plan("sweep-tiny", open_file(PACKAGED), ["sweep.references=[]", *settings])


def paths(plan: Plan) -> dict[str, str]:
    return {cell.key: f"tiny/{cell.variant}-{cell.seed}-{cell.experiment.rounds}" for cell in plan.cells}


def test_a_plan_is_read_back(tmp_path: Path) -> None:
    made = plan()
    folder = tmp_path / "sweep-tiny"
    assert write_plan(folder, made, paths(made), experiments_file="mine") == ""
    assert plan_of(folder)["experiments_file"] == "mine"
    records = SweepRecords.load(folder)
    assert (records.name, records.baseline.name, records.seeds) == ("sweep-tiny", "fedavg", (0, 1))
    assert {cell.path for cell in records.cells} == {tmp_path / path for path in paths(made).values()}
    assert {cell.state for cell in records.cells} == {"missing"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], ""),
        (["sweep.baseline=flap_sam"], ""),
        (["sweep.seeds=[0, 1, 2]"], "the sweep was changed: 2 runs more, 0 no longer part of it (their folders stay)"),
        (["sweep.seeds=[1]"], "the sweep was changed: 0 runs more, 2 no longer part of it (their folders stay)"),
        (["rounds=1"], "the sweep was changed: 4 runs more, 4 no longer part of it (their folders stay)"),
    ],
)
def test_a_new_plan_wins_and_says_what_changed(settings: list[str], said: str, tmp_path: Path) -> None:
    write_plan(tmp_path, plan(), paths(plan()))
    new = plan(*settings)
    assert write_plan(tmp_path, new, paths(new)) == said
    assert [cell["key"] for cell in plan_of(tmp_path)["cells"]] == [cell.key for cell in new.cells]
    assert plan_of(tmp_path)["baseline"] == new.baseline


@pytest.mark.parametrize("text", ["{", "{}", '{"sweep": 1, "variants": [], "cells": [3]}'])
def test_a_plan_that_cannot_be_read_is_written_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    assert write_plan(tmp_path, plan(), paths(plan())).endswith("plan.json could not be read and is written anew")
    assert len(plan_of(tmp_path)["cells"]) == 4


def raised(error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_what_stopped_a_run_is_kept_until_it_is_forgotten(tmp_path: Path) -> None:
    cell = plan().cells[0]
    assert failure_of(tmp_path, cell.key, "tiny/a") is None
    assert record_failure(tmp_path, cell, "tiny/a", raised(ValueError("lr: no"))) == "ValueError: lr: no"
    found = failure_of(tmp_path, cell.key, "tiny/a")
    assert found is not None
    assert (found["error"], "traceback" in found) == ("ValueError: lr: no", False)
    assert failure_of(tmp_path, cell.key, "tiny/b") is None
    forget_failure(tmp_path, cell)
    forget_failure(tmp_path, cell)
    assert failure_of(tmp_path, cell.key, "tiny/a") is None


def test_a_mistake_of_the_program_leaves_a_traceback(tmp_path: Path) -> None:
    cell = plan().cells[0]
    said = record_failure(tmp_path, cell, "tiny/a", raised(KeyError("ours")))
    (file,) = (tmp_path / "failures").iterdir()
    assert said == f"KeyError: 'ours' (a mistake of the program; its traceback is in {file})"
    assert "raise error" in json.loads(file.read_text())["traceback"]
