"""A picture of a predicted volume: one slice, without and with the classes in colour, and how large they are.

Legend: S slices, H rows, W columns, C foreground classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..datasets.contract import Volume
from .reports.figures import class_rgb, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPACITY = 0.5
"""Of a class's colour above the image."""


def overlay(volume: Volume, labels: NDArray[np.uint8], classes: Sequence[str]) -> bytes:
    """The slice with the largest predicted area, in the proportions of the body; the middle one where there is none.

    Args:
        volume: As it was read.
        labels: (S, H, W), 0 is background.
        classes: Names of the labels 1..C.

    Returns:
        A PNG file.
    """
    number = shown_slice(labels)
    low, high = float(volume.image.min()), float(volume.image.max())
    grey = (volume.image[number] - low) / max(high - low, 1e-12)
    names = legend_texts(volume, labels, classes)
    rows, columns = (pixels * mm for pixels, mm in zip(grey.shape, volume.spacing_mm[1:], strict=True))
    height = float(np.clip(4 * rows / columns, 1.5, 8)) + 0.7 + 0.25 * len(names) / 2

    def draw(figure: Figure) -> None:
        _draw(figure, grey, labels[number], volume.spacing_mm[1] / volume.spacing_mm[2], names)
        figure.suptitle(f"{volume.case.name}, slice {number} of 0 to {len(labels) - 1}")

    return png(draw, (8.5, height))


def shown_slice(labels: NDArray[np.uint8]) -> int:
    """The slice with the largest predicted area; the middle one where nothing is predicted."""
    areas = np.count_nonzero(labels, axis=(1, 2))
    return int(areas.argmax()) if areas.any() else len(labels) // 2


def legend_texts(volume: Volume, labels: NDArray[np.uint8], classes: Sequence[str]) -> list[str]:
    """Every class with its predicted volume in millilitres."""
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    counts = np.bincount(labels.reshape(-1), minlength=len(classes) + 1)
    return [f"{name} {_ml_text(counts[label] * voxel_ml)}" for label, name in enumerate(classes, start=1)]


def _ml_text(ml: float) -> str:
    """Three digits, or the whole number where there are more."""
    return f"{ml:.0f} ml" if ml >= 1000 else f"{ml:.3g} ml"


def _draw(
    figure: Figure, grey: NDArray[np.float32], labels: NDArray[np.uint8], aspect: float, names: Sequence[str]
) -> None:
    """Two pictures beside each other, and the key of the colours below."""
    from matplotlib.patches import Patch

    coloured = np.repeat(grey[:, :, None], 3, axis=2)  # (H, W, RGB)
    for label in range(1, len(names) + 1):
        area = labels == label
        coloured[area] = (1 - OPACITY) * coloured[area] + OPACITY * class_rgb(label)
    for axes, picture in zip(figure.subplots(1, 2), (np.repeat(grey[:, :, None], 3, axis=2), coloured), strict=True):
        axes.imshow(picture.clip(0, 1), interpolation="nearest", aspect=aspect)
        axes.set_axis_off()
    key = [Patch(color=tuple(class_rgb(label)), label=name) for label, name in enumerate(names, start=1)]
    figure.legend(handles=key, loc="outside lower center", ncols=2, frameon=False)
