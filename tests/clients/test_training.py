import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from wardround.aggregators.contract import Aggregator, Phase, Tensors
from wardround.aggregators.fedavg import FedAvg
from wardround.aggregators.feddyn import FedDyn
from wardround.aggregators.fednova import norm_of_steps
from wardround.aggregators.fedprox import FedProx
from wardround.aggregators.moon import Moon
from wardround.aggregators.scaffold import Scaffold
from wardround.clients.batches import draws, feed
from wardround.clients.losses import segmentation_loss
from wardround.clients.optimizers import SGD, AdamW, Schedule
from wardround.clients.replica import Replica
from wardround.clients.training import (
    NonFiniteLossError,
    OptimizerState,
    Training,
    Workplace,
    _Step,
    fit,
    mean_loss,
)
from wardround.datasets.augment import Augment, FlapSamAugment, NoAugment
from wardround.datasets.windows import HospitalWindows, epoch_batches
from wardround.simulator.randomness import streams

RNG = streams(0, "local", 1, "hospital")
LASTING = streams(0, "lasting", "hospital")
CONSTANT = Schedule(warmup_steps=0, horizon_epochs=None)


@pytest.fixture
def replica(make_replica: Callable[..., Replica]) -> Replica:
    return make_replica(precision="fp64", image_size=16)


@pytest.fixture
def windows(make_windows: Callable[..., HospitalWindows]) -> HospitalWindows:
    return make_windows(volumes=2, slices=4)  # 8 windows


def everything(replica: Replica, **more: object) -> Phase:
    return Phase(train=tuple(replica.values), **more)


def run(replica: Replica, windows: HospitalWindows, training: Training, phase: Phase | None = None, state=None):
    phase, state = phase or everything(replica), state or OptimizerState()
    workplace = Workplace(replica=replica, training=training, augment=NoAugment())
    return fit(workplace, phase, windows, state, RNG, LASTING)


def test_a_fit_is_the_plain_loop(replica: Replica, windows: HospitalWindows) -> None:
    """Two epochs of AdamW with clipping against a loop written here with torch alone."""
    schedule = Schedule(warmup_steps=3, horizon_epochs=4, power=2)
    training = Training(epochs=2, batch_size=3, optimizer=AdamW(lr=1e-2), schedule=schedule, clip_norm=0.5)
    start = replica.read()
    fitted, state = run(replica, windows, training)

    replica.load(start)
    values = [value for name, value in replica.values.items() if name not in replica.unused]
    optimizer = torch.optim.AdamW(values, betas=(0.9, 0.999), weight_decay=0.1)
    step = 0
    for epoch in range(2):
        for index in epoch_batches(8, 3, RNG("batches", epoch)):
            images, labels = windows.gather(index)
            optimizer.zero_grad()
            segmentation_loss(replica.logits(images), labels.flatten(0, 1)).backward()
            torch.nn.utils.clip_grad_norm_(values, 0.5)
            optimizer.param_groups[0]["lr"] = 1e-2 * (step + 1) / 3 if step < 3 else 1e-2 * (1 - (step - 3) / 12) ** 2
            optimizer.step()
            step += 1
    assert (fitted.num_steps, state.steps) == (6, 6)
    for name, value in replica.read().items():
        torch.testing.assert_close(fitted.tensors[name], value, rtol=1e-12, atol=1e-12)


def test_it_learns(make_replica: Callable[..., Replica], windows: HospitalWindows) -> None:
    replica = make_replica(image_size=16)
    training = Training(steps=60, batch_size=4, optimizer=AdamW(lr=3e-3), schedule=CONSTANT)
    before = mean_loss(Workplace(replica=replica, training=training, augment=NoAugment()), windows)
    run(replica, windows, training)
    assert mean_loss(Workplace(replica=replica, training=training, augment=NoAugment()), windows) < 0.7 * before


def test_it_learns_under_bf16_with_single_precision_tensors(
    make_replica: Callable[..., Replica], windows: HospitalWindows
) -> None:
    """Autocast around the model; what is trained, and what travels, stays fp32. On the CPU here, made for CUDA."""
    replica = make_replica(image_size=16, precision="bf16")
    training = Training(steps=40, batch_size=4, optimizer=AdamW(lr=3e-3), schedule=CONSTANT, precision="bf16")
    assert replica.logits(windows.gather(torch.arange(2))[0]).dtype == torch.bfloat16
    before = mean_loss(Workplace(replica=replica, training=training, augment=NoAugment()), windows)
    fitted, _ = run(replica, windows, training)
    assert mean_loss(Workplace(replica=replica, training=training, augment=NoAugment()), windows) < 0.8 * before
    assert {value.dtype for value in fitted.tensors.values()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-9), ("fp32", 1e-3)])
