"""Client-level differential privacy with a trusted server: every hospital's step is bounded, the mean gets noise.

::

    clipped_k = step_k min(1, S / ||step_k||)                 one norm over all sent tensors together
    mean      = (sum_k clipped_k + N(0, z^2 S^2 I)) / m       standard deviation z S / m per coordinate

Legend: N hospitals of the federation, S clip norm, z noise multiplier, m public denominator, q sampling rate.

The denominator is fixed before the run, so that it tells nothing: N with full participation, ``cohort.size`` with fixed
cohorts, q N with Poisson sampling. A hospital that drops out contributes 0 and m stays. A Poisson round that draws
nobody is noise alone, and the server takes its step.

What is accounted for, by ``dp-accounting``, and between which two runs. N is public, and the same in both:

========  ==========================================  ==================================  =================
sampling  mechanism of a round                        neighbours: one of the N hospitals  sensitivity
========  ==========================================  ==================================  =================
full      Gaussian                                    answers, or never does              S
poisson   Gaussian after Poisson sampling, rate q     answers when drawn, or never does   S
fixed     Gaussian after sampling without             is replaced by another (RDP only)   2 S
          replacement, size of N
========  ==========================================  ==================================  =================

A hospital that never answers adds nothing to the sum of the steps and nothing to the count of an adaptive clip, which
it would move by 1/2. A step of zero is no such neighbour: it counts as within S, and a long step against it moves the
count by 1, twice what epsilon allows for.

With fixed cohorts the account takes what a hospital sends to depend on the download alone, not on the rounds it was in
before. What would (a schedule over its own steps, kept moments, error feedback, memory of a rule) is refused; full and
Poisson cohorts have room for it.

What is not accounted for: noise and cohorts are functions of the experiment's seed, which is written down, and
whoever has it can take the noise off again: epsilon is that of the mechanism with a secret seed. Noise in floating
point is no formal guarantee (Mironov, 2012). Training losses, scores, instruments, the ledger, ``privacy/clipped`` and
``secure_sum/cut`` (which an empty round does not have) are written down as they are, and a round may fail because too
few answer. An attack that reads the steps of other hospitals lets a step depend on more than one of them.

Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", arXiv 1710.06963; Geyer et al.,
arXiv 1712.07557; Andrew et al., "Differentially Private Learning with Adaptive Clipping", arXiv 1905.03871.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from ..aggregators.arithmetic import accumulator
from ..aggregators.contract import Streams, Tensors
from .sampling import Cohort


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """The clip norm follows a quantile of the norms of the steps.

    ::

        b = 1/2 + (sum_k (1[||step_k|| <= S] - 1/2) + N(0, sigma_b^2)) / m
        S <- S exp(-rate (b - quantile))
        z_step = (z^-2 - (2 sigma_b)^-2)^(-1/2)

    The noisy share b costs privacy too: with z_step on the steps, both together cost what z alone would.

    Args:
        quantile: The share of the hospitals whose step shall be within S, in (0, 1).
        rate: How fast S follows, > 0.
        count_noise: sigma_b, > z / 2; None: m / 20, which is for cohorts of tens and more.

    Source: Andrew et al., arXiv 1905.03871, Algorithm 1 and Theorem 1.
    """

    quantile: float = 0.5
    rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.quantile < 1:
            problems.append(f"quantile: expected a number in (0, 1), got {self.quantile!r}")
        if not self.rate > 0:
            problems.append(f"rate: expected a number above 0, got {self.rate!r}")
        if self.count_noise is not None and not self.count_noise > 0:
            problems.append(f"count_noise: expected a number above 0, got {self.count_noise!r}")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Clipping and Gaussian noise on the mean of the hospitals' steps.

    Args:
        noise_multiplier: z, >= 0: standard deviation of the noise on the sum, in clip norms. 0: clipping alone, which
            guarantees nothing.
        clip_norm: S, > 0: the longest step of a hospital; with ``adaptive`` the one of round 1.
        delta: In (0, 1), below 1 / N: epsilon is given at this delta.
        adaptive: How the clip norm follows the steps; None: it stays.
        accountant: ``pld`` (privacy loss distributions, tight) or ``rdp`` (Renyi; a little larger; the only one that
            knows fixed cohorts).
    """

    noise_multiplier: float
    clip_norm: float
    delta: float
    adaptive: AdaptiveClip | None = None
    accountant: Literal["pld", "rdp"] = "pld"

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.noise_multiplier < math.inf:
            problems.append(f"noise_multiplier: expected a number of at least 0, got {self.noise_multiplier!r}")
        if not self.clip_norm > 0:
            problems.append(f"clip_norm: expected a number above 0, got {self.clip_norm!r}")
        if math.isinf(self.clip_norm) and (self.noise_multiplier or self.adaptive):
            problems.append("clip_norm: expected a finite number where there is noise or an adaptive clip, got inf")
        if not 0 < self.delta < 1:
            problems.append(f"delta: expected a number in (0, 1), got {self.delta!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def check(self, cohort: Cohort, num_hospitals: int) -> None:
        """Raises ValueError where there is no account of this federation."""
        if self.delta >= 1 / num_hospitals:
            raise ValueError(
                f"stages.privacy.delta: expected less than 1 / {num_hospitals} (the hospitals there are), got "
                f"{self.delta!r}: with more, publishing the step of a hospital drawn at random would count as private"
            )
        if cohort.sampling == "fixed" and self.accountant == "pld":
            raise ValueError(
                "stages.privacy.accountant: expected 'rdp' with cohort.sampling 'fixed', got 'pld': only the RDP "
                "accountant knows sampling without replacement. Set it, or use poisson or full cohorts"
            )
        needed, count_noise = self.noise_multiplier / 2, self._count_noise(denominator(cohort, num_hospitals))
        if self.adaptive is not None and not count_noise > needed:
            raise ValueError(
                f"stages.privacy.adaptive.count_noise: expected more than {needed} (half of noise_multiplier), got "
                f"{count_noise}: the noisy count alone would cost more than the whole budget. Set it to "
                f"{max(self.noise_multiplier, 0.1)}, for example"
            )
        _library("dp_accounting")

    def step_multiplier(self, m: float) -> float:
        """The multiplier of the noise on the steps: z, or more where a noisy count takes its part of the budget."""
        z = self.noise_multiplier
        if self.adaptive is None or z == 0:
            return z
        return float((z**-2 - (2 * self._count_noise(m)) ** -2) ** -0.5)

    def next_clip_norm(self, clip_norm: float, within: int, outside: int, m: float, rng: Streams) -> float:
        """The clip norm of the next round.

        Args:
            clip_norm: S of this round.
            within: Hospitals whose step was at most that long; each moves the count by 1/2.
            outside: Hospitals whose step was longer; each moves the count by -1/2.
            m: The denominator.
            rng: Streams of the round.
        """
        if self.adaptive is None:
            return clip_norm
        drawn = torch.randn((), dtype=torch.float64, generator=rng("count")).item()
        noise = self._count_noise(m) * drawn if self.noise_multiplier else 0.0
        share = 0.5 + ((within - outside) / 2 + noise) / m
        return clip_norm * math.exp(-self.adaptive.rate * (share - self.adaptive.quantile))

    def _count_noise(self, m: float) -> float:
        given = self.adaptive.count_noise if self.adaptive is not None else None
        return m / 20 if given is None else given


def denominator(cohort: Cohort, num_hospitals: int) -> float:
    """m, what the sum is divided by: the number of hospitals expected in a round, whoever comes."""
    if cohort.sampling == "poisson":
        return (cohort.rate or 0.0) * num_hospitals
    return float(num_hospitals if cohort.size is None else cohort.size)


def joint_norm(step: Tensors) -> float:
    """The Euclidean norm of all tensors together, in float64 where the device has it."""
    norms = [torch.linalg.vector_norm(value, dtype=accumulator(value)).item() for value in step.values()]
    return math.hypot(*norms)


def bounded(step: Tensors, clip_norm: float) -> dict[str, Tensor]:
    """``step min(1, clip_norm / ||step||)``; a step of zero stays what it is.

    Example:
        >>> bounded({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 1.0)
        {'a': tensor([0.6000], dtype=torch.float64), 'b': tensor([0.8000], dtype=torch.float64)}
    """
    norm = joint_norm(step)
    factor = 1.0 if norm <= clip_norm else clip_norm / norm
    return {name: value.to(accumulator(value)) * factor for name, value in step.items()}


def with_noise(mean: Tensors, std: float, rng: Streams) -> dict[str, Tensor]:
    """Gaussian noise of a standard deviation on every coordinate, each tensor from a stream of its own."""
    if std == 0:
        return dict(mean)
    return {
        name: value + (std * torch.randn(value.shape, dtype=torch.float64, generator=rng("noise", name))).to(value)
        for name, value in mean.items()
    }


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a run of so many rounds guarantees a hospital.

    Args:
        privacy: The mechanism.
        cohort: How hospitals are drawn.
        num_hospitals: N, public.

    Example:
        >>> print(Account(privacy=Privacy(noise_multiplier=1.0, clip_norm=1.0, delta=1e-3), cohort=Cohort(),
        ...     num_hospitals=4))
        (epsilon, 0.001)-differential privacy of a hospital: one of 4 answers or never does; Gaussian noise of
        multiplier 1.0 in every round, sampling full, accountant pld
    """

    privacy: Privacy
    cohort: Cohort
    num_hospitals: int

    def epsilon(self, rounds: int) -> float:
        """Epsilon at ``privacy.delta`` after so many rounds; infinite without noise."""
        return _epsilon(self.privacy, self.cohort, self.num_hospitals, rounds)

    def statement(self, rounds: int) -> str:
        """The guarantee after so many rounds, in words, with its epsilon."""
        return str(self).replace("epsilon", f"{self.epsilon(rounds):.4g}", 1)

    def __str__(self) -> str:
        privacy, sampling = self.privacy, self.cohort.sampling
        details = {"full": "", "poisson": f" with rate {self.cohort.rate}", "fixed": f" of {self.cohort.size}"}
        return (
            f"(epsilon, {privacy.delta})-differential privacy of a hospital: one of {self.num_hospitals} "
            f"{_NEIGHBOURS[sampling]}; Gaussian noise of multiplier {privacy.noise_multiplier} in every round, "
            f"sampling {sampling}{details[sampling]}, accountant {privacy.accountant}"
        )


_NEIGHBOURS = {
    "full": "answers or never does",
    "poisson": "answers when drawn or never does",
    "fixed": "is replaced by another",
}


@cache
def _epsilon(privacy: Privacy, cohort: Cohort, num_hospitals: int, rounds: int) -> float:
    if privacy.noise_multiplier == 0:
        return math.inf
    dp = _library("dp_accounting")
    z, neighbours = privacy.noise_multiplier, dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    event = dp.GaussianDpEvent(z)
    if cohort.sampling == "poisson":
        event = dp.PoissonSampledDpEvent(cohort.rate, event)
    elif cohort.sampling == "fixed":
        # The library's multiplier is in sensitivities, and replacing a hospital moves the sum by up to 2 S.
        event = dp.SampledWithoutReplacementDpEvent(num_hospitals, cohort.size, dp.GaussianDpEvent(z / 2))
        neighbours = dp.NeighboringRelation.REPLACE_ONE
    with _quiet():
        accountant = _accountant(privacy.accountant, neighbours).compose(event, rounds)
        return float(accountant.get_epsilon(privacy.delta))


def _accountant(name: Literal["pld", "rdp"], neighbours: Any) -> Any:
    library = _library(f"dp_accounting.{name}")
    accountants: Mapping[str, str] = {"pld": "PLDAccountant", "rdp": "RdpAccountant"}
    return getattr(library, accountants[name])(neighboring_relation=neighbours)


def _library(name: str) -> Any:
    """A module of dp-accounting, imported when it is needed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            "stages.privacy: the account is kept by dp-accounting, which is not installed: "
            "pip install 'wardround[privacy]'"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The RDP accountant warns of every order it leaves out, which only makes epsilon larger, never wrong."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
