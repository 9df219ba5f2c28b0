"""Reads a run directory into plain records: what was measured, sent, dropped and how long it took.

Everything that looks at runs (the report, sweeps, comparisons) goes through :class:`RunRecords`; nothing else parses
the files. A run that is still going is read up to its last whole line. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from . import yaml12
from .headline import POOLED_PREFIX, Headline, OtherScore, Task, headline_of

Series = dict[str, list[tuple[int, float | None]]]
"""Per hospital, ``(round, value)`` in order of rounds; None where the value is undefined."""

Status = Literal["ok", "dropped"]

SERVER = "server"
"""The key in a :data:`Series` of rows that belong to no hospital."""

COMMON = "common"
"""The name under which the common test set is scored, where hospitals have no test cases of their own."""

POOLED = "pooled"
"""The name of the one hospital of a run that trains on the cases of all."""

UNSEEN = "unseen"
"""The split of sites that do not train: they are scored with the global model and count in no mean."""


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A line of ``metrics.jsonl``; round 0 is the model before training, ``value`` None an undefined metric."""

    round: int
    hospital: str | None
    split: str | None
    metric: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """A line of ``cases.jsonl``: one metric of one volume or image."""

    round: int
    hospital: str
    split: str
    case: str
    metric: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A line of ``ledger.jsonl``: one hospital in one round. ``examples`` are its training windows or images."""

    round: int
    hospital: str
    status: Status
    bytes_down: int
    bytes_up: int
    examples: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class TimingRow:
    """A line of ``timing.jsonl``: wall-clock seconds of a round's stages."""

    round: int
    broadcast_s: float
    train_s: float
    aggregate_s: float
    evaluate_s: float
    checkpoint_s: float
    instruments_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class InstrumentRow:
    """A line of ``instruments.jsonl``: one layer in one round (:mod:`wardround.aggregators.instruments`)."""

    round: int
    name: str
    ideal_norm: float
    missed: float
    ideal_distance: float | None
    energy_kept: float | None
    effective_rank: float | None
    gauge_imbalance: float | None
    hospital_step: float
    drift: float | None
    cosine: float | None
    server_step: float
    spectrum: list[float]


@dataclass(frozen=True, kw_only=True)
class AcrossRow:
    """A line of ``across.jsonl``: a case under the model of another hospital than its own, after the last round."""

    round: int
    trained_at: str
    hospital: str
    split: str
    case: str
    metric: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class ConfusionRow:
    """A line of ``confusion.jsonl``: images of one class that were taken for one class, after the last round.

    Pairs of classes without an image have no line; hospital None: the images of all hospitals together.
    """

    round: int
    hospital: str | None
    split: str
    target: str
    predicted: str
    count: int


