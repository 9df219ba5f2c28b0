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
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .builder import ConfigError, Problem, build, merge
from .config import nested
from .experiments import SWEEP, ExperimentsFile

Reference = Literal["local", "pooled", "zero_shot", "best_site"]

REFERENCES: tuple[Reference, ...] = ("local", "pooled", "zero_shot", "best_site")

SHORT = {"lr": "training.optimizer.lr"}
"""Names that stand for a path."""


@dataclass(frozen=True, kw_only=True)
class Select:
    """Every variant is run with several values of one setting, and compared at the value that is best for it.

    Args:
        over: Path of the setting; ``lr`` stands for ``training.optimizer.lr``.
        values: The values that are tried, at least two.
        on: Where the best one is chosen: the mean Dice of the validation volumes after the last round, over all seeds.
    """

    over: str
    values: tuple[Any, ...]
    on: Literal["validation"] = "validation"

    def __post_init__(self) -> None:
        if len(self.values) < 2 or _repeated(self.values):
            raise ValueError(f"values: expected at least two different values, got {list(self.values)!r}")

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
        for path, values in self.grid.items():
            if not values or _repeated(values):
                problems.append(f"grid.{path}: expected different values, got {list(values)!r}")
        if _repeated(self.references):
            problems.append(f"references: expected every one once, got {list(self.references)!r}")
        if "best_site" in self.references and "local" not in self.references:
            problems.append("references: expected local too, of whose models best_site is the best one")
        if self.select is not None and self.select.path in self.grid:
            problems.append(f"select: expected a setting that is not in the grid, got {self.select.over!r}")
        if problems:
            raise ValueError("; ".join(problems))


def load_sweep(name: str, file: ExperimentsFile, overrides: Sequence[str] = ()) -> Sweep:
    """Reads the definition of a sweep.

    Args:
        name: The entry.
        file: What :func:`.experiments.open_file` read.
        overrides: ``sweep.path=value``, such as ``sweep.seeds=[0]``; the later ones win.

    Raises:
        ConfigError: with every problem of the definition; or the entry is no sweep.
    """
    layers = file.layers(name)
    if name not in file.sweeps:
        raise ConfigError([f"{name!r} is one experiment, no sweep: `wardround run {name}`"])
    beside = [
        Problem(f"{entry}.{key}", "expected under sweep.settings: a sweep has no settings of its own")
        for entry, value in layers
        for key in value
        if key not in (SWEEP, "extends", "purpose", "paper", "expected_time", "expected_score")
    ]
    if beside:
        raise ConfigError(f"{file.path}: {problem}" for problem in beside)
    merged: dict[str, Any] = {}
    for value in [*(entry.get(SWEEP) for _, entry in reversed(layers)), *(nested(text)[SWEEP] for text in overrides)]:
        merged = merge(merged, value or {})
    try:
        return build(Sweep, _without_dropped(merged), SWEEP)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {name}.{problem}" for problem in error.problems) from error


def _without_dropped(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Variants and paths of the grid that a later layer made null are gone."""
    parts = {key: value for key, value in definition.items() if key in ("variants", "grid")}
    kept = {
        key: {name: item for name, item in value.items() if item is not None}
        for key, value in parts.items()
        if isinstance(value, Mapping)
    }
    return {**definition, **kept}


def _repeated(values: Sequence[Any]) -> bool:
    return any(value in values[:place] for place, value in enumerate(values))
