"""The one renderer of reports: escaped HTML, tables as text and HTML, numbers for people. Knows nothing about runs."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from . import table_formats

UNDEFINED = "–"


class Html(str):
    """Text that is markup already; any other string is escaped where it enters a page."""

    __slots__ = ()


def tag(name: str, *content: str, **attributes: str) -> Html:
    """An element: ``tag("p", "a < b", class_="note")``. A trailing ``_`` is dropped, any other ``_`` is a hyphen."""
    pairs = ((key.rstrip("_").replace("_", "-"), html.escape(value)) for key, value in attributes.items())
    opening = "".join([name, *(f' {key}="{value}"' for key, value in pairs)])
    return Html(f"<{opening}>{join(content)}</{name}>")


def join(content: Iterable[str]) -> Html:
    """All parts one after the other, plain strings escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in content))


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that every output format is made from; cells are text, the first column names the row.

    Args:
        header: Column titles.
        rows: One tuple of cells per row.
        footer: Rows that summarise the others.
        note: How to read it.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footer: tuple[tuple[str, ...], ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for row in (*self.rows, *self.footer):
            if len(row) != len(self.header):
                raise ValueError(f"rows: expected {len(self.header)} cells as in the header, got {row!r}")

    def text(self, width: int = 100) -> str:
        """Aligned plain text; columns that do not fit go into a further block under the same row names."""
        lines = [line for block in self._blocks(width) for line in [*self._block_text(block, width), ""]]
        return "\n".join([*lines, *_wrap(self.note, width)]).rstrip()

    def html(self) -> Html:
        """A table that scrolls sideways by itself where the window is narrow."""
        body = tag("tbody", *(_html_row(row, "td") for row in self.rows))
        foot = tag("tfoot", *(_html_row(row, "td") for row in self.footer)) if self.footer else ""
        inner = tag("table", tag("thead", _html_row(self.header, "th", scope="col")), body, foot)
        note = tag("p", self.note, class_="note") if self.note else Html("")
        return join([tag("div", inner, class_="scroll", tabindex="0"), note])

    def markdown(self) -> str:
        """A table in GitHub's Markdown, the note below it."""
        return table_formats.markdown(self)

    def latex(self) -> str:
        """A ``tabular`` for a LaTeX document that uses booktabs, the note below it."""
        return table_formats.latex(self)

    def csv(self) -> str:
        """The cells as they are, as comma-separated values; without the note."""
        return table_formats.csv(self)

    def _widths(self, width: int) -> list[int]:
        cells = zip(self.header, *self.rows, *self.footer, strict=True)
        first, *others = (max(map(len, column)) for column in cells)
        return [min(first, width // 3), *others]

    def _blocks(self, width: int) -> list[list[int]]:
        """Column numbers per block: as many as fit, at least one beside the first column."""
        widths = self._widths(width)
        blocks, used = [[0]], widths[0]
        for column in range(1, len(widths)):
            used += 2 + widths[column]
            if used > width and len(blocks[-1]) > 1:
                blocks.append([0])
                used = widths[0] + 2 + widths[column]
            blocks[-1].append(column)
        return blocks

    def _block_text(self, columns: Sequence[int], width: int) -> list[str]:
        widths = self._widths(width)
        rule = "─" * (sum(widths[column] for column in columns) + 2 * (len(columns) - 1))

        def line(row: Sequence[str]) -> str:
            first = cut(row[0], widths[0]).ljust(widths[0])
            return "  ".join([first, *(row[column].rjust(widths[column]) for column in columns[1:])]).rstrip()

        footer = [rule, *map(line, self.footer)] if self.footer else []
        return [line(self.header), rule, *map(line, self.rows), *footer]


def cut(text: str, width: int) -> str:
    """A text of at most so many letters.

    Example:
        >>> cut("hospital-1", 10), cut("hospital-10", 10)
        ('hospital-1', 'hospital-…')
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def _html_row(cells: Sequence[str], cell: str, **attributes: str) -> Html:
    first, *others = cells
    name = tag("th", first, scope="col" if cell == "th" else "row")
    return tag("tr", name, *(tag(cell, text, **attributes) for text in others))


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of a page.

    Args:
        title: Its heading.
        body: What it shows.
        tables: Those of its tables that can be had as files, by the name of the file.
        drawings: Those of its pictures that can be had as files: what :func:`svg_picture` or ``figures.svg`` returned.
    """

    title: str
    body: Html
    tables: Mapping[str, Table] = field(default_factory=dict)
    drawings: Mapping[str, str] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """The title as a link target."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def page(*, title: str, head: Html, sections: Sequence[Section]) -> str:
    """A whole document: style inside, nothing fetched from anywhere."""
    links = [tag("a", section.title, href=f"#{section.anchor}") for section in sections]
    parts = [tag("section", tag("h2", part.title), part.body, id=part.anchor) for part in sections]
    meta = Html(
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
    )
    # a page that cannot fetch: also what a name in a run directory could never switch on
    policy = Html(
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
    )
    header = tag("head", meta, policy, tag("title", title), tag("style", Html(STYLE)))
    body = tag("body", tag("header", head), tag("nav", *links, aria_label="Sections"), tag("main", *parts))
    return f"<!DOCTYPE html>\n{tag('html', header, body, lang='en')}\n"


def note(text: str) -> Html:
    """A paragraph in small print."""
    return tag("p", text, class_="note")


def banner(text: str) -> Html:
    """A remark that must not be overlooked."""
    return tag("p", text, class_="banner", role="status")


def tiles(items: Mapping[str, tuple[str, str]]) -> Html:
    """Big numbers: ``{label: (value, remark)}``."""
    boxes = [
        tag("div", tag("dt", label), tag("dd", value), tag("dd", remark, class_="note"))
        for label, (value, remark) in items.items()
    ]
    return tag("dl", *boxes, class_="tiles")


def facts(items: Mapping[str, str]) -> Html:
    """A list of names and values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in items.items()), class_="facts")


def details(summary: str, *content: str) -> Html:
    """Something to unfold."""
    return tag("details", tag("summary", summary), *content)


def figure(picture: Html, caption: str, *below: str) -> Html:
    """A picture (with its own text alternative) over its caption and legend."""
    return tag("figure", picture, tag("figcaption", caption), *below)


def figures(parts: Iterable[Html], *, small: bool = False) -> Html:
    """Figures beside each other where there is room."""
    return tag("div", *parts, class_="figures small" if small else "figures")


def legend(entries: Iterable[tuple[str, str, str]]) -> Html:
    """Explains marks: ``(mark, colour, text)``."""
    items = [
        tag("li", tag("span", mark, style=f"color: {colour}", aria_hidden="true"), " ", text)
        for mark, colour, text in entries
    ]
    return tag("ul", *items, class_="legend")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart of a page that can be had as a file: there its legend is part of it.

    Args:
        name: Of the file, unique on the page.
        picture: What :func:`svg_picture` returned.
        caption: What is below it.
        entries: Its legend: ``(mark, colour, text)``.
    """

    name: str
    picture: Html
    caption: str
    entries: Sequence[tuple[str, str, str]] = ()

    def html(self) -> Html:
        """The picture over its caption and legend."""
        return figure(self.picture, self.caption, legend(self.entries))

    def svg(self) -> str:
        """The picture with its legend."""
        from .figures import with_legend

        return with_legend(self.picture, self.entries)


def wide(drawing: Drawing) -> Html:
    """A drawing that keeps its size: where the window is narrow it scrolls sideways by itself, over its caption."""
    picture = tag("div", drawing.picture, class_="scroll wide", tabindex="0")
    return figure(picture, drawing.caption, legend(drawing.entries))


def drawing_files(drawings: Iterable[Drawing]) -> dict[str, str]:
    """What a section says of its drawings: ``{name: SVG}``."""
    return {drawing.name: drawing.svg() for drawing in drawings}


def svg_picture(svg: str, alt: str) -> Html:
    """An SVG drawing that fills its column."""
    label = f'<svg role="img" aria-label="{html.escape(alt)}" '
    return Html(svg.replace("<svg ", label, 1))


def png_picture(data: bytes, alt: str) -> Html:
    """A PNG inside the page."""
    address = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return Html(f'<img alt="{html.escape(alt)}" src="{address}">')


def number_text(value: float | None, digits: int = 3) -> str:
    """``0.712``, or a dash where there is no number."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def signed_text(value: float) -> str:
    """``+0.021``; never a minus before a zero.

    Example:
        >>> signed_text(0.0214), signed_text(-0.0001)
        ('+0.021', '+0.000')
    """
    return f"{round(value, 3) + 0.0:+.3f}"


def counted_text(value: float | None, undefined: int, digits: int) -> str:
    """``3.41 (2)``: the mean of the defined values and how many were not defined."""
    return number_text(value, digits) + (f" ({undefined})" if undefined else "")


def count_text(number: int, thing: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def bytes_unit(most: float) -> tuple[float, str]:
    """The decimal unit in which the largest of some sizes is readable: ``(1e6, "MB")``."""
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next(((size, unit) for size, unit in units if most >= size), (1.0, "B"))


def bytes_text(size: float) -> str:
    """``1.85 MB``: decimal units, three digits."""
    factor, unit = bytes_unit(size)
    value = size / factor
    digits = 0 if unit == "B" or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def seconds_text(seconds: float) -> str:
    """``8.2 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --dim: #5b646e; --page: #ffffff; --box: #f4f6f8; --line: #d6dbe0;
  --link: #005a8f; --warn: #fff4dc; --warn-line: #b87800; --shade: #8a949e66; }
@media (prefers-color-scheme: dark) { :root { --text: #e7eaed; --dim: #a2acb6; --page: #14171a; --box: #1e2226;
  --line: #3a4148; --link: #7cc4f0; --warn: #33290f; --warn-line: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; } a { color: var(--link); }
.note, figcaption { color: var(--dim); font-size: .875rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin-top: 1.25rem; font-size: .875rem; }
.banner { background: var(--warn); border-left: 4px solid var(--warn-line); padding: .6rem .9rem; max-width: none;
  overflow-wrap: anywhere; }
dl, dd, figure { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin-top: 1.25rem; }
.tiles > div { background: var(--box); border-radius: .5rem; padding: .75rem .9rem; min-width: 0; }
.tiles dt { font-size: .875rem; color: var(--dim); }
.tiles dd { font-size: 1.5rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles dd.note { font-size: .8125rem; font-weight: 400; line-height: 1.4; margin-top: .2rem; overflow-wrap: anywhere; }
.facts > div { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: .25rem 1rem; padding: .3rem 0;
  border-bottom: 1px solid var(--line); }
.facts dt { color: var(--dim); overflow-wrap: anywhere; } .facts dd { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; margin: .75rem 0; background:
  linear-gradient(to right, var(--page) 40%, transparent) left / 3rem 100% local no-repeat,
  linear-gradient(to left, var(--page) 40%, transparent) right / 3rem 100% local no-repeat,
  linear-gradient(to right, var(--shade), transparent) left / 1rem 100% scroll no-repeat,
  linear-gradient(to left, var(--shade), transparent) right / 1rem 100% scroll no-repeat; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; line-height: 1.25rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .375rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } thead th { color: var(--dim); vertical-align: bottom; }
tr > th:first-child { text-align: left; padding-left: .25rem; position: sticky; left: 0; background: var(--page); }
tfoot tr:first-child > * { border-top: 2px solid var(--dim); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
.figures > figure { max-width: 38rem; }
.figures.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
figure { min-width: 0; break-inside: avoid; } figcaption { margin-top: .35rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; color: var(--text); } svg text { font-family: inherit !important; }
img { display: block; width: 100%; height: auto; background: #000; }
.wide > svg { min-width: 30rem; max-width: 38rem; }
.slices { display: grid; grid-template-columns: repeat(3, minmax(0, 24rem)); gap: 1rem; }
.legend { list-style: none; margin: .35rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1rem;
  font-size: .875rem; }
.legend li { overflow-wrap: anywhere; }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--link); }
pre { background: var(--box); border-radius: .5rem; padding: .75rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .875rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
@media (max-width: 34rem) { body { padding: 1rem 1rem 3rem; } .facts > div { grid-template-columns: 1fr; gap: 0; }
  .tiles { grid-template-columns: 1fr 1fr; } th, td { padding: .375rem .5rem; }
  .slices { grid-template-columns: 1fr 1fr; } }
@media print { :root { color-scheme: light; --text: #000; --dim: #444; --page: #fff; --box: #fff; --line: #bbb;
  --link: #000; --warn: #fff; } nav { display: none; } body { padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; background: none; } .scroll > div { min-width: 0 !important; }
  table { font-size: 7.5pt; line-height: 1.3; } .wide > svg { min-width: 0; } tfoot { display: table-row-group; }
  h2 { margin-top: 1.5rem; }
  .figures { grid-template-columns: 1fr 1fr; } .figures.small { grid-template-columns: 1fr 1fr 1fr; }
  th, td { padding: .2rem .4rem; } tr { break-inside: avoid; }
  h2, h3, h2 + .note, h3 + .note, .slices + .note, .legend { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
