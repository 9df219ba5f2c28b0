"""From volumes to training windows.

A window is D adjacent slices around one slice, with the edge slices repeated where the volume ends; there is one window
per slice. FLAP-SAM (arXiv 2407.21739) uses D = 5; a slice-wise model learns the same from D = 1, which shows each slice
once an epoch.

Volumes may lie in memory-mapped files (:mod:`~wardround.datasets.cache`): a window is read when it is asked for.

Legend: N windows of a hospital, D slices of a window, S slices of a volume (S' after resampling), H rows, W columns,
b windows of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .contract import Case, Volume
from .fingerprints import text_hash

CHUNK = 16
"""Slices that are resized at once."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How volumes are cut.

    Args:
        depth: Slices of a window, odd.
        normalise: Min-max to [0, 1] over the whole ``volume`` or over each ``window`` (FLAP-SAM).
        grid: Bring each volume to so many (slices, rows, columns) first, images trilinearly, labels by the nearest
            voxel; FLamby's Fed-IXI uses (48, 60, 48). None keeps the grid of the file. Predictions come back to it.
    """

    depth: int = 1
    normalise: Literal["volume", "window"] = "volume"
    grid: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.depth < 1 or self.depth % 2 == 0:
            problems.append(f"depth: expected an odd number of slices, 1 or more, got {self.depth!r}")
        if self.normalise not in ("volume", "window"):
            problems.append(f"normalise: expected 'volume' or 'window', got {self.normalise!r}")
        if self.grid is not None and (len(self.grid) != 3 or min(self.grid) < 1):
            problems.append(
                f"grid: expected three numbers of voxels (slices, rows, columns) above 0, got {self.grid!r}"
            )
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class PreparedVolume:
    """One volume, resized in-plane.

    Args:
        case: Where it came from.
        images: (S', size, size) float32, in [0, 1] when normalised per volume, else in the units of the file.
        labels: (S', size, size) uint8, 0..C.
        truth: (S, H, W) uint8, the labels before resizing, on the grid of the evaluation.
        spacing_mm: (slice, row, column) spacing of the native grid.
        key: What tells ``images`` and ``labels`` from all others: the key of their entry in the cache; empty where they
            do not come from there.
    """

    case: Case
    images: Tensor
    labels: Tensor
    truth: Tensor
    spacing_mm: tuple[float, float, float]
    key: str = ""

    @cached_property
    def content(self) -> str:
        """``key``, or where there is none SHA-256 of shape, values and labels of the slices."""
        if self.key:
            return self.key
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.images.dtype)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().cpu().numpy().data)
        return digest.hexdigest()

    @property
    def native_shape(self) -> tuple[int, int, int]:
        """(S, H, W) before resizing."""
        slices, rows, columns = self.truth.shape
        return slices, rows, columns


def prepare(volume: Volume, image_size: int, windows: Windows) -> PreparedVolume:
    """Resampled to the grid and min-max over the volume where windows ask for it, then every slice resized.

    Images are resized bilinearly with antialiasing to ``image_size`` x ``image_size``, labels by the exact nearest
    pixel. Slices that are not square change their aspect. Normalisation per window is left to
    :meth:`HospitalWindows.gather`.
    """
    images, labels = zip(*prepared_chunks(volume, image_size, windows), strict=True)
    return PreparedVolume(
        case=volume.case,
        images=torch.cat(images),
        labels=torch.cat(labels),
        truth=torch.from_numpy(volume.label),
        spacing_mm=volume.spacing_mm,
    )


def prepared_shape(native: tuple[int, int, int], image_size: int, windows: Windows) -> tuple[int, int, int]:
    """(S', size, size) of a volume of (S, H, W)."""
    return (native[0] if windows.grid is None else windows.grid[0], image_size, image_size)


def prepared_chunks(volume: Volume, image_size: int, windows: Windows) -> Iterator[tuple[Tensor, Tensor]]:
    """What :func:`prepare` gives, at most :data:`CHUNK` slices at a time: images float32 and labels uint8.

    Needs little memory beside the volume, but for a second one where there is a ``windows.grid``.
    """
    if image_size < 1:
        raise ValueError(f"image_size: expected a number of pixels above 0, got {image_size!r}")
    images, labels = _on_grid(torch.from_numpy(volume.image), torch.from_numpy(volume.label), windows.grid)
    low, high = torch.aminmax(images)
    for chunk, truth in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        scaled = _scaled(chunk, low, high - low) if windows.normalise == "volume" else chunk
        resized = _resize(scaled, image_size, "bilinear", antialias=True, align_corners=False)
        yield (
            resized.clamp(0, 1) if windows.normalise == "volume" else resized,
            _resize(truth, image_size, "nearest-exact"),
        )


def _on_grid(images: Tensor, labels: Tensor, grid: tuple[int, int, int] | None) -> tuple[Tensor, Tensor]:
    """(S, H, W) on so many slices, rows and columns."""
    if grid is None:
        return images, labels
    return (
        interpolate(images[None, None], grid, mode="trilinear", align_corners=False)[0, 0],
        interpolate(labels[None, None], grid, mode="nearest-exact")[0, 0],
    )


def _resize(slices: Tensor, size: int, mode: str, **how: bool) -> Tensor:
    return interpolate(slices.unsqueeze(1), (size, size), mode=mode, **how).squeeze(1)


def min_max(images: Tensor) -> Tensor:
    """``(x - min) / (max - min)`` over all but the first dimension; 0 where that part is constant."""
    dims = tuple(range(1, images.ndim))
    low = images.amin(dims, keepdim=True)
    return _scaled(images, low, images.amax(dims, keepdim=True) - low)


def _scaled(images: Tensor, low: Tensor, span: Tensor) -> Tensor:
    return torch.where(span > 0, (images - low) / torch.where(span > 0, span, 1.0), 0.0).clamp(0, 1)


class HospitalWindows:
    """All windows of one hospital: the slices of its volumes, counted through, and which of them each window has.

    Args:
        volumes: At least one prepared volume, all of one size.
        windows: How to cut them.

    Attributes:
        volumes: As given.
        windows: As given.
        table: (N, D) int64, slice numbers; window n is centred on slice n.
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
        ends = list(accumulate(len(volume.images) for volume in volumes))
        self.spans = tuple(range(first, end) for first, end in zip([0, *ends], ends, strict=False))
        self.table = torch.cat([_neighbours(span, windows.depth) for span in self.spans])
        self._images = _Stack([volume.images for volume in volumes])
        self._labels = _Stack([volume.labels for volume in volumes])
        self._rows: Tensor | None = None
        self._relabel: Tensor | None = None

    def __len__(self) -> int:
        """The number of windows N."""
        return len(self.table)

    @property
    def depth(self) -> int:
        """D."""
        return self.windows.depth

    @property
    def device(self) -> torch.device:
        """Where the slices are."""
        return self._images.parts[0].device

    def gather(self, index: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """The windows of these numbers.

        Args:
            index: (b,) int64 in 0..N-1, on the CPU.
            device: Where to put them; None: where the slices are.

        Returns:
            Images (b, D, size, size) float32 in [0, 1] and labels (b, D, size, size) uint8.
        """
        slices = self.table[index]
        slices = slices if self._rows is None else put(self._rows[slices], self.device)
        images, labels = self._images[slices], self._labels[slices]
        if self._relabel is not None:
            labels = self._relabel[labels.long()]
        if device is not None:
            images, labels = put(images, torch.device(device)), put(labels, torch.device(device))
        return (min_max(images) if self.windows.normalise == "window" else images), labels

    def volume_keys(self) -> list[str]:
        """SHA-256, per volume, of all that decides what :meth:`gather` makes of its windows."""
        relabel = None if self._relabel is None else self._relabel.tolist()
        how = (self.windows.depth, self.windows.normalise, relabel)
        return [text_hash(volume.content, *how) for volume in self.volumes]

    def relabelled(self, labels: Sequence[int]) -> HospitalWindows:
        """The same windows with other labels, which are changed when a window is read; ``volumes`` stay as they are.

        Args:
            labels: What each of the labels 0..C becomes.
        """
        changed = copy(self)
        changed._relabel = torch.tensor(labels, dtype=torch.uint8)
        return changed

    def to(self, device: torch.device | str) -> HospitalWindows:
        """The same windows with all slices in one tensor on a device; ``volumes`` stay where they are."""
        return on_device({"": self}, device)[""]

    def _on(self, images: _Stack, labels: _Stack, first: Mapping[VolumeKey, int]) -> HospitalWindows:
        """The same windows of slices that lie elsewhere, each volume's from row ``first`` on."""
        moved = copy(self)
        moved._images, moved._labels = images, labels
        starts = [first[volume_key(volume)] for volume in self.volumes]
        moved._rows = torch.cat(
            [torch.arange(start, start + len(span)) for start, span in zip(starts, self.spans, strict=True)]
        )
        moved._relabel = None if self._relabel is None else self._relabel.to(images.parts[0].device)
        return moved


class _Stack:
    """The slices of several (S, size, size) tensors, counted through, as if they were one tensor."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self.starts = self.ends - torch.tensor([len(part) for part in parts])

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """(..., size, size) slices of these numbers."""
        if len(self.parts) == 1 or not numbers.numel():
            return self.parts[0][numbers]
        flat = numbers.flatten()
        part = torch.bucketize(flat, self.ends, right=True)
        place = flat - self.starts[part]
        # One by one into one stack: two to four times as fast as volume by volume, which copies every slice twice.
        chosen = [self.parts[which][one] for which, one in zip(part.tolist(), place.tolist(), strict=True)]
        return torch.stack(chosen).view(*numbers.shape, *self.parts[0].shape[1:])

    def to(self, device: torch.device | str) -> _Stack:
        """In one new tensor, which is made on the device: the host holds no second copy."""
        whole = self.parts[0].new_empty((int(self.ends[-1]), *self.parts[0].shape[1:]), device=device)
        for part, start in zip(self.parts, self.starts.tolist(), strict=True):
            whole[start : start + len(part)] = part
        return _Stack([whole])


VolumeKey = tuple[int, int]


def volume_key(volume: PreparedVolume) -> VolumeKey:
    """Tells the tensors of one prepared volume in memory from those of another, while they are there."""
    return id(volume.images), id(volume.labels)


def on_device(hospitals: Mapping[str, HospitalWindows], device: torch.device | str) -> dict[str, HospitalWindows]:
    """The windows of several hospitals with their slices on a device, in one tensor, every volume once.

    Windows are then cut out by one indexing on the device. ``volumes`` stay where they are.

    Args:
        hospitals: Windows by name, all of one size.
        device: Where the slices go.
    """
    volumes = distinct_volumes(hospitals.values())
    if not volumes:
        return {}
    images = _Stack([volume.images for volume in volumes.values()]).to(device)
    labels = _Stack([volume.labels for volume in volumes.values()]).to(device)
    ends = accumulate(len(volume.images) for volume in volumes.values())
    first = dict(zip(volumes, [0, *ends], strict=False))
    return {name: windows._on(images, labels, first) for name, windows in hospitals.items()}


def distinct_volumes(hospitals: Iterable[HospitalWindows]) -> dict[VolumeKey, PreparedVolume]:
    """The volumes of all hospitals; one that several of them have comes once."""
    return {volume_key(volume): volume for windows in hospitals for volume in windows.volumes}


def num_bytes(volume: PreparedVolume) -> int:
    """Bytes of the slices and labels of a volume."""
    return volume.images.nbytes + volume.labels.nbytes


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Where a GPU can fetch it from while the host does other things; on its way to other devices, as it is."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; towards a GPU without waiting for what runs there."""
    return pinned(tensor, device).to(device, non_blocking=device.type == "cuda")


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
