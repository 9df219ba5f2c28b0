"""The page of ``wardround data check``: what is wrong, who has what, one slice and the intensities of every hospital.

Made of what the check measured, and of one volume per hospital that is read once more for its slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...datasets import DATASETS
from ...datasets.check import Finding
from ...datasets.contract import Case, Dataset, Federation, Volume
from ...datasets.facts import Facts
from .. import files
from .data_tables import COMMON, federation_rows, in_words, table
from .data_tables import figure as holdings
from .page import (
    Html,
    Section,
    banner,
    count_text,
    details,
    facts,
    figure,
    figures,
    join,
    legend,
    note,
    page,
    png_picture,
    svg_picture,
    tag,
    tiles,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY_HOSPITALS = 8
"""With more of them, pictures are smaller, and those after them have to be unfolded."""

LOG_ABOVE = 20
"""Ratio of intensity conventions above which one linear axis shows nothing of the smaller ones."""

STEPS = 96
"""Bins of the common axis."""


def write_data_report(
    path: Path,
    dataset: Dataset,
    finding: Finding,
    federation: Federation,
    *,
    images: bool = True,
    split: Mapping[str, object] | None = None,
) -> Path:
    """Writes one self-contained HTML page about a folder of data; the same data give the same bytes.

    Args:
        path: The file to write.
        dataset: Reads the cases that are shown.
        finding: What the check found; cases it could not measure are listed as problems and shown nowhere else.
        federation: Who has which cases.
        images: Whether a slice of one case per hospital may be on the page.
        split: The settings that made the hospitals; None: not shown.

    Returns:
        The file written.

    Raises:
        ValueError: a case that is to be shown can no longer be read.
    """
    groups = _groups(federation, finding.facts)
    made = [
        lines_section("Problems", finding.problems),
        lines_section("Remarks", finding.remarks),
        _who_has_what(federation, finding.facts),
        _slices(dataset, finding, groups) if images else _no_slices(),
        _intensities(groups),
        settings_section(dataset),
        split_section(split),
    ]
    title = f"Data check: {called(dataset)}"
    sections = [section for section in made if section is not None]
    files.write_text(path, page(title=title, head=_head(title, finding, federation, groups), sections=sections))
    return path


@dataclass(frozen=True, kw_only=True)
class Group:
    """The measured cases of a hospital, of a site that does not train or of the common test set.

    Args:
        name: What it is called.
        cases: One or more, sorted by name.
        facts: What was measured, by name of the case.
    """

    name: str
    cases: tuple[Case, ...]
    facts: Mapping[str, Facts]

    @property
    def measured(self) -> list[Facts]:
        """The facts of its cases."""
        return [self.facts[case.name] for case in self.cases]


def _groups(federation: Federation, facts: Mapping[str, Facts]) -> list[Group]:
    """Hospitals, those that do not train, the common cases; none without a measured case."""
    named = {name: (*sides.train, *sides.validation, *sides.test) for name, sides in federation.hospitals.items()}
    named |= {f"{name} (unseen)": cases for name, cases in federation.unseen.items()}
    named |= {COMMON: federation.common}
    found = {
        name: tuple(sorted((case for case in cases if case.name in facts), key=lambda case: case.name))
        for name, cases in named.items()
    }
    return [Group(name=name, cases=cases, facts=facts) for name, cases in found.items() if cases]


def called(dataset: object) -> str:
    """The data set's row in the table, or the name of its class."""
    return next((name for name, cls in DATASETS.items() if cls is type(dataset)), type(dataset).__name__)


# ---- head and lists --------------------------------------------------------------------------------------------------


def _head(title: str, finding: Finding, federation: Federation, groups: Sequence[Group]) -> Html:
    cases = finding.pool.cases
    unread = len(cases) - len({case.name for case in cases} & set(finding.facts))
    slices = sum(measured.shape[0] for group in groups for measured in group.measured)
    boxes = {
        "Cases": (str(len(cases)), f"{unread} of them without facts" if unread else "all of them were read"),
        "Patients": (str(len({case.patient for case in cases})), ""),
        "Hospitals": (str(len(federation.hospitals)), beside(federation)),
        "Slices": (str(slices), ", ".join(federation.classes)),
        "Problems": (str(len(finding.problems)), count_text(len(finding.remarks), "remark")),
    }
    wrong = "This data cannot be trained on as it is: every problem below has to be solved first."
    return join([tag("h1", title), banner(wrong) if finding.problems else "", tiles(boxes)])


