"""Partitions keep patients whole, leave no hospital empty, are seeded, and make the kind of difference they promise."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from wardround.datasets.contract import Case, Streams, Volume
from wardround.datasets.facts import Facts, describe
from wardround.datasets.partition import (
    PARTITIONS,
    ByAcquisition,
    BySize,
    Dirichlet,
    Iid,
    Natural,
    Partition,
    Skew,
    acquisition,
    class_of,
    hospital_names,
    largest_remainder,
    systematic_sample,
)
from wardround.simulator.builder import build
from wardround.simulator.randomness import streams

REAL = Path(os.environ.get("WARDROUND_DATA", "")) / "Task04_Hippocampus"

DRAWN: list[Partition] = [Iid(hospitals=7), Dirichlet(hospitals=7, alpha=0.3), BySize(hospitals=7)]
SEVERAL: list[Partition] = [*DRAWN, ByAcquisition(hospitals=7, cut="equal"), ByAcquisition(hospitals=7)]


def rng(seed: int = 0) -> Streams:
    return streams(seed, "split")


def case(name: str, patient: str | None = None, site: str | None = None) -> Case:
    return Case(name=name, patient=patient or name, image=Path(f"{name}.nii"), label=Path(f"{name}_m.nii"), site=site)


def pool(patients: int, scans: int = 1) -> list[Case]:
    """``c000_0`` of patient ``p000``, ..."""
    return [case(f"c{number:03d}_{scan}", f"p{number:03d}") for number in range(patients) for scan in range(scans)]


def made_up(number: int) -> Facts:
    """Volumes 1, 2, 3 ... ml in an order that is not that of the names; intensity and spacings grow with the volume."""
    rank = number * 101 % 199
    return Facts(
        shape=(20, 32, 32),
        spacing_mm=(1.0 + rank // 50, 0.5, 2.0),
        label_ml=(0.25 * (rank + 1), 0.75 * (rank + 1)),
        percentiles=(0.0, 0.0, 1.0, 2.0, 10.0 + rank),
        histogram=(1.0,),
        low=0.0,
        high=1.0,
    )


def facts(case: Case) -> Facts:
    return made_up(int(case.patient[1:]))


def volume_ml(case: Case) -> float:
    return sum(facts(case).label_ml)


def nothing(case: Case) -> Facts:
    raise AssertionError("this partition need not look at the volumes")


def names(hospitals: dict[str, list[Case]]) -> dict[str, list[str]]:
    return {name: [case.name for case in cases] for name, cases in hospitals.items()}


def patient_counts(hospitals: dict[str, list[Case]]) -> list[int]:
    return [len({case.patient for case in cases}) for cases in hospitals.values()]


# ---- what all have to keep -------------------------------------------------------------------------------------------


def test_every_partition_is_among_those_tested_here() -> None:
    """``natural`` and ``skew`` take no number of hospitals and have tests of their own."""
    assert {type(partition) for partition in SEVERAL} | {Natural, Skew} == set(PARTITIONS.values())


@pytest.mark.parametrize("partition", SEVERAL, ids=repr)
def test_every_case_is_somewhere_once_patients_whole_nobody_empty(partition: Partition) -> None:
    cases = pool(40, scans=2)
    hospitals = partition.assign(cases, facts, rng())
    assert list(hospitals) == hospital_names(7)
    assert sorted(name for own in names(hospitals).values() for name in own) == sorted(case.name for case in cases)
    assert all(own == sorted(own) for own in names(hospitals).values())
    assert min(patient_counts(hospitals)) >= 1
    assert sum(patient_counts(hospitals)) == 40  # nobody is in two


@pytest.mark.parametrize("partition", SEVERAL, ids=repr)
def test_the_order_of_the_pool_does_not_matter(partition: Partition) -> None:
    cases = pool(40, scans=2)
    mixed = [cases[number * 37 % 80] for number in range(80)]
    assert names(partition.assign(mixed, facts, rng())) == names(partition.assign(cases, facts, rng()))


@pytest.mark.parametrize("partition", DRAWN, ids=repr)
def test_the_seed_decides(partition: Partition) -> None:
    cases = pool(40)
    first = names(partition.assign(cases, facts, rng(3)))
    assert names(partition.assign(cases, facts, rng(3))) == first
    assert names(partition.assign(cases, facts, rng(4))) != first


@pytest.mark.parametrize("number", [10, 50, 100])
@pytest.mark.parametrize("kind", [Iid, BySize, Dirichlet])
def test_many_hospitals_from_one_pool(kind: type, number: int) -> None:
    partition = kind(hospitals=number)
    for patients in (199, 200):  # a case more
        sizes = patient_counts(partition.assign(pool(patients), facts, rng()))
        assert len(sizes) == number
        assert min(sizes) >= 1
        assert sum(sizes) == patients


@pytest.mark.parametrize("partition", [*DRAWN, ByAcquisition(hospitals=7, cut="equal")], ids=repr)
def test_as_many_hospitals_as_patients_is_the_limit(partition: Partition) -> None:
    assert patient_counts(partition.assign(pool(7, scans=2), facts, rng())) == [1] * 7
    with pytest.raises(ValueError, match=r"split.partition.hospitals: .* at most 6, one patient each for 6 .* got 7"):
        partition.assign(pool(6, scans=2), facts, rng())


def test_names_sort_by_number() -> None:
    assert hospital_names(2) == ["hospital-1", "hospital-2"]
    assert hospital_names(100)[:2] == ["hospital-001", "hospital-002"]
    assert hospital_names(100) == sorted(hospital_names(100))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("iid", {"hospitals": 0}, "hospitals: expected a number above 0, got 0"),
        (
            "dirichlet",
            {"hospitals": 0, "alpha": 0.0, "bins": 0, "of_class": 0, "min_patients": 0},
            "hospitals: .*bins: .*of_class: .*min_patients: .*alpha: expected a number above 0, at most 1e.06, got 0.0",
        ),
        ("dirichlet", {"hospitals": 2, "alpha": float("nan")}, "alpha: .* got nan"),
        ("by_size", {"hospitals": 2, "exponent": -0.1}, "exponent: expected a number from 0 on, got -0.1"),
        ("by_size", {"hospitals": 0, "min_patients": 0}, "hospitals: .*; min_patients: "),
        ("by_acquisition", {"hospitals": 2, "by": "vendor"}, "by: expected one of intensity, slice_spacing, pixel_sp"),
        ("by_acquisition", {"hospitals": 0, "cut": "half"}, "hospitals: .*; cut: expected one of gaps, equal, got 'ha"),
    ],
)
def test_ranges(name: str, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PARTITIONS[name](**wrong)


def test_they_are_built_from_plain_values() -> None:
    built = build(PARTITIONS["dirichlet"], {"hospitals": 3, "alpha": 1, "of_class": 2})
    assert built == Dirichlet(hospitals=3, alpha=1.0, of_class=2)


# ---- natural ---------------------------------------------------------------------------------------------------------


def test_natural_hospitals_are_the_sites() -> None:
    cases = [case("b", site="south"), case("c", site="north"), case("a", site="south")]
    assert names(Natural().assign(cases, nothing, rng())) == {"north": ["c"], "south": ["a", "b"]}


def test_a_case_without_site_is_named_with_the_way_out() -> None:
    message = (
        r"site for every case, 1 of 2 have none, for example \['b'\]; make hospitals with one of iid, dirichlet, "
        r"by_size, by_acquisition, for example split.partition=\{name: iid, hospitals: 3\}"
    )
    with pytest.raises(ValueError, match=message):
        Natural().assign([case("a", site="x"), case("b")], nothing, rng())


def test_a_patient_at_two_sites_is_named() -> None:
    cases = [case("a", "anna", "x"), case("b", "anna", "y"), case("c", "carl", "y")]
    with pytest.raises(ValueError, match=r"every patient at one site, got anna \(x, y\)$"):
        Natural().assign(cases, nothing, rng())


def test_a_patient_on_one_side_may_be_at_two_sites() -> None:
    """The data set tests on all images of Anna; of Carl's, one trains."""
    given = [
        ("a", "anna", "x", "test"),
        ("b", "anna", "y", "test"),
        ("c", "carl", "x", "train"),
        ("d", "carl", "y", "test"),
    ]
    cases = [replace(case(name, patient, site), side=side) for name, patient, site, side in given]
    assert names(Natural().assign(cases[:2], nothing, rng())) == {"x": ["a"], "y": ["b"]}
    with pytest.raises(ValueError, match=r"every patient at one site, got carl \(x, y\)$"):
        Natural().assign(cases, nothing, rng())


