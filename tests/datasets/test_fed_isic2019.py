"""Fed-ISIC2019 on generated trees: FLamby's split, classes, colours and crops, and what can be wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import trees
from picture_trees import isic_images, isic_tree, picture, write_picture
from PIL import Image

from wardround.datasets.contract import DataError, Pool
from wardround.datasets.fed_isic2019 import FedIsic2019, centre, resized, shades_of_grey
from wardround.datasets.testing import check_image_dataset

TRAIN = {"center-0": 9930, "center-1": 3163, "center-2": 2691, "center-3": 1807, "center-4": 655, "center-5": 351}
TEST = {"center-0": 2483, "center-1": 791, "center-2": 672, "center-3": 452, "center-4": 164, "center-5": 88}

PACKAGED = isic_images(trees.DATASETS / "fed_isic2019.csv")
CLASSES = FedIsic2019.classes
TABLE = ("image", "target", "center", "fold")


def some(each: int = 2) -> dict[str, str]:
    """The first images of each centre and side, with classes in turn."""
    found: dict[tuple[str, str], list[str]] = {}
    for image, site, fold in PACKAGED:
        found.setdefault((site, fold), []).append(image)
    images = [image for own in found.values() for image in own[:each]]
    return {image: CLASSES[place % 8] for place, image in enumerate(images)}


def counts(pool: Pool, side: str) -> dict[str | None, int]:
    return Counter(case.site for case in pool.cases if case.side == side)


def test_the_packaged_table_is_flambys() -> None:
    """Its counts, every image once; 816 images of the last but one centre were made smaller by the challenge."""
    assert len({image for image, _, _ in PACKAGED}) == len(PACKAGED) == 23247
    assert Counter(f"center-{site}" for _, site, fold in PACKAGED if fold == "train") == TRAIN
    assert Counter(f"center-{site}" for _, site, fold in PACKAGED if fold == "test") == TEST
    assert Counter(site for image, site, _ in PACKAGED if image.endswith("_downsampled")) == {"4": 816}


@pytest.mark.slow
def test_flambys_split(tmp_path: Path) -> None:
    classes = {image: CLASSES[place % 8] for place, (image, _, _) in enumerate(PACKAGED)}
    pool = FedIsic2019().pool(isic_tree(tmp_path, classes, empty=True))
    assert (pool.problems, counts(pool, "train"), counts(pool, "test")) == ((), TRAIN, TEST)


def test_some_of_it(tmp_path: Path) -> None:
    wanted = some()
    root = isic_tree(tmp_path, {**wanted, "ISIC_9999999": "NV"})  # of unknown origin: takes no part
    pool = check_image_dataset(FedIsic2019(missing="skip"), root)
    assert {case.name: pool.classes[case.target or 0] for case in pool.cases} == wanted
    assert counts(pool, "train") == counts(pool, "test") == dict.fromkeys(TRAIN, 2)
    case = pool.cases[0]
    assert case.image == root / "ISIC_2019_Training_Input_preprocessed" / f"{case.name}.jpg"
    assert case.patient == case.name


def test_flambys_own_table_goes_first(tmp_path: Path) -> None:
    root = isic_tree(tmp_path, {"a": "NV", "b": "MEL"})
    rows = [("a", 7, 2, "test"), ("b", 0, 0, "train")]
    trees.write_table(root / "train_test_split", TABLE, rows)
    pool = check_image_dataset(FedIsic2019(), root)
    assert [(case.name, case.target, case.site, case.side) for case in pool.cases] == [
        ("a", 7, "center-2", "test"),
        ("b", 0, "center-0", "train"),
    ]


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_shades_of_grey_by_hand() -> None:
    """Power 1 is grey world. Means 30, 40 and 120: the norm is 130, and the gains are 130 / (sqrt(3) 30), ...

    130 / sqrt(3) = 75.06 is what each channel's mean becomes; the pixels stand 2 : 1 to their mean and 0.
    """
    flat = np.uint8([[[60, 80, 240], [0, 0, 0]]])
    assert shades_of_grey(flat, power=1).tolist() == [[[150, 150, 150], [0, 0, 0]]]


def test_shades_of_grey_stops_at_white() -> None:
    """Power 6: one pixel (100, 100, 100), one (100, 100, 250): blue is the light, so red and green grow.

    e = (100, 100, ((100^6 + 250^6) / 2)^(1/6) = 222.9); ||e|| = 263.9; gains 152.4/100, 152.4/100, 152.4/222.9.
    """
    image = np.uint8([[[100, 100, 100], [100, 100, 250]]])
    assert shades_of_grey(image).tolist() == [[[152, 152, 68], [152, 152, 170]]]
    bright = np.uint8([[[250, 100, 100], [250, 250, 250]]])
    assert shades_of_grey(bright)[0, 1].tolist()[1:] == [255, 255]


def test_shades_of_grey_is_flambys_where_nothing_is_too_bright() -> None:
    """FLamby's formula, written with its own steps."""
    pixels = picture(9, 11, seed=3) // 2
    vector = np.power(np.mean(np.power(pixels.astype("float32"), 6), (0, 1)), 1 / 6)
    vector = 1 / (vector / np.sqrt(np.sum(np.power(vector, 2.0))) * np.sqrt(3))
    expected = np.multiply(pixels, vector)
    assert expected.max() < 255
    assert np.abs(shades_of_grey(pixels).astype(int) - expected.astype(np.uint8)).max() <= 1
    assert (shades_of_grey(pixels) == expected.astype(np.uint8)).mean() > 0.99


