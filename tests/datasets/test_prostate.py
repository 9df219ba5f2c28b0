"""The six-site prostate collection on generated trees: both vocabularies, merged labels, and what can be wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import trees

from wardround.datasets.contract import Case, DataError, Pool
from wardround.datasets.nifti import write_label_map
from wardround.datasets.prostate import Prostate
from wardround.datasets.testing import check_dataset

CASES = {"RUNMC": 30, "BMC": 30, "I2CVB": 19, "UCL": 13, "BIDMC": 12, "HK": 12}
TEST = {
    "RUNMC": {3, 8, 12, 15, 18, 26},
    "BMC": {3, 8, 12, 15, 18, 26},
    "I2CVB": {3, 8, 13, 15},
    "UCL": {1, 32, 34},
    "BIDMC": {0, 4, 9},
    "HK": {38, 41, 46},
}


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return trees.prostate_tree(tmp_path)


@pytest.fixture
def one_each(tmp_path: Path) -> list[Case]:
    """The first case of each site."""
    trees.prostate_tree(tmp_path, {site: cases[:1] for site, cases in trees.prostate_cases().items()})
    return list(Prostate(missing="skip").pool(tmp_path).cases)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two sites of the collection and one of another name, with a table of their own."""
    write_table(tmp_path, [("BMC", "Case01"), ("north", 7)])
    cases = {"BMC": ["Case00", "Case01"], "UCL": ["Case01", "Case26"], "north": ["Case07", "Case08"]}
    return trees.prostate_tree(tmp_path, cases)


def write_table(root: Path, rows: list[tuple[object, ...]]) -> None:
    trees.write_table(root / "test_cases.csv", ("site", "case"), rows)


def numbers_of_test_cases(pool: Pool) -> dict[str | None, set[int]]:
    numbers: dict[str | None, set[int]] = {}
    for case in pool.cases:
        if case.side == "test":
            numbers.setdefault(case.site, set()).add(int(case.name[-2:]))
    return numbers


@pytest.mark.parametrize("names", [{}, trees.HARMOFL, {"BMC": "ISBI_1.5"}], ids=["saml", "harmofl", "mixed"])
def test_the_116_cases_in_both_vocabularies(tmp_path: Path, names: dict[str, str]) -> None:
    pool = check_dataset(Prostate(), trees.prostate_tree(tmp_path, names=names))
    assert Counter(case.site for case in pool.cases) == CASES
    assert numbers_of_test_cases(pool) == TEST
    assert {case.side for case in pool.cases} == {"train", "test"}
    assert pool.classes == ("prostate",)
    assert "BIDMC_Case01" not in {case.name for case in pool.cases}
    case = next(case for case in pool.cases if case.name == "BMC_Case03")
    assert case.patient == "BMC_Case03"
    assert case.image == tmp_path / names.get("BMC", "BMC") / "Case03.nii.gz"
    assert case.label.name == "Case03_Segmentation.nii.gz"


