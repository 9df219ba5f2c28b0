"""Volumes of one's own, listed in a table."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wardround.datasets.contract import Case, DataError
from wardround.datasets.testing import check_dataset
from wardround.datasets.volumes import Volumes

SHAPE = (5, 6, 4)
HEADER = "hospital,image,label,split"
ROWS = (
    "north,north/p1.nii.gz,north/p1_mask.nii.gz,train",
    "north,north/p2.nii,north/p2_mask.nii.gz,validation",
    "south,south/p1.nii.gz,south/p1_mask.nii,train",
    "south,south/p7.nii.gz,south/p7_mask.nii.gz,test",
)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1, 2, 3, 1.0])), path)


def write_rows(root: Path, *rows: str, header: str = HEADER, table: str = "volumes.csv") -> None:
    (root / table).write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "volumes"
    for row in ROWS:
        _, image, label, _ = row.split(",")
        write(root / image, np.random.default_rng(len(image)).integers(-900, 900, SHAPE).astype(np.int16))
        write(root / label, np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8) % 2)
    write_rows(root, *ROWS)
    return root


def problems(root: Path, **settings: object) -> list[str]:
    return [line.replace(f"{root}/", "") for line in Volumes(**settings).pool(root).problems]


def by_name(root: Path) -> dict[str, Case]:
    return {case.name: case for case in Volumes().pool(root).cases}


def test_contract(tree: Path) -> None:
    pool = check_dataset(Volumes(), tree, volumes_per_site=2)
    assert pool.classes == ("foreground",)
    assert [(case.name, case.patient, case.site, case.side) for case in pool.cases] == [
        ("north_p1", "north_p1", "north", "train"),
        ("north_p2", "north_p2", "north", "validation"),
        ("south_p1", "south_p1", "south", "train"),
        ("south_p7", "south_p7", "south", "test"),
    ]
    assert pool.cases[1].files == (tree / "north/p2.nii", tree / "north/p2_mask.nii.gz")


@pytest.mark.parametrize("header", ["image,label", HEADER])
def test_hospital_and_split_may_be_absent_or_empty(tree: Path, header: str) -> None:
    rows = [",".join(row.split(",")[1:3]) for row in ROWS]
    write_rows(tree, *(rows if header == "image,label" else [f",{row}," for row in rows]), header=header)
    assert problems(tree) == []
    assert {(case.site, case.side) for case in Volumes().pool(tree).cases} == {(None, None)}


def test_patients_and_names_of_the_table(tree: Path) -> None:
    rows = [f"{row},Ann,scan-{number}" for number, row in enumerate(ROWS)]
    write_rows(tree, *rows, header=f"{HEADER},patient,case")
    assert {name: case.patient for name, case in by_name(tree).items()} == {f"scan-{n}": "Ann" for n in range(4)}


def test_paths_are_relative_to_the_table_or_absolute(tree: Path) -> None:
    (tree / "tables").mkdir()
    absolute = tree / "north" / "p1_mask.nii.gz"
    write_rows(tree, f"a,../north/p1.nii.gz,{absolute},", table="tables/mine.csv")
    data = Volumes(table="tables/mine.csv")
    [case] = data.pool(data.locate(tree)).cases
    assert case.name == ".._north_p1"
    assert case.label == absolute
    assert data.volume(case).image.shape == (4, 5, 6)


def test_every_problem_of_the_table_is_listed(tree: Path) -> None:
    (tree / "north" / "p3.mha").write_bytes(b"")
    write_rows(
        tree,
        *ROWS[:3],
        "south,south/p7.nii.gz,,test",
        ",south/p8.nii.gz,south/p7_mask.nii.gz,testing",
        "south,south/p1.nii.gz,south/p1_mask.nii,train",
        "north,,north/p1_mask.nii.gz,train",
        "north,north/p3.mha,north/p1_mask.nii.gz,train",
    )
    assert problems(tree) == [
        "volumes.csv: image south/p1.nii.gz has 2 rows",
        "volumes.csv: row 8 has no image",
        "volumes.csv: row 5 has no label",
        "volumes.csv: row 6: split: expected train, validation, test or nothing, got 'testing'",
        "volumes.csv: hospital: expected an entry in every row or in none, 1 of 8 rows have none, the first is row 6",
        "volumes.csv: case south_p1: expected a name of its own for every row",
        "south/p8.nii.gz: missing, volumes.csv lists it",
        "north/p3.mha: expected .nii or .nii.gz",
    ]
    assert list(by_name(tree)) == ["north_p1", "north_p2", "south_p1"]


def test_tables_that_cannot_be_used(tree: Path) -> None:
    write_rows(tree, header="picture,label")
    with pytest.raises(ValueError, match=r"volumes\.csv: expected the columns image,label, got picture,label"):
        Volumes().pool(tree)
    write_rows(tree, "a,x.nii,y.nii,train")
    with pytest.raises(DataError, match=r"2 problems:(?s:.)*x.nii: missing, volumes.csv lists it"):
        Volumes().pool(tree)


def test_reading_follows_the_settings(tree: Path) -> None:
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8) % 4
    write(tree / "north/p1_mask.nii.gz", labels)
    case = by_name(tree)["north_p1"]
    with pytest.raises(DataError, match=r"expected labels 0 to 1, got \[2, 3\] too"):
        Volumes().volume(case)
    merged = Volumes(merge_foreground=True, slice_axis=1, clip_range=(-10, 20)).volume(case)
    assert np.array_equal(merged.label, np.moveaxis(labels, 1, 0) > 0)
    assert (merged.image.min(), merged.image.max(), merged.spacing_mm) == (-10, 20, (2, 1, 3))
    three = Volumes(classes=("a", "b", "c"), clip_percentiles=(10, 90)).volume(case)
    assert three.label.max() == 3
    assert -900 < three.image.min() < three.image.max() < 900
    write(tree / "north/p1.nii.gz", np.random.default_rng(0).random((*SHAPE, 2)))
    with pytest.raises(DataError, match="choose one of 2 with the setting 'channel'"):
        Volumes(merge_foreground=True).volume(case)
    assert Volumes(merge_foreground=True, channel=1).volume(case).image.shape == (4, 5, 6)


def test_locate(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Volumes().locate(tree) == Volumes().locate(tree.parent) == tree
    monkeypatch.setenv("WARDROUND_DATA", str(tree))
    assert Volumes().locate(None) == tree
    with pytest.raises(ValueError, match=r"expected a table other.csv \(columns hospital,image,label,split\)"):
        Volumes(table="other.csv").locate(tree)


def test_mistakes_in_settings_are_named_together() -> None:
    with pytest.raises(
        ValueError, match=r"slice_axis: .* got 4; .*clip_range: .* got \(1, 1\); channel: .*; classes: .*; merge_foregr"
    ):
        Volumes(slice_axis=4, clip_range=(1, 1), channel=-1, classes=("a", "a"), merge_foreground=True)
