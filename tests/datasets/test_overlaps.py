"""Which collections share images: what is documented, both ways, and names that nobody knows."""

from __future__ import annotations

from typing import get_args

import pytest

from wardround.datasets import DATASETS
from wardround.datasets.fed_isic2019 import FedIsic2019
from wardround.datasets.image_folder import ImageFolder
from wardround.datasets.medmnist import Flag, MedMnist
from wardround.datasets.overlaps import COLLECTIONS, name_of, overlapping

SHARED = [
    ("ham10000", "isic2019"),
    ("ham10000", "fed_isic2019"),
    ("ham10000", "dermamnist"),
    ("ham10000", "medmnist"),
    ("fed_isic2019", "dermamnist"),
    ("fed_isic2019", "bcn20000"),
    ("organamnist", "organsmnist"),
    ("organcmnist", "lits"),
    ("pneumoniamnist", "kermany2018"),
    ("octmnist", "kermany2018"),
    ("fed_kits19", "kits21"),
    ("prostate", "promise12"),
    ("synapse", "btcv"),
]
APART = [
    ("ham10000", "bcn20000"),
    ("octmnist", "pneumoniamnist"),
    ("pathmnist", "dermamnist"),
    ("ham10000", "imagenet"),
]


def both_ways(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [*pairs, *((other, one) for one, other in pairs)]


@pytest.mark.parametrize(("data", "seen"), both_ways(SHARED))
def test_shared_images_are_told_with_their_source(data: str, seen: str) -> None:
    (line,) = overlapping(data, [seen])
    assert line.startswith(f"{seen} has images of ")
    assert f"which {data} has too" in line
    assert COLLECTIONS[seen].source in line
    assert COLLECTIONS[data].source in line


@pytest.mark.parametrize(("data", "seen"), both_ways(APART))
def test_others_share_nothing(data: str, seen: str) -> None:
    assert overlapping(data, [seen]) == []


def test_a_collection_overlaps_with_itself() -> None:
    assert all(overlapping(name, [name]) for name in COLLECTIONS)


def test_data_sets_by_their_objects() -> None:
    assert overlapping(FedIsic2019(), ["imagenet", "HAM 10000"])[0].startswith(
        "HAM 10000 has images of HAM10000, which"
    )
    assert overlapping(MedMnist(flag="dermamnist"), ["isic-2019"])
    assert not overlapping(MedMnist(flag="bloodmnist"), ["isic-2019"])
    assert overlapping(ImageFolder(), ["isic2019"]) == []  # one's own images


def test_every_data_set_is_known_but_those_of_ones_own() -> None:
    own = {"phantom", "image_phantom", "volumes", "images", "msd"}
    assert set(DATASETS) - own <= set(COLLECTIONS)
    assert set(get_args(Flag)) <= set(COLLECTIONS)
    without_fields = set(DATASETS) - own - {"medmnist"}
    assert {name_of(DATASETS[name]()) for name in without_fields} == without_fields


def test_unknown_names() -> None:
    assert overlapping("ham10000", ["other: images of our clinic"]) == []
    with pytest.raises(
        ValueError, match=r"got 'ham1000'; did you mean ham10000.*write 'other: ham1000'; .*got 'xyz'; known"
    ):
        overlapping("images", ["ham1000", "xyz"])
