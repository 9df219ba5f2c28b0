"""FedDyn: the optimum of the mean loss, regularisers that cancel, the cloud model and the evaluated mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from pairs import tensor, update
from quadratics import dense_setting, quadratics, rounds
from torch import Tensor

from wardround.aggregators import FedAvg, FedDyn
from wardround.aggregators.contract import ClientUpdate, Download, Fit, ServerState, Tensors
from wardround.aggregators.feddyn import DynamicRegularisation
from wardround.aggregators.toy import World, initial_state, make_world, run_round, streams
from wardround.simulator.compression import TopK, with_feedback


@pytest.mark.parametrize("cohorts", [None, ["ab", "bc", "ac"]])
@pytest.mark.parametrize("alpha", [3.0, 10.0])
def test_it_ends_at_the_optimum_and_the_regularisers_cancel(alpha: float, cohorts: list[str] | None) -> None:
    """Losses a/2 (w - t)^2, optimum 8/15; there h_k is the gradient a_k (w - t_k), and sum h_k = 0."""
    world = quadratics()
    last = rounds(FedDyn(alpha=alpha), world, 100, cohorts)
    assert last.after.tensors["w"].item() == pytest.approx(world.optimum, abs=1e-9)
    assert sum(memory["w"].item() for memory in last.memories.values()) == pytest.approx(0.0, abs=1e-8)
    for name, curvature in world.curvatures.items():
        gradient = curvature * (world.optimum - world.targets[name]["w"])
        torch.testing.assert_close(last.memories[name]["w"], gradient, rtol=0, atol=1e-7)
    assert abs(world.fixed_point_of_fedavg - world.optimum) > 0.02


def test_the_optimum_is_a_fixed_point_whatever_alpha() -> None:
    """From h_k = a_k (w - t_k) at the optimum nobody moves, however small alpha and whoever takes part."""
    world = quadratics()
    optimum = tensor(world.optimum)
    memories = {name: {"w": a * (optimum - world.targets[name]["w"])} for name, a in world.curvatures.items()}
    for alpha in (0.01, 100.0):
        server = replace(initial_state(FedDyn(alpha=alpha), world), tensors={"w": optimum})
        last = run_round(FedDyn(alpha=alpha), world, server, memories, cohort=["a", "c"])
        torch.testing.assert_close(last.after.tensors["w"], optimum)
        torch.testing.assert_close(last.memories["a"]["w"], memories["a"]["w"])
        assert last.aggregated.diagnostics["cloud_distance"] == pytest.approx(0.0, abs=1e-12)


def after(aggregator: FedDyn, server: ServerState, *updates: ClientUpdate) -> ServerState:
    return aggregator.aggregate(server, updates, streams).server


def test_server_by_hand() -> None:
    """Two of four hospitals of different weights, alpha = 1/2, from 0: they send 1 and 3.

    The mean is 2, h = -(1/8)(1 + 3) = -1/2, and the next round starts from 2 + 1 = 3. There one hospital sends 4: the
    mean is 4, h = -1/2 - (1/8)(4 - 3) = -5/8, and the next round starts from 4 + 5/4.
    """
    aggregator = FedDyn(alpha=0.5)
    setting = quadratics((1.0,) * 4, (0.0,) * 4).setting
    first = after(
        aggregator, aggregator.init(setting, streams), update("a", 5.0, w=tensor(1.0)), update("b", w=tensor(3.0))
    )
    info = setting.hospitals[0]
    assert (first.tensors["w"], first.memory["w"]) == (2.0, -0.5)
    assert aggregator.broadcast(first, info).start["w"] == 3.0
    assert aggregator.deploy(first, info, {"w": tensor(99.0)})["w"] == 2.0
    assert aggregator.deploy(first, None, {})["w"] == 2.0
    last = aggregator.aggregate(first, [update("c", w=tensor(4.0))], streams)
    assert (last.server.tensors["w"], last.server.memory["w"]) == (4.0, -0.625)
    assert aggregator.broadcast(last.server, info).start["w"] == 5.25
    assert last.diagnostics == {"cloud_distance": 1.25}


def test_hospital_by_hand() -> None:
    """From 1 with h = 3 and alpha = 2: at 4 the penalty is -3 * 4 + (4 - 1)^2 = -3, its gradient -3 + 2 * 3 = 3.

    Ending at 4 makes h = 3 - 2 * (4 - 1) = -3.
    """
    rule = DynamicRegularisation(alpha=2.0)
    download = Download(start={"w": tensor(1.0)}, train=("w",), returns={"w": (1,)})
    (phase,) = rule.phases(download, {"w": tensor(3.0)})
    w = tensor(4.0).requires_grad_()
    assert phase.penalty is not None
    penalty = phase.penalty({"w": w}, phase.context)
    penalty.backward()
    assert (penalty.item(), w.grad) == (-3.0, 3.0)
    ended = Fit(tensors={"w": tensor(4.0)}, learning_rates=(1.0,))
    result = rule.finish(download, [ended], {"w": tensor(3.0)})
    assert (result.tensors["w"], result.memory["w"]) == (4.0, -3.0)
    assert rule.finish(download, [ended], {}).memory["w"] == -6.0


def test_two_rounds_of_training_by_hand() -> None:
    """Curvatures 1 and 4, targets 6 and -2, alpha = 2, start 0; one step of 0.05 per round.

    Round 1 (h_k = 0): w_a = 0.3, w_b = -0.4; mean -0.05; h_a = -0.6, h_b = 0.8, h = 0.1; cloud -0.05 - 0.05 = -0.1.
    Round 2: gradients -6.1 + 0.6 = -5.5 and 7.6 - 0.8 = 6.8, so w_a = 0.175 and w_b = -0.44; mean -0.1325.
    """
    world = quadratics((1.0, 4.0), (6.0, -2.0))
    aggregator = FedDyn(alpha=2.0)
    first = rounds(aggregator, world, 1, epochs=0.25)
    assert first.after.tensors["w"].item() == pytest.approx(-0.05)
    assert [memory["w"].item() for memory in first.memories.values()] == pytest.approx([-0.6, 0.8])
    second = run_round(aggregator, world, first.after, first.memories, epochs=0.25)
    assert second.downloads["a"].start["w"].item() == pytest.approx(-0.1)
    assert [one.tensors["w"].item() for one in second.updates] == pytest.approx([0.175, -0.44])
    assert second.after.tensors["w"].item() == pytest.approx(-0.1325)


@pytest.mark.parametrize("cohorts", [None, [["hospital-01", "hospital-03"], ["hospital-02"]], [["hospital-02"]]])
def test_the_server_knows_the_mean_of_what_the_hospitals_keep(cohorts: list[list[str]] | None) -> None:
    """``h`` is the mean of all h_k, although none of them travels."""
    last = rounds(FedDyn(alpha=0.5), make_world(), 3, cohorts)
    for name, value in last.after.memory.items():
        total = sum(memory[name] for memory in last.memories.values())
        torch.testing.assert_close(value, total / 3, rtol=1e-10, atol=1e-12)
    assert all(one.extra == {} for one in last.updates)
    assert all(download.traffic.keys() == download.start.keys() for download in last.downloads.values())


@dataclass(frozen=True, kw_only=True)
class FourNumbers(World):
    """``1/2 sum_i a_ki (w_i - t_ki)^2``."""

    curvatures: Mapping[str, Tensor]

    def loss(self, hospital: str, tensors: Tensors, base: Tensors) -> Tensor:
        return 0.5 * (self.curvatures[hospital] * (tensors["w"] - self.targets[hospital]["w"]).square()).sum()


@pytest.mark.parametrize("error_feedback", [True, False])
def test_lossy_compression_needs_error_feedback(error_feedback: bool) -> None:
    """Half of a step of four numbers arrives. What never does is in h_k and not in h, and the end is no optimum."""
    curvatures = torch.tensor([[1.0, 4.0, 9.0, 2.0], [3.0, 1.0, 1.0, 8.0]], dtype=torch.float64)
    targets = torch.tensor([[6.0, -2.0, 1.0, 3.0], [-1.0, 4.0, -5.0, 0.5]], dtype=torch.float64)
    optimum = (curvatures * targets).sum(0) / curvatures.sum(0)
    world = FourNumbers(
        setting=dense_setting({"w": torch.zeros(4, dtype=torch.float64)}, "ab"),
        targets={name: {"w": target} for name, target in zip("ab", targets, strict=True)},
        curvatures=dict(zip("ab", curvatures, strict=True)),
    )
    aggregator, compression = FedDyn(alpha=3.0), TopK(fraction=0.5, error_feedback=error_feedback)
    server, memories, feedback = initial_state(aggregator, world), {}, {"a": {}, "b": {}}
    for _ in range(300):
        last = run_round(aggregator, world, server, memories)
        memories, updates = last.memories, []
        for one in last.updates:
            start = last.downloads[one.hospital].start["w"]
            sent, feedback[one.hospital] = with_feedback(
                compression, {"w": one.tensors["w"] - start}, feedback[one.hospital], streams
            )
            updates.append(replace(one, tensors={"w": start + sent.tensors["w"]}))
        server = aggregator.aggregate(server, updates, streams).server
    distance = ((server.tensors["w"] - optimum).norm() / optimum.norm()).item()
    apart = (server.memory["w"] - sum(memory["w"] for memory in memories.values()) / 2).norm().item()
    assert (distance < 1e-9) == (apart < 1e-9) == error_feedback
    assert error_feedback or distance > 0.1


def test_with_a_vanishing_alpha_round_1_is_fedavg_with_uniform_weights() -> None:
    world = quadratics()
    got, expected = (rounds(aggregator, world, 1).after.tensors["w"] for aggregator in (FedDyn(alpha=1e-13), FedAvg()))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("alpha", [0.0, -0.1, math.nan])
def test_an_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"^alpha: expected a number above 0, got"):
        FedDyn(alpha=alpha)


def test_different_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one LoRA rank"):
        initial_state(FedDyn(), make_world(ranks=(1, 2)))
