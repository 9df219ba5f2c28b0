"""Local training of several hospitals in common steps: what :mod:`.training` does for one, for K at once.

Every hospital has its own tensors, batches, learning rates, optimizer moments and clipping; only the passes through the
model are shared. The sum of the K losses is differentiated: the tensors of a hospital have a gradient from its own loss
and from no other, so that each moves as if it were alone, up to rounding.

Hospitals come with most batches first. Those that are done leave, and the first k go on; where shapes must not change
(a compiled model) they stay, with batches that do not count, and nothing of theirs moves.

Legend: K hospitals, k of them in a step, b windows of a batch, D slices of a window, C classes, P trained numbers of a
hospital, S steps of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise, zip_longest
from types import MethodType

import torch
from torch import Tensor

from ..aggregators.contract import Fit, Phase, Streams, Tensors
from ..datasets.examples import Examples
from .batches import Batch, Draw, draws, feed, in_order
from .flat_optimizers import flat_optimizer
from .losses import Loss
from .stack import Stack
from .training import OptimizerState, Workplace, finite_mean, learning_rates


def unlike(phases: Sequence[Phase]) -> str | None:
    """Whether hospitals can go through these phases, one of each, in common steps: None, or why they cannot."""
    first = phases[0]
    for phase in phases:
        if not phase.stackable:
            return "the rule says that hospitals cannot share its steps (Phase.stackable)"
        for name in ("train", "epochs", "measure", "record_gradient"):
            if getattr(phase, name) != getattr(first, name):
                return f"Phase.{name} differs between hospitals"
        for name in ("penalty", "correct", "contrast"):
            if not _same(getattr(phase, name), getattr(first, name)):
                return f"Phase.{name} is another function at every hospital; hand what differs over in Phase.context"
        for name in ("context", "references"):
            if getattr(phase, name).keys() != getattr(first, name).keys():
                return f"Phase.{name} holds other names at every hospital"
    return None


def _same(left: object, right: object) -> bool:
    """Whether two functions of a rule do the same: methods of equal rules, and partial functions made of the same."""
    if isinstance(left, MethodType) and isinstance(right, MethodType):
        return left.__func__ is right.__func__ and bool(left.__self__ == right.__self__)
    if isinstance(left, partial) and isinstance(right, partial):
        return _same(left.func, right.func) and (left.args, left.keywords) == (right.args, right.keywords)
    return left == right


def fit_together(
    stack: Stack,
    workplace: Workplace,
    phases: Sequence[Phase],
    windows: Sequence[Examples],
    states: Sequence[OptimizerState],
    rngs: Sequence[Streams],
    lastings: Sequence[Streams],
) -> list[tuple[Fit, OptimizerState]]:
    """Runs one phase of K hospitals on the tensors that the stack holds now; see :func:`.training.fit`.

    Args:
        stack: Holds the start values of the K hospitals, and the fitted ones afterwards.
        workplace: What they share.
        phases: What each trains and how; alike.
        windows: The training windows of each, most first.
        states: Per hospital kept optimizer moments and the steps it took in this phase of earlier rounds.
        rngs: Streams of each hospital, of this round and phase.
        lastings: Streams of each hospital that are the same in every round.

    Returns:
        Fit and optimizer state per hospital, as :func:`.training.fit` gives them.

    Raises:
        NonFiniteLossError: names batch and row.
        ValueError: the phases are not alike.
    """
    reason = unlike(phases)
    if reason is not None:
        raise ValueError(f"expected phases that hospitals can share: {reason}")
    assert all(len(more) >= len(fewer) for more, fewer in pairwise(windows))
    training = workplace.training
    before = mean_losses(stack, workplace, windows) if phases[0].measure else [None] * len(phases)
    own = zip(phases, windows, states, strict=True)
    lrs = [learning_rates(training, phase, len(of_one), state) for phase, of_one, state in own]
    step = StackedStep(stack, workplace, phases, states, lrs)
    each = zip(windows, lrs, rngs, lastings, strict=True)
    drawn = [draws(w, training.batch_size, workplace.augment, len(lr), *keys) for w, lr, *keys in each]
    steps = in_step(drawn)
    if workplace.width is not None or not step.names:  # no shape may change; or none says how many hospitals are left
        steps = staying(steps)
    for batch in feed(workplace.replica, level(steps), workplace.kept, workplace.width):
        step(batch)
    stack.store(phases[0].train, step.values)
    means = step.mean_losses()
    gradients, moments = step.mean_gradients(), step.moments()
    return [
        (
            Fit(
                tensors=tensors,
                learning_rates=tuple(lrs[row]),
                momentum=training.momentum,
                mean_loss=means[row],
                mean_gradient=gradients[row],
                loss_before=before[row],
            ),
            OptimizerState(moments=moments[row], steps=states[row].steps + len(lrs[row])),
        )
        for row, tensors in enumerate(stack.read())
    ]


# --- steps ------------------------------------------------------------------------------------------------------------


def in_step(drawn: Sequence[Iterable[Draw]]) -> Iterator[list[Draw]]:
    """Step by step the draws of the hospitals that still have one; those with most come first."""
    for step in zip_longest(*drawn):
        yield [draw for draw in step if draw is not None]


def staying(steps: Iterable[list[Draw]]) -> Iterator[list[Draw]]:
    """The same with all hospitals to the end: who is done repeats its last draw, which does not count."""
    last: list[Draw] = []
    for step in steps:
        last = [*step, *(replace(draw, size=0) for draw in last[len(step) :])]
        yield last


def level(steps: Iterable[list[Draw]]) -> Iterator[list[Draw]]:
    """The same with equally many windows for all hospitals of a step: those of the largest batch."""
    for step in steps:
        width = max(len(draw.index) for draw in step)
        yield [draw if len(draw.index) == width else draw.filled(width) for draw in step]


@torch.no_grad()
def mean_losses(stack: Stack, workplace: Workplace, windows: Sequence[Examples]) -> list[float]:
    """Mean training loss of each hospital of a stack over its windows, as :func:`.training.mean_loss`."""
    replica, batch_size = workplace.replica, workplace.training.batch_size
    names = tuple(replica.values)
    values = stack.leaf(names).detach()
    steps = level(in_step([in_order(of_one, batch_size) for of_one in windows]))
    found = []
    for batch in feed(replica, steps, workplace.kept, workplace.width):
        tensors = stack.split(names, values[: len(batch.sizes)])
        logits = stack.decode(stack.proceed(*batch.begun, tensors), tensors)
        found.append((losses_apart(workplace.loss, logits, batch), batch.sizes))
    totals = [0.0] * len(windows)
    for losses, sizes in found:
        for row, (loss, size) in enumerate(zip(losses.tolist(), sizes, strict=True)):
            totals[row] += loss * size
    return [total / len(of_one) for total, of_one in zip(totals, windows, strict=True)]


def losses_apart(loss: Loss, logits: Tensor, batch: Batch) -> Tensor:
    """The loss of every hospital over its own windows.

    Args:
        loss: The loss.
        logits: (k * b * D, C+1, h, w), or (k * b, C) of images with a class each.
        batch: Says how many windows of each hospital count.

    Returns:
        One number for each hospital with a window that counts; these come first.
    """
    k = len(batch.sizes)
    labels = loss.at(batch.labels.flatten(0, 1), logits).unflatten(0, (k, -1))  # (k, b * D, h, w) or (k, b)
    logits = logits.unflatten(0, (k, -1))  # (k, b * D, C+1, h, w) or (k, b, C)
    rows = [size * batch.depth for size in batch.sizes if size]
    if len(set(rows)) == 1:
        return torch.vmap(loss)(logits[: len(rows), : rows[0]], labels[: len(rows), : rows[0]])
    each = zip(logits, labels, rows, strict=False)
    return torch.stack([loss(of_one[:r], masks[:r]) for of_one, masks, r in each])


class StackedStep:
    """One optimizer step of several hospitals after the other.

    Args:
        stack: Holds the start values of the K hospitals.
        workplace: What they share.
        phases: What each trains; alike.
        states: Kept moments of each.
        lrs: Learning rates of each, most steps first.
    """

    def __init__(
        self,
        stack: Stack,
        workplace: Workplace,
        phases: Sequence[Phase],
        states: Sequence[OptimizerState],
        lrs: Sequence[Sequence[float]],
    ) -> None:
        training = workplace.training
        self.stack, self.phase, self.training, self.loss = stack, phases[0], training, workplace.loss
        self.states, self.lrs = states, lrs
        self.names = tuple(stack.replica.parameters(self.phase.train))
        self.values = stack.leaf(self.names)
        self.losses = self.values.new_zeros(len(lrs[0]), len(lrs))
        self.gradients = torch.zeros_like(self.values) if self.phase.record_gradient else None
        self.hooks = _Hooks(stack, phases)
        self.optimizer = flat_optimizer(training.optimizer, self.values.detach(), self._sizes())
        self._restore()
        self.rates = self._rates()
        self.optimizer.plan(self.rates)
        self.rates = self.rates.to(self.values)
        self.number = 0

    def __call__(self, batch: Batch) -> None:
        """Takes one step of all hospitals of the batch; the losses stay on the device."""
        values = self.values[: len(batch.sizes)]
        losses = self._objective(batch, values)
        self.losses[self.number, : len(losses)] = losses.detach()
        if self.names:
            [gradients] = torch.autograd.grad(losses.sum(), values)
            self._move(gradients[: len(losses)])
        self.number += 1

    def _objective(self, batch: Batch, values: Tensor) -> Tensor:
        """The loss plus penalty and contrast, per hospital that has a window that counts."""
        tensors = self.stack.split(self.names, values)
        embedding = self.stack.proceed(*batch.begun, tensors)
        losses = losses_apart(self.loss, self.stack.decode(embedding, tensors), batch)
        if self.phase.penalty is not None:
            losses = losses + self.hooks.penalties(tensors, len(losses)).to(losses)
        if self.phase.contrast is not None:
            losses = losses + self.hooks.contrasts(embedding, batch).to(losses)
        return losses

    @torch.no_grad()
    def _move(self, gradients: Tensor) -> None:
        """Records, corrects and clips the gradients (k, P); then the optimizer takes its step."""
        k = len(gradients)
        if self.gradients is not None:
            self.gradients[:k] += self.rates[self.number, :k, None] * gradients
        if self.phase.correct is not None:
            by_name = self.hooks.corrected(self.stack.split(self.names, gradients), k)
            gradients = torch.cat([by_name[name].flatten(1) for name in self.names], dim=1)
        if self.training.clip_norm is not None:
            norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
            gradients = gradients * (self.training.clip_norm / (norms + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_
        self.optimizer.step(self.number, self.values.detach()[:k], gradients)

    # --- before and after -----------------------------------------------------------------------------------------

    def mean_losses(self) -> list[float | None]:
        """The mean loss of each over its steps. Raises NonFiniteLossError, which names the row."""
        host = self.losses.cpu()
        return [finite_mean(list(host[: len(lrs), row]), row) for row, lrs in enumerate(self.lrs)]

    def mean_gradients(self) -> list[Tensors | None]:
        """``sum(lr g) / sum(lr)`` of each, at its own rank, on the host; None where nobody asked for it."""
        if self.gradients is None:
            return [None] * len(self.lrs)
        sums = [max(sum(lrs), 1e-30) for lrs in self.lrs]
        host = (self.gradients.cpu() / torch.tensor(sums, dtype=torch.float64)[:, None]).to(self.gradients.dtype)
        return [self._gradient_of(row, host[row : row + 1]) for row in range(len(host))]

    def _gradient_of(self, row: int, flat: Tensor) -> Tensors:
        """The gradients (1, P) of a hospital by name, zero for a trained name that no gradient ever reaches."""
        known, values = self.stack.split(self.names, flat), self.stack.replica.values
        full = {
            name: known[name][0] if name in known else flat.new_zeros(values[name].shape) for name in self.phase.train
        }
        return {name: self.stack.narrowed(row, name, value).contiguous() for name, value in full.items()}

    def moments(self) -> list[Tensors]:
        """The optimizer's tensors of each by ``name/key``, as :mod:`.training` keeps them."""
        if self.training.moments == "reset":
            return [state.moments for state in self.states]
        host = {key: value.cpu() for key, value in self.optimizer.moments.items()}
        return [self._moments_of(row, host) for row in range(len(self.states))]

    def _moments_of(self, row: int, host: Mapping[str, Tensor]) -> Tensors:
        """What a hospital keeps; one that took no step has what it had."""
        earlier, taken = self.states[row].moments, len(self.lrs[row])
        if not taken:
            return earlier
        parts = {key: self.stack.split(self.names, value[row : row + 1]) for key, value in host.items()}
        counts = {} if self.optimizer.steps is None else {"step": self.optimizer.steps[row] + taken}
        now: dict[str, Tensor] = {}
        for number, name in enumerate(self.names):
            now |= {f"{name}/{key}": count[number] for key, count in counts.items()}
            now |= {f"{name}/{key}": by_name[name][0] for key, by_name in parts.items()}
        return {**earlier, **now}

    def _restore(self) -> None:
        """Puts kept moments into the optimizer; what a name has none of stays zero."""
        for row, state in enumerate(self.states):
            kept = state.moments
            for key, buffer in self.optimizer.moments.items() if kept else ():
                parts = [kept.get(f"{name}/{key}", self._none(name)).flatten() for name in self.names]
                buffer[row].copy_(torch.cat([buffer.new_zeros(0, device="cpu"), *parts]))
            for number, name in enumerate(self.names):
                if self.optimizer.steps is not None and f"{name}/step" in kept:
                    self.optimizer.steps[row, number] = kept[f"{name}/step"]

    def _none(self, name: str) -> Tensor:
        return torch.zeros(self.stack.replica.values[name].shape, dtype=self.values.dtype)

    def _sizes(self) -> list[int]:
        return [self.stack.replica.values[name].numel() for name in self.names]

    def _rates(self) -> Tensor:
        """Learning rates (S, K) in double precision on the host, 0 where a hospital is done."""
        longest = len(self.lrs[0])
        padded = [[*lrs, *[0.0] * (longest - len(lrs))] for lrs in self.lrs]
        return torch.tensor(padded, dtype=torch.float64).mT


