"""The embedded federations: procedural patients in procedural hospitals, written as NIfTI and read back like real data.

The folder has the layout of a real collection (:mod:`~wardround.datasets.layouts`), with tables that say who has which
case and what for. It lies in the cache, under a name made from the generator's settings, and is built once.

Nothing in it is anatomically true. It is made to be hard in the ways real data is: hospitals with few cases, scanners
that differ, targets that other structures resemble.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .anatomy import FAMILIES
from .contract import Case, DataError, Pool, ReadVolume, Volume
from .fingerprints import cache_folder
from .layouts import LAYOUTS, Name, Slot, write_case, write_tables
from .scanner import (
    DIFFICULTIES,
    KINDS,
    Difficulty,
    Scanner,
    acquire,
    add_noise,
    affine,
    fine_grid,
    make_scanner,
    slabs,
    store,
)
from .writing import expect_new, phantom_folder

GENERATOR_VERSION = 3
"""Part of the folder's name: raise it whenever the same settings give other files."""

Announce = Callable[[int, int], None]
"""Called with the number of cases that are done and that there are."""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Virtual hospitals.

    Args:
        layout: The folders, names, axes and tables of a real collection: of the Medical Segmentation Decathlon
            (``msd``, hospitals ``hospital-1`` and so on), Fed-KiTS19, Fed-IXI or the prostate sites.
        family: What is imaged. None: what the layout's collection shows (``fed_kits19``: kidney_ct, ``fed_ixi``:
            brain_t1, ``prostate``: prostate_mr), and brain_mr for ``msd``.
        hospitals: How many.
        train_cases: Training volumes per hospital, one number for all or one each.
        test_cases: Test volumes per hospital, one number for all or one each.
        size: Rows and columns, about; each scanner has its own.
        slices: Slices of a volume, about.
        difficulty: Noise, shift, contrast, distractors and size of the target, as in ``scanner.DIFFICULTIES``.
        noise: Multiplies every scanner's noise. None: the difficulty's.
        shift: How differently hospitals show a tissue (standard deviation; the brightest tissue is about 1). None: the
            difficulty's.
        seed: Makes other patients and scanners; independent of the experiment's seed.
    """

    layout: Name = "msd"
    family: Literal["brain_mr", "kidney_ct", "brain_t1", "prostate_mr"] | None = None
    hospitals: int = 4
    train_cases: int | tuple[int, ...] = 5
    test_cases: int | tuple[int, ...] = 3
    size: int = 64
    slices: int = 16
    difficulty: Literal["easy", "medium", "hard"] = "medium"
    noise: float | None = None
    shift: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {"hospitals": 1, "size": 16, "slices": 1, "seed": 0, "noise": 0, "shift": 0}
        problems = [
            f"{name}: expected {least} or more, got {value!r}"
            for name, least in lowest.items()
            if (value := getattr(self, name)) is not None and not value >= least
        ]
        tables: dict[str, Sequence[str]] = {
            "layout": list(LAYOUTS),
            "family": list(FAMILIES),
            "difficulty": list(DIFFICULTIES),
        }
        problems += [
            f"{name}: expected one of {', '.join(known)}, got {value!r}"
            for name, known in tables.items()
            if (value := getattr(self, name)) not in known and (name != "family" or value is not None)
        ]
        problems += [problem for name in ("train_cases", "test_cases") for problem in self._count_problems(name)]
        if problems:
            raise ValueError("; ".join(problems))

    def _count_problems(self, name: str) -> list[str]:
        counts = getattr(self, name)
        if isinstance(counts, tuple) and len(counts) != self.hospitals:
            return [f"{name}: expected one number or {self.hospitals}, one per hospital, got {counts!r}"]
        return [f"{name}: expected 1 or more, got {counts!r}"] if min(np.atleast_1d(counts), default=0) < 1 else []

    @property
    def classes(self) -> tuple[str, ...]:
        """Foreground classes of the family."""
        return FAMILIES[self.family_name].classes

    @property
    def family_name(self) -> str:
        """What is imaged, given or the layout's."""
        return self.family or LAYOUTS[self.layout].family

    @property
    def effective_difficulty(self) -> Difficulty:
        """The difficulty, with noise and shift as given."""
        given = {"noise": self.noise, "shift": self.shift}
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(DIFFICULTIES[self.difficulty], **changes)

    def locate(self, root: Path | None) -> Path:
        """The folder of these volumes, made where it is missing.

        It lies under ``root``, or else in the environment's WARDROUND_CACHE, or else in ``~/.cache/wardround``.
        """
        folder = (root or cache_folder()) / self._folder_name()
        if not folder.is_dir():
            build(self, folder)
        return folder

    def _folder_name(self) -> str:
        facts = [
            self.layout, self.family_name, self.counts(), self.size, self.slices, vars(self.effective_difficulty),
            self.seed,
        ]  # fmt: skip
        text = json.dumps([GENERATOR_VERSION, facts], sort_keys=True)
        return f"phantom-{self.layout}-{self.family_name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def counts(self) -> list[tuple[int, int]]:
        """Training and test cases of every hospital."""

        def each(number: int | tuple[int, ...]) -> tuple[int, ...]:
            return (number,) * self.hospitals if isinstance(number, int) else number

        return list(zip(each(self.train_cases), each(self.test_cases), strict=True))

    def pool(self, root: Path) -> Pool:
        """The cases, as the layout's loader finds them."""
        advice = f"these volumes are made by the program: delete {root} and run again"
        try:
            pool = LAYOUTS[self.layout].loader.pool(root)
        except DataError as error:
            raise DataError(root, [*error.problems, advice]) from error
        except ValueError as error:
            raise DataError(root, [str(error), advice]) from error
        return replace(pool, problems=(*pool.problems, advice)) if pool.problems else pool

    def volume(self, case: Case) -> Volume:
        """Reads one case with the layout's loader."""
        return LAYOUTS[self.layout].loader.volume(case)

    @property
    def reading(self) -> str:
        """How a file is read, for people who use a model elsewhere."""
        said: str = getattr(LAYOUTS[self.layout].loader, "reading")  # noqa: B009  # not of every data set
        return said

    def open_image(self, path: Path, *, site: str | None = None) -> ReadVolume:
        """Checks the header of an image without a mask, as the layout's loader does; what comes back reads it."""
        return LAYOUTS[self.layout].loader.open_image(path, site=site)


