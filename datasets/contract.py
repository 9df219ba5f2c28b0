"""What a data set is: a pool of cases on disk, and how a case becomes an array.

A data set has volumes with masks, for segmentation (:class:`Dataset`), or images with a class each, for classification
(:class:`ImageDataset`).

A plug-in of this folder is a frozen keyword-only dataclass with the methods of :class:`Dataset`. It finds cases and
reads one when asked; who gets which case, and what for, is decided in one place for all data sets
(:mod:`~wardround.datasets.split`)::

    folder --Dataset.pool--> Pool --Split.federation--> Federation --Dataset.volume--> Volume --prepare--> windows
                                                                   --ImageDataset.images--> (H, W, 3) --> images

Legend: S slices, H rows, W columns of a slice, C foreground classes (labels 1..C, 0 is background).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeGuard, cast

import numpy as np
import torch
from numpy.typing import NDArray

Streams = Callable[..., torch.Generator]
"""Keyed random streams, as in ``aggregators.contract``: ``rng("split", hospital)`` gives a fresh CPU generator."""

Side = Literal["train", "validation", "test"]
Task = Literal["segmentation", "classification"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image with its mask, or with its class.

    Args:
        name: Of its own in the whole pool; predictions are named after it.
        patient: Keeps scans of one person together: in one hospital, on one side of a split.
        image: File of the image.
        label: File of the mask; the same as ``image`` where one file holds both, and where there is a class instead.
        parts: Further files where a volume is stored in several.
        site: Where it was acquired, as far as the data set knows; the natural hospital.
        side: What it is for in the data set's own split, where it has one.
        target: The class of the image, 0..C-1; None where it has a mask.
        row: Its place in the file, from 0, where a file holds many images.
    """

    name: str
    patient: str
    image: Path
    label: Path
    parts: tuple[Path, ...] = ()
    site: str | None = None
    side: Side | None = None
    target: int | None = None
    row: int = 0

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the case is read from, once."""
        return tuple(dict.fromkeys((self.image, self.label, *self.parts)))


class DataError(ValueError):
    """What is wrong with a folder of data: every problem at once, of which the message shows the first 20.

    Args:
        where: The folder, or the file of a single case.
        problems: One line each, beginning with the file or the case.
    """

    SHOWN = 20

    def __init__(self, where: Path, problems: Sequence[str]) -> None:
        self.where, self.problems = where, tuple(problems)
        hidden = len(problems) - self.SHOWN
        lines = [*problems[: self.SHOWN], *([f"and {hidden} more"] if hidden > 0 else [])]
        head = f"{where}: {len(problems)} problem{'s' * (len(problems) > 1)}:"
        super().__init__("\n  ".join([head, *lines]))


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The cases of a folder, sorted by name, before anybody has them.

    Args:
        cases: Those whose files are there.
        classes: Names of the C classes: of the foreground, where there are masks.
        problems: What is wrong with the folder, one line each: files that are missing, tables that contradict it.
            A pool with problems can be looked at, and trains nobody.
    """

    cases: tuple[Case, ...]
    classes: tuple[str, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The cases of one hospital. Anything that is selected is selected on ``validation``, never on ``test``."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Who has which cases.

    Args:
        hospitals: The hospitals that train, by name, sorted.
        classes: Names of the C foreground classes.
        common: Test cases that belong to nobody: every hospital's model would be asked the same questions.
        unseen: Test cases of sites that do not train, by name, sorted.
    """

    hospitals: Mapping[str, Cases]
    classes: tuple[str, ...]
    common: tuple[Case, ...] = ()
    unseen: Mapping[str, tuple[Case, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One case in memory, slices first.

    Args:
        case: Where it came from.
        image: (S, H, W) float32, in the units of the file, after the data set's clipping, not yet normalised.
        label: (S, H, W) uint8, values 0..C.
        spacing_mm: (slice, row, column) spacing in millimetres, from the header.
        slice_axis: The array axis of the file along which the slices lie; the way back onto its grid.
        intensities: The 0.5 and 99.5 percentiles of the image before the data set's clipping, in the units of the file;
            None where the data set does not say. They tell kinds of images apart.
    """

    case: Case
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    slice_axis: int
    intensities: tuple[float, float] | None = None


ReadVolume = Callable[[], Volume]
"""Reads the voxels of an image that was opened; its mask is zeros. Raises DataError with what is wrong with them."""


class Dataset(Protocol):
    """Where volumes with masks come from."""

    def locate(self, root: Path | None) -> Path:
        """The folder to read. Raises ValueError when it is missing, saying how to get it."""
        ...

    def pool(self, root: Path) -> Pool:
        """Finds the cases; reads no voxel. Raises ValueError only where there is nothing to be found at all."""
        ...

    def volume(self, case: Case) -> Volume:
        """Reads one case, checks it and brings slices to the front. Raises DataError with every problem of the case."""
        ...

    def open_image(self, path: Path, *, site: str | None = None) -> ReadVolume:
        """Checks the header of an image without a mask; what comes back reads it, in the very way of :meth:`volume`.

        Args:
            path: The file, anywhere.
            site: Whose image it is, where sites are read in different ways.

        Raises:
            DataError: what is wrong with the file; no voxel is read for it.
        """
        ...


class ImageDataset(Protocol):
    """Where images with a class each come from. Every case of its pool has a ``target``."""

    task: Task
    """``classification``; a class variable."""

    def locate(self, root: Path | None) -> Path:
        """The folder to read. Raises ValueError when it is missing, saying how to get it."""
        ...

    def pool(self, root: Path) -> Pool:
        """Finds the cases; reads no pixel. Raises ValueError only where there is nothing to be found at all."""
        ...

    def images(self, cases: Sequence[Case]) -> Iterator[NDArray[np.uint8]]:
        """The image (H, W, 3) of every case, in their order. Raises DataError with every problem of a case."""
        ...

    def picture(self, path: Path) -> NDArray[np.uint8]:
        """The image (H, W, 3) of a picture file anywhere, read in the very way of :meth:`images`.

        Raises:
            ValueError: it cannot be read.
        """
        ...


def task_of(dataset: object) -> Task:
    """What a data set is for: what its class says, ``segmentation`` where it says nothing."""
    said = getattr(type(dataset), "task", None)  # anything else may be a field of that name
    return "classification" if said == "classification" else "segmentation"


def has_classes(dataset: Dataset | ImageDataset) -> TypeGuard[ImageDataset]:
    """Whether a data set has images with a class each."""
    return task_of(dataset) == "classification"


def with_masks(dataset: Dataset | ImageDataset) -> Dataset:
    """A data set that has volumes with masks; nobody asks this of one that has classes."""
    assert not has_classes(dataset)
    return cast(Dataset, dataset)