# --- what a rule adds -------------------------------------------------------------------------------------------------

ByName = dict[str, Tensor]


class _Hooks:
    """Penalty, contrast and correction of a phase, for each hospital with its own tensors, context and references.

    They are pure functions of tensors, so that one call can be mapped over all hospitals, where these have equal ranks;
    otherwise, and where their batches differ in size, they are called one hospital after the other.
    """

    def __init__(self, stack: Stack, phases: Sequence[Phase]) -> None:
        self.stack, self.phase = stack, phases[0]
        self.one_rank = len(set(stack.ranks)) == 1
        place = stack.replica.place
        if self.one_rank:
            self.context = {name: _stacked([p.context[name] for p in phases], place) for name in phases[0].context}
            self.contexts = [{name: value[row] for name, value in self.context.items()} for row in range(len(phases))]
        else:
            self.contexts = [{name: place(value) for name, value in phase.context.items()} for phase in phases]
        self.references = {name: self._padded([p.references[name] for p in phases]) for name in phases[0].references}

    def _padded(self, hospitals: Sequence[Tensors]) -> ByName:
        """Tensors of all hospitals by name, padded to full rank and stacked, on the device."""
        place, widened = self.stack.replica.place, self.stack.replica.widened
        return {name: _stacked([widened(name, tensors[name]) for tensors in hospitals], place) for name in hospitals[0]}

    def penalties(self, tensors: Tensors, k: int) -> Tensor:
        """(k,) penalties."""
        penalty = self.phase.penalty
        assert penalty is not None

        def of_one(row: int, own: Tensors, context: Tensors) -> ByName:
            return {"penalty": penalty(self._narrowed(row, own), context)}

        return self._each(of_one, k, self.one_rank and bool(tensors), tensors)["penalty"]

    def contrasts(self, embedding: Tensor, batch: Batch) -> Tensor:
        """(k,) contrasts of the features of the windows that count."""
        contrast, k = self.phase.contrast, len(batch.sizes)
        assert contrast is not None
        rows = [size * batch.depth for size in batch.sizes if size]
        first = {name: {key: value[:k] for key, value in tensors.items()} for name, tensors in self.references.items()}
        others = {name: self.stack.features_at(tensors, *batch.begun) for name, tensors in first.items()}
        features = self.stack.replica.model.pool(embedding)
        apart = {
            name: value.unflatten(0, (k, -1)) for name, value in {**others, "": features}.items()
        }  # (k, b * D, width)

        def of_one(row: int, of_hospital: Tensors, context: Tensors) -> ByName:
            counted = {name: value[: rows[row]] for name, value in of_hospital.items()}
            return {"contrast": contrast(counted.pop(""), counted, context)}

        return self._each(of_one, len(rows), self.one_rank and len(set(rows)) == 1, apart)["contrast"]

    def corrected(self, gradients: Tensors, k: int) -> ByName:
        """The gradients (k, *shape) by name that are used instead; those that the rule leaves out stay."""
        correct = self.phase.correct
        assert correct is not None

        def of_one(row: int, own: Tensors, context: Tensors) -> ByName:
            found = correct(self._narrowed(row, own), context)
            return {name: self.stack.replica.widened(name, value) for name, value in found.items()}

        return {**gradients, **self._each(of_one, k, self.one_rank, gradients)}

    def _narrowed(self, row: int, own: Tensors) -> ByName:
        return {name: self.stack.narrowed(row, name, value) for name, value in own.items()}

    def _each(
        self, of_one: Callable[[int, Tensors, Tensors], ByName], k: int, at_once: bool, inputs: Tensors
    ) -> ByName:
        """What the first k hospitals get, stacked by name: in one mapped call, or one after the other."""
        if at_once:
            context = {name: value[:k] for name, value in self.context.items()}
            return _mapped(partial(of_one, 0), {name: value[:k] for name, value in inputs.items()}, context)
        each = [
            of_one(row, {name: value[row] for name, value in inputs.items()}, self.contexts[row]) for row in range(k)
        ]
        return {name: torch.stack([found[name] for found in each]) for name in each[0]}


def _mapped(of_one: Callable[[Tensors, Tensors], ByName], inputs: ByName, context: ByName) -> ByName:
    """One call for all hospitals. Raises ValueError where the function of a rule cannot be mapped over them."""
    try:
        found: ByName = torch.vmap(of_one)(inputs, context)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            "expected penalty, correct and contrast of the rule to be functions of tensors that can be mapped over "
            f"several hospitals: {error}. Say Phase(stackable=False), or set runtime.cohort to sequential"
        ) from error
    return found


def _stacked(values: Sequence[Tensor], place: Callable[[Tensor], Tensor]) -> Tensor:
    """(K, *shape) on the device; one of them where all hospitals were handed the same tensor."""
    if all(value is values[0] for value in values):
        return place(values[0]).expand(len(values), *values[0].shape)
    return place(torch.stack(list(values)))
