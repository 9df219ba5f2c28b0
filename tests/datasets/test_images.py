"""Images are resized once, cached under what decides them, and gathered as they were."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import MadeImages, make_files
from PIL import Image

from wardround.datasets import images
from wardround.datasets.contract import Case
from wardround.datasets.examples import Examples
from wardround.datasets.images import (
    RUN,
    HospitalImages,
    ImagePreparation,
    PreparedImages,
    images_on_device,
    num_bytes,
    resized,
)

NAMES = ("north-a-0", "north-b-0", "south-a-0", "south-c-0", "south-c-1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "cache"))
    return make_files(tmp_path / "files", NAMES)


def cases_of(folder: Path) -> tuple[Case, ...]:
    return MadeImages().pool(folder).cases


def prepare(folder: Path, size: int = 8, dataset: MadeImages | None = None) -> PreparedImages:
    return ImagePreparation(dataset=dataset or MadeImages(), image_size=size).prepare(cases_of(folder))


def numbered(count: int, size: int = 2) -> tuple[PreparedImages, tuple[Case, ...]]:
    """Image n has the value n mod 256 everywhere and the class n mod 3."""
    names = [f"x-{number:04d}" for number in range(count)]
    cases = tuple(
        Case(name=name, patient=name, image=Path(name), label=Path(name), target=number % 3)
        for number, name in enumerate(names)
    )
    pixels = (torch.arange(count) % 256).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, size, size)
    return PreparedImages(cases=cases, pixels=pixels), cases


# ---- resizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(45, 60), (28, 28), (64, 64), (9, 200)])
def test_resizing_is_that_of_pillow(shape: tuple[int, int]) -> None:
    """Bilinear with antialiasing, both sides to the same length; Pillow rounds a few values the other way."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    ours = resized(image[None], 64)[0].permute(1, 2, 0).numpy()
    assert ours.dtype == np.uint8
    assert np.abs(ours - pillow).max() <= 1
    assert np.mean(ours != pillow) < 0.02


def test_images_of_the_right_size_stay_and_company_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(resized(batch, 16).permute(0, 2, 3, 1).numpy(), batch)
    together, alone = resized(batch, 7), torch.cat([resized(image[None], 7) for image in batch])
    assert torch.equal(together, alone)
    monkeypatch.setattr(images, "CHUNK_VALUES", 2 * batch[0].size)
    mixed = [*batch, batch[0, :4], batch[0, :4], batch[1]]
    assert [chunk.shape[:2] for chunk in images._chunks(mixed)] == [(2, 16), (2, 16), (1, 16), (2, 4), (1, 16)]


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_an_entry_holds_every_image_in_the_order_of_names(folder: Path) -> None:
    prepared = prepare(folder)
    assert [case.name for case in prepared.cases] == list(NAMES)
    assert prepared.pixels.shape == (5, 3, 8, 8)
    for place, case in enumerate(prepared.cases):
        assert torch.equal(prepared.pixels[place], resized(np.load(case.image)[None], 8)[0])


def test_every_partition_of_the_same_cases_shares_one_entry(folder: Path) -> None:
    how = ImagePreparation(dataset=MadeImages(), image_size=8)
    cases = cases_of(folder)
    told: list[tuple[int, int]] = []
    assert how.prepare_all(cases, lambda *count: told.append(count)) == 5
    assert (told[0], told[-1]) == ((0, 5), (5, 5))
    other_classes = [replace(case, target=2, side="test", patient="one") for case in cases]
    mixed = [*reversed(other_classes), other_classes[0]]
    assert how.prepare_all(mixed) == 0
    assert how.prepare(mixed).key == how.prepare(cases).key
    assert [case.target for case in how.prepare(mixed).cases] == [2] * 5  # the cases are those that were given
    assert len(list((folder.parent / "cache" / "prepared").glob("*/*"))) == 1