# ---- iid and by size -------------------------------------------------------------------------------------------------


def test_iid_deals_like_cards() -> None:
    sizes = patient_counts(Iid(hospitals=4).assign(pool(10), nothing, rng()))
    assert sizes == [3, 3, 2, 2]


def test_iid_mixes_volumes() -> None:
    """Means of 50 of the numbers 1..199: standard deviation of the mean 57 sqrt(0.75 / 50) = 7."""
    hospitals = Iid(hospitals=4).assign(pool(199), nothing, rng())
    assert all(abs(np.mean([volume_ml(case) for case in own]) - 100) < 28 for own in hospitals.values())


def test_largest_remainder() -> None:
    """Quotas 2.6, 1.4, 1.0: down to 2, 1, 1; the one that is left goes to the first. Equal quotas: to the first."""
    assert largest_remainder(np.array([0.52, 0.28, 0.2]), 5) == [3, 1, 1]
    assert largest_remainder(np.full(3, 1 / 3), 5) == [2, 2, 1]


@pytest.mark.parametrize(
    ("partition", "patients", "expected"),
    [
        # weights 1, 1/2, 1/3, 1/4 of 25/12: 12, 6, 4, 3 of 25
        (BySize(hospitals=4, exponent=1.0), 25, [12, 6, 4, 3]),
        (BySize(hospitals=3, exponent=0.0), 7, [3, 2, 2]),
        # weights 1, 1/4, 1/9 of 49/36: 7.35, 1.84, 0.82 of 10
        (BySize(hospitals=3, exponent=2.0), 10, [7, 2, 1]),
        # the two small ones are filled from the largest
        (BySize(hospitals=3, exponent=50.0), 9, [7, 1, 1]),
        (BySize(hospitals=3, exponent=1e6, min_patients=3), 9, [3, 3, 3]),
        # 5, 3, 2 of 10: the last gets one from the first, then there is no smaller one than 3
        (BySize(hospitals=3, exponent=1.0, min_patients=3), 10, [4, 3, 3]),
    ],
    ids=repr,
)
def test_sizes_follow_the_power_law(partition: BySize, patients: int, expected: list[int]) -> None:
    assert patient_counts(partition.assign(pool(patients), nothing, rng())) == expected
    assert partition.sizes(patients) == expected