def test_a_fit_on_cuda_is_the_fit_on_the_cpu(
    make_replica: Callable[..., Replica], windows: HospitalWindows, precision: str, tolerance: float
) -> None:
    training = Training(steps=4, batch_size=4, optimizer=SGD(lr=0.05), schedule=CONSTANT)
    host = make_replica(image_size=16, precision=precision)
    device = Replica(
        make_replica(image_size=16, precision=precision).model, host.layout, device="cuda", precision=precision
    )
    left, right = (run(replica, windows, training)[0] for replica in (host, device))
    for name, value in left.tensors.items():
        torch.testing.assert_close(right.tensors[name], value, rtol=tolerance, atol=tolerance)


def test_only_the_named_tensors_move(replica: Replica, windows: HospitalWindows) -> None:
    before = replica.read()
    head = tuple(name for name in replica.values if replica.layout.part[name] == "head")
    fitted, _ = run(replica, windows, Training(steps=2), Phase(train=head))
    moved = {name for name, value in fitted.tensors.items() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= set(head)


@pytest.mark.parametrize(
    ("training", "phase", "steps"),
    [
        (Training(epochs=1, batch_size=3), {}, 3),
        (Training(epochs=0.5, batch_size=2), {}, 2),
        (Training(steps=7, batch_size=3), {}, 7),
        (Training(steps=7, batch_size=3), {"epochs": 2}, 6),
        (Training(epochs=3, batch_size=3), {"epochs": 0}, 0),
    ],
)
def test_the_number_of_steps(replica: Replica, windows: HospitalWindows, training, phase, steps) -> None:
    fitted, _ = run(replica, windows, training, everything(replica, **phase))
    assert fitted.num_steps == steps
    assert (fitted.mean_loss is None) == (steps == 0)


@pytest.mark.parametrize("epochs", [0.5, 1.0, 3.0])
def test_epochs_of_a_phase_do_not_use_up_the_schedule(replica: Replica, windows: HospitalWindows, epochs) -> None:
    """Linear decay over 4 epochs of 2 steps, one epoch a round: round 4 has the rates 2/8 and 1/8 in every phase.

    With three epochs for the head, each stands three times; with half an epoch, the first once.
    """
    schedule = Schedule(warmup_steps=0, horizon_epochs=4, power=1.0)
    training = Training(epochs=1, batch_size=4, optimizer=SGD(lr=1e-3), schedule=schedule)
    steps = int(2 * epochs)
    state = OptimizerState(steps=3 * steps)
    fitted, after = run(replica, windows, training, everything(replica, epochs=epochs), state)
    share = max(steps // 2, 1)
    expected = ([1e-3 * 2 / 8] * share + [1e-3 * 1 / 8] * share)[:steps]
    assert fitted.learning_rates == pytest.approx(expected, rel=1e-12)
    assert after.steps == 4 * steps


def test_measuring_only_measures_and_does_so_before_the_phase(replica: Replica, windows: HospitalWindows) -> None:
    start, expected = (
        replica.read(),
        mean_loss(Workplace(replica=replica, training=Training(batch_size=6), augment=NoAugment()), windows),
    )
    measured, _ = run(replica, windows, Training(), everything(replica, measure=True))
    replica.load(start)
    plain, _ = run(replica, windows, Training())
    assert (plain.loss_before, measured.loss_before) == (None, expected)
    assert all(torch.equal(value, plain.tensors[name]) for name, value in measured.tensors.items())


def test_the_mean_gradient_is_option_two_of_scaffold_for_sgd(replica: Replica, windows: HospitalWindows) -> None:
    """For plain SGD, sum(lr g) / sum(lr) = (start - end) / sum(lr), also under a schedule."""
    training = Training(steps=5, batch_size=2, optimizer=SGD(lr=0.1, momentum=0.0), schedule=Schedule(warmup_steps=3))
    start = replica.read()
    fitted, _ = run(replica, windows, training, everything(replica, record_gradient=True))
    assert fitted.mean_gradient is not None
    for name, gradient in fitted.mean_gradient.items():
        expected = (start[name] - fitted.tensors[name]) / fitted.sum_lr
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)


def test_a_penalty_pulls_and_sees_its_context(replica: Replica, windows: HospitalWindows) -> None:
    """A huge proximal term towards an anchor takes the tensors there: lr * mu = 1 goes there in one step."""
    anchor = {name: torch.full_like(value, 0.25) for name, value in replica.read().items()}

    def penalty(tensors: Tensors, context: Tensors) -> Tensor:
        return 0.5 * 1e6 * sum((value - context[name]).square().sum() for name, value in tensors.items())

    training = Training(steps=1, batch_size=2, optimizer=SGD(lr=1e-6, momentum=0.0), schedule=CONSTANT)
    fitted, _ = run(replica, windows, training, everything(replica, penalty=penalty, context=anchor))
    for name in replica.values.keys() - replica.unused:
        torch.testing.assert_close(fitted.tensors[name], anchor[name], rtol=0, atol=1e-4)


def ones(gradients: Tensors, context: Tensors) -> Tensors:
    """A correction: a gradient of 1 everywhere."""
    return {name: torch.ones_like(value) for name, value in gradients.items()}


def test_a_correction_replaces_the_gradient(replica: Replica, windows: HospitalWindows) -> None:
    training = Training(steps=2, batch_size=2, optimizer=SGD(lr=0.5, momentum=0.0), schedule=CONSTANT)
    start = replica.read()
    fitted, _ = run(replica, windows, training, everything(replica, correct=ones))
    for name in replica.values.keys() - replica.unused:
        torch.testing.assert_close(fitted.tensors[name], start[name] - 1.0, rtol=0, atol=1e-12)


def test_a_fit_tells_its_learning_rates_and_momentum(replica: Replica, windows: HospitalWindows) -> None:
    """Warm-up 0.1, 0.2, 0.3, then decay 0.3 * (1, 3/4, 1/2); under a gradient of 1 FedNova's norm is the whole way."""
    schedule = Schedule(warmup_steps=3, horizon_epochs=None, horizon_steps=4, power=1.0)
    training = Training(steps=6, batch_size=2, optimizer=SGD(lr=0.3, momentum=0.9), schedule=schedule)
    start = replica.read()
    fitted, _ = run(replica, windows, training, everything(replica, correct=ones))
    assert fitted.learning_rates == pytest.approx((0.1, 0.2, 0.3, 0.3, 0.225, 0.15), rel=1e-12)
    assert fitted.momentum == 0.9
    way = norm_of_steps(fitted.learning_rates, fitted.momentum)
    for name in replica.values.keys() - replica.unused:
        torch.testing.assert_close(fitted.tensors[name], start[name] - way, rtol=0, atol=1e-12)
    assert run(replica, windows, Training(steps=1, optimizer=AdamW()))[0].momentum == 0.0


def test_a_contrast_sees_features_of_the_batch_under_the_references(replica: Replica, windows: HospitalWindows) -> None:
    seen = []

    def contrast(features: Tensor, others: dict[str, Tensor], context: Tensors) -> Tensor:
        seen.append((features.detach(), others["start"], others["far"]))
        return 0.0 * features.sum()

    start = replica.read()
    far = {name: value + 0.1 for name, value in start.items()}
    phase = everything(replica, references={"start": start, "far": far}, contrast=contrast)
    run(replica, windows, Training(steps=1, batch_size=2), phase)
    features, same, other = seen[0]
    assert features.shape == (2, replica.model.size.neck)
    torch.testing.assert_close(features, same, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(features, other, atol=1e-4)


def test_kept_moments_continue_as_if_the_round_had_not_ended(replica: Replica, windows: HospitalWindows) -> None:
    """Two rounds of one epoch with kept moments = the same batches in one optimizer; with reset they differ."""
    training = Training(epochs=1, batch_size=8, optimizer=AdamW(lr=1e-2), schedule=CONSTANT, moments="keep")
    start = replica.read()
    _, state = run(replica, windows, training)
    once, _ = run(replica, windows, training, state=state)
    replica.load(start)
    values = [value for name, value in replica.values.items() if name not in replica.unused]
    optimizer = torch.optim.AdamW(values, lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        images, labels = windows.gather(epoch_batches(8, 8, RNG("batches", 0))[0])
        optimizer.zero_grad()
        segmentation_loss(replica.logits(images), labels.flatten(0, 1)).backward()
        optimizer.step()
    for name, value in replica.read().items():
        torch.testing.assert_close(once.tensors[name], value, rtol=1e-12, atol=1e-12)
    replica.load(start)
    run(replica, windows, training)
    reset, _ = run(replica, windows, training)
    assert not all(torch.equal(reset.tensors[name], once.tensors[name]) for name in once.tensors)


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), SGD(lr=1e-2)], ids=["adamw", "sgd"])
def test_a_fit_leaves_the_moments_it_was_handed_alone(replica: Replica, windows: HospitalWindows, optimizer) -> None:
    training = Training(steps=1, optimizer=optimizer, moments="keep")
    _, state = run(replica, windows, training)
    before = {name: value.clone() for name, value in state.moments.items()}
    run(replica, windows, training, state=state)
    assert all(torch.equal(value, before[name]) for name, value in state.moments.items())


