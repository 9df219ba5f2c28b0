"""What FedAdam, FedYogi and FedAdagrad share: the moments, in both spaces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from pairs import ideal_mean, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FedAdagrad, FedAdam, FedYogi
from wardround.aggregators.adaptive import AdaptiveMean
from wardround.aggregators.contract import Aggregator
from wardround.aggregators.toy import streams

SECOND: dict[type, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    FedAdam: lambda v, D: 0.9 * v + 0.1 * D**2,
    FedYogi: lambda v, D: np.where(v > D**2, v - 0.1 * D**2, v + 0.1 * D**2),
    FedAdagrad: lambda v, D: v + D**2,
}
"""The three papers' second moments once more, for beta2 = 0.9."""


def make(algorithm: type, **settings: object) -> Aggregator:
    """An instance with beta1 = 0.6 and beta2 = 0.9, where it has one."""
    if algorithm is not FedAdagrad:
        settings["beta2"] = 0.9
    return algorithm(beta1=0.6, lr=0.2, tau=0.05, **settings)


def after(theta: np.ndarray, m: np.ndarray, v: np.ndarray) -> np.ndarray:
    return theta + 0.2 * m / (np.sqrt(v) + 0.05)


def test_a_step_by_hand() -> None:
    """0.5 * 3 / (sqrt(4) + 1) = 1/2."""
    assert AdaptiveMean(lr=0.5, tau=1.0).step(tensor(3.0), tensor(4.0), 1) == 0.5


@pytest.mark.parametrize("algorithm", SECOND)
def test_on_factors_against_a_numpy_loop(algorithm: type) -> None:
    setting = one_pair(5, 4, ranks=(2, 2, 2))
    server = state(setting)
    theta = {name: value.numpy() for name, value in setting.trainable.items()}
    m = {name: np.zeros_like(value) for name, value in theta.items()}
    v = {name: np.full_like(value, 0.05**2) for name, value in theta.items()}
    for number in range(5):
        updates = random_updates(setting, [1.0, 2.0, 5.0], seed=number)
        server = make(algorithm).aggregate(server, updates, streams).server
        for name in theta:
            D = sum(one.weight / 8 * one.tensors[name].numpy() for one in updates) - theta[name]
            m[name] = 0.6 * m[name] + 0.4 * D
            v[name] = SECOND[algorithm](v[name], D)
            theta[name] = after(theta[name], m[name], v[name])
            np.testing.assert_allclose(server.tensors[name].numpy(), theta[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("algorithm", SECOND)
def test_on_the_product_against_a_dense_loop(algorithm: type) -> None:
    """Dense moments of s B A, and a NumPy SVD cut to rank 2 after every step; ranks 1, 2, 2, scale 4 / r."""
    setting = one_pair(7, 6, ranks=(1, 2, 2), alpha=4.0, power=1.0)
    aggregator = make(algorithm, on="product", v_init=0.3)
    server = aggregator.init(setting, streams)
    theta, m, v = np.zeros((7, 6)), np.zeros((7, 6)), np.full((7, 6), 0.3)
    for number in range(4):
        updates = random_updates(setting, [1.0, 2.0, 5.0], seed=number)
        server = aggregator.aggregate(server, updates, partial(streams, number)).server
        D = ideal_mean(setting, updates).numpy() - theta
        m, v = 0.6 * m + 0.4 * D, SECOND[algorithm](v, D)
        U, S, Vh = np.linalg.svd(after(theta, m, v))
        theta = (U[:, :2] * S[:2]) @ Vh[:2]
        np.testing.assert_allclose(product(setting, server.tensors).numpy(), theta, rtol=1e-9, atol=1e-10)
    assert {name: value.shape for name, value in server.memory.items()} == {
        **{f"{moment}/product/B": (7, 6) for moment in "mv"},
        **{f"{moment}/w": (1,) for moment in "mv"},
        "steps": (),
    }


@pytest.mark.parametrize("algorithm", SECOND)
def test_a_tensor_nobody_sent_stays_with_its_moments(algorithm: type) -> None:
    server = make(algorithm).aggregate(state(one_pair()), [update("a", w=tensor(2.0))], streams).server
    assert server.memory.keys() == {"m/w", "v/w", "steps"}
    assert torch.equal(server.tensors["A"], one_pair().trainable["A"])


@pytest.mark.parametrize("algorithm", SECOND)
@pytest.mark.parametrize(("field", "value"), [("lr", 0.0), ("beta1", 1.0), ("tau", 0.0), ("v_init", -1.0)])
def test_a_field_out_of_range_is_named(algorithm: type, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: expected a number .*, got {value}"):
        algorithm(**{field: value})
