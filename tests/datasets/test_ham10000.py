"""HAM10000 on generated trees: sites, whole lesions, the split, and what can be wrong."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from picture_trees import ham_tree

from wardround.datasets.check import torn_patient_lines
from wardround.datasets.contract import Case, DataError, Federation, Pool
from wardround.datasets.ham10000 import Ham10000, lesion_sides
from wardround.datasets.split import Split
from wardround.datasets.testing import check_image_dataset

SITES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")


def rows(lesions: int = 40) -> list[tuple[str, str, str, str]]:
    """Two images of each lesion; the first four lesions are at two sites."""
    return [
        (f"HAM_{lesion}", f"ISIC_{2 * lesion + image:07d}", "nv" if lesion % 2 else "mel", SITES[site % 4])
        for lesion in range(lesions)
        for image, site in enumerate((lesion, lesion + (lesion < 4)))
    ]


def rng(*keys: object) -> torch.Generator:
    """A stream for each of the keys."""
    digest = hashlib.sha256(repr(keys).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def nothing(case: Case) -> object:
    raise AssertionError(f"{case.name} was measured")


def deal(split: Split, pool: Pool) -> Federation:
    return split.federation(pool, Path("root"), rng, nothing)  # type: ignore[arg-type]


def lesions(found: Federation) -> dict[str, set[str]]:
    """The lesions of each side, those of sites that do not train among the tested."""
    sides: dict[str, set[str]] = {"train": set(), "validation": set(), "test": {case.patient for case in found.common}}
    for cases in found.hospitals.values():
        for side, known in sides.items():
            known |= {case.patient for case in getattr(cases, side)}
    for unseen in found.unseen.values():
        sides["test"] |= {case.patient for case in unseen}
    return sides


def test_images_at_their_sites(tmp_path: Path) -> None:
    root = ham_tree(tmp_path, rows())
    pool = check_image_dataset(Ham10000(), root)
    assert pool.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert Counter(case.site for case in pool.cases) == dict.fromkeys(SITES, 20)
    case = pool.cases[3]
    assert (case.name, case.patient, case.target, case.site) == ("ISIC_0000003", "HAM_1", 5, "vidir_molemax")
    assert case.image == root / "HAM10000_images_part_2" / "ISIC_0000003.jpg"


def test_the_split_is_of_whole_lesions_in_each_class() -> None:
    """A fifth of 10 and of 25 lesions; the first ones in the order of SHA-256."""
    classes = {f"a{i}": "nv" for i in range(10)} | {f"b{i}": "mel" for i in range(25)}
    sides = lesion_sides(classes, 0.2)
    tested = [name for name, side in sides.items() if side == "test"]
    assert Counter(name[0] for name in tested) == {"a": 2, "b": 5}
    by_hash = sorted((f"a{i}" for i in range(10)), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert sorted(tested)[:2] == sorted(by_hash[:2])
    more = lesion_sides(dict(reversed(classes.items())), 0.4)
    assert all(more[name] == "test" for name in tested)


def test_the_split_does_not_depend_on_files_that_are_missing(tmp_path: Path) -> None:
    root = ham_tree(tmp_path, rows(), empty=True)
    whole = {case.name: case.side for case in Ham10000().pool(root).cases}
    for number in range(0, 40, 3):
        (root / f"HAM10000_images_part_{number % 2 + 1}" / f"ISIC_{number:07d}.jpg").unlink()
    pool = Ham10000(missing="skip").pool(root)
    assert len(pool.cases) == 80 - 14
    assert {case.name: case.side for case in pool.cases}.items() <= whole.items()
    assert len(Ham10000().pool(root).problems) == 14
    assert Ham10000().pool(root).problems[0].startswith(f"{root}/HAM10000_images_part_1/ISIC_0000000.jpg: missing, and")


@pytest.mark.parametrize(
    "split",
    [
        Split(),
        Split(validation_fraction=0.3),
        Split(test_fraction=0.4, validation_fraction=0.3),
        Split(leave_out=("vidir_modern",)),
        Split(test="common", leave_out=("vidir_modern",)),
        Split(test="common", validation_fraction=0.3, leave_out=("rosendahl",)),
    ],
)
def test_no_lesion_is_on_two_sides_of_any_split(tmp_path: Path, split: Split) -> None:
    """Four lesions are at two hospitals, which keep all of their images where nobody is left out."""
    found = deal(split, Ham10000().pool(ham_tree(tmp_path, rows(), empty=True)))
    sides = lesions(found)
    assert sum(map(len, sides.values())) == len(set().union(*sides.values()))
    if not split.leave_out:
        sizes = {name: len(c.train) + len(c.validation) + len(c.test) for name, c in found.hospitals.items()}
        assert sizes == dict.fromkeys(SITES, 20)


def test_lesions_at_two_sites_are_no_problem(tmp_path: Path) -> None:
    pool = Ham10000().pool(ham_tree(tmp_path, rows(), empty=True))
    assert len({(case.patient, case.site) for case in pool.cases}) == 44
    assert torn_patient_lines(pool.cases, ("side", "site")) == []


def test_everything_wrong_with_the_table_at_once(tmp_path: Path) -> None:
    bad = [
        ("HAM_1", "ISIC_1", "nv", "rosendahl"),
        ("HAM_1", "ISIC_2", "mel", "rosendahl"),
        ("", "ISIC_3", "mel", "rosendahl"),
        ("HAM_4", "ISIC_4", "wart", "rosendahl"),
        ("HAM_5", "ISIC_5", "nv", ""),
    ]
    table = tmp_path / "HAM10000_metadata.csv"
    pool = Ham10000().pool(ham_tree(tmp_path, bad, empty=True))
    assert list(pool.problems) == [
        f"{table}: image ISIC_3: expected a lesion_id, got none",
        f"{table}: image ISIC_5: expected a dataset, got none",
        f"{table}: image ISIC_4: dx: expected one of akiec, bcc, bkl, df, mel, nv, vasc, got 'wart'",
        f"{table}: lesion HAM_1: expected one class, got mel and nv",
    ]
    assert [case.name for case in pool.cases] == ["ISIC_1", "ISIC_2"]


def test_locate_and_nothing_there(tmp_path: Path) -> None:
    root = ham_tree(tmp_path / "HAM10000", rows(2), empty=True)
    assert Ham10000().locate(tmp_path) == root
    (root / "HAM10000_metadata.csv").rename(root / "HAM10000_metadata")  # as the Dataverse calls it
    assert len(Ham10000().pool(Ham10000().locate(root)).cases) == 4
    with pytest.raises(ValueError, match=r"expected HAM10000_metadata.csv and .*DBW86T"):
        Ham10000().locate(root / "HAM10000_images_part_1")
    for path in root.glob("*/*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="none of the listed cases"):
        Ham10000(missing="skip").pool(root)


def test_settings() -> None:
    with pytest.raises(
        ValueError, match=r"missing: expected refuse or skip.*; test_fraction: expected a number between"
    ):
        Ham10000(test_fraction=1.0, missing="x")  # type: ignore[arg-type]


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """The collection's own table, and files without content."""
    table = Path(os.environ.get("WARDROUND_DATA", "nowhere")) / "HAM10000_metadata.csv"
    if not table.is_file():
        pytest.skip("needs HAM10000_metadata.csv in the folder WARDROUND_DATA")
    with table.open(newline="") as file:
        found = [(row["lesion_id"], row["image_id"], row["dx"], row["dataset"]) for row in csv.DictReader(file)]
    return ham_tree(tmp_path, found, empty=True)


@pytest.mark.data
def test_the_real_table(real: Path) -> None:
    """The sites' sizes; nine lesions at two sites; at most rounding away from a fifth of each class's lesions."""
    pool = Ham10000().pool(real)
    sizes = {"vidir_molemax": 3954, "vidir_modern": 3363, "rosendahl": 2259, "vienna_dias": 439}
    assert Counter(case.site for case in pool.cases) == sizes
    found = deal(Split(), pool)
    assert {name: len(cases.train) + len(cases.test) for name, cases in found.hospitals.items()} == sizes
    sites: dict[str, set[str | None]] = {}
    for case in pool.cases:
        sites.setdefault(case.patient, set()).add(case.site)
    assert (len(sites), sum(len(own) > 1 for own in sites.values())) == (7470, 9)
    sides = lesions(found)
    assert not sides["train"] & sides["test"]
    assert len(sides["test"]) == pytest.approx(0.2 * 7470, abs=4)
