"""The mean of every coordinate without its extremes (Yin et al., 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from .contract import Aggregated, ClientUpdate, ServerState, Streams
from .robust import RobustMean, per_coordinate, require


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(RobustMean):
    """Every coordinate is the mean over the hospitals without the highest and the lowest values.

    ::

        theta[j] <- mean of the theta_k[j] without the m lowest and the m highest,   m = floor(fraction n)

    Up to m byzantine hospitals cannot move a coordinate beyond the honest ones. Weights do not count. On the product it
    works on dense matrices and ends in an SVD, as :class:`~wardround.aggregators.median.Median` does.

    Traffic: ``r (d_out + d_in)`` up and down per pair, as FedAvg.

    Args:
        fraction: Share of the hospitals that is dropped on each side, 0 <= fraction < 0.5; 0 is the plain mean. With
            fewer than 1 / fraction hospitals in a round nothing would be dropped, which is refused.
        on: ``product`` (any ranks, dense work) or ``factors``.

    Source: Yin et al., arXiv 1803.01498, Algorithm 1 option II.

    Differs from the paper in: models after local training instead of gradients; on the product. From
    ``scipy.stats.trim_mean``: ``fraction n`` is rounded to nine digits before it is cut, so that 0.29 of 100 is 29.
    """

    fraction: float = 0.2
    uses_weights: ClassVar[bool] = False  # weights do not count

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fraction < 0.5:
            raise ValueError(f"fraction: expected a number in [0, 0.5), got {self.fraction!r}")

    def problem(self, number: int) -> str | None:
        """So few hospitals that nothing would be left out."""
        if self.fraction == 0 or self.dropped(number):
            return None
        return (
            f"expected at least 1 / fraction = {math.ceil(round(1 / self.fraction, 9))} hospitals in a round for "
            f"fraction = {self.fraction}, got {number}: nothing would be dropped; set a larger fraction"
        )

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The trimmed mean on the space."""
        n, cut = len(updates), self.dropped(len(updates))
        require(self.problem(n), server)
        tensors = per_coordinate(self.on, server, updates, lambda values: values[cut : n - cut].mean(0), rng)
        return Aggregated(
            server=replace(server, round=server.round + 1, tensors=tensors),
            diagnostics={"kept_weight": 1 - 2 * cut / n, "rejected": 2.0 * cut},
        )

    def dropped(self, number: int) -> int:
        """Values that are dropped on each side with so many hospitals."""
        return math.floor(round(self.fraction * number, 9))
