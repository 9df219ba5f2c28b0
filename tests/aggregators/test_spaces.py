"""Both spaces against dense NumPy: coordinates and back, means, combinations, distances, inner products of steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import ideal_mean, normal, one_pair, product, random_updates, state

from wardround.aggregators.contract import ServerState, Setting, Tensors
from wardround.aggregators.spaces import (
    On,
    check_on,
    combination,
    coordinates,
    from_coordinates,
    gram_of_steps,
    half_squared_distance_of_products,
    mean_coordinates,
)
from wardround.aggregators.toy import streams

BOTH = pytest.mark.parametrize("on", ["factors", "product"])


def setting_of(ranks: tuple[int, ...] = (2, 2, 2)) -> Setting:
    setting = one_pair(5, 6, ranks=ranks, alpha=3.0, power=1.0)
    return replace(setting, trainable={**setting.trainable, "B": normal(5, max(ranks), seed="start")})


def point(setting: Setting, on: On, tensors: Tensors) -> np.ndarray:
    """Theta as one long vector."""
    names = [setting.layout.pairs[0].A, setting.layout.pairs[0].B] if on == "factors" else []
    parts = [tensors[name] for name in names] or [product(setting, tensors)]
    return np.concatenate([part.numpy().ravel() for part in (*parts, tensors["w"])])


@BOTH
def test_coordinates_there_and_back(on: On) -> None:
    """A product that has the server's rank comes back as it was; factors come back bit for bit."""
    setting = setting_of()
    server = state(setting)
    back = from_coordinates(on, server, coordinates(on, setting.layout, server.tensors), streams)
    np.testing.assert_allclose(point(setting, on, back), point(setting, on, server.tensors), rtol=1e-12, atol=1e-13)
    assert back.keys() == server.tensors.keys()
    assert {name: value.shape for name, value in back.items()} == {n: v.shape for n, v in server.tensors.items()}


def test_products_are_cut_to_the_servers_rank() -> None:
    """Of diag(3, 2, 1, 0, 0) a pair of rank 2 keeps diag(3, 2)."""
    setting = setting_of()
    wanted = torch.zeros(5, 6, dtype=torch.float64)
    wanted[0, 0], wanted[1, 1], wanted[2, 2] = 3.0, 2.0, 1.0
    values = {"product/B": wanted, "w": setting.trainable["w"]}
    back = product(setting, from_coordinates("product", state(setting), values, streams))
    torch.testing.assert_close(back.diagonal()[:4], torch.tensor([3.0, 2.0, 0.0, 0.0], dtype=torch.float64))


@BOTH
def test_means(on: On) -> None:
    setting = setting_of()
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    mean = mean_coordinates(on, setting.layout, updates)
    if on == "product":
        torch.testing.assert_close(mean["product/B"], ideal_mean(setting, updates))
    else:
        expected = sum(p * u.tensors["B"] for p, u in zip((1 / 8, 2 / 8, 5 / 8), updates, strict=True))
        torch.testing.assert_close(mean["B"], expected)
    assert mean["w"] == pytest.approx(
        sum(p * u.tensors["w"].item() for p, u in zip((1, 2, 5), updates, strict=True)) / 8
    )


@BOTH
@pytest.mark.parametrize("weights", [(0.2, 0.3, 0.5), (0.1, 0.0, 0.4), (2.0, -1.0, 0.5)])
def test_combinations(on: On, weights: tuple[float, ...]) -> None:
    """Theta + sum w_k (theta_k - theta), with a pair that is large enough to hold it on the product."""
    setting = setting_of((5, 5, 5))
    server, updates = state(setting), random_updates(setting_of((5, 5, 5)), [1.0, 1.0, 1.0])
    theta = point(setting, on, server.tensors)
    expected = theta + sum(w * (point(setting, on, u.tensors) - theta) for w, u in zip(weights, updates, strict=True))
    got = point(setting, on, combination(on, server, updates, weights, streams))
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_combinations_of_different_ranks() -> None:
    setting = setting_of((1, 2, 4))
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    got = product(setting, combination("product", state(setting), updates, (1 / 6, 2 / 6, 3 / 6), streams))
    U, S, Vh = np.linalg.svd(ideal_mean(setting, updates).numpy(), full_matrices=False)
    np.testing.assert_allclose(got, (U[:, :4] * S[:4]) @ Vh[:4], rtol=1e-10, atol=1e-12)


@BOTH
def test_inner_products_of_steps(on: On) -> None:
    setting = setting_of()
    server, updates = state(setting), random_updates(setting, [1.0, 1.0, 1.0])
    steps = [point(setting, on, u.tensors) - point(setting, on, server.tensors) for u in updates]
    expected = [[float(a @ b) for b in steps] for a in steps]
    np.testing.assert_allclose(gram_of_steps(on, server, updates), expected, rtol=1e-11)


def test_a_small_step_from_a_large_product_keeps_its_digits() -> None:
    """In float32, 1e-4 away from a product of norm 1e3: the squared length is right to a few per thousand."""
    setting = setting_of()
    start = {name: (value * 30).float() for name, value in setting.trainable.items()}
    server = ServerState(setting=replace(setting, trainable=start), round=0, tensors=start)
    (update, *_) = random_updates(setting, [1.0, 1.0, 1.0])
    moved = {name: value + 1e-4 * update.tensors[name].float() for name, value in start.items()}
    exact = {name: value.double() for name, value in moved.items()}
    length = (product(setting, exact) - product(setting, {n: v.double() for n, v in start.items()})).square().sum()
    length = length + (exact["w"] - start["w"].double()).square().sum()
    (got,) = gram_of_steps("product", server, [replace(update, tensors=moved)]).flatten()
    assert got.item() == pytest.approx(length.item(), rel=5e-3)


def test_half_the_squared_distance_and_its_gradient() -> None:
    setting = setting_of()
    left, right = (u.tensors for u in random_updates(setting, [1.0, 1.0, 1.0])[:2])
    values = {name: value.clone().requires_grad_() for name, value in left.items()}
    distance = half_squared_distance_of_products(setting.layout, values, right)
    expected = 0.5 * np.sum((point(setting, "product", left) - point(setting, "product", right)) ** 2)
    assert distance.item() == pytest.approx(expected, rel=1e-12)
    distance.backward()
    scale = setting.layout.pairs[0].scale(2)
    gap = product(setting, left) - product(setting, right)
    torch.testing.assert_close(values["B"].grad, scale * gap @ left["A"].mT)
    torch.testing.assert_close(values["A"].grad, scale * left["B"].mT @ gap)


def test_a_factor_that_does_not_train_is_the_anchors() -> None:
    setting = setting_of()
    left, right = (u.tensors for u in random_updates(setting, [1.0, 1.0, 1.0])[:2])
    got = half_squared_distance_of_products(setting.layout, {"B": left["B"]}, right)
    gap = product(setting, {**right, "B": left["B"]}) - product(setting, right)
    assert got.item() == pytest.approx(0.5 * gap.square().sum().item(), rel=1e-12)


def test_another_word_is_refused() -> None:
    check_on("factors")
    with pytest.raises(ValueError, match="on: expected 'factors' or 'product', got 'both'"):
        check_on("both")
