"""What hospitals under an adversary do: they send other steps than they took, or learn from wrong labels.

A step is the difference between what a hospital would send and what it was handed, tensor by tensor. An attack sees the
honest steps of its own hospitals, those that take part in the round, and no others: attackers may talk to each other,
but do not read what the rest sends. :class:`LabelFlip` leaves the steps alone and acts on the training labels before
round 1 (:func:`poisoned`); validation and test labels are never touched.

Attacks change the trained tensors only. Whatever else attackers send stays that of an honest hospital: control variates
(``ClientUpdate.extra`` of SCAFFOLD) and reported numbers (the losses of q-FedAvg), which a real attacker may forge too.

Legend: n hospitals in a round, f of them attackers, Delta_k honest step of attacker k, C classes: of voxels beside the
background, or of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..aggregators.contract import Streams, Tensors
from ..datasets.contract import Task
from ..datasets.examples import Examples

AnyExamples = TypeVar("AnyExamples", bound=Examples)

Steps = Mapping[str, Tensors]
"""Step by name of the hospital: tensors by name."""


class Attack(Protocol):
    """A frozen dataclass with the names of the attackers and what they send instead."""

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Names of the attackers."""
        ...

    def corrupt(self, steps: Steps, rng: Streams) -> dict[str, Tensors]:
        """What the attackers of a round send.

        Args:
            steps: Honest step of every attacker that takes part in the round.
            rng: Streams of the round; keys are the hospital and the tensor.

        Returns:
            A step for each of them, with the same names, shapes and dtypes.
        """
        ...


def check_attackers(attack: Attack, hospitals: Iterable[str]) -> None:
    """Raises ValueError when an attacker is no hospital of the federation."""
    unknown = sorted(set(attack.hospitals) - set(hospitals))
    if unknown:
        raise ValueError(f"attack: unknown hospitals {unknown}, expected some of {sorted(hospitals)}")


def _check_names(hospitals: tuple[str, ...]) -> None:
    if not hospitals:
        raise ValueError("hospitals: expected the name of at least one attacker, got none")
    if len(set(hospitals)) < len(hospitals):
        raise ValueError(f"hospitals: expected different names, got {hospitals!r}")


def _each(steps: Steps, change: Callable[[str, str, Tensor], Tensor]) -> dict[str, Tensors]:
    """``change(hospital, name, step)`` of every tensor."""
    return {
        hospital: {name: change(hospital, name, value) for name, value in tensors.items()}
        for hospital, tensors in steps.items()
    }


@dataclass(frozen=True, kw_only=True)
class SignFlip:
    """Every attacker goes the other way: ``-strength Delta_k``.

    Args:
        hospitals: Names of the attackers.
        strength: How far, > 0; 1: as far as it would have gone.

    Source: Li et al., "RSA: Byzantine-Robust Stochastic Aggregation Methods", arXiv 1811.03761, not re-read.
    """

    hospitals: tuple[str, ...]
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check_names(self.hospitals)
        if not self.strength > 0:
            raise ValueError(f"strength: expected a number above 0, got {self.strength!r}")

    def corrupt(self, steps: Steps, rng: Streams) -> dict[str, Tensors]:
        """See :class:`Attack`."""
        return _each(steps, lambda hospital, name, step: -self.strength * step)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Every attacker sends ``factor Delta_k``: with a factor of n, one hospital outweighs the mean of n.

    Args:
        hospitals: Names of the attackers.
        factor: How often the honest step, any number but 1.

    Source: model replacement of Bagdasaryan et al., "How To Backdoor Federated Learning", arXiv 1807.00459, not
    re-read; here without their backdoor: the honest step is what is enlarged.
    """

    hospitals: tuple[str, ...]
    factor: float = 10.0

    def __post_init__(self) -> None:
        _check_names(self.hospitals)
        if not math.isfinite(self.factor) or self.factor == 1:
            raise ValueError(f"factor: expected a finite number that is not 1, got {self.factor!r}")

    def corrupt(self, steps: Steps, rng: Streams) -> dict[str, Tensors]:
        """See :class:`Attack`."""
        return _each(steps, lambda hospital, name, step: self.factor * step)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Every attacker sends Gaussian noise of mean 0 in the place of its step, independent of all others'.

    Args:
        hospitals: Names of the attackers.
        std: Standard deviation per coordinate, > 0.

    Source: the "Gaussian" attack of Blanchard et al., arXiv 1703.02757, section 5, not re-read.

    Differs from the paper in: the size is of the order of a step of fine-tuning by default, not 200.
    """

    hospitals: tuple[str, ...]
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_names(self.hospitals)
        if not self.std > 0:
            raise ValueError(f"std: expected a number above 0, got {self.std!r}")

    def corrupt(self, steps: Steps, rng: Streams) -> dict[str, Tensors]:
        """See :class:`Attack`."""

        def noise(hospital: str, name: str, step: Tensor) -> Tensor:
            drawn = torch.randn(step.shape, generator=rng("noise", hospital, name), dtype=torch.float64)
            return (self.std * drawn).to(step)

        return _each(steps, noise)


