"""Pictures of a sweep: variants with their intervals, against costs and rounds, and site by site.

Every function takes plain numbers and names and returns an ``<svg>`` element (:func:`.figures.svg`): it takes the
colours of its page, and the same input gives the same bytes. A variant keeps its colour and its mark in all of them.
Unlike the pictures of a run these carry names: they are also files of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .figures import INK, LINE_COLOURS, MARKS, svg
from .page import bytes_text, cut, number_text, signed_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 8
"""Up to so many variants have their name in the picture; more need a legend beside it."""

TEXT_PT = 9.0
NAME_LETTERS = 30

Draw = Callable[["Figure"], None]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How a variant looks: a colour and a marker of matplotlib."""

    colour: str
    marker: str

    @property
    def sign(self) -> str:
        """The marker as text."""
        return MARKS[self.marker]


def mark(place: int) -> Mark:
    """The look of the variant at a place of the plan; the first 48 differ.

    Example:
        >>> mark(0).sign, len({mark(place) for place in range(48)})
        ('●', 48)
    """
    return Mark(
        colour=LINE_COLOURS[place % len(LINE_COLOURS)],
        marker=list(MARKS)[(place + place // 24) % len(MARKS)],
    )


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A number with its interval.

    Args:
        name: Whose.
        mark: How it looks.
        value: The number.
        low: Lower end of the interval, None where there is none.
        high: Upper end.
        at: Where on the other axis; of no meaning in :func:`forest`.
        seeds: The number seed by seed; drawn small.
    """

    name: str
    mark: Mark
    value: float
    low: float | None = None
    high: float | None = None
    at: float = 0.0
    seeds: tuple[float, ...] = ()

    @property
    def ends(self) -> tuple[float, float]:
        """The interval, or the number twice."""
        return (self.value if self.low is None else self.low, self.value if self.high is None else self.high)


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A number at the right edge: a dashed line (the score of a reference), or the end of a course with its mark."""

    name: str
    value: float
    mark: Mark | None = None


@dataclass(frozen=True, kw_only=True)
class Course:
    """Numbers in a row, each with an interval: ``(x, mean, low, high)``."""

    name: str
    mark: Mark
    points: Sequence[tuple[float, float, float | None, float | None]]


# ---- pictures --------------------------------------------------------------------------------------------------------


def forest(name: str, dots: Sequence[Dot], *, x_label: str) -> str:
    """A row per variant: the number, its interval, every seed; a line at zero; the numbers as text.

    Args:
        name: Unique on the page.
        dots: One per row, from above.
        x_label: What the number is.
    """
    height = 0.75 + 0.3 * len(dots)
    left = 0.2 + _inches(max(len(cut(dot.name, NAME_LETTERS)) for dot in dots))
    width = left + 3.4 + 1.75

    def draw(drawing: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = _axes(drawing, left=left, right=1.75, bottom=0.55, top=0.15)
        axes.axvline(0.0, color=INK, linewidth=1.0)
        for row, dot in enumerate(dots):
            axes.plot(dot.seeds, [row] * len(dot.seeds), ".", color=dot.mark.colour, alpha=0.45, markersize=5)
            axes.plot(dot.ends, [row, row], color=dot.mark.colour, linewidth=2.0)
            axes.plot(dot.value, row, dot.mark.marker, color=dot.mark.colour, markersize=6.5)
            _write(axes, -0.02, row, cut(dot.name, NAME_LETTERS), "right", across=True)
            _write(axes, 1.02, row, interval_text(dot.value, dot.low, dot.high, signed=True), "left", across=True)
        axes.set_xlim(*_span([0.0, *(end for dot in dots for end in (*dot.ends, *dot.seeds))]))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_ylim(len(dots) - 0.5, -0.5)
        axes.set_yticks([])
        axes.set_xlabel(x_label, parse_math=False)

    return _picture(name, draw, (width, height))


def scatter(
    name: str,
    dots: Sequence[Dot],
    guides: Sequence[Guide] = (),
    *,
    x_label: str,
    y_label: str = "Dice",
    x_text: Callable[[float], str] = "{:g}".format,
    logarithmic: bool = True,
    line: Callable[[float], float] | None = None,
) -> str:
    """Variants by what they cost and what they reach; names beside the dots when there are at most :data:`FEW`.

    Args:
        name: Unique on the page.
        dots: One per variant.
        guides: Numbers of what has no cost of this kind.
        x_label: What the cost is.
        y_label: What is reached.
        x_text: Writes a cost at the axis.
        logarithmic: Whether the costs are on a logarithmic axis; all are above 0 then.
        line: A line through the dots: its height at a cost; straight as drawn.
    """

    def draw(drawing: Figure) -> None:
        axes = _axes(drawing, left=0.82, right=_margin(guides), bottom=0.55, top=0.15)
        _cost_axis(axes, [dot.at for dot in dots], x_text, logarithmic)
        _value_axis(axes, [end for dot in dots for end in dot.ends], guides, y_label)
        shown = _beside(axes, dots)
        for dot in shown:
            axes.plot([dot.at, dot.at], dot.ends, color=dot.mark.colour, linewidth=1.4, alpha=0.7)
            axes.plot(dot.at, dot.value, dot.mark.marker, color=dot.mark.colour, markersize=7.5)
        if line is not None:
            ends = (min(dot.at for dot in dots), max(dot.at for dot in dots))
            axes.plot(ends, [line(end) for end in ends], color=INK, linewidth=1.1, alpha=0.8, zorder=1)
        _dash(axes, guides)
        _name_ends(axes, guides)
        axes.set_xlabel(x_label, parse_math=False)
        if len(dots) <= FEW:
            _name_dots(axes, shown)

    return _picture(name, draw, (4.55 + _margin(guides), 3.2))


def band_chart(
    name: str,
    courses: Sequence[Course],
    guides: Sequence[Guide] = (),
    *,
    x_label: str,
    y_label: str,
    x_text: Callable[[float], str] = "{:g}".format,
    logarithmic: bool = False,
) -> str:
    """Courses with the band between their lowest and highest, named at their ends when there are at most :data:`FEW`.

    Arguments as :func:`scatter`; points at 0 are left out on a logarithmic axis.
    """
    ends = [*_ends(courses), *guides] if len(courses) <= FEW else [*guides]

    def draw(drawing: Figure) -> None:
        axes = _axes(drawing, left=0.82, right=_margin(ends), bottom=0.55, top=0.15)
        for course in courses:
            _draw_band(axes, [point for point in course.points if point[0] > 0 or not logarithmic], course.mark)
        every = [point[0] for course in courses for point in course.points]
        if logarithmic:
            _cost_axis(axes, [x for x in every if x > 0], x_text, True)
        else:
            _integer_axis(axes)
        _value_axis(axes, _heights(courses), guides, y_label)
        _dash(axes, guides)
        _name_ends(axes, ends)
        axes.set_xlabel(x_label, parse_math=False)

    return _picture(name, draw, (4.55 + _margin(ends), 3.1))


def small_courses(name: str, courses: Sequence[Course]) -> str:
    """Courses over rounds without names, for many pictures beside each other."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def draw(drawing: Figure) -> None:
        axes = _axes(drawing, left=0.62, right=0.1, bottom=0.45, top=0.12)
        for course in courses:
            _draw_band(axes, course.points, course.mark, size=3.2)
        _integer_axis(axes, most=5)
        heights = _heights(courses)
        room = 1e-3 * max(abs(height) for height in heights) or 1e-9  # what differs by less is drawn as equal
        axes.set_ylim(*_span([min(heights) - room, max(heights) + room]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.5g}"))
        axes.set_xlabel("round")

    return _picture(name, draw, (3.1, 2.1))


def against_number(
    name: str, courses: Sequence[Course], guides: Sequence[Guide] = (), *, x_label: str, y_label: str
) -> str:
    """Numbers with error bars against a setting; its axis is logarithmic where the values are powers of two."""
    ends = [*_ends(courses), *guides] if 1 < len(courses) <= FEW else [*guides]
    values = sorted({point[0] for course in courses for point in course.points})

    def draw(drawing: Figure) -> None:
        axes = _axes(drawing, left=0.86, right=_margin(ends), bottom=0.55, top=0.15)
        _setting_axis(axes, values)
        _value_axis(axes, _heights(courses), guides, y_label)
        for place, course in enumerate(courses):
            _draw_errors(axes, course, shift_pt=4.0 * (place - (len(courses) - 1) / 2))
        _dash(axes, guides)
        _name_ends(axes, ends)
        axes.set_xlabel(x_label, parse_math=False)

    return _picture(name, draw, (4.55 + _margin(ends), 3.1))


# ---- texts -----------------------------------------------------------------------------------------------------------


def interval_text(mean: float, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """``0.712 [0.690, 0.733]``; signed: ``+0.021 [-0.003, +0.044]``.

    Example:
        >>> interval_text(0.0214, -0.003, 0.0441, signed=True), interval_text(0.5, None, None)
        ('+0.021 [-0.003, +0.044]', '0.500')
    """
    form = signed_text if signed else number_text
    return form(mean) if low is None or high is None else f"{form(mean)} [{form(low)}, {form(high)}]"


def powers_of_two(values: Sequence[float]) -> bool:
    """Whether there are at least two values, all of them whole powers of two.

    Example:
        >>> powers_of_two([1, 2, 8]), powers_of_two([1, 3]), powers_of_two([0, 2])
        (True, False, False)
    """
    return len(values) > 1 and all(value > 0 and math.log2(value).is_integer() for value in values)


def bytes_tick(size: float) -> str:
    """``20 MB``: a size at an axis."""
    text, unit = bytes_text(size).split()
    return f"{float(text):g} {unit}"


def number_tick(number: float) -> str:
    """``300 k``: how many there are of something, at an axis.

    Example:
        >>> number_tick(500), number_tick(6_000), number_tick(85_000_000)
        ('500', '6 k', '85 M')
    """
    units = ((1e9, " G"), (1e6, " M"), (1e3, " k"), (0.0, ""))
    size, unit = next((size, name) for size, name in units if number >= size)
    factor = size or 1.0
    return f"{number / factor:g}{unit}"


# ---- parts -----------------------------------------------------------------------------------------------------------


def _picture(name: str, draw: Draw, size: tuple[float, float]) -> str:
    return svg(name, draw, size, {"font.size": TEXT_PT})


def _axes(drawing: Figure, *, left: float, right: float, bottom: float, top: float) -> Axes:
    """Axes with fixed margins in inches: where things are is known before anything is drawn."""
    drawing.set_layout_engine("none")
    width, height = drawing.get_size_inches()
    return drawing.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))


def _inches(letters: int) -> float:
    """About how wide a text is; the fonts of pages differ, so rather too wide."""
    return 0.62 * TEXT_PT / 72 * letters


def _write(axes: Axes, x: float, y: float, text: str, side: str, *, across: bool = False) -> None:
    """Text beside a row; ``across``: x counts from 0 to 1 over the axes. A ``$`` in a name is a ``$``."""
    where = axes.get_yaxis_transform() if across else axes.transData
    axes.text(x, y, text, ha=side, va="center", transform=where, parse_math=False, clip_on=False)


def _span(values: Sequence[float], room: float = 0.06) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = room * (high - low) or max(0.01, 0.05 * abs(high))
    return low - pad, high + pad


def _margin(named: Sequence[Guide]) -> float:
    return 0.2 + (_inches(3 + max(len(cut(item.name, 24)) for item in named)) if named else 0.0)


def _ends(courses: Sequence[Course]) -> list[Guide]:
    """The name of each course at its last number."""
    last = [(course, course.points[-1][1]) for course in courses if course.points]
    return [Guide(name=course.name, value=value, mark=course.mark) for course, value in last]


def _heights(courses: Sequence[Course]) -> list[float]:
    return [value for course in courses for point in course.points for value in point[1:] if value is not None]


def _value_axis(axes: Axes, values: Sequence[float], guides: Sequence[Guide], label: str) -> None:
    """The range of the values, with the guides that do not press them together."""
    room = 0.6 * max(max(values) - min(values), 0.02)
    near = [guide.value for guide in guides if min(values) - room <= guide.value <= max(values) + room]
    axes.set_ylim(*_span([*values, *near], 0.1))
    axes.set_ylabel(cut(label, 44), parse_math=False)


def _dash(axes: Axes, guides: Sequence[Guide]) -> None:
    low, high = axes.get_ylim()
    for guide in guides:
        if low <= guide.value <= high:
            axes.axhline(guide.value, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), alpha=0.7)


def _name_ends(axes: Axes, named: Sequence[Guide]) -> None:
    """Names at the right edge, moved apart where they would touch."""
    if not named:
        return
    low, high = axes.get_ylim()
    height_pt = axes.get_window_extent().height * 72 / axes.figure.dpi
    line = 1.25 * TEXT_PT / height_pt
    wanted = [(item.value - low) / (high - low) for item in named]
    for item, own, place in zip(named, wanted, apart(wanted, line), strict=True):
        beyond = "↓ " if own < 0 else "↑ " if own > 1 else ""
        if not beyond:
            axes.plot([1.0, 1.015], [own, place], color=INK, linewidth=0.6, transform=axes.transAxes, clip_on=False)
        if item.mark is not None:
            (shown,) = axes.plot(1.035, place, item.mark.marker, color=item.mark.colour, markersize=5)
            shown.set(clip_on=False, transform=axes.transAxes)
        left = 1.02 if item.mark is None else 1.055
        axes.text(left, place, beyond + cut(item.name, 24), va="center", transform=axes.transAxes, parse_math=False)


def apart(wanted: Sequence[float], least: float) -> list[float]:
    """Places between 0 and 1 that are at least so far from each other, and near those wanted.

    Args:
        wanted: Where each would be best.
        least: The distance; where there is no room for it they start at 0 and go beyond 1.

    Example:
        >>> apart([0.5, 0.5, 0.9], 0.2), apart([1.0, 1.0], 0.1)
        ([0.4, 0.6, 0.9], [0.9, 1.0])
    """
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])  # stable: equals keep their order
    groups: list[list[int]] = []
    for place in order:
        groups.append([place])
        while len(groups) > 1 and _first(groups[-1], wanted, least) - _last(groups[-2], wanted, least) < least - 1e-12:
            groups[-2:] = [groups[-2] + groups[-1]]
    found = dict.fromkeys(order, 0.0)
    for group in groups:
        start = _first(group, wanted, least)
        found |= {place: round(start + least * number, 9) for number, place in enumerate(group)}
    return [found[place] for place in range(len(wanted))]


def _first(group: Sequence[int], wanted: Sequence[float], least: float) -> float:
    long = least * (len(group) - 1)
    middle = sum(wanted[place] for place in group) / len(group)
    return max(0.0, min(middle - long / 2, 1.0 - long))


def _last(group: Sequence[int], wanted: Sequence[float], least: float) -> float:
    return _first(group, wanted, least) + least * (len(group) - 1)


def _draw_band(
    axes: Axes, points: Sequence[tuple[float, float, float | None, float | None]], look: Mark, size: float = 4.5
) -> None:
    x = [point[0] for point in points]
    lows = [point[1] if point[2] is None else point[2] for point in points]
    highs = [point[1] if point[3] is None else point[3] for point in points]
    axes.fill_between(x, lows, highs, color=look.colour, alpha=0.18, linewidth=0)
    (line,) = axes.plot(x, [point[1] for point in points], color=look.colour, marker=look.marker, linewidth=1.6)
    line.set(markersize=size, markevery=1 + len(x) // 12, clip_on=False)


def _integer_axis(axes: Axes, most: int = 9) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))


def _cost_axis(axes: Axes, values: Sequence[float], text: Callable[[float], str], logarithmic: bool) -> None:
    """Ticks that people can read; some room on both sides, as dots have names."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    if logarithmic:
        axes.set_xscale("log")
        room = max((high / low) ** 0.12, 1.25)
        axes.set_xlim(low / room, high * room)
        axes.xaxis.set_major_locator(FixedLocator(round_numbers(low / room, high * room)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.12 * (high - low) or max(0.1 * high, 1.0)
        axes.set_xlim(max(low - room, 0.0 if low else -room), high + room)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if low == high:  # dots are moved aside of the one cost that there is: other ticks would make costs of that
        axes.xaxis.set_major_locator(FixedLocator([low]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


ROUND = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(number / 10 for number in range(10, 100)))
"""First digits of round numbers, coarse to fine."""


def round_numbers(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two that are above 0, evenly on a logarithmic axis as far as may be.

    Example:
        >>> round_numbers(3, 4000), round_numbers(90, 210)
        ([10, 100, 1000], [100, 150, 200])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    best: list[float] = []
    for parts in ROUND:
        found = [_scaled(part, power) for power in range(first, last + 1) for part in parts]
        inside = [number for number in found if low <= number <= high]
        if len(inside) > most:
            return best or inside[:: math.ceil(len(inside) / most)]
        best = inside
        if len(inside) >= 3:
            break
    return best


def _scaled(part: float, power: int) -> float:
    number = float(part) * 10.0**power if power >= 0 else float(part) / 10.0**-power
    return int(number) if number.is_integer() else number


def _setting_axis(axes: Axes, values: Sequence[float]) -> None:
    """A tick at every value, as far as there is room."""
    from matplotlib.ticker import NullLocator

    if powers_of_two(values):
        axes.set_xscale("log", base=2)
        axes.set_xlim(values[0] / 1.3, values[-1] * 1.3)
    else:
        axes.set_xlim(*_span(values))
    ticks = values[:: math.ceil(len(values) / 12)]
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_errors(axes: Axes, course: Course, shift_pt: float) -> None:
    """A course with an upright line per interval, a little aside of those of other courses."""
    from matplotlib.transforms import ScaledTranslation

    where = axes.transData + ScaledTranslation(shift_pt / 72, 0, axes.figure.dpi_scale_trans)
    x, middles = [point[0] for point in course.points], [point[1] for point in course.points]
    (drawn,) = axes.plot(x, middles, color=course.mark.colour, marker=course.mark.marker, linewidth=1.4)
    drawn.set(transform=where, markersize=6)
    for at, middle, low, high in course.points:
        ends = [middle if low is None else low, middle if high is None else high]
        (drawn,) = axes.plot([at, at], ends, color=course.mark.colour, linewidth=1.4, alpha=0.7)
        drawn.set_transform(where)


def _beside(axes: Axes, dots: Sequence[Dot]) -> list[Dot]:
    """The dots, those at the same cost moved beside each other."""
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [float(to_axes.transform((dot.at, dot.value))[0]) for dot in dots]
    moved = dict(enumerate(dots))
    for group in _neighbours(places, 0.012):
        step = min(0.018, 0.4 / len(group))
        middle = sum(places[place] for place in group) / len(group)
        for number, place in enumerate(group if len(group) > 1 else ()):
            across = middle + step * (number - (len(group) - 1) / 2)
            moved[place] = replace(dots[place], at=float(to_axes.inverted().transform((across, 0.5))[0]))
    return list(moved.values())


def _neighbours(places: Sequence[float], near: float) -> list[list[int]]:
    """Numbers of places that follow each other closely."""
    groups: list[list[int]] = []
    for number in sorted(range(len(places)), key=lambda number: places[number]):
        if groups and places[number] - places[groups[-1][-1]] < near:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


Box = tuple[float, float, float, float]
"""Left, bottom, right, top in points."""


def _name_dots(axes: Axes, dots: Sequence[Dot]) -> None:
    """A name beside each dot where it covers least of what is there."""
    points_per_pixel = 72 / axes.figure.dpi
    to_points = axes.transData.transform
    frame = axes.get_window_extent()
    inside = tuple(edge * points_per_pixel for edge in (frame.x0, frame.y0, frame.x1, frame.y1))
    spots = [tuple(points_per_pixel * to_points((dot.at, dot.value))) for dot in dots]
    taken = [(x - 4.5, y - 4.5, x + 4.5, y + 4.5) for x, y in spots]
    for dot in dots:
        ends = [points_per_pixel * to_points((dot.at, end)) for end in dot.ends]
        taken.append((ends[0][0] - 1.0, ends[0][1], ends[1][0] + 1.0, ends[1][1]))
    for dot, spot in zip(dots, spots, strict=True):
        text = cut(dot.name, 26)
        others = [other for other in spots if other != spot]
        box = _free_place(spot, _inches(len(text)) * 72, taken, inside, others)
        taken.append(box)
        _name_dot(axes, dot, text, spot, box)


def _free_place(
    spot: tuple[float, ...],
    width: float,
    taken: Sequence[Box],
    inside: tuple[float, ...],
    others: Sequence[tuple[float, ...]] = (),
) -> Box:
    """The first place around a dot that is free and not nearer to another dot, or the one with least of both."""
    height = 1.15 * TEXT_PT
    boxes = []
    for distance in (7.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0):
        for across, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            x = spot[0] + across * distance + (across - 1) * width / 2
            y = spot[1] + up * distance - height / 2
            boxes.append((x, y, x + width, y + height))

    def fault(box: Box) -> float:
        misread = sum(_apart(box, other) < _apart(box, spot) - 1.5 for other in others)
        return round(_covered(box, taken) + 4 * _outside(box, inside) + 200 * misread, 6)

    return min(boxes, key=fault)


def _apart(box: Box, spot: tuple[float, ...]) -> float:
    """Points from a box to a spot."""
    return math.hypot(max(box[0] - spot[0], spot[0] - box[2], 0.0), max(box[1] - spot[1], spot[1] - box[3], 0.0))


def _covered(box: Box, taken: Sequence[Box]) -> float:
    """Square points that a box shares with others."""
    widths = (max(0.0, min(box[2], other[2]) - max(box[0], other[0])) for other in taken)
    heights = (max(0.0, min(box[3], other[3]) - max(box[1], other[1])) for other in taken)
    return sum(width * height for width, height in zip(widths, heights, strict=True))


def _outside(box: Box, inside: tuple[float, ...]) -> float:
    whole = (box[2] - box[0]) * (box[3] - box[1])
    return whole - _covered(box, [(inside[0], inside[1], inside[2], inside[3])])


def _name_dot(axes: Axes, dot: Dot, text: str, spot: tuple[float, ...], box: Box) -> None:
    """The name, and a thin line to its dot where it is not next to it."""
    middle = (box[1] + box[3]) / 2
    near = min(max(spot[0], box[0]), box[2])
    axes.annotate(
        text,
        (dot.at, dot.value),
        (box[0] - spot[0], middle - spot[1]),
        textcoords="offset points",
        va="center",
        parse_math=False,
        annotation_clip=False,
    )
    if math.hypot(near - spot[0], middle - spot[1]) > 13.0:
        axes.annotate(
            "",
            (dot.at, dot.value),
            (near - spot[0], middle - spot[1]),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 5, "shrinkB": 5},
        )
