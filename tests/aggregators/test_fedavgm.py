"""FedAvgM: momentum at the server."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from one_number import number_state, number_update
from pairs import ideal_mean, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FedAvg, FedAvgM, FlapSam
from wardround.aggregators.contract import Aggregator
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def test_two_rounds_by_hand() -> None:
    """With beta 1/2, lr 1/4; theta = 0 and the mean is 4: g = -4 = v, theta = 1.

    Then the mean is 3: g = 1 - 3 = -2, v = -2 + g = -4, theta = 1 + 4/4 = 2.
    """
    aggregator, server = FedAvgM(beta=0.5, lr=0.25), number_state(0.0)
    server = aggregator.aggregate(server, [number_update("a", 2.0), number_update("b", 6.0)], streams).server
    assert server.tensors["w"] == 1.0
    server = aggregator.aggregate(server, [number_update("a", 3.0), number_update("b", 3.0)], streams).server
    assert server.tensors["w"] == 2.0
    assert server.memory == {"momentum/w": tensor(-4.0)}
    assert server.round == 2


@pytest.mark.parametrize(("on", "twin"), [("factors", FedAvg()), ("product", FlapSam())])
def test_without_momentum_it_is_the_mean(on, twin: Aggregator) -> None:
    """Three rounds of training with both end in the same effective weights."""
    world, models = make_world(), []
    for aggregator in (FedAvgM(beta=0.0, lr=1.0, on=on), twin):
        server = initial_state(aggregator, world)
        for _ in range(3):
            server = run_round(aggregator, world, server).after
        models.append(world.model(server.tensors, {}))
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-12, atol=1e-12)
    claims = Claims(identity="exact", gauge="not") if on == "factors" else Claims(gauge="invariant", ranks="mixed")
    check_aggregator(FedAvgM(beta=0.0, on=on), claims)


def test_it_is_torch_sgd_on_the_pseudo_gradient() -> None:
    setting = one_pair(5, 4, ranks=(2, 2, 2))
    server = state(setting)
    parameters = {name: value.clone().requires_grad_() for name, value in setting.trainable.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.3, momentum=0.8)
    for number in range(5):
        updates = random_updates(setting, [1.0, 2.0, 5.0], seed=number)
        server = FedAvgM(beta=0.8, lr=0.3).aggregate(server, updates, streams).server
        for name, value in parameters.items():
            mean = sum(one.weight * one.tensors[name] for one in updates) / 8
            value.grad = value.detach() - mean
        optimizer.step()
        for name, value in parameters.items():
            torch.testing.assert_close(server.tensors[name], value.detach(), rtol=1e-12, atol=1e-12)


def test_on_the_product_against_a_dense_loop() -> None:
    """Dense momentum on s B A with a NumPy SVD cut to rank 2 after every step; ranks 1, 2, 2, scale 4 / r."""
    setting = one_pair(7, 6, ranks=(1, 2, 2), alpha=4.0, power=1.0)
    aggregator = FedAvgM(beta=0.7, lr=0.5, on="product")
    server = aggregator.init(setting, streams)
    theta, v = np.zeros((7, 6)), None
    for number in range(4):
        updates = random_updates(setting, [1.0, 2.0, 5.0], seed=number)
        server = aggregator.aggregate(server, updates, partial(streams, number)).server
        g = theta - ideal_mean(setting, updates).numpy()
        v = g if v is None else 0.7 * v + g
        U, S, Vh = np.linalg.svd(theta - 0.5 * v)
        theta = (U[:, :2] * S[:2]) @ Vh[:2]
        np.testing.assert_allclose(product(setting, server.tensors).numpy(), theta, rtol=1e-10, atol=1e-10)
    assert server.memory["momentum/product/B"].shape == (7, 6)
    assert S[2] > 0.01  # something was cut


def test_a_tensor_nobody_sent_stays_with_its_momentum() -> None:
    server = FedAvgM().aggregate(state(one_pair()), [update("a", w=tensor(2.0))], streams).server
    assert server.memory.keys() == {"momentum/w"}
    assert torch.equal(server.tensors["A"], one_pair().trainable["A"])


@pytest.mark.parametrize(("field", "value"), [("beta", 1.0), ("beta", -0.1), ("lr", 0.0)])
def test_a_field_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: expected a number .*, got {value}"):
        FedAvgM(**{field: value})
