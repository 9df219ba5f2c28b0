"""From volumes to training windows.

A window is D adjacent slices around one slice, with the edge slices repeated where the volume ends; there is one window
per slice. FLAP-SAM (arXiv 2407.21739) uses D = 5; a slice-wise model learns the same from D = 1, which shows each slice
once an epoch.

Legend: N windows of a hospital, D slices of a window, S slices of a volume, H rows, W columns, b windows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .contract import Case, Volume


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How volumes are cut.

    Args:
        depth: Slices of a window, odd.
        normalise: Min-max to [0, 1] over the whole ``volume`` or over each ``window`` (FLAP-SAM).
    """

    depth: int = 1
    normalise: Literal["volume", "window"] = "volume"

    def __post_init__(self) -> None:
        problems = []
        if self.depth < 1 or self.depth % 2 == 0:
            problems.append(f"depth: expected an odd number of slices, 1 or more, got {self.depth!r}")
        if self.normalise not in ("volume", "window"):
            problems.append(f"normalise: expected 'volume' or 'window', got {self.normalise!r}")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class PreparedVolume:
    """One volume, resized in-plane.

    Args:
        case: Where it came from.
        images: (S, size, size) float32, in [0, 1] when normalised per volume, else in the units of the file.
        labels: (S, size, size) uint8, 0..C.
        native_shape: (S, H, W) before resizing, the grid of the evaluation.
        spacing_mm: (slice, row, column) spacing of the native grid.
    """

    case: Case
    images: Tensor
    labels: Tensor
    native_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


def prepare(volume: Volume, image_size: int, windows: Windows) -> PreparedVolume:
    """Min-max over the volume where windows ask for it, then every slice resized to ``image_size`` x ``image_size``.

    Images are resized bilinearly with antialiasing, labels by the exact nearest pixel. Slices that are not square
    change their aspect. Normalisation per window is left to :meth:`HospitalWindows.gather`.
    """
    if image_size < 1:
        raise ValueError(f"image_size: expected a number of pixels above 0, got {image_size!r}")
    size = (image_size, image_size)
    images = torch.from_numpy(volume.image)
    images = min_max(images[None])[0] if windows.normalise == "volume" else images
    images = interpolate(images.unsqueeze(1), size, mode="bilinear", antialias=True, align_corners=False).squeeze(1)
    labels = interpolate(torch.from_numpy(volume.label).unsqueeze(1), size, mode="nearest-exact").squeeze(1)
    slices, rows, columns = volume.image.shape
    return PreparedVolume(
        case=volume.case,
        images=images.clamp(0, 1) if windows.normalise == "volume" else images,
        labels=labels,
        native_shape=(slices, rows, columns),
        spacing_mm=volume.spacing_mm,
    )


def min_max(images: Tensor) -> Tensor:
    """``(x - min) / (max - min)`` over all but the first dimension; 0 where that part is constant."""
    dims = tuple(range(1, images.ndim))
    low = images.amin(dims, keepdim=True)
    span = images.amax(dims, keepdim=True) - low
    return torch.where(span > 0, (images - low) / torch.where(span > 0, span, 1.0), 0.0).clamp(0, 1)


class HospitalWindows:
    """All windows of one hospital: its volumes' slices in one tensor, and a table that says which slices a window has.

    Args:
        volumes: At least one prepared volume, all of one size.
        windows: How to cut them.

    Attributes:
        volumes: As given.
        windows: As given.
        images: (sum of S, size, size) float32.
        labels: The same shape, uint8.
        table: (N, D) int64, slice numbers into ``images``; window n is centred on slice n.
        spans: Per volume the range of its windows, which is also the range of its slices.
    """

    def __init__(self, volumes: Sequence[PreparedVolume], windows: Windows) -> None:
        if not volumes:
            raise ValueError("windows: expected at least one volume, got none")
        sizes = {tuple(volume.images.shape[1:]) for volume in volumes}
        if len(sizes) > 1:
            raise ValueError(f"windows: expected volumes of one in-plane size, got {sorted(sizes)}")
        self.volumes = tuple(volumes)
        self.windows = windows
        self.images = torch.cat([volume.images for volume in volumes])
        self.labels = torch.cat([volume.labels for volume in volumes])
        ends = list(accumulate(len(volume.images) for volume in volumes))
        self.spans = tuple(range(first, end) for first, end in zip([0, *ends], ends, strict=False))
        self.table = torch.cat([_neighbours(span, windows.depth) for span in self.spans])

    def __len__(self) -> int:
        """The number of windows N."""
        return len(self.table)

    def gather(self, index: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """The windows of these numbers.

        Args:
            index: (b,) int64 in 0..N-1.
            device: Where to put them; None: where the slices are.

        Returns:
            Images (b, D, size, size) float32 in [0, 1] and labels (b, D, size, size) uint8.
        """
        slices = self.table[_put(index, self.table.device)]
        images, labels = self.images[slices], self.labels[slices]
        if device is not None:
            images, labels = _put(images, torch.device(device)), _put(labels, torch.device(device))
        return (min_max(images) if self.windows.normalise == "window" else images), labels

    def to(self, device: torch.device | str) -> HospitalWindows:
        """The same windows with the slices on a device; ``volumes`` stay where they are."""
        moved = object.__new__(HospitalWindows)
        moved.volumes, moved.windows, moved.spans = self.volumes, self.windows, self.spans
        moved.images, moved.labels = self.images.to(device), self.labels.to(device)
        moved.table = self.table.to(device)
        return moved


def _put(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; towards a GPU without waiting for what runs there."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def _neighbours(span: range, depth: int) -> Tensor:
    """(S, D) slice numbers around each slice of ``span``, the first and last repeated beyond the ends."""
    centre = torch.arange(span.start, span.stop).unsqueeze(1)
    offset = torch.arange(depth) - depth // 2
    return (centre + offset).clamp(span.start, span.stop - 1)


def epoch_batches(num_windows: int, batch_size: int, rng: torch.Generator) -> list[Tensor]:
    """A permutation of the windows cut into batches of ``batch_size``; the last one may be shorter.

    Returns:
        (b,) int64 window numbers per batch; every window once.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a number of windows above 0, got {batch_size!r}")
    return list(torch.split(torch.randperm(num_windows, generator=rng), batch_size)) if num_windows else []
