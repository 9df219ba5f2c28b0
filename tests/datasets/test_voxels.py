"""What is measured on voxels before they are clipped."""

from __future__ import annotations

import numpy as np
import pytest

from wardround.datasets import voxels
from wardround.datasets.voxels import intensities


def test_percentiles_by_hand() -> None:
    """Of 0..1000 the 0.5 and 99.5 percentiles are 5 and 995."""
    image = np.random.default_rng(0).permutation(1001).astype(np.float32).reshape(7, 11, 13)
    assert intensities(image) == (5.0, 995.0)


def test_a_large_image_is_looked_at_on_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 8 of 2 x 4 x 4 voxels: every second row and column. The others, which are larger, do not count."""
    monkeypatch.setattr(voxels, "SAMPLE", 8)
    image = np.full((2, 4, 4), 9, np.float32)
    image[:, ::2, ::2] = 1
    assert intensities(image) == (1.0, 1.0)
    image[1, 2, 2] = 3
    assert intensities(image)[1] == pytest.approx(1 + 2 * 0.965)  # rank 6.965 of 0..7, between 1 and 3