def test_sizes_never_grow_with_the_number_of_the_hospital() -> None:
    for exponent in (0.0, 0.5, 1.0, 2.0, 4.0):
        for least in (1, 2, 3):
            sizes = BySize(hospitals=50, exponent=exponent, min_patients=least).sizes(199)
            assert sizes == sorted(sizes, reverse=True)
            assert sizes[-1] >= least


def test_by_size_draws_the_patients() -> None:
    hospitals = BySize(hospitals=4, exponent=0.0).assign(pool(199), nothing, rng())
    assert all(abs(np.mean([volume_ml(case) for case in own]) - 100) < 28 for own in hospitals.values())


# ---- Dirichlet -------------------------------------------------------------------------------------------------------


def test_systematic_sampling() -> None:
    """Hospitals at [0, 0.6), [0.6, 0.9), [0.9, 1); points (i + u) / 4."""
    shares = np.array([0.6, 0.3, 0.1])
    assert systematic_sample(shares, 4, 0.0) == [0, 0, 0, 1]  # 0, 0.25, 0.5, 0.75
    assert systematic_sample(shares, 4, 0.5) == [0, 0, 1, 1]  # 0.125, 0.375, 0.625, 0.875
    assert systematic_sample(shares, 4, 0.9) == [0, 0, 1, 2]  # 0.225, 0.475, 0.725, 0.975
    assert systematic_sample(np.array([0.5, 0.4]), 1, 0.95) == [1]  # a sum below 1 loses nobody
    assert systematic_sample(np.array([0.0, 0.5, 0.5]), 2, 0.0) == [1, 2]  # 0 and 0.5; no share, no patient


