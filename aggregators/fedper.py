"""FedPer: the head stays at the hospital (Arivazhagan et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from .contract import Download, HospitalInfo, Layout, LocalRule, ServerState, Setting, Streams, Tensors
from .fedavg import FedAvg
from .personal import KeepPersonal, share_all_but, with_personal


@dataclass(frozen=True, kw_only=True)
class FedPer(FedAvg):
    """FedAvg over the body; every hospital has a head of its own, trained together with the body.

    ::

        (body_k, head_k) <- train F_k from (body, head_k),    body <- sum_k p_k body_k

    The head is what the layout calls so; for SAM: upscaler, hypernetworks and mask tokens of the mask decoder. All
    hospitals start from the same head. A site never seen gets that initial head, which nobody trained: what it is
    evaluated with is a trained body under an untrained head.

    On low-rank pairs, which belong to the body, the server averages factors, as FedAvg does: the result depends on the
    choice of the factors (the gauge), and hospitals need one rank.

    Traffic: per pair r (d_out + d_in) up and r (d_out + d_in) down, as FedAvg; nothing for the head.

    Source: Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv 1912.00818, Algorithms 1 and 2.

    Differs from the paper in: the common initial head is part of what every hospital installs and is not sent; the
    paper's weights by examples are whatever the run sets.
    """

    @property
    def rule(self) -> LocalRule:
        """Training of body and head together."""
        return KeepPersonal()

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values.

        Raises:
            ValueError: the layout has no head or nothing else, or hospitals have different ranks.
        """
        check_head(setting.layout)
        return super().init(setting, rng)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """The body, the same for all."""
        return share_all_but(server, head_of(server.setting.layout))

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The body under the hospital's head; under the initial one where there is none yet."""
        return with_personal(server, memory)


def head_of(layout: Layout) -> tuple[str, ...]:
    """Names of the head's tensors, in model order."""
    return tuple(name for name in layout.names if layout.part[name] == "head")


def check_head(layout: Layout) -> None:
    """Raises ValueError where the trainable tensors hold no head to keep, or no body to share."""
    head = set(head_of(layout))
    if not head:
        raise ValueError(
            "expected a head to keep at the hospitals, got a method that trains none: use one that trains the head "
            "of the mask decoder (flap_sam, decoder), or fedavg"
        )
    if head == set(layout.names):
        raise ValueError(
            "expected a body to share, got a method that trains the head alone, so that nothing would travel: use one "
            "that trains more (flap_sam, decoder), or the aggregator local"
        )
