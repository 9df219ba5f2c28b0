"""raFLoRA: a mean of products in which every direction is divided by the weight of those who hold it (2026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .arithmetic import normalised_weights, rank_of
from .contract import Aggregated, ClientUpdate, Pair, ServerState, Streams
from .flap_sam import FlapSam
from .lowrank import Split


@dataclass(frozen=True, kw_only=True)
class RaFlora(FlapSam):
    """FlexLoRA in which a direction is averaged over the hospitals that have it, not over all.

    ::

        M = sum_j sum_{k: r_k >= j} (p_k / P_j) s_k B_k[:, j] A_k[j, :],    P_j = sum_{k: r_k >= j} p_k
        M = U S V^T,    B_i <- U_{r_i} S_{r_i} / s_i,  A_i <- V_{r_i}^T

    P_j is constant between two successive ranks of the round's hospitals: these are the slots of the paper. In FlexLoRA
    a hospital of rank 2 counts as a vote for zero in direction 3; here it has no say in it, and the collapse of the
    energy into the first directions is gone. With equal ranks P_j = 1 and this is FlexLoRA.

    Direction j has to mean the same at every hospital. It does after a server step, which hands out ordered singular
    directions, and in round 1, where all start from the first rows of one A; it stops to mean the same as far as local
    training turns the factors. Unlike FlexLoRA's, the result therefore depends on which factors a hospital chose for
    its product, once ranks differ.

    With different ranks M is not the ideal mean: the few hospitals of high rank count for more in the directions they
    have to themselves. A slot that nobody in the round has is lost, as in FlexLoRA.

    Traffic: up r_k (d_out + d_in), down r_i (d_out + d_in) of the receiver.

    Args:
        split: Where the singular values go: ``left`` into B (A orthonormal), ``right`` into A, ``symmetric`` the roots
            into each.

    Source: raFLoRA, arXiv 2602.13486 v2: the idea of slots that are renormalised by the weight of their holders.

    Differs from the paper in: the weights ``p_k / P_j`` are written out from that idea, not re-read in the paper (they
    agree with the released code of RB-LoRA, which weights slots in the same way); slots are those of the hospitals that
    take part in the round; QR of the stacked factors instead of a dense SVD; directions in which M is zero are filled
    so that they can still learn (:func:`~wardround.aggregators.lowrank.resplit`).
    """

    split: Split = "left"

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """FlexLoRA's step on factors B whose columns are divided by P_j."""
        return super().aggregate(server, _renormalised(updates, server.setting.layout.pairs), rng)


def _renormalised(updates: Sequence[ClientUpdate], pairs: Sequence[Pair]) -> list[ClientUpdate]:
    """The same updates with column j of every B divided by P_j."""
    tensors = [dict(update.tensors) for update in updates]
    weights = normalised_weights(updates)
    for pair in pairs:
        shares = holders(weights, [rank_of(one, pair) for one in tensors])
        for one in tensors:
            B = one[pair.B]
            one[pair.B] = B / shares[: B.shape[1]].to(B)
    return [replace(update, tensors=one) for update, one in zip(updates, tensors, strict=True)]


def holders(weights: Sequence[float], ranks: Sequence[int]) -> Tensor:
    """``P_j``: the weight of the hospitals that have direction j, (largest rank,).

    A direction that only hospitals of weight 0 have counts with 1: it carries nothing whatever it is divided by.

    Example:
        >>> holders([0.5, 0.25, 0.25], [1, 2, 3])
        tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """
    P = torch.zeros(max(ranks), dtype=torch.float64)
    for weight, rank in zip(weights, ranks, strict=True):
        P[:rank] += weight
    return torch.where(P > 0, P, torch.ones_like(P))
