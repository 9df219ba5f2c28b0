"""What a sweep is: a base experiment, what varies, the seeds, and what it is compared with.

In experiments.yaml an entry with the key ``sweep``::

    ranks-small:
      purpose: How much rank the adapters need.
      sweep:
        base: fed-kits19-small
        settings: {rounds: 5}
        grid: {method.lora.rank: [1, 2, 4, 8]}
        seeds: [0, 1, 2]

An entry may extend another sweep: mappings are merged, and a variant or path that is null in it is dropped.

Nothing here knows what a setting means, so that ``wardround list`` needs no model code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from .. import yaml12
from ..builder import ConfigError, Problem, build, merge, unknown
from ..experiments import DOCUMENTATION, SWEEP, ExperimentsFile
from ..reports.page import count_text

Reference = Literal["local", "pooled", "zero_shot", "best_site"]

REFERENCES: tuple[Reference, ...] = ("local", "pooled", "zero_shot", "best_site")

SHORT = {"lr": "training.optimizer.lr"}
"""Names that stand for a path."""


@dataclass(frozen=True, kw_only=True)
class Select:
    """Every variant is run with several values of one setting, and compared at the value that is best for it.

    Args:
        over: Path of the setting; ``lr`` stands for ``training.optimizer.lr``.
        values: The values that are tried, at least two; null is none.
        on: Where the best one is chosen: the mean Dice of the validation volumes after the last round, over all seeds.
    """

    over: str
    values: tuple[Any, ...]
    on: Literal["validation"] = "validation"

    def __post_init__(self) -> None:
        if len(self.values) < 2 or _repeated(self.values) or None in self.values:
            raise ValueError(f"values: expected at least two different values, not null; got {list(self.values)!r}")

    @property
    def path(self) -> str:
        """Path of the setting in an experiment."""
        return SHORT.get(self.over, self.over)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Many runs that are compared with each other.

    Args:
        base: The experiment that all runs start from.
        settings: What all runs change of it.
        variants: What is compared, by name: settings on top of those.
        grid: Values per path; every variant is run at every point of the grid.
        seeds: Every variant is run with every one of them.
        baseline: The variant that the others are compared with; None: the first one.
        references: Runs without a federation, shared by all variants that differ in the aggregator only: ``local``:
            every hospital alone; ``pooled``: one model on all cases, with as many steps; ``zero_shot``: the base as it
            is; ``best_site``: the best of the local models everywhere (no run of its own: it needs ``local``).
        select: A setting that is tuned for every variant; None: nothing is.
    """

    base: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    baseline: str | None = None
    references: tuple[Reference, ...] = REFERENCES
    select: Select | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.seeds or _repeated(self.seeds) or min(self.seeds) < 0:
            problems.append(f"seeds: expected different numbers of at least 0, got {list(self.seeds)!r}")
        if "" in self.variants:
            problems.append("variants: expected a name for every variant, got ''")
        for path, values in self.grid.items():
            if not values or _repeated(values):
                problems.append(f"grid.{path}: expected different values, got {list(values)!r}")
        if _repeated(self.references):
            problems.append(f"references: expected every one once, got {list(self.references)!r}")
        if "best_site" in self.references and "local" not in self.references:
            problems.append("references: expected local too, of whose models best_site is the best one")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a sweep is.

    Args:
        variants: What is compared, with the grid.
        seeds: Of each.
        values: Values of the selected setting that are tried; 1: nothing is selected.
        runs: All runs, references included: what :func:`.plan.make_plan` makes, where no variant repeats what its base
            has anyway.
    """

    variants: int
    seeds: int
    values: int
    runs: int


def size_of(sweep: Sweep) -> Size:
    """Counts the runs of a sweep without building them."""
    values = 1 if sweep.select is None else len(sweep.select.values)
    variants = list(_changes(sweep))
    of_each = {"local": values, "pooled": values, "zero_shot": 1}
    references = sum(
        of_each[role] * len({_text(_without(changes, UNSEEN_BY[role])) for changes in variants})
        for role in sweep.references
        if role in of_each
    )
    seeds = len(sweep.seeds)
    return Size(variants=len(variants), seeds=seeds, values=values, runs=seeds * (len(variants) * values + references))


def size_text(name: str, file: ExperimentsFile) -> str:
    """``size: 8 variants x 3 seeds, 33 runs with references``, or that the definition has problems."""
    try:
        size = size_of(load_sweep(name, file))
    except ConfigError as error:
        return f"size: not known, the definition has {count_text(len(error.problems), 'problem')}"
    parts = [count_text(size.variants, "variant"), count_text(size.seeds, "seed")]
    values = [f"{size.values} values"] if size.values > 1 else []
    return f"size: {' x '.join([*parts, *values])}, {count_text(size.runs, 'run')} with references"


_SERVER = ("aggregator", "weights", "stages", "instruments")

UNSEEN_BY: Mapping[str, tuple[str, ...]] = {
    "local": _SERVER,
    "pooled": (*_SERVER, "ranks", "pooled"),
    "zero_shot": (*_SERVER, "ranks", "pooled", "rounds", "cohort", "training", "augment"),
}
"""Settings that a reference does not look at (:mod:`.references`): variants that differ in them alone share it."""


def _changes(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """What every variant at every point of the grid changes."""
    points: list[dict[str, Any]] = [{}]
    for path, values in sweep.grid.items():
        points = [layered(point, at(path, value)) for point in points for value in values]
    for settings in sweep.variants.values() or [{}]:
        yield from (layered(settings, point) for point in points)


def _without(changes: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if key not in keys}


# ---- reading a definition --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What could be read of a sweep, and what is wrong with it.

    Args:
        sweep: Without the parts that are wrong; None where it has no base.
        problems: One line each.
    """

    sweep: Sweep | None
    problems: tuple[str, ...] = ()


