"""Who works on a run: a lock on a file of its folder, which the system lets go of when its process ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = ".lock"
"""The file in a run's folder that is locked; it stays there, empty."""

TRIES, PAUSE_S = 5, 0.05
"""How often a lock is asked for: somebody who looks with :func:`is_held` has it for a moment."""


class InUseError(ValueError):
    """Another process works on the run."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a second process out while this one works on a run; makes the folder where it is missing.

    Raises:
        InUseError: another process holds the run; a ValueError too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if not any(_taken(file) for _ in range(TRIES)):
            raise InUseError(f"{folder}: another process is working on this run; wait for it")
        yield


def is_held(folder: Path) -> bool:
    """Whether a process works on a run: on this machine, or on another one where the file system shares locks."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(PAUSE_S)
        return False
    return True
