"""The contract suite of data sets: what every plug-in of this folder has to keep.

Run it in a test of your own data set::

    from wardround.datasets.testing import check_dataset

    def test_my_data(tmp_path):
        check_dataset(MyData(...), my_small_folder(tmp_path))
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np

from .contract import Case, Dataset, Pool, Volume


def check_dataset(dataset: Dataset, root: Path | None = None, *, volumes_per_site: int = 1) -> Pool:
    """Checks that a data set keeps the contract.

    Args:
        dataset: The plug-in.
        root: A folder that it can read, as given to :meth:`~wardround.datasets.contract.Dataset.locate`.
        volumes_per_site: Volumes of each site that are read and checked.

    Returns:
        The pool that was checked.

    Raises:
        AssertionError: says what is broken.
    """
    folder = dataset.locate(root)
    pool = dataset.pool(folder)
    assert pool == dataset.pool(folder), "the same folder must give the same pool"
    assert not pool.problems, f"expected a folder without problems, got {pool.problems}"
    assert pool.classes, "expected at least one foreground class"
    assert len(set(pool.classes)) == len(pool.classes), f"expected a name of its own per class, got {pool.classes}"
    _check_cases(pool.cases)
    _check_sides(pool.cases)
    for _, cases in groupby(sorted(pool.cases, key=_site), key=_site):
        for case in list(cases)[:volumes_per_site]:
            check_volume(dataset.volume(case), case, len(pool.classes))
    return pool


def _site(case: Case) -> str:
    return case.site or ""


def _check_cases(cases: tuple[Case, ...]) -> None:
    assert cases, "expected at least one case"
    names = [case.name for case in cases]
    assert names == sorted(names), "cases must be sorted by name"
    assert len(set(names)) == len(names), f"every name may appear once, got {_twice(names)} twice"
    images = [str(case.image) for case in cases]
    assert len(set(images)) == len(images), f"every image may appear once, got {_twice(images)} twice"
    missing = [str(path) for case in cases for path in case.files if not path.is_file()]
    assert not missing, f"every file of a case must be there, missing: {missing}"


def _twice(values: list[str]) -> list[str]:
    return sorted({value for value in values if values.count(value) > 1})


def _check_sides(cases: tuple[Case, ...]) -> None:
    """Either all cases have a side or none; a patient has one side and one site."""
    with_side = {case.side is not None for case in cases}
    assert len(with_side) == 1, "either every case has a side or none"
    for what in ("side", "site"):
        seen: dict[str, set[str | None]] = {}
        for case in cases:
            seen.setdefault(case.patient, set()).add(getattr(case, what))
        torn = sorted(patient for patient, found in seen.items() if len(found) > 1)
        assert not torn, f"a patient must have one {what}, these have several: {torn}"


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
    assert volume.slice_axis in (0, 1, 2), where + f"expected slice_axis 0, 1 or 2, got {volume.slice_axis!r}"
