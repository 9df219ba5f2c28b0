"""Images of your own with a class each: folders named after the classes, or a table.

One of these layouts, the same for all images of the folder::

    <root>/<class>/x.png
    <root>/<side>/<class>/x.png             side: train, validation (or val), test
    <root>/<site>/<class>/x.png
    <root>/<site>/<side>/<class>/x.png

or a table ``images.csv`` in UTF-8, which then says everything::

    file,class,patient,site,side
    scans/a17.png,benign,p3,north,train
    scans/a18.png,malignant,p4,north,test

``site`` and ``side`` may be left out, or be empty in every row: then ``split.partition`` makes the hospitals, and a
split is drawn. Without a ``patient`` an image is a patient of its own. Paths are relative to the folder of the table.
In folders every image is a patient of its own: where one person has several images, write a table.

Files are PNG, JPEG, BMP or TIFF (:func:`~wardround.datasets.pictures.read_picture` says what becomes of grey, alpha and
16 bits); whatever begins with a dot is left alone.

Data card: docs/data/images.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, get_args

from .contract import Case, Pool, Side, Task
from .folders import find_folder, make_pool, subfolders
from .pictures import SUFFIXES, Picture, is_picture, read_picture, read_pictures
from .tables import Row, read_rows, side_of, table_problems

TABLE = "images.csv"
LEVELS = (2, 3, 4)
"""Folders and file between the root and an image, the file included."""

MAX_CLASSES = 256
"""Labels are bytes."""

NO_PICTURES = ("Thumbs.db", "desktop.ini")
"""What operating systems leave behind in folders of images."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Images in folders that are named after their classes, or in a table.

    Args:
        classes: Names of the classes in the order of their numbers; (): those that are there, sorted.
    """

    task: ClassVar[Task] = "classification"

    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes) or len(self.classes) == 1 or not all(self.classes):
            raise ValueError(f"classes: expected two or more names, each once, or none at all, got {self.classes!r}")

    def locate(self, root: Path | None) -> Path:
        """The folder with the table or the classes: ``root`` or the environment's WARDROUND_DATA, or ``images`` in it.

        Raises:
            ValueError: there is none.
        """
        return find_folder(
            root,
            holds=_holds,
            names=("images",),
            expected=f"a table {TABLE} (file,class,patient,site,side) or a folder of images for each class",
            source="see docs/data/images.md",
        )

    def pool(self, root: Path) -> Pool:
        """The images of the table, or else of the folders.

        Raises:
            ValueError: the table cannot be read, or there is no image.
        """
        table = root / TABLE
        rows, problems = _listed(table) if table.is_file() else _found(root)
        classes = self.classes or tuple(sorted({row["class"] for row in rows if row["class"]}))
        problems = [*problems, *_class_problems(root, rows, classes)]
        number = {name: place for place, name in enumerate(classes)}
        cases = [_case(root, row, number[row["class"]]) for row in rows if row["file"] and row["class"] in number]
        problems += _case_problems(root, cases)
        once = {case.name: case for case in reversed(cases) if case.image.is_file()}
        return make_pool(root, once.values(), classes, problems)

    def images(self, cases: Sequence[Case]) -> Iterator[Picture]:
        """The image (H, W, 3) of every case. Raises DataError where one cannot be read."""
        return read_pictures(cases)

    def picture(self, path: Path) -> Picture:
        """The image (H, W, 3) of a file anywhere. Raises ValueError where it cannot be read."""
        return read_picture(path)


def _case(root: Path, row: Row, target: int) -> Case:
    image = root / row["file"]
    name = _name(row["file"])
    return Case(
        name=name,
        patient=row["patient"] or name,
        image=image,
        label=image,
        site=row["site"] or None,
        side=side_of(row["side"], get_args(Side)),
        target=target,
    )


def _name(file: str) -> str:
    """``north/benign/a17.png`` is ``north_benign_a17``."""
    path = PurePosixPath(file.replace("\\", "/")).with_suffix("")
    return "_".join(part for part in path.parts if part not in ("/", "."))


# ---- the table -------------------------------------------------------------------------------------------------------


def _listed(table: Path) -> tuple[list[Row], list[str]]:
    """The rows of the table, and what is wrong with them."""
    rows = read_rows(table, ("file", "class"), ("patient", "site", "side"))
    problems = table_problems(table, rows, ("file",))
    if not rows:
        problems.append(f"{table}: expected a row for each image, got no row below the names of the columns")
    for number, row in enumerate(rows, start=2):
        if not row["class"]:
            problems.append(f"{table}: row {number} has no class")
        if row["side"] not in ("", *get_args(Side)):
            expected = ", ".join(get_args(Side))
            problems.append(f"{table}: row {number}: side: expected {expected} or nothing, got {row['side']!r}")
        if row["file"] and not is_picture(Path(row["file"])):
            problems.append(f"{table}: row {number}: expected a file {_SUFFIX_LIST}, got {row['file']!r}")
        elif row["file"] and not (table.parent / row["file"]).is_file():
            problems.append(f"{table.parent / row['file']}: missing, {TABLE} lists it")
    return rows, [*problems, *_gaps(table, rows)]


_SUFFIX_LIST = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _gaps(table: Path, rows: Sequence[Row]) -> list[str]:
    """A line for each column that some rows leave empty and others do not."""
    problems = []
    for column in ("site", "side"):
        empty = [number for number, row in enumerate(rows, start=2) if not row[column]]
        if 0 < len(empty) < len(rows):
            problems.append(
                f"{table}: {column}: expected an entry in every row or in none, {len(empty)} of {len(rows)} rows have "
                f"none, the first is row {empty[0]}"
            )
    return problems


# ---- folders ---------------------------------------------------------------------------------------------------------


def _found(root: Path) -> tuple[list[Row], list[str]]:
    """A row for each image in the folders, and what is wrong with them.

    The layout is that of most images; an image elsewhere is a problem.
    """
    files = [path.relative_to(root) for path in _files(root, max(LEVELS))]
    pictures = [path for path in files if is_picture(path)]
    counts = Counter(len(path.parts) for path in pictures if len(path.parts) in LEVELS)
    if not counts:
        return [], [f"{root}: expected images {_SUFFIX_LIST} in a folder for each class, found none"]
    level = max(counts, key=lambda level: (counts[level], -level))
    placed = [path for path in pictures if len(path.parts) == level]
    sides_first = level == 3 and all(path.parts[0] in _SIDES for path in placed)
    layout = _LAYOUTS["sides" if sides_first else level]
    rows = [_row(path, layout) for path in placed]
    problems = [
        f"{root / path}: expected {'/'.join(f'<{part}>' for part in layout)}/{path.name}, as most images of {root} lie"
        for path in pictures
        if len(path.parts) != level
    ]
    problems += [
        f"{root / path}: expected a picture {_SUFFIX_LIST} in the folder of a class"
        for path in files
        if len(path.parts) == level and not is_picture(path)
    ]
    problems += [f"{folder}: expected images of a class, found none" for folder in _bare(root, level - 1)]
    problems += _side_problems(root, placed, layout)
    return rows, problems


_SIDES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
"""What the folder of a side may be called."""

_LAYOUTS: dict[int | str, tuple[str, ...]] = {
    2: ("class",),
    "sides": ("side", "class"),
    3: ("site", "class"),
    4: ("site", "side", "class"),
}


def _row(path: Path, layout: Sequence[str]) -> Row:
    parts = dict(zip(layout, path.parts, strict=False))
    return {
        "file": path.as_posix(),
        "class": parts["class"],
        "patient": "",
        "site": parts.get("site", ""),
        "side": _SIDES.get(parts.get("side", ""), ""),
    }


def _side_problems(root: Path, placed: Sequence[Path], layout: Sequence[str]) -> list[str]:
    """A line for each folder that should be called like a side and is not."""
    if "side" not in layout:
        return []
    depth = layout.index("side") + 1
    folders = {Path(*path.parts[:depth]) for path in placed}
    return [
        f"{root / folder}: expected a folder named train, validation or test, got {folder.name!r}"
        for folder in sorted(folders)
        if folder.name not in _SIDES
    ]


def _files(folder: Path, levels: int) -> Iterator[Path]:
    """Files down to some levels, without what begins with a dot; sorted."""
    for path in _visible(folder):
        if not path.is_dir():
            yield path
        elif levels > 1:
            yield from _files(path, levels - 1)


def _visible(folder: Path) -> list[Path]:
    hidden = (".", "__MACOSX")
    return sorted(p for p in folder.iterdir() if not p.name.startswith(hidden) and p.name not in NO_PICTURES)


def _bare(folder: Path, depth: int) -> list[Path]:
    """Folders of classes, ``depth`` levels down, and folders above them, without a picture at any level."""
    if not any(map(is_picture, _files(folder, max(LEVELS)))):
        return [folder]
    inside = [path for path in _visible(folder) if path.is_dir()] if depth else []
    return [bare for path in inside for bare in _bare(path, depth - 1)]


def _holds(folder: Path) -> bool:
    """A table or images at some level; where they are in a folder named ``images``, that is the one."""
    if (folder / TABLE).is_file():
        return True
    inside = [path for path in subfolders(folder) if path.name.lower() == "images"]
    if not folder.is_dir() or any(map(_holds, inside)):
        return False
    return any(is_picture(path) for path in _files(folder, max(LEVELS)) if path.parent != folder)


# ---- classes and cases -----------------------------------------------------------------------------------------------


def _class_problems(root: Path, rows: Sequence[Row], classes: Sequence[str]) -> list[str]:
    """Classes that are unknown, without an image, too few or too many."""
    counts = Counter(row["class"] for row in rows if row["class"])
    if rows and not 2 <= len(classes) <= MAX_CLASSES:
        return [f"{root}: expected 2 to {MAX_CLASSES} classes, got {len(classes)}: {list(classes)[:5]}"]
    problems = [
        f"{root}: class {name!r} of {count} images: expected one of data.classes {list(classes)}"
        for name, count in sorted(counts.items())
        if name not in classes
    ]
    return problems + [f"{root}: class {name!r} of data.classes has no image" for name in classes if not counts[name]]


def _case_problems(root: Path, cases: Sequence[Case]) -> list[str]:
    """Names of several images; patients at several sites, or on several sides."""
    files: dict[str, list[str]] = {}
    for case in cases:
        files.setdefault(case.name, []).append(str(case.image))
    problems = [
        f"{root}: case {name}: expected a name of its own for every image, got {' and '.join(sorted(set(paths)))}"
        for name, paths in files.items()
        if len(set(paths)) > 1
    ]
    for what, expected in (("site", "at one site"), ("side", "on one side of the split")):
        found: dict[str, set[str]] = {}
        for case in cases:
            found.setdefault(case.patient, set()).add(getattr(case, what) or "none")
        problems += [
            f"{root}: expected patient {patient} {expected}, got {' and '.join(sorted(values))}"
            for patient, values in found.items()
            if len(values) > 1
        ]
    return problems
