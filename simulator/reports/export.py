"""The tables and drawings of a page as files: SVG, Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from ..files import file_stem, write_text
from .figures import standalone
from .page import Section, Table

FORMATS = {"md": Table.markdown, "tex": Table.latex, "csv": Table.csv}
"""The endings of a table's files."""

Item = TypeVar("Item")


def export(folder: Path, sections: Iterable[Section]) -> list[Path]:
    """Writes ``figures/NAME.svg`` and ``tables/NAME.md``, ``.tex`` and ``.csv`` for all that the sections name.

    Args:
        folder: Where to; made where it is missing. Files of other names stay.
        sections: Of a page.

    Returns:
        The files written: drawings first, each kind in the order of the page.

    Raises:
        ValueError: Two drawings, or two tables, have the same name.
    """
    parts = list(sections)
    drawings = _joined([section.drawings for section in parts], "drawing")
    tables = _joined([section.tables for section in parts], "table")
    texts = {
        **{folder / "figures" / f"{file_stem(name)}.svg": standalone(svg) for name, svg in drawings.items()},
        **{
            folder / "tables" / f"{file_stem(name)}.{ending}": write(table)
            for name, table in tables.items()
            for ending, write in FORMATS.items()
        },
    }
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def _joined(parts: Iterable[Mapping[str, Item]], what: str) -> dict[str, Item]:
    joined: dict[str, Item] = {}
    for part in parts:
        repeated = joined.keys() & part.keys()
        if repeated:
            raise ValueError(f"expected every {what} of a page under a name of its own, got {sorted(repeated)!r} twice")
        joined |= part
    return joined
