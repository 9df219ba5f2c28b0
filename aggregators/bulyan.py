"""Bulyan: Krum again and again, then a trimmed mean of the chosen (El Mhamdi et al., 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .contract import Aggregated, ClientUpdate, ServerState, Streams
from .robust import (
    RobustMean,
    check_byzantine,
    krum_scores,
    lowest,
    median_of_sorted,
    per_coordinate,
    quorum_problem,
    require,
    squared_distances,
)


@dataclass(frozen=True, kw_only=True)
class Bulyan(RobustMean):
    """Krum picks n - 2 f updates one by one; of these, every coordinate is the mean of the values nearest the median.

    ::

        repeat m = n - 2 f times:   move the update that Krum picks of those left into S
        theta[j] <- mean of the m - 2 f values theta_k[j], k in S, that are closest to their median

    Krum alone lets an attacker hide a large change of one coordinate in a small distance; the second stage takes it
    out again. It needs many hospitals: n >= 4 f + 3. Weights do not count.

    On the product the first stage goes through Gram blocks; the second works on dense matrices and ends in an SVD, as
    :class:`~wardround.aggregators.median.Median` does.

    Traffic: ``r (d_out + d_in)`` up and down per pair, as FedAvg.

    Args:
        byzantine: f, hospitals that may send anything, >= 0.
        on: ``product`` (any ranks, dense work) or ``factors``.

    Source: El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", arXiv 1802.07927,
    section 4.

    Differs from the paper in: models after local training instead of gradients; the last picks of Krum are made among
    fewer than 2 f + 3 updates and then count one neighbour at least; on the product.
    """

    byzantine: int = 1
    uses_weights: ClassVar[bool] = False  # weights do not count

    def __post_init__(self) -> None:
        super().__post_init__()
        check_byzantine(self.byzantine)

    def problem(self, number: int) -> str | None:
        """Too few hospitals for f."""
        return quorum_problem(number, self.byzantine, 4)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """Both stages."""
        n, f = len(updates), self.byzantine
        require(self.problem(n), server)
        chosen = self.select(server, updates)
        kept = len(chosen) - 2 * f
        tensors = per_coordinate(self.on, server, chosen, lambda values: nearest_to_median(values, kept), rng)
        return Aggregated(
            server=replace(server, round=server.round + 1, tensors=tensors),
            diagnostics={"kept_weight": kept / n, "rejected": float(n - len(chosen))},
        )

    def select(self, server: ServerState, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """The first stage: n - 2 f updates by repeated Krum, in the order of the picks."""
        distances = squared_distances(self.on, server, updates)
        left, chosen = list(range(len(updates))), []
        for _ in range(len(updates) - 2 * self.byzantine):
            scores = krum_scores(distances[left][:, left], self.byzantine)
            best = left[lowest(scores, [updates[k] for k in left], 1)[0]]
            left.remove(best)
            chosen.append(updates[best])
        return chosen


def nearest_to_median(values: Tensor, number: int) -> Tensor:
    """(m, ...) sorted to (...): the mean of the ``number`` values nearest the median, the lower one among equals."""
    order = (values - median_of_sorted(values)).abs().argsort(dim=0, stable=True)[:number]
    return torch.gather(values, 0, order).mean(0)
