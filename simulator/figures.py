"""Pictures of a report: charts as SVG text, overlays as PNG bytes; the same input gives the same bytes.

No name from a run is ever drawn: legends are the page's job. Text and axes take the page's colour, so that one drawing
serves light and dark. Needs no display.

Legend: H rows, W columns of a slice.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

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

Points = Sequence[tuple[int, float | None]]
"""``(round, value)``; None leaves a gap."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A course to draw: points, colour, marker ("" for none), width in points."""

    points: Points
    colour: str
    marker: str = ""
    width: float = 1.6


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
        if y_range is not None:
            axes.set_ylim(*y_range)

    return _chart(name, draw, y_label=y_label, small=small)


def curve_chart(name: str, lines: Sequence[Line], *, x_label: str, y_label: str, logarithmic: bool = False) -> str:
    """Values over something other than rounds, on a logarithmic axis if wanted; returns an ``<svg>`` element.

    On a logarithmic axis values of 0 are left out.
    """

    def draw(axes: Axes) -> None:
        for line in lines:
            values = [np.nan if value is None or (logarithmic and value <= 0) else value for _, value in line.points]
            (drawn,) = axes.plot([x for x, _ in line.points], values, color=line.colour, marker=line.marker)
            drawn.set(markersize=4.5, linewidth=line.width, clip_on=False)
        if logarithmic:
            axes.set_yscale("log")

    return _chart(name, draw, y_label=y_label, x_label=x_label)


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
    small: bool = False,
    from_zero: bool = False,
) -> str:
    from matplotlib.ticker import MaxNLocator

    def draw_all(drawing: Figure) -> None:
        axes = drawing.add_subplot()
        draw(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5 if small else 10, integer=True, min_n_ticks=1))
        if from_zero:
            axes.set_ylim(bottom=0.0)

    return svg(name, draw_all, (3.1, 2.1) if small else (5.2, 3.1))


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
    data = _saved(draw, size, {**_STYLE, "svg.hashsalt": name, **(style or {})}, "svg")
    return _inline(data.decode(), name)


def png(draw: Callable[[Figure], None], size: tuple[float, float], style: Style | None = None) -> bytes:
    """A drawing as a PNG file, black on white; arguments as :func:`svg`."""
    on_white: dict[object, str] = {INK: "#1c2024", FAINT: "#d6dbe0"}
    settings = {key: on_white.get(value, value) for key, value in _STYLE.items()}
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
        drawing.savefig(data, format=format, metadata=nothing)
    return data.getvalue()


_STYLE: Style = {
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


def class_rgb(label: int) -> NDArray[np.float64]:
    """The colour of a label from 1 on, (3,) in [0, 1]."""
    colour = CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


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
