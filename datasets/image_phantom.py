"""The embedded federation of images: procedural skin lesions in procedural hospitals, written as PNG and read back.

The folder has the layout of :mod:`~wardround.datasets.image_folder` with its table ``images.csv``, in which a patient
is a lesion: a lesion has one to three pictures, all in one hospital and on one side. It lies in the cache, under a
name made from the generator's settings, and is built once.

Nothing in it is anatomically true. It is made to be hard in the ways real data is: kinds of lesion that overlap,
cameras that differ, hospitals that see other mixtures of kinds.

Data card: docs/data/image_phantom.md.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .camera import DIFFICULTIES, Camera, Difficulty, make_camera, take
from .contract import Case, DataError, Pool, Task
from .fingerprints import cache_folder
from .image_folder import TABLE, ImageFolder
from .lesion import KINDS, Lesion, draw_lesion
from .writing import expect_new, phantom_folder

GENERATOR_VERSION = 1
"""Part of the folder's name: raise it whenever the same settings give other files."""

MORE_PICTURES = (0.5, 0.8)
"""A lesion has one picture where a uniform number is below the first, two below the second, else three."""

Side = Literal["train", "test"]
SIDES: tuple[Side, ...] = ("train", "test")

Announce = Callable[[int, int], None]
"""Called with the number of pictures that are done and that there are."""


