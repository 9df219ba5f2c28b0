"""The numbers of a run as JSON and CSV, for other programs. Needs no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..files import write_json, write_text
from ..results import UNSEEN, CaseRow, FinalScores, RunRecords
from .run_curves import cost_curve

SPLITS = ("test", "validation", UNSEEN)


def write_numbers(folder: Path, records: RunRecords) -> list[Path]:
    """Writes ``report.json``, ``scores.csv`` and ``volumes.csv``; empty cells and null are undefined values.

    Args:
        folder: Where to; made where it is missing.
        records: The run.

    Returns:
        The files written.
    """
    paths = [folder / name for name in ("report.json", "scores.csv", "volumes.csv")]
    write_json(paths[0], report_numbers(records))
    write_text(paths[1], _csv(_score_header(records.classes), _score_rows(records)))
    header = [item.name for item in fields(CaseRow)]
    write_text(paths[2], _csv(header, ([getattr(row, name) for name in header] for row in records.cases)))
    return paths


def report_numbers(records: RunRecords) -> dict[str, Any]:
    """What ``report.json`` holds: the summary, the scores at the last evaluation of each split, and the courses."""
    split, costs = cost_curve(records)
    return {
        "experiment": records.manifest.get("experiment"),
        "id": records.manifest.get("id"),
        "state": records.manifest.get("state"),
        "rounds": records.rounds,
        "summary": records.summary,
        "scores": {
            name: {"round": last, "hospitals": [asdict(score) for score in records.final(name)]}
            for name in SPLITS
            if (last := records.last_evaluation(name)) is not None
        },
        "cross_site": records.cross_site(),
        "curves": {
            **{f"{name} dice": records.series("dice", name) for name in SPLITS},
            "train loss": records.series("loss", "train"),
        },
        "costs": {"split": split, "rounds": [asdict(point) for point in costs]},
        "bytes": [
            {"round": number, "down": down, "up": up} for number, (down, up) in records.bytes_per_round().items()
        ],
    }


def _score_header(classes: Sequence[str]) -> list[str]:
    scalars = [item.name for item in fields(FinalScores) if item.name not in ("hospital", "per_class")]
    return ["split", "round", "hospital", *(f"dice/{name}" for name in classes), *scalars]


def _score_rows(records: RunRecords) -> Iterable[list[Any]]:
    for split in SPLITS:
        last = records.last_evaluation(split)
        for score in records.final(split) if last is not None else ():
            values = asdict(score) | {f"dice/{name}": score.per_class[name] for name in records.classes}
            yield [split, last, *(values[name] for name in _score_header(records.classes)[2:])]


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
