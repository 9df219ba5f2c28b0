"""Small algorithms that each need something hard of the contract. They prove that it holds; they are no products.

==============  =====================================================================================
FFA             an announced subset: only B and the dense tensors train and come back
DrawnPart       another announced subset per hospital and round, drawn ahead and kept in the server's memory
FlexLoRA        mixed ranks, by a dense SVD: a reference for the low-rank kernel
FedPer          personal tensors: the head stays
FedRep          two phases: first the head, then the body
Ditto           a second, personal model, pulled towards the global one by a penalty
FedProx         a proximal term
Scaffold        control variates: further tensors in both directions, corrected gradients, memory
FLoRA           changes to frozen weights, and fresh factors drawn by name
Moon            a contrast between features of three models, one of them remembered
QFedAvg         a measured loss that enters the mean
==============  =====================================================================================

``CASES`` holds one instance of each with what it claims. Where a half is FedAvg's, its method is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wardround.aggregators import FedAvg, FlapSam
from wardround.aggregators.arithmetic import (
    effective,
    normalised_weights,
    shapes_of,
    stacked,
    weighted_mean,
    with_product,
)
from wardround.aggregators.contract import (
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
from wardround.aggregators.plain import PlainTraining
from wardround.aggregators.testing import Claims

Updates = Sequence[ClientUpdate]


def of(tensors: Tensors, names: Any) -> dict[str, Tensor]:
    return {name: tensors[name] for name in names}


def under(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def below(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


@dataclass(frozen=True, kw_only=True)
class FFA:
    """FFA-LoRA (arXiv 2403.12313): A stays at its initial value; B is trained and averaged. A travels once only."""

    consumes, rule = "sum", PlainTraining()
    init, aggregate, deploy = FedAvg.init, FedAvg.aggregate, FedAvg.deploy

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        layout = server.setting.layout
        names = (*(pair.B for pair in layout.pairs), *layout.dense)
        moving = of(server.tensors, names)
        sent = moving if server.round else server.tensors
        return Download(start=server.tensors, train=names, returns=shapes_of(moving), sent=sent)


@dataclass(frozen=True, kw_only=True)
class DrawnPart:
    """Every hospital trains either the encoder or all the rest, drawn anew for each round before it begins."""

    consumes, rule = "sum", PlainTraining()
    deploy = FedAvg.deploy

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        server = FedAvg().init(setting, rng)
        return replace(server, memory=self._draw(setting, rng))

    def _draw(self, setting: Setting, rng: Streams) -> dict[str, Tensor]:
        return {h.name: torch.randint(2, (), generator=rng("part", h.name)) for h in setting.hospitals}

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        layout, encoder = server.setting.layout, bool(server.memory[hospital.name])
        names = tuple(name for name in layout.names if (layout.part[name] == "encoder") == encoder)
        return Download(start=server.tensors, train=names, returns=shapes_of(of(server.tensors, names)))

    def aggregate(self, server: ServerState, updates: Updates, rng: Streams) -> Aggregated:
        after = FedAvg().aggregate(server, updates, rng).server
        return Aggregated(server=replace(after, memory=self._draw(server.setting, rng)))


@dataclass(frozen=True, kw_only=True)
class FlexLoRA:
    """FlexLoRA (arXiv 2402.11505) by dense NumPy SVD: ``B = U S / s``, ``A = V^T``, cut to each hospital's rank."""

    consumes, rule = "updates", PlainTraining()
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


