"""The numbers of a run as JSON and CSV, for other programs. Needs no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..files import write_json, write_text
from ..headline import Headline, OtherScore
from ..results import UNSEEN, CaseRow, FinalScores, RunRecords
from .run_curves import cost_curve

SPLITS = ("test", "validation", UNSEEN)


def write_numbers(folder: Path, records: RunRecords) -> list[Path]:
    """Writes ``report.json``, ``scores.csv`` and ``volumes.csv`` (or ``images.csv``).

    Empty cells and null are undefined values.

    Args:
        folder: Where to; made where it is missing.
        records: The run.

    Returns:
        The files written.
    """
    paths = [folder / name for name in ("report.json", "scores.csv", f"{records.headline.cases}.csv")]
    write_json(paths[0], report_numbers(records))
    write_text(paths[1], _csv(_score_header(records), _score_rows(records)))
    header = [item.name for item in fields(CaseRow)]
    write_text(paths[2], _csv(header, ([getattr(row, name) for name in header] for row in records.cases)))
    return paths


def report_numbers(records: RunRecords) -> dict[str, Any]:
    """What ``report.json`` holds: the summary, the scores at the last evaluation of each split, and the courses."""
    split, costs = cost_curve(records)
    headline = records.headline
    return {
        "experiment": records.manifest.get("experiment"),
        "id": records.manifest.get("id"),
        "state": records.manifest.get("state"),
        "rounds": records.rounds,
        "summary": records.summary,
        "scores": {
            name: {"round": last, **_scores(records, name)}
            for name in SPLITS
            if (last := records.last_evaluation(name)) is not None
        },
        "cross_site": records.cross_site(),
        "curves": {
            **{f"{name} {headline.key}": records.series(headline.key, name) for name in SPLITS},
            "train loss": records.series("loss", "train"),
        },
        "costs": {"split": split, "rounds": [_named(asdict(point), headline) for point in costs]},
        "bytes": [
            {"round": number, "down": down, "up": up} for number, (down, up) in records.bytes_per_round().items()
        ],
    }


def _scores(records: RunRecords, split: str) -> dict[str, Any]:
    """The scores of a split: per hospital, and over the cases of all in one heap where there are such."""
    together = records.together(split)
    heap = {} if together is None else {"together": _plain(together, records.headline)}
    return {"hospitals": [_plain(score, records.headline) for score in records.final(split)], **heap}


def _plain(score: FinalScores, headline: Headline) -> dict[str, Any]:
    """The scores of a hospital, by their names in JSON."""
    plain: dict[str, Any] = {"hospital": score.hospital}
    for name, value in _scalars(headline).items():
        plain[name] = value(score)
        if name == headline.key:
            plain["per_class"] = dict(score.per_class)
    return plain


def _scalars(headline: Headline) -> dict[str, Callable[[FinalScores], Any]]:
    """What there is one number of, by its name in the files; images that a hospital trains on are ``train_images``."""
    same = headline.examples == headline.cases
    found: dict[str, Callable[[FinalScores], Any]] = {
        f"train_{headline.examples}" if same else headline.examples: lambda score: score.examples,
        headline.cases: lambda score: score.cases,
        headline.key: lambda score: score.score,
    }
    for other in headline.others:
        found |= _other_scalars(other)
    return {**found, "bytes_down": lambda score: score.bytes_down, "bytes_up": lambda score: score.bytes_up}


def _other_scalars(other: OtherScore) -> dict[str, Callable[[FinalScores], Any]]:
    scalars: dict[str, Callable[[FinalScores], Any]] = {other.key: lambda score: score.others[other.key]}
    if other.undefined_key:
        scalars[other.undefined_key] = lambda score: score.undefined[other.key]
    return scalars


def _named(point: dict[str, Any], headline: Headline) -> dict[str, Any]:
    return {headline.key if name == "score" else name: value for name, value in point.items()}


def _score_header(records: RunRecords) -> list[str]:
    classes = (f"{records.headline.class_key}/{name}" for name in records.classes)
    return ["split", "round", "hospital", *classes, *_scalars(records.headline)]


def _score_rows(records: RunRecords) -> Iterable[list[Any]]:
    """A row per split and hospital; last in a split the cases of all in one heap, where there are such scores."""
    scalars = _scalars(records.headline).values()
    for split in SPLITS:
        last, together = records.last_evaluation(split), records.together(split)
        scores = [] if last is None else [*records.final(split), *([] if together is None else [together])]
        for score in scores:
            yield [split, last, score.hospital, *score.per_class.values(), *(value(score) for value in scalars)]


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
