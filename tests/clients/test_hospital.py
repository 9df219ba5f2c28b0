"""A hospital's turn at a rank below the replica's, and with phases that train different things."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from wardround.aggregators.contract import Download, Fit, HospitalInfo, LocalResult, Phase, Tensors
from wardround.aggregators.plain import PlainTraining
from wardround.clients.hospital import Assignment, Memory, take_turn, take_turns_together
from wardround.clients.optimizers import SGD, AdamW, Schedule
from wardround.clients.replica import Replica
from wardround.clients.stack import Stack
from wardround.clients.training import OptimizerState, Training, Workplace, fit, mean_loss
from wardround.datasets.augment import NoAugment
from wardround.datasets.windows import HospitalWindows
from wardround.simulator.randomness import streams

Build = Callable[..., Replica]
INFO = HospitalInfo(name="hospital", num_examples=8, rank=2)
CONSTANT = Schedule(warmup_steps=0, horizon_epochs=None)


class Rule(PlainTraining):
    """Plain training with the phases it is given; keeps the fits to be looked at, remembers nothing."""

    def __init__(self, *phases: Phase) -> None:
        self.list = phases

    def phases(self, download: Download, memory: Tensors) -> tuple[Phase, ...]:
        return self.list

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        self.fits = fits
        return super().finish(download, fits, memory)


def turn(replica: Replica, windows: HospitalWindows, start: Tensors, training: Training, *phases: Phase, **more):
    """What came of a turn, and the fits of its phases."""
    names = tuple(start)
    download = Download(start=start, train=names, returns={name: tuple(value.shape) for name, value in start.items()})
    rule = Rule(*(phases or (Phase(train=names),)))
    memory = more.get("memory", Memory())
    workplace = Workplace(replica=replica, training=training, augment=NoAugment())
    rng, lasting = streams(0, "local", 1, "hospital"), streams(0, "lasting", "hospital")
    own = {"hospital": INFO, "download": download, "memory": memory, "windows": windows, "rng": rng, "lasting": lasting}
    return take_turn(workplace, rule, Assignment(**own)), rule.fits


def proximal(trained: Tensors, anchor: Tensors) -> Tensor:
    return 3.0 * sum((value - anchor[name]).square().sum() for name, value in trained.items())


def controlled(gradients: Tensors, context: Tensors) -> Tensors:
    return {name: gradient + context[name] for name, gradient in gradients.items()}


@pytest.mark.parametrize("kind", ["plain", "penalty", "correct"])
def test_a_lower_rank_trains_as_a_model_of_that_rank(
    make_replica: Build, make_windows: Callable[..., HospitalWindows], kind: str
) -> None:
    """Rank 2 in buffers of rank 5 against a replica of rank 2: penalties and corrections see the hospital's rank."""
    results = []
    for rank in (2, 5):
        replica = make_replica(rank=rank, precision="fp64", image_size=16, alpha=2.0, power=1.0)
        small = make_replica(rank=2, precision="fp64", image_size=16, alpha=2.0, power=1.0)
        start = small.read()
        anchor = {name: torch.full_like(value, 0.05) for name, value in start.items()}
        extra = {"penalty": {"penalty": proximal}, "correct": {"correct": controlled}}.get(kind, {})
        phase = Phase(train=tuple(start), context=anchor, record_gradient=True, **extra)
        training = Training(steps=3, batch_size=4, optimizer=AdamW(lr=1e-2), schedule=CONSTANT, clip_norm=1.0)
        done, (fit,) = turn(replica, make_windows(), start, training, phase)
        results.append({**done.result.tensors, **{f"g/{n}": v for n, v in fit.mean_gradient.items()}})
        if rank == 5:
            for pair in replica.layout.pairs:
                assert not replica.values[pair.A][2:].any()
                assert not replica.values[pair.B][:, 2:].any()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_kept_moments_survive_a_round_that_trains_something_else(
    make_replica: Build, make_windows: Callable[..., HospitalWindows]
) -> None:
    """As in alternating algorithms: A trains, then B, then A again with the moments of its first round."""
    replica = make_replica(precision="fp64", image_size=16)
    start = replica.read()
    parts = [tuple(name for name in start if replica.layout.kind[name] == kind) for kind in ("lora_A", "lora_B")]
    training = Training(steps=2, batch_size=4, optimizer=AdamW(lr=1e-3), schedule=CONSTANT, moments="keep")
    memory, kept = Memory(), []
    for part in (parts[0], parts[1], parts[0]):
        memory = turn(replica, make_windows(), start, training, Phase(train=part), memory=memory)[0].memory
        kept.append(memory.optimizer[0].moments)
    a, b = parts[0][0], parts[1][0]
    assert torch.equal(kept[0][f"{a}/exp_avg"], kept[1][f"{a}/exp_avg"])  # untouched while B trained
    assert kept[2][f"{a}/step"].item() == 4
    assert kept[2][f"{b}/step"].item() == 2


