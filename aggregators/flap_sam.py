"""FLAP-SAM: mean of the dense tensors, mean of the products of the low-rank pairs (Asokan et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .arithmetic import at_rank, normalised_weights, rank_of, shapes_of, stacked, weighted_mean
from .contract import (
    Aggregated,
    ClientUpdate,
    Download,
    HospitalInfo,
    LocalRule,
    Pair,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from .lowrank import LowRankSvd, Split, resplit, svd_of_product
from .plain import PlainTraining


@dataclass(frozen=True, kw_only=True)
class FlapSam:
    """Mean of the dense tensors; per low-rank pair the mean of the products, cut to the rank of the federation.

    ::

        M = sum_k p_k s_k B_k A_k = U S V^T,    B <- U_r / s,  A <- S_r V_r^T     (split "right")

    M is the ideal mean. What comes out is its best approximation of rank r, so that no aggregator that sends one pair
    of rank r can be closer. The decomposition goes through QR of the stacked factors and does not form M while their
    ranks are small (:mod:`~wardround.aggregators.lowrank`). A hospital of lower rank gets the first of the ordered
    directions.

    Diagnostics, over all pairs: ``energy_kept``, the share of ``||M||^2`` that survives the cut, and
    ``distance_from_ideal_mean``, ``||M - s B A|| / ||M||`` (Frobenius); 1 and 0 when M is zero.

    Args:
        split: Where the singular values go: ``right`` into A (B orthonormal, as in the released code), ``left`` into B
            (A orthonormal), ``symmetric`` the roots into each. The product is the same; the gradients are not.

    Example:
        >>> FlapSam(split="middle")
        Traceback (most recent call last):
        ...
        ValueError: split: expected one of 'right', 'left', 'symmetric', got 'middle'

    Source: Asokan et al., "A Federated Learning-Friendly Approach for Parameter-Efficient Fine-Tuning of SAM in 3D
    Segmentation", arXiv 2407.21739, and its released code (BioMedIA-MBZUAI/FLAP-SAM); low-rank route: aggregation of
    FlexLoRA, Bai et al., arXiv 2402.11505, which also cuts to each hospital's rank.

    Differs from the released code in: exact, sign-fixed SVD instead of an unseeded randomised one; weights from the run
    instead of constants in the source; scales are folded into the product; hospitals may have different ranks;
    directions in which M is zero are filled so that they can still learn
    (:func:`~wardround.aggregators.lowrank.resplit`).
    """

    split: Split = "right"
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"
    rule: ClassVar[LocalRule] = PlainTraining()

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            choices = ", ".join(repr(choice) for choice in get_args(Split))
            raise ValueError(f"split: expected one of {choices}, got {self.split!r}")

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values as they are (B zero, A random)."""
        return ServerState(setting=setting, round=0, tensors=dict(setting.trainable))

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything; pairs at the hospital's rank."""
        start = _for_rank(server, hospital)
        return Download(
            start=start,
            train=server.setting.layout.names,
            returns=shapes_of(start),
        )

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """Mean on dense tensors, product average and SVD on pairs."""
        layout = server.setting.layout
        dense = weighted_mean(updates, layout.dense)
        means = dict(_ideal_means(updates, layout.pairs))
        pairs = {name: value for pair in layout.pairs for name, value in self._factors(server, pair, means, rng)}
        return Aggregated(
            server=replace(server, round=server.round + 1, tensors={**server.tensors, **dense, **pairs}),
            diagnostics=_diagnostics(server.setting.rank, means),
        )

    def _factors(
        self, server: ServerState, pair: Pair, means: Mapping[Pair, LowRankSvd], rng: Streams
    ) -> Iterator[tuple[str, Tensor]]:
        """The pair at the server's rank, in the dtype it has there."""
        rank = rank_of(server.tensors, pair)
        B, A = resplit(means[pair], rank, self.split, rng("spare directions", pair.B))
        yield pair.A, A.to(server.tensors[pair.A])
        yield pair.B, (B / pair.scale(rank)).to(server.tensors[pair.B])

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The global model, at the hospital's rank; at full rank for a site never seen."""
        return server.tensors if hospital is None else _for_rank(server, hospital)


def _for_rank(server: ServerState, hospital: HospitalInfo) -> dict[str, Tensor]:
    """The first directions of every pair, with B divided by the scale of the rank they are cut to."""
    layout, full = server.setting.layout, server.setting.rank
    result = at_rank(server.tensors, layout, hospital.rank)
    if hospital.rank is not None and full is not None and hospital.rank != full:
        for pair in layout.pairs:
            result[pair.B] = result[pair.B] * (pair.scale(full) / pair.scale(hospital.rank))
    return result


def _ideal_means(updates: Sequence[ClientUpdate], pairs: Sequence[Pair]) -> Iterator[tuple[Pair, LowRankSvd]]:
    """The decomposed ideal mean of every pair; pairs of equal shape go through the kernel together."""
    weights = normalised_weights(updates)
    groups: dict[tuple[torch.Size, torch.Size], list[tuple[Pair, Tensor, Tensor]]] = {}
    for pair in pairs:
        B, A = stacked(updates, pair, weights)
        groups.setdefault((B.shape, A.shape), []).append((pair, B, A))
    for group in groups.values():
        svd = svd_of_product(torch.stack([B for _, B, _ in group]), torch.stack([A for _, _, A in group]))
        for number, (pair, _, _) in enumerate(group):
            yield pair, svd[number]


def _diagnostics(rank: int | None, means: Mapping[Pair, LowRankSvd]) -> dict[str, float]:
    if rank is None:
        return {}
    total = sum(float(svd.energy()) for svd in means.values())
    lost = sum(float(svd.tail(rank)) for svd in means.values())
    share = lost / total if total > 0 else 0.0
    return {"energy_kept": 1.0 - share, "distance_from_ideal_mean": math.sqrt(share)}
