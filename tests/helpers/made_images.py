"""The smallest data set of images with a class each: arrays in files, read by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wardround.datasets.contract import Case, Pool, Task


@dataclass(frozen=True, kw_only=True)
class MadeImages:
    """Files ``<site>-<class>-<number>.npy`` (H, W, 3) uint8.

    Args:
        brighter: Added to every pixel, as any setting of a data set changes what it reads.
    """

    task: ClassVar[Task] = "classification"
    brighter: int = 0

    def locate(self, root: Path | None) -> Path:
        return root or Path()

    def pool(self, root: Path) -> Pool:
        return Pool(cases=tuple(made_case(path) for path in sorted(root.glob("*.npy"))), classes=("a", "b", "c"))

    def images(self, cases: Sequence[Case]) -> Iterator[NDArray[np.uint8]]:
        for case in cases:
            yield np.load(case.image) + np.uint8(self.brighter)


def made_case(path: Path) -> Case:
    site, target, _ = path.stem.split("-")
    return Case(name=path.stem, patient=path.stem, image=path, label=path, site=site, target="abc".index(target))


def make_files(root: Path, names: Sequence[str], shape: tuple[int, int] = (10, 12)) -> Path:
    """A file of noise, of its own, for every name."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        noise = np.random.default_rng(list(name.encode()))
        np.save(root / f"{name}.npy", noise.integers(0, 200, (*shape, 3), dtype=np.uint8))
    return root
