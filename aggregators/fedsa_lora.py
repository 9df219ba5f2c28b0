"""FedSA-LoRA: both factors train, A is averaged, B stays at the hospital (Guo et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .contract import Layout, ServerState, Setting, Streams
from .one_factor import check_pairs, factor_names
from .personal import PersonalMean

Head = Literal["local", "shared"]


@dataclass(frozen=True, kw_only=True)
class FedSaLora(PersonalMean):
    """Both factors of every pair train; A is averaged, B belongs to the hospital, and so does the head.

    ::

        A <- sum_k p_k A_k,    hospital k uses  W + s B_k A

    A is meant to hold what all hospitals have in common, B what is their own. There is no global model, and no ideal
    mean to be exact about. ``B_k`` was trained beside ``A_k`` and is used with the mean A: the longer hospitals train
    in a round, the worse the two fit.

    A site never seen, and a hospital that never took part, has no B and no head of its own: it gets the initial ones.
    With B = 0 this is the base model with the shared dense tensors, and a new head has learnt nothing there. Scores at
    such sites say nothing about the algorithm.

    Traffic: per pair ``r d_in`` up and down. B and a local head never travel; their initial values belong to what every
    hospital installs.

    Args:
        head: ``local``: the dense tensors of the head stay at the hospital, as in the released code; ``shared``: they
            are averaged. All other dense tensors are averaged.

    Source: Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", arXiv 2410.01463, and its
    released code (Pengxin-Guo/FedSA-LoRA), where B and the classifier are local.

    Differs from the released code in: there are dense tensors besides the head, and they are averaged.
    """

    head: Head = "local"

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise ValueError(f"head: expected 'local' or 'shared', got {self.head!r}")

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values. Raises ValueError without pairs, and when hospitals have different ranks."""
        check_pairs(setting)
        return super().init(setting, rng)

    def personal(self, layout: Layout) -> tuple[str, ...]:
        """B of every pair, and the head unless it is shared."""
        head = [name for name in layout.dense if layout.part[name] == "head"] if self.head == "local" else []
        return (*factor_names(layout, "B"), *head)
