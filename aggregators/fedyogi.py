"""FedYogi: Yogi at the server (Reddi et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .adaptive import adaptive_step, scaled
from .contract import Aggregated, ClientUpdate, ServerState, Streams
from .mean_in_space import MeanInSpace
from .ranges import check_fraction, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True)
class FedYogi(MeanInSpace):
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

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    v_init: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(lr=self.lr, tau=self.tau)
        check_fraction(beta1=self.beta1, beta2=self.beta2)
        check_not_negative(v_init=self.v_init or 0.0)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """A step of Yogi in the chosen space."""
        return adaptive_step(
            self.on,
            server,
            updates,
            rng,
            beta1=self.beta1,
            v_init=self.tau**2 if self.v_init is None else self.v_init,
            second_moment=self._second_moment,
            step=scaled(self.lr, self.tau),
        )

    def _second_moment(self, v: Tensor, D: Tensor) -> Tensor:
        return v - (1 - self.beta2) * D.square() * (v - D.square()).sign()
