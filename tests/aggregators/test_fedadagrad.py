"""FedAdagrad: a second moment that forgets nothing."""

from __future__ import annotations

import pytest
import torch
from one_number import number_state, number_update
from pairs import one_pair, random_updates, state

from wardround.aggregators import FedAdagrad
from wardround.aggregators.toy import streams


def test_two_rounds_by_hand() -> None:
    """With lr 1, tau 1, v_init = tau^2 = 1. D = 2: v = 5, theta = 2 / (sqrt(5) + 1). Sent again: D = 0, theta stays."""
    server = FedAdagrad(lr=1.0, tau=1.0).aggregate(number_state(0.0), [number_update("a", 2.0)], streams).server
    theta = server.tensors["w"].item()
    assert theta == pytest.approx(2 / (5**0.5 + 1))
    server = FedAdagrad(lr=1.0, tau=1.0).aggregate(server, [number_update("a", theta)], streams).server
    assert server.tensors["w"].item() == theta
    assert server.memory["v/w"].item() == pytest.approx(5.0)


def test_it_is_torch_adagrad() -> None:
    """v_init as initial_accumulator_value, tau as eps, the gradient is -D; five rounds."""
    setting = one_pair(5, 4, ranks=(2, 2))
    server = state(setting)
    parameters = {name: value.clone().requires_grad_() for name, value in setting.trainable.items()}
    optimizer = torch.optim.Adagrad(parameters.values(), lr=0.3, initial_accumulator_value=0.2, eps=0.01)
    for number in range(5):
        updates = random_updates(setting, [1.0, 3.0], seed=number)
        server = FedAdagrad(lr=0.3, tau=0.01, v_init=0.2).aggregate(server, updates, streams).server
        for name, value in parameters.items():
            value.grad = value.detach() - sum(one.weight * one.tensors[name] for one in updates) / 4
        optimizer.step()
        for name, value in parameters.items():
            torch.testing.assert_close(server.tensors[name], value.detach(), rtol=1e-12, atol=1e-12)
