"""A run as a figure of matplotlib: its score per round, and beside it what was learned or sent."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..builder import unknown
from ..results import RunRecords, Series
from .figures import BLUE, ON_WHITE, ORANGE, STYLE, Line, drawable
from .page import bytes_unit
from .run_curves import any_value, hospital_lines

Beside = Literal["loss", "bytes"]
"""What is drawn beside the score."""


class ShownFigure(Figure):
    """A figure that a notebook shows though pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=110)
        return data.getvalue()


def run_figure(records: RunRecords, beside: Beside = "loss") -> Figure:
    """Draws a run; needs no display and leaves pyplot alone.

    Args:
        records: The run; what it has so far is drawn.
        beside: ``loss``: the training loss per hospital; ``bytes``: what was sent so far.

    Raises:
        ValueError: nothing was measured yet, or an unknown ``beside``.
    """
    if beside not in _BESIDE:
        raise ValueError(f"beside: {unknown(f'expected loss or bytes, got {beside!r}', beside, _BESIDE)}")
    drawings = [draw for draw in (_score(records), _BESIDE[beside](records)) if draw is not None]
    if not drawings:
        raise ValueError(f"{records.path}: expected at least one round with numbers, found none; wait for the run")
    settings: Any = {name: ON_WHITE.get(value, value) for name, value in STYLE.items()}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**settings, "figure.facecolor": "white", "axes.facecolor": "white"})
        figure = ShownFigure(figsize=(4.6 * len(drawings), 3.4), layout="constrained", facecolor="white")
        for place, draw in enumerate(drawings, start=1):
            axes = figure.add_subplot(1, len(drawings), place)
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
            draw(axes)
    return figure


Draw = Callable[[Axes], None]


def _score(records: RunRecords) -> Draw | None:
    """The score of the split with the most scored rounds: test cases, or validation cases."""
    headline = records.headline
    courses = {split: records.series(headline.key, split) for split in ("test", "validation")}
    split, series = max(courses.items(), key=lambda item: max(map(len, item[1].values()), default=0))
    return _courses(series, f"{split} {headline.word_inside}", (0.0, 1.0))


def _loss(records: RunRecords) -> Draw | None:
    return _courses(records.series("loss", "train"), "training loss", None)


def _courses(series: Series, label: str, limits: tuple[float, float] | None) -> Draw | None:
    """A line per hospital and their mean, None when there is nothing to draw."""
    if not any_value(series):
        return None
    lines, entries = hospital_lines(series)

    def draw(axes: Axes) -> None:
        drawn = [_draw_line(axes, line) for line in lines]
        axes.set_ylabel(label)
        if limits is not None:
            axes.set_ylim(*limits)
        # of many hospitals the legend names the mean and one thin line, of a few every line, in their order
        named = [drawn[-1], drawn[0]] if len(lines) > len(entries) else drawn
        axes.legend(named, [drawable(text, "hospital") for _, _, text in entries], fontsize=8, framealpha=0.6)

    return draw


def _draw_line(axes: Axes, line: Line) -> Any:
    rounds = [number for number, _ in line.points]
    values = [np.nan if value is None else value for _, value in line.points]
    (drawn,) = axes.plot(rounds, values, color=ON_WHITE.get(line.colour, line.colour), linewidth=line.width)
    drawn.set(marker=line.marker, markersize=4.5, markevery=1 + len(rounds) // 16)
    return drawn


def _bytes(records: RunRecords) -> Draw | None:
    """What was sent so far, the two ways stacked."""
    sent = records.bytes_per_round()
    if not any(map(sum, sent.values())):
        return None
    down, up = (list(accumulate((pair[way] for pair in sent.values()), initial=0)) for way in (0, 1))
    factor, unit = bytes_unit(down[-1] + up[-1])
    heights = [[size / factor for size in sizes] for sizes in (down, up)]

    def draw(axes: Axes) -> None:
        ways = ["to the hospitals", "back to the server"]
        axes.stackplot([min(sent) - 1, *sent], heights, labels=ways, colors=[BLUE, ORANGE], linewidth=0)
        axes.set_ylabel(f"{unit} sent so far")
        axes.set_ylim(bottom=0.0)
        axes.legend(fontsize=8, framealpha=0.6, loc="upper left")

    return draw


_BESIDE: Mapping[str, Callable[[RunRecords], Draw | None]] = {"loss": _loss, "bytes": _bytes}
