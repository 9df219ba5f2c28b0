"""Volumetric scores of one predicted label map, per class, at native resolution.

Empty masks: Dice is 1 when truth and prediction are both empty and 0 when one is; HD95 and surface Dice are undefined
(None) as soon as either is empty. Averaging is the caller's: over volumes, then over classes.

Legend: S slices, H rows, W columns, s, h, w of the smallest box around both masks, C foreground classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray
from torch import Tensor

Spacing = tuple[float, float, float]
LabelMap = NDArray[np.uint8]
Counts = NDArray[np.int64]


def counted(prediction: LabelMap, truth: LabelMap, num_classes: int) -> Counts:
    """How many voxels have which label in the truth (rows) and in the prediction (columns), in one pass.

    Args:
        prediction: (S, H, W) labels 0..C.
        truth: (S, H, W) labels 0..C.
        num_classes: C.

    Returns:
        (C + 1, C + 1) int64.

    Raises:
        ValueError: the two are not of one shape.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"expected a prediction of the shape of the truth {truth.shape}, got {prediction.shape}")
    size = num_classes + 1
    dtype = torch.uint8 if size**2 <= 256 else torch.int32  # a byte per voxel where pairs fit into one
    predicted, true = (torch.from_numpy(np.ascontiguousarray(labels)).to(dtype) for labels in (prediction, truth))
    counts: Counts = torch.bincount((true * size + predicted).flatten(), minlength=size**2).view(size, size).numpy()
    return counts


def overlap(counts: Counts, labels: Iterable[int]) -> float:
    """``2 |P & T| / (|P| + |T|)`` of a union of classes over a whole volume, in [0, 1]; exact but for one rounding.

    Args:
        counts: What :func:`counted` gave.
        labels: The classes of the union.
    """
    chosen = sorted(set(labels))
    size = counts[chosen].sum() + counts[:, chosen].sum()
    both = counts[np.ix_(chosen, chosen)].sum()
    return float(np.float32(2 * both) / np.float32(size)) if size else 1.0  # in single precision, as MONAI gives it


def dice(prediction: LabelMap, truth: LabelMap, label: int) -> float:
    """``2 |P & T| / (|P| + |T|)`` of one class over the whole volume, in [0, 1].

    Args:
        prediction: (S, H, W) labels 0..C.
        truth: (S, H, W) labels 0..C.
        label: The class.
    """
    predicted, true = ((labels == label).astype(np.uint8) for labels in (prediction, truth))
    return overlap(counted(predicted, true, 1), [1])


def hd95_mm(prediction: LabelMap, truth: LabelMap, label: int, spacing_mm: Spacing) -> float | None:
    """95th percentile of the symmetric surface distance in millimetres; None when either mask is empty.

    MONAI's definition: the larger of the two directed 95th percentiles over edge voxels.
    """
    masks = _masks(prediction, truth, label)
    return None if masks is None else _hd95_mm(*masks, spacing_mm)


def surface_dice(
    prediction: LabelMap, truth: LabelMap, label: int, spacing_mm: Spacing, tolerance_mm: float
) -> float | None:
    """Share of both surfaces that lies within ``tolerance_mm`` of the other, in [0, 1]; None when either is empty.

    Source: normalised surface Dice (Nikolov et al., 2018), as MONAI computes it.
    """
    masks = _masks(prediction, truth, label)
    return None if masks is None else _surface_dice(*masks, spacing_mm, tolerance_mm)


def surface_scores(
    prediction: LabelMap, truth: LabelMap, label: int, spacing_mm: Spacing, tolerance_mm: float
) -> tuple[float | None, float | None]:
    """:func:`hd95_mm` and :func:`surface_dice` of one class; None when either mask is empty."""
    masks = _masks(prediction, truth, label)
    if masks is None:
        return None, None
    return _hd95_mm(*masks, spacing_mm), _surface_dice(*masks, spacing_mm, tolerance_mm)


def _hd95_mm(predicted: Tensor, true: Tensor, spacing_mm: Spacing) -> float:
    with _without_monai_talking_to_itself():
        distance = compute_hausdorff_distance(
            predicted, true, include_background=True, percentile=95, spacing=list(spacing_mm)
        )
    return float(distance)


def _surface_dice(predicted: Tensor, true: Tensor, spacing_mm: Spacing, tolerance_mm: float) -> float:
    with _without_monai_talking_to_itself():
        score = compute_surface_dice(predicted, true, [tolerance_mm], include_background=True, spacing=list(spacing_mm))
    return float(score)


def _masks(prediction: LabelMap, truth: LabelMap, label: int) -> tuple[Tensor, Tensor] | None:
    """Both masks of a class (1, 1, s, h, w), cut to their common box; None when either is empty.

    Distances are between voxels of the masks and there is nothing beyond the box, so that cutting is exact.
    """
    predicted, true = prediction == label, truth == label
    if not predicted.any() or not true.any():
        return None
    either = predicted | true
    on = [np.flatnonzero(either.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(places[0], places[-1] + 1) for places in on)
    return _batch(predicted[box]), _batch(true[box])


def _batch(mask: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]  # (s, h, w) -> (1, 1, s, h, w)


@contextmanager
def _without_monai_talking_to_itself() -> Iterator[None]:
    """MONAI 1.6 warns users of an argument that only MONAI passes to MONAI; nobody else can act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)
        yield
