"""Personal tensors: a part of the model that stays at the hospital, while the rest is averaged.

What FedPer, FedRep, FedBN and FedSA-LoRA share. They differ in which names are personal and in the order of training;
the server's half is FedAvg over the names that travel (:class:`PersonalMean`).

Personal tensors start from the common initial values, which cost no traffic: they belong to what every hospital
installs, as the frozen base does. From then on they live in the hospital's memory. The server keeps their initial
values untouched; they are what a site never seen gets.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .arithmetic import shapes_of
from .contract import Download, Fit, HospitalInfo, Layout, LocalResult, LocalRule, Phase, ServerState, Tensors
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class KeepPersonal:
    """One phase over all that may train; what the server does not ask back is remembered."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """The shared tensors from the download, the personal ones from memory (initial in the first round)."""
        return [Phase(train=download.train, start=memory)]

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """Sends what was announced and keeps the rest."""
        return keep_personal(download, fits[-1].tensors)


def keep_personal(download: Download, tensors: Tensors) -> LocalResult:
    """The announced tensors to send, the other trained ones to remember."""
    return LocalResult(
        tensors={name: tensors[name] for name in download.returns},
        memory={name: tensors[name] for name in personal_names(download)},
    )


def personal_names(download: Download) -> tuple[str, ...]:
    """Names that train and that the server does not ask back."""
    return tuple(name for name in download.train if name not in download.returns)


def share_all_but(server: ServerState, personal: Collection[str]) -> Download:
    """The same download for all: everything trains, and what is not personal travels both ways.

    Args:
        server: The state; its personal tensors are the initial ones, which every hospital has.
        personal: Names that stay at the hospital.
    """
    shared = {name: value for name, value in server.tensors.items() if name not in personal}
    return Download(start=server.tensors, train=server.setting.layout.names, returns=shapes_of(shared), sent=shared)


def with_personal(server: ServerState, memory: Tensors) -> Tensors:
    """The hospital's model: the server's tensors with its own in their places; without memory, the initial ones."""
    return {**server.tensors, **memory}


@dataclass(frozen=True, kw_only=True)
class PersonalMean(FedAvg):
    """FedAvg over all tensors but the personal ones, which train together with them.

    Algorithms say which are :meth:`personal`, check in ``init`` that there are some, and may override ``rule``.
    """

    def personal(self, layout: Layout) -> tuple[str, ...]:
        """Names that stay at the hospital, in model order."""
        raise NotImplementedError

    @property
    def rule(self) -> LocalRule:
        """Training of everything together."""
        return KeepPersonal()

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """All that is shared, the same for all."""
        return share_all_but(server, self.personal(server.setting.layout))

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The shared tensors with the hospital's own; with the initial ones where it has none and at an unseen site."""
        return with_personal(server, memory)
