"""Windows: which slices they hold, how they are resized and normalised, how an epoch is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from wardround.datasets.contract import Case, Volume
from wardround.datasets.windows import (
    HospitalWindows,
    PreparedVolume,
    Windows,
    epoch_batches,
    min_max,
    on_device,
    prepare,
)

CASE = Case(name="a", patient="a", image=Path("a.nii"), label=Path("b.nii"))


def volume(image: np.ndarray, label: np.ndarray | None = None) -> Volume:
    label = np.zeros(image.shape, np.uint8) if label is None else label
    return Volume(case=CASE, image=image.astype(np.float32), label=label, spacing_mm=(3.0, 2.0, 1.0), slice_axis=0)


def numbered(slices: int, first: int = 0) -> PreparedVolume:
    """Slice s is filled with ``first + s``."""
    images = torch.arange(first, first + slices, dtype=torch.float32).view(-1, 1, 1).repeat(1, 2, 2)
    labels = images.to(torch.uint8)
    return PreparedVolume(case=CASE, images=images, labels=labels, truth=labels, spacing_mm=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("slices", "table"),
    [
        (1, [[0, 0, 0, 0, 0]]),
        (2, [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]),
        (4, [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]),
    ],
)
def test_edge_slices_are_repeated_in_short_volumes(slices: int, table: list[list[int]]) -> None:
    assert HospitalWindows([numbered(slices)], Windows(depth=5)).table.tolist() == table


def test_windows_do_not_cross_volumes() -> None:
    windows = HospitalWindows([numbered(2), numbered(3, first=10)], Windows(depth=3))
    images, labels = windows.gather(torch.tensor([1, 2, 4]))
    assert images[:, :, 0, 0].tolist() == [[0, 1, 1], [10, 10, 11], [11, 12, 12]]
    assert labels[:, :, 0, 0].tolist() == [[0, 1, 1], [10, 10, 11], [11, 12, 12]]
    assert (images.dtype, labels.dtype) == (torch.float32, torch.uint8)
    assert (len(windows), windows.spans) == (5, (range(0, 2), range(2, 5)))


def test_depth_five_shows_every_slice_five_times() -> None:
    windows = HospitalWindows([numbered(7), numbered(1), numbered(5)], Windows(depth=5))
    assert torch.bincount(windows.table.flatten()).float().mean() == 5
    assert windows.table[:, 2].tolist() == list(range(13))


def test_the_key_of_a_volume_is_its_content() -> None:
    """A key is taken as it is; without one, shape, values and labels decide, and nothing else of a volume."""
    plain = numbered(4)
    assert replace(plain, key="abc").content == "abc"
    assert replace(plain, spacing_mm=(9.0, 9.0, 9.0)).content == numbered(4).content == plain.content
    others = [
        numbered(5),
        numbered(4, first=1),
        replace(plain, labels=plain.labels + 1),
        replace(plain, images=plain.images.view(4, 1, 4), labels=plain.labels.view(4, 1, 4)),
    ]
    assert len({plain.content, *(other.content for other in others)}) == 5


def test_keys_of_windows_follow_what_they_hold() -> None:
    """The same volumes have the same keys wherever they lie; cut or labelled otherwise, they do not."""
    volumes = [numbered(2), numbered(3)]
    windows = HospitalWindows(volumes, Windows())
    keys = windows.volume_keys()
    assert len(set(keys)) == 2
    assert windows.to("cpu").volume_keys() == keys
    assert HospitalWindows(volumes[1:], Windows()).volume_keys() == keys[1:]
    flipped = windows.relabelled([0, 2, 1])
    others = [HospitalWindows(volumes, Windows(depth=3)), HospitalWindows(volumes, Windows(normalise="window"))]
    assert not set(keys) & {key for other in (*others, flipped) for key in other.volume_keys()}
    assert windows.volume_keys() == keys


def test_window_normalisation_spans_all_slices_of_the_window() -> None:
    """Window 1 of 0, 1, 2, 3 holds 0, 1, 2: min-max gives 0, 1/2, 1; a constant window gives 0."""
    windows = HospitalWindows([numbered(4)], Windows(depth=3, normalise="window"))
    assert windows.gather(torch.tensor([1]))[0][0, :, 0, 0].tolist() == [0, 0.5, 1]
    constant = HospitalWindows([numbered(1, first=7)], Windows(depth=3, normalise="window"))
    assert constant.gather(torch.tensor([0]))[0].unique().tolist() == [0]


def test_volume_is_normalised_before_resizing_and_constant_is_zero() -> None:
    image = np.array([[[-3.0, 1.0]], [[5.0, 1.0]]]).repeat(2, axis=1)
    prepared = prepare(volume(image), 2, Windows())
    assert prepared.images[:, 0].tolist() == [[0, 0.5], [1, 0.5]]
    assert prepare(volume(np.full((2, 3, 3), 9.0)), 4, Windows()).images.unique().tolist() == [0]


def test_window_normalisation_leaves_units_to_gather() -> None:
    image = np.array([[[-3.0, 1.0]], [[5.0, 1.0]]]).repeat(2, axis=1)
    prepared = prepare(volume(image), 2, Windows(normalise="window"))
    assert prepared.images[:, 0].tolist() == [[-3, 1], [5, 1]]


def test_resizing_averages_images_and_keeps_labels_whole() -> None:
    """Every fourth column is white, and none of those that plain bilinear sampling looks at: the mean is 1/4."""
    stripes = (np.indices((1, 16, 16))[2] % 4 == 0).astype(np.uint8)
    prepared = prepare(volume(stripes, 2 * stripes), 4, Windows())
    assert prepared.images[:, 1:3, 1:3].sub(0.25).abs().max() < 0.1
    assert set(prepared.labels.unique().tolist()) <= {0, 2}
    assert prepared.labels.dtype == torch.uint8


def test_labels_take_the_pixel_whose_centre_is_nearest() -> None:
    """3 columns to 6: centres 1/4, 3/4, 5/4, ... give 0 0 1 1 2 2; to 2: centres 3/4 and 9/4 lie in pixels 0 and 2."""
    label = np.array([[[0, 1, 2]] * 3], np.uint8)
    assert prepare(volume(label, label), 6, Windows()).labels[0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert prepare(volume(label, label), 2, Windows()).labels[0, 0].tolist() == [0, 2]
    assert prepare(volume(label, label), 3, Windows()).labels[0].tolist() == label[0].tolist()


def test_native_grid_is_kept() -> None:
    prepared = prepare(volume(np.random.default_rng(0).normal(size=(3, 7, 5))), 8, Windows())
    assert prepared.images.shape == (3, 8, 8)
    assert (prepared.native_shape, prepared.spacing_mm) == ((3, 7, 5), (3.0, 2.0, 1.0))
    assert prepared.images.min() >= 0
    assert prepared.images.max() <= 1


def whole_at_once(given: Volume, size: int, windows: Windows) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain and hungry: every step on the whole volume."""
    images, labels = torch.from_numpy(given.image)[None, None], torch.from_numpy(given.label)[None, None]
    if windows.grid is not None:
        images = interpolate(images, windows.grid, mode="trilinear", align_corners=False)
        labels = interpolate(labels, windows.grid, mode="nearest-exact")
    images = min_max(images) if windows.normalise == "volume" else images
    images = interpolate(images[0].transpose(0, 1), (size, size), mode="bilinear", antialias=True)[:, 0]
    labels = interpolate(labels[0].transpose(0, 1), (size, size), mode="nearest-exact")[:, 0]
    return images.clamp(0, 1) if windows.normalise == "volume" else images, labels


