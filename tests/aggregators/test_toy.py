"""The toy federation and its trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from wardround.aggregators import FedAvg
from wardround.aggregators.contract import Download, Fit, LocalResult, Phase, Tensors
from wardround.aggregators.plain import PlainTraining
from wardround.aggregators.toy import LR, STEPS_PER_EPOCH, World, initial_state, make_world, take_turn

NAME = "hospital-01"


@dataclass
class Scripted:
    """A rule whose phases a test writes; keeps the fits."""

    script: list[Phase]
    fits: Sequence[Fit] = ()

    def phases(self, download: Download, memory: Tensors) -> list[Phase]:
        return self.script

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        self.fits = fits
        return PlainTraining().finish(download, fits, memory)


def fits(world: World, *phases: Phase, base: Tensors | None = None) -> Sequence[Fit]:
    rule = Scripted(list(phases))
    download = FedAvg().broadcast(initial_state(FedAvg(), world), world.hospital(NAME))
    take_turn(rule, world, NAME, download, {}, base or {})
    return rule.fits


def distance_factor(pull: float = 0.0) -> float:
    """What plain steps on ``1/2 (theta - t)^2 + pull/2 (theta - anchor)^2`` leave of ``theta - t`` when anchor = t."""
    factor = 1.0
    for step in range(STEPS_PER_EPOCH):
        factor *= 1.0 - LR / (1 + step) * (1.0 + pull)
    return factor


def head(world: World, fit: Fit) -> tuple[Tensor, Tensor, Tensor]:
    """Start, end and target of the head's bias, whose loss is ``1/2 ||theta - t||^2``."""
    return world.setting.trainable["head.bias"], fit.tensors["head.bias"], world.targets[NAME]["head.bias"]


def test_dense_tensors_go_to_their_target_as_computed_by_hand() -> None:
    """Every step multiplies the distance by (1 - lr)."""
    world = make_world()
    (fit,) = fits(world, Phase(train=world.setting.layout.names))
    begin, end, target = head(world, fit)
    torch.testing.assert_close(end - target, distance_factor() * (begin - target))
    assert fit.num_steps == STEPS_PER_EPOCH
    assert fit.learning_rates == tuple(LR / (1 + step) for step in range(STEPS_PER_EPOCH))


def test_only_the_names_of_the_phase_move() -> None:
    world = make_world()
    (fit,) = fits(world, Phase(train=("head.bias",)))
    moved = {n for n, value in world.setting.trainable.items() if not torch.equal(value, fit.tensors[n])}
    assert moved == {"head.bias"}


def test_a_penalty_is_added_to_the_loss() -> None:
    """A pull of 3 towards the target itself: the distance shrinks by (1 - 4 lr) per step."""
    world = make_world()
    anchor = {"head.bias": world.targets[NAME]["head.bias"]}

    def penalty(trained: Tensors, context: Tensors) -> Tensor:
        return 1.5 * (trained["head.bias"] - context["head.bias"]).square().sum()

    (fit,) = fits(world, Phase(train=("head.bias",), context=anchor, penalty=penalty))
    begin, end, target = head(world, fit)
    torch.testing.assert_close(end - target, distance_factor(pull=3.0) * (begin - target))


def test_gradients_are_recorded_before_they_are_corrected() -> None:
    """With the gradient turned to zero nothing moves, and the mean raw gradient is the one at the start."""
    world = make_world()
    zero = {"head.bias": torch.zeros(3, dtype=torch.float64)}
    phase = Phase(train=("head.bias",), record_gradient=True, correct=lambda gradients, context: zero)
    (fit,) = fits(world, phase)
    begin, end, target = head(world, fit)
    assert torch.equal(begin, end)
    torch.testing.assert_close(fit.mean_gradient["head.bias"], begin - target)


def test_the_mean_gradient_accounts_for_the_whole_way() -> None:
    """Plain steps: start - end = sum lr * mean gradient."""
    world = make_world()
    (fit,) = fits(world, Phase(train=world.setting.layout.names, record_gradient=True))
    for name, value in world.setting.trainable.items():
        torch.testing.assert_close(value - fit.tensors[name], fit.sum_lr * fit.mean_gradient[name])


def test_phases_go_on_where_the_last_one_ended_unless_they_say_otherwise() -> None:
    world = make_world()
    names = world.setting.layout.names
    twice = fits(world, Phase(train=names), Phase(train=names))
    again = fits(world, Phase(train=names), Phase(train=names, start=world.setting.trainable))
    _, end, target = head(world, twice[1])
    torch.testing.assert_close(end - target, distance_factor() ** 2 * (head(world, twice[0])[0] - target))
    assert torch.equal(again[0].tensors["head.bias"], again[1].tensors["head.bias"])


def test_epochs_and_measured_losses() -> None:
    world = make_world()
    names = world.setting.layout.names
    half, none = fits(world, Phase(train=names, epochs=0.5, measure=True), Phase(train=names, epochs=0, measure=True))
    assert (half.num_steps, none.num_steps) == (STEPS_PER_EPOCH // 2, 0)
    assert half.loss_before == pytest.approx(world.loss(NAME, world.setting.trainable, {}).item())
    assert none.loss_before == pytest.approx(world.loss(NAME, half.tensors, {}).item())
    assert none.loss_before < half.loss_before
    assert none.mean_loss is None


def test_the_base_is_part_of_the_model() -> None:
    """With the frozen weights at their targets and B = 0, the loss is that of the dense tensors alone."""
    world = make_world()
    base = {name: world.targets[NAME][name] for name in world.setting.frozen}
    dense = sum(
        0.5 * (world.setting.trainable[n] - world.targets[NAME][n]).square().sum() for n in world.setting.layout.dense
    )
    torch.testing.assert_close(world.loss(NAME, world.setting.trainable, base), dense)


def test_pairs_on_rows_touch_only_their_rows() -> None:
    world = make_world()
    tensors = {name: torch.ones_like(value) for name, value in world.setting.trainable.items()}
    qkv = world.model(tensors, {})["encoder.qkv"]
    assert (qkv[:12] != 0).all()
    assert not qkv[12:24].any()
    assert (qkv[24:] != 0).all()


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (Phase(train=("head.colour",)), r"trains \['head.colour'\], which are no trainable names"),
        (Phase(train=("head.bias",)), r"nobody gave 'hospital-01' a value of \['head.bias'\]"),
    ],
)
def test_what_the_engine_would_refuse_is_refused(phase: Phase, message: str) -> None:
    world = make_world()
    download = FedAvg().broadcast(initial_state(FedAvg(), world), world.hospital(NAME))
    start = dict(download.start)
    if phase.train == ("head.bias",):
        del start["head.bias"]
    rule: Any = Scripted([phase])
    with pytest.raises(ValueError, match=message):
        take_turn(rule, world, NAME, replace(download, start=start), {}, {})


def test_ranks_share_their_first_rows() -> None:
    """Rank 4 is rank 8's first four rows."""
    small, large = make_world((4,)), make_world((8,))
    assert torch.equal(small.setting.trainable["encoder.q.A"], large.setting.trainable["encoder.q.A"][:4])
