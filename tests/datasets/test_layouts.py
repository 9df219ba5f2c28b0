"""The layouts of phantoms: real names, axes, tables and oddities, read back by the loaders of the real collections."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest

from wardround.datasets.contract import Dataset
from wardround.datasets.fed_ixi import FedIxi
from wardround.datasets.fed_kits19 import FedKits19
from wardround.datasets.layouts import LAYOUTS, Name, Slot
from wardround.datasets.msd import Msd
from wardround.datasets.phantom import Phantom, slots_of
from wardround.datasets.prostate import Prostate
from wardround.datasets.testing import check_dataset
from wardround.simulator import cli

LOADERS: dict[str, Dataset] = {
    "msd": Msd(),
    "fed_kits19": FedKits19(clip="common"),
    "fed_ixi": FedIxi(),
    "prostate": Prostate(),
}
SITES = {
    "msd": [f"hospital-{number}" for number in range(1, 8)],
    "fed_kits19": [f"site-{number}" for number in range(7)],
    "fed_ixi": ["Guys", "HH", "IOP", "SITE04", "SITE05", "SITE06", "SITE07"],
    "prostate": ["RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK", "SITE07"],
}


def phantom(layout: str, **changes: object) -> Phantom:
    settings = {"layout": layout, "hospitals": 7, "train_cases": 2, "test_cases": 1, "size": 32, "slices": 4}
    return Phantom(**{**settings, **changes})  # type: ignore[arg-type]  # a test's settings


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    cache = tmp_path_factory.mktemp("cache")
    return {layout: phantom(layout).locate(cache) for layout in LOADERS}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_layouts_are_named_alike_everywhere() -> None:
    """The command line has a list of its own, for it loads nothing heavy."""
    assert tuple(LAYOUTS) == get_args(Name) == tuple(LOADERS)
    assert (*LAYOUTS, "images") == cli.LAYOUTS  # phantoms of images have one layout


@pytest.mark.parametrize("layout", LOADERS)
def test_the_real_loader_reads_it(layout: str, folders: dict[str, Path]) -> None:
    loader, folder = LOADERS[layout], folders[layout]
    assert loader.locate(folder) == folder
    pool = check_dataset(loader, folder)
    assert pool == phantom(layout).pool(folder)
    counts = Counter((case.site, case.side) for case in pool.cases)
    assert counts == {(site, side): number for site in SITES[layout] for side, number in (("train", 2), ("test", 1))}


@pytest.mark.parametrize("layout", ["fed_kits19", "fed_ixi", "prostate"])
def test_axes_tell_where_the_target_lies(layout: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """The same subjects in the Decathlon's layout lie at the same place in space: header and array agree."""
    other = phantom("msd", family=LAYOUTS[layout].family, hospitals=3)  # type: ignore[index]
    root = other.locate(tmp_path)
    msd, here = LAYOUTS["msd"], LAYOUTS[layout]  # type: ignore[index]
    for slot in slots_of(other):
        middles = []
        for writer, folder in ((msd, root), (here, folders[layout])):
            file = nib.load(folder / writer.files(slot, other.family_name)[1])
            inside = np.argwhere(np.asarray(file.dataobj) > 0).mean(axis=0)
            middles.append((file.affine @ [*inside, 1])[:3])
        assert middles[0] == pytest.approx(middles[1], abs=1e-2)


def test_names_are_the_real_ones_as_long_as_there_are_enough() -> None:
    def name(layout: str, hospital: int, side: str, position: int) -> str:
        slot = Slot(hospital=hospital, hospitals=7, side=side, position=position)  # type: ignore[arg-type]
        return LAYOUTS[layout].files(slot, LAYOUTS[layout].family)[1]  # type: ignore[index]

    assert name("fed_kits19", 0, "train", 0) == "data/case_00021/segmentation.nii.gz"
    assert name("fed_kits19", 1, "test", 2) == "data/case_00198/segmentation.nii.gz"
    assert name("fed_ixi", 0, "test", 0) == "label/IXI002-Guys-0828_label.nii.gz"
    assert name("fed_ixi", 1, "test", 0) == "label/IXI012-HH-0838_label.nii.gz"
    assert name("prostate", 1, "train", 1) == "BMC/Case01_Segmentation.nii.gz"
    assert [name("prostate", 4, "train", i) for i in (0, 1)] == [
        f"BIDMC/Case{number}_segmentation.nii.gz" for number in ("02", "03")
    ]
    assert name("prostate", 4, "test", 0) == "BIDMC/Case00_segmentation.nii.gz"
    assert name("prostate", 5, "test", 0) == "HK/Case38_segmentation.nii.gz"
    assert name("prostate", 6, "train", 0) == "SITE07/Case50_segmentation.nii.gz"
    assert name("fed_kits19", 6, "train", 0) == "data/case_00321/segmentation.nii.gz"  # 300 + 6 * 7 / 2


@pytest.mark.parametrize("layout", LOADERS)
def test_every_case_has_a_name_of_its_own(layout: str) -> None:
    slots = slots_of(Phantom(layout=layout, hospitals=12, train_cases=40, test_cases=30))  # type: ignore[arg-type]
    files = [LAYOUTS[layout].files(slot, LAYOUTS[layout].family) for slot in slots]  # type: ignore[index]
    assert len({image for image, _ in files}) == len({label for _, label in files}) == len(slots) == 12 * 70
    if layout == "fed_ixi":
        assert len({image.split("-")[0] for image, _ in files}) == len(slots)  # patients


