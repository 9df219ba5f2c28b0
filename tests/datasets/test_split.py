"""Splits keep patients whole, are seeded, and never leave a side empty."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from wardround.datasets.split import split_patients


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
