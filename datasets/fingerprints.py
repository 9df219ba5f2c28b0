"""What files hold, in 64 hexadecimal digits, and the cache that remembers it.

A hash is remembered for as long as size, times and inode of the file stay, as git's index does it: a changed file is
hashed again, an unchanged one is not read again. The time of the last change (ctime) cannot be set back by a program,
so that a file whose modification time was restored is noticed too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import nibabel
import numpy as np
import torch

from .writing import write_whole

LIBRARIES = ("torch", "transformers", "monai", "numpy", "nibabel", "scipy", "safetensors")
"""Libraries that a run names with their versions, whose classes a plug-in may build on."""

SETTLED_NS = 2_000_000_000
"""A file that changed less than this before it was read may change again with the same times: not remembered."""


def cache_folder() -> Path:
    """The environment's WARDROUND_CACHE, or else ``~/.cache/wardround``."""
    given = os.environ.get("WARDROUND_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "wardround"


@contextmanager
def using_cache() -> Iterator[None]:
    """Turns an OSError into one ValueError that says what to do about the cache."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ValueError(
            f"{cache_folder()}: expected a cache folder that can be read and written, got {error.strerror or error}"
            f"{where}; set the environment variable WARDROUND_CACHE to a folder that is yours and has room"
        ) from error


def place_of(kind: str, key: str, suffix: str = "") -> Path:
    """Where the cache keeps an entry: ``<cache>/<kind>/<first two digits>/<key><suffix>``."""
    return cache_folder() / kind / key[:2] / f"{key}{suffix}"


def read_entry(path: Path) -> Any:
    """What a JSON file of the cache holds; None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def write_entry(path: Path, value: Any) -> None:
    """Writes a JSON file of the cache; one that a crash damages is seen when it is read."""
    with using_cache():
        write_whole(path, json.dumps(value, allow_nan=False).encode(), sync=False)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, remembered in the cache.

    Raises:
        ValueError: the file cannot be read, or the cache cannot be written.
    """
    whole = path.resolve()
    state = _state(path)
    place = place_of("hashes", hashlib.sha256(str(whole).encode()).hexdigest(), ".json")
    with using_cache():
        kept = read_entry(place)
    if isinstance(kept, dict) and kept.get("path") == str(whole) and kept.get("state") == state:
        return str(kept["sha256"])
    begun = time.time_ns()
    digest = _digest(path)
    if _state(path) == state and begun - max(state[1:3]) > SETTLED_NS:
        write_entry(place, {"path": str(whole), "state": state, "sha256": digest})
    return digest


def _state(path: Path) -> list[int]:
    """Size, modification and change time (ns) and inode: what differs when a file was touched."""
    with _readable(path):
        found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _digest(path: Path) -> str:
    with _readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file: {error.strerror}") from error


def text_hash(*parts: object) -> str:
    """SHA-256 of strings, numbers, and lists, tuples and dictionaries of them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def settings_of(plugin: object) -> list[object]:
    """Class and fields of a plug-in, which is a dataclass, as plain values that :func:`text_hash` takes."""
    fields = {field.name: repr(getattr(plugin, field.name)) for field in dataclasses.fields(plugin)}  # type: ignore[arg-type]  # see above
    return [type(plugin).__module__, type(plugin).__qualname__, fields]


@cache
def code_hash(kind: type, *more: ModuleType) -> str:
    """SHA-256 of the source code that a class of this folder runs, and of the libraries that it runs with.

    That is the modules of the class and of its bases, ``more``, and every module of this folder that one of these takes
    something from; of a class from outside the package all of its own package.

    Raises:
        ValueError: there is no source code, as of a class that was typed into a prompt.
    """
    modules = {module.__name__: module for module in (*_modules_of_bases(kind), *more)}
    waiting = list(modules.values())
    while waiting:
        new = {module.__name__: module for module in _ours(waiting.pop()) if module.__name__ not in modules}
        modules |= new
        waiting += new.values()
    libraries = [torch.__version__, np.__version__, nibabel.__version__]
    outside = foreign_sources([kind])
    return text_hash(libraries, {name: _source(module) for name, module in modules.items()}, *filter(None, [outside]))


def foreign_sources(kinds: Iterable[type]) -> dict[str, str]:
    """The source code of classes from outside the package, and of their bases.

    Args:
        kinds: Classes; those of this package, of Python's own library and of :data:`LIBRARIES` count for nothing.

    Returns:
        12 hex digits of a SHA-256 by the name of the top package or module, sorted: over all its ``.py`` files, or over
        the functions of a class that was typed into a notebook.
    """
    skipped = {*sys.stdlib_module_names, *LIBRARIES, __name__.partition(".")[0]} - {"__main__"}
    bases = {base: base.__module__.partition(".")[0] for kind in kinds for base in kind.__mro__}
    found: dict[str, list[type]] = {}
    for base, top in bases.items():
        if top not in skipped:
            found.setdefault(top, []).append(base)
    return {top: _foreign_hash(top, tuple(held)) for top, held in sorted(found.items())}


@cache
def _foreign_hash(top: str, kinds: tuple[type, ...]) -> str:
    """Of a package or module as it is on disk when it is first asked for."""
    digest = hashlib.sha256()
    module = sys.modules.get(top) or sys.modules.get(kinds[0].__module__)
    for name, content in _foreign_files(module) or [(kind.__qualname__, _functions(kind)) for kind in kinds]:
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:12]


def _foreign_files(module: ModuleType | None) -> list[tuple[str, bytes]]:
    """Name, below its folder, and content of every Python file of a package or module, sorted; none in a notebook."""
    if folders := [Path(folder) for folder in getattr(module, "__path__", ())]:
        files = {file.relative_to(folder).as_posix(): file for folder in folders for file in folder.rglob("*.py")}
        return [(name, file.read_bytes()) for name, file in sorted(files.items())]
    file = Path(getattr(module, "__file__", None) or "")
    return [(file.name, file.read_bytes())] if file.is_file() else []


def _functions(kind: type) -> bytes:
    """The code of the functions of a class that is in no file."""
    functions = [vars(kind)[name] for name in sorted(vars(kind)) if inspect.isfunction(vars(kind)[name])]
    return b"".join(map(_function, functions))


def _function(function: FunctionType) -> bytes:
    """Its source; of a function that a decorator made, its instructions."""
    try:
        return inspect.getsource(function).encode()
    except OSError:
        return function.__name__.encode() + function.__code__.co_code


def _modules_of_bases(kind: type) -> list[ModuleType]:
    plain = {"builtins", "typing", "abc"}
    return [sys.modules[base.__module__] for base in kind.__mro__ if base.__module__ not in plain]


def _ours(module: ModuleType) -> list[ModuleType]:
    """The modules of this folder whose functions, classes or own name a module holds."""
    values = vars(module).values()
    names = {value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) for value in values}
    ours = sorted(name for name in names if isinstance(name, str) and name.startswith(f"{__package__}."))
    return [sys.modules[name] for name in ours if name in sys.modules]


def _source(module: ModuleType) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"{module.__name__}: expected a module with source code, whose changes the cache has to notice; "
            "move the data set's class into a .py file and import it"
        ) from error
