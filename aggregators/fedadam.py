"""FedAdam: Adam at the server (Reddi et al., 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from .adaptive import AdaptiveMean
from .ranges import check_fraction

BiasCorrection = Literal["none", "kingma", "flwr"]


@dataclass(frozen=True, kw_only=True)
class FedAdam(AdaptiveMean):
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
            ``m^ = m / (1 - beta1^t)`` and ``v^ = v / (1 - beta2^t)`` in the server's step t = 1, 2, ... (rounds in
            which nobody took part are none); ``flwr``: ``lr m / (sqrt(v) + tau)`` times
            ``sqrt(1 - beta2^(t+1)) / (1 - beta1^(t+1))``, as Flower 1.41 does.
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

    beta2: float = 0.99
    bias_correction: BiasCorrection = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(beta2=self.beta2)
        if self.bias_correction not in get_args(BiasCorrection):
            raise ValueError(f"bias_correction: expected 'none', 'kingma' or 'flwr', got {self.bias_correction!r}")

    @property
    def first_v(self) -> float:
        """``v_init``, or its default: 0 with a bias correction."""
        return 0.0 if self.v_init is None and self.bias_correction != "none" else super().first_v

    def second_moment(self, v: Tensor, D: Tensor) -> Tensor:
        """``beta2 v + (1 - beta2) D^2``."""
        return self.beta2 * v + (1 - self.beta2) * D.square()

    def step(self, m: Tensor, v: Tensor, t: int) -> Tensor:
        """The step, with its bias correction."""
        if self.bias_correction == "flwr":
            return math.sqrt(1 - self.beta2 ** (t + 1)) / (1 - self.beta1 ** (t + 1)) * super().step(m, v, t)
        if self.bias_correction == "kingma":
            m, v = m / (1 - self.beta1**t), v / (1 - self.beta2**t)
        return super().step(m, v, t)
