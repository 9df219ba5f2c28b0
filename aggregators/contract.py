"""What an aggregator is: the types that cross the wall between the server and a hospital.

An algorithm of this folder is two halves in one file: the server's half (:class:`Aggregator`) and the hospital's half
(:class:`LocalRule`). Both are made of pure functions over visible, serialisable state. Nothing here knows the model,
the data or the optimizer; tensors are addressed by name, and :class:`Layout` says what each name is, so that no
algorithm ever looks for substrings in names.

Legend: K hospitals, R rank, ``W[rows] += scale(R) * B @ A`` with A (R, d_in) and B (d_out, R).

This module imports torch only.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Shape = tuple[int, ...]

Streams = Callable[..., torch.Generator]
"""Randomness as an argument: ``rng("init", name)`` gives a fresh CPU generator for those keys, the same one every time.

A factory of keyed streams instead of one generator: a tensor added to the model then shifts nobody else's draws.
"""

Part = Literal["encoder", "prompt_encoder", "decoder", "head"]
Kind = Literal["weight", "bias", "norm", "token", "position", "prompt", "lora_A", "lora_B", "core"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One low-rank pair: ``W[rows] += scale(rank) * B @ A`` on the frozen weight ``base``.

    Args:
        A: Name of the (rank, d_in) factor.
        B: Name of the (d_out, rank) factor.
        base: Name of the frozen weight the product is added to.
        rows: ``(first, last + 1)`` rows of ``base`` when it is a fused projection (q or v of SAM's qkv), else None.
        alpha: Numerator of the scale.
        power: The scale is ``alpha / rank**power``: 0 constant (FLAP-SAM), 1 LoRA, 0.5 rsLoRA.
    """

    A: str
    B: str
    base: str
    rows: tuple[int, int] | None = None
    alpha: float = 1.0
    power: float = 0.0

    @property
    def slice(self) -> builtins.slice:
        """The rows as an index: ``weight[pair.slice]`` is what the product is added to."""
        return slice(None) if self.rows is None else slice(*self.rows)

    def scale(self, rank: int) -> float:
        """The factor in front of ``B @ A`` for a hospital of this rank."""
        return float(self.alpha / rank**self.power)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What every trainable name is. The only way an algorithm learns about structure.

    Args:
        pairs: The low-rank pairs, in model order.
        dense: Names of all other trainable tensors, in model order.
        part: Part of the model per name; ``head`` holds what makes the output (SAM: upscaler, hypernetworks, mask
            tokens).
        kind: Role of the tensor per name; ``core`` is the small trained matrix between two frozen factors (LoRA-SB).
        groups: Names that a schedule draws together (:mod:`~wardround.aggregators.scheduled`), one attention block
            each, in model order; empty: everything trains in every round.
    """

    pairs: tuple[Pair, ...]
    dense: tuple[str, ...]
    part: Mapping[str, Part]
    kind: Mapping[str, Kind]
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every trainable name: A and B of each pair, then the dense ones."""
        factors = tuple(name for pair in self.pairs for name in (pair.A, pair.B))
        return factors + self.dense


