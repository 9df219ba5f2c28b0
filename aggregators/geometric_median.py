"""RFA: the geometric median of the updates by reweighted means (Pillutla et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .arithmetic import normalised_weights
from .contract import ClientUpdate, ServerState
from .robust import ReweighedMean
from .spaces import gram_of_steps


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(ReweighedMean):
    """The point with the least weighted distance to all updates: less than half of the weight cannot move it far.

    ::

        z = argmin_z sum_k p_k ||z - theta_k||

        smoothed Weiszfeld:   z <- sum_k w_k theta_k,   w_k ~ p_k / max(nu, ||z - theta_k||),   z = theta at first
        until                 ||sum_k p_k (z - theta_k) / max(nu, ||z - theta_k||)|| <= tolerance

    With a share alpha < 1/2 of the weight byzantine, z is no further from the honest mean than ``(1 - alpha) /
    sqrt(1 - 2 alpha)`` times the furthest honest update, however far the others are (Minsker 2015, lemma 2.1). That
    holds for the minimum only. An iteration shrinks the pull of attackers far away by about ``alpha / (1 - alpha)``, so
    that a few of them from the mean, which attackers can put anywhere, are not robust: hence the start at the server's
    model, and the tolerance. What is compared with it is the slope of the objective, at most 1 whatever the scale.

    z is a weighted mean of the updates, so all that is needed are the weights w_k, and the distances follow from inner
    products: with the Gram matrix G of the steps, ``||z - theta_k||^2 = G_kk - 2 (G w)_k + w^T G w``, and w = 0 is the
    server's model. On the product G comes from the factors.

    Traffic: ``r (d_out + d_in)`` up and down per pair, as FedAvg.

    Args:
        iterations: Reweighted means at most, >= 1.
        tolerance: Slope of the objective at which they stop, >= 0; the largest there is is 1.
        nu: Smallest distance that is told apart, > 0, in the units of the trained tensors.
        on: ``product`` (any ranks) or ``factors``: where distances are measured and the mean is taken.

    Source: Pillutla et al., "Robust Aggregation for Federated Learning", arXiv 1912.13445, Algorithm 2; bound: Minsker,
    "Geometric median and robust estimation in Banach spaces", Bernoulli 21(4), 2015, arXiv 1308.1334, not re-read.

    Differs from the paper in: distances on the product; iterations up to a tolerance from the server's model (the
    paper's experiments take 3 to 5); no secure sum.
    """

    iterations: int = 1000
    tolerance: float = 1e-6
    nu: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {self.iterations!r}")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance: expected a number of at least 0, got {self.tolerance!r}")
        if not self.nu > 0:
            raise ValueError(f"nu: expected a distance above 0, got {self.nu!r}")

    def reweigh(self, server: ServerState, updates: Sequence[ClientUpdate]) -> list[float]:
        """w_k after the last iteration."""
        p = torch.tensor(normalised_weights(updates), dtype=torch.float64)
        G, w = gram_of_steps(self.on, server, updates), torch.zeros_like(p)
        for _ in range(self.iterations):
            pulls = p / distances_to_mean(G, w).clamp(min=self.nu)
            before, w = w, pulls / pulls.sum()
            step = (w - before) @ G @ (w - before)
            if pulls.sum() * step.clamp(min=0).sqrt() <= self.tolerance:
                break
        return [float(weight) for weight in w]


def distances_to_mean(G: Tensor, w: Tensor) -> Tensor:
    """``||sum_j w_j x_j - x_k||`` per k from the inner products G (n, n) of the x, (n,).

    Args:
        G: Inner products, float64.
        w: Coefficients, of any sum.
    """
    return (G.diagonal() - 2 * (G @ w) + w @ G @ w).clamp(min=0).sqrt()