@pytest.mark.parametrize("layout", ["fed_kits19", "fed_ixi", "prostate"])
def test_a_further_hospital_leaves_the_files_of_the_others(
    layout: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    fewer = phantom(layout, hospitals=3, train_cases=1).locate(tmp_path)
    scans = sorted(path.relative_to(fewer) for path in fewer.rglob("*.nii.gz"))
    assert len(scans) == 3 * 2 * 2
    assert all((fewer / path).read_bytes() == (folders[layout] / path).read_bytes() for path in scans)


def test_kits_has_slices_first_in_hounsfield_units_and_one_case_that_is_not_square(folders: dict[str, Path]) -> None:
    root = folders["fed_kits19"]
    by_site: dict[str, list[str]] = {}
    for row in rows(root / "thresholded_sites.csv"):
        by_site.setdefault(row["site_ids"], []).append(row["case_ids"])
    files = {site: nib.load(root / "data" / cases[0] / "imaging.nii.gz") for site, cases in by_site.items()}
    assert [files[str(n)].header.get_zooms()[0] for n in range(6)] == [5.0, 2.5, 1.0, 3.0, 5.0, 0.5]
    assert [files[str(n)].shape for n in (0, 1, 5)] == [(4, 32, 32), (5, 28, 32), (8, 32, 32)]
    assert {file.get_data_dtype().name for file in files.values()} == {"int16", "float32"}
    for file in files.values():
        assert nib.aff2axcodes(file.affine) == ("I", "P", "L")
        hu = np.asarray(file.dataobj)
        assert -1024 <= hu.min() < -900
        assert 150 < hu.max() < 1100
        assert (np.abs(hu + 100) < 60).mean() > 0.03  # fat
        assert (np.abs(hu - 60) < 60).mean() > 0.10  # soft tissue
    labels = [nib.load(path).dataobj for path in root.glob("data/*/segmentation.nii.gz")]
    assert all(set(np.unique(label)) == {0, 1, 2} for label in labels)


def test_kidney_is_brighter_where_there_is_more_contrast_agent(tmp_path: Path) -> None:
    """The kinds take doses of 1.00 and 0.50: cortex and medulla at about 180 and 110 HU."""
    root = phantom("fed_kits19", hospitals=5, train_cases=1, noise=0.0, shift=0.0, size=64).locate(tmp_path)
    pool = FedKits19(clip="own").pool(root)
    means = {}
    for case in pool.cases:
        volume = FedKits19(clip="own").volume(case)
        means.setdefault(case.site, []).append(float(np.median(volume.image[volume.label == 1])))
    assert 130 < np.mean(means["site-0"]) < 210
    assert 60 < np.mean(means["site-4"]) < 130


def test_ixi_names_the_hospitals_that_flamby_does_not_know(folders: dict[str, Path], tmp_path: Path) -> None:
    table = rows(folders["fed_ixi"] / "metadata_tiny.csv")
    assert {(row["Manufacturer"], row["Site"]) for row in table} == {
        (str(number), site) for number, site in enumerate(SITES["fed_ixi"])
    }
    three = phantom("fed_ixi", hospitals=3, train_cases=1).locate(tmp_path)
    assert list(rows(three / "metadata_tiny.csv")[0]) == ["Patient ID", "Manufacturer", "Split"]
    file = nib.load(three / "image" / "IXI002-Guys-0828_image.nii.gz")
    assert file.shape == (4, 32, 32)
    assert nib.aff2axcodes(file.affine)[0] == "S"


def test_prostate_sites_differ_in_labels_dtypes_and_angle(folders: dict[str, Path]) -> None:
    root = folders["prostate"]
    found = {}
    for site in SITES["prostate"]:
        labels = [nib.load(path).dataobj for path in root.glob(f"{site}/*egmentation.nii.gz")]
        found[site] = {int(value) for label in labels for value in np.unique(label)}
    assert {site for site, values in found.items() if values == {0, 1, 2}} == {"RUNMC", "BMC"}
    assert {site for site, values in found.items() if values == {0, 1}} == set(SITES["prostate"]) - {"RUNMC", "BMC"}
    assert not list(root.glob("BMC/*_segmentation*"))
    images = [nib.load(next(path for path in sorted((root / s).iterdir()) if "eg" not in path.name)) for s in found]
    assert {image.get_data_dtype().name for image in images} == {"uint8", "float32"}
    assert all(np.abs(image.affine[1, 2]) > 1e-3 for image in images)  # oblique
    assert {row["site"] for row in rows(root / "test_cases.csv")} == set(SITES["prostate"])


def test_a_layout_with_one_class_merges_those_of_the_family(tmp_path: Path) -> None:
    made = phantom("fed_ixi", family="brain_mr", hospitals=1)
    root = made.locate(tmp_path)
    assert made.pool(root).classes == ("brain",)
    assert all(made.volume(case).label.max() == 1 for case in made.pool(root).cases)
