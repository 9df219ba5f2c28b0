"""``wardround data check``: every problem of a data set at once, in one pass over its cases.

Two levels. Structure: what the pool says about the folder, and what its cases say about each other (names, patients on
several sides of the split or at several sites). Content: each volume is read once, measured and forgotten; of its image
only a hash stays, so that the memory needed is that of one volume.

A *problem* makes training wrong or impossible. A *remark* is worth a look and stops nobody: a mask without any
foreground (healthy patients exist; it has no Dice and no distances for the classes it lacks), an image of one value.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from .contract import Case, DataError, Dataset, Pool, Volume
from .facts import Facts, describe
from .partition import settled_patients

MASK_VALUES = 8
"""An image with more different values than this is no copy of a mask."""

Announce = Callable[[int, int], None]
"""Called with the number of cases done and of all."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Args:
        pool: The cases of the folder.
        problems: One line each, beginning with the file or the case, sorted; none where all is well.
        facts: Of every case that could be read and is sound by itself, by its name.
        remarks: Lines of the same form about what is odd, but no mistake.
    """

    pool: Pool
    problems: tuple[str, ...]
    facts: Mapping[str, Facts]
    remarks: tuple[str, ...] = ()


def check(
    dataset: Dataset,
    root: Path,
    announce: Announce = lambda done, total: None,
    keeps: Sequence[Literal["side", "site"]] = ("side", "site"),
) -> Finding:
    """Reads every case of a folder and collects what is wrong.

    Args:
        dataset: The plug-in.
        root: The folder, as :meth:`~wardround.datasets.contract.Dataset.locate` gave it.
        announce: Told before the first and after every case.
        keeps: What the experiment takes from the data set: a patient must have one of each.

    Raises:
        ValueError: there is nothing to be found at all in the folder.
    """
    pool = dataset.pool(root)
    notes = _Notes(root, len(pool.classes))
    announce(0, len(pool.cases))
    for done, case in enumerate(pool.cases, start=1):
        notes.read(dataset, case)
        announce(done, len(pool.cases))
    structure = [*pool.problems, *names_twice(pool), *_masks_twice(pool.cases), *torn_patient_lines(pool.cases, keeps)]
    return Finding(
        pool=pool,
        problems=lines_below(root, [*structure, *notes.problems, *notes.duplicates()]),
        facts=notes.facts,
        remarks=lines_below(root, notes.remarks),
    )


# ---- structure -------------------------------------------------------------------------------------------------------


def names_twice(pool: Pool) -> list[str]:
    """Names of several cases, where the pool itself says nothing about them."""
    counts = Counter(case.name for case in pool.cases)
    return [
        f"{name}: expected a name of its own for every case, got {count} cases with it"
        for name, count in counts.items()
        if count > 1 and not any(name in problem for problem in pool.problems)
    ]


def _masks_twice(cases: Sequence[Case]) -> list[str]:
    """A line per case whose mask is the mask of an earlier case too."""
    first: dict[Path, Case] = {}
    return [
        f"{case.label}: expected a mask of its own for {case.name}, got that of {home.name}"
        for case in cases
        if (home := first.setdefault(case.label.resolve(), case)).name != case.name
    ]


def torn_patient_lines(cases: Sequence[Case], keeps: Sequence[str]) -> list[str]:
    """A line per case whose patient has an earlier case on another side of the split, or at another site.

    At several sites may be who is on one side of the data set's own split.
    """
    lines = []
    settled = settled_patients(cases)
    for what in keeps:
        first: dict[str, Case] = {}
        for case in sorted(cases, key=lambda case: (_SIDES.get(case.side, 0), case.name)):
            home = first.setdefault(case.patient, case)
            if what == "site" and case.patient in settled:
                continue
            if getattr(case, what) != getattr(home, what):
                lines.append(
                    f"{case.name}: expected patient {case.patient} {_WHERE[what]}, "
                    f"got {getattr(case, what) or 'none'} here and {getattr(home, what) or 'none'} for {home.name}"
                )
    return lines


_SIDES: Mapping[str | None, int] = {"train": 0, "validation": 1, "test": 2}
_WHERE = {"side": "on one side of the split", "site": "at one site"}


# ---- content ---------------------------------------------------------------------------------------------------------


@dataclass
class _Notes:
    """What is kept of the volumes that were read."""

    root: Path
    num_classes: int
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    facts: dict[str, Facts] = field(default_factory=dict)
    cases_of: dict[bytes, list[Case]] = field(default_factory=dict)

    def read(self, dataset: Dataset, case: Case) -> None:
        """Reads one case; whatever is wrong with it becomes a line."""
        try:
            volume = dataset.volume(case)
        except DataError as error:
            self.problems += [named(case, line) for line in error.problems]
        except Exception as error:  # whatever a damaged file does to a reader, the other cases are still to be seen
            self.problems.append(named(case, reason(error)))
        else:
            self._note(case, volume)

    def _note(self, case: Case, volume: Volume) -> None:
        wrong = _voxel_problems(volume, self.num_classes)
        self.problems += [named(case, line) for line in wrong]
        if wrong:
            return
        self.cases_of.setdefault(_content(volume), []).append(case)
        if _is_mask(case, volume):
            self.problems.append(f"{case.image}: expected an image, got its mask {case.label} once more")
        facts = self.facts[case.name] = describe(volume, self.num_classes)
        if facts.low == facts.high:
            self.remarks.append(f"{case.image}: every voxel is {facts.low:g}")
        if not any(facts.label_ml):
            self.remarks.append(f"{case.label}: no voxel has a label above 0")

    def duplicates(self) -> list[str]:
        """A line for every case whose image an earlier case has too, under another name."""
        return [
            f"{case.image}: expected an image of its own, got the voxels of {first.name} ({first.image})"
            for first, *others in self.cases_of.values()
            for case in others
            if case.name != first.name
        ]


def _voxel_problems(volume: Volume, num_classes: int) -> list[str]:
    """What a loader should have refused: shapes, values and spacing."""
    image, label = volume.image, volume.label
    if image.ndim != 3 or image.size == 0 or image.shape != label.shape:
        return [f"expected an image and a mask (slices, rows, columns), got the shapes {image.shape}, {label.shape}"]
    problems = []
    if not np.isfinite([image.min(), image.max()]).all():  # both are NaN where one voxel is
        problems.append(f"expected finite voxels, got {int((~np.isfinite(image)).sum())} that are not")
    if label.min() < 0 or label.max() > num_classes:
        outside = [int(value) for value in np.unique(label) if not 0 <= value <= num_classes]
        problems.append(f"expected labels 0 to {num_classes}, got {outside} too")
    if not all(0 < mm < np.inf for mm in volume.spacing_mm):
        problems.append(f"expected a spacing above 0 mm along every axis, got {volume.spacing_mm}")
    return problems


def _content(volume: Volume) -> bytes:
    """A hash of the image: shape and voxels."""
    digest = hashlib.sha256(repr(volume.image.shape).encode())
    digest.update(np.ascontiguousarray(volume.image).data)
    return digest.digest()


def _is_mask(case: Case, volume: Volume) -> bool:
    """Whether the image is the mask: the same bytes on disk, or few values and the darkest exactly off the labels.

    The second also sees a mask that was saved as another type, and one that clipping or merging has changed since.
    """
    if case.image != case.label and _same_bytes(case.image, case.label):
        return True
    foreground = volume.image > volume.image.min()
    if not foreground.any() or not np.array_equal(foreground, volume.label > 0):
        return False
    return len(np.unique(volume.image[foreground])) < MASK_VALUES


def _same_bytes(one: Path, other: Path) -> bool:
    """Whether two files have the same content; false where one of them is none."""
    if not (one.is_file() and other.is_file()) or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while block := a.read(1 << 20):
            if block != b.read(1 << 20):
                return False
    return True


# ---- lines -----------------------------------------------------------------------------------------------------------


def named(case: Case, line: str) -> str:
    """The line, beginning with its file or else with the name of its case."""
    starts = (case.name, f"case {case.name}", *map(str, case.files))
    return line if line.startswith(starts) else f"{case.name}: {line}"


def reason(error: Exception) -> str:
    """An exception in words: the message of a loader, or what the system or a library says."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, ValueError) else f"reading failed: {type(error).__name__}: {error}"


def lines_below(root: Path, lines: Sequence[str]) -> tuple[str, ...]:
    """Each once, on one line, files below ``root`` named from there, sorted."""
    below = re.compile(rf"(?<![\w./\\-]){re.escape(f'{root}{os.sep}')}")
    return tuple(sorted({" ".join(below.sub("", line).split()) for line in lines}))
