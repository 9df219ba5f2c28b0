"""``wardround data check`` for images with a class each: every problem at once, in one pass over the images.

As for volumes (:mod:`~wardround.datasets.check`), structure is what the pool says and what its cases say about each
other; for the content, each image is read once and forgotten but for its size and a hash of its pixels.

A *problem* makes training or its scores wrong: an image that cannot be read, one that is no picture of three colours, a
class that does not exist, equal pixels on two sides of the split (:func:`leaks`). A *remark* stops nobody: a class
without images, equal pixels on one side, an image of one colour.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .check import Announce, lines_below, named, names_twice, reason, torn_patient_lines
from .contract import Case, DataError, Federation, ImageDataset, Pool
from .images import image_problems

SHOWN = 3
"""Images with the same remark that have a line each."""

Read = NDArray[np.uint8] | Exception
"""An image, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class ImageFinding:
    """What a check of images found.

    Args:
        pool: The cases of the folder.
        problems: One line each, beginning with the file or the case, sorted; none where all is well.
        sizes: (rows, columns) of every image that could be read and is sound by itself, by the name of its case.
        same: Cases whose images have equal pixels, together.
        remarks: Lines of the same form about what is odd, but no mistake.
    """

    pool: Pool
    problems: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]
    same: tuple[tuple[Case, ...], ...] = ()
    remarks: tuple[str, ...] = ()


def check_images(
    dataset: ImageDataset,
    root: Path,
    announce: Announce = lambda done, total: None,
    keeps: Sequence[Literal["side", "site"]] = ("side", "site"),
) -> ImageFinding:
    """Reads every image of a folder and collects what is wrong.

    Args:
        dataset: The plug-in.
        root: The folder, as :meth:`~wardround.datasets.contract.ImageDataset.locate` gave it.
        announce: Told before the first and after every image.
        keeps: What the experiment takes from the data set: a patient must have one of each.

    Raises:
        ValueError: there is nothing to be found at all in the folder.
    """
    pool = dataset.pool(root)
    notes = _Notes()
    announce(0, len(pool.cases))
    for done, (case, image) in enumerate(_each(dataset, pool.cases), start=1):
        notes.take(case, image)
        announce(done, len(pool.cases))
    torn = torn_patient_lines(pool.cases, keeps)
    structure = [*pool.problems, *names_twice(pool), *_unknown_classes(pool), *torn]
    return ImageFinding(
        pool=pool,
        problems=lines_below(root, [*structure, *notes.problems]),
        sizes=notes.sizes,
        same=tuple(tuple(cases) for cases in notes.cases_of.values() if len(cases) > 1),
        remarks=lines_below(root, [*notes.remarks(), *_missing_classes(pool)]),
    )


def _unknown_classes(pool: Pool) -> list[str]:
    """A line per case whose class is none of the pool's."""
    last = len(pool.classes) - 1
    return [
        f"{case.name}: expected a class from 0 ({pool.classes[0]}) to {last} ({pool.classes[-1]}), got {case.target!r}"
        for case in pool.cases
        if case.target is None or not 0 <= case.target <= last
    ]


def _missing_classes(pool: Pool) -> list[str]:
    """A line per class that no case has; none of a pool with problems, which leaves out what these are about."""
    if pool.problems:
        return []
    found = {case.target for case in pool.cases}
    return [f"class {name}: no image has it" for number, name in enumerate(pool.classes) if number not in found]


# ---- content ---------------------------------------------------------------------------------------------------------


def _each(dataset: ImageDataset, cases: Sequence[Case]) -> Iterator[tuple[Case, Read]]:
    """Every case with its image. Reading begins anew after one that fails; of a broken file of many, one is enough."""
    said: set[str] = set()
    waiting = list(cases)
    while waiting:
        images = _lazily(dataset, waiting)
        failed: Exception | None = None
        for place, case in enumerate(waiting):
            try:
                image = next(images)
            except StopIteration:
                failed = ValueError("expected an image of every case, got none of this one")
            except Exception as error:  # whatever a damaged file does to a reader, the other images are to be seen
                failed = error
            if failed is not None:
                yield case, failed
                waiting = waiting[place + 1 :]
                if str(failed) in said:
                    waiting = [other for other in waiting if other.image != case.image]
                said.add(str(failed))
                break
            yield case, image
        else:
            return


