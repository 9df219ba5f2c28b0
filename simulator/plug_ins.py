"""Plug-ins from outside the package: a class by its name, ``mypackage.mine:MyAggregator``, and what may be wrong.

Somebody else's module may fail in any way while it runs; whatever happens becomes one ValueError that says what was
looked for, where, and the line of their file. This module imports the standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_origin

FORM = "package.module:Class"
DECORATOR = "@dataclass(frozen=True, kw_only=True)"


def import_class(text: object) -> type:
    """The class called ``package.module:Class``, a frozen dataclass.

    Args:
        text: What an experiment gives as ``class``.

    Raises:
        ValueError: the name is malformed, the module is not found or fails, it has no such class, or the class is no
            frozen dataclass; with what to do about it.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:\w+", text) or ".py:" in text:
        raise ValueError(f"expected {FORM!r}, got {text!r}{_form_hint(text)}")
    module_name, class_name = text.split(":")
    module = _module(module_name)
    cls = getattr(module, class_name, None)
    if cls is None:
        raise ValueError(_no_class(class_name, module_name, vars(module)))
    if problem := class_problem(cls):
        raise ValueError(problem)
    return typing.cast(type, cls)


def class_problem(cls: object) -> str:
    """What keeps an object from being a plug-in's class; empty where nothing does."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        above = f": put {DECORATOR} above the class" if isinstance(cls, type) else ""
        return f"expected a dataclass, got {cls!r}{above}"
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # every dataclass has it
        return f"expected a frozen dataclass, got {cls!r}: put {DECORATOR} above the class"
    if forgotten := _forgotten(cls):
        return (
            f"{', '.join(forgotten)} of {cls.__name__} can be no settings, as the class is no dataclass itself, only "
            f"its base is: put {DECORATOR} above it"
        )
    return hint_problem(cls)


def hint_problem(cls: type) -> str:
    """Which field of a dataclass has a type hint that cannot be read, and in which file; empty where all can be."""
    try:
        typing.get_type_hints(cls)
    except Exception:  # a hint is somebody's code
        told = [problem for base in cls.__mro__ for name in _own_hints(base) if (problem := _hint_problem(base, name))]
        return told[0] if told else ""
    return ""


def _own_hints(cls: type) -> Mapping[str, Any]:
    return typing.cast(Mapping[str, Any], vars(cls).get("__annotations__", {}))


def _hint_problem(cls: type, name: str) -> str:
    """What is wrong with one hint: read alone, as that of another class of the same module."""
    hint = _own_hints(cls)[name]
    alone = type(cls.__name__, (), {"__annotations__": {name: hint}, "__module__": cls.__module__})
    try:
        typing.get_type_hints(alone, localns=dict(vars(cls)))
    except Exception as error:
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        place = f" ({file})" if file else ""
        return (
            f"{name} of {cls.__name__}: its type hint {hint!r} cannot be read: {type(error).__name__}: {error}{place}"
        )
    return ""


def where(error: BaseException, module_name: str) -> str:
    """`` (mine.py, line 12)``: the last line of somebody's code that an error came through; empty where there is none.

    Args:
        error: As it was caught.
        module_name: Their module.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    root = _root(module_name)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if root and frame.filename.startswith(root)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def classes_in(value: object) -> Iterator[type]:
    """The class of a dataclass and of every dataclass that it holds, at any depth."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in items:
        yield from classes_in(item)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"cannot import {name!r}: ModuleNotFoundError: {error}; {_looked(name)}") from error
        needs = f": it needs {error.name!r}, which is not installed" if error.name else ""
        raise ValueError(f"cannot import {name!r}{where(error, name)}: ModuleNotFoundError: {error}{needs}") from error
    except (Exception, SystemExit) as error:  # anything may go wrong while somebody else's module runs
        told = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"cannot import {name!r}: {type(error).__name__}: {told}{where(error, name)}") from error


def _looked(name: str) -> str:
    """Where Python looked for a module, and how to have it look elsewhere."""
    top = name.partition(".")[0]
    if _found(top):
        return f"there is a {top!r}, in {_root(top) or 'several folders'}, without that module"
    here = Path.cwd()
    inside = (here / top).is_dir() or (here / f"{top}.py").is_file()
    at_hand = f"it lies in the current folder, where a command does not look ({here})" if inside else ""
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    folders = [folder for folder in sys.path if Path(folder).is_dir() and folder not in standard]
    shown = ", ".join(folder for folder in folders if "lib-dynload" not in folder)
    advice = "set PYTHONPATH to the folder that holds it (PYTHONPATH=. wardround ...), or install it (pip install -e .)"
    return f"{at_hand or f'Python looked in {shown}'}: {advice}"


def _found(top: str) -> bool:
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _root(module_name: str) -> str:
    """The folder of a module's top package, or its file; empty where it has none."""
    top = module_name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ""
    places: Sequence[str] = list(spec.submodule_search_locations or []) if spec else []
    return places[0] if places else (spec.origin or "" if spec else "")


def _form_hint(text: object) -> str:
    """What is probably meant by a malformed name."""
    if not isinstance(text, str):
        return ""
    if "/" in text or "\\" in text or re.search(r"\.py\b", text):
        return ": name the module as an import does, with dots and without .py"
    if text.startswith("."):
        return ": write the whole name of the module; a file of experiments is in no package"
    module, dot, name = text.rpartition(".")
    if ":" not in text and dot and module:
        return f", did you mean '{module}:{name}'?"
    return ""


def _no_class(class_name: str, module_name: str, held: Mapping[str, Any]) -> str:
    """What a module has instead of a class."""
    if module_name == "__main__":
        return (
            f"no class {class_name!r} in '__main__': it was defined in a script or a notebook, where no other program "
            "finds it; move it into a module"
        )
    top = module_name.partition(".")[0]
    own = [
        name
        for name, item in held.items()
        if dataclasses.is_dataclass(item) and isinstance(item, type) and item.__module__.partition(".")[0] == top
    ]
    close = difflib.get_close_matches(class_name, own, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"no class {class_name!r} in {module_name!r}{hint} (known: {', '.join(sorted(own)) or 'none'})"


def _forgotten(cls: type) -> list[str]:
    """Annotated names of a class that would be fields, had it been decorated."""
    if "__dataclass_params__" in vars(cls):
        return []
    fields = {field.name: field for field in dataclasses.fields(cls)}
    own = vars(cls).get("__annotations__", {})
    return [
        name
        for name, hint in own.items()
        if not (get_origin(hint) is ClassVar or str(hint).startswith(("ClassVar", "typing.ClassVar")))
        and (name not in fields or (name in vars(cls) and vars(cls)[name] != fields[name].default))
    ]