def load_sweep(name: str, file: ExperimentsFile, overrides: Sequence[str] = ()) -> Sweep:
    """Reads the definition of a sweep.

    Args:
        name: The entry.
        file: What :func:`..experiments.open_file` read.
        overrides: ``sweep.path=value``, such as ``sweep.seeds=[0]``; the later ones win.

    Raises:
        ConfigError: with every problem of the definition; or the entry is no sweep.
    """
    found = read_definition(name, file, overrides)
    if found.problems or found.sweep is None:
        raise ConfigError(found.problems)
    return found.sweep


def read_definition(name: str, file: ExperimentsFile, overrides: Sequence[str] = ()) -> Definition:
    """Reads as much as there is of the definition of a sweep; what is built of the rest can then be checked too.

    Raises:
        ConfigError: the entry is no sweep, or an override no ``path=value``.
    """
    chain = file.layers(name)
    if name not in file.sweeps:
        raise ConfigError([f"{name!r} is one experiment, no sweep: `wardround run {name}`"])
    layers: list[_Layer] = [
        (f"{file.path}: {entry}.", value[SWEEP]) for entry, value in reversed(chain) if SWEEP in value
    ]
    merged, problems = _merged(layers, overrides)
    sweep, wrong = _built(merged)
    problems += [f"{_place(layers, problem.path)}{problem}" for problem in wrong]
    return Definition(sweep=sweep, problems=(*_beside(chain, file), *problems))


_Layer = tuple[str, Any]
"""A part of a definition, and where it comes from, as errors begin with it."""


def _beside(chain: Sequence[tuple[str, Mapping[str, Any]]], file: ExperimentsFile) -> Iterator[str]:
    """Problems with what stands beside the key ``sweep``, in the entry and in those it extends."""
    known = ("extends", SWEEP, *DOCUMENTATION)
    inside = [field.name for field in fields(Sweep)]
    for entry, value in chain:
        where = f"{file.path}: {entry}"
        if SWEEP not in value and entry not in file.sweeps:
            child = next(name for name, other in chain if other.get("extends") == entry)
            wanted = f"expected another sweep, got the experiment {entry!r}: name it as {SWEEP}.base"
            yield f"{file.path}: {child}.extends: {wanted}"
            return
        for key in value:
            if key in inside:
                yield f"{where}.{key}: expected below {SWEEP}: indent it"
            elif key not in known:
                yield f"{where}.{key}: expected below {SWEEP}.settings, or " + unknown("a known key", key, known)


