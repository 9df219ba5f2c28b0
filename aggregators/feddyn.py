"""FedDyn: a linear and a quadratic term that make local optima and the global one agree (Acar et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .arithmetic import half_squared_distance, prefixed, uniform_mean, zeros_of
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
class DynamicRegularisation:
    """One phase with ``- <h_k, theta> + alpha/2 ||theta - theta_t||^2``; ``h_k`` stays in the hospital's memory."""

    alpha: float

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """From the download, theta_t; ``h_k`` is zero at first."""
        context = {**prefixed("start", download.start), **prefixed("h", memory or zeros_of(download.start))}
        return [Phase(train=download.train, context=context, penalty=self.penalty)]

    def penalty(self, trained: Tensors, context: Tensors) -> Tensor:
        """``- <h_k, theta> + alpha/2 ||theta - theta_t||^2``."""
        start = {name: context[f"start/{name}"] for name in trained}
        pull = self.alpha * half_squared_distance(trained, start)
        products = [(context[f"h/{name}"] * value).sum() for name, value in trained.items()]
        return pull - torch.stack(products).sum() if products else pull

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """Sends the tensors; ``h_k <- h_k - alpha (theta_k - theta_t)``."""
        ended = {name: fits[0].tensors[name] for name in download.returns}
        own = memory or zeros_of(ended)
        h = {name: value - self.alpha * (ended[name] - download.start[name]) for name, value in own.items()}
        return LocalResult(tensors=ended, memory=h)


@dataclass(frozen=True, kw_only=True)
class FedDyn(FedAvg):
    """FedAvg with a regulariser of its own at every hospital, which it moves so that nobody has to drift.

    ::

        hospital k:  theta_k = argmin F_k(theta) - <h_k, theta> + alpha/2 ||theta - theta_t||^2    from theta_t
                     h_k <- h_k - alpha (theta_k - theta_t)
        server:      h <- h - (alpha / N) sum_S (theta_k - theta_t)
                     theta = mean_S theta_k                          the model that is evaluated
                     theta_{t+1} = theta - h / alpha                 what the next round starts from ("cloud")

    Legend: S the hospitals of the round, N the number of all hospitals, F_k the loss of hospital k.

    Where a hospital solves its problem, ``h_k`` becomes its gradient at theta_k; ``h`` is the mean of all ``h_k``, as
    long as the server gets the steps that the hospitals took. What compression without error feedback leaves out is in
    ``h_k`` and not in ``h``, and the end is not the optimum.
    Where nothing moves any more, theta_k = theta_t at all hospitals and hence ``sum_k h_k = 0``: the gradients cancel,
    and theta is the optimum of the mean loss, every hospital counted once. This holds however well the local problems
    are solved; how fast one gets there depends on it. The means are uniform; the weights of the run are not looked at.

    ``aggregate/cloud_distance`` is ``||h|| / alpha``, how far the start of the next round is from the model that is
    evaluated. It falls where FedDyn works; where it keeps growing (it may with few hospitals per round) take larger
    cohorts, a larger alpha, or ``clip_norm``. A small alpha corrects slowly, a large one lets hospitals move little.
    Round 1 is FedProx with mu = alpha and uniform weights.

    On low-rank pairs it acts on the factors: hospitals need one rank, and the result depends on the choice of the
    factors (the gauge).

    Traffic: per pair r (d_out + d_in) up and r (d_out + d_in) down, as FedAvg: ``h_k`` never travels, the server
    follows it from what it gets. The hospital remembers one set of tensors, the server one more.

    Args:
        alpha: Strength of the regulariser, > 0. The released examples have 0.01 (CIFAR-10).

    Example:
        >>> FedDyn(alpha=0.0)
        Traceback (most recent call last):
        ...
        ValueError: alpha: expected a number above 0, got 0.0

    Source: Acar et al., "Federated Learning Based on Dynamic Regularization", arXiv 2111.04263, Algorithm 1, and its
    released code (alpemreacar/FedDyn): evaluation of the mean, training from the cloud model.

    Differs from the paper in: the local problem is not solved but trained for as long as the run says, with its
    optimizer (AdamW rescales the gradients of the regulariser with the others, and its weight decay is no part of F_k).
    The released code divides alpha by the hospital's share of the examples; here it is the same everywhere.
    """

    alpha: float = 0.01
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # it counts the updates and leaves their weights aside
    uses_weights: ClassVar[bool] = False  # every hospital counts the same, in the model and in the state

    def __post_init__(self) -> None:
        check_positive(alpha=self.alpha)

    @property
    def rule(self) -> LocalRule:
        """Training with the dynamic regulariser."""
        return DynamicRegularisation(alpha=self.alpha)

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values, ``h`` zero. Raises ValueError when hospitals have different ranks."""
        return replace(super().init(setting, rng), memory=zeros_of(setting.trainable))

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """The cloud model, the same for all."""
        return replace(super().broadcast(server, hospital), start=self.cloud(server))

    def cloud(self, server: ServerState) -> dict[str, Tensor]:
        """``theta - h / alpha``, what the next round starts from."""
        return {name: value - server.memory[name] / self.alpha for name, value in server.tensors.items()}

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The uniform mean; ``h`` follows the mean of the hospitals' ``h_k``, those that were absent included."""
        mean, cloud = uniform_mean(updates), self.cloud(server)
        share = len(updates) / len(server.setting.hospitals)
        h = {name: v - self.alpha * share * (mean[name] - cloud[name]) for name, v in server.memory.items()}
        squared = sum(value.double().square().sum().item() for value in h.values())
        return Aggregated(
            server=replace(server, round=server.round + 1, tensors={**server.tensors, **mean}, memory=h),
            diagnostics={"cloud_distance": squared**0.5 / self.alpha},
        )
