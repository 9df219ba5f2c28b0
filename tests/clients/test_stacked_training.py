"""Hospitals that share every step fit what each fits alone, in float64 to 1e-12 relative."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from wardround.aggregators.contract import Fit, Phase, Tensors
from wardround.clients.batches import Batch, Draw, in_order
from wardround.clients.lora import LoRA
from wardround.clients.losses import SegmentationLoss, segmentation_loss
from wardround.clients.methods import METHODS, FlapSam
from wardround.clients.optimizers import SGD, AdamW, Schedule
from wardround.clients.replica import Replica
from wardround.clients.stack import Stack, stackable
from wardround.clients.stacked_training import (
    StackedStep,
    fit_together,
    in_step,
    level,
    losses_apart,
    mean_losses,
    staying,
    unlike,
)
from wardround.clients.training import NonFiniteLossError, OptimizerState, Training, Workplace, fit, mean_loss
from wardround.datasets.augment import Augment, NoAugment
from wardround.datasets.windows import HospitalWindows, Windows
from wardround.simulator.randomness import generator, streams

Build = Callable[..., Replica]
MakeWindows = Callable[..., HospitalWindows]
VOLUMES = (3, 2, 1)
"""Volumes of four slices: batches of 5 windows then end with 2, 3 and 4."""


@dataclass
class Case:
    """Three hospitals on one replica: start values, windows, a phase and a state each."""

    workplace: Workplace
    starts: list[dict[str, Tensor]]
    windows: list[HospitalWindows]
    phases: list[Phase]
    states: list[OptimizerState]
    streams = tuple(streams(0, "local", 1, f"hospital-{row}") for row in range(3))
    lasting = tuple(streams(0, "lasting", f"hospital-{row}") for row in range(3))

    def alone(self) -> list[tuple[Fit, OptimizerState]]:
        results = []
        own = (self.starts, self.phases, self.windows, self.states, self.streams, self.lasting)
        for start, *rest in zip(*own, strict=True):
            self.workplace.replica.load(start)
            results.append(fit(self.workplace, *rest))
        return results

    def together(self) -> list[tuple[Fit, OptimizerState]]:
        stack = Stack(self.workplace.replica, 3)
        stack.load(self.starts)
        return fit_together(stack, self.workplace, self.phases, self.windows, self.states, self.streams, self.lasting)


def noise(like: Tensor, key: str) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=generator(0, "test", key))


@pytest.fixture
def case(make_replica: Build, make_windows: MakeWindows) -> Callable[..., Case]:
    """Builds a case: values of three hospitals near the initial ones, at their own ranks."""

    def make(
        training: Training,
        phase: Callable[[int, dict[str, Tensor]], Phase] = lambda row, start: Phase(train=tuple(start)),
        *,
        ranks: Sequence[int] = (4, 4, 4),
        depth: int = 1,
        volumes: Sequence[int] = VOLUMES,
        **more: object,
    ) -> Case:
        method = more.pop("method", FlapSam(lora=LoRA(rank=4, alpha=2.0, power=1.0)))
        replica = make_replica(precision="fp64", image_size=16, method=method)
        first, starts = replica.read(), []
        for row, rank in enumerate(ranks):
            values = {name: value + 0.05 * noise(value, f"{row}/{name}") for name, value in first.items()}
            own = rank if replica.layout.pairs else None
            starts.append({name: replica.narrowed_to(own, name, value).clone() for name, value in values.items()})
        of_all = [
            HospitalWindows(make_windows(row, count).volumes, Windows(depth=depth)) for row, count in enumerate(volumes)
        ]
        workplace = Workplace(replica=replica, training=training, augment=more.pop("augment", NoAugment()))
        phases = [phase(row, start) for row, start in enumerate(starts)]
        states = more.pop("states", [OptimizerState()] * 3)
        return Case(workplace, starts, of_all, phases, states)

    return make


MakeCase = Callable[..., Case]
CONSTANT = Schedule(warmup_steps=0, horizon_epochs=None)
ADAMW = Training(batch_size=5, optimizer=AdamW(lr=1e-3), schedule=Schedule(warmup_steps=2), clip_norm=0.5)
SGD_TWO_EPOCHS = Training(epochs=1.4, batch_size=5, optimizer=SGD(lr=0.05, weight_decay=0.1), schedule=CONSTANT)


def close(left: object, right: object, where: str = "") -> None:
    """Equal to 1e-12 of the largest number of a tensor; everything that is no tensor is equal."""
    if isinstance(left, Tensor):
        scale = max(right.abs().max().item(), 1e-3) if right.numel() else 1.0
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * scale, msg=lambda m: f"{where}: {m}")
    elif hasattr(left, "keys"):
        assert list(left) == list(right), where
        for name in left:
            close(left[name], right[name], f"{where}/{name}")
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-12), where
    else:
        assert left == right, where


def same(case: Case) -> list[tuple[Fit, OptimizerState]]:
    """Checks that three hospitals fit together what they fit alone; returns that."""
    expected, found = case.alone(), case.together()
    for row, ((left, state), (right, before)) in enumerate(zip(found, expected, strict=True)):
        for field in ("tensors", "learning_rates", "momentum", "mean_loss", "mean_gradient", "loss_before"):
            close(getattr(left, field), getattr(right, field), f"hospital {row}: {field}")
        close(state.moments, before.moments, f"hospital {row}: moments")
        assert state.steps == before.steps
    return found


@pytest.mark.parametrize("training", [ADAMW, SGD_TWO_EPOCHS], ids=["adamw", "sgd"])
@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 2, 2), (1, 4, 2)], ids=["full", "lower", "mixed"])
def test_hospitals_fit_together_what_they_fit_alone(case: MakeCase, training: Training, ranks: tuple[int, ...]) -> None:
    """Unequal data (3, 2, 1 batches, the last ones short), clipping, weight decay, ranks below the replica's."""
    found = same(case(training, ranks=ranks))
    assert [fitted.num_steps for fitted, _ in found] == ([3, 2, 1] if training is ADAMW else [5, 3, 2])


