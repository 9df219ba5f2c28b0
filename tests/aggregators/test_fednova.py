"""FedNova: normalised averaging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from one_number import number_setting
from pairs import one_pair
from rounds import advance

from wardround.aggregators import FedAvg, FedNova
from wardround.aggregators.arithmetic import mean_update
from wardround.aggregators.contract import ClientUpdate, Fit, HospitalInfo, ServerState
from wardround.aggregators.fednova import norm_of_steps
from wardround.aggregators.toy import initial_state, make_world, run_round, streams
from wardround.clients.optimizers import Schedule


def moved(lrs: Sequence[float], momentum: float) -> float:
    """How far torch's SGD moves under a gradient of 1 in every step."""
    w = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=momentum)
    for lr in lrs:
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.ones_like(w)
        optimizer.step()
    return -w.item()


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_norm_is_how_far_sgd_moves(steps: int, momentum: float) -> None:
    """For equal learning rates it is the paper's formula, times the learning rate."""
    norm = norm_of_steps([0.03] * steps, momentum)
    assert norm == pytest.approx(moved([0.03] * steps, momentum), rel=1e-12)
    paper = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    assert norm == pytest.approx(0.03 * paper, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("first", "steps"), [(0, 10), (240, 20), (1000, 50), (2240, 20)])
def test_a_schedule_changes_nothing_about_that(first: int, steps: int, momentum: float) -> None:
    """FLAP-SAM's schedule at 10 steps per epoch: warm-up, its end, decay, and the end, after which lr is 0.

    The formula of the docstring says the same: ``sum_t eta_t (1 - rho^(t+1)) / (1 - rho)``.
    """
    lrs = [Schedule().lr(0.01, first + number, 10) for number in range(steps)]
    norm = norm_of_steps(lrs, momentum)
    assert norm == pytest.approx(moved(lrs, momentum), rel=1e-12, abs=0)
    said = sum(eta * (1 - momentum ** (t + 1)) / (1 - momentum) for t, eta in enumerate(lrs))
    assert norm == pytest.approx(said, rel=1e-12, abs=0)


def turn(
    server: ServerState,
    hospital: HospitalInfo,
    target: float,
    steps: int,
    *,
    weight: float = 1.0,
    lr: float = 0.5,
    momentum: float = 0.0,
    aggregator: FedAvg = FedNova(),  # noqa: B008  # a frozen value
) -> ClientUpdate:
    """A hospital that takes steps of SGD on ``1/2 (w - target)^2``."""
    download = aggregator.broadcast(server, hospital)
    w = download.start["w"].clone().requires_grad_()
    optimizer = torch.optim.SGD([w], lr=lr, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (w - target).square().sum()).backward()
        optimizer.step()
    fit = Fit(tensors={"w": w.detach()}, learning_rates=(lr,) * steps, momentum=momentum)
    result = aggregator.rule.finish(download, [fit], {})
    return ClientUpdate(
        hospital=hospital.name,
        weight=weight,
        num_examples=1,
        num_steps=steps,
        tensors=result.tensors,
        metrics=result.metrics,
    )


def start() -> ServerState:
    return FedNova().init(number_setting(0.0, optimizer="sgd"), streams)


def test_two_quadratics_by_hand() -> None:
    """Targets 4 and -8, 1 and 2 steps of learning rate 1/2, from 0.

    theta_a = 2 and theta_b = -4, -6. ||a_a|| = 1/2, ||a_b|| = 1: d_a = -2 / (1/2) = -4, d_b = 6. Equal weights:
    tau_eff = 3/4, mean d = 1, theta = -3/4; FedAvg would go to -2. Weights 3 : 1: tau_eff = 5/8, mean d = -6/4,
    theta = 15/16.
    """
    server = start()
    a, b = server.setting.hospitals
    updates = [turn(server, a, 4.0, 1), turn(server, b, -8.0, 2)]
    assert [one.tensors["w"].item() for one in updates] == [4.0, -6.0]  # theta - d_k
    after = FedNova().aggregate(server, updates, streams)
    assert after.server.tensors["w"] == -0.75
    assert after.diagnostics == {"tau_eff": 0.75}
    updates = [turn(server, a, 4.0, 1, weight=3.0), turn(server, b, -8.0, 2)]
    for sent in (updates, [mean_update(updates)]):
        assert FedNova().aggregate(server, sent, streams).server.tensors["w"] == 0.9375


