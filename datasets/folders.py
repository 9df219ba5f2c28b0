"""What loaders of a fixed layout share: finding the folder, and the files of a case in it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from .contract import Case, DataError, Pool

Missing = Literal["refuse", "skip"]
"""What to do about a listed case whose files are not there: a problem, or leave the case out."""


def missing_problems(missing: str) -> list[str]:
    """What is wrong with a setting of :data:`Missing`."""
    return [] if missing in ("refuse", "skip") else [f"missing: expected refuse or skip, got {missing!r}"]


def find_folder(
    root: Path | None, *, holds: Callable[[Path], bool], names: Sequence[str], expected: str, source: str
) -> Path:
    """``root``, or else the environment's WARDROUND_DATA; or a folder in it that goes by one of the names.

    Args:
        root: What the user gave.
        holds: Whether a folder has the layout.
        names: What a folder may be called; capitals, spaces and punctuation do not count.
        expected: The layout, in words.
        source: How to get the data, in words.

    Raises:
        ValueError: nothing was given, or no folder or more than one has the layout.
    """
    given = given_folder(root, expected=expected, source=source)
    if holds(given):
        return given
    inside = [path for path in subfolders(given) if _plain(path.name) in map(_plain, names) and holds(path)]
    if len(inside) == 1:
        return inside[0]
    found = " and ".join(path.name for path in inside) or "neither"
    raise ValueError(
        f"{given}: expected {expected}, or one folder named {names[0]} with it, found {found}"
        f"{'; name the one to read' if inside else f'; {source}'}"
    )


def given_folder(root: Path | None, *, expected: str, source: str) -> Path:
    """``root``, or else the environment's WARDROUND_DATA.

    Args:
        root: What the user gave.
        expected: The layout, in words.
        source: How to get the data, in words.

    Raises:
        ValueError: nothing was given, or no folder.
    """
    given = root or (Path(os.environ["WARDROUND_DATA"]) if os.environ.get("WARDROUND_DATA") else None)
    if given is None:
        raise ValueError(
            f"data: no folder given; name one that holds {expected}, with --data PATH or the environment variable "
            f"WARDROUND_DATA; {source}"
        )
    if not given.is_dir():
        raise ValueError(f"{given}: expected a folder that holds {expected}, found none there; {source}")
    return given


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; none where it is not there."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def nifti_files(folder: Path, stem: str) -> list[Path]:
    """``stem.nii.gz`` and ``stem.nii``, as far as they are there."""
    return [path for path in (folder / f"{stem}.nii.gz", folder / f"{stem}.nii") if path.is_file()]


def pair_problems(
    image: Sequence[Path], label: Sequence[Path], expected: tuple[Path, Path], because: str, missing: Missing
) -> list[str]:
    """What is wrong with the candidates for the two files of a case: none there, or several.

    Args:
        image: Candidates for the image.
        label: Candidates for the mask.
        expected: Where image and mask should be, named when they are missing.
        because: Who says so.
        missing: Whether missing files are a problem.
    """
    problems = [
        f"{found[0]}: expected one file for {path.name}, found {', '.join(map(str, found[1:]))} too"
        for found, path in zip((image, label), expected, strict=True)
        if len(found) > 1
    ]
    if missing == "skip" or (image and label):
        return problems
    lost = expected[1] if image else expected[0]
    mask = "" if image or label else f" and so is its mask {expected[1].name}"
    return [*problems, f"{lost}: missing{mask} ({because}); data.missing: skip leaves out what is not there"]


def make_pool(root: Path, cases: Iterable[Case], classes: tuple[str, ...], problems: Sequence[str]) -> Pool:
    """The cases sorted by name. Raises DataError where there is none."""
    ordered = tuple(sorted(cases, key=lambda case: case.name))
    if not ordered:
        raise DataError(root, problems or ["none of the listed cases has its files here"])
    return Pool(cases=ordered, classes=classes, problems=tuple(problems))
