"""The page and the final table, made from run directories that this file writes in the documented formats."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import run_config, write_lines, write_overlay, write_run
from outline import Outline

from wardround.simulator.cli import main
from wardround.simulator.reports.figures import (
    CLASS_COLOURS,
    LINE_COLOURS,
    Line,
    area_chart,
    bar_chart,
    class_rgb,
    line_chart,
    overlay_png,
)
from wardround.simulator.reports.page import Html, Table, bytes_text, join, seconds_text, tag
from wardround.simulator.reports.run import write_report
from wardround.simulator.reports.run_scores import region_table, results_table, score_table
from wardround.simulator.results import RunRecords


def page_of(run_dir: Path, *, images: bool = True) -> str:
    return write_report(run_dir, images=images).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "three")


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return page_of(run)


def test_the_page_is_well_formed_and_fetches_nothing(html: str) -> None:
    outline = Outline(html)
    tags = {name for name, _ in outline.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all(value.startswith("data:image/png;base64,") for value in outline.values("src"))
    assert all(value.startswith("#") for name in ("href", "xlink:href") for value in outline.values(name))
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_ids_are_unique_and_links_lead_somewhere(html: str) -> None:
    outline = Outline(html)
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    targets = [value[1:] for name in ("href", "xlink:href") for value in outline.values(name)]
    targets += re.findall(r"url\(#([^)]*)\)", html)
    assert targets
    assert set(targets) <= set(ids)


def test_every_picture_has_a_text_alternative(html: str) -> None:
    elements = Outline(html).elements
    drawings = [attributes for name, attributes in elements if name == "svg"]
    photographs = [attributes for name, attributes in elements if name == "img"]
    assert len(drawings) == 1 + 2 + 3 + 2 + 3  # sites, Dice and loss, costs, bytes twice, three diagnostics
    assert len(photographs) == 9
    assert all(item.get("role") == "img" and item.get("aria-label") for item in drawings)
    assert all(item.get("alt") for item in photographs)
    assert "Test Dice, mean over 3 hospitals: 0.017 in round 0, 0.697 in round 5." in html


def test_the_headline_is_computed_from_the_rows(html: str) -> None:
    """Dice of hospital k (from 0): 0.85 (0.9 (1 - 0.6^5) - 0.01 k) = 0.7055, 0.6970, 0.6885; down 5 x 3 x 1.2 MB."""
    tiles = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", html))
    assert tiles["Mean test Dice"] == "0.697"
    assert tiles["Worst hospital"] == "0.689"
    assert '<dd class="note">hospital-03</dd>' in html
    assert tiles["Rounds"] == "5"
    assert tiles["Sent"] == "31.0 MB"
    assert "18.0 MB to the hospitals, 13.0 MB back" in html
    assert tiles["Time"] == "1 min 23 s"
    assert '<dd class="note">cpu</dd>' in html


def test_all_parts_are_there(html: str) -> None:
    titles = re.findall(r"<h2>([^<]*)</h2>", html)
    assert titles == [
        "What was run", "Scores per hospital", "Round by round", "Dice against costs", "Bytes sent",
        "Aggregation", "Ledger", "Slices", "Timing", "Manifest", "To repeat it",
    ]  # fmt: skip
    for text in (
        "flap_sam (lora [rank 8, alpha 1.0, init_b zero])",
        "adamw (lr 0.0008, betas [0.9, 0.999])",
        "<dt>ranks</dt><dd>none</dd>",
        "surface (surface Dice at 2.0 mm)",
        "<dt>optimizer.betas</dt><dd>0.9, 0.999</dd>",
        "energy_kept",
        "2 of 15 times a hospital failed its round.",
        "<td>2–3</td>",
        "<dt>packages.torch</dt><dd>2.13.0</dd>",
        "<pre>wardround run quickstart --set seed=0</pre>",
        "Best volume: Dice 0.912, secret_case_0_0, slice 10",
        "Worst volume: Dice –, secret_case_0_2, slice 12",
    ):
        assert text in html


def test_the_same_run_gives_the_same_bytes(run: Path, html: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    with matplotlib.rc_context(
        {"font.size": 30, "svg.hashsalt": "other", "xtick.direction": "in", "lines.linestyle": "--"}
    ):
        assert page_of(run) == html
        assert matplotlib.rcParams["font.size"] == 30


def test_without_images_no_slice_and_no_case_is_on_the_page(run: Path, tmp_path: Path) -> None:
    out = write_report(run, images=False, out=tmp_path / "public" / "page.html")
    text = out.read_text(encoding="utf-8")
    assert "data:image" not in text
    assert "case_" not in text
    assert "were left out of this page on request" in text
    Outline(text)


def test_a_run_without_stored_slices_says_so(tmp_path: Path) -> None:
    assert "No slices are stored in this run directory." in page_of(
        write_run(tmp_path / "run", rounds=0, overlays=False)
    )


def test_names_are_escaped(tmp_path: Path) -> None:
    names = ["</title><script>alert(1)</script>", '"><b>$x^2$']
    config = {"rounds": 5, "note": "<img src=x>"}
    text = page_of(write_run(tmp_path / "run", names=names, rounds=1, config=config, overlays=False))
    tags = {name for name, _ in Outline(text).elements}
    assert not tags & {"script", "b", "img"}
    assert "&lt;script&gt;alert(1)" in text
    assert "$x^2$" in text


@pytest.mark.parametrize(("hospitals", "rounds"), [(1, 1), (40, 2)])
def test_one_hospital_and_forty(tmp_path: Path, hospitals: int, rounds: int) -> None:
    text = page_of(write_run(tmp_path / "run", hospitals=hospitals, rounds=rounds))
    Outline(text)
    assert all(f"hospital-{number:02d}" in text for number in range(1, hospitals + 1))
    assert ("mean of 40 hospitals" in text) == (hospitals == 40)
    assert "1 rounds" not in text
    assert "1 hospitals" not in text
    assert len(text) < 3_000_000


def test_an_unfinished_run_says_so(tmp_path: Path, html: str) -> None:
    text = page_of(write_run(tmp_path / "run", rounds=2, planned=10, state="running", overlays=False))
    assert "This run is not finished: the page shows it after round 2 of 10." in text
    assert "<div><dt>Rounds</dt><dd>2 of 10</dd>" in text
    assert "<div><dt>Time</dt><dd>17.4 s</dd>" in text  # 2 rounds x 8.7 s
    assert "not finished" not in html


def test_a_failed_run_shows_its_error(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run", rounds=0, planned=10, state="failed", overlays=False))
    assert "It stopped with an error: ValueError: loss is not finite" in text


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run", rounds=0, planned=10, state="interrupted", overlays=False))
    assert "after round 0 of 10. It was interrupted." in text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", state="running", overlays=False)
    for path in run_dir.glob("*.jsonl"):
        path.unlink()
    text = page_of(run_dir)
    for remark in ("No round has been recorded yet.", "Nothing has been sent yet.", "no test volume scored yet"):
        assert remark in text
    assert "No test volume has been scored yet." in results_table(RunRecords.load(run_dir))


def test_a_damaged_overlay_leaves_the_old_page(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", hospitals=1, rounds=0)
    before = page_of(run_dir)
    files = sorted(run_dir.iterdir())
    (run_dir / "overlays" / "hospital-01.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"hospital-01\.npz: expected the arrays image, truth"):
        write_report(run_dir)
    write_overlay(run_dir / "overlays" / "hospital-01.npz", seed=0, slices=4)
    with pytest.raises(ValueError, match="expected 1 to 3 slices of one size"):
        write_report(run_dir)
    write_overlay(run_dir / "overlays" / "hospital-01.npz", seed=0, cut=1)
    with pytest.raises(ValueError, match="expected 1 to 3 slices of one size"):
        write_report(run_dir)
    assert (run_dir / "report.html").read_text(encoding="utf-8") == before
    assert sorted(run_dir.iterdir()) == files


def test_two_slices_are_the_best_and_the_worst(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", hospitals=1, rounds=0, overlays=False)
    (run_dir / "overlays").mkdir()
    write_overlay(run_dir / "overlays" / "hospital-01.npz", seed=0, slices=2)
    text = page_of(run_dir)
    assert "Best volume: Dice 0.912" in text
    assert "Worst volume: Dice 0.850" in text


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a run directory, but it has no config\.yaml"):
        write_report(tmp_path)


def test_the_final_table(run: Path) -> None:
    """As in the headline test; the tumour of hospital-01 has no surface in 2 volumes, so its HD95 is kidney's 3 mm."""
    lines = results_table(RunRecords.load(run)).splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert words[0] == "hospital train test Dice kidney Dice tumour Dice HD95 mm surface down up"
    assert words[2] == "hospital-01 40 2 0.830 0.581 0.706 3.00 (2) 0.800 (2) 6.00 MB 5.00 MB"
    assert words[3] == "hospital-02 41 2 0.820 0.574 0.697 4.00 0.800 6.00 MB 3.00 MB"
    assert words[6] == "mean 0.820 0.574 0.697 4.00 (2) 0.800 (2) 6.00 MB 4.33 MB"
    assert words[7] == "worst 0.810 0.567 0.689 5.00 0.800"
    assert max(map(len, lines)) <= 100
    assert len({len(line) for line in lines[:2]}) == 1


