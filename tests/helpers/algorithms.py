"""Small algorithms for tests: they are no products.

==============  =====================================================================================
DrawnPart       another announced subset per hospital and round, drawn ahead and kept in the server's memory
FlexLoRA        mixed ranks, by a dense SVD: a reference for the low-rank kernel
==============  =====================================================================================

``CASES`` holds an instance of what the registry has nothing like, with what it claims. Where a half is FedAvg's, its
method is taken as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wardround.aggregators import FedAvg, FlapSam
from wardround.aggregators.arithmetic import effective, normalised_weights, shapes_of, weighted_mean
from wardround.aggregators.contract import (
    Aggregated,
    ClientUpdate,
    Download,
    HospitalInfo,
    ServerState,
    Setting,
    Streams,
)
from wardround.aggregators.plain import PlainTraining
from wardround.aggregators.testing import Claims

Updates = Sequence[ClientUpdate]


@dataclass(frozen=True, kw_only=True)
class DrawnPart:
    """Every hospital trains either the encoder or all the rest, drawn anew for each round before it begins."""

    consumes, uses_weights, rule = "sum", True, PlainTraining()
    deploy = FedAvg.deploy

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        server = FedAvg().init(setting, rng)
        return replace(server, memory=self._draw(setting, rng))

    def _draw(self, setting: Setting, rng: Streams) -> dict[str, Tensor]:
        return {h.name: torch.randint(2, (), generator=rng("part", h.name)) for h in setting.hospitals}

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        layout, encoder = server.setting.layout, bool(server.memory[hospital.name])
        names = tuple(name for name in layout.names if (layout.part[name] == "encoder") == encoder)
        trained = {name: server.tensors[name] for name in names}
        return Download(start=server.tensors, train=names, returns=shapes_of(trained))

    def aggregate(self, server: ServerState, updates: Updates, rng: Streams) -> Aggregated:
        after = FedAvg().aggregate(server, updates, rng).server
        return Aggregated(server=replace(after, memory=self._draw(server.setting, rng)))


@dataclass(frozen=True, kw_only=True)
class FlexLoRA:
    """FlexLoRA (arXiv 2402.11505) by dense NumPy SVD: ``B = U S / s``, ``A = V^T``, cut to each hospital's rank."""

    consumes, uses_weights, rule = "updates", True, PlainTraining()
    init, broadcast, deploy = FlapSam.init, FlapSam.broadcast, FlapSam.deploy

    def aggregate(self, server: ServerState, updates: Updates, rng: Streams) -> Aggregated:
        tensors = {**server.tensors, **weighted_mean(updates, server.setting.layout.dense)}
        weights = normalised_weights(updates)
        for pair in server.setting.layout.pairs:
            mean = sum(p * effective(update.tensors, pair) for p, update in zip(weights, updates, strict=True))
            U, S, Vh = np.linalg.svd(mean.numpy(), full_matrices=False)
            rank = len(server.tensors[pair.A])
            tensors[pair.B] = torch.from_numpy(U[:, :rank] * S[:rank] / pair.scale(rank))
            tensors[pair.A] = torch.from_numpy(Vh[:rank].copy())
        tensors = {name: value.to(server.tensors[name].dtype) for name, value in tensors.items()}
        return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors))


CASES: dict[str, tuple[Any, Claims]] = {"drawn_part": (DrawnPart(), Claims(identity="exact"))}
"""What the registry does not have, and what it claims."""
