"""FedAdagrad: Adagrad at the server (Reddi et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .adaptive import AdaptiveMean


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(AdaptiveMean):
    """FedAdam with a second moment that forgets nothing, so that steps only become smaller.

    ::

        D = sum_k p_k theta_k - theta
        m <- beta1 m + (1 - beta1) D
        v <- v + D^2
        theta <- theta + lr m / (sqrt(v) + tau)

    Spaces, traffic and server memory as in :class:`~wardround.aggregators.fedadam.FedAdam`: on ``product`` both moments
    of a pair are dense (d_out, d_in) matrices, and the new product is cut to rank r.

    Traffic: r (d_out + d_in) per pair, up and down, as FedAvg.

    Args:
        lr: Server learning rate, > 0. The paper tunes it per task; the default is ours.
        beta1: Decay of m, in [0, 1); 0, no momentum, is what the paper's experiments take (from
            memory, not re-read) and Flower too.
        tau: Degree of adaptivity, > 0.
        v_init: v before round 1, >= 0; None: ``tau^2``, as in the paper. Flower starts at 0.
        on: ``factors`` or ``product``.

    Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2.

    Differs from the paper in: D is weighted as the run says, where Algorithm 2 takes the uniform mean; the space
    ``product``.
    """

    beta1: float = 0.0

    def second_moment(self, v: Tensor, D: Tensor) -> Tensor:
        """``v + D^2``."""
        return v + D.square()
