"""Files and folders that appear whole or not at all.

What is being written lies beside its place, hidden and with the ending :data:`UNFINISHED`, and is renamed when it is
done. A failure removes it; a kill leaves it behind, and its name says what it is.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished"
"""Ending of what is still being written; its name begins with a dot."""

NAME_BYTES = 255
"""The longest name of a file on the usual file systems."""


def beside(place: Path) -> Path:
    """A path that nobody else uses, in the same folder, for what is not finished."""
    ending = f".{uuid.uuid4().hex[:12]}{UNFINISHED}"
    name = os.fsencode(place.name)[: NAME_BYTES - len(ending) - 1].decode(errors="ignore")
    return place.with_name(f".{name}{ending}")


def write_whole(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Writes a file whole or not at all, with the permissions that the process gives to new files.

    Args:
        path: The file, replaced where it is there; its folder is made where it is missing.
        data: Its content.
        sync: Wait until the content is on the disk, so that a crash of the machine leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = beside(path)
    try:
        with half.open("xb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        half.replace(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """A new folder to fill, put in its place at the end; of several writers the first one wins.

    Args:
        place: Where it will be; the folders above it are made where they are missing.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    half = beside(place)
    half.mkdir()
    try:
        yield half
        _put(half, place)
    finally:
        shutil.rmtree(half, ignore_errors=True)


@contextmanager
def phantom_folder(place: Path) -> Iterator[Path]:
    """:func:`whole_folder` for phantoms. Raises ValueError where it cannot be written."""
    try:
        with whole_folder(place) as half:
            yield half
    except OSError as error:
        raise ValueError(
            f"{place.parent}: expected a folder to write phantoms to: {error.strerror}; set WARDROUND_CACHE"
        ) from error


def _put(half: Path, place: Path) -> None:
    """Renames a finished folder, unless another process was first."""
    try:
        half.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def expect_new(folder: Path) -> None:
    """Raises ValueError where a folder that a user names for new files holds something, or is a file."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a folder that is new or empty, found {_what(folder)}; name another one")


def _what(path: Path) -> str:
    return "a file" if path.is_file() else f"{min(entry.name for entry in path.iterdir())!r} in it"
