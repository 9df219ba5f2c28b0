"""Pictures of a report: charts as SVG text, overlays as PNG bytes; the same input gives the same bytes.

Names from a run are drawn where they name rows or columns; legends are the page's job. Text and
axes take the page's colour, so that one drawing serves light and dark. Needs no display.

Legend: H rows, W columns of a slice.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .page import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442",
)  # fmt: skip
"""Colours that readers with any colour vision tell apart (Okabe and Ito, 2008)."""

LINE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY)
CLASS_COLOURS = (ORANGE, SKY, GREEN, PURPLE, YELLOW, VERMILLION, BLUE)
MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
"""matplotlib's marker: the same sign as text."""

INK, FAINT = "#010203", "#040506"  # replaced by the page's colours after drawing

ON_WHITE: Mapping[object, str] = {INK: "#1c2024", FAINT: "#d6dbe0"}
"""What they are in a file of its own."""

Points = Sequence[tuple[float, float | None]]
"""``(round, value)``; None leaves a gap."""

Axis = Literal["whole", "linear"]
"""How an axis counts: in whole numbers or in any."""

NAME_LETTERS = 24
MANY_ROWS, MANY_COLUMNS = 40, 16
"""Pictures with more rows or columns name some of them only, and write no numbers into their cells."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A course to draw.

    Args:
        points: Where it goes.
        colour: Its own.
        marker: matplotlib's, "" for none.
        width: In points.
        band: ``(x, low, high)``: an area in its colour behind it.
    """

    points: Points
    colour: str
    marker: str = ""
    width: float = 1.6
    band: Sequence[tuple[float, float, float]] = ()


