"""The suite for data sets of images passes a sound one and finds what is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from made_images import MadeImages, make_files
from numpy.typing import NDArray

from wardround.datasets.contract import Case, Dataset, Pool
from wardround.datasets.phantom import Phantom
from wardround.datasets.testing import check_image_dataset

NAMES = ("north-a-0", "north-a-1", "north-b-0", "south-a-0", "south-c-0")
Images = Sequence[NDArray[np.uint8]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_files(tmp_path, NAMES)


@dataclass(frozen=True, kw_only=True)
class Broken(MadeImages):
    """Breaks the rule that ``POOLS`` or ``PICTURES`` breaks."""

    def pool(self, root: Path) -> Pool:
        return POOLS["change"](super().pool(root))

    def images(self, cases: Sequence[Case]) -> Iterator[NDArray[np.uint8]]:
        return iter(PICTURES["change"](list(super().images(cases))))


POOLS: dict[str, Callable[[Pool], Pool]] = {"change": lambda pool: pool}
PICTURES: dict[str, Callable[[Images], Images]] = {"change": lambda images: images}
"""What is done to what is sound; at a module's level, as a data set has to go through a pickle."""


def first(**fields: object) -> Callable[[Pool], Pool]:
    return lambda pool: replace(pool, cases=(replace(pool.cases[0], **fields), *pool.cases[1:]))  # type: ignore[arg-type]  # fields by name


def test_a_sound_data_set_passes(folder: Path) -> None:
    assert len(check_image_dataset(MadeImages(), folder).cases) == 5
    assert len(check_image_dataset(Broken(), folder, images=2).cases) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first(target=None), r"expected a class 0 to 2 as target, got None"),
        (first(target=3), r"expected a class 0 to 2 as target, got 3"),
        (first(label=Path(__file__)), "expected the image's file as label"),
        (first(row=-1), "expected a row from 0 on, got -1"),
        (
            lambda pool: first(image=pool.cases[1].image, label=pool.cases[1].image)(pool),
            "every row of a file may appear",
        ),
        (lambda pool: replace(pool, cases=pool.cases[::-1]), "sorted by name"),
        (lambda pool: first(name=pool.cases[1].name)(pool), "every name may appear once"),
        (lambda pool: replace(pool, classes=()), "expected at least one class"),
        (lambda pool: replace(pool, problems=("odd",)), "without problems"),
        (first(side="train"), "either every case has a side or none"),
        (lambda pool: first(patient=pool.cases[-1].patient)(pool), "a patient must have one site"),
    ],
)
def test_the_suite_finds_what_is_wrong_with_a_pool(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Pool], Pool], message: str
) -> None:
    monkeypatch.setitem(POOLS, "change", change)
    with pytest.raises(AssertionError, match=message):
        check_image_dataset(Broken(), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[:-1], "expected 5 images of as many cases, got 4"),
        (lambda images: [*images, np.zeros((2, 2, 3), np.uint8)], "expected no image of no case"),
        (lambda images: [image[..., 0] for image in images], r"north-a-0: .* got \(10, 12\) of uint8"),
        (lambda images: [image.astype(float) for image in images], "of float64"),
        (lambda images: sorted(images, key=lambda image: int(image.sum())), "in the order of the cases"),
        (lambda images: [np.uint8(len(images)) + image for image in images], "does not depend on the others"),
    ],
)
def test_the_suite_finds_what_is_wrong_with_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Images], Images], message: str
) -> None:
    monkeypatch.setitem(PICTURES, "change", change)
    with pytest.raises(AssertionError, match=message):
        check_image_dataset(Broken(), folder)


def test_the_suite_finds_what_is_wrong_with_the_class(folder: Path) -> None:
    @dataclass(kw_only=True)
    class Loose:
        task = "classification"

    @dataclass(frozen=True)
    class Positional:
        task = "classification"
        brighter: int = 0

    volumes: Dataset = Phantom()
    for dataset, message in ((volumes, "task = 'classification'"), (Loose(), "frozen"), (Positional(), "keyword-only")):
        with pytest.raises(AssertionError, match=message):
            check_image_dataset(dataset, folder)  # type: ignore[arg-type]  # that is the point
