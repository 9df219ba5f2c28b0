"""Local-only training: every hospital alone. What a federation has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from .arithmetic import at_rank
from .contract import (
    Aggregated,
    ClientUpdate,
    Download,
    Fit,
    HospitalInfo,
    LocalResult,
    LocalRule,
    Phase,
    ServerState,
    Setting,
    Streams,
    Tensors,
)


@dataclass(frozen=True, kw_only=True)
class KeepEverything:
    """One phase from where the hospital stopped last time; nothing is sent, all trainable tensors are remembered."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """From memory; in the hospital's first round from the common initial values."""
        return [Phase(train=download.train, start=memory or None)]

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """Sends nothing."""
        return LocalResult(tensors={}, memory=fits[-1].tensors)


@dataclass(frozen=True, kw_only=True)
class Local:
    """Local-only training: ``theta_k <- train(theta_k)``, nothing travels in either direction.

    Every hospital starts from the same initial values. They cost no traffic: they belong to what every hospital
    installs, as the frozen base does. A site never seen gets the initial values.

    Example:
        >>> from wardround.aggregators import AGGREGATORS
        >>> AGGREGATORS["local"]()
        Local()

    Source: the "local" baseline of FLAP-SAM, arXiv 2407.21739, against which its gain is measured.
    """

    consumes: ClassVar[Literal["sum", "updates"]] = "sum"
    uses_weights: ClassVar[bool] = False
    rule: ClassVar[LocalRule] = KeepEverything()

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values, which stay what they are."""
        return ServerState(setting=setting, round=0, tensors=dict(setting.trainable))

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """The initial values, which the hospital has; nothing travels and nothing is expected back."""
        layout = server.setting.layout
        return Download(start=at_rank(server.tensors, layout, hospital.rank), train=layout.names, returns={}, sent={})

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """Nothing but the number of the round changes."""
        return Aggregated(server=replace(server, round=server.round + 1))

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The hospital's own model; the initial values where it has none yet and at a site never seen."""
        rank = hospital.rank if hospital is not None else None
        return memory or at_rank(server.tensors, server.setting.layout, rank)