def test_augmentation_reaches_the_batches(replica: Replica, windows: HospitalWindows) -> None:
    start, training = replica.read(), Training(steps=2)
    plain, _ = run(replica, windows, training)
    replica.load(start)
    workplace = Workplace(replica=replica, training=training, augment=Augment())
    augmented, _ = fit(workplace, everything(replica), windows, OptimizerState(), RNG, LASTING)
    assert plain.mean_loss != augmented.mean_loss


WAITING: tuple[Aggregator, ...] = (FedAvg(), FedProx(), FedProx(on="product"), Scaffold(), Moon(), FedDyn())


@pytest.mark.parametrize("aggregator", WAITING, ids=lambda aggregator: type(aggregator).__name__)
def test_the_loop_asks_the_device_for_nothing(make_federated: Callable[..., Any], aggregator: Aggregator) -> None:
    """On the meta device tensors have no values: whatever waits for one (item, nonzero, a copy to the host) raises.

    Windows are brought from the CPU or lie on the device; what is drawn is known on the CPU.
    """
    federated, before = make_federated(aggregator, precision="fp32", volumes=(2,))
    hospital, own = federated.hospitals["hospital-0"], federated.workplace.replica
    download = aggregator.broadcast(before.server, hospital.info)
    replica = Replica(own.model, own.layout, device="meta")
    training = Training(batch_size=6, optimizer=AdamW(), clip_norm=1.0)
    for windows in (hospital.train, hospital.train.to("meta")):
        for phase in aggregator.rule.phases(download, {}):
            step = _Step(
                Workplace(replica=replica, training=training, augment=NoAugment()),
                replace(phase, record_gradient=True),
                {},
            )
            drawn = draws(windows, 6, FlapSamAugment(), 2, RNG, LASTING)
            losses = [step(batch, 0.1) for batch in feed(replica, ((draw,) for draw in drawn))]
            assert [loss.device.type for loss in losses] == ["meta", "meta"]