@dataclass(frozen=True, kw_only=True)
class FinalScores:
    """What one hospital reached at the last evaluation of a split.

    Args:
        hospital: Its name.
        examples: Its training windows or images, None before it trained.
        cases: Volumes or images scored.
        score: The mean of the headline's metric over its cases, None when undefined.
        per_class: Per class name: Dice of a segmentation, recall of a classification.
        others: The headline's other scores by metric; those of surfaces are means over the classes where they are
            defined. None when undefined.
        undefined: Per metric of ``others``, the values (cases times classes) that it leaves out.
        bytes_down: Bytes it received over the run.
        bytes_up: Bytes it sent over the run.
    """

    hospital: str
    examples: int | None
    cases: int
    score: float | None
    per_class: Mapping[str, float | None]
    others: Mapping[str, float | None]
    undefined: Mapping[str, int]
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """A run directory in memory.

    Args:
        path: The run directory.
        config: The resolved experiment.
        manifest: What ran, where, and its ``state``: ``running``, ``finished`` or ``failed``.
        summary: The final numbers, None while the run is not finished.
        metrics: Rows of ``metrics.jsonl``.
        cases: Rows of ``cases.jsonl``.
        ledger: Rows of ``ledger.jsonl``.
        timing: Rows of ``timing.jsonl``.
        instruments: Rows of ``instruments.jsonl``.
        across: Rows of ``across.jsonl``.
        confusion: Rows of ``confusion.jsonl``.
    """

    path: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any] | None = None
    metrics: Sequence[MetricRow] = field(default_factory=list)
    cases: Sequence[CaseRow] = field(default_factory=list)
    ledger: Sequence[LedgerRow] = field(default_factory=list)
    timing: Sequence[TimingRow] = field(default_factory=list)
    instruments: Sequence[InstrumentRow] = field(default_factory=list)
    across: Sequence[AcrossRow] = field(default_factory=list)
    confusion: Sequence[ConfusionRow] = field(default_factory=list)

    @classmethod
    def load(cls, run_dir: Path | str) -> Self:
        """Reads a run directory, finished or not.

        Raises:
            ValueError: Not a run directory, or a file in it is damaged (names file and line).
        """
        path = Path(run_dir)
        records = cls(
            path=path,
            config=_mapping(path / "config.yaml", yaml12.load(_required(path / "config.yaml"))),
            manifest=_read_json(_required(path / "manifest.json")),
            summary=_read_json(path / "summary.json") if (path / "summary.json").is_file() else None,
            metrics=_read_rows(path / "metrics.jsonl", MetricRow),
            cases=_read_rows(path / "cases.jsonl", CaseRow),
            ledger=_read_rows(path / "ledger.jsonl", LedgerRow),
            timing=_read_rows(path / "timing.jsonl", TimingRow),
            instruments=_read_rows(path / "instruments.jsonl", InstrumentRow),
            across=_read_rows(path / "across.jsonl", AcrossRow),
            confusion=_read_rows(path / "confusion.jsonl", ConfusionRow),
        )
        counts = {name: len(getattr(records, name)) for name in records.manifest.get("rows") or ()}
        check_rows(path, records.manifest, counts)
        return records

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return self.summary is not None and self.manifest.get("state", "finished") == "finished"

    @cached_property
    def headline(self) -> Headline:
        """What the run is judged by: ``task`` in its manifest says it; segmentation where it is absent."""
        return headline_of(self.manifest)

    @property
    def task(self) -> Task:
        """``segmentation`` or ``classification``."""
        return self.headline.task

    @cached_property
    def hospitals(self) -> tuple[str, ...]:
        """All hospitals that train or have test cases, sorted by name; ``common`` is the common test set.

        Where all cases are pooled, those that are scored: they are hospitals without traffic of their own.
        """
        named = {row.hospital for row in self.metrics if row.split != UNSEEN and row.hospital is not None}
        scored = {row.hospital for row in self.cases if row.split != UNSEEN}
        found = named | scored | {row.hospital for row in self.ledger}
        return tuple(sorted(found - {POOLED} if self.pooled else found))

    @property
    def pooled(self) -> bool:
        """Whether one model was trained on the cases of all hospitals."""
        return bool(self.config.get("pooled"))

    @property
    def members(self) -> tuple[str, ...]:
        """The hospitals that train: all but the common test set; the one that has all cases where they are pooled."""
        if self.pooled:
            return (POOLED,)
        split = self.config.get("split")
        common = isinstance(split, Mapping) and split.get("test") == COMMON
        return tuple(name for name in self.hospitals if not (common and name == COMMON))

    @property
    def stays_alone(self) -> bool:
        """Whether every hospital trains for itself. What is scored elsewhere then has the initial model."""
        aggregator = self.config.get("aggregator")
        return isinstance(aggregator, Mapping) and aggregator.get("name") == "local"

    @property
    def untrained(self) -> frozenset[str]:
        """Where the run was scored with the initial model: no hospital is there, and there is no global model."""
        foreign = {COMMON, *self.unseen} if self.stays_alone else set()
        return frozenset(foreign & {row.hospital for row in self.cases})

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        """Sites that were left out of the training, sorted by name."""
        return tuple(sorted({row.hospital for row in self.metrics if row.split == UNSEEN and row.hospital is not None}))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their rows; of a segmentation, of the foreground (label 1 first)."""
        found = (row.metric.partition("/") for row in self.metrics)
        return tuple(dict.fromkeys(name for metric, _, name in found if metric == self.headline.class_key and name))

    @cached_property
    def rounds(self) -> int:
        """The last round that left a row, 0 before the first one is over."""
        return max((row.round for rows in (self.metrics, self.ledger, self.timing) for row in rows), default=0)

    @property
    def bytes_down(self) -> int:
        """Bytes of all broadcasts."""
        return sum(row.bytes_down for row in self.ledger)

    @property
    def bytes_up(self) -> int:
        """Bytes of all updates."""
        return sum(row.bytes_up for row in self.ledger)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds: the summary's, or what the stages add up to so far."""
        if self.summary is not None and "seconds" in self.summary:
            return float(self.summary["seconds"])
        return sum(sum(stages.values()) for stages in self.timing_stages())

    def timing_stages(self) -> list[dict[str, float]]:
        """Seconds per stage name, a mapping per round."""
        stages = [item.name for item in fields(TimingRow) if item.name != "round"]
        return [{name.removesuffix("_s"): getattr(row, name) for name in stages} for row in self.timing]

    def series(self, metric: str, split: str | None = None) -> Series:
        """The course of one metric per hospital; rows of no hospital are under :data:`SERVER`."""
        course: dict[str, dict[int, float | None]] = {}
        for row in self.metrics:
            if row.metric == metric and row.split == split:
                course.setdefault(SERVER if row.hospital is None else row.hospital, {})[row.round] = row.value
        return {name: sorted(course[name].items()) for name in sorted(course)}

    def metric_names(self, prefix: str) -> list[str]:
        """Names of all metrics that start with ``prefix``, sorted."""
        return sorted({row.metric for row in self.metrics if row.metric.startswith(prefix)})

    def bytes_per_round(self) -> dict[int, tuple[int, int]]:
        """``{round: (bytes down, bytes up)}`` summed over the hospitals."""
        sent: dict[int, tuple[int, int]] = {}
        for row in sorted(self.ledger, key=lambda row: row.round):
            down, up = sent.get(row.round, (0, 0))
            sent[row.round] = (down + row.bytes_down, up + row.bytes_up)
        return sent

    def last_evaluation(self, split: str = "test") -> int | None:
        """The last round with a score of this split."""
        key = self.headline.key
        return max((row.round for row in self.metrics if row.metric == key and row.split == split), default=None)

    def final(self, split: str = "test") -> list[FinalScores]:
        """The scores of every hospital (or unseen site) at the last evaluation of a split, sorted by name."""
        last = self.last_evaluation(split)
        names = self.unseen if split == UNSEEN else self.hospitals
        values: dict[str, dict[str, float | None]] = {name: {} for name in names}
        for row in self.metrics:
            if row.round == last and row.split == split and row.hospital is not None:
                values[row.hospital][row.metric] = row.value
        scored = self._scored(split, last)
        return [self._final_of(name, scored.get(name, 0), values[name]) for name in names]

    def together(self, split: str = "test") -> FinalScores | None:
        """The scores over the cases of all hospitals in one heap; None where the run has none (``pooled/...`` rows).

        Not the mean over hospitals: here hospitals with many cases count more.
        """
        last = self.last_evaluation(split)
        values = {
            row.metric.removeprefix(POOLED_PREFIX): row.value
            for row in self.metrics
            if row.round == last
            and row.split == split
            and row.hospital is None
            and row.metric.startswith(POOLED_PREFIX)
        }
        scored = sum(self._scored(split, last).values())
        return self._final_of(f"all {self.headline.cases} together", scored, values) if values else None

    def cross_site(self) -> dict[str, dict[str, float | None]]:
        """``{trained at: {site: score}}``: how every hospital's model does everywhere, the mean over a site's cases.

        A hospital's own test cases are those that the run scored anyway; the common test set and sites that were left
        out are columns too. Empty without ``evaluation.cross_site``.
        """
        trained = dict.fromkeys(row.trained_at for row in self.across)
        return {name: by_site(cases_under(self, name)) for name in trained}

    def _scored(self, split: str, last: int | None) -> dict[str, int]:
        """Cases of a split per hospital: those with rows of the round, else what the manifest counts (images)."""
        found: dict[str, set[str]] = {}
        for row in self.cases:
            if row.split == split and row.round == last:
                found.setdefault(row.hospital, set()).add(row.case)
        counts: Mapping[str, Mapping[str, Mapping[str, int]]] = self.manifest.get("class_counts") or {}
        known = {name: sum((splits.get(split) or {}).values()) for name, splits in counts.items() if last is not None}
        return known | {name: len(cases) for name, cases in found.items()}

    def _final_of(self, hospital: str, scored: int, values: Mapping[str, float | None]) -> FinalScores:
        ledger = [row for row in self.ledger if row.hospital == hospital]
        headline = self.headline
        others = {other.key: _other(values, other, self.classes) for other in headline.others}
        return FinalScores(
            hospital=hospital,
            examples=max((row.examples for row in ledger), default=None),
            cases=scored,
            score=values.get(headline.key),
            per_class={name: values.get(f"{headline.class_key}/{name}") for name in self.classes},
            others={key: value for key, (value, _) in others.items()},
            undefined={key: number for key, (_, number) in others.items()},
            bytes_down=sum(row.bytes_down for row in ledger),
            bytes_up=sum(row.bytes_up for row in ledger),
        )


