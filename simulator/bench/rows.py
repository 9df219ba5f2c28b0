"""Rows of the bench: what every column means, the CSV that holds them all and the tables that people read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Self

from ..files import write_text
from ..reports.page import Table

NOTHING = "-"
"""What a table shows where there is no value; a CSV shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the CSV. What does not apply is None. Times are medians over the repetitions.

    Args:
        section: The part of the bench: ``engines``, ``memory``, ``stacked``, ``features`` or ``kernel``.
        engine: A name of :data:`~wardround.simulator.bench.ENGINES`, or what is compared in the other sections.
        cohort: ``sequential``, or ``stacked``: several hospitals share every step.
        stack: Most hospitals that share a step.
        hospitals: K.
        method: Which tensors train.
        model: Size of SAM.
        image_size: Height and width in pixels.
        batch_size: Windows of a step.
        steps: Steps of a hospital in a round.
        rank: Of LoRA; of the products in section ``kernel``.
        parameters: Trained numbers of a hospital.
        aggregator: What the server does.
        augment: What is done to a window.
        features_mb: Memory for what the frozen start of the model makes of windows; 0: nothing is kept.
        precision: ``fp32``, ``bf16`` or ``fp64``.
        compile: Whether the model is compiled.
        images_per_second: Slices trained per second of a round, aggregation included.
        round_ms: A round: every hospital trains once, the server aggregates.
        bare_ms: The bare loop over the same batches: one model, no federation.
        ratio_to_bare: Round / bare loop, in pairs taken one after the other in one process. The row of the bare loop
            pairs it with its own twin: what the ratio does there is the noise of the machine.
        ratio_low: The smallest of those ratios.
        ratio_high: The largest.
        engine_ms_per_hospital: A round in which every hospital takes zero steps, without its aggregation, divided by K.
        engine_fraction: That round without its aggregation / the bare loop.
        aggregation_ms: Aggregation of a round in which hospitals trained.
        peak_device_mb: Most memory that torch ever held on the GPU, bare loop excluded.
        peak_host_mb: Most resident memory of the process, bare loop excluded.
        mfu: Model FLOPs utilisation: operations of the model per second of a round / those of a large product of
            matrices in the same precision on the same GPU. CUDA only.
        dice_or_loss: What was learned: mean training loss of the first round. Rows of the same work agree.
        loss_last: Mean training loss of the last round: rows that also aggregate alike agree.
        difference: Largest difference between two ways to compute the same, relative to the largest value.
        speedup: How many times faster than what it is compared with, in pairs.
        speedup_low: The smallest of those.
        speedup_high: The largest.
        declared_mb: Bytes of the tensors that all hospitals remember.
        resident_mb: Resident memory of the process after the last round, freed pages given back.
        growth_mb: By how much it grew per round.
        slope: Resident memory per declared byte between two numbers of hospitals.
        peak_slope: The same of its peak within a round.
        repetitions: Of what the medians are taken.
        device: Name of the GPU, or ``cpu``.
        threads: Of the CPU.
        torch: Its version.
        code: Hash of the package's Python files.
        date: UTC.
        error: Why there are no numbers.
    """

    section: str
    engine: str
    cohort: str | None = None
    stack: int | None = None
    hospitals: int | None = None
    method: str | None = None
    model: str | None = None
    image_size: int | None = None
    batch_size: int | None = None
    steps: int | None = None
    rank: int | None = None
    parameters: int | None = None
    aggregator: str | None = None
    augment: str | None = None
    features_mb: int | None = None
    precision: str | None = None
    compile: bool | None = None
    images_per_second: float | None = None
    round_ms: float | None = None
    bare_ms: float | None = None
    ratio_to_bare: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    engine_ms_per_hospital: float | None = None
    engine_fraction: float | None = None
    aggregation_ms: float | None = None
    peak_device_mb: float | None = None
    peak_host_mb: float | None = None
    mfu: float | None = None
    dice_or_loss: float | None = None
    loss_last: float | None = None
    difference: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    declared_mb: float | None = None
    resident_mb: float | None = None
    growth_mb: float | None = None
    slope: float | None = None
    peak_slope: float | None = None
    repetitions: int | None = None
    device: str | None = None
    threads: int | None = None
    torch: str | None = None
    code: str | None = None
    date: str | None = None
    error: str | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """From a mapping, of which other keys are left alone."""
        return cls(**{name: values[name] for name in COLUMNS if name in values})


COLUMNS = tuple(field.name for field in fields(Row))
"""The columns of the CSV, in order."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median of some numbers, with the lowest and the highest beside it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one number.

        Example:
            >>> Spread.of([3.0, 1.0, 2.0])
            Spread(median=2.0, low=1.0, high=3.0)
        """
        return cls(median=median(values), low=min(values), high=max(values))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes every column of every row; a value that is None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _exact(value) for name, value in asdict(row).items()} for row in rows)
    write_text(path, text.getvalue())


def _exact(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a section is printed.

    Args:
        title: Above the table.
        columns: Title and format per column of :class:`Row`.
        note: How to read it.
    """

    title: str
    columns: Mapping[str, tuple[str, str]]
    note: str