@dataclass(frozen=True, kw_only=True)
class HospitalInfo:
    """What the server knows of a hospital: its name, its number of training windows, its LoRA rank (None: no pairs)."""

    name: str
    num_examples: int
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything an aggregator may look at once, before round 1.

    Args:
        trainable: Initial value of every trainable tensor, pairs at the largest rank of the federation.
        layout: What those names are.
        hospitals: All hospitals, sorted by name.
        optimizer: Name of the local optimizer (``adamw``, ``sgd``): some algorithms are defined for one only.
        momentum: Its momentum, 0 where it has none.
        frozen: Shape of every frozen weight that a pair is added to: the shape of its entry in ``ServerState.base``.
        cohort_size: Hospitals of a round, where the experiment fixes their number; None: all of them, or another number
            in every round.
    """

    trainable: Tensors
    layout: Layout
    hospitals: tuple[HospitalInfo, ...]
    optimizer: str = "adamw"
    momentum: float = 0.0
    frozen: Mapping[str, Shape] = field(default_factory=dict)
    cohort_size: int | None = None

    @property
    def rank(self) -> int | None:
        """The largest rank of the federation, None without low-rank pairs."""
        pairs = self.layout.pairs
        return self.trainable[pairs[0].A].shape[0] if pairs else None


@dataclass(frozen=True, kw_only=True)
class Download:
    """What one hospital is handed at the start of a round, and what it is told to send back.

    Args:
        start: Value of every trainable tensor the hospital cannot take from its own memory.
        train: Names that may change.
        returns: Name and shape of every tensor the server expects back.
        extra: Further tensors for the rule (a server control variate), which are no model weights.
        returns_extra: Name and shape of every further tensor expected back.
        sent: What would travel over a network; None: ``start`` and ``extra``.
        layout: What the names are, where the rule has to know (a penalty on the products of pairs). Not counted as
            traffic: it never changes, and every hospital can tell it from the model it has.
    """

    start: Tensors
    train: tuple[str, ...]
    returns: Mapping[str, Shape]
    extra: Tensors = field(default_factory=dict)
    returns_extra: Mapping[str, Shape] = field(default_factory=dict)
    sent: Tensors | None = None
    layout: Layout | None = None

    @property
    def traffic(self) -> Tensors:
        """The tensors whose bytes the ledger counts."""
        if self.sent is not None:
            return self.sent
        return {**self.start, **{f"extra.{name}": value for name, value in self.extra.items()}}


Penalty = Callable[[Tensors, Tensors], Tensor]
Correction = Callable[[Tensors, Tensors], Tensors]
Contrast = Callable[[Tensor, Mapping[str, Tensor], Tensors], Tensor]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of local training. Most rules have one; FedRep has two (head, body), Ditto two (global, personal).

    Args:
        train: Names that are trained in this phase; a subset of ``Download.train`` and of personal names.
        start: Values to start from; None: where the previous phase ended (the download, for the first).
        epochs: Passes over the hospital's windows; None: as configured; 0: train nothing.
        measure: Measure the mean training loss before the phase (one more pass without gradient).
        record_gradient: Return the learning-rate-weighted mean of the raw gradients (before ``correct`` and clipping).
        context: Tensors the three functions below see: the anchor of a proximal term, control variates.
        penalty: ``penalty(trained tensors, context)``: a scalar added to the loss.
        correct: ``correct(gradients, context)``: the gradients to use instead.
        references: Named parameter sets; the features they give on each batch are handed to ``contrast``.
        contrast: ``contrast(features (B, D), {reference: features (B, D)}, context)``: a scalar added to the loss
            (MOON).
        stackable: False when several hospitals must not share one step.
    """

    train: tuple[str, ...]
    start: Tensors | None = None
    epochs: float | None = None
    measure: bool = False
    record_gradient: bool = False
    context: Tensors = field(default_factory=dict)
    penalty: Penalty | None = None
    correct: Correction | None = None
    references: Mapping[str, Tensors] = field(default_factory=dict)
    contrast: Contrast | None = None
    stackable: bool = True


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a phase left behind.

    Args:
        tensors: Value of every trainable tensor at the end of the phase.
        learning_rates: Those of the optimizer steps taken, in order.
        momentum: Of the local optimizer, 0 where it has none.
        mean_loss: Mean loss over the steps, None when no step was taken.
        mean_gradient: ``sum(lr * gradient) / sum(lr)`` of the trained names, when the phase asked for it.
        loss_before: Mean loss over all training windows, not augmented, before the phase, when it asked for it.
    """

    tensors: Tensors
    learning_rates: tuple[float, ...]
    momentum: float = 0.0
    mean_loss: float | None = None
    mean_gradient: Tensors | None = None
    loss_before: float | None = None

    @property
    def num_steps(self) -> int:
        """Optimizer steps taken."""
        return len(self.learning_rates)

    @property
    def sum_lr(self) -> float:
        """Sum of the learning rates of those steps."""
        return sum(self.learning_rates)


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """What a hospital does with its fits: ``tensors`` and ``extra`` are sent, ``memory`` stays for its next round."""

    tensors: Tensors
    extra: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


class LocalRule(Protocol):
    """The hospital's half of an algorithm. ``memory`` is what :meth:`finish` returned last time, empty at first."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """What to fit, in order."""
        ...

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """What to send and what to remember."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """What arrives at the server from one hospital.

    Args:
        hospital: Its name.
        weight: Its weight, not normalised, set by one function of the simulator; the only field a mean may use.
        num_examples: Training windows of the hospital.
        num_steps: Optimizer steps it took.
        tensors: Values (not differences) of the announced tensors.
        extra: The announced further tensors.
        metrics: What the rule reports (``loss_before`` of q-FedAvg).
        bytes: Bytes that travelled, after compression where there is any.
        senders: Hospitals it stands for, where it is a mean over several; empty: the one it is from. It says who has
            what the server sent (:mod:`~wardround.aggregators.scheduled`); no step may depend on it.
    """

    hospital: str
    weight: float
    num_examples: int
    num_steps: int
    tensors: Tensors
    extra: Tensors = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    bytes: int = 0
    senders: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """All the server knows between two rounds. Round, tensors, base and memory go into the checkpoint.

    Args:
        setting: What :meth:`Aggregator.init` was given (layout, hospitals, initial values). It never changes, so it is
            not saved: a resumed run puts the saved fields into the state that ``init`` makes.
        round: Rounds aggregated so far.
        tensors: The global value of the shared trainable tensors.
        base: fp32 changes to frozen weights: the weight in use is always ``pristine + base[name]``.
        memory: Anything else (momentum, control variates).
    """

    setting: Setting
    round: int
    tensors: Tensors
    base: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """The new server state, what there is to say about the step, and bytes of further exchanges per hospital."""

    server: ServerState
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    extra_bytes_up: int = 0
    extra_bytes_down: int = 0


class Aggregator(Protocol):
    """The server's half of an algorithm: a frozen dataclass of hyper-parameters with four pure methods.

    ``consumes`` is ``"sum"`` when a weighted mean of the updates is all that is needed; differential privacy and secure
    aggregation hand the aggregator one such mean and accept no other kind.
    """

    @property
    def consumes(self) -> Literal["sum", "updates"]:
        """What :meth:`aggregate` needs to see."""
        ...

    @property
    def uses_weights(self) -> bool:
        """Whether the result depends on the weights of the updates; False: robust weights cannot protect it."""
        ...

    @property
    def rule(self) -> LocalRule:
        """The hospital's half."""
        ...

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """The state before round 1. Raises ValueError where the algorithm cannot work in this setting."""
        ...

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """What this hospital gets in the coming round and what it must send back.

        A function of the state alone: what is random about it is drawn before, and kept in ``server.memory``.
        """
        ...

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The next state from the checked updates, which come sorted by hospital name."""
        ...

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """All trainable tensors of the model that is evaluated at a hospital; None: a site never seen."""
        ...
