"""The page of a sweep."""

from __future__ import annotations

from pathlib import Path

from . import files
from .report_page import Section, Table, number_text, page, tag
from .results import mean
from .sweep_records import SweepRecords


def write_sweep_report(records: SweepRecords, *, images: bool = True, out: Path | None = None) -> Path:
    """Writes one self-contained HTML page about a sweep, finished or not.

    Args:
        records: The sweep.
        images: Whether slices of the hospitals' test volumes may be on the page.
        out: The file to write; None: ``report.html`` in the sweep's folder.

    Returns:
        The file written.
    """
    path = records.path / "report.html" if out is None else out
    rows = tuple(
        (cell.key, cell.state, number_text(mean(s.dice for s in cell.records.final()) if cell.records else None))
        for cell in records.cells
    )
    table = Table(header=("run", "state", "Dice"), rows=rows)
    section = Section(title="Runs", body=table.html())
    files.write_text(path, page(title=records.name, head=tag("h1", records.name), sections=[section]))
    return path