def test_systematic_sampling_has_the_shares_as_mean() -> None:
    shares, total = np.array([0.37, 0.0, 0.12, 0.51]), 7
    draws = [np.bincount(systematic_sample(shares, total, u), minlength=4) for u in np.arange(500) / 500]
    np.testing.assert_allclose(np.mean(draws, axis=0), total * shares, atol=0.01)
    assert all((abs(draw - total * shares) < 1).all() for draw in draws)


def group_counts(hospitals: dict[str, list[Case]], groups: int) -> np.ndarray:
    """(K, groups): patients of each hospital in each group of volume; 200 patients of rank 0..199 in equal groups."""
    table = np.zeros((len(hospitals), groups), int)
    for row, cases in zip(table, hospitals.values(), strict=True):
        for case in cases:
            row[int(case.patient[1:]) * groups // 200] += 1
    return table


def by_number(case: Case) -> Facts:
    """The volume is the patient's number: group g of 10 are patients 20 g .. 20 g + 19."""
    return replace(made_up(0), label_ml=(float(case.patient[1:]), 0.0))


def test_a_large_alpha_gives_everybody_the_same_mixture() -> None:
    """20 patients of each of 10 groups to 5 hospitals: 4 each, for every hospital and group."""
    table = group_counts(Dirichlet(hospitals=5, alpha=1e6, bins=10).assign(pool(200), by_number, rng()), 10)
    assert abs(table - 4).max() <= 1  # the shares are 0.2 +- 0.0002
    assert abs(table.sum(1) - 40).max() <= 2


def test_a_small_alpha_gives_each_group_to_one_hospital() -> None:
    """With alpha 1e-6 each group goes to one hospital, up to the patients that fill hospitals with none."""
    table = group_counts(Dirichlet(hospitals=10, alpha=1e-6, bins=10).assign(pool(200), by_number, rng()), 10)
    empty = (table.sum(1) == 1).sum()
    assert 0 < empty < 10  # ten groups rarely go to ten different hospitals
    assert np.sort(table.max(0)).sum() == 200 - empty


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_shares_have_the_variance_of_the_distribution(alpha: float) -> None:
    """A share of Dirichlet(alpha, ..., alpha) over K has the variance (K - 1) / (K^2 (K alpha + 1)).

    50 seeds x 10 groups x 4 hospitals of 20 patients each; rounding adds at most 1 / (4 * 20^2) to the variance.
    """
    K = 4
    partition = Dirichlet(hospitals=K, alpha=alpha, bins=10)
    shares = [group_counts(partition.assign(pool(200), by_number, rng(seed)), 10) / 20 for seed in range(50)]
    expected = (K - 1) / (K**2 * (K * alpha + 1))
    assert np.var(shares) == pytest.approx(expected, rel=0.15, abs=1 / 1600)


def test_groups_can_be_those_of_one_class() -> None:
    """Class 1 ranks a < b < c < d, class 2 ranks a < c < b < d, and so do both together."""
    ml = {"a": (1.0, 10.0), "b": (2.0, 30.0), "c": (3.0, 20.0), "d": (4.0, 40.0)}

    def halves(**setting: int) -> set[tuple[str, ...]]:
        partition = Dirichlet(hospitals=2, alpha=1e-6, bins=2, **setting)
        for seed in range(20):  # until the two groups go to different hospitals
            drawn = partition.assign(
                [case(name) for name in ml], lambda case: replace(made_up(0), label_ml=ml[case.name]), rng(seed)
            )
            if patient_counts(drawn) == [2, 2]:
                return set(map(tuple, names(drawn).values()))
        raise AssertionError("both groups went to one hospital 20 times")

    assert halves(of_class=1) == {("a", "b"), ("c", "d")}
    assert halves(of_class=2) == halves() == {("a", "c"), ("b", "d")}
    with pytest.raises(ValueError, match=r"split.partition.of_class: expected 1 to 2, got 3"):
        halves(of_class=3)


def test_a_patient_is_ranked_by_the_mean_of_the_scans() -> None:
    """Scans of 1 and 9 ml rank at 5, above a patient of 4 and below one of 6: groups of two are {a, b}, {c, d}."""
    ml = {"a": 4.0, "b1": 1.0, "b2": 9.0, "c": 6.0, "d": 7.0}
    cases = [case("a"), case("b1", "b"), case("b2", "b"), case("c"), case("d")]
    partition = Dirichlet(hospitals=2, alpha=1e-6, bins=2)
    found = {
        tuple(map(tuple, sorted(names(hospitals).values())))
        for seed in range(20)
        for hospitals in [
            partition.assign(cases, lambda case: replace(made_up(0), label_ml=(ml[case.name],)), rng(seed))
        ]
        if len(set(patient_counts(hospitals))) == 1
    }
    assert found == {(("a", "b1", "b2"), ("c", "d"))}


def test_more_groups_than_patients_are_one_patient_each() -> None:
    many, as_many = (Dirichlet(hospitals=2, bins=bins).assign(pool(6), facts, rng()) for bins in (100, 6))
    assert names(many) == names(as_many)


def test_hospitals_that_are_too_small_are_filled_from_the_largest() -> None:
    partition = Dirichlet(hospitals=4, alpha=1e-6, bins=1)  # all patients go to one
    hospitals = partition.assign(pool(20), facts, rng())
    assert sorted(patient_counts(hospitals)) == [1, 1, 1, 17]
    filled = replace(partition, min_patients=4).assign(pool(20), facts, rng())
    assert sorted(patient_counts(filled)) == [4, 4, 4, 8]
    with pytest.raises(ValueError, match=r"hospitals: expected at most 3, 6 patients each for 20 patients, got 4"):
        replace(partition, min_patients=6).assign(pool(20), facts, rng())


# ---- by acquisition --------------------------------------------------------------------------------------------------


def groups(partition: Partition, cases: Sequence[Case], look: Callable[[Case], Facts]) -> list[str]:
    """The names of each hospital's cases, one string each."""
    return ["".join(own) for own in names(partition.assign(cases, look, rng())).values()]


def with_spacing(**slice_mm: float) -> tuple[list[Case], Callable[[Case], Facts]]:
    def look(case: Case) -> Facts:
        return replace(made_up(0), spacing_mm=(slice_mm[case.name], 1.0, 1.0))

    return [case(name) for name in slice_mm], look


def test_gaps_cut_where_values_are_far_apart() -> None:
    """Sorted b 1, d 1.5, a 3, e 5, c 5.2: gaps 0.5, 1.5, 2, 0.2."""
    cases, look = with_spacing(a=3.0, b=1.0, c=5.2, d=1.5, e=5.0)

    def cut(number: int) -> list[str]:
        return groups(ByAcquisition(hospitals=number, by="slice_spacing"), cases, look)

    assert cut(1) == ["abcde"]
    assert cut(2) == ["abd", "ce"]
    assert cut(3) == ["bd", "a", "ce"]
    assert cut(4) == ["b", "d", "a", "ce"]
    assert cut(5) == ["b", "d", "a", "e", "c"]


def test_equal_parts_are_equal() -> None:
    cases, look = with_spacing(a=3.0, b=1.0, c=5.2, d=1.5, e=5.0)
    assert groups(ByAcquisition(hospitals=2, by="slice_spacing", cut="equal"), cases, look) == ["abd", "ce"]
    assert groups(ByAcquisition(hospitals=3, by="slice_spacing", cut="equal"), cases, look) == ["bd", "ae", "c"]


def test_too_few_different_values_are_an_error() -> None:
    """1.0 and 1.00002 are one spacing."""
    cases, look = with_spacing(a=1.0, b=1.00002, c=3.0)
    assert groups(ByAcquisition(hospitals=2, by="slice_spacing"), cases, look) == ["ab", "c"]
    with pytest.raises(ValueError, match=r"at most 2 with cut gaps, .* values of slice_spacing, got 3; cut: equal"):
        groups(ByAcquisition(hospitals=3, by="slice_spacing"), cases, look)
    assert groups(ByAcquisition(hospitals=3, by="slice_spacing", cut="equal"), cases, look) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("percentiles", "expected"),
    [((0.0, 1e3), 3.0), ((-1000.0, 300.0), 3.0), ((0.0, 255.0), 2.407), ((0.0, 4e5), 5.602), ((0.0, 0.0), -9.0)],
)
def test_intensity_is_an_order_of_magnitude(percentiles: tuple[float, float], expected: float) -> None:
    low, high = percentiles
    assert acquisition(replace(made_up(0), percentiles=(low, low, 0.0, high, high)), "intensity") == expected