@pytest.mark.parametrize("normalise", ["volume", "window"])
@pytest.mark.parametrize("grid", [None, (20, 24, 18)])
@pytest.mark.parametrize(("slices", "size"), [(1, 8), (16, 32), (37, 16), (37, 21)])
def test_a_few_slices_at_a_time_are_the_whole_volume_at_once(
    normalise: str, grid: tuple[int, int, int] | None, slices: int, size: int
) -> None:
    rng = np.random.default_rng(0)
    shape, windows = (slices, 21, 17), Windows(normalise=normalise, grid=grid)
    given = volume(rng.normal(900, 50, shape), rng.integers(0, 3, shape, dtype=np.uint8))
    ready = prepare(given, size, windows)
    images, labels = whole_at_once(given, size, windows)
    assert torch.equal(ready.images, images)
    assert torch.equal(ready.labels, labels)
    assert ready.native_shape == shape


def test_a_grid_is_between_the_slices() -> None:
    """4 slices to 2: their centres lie at 1/2 and 5/2; labels at 1 and 3 belong to slices 1 and 3. To 8: 1/4 apart."""
    image = np.arange(4.0).repeat(4).reshape(4, 2, 2)
    label = image.astype(np.uint8)
    half = prepare(volume(image, label), 2, Windows(normalise="window", grid=(2, 2, 2)))
    assert half.images[:, 0, 0].tolist() == [0.5, 2.5]
    assert half.labels[:, 0, 0].tolist() == [1, 3]
    double = prepare(volume(image, label), 2, Windows(normalise="window", grid=(8, 2, 2)))
    assert double.images[:, 0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert double.labels[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_grid_is_resampled_before_it_is_normalised_and_cut() -> None:
    image = np.arange(4.0).repeat(4).reshape(4, 2, 2)
    ready = prepare(volume(image), 4, Windows(grid=(2, 3, 5)))
    assert ready.images[:, 0, 0].tolist() == pytest.approx([0, 1], abs=1e-6)
    assert (ready.images.shape, ready.labels.shape, ready.native_shape) == ((2, 4, 4), (2, 4, 4), (4, 2, 2))
    assert HospitalWindows([ready, ready], Windows(depth=3)).table.tolist() == [
        [0, 0, 1],
        [0, 1, 1],
        [2, 2, 3],
        [2, 3, 3],
    ]


def test_min_max_survives_a_large_offset() -> None:
    assert min_max(torch.tensor([[4e5, 4e5 + 2, 4e5 + 1]])).tolist() == [[0, 1, 0.5]]


def test_epoch_shows_every_window_once_and_is_repeatable() -> None:
    batches = epoch_batches(10, 4, torch.Generator().manual_seed(1))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(torch.cat(batches).tolist()) == list(range(10))
    again = torch.cat(epoch_batches(10, 4, torch.Generator().manual_seed(1)))
    other = torch.cat(epoch_batches(10, 4, torch.Generator().manual_seed(2)))
    assert torch.equal(torch.cat(batches), again)
    assert not torch.equal(again, other)


@pytest.mark.parametrize("normalise", ["volume", "window"])
@pytest.mark.parametrize("depth", [1, 3])
def test_slices_of_several_volumes_are_those_of_one_tensor(depth: int, normalise: str) -> None:
    """Gathered where they lie, or from one tensor that holds them all."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 4), (1, 4, 4), (6, 4, 4)]
    volumes = [
        PreparedVolume(
            case=CASE,
            images=torch.rand(shape, generator=rng),
            labels=torch.randint(0, 3, shape, generator=rng, dtype=torch.uint8),
            truth=torch.zeros(shape, dtype=torch.uint8),
            spacing_mm=(1.0, 1.0, 1.0),
        )
        for shape in shapes
    ]
    windows = HospitalWindows(volumes, Windows(depth=depth, normalise=normalise))
    index = torch.tensor([9, 0, 3, 3, 4, 2])
    slices = windows.table[index]
    images = torch.cat([one.images for one in volumes])[slices]
    labels = torch.cat([one.labels for one in volumes])[slices]
    expected = (min_max(images) if normalise == "window" else images), labels
    for found in (windows, windows.to("cpu")):
        assert all(torch.equal(a, b) for a, b in zip(found.gather(index), expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(found.gather(index, "cpu"), expected, strict=True))
        assert found.gather(index[:0])[0].shape == (0, depth, 4, 4)
    assert windows.to("cpu").volumes == windows.volumes


def test_hospitals_on_a_device_share_the_volumes_that_they_share() -> None:
    """Volumes of 3, 2 and 4 slices; the second belongs to both hospitals, one of which reads its labels otherwise."""
    first, shared, last = numbered(3), numbered(2, first=10), numbered(4, first=20)
    here = {
        "a": HospitalWindows([first, shared], Windows(depth=3)),
        "b": HospitalWindows([last, shared], Windows(depth=3)).relabelled(range(1, 31)),
    }
    there = on_device(here, "cpu")
    for name, windows in here.items():
        index = torch.tensor([len(windows) - 1, 0, 3])
        assert all(torch.equal(*pair) for pair in zip(there[name].gather(index), windows.gather(index), strict=True))
        assert there[name].volumes == windows.volumes
    assert there["a"]._images is there["b"]._images
    assert [len(part) for part in there["a"]._images.parts] == [9]
    relabelled = there["a"].relabelled([7] * 30).gather(torch.tensor([4]))[1]
    assert relabelled.unique().tolist() == [7]
    again = there["b"].to("cpu")
    assert [len(part) for part in again._images.parts] == [6]
    assert torch.equal(again.gather(torch.tensor([5]))[1], here["b"].gather(torch.tensor([5]))[1])
    assert on_device({}, "cpu") == {}


def test_windows_say_where_their_slices_are() -> None:
    windows = HospitalWindows([numbered(2), numbered(3)], Windows())
    there = windows.to("meta")
    assert (windows.device.type, there.device.type) == ("cpu", "meta")
    images, labels = there.gather(torch.tensor([4, 0]))
    assert (images.device.type, labels.shape) == ("meta", (2, 1, 2, 2))


def test_volumes_are_not_copied() -> None:
    """They may be larger than memory."""
    volumes = [numbered(2), numbered(3)]
    windows = HospitalWindows(volumes, Windows())
    volumes[1].images[0] = 77
    assert windows.gather(torch.tensor([2]))[0].unique().tolist() == [77]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Windows(depth=4), "depth: expected an odd number of slices, 1 or more, got 4"),
        (
            lambda: Windows(depth=0, normalise="slice"),
            "depth: .*; normalise: expected 'volume' or 'window', got 'slice'",
        ),
        (lambda: Windows(grid=(4, 0, 4)), r"grid: expected three numbers of voxels .* above 0, got \(4, 0, 4\)"),
        (lambda: Windows(grid=(4, 4)), r"grid: expected three numbers"),  # type: ignore[arg-type]  # the mistake
        (lambda: HospitalWindows([], Windows()), "at least one volume"),
        (lambda: prepare(volume(np.zeros((1, 2, 2))), 0, Windows()), "image_size: expected .* got 0"),
        (lambda: epoch_batches(3, 0, torch.Generator()), "batch_size: expected .* got 0"),
    ],
)
def test_mistakes_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]  # a lambda


def test_volumes_of_two_sizes_are_refused() -> None:
    other = prepare(volume(np.zeros((1, 3, 3))), 3, Windows())
    with pytest.raises(ValueError, match=r"one in-plane size, got \[\(2, 2\), \(3, 3\)\]"):
        HospitalWindows([numbered(1), other], Windows())