def check_rows(path: Path, manifest: Mapping[str, Any], now: Mapping[str, int]) -> None:
    """Raises ValueError where a run that is over, or held, has other rows than it ended with.

    Args:
        path: The run directory.
        manifest: Its manifest.
        now: Rows by file.
    """
    then = manifest.get("rows") if manifest.get("state") in ("finished", "held") else None
    found = {name: (number, now.get(name, 0)) for name, number in (then or {}).items()}
    wrong = [f"{name}.jsonl had {had} rows and has {has}" for name, (had, has) in found.items() if had != has]
    if wrong:
        raise ValueError(lost(path, "; ".join(wrong)))


def lost(path: Path, what: str) -> str:
    """What to say of a run that lost data."""
    return f"{path}: expected the files that the run left when it ended, but {what}; remove the folder and run it again"


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the defined values, None when there is none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def cases_under(
    records: RunRecords, hospital: str, splits: Sequence[str] = ("test", UNSEEN)
) -> dict[tuple[str, str], float | None]:
    """``{(site, case): score}`` of all cases of some splits under the model of one hospital, its own cases too."""
    last = max((row.round for row in records.across), default=None)
    rows: list[CaseRow | AcrossRow] = [row for row in records.cases if row.hospital == hospital]
    rows += [row for row in records.across if row.trained_at == hospital]
    return {
        (row.hospital, row.case): row.value
        for row in rows
        if row.round == last and row.metric == records.headline.key and row.split in splits
    }


