"""Runs of both tasks read, summarised, listed and compared by the metric that they are judged by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wardround.clients import LOSSES
from wardround.simulator.assembly import locate, loss_of
from wardround.simulator.compare import compare, comparison_json, comparison_text
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.headline import CLASSIFICATION, HEADLINES, SEGMENTATION, headline_of
from wardround.simulator.reports.run import write_report
from wardround.simulator.reports.run_export import report_numbers
from wardround.simulator.reports.run_scores import score_table
from wardround.simulator.results import RunRecords
from wardround.simulator.rundir import RunDirectory
from wardround.simulator.runs_table import list_runs, listing_json, listing_text
from wardround.simulator.summary import summarise_run

RIGHT = {"a": (1, 1, 1, 0), "b": (1, 0)}
"""Whether every test image was told right: accuracies 3/4 and 1/2, mean 0.625; of all six together 4/6."""

SCORES: dict[str | None, dict[str, float | None]] = {
    "a": {"accuracy": 0.75, "balanced_accuracy": 0.7, "macro_f1": 0.6, "auroc": 0.9, "recall/nevus": 1.0},
    "b": {"accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": 0.4, "auroc": None, "recall/nevus": None},
    None: {"accuracy": 4 / 6, "balanced_accuracy": 0.65, "macro_f1": 0.55, "auroc": 0.8, "recall/nevus": 0.9},
}
COUNTS = {"a": {"test": {"nevus": 3, "melanoma": 1}}, "b": {"test": {"nevus": 0, "melanoma": 2}}}


def write(folder: Path, right: dict[str, tuple[int, ...]] | None = None, **manifest: Any) -> Path:
    """A finished classification of two rounds at hospitals a and b."""
    folder.mkdir(parents=True)
    said = {"task": "classification", "class_counts": COUNTS, "experiment": folder.parent.name, "id": folder.name}
    said |= {"state": "finished", "started": "2026-01-01T00:00:00+00:00", "finished": None, "environment": {}}
    said |= {"data_hash": "da7a", "continued": []}
    (folder / "manifest.json").write_text(json.dumps({**said, **manifest}))
    (folder / "config.yaml").write_text("seed: 0\nrounds: 2\n")
    rows: dict[str, list[dict[str, Any]]] = {"metrics": [], "cases": [], "ledger": [], "timing": []}
    for hospital, scores in SCORES.items():
        where = {"round": 2, "hospital": hospital, "split": "test"}
        prefix = "pooled/" if hospital is None else ""
        rows["metrics"] += [{**where, "metric": f"{prefix}{name}", "value": value} for name, value in scores.items()]
    for hospital, values in (right or RIGHT).items():
        where = {"round": 2, "hospital": hospital, "split": "test", "metric": "accuracy"}
        rows["cases"] += [{**where, "case": f"{hospital}{place}", "value": value} for place, value in enumerate(values)]
        sent = {"status": "ok", "bytes_down": 40, "bytes_up": 20, "examples": 12, "steps": 3}
        rows["ledger"] += [{"round": number, "hospital": hospital, **sent} for number in (1, 2)]
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    summary = summarise_run(RunDirectory(folder), ("nevus",))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path / "runs" / "skin" / "0123456789ab")


def test_the_manifest_says_what_a_run_is_judged_by() -> None:
    assert (headline_of({}), headline_of({"task": "segmentation"})) == (SEGMENTATION, SEGMENTATION)
    assert headline_of({"task": "classification"}) == CLASSIFICATION
    with pytest.raises(
        ValueError, match=r"task: expected segmentation or classification in the manifest, got 'counting'"
    ):
        headline_of({"task": "counting"})


def test_final_scores_and_all_images_together(run: Path) -> None:
    """The mean over hospitals is 0.625; together 4 of 6 images are right."""
    records = RunRecords.load(run)
    a, b = records.final()
    assert (records.task, records.classes, records.hospitals) == ("classification", ("nevus",), ("a", "b"))
    assert (a.score, a.cases, a.examples, a.per_class) == (0.75, 4, 12, {"nevus": 1.0})
    assert a.others == {"balanced_accuracy": 0.7, "macro_f1": 0.6, "auroc": 0.9}
    assert (b.others["auroc"], b.per_class, set(b.undefined.values())) == (None, {"nevus": None}, {0})
    together = records.together()
    assert together is not None
    assert (together.score, together.cases, together.others["auroc"]) == (4 / 6, 6, 0.8)
    assert records.together("validation") is None


def test_images_are_counted_from_the_manifest_where_a_round_has_no_rows_of_them(run: Path) -> None:
    (run / "cases.jsonl").write_text("")
    assert [score.cases for score in RunRecords.load(run).final()] == [4, 2]


def test_the_table_says_which_number_is_the_mean_and_which_is_of_all_images(run: Path) -> None:
    table = score_table(RunRecords.load(run))
    assert table.header == (
        *("hospital", "train", "test", "Accuracy", "balanced", "macro-F1", "AUROC", "recall nevus", "down", "up"),
    )
    assert table.rows[1] == ("b", "12", "2", "0.500", "0.500", "0.400", "–", "–", "80 B", "40 B")
    named = {row[0]: row[3:7] for row in table.footer}
    assert named == {
        "mean of hospitals": ("0.625", "0.600", "0.500", "0.900"),
        "worst": ("0.500", "0.500", "0.400", "0.900"),
        "all images together": ("0.667", "0.650", "0.550", "0.800"),
    }
    assert "every hospital counts alike" in table.note
    assert "HD95" not in table.note


def test_summary(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["accuracy"] == {
        "mean": 0.625,
        "worst": 0.5,
        "pooled": 4 / 6,
        "per_hospital": {"a": 0.75, "b": 0.5},
        "per_class": {"nevus": 1.0},
    }
    assert summary["balanced_accuracy"] == {"mean": pytest.approx(0.6), "pooled": 0.65}
    assert summary["auroc"] == {"mean": 0.9, "pooled": 0.8}  # undefined at b
    assert "dice" not in summary


def test_a_page_and_its_numbers_speak_of_images(run: Path, tmp_path: Path) -> None:
    page = write_report(run, export_to=tmp_path / "out").read_text()
    assert "Mean test accuracy" in page
    assert not [word for word in ("Dice", "volume", "HD95", "window") if word in page]
    assert {path.name for path in (tmp_path / "out").glob("*.*")} == {"report.json", "scores.csv", "images.csv"}
    scores = report_numbers(RunRecords.load(run))["scores"]["test"]
    assert scores["hospitals"][0]["accuracy"] == 0.75
    assert (scores["together"]["accuracy"], scores["together"]["images"]) == (4 / 6, 6)
    header, *lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert header.startswith("split,round,hospital,recall/nevus,train_images,images,accuracy,balanced_accuracy")
    assert [line.split(",")[2] for line in lines] == ["a", "b", "all images together"]


def test_runs_are_listed_with_their_accuracy(run: Path) -> None:
    listing = list_runs(run.parent.parent)
    assert "Accuracy" in listing_text(listing)
    (line,) = json.loads(listing_json(listing))["runs"]
    assert (line["accuracy"], "dice" in line, "score" in line) == (0.625, False, False)


def test_two_classifications_are_compared_image_by_image(tmp_path: Path) -> None:
    """a: images 0, 1, 2 right -> all four: +1/4; b: one of two -> none: -1/2. Mean over sites -1/8."""
    left = write(tmp_path / "skin" / "left")
    right = write(tmp_path / "skin" / "right", {"a": (1, 1, 1, 1), "b": (0, 0)})
    comparison = compare(left, right)
    (score,) = comparison.scores
    assert (score.name, score.cases, score.difference.mean, score.worst_site) == ("Accuracy", 6, -0.125, "b")
    assert comparison.whole["AUROC, all images together"] == (0.8, 0.8)
    text = comparison_text(comparison)
    assert "over 6 images" in text
    assert "balanced accuracy, mean over hospitals: 0.600 -> 0.600, +0.000; no interval" in text
    assert not [word for word in ("Dice", "volume") if word in text]
    plain = json.loads(comparison_json(comparison))
    assert (plain["scores"][0]["images"], plain["scores"][0]["sites"][0]["images"]) == (6, 4)


def test_runs_of_two_tasks_are_not_compared(run: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "runs" / "kidney" / "other", task="classification")
    (other / "manifest.json").write_text(json.dumps({"state": "finished"}))
    with pytest.raises(ValueError, match=r"expected runs of one task, got classification in .* and segmentation in"):
        compare(run, other)


@pytest.mark.parametrize("name", ["tiny", "vit-tiny"])
def test_the_loss_of_a_run_that_names_none(name: str) -> None:
    """What pages say is what trains."""
    experiment = load_experiment(name, open_file(PACKAGED))
    assert experiment.loss is None
    used = loss_of(experiment, locate(experiment, None).federation)
    assert type(used) is LOSSES[HEADLINES[experiment.model.task].loss]


@pytest.mark.parametrize(("config", "shown"), [("loss: null", "cross_entropy"), ("loss: {name: focal}", "focal")])
def test_the_page_names_the_loss(tmp_path: Path, config: str, shown: str) -> None:
    folder = write(tmp_path / "vit" / "0123456789ab")
    (folder / "config.yaml").write_text(f"seed: 0\nrounds: 2\n{config}\n")
    page = write_report(folder).read_text()
    assert f"<dt>loss</dt><dd>{shown}</dd>" in page