@pytest.mark.parametrize("name", [name for name, cls in METHODS.items() if "sam" in cls.models])
def test_every_method_that_can_be_stacked(case: MakeCase, name: str) -> None:
    made = case(replace(ADAMW, steps=2), method=METHODS[name](), volumes=(2, 1, 1))
    replica = made.workplace.replica
    if stackable(replica.model, replica.layout.names) is None:
        same(made)
    else:
        with pytest.raises(ValueError, match="expected a method whose hospitals can share a step"):
            made.together()


def test_windows_of_three_slices_with_fixed_forms(case: MakeCase) -> None:
    same(case(replace(ADAMW, steps=4), depth=3, augment=Augment(variants=2), volumes=(2, 2, 1)))


def towards(strength: float, own: Tensors, context: Tensors) -> Tensor:
    """A penalty whose arguments are part of it, as FedProx has one."""
    terms = [(value - context[name]).square().sum() for name, value in own.items()]
    return strength * torch.stack(terms).sum()


def controlled(gradients: Tensors, context: Tensors) -> Tensors:
    """A correction of all tensors but the first, which stays as it is."""
    return {name: gradient + context[name] for name, gradient in list(gradients.items())[1:]}


def apart(features: Tensor, others: dict[str, Tensor], context: Tensors) -> Tensor:
    return (features - others["near"]).square().mean() - 0.5 * (features - others["far"]).square().mean()


def hooked(row: int, start: dict[str, Tensor]) -> Phase:
    """Everything a phase can ask for, with a context and references of every hospital's own."""
    return Phase(
        train=tuple(start),
        measure=True,
        record_gradient=True,
        context={name: 0.1 * noise(value, f"context {row}/{name}") for name, value in start.items()},
        penalty=partial(towards, 0.3),
        correct=controlled,
        references={"near": start, "far": {name: value + 0.1 for name, value in start.items()}},
        contrast=apart,
    )


@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 2, 2), (1, 4, 2)], ids=["full", "lower", "mixed"])
def test_what_a_rule_adds_is_every_hospitals_own(case: MakeCase, ranks: tuple[int, ...]) -> None:
    """Penalty, correction, contrast, mean gradient and the loss before: mapped at one rank, in turn at several."""
    training = Training(epochs=1, batch_size=5, optimizer=SGD(lr=0.02, momentum=0.5), schedule=CONSTANT, clip_norm=2.0)
    found = same(case(training, hooked, ranks=ranks))
    assert all(fitted.mean_gradient is not None and fitted.loss_before is not None for fitted, _ in found)


def test_a_context_that_all_hospitals_were_handed_is_theirs(case: MakeCase) -> None:
    anchor: dict[str, Tensor] = {}

    def phase(row: int, start: dict[str, Tensor]) -> Phase:
        anchor.update(anchor or {name: 0.1 * noise(value, name) for name, value in start.items()})
        return Phase(train=tuple(start)[::2], context=anchor, penalty=partial(towards, 1.0))

    same(case(SGD_TWO_EPOCHS, phase, volumes=(1, 1, 1)))


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-3), SGD(lr=0.05)], ids=["adamw", "sgd"])
def test_kept_moments_are_those_of_turns(case: MakeCase, optimizer: AdamW | SGD) -> None:
    """A trains, then B, then both, with moments handed over between the two ways of training in both directions."""
    training = Training(steps=2, batch_size=5, optimizer=optimizer, schedule=CONSTANT, moments="keep")
    states = [OptimizerState()] * 3
    for number, kinds in enumerate([("lora_A",), ("lora_B",), ("lora_A", "lora_B")]):
        made = case(training, states=states)
        kind = made.workplace.replica.layout.kind
        part = tuple(name for name in made.starts[0] if kind[name] in kinds)
        made.phases = [Phase(train=part)] * 3
        found = same(made)
        states = [state for _, state in (found if number % 2 else made.alone())]
    assert all(state.steps == 6 for state in states)
    if isinstance(optimizer, AdamW):
        assert {float(v) for name, v in states[0].moments.items() if name.endswith("/step")} == {4.0}


