"""SCAFFOLD: gradients corrected by control variates, against client drift (Karimireddy et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from .arithmetic import prefixed, shapes_of, uniform_mean, zeros_of
from .contract import (
    Aggregated,
    ClientUpdate,
    Download,
    Fit,
    HospitalInfo,
    LocalResult,
    LocalRule,
    Phase,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from .fedavg import FedAvg
from .ranges import check_positive


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """One phase with the gradient ``g - c_k + c``; the new ``c_k`` is the mean raw gradient; its change is sent."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """From the download, with the server's ``c`` and the hospital's own ``c_k`` (zero at first)."""
        context = {**prefixed("c", download.extra), **prefixed("own", memory or zeros_of(download.extra))}
        return [Phase(train=download.train, context=context, correct=self.correct, record_gradient=True)]

    def correct(self, gradients: Tensors, context: Tensors) -> Tensors:
        """``g - c_k + c``."""
        return {name: g - context[f"own/{name}"] + context[f"c/{name}"] for name, g in gradients.items()}

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """Sends the tensors and ``c_k+ - c_k``; a hospital whose learning rates were all zero keeps its ``c_k``."""
        own, fit = memory or zeros_of(download.extra), fits[0]
        new = own
        if fit.sum_lr > 0 and fit.mean_gradient is not None:
            new = {name: fit.mean_gradient[name] for name in own}
        return LocalResult(
            tensors={name: fit.tensors[name] for name in download.returns},
            extra={name: new[name] - own[name] for name in download.returns_extra},
            memory=new,
        )


@dataclass(frozen=True, kw_only=True)
class Scaffold(FedAvg):
    """FedAvg with control variates: every hospital subtracts what is peculiar about its own gradient.

    ::

        hospital k:  y <- y - eta_l (g_k(y) - c_k + c)               from y = theta
                     c_k+ = sum_i eta_i g_k(y_i) / sum_i eta_i       the mean of the raw gradients of the round
        server:      theta <- theta + lr mean_S(y_k - theta)
                     c <- c + (1/N) sum_S (c_k+ - c_k)

    Legend: S the hospitals of the round, N the number of all hospitals, eta_i learning rate of step i, y_i where it was
    taken, g_k the raw gradient there, before correction and clipping.

    ``c_k`` estimates the gradient of hospital k and ``c``, the mean of all ``c_k``, that of the federation. At a point
    where nobody's corrected gradient pulls, the mean gradient is zero: the fixed point is the optimum of the mean loss,
    however many local steps are taken, while that of FedAvg moves with their number. All means are uniform, so that
    "the mean loss" counts every hospital once; the weights of the run are not looked at.

    Round 1 is FedAvg with uniform weights (all control variates are zero). A hospital that was absent for long has a
    stale ``c_k``, which then corrects for a gradient of long ago: with small cohorts this can hurt more than drift.

    On low-rank pairs it acts on the factors: hospitals need one rank, and the result depends on the choice of the
    factors (the gauge). In the first round ``c_k`` of A is small, because the gradient of A is zero where B is.

    Traffic: per pair 2 r (d_out + d_in) up and 2 r (d_out + d_in) down, twice FedAvg's. The hospital remembers one
    set of tensors, the server one more.

    Args:
        lr: Learning rate of the server, > 0; 1 goes to the mean.

    Example:
        >>> Scaffold(lr=0.0)
        Traceback (most recent call last):
        ...
        ValueError: lr: expected a number above 0, got 0.0

    Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", arXiv 1910.06378,
    Algorithm 1.

    Differs from the paper in: ``c_k+`` is taken from the raw gradients themselves. For plain SGD this equals option II,
    ``c_k - c + (theta - y_k) / (K eta_l)``, also where the learning rate changes within the round; and it stays the
    mean gradient under momentum, clipping and AdamW, where option II does not. The paper's analysis is of plain SGD.
    Momentum and AdamW get the corrected gradient, which vanishes at the same point for everybody; but AdamW rescales it
    by coordinate and hospital, so that with mini-batches the mean step is no longer unbiased. Weight decay is no part
    of ``g``. A hospital whose learning rates were all zero keeps its ``c_k``.
    """

    lr: float = 1.0
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # it counts the updates and leaves their weights aside
    uses_weights: ClassVar[bool] = False  # every hospital counts the same, in the model and in the state

    def __post_init__(self) -> None:
        check_positive(lr=self.lr)

    @property
    def rule(self) -> LocalRule:
        """Training with corrected gradients."""
        return Controlled()

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values, ``c`` zero. Raises ValueError when hospitals have different ranks."""
        return replace(super().init(setting, rng), memory=zeros_of(setting.trainable))

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything and ``c``, the same for all."""
        return replace(super().broadcast(server, hospital), extra=server.memory, returns_extra=shapes_of(server.memory))

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """A step towards the uniform mean; ``c`` moves by the mean change times the share of hospitals that came."""
        mean = uniform_mean(updates)
        moved = {name: torch.lerp(server.tensors[name], value, self.lr) for name, value in mean.items()}
        change = uniform_mean([replace(update, tensors=update.extra) for update in updates])
        share = len(updates) / len(server.setting.hospitals)
        c = {name: value + share * change[name] for name, value in server.memory.items()}
        tensors = {**server.tensors, **moved}
        return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors, memory=c))
