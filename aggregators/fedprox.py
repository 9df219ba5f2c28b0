"""FedProx: a proximal term at the hospitals (Li et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from .arithmetic import half_squared_distance
from .contract import Download, Fit, HospitalInfo, Layout, LocalResult, LocalRule, Phase, ServerState, Tensors
from .mean_in_space import MeanInSpace
from .plain import PlainTraining
from .ranges import check_not_negative
from .spaces import On, half_squared_distance_of_products


@dataclass(frozen=True, kw_only=True)
class ProximalTraining:
    """One phase with ``mu / 2 ||theta - theta_start||^2`` in the loss; sends what was announced, remembers nothing."""

    mu: float
    on: On

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """One phase from the download, which is the anchor as well: whole pairs, whatever of them trains."""
        if download.layout is None:
            raise ValueError("layout: expected Download.layout, which says what the names are, got None")
        penalty = partial(self._penalty, download.layout)
        return [Phase(train=download.train, context=download.start, penalty=penalty)]

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """The announced tensors as the phase left them."""
        return PlainTraining().finish(download, fits, memory)

    def _penalty(self, layout: Layout, trained: Tensors, anchor: Tensors) -> Tensor:
        if self.on == "factors":
            return self.mu * half_squared_distance(trained, anchor)
        return self.mu * half_squared_distance_of_products(layout, trained, anchor)


@dataclass(frozen=True, kw_only=True)
class FedProx(MeanInSpace):
    """FedAvg whose hospitals are held near the model they were sent.

    ::

        hospital:  minimise  F_k(theta) + mu / 2 ||theta - theta^t||^2
        server:    the mean, as FedAvg

    Only what trains is held. On ``factors`` the distance is that of all trained tensors, A and B among them, and the
    server averages them. On ``product`` it is ``sum_pairs ||s B A - s B^t A^t||^2`` plus that of the dense tensors:
    hospitals may change factors freely as long as their product stays near, and the server averages products and cuts
    them to rank r (as FLAP-SAM). The distance of products is taken through small r x r blocks; where only A or only
    B trains, the other is that of the start.

    Traffic: r (d_out + d_in) per pair, up and down, as FedAvg. The anchor is what was downloaded.

    Args:
        mu: Strength of the proximal term, >= 0; the paper tries 0.001, 0.01, 0.1 and 1. With 0 it is FedAvg.
        on: ``factors`` or ``product``.

    Example:
        >>> FedProx(mu=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: mu: expected a number of at least 0, got -1.0

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", arXiv 1812.06127, Algorithm 2.

    Differs from the paper in: hospitals are drawn and weighted as the run says, where Algorithm 2 draws them in
    proportion to their data and averages uniformly; every hospital does the configured work, so that nobody's is cut
    short (the paper's gamma); the gradient of the penalty goes through the local optimizer, which for AdamW rescales
    it; the space ``product``.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(mu=self.mu)

    @property
    def rule(self) -> LocalRule:
        """Training with the proximal term."""
        return ProximalTraining(mu=self.mu, on=self.on)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything, and what it is: the penalty has to know which names are pairs."""
        return replace(super().broadcast(server, hospital), layout=server.setting.layout)