def line_chart(
    name: str, lines: Sequence[Line], *, y_label: str, y_range: tuple[float, float] | None = None, small: bool = False
) -> str:
    """Values per round.

    Args:
        name: Unique on the page; makes the ids of the drawing unique.
        lines: What to draw, the last one on top.
        y_label: Axis label with its unit.
        y_range: Fixed range of the axis; None: what the values need.
        small: For many figures beside each other.

    Returns:
        An ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        for line in lines:
            rounds = [number for number, _ in line.points]
            values = [np.nan if value is None else value for _, value in line.points]
            (drawn,) = axes.plot(rounds, values, color=line.colour, marker=line.marker, linewidth=line.width)
            drawn.set(markersize=4.5, markevery=1 + len(rounds) // 16, clip_on=False)
            _band(axes, line)
        if y_range is not None:
            axes.set_ylim(*y_range)

    return _chart(name, draw, y_label=y_label, small=small)


def curve_chart(
    name: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
    x_axis: Axis = "whole",
    y_range: tuple[float, float] | None = None,
    small: bool = False,
) -> str:
    """Values over something other than rounds, on a logarithmic axis if wanted; returns an ``<svg>`` element.

    On a logarithmic axis values of 0 are left out.

    Args:
        name: Unique on the page; makes the ids of the drawing unique.
        lines: What to draw, the last one on top.
        x_label: Axis label with its unit.
        y_label: The other one.
        logarithmic: Whether the values are on a logarithmic axis.
        x_axis: How the other axis counts.
        y_range: Fixed range of the values' axis; None: what they need.
        small: For many figures beside each other.
    """

    def draw(axes: Axes) -> None:
        for line in lines:
            values = [np.nan if value is None or (logarithmic and value <= 0) else value for _, value in line.points]
            (drawn,) = axes.plot([x for x, _ in line.points], values, color=line.colour, marker=line.marker)
            drawn.set(markersize=4.5, linewidth=line.width, clip_on=False)
            _band(axes, line)
        if logarithmic:
            axes.set_yscale("log")
        if y_range is not None:
            axes.set_ylim(*y_range)

    return _chart(name, draw, y_label=y_label, x_label=x_label, x_axis=x_axis, small=small)


def _band(axes: Axes, line: Line) -> None:
    if line.band:
        across, low, high = zip(*line.band, strict=True)
        axes.fill_between(across, low, high, color=line.colour, alpha=0.3, linewidth=0)


def bar_chart(name: str, groups: Mapping[str, Points], *, y_label: str) -> str:
    """Bars beside each other per round, a colour per group; returns an ``<svg>`` element."""

    def draw(axes: Axes) -> None:
        width = 0.8 / len(groups)
        for place, (colour, points) in enumerate(groups.items()):
            left = [number - 0.4 + (place + 0.5) * width for number, _ in points]
            axes.bar(left, [value or 0.0 for _, value in points], width=width, color=colour)

    return _chart(name, draw, y_label=y_label, from_zero=True)


def area_chart(name: str, layers: Mapping[str, Points], *, y_label: str) -> str:
    """Layers on top of each other per round, a colour per layer; returns an ``<svg>`` element."""

    def draw(axes: Axes) -> None:
        rounds = [number for number, _ in next(iter(layers.values()))]
        heights = [[value or 0.0 for _, value in points] for points in layers.values()]
        axes.stackplot(rounds, heights, colors=list(layers), linewidth=0)
        axes.margins(x=0)

    return _chart(name, draw, y_label=y_label, from_zero=True)


def _chart(
    name: str,
    draw: Callable[[Axes], None],
    *,
    y_label: str,
    x_label: str = "round",
    x_axis: Axis = "whole",
    small: bool = False,
    from_zero: bool = False,
) -> str:
    from matplotlib.ticker import MaxNLocator

    def draw_all(drawing: Figure) -> None:
        axes = drawing.add_subplot()
        draw(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        ticks = MaxNLocator(nbins=5 if small else 10, integer=x_axis == "whole", min_n_ticks=1)
        axes.xaxis.set_major_locator(ticks)
        if from_zero:
            axes.set_ylim(bottom=0.0)

    return svg(name, draw_all, (3.1, 2.1) if small else (5.2, 3.1))


def heat_map(
    name: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    form: str = "{:.2f}",
    texts: Sequence[Sequence[str]] | None = None,
    value_range: tuple[float, float] | None = None,
    colours: str | Sequence[str] = "cividis",
    framed: Collection[tuple[int, int]] = (),
    row_label: str = "",
    column_label: str = "",
) -> str:
    """Numbers as coloured cells, each with its number in it.

    Args:
        name: Unique on the page; makes the ids of the drawing unique.
        rows: Names from top to bottom.
        columns: Names from left to right.
        values: For each row a value per column; None leaves the cell empty.
        form: Of the numbers in the cells.
        texts: What is written into the cells in place of their values; cells without a value have none.
        value_range: The values of the first and the last colour; None: the lowest and highest there are.
        colours: A map of matplotlib (cividis goes from dark blue to yellow), or colours to go through.
        framed: ``(row, column)`` of cells to point out.
        row_label: What the rows are.
        column_label: What the columns are.

    Returns:
        An ``<svg>`` element. With more than :data:`MANY_ROWS` or :data:`MANY_COLUMNS` it has no numbers.
    """
    numbers = np.array([[np.nan if value is None else value for value in row] for row in values], float)
    numbers = numbers.reshape(len(rows), len(columns))
    painted = _cell_colours(numbers, value_range, colours)
    few = len(rows) <= MANY_ROWS and len(columns) <= MANY_COLUMNS
    width = max(5.2, 1.5 + 0.5 * min(len(columns), MANY_COLUMNS))

    def draw(drawing: Figure) -> None:
        axes = drawing.add_subplot()
        axes.pcolormesh(painted, rasterized=not few)
        if few:
            _write_texts(axes, texts or [[form.format(value) for value in row] for row in numbers], numbers, painted)
        for row, column in framed:  # dark and light, so that it is seen on every colour
            axes.plot(*_square(row, column), color="#000000", linewidth=2.4)
            axes.plot(*_square(row, column), color="#ffffff", linewidth=0.9)
        axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), xlabel=column_label, ylabel=row_label)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _name_ticks(axes.yaxis, rows, MANY_ROWS)
        _name_ticks(axes.xaxis, columns, MANY_COLUMNS)
        _fit_titles(axes, letters=int(12 * (width - 1.5) / min(len(columns), MANY_COLUMNS)))

    return svg(name, draw, (width, 0.9 + 0.28 * min(len(rows), MANY_ROWS)), {"text.parse_math": False})


def difference_map(
    name: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    framed: Collection[tuple[int, int]] = (),
) -> str:
    """:func:`heat_map` of differences: white at zero, blue above, orange below."""
    most = max((abs(value) for row in values for value in row if value is not None), default=0.0)
    most = max(most, LEAST_DIFFERENCE)
    colours = [ORANGE, "#ffffff", BLUE]
    return heat_map(
        name, rows, columns, values, form="{:+.3f}", value_range=(-most, most), colours=colours, framed=framed
    )


LEAST_DIFFERENCE = 0.005
"""What is full colour in a map of differences at least: differences in the last digit are no signal."""


def _square(row: int, column: int) -> tuple[list[float], list[float]]:
    near, far = 0.04, 0.96
    return [column + x for x in (near, far, far, near, near)], [row + y for y in (near, near, far, far, near)]


def _cell_colours(
    numbers: NDArray[np.float64], value_range: tuple[float, float] | None, colours: str | Sequence[str]
) -> NDArray[np.float64]:
    """(rows, columns, RGBA), see-through where there is no number."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    defined = numbers[np.isfinite(numbers)]
    low, high = value_range or ((defined.min(), defined.max()) if defined.size else (0.0, 1.0))
    share = (numbers - low) / (high - low) if high > low else np.where(np.isfinite(numbers), 0.5, np.nan)
    scale = colormaps[colours] if isinstance(colours, str) else LinearSegmentedColormap.from_list("own", colours)
    painted: NDArray[np.float64] = np.asarray(scale(np.clip(np.nan_to_num(share), 0, 1)), float)
    painted[~np.isfinite(numbers)] = 0.0
    return painted


