"""Fed-IXI: brain masks in T1 MR, three hospitals in London, 566 healthy subjects at low resolution (IXI Tiny).

Two layouts::

    <root>/image/IXI002-Guys-0828_image.nii.gz                                        TorchIO's
    <root>/label/IXI002-Guys-0828_label.nii.gz
    <root>/7kd5wj7v7p-3/IXI_sample/IXI002-Guys-0828/T1/IXI002-Guys-0828_image.nii.gz  FLamby's
    <root>/7kd5wj7v7p-3/IXI_sample/IXI002-Guys-0828/label/IXI002-Guys-0828_label.nii.gz
    <root>/metadata_tiny.csv    Patient ID,Manufacturer,Split[,Site]: your own federation (optional)

The second field of a name is the hospital, the number in the first is the patient. Who trains and who tests is
FLamby's split; its 566 rows are in ``fed_ixi.csv`` beside this file. A table in the root replaces them.

Data card: docs/data/fed_ixi.md. Source: https://brain-development.org/ixi-dataset; Pérez-García et al., TorchIO, CMPB
208, 2021; Ogier du Terrail et al., FLamby, NeurIPS 2022.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .contract import Case, Pool, ReadVolume, Volume
from .folders import Missing, find_folder, make_pool, missing_problems, pair_problems
from .nifti import open_image, read_case, reading_text
from .tables import Row, packaged, read_rows, side_of, table_problems

COLUMNS = ("Patient ID", "Manufacturer", "Split")

HOSPITALS: Mapping[str, str] = {"0": "Guys", "1": "HH", "2": "IOP"}
"""The hospital of a number in the column ``Manufacturer``."""

SUBJECT = re.compile(r"(IXI(\d+)-([^-]+)-.+)_(image|label)\.nii(\.gz)?")
"""Groups: name of the subject, number of the patient, hospital, kind of file."""


@dataclass(frozen=True, kw_only=True)
class FedIxi:
    """IXI Tiny in the hospitals ``Guys``, ``HH`` and ``IOP``.

    The papers' z-score of a volume is undone by the min-max that ends every preprocessing here, so it is not computed.
    Their grid of 48 x 60 x 48 voxels is a setting of an experiment's windows, not of the data.

    Args:
        slice_axis: Array axis along which slices are taken; 0 gives 83 axial slices of 44 x 55.
        missing: What to do about a listed subject whose files are not there: ``refuse``, or ``skip`` the subject.
    """

    classes: ClassVar[tuple[str, ...]] = ("brain",)

    slice_axis: int = 0
    missing: Missing = "refuse"

    def __post_init__(self) -> None:
        problems = missing_problems(self.missing)
        if self.slice_axis not in (0, 1, 2):
            problems.insert(0, f"slice_axis: expected 0, 1 or 2, got {self.slice_axis!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def locate(self, root: Path | None) -> Path:
        """The folder of one of the layouts: ``root`` or the environment's WARDROUND_DATA, or one in it.

        Raises:
            ValueError: there is none.
        """
        return find_folder(
            root,
            holds=lambda folder: (folder / "metadata_tiny.csv").is_file() or any(_subject_files(folder)),
            names=("ixi_tiny", "ixi", "fed_ixi", "IXI-Dataset"),
            expected="IXI Tiny (image/ and label/, or 7kd5wj7v7p-3/IXI_sample/)",
            source="TorchIO's IXITiny and FLamby's fed_ixi fetch it (docs/data/fed_ixi.md)",
        )

    def pool(self, root: Path) -> Pool:
        """The subjects of the table; others take no part.

        Raises:
            ValueError: the table cannot be read, or none of its subjects is here.
        """
        own = root / "metadata_tiny.csv"
        table = own if own.is_file() else packaged("fed_ixi.csv")
        rows = [row | {"Patient ID": _number(row["Patient ID"])} for row in read_rows(table, COLUMNS, ("Site",))]
        problems = [*table_problems(table, rows, ("Patient ID",)), *_row_problems(table, rows)]
        files = _by_patient(_subject_files(root))
        cases = []
        for number, row in {row["Patient ID"]: row for row in rows if row["Patient ID"].isdecimal()}.items():
            patient = f"IXI{number.zfill(3)}"
            image, label = files.get((number, "image"), []), files.get((number, "label"), [])
            expected = (root / f"{patient}-*_image.nii.gz", root / f"{patient}-*_label.nii.gz")
            problems += pair_problems(image, label, expected, f"a subject of {table.name}", self.missing)
            if len(image) == len(label) == 1:
                cases.append(_case(row, patient, image[0], label[0]))
                problems += _contradictions(table, row, cases[-1])
        return make_pool(root, cases, self.classes, problems)

    def volume(self, case: Case) -> Volume:
        """Reads one case, checks it and brings slices to the front. Raises DataError with every problem of the case."""
        return read_case(case, slice_axis=self.slice_axis, num_classes=len(self.classes))

    @property
    def reading(self) -> str:
        """How a file is read, for people who use a model elsewhere."""
        return reading_text(self.slice_axis)

    def open_image(self, path: Path, *, site: str | None = None) -> ReadVolume:
        """Checks the header of an image without a mask; what comes back reads it."""
        return open_image(path, slice_axis=self.slice_axis)


def _subject_files(root: Path) -> list[Path]:
    """Every image and label in one of the layouts."""
    folders = [root / "image", root / "label"]
    for place in (root, root / "IXI_sample", root / "7kd5wj7v7p-3" / "IXI_sample"):
        folders += [subject / kind for subject in place.glob("IXI*-*") for kind in ("T1", "label")]
    return sorted(path for folder in folders for path in folder.glob("IXI*.nii*") if SUBJECT.fullmatch(path.name))


def _by_patient(paths: Sequence[Path]) -> dict[tuple[str, str], list[Path]]:
    """The files of a patient's number and a kind."""
    files: dict[tuple[str, str], list[Path]] = {}
    for path in paths:
        if match := SUBJECT.fullmatch(path.name):
            files.setdefault((_number(match[2]), match[4]), []).append(path)
    return files


def _number(text: str) -> str:
    """``002`` is ``2``; what is no number stays."""
    return str(int(text)) if text.isdecimal() else text


def _row_problems(table: Path, rows: Sequence[Row]) -> list[str]:
    problems = [
        f"{table}: expected a number as Patient ID, got {row['Patient ID']!r}"
        for row in rows
        if row["Patient ID"] and not row["Patient ID"].isdecimal()
    ]
    return problems + [
        f"{table}: patient {row['Patient ID']}: expected Split train or test, got {row['Split']!r}"
        for row in rows
        if side_of(row["Split"]) is None
    ]


def _case(row: Row, patient: str, image: Path, label: Path) -> Case:
    match = SUBJECT.fullmatch(image.name)
    assert match is not None
    return Case(name=match[1], patient=patient, image=image, label=label, site=match[3], side=side_of(row["Split"]))


def _contradictions(table: Path, row: Row, case: Case) -> list[str]:
    """Where table, image and label of a subject disagree."""
    site = row["Site"] or HOSPITALS.get(row["Manufacturer"])
    problems = []
    if site not in (None, case.site):
        column = f"Site {site}" if row["Site"] else f"Manufacturer {row['Manufacturer']}, which is {site}"
        problems.append(f"{case.image}: expected the hospital of {table.name} ({column}), got {case.site} in its name")
    if not case.label.name.startswith(f"{case.name}_"):
        problems.append(f"{case.label}: expected the label of {case.name}, whose image is {case.image}")
    return problems