@pytest.mark.parametrize("phase", [{"train": ()}, {"train": (), "epochs": 0, "measure": True}, {"epochs": 0}])
def test_phases_that_train_or_take_nothing(case: MakeCase, phase: dict[str, object]) -> None:
    """Moments that were kept stay as they were."""
    training = replace(ADAMW, moments="keep")
    same(case(training, lambda row, start: Phase(**{"train": tuple(start), **phase})))


def test_a_compiled_model_sees_one_shape(case: MakeCase) -> None:
    """Hospitals that are done stay, and do not move; the compiler here counts what it is given and changes nothing."""
    made, seen = case(replace(ADAMW, moments="keep"), hooked), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        seen.append(graph)
        return graph.forward

    expected = made.alone()
    made.workplace.replica.compile(backend)
    shapes: list[tuple[int, ...]] = []
    begin = made.workplace.replica.begin
    made.workplace.replica.begin = lambda images: (shapes.append(tuple(images.shape)), begin(images))[1]
    found = made.together()
    assert set(shapes[-3:]) == {(3 * 5, 1, 16, 16)}  # the last three are those of the steps
    for (left, state), (right, before) in zip(found, expected, strict=True):
        close(left.tensors, right.tensors)
        close(left.mean_loss, right.mean_loss)
        close(state.moments, before.moments)


def test_the_loss_before_is_that_of_each(case: MakeCase) -> None:
    made = case(ADAMW, ranks=(1, 4, 2))
    place = made.workplace
    stack = Stack(place.replica, 3)
    stack.load(made.starts)
    found = mean_losses(stack, place, made.windows)
    for loss, start, windows in zip(found, made.starts, made.windows, strict=True):
        place.replica.load(start)
        assert loss == pytest.approx(mean_loss(place, windows), rel=1e-12)


# --- steps and losses -------------------------------------------------------------------------------------------------


def widths(steps: object) -> list[list[tuple[int, int]]]:
    return [[(len(draw.index), draw.size) for draw in step] for step in steps]


def drawn(make_windows: MakeWindows) -> list[list[Draw]]:
    """12 and 4 windows in batches of 5: 5, 5, 2 and 4."""
    return [list(in_order(make_windows(0, volumes), 5)) for volumes in (3, 1)]


def test_the_first_hospitals_go_on(make_windows: MakeWindows) -> None:
    """(windows in the batch, windows that count) per step and hospital."""
    of_two = drawn(make_windows)
    assert widths(in_step(of_two)) == [[(5, 5), (4, 4)], [(5, 5)], [(2, 2)]]
    assert widths(level(in_step(of_two))) == [[(5, 5), (5, 4)], [(5, 5)], [(2, 2)]]
    assert widths(staying(in_step(of_two))) == [[(5, 5), (4, 4)], [(5, 5), (4, 0)], [(2, 2), (4, 0)]]
    assert widths(level(staying(in_step(of_two)))) == [[(5, 5), (5, 4)], [(5, 5), (5, 0)], [(4, 2), (4, 0)]]


@pytest.mark.parametrize("sizes", [(2, 2), (2, 1), (1, 1), (2, 0)])
@pytest.mark.parametrize("resized", [1, 2])
def test_losses_apart_are_those_of_each(sizes: tuple[int, int], resized: int) -> None:
    """Two hospitals, two windows of three slices each, of which some count; labels at another size or at the same."""
    logits = noise(torch.zeros(12, 3, 4, 4, dtype=torch.float64), "logits")
    side = 4 * resized
    labels = torch.randint(0, 3, (4, 3, side, side), generator=generator(0, "test", "labels")).to(torch.uint8)
    found = losses_apart(SegmentationLoss(), logits, Batch(hidden=logits, labels=labels, sizes=sizes))
    own = zip(logits.split(6), labels.flatten(0, 1).split(6), sizes, strict=True)
    expected = [segmentation_loss(part[: 3 * size], masks[: 3 * size]) for part, masks, size in own if size]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)


# --- which phases are alike, and errors -------------------------------------------------------------------------------


