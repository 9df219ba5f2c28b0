"""Small CSV tables: who has which case, what it is for. Every problem of a table at once."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from .contract import Side

Row = dict[str, str]


def packaged(name: str) -> Path:
    """A table that ships with this folder."""
    return Path(str(files(__package__))) / name


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """The rows of a CSV file in UTF-8, stripped of blanks; other columns are left out.

    Args:
        path: The file; its first line names the columns.
        columns: Columns that must be there.
        optional: Columns that may be there; "" in every row where they are not.

    Raises:
        ValueError: the file cannot be read, or lacks a column.
    """
    try:
        reader = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a table in UTF-8, got {type(error).__name__}: {error}") from error
    if not set(columns) <= set(reader.fieldnames or ()):
        raise ValueError(f"{path}: expected the columns {','.join(columns)}, got {_found(reader.fieldnames)}")
    return [{name: (row.get(name) or "").strip() for name in (*columns, *optional)} for row in reader]


def _found(names: Sequence[str] | None) -> str:
    """The columns of a table without those that it should have, in words."""
    if not names:
        return "an empty file"
    parted = next((word for mark, word in ((";", "semicolons"), ("\t", "tabs")) if mark in names[0]), None)
    return ",".join(names) if parted is None else f"{names[0]!r}: write commas between columns, not {parted}"


def side_of(text: str, allowed: Sequence[Side] = ("train", "test")) -> Side | None:
    """The side of the split that a cell names; None where it names none of them."""
    return next((side for side in allowed if side == text), None)


def table_problems(path: Path, rows: Sequence[Row], key: Sequence[str]) -> list[str]:
    """One line per key that is there twice and per cell of a key that is empty.

    Args:
        path: Named in the lines.
        rows: What :func:`read_rows` gave.
        key: The columns that together identify a row.
    """
    counts = Counter(tuple(row[name] for name in key) for row in rows)
    twice = [f"{path}: {_named(key, values)} has {count} rows" for values, count in counts.items() if count > 1]
    empty = [
        f"{path}: row {number} has no {name}"
        for number, row in enumerate(rows, start=2)
        for name in key
        if not row[name]
    ]
    return twice + empty


def _named(key: Sequence[str], values: Sequence[str]) -> str:
    return " ".join(f"{name} {value}" for name, value in zip(key, values, strict=True))