def test_an_even_or_black_picture_stays() -> None:
    grey = np.repeat(picture()[..., :1], 3, axis=2)
    assert np.abs(shades_of_grey(grey).astype(int) - grey).max() <= 1
    for black in (np.zeros((2, 2, 3), np.uint8), np.uint8([[[0, 9, 9]]])):
        np.testing.assert_array_equal(shades_of_grey(black), black)


def test_the_middle() -> None:
    pixels = picture(5, 8)
    np.testing.assert_array_equal(centre(pixels, 2), pixels[1:3, 3:5])
    np.testing.assert_array_equal(centre(pixels, 5), pixels[:, 1:6])
    with pytest.raises(ValueError, match=r"at least 6 pixels along both sides to crop, got 5 x 8"):
        centre(pixels, 6)


def test_sides_in_proportion() -> None:
    """The shorter side is as asked; the longer one, 301 / 200 * 100 = 150.5, is rounded down."""
    assert resized(picture(200, 301), 100).shape == (100, 150, 3)
    assert resized(picture(301, 200), 100).shape == (150, 100, 3)


def test_preprocessed_images_are_only_cropped(tmp_path: Path) -> None:
    root = isic_tree(tmp_path, some(1))
    case = FedIsic2019(missing="skip").pool(root).cases[0]
    with Image.open(case.image) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (224, 300, 3)
    (found,) = FedIsic2019().images([case])
    np.testing.assert_array_equal(found, pixels[12:212, 50:250])
    (whole,) = FedIsic2019(crop=None).images([case])
    np.testing.assert_array_equal(whole, pixels)


def test_originals_are_resized_and_evened_out_once(tmp_path: Path) -> None:
    """As FLamby's script does it: resized first, then the colours."""
    root = isic_tree(tmp_path, some(1), folder="ISIC_2019_Training_Input")
    dataset = FedIsic2019(images_from="original", crop=None, missing="skip")
    case = dataset.pool(dataset.locate(root)).cases[0]
    write_picture(case.image, picture(300, 500))
    with Image.open(case.image) as image:
        small = np.asarray(image.resize((373, 224), Image.Resampling.BILINEAR))
    (found,) = dataset.images([case])
    np.testing.assert_array_equal(found, shades_of_grey(small))
    (plain,) = FedIsic2019(images_from="original", crop=None, colour_constancy=False).images([case])
    np.testing.assert_array_equal(plain, small)


def test_an_image_that_is_too_small_is_named(tmp_path: Path) -> None:
    root = isic_tree(tmp_path, some(1))
    case = FedIsic2019(missing="skip").pool(root).cases[0]
    write_picture(case.image, picture(100, 300))
    with pytest.raises(
        DataError, match=rf"{case.name}: expected at least 200 pixels along both sides to crop, got 100"
    ):
        next(FedIsic2019().images([case]))


