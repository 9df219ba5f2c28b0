"""The page of ``wardround data check`` for images with a class each: what is wrong, who has which classes, pictures.

Made of what the check found, and of a few images that are read once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...datasets.class_counts import class_counts, histogram, holders
from ...datasets.contract import Case, Federation, ImageDataset
from ...datasets.image_check import ImageFinding
from ...datasets.images import resized
from .. import files
from .classification import count_section
from .data import beside, called, in_columns, lines_section, settings_section, split_section
from .data_tables import COMMON
from .page import (
    UNDEFINED,
    Html,
    Section,
    Table,
    banner,
    count_text,
    cut,
    figure,
    join,
    note,
    page,
    png_picture,
    tag,
    tiles,
)

THUMBNAIL, GAP, PER_ROW = 96, 4, 6
"""Pixels of an image on the page and between two of them, and how many are beside each other."""

NAME_WIDTH = 20
"""Letters of a class above its column in the terminal."""

SIDES = ("train", "validation", "test", "unseen")


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """What one hospital got, or what nobody trains on.

    Args:
        name: Of the hospital.
        sides: Its cases by what they are for: ``train``, ``validation`` and ``test``, or ``unseen`` alone.
        sizes: (rows, columns) of those of its images that could be read.
    """

    name: str
    sides: Mapping[str, tuple[Case, ...]]
    sizes: tuple[tuple[int, int], ...]

    @property
    def cases(self) -> list[Case]:
        """All of them, in the order of the sides."""
        return [case for cases in self.sides.values() for case in cases]


def image_rows(federation: Federation, sizes: Mapping[str, tuple[int, int]]) -> list[ImageRow]:
    """One row per hospital that trains, then those of the hospitals that do not, then that of the common test set.

    Args:
        federation: Who has what.
        sizes: (rows, columns) of the images, by name of the case; one that is not there is counted all the same.
    """
    return [
        ImageRow(
            name=name,
            sides=sides,
            sizes=tuple(sizes[case.name] for cases in sides.values() for case in cases if case.name in sizes),
        )
        for name, sides in holders(federation, COMMON).items()
    ]


# ---- tables ----------------------------------------------------------------------------------------------------------


def text(rows: Sequence[ImageRow], classes: Sequence[str], width: int = 120) -> str:
    """Who has what, and the histogram of the classes below it, as aligned plain tables.

    Args:
        rows: At least one.
        classes: Names of the C classes.
        width: Columns of the terminal.
    """
    return "\n\n".join([holdings(rows).text(width), histograms(rows, classes).text(width)])


def holdings(rows: Sequence[ImageRow]) -> Table:
    """Images per side, patients and the sizes of the images, a row per hospital."""
    sides = [side for side in SIDES if any(side in row.sides for row in rows)]
    total = ImageRow(
        name="all",
        sides={side: tuple(case for row in rows for case in row.sides.get(side, ())) for side in sides},
        sizes=tuple(size for row in rows for size in row.sizes),
    )
    cells = [_holding(row, sides) for row in rows]
    return Table(
        header=("hospital", *sides, "patients", "rows", "columns"),
        rows=tuple(cells),
        footer=(_holding(total, sides),) if len(rows) > 1 else (),
        note=_note(rows),
    )


def _holding(row: ImageRow, sides: Sequence[str]) -> tuple[str, ...]:
    counts = [str(len(row.sides.get(side, ()))) for side in sides]
    patients = str(len({case.patient for case in row.cases}))
    return (row.name, *counts, patients, *(_range([size[axis] for size in row.sizes]) for axis in (0, 1)))


def _range(values: Sequence[int]) -> str:
    """``450``, or ``450-1024``."""
    if not values:
        return UNDEFINED
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _note(rows: Sequence[ImageRow]) -> str:
    parts = ["Images, and the pixels of their sides, smallest-largest."]
    if any("unseen" in row.sides for row in rows):
        parts.append("Unseen: the hospital does not train, its images are scored with the global model.")
    missing = sum(len(row.cases) - len(row.sizes) for row in rows)
    return " ".join([*parts, f"{count_text(missing, 'image')} could not be read."] if missing else parts)


def histograms(rows: Sequence[ImageRow], classes: Sequence[str]) -> Table:
    """Images of each class, a row per hospital and side.

    Args:
        rows: At least one.
        classes: Names of the C classes.
    """
    found = {f"{row.name}, {side}": histogram(cases, len(classes)) for row in rows for side, cases in row.sides.items()}
    sums = [sum(column) for column in zip(*found.values(), strict=True)] if found else [0] * len(classes)
    return Table(
        header=("images of a class", *(cut(name, NAME_WIDTH) for name in classes), "all"),
        rows=tuple((name, *map(str, counts), str(sum(counts))) for name, counts in found.items()),
        footer=(("all", *map(str, sums), str(sum(sums))),) if len(found) > 1 else (),
    )


# ---- page ------------------------------------------------------------------------------------------------------------


def write_image_report(
    path: Path,
    dataset: ImageDataset,
    finding: ImageFinding,
    federation: Federation,
    *,
    images: bool = True,
    split: Mapping[str, object] | None = None,
) -> Path:
    """Writes one self-contained HTML page about a folder of images; the same data give the same bytes.

    Args:
        path: The file to write.
        dataset: Reads the cases that are shown.
        finding: What the check found.
        federation: Who has which cases.
        images: Whether images may be on the page.
        split: The settings that made the hospitals; None: not shown.

    Returns:
        The file written.

    Raises:
        ValueError: a case that is to be shown can no longer be read.
    """
    rows, classes = image_rows(federation, finding.sizes), federation.classes
    made = [
        lines_section("Problems", finding.problems),
        lines_section("Remarks", finding.remarks),
        Section(title="Who has what", body=holdings(rows).html()),
        count_section(class_counts({row.name: row.sides for row in rows}, classes)),
        _pictures(dataset, finding, rows) if images else _no_pictures(),
        settings_section(dataset),
        split_section(split),
    ]
    title = f"Data check: {called(dataset)}"
    sections = [section for section in made if section is not None]
    files.write_text(path, page(title=title, head=_head(title, finding, federation), sections=sections))
    return path


def _head(title: str, finding: ImageFinding, federation: Federation) -> Html:
    cases = finding.pool.cases
    unread = len({case.name for case in cases}) - len(finding.sizes)
    boxes = {
        "Images": (str(len(cases)), f"{unread} of them could not be read" if unread else "all of them were read"),
        "Patients": (str(len({case.patient for case in cases})), ""),
        "Hospitals": (str(len(federation.hospitals)), beside(federation)),
        "Classes": (str(len(federation.classes)), ", ".join(federation.classes)),
        "Problems": (str(len(finding.problems)), count_text(len(finding.remarks), "remark")),
    }
    wrong = "This data cannot be trained on as it is: every problem below has to be solved first."
    return join([tag("h1", title), banner(wrong) if finding.problems else "", tiles(boxes)])


def _no_pictures() -> Section:
    return Section(title="Pictures", body=note("Images were left out of this page on request."))


def _pictures(dataset: ImageDataset, finding: ImageFinding, rows: Sequence[ImageRow]) -> Section | None:
    """Of each hospital the first image of every class, in the order of the classes."""
    chosen = {row.name: _first_of_each(row.cases, finding) for row in rows}
    shown = {name: cases for name, cases in chosen.items() if cases}
    if not shown:
        return None
    made = dataset.images([case for cases in shown.values() for case in cases])
    drawn = [_sheet(name, cases, [next(made) for _ in cases], finding.pool.classes) for name, cases in shown.items()]
    explained = (
        "Of each hospital the first image of every class that it has, from left to right, as the loader gives it."
    )
    return Section(title="Pictures", body=join([note(explained), in_columns(drawn, "hospitals")]))


def _first_of_each(cases: Sequence[Case], finding: ImageFinding) -> list[Case]:
    """The first case of every class by name, among those that could be read."""
    first: dict[int, Case] = {}
    for case in sorted(cases, key=lambda case: case.name):
        if case.name in finding.sizes and case.target is not None and 0 <= case.target < len(finding.pool.classes):
            first.setdefault(case.target, case)
    return [case for _, case in sorted(first.items())]


def _sheet(name: str, cases: Sequence[Case], images: Sequence[NDArray[np.uint8]], classes: Sequence[str]) -> Html:
    """One picture with a hospital's images, all square and of one size."""
    from .figures import colour_png

    step = THUMBNAIL + GAP
    rows, columns = -(-len(images) // PER_ROW), min(len(images), PER_ROW)
    sheet = np.full((rows * step - GAP, columns * step - GAP, 3), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = place // PER_ROW * step, place % PER_ROW * step
        small = resized(image[None], THUMBNAIL)[0].permute(1, 2, 0).numpy()
        sheet[top : top + THUMBNAIL, left : left + THUMBNAIL] = small
    named = ", ".join(classes[case.target] for case in cases if case.target is not None)
    text = f"{name}: {named}"
    return figure(png_picture(colour_png(sheet, max(sheet.shape)), f"Images of {text}"), text)