def zero(own: Tensors, context: Tensors) -> Tensor:
    return torch.zeros(())


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ({"train": ("a",)}, {"train": ("b",)}, r"Phase\.train differs"),
        ({"epochs": 1}, {"epochs": 2}, r"Phase\.epochs differs"),
        ({"measure": True}, {}, r"Phase\.measure differs"),
        ({"record_gradient": True}, {}, r"Phase\.record_gradient differs"),
        ({"penalty": zero}, {}, r"Phase\.penalty is another function"),
        ({"penalty": partial(towards, 1.0)}, {"penalty": partial(towards, 2.0)}, r"Phase\.penalty is another function"),
        ({"correct": controlled}, {}, r"Phase\.correct is another function"),
        ({"contrast": apart}, {}, r"Phase\.contrast is another function"),
        ({"context": {"a": torch.ones(1)}}, {}, r"Phase\.context holds other names"),
        ({"references": {"a": {}}}, {}, r"Phase\.references holds other names"),
        ({}, {"stackable": False}, r"Phase\.stackable"),
    ],
)
def test_phases_that_hospitals_cannot_share(one: dict, other: dict, reason: str) -> None:
    phases = [Phase(**{"train": ("a",), **settings}) for settings in (one, other)]
    assert unlike(phases) is not None
    assert re.search(reason, unlike(phases) or "")


def test_phases_with_values_of_their_own_are_alike() -> None:
    """Other ranks, other start values, and partial functions that are made of the same."""
    one = {"train": ("a",), "start": {"a": torch.ones(1)}, "context": {"a": torch.ones(2, 3)}}
    other = {**one, "start": None, "context": {"a": torch.zeros(1, 3)}}
    assert unlike([Phase(**settings, penalty=partial(towards, 1.0)) for settings in (one, other)]) is None


def test_phases_that_are_not_alike_are_an_error(case: MakeCase) -> None:
    made = case(ADAMW, lambda row, start: Phase(train=tuple(start)[row:]))
    with pytest.raises(ValueError, match=r"expected phases that hospitals can share: Phase\.train differs"):
        made.together()


def test_a_loss_that_is_not_finite_names_batch_and_hospital(case: MakeCase) -> None:
    """The second hospital's penalty is infinite from its first step on."""

    def phase(row: int, start: dict[str, Tensor]) -> Phase:
        anchor = {name: torch.full_like(value, math.inf if row == 1 else 0.0) for name, value in start.items()}
        return Phase(train=tuple(start), context=anchor, penalty=partial(towards, 1.0))

    with pytest.raises(NonFiniteLossError, match="the loss of batch 1 is inf") as caught:
        case(ADAMW, phase).together()
    assert caught.value.row == 1


def test_a_penalty_that_cannot_be_mapped_is_an_error(case: MakeCase) -> None:
    def looking(own: Tensors, context: Tensors) -> Tensor:
        return sum(value.sum() * value.sum().item() for value in own.values())

    made = case(ADAMW, lambda row, start: Phase(train=tuple(start), penalty=looking))
    with pytest.raises(ValueError, match=r"can be mapped over several hospitals: .*stackable=False"):
        made.together()


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_hospitals_fit_together_on_cuda(case: MakeCase, precision: str) -> None:
    """float64 as on the CPU; bf16 near, where products are rounded in another order."""
    made = case(replace(ADAMW, moments="keep"), hooked)
    host = made.workplace.replica
    replica = Replica(host.model, host.layout, device="cuda", precision=precision)
    made.workplace = replace(made.workplace, replica=replica)
    tolerance = 1e-10 if precision == "fp64" else 2e-2
    for (left, _), (right, _) in zip(made.together(), made.alone(), strict=True):
        assert left.mean_loss == pytest.approx(right.mean_loss, rel=tolerance)
        for name, value in left.tensors.items():
            torch.testing.assert_close(value, right.tensors[name], rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_do_not_wait_for_cuda(case: MakeCase) -> None:
    made = case(replace(ADAMW, steps=4, moments="keep"), hooked, volumes=(2, 2, 2))
    host = made.workplace.replica
    replica = Replica(host.model, host.layout, device="cuda", precision="fp32")
    made.workplace = replace(made.workplace, replica=replica)
    made.together()
    stack = Stack(replica, 3)
    stack.load(made.starts)
    step = StackedStep(stack, made.workplace, made.phases, made.states, [[1e-3] * 2] * 3)
    images = torch.rand(3 * 4, 1, 16, 16, device="cuda")
    labels = torch.zeros(3 * 4, 1, 16, 16, dtype=torch.uint8, device="cuda")
    batch = Batch(hidden=replica.begin(images), labels=labels, sizes=(4, 4, 4))
    step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
