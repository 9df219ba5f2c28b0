"""Local training: one phase of a hospital's round, from the windows to the fitted tensors.

The loop never waits for the device: losses are kept there and checked once, after the phase.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..aggregators.contract import Fit, Phase, Streams, Tensors
from ..datasets.augment import Augmentation
from ..datasets.examples import Examples
from .batches import Batch, Kept, draws, feed, in_order
from .losses import Loss, SegmentationLoss
from .optimizers import SGD, AdamW, Schedule
from .replica import Replica


@dataclass(frozen=True, kw_only=True)
class Training:
    """How every hospital trains in a round.

    Args:
        epochs: Passes over the hospital's windows per round, > 0; a part of an epoch ends early.
        steps: Optimizer steps per round instead of ``epochs``, >= 1; further epochs begin as needed.
        batch_size: Windows per step, >= 1.
        optimizer: ``adamw`` or ``sgd`` with its settings.
        schedule: Learning rate over the hospital's own steps. A phase with a number of epochs of its own (the head of
            FedRep) goes through it at the pace of the others: rounds, not its steps, use it up.
        clip_norm: Largest global gradient norm, > 0; None: no clipping.
        moments: ``reset``: every round begins with a fresh optimizer; ``keep``: its state stays in the hospital.
        precision: ``bf16``: autocast around the model, while trained tensors, losses and optimizer stay in fp32;
            ``fp64``: everything in double precision, for tests.
    """

    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 6
    optimizer: AdamW | SGD = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Schedule)
    clip_norm: float | None = None
    moments: Literal["reset", "keep"] = "reset"
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"

    def __post_init__(self) -> None:
        problems = []
        if not self.epochs > 0:
            problems.append(f"epochs: expected a number above 0, got {self.epochs!r}")
        if self.steps is not None and self.steps < 1:
            problems.append(f"steps: expected at least 1, got {self.steps!r}")
        if self.batch_size < 1:
            problems.append(f"batch_size: expected at least 1, got {self.batch_size!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            problems.append(f"clip_norm: expected a number above 0, got {self.clip_norm!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def num_steps(self, phase: Phase, num_windows: int) -> int:
        """Optimizer steps of a phase: as configured, or the phase's own number of epochs."""
        per_epoch = self.steps_per_epoch(num_windows)
        if phase.epochs is not None:
            return _steps(phase.epochs, per_epoch)
        return self.steps if self.steps is not None else _steps(self.epochs, per_epoch)

    def lr(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of the hospital's step number ``step`` (from 0)."""
        return self.schedule.lr(self.optimizer.lr, step, steps_per_epoch)

    @property
    def momentum(self) -> float:
        """Of the optimizer, 0 where it has none."""
        return self.optimizer.momentum if isinstance(self.optimizer, SGD) else 0.0

    def steps_per_epoch(self, num_windows: int) -> int:
        """Batches in one pass, the short last one included."""
        return math.ceil(num_windows / self.batch_size)


class NonFiniteLossError(ValueError):
    """The loss of a batch is NaN or infinite.

    Args:
        step: Which batch, from 1 within the phase.
        value: Its loss.
        row: Whose, from 0 among the hospitals that train together.
    """

    def __init__(self, step: int, value: float, row: int = 0) -> None:
        self.step = step
        self.row = row
        super().__init__(f"the loss of batch {step} is {value}")


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """What the optimizer leaves between rounds: its own tensors per trained name, and the hospital's steps so far."""

    moments: Tensors = field(default_factory=dict)
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What all hospitals of a run share: the replica and how one trains on it.

    Args:
        replica: The model.
        training: The settings of every hospital.
        augment: What is done to a training window.
        loss: What is minimised.
        kept: What is kept of the frozen start of the model, where anything is.
    """

    replica: Replica
    training: Training
    augment: Augmentation
    loss: Loss = field(default_factory=SegmentationLoss)
    kept: Kept | None = None

    @property
    def width(self) -> int | None:
        """Windows that every training batch of a hospital is filled to; None: as drawn."""
        return self.replica.width(self.training.batch_size)


def fit(
    workplace: Workplace,
    phase: Phase,
    windows: Examples,
    state: OptimizerState,
    rng: Streams,
    lasting: Streams,
) -> tuple[Fit, OptimizerState]:
    """Runs one phase on the tensors that the replica holds now.

    Args:
        workplace: Its replica holds the start values, and the fitted ones afterwards.
        phase: What to train and how.
        windows: The hospital's N training windows.
        state: Kept optimizer moments (empty: fresh) and the steps the hospital took in this phase of earlier rounds.
        rng: Streams of this hospital, round and phase, for :func:`.batches.draws`.
        lasting: Streams of this hospital that are the same in every round, for the same.

    Returns:
        The fit (tensors on the host) and the optimizer state for the next round.

    Raises:
        NonFiniteLossError: names the batch.
    """
    replica, training = workplace.replica, workplace.training
    before = mean_loss(workplace, windows) if phase.measure else None
    step = _Step(workplace, phase, state.moments)
    lrs = learning_rates(training, phase, len(windows), state)
    drawn = draws(windows, training.batch_size, workplace.augment, len(lrs), rng, lasting)
    batches = feed(replica, ((draw,) for draw in drawn), workplace.kept, workplace.width)
    losses = [step(batch, lr) for lr, batch in zip(lrs, batches, strict=True)]
    result = Fit(
        mean_loss=finite_mean(losses),
        tensors=replica.read(),
        learning_rates=tuple(lrs),
        momentum=training.momentum,
        mean_gradient=step.mean_gradient(sum(lrs)),
        loss_before=before,
    )
    return result, OptimizerState(moments=step.moments(), steps=state.steps + len(lrs))


def learning_rates(training: Training, phase: Phase, num_windows: int, state: OptimizerState) -> list[float]:
    """The learning rate of every step of a phase, which goes on in the schedule where the last round's ended."""
    num_steps, per_epoch = training.num_steps(phase, num_windows), training.steps_per_epoch(num_windows)
    planned = training.num_steps(replace(phase, epochs=None), num_windows)  # what a round takes of the schedule
    return [training.lr((state.steps + step) * planned // num_steps, per_epoch) for step in range(num_steps)]


@torch.no_grad()
def mean_loss(workplace: Workplace, windows: Examples) -> float:
    """Mean training loss over all windows in their own order, not augmented, weighted by the windows of each batch."""
    replica, batch_size = workplace.replica, workplace.training.batch_size
    total = torch.zeros((), dtype=torch.float64, device=replica.device)
    steps = ((draw,) for draw in in_order(windows, batch_size))
    for batch in feed(replica, steps, width=replica.width(batch_size)):
        logits = replica.decode(replica.proceed(*batch.begun))
        total += _loss(workplace.loss, logits, batch) * batch.sizes[0]
    return total.item() / len(windows)


class _Step:
    """One optimizer step after the other on the tensors of a phase."""

    def __init__(self, workplace: Workplace, phase: Phase, moments: Tensors) -> None:
        replica, training = workplace.replica, workplace.training
        self.replica, self.phase, self.training, self.loss = replica, phase, training, workplace.loss
        self.trained = replica.parameters(phase.train)
        self.context = {name: replica.place(value) for name, value in phase.context.items()}
        self.references = {name: replica.padded(tensors) for name, tensors in phase.references.items()}
        self.optimizer = training.optimizer.build(self.trained.values()) if self.trained else None
        self.gradients: dict[str, Tensor] = {}
        self.earlier = moments
        self._restore(moments)

    def __call__(self, batch: Batch, lr: float) -> Tensor:
        """Takes one step; the loss stays on the device."""
        self.replica.zero_grad()
        loss = self._objective(batch)
        loss.backward()
        self._shape_gradients(lr)
        if self.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(self.trained.values()), self.training.clip_norm)
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        return loss.detach()

    def _objective(self, batch: Batch) -> Tensor:
        """The loss plus the phase's penalty and contrast."""
        embedding = self.replica.proceed(*batch.begun)
        loss = _loss(self.loss, self.replica.decode(embedding), batch)
        if self.phase.penalty is not None:
            own = {name: self.replica.narrowed(name, value) for name, value in self.trained.items()}
            loss = loss + self.phase.penalty(own, self.context)
        if self.phase.contrast is not None:
            features = batch.counted(self.replica.model.pool(embedding))
            begun = batch.counted(batch.hidden), batch.depth
            others = {name: self.replica.features_at(values, *begun) for name, values in self.references.items()}
            loss = loss + self.phase.contrast(features, others, self.context)
        return loss

    def _shape_gradients(self, lr: float) -> None:
        """Adds the raw gradients to their weighted sum, then lets the phase correct them."""
        raw = {name: value.grad for name, value in self.trained.items() if value.grad is not None}
        if self.phase.record_gradient:
            for name, gradient in raw.items():
                self.gradients[name] = self.gradients.get(name, 0.0) + lr * gradient
        if self.phase.correct is not None:
            own = {name: self.replica.narrowed(name, gradient) for name, gradient in raw.items()}
            for name, gradient in self.phase.correct(own, self.context).items():
                self.trained[name].grad = self.replica.widened(name, gradient)

    def mean_gradient(self, sum_lr: float) -> Tensors | None:
        """``sum(lr g) / sum(lr)`` per trained name, zero where no gradient ever came, at the hospital's rank."""
        if not self.phase.record_gradient:
            return None
        zero = {name: torch.zeros_like(self.replica.values[name]) for name in self.phase.train}
        sums = {**zero, **self.gradients}
        return self.replica.cropped({name: value / max(sum_lr, 1e-30) for name, value in sums.items()})

    def moments(self) -> Tensors:
        """The optimizer's tensors by ``name/key``, on the host, when they are kept; those of names not trained stay."""
        if self.training.moments == "reset" or self.optimizer is None:
            return self.earlier
        now = {
            f"{name}/{key}": torch.as_tensor(value).detach().to("cpu", copy=True)
            for name, parameter in self.trained.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if value is not None
        }
        return {**self.earlier, **now}

    def _restore(self, moments: Tensors) -> None:
        """Puts copies of kept moments onto the device."""
        for path, value in moments.items():
            name, key = path.rsplit("/", 1)
            if name not in self.trained or self.optimizer is None:
                continue
            parameter = self.trained[name]
            self.optimizer.state[parameter][key] = value.to(parameter.device, copy=True)  # it is written in place


def _steps(epochs: float, per_epoch: int) -> int:
    """Steps of so many epochs, rounded up; 1.1 epochs of 10 steps are 11, whatever 1.1 * 10 is in binary."""
    return math.ceil(round(epochs * per_epoch, 6))


def _loss(loss: Loss, logits: Tensor, batch: Batch) -> Tensor:
    """The loss of the windows of one hospital that count."""
    return loss(batch.counted(logits), batch.counted(batch.labels.flatten(0, 1)))  # labels (b * D, H, W) or (b,)


def finite_mean(losses: Sequence[Tensor], row: int = 0) -> float | None:
    """The mean of the step losses, brought to the host at once.

    Raises:
        NonFiniteLossError: names the batch, and the ``row`` of the hospital.
    """
    if not losses:
        return None
    values = torch.stack(list(losses)).double().cpu()
    for number, value in enumerate(values.tolist(), start=1):
        if not math.isfinite(value):
            raise NonFiniteLossError(number, value, row)
    return values.mean().item()
