"""Reads a sweep's folder into plain records: which runs there are, how far each is, and what it measured.

Everything that looks at a sweep (statistics, report, comparisons) goes through :class:`SweepRecords`. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from ..files import file_stem, read_json
from ..headline import HEADLINES, SEGMENTATION, Headline
from ..locks import is_held
from ..results import RunRecords, mean

PLAN = "plan.json"
FAILURES = "failures"

State = Literal["finished", "held", "running", "interrupted", "failed", "damaged", "missing"]


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """One run of a sweep.

    Args:
        key: Its name within the sweep.
        variant: Whose run.
        seed: Its seed.
        choice: The value of the selected setting, None where nothing is selected.
        path: Its run directory, there or not.
        state: ``finished``; ``held``: its test cases wait for the selection; ``running``, ``interrupted``,
            ``failed``; ``damaged``: it lost data or cannot be read; ``missing``: not begun, or on another machine. A
            killed run is ``interrupted``.
        error: What stopped it.
        records: What it measured, None where it is missing.
    """

    key: str
    variant: str
    seed: int
    choice: Any = None
    path: Path
    state: State
    error: str | None = None
    records: RunRecords | None = None

    @property
    def measured(self) -> RunRecords:
        """What it measured, of a run that is there."""
        assert self.records is not None
        return self.records

    @property
    def failed(self) -> bool:
        """Whether it stopped with an error, or cannot be read."""
        return self.state in ("failed", "damaged")

    @property
    def validation_score(self) -> float | None:
        """Mean over the hospitals of the score of their validation cases after the last round.

        A run that failed when its test cases were scored has it too.
        """
        if self.records is None or self.state not in ("finished", "held", "failed"):
            return None
        if self.failed and self.records.last_evaluation("validation") != self.records.config["rounds"]:
            return None
        return mean(final.score for final in self.records.final("validation"))


@dataclass(frozen=True, kw_only=True)
class VariantRecord:
    """What is compared (role ``variant``), or a reference (``local``, ``pooled``, ``zero_shot``).

    Args:
        name: Its name.
        role: Its role.
        settings: What tells it apart, nested as in a file.
        references: Its references by role.
        cells: Its runs.
    """

    name: str
    role: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    cells: tuple[CellRecord, ...]

    @cached_property
    def values(self) -> tuple[Any, ...]:
        """The values that are tried, none where nothing is selected."""
        choices = [cell.choice for cell in self.cells if cell.choice is not None]
        return tuple(choice for place, choice in enumerate(choices) if choice not in choices[:place])

    @cached_property
    def choice(self) -> Any:
        """The selected value: that with the best mean validation score, the first one of equals.

        None where nothing is selected, and as long as a run is still to come. A value that failed with a seed cannot be
        compared and is left out (:attr:`left_out`).
        """
        compared = [value for value in self.values if value not in self.left_out]
        return best_choice([(value, self._validation(value)) for value in compared])

    @cached_property
    def left_out(self) -> tuple[Any, ...]:
        """The values that failed with a seed before they could be compared."""
        return tuple(value for value in self.values if any(map(_uncompared, self._at(value))))

    @property
    def at_edge(self) -> bool:
        """Whether the selected value is the smallest or largest that was tried: a better one may lie beyond.

        False for values that are no numbers.
        """
        numbers = [value for value in self.values if isinstance(value, int | float) and not isinstance(value, bool)]
        if self.choice is None or len(numbers) < len(self.values):
            return False
        return bool(self.choice in (min(numbers), max(numbers)))

    @property
    def selection_warnings(self) -> tuple[str, ...]:
        """What a reader has to know of how the value was selected."""
        failed = [f"{cell.key}: {cell.error}" for cell in self.cells if cell.choice is not None and _uncompared(cell)]
        return tuple(f"left out of the selection, as it failed: {text}" for text in failed)

    @property
    def tuning_runs(self) -> int:
        """The tuning budget: runs that the value was selected from, 0 where nothing is selected."""
        return sum(cell.choice is not None for cell in self.cells)

    def _at(self, choice: Any) -> tuple[CellRecord, ...]:
        return tuple(cell for cell in self.cells if cell.choice == choice)

    def _validation(self, choice: Any) -> list[float | None]:
        return [cell.validation_score for cell in self._at(choice)]

    @property
    def chosen(self) -> tuple[CellRecord, ...]:
        """The runs that count, seed by seed: those at the selected value; all where nothing is selected."""
        return self._at(self.choice) if self.values else self.cells

    @property
    def finished(self) -> tuple[CellRecord, ...]:
        """The finished ones of the runs that count."""
        return tuple(cell for cell in self.chosen if cell.state == "finished")


def _uncompared(cell: CellRecord) -> bool:
    """Whether a run failed without a score on validation cases."""
    return cell.failed and cell.validation_score is None


def best_choice(scores: Sequence[tuple[Any, Sequence[float | None]]]) -> Any:
    """The value with the best mean score, the first one of equals; None as long as a score is missing.

    Args:
        scores: Every value with the validation score of its runs.
    """
    if not scores or any(score is None for _, found in scores for score in found):
        return None
    return max(scores, key=lambda pair: mean(pair[1]) or 0.0)[0]


@dataclass(frozen=True, kw_only=True)
class SweepRecords:
    """A sweep in memory.

    Args:
        path: Its folder.
        plan: What ``plan.json`` holds.
        variants: What is compared, then the references.
    """

    path: Path
    plan: Mapping[str, Any]
    variants: tuple[VariantRecord, ...]

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Reads a sweep, finished or not.

        Raises:
            ValueError: Not the folder of a sweep, or a file of it or of its runs is damaged.
        """
        path = Path(folder)
        if not (path / PLAN).is_file():
            raise ValueError(
                f"{path}: expected the folder of a sweep, but it has no {PLAN}; give the folder runs/<sweep> that "
                "`wardround sweep` printed"
            )
        plan = read_json(path / PLAN, ("sweep", "baseline", "variants", "cells"))
        cells = [_cell(path, entry) for entry in plan["cells"]]
        return cls(path=path, plan=plan, variants=tuple(_variants(plan, cells)))

    @property
    def name(self) -> str:
        """The sweep's name."""
        return str(self.plan["sweep"])

    @cached_property
    def headline(self) -> Headline:
        """What all runs are judged by; that of segmentation as long as there is none.

        Raises:
            ValueError: the runs have different tasks.
        """
        first: dict[str, str] = {}
        for cell in self.cells:
            if cell.records is not None:
                first.setdefault(cell.records.task, cell.key)
        if len(first) > 1:
            found = "; ".join(f"{task}: {key}" for task, key in first.items())
            raise ValueError(
                f"{self.path}: expected runs of one task, as scores of two cannot be compared, got {found}; make a "
                "sweep of each"
            )
        return HEADLINES[next(iter(first), SEGMENTATION.task)]

    @property
    def baseline(self) -> VariantRecord:
        """The variant that the others are compared with."""
        return self.named(self.plan["baseline"])

    @property
    def compared(self) -> tuple[VariantRecord, ...]:
        """The variants without the references."""
        return tuple(variant for variant in self.variants if variant.role == "variant")

    @property
    def cells(self) -> tuple[CellRecord, ...]:
        """All runs."""
        return tuple(cell for variant in self.variants for cell in variant.cells)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(dict.fromkeys(cell.seed for cell in self.cells))

    @property
    def unfinished(self) -> tuple[CellRecord, ...]:
        """The runs that count and are not finished; where nothing could be selected yet, those that are not held."""
        waited = ("finished", "held")
        return tuple(
            cell
            for variant in self.variants
            for cell in (variant.chosen or variant.cells)
            if (cell.state != "finished" if variant.chosen else cell.state not in waited)
        )

    def named(self, name: str) -> VariantRecord:
        """A variant or reference by its name."""
        return next(variant for variant in self.variants if variant.name == name)


