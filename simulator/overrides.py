"""An experiment as it is given in Python: a name, settings or an experiment, with overrides on top."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .builder import ConfigError, Problem, hints_below, resolve, resolve_as
from .config import Change, Experiment, build_stacked, layers_of, settings_of
from .experiments import ExperimentsFile, open_file
from .plug_ins import hint_problem

DEFAULT_NAME = "notebook"
"""What an experiment is called whose settings have no name; also its folder."""

DOT = "__"
"""Two underscores stand for a dot in the name of an override; a dot is one too."""


def experiment_of(
    experiment: str | Mapping[str, Any] | Experiment,
    experiments: Path | None,
    overrides: Mapping[str, Any],
    *,
    arguments: Collection[str] = (),
) -> Experiment:
    """Builds an experiment.

    Args:
        experiment: Of what.
        experiments: File of experiments; None: the one that the command line takes.
        overrides: Settings by path, with two underscores for a dot.
        arguments: What else could be meant by a word that is no setting.

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
        written = [_as_written(str(problem), changes) for problem in error.problems]
        raise ConfigError(_or_argument(problem, changes, arguments) for problem in written) from error


def _below(experiment: str | Mapping[str, Any] | Experiment, experiments: Path | None) -> tuple[str, str, list[Change]]:
    """Name, purpose and the settings that overrides are put on, the winning ones first."""
    if isinstance(experiment, Experiment):
        settings = resolve(experiment)
        return settings.pop("name"), experiment.purpose, [("", settings)]
    if isinstance(experiment, str):
        file = _opened(experiments)
        return experiment, file.entries.get(experiment, {}).get("purpose", ""), layers_of(experiment, file)
    if not isinstance(experiment, Mapping):
        raise ConfigError([f"experiment: expected a name, settings or an Experiment, got {experiment!r}"])
    settings = _plain("", experiment, [Experiment])
    name, above = settings.pop("name", DEFAULT_NAME), settings.get("extends")
    if not isinstance(above, str | None):
        raise ConfigError([Problem("extends", f"expected the name of an experiment, got {above!r}")])
    inherited = [] if above is None else layers_of(above, _opened(experiments))
    return name, settings.get("purpose", ""), [("", settings_of(settings)), *inherited]


def _opened(experiments: Path | None) -> ExperimentsFile:
    """The file of experiments. Raises ConfigError where it cannot be read."""
    try:
        return open_file(experiments)
    except OSError as error:
        expected = "expected a file of experiments that can be read"
        raise ConfigError([f"experiments: {expected}, got {str(experiments)!r}: {error.strerror}"]) from error


def _change(written: str, value: Any) -> Change:
    """An override as nested settings; errors about it begin with its name where that is not a setting's path."""
    keys = _keys(written)
    if not all(keys):
        raise ConfigError([Problem(written, f"expected names of settings joined by {DOT!r}, as in method__lora__rank")])
    hints: list[Any] = [Experiment]
    for key in keys:
        hints = hints_below(hints, key)
    nested = _plain(written, value, hints)
    for key in reversed(keys):
        nested = {key: nested}
    return (f"{written}: " if len(keys) > 1 else ""), nested


def _keys(written: str) -> list[str]:
    return re.split(rf"{DOT}|\.", written)


def _plain(path: str, value: Any, hints: Sequence[Any], above: tuple[int, ...] = ()) -> Any:
    """What YAML could hold: numbers of NumPy as numbers, tuples as lists, paths as texts, plug-ins as mappings.

    Args:
        path: Where it stands, for errors.
        value: What was given.
        hints: The type hints that it may have there.
        above: The mappings and lists that hold it, by id.
    """
    if id(value) in above:
        raise ConfigError([Problem(path, f"expected settings, got a {type(value).__name__} that holds itself")])
    if isinstance(value, type):
        raise ConfigError([Problem(path, f"expected an object, such as {value.__name__}(), got the class")])
    if dataclasses.is_dataclass(value):
        return _resolved(path, value, hints)
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return {
            key: _plain(f"{path}.{key}".lstrip("."), item, hints_below(hints, key), above)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | range):
        return [_plain(f"{path}[{place}]", item, hints_below(hints, place), above) for place, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # a number or an array of NumPy or torch
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    expected = "a number, a text, true, false, None, a list or a mapping of such"
    raise ConfigError([Problem(path, f"expected {expected}, got {value!r}")])


def _resolved(path: str, value: Any, hints: Sequence[Any]) -> Any:
    """The plain values of a dataclass; its class may be somebody's."""
    if problem := hint_problem(type(value)):
        raise ConfigError([Problem(path, problem)])
    return resolve_as(hints, value)


def _as_written(problem: str, changes: Mapping[str, Any]) -> str:
    """``method__lora__rnak: method.lora.rnak: unknown`` as ``method__lora__rnak: unknown``; others as they are."""
    for written in changes:
        keys = _keys(written)
        path = ".".join(keys)
        if len(keys) > 1 and problem.startswith(f"{written}: {path}"):
            return f"{written}{problem.removeprefix(f'{written}: {path}')}"
    return problem


def _or_argument(problem: str, changes: Mapping[str, Any], arguments: Collection[str]) -> str:
    """A word that is no setting, with the argument of the function that it is near to."""
    for written in changes:
        close = difflib.get_close_matches(written, arguments, n=1)
        if close and problem.startswith(f"{written}: unknown key"):
            return f"{problem}; or is the argument {close[0]!r} meant?"
    return problem
