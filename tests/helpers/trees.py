"""Folders with the names, axis order, data types and oddities of the real federations, and tiny arrays."""

from __future__ import annotations

import csv
import functools
import gzip
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

DATASETS = Path(__file__).resolve().parents[2] / "datasets"

KITS_SHAPE = (5, 12, 12)
KITS_SPACING = (5.0, 0.8, 0.8)
KITS_HU = (-100.0, -20.0, 60.0, 140.0, 320.0)
"""Intensity of each of the five slices of a KiTS case."""

IXI_SHAPE = (8, 4, 6)
IXI_SPACING = (2.18, 4.13, 3.95)
PROSTATE_SHAPE = (12, 10, 3)
PROSTATE_SPACING = (0.6, 0.6, 3.6)

HARMOFL = {"RUNMC": "ISBI", "BMC": "ISBI_1.5"}


def packaged_rows(name: str) -> list[dict[str, str]]:
    """The rows of a table that ships with the package, read without the package."""
    with (DATASETS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_nifti(path: Path, array: NDArray, affine: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(array, affine, compressed=path.suffix == ".gz"))


def content(array: NDArray, affine: NDArray, *, compressed: bool = True) -> bytes:
    file = nib.Nifti1Image(array, affine)
    file.header.set_xyzt_units("mm")
    return gzip.compress(file.to_bytes(), compresslevel=1) if compressed else file.to_bytes()


def oblique(spacing: Sequence[float], degrees: float = 20.0) -> NDArray[np.float64]:
    """An affine with these spacings whose first two axes are tilted against the scanner's."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * np.asarray(spacing)
    affine[:3, 3] = (-11.5, 7.25, 3.0)
    return affine


def kits_affine(spacing: Sequence[float] = KITS_SPACING) -> NDArray[np.float64]:
    """KiTS19 stores (slices, rows, columns): the first axis of the array is the scanner's last."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = (-step for step in spacing)
    affine[3, 3] = 1
    return affine


def kits_arrays(shape: Sequence[int] = KITS_SHAPE, dtype: str = "float64") -> tuple[NDArray, NDArray]:
    """A constant slice for each of :data:`KITS_HU`; a kidney from the second slice on, a tumour in the third."""
    image = np.broadcast_to(np.reshape(KITS_HU, (-1, 1, 1)), shape).astype(dtype)
    label = np.zeros(shape, np.uint8)
    label[1:, 2:6, 2:6] = 1
    label[2, 3:5, 3:5] = 2
    return image, label


def kits_case(folder: Path, *, suffix: str = ".nii.gz", shape: Sequence[int] = KITS_SHAPE, **options: object) -> None:
    """One case folder. Options: ``spacing``; ``dtype`` of the image."""
    affine = kits_affine(options.pop("spacing", KITS_SPACING))
    for kind, array in zip(("imaging", "segmentation"), kits_arrays(shape, **options), strict=True):
        write_nifti(folder / f"{kind}{suffix}", array, affine)


@functools.cache
def _kits_template() -> tuple[bytes, bytes]:
    image, label = kits_arrays()
    return content(image, kits_affine()), content(label, kits_affine())


def kits_tree(root: Path, cases: Iterable[str] | None = None) -> Path:
    """``data/case_00000/...``: these cases, or the 96 and some more of the 210."""
    if cases is None:
        cases = [*(row["case_ids"] for row in packaged_rows("fed_kits19.csv")), "case_00004", "case_00006"]
    for case in cases:
        _write_pair(
            root / "data" / case / "imaging.nii.gz", root / "data" / case / "segmentation.nii.gz", _kits_template()
        )
    return root


def _write_pair(image: Path, label: Path, template: tuple[bytes, bytes]) -> None:
    for path, data in zip((image, label), template, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def ixi_affine() -> NDArray[np.float64]:
    """The first axis of IXI Tiny goes from feet to head, the second from left to right, the third to the front."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2] = IXI_SPACING
    affine[3, 3] = 1
    return affine


def ixi_arrays() -> tuple[NDArray, NDArray]:
    image = np.arange(np.prod(IXI_SHAPE), dtype=np.float32).reshape(IXI_SHAPE)
    label = np.zeros(IXI_SHAPE, np.uint8)
    label[2:6, 1:3, 1:5] = 1
    return image, label


@functools.cache
def _ixi_template() -> tuple[bytes, bytes]:
    image, label = ixi_arrays()
    return content(image, ixi_affine()), content(label, ixi_affine())


def ixi_subjects() -> list[str]:
    """The 566 subjects; the last field of a name is made up."""
    hospitals = {"0": "Guys", "1": "HH", "2": "IOP"}
    rows = packaged_rows("fed_ixi.csv")
    return [f"IXI{int(r['Patient ID']):03d}-{hospitals[r['Manufacturer']]}-{i:04d}" for i, r in enumerate(rows, 700)]


def ixi_tree(root: Path, subjects: Iterable[str] | None = None, layout: str = "torchio") -> Path:
    """Both layouts of IXI Tiny: these subjects, or all 566."""
    for subject in ixi_subjects() if subjects is None else subjects:
        if layout == "torchio":
            image, label = root / "image", root / "label"
        else:
            folder = root / "7kd5wj7v7p-3" / "IXI_sample" / subject
            image, label = folder / "T1", folder / "label"
        _write_pair(image / f"{subject}_image.nii.gz", label / f"{subject}_label.nii.gz", _ixi_template())
    return root


def prostate_arrays(site: str) -> tuple[NDArray, NDArray]:
    """Ramps, float32 or int16; two zones (1, 2) at RUNMC and BMC, one label (1) elsewhere, of several data types."""
    image = np.arange(np.prod(PROSTATE_SHAPE)).reshape(PROSTATE_SHAPE).astype("int16" if site == "UCL" else "float32")
    label = np.zeros(PROSTATE_SHAPE, {"UCL": "int16", "HK": "float32"}.get(site, "uint8"))
    label[3:9, 2:8, 1:] = 1
    if site in HARMOFL:
        label[5:7, 4:6, 1:] = 2
    return image, label


@functools.cache
def _prostate_template(site: str) -> tuple[bytes, bytes]:
    image, label = prostate_arrays(site)
    affine = oblique(PROSTATE_SPACING)
    return content(image, affine), content(label, affine)


def prostate_cases() -> dict[str, list[str]]:
    """The 116 cases by site; BIDMC has no Case01."""
    cases: dict[str, list[str]] = {}
    for row in packaged_rows("prostate.csv"):
        cases.setdefault(row["site"], []).append(row["case"])
    return cases


def prostate_tree(root: Path, cases: Mapping[str, Sequence[str]] | None = None, names: Mapping[str, str] = {}) -> Path:
    """Site folders: these cases, or all 116. BMC writes ``_Segmentation``.

    Args:
        root: The folder.
        cases: Names of the cases of each site.
        names: What the folder of a site is called, where it is not the site's name (:data:`HARMOFL`).
    """
    for site, members in (prostate_cases() if cases is None else cases).items():
        suffix = "Segmentation" if site == "BMC" else "segmentation"
        folder = root / names.get(site, site)
        for case in members:
            _write_pair(folder / f"{case}.nii.gz", folder / f"{case}_{suffix}.nii.gz", _prostate_template(site))
    return root
