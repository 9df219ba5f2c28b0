"""FedYogi: Yogi at the server (Reddi et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .adaptive import AdaptiveMean
from .ranges import check_fraction


@dataclass(frozen=True, kw_only=True)
class FedYogi(AdaptiveMean):
    """FedAdam with a second moment that forgets slowly: it moves by at most ``(1 - beta2) D^2`` per round.

    ::

        D = sum_k p_k theta_k - theta
        m <- beta1 m + (1 - beta1) D
        v <- v - (1 - beta2) D^2 sign(v - D^2)
        theta <- theta + lr m / (sqrt(v) + tau)

    Adam's v shrinks by the factor beta2 in a round without movement, and its steps grow; Yogi's v stays. Spaces,
    traffic and server memory as in :class:`~wardround.aggregators.fedadam.FedAdam`: on ``product`` both moments of a
    pair are dense (d_out, d_in) matrices, and the new product is cut to rank r.

    Traffic: r (d_out + d_in) per pair, up and down, as FedAvg.

    Args:
        lr: Server learning rate, > 0. The paper tunes it per task; the default is ours.
        beta1: Decay of m, in [0, 1).
        beta2: ``1 - beta2`` is the pace of v; in [0, 1).
        tau: Degree of adaptivity, > 0.
        v_init: v before round 1, >= 0; None: ``tau^2``, as in the paper. Flower starts at 0.
        on: ``factors`` or ``product``.

    Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2.

    Differs from the paper in: D is weighted as the run says, where Algorithm 2 takes the uniform mean; the space
    ``product``.
    """

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(beta2=self.beta2)

    def second_moment(self, v: Tensor, D: Tensor) -> Tensor:
        """``v - (1 - beta2) D^2 sign(v - D^2)``."""
        return v - (1 - self.beta2) * D.square() * (v - D.square()).sign()