def _variants(plan: Mapping[str, Any], cells: Iterable[CellRecord]) -> list[VariantRecord]:
    found = list(cells)
    return [
        VariantRecord(
            name=entry["name"],
            role=entry["role"],
            settings=entry["settings"],
            references=entry["references"],
            cells=tuple(cell for cell in found if cell.variant == entry["name"]),
        )
        for entry in plan["variants"]
    ]


def _cell(folder: Path, entry: Mapping[str, Any]) -> CellRecord:
    path = folder.parent / entry["path"]
    records, state, error = _read(path)
    failure = failure_of(folder, entry["key"], entry["path"])
    if failure is not None and state not in ("finished", "held", "running", "damaged"):
        state, error = "failed", failure["error"]
    return CellRecord(
        key=entry["key"],
        variant=entry["variant"],
        seed=entry["seed"],
        choice=entry["choice"],
        path=path,
        state=state,
        error=error,
        records=records,
    )


def _read(path: Path) -> tuple[RunRecords | None, State, str | None]:
    """A run, how far it is, and what stopped it; one that cannot be read stops nobody from looking at the others."""
    try:
        records = RunRecords.load(path) if (path / "manifest.json").is_file() else None
    except ValueError as error:
        return None, "damaged", f"{error}; remove {path} and give the sweep again"
    return records, *_state(path, {} if records is None else records.manifest)


def _state(path: Path, manifest: Mapping[str, Any]) -> tuple[State, str | None]:
    """How far a run is, and what stopped it. One that says it is running was killed where no process works on it."""
    state: State = manifest.get("state", "missing")
    if state == "running" and not is_held(path):
        return "interrupted", "killed"
    return state, manifest.get("error")


def failure_of(folder: Path, key: str, path: str) -> Mapping[str, Any] | None:
    """What stopped a run of a sweep, None where nothing did.

    Args:
        folder: The sweep's.
        key: Name of the run within it.
        path: Folder of the run as the plan has it: a run of the same name in an earlier plan is another one.
    """
    file = failure_file(folder, key)
    if not file.is_file():
        return None
    failure: Mapping[str, Any] = read_json(file, ("error", "path"))
    return failure if failure["path"] == path else None


def failure_file(folder: Path, key: str) -> Path:
    """Where it is written what stopped a run of a sweep."""
    return folder / FAILURES / f"{file_stem(key)}.json"