def beside(federation: Federation) -> str:
    """What there is beside the hospitals that train."""
    parts = [f"{len(federation.unseen)} more do not train"] if federation.unseen else []
    parts += [count_text(len(federation.common), "common test case")] if federation.common else []
    return ", ".join(parts)


def lines_section(title: str, lines: Sequence[str]) -> Section | None:
    """A list with a title; None where it is empty."""
    items = [tag("li", line, style="overflow-wrap: anywhere") for line in lines]
    return Section(title=title, body=tag("ul", *items)) if lines else None


def split_section(split: Mapping[str, object] | None) -> Section | None:
    """The settings that made the hospitals; None where there are none to be shown."""
    if not split:
        return None
    return Section(title="How the hospitals were made", body=facts({name: str(value) for name, value in split.items()}))


def settings_section(dataset: object) -> Section:
    """The fields of a data set, as the page shows them."""
    found = {item.name: str(getattr(dataset, item.name)) for item in fields(dataset)}  # type: ignore[arg-type]  # the contract: a dataclass
    return Section(title="Settings of the data set", body=facts(found) if found else note("It has none."))


# ---- who has what ----------------------------------------------------------------------------------------------------


def _who_has_what(federation: Federation, measured: Mapping[str, Facts]) -> Section:
    rows = federation_rows(federation, measured)
    body = [table(rows, federation.classes).html()]
    if measured:
        picture = svg_picture(holdings(rows, federation.classes), in_words(rows, federation.classes))
        body.append(figures([figure(picture, "Cases, and the label volume of each case with the median.")]))
    return Section(title="Who has what", body=join(body))


# ---- slices ----------------------------------------------------------------------------------------------------------


def _no_slices() -> Section:
    return Section(title="Slices", body=note("Slices of the images were left out of this page on request."))


def _slices(dataset: Dataset, finding: Finding, groups: Sequence[Group]) -> Section | None:
    """The case in the middle of each hospital, where its label is largest."""
    from .figures import CLASS_COLOURS

    if not groups:
        return None
    explained = (
        "Of each hospital the case with the median label volume, at the slice with the largest label area. Outlines: "
        "the mask. Slices as stored in the file, in the proportions of the body, dark to bright from the 0.5 % to the "
        "99.5 % point of the volume."
    )
    colours = [CLASS_COLOURS[place % len(CLASS_COLOURS)] for place in range(len(finding.pool.classes))]
    key = legend([("■", colour, name) for colour, name in zip(colours, finding.pool.classes, strict=True)])
    drawn = [_slice_figure(dataset, group, many=len(groups) > MANY_HOSPITALS) for group in groups]
    return Section(title="Slices", body=join([note(explained), key, in_columns(drawn, "slices")]))


def in_columns(drawn: Sequence[Html], what: str) -> Html:
    """Small figures beside each other, those after the first :data:`MANY_HOSPITALS` to be unfolded."""
    first, others = drawn[:MANY_HOSPITALS], drawn[MANY_HOSPITALS:]
    shown = figures(first, small=True)
    hidden = details(f"{len(others)} more {what}", figures(others, small=True)) if others else ""
    return join([shown, hidden])


