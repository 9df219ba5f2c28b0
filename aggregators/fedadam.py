"""FedAdam: Adam at the server (Reddi et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from .adaptive import Step, adaptive_step, scaled
from .contract import Aggregated, ClientUpdate, ServerState, Streams
from .mean_in_space import MeanInSpace
from .ranges import check_fraction, check_not_negative, check_positive

BiasCorrection = Literal["none", "kingma", "flwr"]


@dataclass(frozen=True, kw_only=True)
class FedAdam(MeanInSpace):
    """Adam, in which what the hospitals moved on average is the (negative) gradient.

    ::

        D = sum_k p_k theta_k - theta
        m <- beta1 m + (1 - beta1) D
        v <- beta2 v + (1 - beta2) D^2
        theta <- theta + lr m / (sqrt(v) + tau)

    An element that has hardly moved so far takes a step of about ``lr`` times the sign of m, unless tau is larger than
    sqrt(v). The steps of B begin at 1e-4 and less, so that tau decides what a LoRA run does: look at it before ``lr``.

    On ``factors`` theta is every trainable tensor, A and B among them. On ``product`` it is ``s B A`` of every pair and
    every dense tensor: the two moments of a pair are then dense (d_out, d_in) matrices at the server, every round takes
    a dense SVD per pair, and the new product is cut to rank r. An element-wise scaled step has no low rank, so that
    much of it may be lost.

    Traffic: r (d_out + d_in) per pair, up and down, as FedAvg. Server memory: 2 r (d_out + d_in) per pair on
    ``factors``, 2 d_out d_in on ``product``.

    Args:
        lr: Server learning rate, > 0. The papers tune it per task; the default is ours.
        beta1: Decay of m, in [0, 1).
        beta2: Decay of v, in [0, 1).
        tau: Degree of adaptivity, > 0.
        bias_correction: ``none``, as in the paper; ``kingma``: ``lr m^ / (sqrt(v^) + tau)`` with
            ``m^ = m / (1 - beta1^t)`` and ``v^ = v / (1 - beta2^t)`` in round t = 1, 2, ...; ``flwr``:
            ``lr m / (sqrt(v) + tau)`` times ``sqrt(1 - beta2^(t+1)) / (1 - beta1^(t+1))``, as Flower 1.41 does.
        v_init: v before round 1, >= 0; None: ``tau^2``, as in the paper, or 0 with a bias correction, which assumes it.
        on: ``factors`` or ``product``.

    Example:
        >>> FedAdam(tau=0.0)
        Traceback (most recent call last):
        ...
        ValueError: tau: expected a number above 0, got 0.0

    Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2; bias correction: Kingma and
    Ba, "Adam", arXiv 1412.6980, Algorithm 1.

    Differs from the paper in: D is weighted as the run says, where Algorithm 2 takes the uniform mean; the space
    ``product``; the bias corrections, which it has not. With ``kingma``, ``v_init`` 0 and ``tau`` as eps it is
    torch.optim.Adam on the gradient -D.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    bias_correction: BiasCorrection = "none"
    v_init: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(lr=self.lr, tau=self.tau)
        check_fraction(beta1=self.beta1, beta2=self.beta2)
        check_not_negative(v_init=self.v_init or 0.0)
        if self.bias_correction not in get_args(BiasCorrection):
            raise ValueError(f"bias_correction: expected 'none', 'kingma' or 'flwr', got {self.bias_correction!r}")

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """A step of Adam in the chosen space."""
        default = self.tau**2 if self.bias_correction == "none" else 0.0
        return adaptive_step(
            self.on,
            server,
            updates,
            rng,
            beta1=self.beta1,
            v_init=default if self.v_init is None else self.v_init,
            second_moment=self._second_moment,
            step=self._step(server.round + 1),
        )

    def _second_moment(self, v: Tensor, D: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * D.square()

    def _step(self, t: int) -> Step:
        if self.bias_correction == "none":
            return scaled(self.lr, self.tau)
        if self.bias_correction == "flwr":
            return scaled(self.lr * (1 - self.beta2 ** (t + 1)) ** 0.5 / (1 - self.beta1 ** (t + 1)), self.tau)
        m_share, v_share = 1 - self.beta1**t, 1 - self.beta2**t
        return lambda m, v: self.lr * (m / m_share) / ((v / v_share).sqrt() + self.tau)