def test_whatever_decides_the_pixels_decides_the_key(folder: Path) -> None:
    cases = cases_of(folder)

    def key(cases: tuple[Case, ...] = cases, size: int = 8, brighter: int = 0) -> str:
        return ImagePreparation(dataset=MadeImages(brighter=brighter), image_size=size)._key(cases)

    first = key()
    moved = (replace(cases[0], row=1), *cases[1:])
    others = [key(size=9), key(brighter=1), key(cases[1:]), key(moved), key((replace(cases[0], site="x"), *cases[1:]))]
    make_files(folder, [NAMES[0]], (11, 11))
    assert len({first, *others, key()}) == 7


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), os.unlink])
def test_a_damaged_entry_is_made_again(folder: Path, damage) -> None:
    before = prepare(folder)
    pixels = before.pixels.clone()
    (file,) = (folder.parent / "cache" / "prepared").rglob("pixels.npy")
    damage(file)
    assert torch.equal(prepare(folder).pixels, pixels)


def test_a_failure_leaves_nothing_behind(folder: Path) -> None:
    np.save(folder / "south-c-1.npy", np.zeros((4, 4), np.uint8))
    with pytest.raises(
        ValueError, match=r"south-c-1.npy: case south-c-1: .* \(H, W, 3\) of uint8, got \(4, 4\) of uint8"
    ):
        prepare(folder)
    left = [path for path in (folder.parent / "cache" / "prepared").rglob("*") if path.is_file()]
    assert left == []


def test_a_file_that_changes_while_it_is_read_is_an_error(folder: Path) -> None:
    class Unsteady(MadeImages):
        def images(self, cases):
            yield from super().images(cases)
            make_files(folder, [NAMES[0]], (3, 3))

    with pytest.raises(ValueError, match="expected files that stay as they are while they are read"):
        prepare(folder, dataset=Unsteady())
    assert not list((folder.parent / "cache" / "prepared").glob("*/*"))


def test_a_loader_that_breaks_its_promise_is_named(folder: Path) -> None:
    class Few(MadeImages):
        def images(self, cases):
            return super().images(cases[:-1])

    class Many(MadeImages):
        def images(self, cases):
            return super().images([*cases, cases[0]])

    class Unreadable(MadeImages):
        def images(self, cases):
            raise PermissionError(13, "Permission denied")
            yield

    with pytest.raises(ValueError, match="south-c-1: expected an image of every case, got none"):
        prepare(folder, dataset=Few())
    with pytest.raises(ValueError, match="south-c-1: expected one image per case, got more"):
        prepare(folder, dataset=Many())
    with pytest.raises(ValueError, match=r"north-a-0.npy: expected a readable image: .*Permission denied"):
        prepare(folder, dataset=Unreadable())