def median_case(group: Group) -> Case:
    """The case whose label volume, all classes together, is the (lower) median; ties by name."""
    ordered = sorted(group.cases, key=lambda case: (sum(group.facts[case.name].label_ml), case.name))
    return ordered[(len(ordered) - 1) // 2]


def _slice_figure(dataset: Dataset, group: Group, *, many: bool) -> Html:
    from .figures import overlay_png

    case = median_case(group)
    volume = dataset.volume(case)
    place = largest_slice(volume)
    image, label = _window(volume.image[place], group.facts[case.name]), volume.label[place]
    png = overlay_png(
        image, label, np.zeros_like(label), spacing_mm=volume.spacing_mm[1:], side=_side(image.shape, many)
    )
    text = f"{group.name}: {case.name}, slice {place + 1} of {len(volume.image)}"
    return figure(png_picture(png, f"Slice with the outlines of its mask, {text}"), text)


def _side(shape: tuple[int, ...], many: bool) -> int:
    """Pixels of the longer side of a picture."""
    return int(np.clip(max(shape), 160, 256) if many else np.clip(max(shape), 320, 512))


def largest_slice(volume: Volume) -> int:
    """The slice with most labelled voxels, the first of them; the one in the middle where there is no label."""
    area = np.count_nonzero(volume.label, axis=(1, 2))  # (S,)
    return int(area.argmax()) if area.any() else len(area) // 2


def _window(image: NDArray[np.float32], measured: Facts) -> NDArray[np.float32]:
    """(H, W) in [0, 1] between the outer percentiles of the volume."""
    low, high = measured.percentiles[0], measured.percentiles[-1]
    grey = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return np.clip(grey, 0, 1).astype(np.float32)


# ---- intensities -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The intensity axis that all hospitals share.

    Args:
        edges: (STEPS + 1,) of the bins, equally far from each other on the axis.
        linear_width: Up to this intensity about linear, beyond it about logarithmic; None: linear everywhere.
    """

    edges: NDArray[np.float64]
    linear_width: float | None


def common_axis(measured: Sequence[Facts]) -> Axis:
    """From the smallest 0.5 % point to the largest 99.5 % point of all cases.

    Where the cases' scales differ by more than :data:`LOG_ABOVE` times, the axis is ``asinh(intensity / width)``:
    logarithmic, with a place for zero and for negative values.
    """
    low, high = min(facts.percentiles[0] for facts in measured), max(facts.percentiles[-1] for facts in measured)
    high = high if high > low else low + 1
    scales = [facts.scale for facts in measured]
    smallest = min((scale for scale in scales if scale > 0), default=1.0)
    if max(scales) <= LOG_ABOVE * smallest:
        return Axis(edges=np.linspace(low, high, STEPS + 1), linear_width=None)
    width = smallest / 50
    edges = width * np.sinh(np.linspace(np.arcsinh(low / width), np.arcsinh(high / width), STEPS + 1))
    return Axis(edges=edges, linear_width=width)


def shares_on(axis: Axis, measured: Facts) -> NDArray[np.float64]:
    """A case's histogram on the common axis, (STEPS,), sum 1; the outer bins hold what lies beyond them.

    Voxels are spread evenly over their bin, except for a background: where 1 % or more of the voxels have the smallest
    value of all, the voxels of the first bin count as having it.
    """
    inner = np.linspace(measured.low, measured.high, len(measured.histogram) + 1)
    below = np.cumsum([0.0, *measured.histogram])
    if measured.percentiles[1] == measured.low:
        below[0] = below[1]
    found = np.interp(axis.edges, inner, below, left=0.0, right=1.0)
    found[0], found[-1] = 0.0, 1.0
    shares: NDArray[np.float64] = np.diff(found)
    return shares


def _intensities(groups: Sequence[Group]) -> Section | None:
    """A histogram per hospital, all on the same axes."""
    if not groups:
        return None
    axis = common_axis([facts for group in groups for facts in group.measured])
    shares = [np.array([shares_on(axis, facts) for facts in group.measured]) for group in groups]  # (cases, STEPS) each
    top = _top(shares)
    drawn = [
        _histogram_figure(number, group, axis, found, top)
        for number, (group, found) in enumerate(zip(groups, shares, strict=True))
    ]
    kind = (
        "That of intensity is logarithmic except near zero, because intensities" if axis.linear_width else "Intensities"
    )
    explained = (
        "Share of a volume's voxels per bin, after the data set's clipping, on a square-root axis. Line: mean over the "
        "cases; area: from the 10 % to the 90 % point of the cases. All hospitals on the same axes. "
        f"{kind} of the cases differ by up to {_times(_ratio(groups))}."
    )
    return Section(title="Intensities", body=join([note(explained), in_columns(drawn, "histograms")]))


def _times(ratio: float) -> str:
    """``1.8 times``, ``6880 times``."""
    return f"{float(f'{ratio:.3g}'):.{0 if ratio >= 100 else 1}f} times"


def _ratio(groups: Sequence[Group]) -> float:
    """How many times the largest convention is the smallest one."""
    scales = [facts.scale for group in groups for facts in group.measured if facts.scale > 0]
    return max(scales) / min(scales) if scales else 1.0


def _top(shares: Sequence[NDArray[np.float64]]) -> float:
    """Where the axis of shares ends: above all but the outer bins, where a background or what was clipped towers.

    It is at most twice the largest mean, for a few cases that are all alike spread wide.
    """
    average = max(float(found.mean(axis=0)[1:-1].max()) for found in shares)
    spread = max(float(np.percentile(found, 90, axis=0)[1:-1].max()) for found in shares)
    return max(1.05 * min(max(average, spread), 2 * average), 1e-3)


def _histogram_figure(number: int, group: Group, axis: Axis, shares: NDArray[np.float64], top: float) -> Html:
    average = shares.mean(axis=0)
    text = f"{group.name}: {count_text(len(shares), 'case')}"
    cut = {"darkest": average[0], "brightest": average[-1]}
    text += "".join(f"; {100 * share:.0f} % in the {end} bin, cut off" for end, share in cut.items() if share > top)
    medians = [facts.percentiles[2] for facts in group.measured]
    outer = [facts.percentiles for facts in group.measured]
    low, high = min(points[0] for points in outer), max(points[-1] for points in outer)
    alt = f"Intensity histogram, {text}; median {np.median(medians):.3g}, most voxels from {low:.3g} to {high:.3g}"
    return figure(svg_picture(_histogram(f"intensity-{number}", axis, shares, top), alt), text)


def _histogram(name: str, axis: Axis, shares: NDArray[np.float64], top: float) -> str:
    """An ``<svg>`` element: mean and spread of (cases, STEPS) shares."""
    from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter

    from .figures import BLUE, SKY, svg

    lower, upper = np.percentile(100 * shares, (10, 90), axis=0)

    def draw(drawing: Figure) -> None:
        axes = drawing.add_subplot()
        if axis.linear_width is not None:
            axes.set_xscale("asinh", linear_width=axis.linear_width)
        axes.stairs(upper, axis.edges, baseline=lower, fill=True, color=SKY, alpha=0.45, linewidth=0)
        axes.stairs(100 * shares.mean(axis=0), axis.edges, color=BLUE, linewidth=1.4)
        axes.set_yscale("function", functions=(lambda share: np.sqrt(np.clip(share, 0, None)), np.square))
        axes.set(xlim=(axis.edges[0], axis.edges[-1]), ylim=(0, 100 * top), xlabel="intensity", ylabel="% of voxels")
        axes.yaxis.set_major_locator(FixedLocator(_share_ticks(100 * top)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, place: f"{share:g}"))
        axes.xaxis.set_major_locator(_locator(axis))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    return svg(name, draw, (3.1, 2.1))


def _share_ticks(top: float) -> list[float]:
    """Round percentages up to ``top`` that a square-root axis shows at a distance."""
    ticks = [0.0]
    for share in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 60, 80, 100):
        if share <= top and np.sqrt(share) - np.sqrt(ticks[-1]) > 0.17 * np.sqrt(top):
            ticks.append(share)
    return ticks


def _locator(axis: Axis) -> Any:
    """About five ticks; on the logarithmic axis zero and powers of ten."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    if axis.linear_width is None:
        return MaxNLocator(nbins=5)
    largest = float(np.abs(axis.edges).max())
    powers = 10.0 ** np.arange(np.ceil(np.log10(3 * axis.linear_width)), np.floor(np.log10(largest)) + 1)
    powers = powers[:: -(-len(powers) // 5)]
    return FixedLocator([value for value in (*-powers, 0.0, *powers) if axis.edges[0] <= value <= axis.edges[-1]])