def test_a_phase_may_measure_without_training_anything(
    make_replica: Build, make_windows: Callable[..., HospitalWindows]
) -> None:
    replica, windows = make_replica(precision="fp64", image_size=16), make_windows()
    done, (fit,) = turn(replica, windows, replica.read(), Training(), Phase(train=(), epochs=0, measure=True))
    assert done.num_steps == 0
    assert done.mean_loss is None
    assert fit.loss_before == mean_loss(Workplace(replica=replica, training=Training(), augment=NoAugment()), windows)


def test_the_loss_shown_is_that_of_the_last_phase_that_trained(
    make_replica: Build, make_windows: Callable[..., HospitalWindows]
) -> None:
    replica = make_replica(precision="fp64", image_size=16)
    names = tuple(replica.values)
    training = Training(steps=1, batch_size=4, optimizer=SGD(lr=0.1), schedule=CONSTANT)
    phases = Phase(train=names), Phase(train=names, epochs=0)
    done, fits = turn(replica, make_windows(), replica.read(), training, *phases)
    assert done.mean_loss == fits[0].mean_loss
    assert [state.steps for state in done.memory.optimizer] == [1, 0]


def test_training_what_the_method_does_not_offer_is_refused(
    make_replica: Build, make_windows: Callable[..., HospitalWindows]
) -> None:
    replica = make_replica(image_size=16)
    with pytest.raises(ValueError, match=r"the local rule trains \['nobody'\]"):
        turn(replica, make_windows(), replica.read(), Training(), Phase(train=("nobody",)))


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_a_phase_begins_where_it_says_or_where_the_last_one_ended(
    make_replica: Build, make_windows: Callable[..., HospitalWindows], together: bool
) -> None:
    """Three phases of one step; the second has some start values of its own. Every phase draws its own batches."""
    replica, windows = make_replica(precision="fp64", image_size=16), make_windows()
    training = Training(steps=1, batch_size=4, optimizer=SGD(lr=0.1), schedule=CONSTANT)
    workplace = Workplace(replica=replica, training=training, augment=NoAugment())
    start, rng, lasting = replica.read(), streams(0, "local", 1, "hospital"), streams(0, "lasting", "hospital")
    own = {name: value + 0.1 for name, value in list(start.items())[:3]}
    phases = [Phase(train=tuple(start)), Phase(train=tuple(start), start=own), Phase(train=tuple(start))]

    values, expected = dict(start), []
    for number, phase in enumerate(phases):
        values |= phase.start or {}
        replica.load(values)
        keys = (f"phase-{number}",) if number else ()
        expected.append(
            fit(workplace, phase, windows, OptimizerState(), lambda *k, keys=keys: rng(*k, *keys), lasting)[0]
        )
        values = dict(expected[-1].tensors)

    download = Download(start=start, train=tuple(start), returns={name: tuple(v.shape) for name, v in start.items()})
    given = {"hospital": INFO, "download": download, "memory": Memory(), "windows": windows}
    assignment = Assignment(**given, rng=rng, lasting=lasting)
    rule = Rule(*phases)
    if together:
        take_turns_together(workplace, Stack(replica, 2), rule, [assignment] * 2)
    else:
        take_turn(workplace, rule, assignment)
    for found, fitted in zip(rule.fits, expected, strict=True):
        for name, value in fitted.tensors.items():
            torch.testing.assert_close(found.tensors[name], value, rtol=1e-12, atol=1e-12 if together else 0)
