"""FedSVD: B is trained and averaged, and the server re-splits the product so that A keeps orthonormal rows (2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .arithmetic import folded
from .contract import Aggregated, ClientUpdate, Download, HospitalInfo, ServerState, Setting, Streams
from .fedavg import FedAvg
from .one_factor import average_one, check_pairs, first_state, train_one
from .products import decomposed, factors
from .ranges import check_integer


@dataclass(frozen=True, kw_only=True)
class FedSvd(FedAvg):
    """B is trained and averaged with A fixed; every ``period`` rounds the server splits ``B A`` anew by its SVD.

    ::

        B <- sum_k p_k B_k                                   exact: sum_k p_k B_k A = B A
        B A = U S V^T,    B <- U S,  A <- V^T                every period rounds

    The product has rank r at most, so that the new split loses nothing. Its cost is O((d_out + d_in) r^2): QR of both
    factors and the SVD of an r x r core. Where A has orthonormal rows already, as after the first time, U S V'^T is
    just the SVD of B and A becomes V'^T A.

    Directions in which the product is zero (all of them before anyone has trained) get random orthonormal rows of A,
    orthogonal to the others, and zero columns of B, so that they can learn.

    What the new split does: it makes the rows of A orthonormal once, and from then on turns them within the space they
    span, while B has full rank and the product rank r. Below that the spare rows are drawn anew, from the whole space,
    and the model looks where it could not before. Plain gradient steps on B do not notice the turn; optimizers that
    look at single entries, as Adam does, do. With SGD and a B of full rank it is therefore FFA-LoRA from an orthonormal
    A. Moments of the local optimizer belong to the old basis: leave them reset in every round, as they are by default.

    Traffic: per pair r d_out up; down r (d_out + d_in) where A is new to the hospital, with period 1 in every round,
    and r d_out elsewhere (:mod:`~wardround.aggregators.one_factor`); with a longer period a hospital keeps A.

    Args:
        period: Rounds from one split to the next, at least 1. A round to which nobody comes (Poisson sampling) counts,
            and has no split.

    Example:
        >>> FedSvd(period=0)
        Traceback (most recent call last):
        ...
        ValueError: period: expected an integer of at least 1, got 0

    Source: FedSVD, arXiv 2505.12805, and its released code (seanie12/fed-svd).

    Differs from the released code in: low-rank route instead of the SVD of the dense product, signs fixed; only B
    travels upward, where the code also sends differences of A that are zero; no warm-up before the first split; no
    differential privacy of its own (a mean is all the server needs, so that noise can be added to it).
    """

    period: int = 1

    def __post_init__(self) -> None:
        check_integer(1, period=self.period)

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values. Raises ValueError without pairs, and when hospitals have different ranks."""
        check_pairs(setting)
        return first_state(setting, setting.trainable)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """B and the dense tensors train; A goes with them until the hospital has it."""
        return train_one(server, hospital, "B")

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The mean of B and of the dense tensors, and a new split when it is time."""
        after = average_one(server, updates, "B").server
        if after.round % self.period == 0:
            after = _split_anew(after, rng)
        return Aggregated(server=after)


def _split_anew(server: ServerState, rng: Streams) -> ServerState:
    """The same products with orthonormal rows of A, which nobody has yet."""
    products = decomposed({pair: folded(server.tensors, pair) for pair in server.setting.layout.pairs})
    pairs = factors(server, products, "left", rng)
    nobody = torch.zeros_like(server.memory["has/A"])
    return replace(server, tensors={**server.tensors, **pairs}, memory={**server.memory, "has/A": nobody})