def _lazily(dataset: ImageDataset, cases: Sequence[Case]) -> Iterator[NDArray[np.uint8]]:
    """The images, where nothing fails before the first one is asked for."""
    yield from dataset.images(cases)


@dataclass
class _Notes:
    """What is kept of the images that were read."""

    problems: list[str] = field(default_factory=list)
    of_one_colour: list[str] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    cases_of: dict[bytes, list[Case]] = field(default_factory=dict)

    def take(self, case: Case, image: Read) -> None:
        """Notes one image, or why there is none."""
        if isinstance(image, Exception):
            lines = image.problems if isinstance(image, DataError) else (reason(image),)
            self.problems += [named(case, line) for line in lines]
        elif wrong := image_problems(image):
            self.problems.append(named(case, wrong))
        else:
            self._note(case, image)

    def _note(self, case: Case, image: NDArray[np.uint8]) -> None:
        self.sizes[case.name] = (image.shape[0], image.shape[1])
        self.cases_of.setdefault(_content(image), []).append(case)
        if (image == image[0, 0]).all():
            self.of_one_colour.append(f"{case.name}: every pixel is {tuple(image[0, 0].tolist())}")

    def remarks(self) -> list[str]:
        """A line per image of one colour; of many, the first ones and their number."""
        more = len(self.of_one_colour) - SHOWN
        told = [f"images of one colour: {more} more, {len(self.of_one_colour)} in all"] if more > 0 else []
        return sorted(self.of_one_colour)[:SHOWN] + told


def _content(image: NDArray[np.uint8]) -> bytes:
    """A hash of shape and pixels."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


# ---- equal pixels ----------------------------------------------------------------------------------------------------


def sides_of(federation: Federation) -> dict[str, str]:
    """What each case of a federation is for, by its name: ``train``, ``validation`` or ``test``."""
    sides = {
        case.name: side
        for cases in federation.hospitals.values()
        for side, found in (("train", cases.train), ("validation", cases.validation), ("test", cases.test))
        for case in found
    }
    tested = [*federation.common, *(case for cases in federation.unseen.values() for case in cases)]
    return sides | {case.name: "test" for case in tested}


def leaks(same: Sequence[Sequence[Case]], sides: Mapping[str, str]) -> list[str]:
    """A line for every case whose pixels an earlier case has on another side of the split: what tests was seen.

    Args:
        same: Cases whose images have equal pixels, together.
        sides: What each case is for, by its name; cases that are not there are used for nothing.
    """
    lines = []
    for cases in same:
        used = sorted(
            (case for case in cases if case.name in sides), key=lambda case: (_ORDER[sides[case.name]], case.name)
        )
        lines += [
            f"{case.name}: expected a {sides[case.name]} image of its own, got the pixels of {used[0].name}, which is "
            f"for {sides[used[0].name]}"
            for case in used
            if sides[case.name] != sides[used[0].name]
        ]
    return lines


_ORDER = {"train": 0, "validation": 1, "test": 2}


def repeated(same: Sequence[Sequence[Case]], classes: Sequence[str]) -> list[str]:
    """Remarks on equal pixels: how many there are, and how many of them under another class.

    Args:
        same: Cases whose images have equal pixels, together.
        classes: Names of the C classes.
    """
    if not same:
        return []
    more = sum(map(len, same)) - len(same)
    lines = [f"images with the pixels of another one: {more}, for example {same[0][1].name} those of {same[0][0].name}"]
    contrary = [cases for cases in same if len(Counter(case.target for case in cases)) > 1]
    if contrary:
        shown = " and ".join(f"{case.name} ({_class_name(case, classes)})" for case in contrary[0])
        lines.append(f"pictures that come under several classes: {len(contrary)}, for example {shown}")
    return lines


def _class_name(case: Case, classes: Sequence[str]) -> str:
    return dict(enumerate(classes)).get(-1 if case.target is None else case.target, repr(case.target))
