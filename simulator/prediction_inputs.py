"""Which files a prediction is asked for: files and folders as a user names them, and every problem of them at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ..datasets.contract import DataError
from ..datasets.nifti import case_name, is_nifti
from ..datasets.pictures import SUFFIXES, is_picture
from .files import file_stem

HIDDEN = (".", "__MACOSX")
"""How files and folders begin that systems leave behind, such as ``._scan.nii.gz``."""


def volume_files(images: Sequence[Path], out: Path) -> list[Path]:
    """The volumes to segment, in the order in which they were given.

    Args:
        images: Files, and folders that stand for the NIfTI files directly in them, sorted; where there is none, for
            their HDF5 files.
        out: Where label maps go, ``out/<name>.nii.gz`` each.

    Raises:
        DataError: there is nothing at a place, or something else; a volume is named twice, or two have one name; label
            maps would lie among the volumes.
    """
    files, problems = _gathered(images, _volumes_in, "volumes (.nii, .nii.gz)")
    problems += [
        f"{path}: expected a volume, as this run segments volumes, got a picture" for path in files if is_picture(path)
    ]
    problems += _twice(files) + _same_names(files)
    inside = [path for path in files if path.parent.resolve() == out.resolve()]
    if inside:
        problems.append(
            f"{out}: expected another folder for the label maps than that of the volumes, {inside[0].name} lies there"
        )
    return _sound(files, problems)


def picture_files(images: Sequence[Path]) -> list[Path]:
    """The pictures to classify, in the order in which they were given.

    Args:
        images: Files, and folders that stand for the pictures in them at any depth, sorted: data sets have a folder for
            each class.

    Raises:
        DataError: there is nothing at a place, or something else; a picture is named twice.
    """
    files, problems = _gathered(images, _pictures_in, f"pictures ({', '.join(SUFFIXES)})")
    problems += [
        f"{path}: expected a picture ({', '.join(SUFFIXES)}), as this run classifies images, got "
        f"{'a volume' if is_nifti(path) else 'another suffix'}"
        for path in files
        if path.is_file() and not is_picture(path)
    ]
    return _sound(files, problems + _twice(files))


def volume_name(path: Path) -> str:
    """What the label map of a volume is called: ``scan`` for ``scan.nii.gz``, ``case0001`` for ``case0001.npy.h5``."""
    return file_stem(case_name(path).removesuffix(".h5").removesuffix(".npy"))


def common_place(files: Sequence[Path]) -> Path:
    """The folder that all files lie in, at some depth; a single file itself."""
    return Path(os.path.commonpath([path.absolute() for path in files])) if len(files) > 1 else files[0]


def _gathered(images: Sequence[Path], inside: Callable[[Path], list[Path]], what: str) -> tuple[list[Path], list[str]]:
    """The files that are named, and those in the folders that are named; and what is not there."""
    files: list[Path] = []
    problems = [] if images else [f"expected at least one of {what}, got none"]
    for path in images:
        found = inside(path) if path.is_dir() else [path]
        if path.is_dir() and not found:
            problems.append(f"{path}: expected {what} in this folder, found none")
        if not path.exists():
            problems.append(f"{path}: expected a file or a folder, found none there")
        files += found
    return files, problems


def _volumes_in(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(HIDDEN)]
    return [path for path in files if is_nifti(path)] or [path for path in files if path.suffix == ".h5"]


def _pictures_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if is_picture(path) and path.is_file())
    return [path for path in found if not any(part.startswith(HIDDEN) for part in path.relative_to(folder).parts)]


def _twice(files: Sequence[Path]) -> list[str]:
    counts = Counter(path.resolve() for path in files)
    return [f"{path}: expected every image once, got it {count} times" for path, count in counts.items() if count > 1]


def _same_names(files: Sequence[Path]) -> list[str]:
    """Volumes whose label maps would have one name."""
    named: dict[str, list[Path]] = {}
    for path in {path.resolve(): path for path in files}.values():
        named.setdefault(volume_name(path), []).append(path)
    return [
        f"{name}: expected a name of its own for every volume, got {' and '.join(map(str, paths))}; predict them into "
        "different folders"
        for name, paths in named.items()
        if len(paths) > 1
    ]


def _sound(files: list[Path], problems: Sequence[str]) -> list[Path]:
    if problems:
        raise DataError(common_place(files) if files else Path("images"), problems)
    return files
