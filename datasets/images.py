"""Images with a class each, ready for batches: resized once, kept in one memory-mapped file, and counted through.

::

    <cache>/prepared/<2 digits>/<key>/pixels.npy   (P, 3, size, size) uint8, in the order of the cases' names

An entry holds the images of a whole federation: every partition of the same cases shares it. Its key is a hash of all
that decides the pixels: the bytes of the source files, names, sites and rows of the cases, the settings of the data
set, the image size, and the source code that reads, resizes and writes; the classes do not enter. As for volumes
(:mod:`~wardround.datasets.cache`), an entry is complete or not there. Memory is bounded by a few images.

An image keeps 8 bits per channel and becomes ``x / 255`` in float32 when a batch is gathered: a quarter of the disk and
of what travels to a GPU.

Legend: P images of an entry, N images of a hospital, H rows and W columns of a file, b images of a batch, C classes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from .cache import ATTEMPTS, Announce, mapped, new_array, remove_entry, remove_leftovers
from .contract import Case, ImageDataset
from .fingerprints import cache_folder, code_hash, file_hash, place_of, settings_of, text_hash, using_cache
from .windows import put
from .writing import whole_folder

RUN = 256
"""Images that have one key, so that what is made of them is kept together."""

CHUNK_VALUES = 2**22
"""About as many values are resized at once; at least one image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImages:
    """All images of a federation, resized.

    Args:
        cases: P cases, sorted by name.
        pixels: (P, 3, size, size) uint8, red, green and blue of each case.
        key: What tells ``pixels`` from all others: the key of their entry in the cache; empty where they do not come
            from there.
    """

    cases: tuple[Case, ...]
    pixels: Tensor
    key: str = ""

    def __post_init__(self) -> None:
        found, expected = tuple(self.pixels.shape), (len(self.cases), 3)
        if self.pixels.dtype != torch.uint8 or len(found) != 4 or found[:2] != expected or found[2] != found[3]:
            raise ValueError(
                f"images: expected pixels ({expected[0]}, 3, size, size) of torch.uint8, "
                f"got {found} of {self.pixels.dtype}"
            )

    @cached_property
    def row(self) -> Mapping[str, int]:
        """The row of each case, by its name."""
        return {case.name: row for row, case in enumerate(self.cases)}

    @cached_property
    def content(self) -> str:
        """``key``, or where there is none SHA-256 of shape and pixels."""
        if self.key:
            return self.key
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().cpu().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ImagePreparation:
    """How the images of a data set are prepared, and where they lie.

    Args:
        dataset: Reads the cases.
        image_size: Rows and columns of a prepared image, >= 1.
    """

    dataset: ImageDataset
    image_size: int

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size: expected a number of pixels above 0, got {self.image_size!r}")

    @property
    def folder(self) -> Path:
        """The cache."""
        return cache_folder()

    def prepare(self, cases: Iterable[Case], announce: Announce = lambda done, total: None) -> PreparedImages:
        """All images of a federation, memory-mapped; prepared now where they are not yet, or damaged, or changed.

        The tensor is for reading: what is written to it stays in this process.

        Args:
            cases: At least one, in any order; a case may come several times.
            announce: Told before the first image and after every few.

        Raises:
            ValueError: a case is bad, a file changed while it was read, or the cache cannot be written.
        """
        return self._load(_once(cases), announce)[0]

    def prepare_all(self, cases: Iterable[Case], announce: Announce = lambda done, total: None) -> int:
        """The same, for its effect on the cache.

        Returns:
            How many images had to be prepared.
        """
        prepared, made = self._load(_once(cases), announce)
        return len(prepared.cases) if made else 0

    def _load(self, cases: tuple[Case, ...], announce: Announce) -> tuple[PreparedImages, bool]:
        """The images, and whether they had to be prepared."""
        with using_cache():
            remove_leftovers(self.folder)
        announce(0, len(cases))
        entry = place_of("prepared", self._key(cases))
        for attempt in range(ATTEMPTS):
            with using_cache():
                found = self._opened(entry, cases)
            if found is not None:
                announce(len(cases), len(cases))
                return found, attempt > 0
            self._build(entry, cases, announce)
        raise ValueError(f"{entry}: expected an entry of the cache that stays, but another process removes it")

    def _key(self, cases: Sequence[Case]) -> str:
        """What decides the pixels."""
        hashes = {path: file_hash(path) for path in dict.fromkeys(path for case in cases for path in case.files)}
        images = [[case.name, case.site, case.row, [hashes[path] for path in case.files]] for case in cases]
        code = code_hash(type(self.dataset), sys.modules[__name__])
        return text_hash(images, settings_of(self.dataset), self.image_size, code, PIL.__version__)

    def _shape(self, cases: Sequence[Case]) -> tuple[int, int, int, int]:
        return (len(cases), 3, self.image_size, self.image_size)

    def _opened(self, entry: Path, cases: tuple[Case, ...]) -> PreparedImages | None:
        """What an entry holds; None where there is none. A damaged one is removed."""
        if not entry.is_dir():
            return None
        try:
            pixels = mapped(entry / "pixels.npy", self._shape(cases), np.uint8)
        except (ValueError, EOFError, FileNotFoundError):
            remove_entry(entry)
            return None
        return PreparedImages(cases=cases, pixels=pixels, key=entry.name)

    def _build(self, entry: Path, cases: Sequence[Case], announce: Announce) -> None:
        """Makes an entry, whole or not at all; plain writes, which report a full disk where a mapping dies."""
        with using_cache(), whole_folder(entry) as half:
            with new_array(half / "pixels.npy", self._shape(cases), np.uint8) as file:
                done = 0
                for images in _chunks(self._read(cases)):
                    file.write(resized(images, self.image_size).numpy().data)
                    done += len(images)
                    announce(done, len(cases))
            if self._key(cases) != entry.name:
                where = cases[0].image.parent
                raise ValueError(f"{where}: expected files that stay as they are while they are read; run again")

    def _read(self, cases: Sequence[Case]) -> Iterator[NDArray[np.uint8]]:
        """One image per case, each checked."""
        images = iter(self.dataset.images(cases))
        for case in cases:
            try:
                image = next(images)
            except StopIteration:
                raise ValueError(f"{case.name}: expected an image of every case, got none of this one") from None
            except OSError as error:  # inside a block that takes them for problems of the cache
                raise ValueError(f"{case.image}: expected a readable image: {error}") from error
            if wrong := image_problems(image):
                raise ValueError(f"{case.image}: case {case.name}: {wrong}")
            yield image
        if next(images, None) is not None:
            raise ValueError(
                f"{cases[-1].name}: expected one image per case, got more of them after this, the last one"
            )


