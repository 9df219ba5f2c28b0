"""FLAP-SAM: mean of the dense tensors, mean of the products of the low-rank pairs (Asokan et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from .arithmetic import shapes_of, weighted_mean
from .contract import (
    Aggregated,
    ClientUpdate,
    Download,
    HospitalInfo,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from .fedavg import FedAvg
from .lowrank import Split, check_split
from .products import factors, for_rank, ideal_means


@dataclass(frozen=True, kw_only=True)
class FlapSam(FedAvg):
    """Mean of the dense tensors; per low-rank pair the mean of the products, cut to the rank of the federation.

    ::

        M = sum_k p_k s_k B_k A_k = U S V^T,    B <- U_r / s,  A <- S_r V_r^T     (split "right")

    M is the ideal mean. What comes out is its best approximation of rank r, so that no aggregator that sends one pair
    of rank r can be closer. The decomposition goes through QR of the stacked factors and does not form M while their
    ranks are small (:mod:`~wardround.aggregators.lowrank`). A hospital of lower rank gets the first of the ordered
    directions.

    How much the cut loses is measured by :mod:`~wardround.aggregators.instruments`.

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
    instead of constants in the source; the scale of a pair is a fixed number, folded into the product (there, tensors
    called scale stay at the hospitals: here are none); hospitals may have different ranks;
    directions in which M is zero are filled so that they can still learn
    (:func:`~wardround.aggregators.lowrank.resplit`).
    """

    split: Split = "right"
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # the products of the single hospitals are needed

    def __post_init__(self) -> None:
        check_split(self.split)

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values as they are (B zero, A random)."""
        return ServerState(setting=setting, round=0, tensors=dict(setting.trainable))

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything; pairs at the hospital's rank."""
        start = for_rank(server, hospital)
        return Download(
            start=start,
            train=server.setting.layout.names,
            returns=shapes_of(start),
        )

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """Mean on dense tensors, product average and SVD on pairs."""
        layout = server.setting.layout
        dense = weighted_mean(updates, layout.dense)
        pairs = factors(server, ideal_means(updates, layout.pairs), self.split, rng)
        return Aggregated(server=replace(server, round=server.round + 1, tensors={**server.tensors, **dense, **pairs}))

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The global model, at the hospital's rank; at full rank for a site never seen."""
        return for_rank(server, hospital)
