"""HAM10000: pigmented skin lesions under the dermatoscope, seven classes, four sites.

Layout::

    <root>/HAM10000_images_part_1/ISIC_0027419.jpg      or HAM10000_images_part_2/, or HAM10000_images/
    <root>/HAM10000_metadata.csv                        lesion_id,image_id,dx,...,dataset; or without .csv

``dataset`` names the site: ``rosendahl``, ``vidir_modern``, ``vidir_molemax`` or ``vienna_dias``. The collection has no
split of its own; :func:`lesion_sides` makes one of the whole lesions.

Data card: docs/data/ham10000.md. Source: Tschandl, Rosendahl, Kittler, The HAM10000 dataset, Scientific Data 5:180161,
2018.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .contract import Case, Pool, Side, Task
from .folders import Missing, find_folder, make_pool, missing_problems
from .pictures import Picture, read_picture, read_pictures
from .tables import Row, read_rows, table_problems

COLUMNS = ("lesion_id", "image_id", "dx", "dataset")
TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata")
FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2", "HAM10000_images")
SITES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")


@dataclass(frozen=True, kw_only=True)
class Ham10000:
    """The images at the sites they come from; a patient is a lesion, of which there may be several images.

    Nine lesions have images at two sites. They stay at both, always on the same side of the split.

    Args:
        test_fraction: Of the lesions of each class, drawn over all sites at once.
        missing: What to do about a listed image whose file is not there: ``refuse``, or ``skip`` it.
    """

    task: ClassVar[Task] = "classification"
    classes: ClassVar[tuple[str, ...]] = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

    test_fraction: float = 0.2
    missing: Missing = "refuse"

    def __post_init__(self) -> None:
        problems = missing_problems(self.missing)
        if not 0 < self.test_fraction < 1:
            problems.append(f"test_fraction: expected a number between 0 and 1, got {self.test_fraction!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def locate(self, root: Path | None) -> Path:
        """The folder with the table: ``root`` or the environment's WARDROUND_DATA, or ``ham10000`` inside it.

        Raises:
            ValueError: there is none.
        """
        return find_folder(
            root,
            holds=lambda folder: any((folder / name).is_file() for name in TABLES),
            names=("ham10000",),
            expected="HAM10000_metadata.csv and HAM10000_images_part_1/ISIC_0027419.jpg",
            source="get it from https://doi.org/10.7910/DVN/DBW86T (docs/data/ham10000.md)",
        )

    def pool(self, root: Path) -> Pool:
        """The images of the table.

        The split is that of the table: it is the same where files are missing.

        Raises:
            ValueError: the table cannot be read, or none of its images is here.
        """
        table = next((root / name for name in TABLES if (root / name).is_file()), root / TABLES[0])
        rows = read_rows(table, COLUMNS)
        problems = [*table_problems(table, rows, ("image_id",)), *_row_problems(table, rows, self.classes)]
        rows = [row for row in {row["image_id"]: row for row in rows}.values() if all(row.values())]
        rows = [row for row in rows if row["dx"] in self.classes]
        sides = lesion_sides({row["lesion_id"]: row["dx"] for row in rows}, self.test_fraction)
        files = {path.stem: path for folder in FOLDERS for path in sorted((root / folder).glob("*.jpg"))}
        lost = [row["image_id"] for row in rows if row["image_id"] not in files]
        if self.missing == "refuse":
            problems += [
                f"{root / FOLDERS[0] / name}.jpg: missing, and not in {' or '.join(FOLDERS[1:])} ({table.name} lists "
                "it); data.missing: skip leaves out what is not there"
                for name in lost
            ]
        cases = [self._case(row, files[row["image_id"]], sides) for row in rows if row["image_id"] in files]
        return make_pool(root, cases, self.classes, problems)

    def _case(self, row: Row, image: Path, sides: Mapping[str, Side]) -> Case:
        return Case(
            name=row["image_id"],
            patient=row["lesion_id"],
            image=image,
            label=image,
            site=row["dataset"],
            side=sides[row["lesion_id"]],
            target=self.classes.index(row["dx"]),
        )

    def images(self, cases: Sequence[Case]) -> Iterator[Picture]:
        """The image (450, 600, 3) of every case. Raises DataError where one cannot be read."""
        return read_pictures(cases)

    def picture(self, path: Path) -> Picture:
        """The image (H, W, 3) of a file anywhere. Raises ValueError where it cannot be read."""
        return read_picture(path)


def lesion_sides(classes: Mapping[str, str], test_fraction: float) -> dict[str, Side]:
    """Which lesions test: of each class n, the first ``round(test_fraction n)`` in the order of a hash of the name.

    Nothing is drawn: the split is the same on every machine and for every seed. With another fraction, lesions move
    one way only.

    Args:
        classes: The class of each lesion.
        test_fraction: In (0, 1).
    """
    ordered = sorted(classes, key=lambda lesion: hashlib.sha256(lesion.encode()).digest())
    sides: dict[str, Side] = {}
    for name in sorted(set(classes.values())):
        members = [lesion for lesion in ordered if classes[lesion] == name]
        number = round(test_fraction * len(members))
        sides |= {lesion: "test" if place < number else "train" for place, lesion in enumerate(members)}
    return sides


def _row_problems(table: Path, rows: Sequence[Row], classes: Sequence[str]) -> list[str]:
    """Rows without a lesion or a site, with an unknown class; lesions of two classes."""
    problems = [
        f"{table}: image {row['image_id']}: expected a {name}, got none"
        for row in rows
        for name in ("lesion_id", "dataset")
        if not row[name]
    ]
    problems += [
        f"{table}: image {row['image_id']}: dx: expected one of {', '.join(classes)}, got {row['dx']!r}"
        for row in rows
        if row["dx"] not in classes
    ]
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["lesion_id"], set()).add(row["dx"])
    return problems + [
        f"{table}: lesion {lesion}: expected one class, got {' and '.join(sorted(names))}"
        for lesion, names in found.items()
        if lesion and len(names) > 1
    ]