def _write_texts(
    axes: Axes, texts: Sequence[Sequence[str]], numbers: NDArray[np.float64], painted: NDArray[np.float64]
) -> None:
    """Black or white, whichever stands out, in the middle of each cell; a dash in the page's colour where none is."""
    for (row, column), value in np.ndenumerate(numbers):
        defined = bool(np.isfinite(value))
        text = texts[row][column] if defined else "–"
        colour = readable_on(_hex(painted[row, column])) if defined else INK
        axes.text(column + 0.5, row + 0.5, text, color=colour, ha="center", va="center", fontsize=9)


def _name_ticks(axis: Any, names: Sequence[str], most: int) -> None:
    """Each by its name; where they are too many, every second, fifth ... one."""
    step = next(step for step in (1, 2, 5, *range(10, len(names) + 10, 10)) if len(names) <= step * most)
    shown = range(0, len(names), step)
    texts = [cut(" ".join(names[place].split()), NAME_LETTERS) for place in shown]
    axis.set_ticks([place + 0.5 for place in shown], texts)


def _fit_titles(axes: Axes, letters: int) -> None:
    """Column titles of so many letters side by side: a word per line, or slanted where a word is longer."""
    titles = axes.get_xticklabels()
    if all(len(word) <= letters for title in titles for word in title.get_text().split()):
        words = (title.get_text() for title in titles)
        axes.set_xticks(
            axes.get_xticks(), [text if len(text) <= letters else text.replace(" ", "\n") for text in words]
        )
    else:
        for title in titles:
            title.set(rotation=30, ha="right", rotation_mode="anchor")


def drawable(name: str, otherwise: str) -> str:
    """A name that every font has (plain ASCII, cut at 22 letters), or what to draw for another one."""
    short = name if len(name) <= 22 else f"{name[:21]}~"
    return short if name.isascii() and name.isprintable() else otherwise


def readable_on(colour: str) -> str:
    """Black or white, whichever stands out more on a colour."""
    return max(("#000000", "#ffffff"), key=lambda text: contrast(text, colour))


def contrast(one: str, other: str) -> float:
    """How much two colours ``#rrggbb`` stand out, from 1 to 21; text needs 4.5. Source: WCAG 2.2, contrast ratio."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``. Source: WCAG 2.2."""
    rgb = _rgb(colour)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


