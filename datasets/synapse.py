"""Synapse multi-organ CT in the form that TransUNet introduced and SAMed uses: slices to train on, volumes to test on.

Layout::

    train_npz/case0005_slice000.npz    image and label (H, W) of one slice, float32
    test_vol_h5/case0001.npy.h5        image and label (S, H, W) of one volume, float32

Intensities are clipped to [-125, 275] HU and mapped to [0, 1] by whoever made the files. These hold no spacing and no
hospital: a partition makes hospitals, and distances are in voxels unless ``spacing_mm`` is set.

Source: https://github.com/Beckschen/TransUNet (datasets/README.md); https://github.com/hitachinsk/SAMed (preprocess).
"""

from __future__ import annotations

import importlib
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from .contract import Case, DataError, Pool, ReadVolume, Volume
from .folders import find_folder, make_pool
from .voxels import ImageCheck, LabelCheck

T = TypeVar("T")

TRAIN, TEST = "train_npz", "test_vol_h5"
SLICE_NAME = re.compile(r"(?P<case>case\d+)_slice(?P<slice>\d+)\.npz")
VOLUME_NAME = re.compile(r"(?P<case>case\d+)\.npy\.h5")

ORGANS = {
    "samed": ("spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas"),
    "transunet": ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach"),
}
"""Labels 1 to 8 by who made the files."""

UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, zipfile.BadZipFile)
"""What numpy and h5py raise at damaged or foreign files."""


@dataclass(frozen=True, kw_only=True)
class Synapse:
    """The 18 training and 12 test volumes of abdominal CT.

    Args:
        order: Who made the files, which decides the names of the labels: SAMed's ``preprocess_data.py`` numbers the
            organs in another order than the files that TransUNet's authors give out. The files do not tell.
        spacing_mm: (slice, row, column) spacing in millimetres, of every volume; 1 for all counts in voxels, as SAMed
            does.
    """

    order: Literal["samed", "transunet"] = "samed"
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        problems = []
        if self.order not in ORGANS:
            problems.append(f"order: expected one of {', '.join(ORGANS)}, got {self.order!r}")
        if len(self.spacing_mm) != 3 or not all(0 < mm < np.inf for mm in self.spacing_mm):
            problems.append(f"spacing_mm: expected three numbers above 0, got {self.spacing_mm!r}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def classes(self) -> tuple[str, ...]:
        """The organs in the order of their labels."""
        return ORGANS[self.order]

    def locate(self, root: Path | None) -> Path:
        """The folder with both subfolders: ``root`` or the environment's WARDROUND_DATA, or ``Synapse`` inside it.

        Raises:
            ValueError: there is none.
        """
        return find_folder(
            root,
            holds=lambda folder: (folder / TRAIN).is_dir() or (folder / TEST).is_dir(),
            names=("Synapse",),
            expected=f"Synapse as TransUNet and SAMed prepare it ({TRAIN}/case0005_slice000.npz, "
            f"{TEST}/case0001.npy.h5)",
            source="see https://github.com/hitachinsk/SAMed/tree/main/preprocess",
        )

    def pool(self, root: Path) -> Pool:
        """The volumes, those of ``train_npz`` put together from their slices. No case has a site.

        Raises:
            DataError: there is no case at all.
        """
        train, problems = _training_cases(root)
        test, more = _test_cases(root)
        problems += more
        both = sorted({case.name for case in train} & {case.name for case in test})
        problems += [f"{name}: expected on one side, it is in {TRAIN} and in {TEST}" for name in both]
        cases = [*test, *(case for case in train if case.name not in both)]
        return make_pool(root, cases, self.classes, problems)

    def volume(self, case: Case) -> Volume:
        """Reads one case and checks it; slices lie along the first axis.

        Raises:
            DataError: every problem of the files.
            ValueError: h5py, which reads the test volumes, is not installed.
        """
        image, label = _read_slices(case) if case.parts else _read_h5(case.image)
        check, labels = ImageCheck(), LabelCheck(len(self.classes))
        image, label_map = check.take(image, (0, 0, 0)), labels.take(label, (0, 0, 0))
        problems = [f"image: {line}" for line in check.problems()]
        problems += [f"label: {line}" for line in labels.problems()]
        if np.array_equal(image, label):
            problems.append("expected an image, got the same voxels as in its mask")
        if problems:
            raise DataError(case.image, [f"{case.image}: {line}" for line in problems])
        return Volume(case=case, image=image, label=label_map, spacing_mm=self.spacing_mm, slice_axis=0)

    def open_image(self, path: Path, *, site: str | None = None) -> ReadVolume:
        """Checks what a file in the form of the test volumes says of itself; it needs no ``label``.

        Raises:
            DataError: it is no such file; its name says so, or what is in it.
            ValueError: h5py is not installed.
        """
        if not path.is_file() or path.suffix != ".h5":
            expected = "a file like case0001.npy.h5, with an image (slices, rows, columns) in 0 to 1"
            raise DataError(path, [f"{path}: expected {expected}, as the run was trained on"])
        shape = _from_h5(path, lambda file: tuple(file["image"].shape))
        if len(shape) != 3 or 0 in shape:
            raise DataError(path, [f"{path}: expected an image (slices, rows, columns), got the shape {shape}"])
        return partial(self._image, path)

    def _image(self, path: Path) -> Volume:
        check = ImageCheck()
        image = check.take(_from_h5(path, lambda file: _numbers(file["image"][()])), (0, 0, 0))
        if check.problems():
            raise DataError(path, [f"{path}: image: {line}" for line in check.problems()])
        name = path.name.removesuffix(".h5").removesuffix(".npy")
        return Volume(
            case=Case(name=name, patient=name, image=path, label=path),
            image=image,
            label=np.zeros(image.shape, np.uint8),
            spacing_mm=self.spacing_mm,
            slice_axis=0,
        )


def _training_cases(root: Path) -> tuple[list[Case], list[str]]:
    """One case for all slices of a name, and what is wrong with their names and numbers."""
    found, problems = _matching(root / TRAIN, ".npz", SLICE_NAME, "case0005_slice000.npz")
    slices: dict[str, list[tuple[int, Path]]] = {}
    for match, path in found:
        slices.setdefault(match["case"], []).append((int(match["slice"]), path))
    cases = []
    for name, numbered in slices.items():
        numbered.sort()
        problems += _number_problems(root / TRAIN / name, [number for number, _ in numbered])
        parts = tuple(path for _, path in numbered)
        cases.append(Case(name=name, patient=name, image=parts[0], label=parts[0], parts=parts, side="train"))
    return cases, problems


def _number_problems(where: Path, numbers: Sequence[int]) -> list[str]:
    """Slices that are missing below the last one, or there twice."""
    missing = sorted(set(range(numbers[-1])) - set(numbers))
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    problems = []
    if missing:
        problems.append(f"{where}: expected the slices 0 to {numbers[-1]} without a gap, missing {missing}")
    if twice:
        problems.append(f"{where}: expected one file for each slice, got several for {twice}")
    return problems


def _test_cases(root: Path) -> tuple[list[Case], list[str]]:
    found, problems = _matching(root / TEST, ".h5", VOLUME_NAME, "case0001.npy.h5")
    cases = [Case(name=m["case"], patient=m["case"], image=path, label=path, side="test") for m, path in found]
    return cases, problems


def _matching(
    folder: Path, suffix: str, pattern: re.Pattern[str], example: str
) -> tuple[list[tuple[re.Match[str], Path]], list[str]]:
    """The files of a folder whose names fit, sorted, and a line for each other file with the suffix, or for none."""
    paths = sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))
    matches = [(match, path) for path in paths if (match := pattern.fullmatch(path.name))]
    fitting = {path for _, path in matches}
    problems = [f"{path}: expected a name like {example}" for path in paths if path not in fitting]
    if not matches:
        problems.append(f"{folder}: expected files like {example}, found none")
    return matches, problems


