"""FLoRA: the stacked factors of all hospitals are merged into the model, and LoRA starts anew (Wang et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .arithmetic import normalised_weights, shapes_of, stacked, weighted_mean
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
from .merging import changes_for, check_bases_are_frozen, merged
from .products import for_rank


@dataclass(frozen=True, kw_only=True)
class Flora(FedAvg):
    """The exact mean of the products, by stacking the factors; it goes into the frozen weight, and LoRA starts anew.

    ::

        W <- W + [p_1 s_1 B_1 | ... | p_K s_K B_K] [A_1; ...; A_K] = W + sum_k p_k s_k B_k A_k
        A ~ N(0, std(A at the start)^2),    B <- 0

    Exact for any ranks. The price: what is sent down grows with the number of hospitals, and every round begins with
    B = 0, where A has no gradient, on a subspace drawn anew. Dense tensors are averaged.

    Traffic: per adapted pair, up ``r_k (d_out + d_in)``. Down, for a hospital that took part in the last round,
    ``R (d_out + d_in)`` or ``d_out d_in`` where that is smaller, with R the sum of the ranks of the last round; for one
    that missed rounds, ``d_out d_in`` (:mod:`~wardround.aggregators.merging`). The fresh LoRA does not travel: it is
    drawn from a seed that everybody has, as is that of round 1. A hospital keeps the change of its frozen weights,
    ``d_out d_in``, from round to round.

    Example:
        >>> from wardround.aggregators import AGGREGATORS
        >>> AGGREGATORS["flora"]()
        Flora()

    Source: Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
    arXiv 2409.05976; released code ATP-1010/FederatedLLM.

    Differs from the paper and its code in: scales are folded into the product, also where they differ with the rank;
    all hospitals start from the same fresh A (at their rank, its first rows), where the released code draws one per
    hospital; the merged weights live at the server, in fp32 or better, and a hospital that missed rounds is sent the
    dense change instead of all stacks since.
    """

    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # the stack needs the factors of every hospital

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values. Raises ValueError when the weight below a pair is trained itself."""
        check_bases_are_frozen(setting)
        return ServerState(setting=setting, round=0, tensors=dict(setting.trainable))

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything, pairs at the hospital's rank; dense tensors and what was merged travel."""
        start, layout = for_rank(server, hospital), server.setting.layout
        sent = {**{name: start[name] for name in layout.dense}, **changes_for(server, hospital)}
        return Download(start=start, train=layout.names, returns=shapes_of(start), sent=sent)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """Merges the stacked factors, draws fresh ones, averages dense tensors."""
        layout, weights = server.setting.layout, normalised_weights(updates)
        terms = [update.tensors for update in updates]
        products = {pair: stacked(terms, pair, weights) for pair in layout.pairs}
        tensors = {**server.tensors, **weighted_mean(updates, layout.dense)}
        for pair in layout.pairs:
            tensors |= _fresh(server, pair, rng)
        return Aggregated(server=replace(merged(server, updates, products), round=server.round + 1, tensors=tensors))

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The global model: all there is lies in the frozen weights, beside a B of zero."""
        return for_rank(server, hospital)


def _fresh(server: ServerState, pair: Pair, rng: Streams) -> dict[str, Tensor]:
    """Another random A of the initial size, and B = 0."""
    first = server.setting.trainable[pair.A]
    std = first.double().square().mean().sqrt().cpu()  # its mean is zero
    A = torch.randn(first.shape, generator=rng("fresh", pair.A), dtype=torch.float64) * std
    return {pair.A: A.to(first), pair.B: torch.zeros_like(server.tensors[pair.B])}
