"""Seeded splits that keep all scans of a patient on one side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

Side = Literal["train", "validation", "test"]


def split_patients(
    patients: Sequence[str], test_fraction: float, validation_fraction: float, rng: torch.Generator
) -> dict[str, Side]:
    """Draws which patients train, validate and test.

    Of n patients, ``round(test_fraction * n)`` test, but at least one; of the m others, ``round(validation_fraction *
    m)`` validate, but at least one where the fraction is above 0; at least one is left to train. For a split within
    each site, call it once per site.

    Args:
        patients: Names; repetitions and order do not matter.
        test_fraction: In (0, 1).
        validation_fraction: In [0, 1), of those who do not test.
        rng: Drawn from once.

    Returns:
        The side of every patient, by sorted name.

    Raises:
        ValueError: too few patients for one on each side.
    """
    names = sorted(set(patients))
    sides = 2 + (validation_fraction > 0)
    if len(names) < sides:
        raise ValueError(
            f"expected at least {sides} patients, one each to {'train, validate and' if sides == 3 else 'train and'} "
            f"test, got {len(names)}: {names}"
        )
    drawn = [names[position] for position in torch.randperm(len(names), generator=rng).tolist()]
    num_test = min(max(round(test_fraction * len(names)), 1), len(names) - sides + 1)
    rest = len(names) - num_test
    num_validation = min(max(round(validation_fraction * rest), 1), rest - 1) if validation_fraction > 0 else 0
    test, validation = set(drawn[:num_test]), set(drawn[num_test : num_test + num_validation])
    return {name: "test" if name in test else "validation" if name in validation else "train" for name in names}


def fraction_problems(test_fraction: float, validation_fraction: float) -> list[str]:
    """What is wrong with the two fractions, for a plug-in's ``__post_init__``."""
    problems = []
    if not 0 < test_fraction < 1:
        problems.append(f"test_fraction: expected a number between 0 and 1, got {test_fraction!r}")
    if not 0 <= validation_fraction < 1:
        problems.append(f"validation_fraction: expected 0 or more and below 1, got {validation_fraction!r}")
    return problems
