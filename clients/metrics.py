"""Volumetric scores of one predicted label map, per class, at native resolution.

Empty masks: Dice is 1 when truth and prediction are both empty and 0 when one is; HD95 and surface Dice are undefined
(None) as soon as either is empty. Averaging is the caller's: over volumes, then over classes.

Legend: S slices, H rows, W columns, C foreground classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray

Spacing = tuple[float, float, float]
LabelMap = NDArray[np.uint8]


def dice(prediction: LabelMap, truth: LabelMap, label: int) -> float:
    """``2 |P & T| / (|P| + |T|)`` of one class over the whole volume, in [0, 1].

    Args:
        prediction: (S, H, W) labels 0..C.
        truth: (S, H, W) labels 0..C.
        label: The class.
    """
    predicted, true = prediction == label, truth == label
    if not predicted.any() and not true.any():
        return 1.0
    if not predicted.any() or not true.any():
        return 0.0
    return float(compute_dice(_batch(predicted), _batch(true), ignore_empty=False))


def hd95_mm(prediction: LabelMap, truth: LabelMap, label: int, spacing_mm: Spacing) -> float | None:
    """95th percentile of the symmetric surface distance in millimetres; None when either mask is empty.

    MONAI's definition: the larger of the two directed 95th percentiles over edge voxels.
    """
    predicted, true = prediction == label, truth == label
    if not predicted.any() or not true.any():
        return None
    with _without_monai_talking_to_itself():
        distance = compute_hausdorff_distance(
            _batch(predicted), _batch(true), include_background=True, percentile=95, spacing=list(spacing_mm)
        )
    return float(distance)


def surface_dice(
    prediction: LabelMap, truth: LabelMap, label: int, spacing_mm: Spacing, tolerance_mm: float
) -> float | None:
    """Share of both surfaces that lies within ``tolerance_mm`` of the other, in [0, 1]; None when either is empty.

    Source: normalised surface Dice (Nikolov et al., 2018), as MONAI computes it.
    """
    predicted, true = prediction == label, truth == label
    if not predicted.any() or not true.any():
        return None
    with _without_monai_talking_to_itself():
        score = compute_surface_dice(
            _batch(predicted), _batch(true), [tolerance_mm], include_background=True, spacing=list(spacing_mm)
        )
    return float(score)


def _batch(mask: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]  # (S, H, W) -> (1, 1, S, H, W)


@contextmanager
def _without_monai_talking_to_itself() -> Iterator[None]:
    """MONAI 1.6 warns users of an argument that only MONAI passes to MONAI; nobody else can act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)
        yield
