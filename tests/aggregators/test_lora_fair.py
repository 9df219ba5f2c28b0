"""LoRA-FAIR: the correction of B by descent on a cosine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from pairs import ideal_mean, normal, one_pair, product, random_updates, state, tensor, update
from torch import Tensor

from wardround.aggregators import FedAvg, LoraFair, LoraFairRidge
from wardround.aggregators.contract import ClientUpdate, HospitalInfo, Layout, Setting
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def aggregated(aggregator: FedAvg, setting: Setting, updates: list[ClientUpdate]) -> dict[str, Tensor]:
    return dict(aggregator.aggregate(state(setting), updates, streams).server.tensors)


def cosine(left: Tensor, right: Tensor) -> float:
    return torch.cosine_similarity(left.flatten(), right.flatten(), dim=0).item()


def dense_descent(setting: Setting, updates: list[ClientUpdate], lam: float, lr: float, iterations: int) -> Tensor:
    """The documented iteration on dense matrices, with the gradient by autograd."""
    means = aggregated(FedAvg(), setting, updates)
    W, B, A = ideal_mean(setting, updates), means["B"], means["A"]
    step, D = lr * B.square().sum().item(), torch.zeros_like(B)
    for _ in range(iterations):
        leaf = D.clone().requires_grad_()
        loss = 1 - torch.cosine_similarity(W.flatten(), ((B + leaf) @ A).flatten(), dim=0)
        (gradient,) = torch.autograd.grad(loss, leaf)
        moved = D - step * gradient
        D = moved * max(0.0, 1 - step * lam / max(moved.norm().item(), 1e-300))
    return B + D


@pytest.mark.parametrize("lam", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("d_out", [3, 11])
def test_is_the_dense_descent(lam: float, d_out: int) -> None:
    """Gram blocks and the (2 r, r) coordinates change nothing, also where d_out < 2 r."""
    setting = one_pair(d_out, 13, ranks=(2, 2, 2), alpha=4.0, power=1.0)
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    got = aggregated(LoraFair(lam=lam, lr=0.02, iterations=50), setting, updates)
    expected = dense_descent(setting, updates, lam, lr=0.02, iterations=50)
    assert (expected - aggregated(FedAvg(), setting, updates)["B"]).norm() > 0.05
    torch.testing.assert_close(got["B"], expected, rtol=1e-10, atol=1e-12)


def test_arrives_at_the_minimum_of_the_objective() -> None:
    """Against BFGS on the dense objective of the paper, from the same start."""
    setting = one_pair(6, 5, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    means, W = aggregated(FedAvg(), setting, updates), ideal_mean(setting, updates).numpy()
    B, A = means["B"].numpy(), means["A"].numpy()

    def objective(flat: np.ndarray) -> float:
        M = (B + flat.reshape(B.shape)) @ A
        return 1 - (W * M).sum() / np.linalg.norm(W) / np.linalg.norm(M) + 0.05 * np.linalg.norm(flat)

    found = scipy.optimize.minimize(objective, np.full(B.size, 1e-3), method="BFGS").fun
    got = aggregated(LoraFair(lam=0.05, iterations=5000), setting, updates)
    assert objective((got["B"].numpy() - B).ravel()) == pytest.approx(found, abs=1e-5)
    assert found < objective(np.zeros(B.size)) - 0.01


def test_without_a_penalty_it_turns_as_far_as_the_row_space_allows() -> None:
    """The largest cosine is that of the least-squares projection, whatever the length: sqrt(1 - error^2 / ||W*||^2)."""
    setting = one_pair(9, 8, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    W = ideal_mean(setting, updates)
    got, least_squares, fedit = (
        product(setting, aggregated(aggregator, setting, updates))
        for aggregator in (LoraFair(lam=0.0, iterations=4000), LoraFairRidge(lam=0.0), FedAvg())
    )
    assert cosine(got, W) == pytest.approx(cosine(least_squares, W), abs=1e-6)
    assert cosine(got, W) > cosine(fedit, W) + 0.01


def uneven(size: float) -> tuple[Setting, list[ClientUpdate]]:
    """Hospitals that start from one A and end near it; the last of its eight rows is a thirtieth of the first."""
    setting = one_pair(24, 24, ranks=(8,) * 5)
    common = {"A": normal(8, 24, seed="A"), "B": normal(24, 8, seed="B")}
    rows = torch.logspace(0, -1.5, 8, dtype=torch.float64)
    updates = []
    for own in random_updates(setting, [1.0] * 5):
        A, B = common["A"] + own.tensors["A"], size * (common["B"] + own.tensors["B"])
        updates.append(update(own.hospital, A=rows[:, None] * A, B=B * rows, w=tensor(0.0)))
    return setting, updates


def test_the_default_steps_are_too_few_where_rows_differ_in_length() -> None:
    """As the docstring says: of what can be won in ``1 - cos`` (0.0068), the defaults have half (0.0035).

    More steps turn it further, and take the product farther from the ideal mean than FedIT's is.
    """
    setting, updates = uneven(1e-3)
    W = ideal_mean(setting, updates)
    fedit, default, free, best, longer = (
        product(setting, aggregated(aggregator, setting, updates))
        for aggregator in (
            FedAvg(),
            LoraFair(),
            LoraFair(lam=0.0),
            LoraFairRidge(lam=0.0),
            LoraFair(lam=0.0, iterations=10_000),
        )
    )
    for some in (default, free):
        assert 0.4 < (cosine(some, W) - cosine(fedit, W)) / (cosine(best, W) - cosine(fedit, W)) < 0.6
    assert cosine(free, W) < cosine(longer, W) < cosine(best, W)
    assert (longer - W).norm() > (fedit - W).norm() > (free - W).norm()


def test_the_default_penalty_does_nothing_while_b_is_small_and_forbids_all_where_it_is_large() -> None:
    """As the docstring says: with B of 1e-3 the default result is that of lam = 0, with B of 1 it is FedIT's."""
    (small, small_updates), (large, large_updates) = uneven(1e-3), uneven(1.0)
    default, free, fedit = (
        aggregated(aggregator, small, small_updates)["B"] for aggregator in (LoraFair(), LoraFair(lam=0.0), FedAvg())
    )
    assert (default - free).norm() < 0.01 * (free - fedit).norm()
    default, fedit = (aggregated(aggregator, large, large_updates)["B"] for aggregator in (LoraFair(), FedAvg()))
    assert torch.equal(default, fedit)


