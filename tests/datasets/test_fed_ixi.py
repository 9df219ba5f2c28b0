"""Fed-IXI on generated trees of both layouts: FLamby's split, hospitals by name, and what can be wrong."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import trees

from wardround.datasets.contract import DataError, Pool
from wardround.datasets.fed_ixi import FedIxi
from wardround.datasets.nifti import write_label_map
from wardround.datasets.testing import check_dataset

TRAIN = {"Guys": 249, "HH": 145, "IOP": 59}
TEST = {"Guys": 62, "HH": 36, "IOP": 15}

SUBJECTS = ["IXI002-Guys-0828", "IXI012-HH-1211", "IXI035-IOP-0873", "IXI013-HH-1212"]
ROWS = [(2, 0, "test"), (12, 1, "train"), (35, 2, "train"), (13, 1, "test")]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Four subjects in TorchIO's layout with a table of their own."""
    write_table(tmp_path, ROWS)
    return trees.ixi_tree(tmp_path, SUBJECTS)


def write_table(root: Path, rows: list[tuple[object, ...]], *more: str) -> None:
    trees.write_table(root / "metadata_tiny.csv", ("Patient ID", "Manufacturer", "Split", *more), rows)


def counts(pool: Pool, side: str) -> dict[str | None, int]:
    return Counter(case.site for case in pool.cases if case.side == side)


def test_flambys_split(tmp_path: Path) -> None:
    pool = check_dataset(FedIxi(), trees.ixi_tree(tmp_path))
    assert (counts(pool, "train"), counts(pool, "test")) == (TRAIN, TEST)
    assert len({case.patient for case in pool.cases}) == len(pool.cases) == 566
    assert pool.classes == ("brain",)


@pytest.mark.parametrize("layout", ["torchio", "flamby"])
def test_names(tmp_path: Path, layout: str) -> None:
    write_table(tmp_path, ROWS)
    pool = check_dataset(FedIxi(), trees.ixi_tree(tmp_path, SUBJECTS, layout))
    assert [case.name for case in pool.cases] == sorted(SUBJECTS)
    assert [case.patient for case in pool.cases] == ["IXI002", "IXI012", "IXI013", "IXI035"]
    assert [case.site for case in pool.cases] == ["Guys", "HH", "HH", "IOP"]
    assert [case.side for case in pool.cases] == ["test", "train", "test", "train"]
    folder = Path("7kd5wj7v7p-3", "IXI_sample", "IXI002-Guys-0828")
    image, label = (Path("image"), Path("label")) if layout == "torchio" else (folder / "T1", folder / "label")
    assert pool.cases[0].image == tmp_path / image / "IXI002-Guys-0828_image.nii.gz"
    assert pool.cases[0].label == tmp_path / label / "IXI002-Guys-0828_label.nii.gz"


