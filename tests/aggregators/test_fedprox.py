"""FedProx: a proximal term at the hospitals, on factors or on products."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pairs import normal, one_pair, product, state, tensor
from rounds import advance
from torch import Tensor

from wardround.aggregators import FedAvg, FedProx, FlapSam
from wardround.aggregators.contract import Aggregator, Phase, Setting, Tensors
from wardround.aggregators.spaces import half_squared_distance_of_products
from wardround.aggregators.toy import Round, initial_state, make_world, run_round


def phase_of(aggregator: FedProx, setting: Setting) -> Phase:
    download = aggregator.broadcast(state(setting), setting.hospitals[0])
    (phase,) = aggregator.rule.phases(download, {})
    return phase


def penalty(aggregator: FedProx, setting: Setting, trained: Tensors, anchor: Tensors) -> Tensor:
    function = phase_of(aggregator, setting).penalty
    assert function is not None
    return function(trained, anchor)


def first_round(aggregator: Aggregator, ranks: tuple[int, ...] = (2, 2, 2)) -> Round:
    world = make_world(ranks)
    return run_round(aggregator, world, initial_state(aggregator, world))


ANCHOR = {"B": tensor([0.0], [1.0]), "A": tensor([0.0, 1.0]), "w": tensor(1.0)}
TRAINED = {"B": tensor([2.0], [0.0]), "A": tensor([1.0, 0.0]), "w": tensor(4.0)}


@pytest.mark.parametrize(("on", "expected"), [("factors", 16.0), ("product", 14.0)])
def test_the_penalty_by_hand(on, expected: float) -> None:
    """With mu 2 it is the squared distance. w: 9. Factors: B 4 + 1, A 1 + 1. Products: diag(2, 0) - diag(0, 1): 4 + 1.

    With the scale 3 the products differ by 9 times as much: 45 + 9.
    """
    setting = one_pair()
    assert penalty(FedProx(mu=2.0, on=on), setting, TRAINED, ANCHOR) == expected
    assert penalty(FedProx(mu=1.0, on=on), setting, TRAINED, ANCHOR) == expected / 2
    scaled = penalty(FedProx(mu=2.0, on=on), one_pair(alpha=3.0), TRAINED, ANCHOR)
    assert scaled.item() == pytest.approx(expected if on == "factors" else 54.0)


@pytest.mark.parametrize("trains", [("A", "B", "w"), ("B",), ("A", "w")])
def test_on_the_product_against_the_dense_gradient(trains: tuple[str, ...]) -> None:
    """Value and gradient of ``mu / 2 ||s B A - s B' A'||^2``; what does not train is as it was at the start."""
    setting = one_pair(9, 7, ranks=(3,), alpha=5.0, power=1.0)
    anchor = {"A": normal(3, 7, seed=1), "B": normal(9, 3, seed=2), "w": normal(1, seed=3)}
    trained = {name: (anchor[name] + normal(*anchor[name].shape, seed=name)).requires_grad_() for name in trains}
    ours = penalty(FedProx(mu=0.3, on="product"), setting, trained, anchor)
    now = {**anchor, **trained}
    dense = 0.15 * (product(setting, now) - product(setting, anchor)).square().sum()
    dense = dense + 0.15 * (now["w"] - anchor["w"]).square().sum()
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=0)
    for mine, other in zip(*(torch.autograd.grad(x, list(trained.values())) for x in (ours, dense)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


def test_products_of_different_ranks_have_a_distance() -> None:
    setting = one_pair(9, 7, ranks=(2, 3), alpha=5.0, power=1.0)
    left, right = ({"A": normal(r, 7, seed=r), "B": normal(9, r, seed=r), "w": tensor(1.0)} for r in (2, 3))
    dense = (product(setting, left) - product(setting, right)).square().sum()
    ours = half_squared_distance_of_products(setting.layout, left, right)
    torch.testing.assert_close(ours, dense / 2, rtol=1e-12, atol=0)


def test_the_product_sees_no_gauge_and_the_factors_do() -> None:
    setting = one_pair(6, 5, ranks=(2,))
    anchor = {"A": normal(2, 5, seed=1), "B": normal(6, 2, seed=2), "w": tensor(1.0)}
    G = tensor([2.0, 1.0], [0.0, 0.5])
    moved = {**anchor, "B": anchor["B"] @ G, "A": torch.linalg.solve(G, anchor["A"])}
    assert abs(penalty(FedProx(mu=1.0, on="product"), setting, moved, anchor)) < 1e-13
    assert penalty(FedProx(mu=1.0), setting, moved, anchor) > 1.0


@pytest.mark.parametrize("on", ["factors", "product"])
@pytest.mark.parametrize("size", [1e-2, 1e-5])
def test_near_the_start_float32_keeps_its_digits(on, size: float) -> None:
    """Steps of 1e-5 make a squared distance of 1e-10 of the norm: below what a difference of norms could show."""
    setting = one_pair(64, 48, ranks=(4,))
    anchor = {"A": normal(4, 48, seed=1).float(), "B": normal(64, 4, seed=2).float(), "w": tensor(1.0).float()}
    trained = {
        name: (value + size * normal(*value.shape, seed=name)).float().requires_grad_()
        for name, value in anchor.items()
    }
    single = penalty(FedProx(mu=1.0, on=on), setting, trained, anchor)
    exact = {name: value.detach().double().requires_grad_() for name, value in trained.items()}
    double = penalty(FedProx(mu=1.0, on=on), setting, exact, {n: value.double() for n, value in anchor.items()})
    assert single.item() == pytest.approx(double.item(), rel=1e-4)
    gradients = [torch.autograd.grad(x, list(of.values())) for x, of in ((single, trained), (double, exact))]
    for mine, other in zip(*gradients, strict=True):
        assert (mine - other).norm() < 1e-4 * other.norm()


def test_at_the_start_the_penalty_and_its_gradient_are_zero() -> None:
    setting = one_pair(6, 5, ranks=(2,))
    for on in ("factors", "product"):
        anchor = {"A": normal(2, 5, seed=1), "B": normal(6, 2, seed=2), "w": tensor(1.0)}
        trained = {name: value.clone().requires_grad_() for name, value in anchor.items()}
        value = penalty(FedProx(mu=7.0, on=on), setting, trained, anchor)
        assert value == 0.0
        assert not any(gradient.any() for gradient in torch.autograd.grad(value, list(trained.values())))


@pytest.mark.parametrize(("on", "twin", "ranks"), [("factors", FedAvg(), (2, 2, 2)), ("product", FlapSam(), (1, 2, 3))])
def test_without_mu_it_is_the_mean(on, twin: Aggregator, ranks: tuple[int, ...]) -> None:
    ours, theirs = first_round(FedProx(mu=0.0, on=on), ranks), first_round(twin, ranks)
    for name, value in theirs.after.tensors.items():
        assert torch.equal(ours.after.tensors[name], value)


@pytest.mark.parametrize("on", ["factors", "product"])
def test_a_larger_mu_keeps_hospitals_nearer(on) -> None:
    world = make_world((2, 2, 2))
    distances = []
    for mu in (0.0, 1.0, 10.0):
        last = first_round(FedProx(mu=mu, on=on))
        start = world.model(last.before.tensors, {})
        ends = [world.model(update.tensors, {}) for update in last.updates]
        distances.append(sum((end[name] - start[name]).square().sum().item() for end in ends for name in start))
    assert distances[0] > 1.05 * distances[1] > 1.1 * distances[2]


def test_a_step_of_training_by_hand() -> None:
    """One gradient step never sees the penalty (it starts at its minimum); the second one does.

    The toy loss of a dense tensor is 1/2 (theta - t)^2 with the steps 1/20 and 1/40, so that with e = theta - t the
    first step goes to 19/20 e. There the gradient is 19/20 e - mu e / 20, and the step is 1/40 of it.
    """
    world, mu, name = make_world((2,)), 4.0, "head.bias"
    last = run_round(FedProx(mu=mu), world, initial_state(FedProx(mu=mu), world), epochs=0.5)
    (update,) = last.updates
    assert update.num_steps == 2
    start, target = last.before.tensors[name], world.targets["hospital-01"][name]
    e = start - target
    expected = target + 0.95 * e - (0.95 * e - mu * e / 20) / 40
    torch.testing.assert_close(update.tensors[name], expected, rtol=1e-12, atol=1e-12)


def test_the_layout_travels_for_free() -> None:
    setting = one_pair()
    download = FedProx().broadcast(state(setting), setting.hospitals[0])
    assert download.layout is setting.layout
    assert download.traffic.keys() == {"A", "B", "w"}


def test_a_download_without_a_layout_is_refused() -> None:
    download = FedProx().broadcast(state(one_pair()), one_pair().hospitals[0])
    with pytest.raises(ValueError, match=r"^layout: expected Download\.layout"):
        FedProx().rule.phases(replace(download, layout=None), {})


def test_in_the_engine_hospitals_of_mixed_ranks_stay_nearer(make_federated) -> None:
    """The real model with two hospitals of ranks 1 and 3, on the product: the mean step is shorter with the penalty."""
    lengths = []
    for mu in (0.0, 30.0):
        federated, before = make_federated(
            FedProx(mu=mu, on="product"), volumes=(1, 2), ranks={"hospital-0": 1}, precision="fp32"
        )
        after = advance(federated, before).checkpoint.server.tensors
        dense = before.server.setting.layout.dense
        lengths.append(sum((after[name] - before.server.tensors[name]).square().sum().item() for name in dense))
    assert 0 < lengths[1] < 0.9 * lengths[0]
