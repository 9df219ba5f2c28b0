"""SCAFFOLD: the optimum of the mean loss, control variates by hand, absent hospitals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pairs import tensor, update
from quadratics import SUM_LR, quadratics, rounds, shrunk

from wardround.aggregators import FedAvg, Scaffold
from wardround.aggregators.contract import Download, Fit
from wardround.aggregators.scaffold import Controlled
from wardround.aggregators.toy import World, initial_state, make_world, run_round, streams


def with_uniform_weights(world: World) -> World:
    hospitals = tuple(replace(hospital, num_examples=1) for hospital in world.setting.hospitals)
    return replace(world, setting=replace(world.setting, hospitals=hospitals))


def test_it_ends_at_the_optimum_where_fedavg_does_not() -> None:
    """Losses a/2 (w - t)^2 with a = 1, 4, 10 and t = 6, -2, 1: the optimum is (6 - 8 + 10) / 15 = 8/15.

    Four local steps take hospital k to t + s (w - t) with s = (1 - 0.05 a)(1 - 0.025 a)...; FedAvg stays where
    sum (1 - s_k)(t_k - w) = 0, which is 0.51046.
    """
    world = quadratics()
    fedavg, scaffold = (
        rounds(aggregator, world, 60).after.tensors["w"].item() for aggregator in (FedAvg(), Scaffold())
    )
    assert world.optimum == pytest.approx(8 / 15)
    assert scaffold == pytest.approx(world.optimum, abs=1e-11)
    assert fedavg == pytest.approx(world.fixed_point_of_fedavg, abs=1e-11)
    assert abs(fedavg - world.optimum) > 0.02


@pytest.mark.parametrize("cohorts", [["ab", "bc", "ac"], ["a", "b", "c"]])
def test_it_ends_there_with_part_of_the_hospitals_too(cohorts: list[str]) -> None:
    world = quadratics()
    last = rounds(Scaffold(), world, 150, cohorts)
    assert last.after.tensors["w"].item() == pytest.approx(world.optimum, abs=1e-8)
    assert last.after.memory["w"].item() == pytest.approx(0.0, abs=1e-8)
    for name, curvature in world.curvatures.items():  # c_k is the gradient of hospital k at the optimum
        gradient = curvature * (world.optimum - world.targets[name]["w"])
        torch.testing.assert_close(last.memories[name]["w"], gradient, rtol=0, atol=1e-7)


def test_two_rounds_by_hand() -> None:
    """Curvatures 1 and 4, targets 6 and -2, start 0; one step of 0.05 per round.

    Round 1: gradients c_a = -6 and c_b = 8, so w_a = 0.3, w_b = -0.4, w = -0.05 and c = 1.
    Round 2: raw gradients -6.05 and 7.8; corrected by c - c_k = 7 and -7 they are 0.95 and 0.8, so w_a = -0.0975,
    w_b = -0.09, w = -0.09375; c = (-6.05 + 7.8) / 2 = 0.875.
    """
    world = quadratics((1.0, 4.0), (6.0, -2.0))
    first = rounds(Scaffold(), world, 1, epochs=0.25)
    assert first.after.tensors["w"].item() == pytest.approx(-0.05)
    assert first.after.memory["w"].item() == pytest.approx(1.0)
    second = run_round(Scaffold(), world, first.after, first.memories, epochs=0.25)
    assert [one.tensors["w"].item() for one in second.updates] == pytest.approx([-0.0975, -0.09])
    assert second.after.tensors["w"].item() == pytest.approx(-0.09375)
    assert second.after.memory["w"].item() == pytest.approx(0.875)


def test_round_1_is_fedavg_with_uniform_weights() -> None:
    world = make_world()
    plain = with_uniform_weights(world)
    for number, same in ((1, True), (2, False)):
        got = rounds(Scaffold(), world, number).after.tensors
        expected = rounds(FedAvg(), plain, number).after.tensors
        assert all(torch.equal(got[name], value) for name, value in expected.items()) == same


def test_the_server_goes_part_of_the_way() -> None:
    """Halfway to where it goes with lr 1; the control variates do not depend on lr."""
    world = make_world()
    whole, half = (rounds(Scaffold(lr=lr), world, 1).after for lr in (1.0, 0.5))
    for name, start in world.setting.trainable.items():
        torch.testing.assert_close(half.tensors[name], (start + whole.tensors[name]) / 2)
        assert torch.equal(half.memory[name], whole.memory[name])


def test_for_sgd_it_is_option_ii_of_the_paper() -> None:
    """``c_k - c + (theta - y_k) / sum_i eta_i``, here with four different learning rates."""
    world = make_world()
    first = rounds(Scaffold(), world, 1)
    second = run_round(Scaffold(), world, first.after, first.memories)
    for one in second.updates:
        for name, theta in first.after.tensors.items():
            own, c = first.memories[one.hospital][name], first.after.memory[name]
            expected = own - c + (theta - one.tensors[name]) / SUM_LR
            torch.testing.assert_close(second.memories[one.hospital][name], expected, rtol=1e-10, atol=1e-12)


def test_a_control_variate_is_the_mean_gradient_by_hand() -> None:
    """Gradients a (w - t), the sum of eta times which is what the steps of round 1 moved w by: t (s - 1)."""
    world = quadratics()
    last = rounds(Scaffold(), world, 1)
    for name, curvature in world.curvatures.items():
        expected = (shrunk(curvature) - 1) * world.targets[name]["w"] / SUM_LR
        torch.testing.assert_close(last.memories[name]["w"], expected)


@pytest.mark.parametrize("cohorts", [None, [["hospital-02"]], [["hospital-01", "hospital-03"], ["hospital-02"]]])
def test_c_is_the_mean_over_all_hospitals(cohorts: list[list[str]] | None) -> None:
    """Hospitals that were absent count with what they last had, zero before their first round."""
    world = make_world()
    last = rounds(Scaffold(), world, 3, cohorts)
    for name, value in last.after.memory.items():
        total = sum(memory[name] for memory in last.memories.values())
        torch.testing.assert_close(value, total / 3, rtol=1e-12, atol=1e-13)


def test_weights_do_not_matter() -> None:
    server = Scaffold().init(quadratics((1.0, 1.0), (0.0, 0.0)).setting, streams)
    updates = [update("a", 9.0, w=tensor(2.0)), update("b", 1.0, w=tensor(4.0))]
    updates = [replace(one, extra={"w": tensor(change)}) for one, change in zip(updates, (1.0, 5.0), strict=True)]
    after = Scaffold().aggregate(server, updates, streams).server
    assert (after.tensors["w"], after.memory["w"]) == (3.0, 3.0)


def test_a_hospital_that_takes_no_step_keeps_its_control_variate() -> None:
    world = make_world()
    first = rounds(Scaffold(), world, 1)
    idle = run_round(Scaffold(), world, first.after, first.memories, epochs=0)
    for hospital, memory in first.memories.items():
        assert all(torch.equal(idle.memories[hospital][name], value) for name, value in memory.items())
    assert all(torch.equal(idle.after.memory[name], value) for name, value in first.after.memory.items())


def test_learning_rates_of_zero_are_no_gradient_of_zero() -> None:
    """Beyond the horizon of a schedule steps are taken at learning rate 0, and the engine's mean gradient is 0 / 0."""
    c = {"w": tensor(1.0)}
    download = Download(start=c, train=("w",), returns={"w": (1,)}, extra=c, returns_extra={"w": (1,)})
    fit = Fit(tensors=c, learning_rates=(0.0,) * 3, mean_gradient={"w": tensor(0.0)})
    result = Controlled().finish(download, [fit], {"w": tensor(5.0)})
    assert (result.memory["w"], result.extra["w"]) == (5.0, 0.0)


def test_it_sends_changes_and_keeps_its_control_variate() -> None:
    world = make_world()
    first = rounds(Scaffold(), world, 1)
    second = run_round(Scaffold(), world, first.after, first.memories)
    number = len(world.setting.layout.names)
    for one in second.updates:
        assert len(second.downloads[one.hospital].traffic) == len(one.tensors) + len(one.extra) == 2 * number
        for name, change in one.extra.items():
            old, new = first.memories[one.hospital][name], second.memories[one.hospital][name]
            assert torch.equal(change, new - old)
            assert not torch.equal(change, new)


@pytest.mark.parametrize("lr", [0.0, -1.0, math.nan])
def test_an_impossible_learning_rate_is_refused(lr: float) -> None:
    with pytest.raises(ValueError, match=r"^lr: expected a number above 0, got"):
        Scaffold(lr=lr)


def test_different_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one LoRA rank"):
        initial_state(Scaffold(), make_world(ranks=(1, 2)))
