"""HetLoRA: ranks per hospital that shrink by themselves, and a mean weighted by the size of the updates (Cho, 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .arithmetic import (
    at_rank,
    check_has_pairs,
    folded,
    normalised_weights,
    rank_of,
    rescaled,
    resized,
    shapes_of,
    weighted_mean,
)
from .contract import (
    Aggregated,
    ClientUpdate,
    Download,
    Fit,
    HospitalInfo,
    Layout,
    LocalResult,
    LocalRule,
    Pair,
    Phase,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from .fedavg import FedAvg
from .lowrank import product_inner
from .padded_fedavg import mean_by_direction
from .products import for_rank
from .ranges import check_integer, check_not_negative, check_share


@dataclass(frozen=True, kw_only=True)
class PruneTail:
    """Training that pulls the last directions of every pair to zero, and gives them up where that works.

    ::

        loss + lam * sum_pairs ||B[:, c:]||_F ||A[c:, :]||_F,    c = floor(gamma r)

    When that sum is smaller after training than it was at receipt, the hospital's rank becomes c: it sends zeros in the
    last directions and says so in its metric ``rank``.

    Args:
        lam: Weight of the penalty.
        gamma: Share of the directions that is out of the penalty's reach.
        min_rank: The rank never falls below it.
    """

    lam: float
    gamma: float
    min_rank: int

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """One phase with the penalty on the last directions."""
        penalty = partial(self._penalty, _pairs(download))
        return [Phase(train=download.train, penalty=penalty, stackable=False)]  # the tail is at the hospital's own rank

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """What was trained, without the tail where it became smaller; the rank that is left."""
        pairs, ended = _pairs(download), fits[-1].tensors
        sent = {name: ended[name] for name in download.returns}
        left = rank = rank_of(ended, pairs[0])
        if self.tail(pairs, ended) < self.tail(pairs, download.start):
            left = self.kept(rank)
            for pair in pairs:
                sent[pair.A] = resized(resized(ended[pair.A], 0, left), 0, rank)
                sent[pair.B] = resized(resized(ended[pair.B], 1, left), 1, rank)
        return LocalResult(tensors=sent, metrics={"rank": float(left)})

    def kept(self, rank: int) -> int:
        """``c = floor(gamma r)``, but at least ``min_rank`` (and at most r)."""
        return min(rank, max(self.min_rank, math.floor(self.gamma * rank + 1e-9)))

    def tail(self, pairs: Sequence[Pair], tensors: Tensors) -> Tensor:
        """``sum_pairs ||B[:, c:]||_F ||A[c:, :]||_F``, a scalar; zero where c = r."""
        c = self.kept(rank_of(tensors, pairs[0]))
        return torch.stack([tensors[pair.B][:, c:].norm() * tensors[pair.A][c:].norm() for pair in pairs]).sum()

    def _penalty(self, pairs: Sequence[Pair], trained: Tensors, context: Tensors) -> Tensor:
        return self.lam * self.tail(pairs, trained)


@dataclass(frozen=True, kw_only=True)
class HetLora(FedAvg):
    """Hospitals of different ranks, which prune themselves; padded factors, weighted by the norms of their products.

    ::

        down:   B_k = B[:, :r_k],  A_k = A[:r_k]
        local:  loss + lam ||B_k[:, c:]||_F ||A_k[c:, :]||_F,  c = floor(gamma r_k);
                r_k <- c when this tail is smaller after training than before
        up:     B <- sum_k q_k [B_k | 0],  A <- sum_k q_k [A_k; 0],    q_k = ||W_k||_F / sum_j ||W_j||_F

    with ``W_k = s_k B_k A_k``. The penalty is what gives the order of directions a meaning, which cutting to the first
    r_k needs. Not exact: it has the error of averaged factors, and padding shrinks what few hospitals have. How many
    examples a hospital has does not matter for the pairs; for dense tensors the run's weights do.

    The rank that a hospital has reached is the server's knowledge: the hospital reports it (metric ``rank`` of every
    round), and the next download has that rank. A model is deployed at the rank the hospital began with, padded with
    zeros, which changes nothing.

    Traffic: per pair ``r_k (d_out + d_in)`` up and down, with the rank at the start of the round: zeros of a tail that
    is given up travel once.

    Args:
        lam: Weight of the penalty, >= 0; 0.01 is that of a re-implementation.
        gamma: Share of the directions that a pruning keeps, in (0, 1]; 1: no penalty and no pruning. With 0.99, that of
            the same re-implementation, one direction goes at a time up to rank 100.
        min_rank: Smallest rank that pruning may reach, >= 1.

    Source: Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", arXiv 2401.06432.

    Differs from the paper in, or read from summaries and a re-implementation, as there is no official code: norms of
    products and tails are taken over all pairs together (a hospital has one rank, and one q_k), where the paper leaves
    room for layer by layer; dense tensors are averaged with the run's weights; while all products are zero q_k is the
    run's weight; a direction that no hospital of the round has stays as it was (as in
    :class:`~wardround.aggregators.padded_fedavg.PaddedFedAvg`). A hospital that gives it up in this round does not have
    it any more: if only such hospitals answer, it stays for the others. Without others it becomes zero.
    """

    lam: float = 0.01
    gamma: float = 0.99
    min_rank: int = 1
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # the norm of every hospital's products is needed

    def __post_init__(self) -> None:
        check_not_negative(lam=self.lam)
        check_share(gamma=self.gamma)
        check_integer(1, min_rank=self.min_rank)

    @property
    def rule(self) -> LocalRule:
        """Training with a penalty on the last directions, and pruning."""
        return PruneTail(lam=self.lam, gamma=self.gamma, min_rank=self.min_rank)

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values, and the ranks hospitals begin with. Raises ValueError without pairs."""
        check_has_pairs(setting)
        ranks = torch.tensor([hospital.rank or setting.rank for hospital in setting.hospitals])
        return ServerState(setting=setting, round=0, tensors=dict(setting.trainable), memory={"rank": ranks})

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything, pairs cut to the rank the hospital has reached."""
        start, layout = for_rank(server, _as_reached(server, hospital)), server.setting.layout
        return Download(start=start, train=layout.names, returns=shapes_of(start), layout=layout)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """Padded factors weighted by the norms of their products, dense tensors by the run; the new ranks."""
        layout = server.setting.layout
        updates = [_cut(update, layout) for update in updates]
        shares = _shares(server, updates)
        tensors = {**server.tensors, **weighted_mean(updates, layout.dense)}
        for pair in layout.pairs:
            tensors |= mean_by_direction(server, updates, pair, shares, "zero")
        ranks = _ranks_after(server, updates)
        tensors = at_rank(at_rank(tensors, layout, int(ranks.max())), layout, server.setting.rank)
        return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors, memory={"rank": ranks}))

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The global model at the rank the hospital has reached, padded with zeros; at full rank at a new site."""
        if hospital is None:
            return server.tensors
        cut = for_rank(server, _as_reached(server, hospital))
        return rescaled(cut, server.setting.layout, hospital.rank)


