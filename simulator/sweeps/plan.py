"""The plan of a sweep: which runs there are, which of them are references, and who does which.

::

    base <- settings <- variant <- point of the grid <- selected setting <- seed <- --set   = one cell, an Experiment

Legend: a *variant* is what is compared; a *cell* is one run: a variant with one seed and, where a setting is selected,
one value of it.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..builder import PLUGIN_KEYS, ConfigError, leaves, resolve, unknown, word_of
from ..config import Change, Experiment, build_experiment, identity, nested
from ..experiments import SWEEP, ExperimentsFile
from .definition import Select, Sweep, at, layered, read_definition
from .references import ROLES, local_everywhere

VARIANT = "variant"
"""The role of what is compared; the others are the names of references."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep.

    Args:
        variant: Whose run.
        seed: Its seed.
        choice: The value of the selected setting; None where nothing is selected.
        over: What the selected setting is called.
        experiment: What is run.
    """

    variant: str
    seed: int
    choice: Any = None
    over: str = "choice"
    experiment: Experiment

    @property
    def key(self) -> str:
        """Its name within the sweep, of its own: ``flap_sam, lr=0.001, seed 0``."""
        chosen = [] if self.choice is None else [label(self.over, self.choice)]
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
        file: What :func:`..experiments.open_file` read.
        overrides: ``path=value``; ``sweep.path=value`` changes the definition, every other path a setting of all runs.

    Raises:
        ConfigError: with every problem of the definition and of every run, each said once.
    """
    of_sweep = [text for text in overrides if text.partition("=")[0].split(".")[0].strip() == SWEEP]
    of_runs = [("--set ", nested(text)) for text in overrides if text not in of_sweep]
    found = read_definition(name, file, of_sweep)
    if found.sweep is None:
        raise ConfigError(found.problems)
    sweep, where = found.sweep, f"{file.path}: {name}.{SWEEP}."
    points = list(_points(sweep, where))
    problems = [*found.problems, *_problems(sweep, points, of_runs, where)]
    no_base = _no_base(sweep.base, file, where)
    if no_base is not None:
        raise ConfigError([no_base, *problems])
    built = _Built(file=file, sweep=sweep, where=where, of_runs=of_runs, problems=problems)
    variants = [built.variant(point) for point in points]
    if not built.problems:
        built.problems.extend(_same(variants, where))
    if built.problems:
        raise ConfigError(built.problems)
    purpose = str(file.entries[name].get("purpose", ""))
    labels = {point.name: point.labels for point in points}
    made = tuple(_of_sweep(variant, name) for variant in _with_references(variants, sweep, labels))
    return Plan(name=name, purpose=purpose, sweep=sweep, variants=made)


def _of_sweep(variant: Variant, sweep: str) -> Variant:
    """A variant whose runs say what they are for."""
    purpose = f"{variant.name} of the sweep {sweep}"
    cells = (replace(cell, experiment=replace(cell.experiment, purpose=purpose)) for cell in variant.cells)
    return replace(variant, cells=tuple(cells))


def _no_base(base: str, file: ExperimentsFile, where: str) -> str | None:
    """Why there is nothing to start from; None where there is."""
    if base in file.sweeps:
        return f"{where}base: expected an experiment, got the sweep {base!r}; to start from it, write `extends: {base}`"
    if base in file.entries:
        return None
    experiments = [entry for entry in file.entries if entry not in file.sweeps]
    text = f"{where}base: " + unknown(f"no experiment {base!r}", base, experiments)
    return text if file.packaged else f"{text}; a file of your own takes the place of the packaged one: copy the entry"


