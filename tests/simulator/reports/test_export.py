"""Tables and drawings of a page as files."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from wardround.simulator.reports.export import export
from wardround.simulator.reports.figures import BLUE, INK, Line, line_chart
from wardround.simulator.reports.page import Drawing, Html, Section, Table, drawing_files, svg_picture

TABLE = Table(header=("name", "value"), rows=(("a", "1"),))
CHART = line_chart("c", [Line(points=[(0, 0.1), (1, 0.2)], colour=INK)], y_label="Dice")


def section(**parts: object) -> Section:
    return Section(title="T", body=Html(""), **parts)  # type: ignore[arg-type]  # tables and drawings


def test_every_table_and_drawing_is_a_file(tmp_path: Path) -> None:
    parts = [section(tables={"one": TABLE}), section(drawings={"c": CHART}), section(tables={"a/b": TABLE})]
    written = [str(path.relative_to(tmp_path)) for path in export(tmp_path, parts)]
    assert written == [
        "figures/c.svg",
        *(f"tables/one.{ending}" for ending in ("md", "tex", "csv")),
        *(f"tables/a_b-c14cddc0.{ending}" for ending in ("md", "tex", "csv")),
    ]
    assert (tmp_path / "tables" / "one.csv").read_text() == "name,value\na,1\n"
    assert (tmp_path / "tables" / "one.md").read_text() == TABLE.markdown()
    assert (tmp_path / "tables" / "one.tex").read_text() == TABLE.latex()


def test_two_of_a_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"every table of a page under a name of its own, got \['one'\] twice"):
        export(tmp_path, [section(tables={"one": TABLE}), section(tables={"one": TABLE})])
    assert not list(tmp_path.iterdir())


def test_a_drawing_stands_alone(tmp_path: Path) -> None:
    """Its own size and colours, on white; text is text; the legend and the text alternative are in it."""
    entries = [("●", BLUE, "north <1>"), ("━", "inherit", "mean")]
    drawing = Drawing(name="c", picture=svg_picture(CHART, 'Dice "rises"'), caption="", entries=entries)
    [path] = export(tmp_path, [section(drawings=drawing_files([drawing]))])
    text = path.read_text()
    root = ElementTree.fromstring(text)
    assert "currentColor" not in text
    assert "var(" not in text
    assert "stroke: #1c2024" in text
    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("374.4pt", "242.2pt", "0 0 374.4 242.2")
    assert root.get("aria-label") == 'Dice "rises"'
    assert (root[0].tag.rpartition("}")[2], root[0].get("fill")) == ("rect", "#ffffff")
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Dice", "round", "● north <1>", "━ mean"} <= set(texts)


def test_a_legend_has_as_many_lines_as_it_needs(tmp_path: Path) -> None:
    """6.5 x 40 + 24 = 284 of 374.4 points: one beside the other does not fit."""
    entries = [("●", BLUE, "x" * 40), ("■", BLUE, "y" * 40)]
    drawing = Drawing(name="c", picture=svg_picture(CHART, "alt"), caption="", entries=entries)
    root = ElementTree.fromstring(drawing.svg())
    *_, first, second = root.iter("{http://www.w3.org/2000/svg}text")
    assert (first.get("x"), second.get("x")) == ("8", "8")
    assert float(second.get("y") or 0) - float(first.get("y") or 0) == 15
    assert root.get("viewBox") == "0 0 374.4 257.2"
