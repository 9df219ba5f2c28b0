"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_UNFINISHED = ".unfinished"


def remove_unfinished(folder: Path) -> None:
    """Removes what a kill in the middle of :func:`write_bytes` left below a folder where nobody else writes."""
    for path in folder.rglob(f".*{_UNFINISHED}"):
        path.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes beside the place, syncs, renames. After a crash the file is the old one or the new one.

    Not ``datasets.writing``: loading the data sets loads torch, and a report needs none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
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


def read_json(path: Path, keys: Sequence[str] = ()) -> Any:
    """Reads a JSON mapping.

    Raises:
        ValueError: it is no JSON, or lacks one of ``keys``; names the file.
    """
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise ValueError(f"{path}: expected the entries {', '.join(keys)}; missing: {', '.join(missing)}")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines, none where there is no file. Raises ValueError that names file and line."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected JSON: {error}") from error
    return rows


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
    _keep_lines(path, lambda row: int(row["round"]) <= last_round)


def drop_lines(path: Path, number: int, splits: Sequence[str]) -> None:
    """Drops JSON lines of one round and of some splits, and a last line that a crash left unfinished."""
    _keep_lines(path, lambda row: int(row["round"]) != number or row.get("split") not in splits)


def _keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Keeps whole lines that are wanted, byte by byte; touches the file only where something goes."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for number, line in enumerate(whole, start=1) if wanted(_row(path, number, line))]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line)
        int(row["round"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}, line {number}: expected a JSON row with a round, got {line[:80]!r}") from error
    return row


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
