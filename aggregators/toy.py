"""A toy federation: a few tensors, quadratic losses, and a small trainer that runs any local rule.

It stands in for model, data and engine where an algorithm is tested (:mod:`~wardround.aggregators.testing`) or
explained. Hospital k wants the effective weights of its model at a target of its own::

    F_k = 1/2 sum_W ||base_W + sum_pairs s B A - T_k,W||^2 + 1/2 sum_theta ||theta - t_k,theta||^2
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .arithmetic import effective
from .checks import check_download, check_server_state, check_updates
from .contract import (
    Aggregated,
    Aggregator,
    ClientUpdate,
    Download,
    Fit,
    HospitalInfo,
    Layout,
    LocalResult,
    LocalRule,
    Pair,
    Phase,
    ServerState,
    Setting,
    Shape,
    Tensors,
)

SEED = 20240731
STEPS_PER_EPOCH = 4
LR = 0.05

FROZEN: dict[str, Shape] = {"encoder.qkv": (36, 16), "decoder.q": (6, 10)}
DENSE: dict[str, Shape] = {
    "encoder.norm.weight": (5,),
    "encoder.norm.bias": (5,),
    "decoder.token": (2, 4),
    "head.weight": (3, 4),
    "head.bias": (3,),
}
LAYOUT = Layout(
    pairs=(
        Pair(A="encoder.q.A", B="encoder.q.B", base="encoder.qkv", rows=(0, 12), alpha=2.0, power=1.0),
        Pair(A="encoder.v.A", B="encoder.v.B", base="encoder.qkv", rows=(24, 36), alpha=2.0, power=1.0),
        Pair(A="decoder.q.A", B="decoder.q.B", base="decoder.q", alpha=2.0, power=1.0),
    ),
    dense=tuple(DENSE),
    part={
        **{f"encoder.{factor}": "encoder" for factor in ("q.A", "q.B", "v.A", "v.B", "norm.weight", "norm.bias")},
        **{f"decoder.{name}": "decoder" for name in ("q.A", "q.B", "token")},
        **{f"head.{name}": "head" for name in ("weight", "bias")},
    },
    kind={
        **{f"{place}.A": "lora_A" for place in ("encoder.q", "encoder.v", "decoder.q")},
        **{f"{place}.B": "lora_B" for place in ("encoder.q", "encoder.v", "decoder.q")},
        "encoder.norm.weight": "norm",
        "encoder.norm.bias": "norm",
        "decoder.token": "token",
        "head.weight": "weight",
        "head.bias": "bias",
    },
)
"""Two pairs on rows of one fused weight, one on a whole weight; a scale that depends on the rank; three parts."""


def streams(*words: str | int) -> torch.Generator:
    """A CPU generator for these words: randomness as the simulator hands it out."""
    digest = hashlib.sha256(repr((SEED, *words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True, kw_only=True)
class World:
    """A federation of hospitals with quadratic losses.

    Args:
        setting: As an aggregator gets it.
        targets: Per hospital, the effective weights it wants: by frozen weight and by dense name.
    """

    setting: Setting
    targets: Mapping[str, Tensors]

    def model(self, tensors: Tensors, base: Tensors) -> dict[str, Tensor]:
        """What the tensors amount to: the change of every frozen weight, and the dense tensors."""
        layout = self.setting.layout
        some = tensors[layout.names[0]]
        result = {name: base.get(name, some.new_zeros(shape)) for name, shape in self.setting.frozen.items()}
        for pair in layout.pairs:
            change = result[pair.base].clone()
            change[pair.slice] += effective(tensors, pair)
            result[pair.base] = change
        return {**result, **{name: tensors[name] for name in layout.dense}}

    def loss(self, hospital: str, tensors: Tensors, base: Tensors) -> Tensor:
        """F_k, a scalar."""
        model = self.model(tensors, base)
        return sum(
            (0.5 * (model[name] - target).square().sum() for name, target in self.targets[hospital].items()),
            start=torch.zeros(()),
        )

    def hospital(self, name: str) -> HospitalInfo:
        """A hospital by name."""
        return next(hospital for hospital in self.setting.hospitals if hospital.name == name)


def make_world(
    ranks: Sequence[int] = (2, 2, 2),
    dtype: torch.dtype = torch.float64,
    optimizer: str = "sgd",
    groups: tuple[tuple[str, ...], ...] = (),
) -> World:
    """A world with one hospital per rank, all different, with 3, 4, 5, ... examples.

    Args:
        ranks: LoRA rank per hospital.
        dtype: Of every tensor.
        optimizer: What the setting says of the local optimizer; the trainer always takes plain gradient steps.
        groups: Of the layout, for a schedule.
    """
    names = [f"hospital-{number:02d}" for number in range(1, len(ranks) + 1)]
    hospitals = [
        HospitalInfo(name=name, num_examples=number + 3, rank=ranks[number]) for number, name in enumerate(names)
    ]
    setting = Setting(
        trainable=_initial(max(ranks), dtype),
        layout=replace(LAYOUT, groups=groups),
        hospitals=tuple(hospitals),
        optimizer=optimizer,
        frozen=FROZEN,
    )
    return World(setting=setting, targets={name: _target(name, dtype) for name in names})


def _initial(rank: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A row by row random, B zero, dense tensors random."""
    tensors = {}
    for pair in LAYOUT.pairs:
        d_out, d_in = FROZEN[pair.base]
        d_out = d_out if pair.rows is None else pair.rows[1] - pair.rows[0]
        tensors[pair.A] = torch.randn(rank, d_in, generator=streams(pair.A), dtype=torch.float64) / math.sqrt(d_in)
        tensors[pair.B] = torch.zeros(d_out, rank)
    for name, shape in DENSE.items():
        tensors[name] = torch.randn(shape, generator=streams(name), dtype=torch.float64)
    return {name: tensors[name].to(dtype) for name in LAYOUT.names}