def _merged(layers: list[_Layer], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """All layers, the later ones on top; overrides are added to them."""
    merged: dict[str, Any] = {}
    problems: list[str] = []
    for label, value in layers:
        merged = _on_top(merged, value, label, problems)
    for text in overrides:
        value = _override(text, merged)
        layers.append(("--set ", value))
        merged = _on_top(merged, value, "--set ", problems)
    return merged, problems


def _on_top(merged: dict[str, Any], value: Any, label: str, problems: list[str]) -> dict[str, Any]:
    """One layer more. What it drops must be there: a variant that changes nothing is ``{}``, no empty line."""
    if not isinstance(value, Mapping):
        problems.append(f"{label}{SWEEP}: expected a mapping with keys such as base and variants, got {value!r}")
        return merged
    result = layered(merged, value)
    for part, wanted, what in (("variants", "settings, {} for none", "variant"), ("grid", "a list", "path")):
        given, known = value.get(part), merged.get(part)
        if not isinstance(given, Mapping):
            continue
        earlier = known if isinstance(known, Mapping) else {}
        for key in [key for key, item in given.items() if item is None]:
            del result[part][key]
            if key not in earlier:
                drops = f"nothing, which drops a {what} of the sweep that is extended"
                problems.append(f"{label}{SWEEP}.{part}.{key}: expected {wanted}, got {drops}")
    return result


def _override(text: str, merged: Mapping[str, Any]) -> dict[str, Any]:
    """``sweep.seeds=[0]`` as ``{"seeds": [0]}``. A path of the grid is one key; so is the name of a variant."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) < 2:
        raise ConfigError([f"--set {text}: expected path=value, such as {SWEEP}.seeds=[0]"])
    part, rest = keys[1], ".".join(keys[2:])
    if part == "grid" and rest:
        keys = [SWEEP, part, rest]
    known = merged.get("variants")
    if part == "variants" and isinstance(known, Mapping):
        named = [name for name in known if isinstance(name, str) and f"{rest}.".startswith(f"{name}.")]
        if named:
            variant = max(named, key=len)
            keys = [SWEEP, part, variant, *filter(None, rest.removeprefix(variant).split("."))]
    found: dict[str, Any] = at_keys(keys[1:], yaml12.loads(value, f"--set {text}"))
    return found


def _built(merged: Mapping[str, Any]) -> tuple[Sweep | None, list[Problem]]:
    """The sweep, or what there is of it without the parts that are wrong, and all problems."""
    rest, problems = dict(merged), list[Problem]()
    while True:
        try:
            return build(Sweep, rest, SWEEP), problems
        except ConfigError as error:
            found = [problem for problem in error.problems if isinstance(problem, Problem)]
        removed = merged.keys() - rest.keys()
        problems += [problem for problem in found if _first(problem.path) not in removed]
        rest = {key: value for key, value in rest.items() if key not in map(_first, (each.path for each in found))}
        if "base" not in rest:
            return None, problems


def _first(path: str) -> str:
    """The key of a definition that a problem lies in."""
    return path.removeprefix(f"{SWEEP}.").partition(".")[0].partition("[")[0]


def _place(layers: Sequence[_Layer], path: str) -> str:
    """Where what is wrong at a path of the merged definition comes from: the last layer that has it, or the entry."""
    inside = path.removeprefix(f"{SWEEP}.")
    having = [label for label, value in layers if isinstance(value, Mapping) and _holds(value, inside)]
    own = [label for label, _ in layers if label != "--set "]
    return having[-1] if having else own[-1]


def _holds(value: Mapping[str, Any], path: str) -> bool:
    """Whether a part of a definition has a key of ``path``, whose keys may hold dots, and what is below it."""
    for key, inner in value.items():
        rest = path.removeprefix(str(key))
        if rest != path and (not rest or rest[0] in ".["):
            deeper = isinstance(inner, Mapping) and rest.startswith(".")
            return _holds(inner, rest[1:]) if deeper else True
    return False


# ---- small helpers ---------------------------------------------------------------------------------------------------


def at(path: str, value: Any) -> dict[str, Any]:
    """A value at a path, nested.

    Example:
        >>> at("method.lora.rank", 8)
        {'method': {'lora': {'rank': 8}}}
    """
    found: dict[str, Any] = at_keys(path.split("."), value)
    return found


def at_keys(keys: Sequence[str], value: Any) -> Any:
    """A value below keys."""
    for key in reversed(keys):
        value = {key: value}
    return value


def layered(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`..builder.merge` of settings in which a plug-in may be a word.

    Example:
        >>> layered({"aggregator": "fedprox"}, {"aggregator": {"mu": 0.1}})
        {'aggregator': {'name': 'fedprox', 'mu': 0.1}}
    """
    return merge(_spelled_out(base, change), _spelled_out(change, base))


def _spelled_out(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``plugin: word`` as ``plugin: {name: word}`` where the other side has a mapping."""
    result = dict(one)
    for key, value in one.items():
        if not isinstance(other.get(key), Mapping):
            continue
        if isinstance(value, str):
            result[key] = {"name": value}
        elif isinstance(value, Mapping):
            result[key] = _spelled_out(value, other[key])
    return result


def _repeated(values: Sequence[Any]) -> bool:
    return any(value in values[:place] for place, value in enumerate(values))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
