"""The contract every data set keeps, to be run on your own: ``check_dataset(MyDataset(...), Path("my/data"))``."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import torch

from .contract import Case, Cases, Dataset, Federation, Volume


def check_dataset(dataset: Dataset, root: Path | None = None, volumes_per_hospital: int = 1) -> Federation:
    """Finds, splits and reads; compares with the contract.

    Args:
        dataset: The plug-in.
        root: Passed to its ``locate``.
        volumes_per_hospital: How many volumes of each split of each hospital are read.

    Returns:
        The federation, for further checks.

    Raises:
        AssertionError: names what is not kept.
    """
    folder = dataset.locate(root)
    federation = dataset.federation(folder, _streams)
    assert federation == dataset.federation(folder, _streams), "the same streams must give the same federation"
    names = list(federation.hospitals)
    assert names, "a federation needs hospitals"
    assert names == sorted(names), f"hospitals must be sorted by name, got {names}"
    assert federation.classes, "a federation needs foreground classes"
    assert len(set(federation.classes)) == len(federation.classes), f"class names repeat: {federation.classes}"
    assert dataset.slice_axis in (0, 1, 2), f"slice_axis must be 0, 1 or 2, got {dataset.slice_axis!r}"
    for name, cases in federation.hospitals.items():
        _check_split(name, cases)
    _check_unique([case for cases in federation.hospitals.values() for case in _all(cases)])
    for cases in federation.hospitals.values():
        for part in (cases.train, cases.validation, cases.test):
            for case in part[:volumes_per_hospital]:
                check_volume(dataset.volume(case), case, len(federation.classes))
    return federation


def _streams(*keys: str | int) -> torch.Generator:
    """Some keyed streams; those of a run come from the simulator."""
    return torch.Generator().manual_seed(int.from_bytes(repr(keys).encode(), "big") % 2**63)


def _all(cases: Cases) -> chain[Case]:
    return chain(cases.train, cases.validation, cases.test)


def _check_split(hospital: str, cases: Cases) -> None:
    assert cases.train, f"{hospital} has no training case"
    assert cases.test, f"{hospital} has no test case"
    sides = [{case.patient for case in part} for part in (cases.train, cases.validation, cases.test)]
    shared = (sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2])
    assert not shared, f"{hospital} has patients on two sides of its split: {sorted(shared)}"
    assert all(case.image.is_file() and case.label.is_file() for case in _all(cases)), f"{hospital} names missing files"


def _check_unique(cases: list[Case]) -> None:
    for what, values in (("case", [case.name for case in cases]), ("image", [str(case.image) for case in cases])):
        twice = sorted({value for value in values if values.count(value) > 1})
        assert not twice, f"every {what} may appear once in the federation, got {twice} twice"


def check_volume(volume: Volume, case: Case, num_classes: int) -> None:
    """Shapes, dtypes and ranges of one volume."""
    where = f"{case.name}: "
    assert volume.case == case, where + "the volume must carry its case"
    assert volume.image.ndim == 3, where + f"expected an image (S, H, W), got {volume.image.shape}"
    assert volume.image.size > 0, where + f"expected voxels, got {volume.image.shape}"
    assert volume.image.shape == volume.label.shape, where + "image and label must have one shape"
    assert volume.image.dtype == np.float32, where + f"expected a float32 image, got {volume.image.dtype}"
    assert volume.label.dtype == np.uint8, where + f"expected a uint8 label, got {volume.label.dtype}"
    assert np.isfinite(volume.image).all(), where + "expected a finite image"
    assert volume.label.max() <= num_classes, where + f"expected labels up to {num_classes}, got {volume.label.max()}"
    assert len(volume.spacing_mm) == 3, where + f"expected three spacings, got {volume.spacing_mm}"
    assert min(volume.spacing_mm) > 0, where + f"expected spacings above 0 mm, got {volume.spacing_mm}"
