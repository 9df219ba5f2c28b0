"""What one case is like, in a few numbers: for partitions, checks and tables of who got what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from .contract import Case, Volume

BINS = 64
PERCENTILES = (0.5, 1.0, 50.0, 99.0, 99.5)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Measured on one volume.

    Args:
        shape: (S, H, W).
        spacing_mm: (slice, row, column) spacing in millimetres.
        label_ml: Volume of each class 1..C in millilitres.
        percentiles: Of the intensities, after the data set's clipping, at :data:`PERCENTILES`.
        histogram: Share of the voxels in each of :data:`BINS` equal bins between ``low`` and ``high``.
        low: Smallest intensity.
        high: Largest intensity.
        unclipped: The 0.5 and 99.5 percentiles of the intensities before the data set's clipping; None where it does
            not say.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    label_ml: tuple[float, ...]
    percentiles: tuple[float, ...]
    histogram: tuple[float, ...]
    low: float
    high: float
    unclipped: tuple[float, float] | None = None

    @property
    def scale(self) -> float:
        """How large the intensities are: the larger absolute value of the outer two percentiles."""
        return max(abs(self.percentiles[0]), abs(self.percentiles[-1]))


def describe(volume: Volume, num_classes: int) -> Facts:
    """Measures a volume.

    Args:
        volume: The volume.
        num_classes: C.
    """
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    counts = [np.count_nonzero(volume.label == label) for label in range(1, num_classes + 1)]
    low, high = float(volume.image.min()), float(volume.image.max())
    histogram, _ = np.histogram(volume.image, bins=BINS, range=(low, high if high > low else low + 1))
    slices, rows, columns = volume.image.shape
    return Facts(
        shape=(slices, rows, columns),
        spacing_mm=volume.spacing_mm,
        label_ml=tuple(float(count) * voxel_ml for count in counts),
        percentiles=tuple(float(value) for value in np.percentile(volume.image, PERCENTILES)),
        histogram=tuple(float(share) for share in histogram / volume.image.size),
        low=low,
        high=high,
        unclipped=volume.intensities,
    )


def no_facts(case: Case) -> NoReturn:
    """Measures nothing: only volumes have facts.

    Raises:
        ValueError: a partition asks for those of an image with a class.
    """
    raise ValueError(f"split.partition: expected one that suits images with classes, got one that measures {case.name}")
