"""Checks and clipping of voxels that arrive a block at a time; for all file formats.

Blocks are of any shape; positions in messages are indices into the array that the blocks are parts of.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE = 2**17
"""So many voxels tell what the intensities of an image are; a copy of all would double what a volume takes."""

SHOWN = 10
"""How many labels out of range a message names."""


class ImageCheck:
    """Makes blocks of an image float32 and counts the voxels that are not finite."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def take(self, block: NDArray[Any], start: tuple[int, ...]) -> NDArray[np.float32]:
        """The block as float32.

        Args:
            block: Numbers of any dtype.
            start: The position of its first voxel in the whole array.
        """
        with np.errstate(over="ignore"):
            values = block.astype(np.float32, copy=False)
        finite = np.isfinite(values)
        if not finite.all():
            inside = tuple(int(i) for i in np.argwhere(~finite)[0])
            position = tuple(a + b for a, b in zip(start, inside, strict=True))
            self.first = self.first or f"{block[inside]} at {position}"
            self.count += int(finite.size - finite.sum())
        return values

    def problems(self) -> list[str]:
        """What was wrong with the blocks so far."""
        if not self.count:
            return []
        return [f"expected finite voxels, got {self.count} that are not as float32, first {self.first}"]


class LabelCheck:
    """Makes blocks of a mask uint8 and collects what is no label.

    Args:
        num_classes: C; labels are 0..C.
        merge_foreground: Every label above 0 becomes 1, before the check of the range.
    """

    def __init__(self, num_classes: int, *, merge_foreground: bool = False) -> None:
        self.num_classes, self.merge_foreground = num_classes, merge_foreground
        self.fraction: float | None = None
        self.outside: set[int] = set()
        self.image = ImageCheck()

    def take(self, block: NDArray[Any], start: tuple[int, ...]) -> NDArray[np.uint8]:
        """The block as uint8, 0 where it holds no label.

        Args:
            block: Numbers of any dtype, whole.
            start: The position of its first voxel in the whole array.
        """
        if block.dtype.kind == "f":
            block = self._whole(block, start)
        highest = np.inf if self.merge_foreground else self.num_classes
        if block.min() < 0 or block.max() > highest:
            wrong = (block < 0) | (block > highest)
            if len(self.outside) <= SHOWN:
                self.outside |= {int(value) for value in np.unique(block[wrong])}
            block = np.where(wrong, 0, block)
        return (block > 0 if self.merge_foreground else block).astype(np.uint8)

    def _whole(self, block: NDArray[Any], start: tuple[int, ...]) -> NDArray[Any]:
        """With 0 where a voxel is not a whole number."""
        self.image.take(block, start)
        whole = np.isfinite(block) & (block == np.rint(block))
        if whole.all():
            return block
        broken = np.isfinite(block) & ~whole
        if self.fraction is None and broken.any():
            self.fraction = float(block[broken][0])
        return np.where(whole, block, 0)

    def problems(self) -> list[str]:
        """What was wrong with the blocks so far."""
        lines = self.image.problems()
        if self.fraction is not None:
            lines.append(f"expected whole numbers as labels, got {self.fraction!r}")
        if self.outside:
            found = sorted(self.outside)
            more = f" and {len(found) - SHOWN} or more others" if len(found) > SHOWN else ""
            lines.append(f"expected labels 0 to {self.num_classes}, got {found[:SHOWN]}{more} too")
        return lines


def percentiles(image: NDArray[np.float32], of: tuple[float, float] | None) -> tuple[float, float] | None:
    """The values at two percentiles (in percent, linear between ranks) of a contiguous image; copies it once."""
    if of is None:
        return None
    low, high = np.percentile(image.reshape(-1), of)
    return float(low), float(high)


def intensities(image: NDArray[np.float32]) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles of an image (S, H, W): of a grid of at most :data:`SAMPLE` voxels."""
    step = ceil((image.size / SAMPLE) ** 0.5)
    low, high = np.percentile(image[:, ::step, ::step], (0.5, 99.5))
    return float(low), float(high)


def clip(image: NDArray[np.float32], *bounds: tuple[float, float] | None) -> NDArray[np.float32]:
    """Clips in place to each of the bounds that is given."""
    for pair in bounds:
        if pair is not None:
            np.clip(image, *pair, out=image)
    return image
