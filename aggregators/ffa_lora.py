"""FFA-LoRA: A stays at its common initial value, B is trained and averaged (Sun et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from .contract import Aggregated, ClientUpdate, Download, HospitalInfo, Pair, ServerState, Setting, Streams
from .fedavg import FedAvg
from .lowrank import orthonormal_rows
from .one_factor import average_one, check_pairs, first_state, train_one

InitA = Literal["keep", "orthonormal"]


@dataclass(frozen=True, kw_only=True)
class FfaLora(FedAvg):
    """A is frozen at a common initial value for all rounds; B and the dense tensors train and are averaged.

    ::

        B <- sum_k p_k B_k,    so that    B A = sum_k p_k B_k A    exactly

    The row space of every update is that of the first A: half of the parameters, and a small rank is felt. The model is
    linear in B, so that noise added for differential privacy stays linear too, and the scale of the pair only changes
    the learning rate of B. It usually wants a larger learning rate than training both factors.

    Traffic: per pair ``r d_out`` up and down. A (``r d_in``) is sent once to every hospital, which keeps it: until the
    server has had an answer from it (:mod:`~wardround.aggregators.one_factor`).

    Args:
        init_a: ``keep``: A as the method draws it; ``orthonormal``: the same rows made orthonormal, one after the
            other, for a better conditioned problem in B. Needs a rank of at most d_in.

    Source: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", arXiv 2403.12313. That the scale is a
    matter of the learning rate alone is our reading, not checked against the paper.

    Differs from the paper in: dense tensors train and are averaged too; ``orthonormal`` is ours.
    """

    init_a: InitA = "keep"

    def __post_init__(self) -> None:
        if self.init_a not in get_args(InitA):
            raise ValueError(f"init_a: expected 'keep' or 'orthonormal', got {self.init_a!r}")

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values. Raises ValueError without pairs, and when hospitals have different ranks."""
        check_pairs(setting)
        tensors = dict(setting.trainable)
        if self.init_a == "orthonormal":
            tensors |= {pair.A: _orthonormal_rows(pair, tensors[pair.A]) for pair in setting.layout.pairs}
        return first_state(setting, tensors)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """B and the dense tensors train; A goes with them until the hospital has it."""
        return train_one(server, hospital, "B")

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The mean of B and of the dense tensors."""
        return average_one(server, updates, "B")


def _orthonormal_rows(pair: Pair, A: Tensor) -> Tensor:
    r, d_in = A.shape
    if r > d_in:
        raise ValueError(
            f"init_a: {pair.A!r} has {r} rows of length {d_in}, of which at most {d_in} can be orthonormal: "
            f"set a rank of at most {d_in}, or init_a: keep"
        )
    return orthonormal_rows(A)