def test_a_score_that_is_undefined_everywhere_is_a_dash_with_its_number(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", hospitals=1, overlays=False)
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["metric"] == "hd95_mm/kidney":
            row["value"] = None
        if row["metric"] == "undefined/hd95_mm/kidney":
            row["value"] = 1
    write_lines(path, rows)
    row, mean = score_table(RunRecords.load(run_dir)).rows[0], score_table(RunRecords.load(run_dir)).footer[0]
    assert row[6] == "– (3)"
    assert mean[6] == "– (3)"
    assert "because a mask is empty" in score_table(RunRecords.load(run_dir)).note


def test_columns_that_do_not_fit_go_into_a_further_block() -> None:
    """Widths 4, 6, 6, 6 with gaps of two: 4 + 8 + 8 = 20 fit, the third column does not."""
    table = Table(header=("name", "aaaaaa", "bbbbbb", "cccccc"), rows=(("x", "1", "2", "3"),), note="n")
    assert table.text(width=20).splitlines() == [
        "name  aaaaaa  bbbbbb", "─" * 20, "x          1       2", "",
        "name  cccccc", "─" * 12, "x          3", "", "n",
    ]  # fmt: skip
    assert table.text(width=27).splitlines()[0] == "name  aaaaaa  bbbbbb"
    assert table.text(width=28).splitlines()[0] == "name  aaaaaa  bbbbbb  cccccc"


def test_a_long_name_is_cut_to_a_third_of_the_width() -> None:
    table = Table(header=("name", "value"), rows=(("a" * 50, "1"),))
    assert table.text(width=30).splitlines()[2] == "a" * 9 + "…" + "      1"


def test_a_table_with_a_missing_cell_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"rows: expected 2 cells as in the header, got \('a',\)"):
        Table(header=("name", "value"), rows=(("a",),))


