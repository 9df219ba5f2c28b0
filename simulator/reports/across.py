"""Every hospital's model at every site, as a picture and a table: for one run, and for the mean over seeds."""

from __future__ import annotations

from collections.abc import Mapping

from ..headline import Headline
from ..results import mean
from .page import Drawing, Table, number_text, svg_picture

Matrix = Mapping[str, Mapping[str, float | None]]
"""Scores: trained at -> scored at."""

MANY_SITES = 16
"""With more sites a map of all pairs is not drawn, and the table holds what they come to."""


def across_drawing(name: str, matrix: Matrix, caption: str, headline: Headline) -> Drawing | None:
    """A row per model, a column per site, with every model at home framed; None where there are too many sites.

    Args:
        name: Unique on the page.
        matrix: At least one row.
        caption: What is averaged.
        headline: What the scores are.
    """
    from .figures import heat_map

    if len(matrix) > MANY_SITES:
        return None
    rows, columns = list(matrix), _columns(matrix)
    values = [[matrix[row].get(column) for column in columns] for row in rows]
    framed = [(place, columns.index(site)) for place, site in enumerate(rows) if site in columns]
    drawing = heat_map(
        name, rows, columns, values, form="{:.3f}", framed=framed, row_label="trained at", column_label="scored at"
    )
    text = f"{caption} Dark blue: the lowest, yellow: the highest. Framed: at home."
    return Drawing(name=name, picture=svg_picture(drawing, _in_words(matrix, headline)), caption=text)


def across_table(matrix: Matrix, note: str) -> Table:
    """All entries where there are few sites, what they come to where there are many."""
    if len(matrix) <= MANY_SITES:
        columns = _columns(matrix)
        cells = {trained: [*map(row.get, columns), mean(row.values())] for trained, row in matrix.items()}
        return _table(("trained at", *columns, "mean"), cells, note)
    summed = {
        trained: [row.get(trained), mean(away := _away(trained, row)), min(away, default=None)]
        for trained, row in matrix.items()
    }
    return _table(("trained at", "at home", "elsewhere, mean", "elsewhere, worst"), summed, note)


def _table(header: tuple[str, ...], cells: Mapping[str, list[float | None]], note: str) -> Table:
    return Table(header=header, rows=tuple((name, *map(number_text, row)) for name, row in cells.items()), note=note)


def _columns(matrix: Matrix) -> list[str]:
    return sorted({site for row in matrix.values() for site in row})


def _away(trained: str, row: Mapping[str, float | None]) -> list[float]:
    return [value for site, value in row.items() if site != trained and value is not None]


def _in_words(matrix: Matrix, headline: Headline) -> str:
    """The text alternative."""
    home = mean(row.get(trained) for trained, row in matrix.items())
    away = mean(value for trained, row in matrix.items() for value in _away(trained, row))
    known = [value for row in matrix.values() for value in row.values() if value is not None]
    ends = f"from {min(known, default=0):.2f} to {max(known, default=0):.2f}"
    return (
        f"{headline.word} of every hospital's model at every site, {ends}. Mean {number_text(home)} at home and "
        f"{number_text(away)} at other sites."
    )
