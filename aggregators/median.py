"""The median of every coordinate (Yin et al., 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from .contract import Aggregated, ClientUpdate, ServerState, Streams
from .robust import RobustMean, median_of_sorted, per_coordinate


@dataclass(frozen=True, kw_only=True)
class Median(RobustMean):
    """Every coordinate of the model is the median of that coordinate over the hospitals.

    ::

        theta[j] <- median_k theta_k[j];   the mean of the two in the middle when n is even

    Less than half of the hospitals cannot move a coordinate beyond the honest ones. Weights do not count.

    On the product the coordinates are the entries of ``s B A``. Their median has no low-rank form: each layer is worked
    out as a dense (d_out, d_in) matrix and cut to the server's rank by a dense SVD, so that the result is no median any
    more but the best approximation of one. On the factors it is cheap and literal, but a hospital that splits the same
    product otherwise moves the result.

    Traffic: ``r (d_out + d_in)`` up and down per pair, as FedAvg.

    Args:
        on: ``product`` (any ranks, dense work) or ``factors``.

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", arXiv 1803.01498,
    Algorithm 1 option I.

    Differs from the paper in: models after local training instead of gradients; on the product.
    """

    uses_weights: ClassVar[bool] = False  # weights do not count

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The median on the space."""
        tensors = per_coordinate(self.on, server, updates, median_of_sorted, rng)
        used, n = 2 - len(updates) % 2, len(updates)
        return Aggregated(
            server=replace(server, round=server.round + 1, tensors=tensors),
            diagnostics={"kept_weight": used / n, "rejected": float(n - used)},
        )
