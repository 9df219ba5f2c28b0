"""The plan of a sweep: which runs there are, which of them are references, and who does which.

::

    base <- settings <- variant <- point of the grid <- selected setting <- seed <- --set   = one cell, an Experiment

Legend: a *variant* is what is compared; a *cell* is one run: a variant with one seed and, where a setting is selected,
one value of it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .builder import ConfigError, unknown
from .config import Change, Experiment, build_experiment, identity, nested
from .experiments import SWEEP, ExperimentsFile
from .references import ROLES, local_everywhere
from .sweeps import Sweep, load_sweep

VARIANT = "variant"
"""The role of what is compared; the others are the names of references."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep.

    Args:
        variant: Whose run.
        seed: Its seed.
        choice: The value of the selected setting; None where nothing is selected.
        experiment: What is run.
    """

    variant: str
    seed: int
    choice: Any = None
    experiment: Experiment

    @property
    def key(self) -> str:
        """Its name within the sweep, such as ``flap_sam, lr=0.001, seed 0``."""
        chosen = [] if self.choice is None else [f"choice={self.choice}"]
        return ", ".join([self.variant, *chosen, f"seed {self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is compared, or a reference.

    Args:
        name: Its name.
        role: ``variant``, ``local``, ``pooled`` or ``zero_shot``.
        settings: What tells it apart, nested as in a file; none for a reference.
        references: Its references by role.
        cells: Its runs; seeds in order, and per seed the values of the selected setting.
    """

    name: str
    role: str = VARIANT
    settings: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    cells: tuple[Cell, ...]

    @property
    def tuned(self) -> bool:
        """Whether a setting is selected for it."""
        return any(cell.choice is not None for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of a sweep.

    Args:
        name: Its key in the file.
        purpose: One sentence for people.
        sweep: Its definition.
        variants: What is compared, in the order of the file, then the references.
    """

    name: str
    purpose: str
    sweep: Sweep
    variants: tuple[Variant, ...]

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return self.sweep.baseline or self.variants[0].name

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All runs, seed after seed, so that an unfinished sweep has something of every variant."""
        return _in_order(self.variants)

    def shard(self, number: int, of: int) -> tuple[Variant, ...]:
        """The part of one process among several; all parts together are the plan.

        Cells are dealt one by one. Where a setting is selected, whole variants are: it is chosen over all their cells.

        Args:
            number: Which part, from 1.
            of: How many parts there are.

        Raises:
            ValueError: there is no such part.
        """
        if not 1 <= number <= of:
            raise ValueError(f"--shard {number}/{of}: expected a part from 1/{of} to {of}/{of}")
        if self.sweep.select is not None:
            return self.variants[number - 1 :: of]
        mine = {id(cell) for cell in self.cells[number - 1 :: of]}
        parts = (replace(v, cells=tuple(cell for cell in v.cells if id(cell) in mine)) for v in self.variants)
        return tuple(part for part in parts if part.cells)


def make_plan(name: str, file: ExperimentsFile, overrides: Sequence[str] = ()) -> Plan:
    """Builds every run of a sweep.

    Args:
        name: The entry.
        file: What :func:`.experiments.open_file` read.
        overrides: ``path=value``; ``sweep.path=value`` changes the definition, every other path a setting of all runs.

    Raises:
        ConfigError: with every problem of every run, each said once.
    """
    of_sweep = [text for text in overrides if text.split(".")[0] == SWEEP]
    of_runs = [("--set ", nested(text)) for text in overrides if text not in of_sweep]
    sweep = load_sweep(name, file, of_sweep)
    where = f"{file.path}: {name}.{SWEEP}."
    points = _points(sweep, where)
    _check(sweep, [point.name for point in points], where)
    built = _Built(name=name, file=file, sweep=sweep, where=where, of_runs=of_runs)
    variants = [built.variant(point) for point in points]
    if built.problems:
        raise ConfigError(built.problems)
    _check_different(variants, where)
    purpose = str(file.entries[name].get("purpose", ""))
    return Plan(name=name, purpose=purpose, sweep=sweep, variants=tuple(_with_references(variants, sweep)))


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A variant at a point of the grid: its name and what it changes."""

    name: str
    changes: tuple[Change, ...]

    @property
    def settings(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for _, change in self.changes:
            merged |= change
        return merged


def _points(sweep: Sweep, where: str) -> list[_Point]:
    named = sweep.variants or {"": {}}
    keys = _short(list(sweep.grid))
    points = []
    for name, settings in named.items():
        own: list[Change] = [(f"{where}variants.{name}.", settings)] if name else []
        for values in itertools.product(*sweep.grid.values()):
            at = dict(zip(sweep.grid, values, strict=True))
            labels = [name, *(label(keys[path], value) for path, value in at.items())]
            changes = [(f"{where}grid: ", _at(path, value)) for path, value in at.items()]
            called = ", ".join(filter(None, labels)) or sweep.base
            points.append(_Point(name=called, changes=(*own, *changes)))
    return points


def label(key: str, value: Any) -> str:
    """A value in the name of a variant: ``rank=8``, ``fedprox (mu=0.01)``.

    Example:
        >>> label("rank", 8), label("aggregator", {"name": "fedprox", "mu": 0.01}), label("leave_out", ["HK"])
        ('rank=8', 'fedprox (mu=0.01)', 'leave_out=HK')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and "name" in value:
        inner = ", ".join(label(key, item) for key, item in value.items() if key != "name")
        return f"{value['name']} ({inner})" if inner else str(value["name"])
    if isinstance(value, list | tuple):
        return f"{key}={'+'.join(map(str, value)) or 'none'}"
    if isinstance(value, Mapping):
        return f"{key}={json.dumps(value)}"
    return f"{key}={'null' if value is None else value}"


def _short(paths: Sequence[str]) -> dict[str, str]:
    """The last word of every path, the whole path where two end in the same word."""
    last = [path.rpartition(".")[2] for path in paths]
    return {path: word if last.count(word) == 1 else path for path, word in zip(paths, last, strict=True)}


def _at(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return {**value}


def _check(sweep: Sweep, names: Sequence[str], where: str) -> None:
    """What can be said before any run is built."""
    problems = []
    if sweep.baseline is not None and sweep.baseline not in names:
        problems.append(f"{where}baseline: " + unknown("no variant of this name", sweep.baseline, names))
    problems += [f"{where}variants: two are called {name!r}" for name in dict.fromkeys(names) if names.count(name) > 1]
    seeded = [place for place, changes in _settable(sweep) if "seed" in changes]
    problems += [f"{where}{place}.seed: expected under sweep.seeds" for place in seeded]
    if problems:
        raise ConfigError(problems)


def _settable(sweep: Sweep) -> Iterator[tuple[str, Iterable[str]]]:
    yield "settings", sweep.settings
    yield "grid", sweep.grid
    yield from ((f"variants.{name}", settings) for name, settings in sweep.variants.items())


@dataclass(frozen=True, kw_only=True)
class _Built:
    """Builds cells, and gathers what is wrong with them."""

    name: str
    file: ExperimentsFile
    sweep: Sweep
    where: str
    of_runs: Sequence[Change]
    problems: list[str] = field(default_factory=list)

    def variant(self, point: _Point) -> Variant:
        select = self.sweep.select
        choices = (None,) if select is None else select.values
        made = [self._cell(point, choice, seed) for seed in self.sweep.seeds for choice in choices]
        cells = tuple(cell for cell in made if cell is not None)
        return Variant(name=point.name, settings=point.settings, cells=cells)

    def _cell(self, point: _Point, choice: Any, seed: int) -> Cell | None:
        changes = [(f"{self.where}settings.", self.sweep.settings), *point.changes, *self._chosen(choice)]
        changes += [("", {"seed": seed}), *self.of_runs]
        try:
            experiment = build_experiment(self.sweep.base, self.file, changes)
        except ConfigError as error:
            self.problems.extend(text for text in map(str, error.problems) if text not in self.problems)
            return None
        purpose = f"{point.name} of the sweep {self.name}"
        return Cell(variant=point.name, seed=seed, choice=choice, experiment=replace(experiment, purpose=purpose))

    def _chosen(self, choice: Any) -> list[Change]:
        """What selecting changes: the setting, and test volumes wait until it is chosen."""
        select = self.sweep.select
        if select is None:
            return []
        held = ("", {"evaluation": {"test": "last"}})
        return [(f"{self.where}select.values: ", _at(select.path, choice)), held]


def _check_different(variants: Sequence[Variant], where: str) -> None:
    """Raises ConfigError where two variants are the same experiment."""
    seen: dict[str, str] = {}
    problems = []
    for variant in variants:
        for cell in variant.cells:
            text = _text(identity(cell.experiment))
            other = seen.setdefault(text, cell.key)
            if other != cell.key:
                problems.append(f"{where}variants: expected different runs, got {other!r} and {cell.key!r} the same")
    if problems:
        raise ConfigError(problems)


def _with_references(variants: Sequence[Variant], sweep: Sweep) -> list[Variant]:
    """The variants, each with the names of its references, then these."""
    asked = [role for role in ROLES if role in sweep.references]
    groups = {role: _grouped(variants, role, sweep) for role in asked}
    named: dict[str, dict[str, str]] = {variant.name: {} for variant in variants}
    made = []
    for role, found in groups.items():
        for members, cells in found:
            name = role if len(found) == 1 else f"{role} of {members[0]}"
            made.append(Variant(name=name, role=role, cells=tuple(replace(cell, variant=name) for cell in cells)))
            for member in members:
                named[member][role] = name
    return [*(replace(variant, references=named[variant.name]) for variant in variants), *made]


def _grouped(variants: Sequence[Variant], role: str, sweep: Sweep) -> list[tuple[list[str], list[Cell]]]:
    """Per different reference of a role, the variants that share it, and its cells."""
    groups: dict[str, tuple[list[str], list[Cell]]] = {}
    for variant in variants:
        cells = list(_reference_cells(variant, role, sweep))
        key = _text([identity(cell.experiment) for cell in cells])
        groups.setdefault(key, ([], cells))[0].append(variant.name)
    return list(groups.values())


def _reference_cells(variant: Variant, role: str, sweep: Sweep) -> Iterator[Cell]:
    make = local_everywhere if role == "local" and "best_site" in sweep.references else ROLES[role]
    seen = set()
    for cell in variant.cells:
        choice = None if role == "zero_shot" else cell.choice
        if (cell.seed, str(choice)) not in seen:  # zero-shot has nothing to be tuned
            seen.add((cell.seed, str(choice)))
            yield replace(cell, choice=choice, experiment=make(cell.experiment))


def _in_order(variants: Sequence[Variant]) -> tuple[Cell, ...]:
    seeds = dict.fromkeys(cell.seed for variant in variants for cell in variant.cells)
    return tuple(cell for seed in seeds for variant in variants for cell in variant.cells if cell.seed == seed)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
