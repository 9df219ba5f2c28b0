"""Fed-KiTS19 on a generated tree: FLamby's split, the slice axis, the three windows, and what can be wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import trees

from wardround.datasets.contract import DataError, Pool
from wardround.datasets.fed_kits19 import SITE_WINDOWS, FedKits19
from wardround.datasets.nifti import write_label_map
from wardround.datasets.testing import check_dataset

TRAIN = {"site-0": 9, "site-1": 11, "site-2": 9, "site-3": 9, "site-4": 12, "site-5": 24}
TEST = {"site-0": 3, "site-1": 3, "site-2": 3, "site-3": 3, "site-4": 4, "site-5": 6}

HEADER = ("case_ids", "site_ids", "train_test_split")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Six cases at three sites with a table of their own."""
    cases = [f"case_{number:05d}" for number in range(6)]
    trees.kits_tree(tmp_path, cases)
    write_table(tmp_path, [(case, i % 3, "test" if i > 2 else "train") for i, case in enumerate(cases)])
    return tmp_path


def write_table(root: Path, rows: list[tuple[object, ...]]) -> None:
    trees.write_table(root / "thresholded_sites.csv", HEADER, rows)


def counts(pool: Pool, side: str) -> dict[str | None, int]:
    return Counter(case.site for case in pool.cases if case.side == side)


def test_flambys_split(tmp_path: Path) -> None:
    root = trees.kits_tree(tmp_path)
    pool = check_dataset(FedKits19(), root)
    assert (counts(pool, "train"), counts(pool, "test")) == (TRAIN, TEST)
    assert len(pool.cases) == 96  # of 98 in the folder
    assert pool.classes == ("kidney", "tumour")
    case = next(case for case in pool.cases if case.name == "case_00198")
    assert (case.patient, case.site, case.side) == ("case_00198", "site-1", "test")
    assert case.image == root / "data" / "case_00198" / "imaging.nii.gz"
    assert case.label == root / "data" / "case_00198" / "segmentation.nii.gz"


