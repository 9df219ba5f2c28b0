"""An experiment as it is given in Python: a name, settings or an experiment, with overrides on top."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .builder import ConfigError, Problem, resolve, resolve_field
from .config import Change, Experiment, build_stacked, layers_of, settings_of
from .experiments import open_file

DEFAULT_NAME = "notebook"
"""What an experiment is called whose settings have no name; also its folder."""

DOT = "__"
"""Two underscores stand for a dot in the name of an override."""


def experiment_of(
    experiment: str | Mapping[str, Any] | Experiment, experiments: Path | None, overrides: Mapping[str, Any]
) -> Experiment:
    """Builds an experiment.

    Args:
        experiment: Of what.
        experiments: File of experiments; None: the one that the command line takes.
        overrides: Settings by path, with two underscores for a dot.

    Raises:
        ConfigError: with every problem.
    """
    if isinstance(experiment, Experiment) and not overrides:
        return experiment
    changes = {name: value for name, value in overrides.items() if name != "name"}
    layers = [_change(name, value) for name, value in reversed(changes.items())]
    name, purpose, below = _below(experiment, experiments)
    try:
        return build_stacked(overrides.get("name", name), purpose, [*layers, *below], where="")
    except ConfigError as error:
        raise ConfigError(_as_written(str(problem), changes) for problem in error.problems) from error


def _below(experiment: str | Mapping[str, Any] | Experiment, experiments: Path | None) -> tuple[str, str, list[Change]]:
    """Name, purpose and the settings that overrides are put on, the winning ones first."""
    if isinstance(experiment, Experiment):
        settings = resolve(experiment)
        return settings.pop("name"), experiment.purpose, [("", settings)]
    if isinstance(experiment, str):
        file = open_file(experiments)
        return experiment, file.entries.get(experiment, {}).get("purpose", ""), layers_of(experiment, file)
    if not isinstance(experiment, Mapping):
        raise ConfigError([f"experiment: expected a name, settings or an Experiment, got {experiment!r}"])
    settings = {key: _plain(key, value) for key, value in experiment.items()}
    name, above = settings.pop("name", DEFAULT_NAME), settings.get("extends")
    if not isinstance(above, str | None):
        raise ConfigError([Problem("extends", f"expected the name of an experiment, got {above!r}")])
    inherited = [] if above is None else layers_of(above, open_file(experiments))
    return name, settings.get("purpose", ""), [("", settings_of(settings)), *inherited]


def _change(written: str, value: Any) -> Change:
    """An override as nested settings; errors about it begin with its name where that is not a setting's path."""
    keys = written.split(DOT)
    if not all(keys):
        raise ConfigError([Problem(written, f"expected names of settings joined by {DOT!r}, as in method__lora__rank")])
    nested = _plain(written, value)
    for key in reversed(keys):
        nested = {key: nested}
    return (f"{written}: " if len(keys) > 1 else ""), nested


def _plain(path: str, value: Any) -> Any:
    """What YAML could hold: numbers of NumPy as numbers, tuples as lists, paths as texts, plug-ins as mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and path in _FIELDS:
        return resolve_field(Experiment, path, value)
    if isinstance(value, Mapping):
        return {key: _plain(f"{path}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(f"{path}[{place}]", item) for place, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # a number or an array of NumPy or torch
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    expected = "a number, a text, true, false, None, a list or a mapping of such"
    raise ConfigError([Problem(path, f"expected {expected}, got {value!r}")])


_FIELDS = frozenset(field.name for field in dataclasses.fields(Experiment))


def _as_written(problem: str, changes: Mapping[str, Any]) -> str:
    """``method__lora__rnak: method.lora.rnak: unknown`` as ``method__lora__rnak: unknown``; others as they are."""
    for written in changes:
        path = written.replace(DOT, ".")
        if path != written and problem.startswith(f"{written}: {path}"):
            return f"{written}{problem.removeprefix(f'{written}: {path}')}"
    return problem