def _pairs(download: Download) -> tuple[Pair, ...]:
    if download.layout is None:
        raise ValueError("layout: expected Download.layout, which says what the pairs are, got None")
    return download.layout.pairs


def _as_reached(server: ServerState, hospital: HospitalInfo) -> HospitalInfo:
    """The hospital with the rank it has reached; one that the server does not know begins with its own."""
    names = [one.name for one in server.setting.hospitals]
    if hospital.name not in names:
        return hospital
    return replace(hospital, rank=int(server.memory["rank"][names.index(hospital.name)]))


def _cut(update: ClientUpdate, layout: Layout) -> ClientUpdate:
    """The update at the rank it reports: zeros in directions that were given up are no say in them."""
    return replace(update, tensors=rescaled(update.tensors, layout, int(update.metrics["rank"])))


def _ranks_after(server: ServerState, updates: Sequence[ClientUpdate]) -> Tensor:
    """The ranks that hospitals reported, for the others those they had."""
    told = {update.hospital: int(update.metrics["rank"]) for update in updates}
    before = server.memory["rank"].tolist()
    return torch.tensor([told.get(h.name, rank) for h, rank in zip(server.setting.hospitals, before, strict=True)])


def _shares(server: ServerState, updates: Sequence[ClientUpdate]) -> list[float]:
    """``q_k = ||W_k||_F / sum_j ||W_j||_F`` over all pairs together; the run's weights while all W_k are zero."""
    norms = [_norm(server, update) for update in updates]
    total = sum(norms)
    return [norm / total for norm in norms] if total > 0 else normalised_weights(updates)


def _norm(server: ServerState, update: ClientUpdate) -> float:
    """``sqrt(sum over pairs of ||s_k B_k A_k||_F^2)`` by Gram blocks, in float64."""
    terms = [folded(update.tensors, pair) for pair in server.setting.layout.pairs]
    squares = [product_inner(B.double(), A.double(), B.double(), A.double()).item() for B, A in terms]
    return math.sqrt(max(sum(squares), 0.0))
