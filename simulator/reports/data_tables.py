"""What each hospital of a federation got: cases, scanners, volumes. As rows, a table, a picture and a sentence.

The picture follows :mod:`~wardround.simulator.reports.figures`, but for one thing: hospitals and classes are named in
it, as long as they are few and their names plain ASCII.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from ...datasets.contract import Case, Cases, Federation
from ...datasets.facts import PERCENTILES, Facts
from . import figures
from .page import UNDEFINED, Table, count_text, cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Role = Literal["trains", "unseen", "common"]

COMMON = "common test set"
SHOWN_PERCENTILES = (0.5, 50.0, 99.5)
MAX_PANELS = 4
"""With more classes than this the picture shows the volume of all classes together."""

MAX_NAMES = 20
"""With more hospitals than this the picture numbers them."""

WIDE = 30.0
"""Volumes whose ratio exceeds this are drawn on a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class HospitalRow:
    """What one hospital got, or what nobody trains on.

    Args:
        name: Of the hospital.
        role: ``trains``; ``unseen``: a hospital that is only scored; ``common``: the test set that belongs to nobody.
        train: Number of training cases.
        validation: Number of validation cases.
        test: Number of test cases.
        patients: Number of patients.
        unmeasured: Number of cases without facts; what follows does not know them.
        slices: Of each case.
        slice_mm: Spacing of the slices of each case, in mm.
        pixel_mm: Spacing within a slice, in mm: two numbers for each case.
        label_ml: For each class, the volume in each case, in ml.
        percentiles: For each of :data:`~wardround.datasets.facts.PERCENTILES`, the intensity in each case.
    """

    name: str
    role: Role
    train: int
    validation: int
    test: int
    patients: int
    unmeasured: int
    slices: tuple[int, ...]
    slice_mm: tuple[float, ...]
    pixel_mm: tuple[float, ...]
    label_ml: tuple[tuple[float, ...], ...]
    percentiles: tuple[tuple[float, ...], ...]

    @property
    def cases(self) -> int:
        """All of its cases."""
        return self.train + self.validation + self.test


def federation_rows(federation: Federation, facts: Mapping[str, Facts]) -> list[HospitalRow]:
    """One row per hospital that trains, then those of the hospitals that do not, then that of the common test set.

    Args:
        federation: Who has what.
        facts: Of the cases, by name; a case that is not there is counted, not measured.
    """
    num_classes = len(federation.classes)
    rows = [_row(name, "trains", cases, facts, num_classes) for name, cases in federation.hospitals.items()]
    only_tested: list[tuple[str, Role, tuple[Case, ...]]] = [
        (name, "unseen", test) for name, test in federation.unseen.items()
    ]
    if federation.common:
        only_tested.append((COMMON, "common", federation.common))
    for name, role, test in only_tested:
        rows.append(_row(name, role, Cases(train=(), validation=(), test=test), facts, num_classes))
    return rows


def _row(name: str, role: Role, cases: Cases, facts: Mapping[str, Facts], num_classes: int) -> HospitalRow:
    everything = (*cases.train, *cases.validation, *cases.test)
    known = [facts[case.name] for case in everything if case.name in facts]
    return HospitalRow(
        name=name,
        role=role,
        train=len(cases.train),
        validation=len(cases.validation),
        test=len(cases.test),
        patients=len({case.patient for case in everything}),
        unmeasured=len(everything) - len(known),
        slices=tuple(each.shape[0] for each in known),
        slice_mm=tuple(each.spacing_mm[0] for each in known),
        pixel_mm=tuple(mm for each in known for mm in each.spacing_mm[1:]),
        label_ml=tuple(tuple(each.label_ml[label] for each in known) for label in range(num_classes)),
        percentiles=tuple(tuple(each.percentiles[place] for each in known) for place in range(len(PERCENTILES))),
    )


