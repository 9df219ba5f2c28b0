"""Every data set of the table keeps the contract. A new row of the table needs a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from wardround.datasets import DATASETS
from wardround.datasets.contract import Case, Cases, Dataset, Federation, Streams, Volume
from wardround.datasets.msd import Msd
from wardround.datasets.phantom import Phantom
from wardround.datasets.testing import check_dataset

SMALL = Phantom(hospitals=2, train_cases=3, test_cases=1, size=16, slices=3, validation_fraction=0.3)

EXAMPLES: dict[str, Callable[[Path], tuple[Dataset, Path]]] = {
    "phantom": lambda cache: (SMALL, cache),
    "msd": lambda cache: (Msd(validation_fraction=0.3, test_fraction=0.3), SMALL.locate(cache)),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_contract(name: str, cache: Path) -> None:
    dataset, root = EXAMPLES[name](cache)
    assert isinstance(dataset, DATASETS[name])
    federation = check_dataset(dataset, root)
    assert len(federation.hospitals) == 2


@dataclass(frozen=True, kw_only=True)
class Broken(Phantom):
    """A data set that breaks the rule that ``change`` breaks."""

    change: Callable[[Federation], Federation]

    def _folder_name(self) -> str:
        return SMALL._folder_name()

    def federation(self, root: Path, rng: Streams) -> Federation:
        return self.change(super().federation(root, rng))


def first(change: Callable[[Cases], Cases]) -> Callable[[Federation], Federation]:
    def changed(federation: Federation) -> Federation:
        name = next(iter(federation.hospitals))
        return replace(federation, hospitals={**federation.hospitals, name: change(federation.hospitals[name])})

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first(lambda cases: replace(cases, test=())), "hospital-1 has no test case"),
        (first(lambda cases: replace(cases, train=())), "hospital-1 has no training case"),
        (first(lambda cases: replace(cases, test=cases.train)), "hospital-1 has patients on two sides"),
        (first(lambda cases: replace(cases, train=cases.train * 2)), "every case may appear once"),
        (lambda fed: replace(fed, hospitals=dict(reversed(fed.hospitals.items()))), "sorted by name"),
        (lambda fed: replace(fed, classes=("edema",)), "expected labels up to 1, got 2"),
    ],
)
def test_the_suite_finds_what_is_broken(cache: Path, change: Callable[[Federation], Federation], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_dataset(Broken(**vars(SMALL), change=change), cache, volumes_per_hospital=3)


def test_the_suite_finds_an_unseeded_split(cache: Path) -> None:
    calls = iter(range(10))

    @dataclass(frozen=True, kw_only=True)
    class Moody(Phantom):
        def federation(self, root: Path, rng: Streams) -> Federation:
            number = next(calls)
            federation = super().federation(root, rng)
            return replace(federation, classes=(*federation.classes[:1], f"core-{number}"))

    with pytest.raises(AssertionError, match="the same streams must give the same federation"):
        check_dataset(Moody(**vars(SMALL)), cache)


def test_the_suite_finds_a_bad_volume(cache: Path) -> None:
    class Doubled(Phantom):
        def volume(self, case: Case) -> Volume:
            volume = super().volume(case)
            return replace(volume, image=volume.image.astype("float64"))

    with pytest.raises(AssertionError, match="expected a float32 image, got float64"):
        check_dataset(Doubled(**vars(SMALL)), cache)
