"""Scores of validation volumes, site by site and across sites; the final table is tested with the page of a run."""

from __future__ import annotations

import json
from pathlib import Path

from made_runs import write_lines, write_run

from wardround.simulator.reports.run_scores import cross_site_section, scores_section, validation_table
from wardround.simulator.results import RunRecords


def with_across(run_dir: Path) -> RunRecords:
    """Made-up scores of every model at the two other hospitals; those at home are in cases.jsonl."""
    names = ["hospital-01", "hospital-02", "hospital-03"]
    rows = [
        {"round": 5, "trained_at": trained, "hospital": site, "split": "test", "case": f"{site}_case_0",
         "metric": "dice", "value": value}
        for trained, value in zip(names, (0.1, 0.9, 0.2), strict=True)
        for site in names
        if site != trained
    ]  # fmt: skip
    write_lines(run_dir / "across.jsonl", rows)
    return RunRecords.load(run_dir)


def test_across_sites(tmp_path: Path) -> None:
    """At home: kidney after round 5, 0.8300 - 0.009 k (both of a hospital's cases); elsewhere what is made up here.

    hospital-02: (0.9 + 0.8200 + 0.9) / 3 = 0.873.
    """
    section = cross_site_section(with_across(write_run(tmp_path / "run", overlays=False)))
    assert section is not None
    table = section.tables["across"]
    assert table.header == ("trained at", "hospital-01", "hospital-02", "hospital-03", "mean")
    assert [row[0] for row in table.rows] == ["hospital-01", "hospital-02", "hospital-03"]
    assert table.rows[1] == ("hospital-02", "0.900", "0.820", "0.900", "0.873")
    assert "Best single site: hospital-02, chosen on test volumes of all hospitals." in section.body
    assert "from 0.10 to 0.90." in section.body
    assert list(section.drawings) == ["across"]


def test_models_that_stayed_at_home_have_no_such_section(tmp_path: Path) -> None:
    assert cross_site_section(RunRecords.load(write_run(tmp_path / "run", overlays=False))) is None


def test_the_sites_as_a_heat_map(tmp_path: Path) -> None:
    """hospital-01 of two: Dice 0.83, 0.581, mean 0.7055; surface Dice 0.8, and none for its tumour."""
    section = scores_section(RunRecords.load(write_run(tmp_path / "run", hospitals=2, overlays=False)))
    drawn = section.drawings["sites"]
    assert all(f">{text}</text>" in drawn for text in ("0.83", "0.58", "0.71", "0.80", "–", "hospital-02"))
    alone = scores_section(RunRecords.load(write_run(tmp_path / "alone", hospitals=1, overlays=False)))
    assert not alone.drawings


def test_validation_volumes_have_a_table_of_their_own(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", overlays=False)
    assert validation_table(RunRecords.load(run_dir)) is None
    for name in ("metrics", "cases"):
        rows = [json.loads(line) for line in (run_dir / f"{name}.jsonl").read_text().splitlines()]
        write_lines(run_dir / f"{name}.jsonl", [*rows, *({**row, "split": "validation"} for row in rows)])
    table = validation_table(RunRecords.load(run_dir))
    assert table is not None
    assert table.rows[0] == ("hospital-01", "2", "0.830", "0.581", "0.706")
    assert table.footer == (("mean", "", "0.820", "0.574", "0.697"),)
    assert table.note == "Validation volumes after round 5."