def test_only_html_is_left_as_it_is() -> None:
    assert tag("p", "a < b", Html("<i></i>"), class_="x", data_key='"') == (
        '<p class="x" data-key="&quot;">a &lt; b<i></i></p>'
    )
    assert join(["&", Html("&amp;")]) == "&amp;&amp;"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_340, "12.3 kB"),
        (1_846_384 * 4, "7.39 MB"),
        (2.5e11, "250 GB"),
    ],
)
def test_bytes_for_people(size: float, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (83.25, "1 min 23 s"), (3600 * 2 + 299, "2 h 04 min")]
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def curve(svg: str, colour: str) -> str:
    """The drawing commands of the line of this colour."""
    found = re.search(rf'd="([^"]*)"[^>]*stroke: {colour.lower()}', svg)
    assert found is not None
    return found[1]


def test_an_undefined_value_leaves_a_gap() -> None:
    points = [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4), (4, 0.4)]
    whole = line_chart("one", [Line(points=points, colour="#0072B2")], y_label="Dice")
    points[2] = (2, None)
    gap = line_chart("one", [Line(points=points, colour="#0072B2")], y_label="Dice")
    assert curve(whole, "#0072B2").count("M") == 1
    assert curve(gap, "#0072B2").count("M") == 2


def test_charts_take_the_colours_of_the_page() -> None:
    points = [(0, 0.5), (1, 2.0)]
    charts = [chart("two", {"#0072B2": points}, y_label="MB") for chart in (bar_chart, area_chart)]
    for svg in (*charts, line_chart("two", [Line(points=points, colour="#0072B2")], y_label="MB")):
        assert svg.startswith("<svg ")
        assert "currentColor" in svg
        assert "var(--line)" in svg
        assert "#0072b2" in svg
        assert "#010203" not in svg
        assert ">MB</text>" in svg


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    import io

    from matplotlib.image import imread

    return np.round(imread(io.BytesIO(png))[..., :3] * 255)