def _target(hospital: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """A common part and one of the hospital's own."""

    def draw(name: str, shape: Shape) -> Tensor:
        common = torch.randn(shape, generator=streams("target", name), dtype=torch.float64)
        own = torch.randn(shape, generator=streams("target", name, hospital), dtype=torch.float64)
        size = 0.25 if name in FROZEN else 1.0  # small enough for the step size
        return (size * (common + 0.5 * own)).to(dtype)

    return {name: draw(name, shape) for name, shape in {**FROZEN, **DENSE}.items()}


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What came of a hospital's turn."""

    result: LocalResult
    num_steps: int


def take_turn(
    rule: LocalRule, world: World, hospital: str, download: Download, memory: Tensors, base: Tensors, epochs: float = 1
) -> Turn:
    """Runs the phases of a rule at one hospital, as the engine does, with plain gradient steps.

    Args:
        rule: The hospital's half.
        world: Gives the loss.
        hospital: Name of the hospital.
        download: What it was handed.
        memory: What it remembers.
        base: Changes to frozen weights in this round.
        epochs: As configured; 0: nobody trains, whatever the rule asks for.
    """
    values, fits = dict(download.start), []
    for phase in rule.phases(download, memory):
        values |= phase.start or {}
        missing = sorted(set(world.setting.layout.names) - values.keys())
        if missing:
            raise ValueError(f"nobody gave {hospital!r} a value of {missing}: neither the download nor the phase")
        fit = _fit(world, hospital, values, phase, base, epochs)
        values = dict(fit.tensors)
        fits.append(fit)
    return Turn(result=rule.finish(download, fits, memory), num_steps=sum(fit.num_steps for fit in fits))


def _fit(world: World, hospital: str, start: Tensors, phase: Phase, base: Tensors, epochs: float) -> Fit:
    unknown = sorted(set(phase.train) - set(world.setting.layout.names))
    if unknown:
        raise ValueError(f"the phase trains {unknown}, which are no trainable names")
    tensors = {name: value.detach().clone() for name, value in start.items()}
    trained = {name: tensors[name].requires_grad_() for name in phase.train}
    passes = 0 if epochs == 0 else epochs if phase.epochs is None else phase.epochs
    lrs = [LR / (1 + step) for step in range(math.ceil(passes * STEPS_PER_EPOCH))]
    recorded = {name: torch.zeros_like(value) for name, value in trained.items()}
    before = world.loss(hospital, start, base).item()
    losses = []
    for lr in lrs:
        loss = _objective(world, hospital, tensors, trained, phase, base)
        losses.append(loss.item())
        _step(trained, torch.autograd.grad(loss, list(trained.values()), materialize_grads=True), phase, lr, recorded)
    ended = {name: value.detach() for name, value in tensors.items()}
    return Fit(
        tensors=ended,
        learning_rates=tuple(lrs),
        mean_loss=sum(losses) / len(losses) if losses else None,
        mean_gradient={n: v / max(sum(lrs), 1e-30) for n, v in recorded.items()} if phase.record_gradient else None,
        loss_before=before if phase.measure else None,
    )


@torch.no_grad()
def _step(
    trained: Tensors, gradients: Sequence[Tensor], phase: Phase, lr: float, recorded: Mapping[str, Tensor]
) -> None:
    """One gradient step in place; the raw gradients are added to ``recorded``."""
    used = dict(zip(trained, gradients, strict=True))
    for name, gradient in used.items():
        recorded[name].add_(gradient, alpha=lr)
    if phase.correct is not None:
        used = {**used, **phase.correct(used, phase.context)}
    for name, value in trained.items():
        value.sub_(used[name], alpha=lr)


def _objective(world: World, hospital: str, tensors: Tensors, trained: Tensors, phase: Phase, base: Tensors) -> Tensor:
    loss = world.loss(hospital, tensors, base)
    if phase.penalty is not None:
        loss = loss + phase.penalty(trained, phase.context)
    if phase.contrast is not None:
        others = {name: features(world, values, base).detach() for name, values in phase.references.items()}
        loss = loss + phase.contrast(features(world, tensors, base), others, phase.context)
    return loss


def features(world: World, tensors: Tensors, base: Tensors) -> Tensor:
    """(B, D) features of a fixed batch under the effective weights of the decoder."""
    weight = world.model(tensors, base)["decoder.q"]
    batch = torch.randn(7, weight.shape[1], generator=streams("batch"), dtype=torch.float64).to(weight)
    return torch.tanh(batch @ weight.mT)


Memories = Mapping[str, Tensors]


def initial_state(aggregator: Aggregator, world: World) -> ServerState:
    """The state before round 1."""
    return aggregator.init(world.setting, partial(streams, "server"))


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round and all that crossed the wall in it."""

    before: ServerState
    downloads: Mapping[str, Download]
    updates: tuple[ClientUpdate, ...]
    memories: Memories
    aggregated: Aggregated

    @property
    def after(self) -> ServerState:
        """The state after the round."""
        return self.aggregated.server


def run_round(
    aggregator: Aggregator,
    world: World,
    server: ServerState,
    memories: Memories | None = None,
    cohort: Sequence[str] | None = None,
    epochs: float = 1,
) -> Round:
    """One round with the checks of the engine.

    Args:
        aggregator: Both halves.
        world: The federation.
        server: The state before the round.
        memories: What hospitals remember, by name.
        cohort: Who takes part, sorted; None: all.
        epochs: 0: nobody trains.
    """
    number = server.round + 1
    cohort = [hospital.name for hospital in world.setting.hospitals] if cohort is None else cohort
    downloads, updates, kept = {}, [], dict(memories or {})
    for name in cohort:
        download = aggregator.broadcast(server, world.hospital(name))
        check_download(download, world.setting.layout, hospital=name, round_number=number)
        turn = take_turn(aggregator.rule, world, name, download, kept.get(name, {}), server.base, epochs)
        downloads[name], kept[name] = download, turn.result.memory
        updates.append(_update(world.hospital(name), turn))
    check_updates(number, downloads, updates)
    aggregated = aggregator.aggregate(server, updates, partial(streams, "aggregate", number))
    check_server_state(aggregated.server)
    return Round(before=server, downloads=downloads, updates=tuple(updates), memories=kept, aggregated=aggregated)


def _update(hospital: HospitalInfo, turn: Turn) -> ClientUpdate:
    return ClientUpdate(
        hospital=hospital.name,
        weight=float(hospital.num_examples),
        num_examples=hospital.num_examples,
        num_steps=turn.num_steps,
        tensors=turn.result.tensors,
        extra=turn.result.extra,
        metrics=turn.result.metrics,
    )
