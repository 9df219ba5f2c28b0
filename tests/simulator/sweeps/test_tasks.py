"""Sweeps of classifications: accuracies paired image by image, and what the pages and files call them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweeps import MadeUp, make_sweep, write_sweep

from wardround.simulator.builder import ConfigError
from wardround.simulator.reports.sweep import write_sweep_report
from wardround.simulator.resident import Resident
from wardround.simulator.results import mean
from wardround.simulator.sweeps.execution import How, folders
from wardround.simulator.sweeps.records import SweepRecords
from wardround.simulator.sweeps.results import analyse, cases_rows, results_json, variants_rows
from wardround.simulator.sweeps.terminal import summary_table

VARIANTS = {"linear": 0.0, "bias": 0.1, "lora": 0.2}
SENDS = {"linear": 100, "bias": 10_000, "lora": 1_000_000}
MADE = MadeUp(variants=VARIANTS, sends=SENDS, volumes=50, seeds=(0, 1), task="classification")


@pytest.fixture
def sweep(tmp_path: Path) -> SweepRecords:
    return make_sweep(tmp_path, MADE)


def test_accuracies_are_paired_image_by_image(sweep: SweepRecords) -> None:
    """The difference of the means of 0 and 1, over seeds, images of a site, sites: all sites have as many images."""
    results = analyse(sweep)
    base, _, lora = results.variants[:3]
    right = {
        name: mean(row["value"] for row in cases_rows(sweep) if row["variant"] == name) for name in ("linear", "lora")
    }
    assert base.score is not None
    assert base.score.mean == pytest.approx(right["linear"])
    assert lora.effect is not None
    assert lora.effect.overall.mean == pytest.approx((right["lora"] or 0) - (right["linear"] or 0))
    assert (lora.effect.cases, lora.sites[0].cases) == (150, 50)
    assert lora.effect.overall.low is not None
    assert not lora.effect.overall.includes_zero


def test_other_scores_are_means_over_seeds_and_hospitals(sweep: SweepRecords) -> None:
    """The helper's balanced accuracy is 0.9 of the accuracy, at a hospital and over all images."""
    found = analyse(sweep).variants[1]
    assert found.score is not None
    assert found.others["balanced_accuracy"] == pytest.approx(0.9 * found.score.mean)
    assert found.together["accuracy"] == pytest.approx(found.score.mean)
    assert found.together["macro_f1"] == pytest.approx(0.8 * found.score.mean)


def test_the_files_have_the_names_of_a_classification(sweep: SweepRecords) -> None:
    results = analyse(sweep)
    plain = results_json(results)
    first = plain["variants"][0]
    assert first["accuracy"]["mean"] == pytest.approx(results.variants[0].score.mean)  # type: ignore[union-attr]
    assert not {"score", "dice", "seconds", "cases"} & set(first)
    assert (first["sites"][0]["images"], plain["variants"][1]["effect"]["images"]) == (50, 150)
    assert set(first["others"]) == {"balanced_accuracy", "macro_f1", "auroc"}
    row = variants_rows(results)[1]
    assert row["accuracy"] == first["accuracy"]["mean"] or row["variant"] == "bias"
    assert {"accuracy_low", "accuracy_seeds_sd", "balanced_accuracy", "auroc", "pooled/accuracy"} <= set(row)


def test_the_slope_is_that_of_the_variants(sweep: SweepRecords) -> None:
    """Two decades each: b = (y3 - y1) / 4 of three evenly spaced points."""
    results = analyse(sweep)
    low, _, high = (variant.score.mean for variant in results.variants[:3] if variant.score is not None)
    slope = results_json(results)["slope_per_decade"]
    assert slope["per_decade"] == pytest.approx((high - low) / 4)
    assert slope["variants"] == 3


def test_there_is_no_slope_where_all_send_the_same(tmp_path: Path) -> None:
    results = analyse(make_sweep(tmp_path, replace(MADE, sends={}, references=())))
    assert results.slope is None
    assert "slope_per_decade" not in results_json(results)


def test_the_page_speaks_of_images(sweep: SweepRecords) -> None:
    folder = write_sweep(sweep)
    records = SweepRecords.load(folder)
    page = write_sweep_report(records).read_text()
    assert not [word for word in ("Dice", "volume") if word in page]
    for text in ("Accuracy against parameters sent", "slope per decade", "macro-F1", "in one heap", "150 test images"):
        assert text in page
    assert (folder / "images.csv").is_file()
    assert not (folder / "volumes.csv").exists()
    with (folder / "tables" / "slope.csv").open() as file:
        assert next(csv.DictReader(file))["variants"] == "3"
    assert "Accuracy" in summary_table(analyse(records)).header


def test_a_sweep_of_segmentations_has_the_slope_too(tmp_path: Path) -> None:
    folder = write_sweep(make_sweep(tmp_path, MadeUp(variants=VARIANTS, sends=SENDS, references=(), seeds=(0,))))
    page = write_sweep_report(SweepRecords.load(folder)).read_text()
    assert "Dice against parameters sent" in page
    assert json.loads((folder / "results.json").read_text())["slope_per_decade"]["variants"] == 3


def test_a_sweep_whose_variants_have_one_score_has_its_page(tmp_path: Path) -> None:
    """The interval of the slope is a dash on the page and null in the file."""
    same = dict.fromkeys(VARIANTS, 0.0)
    folder = write_sweep(make_sweep(tmp_path, MadeUp(variants=same, sends=SENDS, references=(), seeds=(0,), noise=0.0)))
    write_sweep_report(SweepRecords.load(folder))
    slope = json.loads((folder / "results.json").read_text())["slope_per_decade"]
    assert (slope["low"], slope["high"], slope["r_squared"]) == (None, None, None)
    with (folder / "tables" / "slope.csv").open() as file:
        assert next(csv.DictReader(file))["95 % interval"] == "–"


def test_runs_of_two_tasks_are_no_sweep(sweep: SweepRecords) -> None:
    folder = write_sweep(sweep)
    cell = sweep.cells[1]
    manifest = json.loads((cell.path / "manifest.json").read_text())
    (cell.path / "manifest.json").write_text(json.dumps({**manifest, "task": "segmentation"}))
    with pytest.raises(
        ValueError, match=r"expected runs of one task.*classification: linear, seed 0; segmentation: lin"
    ):
        analyse(SweepRecords.load(folder))


def test_a_plan_of_two_tasks_is_refused_before_anything_is_looked_for() -> None:
    class Images:
        task = "classification"

    def cell(key: str, data: object) -> Any:
        return SimpleNamespace(key=key, experiment=SimpleNamespace(data=data))

    plan: Any = SimpleNamespace(name="both", cells=[cell("vit, seed 0", Images()), cell("sam, seed 0", object())])
    expected = r"sweep both: expected runs of one task, got classification: vit, seed 0; segmentation: sam, seed 0"
    with pytest.raises(ConfigError, match=expected):
        folders(plan, How(), Resident())
