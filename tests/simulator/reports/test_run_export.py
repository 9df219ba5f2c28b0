"""The numbers of a run as JSON and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from made_runs import write_run

from wardround.simulator.reports.run_export import write_numbers
from wardround.simulator.results import RunRecords


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("numbers")
    run_dir = write_run(place / "run", overlays=False)
    assert [path.name for path in write_numbers(place / "out", RunRecords.load(run_dir))] == [
        "report.json", "scores.csv", "volumes.csv",
    ]  # fmt: skip
    return place


def test_volumes_are_the_rows_of_the_run(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "out" / "volumes.csv").open()))
    own = [json.loads(line) for line in (folder / "run" / "cases.jsonl").read_text().splitlines()]
    assert rows == [{key: str(value) for key, value in row.items()} for row in own]


def test_scores_have_all_digits(folder: Path) -> None:
    """hospital-01: kidney 0.8300 (0.9 (1 - 0.6^5), four digits), tumour 0.581; its tumour has no surface."""
    first = next(csv.DictReader((folder / "out" / "scores.csv").open()))
    assert (first["split"], first["round"], first["hospital"], first["volumes"]) == ("test", "5", "hospital-01", "2")
    assert (float(first["dice/kidney"]), float(first["dice/tumour"])) == (0.83, 0.581)
    assert (first["hd95_mm"], first["hd95_undefined"], first["bytes_up"]) == ("3.0", "2", "5000000")


def test_the_report_as_json(folder: Path) -> None:
    report = json.loads((folder / "out" / "report.json").read_text())
    assert (report["experiment"], report["state"], report["rounds"]) == ("quickstart", "finished", 5)
    assert report["summary"]["seconds"] == 83.25
    assert list(report["scores"]) == ["test"]
    assert [row["hospital"] for row in report["scores"]["test"]["hospitals"]] == [
        "hospital-01", "hospital-02", "hospital-03",
    ]  # fmt: skip
    assert len(report["curves"]["test dice"]["hospital-01"]) == 6
    assert report["costs"]["rounds"][3]["bytes"] == 17_800_000
    assert report["bytes"][1] == {"round": 2, "down": 3_600_000, "up": 2_000_000}


def test_an_undefined_score_is_an_empty_cell_and_null(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", hospitals=1, rounds=0, overlays=False)
    text = (
        (run_dir / "metrics.jsonl")
        .read_text()
        .replace('"metric": "dice", "value": 0.017', '"metric": "dice", "value": null')
    )
    (run_dir / "metrics.jsonl").write_text(text)
    write_numbers(tmp_path / "out", RunRecords.load(run_dir))
    assert next(csv.DictReader((tmp_path / "out" / "scores.csv").open()))["dice"] == ""
    assert json.loads((tmp_path / "out" / "report.json").read_text())["scores"]["test"]["hospitals"][0]["dice"] is None