@dataclass(frozen=True, kw_only=True)
class HeadStays:
    """One phase over everything, with the hospital's own head."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        return [Phase(train=download.train, start=memory)]

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        ended = fits[-1].tensors
        own = [name for name in download.train if name not in download.returns]
        return LocalResult(tensors=of(ended, download.returns), memory=of(ended, own))


@dataclass(frozen=True, kw_only=True)
class FedPer:
    """FedPer (arXiv 1912.00818): the head belongs to the hospital; a new site starts from the initial one."""

    consumes, rule = "sum", HeadStays()
    aggregate = FedAvg.aggregate

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        if "head" not in setting.layout.part.values():
            raise ValueError("expected a head to keep at the hospitals, got a layout without one")
        return FedAvg().init(setting, rng)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        layout = server.setting.layout
        body = of(server.tensors, [name for name in layout.names if layout.part[name] != "head"])
        return Download(start=server.tensors, train=layout.names, returns=shapes_of(body), sent=body)

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        return {**server.tensors, **memory}


@dataclass(frozen=True, kw_only=True)
class HeadThenBody:
    """Fits the head with the body frozen, then the body with the head frozen."""

    head_epochs: float = 2.0

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        head = tuple(name for name in download.train if name not in download.returns)
        return [
            Phase(train=head, start=memory, epochs=self.head_epochs),
            Phase(train=tuple(download.returns), epochs=1.0),
        ]

    finish = HeadStays.finish


@dataclass(frozen=True, kw_only=True)
class FedRep:
    """FedRep (arXiv 2102.07078): the server's half is FedPer's."""

    consumes, rule = "sum", HeadThenBody()
    init, broadcast, aggregate, deploy = FedPer.init, FedPer.broadcast, FedPer.aggregate, FedPer.deploy


def half_squared_distance(values: Tensors, anchor: Tensors) -> Tensor:
    return 0.5 * sum((value - anchor[name]).square().sum() for name, value in values.items())


@dataclass(frozen=True, kw_only=True)
class GlobalThenPersonal:
    """Plain training of the global model, then of the hospital's own one with ``lam / 2 ||v - theta||^2``."""

    lam: float

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        own = {**download.start, **memory}
        personal = Phase(train=download.train, start=own, context=download.start, penalty=self.penalty)
        return [Phase(train=download.train), personal]

    def penalty(self, trained: Tensors, anchor: Tensors) -> Tensor:
        return self.lam * half_squared_distance(trained, anchor)

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        return LocalResult(tensors=of(fits[0].tensors, download.returns), memory=fits[1].tensors)


@dataclass(frozen=True, kw_only=True)
class Ditto:
    """Ditto (arXiv 2012.04221): FedAvg beside personal models; a new site gets the global one."""

    lam: float = 0.1
    consumes = "sum"
    init, broadcast, aggregate = FedAvg.init, FedAvg.broadcast, FedAvg.aggregate

    @property
    def rule(self) -> LocalRule:
        return GlobalThenPersonal(lam=self.lam)

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        return {**server.tensors, **memory}


@dataclass(frozen=True, kw_only=True)
class Proximal:
    """Plain training with ``mu / 2 ||theta - theta_start||^2``."""

    mu: float
    finish = PlainTraining.finish

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        return [Phase(train=download.train, context=download.start, penalty=self.penalty)]

    def penalty(self, trained: Tensors, anchor: Tensors) -> Tensor:
        return self.mu * half_squared_distance(trained, anchor)


@dataclass(frozen=True, kw_only=True)
class FedProx:
    """FedProx (arXiv 1812.06127)."""

    mu: float = 0.5
    consumes = "sum"
    init, broadcast, aggregate, deploy = FedAvg.init, FedAvg.broadcast, FedAvg.aggregate, FedAvg.deploy

    @property
    def rule(self) -> LocalRule:
        return Proximal(mu=self.mu)


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """Gradients corrected by ``c - c_k``; the new ``c_k`` is the mean raw gradient; its change is sent."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        own = memory or {name: torch.zeros_like(value) for name, value in download.extra.items()}
        context = {**under("c", download.extra), **under("own", own)}
        return [Phase(train=download.train, context=context, correct=self.correct, record_gradient=True)]

    def correct(self, gradients: Tensors, context: Tensors) -> Tensors:
        return {name: g - context[f"own/{name}"] + context[f"c/{name}"] for name, g in gradients.items()}

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        new = fits[0].mean_gradient
        change = {name: new[name] - memory[name] if memory else new[name] for name in download.returns_extra}
        return LocalResult(tensors=of(fits[0].tensors, download.returns), extra=change, memory=new)


@dataclass(frozen=True, kw_only=True)
class Scaffold:
    """SCAFFOLD (arXiv 1910.06378), uniform means: ``c <- c + (1/N) sum_S (c_k+ - c_k)`` with N all hospitals."""

    consumes, rule = "updates", Controlled()
    deploy = FedAvg.deploy

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        c = {name: torch.zeros_like(value) for name, value in setting.trainable.items()}
        return replace(FedAvg().init(setting, rng), memory=c)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        return replace(
            FedAvg().broadcast(server, hospital), extra=server.memory, returns_extra=shapes_of(server.memory)
        )

    def aggregate(self, server: ServerState, updates: Updates, rng: Streams) -> Aggregated:
        uniform = [replace(update, weight=1.0) for update in updates]
        change = weighted_mean([replace(update, tensors=update.extra) for update in uniform])
        share = len(updates) / len(server.setting.hospitals)
        c = {name: value + share * change[name] for name, value in server.memory.items()}
        return Aggregated(server=replace(FedAvg().aggregate(server, uniform, rng).server, memory=c))


@dataclass(frozen=True, kw_only=True)
class FLoRA:
    """FLoRA (arXiv 2409.05976): the exact mean of the products goes into the frozen weights, and LoRA starts anew."""

    consumes, rule = "updates", PlainTraining()
    init, broadcast, deploy = FlapSam.init, FlapSam.broadcast, FlapSam.deploy

    def aggregate(self, server: ServerState, updates: Updates, rng: Streams) -> Aggregated:
        base, weights = dict(server.base), normalised_weights(updates)
        tensors = {**server.tensors, **weighted_mean(updates, server.setting.layout.dense)}
        for pair in server.setting.layout.pairs:
            B, A = stacked(updates, pair, weights)
            base = with_product(server, base, pair, B @ A)
            first = server.setting.trainable[pair.A]
            fresh = torch.randn(first.shape, generator=rng("fresh", pair.A), dtype=torch.float64)
            tensors[pair.A] = (fresh * first.std()).to(first.dtype)
            tensors[pair.B] = torch.zeros_like(server.tensors[pair.B])
        return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors, base=base))


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Features are drawn towards those of the global model and away from those of the hospital's previous one."""

    mu: float
    temperature: float

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        references = {"global": download.start, "previous": {**download.start, **memory}}
        return [Phase(train=download.train, references=references, contrast=self.contrast)]

    def contrast(self, features: Tensor, references: Mapping[str, Tensor], context: Tensors) -> Tensor:
        others = [references["global"], references["previous"]]
        cosines = torch.stack([torch.cosine_similarity(features, other, dim=-1) for other in others])  # (2, B)
        return -self.mu * torch.log_softmax(cosines / self.temperature, dim=0)[0].mean()

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        return LocalResult(tensors=of(fits[0].tensors, download.returns), memory=fits[0].tensors)


