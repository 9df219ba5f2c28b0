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

Series = dict[str, list[tuple[int, float | None]]]
"""Per hospital, ``(round, value)`` in order of rounds; None where the value is undefined."""

Status = Literal["ok", "dropped"]

SERVER = "server"
"""The key in a :data:`Series` of rows that belong to no hospital."""

COMMON = "common"
"""The name under which the common test set is scored, where hospitals have no test volumes of their own."""

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
    """A line of ``cases.jsonl``: one metric of one volume."""

    round: int
    hospital: str
    split: str
    case: str
    metric: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A line of ``ledger.jsonl``: one hospital in one round. ``examples`` are its training windows."""

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
    """A line of ``across.jsonl``: a volume under the model of another hospital than its own, after the last round."""

    round: int
    trained_at: str
    hospital: str
    split: str
    case: str
    metric: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class FinalScores:
    """What one hospital reached at the last evaluation of a split.

    Args:
        hospital: Its name.
        windows: Its training windows, None before it trained.
        volumes: Volumes scored.
        dice: Mean Dice, None when undefined.
        per_class: Dice per class name.
        hd95_mm: Mean over the classes of the 95th percentile of the surface distance, None when undefined everywhere.
        hd95_undefined: Volumes times classes without an HD95.
        surface_dice: Mean surface Dice over the classes.
        surface_undefined: Volumes times classes without a surface Dice.
        bytes_down: Bytes it received over the run.
        bytes_up: Bytes it sent over the run.
    """

    hospital: str
    windows: int | None
    volumes: int
    dice: float | None
    per_class: Mapping[str, float | None]
    hd95_mm: float | None
    hd95_undefined: int
    surface_dice: float | None
    surface_undefined: int
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
        )
        counts = {name: len(getattr(records, name)) for name in records.manifest.get("rows") or ()}
        check_rows(path, records.manifest, counts)
        return records

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return self.summary is not None and self.manifest.get("state", "finished") == "finished"

    @cached_property
    def hospitals(self) -> tuple[str, ...]:
        """All hospitals that train or have test volumes, sorted by name; ``common`` is the common test set.

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
        """Names of the foreground classes, in the order of their rows (label 1 first)."""
        found = (row.metric.partition("/") for row in self.metrics)
        return tuple(dict.fromkeys(name for metric, _, name in found if metric == "dice" and name))

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
        """The last round with a Dice of this split."""
        return max((row.round for row in self.metrics if row.metric == "dice" and row.split == split), default=None)

    def final(self, split: str = "test") -> list[FinalScores]:
        """The scores of every hospital (or unseen site) at the last evaluation of a split, sorted by name."""
        last = self.last_evaluation(split)
        names = self.unseen if split == UNSEEN else self.hospitals
        values: dict[str, dict[str, float | None]] = {name: {} for name in names}
        for row in self.metrics:
            if row.round == last and row.split == split and row.hospital is not None:
                values[row.hospital][row.metric] = row.value
        return [self._final_of(name, split, last, values[name]) for name in names]

    def cross_site(self) -> dict[str, dict[str, float | None]]:
        """``{trained at: {site: Dice}}``: how every hospital's model does everywhere, the mean over a site's volumes.

        A hospital's own test volumes are those that the run scored anyway; the common test set and sites that were left
        out are columns too. Empty without ``evaluation.cross_site``.
        """
        trained = dict.fromkeys(row.trained_at for row in self.across)
        return {name: by_site(volumes_under(self, name)) for name in trained}

    def _final_of(self, hospital: str, split: str, last: int | None, values: Mapping[str, float | None]) -> FinalScores:
        ledger = [row for row in self.ledger if row.hospital == hospital]
        scored = {row.case for row in self.cases if (row.hospital, row.split, row.round) == (hospital, split, last)}
        hd95_mm, hd95_undefined = _over_classes(values, "hd95_mm", self.classes)
        surface_dice, surface_undefined = _over_classes(values, "surface_dice", self.classes)
        return FinalScores(
            hospital=hospital,
            windows=max((row.examples for row in ledger), default=None),
            volumes=len(scored),
            dice=values.get("dice"),
            per_class={name: values.get(f"dice/{name}") for name in self.classes},
            hd95_mm=hd95_mm,
            hd95_undefined=hd95_undefined,
            surface_dice=surface_dice,
            surface_undefined=surface_undefined,
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


def volumes_under(
    records: RunRecords, hospital: str, splits: Sequence[str] = ("test", UNSEEN)
) -> dict[tuple[str, str], float | None]:
    """``{(site, case): Dice}`` of all volumes of some splits under the model of one hospital, its own volumes too."""
    last = max((row.round for row in records.across), default=None)
    rows: list[CaseRow | AcrossRow] = [row for row in records.cases if row.hospital == hospital]
    rows += [row for row in records.across if row.trained_at == hospital]
    return {
        (row.hospital, row.case): row.value
        for row in rows
        if row.round == last and row.metric == "dice" and row.split in splits
    }


def by_site(volumes: Mapping[tuple[str, str], float | None]) -> dict[str, float | None]:
    """The mean of every site's volumes, sites sorted by name."""
    sites = sorted({site for site, _ in volumes})
    return {site: mean(value for (where, _), value in volumes.items() if where == site) for site in sites}


def mean_series(series: Series) -> list[tuple[int, float | None]]:
    """The mean over the hospitals per round, of the values that are defined."""
    per_round: dict[int, list[float | None]] = {}
    for points in series.values():
        for number, value in points:
            per_round.setdefault(number, []).append(value)
    return [(number, mean(per_round[number])) for number in sorted(per_round)]


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
    members = fields(row_type)  # type: ignore[arg-type]  # Row is one of five dataclasses
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
