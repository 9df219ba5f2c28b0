"""Federations so simple that where an algorithm ends can be written down: one number per tensor, no low-rank pairs.

They run on the trainer of the toy (``toy.take_turn``), whose steps have the learning rates LR, LR/2, LR/3, LR/4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pairs import tensor
from torch import Tensor

from wardround.aggregators.contract import HospitalInfo, Kind, Layout, Part, Setting, Tensors
from wardround.aggregators.toy import LR, STEPS_PER_EPOCH, Round, World, initial_state, run_round

SUM_LR = sum(LR / (1 + step) for step in range(STEPS_PER_EPOCH))
"""Learning rates of a round of one epoch, added up."""


def shrunk(curvature: float) -> float:
    """What an epoch of gradient steps on ``curvature/2 (w - t)^2`` leaves of ``w - t``."""
    return math.prod(1 - LR * curvature / (1 + step) for step in range(STEPS_PER_EPOCH))


@dataclass(frozen=True, kw_only=True)
class Quadratics(World):
    """``F_k = a_k/2 (w - t_k)^2``: hospitals differ in where they want w (t_k) and in how much (a_k)."""

    curvatures: Mapping[str, float]

    def loss(self, hospital: str, tensors: Tensors, base: Tensors) -> Tensor:
        distance = tensors["w"] - self.targets[hospital]["w"]
        return 0.5 * self.curvatures[hospital] * distance.square().sum()

    @property
    def optimum(self) -> float:
        """Of the mean loss: ``sum a_k t_k / sum a_k``."""
        return self._mean(self.curvatures)

    @property
    def fixed_point_of_fedavg(self) -> float:
        """A round takes hospital k to ``t_k + s_k (w - t_k)``, so w stays where ``sum (1 - s_k)(t_k - w) = 0``."""
        return self._mean({name: 1 - shrunk(curvature) for name, curvature in self.curvatures.items()})

    def _mean(self, weights: Mapping[str, float]) -> float:
        total = sum(weight * float(self.targets[name]["w"]) for name, weight in weights.items())
        return total / sum(weights.values())


@dataclass(frozen=True, kw_only=True)
class Products(World):
    """``F_k = 1/2 (body head - t_k)^2``: the smallest model whose body and head depend on each other."""

    def loss(self, hospital: str, tensors: Tensors, base: Tensors) -> Tensor:
        return 0.5 * (tensors["body"] * tensors["head"] - self.targets[hospital]["product"]).square().sum()


def quadratics(
    curvatures: Sequence[float] = (1.0, 4.0, 10.0), targets: Sequence[float] = (6.0, -2.0, 1.0)
) -> Quadratics:
    """Hospitals a, b, c, ...; w starts at 0. With the defaults the optimum is 8/15, a fixed point of nobody alone."""
    names = "abcdefgh"[: len(curvatures)]
    return Quadratics(
        setting=dense_setting({"w": tensor(0.0)}, names),
        targets={name: {"w": tensor(target)} for name, target in zip(names, targets, strict=True)},
        curvatures=dict(zip(names, curvatures, strict=True)),
    )


def products(targets: Sequence[float]) -> Products:
    """Hospitals a, b, c, ...; body and head start at 1."""
    names = "abcdefgh"[: len(targets)]
    start = {"body": tensor(1.0), "head": tensor(1.0)}
    return Products(
        setting=dense_setting(start, names, part={"body": "encoder", "head": "head"}),
        targets={name: {"product": tensor(target)} for name, target in zip(names, targets, strict=True)},
    )


def dense_setting(
    trainable: Tensors,
    hospitals: Sequence[str],
    part: Mapping[str, Part] | None = None,
    kind: Mapping[str, Kind] | None = None,
) -> Setting:
    """A setting without pairs; all tensors are weights of the encoder unless said otherwise."""
    names = tuple(trainable)
    return Setting(
        trainable=trainable,
        layout=Layout(
            pairs=(),
            dense=names,
            part={**dict.fromkeys(names, "encoder"), **(part or {})},
            kind={**dict.fromkeys(names, "weight"), **(kind or {})},
        ),
        hospitals=tuple(HospitalInfo(name=name, num_examples=1) for name in hospitals),
        optimizer="sgd",
    )


def rounds(
    aggregator: Any, world: World, number: int, cohorts: Sequence[Sequence[str]] | None = None, epochs: float = 1
) -> Round:
    """The last of some rounds; cohorts, where there are any, take turns."""
    server, memories = initial_state(aggregator, world), {}
    for turn in range(number):
        cohort = cohorts[turn % len(cohorts)] if cohorts else None
        last = run_round(aggregator, world, server, memories, cohort, epochs)
        server, memories = last.after, last.memories
    return last
