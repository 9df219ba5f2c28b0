"""Scores of a label map: by hand, and to the last bit those of MONAI on whole masks, one class at a time."""

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice

from wardround.clients.metrics import counted, dice, hd95_mm, overlap, surface_dice, surface_scores


def cube(start: int, stop: int, label: int = 1) -> np.ndarray:
    volume = np.zeros((8, 8, 8), dtype=np.uint8)
    volume[start:stop, 2:6, 2:6] = label
    return volume


def blobs(seed: int, classes: int, shape: tuple[int, int, int] = (7, 20, 13)) -> np.ndarray:
    """Boxes of random classes at random places, some of them at the border."""
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape, dtype=np.uint8)
    for _ in range(3 * classes):
        corner = [rng.integers(0, side) for side in shape]
        box = tuple(slice(start, start + rng.integers(1, 6)) for start in corner)
        volume[box] = rng.integers(0, classes + 1)
    return volume


def mask(labels: np.ndarray, chosen: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.isin(labels, chosen).astype(np.float32))[None, None]


def test_dice_by_hand() -> None:
    """4 and 4 slices of 16 voxels, 2 of them shared: 2 * 32 / (64 + 64) = 0.5."""
    assert dice(cube(0, 4), cube(2, 6), 1) == pytest.approx(0.5)


def test_dice_of_empty_masks() -> None:
    assert dice(cube(0, 4), cube(0, 4), 2) == 1.0
    assert dice(cube(0, 4), cube(0, 4, label=2), 1) == 0.0
    assert dice(cube(0, 4, label=2), cube(0, 4), 1) == 0.0


def test_voxels_are_counted_by_hand() -> None:
    """Truth in rows, prediction in columns: one voxel of class 2 taken for 1, one of background for 2, two right."""
    truth, prediction = (np.array(values, dtype=np.uint8).reshape(1, 2, 2) for values in ([2, 0, 1, 0], [1, 2, 1, 0]))
    assert counted(prediction, truth, 2).tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("classes", [1, 2, 13, 15, 16, 200])
def test_dice_of_every_class_is_that_of_monai(classes: int) -> None:
    """15 classes: the last whose pairs with the background fit into a byte."""
    truth, prediction = blobs(0, classes), blobs(1, classes)
    truth[0, 0, 0] = prediction[0, 0, 0] = truth[1, 0, 0] = classes
    counts = counted(prediction, truth, classes)
    assert (counts.shape, counts.sum()) == ((classes + 1, classes + 1), truth.size)
    both = [label for label in range(1, classes + 1) if (truth == label).any() and (prediction == label).any()]
    assert both
    for chosen in [*([label] for label in both), [1, classes]]:
        expected = compute_dice(mask(prediction, chosen), mask(truth, chosen), ignore_empty=False)
        assert overlap(counts, chosen) == float(expected)
    assert [dice(prediction, truth, label) for label in both] == [overlap(counts, [label]) for label in both]


def test_maps_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of the shape of the truth \(8, 8, 8\), got \(1, 8, 8\)"):
        counted(cube(0, 4)[:1], cube(0, 4), 1)


def test_hd95_is_in_millimetres_of_the_right_axis() -> None:
    """One cube moved by one slice of 3 mm: the moved face is 3 mm away; at 1 mm in-plane nothing else is farther."""
    assert hd95_mm(cube(2, 5), cube(3, 6), 1, (3.0, 1.0, 1.0)) == pytest.approx(3.0)
    assert hd95_mm(cube(2, 5), cube(2, 5), 1, (3.0, 1.0, 1.0)) == 0.0


def test_surface_dice_forgives_within_its_tolerance_only() -> None:
    spacing = (2.0, 1.0, 1.0)
    assert surface_dice(cube(2, 5), cube(3, 6), 1, spacing, 2.0) == pytest.approx(1.0)
    assert surface_dice(cube(2, 5), cube(3, 6), 1, spacing, 1.9) < 0.9


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy.*:FutureWarning")
@pytest.mark.parametrize("seed", range(4))
def test_masks_cut_to_their_box_have_the_surfaces_of_whole_ones(seed: int) -> None:
    """Bit for bit: MONAI looks at all of the volume here. Boxes in the middle, at the border, and one voxel thick."""
    truth, prediction = blobs(seed, 3), blobs(seed + 10, 3)
    truth[3, 7:9, 5] = prediction[3, 8:12, 5] = 4  # thin, and with room around it
    spacing, tolerance = (2.5, 0.7, 1.1), 1.5
    for label in (label for label in range(1, 5) if (truth == label).any() and (prediction == label).any()):
        masks = mask(prediction, [label]), mask(truth, [label])
        how = {"include_background": True, "spacing": list(spacing)}
        distance = float(compute_hausdorff_distance(*masks, percentile=95, **how))
        share = float(compute_surface_dice(*masks, [tolerance], **how))
        assert surface_scores(prediction, truth, label, spacing, tolerance) == (distance, share)
        assert hd95_mm(prediction, truth, label, spacing) == distance
        assert surface_dice(prediction, truth, label, spacing, tolerance) == share


def test_distances_to_an_empty_mask_are_undefined() -> None:
    for prediction, truth in ((cube(0, 0), cube(2, 5)), (cube(2, 5), cube(0, 0)), (cube(0, 0), cube(0, 0))):
        assert hd95_mm(prediction, truth, 1, (1.0, 1.0, 1.0)) is None
        assert surface_dice(prediction, truth, 1, (1.0, 1.0, 1.0), 1.0) is None
        assert surface_scores(prediction, truth, 1, (1.0, 1.0, 1.0), 1.0) == (None, None)
