"""Synapse in the form of TransUNet and SAMed, on a generated tree with their names, keys, types and axes."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from wardround.datasets.contract import DataError
from wardround.datasets.synapse import Synapse
from wardround.datasets.testing import check_dataset

h5py = pytest.importorskip("h5py", reason="the extra [synapse] is not installed")

SLICES = {"case0005": 3, "case0031": 5}
TESTS = ("case0001", "case0038")
SIZE = 12  # 512 in the real files


def arrays(case: str, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Image in [0, 1] and labels 0 to 8, float32 both, all slices different."""
    rng = np.random.default_rng(int(case[4:]))
    shape = (slices, SIZE, SIZE)
    return rng.random(shape, dtype=np.float32), rng.integers(0, 9, shape).astype(np.float32)


def slice_file(root: Path, case: str, number: int) -> Path:
    return root / "train_npz" / f"{case}_slice{number:03d}.npz"


def write_h5(path: Path, **content: object) -> None:
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key] = value


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "Synapse"
    (root / "train_npz").mkdir(parents=True)
    (root / "test_vol_h5").mkdir()
    for case, slices in SLICES.items():
        image, label = arrays(case, slices)
        for number in range(slices):
            np.savez(slice_file(root, case, number), image=image[number], label=label[number])
    for case in TESTS:
        image, label = arrays(case, 4)
        write_h5(root / "test_vol_h5" / f"{case}.npy.h5", image=image, label=label)
    (root / "train.txt").write_text("case0005_slice000\n")
    (root / "train_npz" / "._case0005_slice000.npz").write_bytes(b"resource fork")
    return root


def problems(root: Path) -> list[str]:
    return [line.replace(f"{root}/", "") for line in Synapse().pool(root).problems]


def faults(root: Path, case: str) -> list[str]:
    """The lines of reading one case."""
    data = Synapse()
    with pytest.raises(DataError) as caught:
        data.volume(next(found for found in data.pool(root).cases if found.name == case))
    return [line.replace(f"{root}/", "") for line in caught.value.problems]


def test_contract(tree: Path) -> None:
    pool = check_dataset(Synapse(), tree, volumes_per_site=4)
    assert [(case.name, case.side, case.site) for case in pool.cases] == [
        ("case0001", "test", None),
        ("case0005", "train", None),
        ("case0031", "train", None),
        ("case0038", "test", None),
    ]
    assert pool.classes[0] == "spleen"
    assert pool.classes[7] == "pancreas"
    assert Synapse(order="transunet").pool(tree).classes[0] == "aorta"
    assert sorted(pool.classes) == sorted(Synapse(order="transunet").pool(tree).classes)


def test_slices_become_a_volume_in_their_order(tree: Path) -> None:
    case = Synapse().pool(tree).cases[2]
    assert case.files == tuple(slice_file(tree, "case0031", number) for number in range(5))
    volume = Synapse(spacing_mm=(3, 0.7, 0.7)).volume(case)
    image, label = arrays("case0031", 5)
    assert np.array_equal(volume.image, image)
    assert np.array_equal(volume.label, label)
    assert (volume.spacing_mm, volume.slice_axis) == ((3, 0.7, 0.7), 0)


def test_more_than_a_thousand_slices_stay_in_order(tree: Path) -> None:
    """``slice1000`` sorts before ``slice101`` as text."""
    for number in range(3, 1001):
        slice_file(tree, "case0005", number).write_bytes(b"")
    case = Synapse().pool(tree).cases[1]
    assert case.parts[101].name == "case0005_slice101.npz"
    assert case.parts[1000].name == "case0005_slice1000.npz"


def test_test_volumes_are_read_whole(tree: Path) -> None:
    volume = Synapse().volume(Synapse().pool(tree).cases[0])
    image, label = arrays("case0001", 4)
    assert np.array_equal(volume.image, image)
    assert np.array_equal(volume.label, label)
    assert volume.spacing_mm == (1, 1, 1)


