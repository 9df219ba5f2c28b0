"""What the variants of a sweep send and compute, and their course over the rounds, read from ledgers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..results import COMMON, RunRecords, mean_series
from .records import VariantRecord

FLOAT32_BYTES = 4
"""What a number takes on the wire."""

_Point = tuple[float, int, int]
"""Score, bytes so far, steps so far."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a variant sends and computes, the mean over its seeds.

    Nothing travels for ``pooled``: there the cases do, before the first round.

    Args:
        parameters_up: Numbers in float32 (four bytes) that a hospital sends in a round in which it does not drop out,
            the mean over hospitals and rounds. Compression, for instance, makes it smaller than what trains.
        bytes_up: Bytes of all updates of a run.
        bytes_down: Bytes of all broadcasts of a run.
        hours_10: Hours in which a hospital, the mean one of those that took part, sends and receives its part of a run
            at 10 Mbit/s.
        hours_100: The same at 100 Mbit/s.
        steps: Optimizer steps of all hospitals.
        paper_overhead: FLAP-SAM's column: 32 P rounds / 2^30, with P = ``parameters_up``.
    """

    parameters_up: float
    bytes_up: float
    bytes_down: float
    hours_10: float
    hours_100: float
    steps: float
    paper_overhead: float


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The test score after a round, the mean over hospitals and seeds, with the lowest and highest seed.

    ``bytes`` (both directions) and ``steps`` are sums over the hospitals up to this round. A course is there to be
    looked at: nothing is chosen by it.
    """

    round: int
    bytes: float
    steps: float
    mean: float
    low: float
    high: float


def cost(variant: VariantRecord) -> Cost | None:
    """The mean over a variant's finished runs; None without."""
    each = [_cost_of(cell.measured, travels=variant.role != "pooled") for cell in variant.finished]
    if not each:
        return None
    names = [item.name for item in fields(Cost)]
    return Cost(**{name: sum(getattr(cost, name) for cost in each) / len(each) for name in names})


def _cost_of(records: RunRecords, *, travels: bool) -> Cost:
    sent = [row.bytes_up for row in records.ledger if row.status == "ok"]
    hospitals = len({row.hospital for row in records.ledger})
    rounds = max((row.round for row in records.ledger), default=0)
    numbers = sum(sent) / len(sent) / FLOAT32_BYTES if sent and travels else 0.0
    up, down = (float(records.bytes_up), float(records.bytes_down)) if travels else (0.0, 0.0)
    each = (up + down) / hospitals if hospitals else 0.0
    return Cost(
        parameters_up=numbers,
        bytes_up=up,
        bytes_down=down,
        hours_10=link_hours(each, 10),
        hours_100=link_hours(each, 100),
        steps=float(sum(row.steps for row in records.ledger)),
        paper_overhead=32 * numbers * rounds / 2**30,
    )


def link_hours(size: float, megabits: float) -> float:
    """Hours that some bytes take over a link of so many decimal megabits per second.

    Example:
        >>> link_hours(4.5e9, 10)
        1.0
    """
    return 8 * size / (megabits * 1e6) / 3600


def curve(variant: VariantRecord) -> tuple[CurvePoint, ...]:
    """The rounds that all finished runs of a variant have a test score of."""
    courses = [_course(cell.measured, travels=variant.role != "pooled") for cell in variant.finished]
    if not courses:
        return ()
    numbers = set.intersection(*(set(course) for course in courses))
    return tuple(_point(number, [course[number] for course in courses]) for number in sorted(numbers))


def _course(records: RunRecords, *, travels: bool) -> dict[int, _Point]:
    """Per scored round; nothing where hospitals stay alone and have a common test set, which no model of theirs saw."""
    series = records.series(records.headline.key, "test")
    if records.stays_alone:
        series.pop(COMMON, None)
    return {number: _at(records, number, score, travels) for number, score in mean_series(series) if score is not None}


def _at(records: RunRecords, number: int, score: float, travels: bool) -> _Point:
    rows = [row for row in records.ledger if row.round <= number]
    sent = sum(row.bytes_down + row.bytes_up for row in rows) if travels else 0
    return score, sent, sum(row.steps for row in rows)


def _point(number: int, found: Sequence[_Point]) -> CurvePoint:
    scores = [one for one, _, _ in found]
    return CurvePoint(
        round=number,
        bytes=sum(sent for _, sent, _ in found) / len(found),
        steps=sum(steps for _, _, steps in found) / len(found),
        mean=sum(scores) / len(scores),
        low=min(scores),
        high=max(scores),
    )
