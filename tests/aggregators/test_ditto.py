"""Ditto: FedAvg beside personal models, which end between the hospital's own optimum and the global model."""

from __future__ import annotations

import math

import pytest
import torch
from pairs import tensor
from quadratics import quadratics, rounds

from wardround.aggregators import Ditto, FedAvg, Local
from wardround.aggregators.ditto import GlobalThenPersonal
from wardround.aggregators.toy import initial_state, make_world, run_round


@pytest.mark.parametrize("lam", [0.0, 1.0, 25.0])
def test_the_global_model_is_fedavgs_whatever_lam(lam: float) -> None:
    world = make_world()
    plain = rounds(FedAvg(), world, 3).after.tensors
    got = rounds(Ditto(lam=lam), world, 3).after.tensors
    assert all(torch.equal(got[name], value) for name, value in plain.items())


@pytest.mark.parametrize("lam", [0.0, 0.5, 2.0, 9.0])
def test_personal_models_end_where_they_should(lam: float) -> None:
    """The minimum of a/2 (v - t)^2 + lam/2 (v - w)^2 is (a t + lam w) / (a + lam), with w the end of FedAvg.

    So it is the hospital's own optimum t for lam = 0, and |v - w| = a |t - w| / (a + lam) falls with lam.
    """
    world = quadratics((4.0, 8.0, 16.0))
    last = rounds(Ditto(lam=lam), world, 55)
    w = world.fixed_point_of_fedavg
    for name, a in world.curvatures.items():
        t = world.targets[name]["w"].item()
        assert last.memories[name]["w"].item() == pytest.approx((a * t + lam * w) / (a + lam), abs=1e-9)


def test_without_a_pull_the_first_round_is_local_training() -> None:
    world = make_world()
    alone, personal = (rounds(aggregator, world, 2).memories for aggregator in (Local(), Ditto(lam=0.0)))
    for hospital, memory in alone.items():
        for name, value in memory.items():
            torch.testing.assert_close(personal[hospital][name], value, rtol=1e-12, atol=1e-12)


def test_a_strong_pull_keeps_them_near_the_global_model() -> None:
    """``v = a t / (a + lam)`` with w = 0, where targets 5 and -5 leave it: 1/40 of the way for a = 1 and lam = 39.

    The curvature 40 is the last that steps of 0.05 do not overshoot for good; the step of 0.025 lands on the minimum.
    """
    last = rounds(Ditto(lam=39.0), quadratics((1.0, 1.0), (5.0, -5.0)), 1)
    assert [memory["w"].item() for memory in last.memories.values()] == pytest.approx([5 / 40, -5 / 40])
    assert last.after.tensors["w"].item() == pytest.approx(0.0, abs=1e-12)


def test_the_pull_is_towards_the_start_of_the_round() -> None:
    """A step of 0.05 on (v - t) + lam (v - w) from v = 0 with t = 6: first w = 0 and v = 0.3.

    Then w = 0.3 (one hospital) and v = 0.3 + 0.05 (5.7 - 0) = 0.585, whatever lam; with the pull towards where the
    global phase ends, 0.585, it would be more.
    """
    world = quadratics((1.0,), (6.0,))
    last = rounds(Ditto(lam=4.0), world, 2, epochs=0.25)
    assert last.memories["a"]["w"].item() == pytest.approx(0.585)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_learning_rate_at_which_the_pull_diverges(momentum: float) -> None:
    """``2 (1 + rho) / lam``, here with lam = 4 and a loss that is flat."""
    ends = []
    for share in (0.95, 1.05):
        v = tensor(1.0).requires_grad_()
        optimizer = torch.optim.SGD([v], lr=share * 2 * (1 + momentum) / 4, momentum=momentum)
        for _ in range(400):
            optimizer.zero_grad()
            GlobalThenPersonal(lam=4.0).penalty({"v": v}, {"v": tensor(0.0)}).backward()
            optimizer.step()
        ends.append(abs(v.item()))
    assert ends[0] < 1e-6
    assert ends[1] > 1e6


def test_personal_epochs_are_its_own() -> None:
    """Four steps for the global model and two epochs of four for the personal one, which gets further."""
    world = quadratics((1.0,), (6.0,))
    short, long = (rounds(Ditto(lam=0.0, personal_epochs=epochs), world, 1) for epochs in (None, 2.0))
    assert (short.updates[0].num_steps, long.updates[0].num_steps) == (8, 12)
    assert torch.equal(short.updates[0].tensors["w"], long.updates[0].tensors["w"])
    assert long.memories["a"]["w"] > short.memories["a"]["w"]


def test_who_gets_which_model() -> None:
    """A hospital its own, one that was never there the global one."""
    world = make_world()
    last = rounds(Ditto(), world, 1, [["hospital-01"]])
    own = Ditto().deploy(last.after, world.hospital("hospital-01"), last.memories["hospital-01"])
    assert torch.equal(own["head.bias"], last.memories["hospital-01"]["head.bias"])
    for hospital in (world.hospital("hospital-02"), None):
        assert dict(Ditto().deploy(last.after, hospital, {})) == dict(last.after.tensors)


def test_personal_models_stay_and_wait() -> None:
    """What is sent does not depend on the personal model; an absent hospital keeps its own untouched."""
    world = make_world()
    first = rounds(Ditto(), world, 1)
    changed = {name: {n: value + 1 for n, value in memory.items()} for name, memory in first.memories.items()}
    cohort = ["hospital-01", "hospital-02"]
    one, other = (run_round(Ditto(), world, first.after, memories, cohort) for memories in (first.memories, changed))
    for left, right in zip(one.updates, other.updates, strict=True):
        assert all(torch.equal(value, right.tensors[name]) for name, value in left.tensors.items())
        assert left.extra == {}
    assert one.memories["hospital-03"] is first.memories["hospital-03"]
    assert not torch.equal(one.memories["hospital-01"]["head.bias"], other.memories["hospital-01"]["head.bias"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": -1.0}, r"^lam: expected a number of at least 0, got -1.0$"),
        ({"lam": math.nan}, r"^lam: expected a number of at least 0, got nan$"),
        ({"personal_epochs": 0.0}, r"^personal_epochs: expected a number above 0, got 0.0$"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ditto(**settings)


def test_different_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one LoRA rank"):
        initial_state(Ditto(), make_world(ranks=(1, 2)))
