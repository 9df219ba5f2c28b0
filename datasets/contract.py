"""What a data set is: named hospitals with cases on disk, and how a case becomes an array.

A plug-in of this folder is a frozen keyword-only dataclass with the fields and methods of :class:`Dataset`. It finds
and splits cases; it reads no voxel until it is asked for one case.

Legend: S slices, H rows, W columns of a slice, C foreground classes (labels 1..C, 0 is background).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Streams = Callable[..., torch.Generator]
"""Keyed random streams, as in ``aggregators.contract``: ``rng("split", hospital)`` gives a fresh CPU generator."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image and its mask. ``patient`` keeps scans of one person on one side of a split."""

    name: str
    patient: str
    image: Path
    label: Path


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The cases of one hospital. Anything that is selected is selected on ``validation``, never on ``test``."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Hospitals by name (sorted) and the names of the C foreground classes."""

    hospitals: Mapping[str, Cases]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One case in memory, slices first.

    Args:
        case: Where it came from.
        image: (S, H, W) float32, in the units of the file, after the data set's clipping, not yet normalised.
        label: (S, H, W) uint8, values 0..C.
        spacing_mm: (slice, row, column) spacing in millimetres, from the header.
    """

    case: Case
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


class Dataset(Protocol):
    """Where the cases of a federation come from."""

    @property
    def slice_axis(self) -> int:
        """The array axis of the file along which slices are taken."""
        ...

    def locate(self, root: Path | None) -> Path:
        """The folder to read. Raises ValueError when it is missing, saying how to get it."""
        ...

    def federation(self, root: Path, rng: Streams) -> Federation:
        """Finds and splits the cases. Raises ValueError listing every problem of the folder at once."""
        ...

    def volume(self, case: Case) -> Volume:
        """Reads one case, checks it and brings slices to the front."""
        ...