def test_under_bf16_only_the_model_is_in_bf16(make_replica: Callable[..., Replica], windows: HospitalWindows) -> None:
    """Trained tensors, their gradients, the optimizer's moments and the loss are fp32."""
    replica = make_replica(image_size=16, precision="bf16")
    training = Training(batch_size=4, optimizer=AdamW(), moments="keep", precision="bf16")
    step = _Step(Workplace(replica=replica, training=training, augment=NoAugment()), everything(replica), {})
    (batch,) = feed(replica, ((draw,) for draw in draws(windows, 4, NoAugment(), 1, RNG, LASTING)))
    assert replica.proceed(*batch.begun).dtype == torch.bfloat16
    loss = step(batch, 1e-3)
    trained = replica.parameters(replica.values).values()
    assert loss.dtype == torch.float32
    assert {value.dtype for value in trained} == {value.grad.dtype for value in trained} == {torch.float32}
    assert {value.dtype for value in step.moments().values()} == {torch.float32}


def test_a_loss_that_is_not_finite_names_its_batch(replica: Replica, windows: HospitalWindows) -> None:
    def explode(tensors: Tensors, context: Tensors) -> Tensor:
        return sum(value.sum() for value in tensors.values()) * math.inf

    with pytest.raises(NonFiniteLossError, match="the loss of batch 1 is"):
        run(replica, windows, Training(steps=3), everything(replica, penalty=explode))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: expected a number above 0, got 0"),
        ({"steps": 0}, "steps: expected at least 1"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"clip_norm": -1.0}, "clip_norm: expected a number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**settings)
