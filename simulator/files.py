"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Writes beside the place, syncs, renames. After a crash the file is the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` for text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """:func:`write_bytes` for JSON, readable, without NaN (which is no JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Adds JSON lines and syncs them."""
    if not rows:
        return
    with path.open("a") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def cut_lines(path: Path, last_round: int) -> None:
    """Drops JSON lines of later rounds and a last line that a crash left unfinished."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines(keepends=True) if _belongs(line, last_round)]
    write_text(path, "".join(kept))


def _belongs(line: str, last_round: int) -> bool:
    if not line.endswith("\n"):
        return False
    return int(json.loads(line)["round"]) <= last_round


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_stem(name: str) -> str:
    """A name as a file name: odd characters are replaced, and a hash then keeps it unique.

    Example:
        >>> file_stem("hospital-1"), file_stem("a/b")
        ('hospital-1', 'a_b-c14cddc0')
    """
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    return (
        plain
        if plain == name and not name.startswith(".")
        else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )
