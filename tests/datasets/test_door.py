"""Every contract suite lets the same kind of object in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from wardround.datasets.door import check_frozen
from wardround.datasets.image_phantom import ImagePhantom
from wardround.datasets.phantom import Phantom
from wardround.datasets.testing import check_dataset, check_image_dataset


@dataclass(kw_only=True)
class _Thawed:
    seed: int = 0


@dataclass(frozen=True)
class _Positional:
    seed: int = 0


def test_a_data_set_is_let_in() -> None:
    check_frozen(Phantom())


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        (Phantom, r"^expected an object, such as Phantom\(\), got the class$"),
        (7, "^expected a dataclass, got int"),
        (_Thawed(), "^expected a frozen dataclass"),
        (_Positional(), r"^expected keyword-only fields, these are not: \['seed'\]"),
    ],
)
def test_anything_else_is_told(plugin: Any, problem: str) -> None:
    for check in (check_frozen, check_dataset):
        with pytest.raises(AssertionError, match=problem):
            check(plugin)


def test_the_class_of_a_data_set_of_images_is_told() -> None:
    kind: Any = ImagePhantom
    with pytest.raises(AssertionError, match=r"such as ImagePhantom\(\), got the class"):
        check_image_dataset(kind)