SECTIONS: dict[str, Shown] = {
    "engines": Shown(
        title="Engines: the same work, one fresh process per row",
        columns={
            "engine": ("engine", "s"),
            "cohort": ("cohort", "s"),
            "hospitals": ("K", "d"),
            "method": ("method", "s"),
            "model": ("model", "s"),
            "images_per_second": ("images/s", ".1f"),
            "ratio_to_bare": ("/ bare", ".3f"),
            "ratio_low": ("low", ".3f"),
            "ratio_high": ("high", ".3f"),
            "engine_ms_per_hospital": ("engine ms", ".2f"),
            "engine_fraction": ("engine", ".2%"),
            "dice_or_loss": ("loss", ".6f"),
        },
        note="Every engine trains the same model on the same batches. '/ bare' is the time of a round over that of the "
        "bare loop beside it, with the lowest and highest pair; the row of the bare loop pairs it with its twin and "
        "shows the noise of the machine. 'engine ms' is a round of zero steps without aggregation, per hospital, and "
        "'engine' the same as a part of the bare loop. Rows of the same work have the same loss.",
    ),
    "resources": Shown(
        title="Shapes, aggregation and memory of those rows",
        columns={
            "engine": ("engine", "s"),
            "cohort": ("cohort", "s"),
            "hospitals": ("K", "d"),
            "method": ("method", "s"),
            "model": ("model", "s"),
            "image_size": ("pixels", "d"),
            "batch_size": ("batch", "d"),
            "steps": ("steps", "d"),
            "rank": ("rank", "d"),
            "parameters": ("trained", ",d"),
            "aggregation_ms": ("aggr. ms", ".1f"),
            "peak_device_mb": ("device MB", ".0f"),
            "peak_host_mb": ("host MB", ".0f"),
            "mfu": ("MFU", ".1%"),
        },
        note="Peaks of the process without the bare loop; the host's holds Python and torch as well. MFU: the model's "
        "operations per second of a round over those of a large product of matrices (CUDA only).",
    ),
    "memory": Shown(
        title="Memory and the number of hospitals",
        columns={
            "engine": ("what", "s"),
            "hospitals": ("K", "d"),
            "declared_mb": ("declared MB", ".1f"),
            "resident_mb": ("resident MB", ".1f"),
            "growth_mb": ("growth MB/round", ".2f"),
            "slope": ("slope", ".2f"),
            "peak_host_mb": ("peak MB", ".1f"),
            "peak_slope": ("peak slope", ".2f"),
            "peak_device_mb": ("device MB", ".1f"),
        },
        note="Every hospital remembers all its tensors (aggregator 'local'): 'declared' are their bytes. 'slope' is "
        "resident memory per declared byte between the two numbers of hospitals; 1 is the least there can be. The peak "
        "lies within a round, when what was remembered before it is still there.",
    ),
    "stacked": Shown(
        title="Several hospitals in one step = one after the other",
        columns={
            "engine": ("what", "s"),
            "hospitals": ("K", "d"),
            "method": ("method", "s"),
            "model": ("model", "s"),
            "stack": ("stack", "d"),
            "precision": ("timed in", "s"),
            "difference": ("difference", ".1e"),
            "speedup": ("speed-up", ".2f"),
            "speedup_low": ("low", ".2f"),
            "speedup_high": ("high", ".2f"),
        },
        note="Largest difference of the server's tensors and losses after two rounds, relative to the largest value "
        "of each tensor, in double precision; and how much faster a stacked round is than a sequential one.",
    ),
    "features": Shown(
        title="What is frozen, computed once = computed anew",
        columns={
            "engine": ("what", "s"),
            "hospitals": ("K", "d"),
            "method": ("method", "s"),
            "model": ("model", "s"),
            "features_mb": ("budget MB", "d"),
            "precision": ("timed in", "s"),
            "difference": ("difference", ".1e"),
            "speedup": ("speed-up", ".2f"),
            "speedup_low": ("low", ".2f"),
            "speedup_high": ("high", ".2f"),
        },
        note="As above: differences in double precision, and how much faster a round is that finds what the frozen "
        "start of the model made of every window, once it has been kept.",
    ),
    "kernel": Shown(
        title="Mean of low-rank products, cut to the rank",
        columns={
            "engine": ("what", "s"),
            "hospitals": ("K", "d"),
            "rank": ("rank", "d"),
            "aggregation_ms": ("ms", ".1f"),
            "speedup": ("speed-up", ".1f"),
            "speedup_low": ("low", ".1f"),
            "speedup_high": ("high", ".1f"),
            "difference": ("difference", ".1e"),
        },
        note="Speed-up against the SVD of the dense mean; the difference is to the best approximation of that rank.",
    ),
}
"""The tables, in order. ``resources`` shows further columns of the rows of ``engines``."""

