"""Splits keep patients whole, are seeded, and never leave a side empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from wardround.datasets.contract import Case, Cases, DataError, Federation, Pool
from wardround.datasets.partition import Iid, Skew
from wardround.datasets.split import Split, split_patients
from wardround.simulator.randomness import generator


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("number", "test", "validation", "expected"),
    [
        (10, 0.2, 0.0, (8, 0, 2)),
        (10, 0.2, 0.25, (6, 2, 2)),
        (2, 0.01, 0.0, (1, 0, 1)),  # at least one tests
        (2, 0.99, 0.0, (1, 0, 1)),  # at least one trains
        (3, 0.9, 0.9, (1, 1, 1)),
        (5, 0.5, 0.0, (3, 0, 2)),  # round(2.5) is 2 in Python
    ],
)
def test_sizes(number: int, test: float, validation: float, expected: tuple[int, int, int]) -> None:
    sides = Counter(split_patients([f"p{i}" for i in range(number)], test, validation, rng()).values())
    assert (sides["train"], sides["validation"], sides["test"]) == expected


def test_order_and_repetition_of_patients_do_not_matter() -> None:
    patients = [f"p{i}" for i in range(20)]
    first = split_patients(patients, 0.3, 0.2, rng())
    assert split_patients([*reversed(patients), "p3", "p3"], 0.3, 0.2, rng()) == first
    assert split_patients(patients, 0.3, 0.2, rng(1)) != first


def test_the_first_of_a_permutation_of_the_sorted_names_test() -> None:
    names = [f"p{i:02d}" for i in range(20)]
    expected = {names[i] for i in torch.randperm(20, generator=rng()).tolist()[:4]}
    assert {name for name, side in split_patients(names[::-1], 0.2, 0, rng()).items() if side == "test"} == expected


def test_every_patient_is_drawn_about_as_often() -> None:
    """Each of 5 patients tests in about 2 of 5 splits (binomial, n = 500: standard deviation 11)."""
    tests = Counter(
        name
        for seed in range(500)
        for name, side in split_patients("abcde", 0.4, 0, rng(seed)).items()
        if side == "test"
    )
    assert all(abs(count - 200) < 45 for count in tests.values())


def test_too_few_patients_are_named() -> None:
    with pytest.raises(ValueError, match=r"at least 2 patients, one each to train and test, got 1: \['a'\]"):
        split_patients(["a", "a"], 0.2, 0.0, rng())
    with pytest.raises(ValueError, match="at least 3 patients, one each to train, validate and test, got 2"):
        split_patients(["a", "b"], 0.2, 0.1, rng())


# ---- from a pool to a federation -------------------------------------------------------------------------------------


def case(site: str, number: int, side: str | None = None, patient: str | None = None) -> Case:
    name = f"{site}-{number:02d}"
    file = Path(name)
    return Case(name=name, patient=patient or name, image=file, label=file, site=site, side=side)


def pool(*cases: Case) -> Pool:
    return Pool(cases=tuple(sorted(cases, key=lambda case: case.name)), classes=("target",))


def federation(split: Split, cases: Sequence[Case], seed: int = 0) -> Federation:
    def facts(case: Case):
        raise AssertionError("this split must not read volumes")

    return split.federation(pool(*cases), Path("folder"), partial(generator, seed, "split"), facts)


def sizes(cases: Cases) -> tuple[int, int, int]:
    return len(cases.train), len(cases.validation), len(cases.test)


def names(cases: Sequence[Case]) -> list[str]:
    return [case.name for case in cases]


SITES = [case(site, number) for site in "ab" for number in range(10)]
GIVEN = [case(site, number, "test" if number < 2 else "train") for site in "ab" for number in range(10)]


def test_without_a_split_of_its_own_a_fifth_of_each_site_tests() -> None:
    found = federation(Split(), SITES)
    assert {name: sizes(cases) for name, cases in found.hospitals.items()} == {"a": (8, 0, 2), "b": (8, 0, 2)}
    assert federation(Split(), SITES) == found
    assert federation(Split(), SITES, seed=1) != found


def test_the_split_of_the_data_set_is_kept() -> None:
    found = federation(Split(), GIVEN)
    assert names(found.hospitals["a"].test) == ["a-00", "a-01"]
    assert sizes(found.hospitals["b"]) == (8, 0, 2)


def test_validation_comes_out_of_training_and_leaves_the_tests() -> None:
    found = federation(Split(validation_fraction=0.25), GIVEN).hospitals["a"]
    assert sizes(found) == (6, 2, 2)
    assert names(found.test) == ["a-00", "a-01"]


def test_validation_cases_of_the_data_set_stay_where_more_are_drawn() -> None:
    given = [replace(one, side="validation") if one.name == "a-02" else one for one in GIVEN]
    drawn = federation(Split(validation_fraction=0.25), given).hospitals["a"]
    assert (sizes(drawn), "a-02" in names(drawn.validation)) == ((5, 3, 2), True)  # 2 of the 7 that train


def test_a_fraction_replaces_the_split_of_the_data_set() -> None:
    found = federation(Split(test_fraction=0.5), GIVEN).hospitals["a"]
    assert sizes(found) == (5, 0, 5)
    assert found == federation(Split(test_fraction=0.5), GIVEN[::-1]).hospitals["a"]


def test_half_a_split_is_refused() -> None:
    half = [replace(entry, side=None) if entry.name == "a-05" else entry for entry in GIVEN]
    with pytest.raises(
        DataError, match=r"hospital 'a'.*1 cases have none, for example \['a-05'\].*split.test_fraction"
    ):
        federation(Split(), half)


def test_the_limit_takes_training_cases_only_and_smaller_limits_are_parts_of_larger_ones() -> None:
    four = federation(Split(max_train_cases=4), GIVEN).hospitals["a"]
    two = federation(Split(max_train_cases=2), GIVEN).hospitals["a"]
    assert (sizes(four), sizes(two)) == ((4, 0, 2), (2, 0, 2))
    assert set(two.train) < set(four.train)


def test_a_site_that_is_left_out_is_scored_on_its_tests_and_changes_nothing_for_the_others() -> None:
    found = federation(Split(leave_out=("a",)), GIVEN)
    assert list(found.hospitals) == ["b"]
    assert names(found.unseen["a"]) == ["a-00", "a-01"]
    assert found.hospitals["b"] == federation(Split(), GIVEN).hospitals["b"]


def test_leaving_out_needs_a_known_site_and_one_that_stays() -> None:
    with pytest.raises(ValueError, match=r"leave_out: expected some of the hospitals \['a', 'b'\], got \['c'\]"):
        federation(Split(leave_out=("a", "c")), GIVEN)
    with pytest.raises(ValueError, match="at least one hospital to stay"):
        federation(Split(leave_out=("a", "b")), GIVEN)


def test_a_common_test_set_is_set_aside_before_hospitals_are_made() -> None:
    split = Split(partition=Iid(hospitals=4), test="common", test_fraction=0.2, validation_fraction=0.25)
    found = federation(split, SITES)
    assert len(found.common) == 4
    assert {sizes(cases) for cases in found.hospitals.values()} == {(3, 1, 0)}
    everyone = [
        *found.common,
        *(entry for cases in found.hospitals.values() for entry in (*cases.train, *cases.validation)),
    ]
    assert sorted(names(everyone)) == sorted(names(SITES))


def test_common_keeps_the_split_of_the_data_set() -> None:
    found = federation(Split(partition=Iid(hospitals=2), test="common"), GIVEN)
    assert names(found.common) == ["a-00", "a-01", "b-00", "b-01"]
    assert all(cases.test == () for cases in found.hospitals.values())


def test_with_common_tests_a_site_left_out_is_scored_on_all_it_has() -> None:
    found = federation(Split(test="common", leave_out=("a",)), GIVEN)
    assert len(found.unseen["a"]) == 8
    assert names(found.common) == ["a-00", "a-01", "b-00", "b-01"]


@pytest.mark.parametrize("test", ["each", "common"])
def test_a_patient_on_two_sides_is_named(test: str) -> None:
    torn = [replace(entry, patient="Ada") if entry.name in ("a-00", "a-05") else entry for entry in GIVEN]
    with pytest.raises(ValueError, match=r"every patient on one side of the split, got Ada \(test, train\)"):
        federation(Split(test=test), torn)


def test_patients_stay_whole_everywhere() -> None:
    pairs = [case("a", number, patient=f"p{number // 2}") for number in range(20)]
    found = federation(Split(partition=Iid(hospitals=2), test_fraction=0.4, validation_fraction=0.3), pairs)
    seen = [
        {entry.patient for entry in part} for c in found.hospitals.values() for part in (c.train, c.validation, c.test)
    ]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 10


def test_every_problem_of_every_hospital_is_told_at_once() -> None:
    with pytest.raises(DataError) as error:
        federation(Split(), [case("a", 1), case("b", 1)])
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["hospital 'a'", "hospital 'b'"]


def test_a_pool_with_problems_trains_nobody() -> None:
    broken = replace(pool(*GIVEN), problems=("case a-99 is missing",))
    with pytest.raises(DataError, match="1 problem:\n  case a-99 is missing"):
        Split().federation(broken, Path("folder"), partial(generator, 0, "split"), lambda case: None)


def test_bad_settings_are_named_all_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"test_fraction: .*got 1.*; validation_fraction: .*got 1.*; max_train_cases: .*got 0"
    ):
        Split(test_fraction=1.0, validation_fraction=1.0, max_train_cases=0)


def test_a_hospital_without_training_or_test_cases_is_told_with_the_way_out() -> None:
    cases = [case("a", 0, "test"), case("a", 1, "train"), case("b", 0, "test"), case("c", 0, "train")]
    with pytest.raises(DataError) as error:
        federation(Split(), cases)
    assert error.value.problems[:2] == (
        "hospital 'b': expected training cases, got none",
        "hospital 'c': expected test cases, got none",
    )
    assert "split.test=common" in error.value.problems[2]
    assert list(federation(Split(leave_out=("b", "c")), cases).unseen) == ["b", "c"]
    common = federation(Split(test="common"), cases)
    assert (list(common.hospitals), names(common.common)) == (["a", "c"], ["a-00", "b-00"])


@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_and_validation_leave_alone_what_an_unseen_site_is_scored_on(limit: int) -> None:
    split = Split(test="common", leave_out=("a",), max_train_cases=limit, validation_fraction=0.3)
    found = federation(split, GIVEN)
    assert len(found.unseen["a"]) == 8
    assert len(found.hospitals["b"].train) == limit


def test_a_site_of_one_patient_can_be_left_out() -> None:
    """It could not be split, and need not be."""
    found = federation(Split(leave_out=("c",)), [*SITES, case("c", 0)])
    assert names(found.unseen["c"]) == ["c-00"]
    assert found.hospitals == federation(Split(), SITES).hospitals


def test_a_site_whose_patients_all_train_elsewhere_cannot_be_left_out() -> None:
    """Both patients of b train at a; the third of c does not, and is scored."""
    shared = [case("b", number, patient=f"a-0{number}") for number in (3, 4)]
    common = Split(test="common", leave_out=("b", "c"))
    cases = [*GIVEN[:10], *(replace(one, side="train") for one in shared)]
    with pytest.raises(DataError, match="leave_out: site 'b': all its patients train elsewhere, nothing is left"):
        federation(common, [*cases, case("c", 0, "train")])
    found = federation(common, [*cases, case("b", 5, "train"), case("c", 0, "train")])
    assert {name: names(left) for name, left in found.unseen.items()} == {"b": ["b-05"], "c": ["c-00"]}


def test_a_hospital_is_left_out_once() -> None:
    with pytest.raises(ValueError, match=r"leave_out: expected every hospital once, got \['a', 'a'\]"):
        Split(leave_out=("a", "a"))


def test_classes_reach_the_partition_and_no_pixel_is_read() -> None:
    """Three quarters of 8 warts and a quarter of 4 nevi are in the north."""
    images = [replace(case("x", number), target=number // 8) for number in range(12)]
    named = Pool(cases=tuple(images), classes=("wart", "nevus"))
    split = Split(partition=Skew(shares={"north": {"wart": 0.75, "nevus": 0.25}, "south": {}}), test_fraction=0.3)

    def unread(case: Case):
        raise AssertionError("images have no facts")

    found = split.federation(named, Path("folder"), partial(generator, 0, "split"), unread)
    north = found.hospitals["north"]
    assert sizes(north) == (5, 0, 2)
    assert sorted(case.target for case in (*north.train, *north.test)) == [0] * 6 + [1]
    assert sum(sizes(found.hospitals["south"])) == 5
