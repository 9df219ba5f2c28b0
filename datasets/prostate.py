"""The prostate in T2 MR, six sites (the SAML collection), 116 patients.

Layout::

    <root>/<SITE>/CaseNN.nii.gz                 or .nii
    <root>/<SITE>/CaseNN_segmentation.nii.gz    BMC writes CaseNN_Segmentation
    <root>/test_cases.csv                       site,case: your own federation (optional)

Sites are the folders RUNMC (also called ISBI), BMC (also ISBI_1.5), I2CVB, UCL, BIDMC and HK. Slices lie along the last
axis. Some labels tell two zones of the gland apart (1 and 2); both are prostate here.

Without a table in the root, ``prostate.csv`` beside this file says which 116 cases must be there and which of them
test. With one, every folder with cases is a site, every case in it takes part, and the table names the test cases.

Data card: docs/data/prostate.md. Source: Liu et al., Shape-aware Meta-learning for Generalizing Prostate MRI
Segmentation to Unseen Domains, MICCAI 2020, https://liuquande.github.io/SAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .contract import Case, Pool, ReadVolume, Side, Volume
from .folders import Missing, find_folder, make_pool, missing_problems, pair_problems, subfolders
from .nifti import open_image, read_case, reading_text
from .tables import packaged, read_rows, table_problems

FOLDERS: Mapping[str, str] = {
    "RUNMC": "RUNMC",
    "ISBI": "RUNMC",
    "BMC": "BMC",
    "ISBI_1.5": "BMC",
    "I2CVB": "I2CVB",
    "UCL": "UCL",
    "BIDMC": "BIDMC",
    "HK": "HK",
}
"""The site of a folder's name; SAML's names and HarmoFL's."""

FILE = re.compile(r"Case(\d+)(_segmentation)?\.nii(\.gz)?", re.IGNORECASE)
"""Groups: number of the case; there for a mask."""

CLIP_PERCENTILES = (0.0, 99.0)
"""Of a volume's own voxels, in percent."""

Key = tuple[str, int]
"""A site and the number of a case in it."""

Files = dict[tuple[str, int, str], list[Path]]
"""Candidates for a site's case of a number: its ``image`` or its ``label``."""


@dataclass(frozen=True, kw_only=True)
class Prostate:
    """Six-site prostate MR; hospitals have SAML's names, whatever the folders are called.

    Args:
        missing: What to do about a listed case whose files are not there: ``refuse``, or ``skip`` the case.
    """

    classes: ClassVar[tuple[str, ...]] = ("prostate",)

    missing: Missing = "refuse"

    def __post_init__(self) -> None:
        if problems := missing_problems(self.missing):
            raise ValueError("; ".join(problems))

    def locate(self, root: Path | None) -> Path:
        """The folder of the sites: ``root`` or the environment's WARDROUND_DATA, or one in it.

        Raises:
            ValueError: there is none.
        """
        return find_folder(
            root,
            holds=lambda folder: (
                (folder / "test_cases.csv").is_file() or any((folder / name).is_dir() for name in FOLDERS)
            ),
            names=("prostate", "prostate_mri", "saml", "Processed_data_nii"),
            expected="the site folders RUNMC, BMC, I2CVB, UCL, BIDMC and HK with CaseNN.nii.gz",
            source="see https://liuquande.github.io/SAML (docs/data/prostate.md)",
        )

    def pool(self, root: Path) -> Pool:
        """The 116 cases, or every case there is where the root has a table.

        Raises:
            ValueError: the table cannot be read, or there is no case at all.
        """
        own = root / "test_cases.csv"
        folders, problems = _site_folders(root)
        files = _files(folders)
        sides, contradictions = _own_sides(own, files) if own.is_file() else _packaged_sides(files)
        problems += contradictions
        because = f"a case of {own.name}" if own.is_file() else "one of the 116 of the collection"
        cases = []
        for (site, number), side in sorted(sides.items()):
            image, label = files.get((site, number, "image"), []), files.get((site, number, "label"), [])
            folder, stem = folders.get(site, root / site), f"Case{number:02d}"
            expected = (folder / f"{stem}.nii.gz", folder / f"{stem}_segmentation.nii.gz")
            problems += pair_problems(image, label, expected, because, self.missing)
            if len(image) == len(label) == 1:
                cases.append(_case(f"{site}_{stem}", site, side, image[0], label[0]))
        return make_pool(root, cases, self.classes, problems)

    def volume(self, case: Case) -> Volume:
        """Reads one case, clips it at its 99 % quantile, merges the labels above 0 and brings slices to the front.

        Raises:
            DataError: every problem of the case.
        """
        return read_case(
            case, slice_axis=2, num_classes=len(self.classes), clip_percentiles=CLIP_PERCENTILES, merge_foreground=True
        )

    @property
    def reading(self) -> str:
        """How a file is read, for people who use a model elsewhere."""
        return reading_text(2, CLIP_PERCENTILES)

    def open_image(self, path: Path, *, site: str | None = None) -> ReadVolume:
        """Checks the header of an image without a mask; what comes back reads it and clips it at its 99 % quantile."""
        return open_image(path, slice_axis=2, clip_percentiles=CLIP_PERCENTILES)


def _site_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each site, which has its name or has cases; and the sites that are there under both names."""
    folders: dict[str, Path] = {}
    problems = []
    for path in subfolders(root):
        if path.name not in FOLDERS and not _files({path.name: path}):
            continue
        site = FOLDERS.get(path.name, path.name)
        if site in folders:
            problems.append(f"{path}: expected one folder for the site {site}, found {folders[site].name} too")
        else:
            folders[site] = path
    return folders, problems


def _files(folders: Mapping[str, Path]) -> Files:
    files: Files = {}
    for site, folder in folders.items():
        for path in sorted(folder.iterdir()):
            if match := FILE.fullmatch(path.name):
                kind = "label" if match[2] else "image"
                files.setdefault((site, int(match[1]), kind), []).append(path)
    return files


def _packaged_sides(files: Files) -> tuple[dict[Key, Side], list[str]]:
    """The side of each of the 116 cases, and which files are of none of them."""
    sides: dict[Key, Side] = {
        (row["site"], int(row["case"].removeprefix("Case"))): "test" if row["split"] == "test" else "train"
        for row in read_rows(packaged("prostate.csv"), ("site", "case", "split"))
    }
    problems = [
        f"{paths[0]}: not one of the 116 cases of the collection; to use the folder as it is, put a table "
        f"test_cases.csv (site,case) beside the sites"
        for (site, number, _), paths in files.items()
        if (site, number) not in sides
    ]
    return sides, problems


def _own_sides(table: Path, files: Files) -> tuple[dict[Key, Side], list[str]]:
    """Every case there is trains, except for those of the table."""
    rows = read_rows(table, ("site", "case"))
    problems = table_problems(table, rows, ("site", "case"))
    sides: dict[Key, Side] = {(site, number): "train" for site, number, _ in files}
    for row in rows:
        number = re.fullmatch(r"(?:Case)?(\d+)", row["case"], re.IGNORECASE)
        if number is None:
            problems += [f"{table}: expected a case as 3 or Case03, got {row['case']!r}"] if row["case"] else []
        elif row["site"]:
            sides[FOLDERS.get(row["site"], row["site"]), int(number[1])] = "test"
    return sides, problems


def _case(name: str, site: str, side: Side, image: Path, label: Path) -> Case:
    return Case(name=name, patient=name, image=image, label=label, site=site, side=side)
