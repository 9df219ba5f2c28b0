"""Dice against what it cost, and how long a hospital's bytes take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import run_config, write_lines, write_run

from wardround.simulator.reports.run_curves import cost_curve, cost_section, hours_table
from wardround.simulator.results import RunRecords
from wardround.simulator.sweeps.costs import link_hours


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "three", overlays=False)


def test_what_a_round_took_is_all_that_came_before_it(run: Path) -> None:
    """Three hospitals, 1.2 MB down and 1 MB up and 3 steps each; hospital-02 sends and steps nothing in rounds 2 and 3.

    After round 3: 9 x 1.2 + 7 x 1 = 17.8 MB, 21 steps, 3 x 8.7 s. Dice: 0.85 (0.9 (1 - 0.6^3) - 0.01 k), rounded to
    four digits as made_runs does: kidney 0.7056, 0.6956, 0.6856, and 0.7 of it for the tumour.
    """
    split, points = cost_curve(RunRecords.load(run))
    assert split == "test"
    assert [point.round for point in points] == [0, 1, 2, 3, 4, 5]
    assert (points[0].bytes, points[0].steps, points[0].seconds) == (0, 0, 0)
    third = points[3]
    assert (third.bytes, third.steps) == (17_800_000, 21)
    assert third.seconds == pytest.approx(26.1)
    assert third.score == pytest.approx(0.85 * 0.6956, abs=1e-4)
    assert (third.lowest, third.highest) == pytest.approx((0.85 * 0.6856, 0.85 * 0.7056), abs=1e-4)


def test_validation_stands_in_where_test_volumes_are_scored_once(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", overlays=False)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    scores = [row for row in rows if row["metric"] == "dice"]
    last = [row for row in scores if row["round"] == 5]
    write_lines(run_dir / "metrics.jsonl", [*({**row, "split": "validation"} for row in scores), *last])
    split, points = cost_curve(RunRecords.load(run_dir))
    assert (split, len(points)) == ("validation", 6)


def test_wall_time_is_left_out_where_a_round_is_missing(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", overlays=False)
    lines = (run_dir / "timing.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "timing.jsonl").write_text("".join([lines[0], *lines[2:]]))
    _, points = cost_curve(RunRecords.load(run_dir))
    assert [point.seconds for point in points] == [0, pytest.approx(8.7), None, None, None, None]


def test_nothing_travels_where_all_cases_are_in_one_place(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", config={**run_config(5), "pooled": True}, overlays=False)
    records = RunRecords.load(run_dir)
    assert {point.bytes for point in cost_curve(records)[1]} == {None}
    section = cost_section(records)
    assert section is not None
    assert list(section.drawings) == ["dice-steps", "dice-time"]


def test_one_scored_round_is_no_course(tmp_path: Path) -> None:
    assert cost_section(RunRecords.load(write_run(tmp_path / "run", rounds=0, overlays=False))) is None


def test_hours_of_the_mean_hospital(run: Path) -> None:
    """Down 5 x 1.2 = 6 MB each; up (5 + 3 + 5) / 3 MB: 8 x 6e6 / 1e7 / 3600 = 0.00133 h at 10 Mbit/s."""
    table = hours_table(RunRecords.load(run))
    assert table.rows == (
        ("10 Mbit/s", "0.00133", "0.000963", "0.0023"),
        ("100 Mbit/s", "0.000133", "9.63e-05", "0.00023"),
    )
    assert table.note.startswith("The mean hospital over the run: 6.00 MB down, 4.33 MB up.")
    assert link_hours(4.5e9, 10) == 1.0
