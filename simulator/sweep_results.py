"""What a sweep found out, in numbers: scores, differences with intervals, costs. The report only draws what is here.

Every number is of the last round. A volume's score is averaged over the seeds first; then over the volumes of a site,
then over the sites. Intervals come from :mod:`.statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .sweep_records import SweepRecords


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % bootstrap interval over volumes within sites; None where it cannot be had."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class SiteNumber:
    """A Dice, or a difference of two, at one site.

    Args:
        site: Its name.
        unseen: Whether the site was left out of the training (of the variant, not of what it is compared with).
        volumes: How many volumes are behind it.
        value: The number.
    """

    site: str
    unseen: bool
    volumes: int
    value: Interval


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The paired difference of a variant to something else, volume by volume: above 0 the variant is better.

    Args:
        against: What it is compared with.
        overall: Over all sites that both are scored at.
        sites: Per site.
        worst_site: Where the difference is lowest.
        per_seed: The difference of the means, seed by seed.
        seeds_sd: Standard deviation of those, None with fewer than two.
        volumes: Pairs of volumes.
        unpaired: Volumes that only one of the two was scored on.
        warnings: What a reader has to know, in plain words.
    """

    against: str
    overall: Interval
    sites: tuple[SiteNumber, ...]
    worst_site: str
    per_seed: Mapping[int, float]
    seeds_sd: float | None
    volumes: int
    unpaired: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a variant sends and computes, the mean over its seeds.

    Args:
        parameters_up: Numbers that a hospital sends in a round, the mean.
        bytes_up: Bytes of all updates of a run.
        bytes_down: Bytes of all broadcasts of a run.
        hours_10: Hours in which a hospital, the mean one, sends and receives its part of a run at 10 Mbit/s.
        hours_100: The same at 100 Mbit/s.
        steps: Optimizer steps of all hospitals.
        paper_overhead: FLAP-SAM's column: 32 P rounds / 2^30, with P = ``parameters_up``.
    """

    parameters_up: float
    bytes_up: float
    bytes_down: float
    hours_10: float
    hours_100: float
    steps: float
    paper_overhead: float


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The test Dice after a round, the mean over hospitals and seeds, with the lowest and highest seed.

    ``bytes`` and ``steps`` are sums over the hospitals up to this round.
    """

    round: int
    bytes: float
    steps: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """What one variant, or a reference, reached.

    Args:
        name: Its name.
        role: ``variant``, ``local``, ``pooled`` or ``zero_shot``.
        seeds: The seeds that are finished.
        dice: The mean over sites; None where nothing is finished.
        per_seed: The same, seed by seed.
        seeds_sd: Standard deviation of those, None with fewer than two.
        sites: Per site.
        worst_site: The site with the lowest Dice, None where nothing is finished.
        effect: Against the baseline; None for the baseline itself, and for references.
        gain: Against its local reference (the paper's collaborative gain); None without.
        references: Dice of its references: ``local``, ``pooled``, ``zero_shot``, ``best_site``.
        cost: What it sent and computed.
        curve: Round by round, where test volumes were scored on the way.
        choice: The selected value, None where nothing is selected.
        validation: Mean validation Dice of every value that was tried, as text; empty where nothing is selected.
        seconds: Wall-clock seconds of a run, the mean. Not reproducible: left out of the JSON.
        warnings: What a reader has to know.
    """

    name: str
    role: str
    seeds: tuple[int, ...]
    dice: Interval | None = None
    per_seed: Mapping[int, float] = field(default_factory=dict)
    seeds_sd: float | None = None
    sites: tuple[SiteNumber, ...] = ()
    worst_site: str | None = None
    effect: Effect | None = None
    gain: Effect | None = None
    references: Mapping[str, float | None] = field(default_factory=dict)
    cost: Cost | None = None
    curve: tuple[CurvePoint, ...] = ()
    choice: Any = None
    validation: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """All numbers of a sweep.

    Args:
        sweep: Its name.
        baseline: Name of the variant that the others are compared with.
        variants: In the order of the plan; references last.
        complete: Whether every run that counts is finished.
        warnings: What a reader has to know of the whole: cells that are missing or ran different code, few volumes.
    """

    sweep: str
    baseline: str
    variants: tuple[VariantResult, ...]
    complete: bool
    warnings: tuple[str, ...] = ()


def analyse(records: SweepRecords) -> SweepResults:
    """All numbers of a sweep, finished or not."""
    raise NotImplementedError