def test_locate(full: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = tmp_path_factory.mktemp("parent")
    (parent / "Processed_data_nii").symlink_to(full)
    assert Prostate().locate(full) == full
    assert Prostate().locate(parent) == parent / "Processed_data_nii"
    monkeypatch.setenv("WARDROUND_DATA", str(parent))
    assert Prostate().locate(None) == parent / "Processed_data_nii"
    with pytest.raises(ValueError, match=r"expected the site folders RUNMC, BMC.*https://liuquande.github.io/SAML"):
        Prostate().locate(full / "RUNMC")


@pytest.mark.parametrize("site", ["RUNMC", "UCL", "HK"])
def test_merged_labels_clipping_and_the_slice_axis(one_each: list[Case], site: str) -> None:
    """Labels of uint8 (0, 1, 2), int16 and float32 (0, 1); images of float32 and int16; an oblique affine."""
    (case,) = (case for case in one_each if case.site == site)
    image, label = trees.prostate_arrays(site)
    volume = Prostate().volume(case)
    assert volume.image.shape == (3, 12, 10)
    assert volume.spacing_mm == pytest.approx((3.6, 0.6, 0.6))
    assert volume.slice_axis == 2
    assert set(np.unique(label)) == ({0, 1, 2} if site == "RUNMC" else {0, 1})
    np.testing.assert_array_equal(volume.label, np.moveaxis(label > 0, 2, 0))
    # 360 voxels 0 to 359: the 99 % quantile is 0.99 * 359
    assert volume.image.max() == pytest.approx(355.41)
    assert volume.image.min() == 0
    np.testing.assert_array_equal(volume.image, np.moveaxis(np.clip(image, 0, 355.41).astype(np.float32), 2, 0))


def test_case_of_the_suffix_and_plain_nifti(full: Path) -> None:
    folder = full / "UCL"
    (folder / "Case01_segmentation.nii.gz").rename(folder / "case01_SEGMENTATION.nii.gz")
    image, _ = trees.prostate_arrays("UCL")
    (folder / "Case26.nii.gz").unlink()
    trees.write_nifti(folder / "Case26.nii", image, trees.oblique(trees.PROSTATE_SPACING))
    pool = check_dataset(Prostate(), full, volumes_per_site=2)
    files = {case.name: case.files for case in pool.cases}
    assert files["UCL_Case01"][1] == folder / "case01_SEGMENTATION.nii.gz"
    assert files["UCL_Case26"][0] == folder / "Case26.nii"


def test_missing_files(full: Path) -> None:
    (full / "BIDMC" / "Case00.nii.gz").unlink()
    (full / "BMC" / "Case05_Segmentation.nii.gz").unlink()
    for file in full.glob("UCL/*"):
        file.unlink()
    (full / "UCL").rmdir()
    pool = Prostate().pool(full)
    assert len(pool.cases) == 116 - 15
    assert len(pool.problems) == 15
    assert pool.problems[0].startswith(
        f"{full / 'BIDMC' / 'Case00.nii.gz'}: missing (one of the 116 of the collection)"
    )
    assert pool.problems[1].startswith(f"{full / 'BMC' / 'Case05_segmentation.nii.gz'}: missing (")
    assert pool.problems[2].startswith(f"{full / 'UCL' / 'Case01.nii.gz'}: missing and so is its mask")
    skipped = Prostate(missing="skip").pool(full)
    assert (skipped.cases, skipped.problems) == (pool.cases, ())


def test_what_does_not_belong_to_the_collection(full: Path) -> None:
    trees.prostate_tree(full, {"BIDMC": ["Case01"], "north": ["Case00"]})
    (full / "notes").mkdir()
    (full / "BIDMC" / "._Case00.nii.gz").write_bytes(b"resource fork")
    (full / "BIDMC" / "Case00.png").write_bytes(b"")
    pool = Prostate().pool(full)
    assert len(pool.cases) == 116
    assert [problem.split(":")[0] for problem in pool.problems] == [
        str(full / "BIDMC" / "Case01.nii.gz"),
        str(full / "BIDMC" / "Case01_segmentation.nii.gz"),
        str(full / "north" / "Case00.nii.gz"),
        str(full / "north" / "Case00_segmentation.nii.gz"),
    ]
    assert all("put a table test_cases.csv (site,case)" in problem for problem in pool.problems)


def test_two_folders_or_files_for_one(full: Path) -> None:
    trees.prostate_tree(full, {"RUNMC": ["Case00"]}, names=trees.HARMOFL)
    (full / "HK" / "Case38_Segmentation.nii.gz").write_bytes(b"")
    pool = Prostate().pool(full)
    text = "\n".join(pool.problems)
    assert f"{full / 'RUNMC'}: expected one folder for the site RUNMC, found ISBI too" in text
    assert (
        f"expected one file for Case38_segmentation.nii.gz, found {full / 'HK' / 'Case38_segmentation.nii.gz'}" in text
    )


def test_a_table_of_your_own(small: Path) -> None:
    pool = check_dataset(Prostate(), small, volumes_per_site=2)
    assert [(case.name, case.site, case.side) for case in pool.cases] == [
        ("BMC_Case00", "BMC", "train"),
        ("BMC_Case01", "BMC", "test"),
        ("UCL_Case01", "UCL", "train"),
        ("UCL_Case26", "UCL", "train"),
        ("north_Case07", "north", "test"),
        ("north_Case08", "north", "train"),
    ]


def test_a_table_of_your_own_in_the_other_vocabulary(tmp_path: Path) -> None:
    write_table(tmp_path, [("ISBI_1.5", 1), ("RUNMC", "03")])
    cases = {"BMC": ["Case00", "Case01"], "RUNMC": ["Case03", "Case04"]}
    pool = check_dataset(Prostate(), trees.prostate_tree(tmp_path, cases, names=trees.HARMOFL))
    assert numbers_of_test_cases(pool) == {"BMC": {1}, "RUNMC": {3}}


def test_a_table_that_contradicts_the_folder(small: Path) -> None:
    write_table(small, [("BMC", "Case09"), ("south", 1), ("UCL", "x"), ("", 3), ("BMC", "Case09")])
    (small / "UCL" / "Case01_segmentation.nii.gz").unlink()
    text = "\n".join(Prostate().pool(small).problems)
    assert f"{small / 'BMC' / 'Case09.nii.gz'}: missing and so is its mask" in text
    assert f"{small / 'south' / 'Case01.nii.gz'}: missing" in text
    assert f"{small / 'UCL' / 'Case01_segmentation.nii.gz'}: missing" in text
    assert "expected a case as 3 or Case03, got 'x'" in text
    assert "row 5 has no site" in text
    assert "site BMC case Case09 has 2 rows" in text
    skipped = "\n".join(Prostate(missing="skip").pool(small).problems)
    assert "missing" not in skipped


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "HK").mkdir()
    with pytest.raises(DataError, match=r"116 problems:\n  .*BIDMC/Case00.nii.gz: missing"):
        Prostate().pool(tmp_path)


@pytest.mark.parametrize("site", ["BMC", "UCL", "HK"])
def test_predictions_land_on_the_grid_of_the_file(one_each: list[Case], tmp_path: Path, site: str) -> None:
    (case,) = (case for case in one_each if case.site == site)
    volume = Prostate().volume(case)
    write_label_map(tmp_path / "back.nii.gz", volume.label, like=case.image, slice_axis=volume.slice_axis)
    back, original = nib.load(tmp_path / "back.nii.gz"), nib.load(case.label)
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(original.dataobj) > 0)
    np.testing.assert_array_equal(back.affine, original.affine)


def test_settings() -> None:
    with pytest.raises(ValueError, match="missing: expected refuse or skip, got 'y'"):
        Prostate(missing="y")  # type: ignore[arg-type]