_ROWS_OF = {"resources": "engines"}


def table(section: str, rows: Sequence[Row]) -> Table | None:
    """One of :data:`SECTIONS`; None without rows. Columns without any value are left out.

    Args:
        section: Its name.
        rows: All rows.
    """
    own = [asdict(row) for row in rows if row.section == _ROWS_OF.get(section, section) and row.error is None]
    shown = SECTIONS[section]
    columns = {name: how for name, how in shown.columns.items() if any(row[name] is not None for row in own)}
    if not columns:
        return None
    cells = tuple(tuple(_cell(row[name], how) for name, (_, how) in columns.items()) for row in own)
    return Table(header=tuple(title for title, _ in columns.values()), rows=cells, note=shown.note)


def _cell(value: Any, how: str) -> str:
    return NOTHING if value is None else format(value, how)


def text(rows: Sequence[Row], width: int = 100) -> str:
    """Every section for a terminal, then the rows that failed with their reasons."""
    made = {name: table(name, rows) for name in SECTIONS}
    parts = [f"{SECTIONS[name].title}\n\n{one.text(width)}" for name, one in made.items() if one is not None]
    beside = comparisons(rows)
    failed = [f"  {_called(row)}: {row.error}" for row in rows if row.error is not None]
    lists = {"Beside our engine, one hospital after the other": beside, "Without numbers": failed}
    return "\n\n".join([*parts, *("\n".join([title, "", *lines]) for title, lines in lists.items() if lines)])


def comparisons(rows: Sequence[Row]) -> list[str]:
    """How long the other engines take for the work of ours, by their ratios to the bare loop."""
    done = [row for row in rows if row.section == "engines" and row.ratio_to_bare is not None]
    ours = {_work(row): row for row in done if row.engine == "ours" and row.cohort == "sequential"}
    return [
        f"  {row.engine} takes {_times(row, ours[_work(row)]):.2f} times as long "
        f"({row.method}, {row.model}, {row.hospitals} hospitals, {row.steps} steps of batch {row.batch_size})"
        for row in done
        if row.engine not in ("ours", "bare") and _work(row) in ours
    ]


def _work(row: Row) -> tuple[object, ...]:
    return row.hospitals, row.method, row.model


def _times(row: Row, ours: Row) -> float:
    return (row.ratio_to_bare or 0.0) / (ours.ratio_to_bare or 1.0)


def _called(row: Row) -> str:
    words = (row.section, row.engine, row.cohort, row.method, row.model, row.hospitals and f"{row.hospitals} hospitals")
    return " ".join(str(word) for word in words if word)