def test_an_overlay_fills_the_prediction_and_outlines_the_truth() -> None:
    """Grey 0.5: the fill is 0.65 x 0.5 + 0.35 colour, an outline of one pixel the colour itself."""
    image = np.full((8, 8), 0.5, dtype=np.float32)
    truth, prediction = np.zeros((2, 8, 8), dtype=np.uint8)
    truth[1:5, 1:5] = 1
    prediction[4:7, 4:7] = 2
    picture = pixels(overlay_png(image, truth, prediction, side=8))
    grey = np.round(np.full(3, 0.5) * 255)
    assert picture.shape == (8, 8, 3)
    np.testing.assert_array_equal(picture[0, 0], grey)
    np.testing.assert_array_equal(picture[2, 2], grey)  # inside the truth, not predicted
    np.testing.assert_array_equal(picture[1, 3], np.round(class_rgb(1) * 255))
    np.testing.assert_array_equal(picture[4, 4], np.round(class_rgb(1) * 255))  # the outline is on top
    np.testing.assert_array_equal(picture[6, 6], np.round((0.65 * 0.5 + 0.35 * class_rgb(2)) * 255))


def test_an_overlay_has_the_proportions_of_the_body() -> None:
    image, mask = np.zeros((10, 10), dtype=np.float32), np.zeros((10, 10), dtype=np.uint8)
    assert pixels(overlay_png(image, mask, mask, spacing_mm=(1.0, 2.5), side=100)).shape == (40, 100, 3)
    assert pixels(overlay_png(image, mask, mask, spacing_mm=(3.0, 1.5), side=100)).shape == (100, 50, 3)


def test_an_overlay_keeps_places_when_it_is_enlarged() -> None:
    """Pixel (1, 2) of 4 x 4 becomes rows 8-15, columns 16-23 of 32 x 32."""
    image, truth = np.zeros((4, 4), dtype=np.float32), np.zeros((4, 4), dtype=np.uint8)
    prediction = truth.copy()
    prediction[1, 2] = 1
    coloured = pixels(overlay_png(image, truth, prediction, side=32)).any(axis=2)
    expected = np.zeros((32, 32), dtype=bool)
    expected[8:16, 16:24] = True
    np.testing.assert_array_equal(coloured, expected)


def test_colours_are_few_and_distinct() -> None:
    for colours in (LINE_COLOURS, CLASS_COLOURS):
        assert len(set(colours)) == len(colours)
    np.testing.assert_allclose(class_rgb(1) * 255, [0xE6, 0x9F, 0x00])
    np.testing.assert_array_equal(class_rgb(1), class_rgb(1 + len(CLASS_COLOURS)))


def test_the_table_needs_no_matplotlib(run: Path) -> None:
    code = (
        "import sys; from wardround.simulator import results; from wardround.simulator.reports import run_scores; "
        f"run_scores.results_table(results.RunRecords.load({str(run)!r})); "
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=run, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False"


def test_unseen_sites_stand_below_the_means_and_common_tests_are_no_hospital(tmp_path: Path) -> None:
    """Dice 0.9 at the unseen site must not move the mean of the two hospitals; ``common`` sends nothing."""
    folder = write_run(tmp_path / "run", hospitals=2, config={**run_config(5), "split": {"test": "common"}})
    before = results_table(RunRecords.load(folder))
    rows = [
        {"round": 5, "hospital": name, "split": split, "metric": metric, "value": value}
        for name, split, value in (("far", "unseen", 0.9), ("common", "test", 0.8))
        for metric in ("dice", "dice/kidney", "dice/tumour", "dice_region/all", "dice_regions")
    ]
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[:5])
    with_unseen = results_table(RunRecords.load(folder))
    means = [
        [line.split() for line in printed.splitlines() if line.startswith(("mean", "worst"))]
        for printed in (before, with_unseen)
    ]
    assert means[0] == means[1]
    assert re.search(r"^far \(unseen\) .* 0\.900", with_unseen, re.MULTILINE)
    assert "they enter no mean" in with_unseen
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[5:])
    records = RunRecords.load(folder)
    assert records.members == ("hospital-01", "hospital-02")
    assert records.hospitals == ("common", *records.members)
    page = write_report(folder).read_text()
    assert "2 hospitals" in page
    assert region_table(records).rows == (("common", "0.800", "0.800"),)


