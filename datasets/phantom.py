"""The embedded federation: procedural patients in procedural hospitals, written as NIfTI and read back like real data.

The folder has the layout of the Medical Segmentation Decathlon with a ``sites.csv`` (:mod:`~wardround.datasets.msd`)
and a ``split.csv`` (case,split) that says which patients train and which test. It lies in the cache, under a name made
from the generator's settings, and is built once.

Nothing in it is anatomically true. It is made to be hard in the ways real data is: hospitals with few cases, scanners
that differ, targets that other structures resemble.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .anatomy import FAMILIES
from .contract import Case, Federation, Streams, Volume
from .msd import (
    cases_by_side,
    class_names,
    find_cases,
    hospital_names,
    raise_problems,
    read_description,
    read_sites,
    read_table,
)
from .nifti import nifti_image, read_case, write_nifti
from .scanner import KINDS, Scanner, acquire, affine, fine_grid, make_scanner, store
from .split import split_patients

GENERATOR_VERSION = 2
"""Part of the folder's name: raise it whenever the same settings give other voxels."""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Virtual hospitals.

    Args:
        family: What is imaged.
        hospitals: How many, named ``hospital-1`` and so on.
        train_cases: Training volumes per hospital, one number for all or one each.
        test_cases: Test volumes per hospital, one number for all or one each.
        validation_fraction: Fraction of a hospital's training patients that only validate.
        size: Rows and columns, about; each scanner has its own.
        slices: Slices of a volume, about.
        noise: Multiplies every scanner's noise.
        shift: How differently hospitals show a tissue (standard deviation; the brightest tissue is about 1).
        seed: Makes other patients and scanners; independent of the experiment's seed.
    """

    family: Literal["brain_mr"] = "brain_mr"
    hospitals: int = 4
    train_cases: int | tuple[int, ...] = 5
    test_cases: int | tuple[int, ...] = 3
    validation_fraction: float = 0.0
    size: int = 64
    slices: int = 16
    noise: float = 1.0
    shift: float = 0.04
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {"hospitals": 1, "size": 16, "slices": 1, "seed": 0, "noise": 0, "shift": 0}
        problems = [
            f"{name}: expected {least} or more, got {getattr(self, name)!r}"
            for name, least in lowest.items()
            if not getattr(self, name) >= least
        ]
        if self.family not in FAMILIES:
            problems.append(f"family: expected one of {', '.join(FAMILIES)}, got {self.family!r}")
        problems += [problem for name in ("train_cases", "test_cases") for problem in self._count_problems(name)]
        if not 0 <= self.validation_fraction < 1:
            problems.append(f"validation_fraction: expected 0 or more and below 1, got {self.validation_fraction!r}")
        elif self.validation_fraction > 0 and min(np.atleast_1d(self.train_cases), default=0) < 2:
            problems.append("validation_fraction: expected 0 where a hospital has one training case only")
        if problems:
            raise ValueError("; ".join(problems))

    def _count_problems(self, name: str) -> list[str]:
        counts = getattr(self, name)
        if isinstance(counts, tuple) and len(counts) != self.hospitals:
            return [f"{name}: expected one number or {self.hospitals}, one per hospital, got {counts!r}"]
        return [f"{name}: expected 1 or more, got {counts!r}"] if min(np.atleast_1d(counts), default=0) < 1 else []

    @property
    def num_classes(self) -> int:
        """Foreground classes of the family."""
        return len(FAMILIES[self.family].classes)

    @property
    def slice_axis(self) -> int:
        """The last axis of the files."""
        return 2

    def locate(self, root: Path | None) -> Path:
        """The folder of these volumes, made where it is missing.

        It lies under ``root``, or else in the environment's WARDROUND_CACHE, or else in ``~/.cache/wardround``.
        """
        folder = (root or _cache()) / self._folder_name()
        if not folder.is_dir():
            build(self, folder)
        return folder

    def _folder_name(self) -> str:
        kept = {name: value for name, value in vars(self).items() if name != "validation_fraction"}
        text = json.dumps([GENERATOR_VERSION, kept], sort_keys=True)
        return f"phantom-{self.family}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def counts(self) -> list[tuple[int, int]]:
        """Training and test cases of every hospital."""

        def each(number: int | tuple[int, ...]) -> tuple[int, ...]:
            return (number,) * self.hospitals if isinstance(number, int) else number

        return list(zip(each(self.train_cases), each(self.test_cases), strict=True))

    def federation(self, root: Path, rng: Streams) -> Federation:
        """The hospitals of ``sites.csv`` with the split of ``split.csv``. Stream used: ``validation``, hospital."""
        try:
            description = read_description(root)
            cases = find_cases(root, description)
            side, problems = read_table(root / "split.csv", ("case", "split"))
            raise_problems(root, problems)
        except (ValueError, OSError) as error:
            raise ValueError(f"{error}\nThese volumes are made by the program: delete {root} and run again.") from error
        hospitals = {
            name: cases_by_side(members, self._with_validation(name, members, side, rng))
            for name, members in read_sites(root, cases).items()
        }
        return Federation(hospitals=hospitals, classes=class_names(root, description))

    def _with_validation(self, hospital: str, cases: list[Case], side: dict[str, str], rng: Streams) -> dict[str, str]:
        train = [case.patient for case in cases if side[case.name] == "train"]
        if self.validation_fraction == 0:
            return side
        drawn = split_patients(train, self.validation_fraction, 0.0, rng("validation", hospital))
        return side | {name: "validation" for name, part in drawn.items() if part == "test"}

    def volume(self, case: Case) -> Volume:
        """Reads one case, checks it and brings slices to the front."""
        return read_case(case, slice_axis=self.slice_axis, num_classes=len(FAMILIES[self.family].classes))


def _cache() -> Path:
    given = os.environ.get("WARDROUND_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "wardround"


def build(phantom: Phantom, folder: Path) -> None:
    """Writes the federation beside ``folder`` and renames it: no half folder; the first of two builders wins."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise ValueError(
            f"{folder.parent}: expected a folder to write phantoms to: {error.strerror}; set WARDROUND_CACHE"
        ) from error
    try:
        _write_federation(phantom, half)
        half.chmod(0o755)
        try:
            half.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _write_federation(phantom: Phantom, folder: Path) -> None:
    rows = []
    for number, (name, (train, test)) in enumerate(
        zip(hospital_names(phantom.hospitals), phantom.counts(), strict=True)
    ):
        scanner = scanner_of(phantom, number)
        for split, count in (("train", train), ("test", test)):
            for position in range(count):
                case = f"{phantom.family}_{name.removeprefix('hospital-')}_{split}_{position + 1:02d}"
                rng = np.random.default_rng([phantom.seed, 1, number, split == "test", position])
                _write_case(phantom, scanner, folder, case, rng)
                rows.append((case, name, split))
    _write_tables(phantom, folder, rows)