def image_problems(image: object) -> str:
    """What is wrong with what :meth:`ImageDataset.images` gave for a case; empty where nothing is."""
    if not isinstance(image, np.ndarray):
        return f"expected an array (H, W, 3) of uint8, got {type(image).__name__}"
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return ""
    return f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}"


def resized(images: NDArray[np.uint8], image_size: int) -> Tensor:
    """Bilinear with antialiasing, as slices of volumes; images that are not square change their aspect.

    Rows and columns are resized one after the other and rounded to 8 bits each time, as Pillow does it.

    Args:
        images: (b, H, W, 3) uint8.
        image_size: Pixels of the new sides.

    Returns:
        (b, 3, image_size, image_size) uint8.
    """
    whole = torch.from_numpy(np.require(images, requirements=["C", "W"]))  # copied where it is read-only
    channels_last = whole.permute(0, 3, 1, 2)  # (b, 3, H, W)
    size = (image_size, image_size)
    return interpolate(channels_last, size, mode="bilinear", antialias=True, align_corners=False).contiguous()


def _chunks(images: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """(b, H, W, 3): neighbours of one size together, not many values at once."""
    held: list[NDArray[np.uint8]] = []
    for image in images:
        if held and (image.shape != held[0].shape or (len(held) + 1) * image.size > CHUNK_VALUES):
            yield np.stack(held)
            held = []
        held.append(image)
    if held:
        yield np.stack(held)


def _once(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Every case once, sorted by name. Raises ValueError where two cases have one name, or there is none."""
    ordered = tuple(sorted(dict.fromkeys(cases), key=lambda case: case.name))
    twice = sorted({first.name for first, second in pairwise(ordered) if first.name == second.name})
    if twice:
        raise ValueError(f"images: expected a name of its own for every case, got several cases named {twice[:3]}")
    if not ordered:
        raise ValueError("images: expected at least one case, got none")
    return ordered


class HospitalImages:
    """The images of one hospital, counted through; see :class:`~wardround.datasets.examples.Examples`.

    Args:
        prepared: The images of the federation; shared by its hospitals.
        cases: Those of the hospital in the order of their numbers; none: a hospital without test cases has no images.

    Attributes:
        prepared: As given.
        cases: As given.
        targets: (N,) int64, the class of each image as :meth:`gather` gives it.
        spans: Ranges of up to :data:`RUN` images, whose keys :meth:`volume_keys` gives.
    """

    def __init__(self, prepared: PreparedImages, cases: Sequence[Case]) -> None:
        self.prepared = prepared
        self.cases = tuple(cases)
        self.targets = torch.tensor([_target_of(case) for case in cases], dtype=torch.int64)
        self.spans = tuple(range(first, min(first + RUN, len(cases))) for first in range(0, len(cases), RUN))
        self._numbers = torch.tensor([_row_of(prepared, case) for case in cases], dtype=torch.int64)
        self._pixels, self._rows = prepared.pixels, self._numbers

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.cases)

    @property
    def depth(self) -> int:
        """D = 1: an image has no neighbours."""
        return 1

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self._pixels.device

    def gather(self, index: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """The images of these numbers.

        Args:
            index: (b,) int64 in 0..N-1, on the CPU.
            device: Where to put them; None: where the pixels are.

        Returns:
            Images (b, 1, 3, size, size) float32 in [0, 1] and classes (b, 1) uint8, 0..C-1.
        """
        there = self.device if device is None else torch.device(device)
        pixels = put(self._pixels.index_select(0, put(self._rows[index], self.device)), there)
        classes = put(self.targets[index].to(torch.uint8), there)
        # Divided by a tensor: a GPU would multiply by the inverse of a number, and differ from a CPU in the last bit.
        images = pixels.float() / torch.full((), 255.0, device=there)
        return images.unsqueeze(1), classes.unsqueeze(1)

    def volume_keys(self) -> list[str]:
        """SHA-256, per run of ``spans``, of all that decides what :meth:`gather` makes of its images."""
        numbers, targets = self._numbers.tolist(), self.targets.tolist()
        runs = [slice(span.start, span.stop) for span in self.spans]
        return [text_hash(self.prepared.content, numbers[run], targets[run]) for run in runs]

    def relabelled(self, labels: Sequence[int]) -> Self:
        """The same images with other classes; ``cases`` stay as they are.

        Args:
            labels: What each of the classes 0..C-1 becomes.
        """
        changed = copy(self)
        changed.targets = torch.tensor(labels, dtype=torch.int64)[self.targets]
        return changed

    def to(self, device: torch.device | str) -> HospitalImages:
        """The same images with their pixels on a device; ``prepared`` stays where it is."""
        return images_on_device({"": self}, device)[""]

    def _on(self, pixels: Tensor, rows: Tensor) -> HospitalImages:
        """The same images of pixels that lie elsewhere, in other rows."""
        moved = copy(self)
        moved._pixels, moved._rows = pixels, rows
        return moved


def _target_of(case: Case) -> int:
    if case.target is None or not 0 <= case.target <= 255:
        raise ValueError(f"{case.name}: expected a class from 0 to 255 as target, got {case.target!r}")
    return case.target


def _row_of(prepared: PreparedImages, case: Case) -> int:
    row = prepared.row.get(case.name)
    if row is None:
        raise ValueError(f"{case.name}: expected one of the {len(prepared.cases)} prepared cases, got another one")
    return row


def images_on_device(hospitals: Mapping[str, HospitalImages], device: torch.device | str) -> dict[str, HospitalImages]:
    """The images of several hospitals with their pixels on a device, in one tensor, every image once.

    Images that none of them has stay behind; the host holds no second copy of the others.

    Args:
        hospitals: Images by name, all of one size.
        device: Where the pixels go.
    """
    sources = _sources(hospitals.values())
    if not sources:
        return {}
    sizes = sorted({tuple(pixels.shape[1:]) for pixels, _ in sources.values()})
    if len(sizes) > 1:
        raise ValueError(f"images: expected images of one size, got {sizes}")
    whole = torch.empty((sum(len(rows) for _, rows in sources.values()), *sizes[0]), dtype=torch.uint8, device=device)
    first, place = {}, 0
    for source, (pixels, rows) in sources.items():
        first[source] = place
        for chunk in rows.split(RUN):
            whole[place : place + len(chunk)] = pixels.index_select(0, put(chunk, pixels.device))
            place += len(chunk)
    return {
        name: own._on(whole, first[id(own._pixels)] + torch.searchsorted(sources[id(own._pixels)][1], own._rows))
        for name, own in hospitals.items()
    }


def num_bytes(hospitals: Iterable[HospitalImages]) -> int:
    """Bytes of the pixels of several hospitals, as :func:`images_on_device` would put them there: every image once."""
    return sum(len(rows) * pixels[:1].nbytes for pixels, rows in _sources(hospitals).values())


def _sources(hospitals: Iterable[HospitalImages]) -> dict[int, tuple[Tensor, Tensor]]:
    """Each tensor of pixels that hospitals share, and the rows of it that any of them has, sorted."""
    pixels: dict[int, Tensor] = {}
    rows: dict[int, list[Tensor]] = {}
    for own in hospitals:
        pixels[id(own._pixels)] = own._pixels
        rows.setdefault(id(own._pixels), []).append(own._rows)
    return {source: (pixels[source], torch.cat(found).unique()) for source, found in rows.items()}
