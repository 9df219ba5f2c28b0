"""RFA: the geometric median of the updates by a few reweighted means (Pillutla et al., 2019)."""

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

        smoothed Weiszfeld:   z <- sum_k w_k theta_k,   w_k ~ p_k / max(nu, ||z - theta_k||)

    z is always a weighted mean of the updates, so all that is needed are the weights w_k, and the distances follow from
    inner products: with the Gram matrix G of the updates, ``||z - theta_k||^2 = G_kk - 2 (G w)_k + w^T G w``.
    On the product G comes from the factors.

    Traffic: ``r (d_out + d_in)`` up and down per pair, as FedAvg.

    Args:
        iterations: Reweighted means after the first, which has the weights p_k; >= 1.
        nu: Smallest distance that is told apart, > 0, in the units of the trained tensors.
        on: ``product`` (any ranks) or ``factors``: where distances are measured and the mean is taken.

    Source: Pillutla et al., "Robust Aggregation for Federated Learning", arXiv 1912.13445, Algorithm 2.

    Differs from the paper in: distances on the product; a fixed number of iterations (the paper's experiments take 3
    to 5), no early stop; no secure sum.
    """

    iterations: int = 4
    nu: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {self.iterations!r}")
        if not self.nu > 0:
            raise ValueError(f"nu: expected a distance above 0, got {self.nu!r}")

    def reweigh(self, server: ServerState, updates: Sequence[ClientUpdate]) -> list[float]:
        """w_k after the last iteration."""
        p = torch.tensor(normalised_weights(updates), dtype=torch.float64)
        G, w = gram_of_steps(self.on, server, updates), p
        for _ in range(self.iterations):
            w = p / distances_to_mean(G, w).clamp(min=self.nu)
            w = w / w.sum()
        return [float(weight) for weight in w]


def distances_to_mean(G: Tensor, w: Tensor) -> Tensor:
    """``||sum_j w_j x_j - x_k||`` per k from the inner products G (n, n) of the x, (n,).

    Args:
        G: Inner products, float64.
        w: Coefficients, of any sum.
    """
    return (G.diagonal() - 2 * (G @ w) + w @ G @ w).clamp(min=0).sqrt()
