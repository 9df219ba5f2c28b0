"""The page of a sweep, from sweeps that tests/helpers/sweeps.py makes up: what is on it, and that it is sound."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from outline import Outline
from sweeps import MadeUp, make_sweep, write_sweep

from wardround.simulator.config import build_experiment, identity, load_experiment
from wardround.simulator.experiments import open_file
from wardround.simulator.reports.sweep import View, sweep_sections, verdict_tile, write_sweep_report
from wardround.simulator.reports.sweep_tables import ranked, ranking_table, selection_table, unseen_table
from wardround.simulator.sweeps.commands import commands
from wardround.simulator.sweeps.numeric import numeric_settings
from wardround.simulator.sweeps.plan import make_plan
from wardround.simulator.sweeps.records import SweepRecords, VariantRecord
from wardround.simulator.sweeps.results import analyse

SMALL = MadeUp(seeds=(0, 1), volumes=3, rounds=2)


def page_of(records: SweepRecords, **options: Any) -> str:
    return write_sweep_report(records, **options).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> SweepRecords:
    """Three variants, three references, all finished, on disk."""
    made = make_sweep(tmp_path_factory.mktemp("runs"), SMALL)
    write_sweep(made)
    for cell in made.cells:
        (cell.path / "report.html").write_text("a run")
    return made


@pytest.fixture(scope="module")
def html(records: SweepRecords) -> str:
    return page_of(records)


def along_rank(records: SweepRecords, ranks: dict[str, int]) -> SweepRecords:
    """The same sweep, its variants at points of a grid over the rank."""

    def ranked_variant(variant: VariantRecord) -> VariantRecord:
        if variant.name not in ranks:
            return variant
        lora = {"lora": {"rank": ranks[variant.name]}}
        cells = [
            replace(cell, records=replace(cell.measured, config={**cell.measured.config, "method": lora}))
            for cell in variant.cells
        ]
        return replace(variant, settings={"method": lora}, cells=tuple(cells))

    return replace(records, variants=tuple(map(ranked_variant, records.variants)))


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_fetches_nothing(html: str) -> None:
    outline = Outline(html)
    assert not {name for name, _ in outline.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert all(value.startswith("data:") for value in outline.values("src"))
    assert not any("//" in value for value in outline.values("href"))


def test_ids_are_unique_and_links_lead_somewhere(html: str, records: SweepRecords) -> None:
    outline = Outline(html)
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    targets = [value for name in ("href", "xlink:href") for value in outline.values(name)]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    pages = [target for target in targets if not target.startswith("#")]
    assert len(pages) == len(records.cells)
    assert all((records.path / target).is_file() for target in pages)


def test_every_picture_has_a_text_alternative_with_numbers(html: str) -> None:
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', html)
    assert len(labels) == html.count("<svg ")
    assert all(re.search(r"\d", label) for label in labels)


def test_the_same_records_give_the_same_bytes(records: SweepRecords, html: str) -> None:
    assert page_of(records) == html


def test_what_is_compared_is_there(html: str) -> None:
    sections = re.findall(r'<section id="([^"]*)"', html)
    assert sections == [
        "ranking", "dice-against-cost", "round-by-round", "site-by-site", "local-models-elsewhere", "slices",
        "communication-and-work", "runs", "manifest", "to-repeat-it",
    ]  # fmt: skip
    assert "Numbers that nobody measured." in html


def test_numbers_tables_and_pictures_are_files_too(records: SweepRecords, html: str) -> None:
    results = json.loads((records.path / "results.json").read_text())
    assert "seconds" not in json.dumps(results)
    assert (records.path / "variants.csv").read_text().startswith("variant,role,")
    assert len((records.path / "volumes.csv").read_text().splitlines()) > 100
    assert {path.suffix for path in (records.path / "tables").iterdir()} == {".md", ".tex", ".csv"}
    drawn = {path.stem for path in (records.path / "figures").glob("*.svg")}
    assert {"differences", "gains", "dice-bytes", "course-rounds", "sites", "sites-difference", "across"} <= drawn


def test_another_place_gets_the_page_alone(records: SweepRecords, tmp_path: Path) -> None:
    write_sweep_report(records, out=tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_pictures_of_patients_are_left_out_on_request(records: SweepRecords) -> None:
    assert "left out of this page on request" in page_of(records, images=False)


# ---- the verdict and the ranking -------------------------------------------------------------------------------------


def test_the_best_variant_is_named_with_its_interval(records: SweepRecords) -> None:
    """flap_sam is made 0.04 better than fedavg, with noise of 0.01."""
    value, remark = verdict_tile(analyse(records))
    assert "flap_sam" in value
    assert re.match(r"\+0\.0\d\d \[\+0\.0\d\d, \+0\.0\d\d\] Dice to fedavg", remark)


def test_no_difference_is_claimed_where_the_interval_holds_zero(tmp_path: Path) -> None:
    made = make_sweep(tmp_path, replace(SMALL, variants={"fedavg": 0.0, "fedprox": 0.004}, noise=0.03))
    results = analyse(made)
    first = ranked(results)[0]
    assert first.effect is not None  # what the test rests on: another than the baseline leads, within chance
    assert not first.effect.told
    assert "no difference can be told" in verdict_tile(results)[0]


def test_a_baseline_above_all_others_is_the_best(tmp_path: Path) -> None:
    made = make_sweep(tmp_path, replace(SMALL, variants={"fedavg": 0.0, "worse": -0.1}))
    value, remark = verdict_tile(analyse(made))
    assert "fedavg" in value
    assert "all others are below it" in remark


def test_the_ranking_goes_from_the_highest_dice_to_the_lowest(records: SweepRecords) -> None:
    results = analyse(records)
    assert ranked(results)[0].name == "flap_sam"
    table = ranking_table(results)
    assert [row[1] for row in table.rows] == sorted((row[1] for row in table.rows), reverse=True)
    assert [row[0] for row in table.footer] == ["local only", "pooled", "zero-shot", "best single site"][
        : len(table.footer)
    ]
    assert sum(row[0].endswith("(baseline)") for row in table.rows) == 1


# ---- unfinished and odd sweeps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        MadeUp(states={f"{v}, seed 0": "missing" for v in ("a", "b", "local")}, variants={"a": 0, "b": 0},
               seeds=(0,), references=("local",)),
        MadeUp(variants={"a": 0.0}, seeds=(0,), references=(), sites=("Basel",), volumes=1, rounds=1),
        MadeUp(variants={"a": 0.0, "b": 0.0}, seeds=(0,), states={"a, seed 0": "failed"}, rounds=1, volumes=1),
        MadeUp(variants={"a": 0.0, "b": 0.0}, seeds=(0,), states={"b, seed 0": "running"}, rounds=1, volumes=1),
    ],
    ids=["nothing", "one of everything", "no baseline", "running"],
)  # fmt: skip
def test_every_sweep_has_a_sound_page(tmp_path: Path, made: MadeUp) -> None:
    html = page_of(make_sweep(tmp_path, made))
    assert Outline(html).elements
    assert "nan" not in re.sub(r"<[^>]*>", "", html).lower()


def test_unfinished_runs_and_their_errors_are_said_at_the_top_and_in_the_list(tmp_path: Path) -> None:
    states = {"flap_sam, seed 1": "failed", "fedprox, seed 0": "missing"}
    html = page_of(make_sweep(tmp_path, replace(SMALL, states=states)))
    assert "This sweep is not finished: 2 runs of 12" in html
    assert "ValueError: loss is not finite" in html


def test_runs_of_different_code_are_said_at_the_top(tmp_path: Path) -> None:
    html = page_of(make_sweep(tmp_path, replace(SMALL, code={"flap_sam": "other"})))
    assert "code" in html[html.index('class="banner"') : html.index('class="tiles"')]
    assert "other (2 runs)" in html


def test_names_are_text(tmp_path: Path) -> None:
    names = {"fed<i>avg": 0.0, "b $a_b$": 0.02}
    html = page_of(make_sweep(tmp_path, replace(SMALL, variants=names, sites=("<script>x</script>", "Zürich"))))
    assert "<i>" not in html
    assert "<script" not in html


def test_many_variants_have_a_legend_and_many_sites_quantiles(tmp_path: Path) -> None:
    sites = tuple(f"hospital-{number:02d}" for number in range(17))
    made = MadeUp(variants={f"v{n}": 0.01 * n for n in range(9)}, sites=sites, volumes=1, seeds=(0,), rounds=1)
    view_records = make_sweep(tmp_path, made)
    view = View(records=view_records, results=analyse(view_records), folder=tmp_path)
    sections = {section.title: section for section in sweep_sections(view, images=False)}
    assert 'class="legend"' in sections["Dice against cost"].body
    assert "v8" in sections["Dice against cost"].drawings["dice-bytes"]  # the file has the legend in it
    assert "quantiles over 17 sites" in sections["Site by site"].body
    assert len(sections["Site by site"].tables["sites"].rows) == 17
    assert sections["Local models elsewhere"].tables["across"].header[1:] == (
        "at home", "elsewhere, mean", "elsewhere, worst",
    )  # fmt: skip


# ---- selection, settings, unseen sites -------------------------------------------------------------------------------


def test_the_selection_says_what_was_tried_and_marks_what_was_chosen(tmp_path: Path) -> None:
    made = make_sweep(tmp_path, replace(SMALL, select=(1e-4, 1e-3, 1e-2)))
    table = selection_table(made, analyse(made), "lr")
    assert table is not None
    assert table.header[:4] == ("variant", "lr 0.0001", "lr 0.001", "lr 0.01")
    assert all(row[2].endswith(" *") and row[4] == "0.001" and row[-1] == "6" for row in table.rows)
    assert "Selection" in page_of(made)


def test_a_setting_that_is_a_number_gets_a_section(tmp_path: Path) -> None:
    names = ("flap_sam, rank=1", "flap_sam, rank=2", "flap_sam, rank=8", "fedavg, rank=1", "fedavg, rank=8")
    made = make_sweep(tmp_path, replace(SMALL, variants=dict.fromkeys(names, 0.0)))
    made = along_rank(made, {name: int(name.rpartition("=")[2]) for name in names})
    (setting,) = numeric_settings(made)
    assert setting.path == "method.lora.rank"
    # by rank alone: nothing else in these runs differs, so that they are one line
    assert [number for number, _ in next(iter(setting.lines.values()))] == [1.0, 1.0, 2.0, 8.0, 8.0]
    html = page_of(made)
    assert 'id="along-rank"' in html


def test_variants_that_differ_elsewhere_are_lines_of_their_own(tmp_path: Path) -> None:
    names = {"a, rank=1": 1, "a, rank=2": 2, "b, rank=1": 1, "b, rank=2": 2}
    made = along_rank(make_sweep(tmp_path, replace(SMALL, variants=dict.fromkeys(names, 0.0))), names)
    variants = [
        replace(v, settings={**v.settings, "aggregator": v.name[0]}, cells=tuple(
            replace(c, records=replace(c.measured, config={**c.measured.config, "aggregator": {"name": v.name[0]}}))
            for c in v.cells
        ))
        if v.role == "variant" else v
        for v in made.variants
    ]  # fmt: skip
    (setting,) = numeric_settings(replace(made, variants=tuple(variants)))
    assert dict(setting.lines) == {
        "a": ((1.0, "a, rank=1"), (2.0, "a, rank=2")),
        "b": ((1.0, "b, rank=1"), (2.0, "b, rank=2")),
    }


def test_sites_that_were_left_out_have_a_table(tmp_path: Path) -> None:
    variants = {"all": 0.0, "without Graz": 0.0}
    made = make_sweep(tmp_path, replace(SMALL, variants=variants, leave_out={"without Graz": ("Graz",)}))
    table = unseen_table(analyse(made))
    assert table is not None
    assert [row[:3] for row in table.rows] == [("without Graz", "Graz", "3")]
    assert table.rows[0][4].startswith("-0.")  # it is made 0.15 worse there
    assert unseen_table(analyse(make_sweep(tmp_path, SMALL))) is None


# ---- to repeat it ----------------------------------------------------------------------------------------------------


def test_the_command_of_one_run_gives_the_same_experiment(tmp_path: Path) -> None:
    """What is printed builds the experiment that the plan has, with a grid, a selected setting and ``--set``."""
    overrides = [
        'sweep.grid={"method.lora.rank": [1, 2], "method.lora.alpha": [2.0]}',
        'sweep.select={"over": "lr", "values": [0.001, 0.01]}',
        "split.validation_fraction=0.5",
        "rounds=3",
    ]
    of_sweep = [word for text in overrides for word in ("--set", text)]
    plan = make_plan("sweep-tiny", open_file(None), overrides)
    variant = plan.variants[0]
    cell = variant.cells[-1]  # the second value is the one that made-up sweeps choose
    options = {"variants": {variant.name: 0.0}, "references": (), "seeds": (cell.seed,), "select": (0.001, 0.01)}
    made = make_sweep(tmp_path, replace(SMALL, **options))
    command = shlex.join(["wardround", "sweep", "sweep-tiny", "--shard", "1/2", *of_sweep])
    cells = [
        replace(old, records=replace(old.measured, manifest={**old.measured.manifest, "command": command}))
        for old in made.variants[0].cells
    ]
    record = replace(made.variants[0], settings=json.loads(json.dumps(variant.settings)), cells=tuple(cells))
    definition = {"base": plan.sweep.base, "settings": dict(plan.sweep.settings), "select": {"over": "lr"}}
    told = commands(
        replace(made, plan={**made.plan, "sweep": "sweep-tiny", "definition": definition}, variants=(record,))
    )
    sweep, one, check = (shlex.split(line) for line in told.values())
    assert sweep == ["wardround", "sweep", "sweep-tiny", *of_sweep]
    assert check[:2] == ["wardround", "verify"]
    experiment = load_experiment(one[2], open_file(None), one[4::2])
    assert one[:3] == ["wardround", "run", "tiny"]
    assert identity(experiment) == identity(cell.experiment)
    assert identity(build_experiment("tiny", open_file(None), [])) != identity(cell.experiment)


def test_the_page_needs_no_torch(records: SweepRecords) -> None:
    code = (
        "import sys; from wardround.simulator.sweeps.records import SweepRecords\n"
        "from wardround.simulator.reports.sweep import write_sweep_report\n"
        f"write_sweep_report(SweepRecords.load({str(records.path)!r}))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
