"""Folders with the names, tables and oddities of the real collections of images, and tiny pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from trees import write_table

ISIC = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
"""The columns of the challenge's table of classes."""

HAM_COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")


def picture(height: int = 6, width: int = 8, seed: int = 0) -> NDArray[np.uint8]:
    """Noise (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_picture(path: Path, pixels: NDArray | None = None, **options: object) -> Path:
    """A file of the type that its name says; by default :func:`picture`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if pixels is None else pixels).save(path, **options)
    return path


def images_tree(root: Path, files: Iterable[str]) -> Path:
    """A picture of its own in each of these files."""
    for seed, file in enumerate(files):
        write_picture(root / file, picture(seed=seed))
    return root


def medmnist_tree(
    root: Path,
    *,
    flag: str = "bloodmnist",
    size: int = 28,
    counts: Sequence[int] = (7, 3, 4),
    classes: int = 8,
    colours: bool = True,
    packed: bool = True,
    **changed: NDArray,
) -> Path:
    """One file of MedMNIST, whose labels count through the classes. ``changed``: arrays in place of its own."""
    root.mkdir(parents=True, exist_ok=True)
    arrays = medmnist_arrays(size, counts, classes, colours) | changed
    name = flag if size == 28 else f"{flag}_{size}"
    (np.savez_compressed if packed else np.savez)(root / f"{name}.npz", **arrays)
    return root


def medmnist_arrays(size: int, counts: Sequence[int], classes: int, colours: bool) -> dict[str, NDArray]:
    """What :func:`medmnist_tree` writes."""
    arrays: dict[str, NDArray] = {}
    for seed, (side, number) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        shape = (number, size, size, 3) if colours else (number, size, size)
        arrays[f"{side}_images"] = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        arrays[f"{side}_labels"] = (np.arange(number, dtype=np.uint8) % classes)[:, None]
    return arrays


def ham_tree(root: Path, rows: Sequence[tuple[str, str, str, str]], *, empty: bool = False) -> Path:
    """Rows of (lesion, image, class, site); images in turn in the two parts.

    Args:
        root: The folder.
        rows: What the table says.
        empty: Whether files have no content, for tests that read none.
    """
    full = [(lesion, image, dx, "histo", "50.0", "female", "back", site) for lesion, image, dx, site in rows]
    write_table(root / "HAM10000_metadata.csv", HAM_COLUMNS, full)
    for number, row in enumerate(rows):
        path = root / f"HAM10000_images_part_{number % 2 + 1}" / f"{row[1]}.jpg"
        if empty:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            write_picture(path, picture(seed=number))
    return root


def isic_tree(
    root: Path, classes: Mapping[str, str], *, folder: str = "ISIC_2019_Training_Input_preprocessed", **options: bool
) -> Path:
    """The challenge's table of classes and a picture (224, 300) of each image. ``empty``: files without content."""
    rows = [(image, *(float(name == own) for name in ISIC)) for image, own in classes.items()]
    write_table(root / "ISIC_2019_Training_GroundTruth.csv", ("image", *ISIC), rows)
    (root / folder).mkdir(parents=True, exist_ok=True)
    for seed, image in enumerate(classes):
        path = root / folder / f"{image}.jpg"
        if options.get("empty"):
            path.touch()
        else:
            write_picture(path, picture(224, 300, seed), quality=50)
    return root


def isic_images(table: Path) -> list[tuple[str, str, str]]:
    """(image, centre, fold) of the package's table, read without the package."""
    with table.open(newline="") as file:
        return [
            (f"ISIC_{number}", row["center"], row["fold"])
            for row in csv.DictReader(file)
            for number in row["images"].split()
        ]
