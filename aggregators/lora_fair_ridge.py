"""Ridge correction of B: LoRA-FAIR's idea with squared error, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .arithmetic import folded, unfolded
from .contract import Aggregated, ClientUpdate, Pair, ServerState, Streams, Tensors
from .fedavg import FedAvg
from .lowrank import rounding
from .products import on_rows
from .ranges import check_not_negative


@dataclass(frozen=True, kw_only=True)
class LoraFairRidge(FedAvg):
    """The mean of the factors, and B corrected so that the product comes close to the mean of the products.

    ::

        minimise ||W* - (B + D) A||^2 + lam ||D||^2   over D,    W* = sum_k p_k B_k A_k,  B, A the means of the factors
        D = (W* A^T - B A A^T) (A A^T + lam I)^-1,    W* A^T = sum_k p_k B_k (A_k A^T)
        B <- B + D,   A <- A

    The closed form is ours: LoRA-FAIR (:mod:`~wardround.aggregators.lora_fair`) measures the distance by a cosine and
    descends. Here lengths count as well as directions, there is no step size, and the error is never larger than
    FedIT's: with ``lam = 0`` it is the smallest that the rows of A allow, with a large one it is FedIT's. What lies
    outside the row space of A stays lost. Cost O(K d r^2 + r^3) per pair; no dense matrix.

    Traffic: r (d_out + d_in) up, r (d_out + d_in) down per pair; all else as FedAvg.

    Args:
        lam: Weight of ``||D||^2``, at least 0, in units of squared row lengths of A: about 1/3 where A is freshly drawn
            in the way of LoRA. 0: least squares, of minimal norm when ``A A^T`` is singular. Combinations of rows of A
            that are no longer than rounding errors of its dtype count as none: the correction would only amplify them.

    Example:
        >>> LoraFairRidge(lam=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: lam: expected a number of at least 0, got -1.0

    Source: after Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement",
    arXiv 2411.14961, whose objective it changes.

    Differs from the paper in: squared Frobenius distance for the cosine, a squared penalty, the minimiser itself for
    descent. The scale of the pairs is common to all hospitals and cancels.
    """

    lam: float = 0.01
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # it needs the products of the single hospitals

    def __post_init__(self) -> None:
        check_not_negative(lam=self.lam)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """FedAvg, then the correction of every B."""
        after = super().aggregate(server, updates, rng).server
        tensors = dict(after.tensors)
        for pair in server.setting.layout.pairs:
            tensors[pair.B] = self._corrected(updates, after.tensors, pair)
        return Aggregated(server=replace(after, tensors=tensors))

    def _corrected(self, updates: Sequence[ClientUpdate], means: Tensors, pair: Pair) -> Tensor:
        B, A = (factor.double() for factor in folded(means, pair))
        C, G = on_rows(updates, pair, A)  # W* A^T (d_out, r), A A^T (r, r)
        smallest = max(rounding(means[pair.A].dtype) ** 2, rounding(G.dtype))
        inverse = torch.linalg.pinv(G + self.lam * torch.eye(len(G)).to(G), rtol=smallest, hermitian=True)
        return unfolded(B + (C - B @ G) @ inverse, A, pair)[pair.B].to(means[pair.B])