# ---- points: variants on the grid ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A variant at a point of the grid: what its name is made of, and what it changes."""

    labels: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def name(self) -> str:
        return ", ".join(self.labels)

    @property
    def settings(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for _, change in self.changes:
            merged = layered(merged, change)
        return merged


def _points(sweep: Sweep, where: str) -> Iterator[_Point]:
    keys = _short(list(sweep.grid))
    for name, settings in (sweep.variants or {"": {}}).items():
        own: list[Change] = [(f"{where}variants.{name}.", settings)] if name else []
        for values in itertools.product(*sweep.grid.values()):
            of_grid = dict(zip(sweep.grid, values, strict=True))
            labels = [name, *(label(keys[path], value) for path, value in of_grid.items())]
            changes = [(f"{where}grid: ", at(path, value)) for path, value in of_grid.items()]
            yield _Point(labels=tuple(filter(None, labels)) or (sweep.base,), changes=(*own, *changes))


def label(key: str, value: Any) -> str:
    """A value in the name of a variant: ``rank=8``, ``fedprox (mu=0.01)``.

    Example:
        >>> label("rank", 8), label("aggregator", {"name": "fedprox", "mu": 0.01}), label("leave_out", ["HK"])
        ('rank=8', 'fedprox (mu=0.01)', 'leave_out=HK')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and (word := word_of(value)) is not None:
        inner = ", ".join(label(key, item) for key, item in value.items() if key not in PLUGIN_KEYS)
        return f"{word} ({inner})" if inner else word
    if isinstance(value, list | tuple):
        return f"{key}={'+'.join(map(_word, value)) or 'none'}"
    return f"{key}={_word(value)}"


def _word(value: Any) -> str:
    """A value as a file of experiments has it: ``true``, ``null``, ``0.001``."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _short(paths: Sequence[str]) -> dict[str, str]:
    """The last word of every path, the whole path where two end in the same word."""
    last = [path.rpartition(".")[2] for path in paths]
    return {path: word if last.count(word) == 1 else path for path, word in zip(paths, last, strict=True)}


# ---- what can be said before any run is built ------------------------------------------------------------------------


def _problems(sweep: Sweep, points: Sequence[_Point], of_runs: Sequence[Change], where: str) -> list[str]:
    names = [point.name for point in points]
    problems = [f"{where}variants: two are called {name!r}" for name in dict.fromkeys(names) if names.count(name) > 1]
    if sweep.baseline is not None and sweep.baseline not in names:
        problems.append(f"{where}baseline: {_no_variant(sweep.baseline, names)}")
    layers = list(_layers(sweep, of_runs, where))
    for layer in itertools.chain([_Layer(rank=0, place=f"{where}settings.", changes=sweep.settings)], layers):
        problems += _misplaced(layer, sweep)
    return list(dict.fromkeys([*problems, *_overruled(layers, where)]))


def _no_variant(wanted: str, names: Sequence[str]) -> str:
    """That there is none of this name, and which one may be meant: there can be hundreds, with commas in them."""
    close = difflib.get_close_matches(wanted, names, n=1)
    shown = "; ".join(map(repr, names[:5])) + ("; ..." if len(names) > 5 else "")
    return f"no variant {wanted!r}" + (f", did you mean {close[0]!r}?" if close else f" (known: {shown})")


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Settings on their way into a run.

    Args:
        rank: Those of a higher one win.
        place: Where they come from, as errors begin with it.
        changes: The settings.
        mend: How they would be changed on the command line; after a dot comes the setting.
    """

    rank: int
    place: str
    changes: Mapping[str, Any]
    mend: str = ""


def _layers(sweep: Sweep, of_runs: Sequence[Change], where: str) -> Iterator[_Layer]:
    """What runs change beside the settings of all: these may be replaced, the others each have their effect."""
    for name, settings in sweep.variants.items():
        yield _Layer(rank=1, place=f"{where}variants.{name}.", changes=settings, mend=f"{SWEEP}.variants.{name}.")
    for path, values in sweep.grid.items():
        mend = f"{SWEEP}.grid.{path}=[...]"
        yield from (_Layer(rank=2, place=f"{where}grid.", changes=at(path, value), mend=mend) for value in values)
    if sweep.select is not None:
        changes = at(sweep.select.path, sweep.select.values[0])
        yield _Layer(rank=3, place=f"{where}select.over: ", changes=changes, mend=f"{SWEEP}.select.values=[...]")
    yield from (_Layer(rank=4, place=place, changes=changes) for place, changes in of_runs)


MISPLACED = {"seed": f"{SWEEP}.seeds", "purpose": "the entry itself, beside sweep"}
"""Settings that a sweep has in another place."""


DECIDES_SCORES = ("data", "split", "split_seed", "evaluation", "windows", "seed")
"""Parts of an experiment that decide what is scored: nothing of them can be selected by its score."""


def _misplaced(layer: _Layer, sweep: Sweep) -> Iterator[str]:
    changes = leaves(layer.changes)
    for path in MISPLACED.keys() & changes.keys():
        yield f"{layer.place}{path}: expected in {MISPLACED[path]}"
    if sweep.select is not None and sweep.select.path.split(".")[0] in DECIDES_SCORES:
        yield (
            f"{layer.place}{sweep.select.path}: expected a setting that leaves alone which volumes are scored and how, "
            "as values are compared by their scores"
        )
    if sweep.select is not None and changes.get("evaluation.test", "last") != "last":
        yield (
            f"{layer.place}evaluation.test: expected 'last', as test volumes wait for what is selected, "
            f"got {changes['evaluation.test']!r}"
        )


def _overruled(layers: Sequence[_Layer], where: str) -> Iterator[str]:
    """What would replace a setting of another layer, which then had no effect; said once."""
    told = set()
    for upper in layers:
        for by in leaves(upper.changes):
            losing = ((lower, _lost(lower, by)) for lower in layers if lower.rank < upper.rank)
            lower, lost = next((pair for pair in losing if pair[1]), (upper, None))
            if lost is None or by in MISPLACED or (upper.place, by) in told:
                continue
            told.add((upper.place, by))
            there = f"{SWEEP}.{lower.place.removeprefix(where)}{lost}"
            setting = f"{lower.mend}{lost}=..." if lower.mend.endswith(".") else lower.mend
            mend = f"change it there, with --set {setting}" if upper.rank == 4 else "remove one of them"
            yield f"{upper.place}{by}: expected a setting that replaces no other, but there is {there}; {mend}"


def _lost(lower: _Layer, by: str) -> str | None:
    """The first setting that a value at the path ``by`` replaces: there, below, or of another plug-in there."""
    plugin = by.removesuffix(".name").removesuffix(".class")
    return next((path for path in leaves(lower.changes) if f"{path}.".startswith(f"{plugin}.")), None)


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Built:
    """Builds cells, and gathers what is wrong with them."""

    file: ExperimentsFile
    sweep: Sweep
    where: str
    of_runs: Sequence[Change]
    problems: list[str]

    def variant(self, point: _Point) -> Variant:
        select = self.sweep.select
        choices = (None,) if select is None else select.values
        experiments = [(choice, self._experiment(point, choice)) for choice in choices]
        cells = (
            Cell(
                variant=point.name,
                seed=seed,
                choice=choice,
                over="choice" if select is None else _short([select.over])[select.over],
                experiment=replace(experiment, seed=seed),
            )
            for seed in self.sweep.seeds
            for choice, experiment in experiments
            if experiment is not None
        )
        return Variant(name=point.name, settings=point.settings, cells=tuple(cells))

    def _experiment(self, point: _Point, choice: Any) -> Experiment | None:
        """What all seeds of a point run, but for the seed; None where something is wrong."""
        of_all: Change = (f"{self.where}settings.", self.sweep.settings)
        changes = [of_all, *point.changes, *_chosen(self.sweep.select, choice, self.where), *self.of_runs]
        try:
            return build_experiment(self.sweep.base, self.file, changes)
        except ConfigError as error:
            self.problems.extend(text for text in map(str, error.problems) if text not in self.problems)
            return None


def _chosen(select: Select | None, choice: Any, where: str) -> list[Change]:
    """What selecting changes: the setting, and test volumes wait until it is chosen."""
    if select is None:
        return []
    return [(f"{where}select: ", at(select.path, choice)), ("", {"evaluation": {"test": "last"}})]


def same_run(experiment: Experiment) -> str:
    """Equal exactly where two experiments are the same run wherever their data and weights lie."""
    whole, without_paths = resolve(experiment), resolve(experiment, without=Path)
    weights = experiment.model.weights
    return json.dumps([identity(experiment), weights, _differing(whole, without_paths)], sort_keys=True)


def _differing(whole: Any, part: Any) -> Any:
    """What of a nested mapping is missing in another."""
    if not isinstance(whole, Mapping):
        return None
    found = {key: value if key not in part else _differing(value, part[key]) for key, value in whole.items()}
    return {key: value for key, value in found.items() if value} or None


def _same(variants: Sequence[Variant], where: str) -> list[str]:
    """Variants that are the same experiment as one before them, at one seed: so they are at all."""
    seen: dict[str, Cell] = {}
    problems = []
    for variant in variants:
        for cell in variant.cells:
            if cell.seed != variant.cells[0].seed:
                continue
            other = seen.setdefault(same_run(cell.experiment), cell)
            if other is not cell:
                first, second = (each.key.rpartition(", seed")[0] for each in (other, cell))
                problems.append(
                    f"{where}variants: expected different runs, got {first!r} and {second!r}, which differ in nothing "
                    "that changes a result"
                )
    return problems


# ---- references ------------------------------------------------------------------------------------------------------


def _with_references(variants: Sequence[Variant], sweep: Sweep, labels: Mapping[str, tuple[str, ...]]) -> list[Variant]:
    """The variants, each with the names of its references, then these."""
    named: dict[str, dict[str, str]] = {variant.name: {} for variant in variants}
    taken, made = set(named), []
    for role in (role for role in ROLES if role in sweep.references):
        found = _grouped(variants, role, sweep)
        for members, cells in found:
            name = _reference_name(role, [labels[member] for member in members], taken, only=len(found) == 1)
            taken.add(name)
            made.append(Variant(name=name, role=role, cells=tuple(replace(cell, variant=name) for cell in cells)))
            for member in members:
                named[member][role] = name
    return [*(replace(variant, references=named[variant.name]) for variant in variants), *made]


def _reference_name(role: str, members: Sequence[tuple[str, ...]], taken: set[str], *, only: bool) -> str:
    """``local``; where there are several, ``local of`` what its variants have in common, or the first of them."""
    shared = ", ".join(part for part in members[0] if all(part in other for other in members))
    first = ", ".join(members[0])
    names = [role, f"{role} reference"] if only else [f"{role} of {shared}", f"{role} of {first}"]
    return next((name for name in names if name not in taken and not name.endswith(" of ")), f"{role} for {first}")


def _grouped(variants: Sequence[Variant], role: str, sweep: Sweep) -> list[tuple[list[str], list[Cell]]]:
    """Per different reference of a role, the variants that share it, and its cells."""
    groups: dict[str, tuple[list[str], list[Cell]]] = {}
    for variant in variants:
        cells = list(_reference_cells(variant, role, sweep))
        first = [same_run(cell.experiment) for cell in cells if cell.seed == cells[0].seed]
        groups.setdefault("\n".join(first), ([], cells))[0].append(variant.name)
    return list(groups.values())


def _reference_cells(variant: Variant, role: str, sweep: Sweep) -> Iterator[Cell]:
    """One per run of the variant; but zero-shot has nothing to be tuned: one per seed."""
    make = local_everywhere if role == "local" and "best_site" in sweep.references else ROLES[role]
    seeds = set()
    for cell in variant.cells:
        if role != "zero_shot":
            yield replace(cell, experiment=make(cell.experiment))
        elif cell.seed not in seeds:
            seeds.add(cell.seed)
            yield replace(cell, choice=None, experiment=make(cell.experiment))


def _in_order(variants: Sequence[Variant]) -> tuple[Cell, ...]:
    seeds = dict.fromkeys(cell.seed for variant in variants for cell in variant.cells)
    return tuple(cell for seed in seeds for variant in variants for cell in variant.cells if cell.seed == seed)