Style = Mapping[str, object]
"""Settings of matplotlib."""


def svg(name: str, draw: Callable[[Figure], None], size: tuple[float, float], style: Style | None = None) -> str:
    """A drawing as part of a page.

    Args:
        name: Unique on the page; makes the ids of the drawing unique.
        draw: Fills the empty drawing; matplotlib has the settings already.
        size: Width and height in inches.
        style: Settings beside those that all pictures have.

    Returns:
        An ``<svg>`` element that takes the colours of its page.
    """
    data = _saved(draw, size, {**STYLE, "svg.hashsalt": name, **(style or {})}, "svg")
    return _inline(data.decode(), name)


def with_legend(svg: str, entries: Sequence[tuple[str, str, str]]) -> str:
    """A drawing of :func:`svg` with its legend below it, for where no page explains its marks.

    Args:
        svg: The drawing.
        entries: ``(mark, colour, text)``; the colour may be ``inherit``.

    Returns:
        An ``<svg>`` element, as high as it needs to be.
    """
    if not entries:
        return svg
    box = svg.partition('viewBox="')[2].partition('"')[0]
    left, top, width, height = map(float, box.split())
    column = 6.5 * max(len(text) for _, _, text in entries) + 24
    beside = max(1, min(len(entries), int((width - 8) // column)))
    lines = []
    for place, (mark, colour, text) in enumerate(entries):
        x, y = 8 + column * (place % beside), height + 12 + 15 * (place // beside)
        sign = f'<tspan fill="{colour.replace("inherit", "currentColor")}">{mark}</tspan>'
        lines.append(f'<text x="{x:g}" y="{y:g}" fill="currentColor" {_LEGEND_FONT}>{sign} {html.escape(text)}</text>')
    rows = -(-len(entries) // beside)
    higher = svg.replace(box, f"{left:g} {top:g} {width:g} {height + 15 * rows + 4:g}", 1)
    return higher.removesuffix("</svg>") + "\n".join([*lines, "</svg>"])


_LEGEND_FONT = 'font-size="10" font-family="\'DejaVu Sans\', Verdana, Arial, Helvetica, sans-serif"'


def standalone(svg: str) -> str:
    """A drawing of :func:`svg` as a file of its own: fixed size, dark on white.

    Args:
        svg: What :func:`svg` returned, with or without a text alternative.

    Returns:
        The text of an SVG file.
    """
    _, _, width, height = svg.partition('viewBox="')[2].partition('"')[0].split()
    opening, rest = svg.split(">", 1)
    size = f' width="{width}pt" height="{height}pt">'
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    text = f'<?xml version="1.0" encoding="utf-8"?>\n{opening}{size}\n {white}{rest}\n'
    return text.replace("currentColor", ON_WHITE[INK]).replace("var(--line)", ON_WHITE[FAINT])


def png(draw: Callable[[Figure], None], size: tuple[float, float], style: Style | None = None) -> bytes:
    """A drawing as a PNG file, black on white; arguments as :func:`svg`."""
    settings = {key: ON_WHITE.get(value, value) for key, value in STYLE.items()}
    white = {"savefig.facecolor": "white", "savefig.dpi": 150}
    return _saved(draw, size, {**settings, **white, **(style or {})}, "png")


def _saved(
    draw: Callable[[Figure], None], size: tuple[float, float], style: Style, format: Literal["svg", "png"]
) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    nothing: Any = dict.fromkeys(("Date", "Creator", "Format", "Type") if format == "svg" else ("Software",))
    settings: Any = style  # the names that matplotlib types as settings differ between its versions
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the reader's own style: the page must not depend on the machine
        matplotlib.rcParams.update(settings)
        drawing = Figure(figsize=size, layout="constrained")
        draw(drawing)
        data = io.BytesIO()
        with warnings.catch_warnings():
            # it only measures with its own font: a page draws the text with a font that has the letter
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            drawing.savefig(data, format=format, metadata=nothing)
    return data.getvalue()


STYLE: Style = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def _inline(svg: str, name: str) -> str:
    """An SVG file as part of a page: no prolog, no fixed size, own ids, the page's colours."""
    svg = svg[svg.index("<svg ") :].strip()
    svg = re.sub(r'(<svg [^>]*?)\s(?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg [^>]*?)\s(?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor").replace(FAINT, "var(--line)")


def overlay_png(
    image: NDArray[np.float32],
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    *,
    spacing_mm: tuple[float, float] = (1.0, 1.0),
    side: int = 320,
) -> bytes:
    """A slice with the prediction as translucent areas and the truth as outlines, a colour per class.

    Args:
        image: (H, W), grey values in [0, 1].
        truth: (H, W), labels, 0 is background.
        prediction: (H, W), labels.
        spacing_mm: Height and width of a pixel; the picture has the proportions of the body.
        side: Pixels of its longer side.

    Returns:
        The PNG file.
    """
    rows, columns = _picture_size(image.shape, spacing_mm, side)
    grey = np.clip(_resize_linear(image.astype(np.float64), rows, columns), 0.0, 1.0)
    truth, prediction = (_resize_nearest(mask, rows, columns) for mask in (truth, prediction))
    picture = np.repeat(grey[:, :, None], 3, axis=2)  # (rows, columns, RGB)
    for label in np.union1d(truth, prediction):
        if label > 0:
            colour = class_rgb(int(label))
            area = prediction == label
            picture[area] = 0.65 * picture[area] + 0.35 * colour
    for label in np.unique(truth[truth > 0]):
        picture[_outline(truth == label, thickness=max(1, side // 160))] = class_rgb(int(label))
    return _png(picture)


def colour_png(image: NDArray[np.uint8], side: int) -> bytes:
    """A colour picture (H, W, 3), 0 to 255, as a PNG file whose longer side has so many pixels."""
    rows, columns = _picture_size(image.shape[:2], (1.0, 1.0), side)
    channels = [_resize_linear(image[:, :, channel] / 255.0, rows, columns) for channel in range(3)]
    return _png(np.clip(np.stack(channels, axis=2), 0.0, 1.0))


def class_rgb(label: int) -> NDArray[np.float64]:
    """The colour of a label from 1 on, (3,) in [0, 1]."""
    return _rgb(CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)])


def _rgb(colour: str) -> NDArray[np.float64]:
    """``#rrggbb`` as three numbers in [0, 1]."""
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


def _hex(rgb: NDArray[np.float64]) -> str:
    """Three numbers in [0, 1] (a fourth is left out) as ``#rrggbb``."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb[:3])


def _picture_size(shape: tuple[int, ...], spacing_mm: tuple[float, float], side: int) -> tuple[int, int]:
    height_mm, width_mm = (pixels * mm for pixels, mm in zip(shape, spacing_mm, strict=True))
    scale = side / max(height_mm, width_mm)
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def _centres(size: int, new_size: int) -> NDArray[np.float64]:
    """Where the centres of the new pixels lie among the old ones."""
    return np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)


def _resize_nearest(mask: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    H, W = mask.shape
    down = np.floor(_centres(H, rows) + 0.5).astype(int).clip(0, H - 1)
    across = np.floor(_centres(W, columns) + 0.5).astype(int).clip(0, W - 1)
    resized: NDArray[np.uint8] = mask[np.ix_(down, across)]
    return resized


def _resize_linear(image: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    for size in (rows, columns):  # one axis, then the other
        place = _centres(image.shape[0], size)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, image.shape[0] - 1)
        part = (place - low)[:, None]
        image = ((1 - part) * image[low] + part * image[high]).T
    return image


def _outline(mask: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """The pixels of the mask that lie at most so far from its edge."""
    inner = mask
    for _ in range(thickness):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _png(picture: NDArray[np.float64]) -> bytes:
    from matplotlib.image import imsave

    data = io.BytesIO()
    nothing: Any = {"Software": None}  # matplotlib types values as str, and takes None as "leave it out"
    imsave(data, (picture * 255).round().astype(np.uint8), format="png", metadata=nothing)
    return data.getvalue()
