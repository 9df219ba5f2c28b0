"""FedAdam: Adam at the server, with three bias corrections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from one_number import number_state, number_update
from pairs import one_pair, random_updates, state

from wardround.aggregators import FedAdam
from wardround.aggregators.toy import streams


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.1 * 0.2 / (1.03**0.5 + 1.0)),
        ({"v_init": 0.0}, 0.1 * 0.2 / (0.04**0.5 + 1.0)),
        ({"bias_correction": "kingma"}, 0.1 * 2.0 / (2.0 + 1.0)),
        ({"bias_correction": "kingma", "v_init": 4.0}, 0.1 * 2.0 / (400**0.5 + 1.0)),
        ({"bias_correction": "flwr"}, 0.1 * 0.0199**0.5 / 0.19 * 0.2 / (0.2 + 1.0)),
    ],
)
def test_the_first_step_by_hand(settings: dict, expected: float) -> None:
    """From theta = 0 with D = 2; lr 0.1, beta1 0.9, beta2 0.99, tau 1. m = 0.1 * 2 = 0.2; D^2 = 4.

    The paper's: v = 0.99 v_init + 0.04, that is 1.03 from v_init = tau^2 = 1 and 0.04 from 0. Adam's divides m by 0.1
    and v by 0.01: 2 and 4 (or (3.96 + 0.04) / 0.01 = 400). Flower's multiplies the step by
    sqrt(1 - 0.99^2) / (1 - 0.9^2).
    """
    aggregator = FedAdam(lr=0.1, tau=1.0, **settings)
    server = aggregator.aggregate(number_state(0.0), [number_update("a", 2.0)], streams).server
    assert server.tensors["w"].item() == pytest.approx(expected, rel=1e-12)


def test_with_kingmas_correction_it_is_torch_adam() -> None:
    """v_init 0, tau as eps, the gradient is -D; six rounds."""
    setting = one_pair(5, 4, ranks=(2, 2, 2))
    server = state(setting)
    parameters = {name: value.clone().requires_grad_() for name, value in setting.trainable.items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=0.3, betas=(0.8, 0.95), eps=1e-3)
    aggregator = FedAdam(lr=0.3, beta1=0.8, beta2=0.95, tau=1e-3, bias_correction="kingma")
    for number in range(6):
        updates = random_updates(setting, [1.0, 2.0, 5.0], seed=number)
        server = aggregator.aggregate(server, updates, streams).server
        for name, value in parameters.items():
            value.grad = value.detach() - sum(one.weight * one.tensors[name] for one in updates) / 8
        optimizer.step()
        for name, value in parameters.items():
            torch.testing.assert_close(server.tensors[name], value.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias_correction", ["kingma", "flwr"])
def test_rounds_without_updates_do_not_count(bias_correction) -> None:
    """The simulator counts a round in which Poisson sampling drew nobody, and leaves the aggregator out of it."""
    aggregator = FedAdam(lr=0.1, tau=1e-12, bias_correction=bias_correction)
    ends = []
    for empty in (0, 5):
        server = number_state(0.0)
        for mean in (1.0, 2.0):
            server = replace(server, round=server.round + empty)
            server = aggregator.aggregate(server, [number_update("a", mean)], streams).server
        ends.append(server.tensors["w"].item())
    assert server.memory["steps"] == 2
    assert ends[1] == ends[0]


def test_at_full_rank_it_is_torch_adam_on_the_product() -> None:
    """A 3 x 3 product of rank 3 is not cut: the server's product moves as a dense parameter would."""
    setting = one_pair(3, 3, ranks=(3, 3))
    aggregator = FedAdam(lr=0.3, tau=1e-3, bias_correction="kingma", on="product")
    server = aggregator.init(setting, streams)
    W = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([W], lr=0.3, betas=(0.9, 0.99), eps=1e-3)
    for number in range(4):
        updates = random_updates(setting, [1.0, 3.0], seed=number)
        server = aggregator.aggregate(server, updates, streams).server
        mean = sum(one.weight / 4 * one.tensors["B"] @ one.tensors["A"] for one in updates)
        W.grad = W.detach() - mean
        optimizer.step()
        torch.testing.assert_close(server.tensors["B"] @ server.tensors["A"], W.detach(), rtol=1e-10, atol=1e-10)


def test_with_a_large_tau_it_is_momentum() -> None:
    """A tau of 1e6 and lr = tau make the step m (v is nothing beside tau): theta = m = 0.1 D."""
    aggregator = FedAdam(lr=1e6, tau=1e6, v_init=0.0)
    server = aggregator.aggregate(number_state(0.0), [number_update("a", 2.0)], streams).server
    assert server.tensors["w"].item() == pytest.approx(0.2, rel=1e-5)


def test_an_unknown_correction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^bias_correction: expected 'none', 'kingma' or 'flwr', got 'torch'"):
        FedAdam(bias_correction="torch")


def test_beta2_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"^beta2: expected a number in \[0, 1\), got 1.0"):
        FedAdam(beta2=1.0)