def test_a_penalty_above_the_gradient_is_fedavg() -> None:
    """||gradient of the cosine at D = 0|| < lam: D = 0 is the minimum, and it stays there exactly."""
    setting = one_pair(9, 8, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    got, fedavg = (aggregated(one, setting, updates) for one in (LoraFair(lam=10.0), FedAvg()))
    assert torch.equal(got["B"], fedavg["B"])


def test_the_size_of_the_factors_does_not_matter_without_a_penalty() -> None:
    """A thousandth of every B gives a thousandth of the result: the step does not overshoot where B is small."""
    setting = one_pair(9, 8, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    small = [replace(one, tensors={**one.tensors, "B": one.tensors["B"] / 1000}) for one in updates]
    large, tiny = (aggregated(LoraFair(lam=0.0), setting, those)["B"] for those in (updates, small))
    torch.testing.assert_close(tiny, large / 1000, rtol=1e-9, atol=1e-12)


def test_pairs_of_different_shapes_are_corrected_together() -> None:
    """Each pair of the toy federation as if it were alone; at rank 4 one has d_out = 6 < 2 r."""
    world = make_world((4, 4, 4))
    last = run_round(LoraFair(), world, initial_state(LoraFair(), world))
    for pair in world.setting.layout.pairs:
        d_out, d_in = last.after.tensors[pair.B].shape[0], last.after.tensors[pair.A].shape[1]
        alone = one_pair(d_out, d_in, ranks=(4, 4, 4), alpha=2.0, power=1.0)
        updates = [
            update(one.hospital, one.weight, A=one.tensors[pair.A], B=one.tensors[pair.B], w=tensor(0.0))
            for one in last.updates
        ]
        expected = aggregated(LoraFair(), alone, updates)["B"]
        torch.testing.assert_close(last.after.tensors[pair.B], expected, rtol=1e-10, atol=1e-12)


def test_when_nobody_has_learned_anything_it_is_fedavg() -> None:
    """B is zero everywhere, no direction is better than another: no division by zero, no correction."""
    setting = one_pair(ranks=(1, 1))
    zero = {"A": tensor([1.0, 2.0]), "B": torch.zeros(2, 1).double(), "w": tensor(1.0)}
    got = aggregated(LoraFair(), setting, [update("a", **zero), update("b", **zero)])
    assert not got["B"].any()


def test_without_pairs_it_is_fedavg() -> None:
    setting = Setting(
        trainable={"w": tensor(0.0)},
        layout=Layout(pairs=(), dense=("w",), part={"w": "head"}, kind={"w": "weight"}),
        hospitals=(HospitalInfo(name="a", num_examples=1), HospitalInfo(name="b", num_examples=1)),
    )
    assert aggregated(LoraFair(), setting, [update("a", w=tensor(1.0)), update("b", w=tensor(2.0))])["w"] == 1.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": -0.5}, "lam: expected a number of at least 0, got -0.5"),
        ({"lr": 0.0}, "lr: expected a number above 0, got 0.0"),
        ({"iterations": -1}, "iterations: expected an integer of at least 0, got -1"),
        ({"iterations": 2.5}, "iterations: expected an integer of at least 0, got 2.5"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LoraFair(**settings)