def test_locate(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Synapse().locate(tree) == Synapse().locate(tree.parent) == tree
    monkeypatch.setenv("WARDROUND_DATA", str(tree.parent))
    assert Synapse().locate(None) == tree
    with pytest.raises(ValueError, match=r"expected Synapse as TransUNet and SAMed prepare it .*train_npz"):
        Synapse().locate(tree / "train_npz")


def test_every_problem_of_the_names_is_listed(tree: Path) -> None:
    slice_file(tree, "case0031", 1).unlink()
    slice_file(tree, "case0031", 2).unlink()
    slice_file(tree, "case0005", 0).unlink()
    (tree / "train_npz" / "case0005_slice02.npz").write_bytes(b"")
    (tree / "train_npz" / "case5.npz").write_bytes(b"")
    (tree / "test_vol_h5" / "case0002.h5").write_bytes(b"")
    write_h5(tree / "test_vol_h5" / "case0005.npy.h5")
    assert problems(tree) == [
        "train_npz/case5.npz: expected a name like case0005_slice000.npz",
        "train_npz/case0005: expected the slices 0 to 2 without a gap, missing [0]",
        "train_npz/case0005: expected one file for each slice, got several for [2]",
        "train_npz/case0031: expected the slices 0 to 4 without a gap, missing [1, 2]",
        "test_vol_h5/case0002.h5: expected a name like case0001.npy.h5",
        "case0005: expected on one side, it is in train_npz and in test_vol_h5",
    ]
    assert Counter(case.name for case in Synapse().pool(tree).cases)["case0005"] == 1


def test_one_folder_of_two_is_a_problem_and_none_an_error(tree: Path) -> None:
    (tree / "test_vol_h5").rename(tree / "elsewhere")
    assert problems(tree) == ["test_vol_h5: expected files like case0001.npy.h5, found none"]
    (tree / "train_npz").rename(tree / "nowhere")
    with pytest.raises(DataError, match=r"2 problems:(?s:.)*train_npz: expected files like case0005_slice000.npz"):
        Synapse().pool(tree)


def test_every_problem_of_the_slices_is_listed(tree: Path) -> None:
    image, label = arrays("case0031", 5)
    slice_file(tree, "case0031", 0).write_bytes(b"damaged")
    np.savez(slice_file(tree, "case0031", 1), image=image[1])
    np.savez(slice_file(tree, "case0031", 3), image=image[3, 1:], label=label[3])
    lines = faults(tree, "case0031")
    assert [line.split(":")[0] for line in lines] == [f"train_npz/case0031_slice00{number}.npz" for number in (0, 1, 3)]
    assert "expected a readable file with image and label, got" in lines[0]
    assert "KeyError" in lines[1]
    assert lines[2].endswith("of one shape in all slices, got image (11, 12), label (12, 12)")


def test_every_problem_of_the_voxels_is_listed(tree: Path) -> None:
    image, label = arrays("case0005", 3)
    image[1, 2, 3], label[1, 0, 0], label[1, 0, 1] = np.nan, 0.5, 9
    np.savez(slice_file(tree, "case0005", 1), image=image[1], label=label[1])
    assert faults(tree, "case0005") == [
        "train_npz/case0005_slice000.npz: image: expected finite voxels, got 1 that are not as float32, "
        "first nan at (1, 2, 3)",
        "train_npz/case0005_slice000.npz: label: expected whole numbers as labels, got 0.5",
        "train_npz/case0005_slice000.npz: label: expected labels 0 to 8, got [9] too",
    ]


def test_problems_of_a_test_volume(tree: Path) -> None:
    path = tree / "test_vol_h5" / "case0001.npy.h5"
    image, label = arrays("case0001", 4)
    write_h5(path, image=label, label=label)
    assert faults(tree, "case0001") == [
        "test_vol_h5/case0001.npy.h5: expected an image, got the same voxels as in its mask"
    ]
    write_h5(path, image=image, label=label[1:])
    assert faults(tree, "case0001")[0].endswith("of one shape, got image (4, 12, 12), label (3, 12, 12)")
    write_h5(path, image=image)
    assert "expected a readable file with image and label, got KeyError" in faults(tree, "case0001")[0]
    path.write_bytes(path.read_bytes()[:100])
    assert "expected a readable file with image and label, got OSError" in faults(tree, "case0001")[0]


def test_h5py_is_asked_for_when_it_is_needed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = Synapse().pool(tree).cases
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert Synapse().volume(cases[1]).image.shape == (3, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"expected h5py to read it: pip install 'wardround\[synapse\]'"):
        Synapse().volume(cases[0])


def test_an_image_without_a_mask_is_a_file_like_the_test_volumes(tree: Path, tmp_path: Path) -> None:
    path = tree / "test_vol_h5" / "case0001.npy.h5"
    image, label = arrays("case0001", 4)
    write_h5(path, image=image)
    volume = Synapse(spacing_mm=(3.0, 1.0, 1.0)).open_image(path)()
    np.testing.assert_array_equal(volume.image, image)
    assert (volume.case.name, volume.label.any(), volume.spacing_mm) == ("case0001", False, (3.0, 1.0, 1.0))
    write_h5(path, image=image[0])
    with pytest.raises(ValueError, match=r"expected an image \(slices, rows, columns\), got the shape \(12, 12\)"):
        Synapse().open_image(path)
    image[1, 2, 3] = np.inf
    write_h5(path, image=image)
    with pytest.raises(ValueError, match=r"case0001.npy.h5: image: expected finite voxels"):
        Synapse().open_image(path)()
    write_h5(path, label=label)
    with pytest.raises(ValueError, match="expected a readable file with image"):
        Synapse().open_image(path)
    with pytest.raises(ValueError, match=r"scan.nii.gz: expected a file like case0001.npy.h5"):
        Synapse().open_image(tmp_path / "scan.nii.gz")


def test_mistakes_in_settings_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"order: .* got 'alphabet'; spacing_mm: expected three .* got \(1, 0, 1\)"):
        Synapse(order="alphabet", spacing_mm=(1, 0, 1))  # type: ignore[arg-type]  # on purpose
