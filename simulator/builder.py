"""Frozen dataclasses from plain mappings by their type hints, strictly, with every problem reported at once.

Nothing is converted but a whole number to a float, a text to a path and a list to a tuple. A field that holds a plug-in
carries its table as annotation, ``Annotated[Aggregator, AGGREGATORS]``; a union of dataclasses, ``AdamW | SGD``, is a
table of its own, named by the classes in lower case. A plug-in is written in one of four ways::

    aggregator: fedavg
    aggregator: {name: fedprox, mu: 0.01}
    aggregator: {class: "mypackage.mine:MyAggregator", mu: 0.1}
    optimizer: {lr: 1e-3}     # without a name: of the class that is the field's default

This module and what it imports need the standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, get_args, get_origin

from .plug_ins import hint_problem, import_class, where

T = TypeVar("T")
Table = Mapping[str, type]
_INVALID: Any = object()  # stands for a value that has a problem
PLUGIN_KEYS = ("name", "class")
"""What says which plug-in a mapping is; all else in it are settings."""


@dataclass(frozen=True)
class Problem:
    """What is wrong at a path such as ``method.lora.rank``; the empty path is the whole value."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True)
class Misplaced(Problem):
    """A class that is not what its field asks for, and may be what another one does."""

    cls: type


class ConfigError(ValueError):
    """Every problem of a configuration at once, one per line."""

    def __init__(self, problems: Iterable[Problem | str]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        super().__init__(lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems:", *lines]))


def build(cls: type[T], value: object, path: str = "") -> T:
    """Makes a dataclass from plain values.

    Args:
        cls: A dataclass; its type hints say what may come.
        value: Nested dicts, lists and scalars, as read from YAML.
        path: Where the value is, put before every path in errors.

    Raises:
        ConfigError: with every problem: unknown, missing and ill-typed keys, values out of range, unknown plug-ins.

    Example:
        >>> from wardround.simulator.sampling import Cohort
        >>> build(Cohort, {"sampling": "fixed", "size": 3})
        Cohort(sampling='fixed', size=3, rate=None, drop_rate=0.0)
        >>> build(Cohort, {"sampling": "fixed", "sise": "3"}, "cohort")
        Traceback (most recent call last):
        ...
        wardround.simulator.builder.ConfigError: cohort.sise: unknown key, did you mean 'size'? (known: ...)
    """
    problems: list[Problem] = []
    result = _dataclass(cls, value, path, problems)
    if problems:
        raise ConfigError(problems)
    return typing.cast(T, result)


def resolve(value: object, without: type | tuple[type, ...] = ()) -> Any:
    """The plain values of a dataclass: every default written out, plug-ins with their name.

    :func:`build` reads it back to an equal object. A class that stands in its table twice gets its first name there.

    Args:
        value: A dataclass, or anything a field of one may hold.
        without: Fields that hold a value of these types are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        hints = _hints(type(value))
        return {
            name: _resolved(hints[name], item, without) for name, item in held.items() if not isinstance(item, without)
        }
    if isinstance(value, Mapping):
        return {key: resolve(item, without) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, without) for item in value]
    return str(value) if isinstance(value, Path) else value


def _resolved(hint: Any, value: object, without: type | tuple[type, ...]) -> Any:
    """The plain value of a field, a plug-in with its name, a list of plug-ins with theirs."""
    items = get_args(_plain(hint)) if isinstance(value, tuple) else ()
    if isinstance(value, tuple) and items[1:] == (Ellipsis,):
        return [_resolved(items[0], item, without) for item in value]
    plain = resolve(value, without)
    return {**_plugin_head(hint, value), **plain} if isinstance(plain, dict) else plain


def resolve_as(hints: Iterable[Any], value: object) -> Any:
    """The plain values of what a field with one of these type hints is to hold, a plug-in with its name."""
    hint = max(hints, key=lambda hint: _suits(hint, value), default=None)
    return _resolved(hint, value, ())


def _suits(hint: Any, value: object) -> int:
    """How well a value suits a hint: as it says, 2; as a class from outside, 1; not, 0."""
    table = _table(hint)
    if table is None:
        return 2 * (type(value) in map(_bare, _members(_bare(hint))))
    return 2 if type(value) in table.values() else 1


def hints_below(hints: Iterable[Any], key: object) -> list[Any]:
    """What the type hints say of a key or a place in values of such hints: of every class that may be there.

    Example:
        >>> from wardround.simulator.sampling import Cohort
        >>> hints_below([Cohort], "size"), hints_below([Cohort], "seize")
        ([int | None], [])
    """
    found = []
    for hint in hints:
        members = [*(_table(hint) or {}).values(), *map(_plain, _members(_plain(hint)))]
        for member in dict.fromkeys(members):
            found += _hint_below(member, key)
    return found


def _hint_below(hint: Any, key: object) -> list[Any]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [_hints(hint)[field.name] for field in dataclasses.fields(hint) if field.name == key]
    origin, items = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(key, int):
        return [items[0]] if items[-1] is Ellipsis else list(items[key : key + 1])
    return [items[1]] if isinstance(origin, type) and issubclass(origin, Mapping) else []


def differing(value: object) -> dict[str, Any]:
    """The plain values of a dataclass where they are not its defaults, as one writes them; :func:`build` reads it back.

    A plug-in has its name, and is a word where it is all defaults.

    Example:
        >>> from wardround.simulator.sampling import Cohort
        >>> differing(Cohort(sampling="fixed", size=3))
        {'sampling': 'fixed', 'size': 3}
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"expected a dataclass, got {value!r}")  # a mistake in the program
    hints = _hints(type(value))
    held = {field: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    return {
        field.name: _written(hints[field.name], item)
        for field, item in held.items()
        if _default(field) is MISSING or item != _default(field)
    }


def _written(hint: Any, value: object) -> Any:
    """A field as one writes it: of a dataclass what differs, a plug-in with its name."""
    items = get_args(_plain(hint)) if isinstance(value, tuple) else ()
    if isinstance(value, tuple) and items[1:] == (Ellipsis,):
        return [_written(items[0], item) for item in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return resolve(value)
    head, rest = _plugin_head(hint, value), differing(value)
    return head["name"] if "name" in head and not rest else {**head, **rest}


def expand(cls: type, value: object) -> Any:
    """The value with every ``plugin: word`` written as ``plugin: {name: word}``, so that mappings can be merged."""
    if not isinstance(value, Mapping) or not dataclasses.is_dataclass(cls):
        return value
    hints = _hints(cls)
    return {key: _expand_field(hints[key], item) if key in hints else item for key, item in value.items()}


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``change`` on top, mapping by mapping; a plug-in of another name or class replaces the old one.

    Args:
        base: Expanded plain values (see :func:`expand`).
        change: Expanded plain values that win.

    Example:
        >>> merge({"a": {"x": 1, "y": 2}, "p": {"name": "u", "x": 1}}, {"a": {"x": 3}, "p": {"name": "v"}})
        {'a': {'x': 3, 'y': 2}, 'p': {'name': 'v'}}
    """
    result = dict(base)
    for key, new in change.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and not _other_plugin(old, new):
            new = merge(old, new)
        result[key] = new
    return result


def leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by path.

    Example:
        >>> leaves({"method": {"lora": {"rank": 8}}, "rounds": 5})
        {'method.lora.rank': 8, 'rounds': 5}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        found |= leaves(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return found


def word_of(settings: Mapping[str, Any]) -> str | None:
    """What a plug-in is called in a text: its name, or its class without the module; None for any other mapping.

    Example:
        >>> word_of({"name": "fedprox", "mu": 0.1}), word_of({"class": "mypackage.mine:MyAggregator", "mu": 0.1})
        ('fedprox', 'MyAggregator')
    """
    word = settings.get("name", settings.get("class"))
    return None if word is None else str(word).rpartition(":")[2]


def called(table: Table, cls: type) -> str:
    """The name of a plug-in in its table; of one that is not there, its class.

    Example:
        >>> class Mine: ...
        >>> called({"mine": Mine}, Mine), called({}, Mine)
        ('mine', 'Mine')
    """
    return next((name for name, row in table.items() if row is cls), cls.__name__)


def unknown(what: str, word: object, known: Iterable[str]) -> str:
    """``unknown key 'rnak', did you mean 'rank'? (known: alpha, rank)``; ``what`` opens the sentence."""
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"{what}{hint} (known: {', '.join(names) or 'none'})"


def _other_plugin(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether ``new`` names a plug-in and ``old`` is not that one."""
    return any(key in new and new[key] != old.get(key) for key in PLUGIN_KEYS)


# ---- by type hint ----------------------------------------------------------------------------------------------------


def _value(hint: Any, value: object, path: str, problems: list[Problem], default: object = None) -> Any:
    """The value as its hint wants it, or ``_INVALID`` with a problem noted; ``default``: of the field."""
    table, allows_none, hint = _table(hint), _allows_none(hint), _plain(hint)
    if value is None and allows_none:
        return None
    if table is not None:
        return _plugin(table, hint, value, path, problems, default)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, path, problems)
    if len(_members(hint)) > 1:
        return _union(hint, value, path, problems)
    origin = get_origin(hint)
    if origin is Literal:
        return _literal(hint, value, path, problems)
    if origin is tuple:
        return _tuple(hint, value, path, problems)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(hint, value, path, problems)
    return _scalar(hint, value, path, problems)


def _dataclass(cls: type, value: object, path: str, problems: list[Problem]) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if not isinstance(value, Mapping):
        return _note(problems, path, f"expected a mapping with keys of {', '.join(fields)}; got {_show(value)}")
    before = len(problems)
    for key in value:
        if key not in fields:
            _note(problems, _join(path, key), unknown("unknown key", key, fields))
    for name, field in fields.items():
        if name not in value and _default(field) is MISSING:
            _note(problems, _join(path, name), "missing" + _choices(_hints(cls)[name]))
    built = {
        name: _value(_hints(cls)[name], value[name], _join(path, name), problems, _default(field))
        for name, field in fields.items()
        if name in value
    }
    problems[before:] = [_pointed_out(cls, path, problem) for problem in problems[before:]]
    if len(problems) == before:
        return _construct(cls, built, path, problems)
    _check_the_rest(cls, built, path, problems)
    return _INVALID


def _construct(cls: type, built: Mapping[str, Any], path: str, problems: list[Problem]) -> Any:
    """The object, or a problem for each sentence of the ValueError that its ``__post_init__`` raised."""
    try:
        return cls(**built)
    except ValueError as error:
        for field, message in _sentences(cls, str(error)):
            _note(problems, _join(path, field), message)
        return _INVALID


def _check_the_rest(cls: type, built: Mapping[str, Any], path: str, problems: list[Problem]) -> None:
    """Range checks of the fields that were fine, while others were not: those get their default, or None."""
    fine = {name: value for name, value in built.items() if value is not _INVALID}
    absent = {f.name: None for f in dataclasses.fields(cls) if f.init and f.name not in fine and _default(f) is MISSING}
    found: list[Problem] = []
    try:
        _construct(cls, {**fine, **absent}, path, found)
    except (TypeError, AttributeError):
        return  # a check that looks at a field which is not there
    problems += [problem for problem in found if problem.path.removeprefix(path).strip(".").split(".")[0] in fine]


def _sentences(cls: type, text: str) -> list[tuple[str, str]]:
    """``"lr: expected ...; eps: expected ..."`` as (field, message) pairs; the field is empty for any other text."""
    names = "|".join(re.escape(field.name) for field in dataclasses.fields(cls))
    start = rf"(?P<field>(?:{names})(?:[.\[][\w.\[\]-]*)?): "
    if not re.match(start, text):
        return [("", text)]
    pairs = [
        re.match(start + r"(?P<message>.*)", part, re.DOTALL)
        for part in re.split(rf"; (?={start.replace('?P<field>', '?:')})", text)
    ]
    return [(pair["field"], pair["message"]) for pair in pairs if pair]


def _plugin(table: Table, hint: Any, value: object, path: str, problems: list[Problem], default: object) -> Any:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        return _note(problems, path, f"expected a name or a mapping, got {_show(value)}{_choices(table)}")
    settings = {key: item for key, item in value.items() if key not in PLUGIN_KEYS}
    cls = _plugin_class(table, value, path, problems, default)
    if cls is _INVALID:
        return _INVALID
    if "class" not in value:
        return _dataclass(cls, settings, path, problems)
    if lacking := _lacking(hint, cls):
        problems.append(Misplaced(path, lacking, cls))
        return _INVALID
    return _foreign(cls, settings, path, problems)


def _foreign(cls: type, settings: Mapping[str, Any], path: str, problems: list[Problem]) -> Any:
    """An object of somebody else's class; what goes wrong in their code is a problem with its line, no crash."""
    try:
        return _dataclass(cls, settings, path, problems)
    except Exception as error:
        told = f"{type(error).__name__}: {error}{where(error, cls.__module__)}"
        return _note(problems, path, f"{cls.__module__}:{cls.__qualname__} cannot be built: {told}")


def _plugin_class(table: Table, value: Mapping[str, Any], path: str, problems: list[Problem], default: object) -> Any:
    """The class that a plug-in mapping asks for."""
    if "class" in value:
        if "name" in value:
            return _note(problems, path, "expected name or class, got both: remove one of them")
        return _import_class(value["class"], _join(path, "class"), problems)
    if "name" not in value:
        if dataclasses.is_dataclass(default):
            return type(default)
        return _note(problems, _join(path, "name"), "missing" + _choices(table))
    name = value["name"]
    if not isinstance(name, str):
        return _note(problems, _join(path, "name"), f"expected a text, got {_show(name)}{_choices(table)}")
    if name not in table:
        return _note(problems, path, unknown(f"unknown name {name!r}", name, table))
    return table[name]


def _import_class(text: object, path: str, problems: list[Problem]) -> Any:
    """The dataclass called ``package.module:Class``."""
    try:
        return import_class(text)
    except ValueError as error:
        return _note(problems, path, str(error))


def _lacking(hint: Any, cls: type) -> str:
    """What the Protocol of a field, or the nearest of several, asks for and a class does not have; empty: nothing."""
    protocols = [member for member in _members(hint) if _protocol(member)]
    wrong = {protocol.__name__: _unlike(protocol, cls) for protocol in protocols}
    if not wrong or not all(wrong.values()):
        return ""
    return f"{cls.__name__} is " + " and ".join(f"no {name}: {'; '.join(told)}" for name, told in wrong.items())


def _unlike(protocol: type, cls: type) -> list[str]:
    """What of a Protocol a class does not have, and which of its methods cannot be called as the Protocol says."""
    missing = _missing(protocol, cls)
    lacking = [f"it has no {', '.join(missing)}"] if missing else []
    methods = {name: item for name, item in inspect.getmembers(protocol, inspect.isfunction) if name[0] != "_"}
    return lacking + [told for name, asked in methods.items() if (told := _other_arguments(name, asked, cls))]


def _other_arguments(name: str, asked: Any, cls: type) -> str:
    """What is wrong with the arguments of a method; empty where nothing is, and for what is no plain method."""
    own = inspect.getattr_static(cls, name, None)
    if not inspect.isfunction(own):
        return ""
    wanted, taken = inspect.signature(asked), inspect.signature(own)
    named = [each.name for each in wanted.parameters.values() if each.kind is inspect.Parameter.KEYWORD_ONLY]
    try:
        taken.bind(*range(len(wanted.parameters) - len(named)), **dict.fromkeys(named))
    except TypeError:
        return f"expected {name}{_arguments(wanted)}, got {name}{_arguments(taken)}"
    return ""


def _arguments(signature: inspect.Signature) -> str:
    """``(self, path, *, site)``: without hints and defaults."""
    bare = [each.replace(annotation=each.empty, default=each.empty) for each in signature.parameters.values()]
    return str(inspect.Signature(bare))


def _missing(protocol: type, cls: type) -> list[str]:
    """The public names of a Protocol that a class has neither as attribute nor as field."""
    asked = {
        name
        for base in protocol.__mro__
        if base not in (object, Protocol)
        for name in (*vars(base), *inspect.get_annotations(base))
    }
    had = {field.name for field in dataclasses.fields(cls)}
    return sorted(name for name in asked if not name.startswith("_") and name not in had and not hasattr(cls, name))


def _pointed_out(cls: type, path: str, problem: Problem) -> Problem:
    """A plug-in in the wrong place, with the fields of the same mapping that it suits."""
    if not isinstance(problem, Misplaced) or problem.path.rpartition(".")[0] != path:
        return problem
    hints = {name: _plain(hint) for name, hint in _hints(cls).items() if _table(hint) is not None}
    asking = {name: hint for name, hint in hints.items() if any(map(_protocol, _members(hint)))}
    suited = [name for name, hint in asking.items() if not _lacking(hint, problem.cls)]
    advice = f"; it suits {' and '.join(_join(path, name) for name in suited)}" if suited else ""
    return Problem(problem.path, f"{problem.message}{advice}")


def _protocol(hint: Any) -> bool:
    return bool(getattr(hint, "_is_protocol", False))


def _union(hint: Any, value: object, path: str, problems: list[Problem]) -> Any:
    """The first member that the value fits; else what is wrong inside the one that came furthest."""
    members = [member for member in _members(hint) if member is not types.NoneType]
    for member in members:
        found: list[Problem] = []
        result = _value(member, value, path, found)
        if not found:
            return result
        if any(problem.path != path for problem in found):
            problems += found
            return _INVALID
    *wanted, last = [word for member in members for word in _wanted(member)]
    return _note(problems, path, f"expected {', '.join(wanted)} or {last}, got {_show(value)}")


def _wanted(member: Any) -> list[str]:
    """What a member of a union takes, in words."""
    if get_origin(member) is Literal:
        return [str(word) for word in get_args(member)]
    if get_origin(member) is tuple:
        return ["a list"]
    return [_WANTED.get(member, str(member))]


def _literal(hint: Any, value: object, path: str, problems: list[Problem]) -> Any:
    allowed = get_args(hint)
    if any(value == item and type(value) is type(item) for item in allowed):
        return value
    return _note(
        problems, path, unknown(f"expected one of the known words, got {_show(value)}", value, map(str, allowed))
    )


def _tuple(hint: Any, value: object, path: str, problems: list[Problem]) -> Any:
    items = get_args(hint)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _note(problems, path, f"expected a list, got {_show(value)}")
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    if len(items) != len(value):
        return _note(problems, path, f"expected a list of {len(items)}, got {len(value)}: {_show(value)}")
    built = tuple(
        _value(item, part, f"{path}[{i}]", problems) for i, (item, part) in enumerate(zip(items, value, strict=True))
    )
    return _INVALID if any(part is _INVALID for part in built) else built


def _mapping(hint: Any, value: object, path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, Mapping):
        return _note(problems, path, f"expected a mapping, got {_show(value)}")
    _, item = get_args(hint)
    built = {}
    for key, part in value.items():
        if not isinstance(key, str):
            part = _note(problems, _join(path, key), f"expected a text as key, got {_show(key)}: put it in quotes")
        built[key] = part if part is _INVALID else _value(item, part, _join(path, key), problems)
    return _INVALID if any(part is _INVALID for part in built.values()) else built


def _scalar(hint: Any, value: object, path: str, problems: list[Problem]) -> Any:
    if hint is Any:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if hint not in _WANTED:
        raise TypeError(f"{path}: {hint!r} is no type that can be read from a file")  # a mistake in the dataclass
    return _note(problems, path, f"expected {_WANTED[hint]}, got {_show(value)}{_quotes(hint, value)}")


_WANTED = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", Path: "a path"}


# ---- small helpers ---------------------------------------------------------------------------------------------------


@cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception as error:  # a hint is somebody's code
        raise ConfigError([hint_problem(cls) or f"{cls.__module__}:{cls.__qualname__}: {error}"]) from error


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the hint alone when it is none."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _bare(hint: Any) -> Any:
    """The hint without annotation."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _allows_none(hint: Any) -> bool:
    return _bare(hint) is Any or types.NoneType in _members(_bare(hint))


def _plain(hint: Any) -> Any:
    """The hint without annotation and without None; a union of more than that stays one."""
    members = [member for member in _members(_bare(hint)) if member is not types.NoneType]
    return members[0] if len(members) == 1 else _bare(hint)


def _table(hint: Any) -> Table | None:
    """The plug-ins a field may hold: the table in its annotation, or the dataclasses of a union."""
    if get_origin(hint) is Annotated:
        return next((extra for extra in hint.__metadata__ if isinstance(extra, Mapping)), None)
    members = [member for member in _members(hint) if member is not types.NoneType]
    if len(members) > 1 and all(dataclasses.is_dataclass(member) for member in members):
        return {member.__name__.lower(): member for member in members}
    return None


def _default(field: Field[Any]) -> Any:
    """The field's default value, or MISSING."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _plugin_head(hint: Any, value: object) -> dict[str, str]:
    """What :func:`build` needs to find the class of a plug-in again; nothing for any other value."""
    table, cls = _table(hint), type(value)
    if table is None:
        return {}
    name = next((name for name, row in table.items() if row is cls), None)
    return {"name": name} if name is not None else {"class": f"{cls.__module__}:{cls.__qualname__}"}


def _expand_field(hint: Any, value: object) -> Any:
    table = _table(hint)
    if table is None:
        inner = _plain(hint)
        return expand(inner, value) if isinstance(inner, type) else value
    if isinstance(value, str):
        return {"name": value}
    name = value.get("name") if isinstance(value, Mapping) else None
    return expand(table[name], value) if isinstance(name, str) and name in table else value


def _choices(hint: Any) -> str:
    table = hint if isinstance(hint, Mapping) else _table(hint)
    return "" if table is None else f" (known: {', '.join(sorted(table))})"


def _note(problems: list[Problem], path: str, message: str) -> Any:
    problems.append(Problem(path, message))
    return _INVALID


def _join(path: str, key: object) -> str:
    return ".".join(filter(None, (path, str(key))))


def _show(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _quotes(hint: Any, value: object) -> str:
    """A hint about quotation marks where they are likely the matter."""
    if hint is str and isinstance(value, bool | int | float):
        return ": put it in quotes"
    return ": leave out the quotes" if hint is not str and isinstance(value, str) and _reads_as(hint, value) else ""


def _reads_as(hint: Any, text: str) -> bool:
    if hint is bool:
        return text in ("true", "false")
    try:
        return hint in (int, float) and math.isfinite(hint(text))
    except ValueError:
        return False