def test_two_quadratics_with_momentum_by_hand() -> None:
    """The same with momentum 1/2: theta_a = 2; theta_b = -4 with v = 8, then v = 4 + 4 = 8 and theta_b = -8.

    ||a_b|| = 1/2 (1 + 3/2) = 5/4, d_b = 8 / (5/4) = 32/5, d_a = -4; tau_eff = 7/8, mean d = 6/5, theta = -21/20.
    """
    server = start()
    a, b = server.setting.hospitals
    updates = [turn(server, a, 4.0, 1, momentum=0.5), turn(server, b, -8.0, 2, momentum=0.5)]
    after = FedNova().aggregate(server, updates, streams).server
    assert after.tensors["w"].item() == pytest.approx(-1.05, rel=1e-14)


@pytest.mark.parametrize(("aggregator", "end"), [(FedAvg(), 8 * 0.271 / 0.371), (FedNova(), 8 * 0.271 / 0.571)])
def test_unequal_work_pulls_less(aggregator: FedAvg, end: float) -> None:
    """Targets 0 and 8, so that the minimum of the mean loss is 4; 1 and 3 steps of learning rate 0.1.

    A hospital goes the share c = 1 - 0.9^tau of its way: 0.1 and 0.271. FedAvg stays where 0.1 (0 - w) +
    0.271 (8 - w) = 0, at 5.84; FedNova where 0.1 (0 - w) + 0.271 / 3 (8 - w) = 0, at 3.80.
    """
    server = start()
    a, b = server.setting.hospitals
    for _ in range(150):
        updates = [
            turn(server, hospital, target, steps, lr=0.1, aggregator=aggregator)
            for hospital, target, steps in ((a, 0.0, 1), (b, 8.0, 3))
        ]
        server = aggregator.aggregate(server, updates, streams).server
    assert server.tensors["w"].item() == pytest.approx(end, rel=1e-9)


def test_with_equal_work_it_is_fedavg() -> None:
    """Three rounds of training; every hospital of the toy federation takes the same steps."""
    world, ends = make_world((2, 2, 2)), []
    for aggregator in (FedNova(), FedAvg()):
        server = initial_state(aggregator, world)
        for _ in range(3):
            server = run_round(aggregator, world, server).after
        ends.append(server.tensors)
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-12, atol=1e-12)


def test_in_the_engine_with_equal_work_it_is_fedavg(make_federated) -> None:
    """The real model, SGD with momentum 0.9 in double precision; with 2 : 4 windows it is another algorithm."""
    for volumes, same in (((2, 2), True), ((1, 2), False)):
        ends = []
        for aggregator in (FedNova(), FedAvg()):
            federated, before = make_federated(aggregator, volumes=volumes)
            ends.append(advance(federated, before).checkpoint.server.tensors)
        distance = max((value - ends[1][name]).abs().max().item() for name, value in ends[0].items())
        assert (distance < 1e-10) == same


def test_a_round_without_steps_changes_nothing() -> None:
    world = make_world((2, 2))
    last = run_round(FedNova(), world, initial_state(FedNova(), world), epochs=0)
    assert all(one.metrics == {"a_norm": 0.0} for one in last.updates)
    for name, value in last.before.tensors.items():
        assert torch.equal(last.after.tensors[name], value)


def test_one_hospital_gets_its_own_model() -> None:
    """``tau_eff / ||a|| = 1``. Target 4, momentum 1/2: v = -4, -4, -2, so that w = 2, 4, 5."""
    server = start()
    update = turn(server, server.setting.hospitals[0], 4.0, 3, momentum=0.5)
    after = FedNova().aggregate(server, [update], streams).server
    assert after.tensors["w"].item() == pytest.approx(5.0, rel=1e-14)


def test_another_optimizer_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"^optimizer: expected 'sgd', got 'adamw': .*training\.optimizer to sgd"):
        FedNova().init(replace(number_setting(), optimizer="adamw"), streams)


def test_different_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="one LoRA rank for all hospitals"):
        FedNova().init(replace(one_pair(ranks=(1, 2)), optimizer="sgd"), streams)