def _read_slices(case: Case) -> tuple[NDArray[Any], NDArray[Any]]:
    """Image and mask (S, H, W) of a case that is stored slice by slice."""
    pairs, problems = [], []
    for path in case.parts:
        try:
            pairs.append(_read_npz(path))
        except UNREADABLE as error:
            problems.append(_unreadable(path, error))
            continue
        if (
            pairs[-1][0].ndim != 2
            or not pairs[-1][0].size
            or any(array.shape != pairs[0][0].shape for array in pairs[-1])
        ):
            shapes = f"image {pairs[-1][0].shape}, label {pairs[-1][1].shape}"
            problems.append(
                f"{path}: expected image and label (rows, columns) of one shape in all slices, got {shapes}"
            )
    if problems:
        raise DataError(case.image, problems)
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def _read_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return _numbers(file["image"]), _numbers(file["label"])


def _read_h5(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Image and mask (S, H, W) of a case that is one file."""
    image, label = _from_h5(path, lambda file: (_numbers(file["image"][()]), _numbers(file["label"][()])))
    if image.ndim != 3 or image.size == 0 or image.shape != label.shape:
        shapes = f"image {image.shape}, label {label.shape}"
        raise DataError(path, [f"{path}: expected image and label (slices, rows, columns) of one shape, got {shapes}"])
    return image, label


def _from_h5(path: Path, take: Callable[[Any], T]) -> T:
    """What ``take`` finds in an open file.

    Raises:
        DataError: it does not find it.
        ValueError: h5py is not installed.
    """
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise ValueError(f"{path}: expected h5py to read it: pip install 'wardround[synapse]'") from error
    try:
        with h5py.File(path, "r") as file:
            return take(file)
    except UNREADABLE as error:
        raise DataError(path, [_unreadable(path, error)]) from error


def _numbers(stored: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(stored)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"one real number per voxel is expected, the data type is {array.dtype}")
    return array


def _unreadable(path: Path, error: BaseException) -> str:
    reason = " ".join(str(error).split())
    return f"{path}: expected a readable file with image and label, got {type(error).__name__}: {reason}"