def test_mistakes_are_named(folder: Path) -> None:
    first, second = cases_of(folder)[:2]
    how = ImagePreparation(dataset=MadeImages(), image_size=8)
    with pytest.raises(ValueError, match="image_size: expected a number of pixels above 0, got 0"):
        ImagePreparation(dataset=MadeImages(), image_size=0)
    with pytest.raises(ValueError, match=r"several cases named \['north-a-0'\]"):
        how.prepare([first, replace(second, name=first.name)])
    with pytest.raises(ValueError, match="expected at least one case, got none"):
        how.prepare([])
    prepared = how.prepare([first])
    with pytest.raises(ValueError, match="north-b-0: expected one of the 1 prepared cases"):
        HospitalImages(prepared, [second])
    with pytest.raises(ValueError, match="north-a-0: expected a class from 0 to 255 as target, got None"):
        HospitalImages(prepared, [replace(first, target=None)])
    with pytest.raises(ValueError, match=r"pixels \(1, 3, size, size\) of torch.uint8, got \(2, 3, 8, 8\)"):
        PreparedImages(cases=(first,), pixels=torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


# ---- the images of a hospital ----------------------------------------------------------------------------------------


def test_gathered_images_are_the_pixels_over_255() -> None:
    """Images 5, 1 and 3 of the federation; the second and third of them: classes 1 % 3 and 3 % 3."""
    prepared, cases = numbered(6)
    own: Examples = HospitalImages(prepared, [cases[5], cases[1], cases[3]])
    found, classes = own.gather(torch.tensor([1, 2, 1]))
    assert found.shape == (3, 1, 3, 2, 2)
    assert (found.dtype, classes.dtype) == (torch.float32, torch.uint8)
    assert found[:, 0, 0, 0, 0].tolist() == pytest.approx([1 / 255, 3 / 255, 1 / 255], rel=1e-7)
    assert classes.tolist() == [[1], [0], [1]]
    assert (len(own), own.depth, own.targets.tolist()) == (3, 1, [2, 1, 0])


def test_a_hospital_without_images() -> None:
    prepared, _ = numbered(3)
    own = HospitalImages(prepared, [])
    found, classes = own.gather(torch.zeros(0, dtype=torch.int64))
    assert (len(own), own.spans, own.volume_keys()) == (0, (), [])
    assert (found.shape, classes.shape) == ((0, 1, 3, 2, 2), (0, 1))
    assert len(own.to("cpu")) == 0


def test_relabelled_classes_and_their_keys() -> None:
    prepared, cases = numbered(RUN + 10)
    own = HospitalImages(prepared, cases)
    flipped = own.relabelled([2, 1, 0])
    assert own.spans == flipped.spans == (range(RUN), range(RUN, RUN + 10))
    index = torch.arange(len(own))
    assert torch.equal(flipped.gather(index)[1], 2 - own.gather(index)[1])
    assert torch.equal(flipped.gather(index)[0], own.gather(index)[0])
    assert torch.equal(flipped.targets, 2 - own.targets)
    assert own.targets[:4].tolist() == [0, 1, 2, 0]  # as before
    assert len({*own.volume_keys(), *flipped.volume_keys()}) == 4


def test_keys_tell_what_a_run_holds_and_not_where_it_lies() -> None:
    prepared, cases = numbered(600)
    keys = HospitalImages(prepared, cases).volume_keys()
    assert len(keys) == 3
    assert HospitalImages(prepared, cases).to("cpu").volume_keys() == keys
    assert HospitalImages(prepared, cases[:RUN]).volume_keys() == keys[:1]
    assert HospitalImages(prepared, cases[1:]).volume_keys()[0] != keys[0]
    other = PreparedImages(cases=prepared.cases, pixels=prepared.pixels + 1)
    assert HospitalImages(other, cases).volume_keys()[0] != keys[0]
    named = PreparedImages(cases=prepared.cases, pixels=prepared.pixels, key="k")
    assert named.content == "k"


def test_hospitals_on_a_device_share_one_tensor_without_what_nobody_has() -> None:
    """Of 600 images two hospitals have 300 + 20, ten of them both: 310 images of 12 bytes."""
    prepared, cases = numbered(600)
    hospitals = {
        "one": HospitalImages(prepared, cases[299::-1]),
        "two": HospitalImages(prepared, cases[290:310]).relabelled([1, 1, 1]),
    }
    moved = images_on_device(hospitals, "cpu")
    assert moved["one"]._pixels is moved["two"]._pixels
    assert moved["one"]._pixels.shape == (310, 3, 2, 2)
    assert num_bytes(hospitals.values()) == num_bytes(moved.values()) == 310 * 12
    for name, own in hospitals.items():
        index = torch.arange(len(own)).flip(0)
        for here, there in zip(own.gather(index), moved[name].gather(index), strict=True):
            assert torch.equal(here, there)
    assert images_on_device({}, "cpu") == {}
    with pytest.raises(ValueError, match=r"expected images of one size, got \[\(3, 2, 2\), \(3, 4, 4\)\]"):
        images_on_device({**hospitals, "three": HospitalImages(*numbered(3, size=4))}, "cpu")


@pytest.mark.gpu
def test_images_on_a_gpu_have_the_same_bits() -> None:
    """Gathered there, and brought there from the host: all 256 values of a pixel."""
    own = HospitalImages(*numbered(300))
    index = torch.arange(300)
    here = own.gather(index)
    for there in (own.to("cuda").gather(index), own.gather(index, "cuda")):
        assert all(value.device.type == "cuda" for value in there)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