def without_bytes(run_dir: Path) -> Path:
    rows = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    write_lines(run_dir / "ledger.jsonl", [{**row, "bytes_down": 0, "bytes_up": 0} for row in rows])
    return run_dir


def test_a_local_run_says_that_nothing_travels(tmp_path: Path) -> None:
    config = {**run_config(5), "aggregator": {"name": "local"}}
    text = page_of(without_bytes(write_run(tmp_path / "run", config=config, overlays=False)))
    assert "Every hospital fine-tunes a model of its own (local-only)." in text
    assert "Nothing was sent: every hospital trained on its own." in text
    assert "Test Dice against optimizer steps." in text
    assert "Test Dice against bytes sent." not in text


def test_a_pooled_run_is_of_hospitals_that_are_only_scored(tmp_path: Path) -> None:
    """The one hospital that trains is in the ledger, and neither a row of the scores nor a part of their mean."""
    run_dir = write_run(tmp_path / "run", config={**run_config(5), "pooled": True}, overlays=False)
    rows = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    alone = [{**row, "hospital": "pooled"} for row in rows if row["hospital"] == "hospital-01"]
    write_lines(run_dir / "ledger.jsonl", alone)
    text = page_of(run_dir)
    tiles = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", text))
    assert (tiles["Mean test Dice"], tiles["Sent"]) == ("0.697", "nothing")
    assert "cases of 3 hospitals together" in text
    assert "Nothing travels: one model is trained where the cases of all hospitals are." in text
    assert [row[0] for row in score_table(RunRecords.load(run_dir)).rows] == [
        "hospital-01", "hospital-02", "hospital-03",
    ]  # fmt: skip
    assert text.count('<th scope="row">pooled</th>') == 1  # in the ledger


def test_a_run_without_rounds_is_the_model_as_it_is(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=0, config={**run_config(0), "rounds": 0}, overlays=False)
    for name in ("ledger", "timing"):
        (run_dir / f"{name}.jsonl").unlink()
    text = page_of(run_dir)
    assert "The model before any training (zero-shot), scored at every hospital." in text
    assert "Nothing is sent: the run has no rounds." in text
    assert "No hospital trains: the run has no rounds." in text
    assert "not finished" not in text
    assert "Dice against costs" not in text


def test_a_held_run_says_that_its_test_volumes_wait(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", state="held", overlays=False)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    held = [{**row, "split": "validation"} if row["split"] == "test" else row for row in rows]
    write_lines(run_dir / "metrics.jsonl", held)
    text = page_of(run_dir)
    assert "All rounds are done. The test volumes are not scored yet: they wait for the selection." in text
    assert text.count("held back until the selection") == 2
    assert "not finished" not in text
    assert "Validation volumes after round 5." in text
    assert "Validation Dice against bytes sent." in text


def test_hashes_of_what_was_drawn_are_folded(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=1, overlays=False)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["common_numbers"] = {"cohorts": {"": {"drawn": ["0a1b"]}}}
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    folded = page_of(run_dir).partition("What was drawn at random, as hashes</summary>")[2]
    assert "0a1b" in folded


def test_the_data_of_the_page_as_files(run: Path, tmp_path: Path) -> None:
    before = sorted(run.iterdir())
    write_report(run, out=tmp_path / "page.html", export_to=tmp_path / "data")
    assert sorted(run.iterdir()) == before
    found = {str(path.relative_to(tmp_path / "data")) for path in (tmp_path / "data").rglob("*.*")}
    names = ("costs", "hours", "ledger", "rounds", "scores", "timing")
    drawings = ("aggregate-energy_kept", "aggregate-rank", "aggregate-update_norm", "bytes", "bytes-sum", "dice-bytes",
                "dice-steps", "dice-test", "dice-time", "loss", "sites")  # fmt: skip
    assert found == {
        "report.json", "scores.csv", "volumes.csv",
        *(f"tables/{name}.{ending}" for name in names for ending in ("md", "tex", "csv")),
        *(f"figures/{name}.svg" for name in drawings),
    }  # fmt: skip
    svg = (tmp_path / "data" / "figures" / "dice-test.svg").read_text()
    assert "hospital-02" in svg  # a file has no page that explains its marks


def test_the_command_exports(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, data = tmp_path / "page.html", tmp_path / "data"
    assert main(["report", str(run), "--no-images", "--out", str(page), "--export", str(data)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert {path.name for path in data.iterdir()} == {"figures", "report.json", "scores.csv", "tables", "volumes.csv"}
