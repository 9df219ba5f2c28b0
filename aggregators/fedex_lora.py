"""FedEx-LoRA: the mean of the factors, and what it misses goes into the frozen weight (Singhal et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from .arithmetic import folded, normalised_weights, weighted_mean
from .contract import Aggregated, ClientUpdate, Download, HospitalInfo, Pair, ServerState, Setting, Streams, Tensors
from .fedavg import FedAvg
from .lowrank import svd_of_product
from .merging import changes_for, check_bases_are_frozen, merged
from .products import Stack
from .ranges import check_integer


@dataclass(frozen=True, kw_only=True)
class FedExLora(FedAvg):
    """FedIT made exact: the residual that the mean of the factors leaves is merged into the frozen weight.

    ::

        B <- sum_k p_k B_k,    A <- sum_k p_k A_k
        W <- W + s (sum_k p_k B_k A_k - B A) = W + s sum_{k<K} p_k (B_k - B)(A_k - A_K)

    The residual is the weighted covariance of the factors, ``sum_k p_k (B_k - B)(A_k - A)``. Because
    ``sum_k p_k (B_k - B) = 0``, any constant may take the place of A in it; the factor of the last hospital makes its
    term vanish, and K - 1 blocks are left. Hospitals go on from (B, A), as in FedIT, and dense tensors are averaged.

    With ``residual_rank`` the residual is cut to its best approximation of that rank. Then the update is no longer the
    exact mean, but it is closer to it than that of FedIT.

    Traffic: per adapted pair, up ``r (d_out + d_in)``. Down the same, and the residual: for a hospital that took part
    in the last round ``(K - 1) r (d_out + d_in)`` (at most ``residual_rank (d_out + d_in)``), or ``d_out d_in`` where
    that is smaller; for one that missed rounds ``d_out d_in`` (:mod:`~wardround.aggregators.merging`). A hospital keeps
    the change of its frozen weights, ``d_out d_in``, from round to round.

    Args:
        residual_rank: Rank to which the residual is cut, at least 1 (0 would be ``fedit``); None: not at all.

    Example:
        >>> FedExLora(residual_rank=0)
        Traceback (most recent call last):
        ...
        ValueError: residual_rank: expected an integer of at least 1, got 0

    Source: Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation
    Models", arXiv 2410.09432.

    Differs from the released code (RaghavSinghal10/fedex-lora) in: the residual is added as it is, (d_out, d_in), where
    that code transposes it before the addition, which is right for GPT-2's ``Conv1D``, wrong for linear layers, and
    goes unnoticed on square ones; weights are those of the run; the residual is sent as factors, one block fewer than
    there are hospitals.
    """

    residual_rank: int | None = None
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # the residual needs the factors of every hospital

    def __post_init__(self) -> None:
        if self.residual_rank is not None:
            check_integer(1, residual_rank=self.residual_rank)

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0. Raises ValueError for different ranks, and when the weight below a pair is trained itself."""
        check_bases_are_frozen(setting)
        return super().init(setting, rng)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything, and the residuals the hospital has not seen travel with it."""
        download = super().broadcast(server, hospital)
        return replace(download, sent={**download.start, **changes_for(server, hospital)})

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The mean of every tensor, and the residuals merged."""
        means, weights = weighted_mean(updates), normalised_weights(updates)
        residuals = {pair: self._residual(pair, means, updates, weights) for pair in server.setting.layout.pairs}
        tensors = {**server.tensors, **means}
        return Aggregated(server=replace(merged(server, updates, residuals), round=server.round + 1, tensors=tensors))

    def _residual(self, pair: Pair, means: Tensors, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Stack:
        """Factors of ``s (sum_k p_k B_k A_k - B A)``: (d_out, (K-1) r) and ((K-1) r, d_in), or cut."""
        mean_B, _ = folded(means, pair)
        *others, last = [folded(update.tensors, pair) for update in updates]
        # One hospital: no block is left, and its own factors give the shapes.
        B = torch.cat([last[0][:, :0], *(p * (B_k - mean_B) for p, (B_k, _) in zip(weights, others, strict=False))], 1)
        A = torch.cat([last[1][:0], *(A_k - last[1] for _, A_k in others)], 0)
        return (B, A) if self.residual_rank is None else _cut(B, A, self.residual_rank)


def _cut(B: torch.Tensor, A: torch.Tensor, rank: int) -> Stack:
    """Factors of the best approximation of ``B A`` of a rank; as they are where they have no more."""
    if B.shape[1] <= rank:
        return B, A
    svd = svd_of_product(B, A)
    return svd.U[:, :rank] * svd.S[:rank], svd.Vh[:rank]