@dataclass(frozen=True, kw_only=True)
class Moon:
    """MOON (arXiv 2103.16257)."""

    mu: float = 1.0
    temperature: float = 0.5
    consumes = "sum"
    init, broadcast, aggregate, deploy = FedAvg.init, FedAvg.broadcast, FedAvg.aggregate, FedAvg.deploy

    @property
    def rule(self) -> LocalRule:
        return Contrastive(mu=self.mu, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Plain training that reports the loss at the start."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        return [Phase(train=download.train, measure=True)]

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        return replace(PlainTraining().finish(download, fits, memory), metrics={"loss_before": fits[0].loss_before})


@dataclass(frozen=True, kw_only=True)
class QFedAvg:
    """q-FedAvg (arXiv 1905.10497): ``theta - sum F^q L d / sum (q F^(q-1) ||L d||^2 + L F^q)``, d = theta - theta_k."""

    q: float = 1.0
    lipschitz: float = 1.0
    consumes, rule = "updates", Measured()
    init, broadcast, deploy = FedAvg.init, FedAvg.broadcast, FedAvg.deploy

    def aggregate(self, server: ServerState, updates: Updates, rng: Streams) -> Aggregated:
        total, h = {name: torch.zeros_like(value) for name, value in server.tensors.items()}, 0.0
        for update in updates:
            F = update.metrics["loss_before"]
            steps = {n: self.lipschitz * (value - update.tensors[n]) for n, value in server.tensors.items()}
            squared = sum(step.square().sum().item() for step in steps.values())
            h += self.q * F ** (self.q - 1) * squared + self.lipschitz * F**self.q
            total = {name: total[name] + F**self.q * step for name, step in steps.items()}
        tensors = {name: value - total[name] / h for name, value in server.tensors.items()}
        return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors))


CASES: dict[str, tuple[Any, Claims]] = {
    "ffa": (FFA(), Claims(identity="exact")),
    "drawn_part": (DrawnPart(), Claims(identity="exact")),
    "flexlora": (FlexLoRA(), Claims(gauge="invariant", ranks="mixed")),
    "fedper": (FedPer(), Claims(identity="exact", gauge="not")),
    "fedrep": (FedRep(), Claims(identity="exact", gauge="not")),
    "ditto": (Ditto(), Claims(identity="exact", gauge="not")),
    "fedprox": (FedProx(), Claims(identity="exact", gauge="not")),
    "scaffold": (Scaffold(), Claims(identity="exact", weights="uniform", gauge="not")),
    "flora": (FLoRA(), Claims(gauge="invariant", ranks="mixed")),
    "moon": (Moon(), Claims(identity="exact", gauge="not")),
    "qfedavg": (
        QFedAvg(),
        Claims(identity="none", reason="the step is shortened by its own length", weights="uniform", gauge="not"),
    ),
}
"""One instance of each, and what it claims."""
