"""Writers of the folder layouts that phantoms come in; the loaders of the same names read them back.

A layout knows names and tables, not voxels. Cases have the names and numbers of the real collection's own training and
test cases as long as it has enough of them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from .anatomy import FAMILIES, Array
from .contract import Dataset
from .fed_ixi import HOSPITALS, FedIxi
from .fed_kits19 import FedKits19
from .msd import Msd
from .nifti import nifti_image, write_nifti
from .prostate import FOLDERS, Prostate
from .tables import packaged, read_rows

Name = Literal["msd", "fed_kits19", "fed_ixi", "prostate"]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The place of one case in a federation.

    Args:
        hospital: Its number, from 0.
        hospitals: How many there are.
        side: What the case is for.
        position: From 0, among the hospital's cases of this side.
    """

    hospital: int
    hospitals: int
    side: Literal["train", "test"]
    position: int


class Layout(Protocol):
    """Names, tables and oddities of one folder layout.

    Attributes:
        family: What the real collection shows.
        loader: Reads the folder.
    """

    family: str
    loader: Dataset

    def site(self, slot: Slot) -> str:
        """The name of the hospital."""
        ...

    def files(self, slot: Slot, family: str) -> tuple[str, str]:
        """Image and mask, relative to the folder."""
        ...

    def mask(self, slot: Slot, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The labels that this hospital writes."""
        ...

    def grid(self, slot: Slot, file: Any) -> Any:
        """A nibabel image with the axes and the shape that this layout has."""
        ...

    def tables(self, slots: Sequence[Slot], family: str) -> Mapping[str, str]:
        """The content of each table, by the table's name."""
        ...


class MsdLayout:
    """``imagesTr``, ``labelsTr``, ``dataset.json``, ``sites.csv`` (case,site) and ``split.csv`` (case,split)."""

    family = "brain_mr"
    loader: Dataset = Msd(clip_percentiles=None)

    def site(self, slot: Slot) -> str:
        """``hospital-1`` and so on, zero-padded so that they sort by number."""
        return f"hospital-{slot.hospital + 1:0{len(str(slot.hospitals))}d}"

    def files(self, slot: Slot, family: str) -> tuple[str, str]:
        """``imagesTr/brain_mr_1_train_01.nii.gz`` and the same in ``labelsTr``."""
        case = self._case(slot, family)
        return f"imagesTr/{case}.nii.gz", f"labelsTr/{case}.nii.gz"

    def _case(self, slot: Slot, family: str) -> str:
        return f"{family}_{self.site(slot).removeprefix('hospital-')}_{slot.side}_{slot.position + 1:02d}"

    def mask(self, slot: Slot, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """All classes of the family."""
        return label

    def grid(self, slot: Slot, file: Any) -> Any:
        """Rows to the back, columns to the patient's left, slices up."""
        return file

    def tables(self, slots: Sequence[Slot], family: str) -> Mapping[str, str]:
        """The Decathlon's description, and who has which case."""
        info = FAMILIES[family]
        files = [self.files(slot, family) for slot in slots]
        description = {
            "name": f"phantom {family}",
            "description": "procedural volumes, no patient's",
            "modality": {"0": info.modality},
            "labels": {str(number): name for number, name in enumerate(("background", *info.classes))},
            "numTraining": len(slots),
            "training": [{"image": f"./{image}", "label": f"./{label}"} for image, label in files],
        }
        cases = [self._case(slot, family) for slot in slots]
        return {
            "dataset.json": json.dumps(description, indent=1) + "\n",
            "sites.csv": _csv(("case", "site"), zip(cases, map(self.site, slots), strict=True)),
            "split.csv": _csv(("case", "split"), ((case, s.side) for case, s in zip(cases, slots, strict=True))),
        }


class FedKits19Layout:
    """``data/case_00000/{imaging,segmentation}.nii.gz`` and ``thresholded_sites.csv``; slices along the first axis.

    The first training case of the second hospital is not square, as one case of KiTS19 is not.
    """

    family = "kidney_ct"
    loader: Dataset = FedKits19(clip="common")

    def site(self, slot: Slot) -> str:
        """The number; the loader calls it ``site-0`` and so on."""
        return str(slot.hospital)

    def files(self, slot: Slot, family: str) -> tuple[str, str]:
        """A folder for each case."""
        folder = f"data/{self._case(slot)}"
        return f"{folder}/imaging.nii.gz", f"{folder}/segmentation.nii.gz"

    def _case(self, slot: Slot) -> str:
        real = _real_cases("fed_kits19.csv", ("site_ids", "train_test_split", "case_ids"))
        return _pick(real, self.site(slot), slot, lambda: f"case_{300 + _pair(slot):05d}")

    def mask(self, slot: Slot, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """0, 1 and 2."""
        return label

    def grid(self, slot: Slot, file: Any) -> Any:
        """Slices first and downwards, then rows to the back and columns to the patient's left."""
        file = _reoriented(file, "IPL")
        if (slot.hospital, slot.side, slot.position) == (1, "train", 0):
            margin = file.shape[1] // 16
            file = file.slicer[:, margin : file.shape[1] - margin]
        return file

    def tables(self, slots: Sequence[Slot], family: str) -> Mapping[str, str]:
        """FLamby's table."""
        rows = [(self._case(slot), self.site(slot), slot.side) for slot in slots]
        return {"thresholded_sites.csv": _csv(("case_ids", "site_ids", "train_test_split"), rows)}


class FedIxiLayout:
    """TorchIO's ``image/IXI002-Guys-0828_image.nii.gz`` and ``label/...``, with FLamby's ``metadata_tiny.csv``."""

    family = "brain_t1"
    loader: Dataset = FedIxi()
    hospitals = tuple(HOSPITALS.values())

    def site(self, slot: Slot) -> str:
        """``Guys``, ``HH``, ``IOP``, ``SITE04`` and so on."""
        known = slot.hospital < len(self.hospitals)
        return self.hospitals[slot.hospital] if known else f"SITE{slot.hospital + 1:02d}"

    def files(self, slot: Slot, family: str) -> tuple[str, str]:
        """Number of the patient and hospital are in the name; 2 at Guys is ``IXI002-Guys-0828`` as in IXI."""
        number = int(self._patient(slot))
        case = f"IXI{number:03d}-{self.site(slot)}-{826 + number:04d}"
        return f"image/{case}_image.nii.gz", f"label/{case}_label.nii.gz"

    def _patient(self, slot: Slot) -> str:
        real = _real_cases("fed_ixi.csv", ("Manufacturer", "Split", "Patient ID"))
        return _pick(real, str(slot.hospital), slot, lambda: str(1000 + _pair(slot)))

    def mask(self, slot: Slot, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One class."""
        return (label > 0).astype(np.uint8)

    def grid(self, slot: Slot, file: Any) -> Any:
        """Slices first and upwards."""
        return _reoriented(file, "SLP")

    def tables(self, slots: Sequence[Slot], family: str) -> Mapping[str, str]:
        """FLamby's table, with the names of the hospitals where there are others than the three."""
        columns = ("Patient ID", "Manufacturer", "Split", "Site")
        rows = [(self._patient(slot), str(slot.hospital), slot.side, self.site(slot)) for slot in slots]
        width = 3 if max(slot.hospital for slot in slots) < len(self.hospitals) else 4
        return {"metadata_tiny.csv": _csv(columns[:width], [row[:width] for row in rows])}


class ProstateLayout:
    """``<SITE>/Case00.nii.gz`` and ``Case00_segmentation.nii.gz``, and ``test_cases.csv`` (site,case).

    As in the collection, BMC writes ``_Segmentation``, BIDMC has no Case01, HK begins with Case38, and RUNMC and BMC
    tell two zones apart where the others have one label.
    """

    family = "prostate_mr"
    loader: Dataset = Prostate()
    sites = tuple(dict.fromkeys(FOLDERS.values()))

    def site(self, slot: Slot) -> str:
        """The six names, then ``SITE07`` and so on."""
        known = slot.hospital < len(self.sites)
        return self.sites[slot.hospital] if known else f"SITE{slot.hospital + 1:02d}"

    def files(self, slot: Slot, family: str) -> tuple[str, str]:
        """A folder for each site."""
        site, case = self.site(slot), self._case(slot)
        return f"{site}/{case}.nii.gz", f"{site}/{case}_{'S' if site == 'BMC' else 's'}egmentation.nii.gz"

    def _case(self, slot: Slot) -> str:
        real = _real_cases("prostate.csv", ("site", "split", "case"))
        return _pick(real, self.site(slot), slot, lambda: f"Case{50 + 2 * slot.position + (slot.side == 'test'):02d}")

    def mask(self, slot: Slot, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Zones at RUNMC and BMC, elsewhere 0 and 1."""
        return label if self.site(slot) in ("RUNMC", "BMC") else (label > 0).astype(np.uint8)

    def grid(self, slot: Slot, file: Any) -> Any:
        """Columns first, as files written by ITK have them; slices last and upwards."""
        return _reoriented(file, "LPS")

    def tables(self, slots: Sequence[Slot], family: str) -> Mapping[str, str]:
        """The test cases; all others train."""
        rows = [(self.site(slot), self._case(slot)) for slot in slots if slot.side == "test"]
        return {"test_cases.csv": _csv(("site", "case"), rows)}


LAYOUTS: Mapping[Name, Layout] = {
    "msd": MsdLayout(),
    "fed_kits19": FedKits19Layout(),
    "fed_ixi": FedIxiLayout(),
    "prostate": ProstateLayout(),
}


def write_case(
    layout: Layout, folder: Path, slot: Slot, family: str, volume: tuple[NDArray[Any], NDArray[np.uint8]], affine: Array
) -> None:
    """Writes image and mask.

    Args:
        layout: Gives names, axes and shape.
        folder: Of the federation.
        slot: Which case it is.
        family: A key of ``FAMILIES``.
        volume: Image and labels, (S, H, W) each, the image in its stored dtype.
        affine: (4, 4), of (row, column, slice).
    """
    image, label = volume
    for name, array in zip(layout.files(slot, family), (image, layout.mask(slot, label)), strict=True):
        file = layout.grid(slot, nifti_image(np.moveaxis(array, 0, 2), affine))
        file.header["xyzt_units"] = 2  # millimetres
        write_nifti(folder / name, file)


def write_tables(layout: Layout, folder: Path, slots: Sequence[Slot], family: str) -> None:
    """Writes the tables beside the cases."""
    for name, text in layout.tables(slots, family).items():
        (folder / name).write_text(text, encoding="utf-8")


def _reoriented(file: Any, axes: str) -> Any:
    """The same image with the array's axes in another order and direction; its affine says so.

    Args:
        file: A nibabel image with rows to the back, columns to the left and slices up.
        axes: Where the axes shall lead, in nibabel's letters: P to the back, L to the left, S up, I down.
    """
    tools: Any = nib.orientations  # typed in part only
    start, end = tools.axcodes2ornt("PLS"), tools.axcodes2ornt(axes)
    return file.as_reoriented(tools.ornt_transform(start, end))


@cache
def _real_cases(table: str, columns: tuple[str, str, str]) -> dict[tuple[str, str], list[str]]:
    """The cases of a packaged table by site and side; ``columns`` are site, side, case."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in read_rows(packaged(table), columns):
        cases.setdefault((row[columns[0]], row[columns[1]]), []).append(row[columns[2]])
    return cases


def _pick(real: Mapping[tuple[str, str], list[str]], site: str, slot: Slot, otherwise: Callable[[], str]) -> str:
    """The real collection's case at this place, or another name where it has not so many."""
    cases = real.get((site, slot.side), [])
    return cases[slot.position] if slot.position < len(cases) else otherwise()


def _pair(slot: Slot) -> int:
    """A number of its own for every case, whatever the number of hospitals (Cantor's pairing function)."""
    number = 2 * slot.position + (slot.side == "test")
    diagonal = slot.hospital + number
    return diagonal * (diagonal + 1) // 2 + number


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
