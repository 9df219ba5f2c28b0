"""Reads a sweep's folder into plain records: which runs there are, how far each is, and what it measured.

Everything that looks at a sweep (statistics, report, comparisons) goes through :class:`SweepRecords`. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from .files import file_stem, read_json
from .results import RunRecords, mean

PLAN = "plan.json"
FAILURES = "failures"

State = Literal["finished", "held", "running", "interrupted", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """One run of a sweep.

    Args:
        key: Its name within the sweep.
        variant: Whose run.
        seed: Its seed.
        choice: The value of the selected setting, None where nothing is selected.
        path: Its run directory, there or not.
        state: ``finished``; ``held``: its test volumes wait for the selection; ``running``, ``interrupted``,
            ``failed``; ``missing``: not begun, or on another machine.
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
    def validation_dice(self) -> float | None:
        """Mean over the hospitals of the Dice of their validation volumes after the last round."""
        if self.records is None or self.state not in ("finished", "held"):
            return None
        return mean(score.dice for score in self.records.final("validation"))


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
    def choice(self) -> Any:
        """The selected value, None where nothing is selected or not all runs have their validation scores yet."""
        choices = [cell.choice for place, cell in enumerate(self.cells) if cell.choice not in self._before(place)]
        return best_choice([(choice, self._validation(choice)) for choice in choices])

    def _before(self, place: int) -> list[Any]:
        return [cell.choice for cell in self.cells[:place]]

    def _validation(self, choice: Any) -> list[float | None]:
        return [cell.validation_dice for cell in self.cells if cell.choice == choice]

    @property
    def chosen(self) -> tuple[CellRecord, ...]:
        """The runs that count, seed by seed: those at the selected value; all where nothing is selected."""
        if all(cell.choice is None for cell in self.cells):
            return self.cells
        return tuple(cell for cell in self.cells if cell.choice == self.choice)

    @property
    def finished(self) -> tuple[CellRecord, ...]:
        """The finished ones of the runs that count."""
        return tuple(cell for cell in self.chosen if cell.state == "finished")


def best_choice(scores: Sequence[tuple[Any, Sequence[float | None]]]) -> Any:
    """The value with the best mean score, the first one of equals; None as long as a score is missing.

    Args:
        scores: Every value with the validation Dice of its runs.
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
    records = RunRecords.load(path) if (path / "manifest.json").is_file() else None
    failure = folder / FAILURES / f"{file_stem(entry['key'])}.json"
    state: State = "missing" if records is None else records.manifest["state"]
    error = None if records is None else records.manifest.get("error")
    if failure.is_file() and state not in ("finished", "held"):
        state, error = "failed", read_json(failure, ("error",))["error"]
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
