"""FedAvg and FedIT: the element-wise mean of everything (McMahan et al., 2017; Zhang et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from .arithmetic import check_equal_ranks, shapes_of, weighted_mean
from .contract import (
    Aggregated,
    ClientUpdate,
    Download,
    HospitalInfo,
    LocalRule,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from .plain import PlainTraining


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """The weighted mean of every tensor, element by element.

    ::

        theta <- sum_k p_k theta_k,    p_k = w_k / sum_j w_j over the hospitals that sent the tensor

    On low-rank pairs this averages the factors, ``B = sum_k p_k B_k`` and ``A = sum_k p_k A_k``: it is FedIT, and the
    table has it under that name too. The product of the means is not the mean of the products: ``s B A`` misses
    ``sum_k p_k s B_k A_k`` by s times the weighted covariance ``sum_k p_k (B_k - B)(A_k - A)``, which is zero when the
    hospitals share a factor.

    Example:
        >>> from wardround.aggregators import AGGREGATORS
        >>> AGGREGATORS["fedit"] is AGGREGATORS["fedavg"] is FedAvg
        True

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv
    1602.05629, Algorithm 1; on LoRA factors: Zhang et al., "Towards Building the Federated GPT: Federated Instruction
    Tuning", arXiv 2305.05644.

    Differs from the papers in: the weights are whatever the run sets (examples by default), normalised over the
    hospitals that took part.
    """

    consumes: ClassVar[Literal["sum", "updates"]] = "sum"  # a mean is all it needs
    uses_weights: ClassVar[bool] = True  # its mean is weighted

    @property
    def rule(self) -> LocalRule:
        """Plain training."""
        return PlainTraining()

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values. Raises ValueError when hospitals have different ranks."""
        check_equal_ranks(setting)
        return ServerState(setting=setting, round=0, tensors=dict(setting.trainable))

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything, the same for all."""
        return Download(
            start=server.tensors,
            train=server.setting.layout.names,
            returns=shapes_of(server.tensors),
        )

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The mean of every tensor; a tensor nobody sent stays."""
        tensors = {**server.tensors, **weighted_mean(updates)}
        return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors))

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The global model, the same everywhere."""
        return server.tensors
