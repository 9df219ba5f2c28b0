"""Who takes part in a round, and who fails in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..aggregators.contract import Streams


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """How the hospitals of a round are drawn.

    Args:
        sampling: ``full``: everyone; ``fixed``: ``size`` hospitals without replacement; ``poisson``: each hospital on
            its own with probability ``rate`` (a round may be empty; differential privacy amplifies under this one).
        size: Hospitals of a round, for ``fixed``.
        rate: Probability in (0, 1], for ``poisson``.
        drop_rate: Probability in [0, 1) that a hospital of the cohort receives the model and never answers. Unless
            sampling is ``poisson`` one hospital always answers: the one that was furthest from failing.
    """

    sampling: Literal["full", "fixed", "poisson"] = "full"
    size: int | None = None
    rate: float | None = None
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if (self.sampling == "fixed") != (self.size is not None):
            problems.append(f"size: expected a number exactly with sampling 'fixed', got {self.size!r}")
        if self.size is not None and self.size < 1:
            problems.append(f"size: expected at least 1, got {self.size!r}")
        if (self.sampling == "poisson") != (self.rate is not None):
            problems.append(f"rate: expected a number exactly with sampling 'poisson', got {self.rate!r}")
        if self.rate is not None and not 0 < self.rate <= 1:
            problems.append(f"rate: expected a number in (0, 1], got {self.rate!r}")
        if not 0 <= self.drop_rate < 1:
            problems.append(f"drop_rate: expected a number in [0, 1), got {self.drop_rate!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def check(self, num_hospitals: int) -> None:
        """Raises ValueError when more hospitals are asked for than there are."""
        if self.size is not None and self.size > num_hospitals:
            raise ValueError(
                f"cohort.size: expected at most {num_hospitals} (the hospitals there are), got {self.size}"
            )


def draw(cohort: Cohort, hospitals: Sequence[str], rng: Streams) -> tuple[str, ...]:
    """The hospitals of one round, sorted.

    Each hospital has its own stream, so adding one does not change whether another is drawn under ``poisson``.

    Args:
        cohort: How to draw.
        hospitals: All hospitals.
        rng: Streams of this round.
    """
    if cohort.sampling == "full":
        return tuple(sorted(hospitals))
    draws = _uniform(hospitals, rng, "draw")
    if cohort.sampling == "poisson":
        rate = cohort.rate or 0.0
        return tuple(sorted(name for name in hospitals if draws[name] < rate))
    return tuple(sorted(sorted(hospitals, key=lambda name: (draws[name], name))[: cohort.size]))


def drop(cohort: Cohort, names: Sequence[str], rng: Streams) -> frozenset[str]:
    """The hospitals of the cohort that fail in this round."""
    if cohort.drop_rate == 0 or not names:
        return frozenset()
    draws = _uniform(names, rng, "drop")
    dropped = frozenset(name for name in names if draws[name] < cohort.drop_rate)
    if len(dropped) == len(names) and cohort.sampling != "poisson":
        return dropped - {max(names, key=lambda name: (draws[name], name))}
    return dropped


def _uniform(names: Sequence[str], rng: Streams, purpose: str) -> dict[str, float]:
    return {name: torch.rand(1, dtype=torch.float64, generator=rng(purpose, name)).item() for name in names}
