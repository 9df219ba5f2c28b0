"""LoRA-FAIR: factor averaging with a correction of B that turns the product towards the ideal mean (Bian et al.)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .arithmetic import normalised_weights, resized, stacked
from .contract import Aggregated, ClientUpdate, Pair, ServerState, Streams, Tensors
from .fedavg import FedAvg
from .lowrank import product_inner
from .products import on_rows
from .ranges import check_integer, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True)
class LoraFair(FedAvg):
    """The mean of the factors, and B corrected by descent on a cosine.

    ::

        minimise  1 - cos(W*, (B + D) A) + lam ||D||   over D,    W* = sum_k p_k B_k A_k,  B, A the means of the factors
        B <- B + D,   A <- A                                      ("Avg-Initial": hospitals go on from both)

    The row space stays that of A: the result is closer to the ideal mean in direction than FedIT's, and not exact. A
    cosine sees directions only. Nothing but the penalty holds the length of the product, and the distance from the
    ideal mean may grow (:mod:`~wardround.aggregators.lora_fair_ridge` looks at that).

    Two limits of the defaults. A thousand steps arrive at the minimum where the rows of A are about equally long; where
    they are not, directions with short rows are still under way. And ``lam ||D||`` is in the units of B, which the
    cosine does not know: while B is small, as early in training, the penalty does nothing, and where B is large enough
    it forbids every correction.

    Neither W* nor a gradient is ever dense. With ``C = W* A^T`` and ``G = A A^T`` the objective is a function of
    ``<C, B + D>`` and ``<(B + D) G, B + D>``, and every iterate lies in the column space of ``[B | C]``: one QR
    decomposition brings the descent to (2 r, r) matrices, those of all pairs in one batch. Cost per pair O(K^2 d r^2)
    for ``||W*||``, whose K^2 inner products exceed all else when there are many hospitals, and O(r^3) per step.

    Traffic: r (d_out + d_in) up, r (d_out + d_in) down per pair; all else as FedAvg.

    Args:
        lam: Weight of ``||D||``, at least 0. The paper finds that 0 hurts.
        lr: Step size, above 0, in units of ``||B||^2``: the step does not depend on how large the factors are.
        iterations: Steps, at least 0; 0 is FedIT.

    Source: Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", arXiv
    2411.14961 (lam 0.01, lr 0.01). The authors' code was not seen; 1000 iterations are the default of a public fork of
    it (SpecTraL).

    Differs from the paper in: the printed objective minimises a similarity, which is read as minimising 1 - cosine; the
    steps are those of proximal gradient descent, which handles the kink of ``||D||`` at 0 exactly where plain descent
    jitters around it (the minimiser is the same: hospitals that agree get no correction); the step size is relative to
    ``||B||^2``, since a fixed one overshoots while B is small, at the beginning of training; the weights are those of
    the run. The scale of the pairs drops out of the cosine, and D is penalised as it is stored.
    """

    lam: float = 0.01
    lr: float = 0.01
    iterations: int = 1000
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # it needs the products of the single hospitals

    def __post_init__(self) -> None:
        check_not_negative(lam=self.lam)
        check_positive(lr=self.lr)
        check_integer(0, iterations=self.iterations)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """FedAvg, then the correction of every B."""
        after = super().aggregate(server, updates, rng).server
        problems = {pair: _reduced(updates, after.tensors, pair) for pair in server.setting.layout.pairs}
        corrections = self._descended(problems)
        corrected = {p.B: (after.tensors[p.B] + D).to(after.tensors[p.B]) for p, D in corrections.items()}
        return Aggregated(server=replace(after, tensors={**after.tensors, **corrected}))

    def _descended(self, problems: Mapping[Pair, _Problem]) -> dict[Pair, Tensor]:
        """D (d_out, r) of every pair. All pairs have one rank, hence one batch."""
        if not problems:
            return {}
        B, C, G = (torch.stack([getattr(p, field) for p in problems.values()]) for field in "BCG")
        lr = self.lr * _dot(B, B)  # (pairs, 1, 1)
        D = torch.zeros_like(B)
        for _ in range(self.iterations):
            D = _shrunk(D - lr * _gradient(B + D, C, G), lr * self.lam)
        return {pair: problem.Q @ D[number] for number, (pair, problem) in enumerate(problems.items())}


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """One pair in coordinates of the columns of Q (d_out, 2 r): B and C / ||W*|| are (2 r, r), G is (r, r)."""

    Q: Tensor
    B: Tensor
    C: Tensor
    G: Tensor


def _reduced(updates: Sequence[ClientUpdate], means: Tensors, pair: Pair) -> _Problem:
    B, (C, G) = means[pair.B].double(), on_rows(updates, pair, means[pair.A])
    r = len(G)
    Q, R = torch.linalg.qr(torch.cat([B, C * _inverse(_length(updates, pair))], dim=1))
    Q, R = resized(Q, 1, 2 * r), resized(R, 0, 2 * r)  # zeros where d_out < 2 r
    return _Problem(Q=Q, B=R[:, :r], C=R[:, r:], G=G)


def _length(updates: Sequence[ClientUpdate], pair: Pair) -> Tensor:
    """``||W*||``, a scalar."""
    terms = [update.tensors for update in updates]
    B, A = (stack.double() for stack in stacked(terms, pair, normalised_weights(updates)))
    return product_inner(B, A, B, A).clamp_min(0).sqrt()


def _gradient(X: Tensor, C: Tensor, G: Tensor) -> Tensor:
    """Gradient of ``1 - <C, X> / sqrt(<X G, X>)`` by X; 0 where the product is."""
    XG = X @ G
    inverse = _inverse(_dot(X, XG).clamp_min(0).sqrt())
    return (_dot(C, X) * inverse * inverse * XG - C) * inverse


def _shrunk(D: Tensor, by: Tensor) -> Tensor:
    """D shortened by a length, 0 where it is no longer than that: the proximal step of the norm."""
    return D * (1 - by * _inverse(_dot(D, D).sqrt())).clamp_min(0)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((-2, -1), keepdim=True)


def _inverse(value: Tensor) -> Tensor:
    """1 / value, and 0 for 0."""
    return torch.where(value > 0, 1 / value, torch.zeros_like(value))
