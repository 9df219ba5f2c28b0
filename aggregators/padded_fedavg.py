"""FedAvg on factors of different ranks: padded with zeros, or averaged row by row. The plain baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .arithmetic import accumulator, folded, normalised_weights, rank_of, resized, shapes_of, weighted_mean
from .contract import (
    Aggregated,
    ClientUpdate,
    Download,
    HospitalInfo,
    Pair,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from .fedavg import FedAvg
from .products import for_rank

Mean = Literal["zero", "rows"]


@dataclass(frozen=True, kw_only=True)
class PaddedFedAvg(FedAvg):
    """FedAvg for hospitals of different ranks: direction j of the global factors is a mean of directions j.

    ::

        zero:  B[:, j] = sum_{k: r_k >= j} p_k B_k[:, j],    a missing direction counts as zero
        rows:  B[:, j] = sum_{k: r_k >= j} p_k B_k[:, j] / sum_{k: r_k >= j} p_k        (j = 1, 2, ...)

    and A row by row alike. Down goes ``B[:, :r_k]``, ``A[:r_k]``. Scales that depend on the rank are folded into B on
    the way in and taken out on the way down. With equal ranks both are FedAvg.

    Neither is exact. On top of FedAvg's own error, ``zero`` shrinks directions that few hospitals have, in both factors
    at once, so that their product shrinks with the square; ``rows`` does not, and weighs those few like everybody. What
    is cut off on the way down is not the least important part: nothing orders the directions.

    Traffic: per pair ``r_k (d_out + d_in)`` up and down.

    Args:
        mean: ``zero``: padding with zeros; ``rows``: RBLA's mean over those who have the row.

    Source: ``rows``: Rank-Based LoRA Aggregation, arXiv 2408.08699, from a summary of it; ``zero`` is what HetLoRA
    (arXiv 2401.06432) starts from, and a common baseline.

    Differs from the papers in: a direction that no hospital of a round has stays as it was. As a mean of nothing it
    would be zero in both factors, and such a pair never gets a gradient again.
    """

    mean: Mean = "zero"
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # factors of different ranks have no sum

    def __post_init__(self) -> None:
        if self.mean not in get_args(Mean):
            raise ValueError(f"mean: expected 'zero' or 'rows', got {self.mean!r}")

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values, at the largest rank."""
        return ServerState(setting=setting, round=0, tensors=dict(setting.trainable))

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything; pairs cut to the hospital's rank."""
        start = for_rank(server, hospital)
        return Download(start=start, train=server.setting.layout.names, returns=shapes_of(start))

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The mean of dense tensors, and of factors direction by direction."""
        layout = server.setting.layout
        shares = normalised_weights(updates)
        tensors = {**server.tensors, **weighted_mean(updates, layout.dense)}
        for pair in layout.pairs:
            tensors |= mean_by_direction(server, updates, pair, shares, self.mean)
        return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors))

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The global model cut to the hospital's rank; at full rank for a site never seen."""
        return for_rank(server, hospital)


def mean_by_direction(
    server: ServerState, updates: Sequence[ClientUpdate], pair: Pair, shares: Sequence[float], mean: Mean
) -> dict[str, Tensor]:
    """The mean of the factors of a pair at the server's rank r, direction by direction.

    Args:
        server: Rank, dtype, and the values of directions that no update has.
        updates: Factors A_k (r_k, d_in), B_k (d_out, r_k) with r_k <= r.
        pair: The pair.
        shares: p_k, share of each update; they sum to 1.
        mean: ``zero``: a missing direction counts as zero; ``rows``: it does not count.
    """
    rank, like = rank_of(server.tensors, pair), server.tensors[pair.A]
    own = [
        [p if j < rank_of(u.tensors, pair) else 0.0 for j in range(rank)] for p, u in zip(shares, updates, strict=True)
    ]
    weights = torch.tensor(own, dtype=accumulator(like), device=like.device)  # (K, r)
    covered = weights.sum(0)  # (r,)
    if mean == "rows":
        weights = weights / torch.where(covered > 0, covered, 1.0)
    A, B = torch.zeros_like(like, dtype=weights.dtype), torch.zeros_like(server.tensors[pair.B], dtype=weights.dtype)
    for weight, update in zip(weights, updates, strict=True):
        B_k, A_k = folded(update.tensors, pair)
        A += weight[:, None] * resized(A_k, 0, rank)
        B += weight * resized(B_k, 1, rank) / pair.scale(rank)
    return {
        pair.A: torch.where(covered[:, None] > 0, A.to(like), like),
        pair.B: torch.where(covered > 0, B.to(like), server.tensors[pair.B]),
    }