def _total(rows: Sequence[HospitalRow]) -> HospitalRow:
    """All rows as one."""

    def joined(parts: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
        return tuple(value for part in parts for value in part)

    def columns(parts: Iterable[tuple[tuple[float, ...], ...]]) -> tuple[tuple[float, ...], ...]:
        return tuple(map(joined, zip(*parts, strict=True)))

    return HospitalRow(
        name="all",
        role="trains",
        train=sum(row.train for row in rows),
        validation=sum(row.validation for row in rows),
        test=sum(row.test for row in rows),
        patients=sum(row.patients for row in rows),
        unmeasured=sum(row.unmeasured for row in rows),
        slices=joined(row.slices for row in rows),
        slice_mm=joined(row.slice_mm for row in rows),
        pixel_mm=joined(row.pixel_mm for row in rows),
        label_ml=columns(row.label_ml for row in rows),
        percentiles=columns(row.percentiles for row in rows),
    )


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[HospitalRow], classes: Sequence[str]) -> Table:
    """The rows as a table for any output.

    Args:
        rows: At least one.
        classes: Names of the C classes.
    """
    columns = _columns(classes, validation=any(row.validation for row in rows))
    cells = [(_titled(row), *(cell(row) for cell in columns.values())) for row in rows]
    footer = [("all", *(cell(_total(rows)) for cell in columns.values()))] if len(rows) > 1 else []
    return Table(header=("hospital", *columns), rows=tuple(cells), footer=tuple(footer), note=_note(rows))