def test_locate(small: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, flamby = tmp_path_factory.mktemp("parent"), tmp_path_factory.mktemp("flamby")
    (parent / "IXITiny").symlink_to(small)
    trees.ixi_tree(flamby, SUBJECTS, layout="flamby")
    assert FedIxi().locate(small) == small
    for folder in (flamby, flamby / "7kd5wj7v7p-3", flamby / "7kd5wj7v7p-3" / "IXI_sample"):
        assert FedIxi().locate(folder) == folder
        assert len(FedIxi(missing="skip").pool(folder).cases) == 4
    monkeypatch.setenv("WARDROUND_DATA", str(parent))
    assert FedIxi().locate(None) == parent / "IXITiny"
    with pytest.raises(ValueError, match=r"expected IXI Tiny \(image/ and label/, or 7kd5wj7v7p-3.*TorchIO's IXITiny"):
        FedIxi().locate(small / "image")


def test_axial_slices_and_another_axis(small: Path) -> None:
    image, label = trees.ixi_arrays()
    case = FedIxi().pool(small).cases[0]
    volume = FedIxi().volume(case)
    np.testing.assert_array_equal(volume.image, image)
    np.testing.assert_array_equal(volume.label, label)
    assert volume.spacing_mm == pytest.approx(trees.IXI_SPACING)
    other = FedIxi(slice_axis=2).volume(case)
    np.testing.assert_array_equal(other.image, np.moveaxis(image, 2, 0))
    assert (other.slice_axis, other.spacing_mm) == (2, pytest.approx((3.95, 2.18, 4.13)))


def test_extra_subjects_take_no_part(small: Path) -> None:
    trees.ixi_tree(small, ["IXI600-Guys-0001"])
    (small / "image" / "._IXI002-Guys-0828_image.nii.gz").write_bytes(b"resource fork")
    (small / "image" / "IXI002-Guys-0828_image.txt").write_text("notes")
    pool = FedIxi().pool(small)
    assert (len(pool.cases), pool.problems) == (4, ())


def test_missing_files(small: Path) -> None:
    (small / "image" / "IXI012-HH-1211_image.nii.gz").unlink()
    (small / "label" / "IXI035-IOP-0873_label.nii.gz").unlink()
    write_table(small, [*ROWS, (14, 1, "train")])
    pool = FedIxi().pool(small)
    assert [case.patient for case in pool.cases] == ["IXI002", "IXI013"]
    first, second, third = pool.problems
    assert first.startswith(f"{small / 'IXI012-*_image.nii.gz'}: missing (a subject of metadata_tiny.csv)")
    assert second.startswith(f"{small / 'IXI035-*_label.nii.gz'}: missing (")
    assert third.startswith(f"{small / 'IXI014-*_image.nii.gz'}: missing and so is its mask")
    skipped = FedIxi(missing="skip").pool(small)
    assert (skipped.cases, skipped.problems) == (pool.cases, ())


def test_two_files_for_a_subject(small: Path) -> None:
    trees.ixi_tree(small, ["IXI012-HH-1211"], layout="flamby")
    trees.ixi_tree(small, ["IXI035-Guys-0001"])
    pool = FedIxi().pool(small)
    assert len(pool.cases) == 2
    assert len(pool.problems) == 4  # image and label of two subjects
    assert all("expected one file for IXI0" in problem for problem in pool.problems)


def test_image_and_label_of_two_subjects(small: Path) -> None:
    label = small / "label" / "IXI012-HH-1211_label.nii.gz"
    label.rename(label.with_name("IXI012-HH-9999_label.nii.gz"))
    (problem,) = FedIxi().pool(small).problems
    assert "IXI012-HH-9999_label.nii.gz: expected the label of IXI012-HH-1211" in problem


def test_table_and_names_disagree(small: Path) -> None:
    write_table(small, [(2, 1, "test"), *ROWS[1:]])
    (problem,) = FedIxi().pool(small).problems
    assert "expected the hospital of metadata_tiny.csv (Manufacturer 1, which is HH), got Guys in its name" in problem
    write_table(small, [(*row, site) for row, site in zip(ROWS, ("Guys", "HH", "North", "HH"), strict=True)], "Site")
    (problem,) = FedIxi().pool(small).problems
    assert "(Site North), got IOP in its name" in problem


def test_hospitals_of_your_own(tmp_path: Path) -> None:
    sites = [f"ward{number:02d}" for number in range(12)]
    trees.ixi_tree(tmp_path, [f"IXI{i + 1:03d}-{site}-0000" for i, site in enumerate(sites)])
    write_table(tmp_path, [(f"{i + 1:03d}", i, "train", site) for i, site in enumerate(sites)], "Site")
    pool = check_dataset(FedIxi(), tmp_path)
    assert [case.site for case in pool.cases] == sites


def test_a_table_that_contradicts_itself(small: Path) -> None:
    write_table(small, [*ROWS, ("002", 0, "train"), ("two", 0, "train"), (600, 0, "validate")])
    text = "\n".join(FedIxi(missing="skip").pool(small).problems)
    assert "Patient ID 2 has 2 rows" in text
    assert "expected a number as Patient ID, got 'two'" in text
    assert "patient 600: expected Split train or test, got 'validate'" in text


def test_nothing_there(small: Path) -> None:
    shutil.rmtree(small / "image")
    with pytest.raises(DataError, match=r"4 problems:\n  .*IXI002-\*_image.nii.gz: missing"):
        FedIxi().pool(small)


def test_predictions_land_on_the_grid_of_the_file(small: Path, tmp_path: Path) -> None:
    case = FedIxi().pool(small).cases[0]
    for axis in (0, 1, 2):
        volume = FedIxi(slice_axis=axis).volume(case)
        write_label_map(tmp_path / "back.nii", volume.label, like=case.image, slice_axis=volume.slice_axis)
        back, original = nib.load(tmp_path / "back.nii"), nib.load(case.label)
        np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(original.dataobj))
        np.testing.assert_array_equal(back.affine, original.affine)


def test_settings() -> None:
    with pytest.raises(ValueError, match=r"slice_axis: expected 0, 1 or 2, got 3; missing: expected refuse or skip"):
        FedIxi(slice_axis=3, missing="y")  # type: ignore[arg-type]
