"""Volumes in NumPy's files, one folder for each hospital.

Layout::

    <root>/north/p1.npz        image (S, H, W), label (S, H, W) with 0..C, spacing_mm (slice, row, column)
    <root>/south/p7.npz

One file is one patient. The folder says who has it; what it is for is drawn, as ``split`` of the experiment says.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardround.datasets.contract import Case, DataError, Pool, ReadVolume, Volume
from wardround.datasets.folders import given_folder, make_pool


@dataclass(frozen=True, kw_only=True)
class NpzVolumes:
    """A folder of ``.npz`` files.

    Args:
        classes: Names of the labels 1, 2, ... in the masks.
    """

    classes: tuple[str, ...] = ("foreground",)

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: expected one or more names, each once, got {self.classes!r}")

    def locate(self, root: Path | None) -> Path:
        """``root``, or else the environment's WARDROUND_DATA. Raises ValueError where it holds no such file."""
        expected, source = "HOSPITAL/CASE.npz", "`python -m mywards.example DIR` writes a small one"
        folder = given_folder(root, expected=expected, source=source)
        if not any(folder.glob("*/*.npz")):
            raise ValueError(f"{folder}: expected {expected}, found none; {source}")
        return folder

    def pool(self, root: Path) -> Pool:
        """One case for each file; no voxel is read."""
        return make_pool(root, map(_case, root.glob("*/*.npz")), self.classes, problems=())

    def volume(self, case: Case) -> Volume:
        """Reads and checks one file. Raises DataError with what is wrong."""
        bare = self.open_image(case.image)()
        label = _array(case.image, "label")
        if label.shape != bare.image.shape:
            raise DataError(case.image, [f"label: expected the image's shape {bare.image.shape}, got {label.shape}"])
        if not np.isin(label, range(len(self.classes) + 1)).all():
            expected = f"expected 0 to {len(self.classes)}, got {label.min()} to {label.max()}"
            raise DataError(case.image, [f"label: {expected}"])
        return replace(bare, case=case, label=label.astype(np.uint8))

    def open_image(self, path: Path, *, site: str | None = None) -> ReadVolume:
        """Checks that a file has an image and its spacing, without reading it; ``wardround predict`` needs no label."""
        spacing_mm = _array(path, "spacing_mm")
        if spacing_mm.shape != (3,) or not (spacing_mm > 0).all():
            raise DataError(path, [f"spacing_mm: expected three numbers above 0, got {spacing_mm.tolist()}"])
        with np.load(path, allow_pickle=False) as held:
            if "image" not in held.files:
                raise DataError(path, ["expected an array 'image', got none"])
        return partial(_without_label, _case(path), tuple(spacing_mm.tolist()))


def _case(file: Path) -> Case:
    """The case of a file, named after its folder and itself."""
    name = f"{file.parent.name}_{file.stem}"
    return Case(name=name, patient=name, image=file, label=file, site=file.parent.name)


def _without_label(case: Case, spacing_mm: tuple[float, float, float]) -> Volume:
    """The volume of a file, with a mask of zeros."""
    image = _array(case.image, "image")
    problems = []
    if image.ndim != 3:
        problems.append(f"image: expected a shape (S, H, W), got {image.shape}")
    if not np.isfinite(image).all():
        problems.append("image: expected finite numbers, got NaN or infinity")
    if problems:
        raise DataError(case.image, problems)
    label = np.zeros(image.shape, np.uint8)
    return Volume(case=case, image=image.astype(np.float32), label=label, spacing_mm=spacing_mm, slice_axis=0)


def _array(file: Path, name: str) -> NDArray[Any]:
    """One array of a file."""
    try:
        with np.load(file, allow_pickle=False) as held:
            return np.asarray(held[name])
    except KeyError as error:
        raise DataError(file, [f"expected an array {name!r}, got none"]) from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(file, [f"expected a file of numpy.savez: {error}"]) from error
