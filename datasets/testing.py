"""The contract suite of data sets: what every plug-in of this folder has to keep.

Run it in a test of your own data set::

    from wardround.datasets.testing import check_dataset

    def test_my_data(tmp_path):
        check_dataset(MyData(...), my_small_folder(tmp_path))

or with :func:`check_image_dataset` where images have a class each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .contract import Case, Dataset, ImageDataset, Pool, Volume, has_classes
from .door import check_frozen
from .images import image_problems
from .pictures import is_picture


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
    check_frozen(dataset)
    pool = _checked_pool(dataset, root)
    images = [str(case.image) for case in pool.cases]
    assert len(set(images)) == len(images), f"every image may appear once, got {_twice(images)} twice"
    for _, cases in groupby(sorted(pool.cases, key=_site), key=_site):
        for case in list(cases)[:volumes_per_site]:
            volume = dataset.volume(case)
            check_volume(volume, case, len(pool.classes))
            _check_image(dataset, volume)
    return pool


def check_image_dataset(dataset: ImageDataset, root: Path | None = None, *, images: int = 12) -> Pool:
    """Checks that a data set of images with a class each keeps the contract.

    Args:
        dataset: The plug-in.
        root: A folder that it can read, as given to :meth:`~wardround.datasets.contract.ImageDataset.locate`.
        images: How many are read at most, of as many sites and classes as there are.

    Returns:
        The pool that was checked.

    Raises:
        AssertionError: says what is broken.
    """
    check_frozen(dataset)
    assert has_classes(dataset), "expected a class with task = 'classification'"
    pool = _checked_pool(dataset, root)
    places = [f"{case.image} row {case.row}" for case in pool.cases]
    assert len(set(places)) == len(places), f"every row of a file may appear once, got {_twice(places)} twice"
    _check_targets(pool)
    _check_images(dataset, _one_of_each(pool.cases)[:images])
    return pool


def _checked_pool(dataset: Dataset | ImageDataset, root: Path | None) -> Pool:
    """What data sets of both kinds have to keep."""
    folder = dataset.locate(root)
    pool = dataset.pool(folder)
    assert pool == dataset.pool(folder), "the same folder must give the same pool"
    assert not pool.problems, f"expected a folder without problems, got {pool.problems}"
    assert pool.classes, "expected at least one class"
    assert len(set(pool.classes)) == len(pool.classes), f"expected a name of its own per class, got {pool.classes}"
    _check_cases(pool.cases)
    _check_sides(pool.cases)
    return pool


def _site(case: Case) -> str:
    return case.site or ""


def _check_cases(cases: tuple[Case, ...]) -> None:
    assert cases, "expected at least one case"
    names = [case.name for case in cases]
    assert names == sorted(names), "cases must be sorted by name"
    assert len(set(names)) == len(names), f"every name may appear once, got {_twice(names)} twice"
    missing = [str(path) for path in dict.fromkeys(path for case in cases for path in case.files) if not path.is_file()]
    assert not missing, f"every file of a case must be there, missing: {missing}"


def _twice(values: list[str]) -> list[str]:
    return sorted(value for value, count in Counter(values).items() if count > 1)


def _check_sides(cases: tuple[Case, ...]) -> None:
    """Either all cases have a side or none; a patient has one side, and without a side one site."""
    with_side = {case.side is not None for case in cases}
    assert len(with_side) == 1, "either every case has a side or none"
    what = "site" if with_side == {False} else "side"
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


def _check_image(dataset: Dataset, volume: Volume) -> None:
    """The image of a case, asked for without its mask, is that of the case; one of several files is left out."""
    case = volume.case
    if case.parts:
        return
    alone = dataset.open_image(case.image, site=case.site)()
    where = f"{case.name}, opened without its mask: "
    assert not alone.label.any(), where + "expected a mask of zeros"
    assert alone.label.shape == alone.image.shape, where + "image and label must have one shape"
    assert np.array_equal(alone.image, volume.image), where + "expected the image of the case"
    for name in ("spacing_mm", "slice_axis", "intensities"):
        found, expected = getattr(alone, name), getattr(volume, name)
        assert found == expected, where + f"expected the {name} of the case, {expected}, got {found}"


def _check_targets(pool: Pool) -> None:
    """Every case has one of the classes, and its row of its file."""
    number = len(pool.classes)
    for case in pool.cases:
        fine = type(case.target) is int and 0 <= case.target < number
        assert fine, f"{case.name}: expected a class 0 to {number - 1} as target, got {case.target!r}"
        assert case.label == case.image, f"{case.name}: expected the image's file as label, got {case.label}"
        assert case.row >= 0, f"{case.name}: expected a row from 0 on, got {case.row}"


def _one_of_each(cases: Sequence[Case]) -> list[Case]:
    """The first case of every class at every site, then all others."""
    first: dict[tuple[str, int | None], Case] = {}
    for case in cases:
        first.setdefault((_site(case), case.target), case)
    chosen = {case.name for case in first.values()}
    return [*first.values(), *(case for case in cases if case.name not in chosen)]


def _check_images(dataset: ImageDataset, cases: Sequence[Case]) -> None:
    """One image per case, the same every time, in any order and company."""
    assert not list(dataset.images([])), "expected no image of no case"
    images = list(dataset.images(cases))
    assert len(images) == len(cases), f"expected {len(cases)} images of as many cases, got {len(images)}"
    for case, image in zip(cases, images, strict=True):
        assert not (wrong := image_problems(image)), f"{case.name}: {wrong}"
    backwards = list(dataset.images(cases[::-1]))[::-1]
    assert _equal(images, backwards), "expected the images in the order of the cases, and the same every time"
    alone = [image for case in cases for image in dataset.images([case])]
    assert _equal(images, alone), "expected an image that does not depend on the others that are read with it"
    files = [(case.image, image) for case, image in zip(cases, images, strict=True) if is_picture(case.image)]
    for path, image in files:
        assert np.array_equal(dataset.picture(path), image), f"{path}: expected the image of its case as a picture"


def _equal(first: Sequence[NDArray[np.uint8]], second: Sequence[NDArray[np.uint8]]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))
