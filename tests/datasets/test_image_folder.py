"""Folders of images and tables of images: the layouts, their names, and everything that can be wrong at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from picture_trees import images_tree, picture, write_picture
from trees import write_table

from wardround.datasets.contract import Case, DataError, Pool
from wardround.datasets.image_folder import ImageFolder
from wardround.datasets.testing import check_image_dataset

COLUMNS = ("file", "class", "patient", "site", "side")
SUFFIXES = ".bmp, .jpeg, .jpg, .png, .tif or .tiff"


def seen(pool: Pool) -> list[tuple[str, str, str | None, str | None]]:
    """Name, class, site and side of each case."""
    return [(case.name, pool.classes[case.target or 0], case.site, case.side) for case in pool.cases]


def table(root: Path, *rows: tuple[str, ...], columns: tuple[str, ...] = COLUMNS) -> Path:
    """A table and the pictures that it lists."""
    write_table(root / "images.csv", columns, rows)
    return images_tree(root, (row[0] for row in rows if row[0].endswith(".png")))


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    root = images_tree(tmp_path, ["nevus/b.PNG", "melanoma/a.bmp", "melanoma/c.tif"])
    pool = check_image_dataset(ImageFolder(), root)
    assert pool.classes == ("melanoma", "nevus")
    assert seen(pool) == [
        ("melanoma_a", "melanoma", None, None),
        ("melanoma_c", "melanoma", None, None),
        ("nevus_b", "nevus", None, None),
    ]
    first = pool.cases[0]
    assert first == Case(
        name="melanoma_a",
        patient="melanoma_a",
        image=root / "melanoma" / "a.bmp",
        label=root / "melanoma" / "a.bmp",
        target=0,
    )
    np.testing.assert_array_equal(next(ImageFolder().images(pool.cases[2:])), picture(seed=0))


def test_classes_in_a_given_order(tmp_path: Path) -> None:
    root = images_tree(tmp_path, ["nevus/b.png", "melanoma/a.png"])
    pool = ImageFolder(classes=("nevus", "melanoma")).pool(root)
    assert (pool.classes, [case.target for case in pool.cases]) == (("nevus", "melanoma"), [1, 0])


def test_sites(tmp_path: Path) -> None:
    root = images_tree(tmp_path, ["north/a/1.png", "north/b/2.png", "south/a/1.png", "train/b/1.png"])
    pool = check_image_dataset(ImageFolder(), root)
    assert seen(pool) == [
        ("north_a_1", "a", "north", None),
        ("north_b_2", "b", "north", None),
        ("south_a_1", "a", "south", None),
        ("train_b_1", "b", "train", None),  # not all folders are called like a side
    ]


def test_sides_without_sites(tmp_path: Path) -> None:
    root = images_tree(tmp_path, ["train/a/1.png", "val/b/1.png", "test/a/1.png"])
    assert seen(check_image_dataset(ImageFolder(), root)) == [
        ("test_a_1", "a", None, "test"),
        ("train_a_1", "a", None, "train"),
        ("val_b_1", "b", None, "validation"),
    ]


def test_sites_and_sides(tmp_path: Path) -> None:
    root = images_tree(tmp_path, ["north/train/a/1.png", "north/test/b/2.png", "south/validation/a/1.png"])
    assert seen(check_image_dataset(ImageFolder(), root)) == [
        ("north_test_b_2", "b", "north", "test"),
        ("north_train_a_1", "a", "north", "train"),
        ("south_validation_a_1", "a", "south", "validation"),
    ]


def test_a_table_says_everything(tmp_path: Path) -> None:
    rows = [("x/1.png", "b", "Ann", "north", "train"), ("2.png", "a", "Bo", "south", "test")]
    root = table(tmp_path, *rows)
    images_tree(root, ["c/not_listed.png", "d/neither.png"])
    pool = check_image_dataset(ImageFolder(), root)
    assert seen(pool) == [("2", "a", "south", "test"), ("x_1", "b", "north", "train")]
    assert [case.patient for case in pool.cases] == ["Bo", "Ann"]


def test_a_table_of_files_and_classes(tmp_path: Path) -> None:
    root = table(tmp_path, ("1.png", "b"), ("2.png", "a"), columns=("file", "class"))
    pool = check_image_dataset(ImageFolder(), root)
    assert seen(pool) == [("1", "b", None, None), ("2", "a", None, None)]
    assert [case.patient for case in pool.cases] == ["1", "2"]


def test_locate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder ``images`` in the folder goes before what could be sites."""
    inside = images_tree(tmp_path / "Images", ["a/1.png", "b/1.png"])
    assert ImageFolder().locate(inside) == inside
    assert ImageFolder().locate(tmp_path) == inside
    monkeypatch.setenv("WARDROUND_DATA", str(tmp_path))
    assert ImageFolder().locate(None) == inside
    write_table(tmp_path / "images.csv", COLUMNS, [])
    assert ImageFolder().locate(tmp_path) == tmp_path