def text(rows: Sequence[HospitalRow], classes: Sequence[str], width: int = 120) -> str:
    """An aligned plain table; where it is too wide, the volumes of the classes go into a block of their own.

    Args:
        rows: At least one.
        classes: Names of the C classes.
        width: Columns of the terminal.
    """
    made = table(rows, classes)
    widths = [max(map(len, column)) for column in zip(made.header, *made.rows, *made.footer, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) <= width:
        return made.text(width)
    first = len(made.header) - len(classes)
    general, volumes = _part(made, slice(1, first)), _part(made, slice(first, None))
    return "\n\n".join([replace(general, note="").text(width), volumes.text(width)])


def _part(made: Table, columns: slice) -> Table:
    """The first column and some of the others."""

    def cells(row: tuple[str, ...]) -> tuple[str, ...]:
        return (row[0], *row[columns])

    return Table(
        header=cells(made.header),
        rows=tuple(map(cells, made.rows)),
        footer=tuple(map(cells, made.footer)),
        note=made.note,
    )


def _columns(classes: Sequence[str], validation: bool) -> dict[str, Callable[[HospitalRow], str]]:
    """What is above a column, and how a row fills it."""
    counts = ("train", "validation", "test") if validation else ("train", "test")
    return {
        **{name: _count_cell(name) for name in (*counts, "patients")},
        "slices": lambda row: _middle(row.slices),
        "slice mm": lambda row: _range(row.slice_mm),
        "pixel mm": lambda row: _range(row.pixel_mm),
        "intensity": _intensity_cell,
        **{f"{cut(name, 20)} ml": _volume_cell(label) for label, name in enumerate(classes)},
    }


def _count_cell(name: str) -> Callable[[HospitalRow], str]:
    return lambda row: str(getattr(row, name))


def _volume_cell(label: int) -> Callable[[HospitalRow], str]:
    return lambda row: _middle(row.label_ml[label])


def _intensity_cell(row: HospitalRow) -> str:
    """``0 / 41 / 190``: typical percentiles."""
    shown = [row.percentiles[PERCENTILES.index(percent)] for percent in SHOWN_PERCENTILES]
    return " / ".join(_digits(median(values)) for values in shown) if row.slices else UNDEFINED


def _middle(values: Sequence[float]) -> str:
    """``36 (31-43)``: median, smallest and largest."""
    if not values:
        return UNDEFINED
    ends = _range(values)
    return f"{_digits(median(values))} ({ends})" if "-" in ends else ends


def _range(values: Sequence[float]) -> str:
    """``0.5-5``, or one number where all are equal."""
    if not values:
        return UNDEFINED
    low, high = _digits(min(values)), _digits(max(values))
    return low if low == high else f"{low}-{high}"


def _digits(value: float) -> str:
    """Three digits: ``0.0712``, ``45.1``, ``4180``, ``4.24e5``; more for whole numbers below 100,000."""
    if abs(value) >= 1e5:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _titled(row: HospitalRow) -> str:
    return f"{row.name} (unseen)" if row.role == "unseen" else row.name


def _note(rows: Sequence[HospitalRow]) -> str:
    parts = [
        "Train, test: cases. Slices, ml: median over the cases (smallest-largest). Slice, pixel mm: spacing, "
        "smallest-largest. Intensity: medians over the cases of the 0.5th, 50th and 99.5th percentile, after clipping."
    ]
    if any(row.role == "unseen" for row in rows):
        parts.append("Unseen: does not train, its test cases are scored with the global model.")
    missing = sum(row.unmeasured for row in rows)
    if missing:
        parts.append(f"{count_text(missing, 'case')} could not be measured.")
    return " ".join(parts)


# ---- words -----------------------------------------------------------------------------------------------------------


def in_words(rows: Sequence[HospitalRow], classes: Sequence[str]) -> str:
    """The text alternative of the picture.

    Args:
        rows: At least one that trains.
        classes: Names of the C classes.
    """
    training = [row for row in rows if row.role == "trains"]
    small, large = (pick(training, key=lambda row: row.cases) for pick in (min, max))
    sums = {side: sum(getattr(row, side) for row in training) for side in ("train", "validation", "test")}
    parts = [
        f"{count_text(len(training), 'hospital')} with {sums['train']} training, {sums['validation']} validation and "
        f"{sums['test']} test cases.",
        f"Fewest: {small.name} with {small.cases}; most: {large.name} with {large.cases}.",
        *(_volume_in_words(title, training, values) for title, values in _panels(training, classes)),
        *(f"{_titled(row)}: {count_text(row.test, 'test case')}." for row in rows if row.role != "trains"),
    ]
    return " ".join(part for part in parts if part)


def _volume_in_words(title: str, rows: Sequence[HospitalRow], values: Sequence[Sequence[float]]) -> str:
    medians = [(median(each), row.name) for row, each in zip(rows, values, strict=True) if each]
    if not medians:
        return ""
    (low, low_name), (high, high_name) = min(medians), max(medians)
    return f"Median volume of {title}: from {_digits(low)} ml at {low_name} to {_digits(high)} ml at {high_name}."


# ---- picture ---------------------------------------------------------------------------------------------------------


def figure(rows: Sequence[HospitalRow], classes: Sequence[str], name: str = "hospitals") -> str:
    """Cases of each hospital as stacked bars, and below them the label volume of every case, with the median.

    Args:
        rows: At least one, from left to right.
        classes: Names of the C classes.
        name: Unique on the page; makes the ids of the drawing unique.

    Returns:
        An ``<svg>`` element that takes the colours of its page; :func:`in_words` is its text alternative.
    """
    return figures.svg(name, *_drawing(rows, classes))


def png(rows: Sequence[HospitalRow], classes: Sequence[str]) -> bytes:
    """The same picture as a PNG file, black on white."""
    return figures.png(*_drawing(rows, classes))


def _drawing(
    rows: Sequence[HospitalRow], classes: Sequence[str]
) -> tuple[Callable[[Figure], None], tuple[float, float], figures.Style]:
    """What draws it, its size and its settings."""
    panels = _panels(rows, classes)
    size = (7.2, 2.2 + 1.5 * len(panels))
    return lambda drawing: _draw(drawing, rows, panels), size, {"font.size": 9, "text.parse_math": False}


def _panels(rows: Sequence[HospitalRow], classes: Sequence[str]) -> list[tuple[str, list[Sequence[float]]]]:
    """What is drawn below the bars: a title, and for each row a volume per case."""
    if len(classes) <= MAX_PANELS:
        return [(name, [row.label_ml[label] for row in rows]) for label, name in enumerate(classes)]
    together: list[Sequence[float]] = [[sum(case) for case in zip(*row.label_ml, strict=True)] for row in rows]
    return [("all classes", together)]


def _draw(
    drawing: Figure, rows: Sequence[HospitalRow], panels: Sequence[tuple[str, Sequence[Sequence[float]]]]
) -> None:
    axes = drawing.subplots(1 + len(panels), 1, sharex=True, squeeze=False)[:, 0]
    _bars(axes[0], rows)
    for number, (below, (title, values)) in enumerate(zip(axes[1:], panels, strict=True)):
        _strips(below, values)
        below.set_ylabel(f"{figures.drawable(title, f'class {number + 1}')}, ml")
    training = sum(row.role == "trains" for row in rows)
    for each in axes:
        each.grid(visible=False, axis="x")
        if 0 < training < len(rows):
            each.axvline(training - 0.5, color=figures.INK, linewidth=0.8, linestyle=":")
    axes[-1].set_xlim(-0.6, len(rows) - 0.4)
    _name_hospitals(axes[-1], rows)


def _bars(axes: Axes, rows: Sequence[HospitalRow]) -> None:
    from matplotlib.ticker import MaxNLocator

    colours = {"train": figures.BLUE, "validation": figures.GREEN, "test": figures.ORANGE}
    places, height = range(len(rows)), [0] * len(rows)
    for side, colour in colours.items():
        counts = [getattr(row, side) for row in rows]
        if any(counts):
            axes.bar(places, counts, bottom=height, width=0.8, color=colour, label=side)
            height = [below + count for below, count in zip(height, counts, strict=True)]
    axes.set_ylabel("cases")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0, handlelength=1)


