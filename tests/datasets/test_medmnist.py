"""MedMNIST on generated files: sides, rows, names of classes, streaming, and what can be wrong."""

from __future__ import annotations

import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from picture_trees import medmnist_arrays, medmnist_tree
from PIL import Image

from wardround.datasets.contract import DataError
from wardround.datasets.medmnist import CLASSES, Flag, MedMnist
from wardround.datasets.testing import check_image_dataset

BLOOD = MedMnist(flag="bloodmnist")


def test_sides_rows_and_names(tmp_path: Path) -> None:
    """7, 3 and 4 images: the rows of a file go on from side to side."""
    root = medmnist_tree(tmp_path)
    pool = check_image_dataset(BLOOD, root)
    assert pool.classes[:3] == ("basophil", "eosinophil", "erythroblast")
    assert [(case.name, case.side, case.row, case.target) for case in pool.cases] == [
        *((f"test-00000{i}", "test", 10 + i, i) for i in range(4)),
        *((f"train-00000{i}", "train", i, i) for i in range(7)),
        *((f"validation-00000{i}", "validation", 7 + i, i) for i in range(3)),
    ]
    assert {(case.site, case.image) for case in pool.cases} == {(None, root / "bloodmnist.npz")}
    assert len({case.patient for case in pool.cases}) == 14


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("colours", [True, False])
def test_pixels(tmp_path: Path, packed: bool, colours: bool) -> None:
    """In the order of the cases, whatever it is; grey in three channels."""
    root = medmnist_tree(tmp_path, packed=packed, colours=colours)
    arrays = medmnist_arrays(28, (7, 3, 4), 8, colours)
    every = np.concatenate([arrays[f"{side}_images"] for side in ("train", "val", "test")])
    every = every if colours else np.stack([every] * 3, axis=3)
    cases = BLOOD.pool(root).cases
    mixed = [cases[place] for place in (13, 0, 5, 4, 4, 12, 1)]
    for order in (cases, cases[::-1], mixed):
        found = list(BLOOD.images(order))
        assert [image.dtype for image in found] == [np.uint8] * len(order)
        np.testing.assert_array_equal(np.stack(found), every[[case.row for case in order]])


def test_larger_images_have_a_file_of_their_own(tmp_path: Path) -> None:
    root = medmnist_tree(tmp_path, size=64)
    dataset = MedMnist(flag="bloodmnist", size=64)
    assert next(dataset.images(dataset.pool(dataset.locate(root)).cases)).shape == (64, 64, 3)
    with pytest.raises(ValueError, match=r"expected the file bloodmnist.npz.*zenodo.org/records/10519652"):
        BLOOD.locate(root)


def test_memory_is_that_of_one_image(tmp_path: Path) -> None:
    """1000 images of 2352 bytes are 2.4 MB; a stream keeps less than a tenth of them."""
    cases = BLOOD.pool(medmnist_tree(tmp_path, counts=(980, 10, 10))).cases
    tracemalloc.start()
    number = sum(1 for _ in BLOOD.images(cases))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 1000
    assert peak < 240_000


def test_the_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = BLOOD.pool(medmnist_tree(tmp_path)).cases
    opened: list[object] = []
    archive = zipfile.ZipFile

    def counting(path: Path) -> zipfile.ZipFile:
        opened.append(path)
        return archive(path)

    monkeypatch.setattr("wardround.datasets.medmnist.zipfile.ZipFile", counting)
    assert len(list(BLOOD.images(cases))) == 14
    assert len(opened) == 1


def test_every_collection_has_its_classes() -> None:
    """Numbers of classes as in Table 2 of the paper."""
    numbers = {"pathmnist": 9, "dermamnist": 7, "octmnist": 4, "pneumoniamnist": 2, "retinamnist": 5, "breastmnist": 2}
    numbers |= {"bloodmnist": 8, "tissuemnist": 8, "organamnist": 11, "organcmnist": 11, "organsmnist": 11}
    assert {flag: len(set(names)) for flag, names in CLASSES.items()} == numbers
    assert set(CLASSES) == set(get_args(Flag))
    assert MedMnist(flag="retinamnist").classes == CLASSES["retinamnist"]


def test_a_picture_lies_in_a_file_of_its_own(tmp_path: Path) -> None:
    grey = np.arange(30, dtype=np.uint8).reshape(5, 6)
    Image.fromarray(grey).save(tmp_path / "cell.png")
    picture = MedMnist(flag="bloodmnist").picture(tmp_path / "cell.png")
    np.testing.assert_array_equal(picture, grey[:, :, None].repeat(3, axis=2))
    with pytest.raises(ValueError, match=r"nowhere.png: expected a picture, got FileNotFoundError"):
        MedMnist(flag="bloodmnist").picture(tmp_path / "nowhere.png")


def test_settings() -> None:
    with pytest.raises(ValueError, match=r"flag: expected a collection with one class per image, got 'chestmnist'"):
        MedMnist(flag="chestmnist")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"flag: expected one of pathmnist, .*, got 'mnist'; size: .* 28, 64, 128, 224"
    ):
        MedMnist(flag="mnist", size=32)  # type: ignore[arg-type]


def test_labels_that_are_wrong(tmp_path: Path) -> None:
    """All at once; what has a class stays in the pool."""
    labels = np.uint8([[0], [8], [1]])
    root = medmnist_tree(tmp_path, val_labels=labels, test_labels=np.zeros((5, 1), np.uint8))
    pool = BLOOD.pool(root)
    path = root / "bloodmnist.npz"
    assert pool.problems == (
        f"{path}: val_labels: expected labels of 0 to 7 alone, got 8",
        f"{path}: test: expected a label for each of 4 images, got 5 labels",
    )
    assert len(pool.cases) == 7 + 2 + 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val_images": np.zeros((3, 28, 28), np.float32)}, r"val_images: expected uint8 \(N, 28, 28\).*got float32"),
        ({"val_images": np.zeros((3, 32, 32), np.uint8)}, r"val_images: expected .* got uint8 \(3, 32, 32\)"),
        ({"val_images": np.asfortranarray(np.zeros((3, 28, 28), np.uint8))}, "by columns"),
        (
            {"val_labels": np.zeros((3, 14), np.uint8)},
            r"val_labels: expected whole numbers \(N, 1\), got uint8 \(3, 14",
        ),
    ],
)
def test_arrays_of_another_kind(tmp_path: Path, changed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        BLOOD.pool(medmnist_tree(tmp_path, **changed))


def test_files_that_are_damaged(tmp_path: Path) -> None:
    root = medmnist_tree(tmp_path, packed=False)
    path = root / "bloodmnist.npz"
    cases = BLOOD.pool(root).cases
    with pytest.raises(DataError, match=r"train-000000: .*expected a row below 14, got 14"):
        list(BLOOD.images([replace(cases[4], row=14)]))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="expected a file of MedMNIST, got BadZipFile"):
        BLOOD.pool(root)
    with pytest.raises(DataError, match=r"test-000000: .*BadZipFile"):
        list(BLOOD.images(cases))
    np.savez(path, train_images=np.zeros(3))
    with pytest.raises(DataError, match=r"got one without train_labels, val_.*, test_labels$") as caught:
        BLOOD.pool(root)
    assert str(caught.value).count(str(root)) == 1