def test_locate(small: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, bare = tmp_path_factory.mktemp("parent"), tmp_path_factory.mktemp("bare")
    (parent / "KiTS19").symlink_to(small)
    trees.kits_case(bare / "case_00021")
    assert FedKits19().locate(small) == small
    assert FedKits19().locate(small / "data") == small / "data"
    assert FedKits19().locate(bare) == bare
    assert FedKits19().locate(parent) == parent / "KiTS19"
    monkeypatch.setenv("WARDROUND_DATA", str(parent))
    assert FedKits19().locate(None) == parent / "KiTS19"


def test_locate_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARDROUND_DATA", raising=False)
    with pytest.raises(ValueError, match=r"no folder given.*WARDROUND_DATA.*github.com/neheller/kits19"):
        FedKits19().locate(None)
    with pytest.raises(ValueError, match=r"expected KiTS19's data/case_00000/imaging.nii.gz.*found neither.*neheller"):
        FedKits19().locate(tmp_path)
    with pytest.raises(ValueError, match="nowhere: expected a folder"):
        FedKits19().locate(tmp_path / "nowhere")
    for name in ("kits19", "Fed-KiTS19"):
        trees.kits_case(tmp_path / name / "data" / "case_00000")
    with pytest.raises(ValueError, match="found Fed-KiTS19 and kits19; name the one to read"):
        FedKits19().locate(tmp_path)


def test_slices_come_first_and_sizes_may_be_odd(small: Path) -> None:
    case = FedKits19().pool(small).cases[1]
    trees.kits_case(case.image.parent, shape=(5, 12, 17), spacing=(3.0, 0.9, 0.7), dtype="int16")
    volume = FedKits19(clip="own").volume(case)
    assert volume.image.shape == (5, 12, 17)
    assert volume.spacing_mm == pytest.approx((3.0, 0.9, 0.7))
    assert volume.slice_axis == 0
    assert volume.image[:, 0, 0].tolist() == list(trees.KITS_HU)
    assert np.unique(volume.label[2]).tolist() == [0, 1, 2]
    assert not volume.label[0].any()


@pytest.mark.parametrize(
    ("clip", "expected"),
    [("site", [-77, -20, 60, 140, 320]), ("common", [-79, -20, 60, 140, 304]), ("own", [-100, -20, 60, 140, 320])],
)
def test_clip(small: Path, clip: str, expected: list[float]) -> None:
    """Slices of -100, -20, 60, 140 and 320 HU at site 1 (window -77 to 341), and one voxel of -1000."""
    case = FedKits19().pool(small).cases[1]
    assert case.site == "site-1"
    image, _ = trees.kits_arrays()
    image[0, 0, 0] = -1000
    trees.write_nifti(case.image, image, trees.kits_affine())
    volume = FedKits19(clip=clip).volume(case)
    assert volume.image[:, 1, 1].tolist() == expected
    assert volume.image.min() == min(expected)


def test_every_site_has_the_window_of_the_papers_code(small: Path) -> None:
    case = FedKits19().pool(small).cases[0]
    low = {"site-0": -66, "site-1": -77, "site-2": -89, "site-3": -64, "site-4": -64, "site-5": -82}
    high = {"site-0": 208, "site-1": 341, "site-2": 325, "site-3": 202, "site-4": 236, "site-5": 288}
    assert {site: window[0] for site, window in SITE_WINDOWS.items()} == low
    assert {site: window[1] for site, window in SITE_WINDOWS.items()} == high
    volume = FedKits19().volume(replace(case, site="site-3"))
    assert (volume.image.min(), volume.image.max()) == (-64, 202)


def test_sites_without_a_window_are_refused(small: Path) -> None:
    rows = [(f"case_{number:05d}", "north" if number else 17, "train") for number in range(6)]
    write_table(small, rows)
    pool = FedKits19().pool(small)
    assert {case.site for case in pool.cases} == {"site-17", "north"}
    assert len(pool.problems) == 2
    assert all("set data.clip to common or own" in problem for problem in pool.problems)
    assert not FedKits19(clip="common").pool(small).problems
    with pytest.raises(DataError, match=r"case_00001: expected one of the sites site-0.*got 'north'; set data.clip"):
        FedKits19().volume(pool.cases[1])


def test_an_image_without_a_mask_needs_a_site_where_sites_have_windows(small: Path) -> None:
    case = FedKits19().pool(small).cases[0]
    with pytest.raises(DataError, match=r"expected an image of one of the sites site-0, .*got None; name the hospital"):
        FedKits19().open_image(case.image)
    clipped = FedKits19().open_image(case.image, site="site-4")().image
    assert (clipped.min(), clipped.max()) >= (-64, 0)
    assert clipped.max() <= 236
    for clip in ("own", "common"):
        kits = FedKits19(clip=clip)  # type: ignore[arg-type]
        np.testing.assert_array_equal(kits.open_image(case.image)().image, kits.volume(case).image)


def test_numbers_of_sites_sort(small: Path) -> None:
    write_table(small, [(f"case_{number:05d}", 2 * number, "train") for number in range(6)])
    pool = FedKits19(clip="own").pool(small)
    assert [case.site for case in pool.cases] == ["site-00", "site-02", "site-04", "site-06", "site-08", "site-10"]


def test_without_data_and_without_gz(tmp_path: Path) -> None:
    trees.kits_case(tmp_path / "case_00000", suffix=".nii", dtype="float32")
    trees.kits_case(tmp_path / "data" / "case_00001")
    write_table(tmp_path, [("case_00000", 0, "train"), ("case_00001", 0, "test")])
    pool = check_dataset(FedKits19(), tmp_path, volumes_per_site=2)
    assert [case.image.relative_to(tmp_path).as_posix() for case in pool.cases] == [
        "case_00000/imaging.nii",
        "data/case_00001/imaging.nii.gz",
    ]


def test_missing_files(small: Path) -> None:
    (small / "data" / "case_00001" / "imaging.nii.gz").unlink()
    (small / "data" / "case_00002" / "segmentation.nii.gz").unlink()
    for file in (small / "data" / "case_00003").iterdir():
        file.unlink()
    pool = FedKits19().pool(small)
    assert [case.name for case in pool.cases] == ["case_00000", "case_00004", "case_00005"]
    first, second, third = pool.problems
    assert first.startswith(f"{small / 'data' / 'case_00001' / 'imaging.nii.gz'}: missing (a case of thresholded_sites")
    assert second.startswith(f"{small / 'data' / 'case_00002' / 'segmentation.nii.gz'}: missing (")
    assert third.startswith(f"{small / 'data' / 'case_00003' / 'imaging.nii.gz'}: missing and so is its mask")
    skipped = FedKits19(missing="skip").pool(small)
    assert (skipped.cases, skipped.problems) == (pool.cases, ())


def test_twice(small: Path) -> None:
    trees.kits_case(small / "case_00000")
    (small / "data" / "case_00001" / "imaging.nii").write_bytes(b"")
    pool = FedKits19(missing="skip").pool(small)
    assert len(pool.problems) == 3
    assert all("expected one file for" in problem for problem in pool.problems)
    assert [case.name for case in pool.cases] == [f"case_{number:05d}" for number in range(2, 6)]


def test_a_table_that_contradicts_itself(small: Path) -> None:
    rows = [
        ("case_00000", 0, "train"),
        ("case_00000", 1, "test"),
        ("case_00001", "", "train"),
        ("case_00002", 0, "val"),
    ]
    write_table(small, rows)
    text = "\n".join(FedKits19().pool(small).problems)
    assert "case_ids case_00000 has 2 rows" in text
    assert "case case_00001: expected a site, got none" in text
    assert "case case_00002: expected train_test_split train or test, got 'val'" in text


def test_nothing_there(tmp_path: Path) -> None:
    write_table(tmp_path, [("case_00000", 0, "train")])
    with pytest.raises(DataError, match=r"case_00000/imaging.nii.gz: missing"):
        FedKits19().pool(tmp_path)
    with pytest.raises(DataError, match="none of the listed cases"):
        FedKits19(missing="skip").pool(tmp_path)
    (tmp_path / "thresholded_sites.csv").write_text("case,site\n")
    with pytest.raises(ValueError, match="expected the columns case_ids,site_ids,train_test_split"):
        FedKits19().pool(tmp_path)


def test_predictions_land_on_the_grid_of_the_file(small: Path, tmp_path: Path) -> None:
    case = FedKits19().pool(small).cases[0]
    volume = FedKits19().volume(case)
    write_label_map(tmp_path / "back.nii.gz", volume.label, like=case.image, slice_axis=volume.slice_axis)
    back, original = nib.load(tmp_path / "back.nii.gz"), nib.load(case.label)
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(original.dataobj))
    np.testing.assert_array_equal(back.affine, original.affine)


def test_settings() -> None:
    with pytest.raises(ValueError, match=r"clip: expected site, common or own, got 'x'; missing: expected refuse"):
        FedKits19(clip="x", missing="y")  # type: ignore[arg-type]
