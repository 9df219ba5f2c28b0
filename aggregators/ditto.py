"""Ditto: a personal model beside the global one, pulled towards it (Li et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .arithmetic import half_squared_distance
from .contract import Download, Fit, HospitalInfo, LocalResult, LocalRule, Phase, ServerState, Tensors
from .fedavg import FedAvg
from .personal import with_personal
from .ranges import check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True)
class GlobalThenPersonal:
    """Plain training of the global model, which is sent; then of the hospital's own, which stays."""

    lam: float
    personal_epochs: float | None = None

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """The second phase starts from the hospital's own model, in its first round from the download."""
        personal = Phase(
            train=download.train,
            start={**download.start, **memory},
            epochs=self.personal_epochs,
            context=download.start,
            penalty=self.penalty,
        )
        return [Phase(train=download.train), personal]

    def penalty(self, trained: Tensors, anchor: Tensors) -> Tensor:
        """``lam/2 ||v - theta_t||^2``."""
        return self.lam * half_squared_distance(trained, anchor)

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """Sends what the first phase made and keeps what the second made."""
        return LocalResult(tensors={name: fits[0].tensors[name] for name in download.returns}, memory=fits[1].tensors)


@dataclass(frozen=True, kw_only=True)
class Ditto(FedAvg):
    """FedAvg, and at every hospital a second model of its own that the global one holds back.

    ::

        theta_k <- train F_k from theta_t                                 sent, averaged: FedAvg
        v_k     <- train F_k(v) + lam/2 ||v - theta_t||^2 from v_k        stays at the hospital

    Legend: theta_t the global model at the start of the round, F_k the loss of hospital k.

    The global model is FedAvg's to the last bit, whatever ``lam``: the personal models do not feed back. A hospital is
    evaluated on its own model, a site never seen (or not yet asked) on the global one. ``lam`` = 0 is local-only
    training beside a federation; the larger it is, the nearer the personal models are to the global one.

    On low-rank pairs the pull acts on the factors and the server averages factors: both depend on the choice of the
    factors (the gauge), and hospitals need one rank.

    Traffic: per pair r (d_out + d_in) up and r (d_out + d_in) down, as FedAvg. The hospital remembers one model and
    trains twice as long.

    Args:
        lam: Strength of the pull, >= 0. The released code tries 0.1, 1 and 2. An SGD learning rate above
            ``2 (1 + rho) / lam``, rho its momentum, makes the pull overshoot more each time and diverge.
        personal_epochs: Passes over the hospital's windows for the personal model, > 0; None: as many as for the
            global one.

    Example:
        >>> Ditto(lam=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: lam: expected a number of at least 0, got -1.0

    Source: Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", arXiv 2012.04221, Algorithm
    1, and its released code (litian96/ditto), where the pull is towards the start of the round, as here.

    Differs from the paper in: the personal model trains after the global one, on batches of its own, instead of by
    turns on the same ones; a hospital's personal model begins in its first round, from the global model of that round;
    the mean is weighted as the run says.
    """

    lam: float = 1.0
    personal_epochs: float | None = None

    def __post_init__(self) -> None:
        check_not_negative(lam=self.lam)
        if self.personal_epochs is not None:
            check_positive(personal_epochs=self.personal_epochs)

    @property
    def rule(self) -> LocalRule:
        """Training of two models."""
        return GlobalThenPersonal(lam=self.lam, personal_epochs=self.personal_epochs)

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The hospital's own model; the global one where there is none yet and at a site never seen."""
        return with_personal(server, memory)