@dataclass(frozen=True, kw_only=True)
class Alie:
    """A little is enough: all attackers send one step, at the edge of where honest ones may lie.

    ::

        Delta = mean - z std        per coordinate, over the attackers' honest steps
        z = Phi^-1((n - f - s) / (n - f)),   s = floor(n / 2 + 1) - f

    The mean and the deviation of all hospitals are guessed from the attackers' own: no honest update is read. With z by
    the formula, s honest hospitals are expected to lie further out than the attackers, who thereby look like the
    majority. In a round with one attacker the deviation is 0 and it sends its honest step.

    Args:
        hospitals: Names of the attackers, at least two.
        z: How many deviations, > 0; None: by the formula from ``num_hospitals`` and the number of attackers.
        num_hospitals: n, hospitals that take part in a round; used by the formula only.

    Example:
        >>> names = tuple(f"hospital-{k}" for k in range(24))
        >>> round(Alie(hospitals=names, num_hospitals=50).deviations, 3)
        1.426

    Source: Baruch et al., "A Little Is Enough: Circumventing Defenses For Distributed Learning", arXiv 1902.06635,
    Algorithm 3; not re-read: formula from general knowledge of the paper.

    Differs from the paper in: steps instead of gradients; the deviation divides by the number of attackers, who need
    one LoRA rank.
    """

    hospitals: tuple[str, ...]
    z: float | None = None
    num_hospitals: int | None = None

    def __post_init__(self) -> None:
        _check_names(self.hospitals)
        if len(self.hospitals) < 2:
            raise ValueError(f"hospitals: expected at least two attackers, whose steps deviate, got {self.hospitals!r}")
        if self.z is None and self.num_hospitals is None:
            raise ValueError("z: expected a number, or num_hospitals to compute it from, got neither")
        if self.num_hospitals is not None and self.num_hospitals <= 2 * len(self.hospitals):
            raise ValueError(
                f"num_hospitals: expected more than twice the {len(self.hospitals)} attackers, "
                f"got {self.num_hospitals!r}; give z for a majority of attackers"
            )
        if not self.deviations > 0:
            how = "" if self.z is not None else f" by the formula from {self.num_hospitals} hospitals: give one"
            raise ValueError(f"z: expected a number above 0, got {self.deviations:.3g}{how}")

    @property
    def deviations(self) -> float:
        """How many deviations: z as given, or by the formula."""
        if self.z is not None:
            return self.z
        n, f = self.num_hospitals or 0, len(self.hospitals)
        supporters = n // 2 + 1 - f
        share = (n - f - supporters) / (n - f)
        return NormalDist().inv_cdf(share) if share > 0 else -math.inf

    def corrupt(self, steps: Steps, rng: Streams) -> dict[str, Tensors]:
        """See :class:`Attack`."""
        names = dict.fromkeys(name for tensors in steps.values() for name in tensors)
        sent = {
            name: self._edge(name, [tensors[name] for tensors in steps.values() if name in tensors]) for name in names
        }
        return _each(steps, lambda hospital, name, step: sent[name].to(step, copy=True))

    def _edge(self, name: str, values: list[Tensor]) -> Tensor:
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise ValueError(
                f"attack alie: expected steps of one shape from all attackers, got {sorted(shapes)} for {name!r}; "
                "choose attackers of one LoRA rank"
            )
        stack = torch.stack(values).double()
        return stack.mean(0) - self.deviations * stack.std(0, correction=0)