def write_phantom(phantom: Phantom, folder: Path, announce: Announce | None = None) -> None:
    """Writes a federation to a folder of the user's, whole or not at all.

    Args:
        phantom: What to write.
        folder: New or empty.
        announce: Called after every case.

    Raises:
        ValueError: there is something in the folder's place.
    """
    expect_new(folder)
    build(phantom, folder, announce)


def build(phantom: Phantom, folder: Path, announce: Announce | None = None) -> None:
    """Writes the federation beside ``folder`` and renames it: no half folder; the first of two builders wins."""
    with phantom_folder(folder) as half:
        _write_federation(phantom, half, announce)


def _write_federation(phantom: Phantom, folder: Path, announce: Announce | None) -> None:
    layout, family = LAYOUTS[phantom.layout], phantom.family_name
    slots = slots_of(phantom)
    for number, slot in enumerate(slots, start=1):
        scanner = scanner_of(phantom, slot.hospital)
        write_case(layout, folder, slot, family, make_volume(phantom, scanner, slot), affine(scanner))
        if announce is not None:
            announce(number, len(slots))
    write_tables(layout, folder, slots, family)


def slots_of(phantom: Phantom) -> list[Slot]:
    """All cases of a federation, by hospital, training before test."""
    sides: tuple[Literal["train", "test"], ...] = ("train", "test")
    return [
        Slot(hospital=hospital, hospitals=phantom.hospitals, side=side, position=position)
        for hospital, counts in enumerate(phantom.counts())
        for side, count in zip(sides, counts, strict=True)
        for position in range(count)
    ]


def scanner_of(phantom: Phantom, number: int) -> Scanner:
    """The scanner of hospital ``number`` (from 0)."""
    kinds = KINDS[phantom.family_name]
    return make_scanner(
        FAMILIES[phantom.family_name],
        kinds[number % len(kinds)],
        phantom.size,
        phantom.slices,
        phantom.effective_difficulty,
        np.random.default_rng([phantom.seed, 0, number]),
    )


def make_volume(phantom: Phantom, scanner: Scanner, slot: Slot) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """One case, slab by slab: the stored image and its labels, (S, H, W) each.

    Every slab begins with the same random numbers, which make the subject; noise follows, new for every slab.
    """
    family, challenge = FAMILIES[phantom.family_name], phantom.effective_difficulty.challenge
    seed = [phantom.seed, 1, slot.hospital, slot.side == "test", slot.position]
    shape = (scanner.slices, scanner.size, scanner.size)
    image, label = np.empty(shape, store(np.zeros(1), scanner.convention).dtype), np.empty(shape, np.uint8)
    for slab in slabs(scanner):
        rng, grid = np.random.default_rng(seed), fine_grid(scanner, slab)
        part, label[slab.start : slab.stop] = acquire(family, scanner, family.grow(grid, rng, challenge), grid, rng)
        noise = np.random.default_rng([*seed, slab.start]) if slab.start else rng
        image[slab.start : slab.stop] = store(add_noise(part, scanner, noise), scanner.convention)
    return image, label
