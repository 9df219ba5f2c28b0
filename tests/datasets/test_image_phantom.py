"""The phantom images: reproducible files, lesions whole, mixtures as asked for, and a cache that two can share."""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from wardround.datasets import image_phantom as module
from wardround.datasets.camera import CAMERAS
from wardround.datasets.contract import DataError
from wardround.datasets.image_folder import ImageFolder
from wardround.datasets.image_phantom import (
    ImagePhantom,
    Slot,
    build,
    camera_of,
    lesion_of,
    make_picture,
    shares,
    slots_of,
    write_image_phantom,
)
from wardround.datasets.lesion import KINDS

SMALL = ImagePhantom(hospitals=3, train_images=(9, 6, 7), test_images=4, size=16, classes=3)
TINY = ImagePhantom(hospitals=2, train_images=2, test_images=2, size=16, classes=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.locate(tmp_path_factory.mktemp("cache"))


def changed(phantom: ImagePhantom, **settings: object) -> ImagePhantom:
    return ImagePhantom(**{**vars(phantom), **settings})


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_are_reproducible_and_follow_the_seed(folder: Path, tmp_path: Path) -> None:
    old = content(folder)
    assert content(SMALL.locate(tmp_path / "again")) == old
    pictures = [name for name in old if name.endswith(".png")]
    assert len(pictures) == len({old[name] for name in pictures}) == 9 + 6 + 7 + 3 * 4
    new = content(changed(SMALL, seed=1).locate(tmp_path))
    assert not {new[name] for name in new} & {old[name] for name in pictures}


def test_a_further_hospital_or_picture_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    larger = changed(SMALL, hospitals=4, train_images=11, test_images=6).locate(tmp_path)
    old, new = content(folder), content(larger)
    pictures = [name for name in old if name.endswith(".png")]
    assert all(old[name] == new[name] for name in pictures)
    table = (larger / "images.csv").read_text().splitlines()
    assert set((folder / "images.csv").read_text().splitlines()) <= set(table)


def test_the_table_of_the_folder(folder: Path) -> None:
    with (folder / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "class", "patient", "site", "side"]
    assert rows[0]["file"] == "hospital-1/train-0001-1.png"
    assert rows[0]["patient"] == "hospital-1-train-0001"
    counts = Counter((row["site"], row["side"]) for row in rows)
    assert [counts[f"hospital-{number}", "train"] for number in (1, 2, 3)] == [9, 6, 7]
    assert [counts[f"hospital-{number}", "test"] for number in (1, 2, 3)] == [4, 4, 4]


def test_read_as_a_folder_of_anybodys(folder: Path) -> None:
    """The loader of such folders, told nothing, finds the same classes and the same cases."""
    assert ImageFolder().pool(folder) == SMALL.pool(folder)
    cases = SMALL.pool(folder).cases
    for case, image in zip(cases, SMALL.images(cases), strict=True):
        assert image.shape == (16, 16, 3)
        assert case.patient.startswith(f"{case.site}-{case.side}-")
    [picture] = SMALL.images([case for case in cases if case.name == "hospital-2_test-0001-1"])
    slot = next(slot for slot in slots_of(SMALL) if slot.file == "hospital-2/test-0001-1.png")
    assert np.array_equal(picture, make_picture(SMALL, camera_of(SMALL, 1), slot))


def test_a_lesion_has_one_class_and_one_to_three_pictures() -> None:
    """Half of the lesions have one picture, three tenths two, a fifth three: 1.7 on average."""
    lesions: dict[str, list[Slot]] = {}
    for slot in slots_of(ImagePhantom(train_images=1000)):
        lesions.setdefault(slot.patient, []).append(slot)
    assert all(len({(slot.kind, slot.site, slot.side) for slot in slots}) == 1 for slots in lesions.values())
    assert {len(slots) for slots in lesions.values()} == {1, 2, 3}
    assert np.mean([len(slots) for slots in lesions.values()]) == pytest.approx(1.7, abs=0.1)


def test_pictures_of_one_lesion_are_views_of_the_same_thing() -> None:
    """Between two views of a lesion the pixels differ, the lesion does not; the next lesion is another one."""
    slots = [
        Slot(hospital=0, side="train", lesion=lesion, view=view, kind="globular")
        for lesion in (0, 1)
        for view in (0, 1)
    ]
    camera = camera_of(SMALL, 0)
    first, second, other, _ = (lesion_of(SMALL, camera, slot) for slot in slots)
    assert first.traits == second.traits
    assert np.array_equal(first.globules, second.globules)
    assert first.traits != other.traits
    views = [make_picture(SMALL, camera, slot).astype(int) for slot in slots[:2]]
    assert np.abs(views[0] - views[1]).mean() > 3


def test_sides_do_not_share_lesions() -> None:
    camera = camera_of(SMALL, 0)
    train, test = (Slot(hospital=0, side=side, lesion=0, view=0, kind="globular") for side in ("train", "test"))
    assert lesion_of(SMALL, camera, train).traits != lesion_of(SMALL, camera, test).traits


@pytest.mark.parametrize("skew", [0.0, 0.3, 1.0])
def test_classes_have_the_shares_that_are_asked_for(skew: float) -> None:
    phantom = ImagePhantom(hospitals=7, classes=7, skew=skew)
    counts = Counter((slot.hospital, slot.side, slot.kind) for slot in slots_of(phantom))
    for hospital in range(7):
        for number, kind in enumerate(phantom.names):
            for side, total in (("train", 200), ("test", 100)):
                expected = shares(phantom, hospital)[number] * total
                assert abs(counts[hospital, side, kind] - expected) <= 3


def test_shares_fall_geometrically() -> None:
    """Skew 1/2, three classes: 1, 1/2, 1/4 of 7/4, so 4/7, 2/7, 1/7; the first class of hospital k is k mod 3."""
    phantom = changed(SMALL, skew=0.5, hospitals=5, train_images=40)
    for hospital in range(5):
        assert sorted(shares(phantom, hospital)) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
        assert int(np.argmax(shares(phantom, hospital))) == hospital % 3
    assert {tuple(shares(phantom, hospital)) for hospital in range(5)} > {tuple(shares(phantom, 0))}


def test_classes_are_the_first_kinds_by_name() -> None:
    assert ImagePhantom().names == ("globular", "homogeneous", "reticular", "starburst", "ulcerated")
    assert set(ImagePhantom(classes=7).names) == set(KINDS)
    assert TINY.names == ("globular", "reticular")


def test_hospitals_differ_by_their_cameras_and_not_without_shift() -> None:
    cameras = [camera_of(SMALL, number) for number in range(len(CAMERAS) + 1)]
    assert len(set(cameras)) == len(cameras)
    assert cameras[0] != camera_of(changed(SMALL, seed=1), 0)
    alike = changed(SMALL, shift=0.0)
    assert len({camera_of(alike, number) for number in range(7)}) == 1
    assert alike._folder_name() != SMALL._folder_name()


def test_the_mean_picture_of_a_class_tells_hospitals_apart() -> None:
    """With shift 1 the mean colours of two hospitals differ more than three times as much as without."""

    def spread(shift: float) -> float:
        phantom = ImagePhantom(hospitals=4, train_images=8, test_images=1, size=16, classes=2, skew=0.0, shift=shift)
        slots = [slot for slot in slots_of(phantom) if slot.side == "train"]
        means = [
            np.mean(
                [make_picture(phantom, camera_of(phantom, number), slot) for slot in slots if slot.hospital == number],
                axis=(0, 1, 2),
            )
            for number in range(4)
        ]
        return float(np.std(means, axis=0).mean())

    assert spread(1.0) > 3 * spread(0.0)


def test_written_where_one_wants_it(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    (tmp_path / "mine").mkdir()
    write_image_phantom(TINY, tmp_path / "mine", lambda done, total: seen.append((done, total)))
    assert seen == [(number, 8) for number in range(1, 9)]
    assert content(tmp_path / "mine") == content(TINY.locate(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"mine: expected a folder that is new or empty, found 'hospital-1' in it"):
        write_image_phantom(TINY, tmp_path / "mine")


def test_two_processes_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        folders = pool.map(TINY.locate, [tmp_path, tmp_path])
    assert folders[0] == folders[1]
    assert [path.name for path in tmp_path.iterdir()] == [folders[0].name]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_table", stop)
    with pytest.raises(KeyboardInterrupt):
        build(TINY, tmp_path / "phantoms")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file: expected a folder to write phantoms to: .*; set WARDROUND_CACHE"):
        build(TINY, tmp_path / "file" / "phantoms")


def test_the_folder_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "there"))
    assert TINY.locate(None).parent == tmp_path / "there"


def test_a_damaged_folder_says_what_to_do(tmp_path: Path) -> None:
    folder = TINY.locate(tmp_path)
    (folder / "hospital-1" / "train-0001-1.png").unlink()
    advice = f"these pictures are made by the program: delete {folder} and run again"
    assert TINY.pool(folder).problems[-1] == advice
    (folder / "images.csv").write_text("file\n")
    with pytest.raises(DataError, match=r"(?s)images.csv: expected the columns .*delete .*phantom-images-.* and run"):
        TINY.pool(folder)


def test_mistakes_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"size: expected 16 or more, got 8; .*train_images: expected one number or 3"):
        ImagePhantom(hospitals=3, size=8, train_images=(1, 2))
    with pytest.raises(ValueError, match="test_images: expected 1 or more, got 0"):
        ImagePhantom(test_images=0)
    with pytest.raises(ValueError, match=r"shift: expected 0 or more, got nan; classes: expected 2 to 7, got 8; skew"):
        ImagePhantom(classes=8, skew=1.5, shift=float("nan"))
    with pytest.raises(ValueError, match=r"difficulty: expected one of easy, medium, hard, got 'harder'"):
        ImagePhantom(difficulty="harder")  # type: ignore[arg-type]  # on purpose


def test_a_class_without_a_picture_is_a_mistake() -> None:
    """Skew 1: hospital k has class k mod 3 alone, and two hospitals leave the third class out."""
    with pytest.raises(
        ValueError, match=r"classes: expected a picture of every class, starburst would have none; make"
    ):
        changed(SMALL, skew=1.0, hospitals=2, train_images=9)
    assert changed(SMALL, skew=1.0).names == ("globular", "reticular", "starburst")