# ---- lesions ---------------------------------------------------------------------------------------------------------


def test_whole_lesions_on_one_side(tmp_path: Path) -> None:
    """Two images of each lesion, at several centres and on both of FLamby's sides; a fifth of 12 lesions is 2."""
    classes = dict.fromkeys(some(2), "NV")
    root = isic_tree(tmp_path, classes, empty=True)
    rows = [(image, f"L{place % 12}") for place, image in enumerate(classes)]
    trees.write_table(root / "ISIC_2019_Training_Metadata.csv", ("image", "lesion_id"), rows)
    pool = FedIsic2019(split="lesions", missing="skip").pool(root)
    sides: dict[str, set[str | None]] = {}
    for case in pool.cases:
        sides.setdefault(case.patient, set()).add(case.side)
    assert (len(pool.cases), len(sides)) == (24, 12)
    assert Counter(side for own in sides.values() for side in own) == {"train": 10, "test": 2}
    assert len({(case.patient, case.site) for case in pool.cases}) > 12


def test_lesions_need_their_table(tmp_path: Path) -> None:
    root = isic_tree(tmp_path, some(1), empty=True)
    with pytest.raises(
        ValueError, match=r"ISIC_2019_Training_Metadata.csv: expected a table in UTF-8, got FileNotFound"
    ):
        FedIsic2019(split="lesions", missing="skip").pool(root)


# ---- what can be wrong -----------------------------------------------------------------------------------------------


def test_everything_wrong_at_once(tmp_path: Path) -> None:
    root = isic_tree(tmp_path, dict.fromkeys("abde", "NV"), empty=True)
    rows = [("a", 8, 0, "train"), ("b", 1, "", "val"), ("c", 1, 0, "test"), ("d", 1, 0, "test"), ("d", 1, 0, "test")]
    trees.write_table(root / "train_test_split.csv", TABLE, rows)
    table, folder = root / "train_test_split.csv", root / "ISIC_2019_Training_Input_preprocessed"
    pool = FedIsic2019().pool(root)
    assert list(pool.problems) == [
        f"{table}: image d has 2 rows",
        f"{table}: image a: expected one class, 0 to 7, got '8'",
        f"{table}: image b: expected a centre, got ''",
        f"{table}: image b: expected train or test, got 'val'",
        f"{folder}/c.jpg: missing (train_test_split.csv lists it); data.missing: skip leaves out what is not there",
    ]
    assert [case.name for case in pool.cases] == ["d"]


def test_images_without_a_class(tmp_path: Path) -> None:
    """Listed images that the table of classes lacks, or of the challenge's class for unknown ones."""
    wanted = some(1)
    first = next(iter(wanted))
    pool = FedIsic2019(missing="skip").pool(isic_tree(tmp_path, {**wanted, first: "UNK"}, empty=True))
    assert len(pool.cases) == 11
    assert any(f"image {first}: expected one class, 0 to 7, got ''" in line for line in pool.problems)


def test_locate_and_nothing_there(tmp_path: Path) -> None:
    root = isic_tree(tmp_path / "fed_isic2019", some(1), empty=True)
    assert FedIsic2019().locate(tmp_path) == root
    with pytest.raises(ValueError, match=r"expected a folder ISIC_2019_Training_Input, or .*FLamby's scripts"):
        FedIsic2019(images_from="original").locate(root)
    (root / "ISIC_2019_Training_GroundTruth.csv").unlink()
    with pytest.raises(ValueError, match=r"GroundTruth.csv: missing; it comes with the images, or put FLamby's"):
        FedIsic2019().pool(root)


def test_settings() -> None:
    with pytest.raises(
        ValueError, match=r"missing: .*; images_from: .*; split: expected flamby or lesions.*; crop: .* 225"
    ):
        FedIsic2019(images_from="x", split="y", crop=225, missing="z")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"colour_constancy: expected true with images_from: preprocessed.*original reads"
    ):
        FedIsic2019(colour_constancy=False)
