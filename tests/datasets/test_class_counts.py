"""Images of every class, counted by hand."""

from __future__ import annotations

from pathlib import Path

from wardround.datasets.class_counts import class_counts, histogram, holders
from wardround.datasets.contract import Case, Cases, Federation


def case(name: str, target: int) -> Case:
    return Case(name=name, patient=name, image=Path(name), label=Path(name), target=target)


def test_a_class_without_an_image_is_counted_too() -> None:
    assert histogram([case("a", 2), case("b", 0), case("c", 2)], 4) == [1, 0, 2, 0]
    assert histogram([], 2) == [0, 0]


def test_hospitals_unseen_sites_and_the_common_test_set() -> None:
    """Who has no case on a side has no such side."""
    x = Cases(train=(case("a1", 0), case("a2", 1), case("a3", 1)), validation=(), test=(case("c1", 0),))
    federation = Federation(
        hospitals={"x": x}, classes=("k", "l"), common=(case("d1", 1),), unseen={"y": (case("e1", 1),)}
    )
    held = holders(federation, "everybody")
    assert held["x"] == {"train": x.train, "test": x.test}
    counts = class_counts(held, federation.classes)
    assert list(counts) == ["x", "y", "everybody"]
    assert counts == {
        "x": {"train": {"k": 1, "l": 2}, "test": {"k": 1, "l": 0}},
        "y": {"unseen": {"k": 0, "l": 1}},
        "everybody": {"test": {"k": 0, "l": 1}},
    }
