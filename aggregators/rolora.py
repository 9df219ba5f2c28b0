"""RoLoRA: the factors take turns, one round each (Chen et al., 2024, 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .contract import Aggregated, ClientUpdate, Download, HospitalInfo, ServerState, Setting, Streams
from .fedavg import FedAvg
from .one_factor import Factor, average_one, check_pairs, first_state, train_one

TURN = "turn/A"
"""Memory of the server: whether the coming round trains A."""


@dataclass(frozen=True, kw_only=True)
class RoLora(FedAvg):
    """In odd rounds B trains and A is frozen, in even rounds A trains and B is frozen; the trained one is averaged.

    Rounds are counted that had an update: where nobody came (Poisson sampling), the turn is still to be taken.

    ::

        odd round:   B <- sum_k p_k B_k        (A common)
        even round:  A <- sum_k p_k A_k        (B common)

    In every round the frozen factor is the same everywhere, so that the mean of the products is the product of the
    mean, exactly. Both factors get to learn, each in half of the rounds. The first round trains B: while B is zero, A
    has no gradient.

    Traffic: per pair, up ``r d_out`` in odd and ``r d_in`` in even rounds. Down: what was averaged in the round before,
    ``r d_in`` in odd and ``r d_out`` in even rounds, to a hospital that took part in it, which already has the other
    factor; ``r (d_out + d_in)`` to all others and in round 1 (:mod:`~wardround.aggregators.one_factor`).

    A hospital keeps the factor that was frozen.

    Source: Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", arXiv 2502.01755
    and 2409.02346.

    Differs from the paper in: dense tensors train and are averaged in every round. No official code was found to
    compare with.
    """

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values. Raises ValueError without pairs, and when hospitals have different ranks."""
        check_pairs(setting)
        first = first_state(setting, setting.trainable)
        return replace(first, memory={**first.memory, TURN: torch.tensor(False)})

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """The factor of the coming round and the dense tensors train."""
        return train_one(server, hospital, _turn(server))

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The mean of the factor of this round and of the dense tensors."""
        after = average_one(server, updates, _turn(server)).server
        return Aggregated(server=replace(after, memory={**after.memory, TURN: ~server.memory[TURN]}))


def _turn(server: ServerState) -> Factor:
    """The factor that trains in the coming round."""
    return "A" if server.memory[TURN] else "B"