def by_site(scores: Mapping[tuple[str, str], float | None]) -> dict[str, float | None]:
    """The mean of every site's cases, sites sorted by name."""
    sites: dict[str, list[float | None]] = {}
    for (site, _), value in scores.items():
        sites.setdefault(site, []).append(value)
    return {site: mean(sites[site]) for site in sorted(sites)}


def mean_series(series: Series) -> list[tuple[int, float | None]]:
    """The mean over the hospitals per round, of the values that are defined."""
    per_round: dict[int, list[float | None]] = {}
    for points in series.values():
        for number, value in points:
            per_round.setdefault(number, []).append(value)
    return [(number, mean(per_round[number])) for number in sorted(per_round)]


def _other(values: Mapping[str, float | None], other: OtherScore, classes: Sequence[str]) -> tuple[float | None, int]:
    """A score beside the headline, and the number of undefined values that it leaves out."""
    return _over_classes(values, other.key, classes) if other.per_class else (values.get(other.key), 0)


def _over_classes(values: Mapping[str, float | None], metric: str, classes: Sequence[str]) -> tuple[float | None, int]:
    """Mean of a metric over the classes where it is defined, and the number of undefined values behind it."""
    undefined = (values.get(f"undefined/{metric}/{name}") or 0 for name in classes)
    return mean(values.get(f"{metric}/{name}") for name in classes), int(sum(undefined))


Row = TypeVar("Row")

_CHECKS: dict[str, Callable[[object], bool]] = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "None": lambda value: value is None,
    "list[float]": lambda value: isinstance(value, list) and all(isinstance(item, int | float) for item in value),
    "Status": lambda value: value in ("ok", "dropped"),
}


def _read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """All whole lines of a JSON-lines file, none when it is missing; keys unknown to ``row_type`` are left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = [_row(path, number, line, row_type) for number, line in enumerate(lines[:-1], start=1) if line.strip()]
    last = lines[-1]  # empty, unless the writer was stopped in the middle of a line
    return [*rows, _row(path, len(lines), last, row_type)] if _is_json(last) else rows


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _row(path: Path, number: int, line: bytes, row_type: type[Row]) -> Row:
    """One checked record from one line."""
    try:
        values = json.loads(line, parse_constant=lambda _: None)  # NaN, Infinity: no number to show
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:80]!r} ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object, got {values!r}")
    members = fields(row_type)  # type: ignore[arg-type]  # Row is one of the dataclasses above
    wanted = {item.name: str(item.type) for item in members if item.default is MISSING or item.name in values}
    problems = [
        f"{key}: expected {kind}, got {repr(values[key]) if key in values else 'nothing'}"
        for key, kind in wanted.items()
        if key not in values or not _fits(values[key], kind)
    ]
    if problems:
        raise ValueError(f"{path}, line {number}: {'; '.join(problems)}")
    return row_type(**{key: values[key] for key in wanted})


def _fits(value: object, kind: str) -> bool:
    if kind in _CHECKS:
        return _CHECKS[kind](value)
    return any(_CHECKS[part](value) for part in kind.split(" | "))


def _required(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(
            f"{path.parent}: expected a run directory, but it has no {path.name}; "
            "give the folder runs/<experiment>/<id> that `wardround run` printed"
        )
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, but it cannot be read ({error})") from error
    return _mapping(path, value)


def _mapping(path: Path, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a mapping, got {value!r}")
    return value