def test_spacings() -> None:
    image = replace(made_up(0), spacing_mm=(4.0, 0.5, 2.0))
    assert acquisition(image, "slice_spacing") == 4.0
    assert acquisition(image, "pixel_spacing") == 1.0  # the square root of 0.5 x 2


def test_a_patient_counts_with_the_mean_of_the_scans() -> None:
    """Spacings 1 and 5 are 3, nearer to 4 than to 1."""
    cases = [case("a1", "a"), case("a2", "a"), case("b"), case("c")]
    _, look = with_spacing(a1=1.0, a2=5.0, b=4.0, c=1.0)
    assert groups(ByAcquisition(hospitals=2, by="slice_spacing"), cases, look) == ["c", "a1a2b"]


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="WARDROUND_DATA does not name a folder with Task04_Hippocampus")
def test_intensity_finds_the_three_groups_of_the_hippocampi() -> None:
    """42 volumes are uint8, 132 floats of about 1e3, 25 floats of about 4e5: ``sites.csv`` says which."""
    with (REAL / "sites.csv").open() as file:
        site = {row["case"]: row["site"] for row in csv.DictReader(file)}

    def measured(case: Case) -> Facts:
        image = np.moveaxis(nib.load(case.image).get_fdata(dtype=np.float32), 2, 0)
        label = np.zeros(image.shape, np.uint8)
        return describe(Volume(case=case, image=image, label=label, spacing_mm=(1, 1, 1), slice_axis=2), 2)

    cases = [replace(case(name), image=REAL / "imagesTr" / f"{name}.nii.gz") for name in site]
    hospitals = ByAcquisition(hospitals=3).assign(cases, measured, rng())
    assert [{site[case.name] for case in own} for own in hospitals.values()] == [{"A"}, {"B"}, {"C"}]
    assert patient_counts(hospitals) == [42, 132, 25]