@dataclass(frozen=True, kw_only=True)
class LabelFlip:
    """Attackers train honestly on wrong labels; the steps they send are those of that training.

    ::

        c -> L - 1 - c    or  c -> mapping[c]        for the L labels 0..L-1

    Voxels have L = C + 1 labels, the background first; images have L = C.

    Args:
        hospitals: Names of the attackers.
        mapping: What each label becomes, in their order: ``[0, 2, 1]`` exchanges two classes and leaves the background,
            or the first class of images. Empty: ``c -> L - 1 - c``, which exchanges the first and the last label.

    Source: data poisoning as in Tolpegin et al., "Data Poisoning Attacks Against Federated Learning Systems", arXiv
    2007.08432, and Fang et al., arXiv 1911.11815; not re-read.

    Differs from the papers in: in segmentation, voxels are relabelled, not images.
    """

    hospitals: tuple[str, ...]
    mapping: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_names(self.hospitals)
        if self.mapping:
            low, high = min(self.mapping), max(self.mapping)
            if low < 0 or high >= len(self.mapping):
                raise ValueError(
                    f"mapping: expected a label of 0..{len(self.mapping) - 1} in each of its {len(self.mapping)} places"
                    f" (one per class of the data, and the background of volumes), got {self.mapping!r}"
                )
            if self.mapping == tuple(range(len(self.mapping))):
                raise ValueError(f"mapping: expected some label to change, got {self.mapping!r}")

    def labels(self, num_classes: int, task: Task = "segmentation") -> tuple[int, ...]:
        """What each label becomes.

        Args:
            num_classes: C.
            task: Whether voxels are relabelled, which have a background too, or images.

        Raises:
            ValueError: ``mapping`` has another number of labels.
        """
        background = task == "segmentation"
        number = num_classes + background
        if not self.mapping:
            return tuple(range(number - 1, -1, -1))
        if len(self.mapping) != number:
            which = f"background and {num_classes} classes" if background else f"the {num_classes} classes of images"
            raise ValueError(
                f"attack.mapping: expected {number} labels ({which}), got {len(self.mapping)}: {self.mapping!r}"
            )
        return self.mapping

    def corrupt(self, steps: Steps, rng: Streams) -> dict[str, Tensors]:
        """The steps as they are."""
        return {hospital: dict(tensors) for hospital, tensors in steps.items()}


def poisoned(
    attack: Attack | None, hospital: str, examples: AnyExamples, num_classes: int, task: Task = "segmentation"
) -> AnyExamples:
    """The training windows or images of a hospital as an attack leaves them.

    Args:
        attack: The attack of the run, if any.
        hospital: Whose examples they are.
        examples: What it trains on.
        num_classes: C.
        task: Whether the labels are those of voxels or of images.

    Returns:
        The same examples, with labels that are changed when they are read: no volume is written to.
    """
    if not isinstance(attack, LabelFlip) or hospital not in attack.hospitals:
        return examples
    return examples.relabelled(attack.labels(num_classes, task))


ATTACKS: dict[str, type] = {
    "sign_flip": SignFlip,
    "scaling": Scaling,
    "noise": Noise,
    "alie": Alie,
    "label_flip": LabelFlip,
}