def _strips(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    """A dot per case, spread sideways by the golden ratio, and a line at the median."""
    across = [
        place + 0.6 * (number * 0.618 % 1 - 0.5) for place, own in enumerate(values) for number in range(len(own))
    ]
    size = 4.0 if len(values) <= MAX_NAMES else 2.5
    heights = [value for own in values for value in own]
    axes.plot(across, heights, "o", color=figures.PURPLE, markersize=size, markeredgewidth=0, alpha=0.6, clip_on=False)
    filled = [(place, median(own)) for place, own in enumerate(values) if own]
    places, middles = [place for place, _ in filled], [middle for _, middle in filled]
    axes.hlines(middles, [place - 0.4 for place in places], [place + 0.4 for place in places], color=figures.INK)
    _scale(axes, heights)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """From zero, or logarithmic where values are of different magnitudes."""
    from matplotlib.ticker import FuncFormatter

    positive = [value for value in values if value > 0]
    if not positive or max(positive) / min(positive) <= WIDE:
        axes.set_ylim(bottom=0.0)
        return
    axes.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(min(positive))))  # zero is on the axis, too
    axes.set_ylim(bottom=0.0 if min(values) == 0 else 0.7 * min(positive))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _name_hospitals(axes: Axes, rows: Sequence[HospitalRow]) -> None:
    """Names below the axis, or numbers from 1 where names are many or not plain."""
    names = [figures.drawable(_titled(row), "") for row in rows]
    if len(rows) <= MAX_NAMES and all(names):
        slanted = sum(map(len, names)) + len(names) > 80
        turned: Any = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        axes.set_xticks(range(len(rows)), names, **turned)
        return
    step = next(step for step in (1, 2, 5, *range(10, len(rows), 10)) if len(rows) <= step * MAX_NAMES)
    shown = [place for place in range(len(rows)) if (place + 1) % step == 0 or place == 0]
    axes.set_xticks(shown, [str(place + 1) for place in shown])
    tested = "" if all(row.role == "trains" for row in rows) else "; right of the dotted line: only tested"
    axes.set_xlabel(f"hospital, in the order of the table{tested}")
