import numpy as np
import pytest

from wardround.clients.metrics import dice, hd95_mm, surface_dice


def cube(start: int, stop: int, label: int = 1) -> np.ndarray:
    volume = np.zeros((8, 8, 8), dtype=np.uint8)
    volume[start:stop, 2:6, 2:6] = label
    return volume


def test_dice_by_hand() -> None:
    """4 and 4 slices of 16 voxels, 2 of them shared: 2 * 32 / (64 + 64) = 0.5."""
    assert dice(cube(0, 4), cube(2, 6), 1) == pytest.approx(0.5)


def test_dice_of_empty_masks() -> None:
    assert dice(cube(0, 4), cube(0, 4), 2) == 1.0
    assert dice(cube(0, 4), cube(0, 4, label=2), 1) == 0.0
    assert dice(cube(0, 4, label=2), cube(0, 4), 1) == 0.0


def test_hd95_is_in_millimetres_of_the_right_axis() -> None:
    """One cube moved by one slice of 3 mm: the moved face is 3 mm away; at 1 mm in-plane nothing else is farther."""
    assert hd95_mm(cube(2, 5), cube(3, 6), 1, (3.0, 1.0, 1.0)) == pytest.approx(3.0)
    assert hd95_mm(cube(2, 5), cube(2, 5), 1, (3.0, 1.0, 1.0)) == 0.0


def test_surface_dice_forgives_within_its_tolerance_only() -> None:
    spacing = (2.0, 1.0, 1.0)
    assert surface_dice(cube(2, 5), cube(3, 6), 1, spacing, 2.0) == pytest.approx(1.0)
    assert surface_dice(cube(2, 5), cube(3, 6), 1, spacing, 1.9) < 0.9


def test_distances_to_an_empty_mask_are_undefined() -> None:
    for prediction, truth in ((cube(0, 0), cube(2, 5)), (cube(2, 5), cube(0, 0)), (cube(0, 0), cube(0, 0))):
        assert hd95_mm(prediction, truth, 1, (1.0, 1.0, 1.0)) is None
        assert surface_dice(prediction, truth, 1, (1.0, 1.0, 1.0), 1.0) is None
