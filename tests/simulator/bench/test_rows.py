"""Columns, CSV and tables."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from wardround.simulator.bench.rows import COLUMNS, SECTIONS, Row, Spread, comparisons, table, text, write_csv

FULL = Row(
    section="engines",
    engine="ours",
    cohort="sequential",
    hospitals=6,
    method="flap_sam",
    model="tiny",
    batch_size=8,
    steps=5,
    images_per_second=1234.5678,
    ratio_to_bare=1.02,
    ratio_low=0.98,
    ratio_high=1.1,
    engine_ms_per_hospital=0.512,
    engine_fraction=0.0123,
    dice_or_loss=0.721706,
)


def test_every_column_is_explained() -> None:
    explained = (Row.__doc__ or "").split("Args:")[1]
    assert [name for name in COLUMNS if f"\n        {name}: " not in explained] == []


def test_the_csv_holds_every_column_of_every_row(tmp_path: Path) -> None:
    write_csv(tmp_path / "bench.csv", [FULL, Row(section="memory", engine="host", slope=1.25)])
    with (tmp_path / "bench.csv").open() as file:
        first, second = csv.DictReader(file)
    assert tuple(first) == COLUMNS
    assert (first["images_per_second"], first["dice_or_loss"], first["slope"]) == ("1234.57", "0.721706", "")
    assert (second["section"], second["slope"], second["dice_or_loss"]) == ("memory", "1.25", "")


def test_a_table_shows_what_there_is() -> None:
    found = table("engines", [FULL, replace(FULL, engine="bare", cohort=None)])
    assert found is not None
    assert found.header[:5] == ("engine", "cohort", "K", "method", "model")
    assert found.rows[0][5:] == ("1234.6", "1.020", "0.980", "1.100", "0.51", "1.23%", "0.721706")
    assert found.rows[1][:2] == ("bare", "-")
    assert table("memory", [FULL]) is None


def test_what_is_printed_fits_into_100_columns() -> None:
    numbers = {name: 123456 for name in COLUMNS if name.endswith(("_ms", "_mb"))}
    rows = [replace(FULL, section=section, **numbers) for section in SECTIONS if section != "resources"]
    printed = text(rows, 100)
    assert max(map(len, printed.splitlines())) <= 100
    assert all(shown.title in printed for shown in SECTIONS.values())


def test_engines_are_set_beside_ours_by_their_ratios_to_the_bare_loop() -> None:
    """1.53 / 1.02 = 1.5; the row of another model has none of ours to stand beside."""
    naive = replace(FULL, engine="naive", ratio_to_bare=1.53)
    rows = [FULL, naive, replace(naive, model="mini"), replace(FULL, engine="bare")]
    assert comparisons(rows) == ["  naive takes 1.50 times as long (flap_sam, tiny, 6 hospitals, 5 steps of batch 8)"]


def test_rows_without_numbers_are_listed_with_their_reason() -> None:
    failed = Row(section="engines", engine="flower", hospitals=6, error="pip install 'wardround[flower]'")
    printed = text([FULL, failed])
    assert printed.endswith("Without numbers\n\n  engines flower 6 hospitals: pip install 'wardround[flower]'")
    assert "flower" not in printed.split("Without numbers")[0]


def test_a_row_reads_what_it_knows() -> None:
    assert Row.read({"section": "a", "engine": "b", "dice_or_loss": 1.0, "other": 2}) == Row(
        section="a", engine="b", dice_or_loss=1.0
    )
    with pytest.raises(TypeError):
        Row(section="a", engine="b", other=2)  # type: ignore[call-arg]


def test_the_spread_is_median_lowest_and_highest() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0]) == Spread(median=2.5, low=1.0, high=4.0)
