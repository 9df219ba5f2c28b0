"""Any NIfTI volumes, listed in a table.

``volumes.csv``, in UTF-8, one row for each volume::

    hospital,image,label,split
    north,north/p1.nii.gz,north/p1_mask.nii.gz,train
    south,south/p7.nii,south/p7_mask.nii.gz,test

Paths are relative to the folder of the table. ``hospital`` and ``split`` (train, validation or test) may be left out or
empty in every row: then ``split.partition`` makes the hospitals, and a split is drawn. Two more columns are read where
they are there: ``patient`` (who is one person; else every volume is a patient) and ``case`` (a name; else the path of
the image, ``north_p1``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import get_args

from .contract import Case, Pool, ReadVolume, Side, Volume
from .folders import find_folder, make_pool
from .nifti import is_nifti, open_image, read_case, reading_problems, reading_text
from .tables import Row, read_rows, side_of, table_problems


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """Volumes of your own.

    Args:
        table: The table, in the folder of the data.
        classes: Names of the labels 1, 2, ... in the masks.
        slice_axis: Array axis along which slices are taken.
        clip_percentiles: Clip each image to these percentiles of its voxels; None leaves it.
        clip_range: Clip each image to these values, in the units of the files; None leaves it.
        merge_foreground: Every label above 0 is the one class.
        channel: Which volume along a fourth axis of the images, counted from 0; None: the images must be 3D.
    """

    table: str = "volumes.csv"
    classes: tuple[str, ...] = ("foreground",)
    slice_axis: int = 2
    clip_percentiles: tuple[float, float] | None = None
    clip_range: tuple[float, float] | None = None
    merge_foreground: bool = False
    channel: int | None = None

    def __post_init__(self) -> None:
        problems = reading_problems(self.slice_axis, self.clip_percentiles, self.channel, self.clip_range)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            problems.append(f"classes: expected one or more names, each once, got {self.classes!r}")
        if self.merge_foreground and len(self.classes) != 1:
            problems.append(f"merge_foreground: expected one class to merge into, got {self.classes!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def locate(self, root: Path | None) -> Path:
        """The folder with the table: ``root`` or the environment's WARDROUND_DATA, or ``volumes`` inside it.

        Raises:
            ValueError: there is none.
        """
        return find_folder(
            root,
            holds=lambda folder: (folder / self.table).is_file(),
            names=("volumes",),
            expected=f"a table {self.table} (columns hospital,image,label,split)",
            source="see docs/how-to/use-your-own-volumes.md",
        )

    def pool(self, root: Path) -> Pool:
        """The cases of the table.

        Raises:
            ValueError: the table cannot be read, or lists no case whose files are there.
        """
        path = root / self.table
        rows = read_rows(path, ("image", "label"), ("hospital", "split", "patient", "case"))
        cases = [_case(path.parent, row) for row in rows if row["image"] and row["label"]]
        problems = table_problems(path, rows, ("image",)) + _row_problems(path, rows)
        problems += _name_problems(path, [case.name for case in cases])
        problems += [line for case in cases for line in _file_problems(path, case)]
        once = {case.name: case for case in reversed(cases) if not _file_problems(path, case)}
        return make_pool(root, once.values(), self.classes, problems)

    def volume(self, case: Case) -> Volume:
        """Reads one case, checks it and brings slices to the front."""
        return read_case(
            case,
            slice_axis=self.slice_axis,
            num_classes=len(self.classes),
            clip_percentiles=self.clip_percentiles,
            clip_range=self.clip_range,
            merge_foreground=self.merge_foreground,
            channel=self.channel,
        )

    @property
    def reading(self) -> str:
        """How a file is read, for people who use a model elsewhere."""
        return reading_text(self.slice_axis, self.clip_percentiles, self.clip_range, self.channel)

    def open_image(self, path: Path, *, site: str | None = None) -> ReadVolume:
        """Checks the header of an image without a mask; what comes back reads it."""
        return open_image(
            path,
            slice_axis=self.slice_axis,
            clip_percentiles=self.clip_percentiles,
            clip_range=self.clip_range,
            channel=self.channel,
        )


def _case(folder: Path, row: Row) -> Case:
    """The case of a row."""
    name = row["case"] or _name(row["image"])
    return Case(
        name=name,
        patient=row["patient"] or name,
        image=folder / row["image"],
        label=folder / row["label"],
        site=row["hospital"] or None,
        side=side_of(row["split"], get_args(Side)),
    )


def _name(image: str) -> str:
    """``north/p1.nii.gz`` is ``north_p1``."""
    path = image.replace("\\", "/").removesuffix(".gz").removesuffix(".nii")
    return "_".join(part for part in PurePosixPath(path).parts if part not in ("/", "."))


def _row_problems(path: Path, rows: Sequence[Row]) -> list[str]:
    """Cells that are empty or say something else than they may."""
    problems = [f"{path}: row {number} has no label" for number, row in _numbered(rows) if not row["label"]]
    problems += [
        f"{path}: row {number}: split: expected {', '.join(get_args(Side))} or nothing, got {row['split']!r}"
        for number, row in _numbered(rows)
        if row["split"] not in ("", *get_args(Side))
    ]
    for column in ("hospital", "split"):
        empty = [number for number, row in _numbered(rows) if not row[column]]
        if 0 < len(empty) < len(rows):
            problems.append(
                f"{path}: {column}: expected an entry in every row or in none, {len(empty)} of {len(rows)} rows have "
                f"none, the first is row {empty[0]}"
            )
    return problems


def _numbered(rows: Sequence[Row]) -> enumerate[Row]:
    """Rows with their line in the table."""
    return enumerate(rows, start=2)


def _name_problems(path: Path, names: Sequence[str]) -> list[str]:
    """Names of several rows."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    return [f"{path}: case {name}: expected a name of its own for every row" for name in twice]


def _file_problems(path: Path, case: Case) -> list[str]:
    """Files of a case that are not there, or no NIfTI files."""
    missing = [f"{file}: missing, {path.name} lists it" for file in case.files if not file.is_file()]
    return missing + [f"{file}: expected .nii or .nii.gz" for file in case.files if not is_nifti(file)]