def scanner_of(phantom: Phantom, number: int) -> Scanner:
    """The scanner of hospital ``number`` (from 0)."""
    family, kind = FAMILIES[phantom.family], KINDS[number % len(KINDS)]
    rng = np.random.default_rng([phantom.seed, 0, number])
    return make_scanner(family, kind, phantom.size, phantom.slices, phantom.shift, rng)


def _write_case(phantom: Phantom, scanner: Scanner, folder: Path, case: str, rng: np.random.Generator) -> None:
    family = FAMILIES[phantom.family]
    image, label = acquire(family, scanner, family.grow(fine_grid(scanner), rng), rng)
    for kind, array in (("imagesTr", store(image, scanner.convention)), ("labelsTr", label)):
        file = nifti_image(np.moveaxis(array, 0, 2), affine(scanner))
        file.header["xyzt_units"] = 2  # millimetres
        write_nifti(folder / kind / f"{case}.nii.gz", file)


def _write_tables(phantom: Phantom, folder: Path, rows: list[tuple[str, str, str]]) -> None:
    family = FAMILIES[phantom.family]
    description = {
        "name": f"phantom {phantom.family}",
        "description": "procedural volumes, no patient's",
        "modality": {"0": family.modality},
        "labels": {str(number): name for number, name in enumerate(("background", *family.classes))},
        "numTraining": len(rows),
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case, _, _ in rows
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    _write_csv(folder / "sites.csv", ("case", "site"), [(case, site) for case, site, _ in rows])
    _write_csv(folder / "split.csv", ("case", "split"), [(case, split) for case, _, split in rows])


def _write_csv(path: Path, header: tuple[str, str], rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
