"""Low-rank pairs in product space: decomposed means, and factors at the rank of whoever holds them.

What algorithms share that look at ``W_k = s_k B_k A_k`` instead of its factors. Nothing here forms a dense matrix
while the ranks are small (:mod:`~wardround.aggregators.lowrank`).

Legend: K hospitals, p_k normalised weight, s_k scale of a pair at the hospital's rank, R sum of the hospitals' ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .arithmetic import normalised_weights, rank_of, rescaled, stacked
from .contract import ClientUpdate, HospitalInfo, Pair, ServerState, Streams
from .lowrank import LowRankSvd, Split, resplit, svd_of_product

Stack = tuple[Tensor, Tensor]
"""Factors (d_out, R) and (R, d_in) whose product is meant."""


def on_rows(updates: Sequence[ClientUpdate], pair: Pair, A: Tensor) -> tuple[Tensor, Tensor]:
    """``M A^T`` (d_out, r) and ``A A^T`` (r, r) for the ideal mean M of a pair: what fitting it on the rows of A needs.

    Args:
        updates: Updates with both factors of the pair.
        pair: The pair.
        A: (r, d_in).

    Returns:
        Both in float64, at cost O(R r (d_out + d_in)).
    """
    terms = [update.tensors for update in updates]
    stack_B, stack_A = (stack.double() for stack in stacked(terms, pair, normalised_weights(updates)))
    A = A.double()
    return stack_B @ (stack_A @ A.mT), A @ A.mT


def ideal_means(updates: Sequence[ClientUpdate], pairs: Sequence[Pair]) -> dict[Pair, LowRankSvd]:
    """``sum_k p_k s_k B_k A_k`` of every pair, decomposed.

    Args:
        updates: Updates with both factors of every pair, of any ranks.
        pairs: The pairs.
    """
    weights = normalised_weights(updates)
    terms = [update.tensors for update in updates]
    return decomposed({pair: stacked(terms, pair, weights) for pair in pairs})


def decomposed(stacks: Mapping[Pair, Stack]) -> dict[Pair, LowRankSvd]:
    """Singular value decompositions of the products of stacks; those of equal shape go through the kernel together."""
    groups: dict[tuple[torch.Size, torch.Size], list[Pair]] = {}
    for pair, (B, A) in stacks.items():
        groups.setdefault((B.shape, A.shape), []).append(pair)
    result: dict[Pair, LowRankSvd] = {}
    for pairs in groups.values():
        svd = svd_of_product(torch.stack([stacks[p][0] for p in pairs]), torch.stack([stacks[p][1] for p in pairs]))
        result |= {pair: svd[number] for number, pair in enumerate(pairs)}
    return {pair: result[pair] for pair in stacks}


def factors(server: ServerState, products: Mapping[Pair, LowRankSvd], split: Split, rng: Streams) -> dict[str, Tensor]:
    """Both factors of every pair at the server's rank, in the dtype they have there: the best approximation.

    Args:
        server: Says rank and dtype.
        products: The product that each pair should have.
        split: Where the singular values go.
        rng: Draws directions where a product has fewer than the rank; key ``spare directions`` and the name of B.
    """
    tensors = {}
    for pair, svd in products.items():
        rank = rank_of(server.tensors, pair)
        B, A = resplit(svd, rank, split, rng("spare directions", pair.B))
        tensors[pair.A] = A.to(server.tensors[pair.A])
        tensors[pair.B] = (B / pair.scale(rank)).to(server.tensors[pair.B])
    return tensors


def for_rank(server: ServerState, hospital: HospitalInfo | None) -> dict[str, Tensor]:
    """The server's tensors with the first directions of every pair, as many as the hospital's rank.

    B is divided by the scale of the rank it is cut to. A site never seen (None) gets all directions.
    """
    if hospital is None:
        return dict(server.tensors)
    return rescaled(server.tensors, server.setting.layout, hospital.rank)