def test_locate_says_what_is_missing(tmp_path: Path) -> None:
    images_tree(tmp_path, ["lonely.png"])
    with pytest.raises(
        ValueError, match=r"expected a table images.csv.*or a folder of images for each class.*images.md"
    ):
        ImageFolder().locate(tmp_path)


def test_everything_wrong_with_folders_at_once(tmp_path: Path) -> None:
    files = ["n/train/a/1.png", "n/train/b/1.png", "n/train/b/1.jpg", "n/tset/a/2.png", "s/a/3.png", "n/train/c/4.png"]
    root = images_tree(tmp_path, files)
    (root / "n" / "train" / "a" / "scan.dcm").touch()
    (root / "n" / "test" / "a").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "README.txt").touch()  # at the top, where it may be
    (root / "n" / "train" / "a" / ".DS_Store").touch()
    pool = ImageFolder(classes=("a", "b", "d")).pool(root)
    assert list(pool.problems) == [
        f"{root}/s/a/3.png: expected <site>/<side>/<class>/3.png, as most images of {root} lie",
        f"{root}/n/train/a/scan.dcm: expected a picture {SUFFIXES} in the folder of a class",
        f"{root}/empty: expected images of a class, found none",
        f"{root}/n/test: expected images of a class, found none",
        f"{root}/n/tset: expected a folder named train, validation or test, got 'tset'",
        f"{root}: class 'c' of 1 images: expected one of data.classes ['a', 'b', 'd']",
        f"{root}: class 'd' of data.classes has no image",
        f"{root}: case n_train_b_1: expected a name of its own for every image, got {root}/n/train/b/1.jpg and "
        f"{root}/n/train/b/1.png",
    ]


def test_everything_wrong_with_a_table_at_once(tmp_path: Path) -> None:
    root = table(
        tmp_path,
        ("1.png", "a", "Ann", "north", "train"),
        ("1.png", "a", "Ann", "north", "train"),
        ("2.png", "b", "Ann", "south", "test"),
        ("gone.jpg", "b", "Bo", "south", "tset"),
        ("5.dcm", "b", "", "south", "test"),
        ("6.png", "", "Cy", "", "test"),
        ("", "a", "Di", "south", "test"),
    )
    csv = root / "images.csv"
    assert list(ImageFolder().pool(root).problems) == [
        f"{csv}: file 1.png has 2 rows",
        f"{csv}: row 8 has no file",
        f"{csv}: row 5: side: expected train, validation, test or nothing, got 'tset'",
        f"{root}/gone.jpg: missing, images.csv lists it",
        f"{csv}: row 6: expected a file .bmp, .jpeg, .jpg, .png, .tif or .tiff, got '5.dcm'",
        f"{csv}: row 7 has no class",
        f"{csv}: site: expected an entry in every row or in none, 1 of 7 rows have none, the first is row 7",
        f"{root}: expected patient Ann at one site, got north and south",
        f"{root}: expected patient Ann on one side of the split, got test and train",
    ]


def test_too_few_classes(tmp_path: Path) -> None:
    pool = ImageFolder().pool(images_tree(tmp_path, ["only/1.png"]))
    assert pool.problems == (f"{tmp_path}: expected 2 to 256 classes, got 1: ['only']",)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"expected images .* in a folder for each class, found none"):
        ImageFolder().pool(tmp_path)
    write_table(tmp_path / "images.csv", ("file", "label"), [])
    with pytest.raises(ValueError, match=r"expected the columns file,class, got file,label$"):
        ImageFolder().pool(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "images.csv: expected the columns file,class, got an empty file$"),
        ("file,class\n", "images.csv: expected a row for each image, got no row below the names of the columns$"),
        ("file;class\na.png;b\n", "expected .*, got 'file;class': write commas between columns, not semicolons$"),
    ],
)
def test_tables_that_are_empty_or_parted_otherwise(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "images.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        ImageFolder().pool(tmp_path)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    root = images_tree(tmp_path, ["a/1.png", "b/1.png"])
    (root / "b" / "1.png").write_bytes(b"")
    stream = ImageFolder().images(ImageFolder().pool(root).cases)
    next(stream)
    with pytest.raises(DataError, match=r"b_1: .*b/1.png: expected a picture"):
        next(stream)


def test_settings() -> None:
    for classes in (("a",), ("a", "a"), ("a", "")):
        with pytest.raises(ValueError, match="classes: expected two or more names, each once"):
            ImageFolder(classes=classes)


def test_grey_files(tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "1.png", picture()[..., 0])
    write_picture(tmp_path / "b" / "1.jpg")
    assert [image.shape for image in ImageFolder().images(ImageFolder().pool(tmp_path).cases)] == [(6, 8, 3)] * 2
