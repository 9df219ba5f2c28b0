"""Which files a prediction is asked for: files and folders as a user names them, and every problem of them at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..datasets.contract import DataError
from ..datasets.nifti import case_name, is_nifti
from ..datasets.pictures import SUFFIXES, is_picture
from ..datasets.writing import NAME_BYTES

T = TypeVar("T")

HIDDEN = (".", "__MACOSX")
"""How files and folders begin that systems leave behind, such as ``._scan.nii.gz``."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a prediction is asked for.

    Args:
        images: As they were named.
        files: Those whose headers can be looked at, each once, in the order in which they were given.
        problems: What is wrong with names and places, one line each.
    """

    images: tuple[Path, ...]
    files: tuple[Path, ...]
    problems: tuple[str, ...]

    def opened(self, look: Callable[[Path], T]) -> list[T]:
        """What ``look`` returns for every file.

        Raises:
            DataError: every problem of names and places, and those that ``look`` raises.
        """
        found, problems = [], list(self.problems)
        for path in self.files:
            try:
                found.append(look(path))
            except DataError as error:
                problems += error.problems
        if problems:
            raise DataError(common_place(self.images) if self.images else Path("images"), problems)
        return found


def volume_files(images: Sequence[Path], out: Path, planned: Callable[[str], Iterable[Path]]) -> Asked:
    """The volumes to segment.

    Args:
        images: Files, and folders that stand for the NIfTI files directly in them, sorted; where there is none, for
            their HDF5 files.
        out: Where label maps go, ``out/<name>.nii.gz`` each.
        planned: Every file that is written for a volume, by its name.

    Returns:
        Them, and what is wrong: there is nothing at a place, or a picture; a volume is named twice, or two have one
        name; label maps would lie among the volumes, or in the place of one.
    """
    files, problems = _gathered(images, _volumes_in, "volumes (.nii, .nii.gz)")
    problems += [
        f"{path}: expected a volume, as this run segments volumes, got a picture" for path in files if is_picture(path)
    ]
    once = _once(files)
    problems += _twice(files) + _same_names(once) + _long_names(once)
    inside = [path for path in once if path.parent.resolve() == out.resolve()]
    if inside:
        problems.append(
            f"{out}: expected another folder for the label maps than that of the volumes, {inside[0].name} lies there"
        )
    else:
        problems += _replaced(once, [place for path in once for place in planned(volume_name(path))])
    return Asked(
        images=tuple(images),
        files=tuple(path for path in once if path.exists() and not is_picture(path)),
        problems=tuple(problems),
    )


def picture_files(images: Sequence[Path], table: Path) -> Asked:
    """The pictures to classify.

    Args:
        images: Files, and folders that stand for the pictures in them at any depth, sorted: data sets have a folder for
            each class.
        table: The file that is written.

    Returns:
        Them, and what is wrong: there is nothing at a place, or something else; a picture is named twice; the table
        would replace one.
    """
    files, problems = _gathered(images, _pictures_in, f"pictures ({', '.join(SUFFIXES)})")
    problems += [
        f"{path}: expected a picture ({', '.join(SUFFIXES)}), as this run classifies images, got "
        f"{'a volume' if is_nifti(path) else 'another suffix'}"
        for path in files
        if path.is_file() and not is_picture(path)
    ]
    once = _once(files)
    problems += _twice(files) + _replaced(once, [table])
    return Asked(
        images=tuple(images),
        files=tuple(path for path in once if path.exists() and is_picture(path)),
        problems=tuple(problems),
    )


def expect_own_folder(run: Path, out: Path) -> None:
    """Raises ValueError where predictions would lie among the run's own."""
    if out.resolve() == run.resolve() or out.resolve().is_relative_to((run / "predictions").resolve()):
        raise ValueError(
            f"{out}: expected a folder of its own for predictions, this one holds those of the run; name another one, "
            f"such as {run / 'predicted'}"
        )


def volume_name(path: Path) -> str:
    """What the label map of a volume is called: ``scan`` for ``scan.nii.gz``, ``case0001`` for ``case0001.npy.h5``."""
    return re.sub(r"(\.npy)?(\.h5)?$", "", case_name(path), flags=re.IGNORECASE)


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


def _once(files: Sequence[Path]) -> list[Path]:
    """The files, each the first time that it is named."""
    first: dict[Path, Path] = {}
    for path in files:
        first.setdefault(path.resolve(), path)
    return list(first.values())


def _twice(files: Sequence[Path]) -> list[str]:
    named: dict[Path, list[Path]] = {}
    for path in files:
        named.setdefault(path.resolve(), []).append(path)
    return [
        f"{paths[0]}: expected every image once, got it {len(paths)} times: {' and '.join(map(str, paths))}"
        for paths in named.values()
        if len(paths) > 1
    ]


def _same_names(files: Sequence[Path]) -> list[str]:
    """Volumes whose label maps would have one name."""
    named: dict[str, list[Path]] = {}
    for path in files:
        named.setdefault(volume_name(path), []).append(path)
    return [
        f"{name}: expected a name of its own for every volume, got {' and '.join(map(str, paths))}; predict them into "
        "different folders"
        for name, paths in named.items()
        if len(paths) > 1
    ]


def _long_names(files: Sequence[Path]) -> list[str]:
    """Volumes whose label maps could not be called after them."""
    most = NAME_BYTES - len(".nii.gz")
    return [
        f"{path}: expected a name of at most {most} bytes, to which .nii.gz is added, got {length}; link or copy it to "
        "a shorter one"
        for path in files
        if (length := len(os.fsencode(volume_name(path)))) > most
    ]


def _replaced(files: Sequence[Path], planned: Sequence[Path]) -> list[str]:
    """Images that are, maybe through a link, the very files that would be written."""
    known = {_identity(path): path for path in files}
    return [
        f"{known[identity]}: expected an image that lies elsewhere, it is {place}, where a prediction goes; name "
        "another folder for the predictions"
        for place in planned
        if (identity := _identity(place)) is not None and identity in known
    ]


def _identity(path: Path) -> tuple[int, int] | None:
    """Equal for two names of one file: links, and capitals where the system does not tell them apart; None: no file."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