# ---- images with classes ---------------------------------------------------------------------------------------------

KINDS = ("melanoma", "nevus", "wart")


def pictures(*counts: int) -> list[Case]:
    """So many images of each class, each of a patient of its own."""
    return [
        replace(case(f"c{target}-{number:03d}"), target=target)
        for target, count in enumerate(counts)
        for number in range(count)
    ]


def histograms(hospitals: dict[str, list[Case]], kinds: int = 3) -> dict[str, list[int]]:
    return {
        name: [sum(case.target == kind for case in cases) for kind in range(kinds)] for name, cases in hospitals.items()
    }


def test_dirichlet_groups_images_by_class() -> None:
    """A huge alpha gives every hospital its third of each class, rounded; a tiny one a whole class to somebody."""
    even = histograms(Dirichlet(hospitals=3, alpha=1e6).assign(pictures(30, 61, 9), nothing, rng()))
    assert all(
        abs(count - part) <= 1 for counts in even.values() for count, part in zip(counts, (10, 20, 3), strict=True)
    )
    apart = histograms(Dirichlet(hospitals=3, alpha=1e-6).assign(pictures(30, 61, 9), nothing, rng(2)))
    largest = [max(counts[kind] for counts in apart.values()) for kind in range(3)]
    assert all(most >= count - 2 for most, count in zip(largest, (30, 61, 9), strict=True))  # but for the repair


def test_dirichlet_draws_the_shares_of_a_class_from_its_own_stream() -> None:
    """The shares of class 2 by hand, with and without the others."""
    partition = Dirichlet(hospitals=4, alpha=0.5)
    numbers = np.random.Generator(np.random.PCG64(int(torch.randint(2**63 - 1, (1,), generator=rng()("shares", 2)))))
    shares = numbers.dirichlet([0.5] * 4)
    expected = np.bincount(systematic_sample(shares, 1000, numbers.random()), minlength=4).tolist()
    for counts in ((10, 20, 1000), (0, 20, 1000)):
        found = histograms(partition.assign(pictures(*counts), nothing, rng()))
        assert [of[2] for of in found.values()] == pytest.approx(expected, abs=2)  # but for the repair


