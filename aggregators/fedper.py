"""FedPer: the head stays at the hospital (Arivazhagan et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from .contract import Layout, ServerState, Setting, Streams
from .personal import PersonalMean


@dataclass(frozen=True, kw_only=True)
class FedPer(PersonalMean):
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

    def personal(self, layout: Layout) -> tuple[str, ...]:
        """The head."""
        return tuple(name for name in layout.names if layout.part[name] == "head")

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values.

        Raises:
            ValueError: the layout has no head or nothing else, or hospitals have different ranks.
        """
        _check_head(self.personal(setting.layout), setting.layout)
        return super().init(setting, rng)


def _check_head(head: tuple[str, ...], layout: Layout) -> None:
    if not head:
        raise ValueError(
            "expected a head to keep at the hospitals, got a method that trains none: use one that trains the head "
            "of the mask decoder (flap_sam, decoder), or fedavg"
        )
    if set(head) == set(layout.names):
        raise ValueError(
            "expected a body to share, got a method that trains the head alone, so that nothing would travel: use one "
            "that trains more (flap_sam, decoder), or the aggregator local"
        )
