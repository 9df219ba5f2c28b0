"""Windows: which slices they hold, how they are resized and normalised, how an epoch is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wardround.datasets.contract import Case, Volume
from wardround.datasets.windows import HospitalWindows, PreparedVolume, Windows, epoch_batches, min_max, prepare

CASE = Case(name="a", patient="a", image=Path("a.nii"), label=Path("b.nii"))


def volume(image: np.ndarray, label: np.ndarray | None = None) -> Volume:
    label = np.zeros(image.shape, np.uint8) if label is None else label
    return Volume(case=CASE, image=image.astype(np.float32), label=label, spacing_mm=(3.0, 2.0, 1.0))


def numbered(slices: int, first: int = 0) -> PreparedVolume:
    """Slice s is filled with ``first + s``."""
    images = torch.arange(first, first + slices, dtype=torch.float32).view(-1, 1, 1).repeat(1, 2, 2)
    return PreparedVolume(
        case=CASE, images=images, labels=images.to(torch.uint8), native_shape=(slices, 2, 2), spacing_mm=(1.0, 1.0, 1.0)
    )


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


def test_moved_windows_are_the_same() -> None:
    windows = HospitalWindows([numbered(3)], Windows(depth=3))
    moved = windows.to("cpu")
    index = torch.tensor([2, 0])
    assert all(torch.equal(a, b) for a, b in zip(windows.gather(index), moved.gather(index, "cpu"), strict=True))
    assert moved.volumes == windows.volumes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Windows(depth=4), "depth: expected an odd number of slices, 1 or more, got 4"),
        (
            lambda: Windows(depth=0, normalise="slice"),
            "depth: .*; normalise: expected 'volume' or 'window', got 'slice'",
        ),
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