@dataclass(frozen=True, kw_only=True)
class ImagePhantom:
    """Virtual hospitals with pictures of skin lesions, each of one class.

    Args:
        hospitals: How many; they are called ``hospital-1`` and so on.
        train_images: Training pictures per hospital, one number for all or one each.
        test_images: Test pictures per hospital, one number for all or one each.
        size: Rows and columns.
        classes: C, the first so many kinds of lesion: reticular, globular, starburst, homogeneous, ulcerated,
            keratotic, vascular.
        skew: How unequal the classes of a hospital are. Its classes have an order of its own, and the one at place r
            (from 0) has the share ``(1 - skew)^r / sum``: 0: all alike; 1: one class per hospital.
        difficulty: Overlap of the classes, cameras, noise and artefacts, as in ``camera.DIFFICULTIES``.
        shift: How far the hospitals' cameras are from a common one; 0: all alike. None: the difficulty's.
        seed: Makes other lesions and cameras; independent of the experiment's seed.
    """

    task: ClassVar[Task] = "classification"

    hospitals: int = 4
    train_images: int | tuple[int, ...] = 200
    test_images: int | tuple[int, ...] = 100
    size: int = 64
    classes: int = 5
    skew: float = 0.3
    difficulty: Literal["easy", "medium", "hard"] = "medium"
    shift: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [*self._number_problems()]
        if self.difficulty not in DIFFICULTIES:
            problems.append(f"difficulty: expected one of {', '.join(DIFFICULTIES)}, got {self.difficulty!r}")
        problems += [problem for name in ("train_images", "test_images") for problem in self._count_problems(name)]
        if not problems:
            problems += self._class_problems()
        if problems:
            raise ValueError("; ".join(problems))

    def _number_problems(self) -> Iterator[str]:
        lowest = {"hospitals": 1, "size": 16, "seed": 0, "shift": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                yield f"{name}: expected {least} or more, got {value!r}"
        if not 2 <= self.classes <= len(KINDS):
            yield f"classes: expected 2 to {len(KINDS)}, got {self.classes!r}"
        if not 0 <= self.skew <= 1:
            yield f"skew: expected a number in [0, 1], got {self.skew!r}"

    def _count_problems(self, name: str) -> list[str]:
        counts = getattr(self, name)
        if isinstance(counts, tuple) and len(counts) != self.hospitals:
            return [f"{name}: expected one number or {self.hospitals}, one per hospital, got {counts!r}"]
        return [f"{name}: expected 1 or more, got {counts!r}"] if min(np.atleast_1d(counts), default=0) < 1 else []

    def _class_problems(self) -> list[str]:
        """A line where a class has no picture in the whole federation."""
        there = {slot.kind for slot in slots_of(self)}
        lacking = [kind for kind in self.names if kind not in there]
        if not lacking:
            return []
        return [
            f"classes: expected a picture of every class, {', '.join(lacking)} would have none; make skew smaller, or "
            "hospitals or train_images larger"
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in the order of their numbers: by name, as the folder's loader has them when it is not told."""
        return tuple(sorted(tuple(KINDS)[: self.classes]))

    @property
    def effective_difficulty(self) -> Difficulty:
        """The difficulty, with the shift as given."""
        difficulty = DIFFICULTIES[self.difficulty]
        return difficulty if self.shift is None else replace(difficulty, shift=self.shift)

    def locate(self, root: Path | None) -> Path:
        """The folder of these pictures, made where it is missing.

        It lies under ``root``, or else in the environment's WARDROUND_CACHE, or else in ``~/.cache/wardround``.
        """
        folder = (root or cache_folder()) / self._folder_name()
        if not folder.is_dir():
            build(self, folder)
        return folder

    def _folder_name(self) -> str:
        facts = [self.counts(), self.size, self.names, self.skew, vars(self.effective_difficulty), self.seed]
        text = json.dumps([GENERATOR_VERSION, facts], sort_keys=True)
        return f"phantom-images-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def counts(self) -> list[tuple[int, int]]:
        """Training and test pictures of every hospital."""

        def each(number: int | tuple[int, ...]) -> tuple[int, ...]:
            return (number,) * self.hospitals if isinstance(number, int) else number

        return list(zip(each(self.train_images), each(self.test_images), strict=True))

    def pool(self, root: Path) -> Pool:
        """The pictures, as the folder's loader finds them."""
        advice = f"these pictures are made by the program: delete {root} and run again"
        try:
            pool = ImageFolder(classes=self.names).pool(root)
        except DataError as error:
            raise DataError(root, [*error.problems, advice]) from error
        except ValueError as error:
            raise DataError(root, [str(error), advice]) from error
        return replace(pool, problems=(*pool.problems, advice)) if pool.problems else pool

    def images(self, cases: Sequence[Case]) -> Iterator[NDArray[np.uint8]]:
        """Reads pictures with the folder's loader."""
        return ImageFolder(classes=self.names).images(cases)

    def picture(self, path: Path) -> NDArray[np.uint8]:
        """Reads a picture anywhere with the folder's loader."""
        return ImageFolder(classes=self.names).picture(path)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One picture of a federation, before it is made.

    Args:
        hospital: Number of the hospital, from 0.
        side: What it is for.
        lesion: Which lesion of this hospital and side, from 0.
        view: Which picture of the lesion, from 0.
        kind: The class.
    """

    hospital: int
    side: Side
    lesion: int
    view: int
    kind: str

    @property
    def site(self) -> str:
        """The hospital's name."""
        return f"hospital-{self.hospital + 1}"

    @property
    def patient(self) -> str:
        """The lesion's name."""
        return f"{self.site}-{self.side}-{self.lesion + 1:04d}"

    @property
    def file(self) -> str:
        """Where the picture lies in the folder."""
        return f"{self.site}/{self.side}-{self.lesion + 1:04d}-{self.view + 1}.png"


def write_image_phantom(phantom: ImagePhantom, folder: Path, announce: Announce | None = None) -> None:
    """Writes a federation to a folder of the user's, whole or not at all.

    Args:
        phantom: What to write.
        folder: New or empty.
        announce: Called after every picture.

    Raises:
        ValueError: there is something in the folder's place.
    """
    expect_new(folder)
    build(phantom, folder, announce)


def build(phantom: ImagePhantom, folder: Path, announce: Announce | None = None) -> None:
    """Writes the federation beside ``folder`` and renames it: no half folder; the first of two builders wins."""
    with phantom_folder(folder) as half:
        _write_federation(phantom, half, announce)


def _write_federation(phantom: ImagePhantom, folder: Path, announce: Announce | None) -> None:
    slots = slots_of(phantom)
    done = 0
    for hospital, group in groupby(slots, key=lambda slot: slot.hospital):
        camera = camera_of(phantom, hospital)
        (folder / f"hospital-{hospital + 1}").mkdir()
        for slot in group:
            Image.fromarray(make_picture(phantom, camera, slot)).save(folder / slot.file)
            done += 1
            if announce is not None:
                announce(done, len(slots))
    _write_table(folder / TABLE, slots)


def _write_table(path: Path, slots: Sequence[Slot]) -> None:
    text = io.StringIO()
    rows = [(slot.file, slot.kind, slot.patient, slot.site, slot.side) for slot in slots]
    csv.writer(text, lineterminator="\n").writerows([("file", "class", "patient", "site", "side"), *rows])
    path.write_text(text.getvalue(), encoding="utf-8")


def slots_of(phantom: ImagePhantom) -> list[Slot]:
    """All pictures of a federation, by hospital, training before test."""
    return [
        slot
        for hospital, counts in enumerate(phantom.counts())
        for side, count in zip(SIDES, counts, strict=True)
        for slot in _slots(phantom, hospital, side, count)
    ]


def _slots(phantom: ImagePhantom, hospital: int, side: Side, count: int) -> Iterator[Slot]:
    """The pictures of one hospital and side: the first ones are the same for every count.

    Every lesion is of the class that lags behind its share the most, so that counts are within three of the shares.
    """
    share = shares(phantom, hospital)
    draws = np.random.default_rng([phantom.seed, 2, hospital, side == "test"]).random(count)
    made = np.zeros(len(share))
    lesion = 0
    while (total := int(made.sum())) < count:
        number = min(1 + sum(draws[lesion] >= bound for bound in MORE_PICTURES), count - total)
        kind = int(np.argmax(share * (total + number) - made))
        for view in range(number):
            yield Slot(hospital=hospital, side=side, lesion=lesion, view=view, kind=phantom.names[kind])
        made[kind] += number
        lesion += 1


def shares(phantom: ImagePhantom, hospital: int) -> NDArray[np.float64]:
    """The share (C,) of every class in one hospital, in the order of the classes; both sides have the same.

    The first class of hospital k is k mod C, so that every class is the first one somewhere; the order of the others is
    drawn.
    """
    first = hospital % phantom.classes
    others = [number for number in range(phantom.classes) if number != first]
    order = [first, *np.random.default_rng([phantom.seed, 3, hospital]).permutation(others)]
    share = np.empty(phantom.classes)
    share[order] = (1.0 - phantom.skew) ** np.arange(phantom.classes)
    return np.asarray(share / share.sum())


def camera_of(phantom: ImagePhantom, number: int) -> Camera:
    """The camera of hospital ``number`` (from 0)."""
    return make_camera(number, phantom.effective_difficulty, np.random.default_rng([phantom.seed, 0, number]))


def lesion_of(phantom: ImagePhantom, camera: Camera, slot: Slot) -> Lesion:
    """The lesion that a picture shows."""
    difficulty = phantom.effective_difficulty
    rng = np.random.default_rng([phantom.seed, 1, slot.hospital, slot.side == "test", slot.lesion])
    return draw_lesion(slot.kind, camera.tone, difficulty.separation, difficulty.spread, rng)


def make_picture(phantom: ImagePhantom, camera: Camera, slot: Slot) -> NDArray[np.uint8]:
    """One picture (size, size, 3)."""
    rng = np.random.default_rng([phantom.seed, 4, slot.hospital, slot.side == "test", slot.lesion, slot.view])
    return take(lesion_of(phantom, camera, slot), camera, phantom.size, rng)