def test_the_class_of_a_patient_is_the_most_frequent_one() -> None:
    def several(*targets: int) -> list[Case]:
        return [replace(case(f"c{number}", "ann"), target=target) for number, target in enumerate(targets)]

    assert [class_of(several(*targets)) for targets in ((2, 0, 2), (2, 1), (1, 2, 2, 1, 0))] == [2, 1, 1]
    split = Skew(shares={"north": {"nevus": 1.0, "melanoma": 0.0}, "south": {"melanoma": 1.0}})
    found = split.assign([*several(1, 1, 0), *pictures(3)], nothing, rng(), KINDS)
    assert names(found)["north"] == ["c0", "c1", "c2"]  # with the melanoma


def test_settings_for_volumes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bins: expected none, .* got 5; leave it out; .*of_class: .* got 1"):
        Dirichlet(hospitals=2, bins=5, of_class=1).assign(pictures(5), nothing, rng())
    with pytest.raises(
        ValueError, match=r"by_acquisition .* expected one of natural, iid, dirichlet, skew and by_size"
    ):
        ByAcquisition(hospitals=2).assign(pictures(5), nothing, rng())
    with pytest.raises(ValueError, match=r"class for every case or for none, 1 of 6 have none, for example \['x'\]"):
        Dirichlet(hospitals=2).assign([*pictures(5), case("x")], nothing, rng())
    with pytest.raises(ValueError, match=r"with one of iid, dirichlet, skew, by_size, for example"):
        Natural().assign(pictures(5), nothing, rng())


@pytest.mark.parametrize("partition", [Iid(hospitals=3), BySize(hospitals=3)])
def test_the_others_deal_images_as_they_deal_volumes(partition: Partition) -> None:
    images = pictures(20, 20)
    volumes = [replace(case, target=None) for case in images]
    assert names(partition.assign(images, nothing, rng(), KINDS)) == names(partition.assign(volumes, nothing, rng()))


def test_skew_gives_what_was_said_and_shares_the_rest() -> None:
    """Of 20 melanomas 16 to the north, 2 each to the silent two; of 10 nevi 1 and 9; warts 7 = 3 + 2 + 2."""
    partition = Skew(shares={"south": {"nevus": 0.9}, "north": {"melanoma": 0.8, "nevus": 0.1}, "west": {"nevus": 0}})
    hospitals = partition.assign(pictures(20, 10, 7), nothing, rng(), KINDS)
    assert histograms(hospitals) == {"north": [16, 1, 3], "south": [2, 9, 2], "west": [2, 0, 2]}
    assert names(partition.assign(pictures(20, 10, 7)[::-1], nothing, rng(), KINDS)) == names(hospitals)
    assert names(partition.assign(pictures(20, 10, 7), nothing, rng(1), KINDS)) != names(hospitals)
    assert histograms(partition.assign(pictures(20, 10, 7), nothing, rng(1), KINDS)) == histograms(hospitals)


def test_skew_is_built_from_plain_values() -> None:
    plain = {"shares": {"north": {"melanoma": 0.8, "nevus": 1}, "south": {}}}
    assert build(PARTITIONS["skew"], plain) == Skew(shares={"north": {"melanoma": 0.8, "nevus": 1.0}, "south": {}})


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({}, "shares: expected at least one hospital"),
        ({"a": {"nevus": 1.5}}, "shares.a.nevus: expected a fraction from 0 to 1, got 1.5"),
        ({"a": {"nevus": 0.7}, "b": {"nevus": 0.7}, "c": {}}, "'nevus' with a sum of at most 1, got 1.4"),
        ({"a": {"nevus": 0.7}, "b": {"nevus": 0.2}}, "'nevus' with a sum of 1, as every hospital names it, got 0.9"),
    ],
)
def test_fractions_that_cannot_be_are_named(shares: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Skew(shares=shares)


def test_skew_needs_its_classes_and_a_patient_for_everybody() -> None:
    partition = Skew(shares={"a": {"nevus": 1.0}, "b": {}})
    with pytest.raises(ValueError, match=r"expected some of the classes \['wart'\], got \['nevus'\] too"):
        partition.assign(pictures(3), nothing, rng(), ("wart",))
    with pytest.raises(ValueError, match=r"got none for \['b'\] from 3 patients"):
        partition.assign(pictures(0, 3), nothing, rng(), KINDS)
    with pytest.raises(ValueError, match="skew is made of the classes of images"):
        partition.assign(pool(3), nothing, rng(), KINDS)
