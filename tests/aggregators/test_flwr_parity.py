"""Flower as an oracle: FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad and q-FedAvg against its own strategies.

Flower's message strategies are driven without a server: they are handed the present arrays and replies that look like
messages. What Flower does differently from the papers is set on our side (``v_init=0``, ``bias_correction="flwr"``).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from pairs import one_pair, random_updates, state
from torch import Tensor

from wardround.aggregators import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, QFedAvg
from wardround.aggregators.contract import Aggregator, ClientUpdate, ServerState, Tensors
from wardround.aggregators.toy import streams

SETTING = one_pair(5, 4, ranks=(2, 2, 2))
WEIGHTS = (1.0, 2.0, 5.0)
LOSSES = (0.3, 1.7, 0.9)
ROUNDS = 4


def updates_of(number: int) -> list[ClientUpdate]:
    """The same in both worlds: they do not depend on the model, so that a difference cannot hide."""
    sent = random_updates(SETTING, WEIGHTS, seed=number)
    return [replace(one, metrics={"loss_before": loss}) for one, loss in zip(sent, LOSSES, strict=True)]


def arrays_of(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in tensors.items()}


@dataclass(frozen=True)
class Reply:
    """What a Flower strategy looks at in a message."""

    content: Any

    def has_error(self) -> bool:
        return False


def record(arrays: Mapping[str, np.ndarray]) -> Any:
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def replies(updates: Sequence[ClientUpdate]) -> list[Reply]:
    from flwr.app import MetricRecord, RecordDict

    return [
        Reply(
            RecordDict(
                {
                    "arrays": record(arrays_of(one.tensors)),
                    "metrics": MetricRecord({"num-examples": one.weight, "train_loss": one.metrics["loss_before"]}),
                }
            )
        )
        for one in updates
    ]


def by_flower(strategy: Any, to_current: Callable[[dict[str, np.ndarray]], Any]) -> list[dict[str, np.ndarray]]:
    """The arrays after each round."""
    arrays, after = arrays_of(SETTING.trainable), []
    for number in range(1, ROUNDS + 1):
        strategy.current_arrays = to_current(arrays)
        result, _ = strategy.aggregate_train(number, replies(updates_of(number)))
        arrays = {name: value.numpy().copy() for name, value in result.items()}
        after.append(arrays)
    return after


def by_us(aggregator: Aggregator) -> list[Mapping[str, Tensor]]:
    server: ServerState = state(SETTING)
    after = []
    for number in range(1, ROUNDS + 1):
        server = aggregator.aggregate(server, updates_of(number), streams).server
        after.append(server.tensors)
    return after


def assert_equal(ours: Sequence[Tensors], theirs: Sequence[Mapping[str, np.ndarray]]) -> None:
    assert len(ours) == len(theirs) == ROUNDS
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            np.testing.assert_allclose(value.numpy(), other[name], rtol=1e-12, atol=1e-13)


def test_fedavg() -> None:
    from flwr.server.strategy.aggregate import aggregate

    updates, names = updates_of(1), list(SETTING.trainable)
    theirs = aggregate([([one.tensors[name].numpy() for name in names], int(one.weight)) for one in updates])
    ours = FedAvg().aggregate(state(SETTING), updates, streams).server.tensors
    for name, value in zip(names, theirs, strict=True):
        np.testing.assert_allclose(ours[name].numpy(), value, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("beta", "lr"), [(0.9, 1.0), (0.5, 0.3), (0.0, 0.3)])
def test_fedavgm(beta: float, lr: float) -> None:
    """Heavy ball, the first momentum is the first pseudo-gradient; four rounds."""
    from flwr.serverapp import strategy

    theirs = by_flower(strategy.FedAvgM(server_momentum=beta, server_learning_rate=lr), record)
    assert_equal(by_us(FedAvgM(beta=beta, lr=lr)), theirs)


ADAPTIVE = {
    "FedAdam": FedAdam(lr=0.1, v_init=0.0, bias_correction="flwr"),
    "FedYogi": FedYogi(lr=0.1, v_init=0.0),
    "FedAdagrad": FedAdagrad(lr=0.1, v_init=0.0),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive(name: str) -> None:
    from flwr.serverapp import strategy

    assert_equal(by_us(ADAPTIVE[name]), by_flower(getattr(strategy, name)(eta=0.1), lambda arrays: arrays))


def test_flowers_bias_correction_is_not_adams() -> None:
    """Flower counts rounds from 2: its first step is sqrt(1 - b2^2) / (1 - b1^2) * (1 - b1) / sqrt(1 - b2) as long.

    With tau negligible, Adam's first step is lr sign(D), and Flower's 0.74 of it: sqrt(0.0199) / 0.19 * 0.1 / 0.1.
    """
    first = {
        mode: by_us(FedAdam(lr=0.1, tau=1e-12, v_init=0.0, bias_correction=mode))[0]["w"] - SETTING.trainable["w"]
        for mode in ("kingma", "flwr")
    }
    assert abs(first["kingma"].item()) == pytest.approx(0.1)
    assert (first["flwr"] / first["kingma"]).item() == pytest.approx(0.0199**0.5 / 0.19)


@pytest.fixture
def _frozen() -> Iterator[None]:
    """Flower's q-FedAvg collects garbage at every array; frozen objects are left out, and it takes no seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_frozen")
@pytest.mark.parametrize(("q", "lr"), [(0.0, 0.1), (0.5, 1.0), (1.0, 0.1), (2.0, 0.01)])
def test_qfedavg(q: float, lr: float) -> None:
    """Flower takes 1 / (local learning rate) for L and trusts the loss that it is told."""
    from flwr.serverapp import strategy

    theirs = by_flower(strategy.QFedAvg(q=q, client_learning_rate=lr), record)
    assert_equal(by_us(QFedAvg(q=q, lipschitz=1 / lr)), theirs)


def test_qfedavg_from_its_parts() -> None:
    """Flower's older function takes Delta_k and h_k, which are computed here from the paper's formulas in NumPy."""
    from flwr.server.strategy.aggregate import aggregate_qffl

    q, L, start = 2.0, 3.0, arrays_of(SETTING.trainable)
    deltas, hs = [], []
    for one in updates_of(1):
        F = one.metrics["loss_before"] + 1e-10
        gradients = [L * (start[name] - one.tensors[name].numpy()) for name in start]
        deltas.append([F**q * gradient for gradient in gradients])
        hs.append(q * F ** (q - 1) * sum(np.sum(gradient**2) for gradient in gradients) + L * F**q)
    theirs = dict(zip(start, aggregate_qffl(list(start.values()), deltas, hs), strict=True))
    ours = by_us(QFedAvg(q=q, lipschitz=L))[0]
    for name, value in ours.items():
        np.testing.assert_allclose(value.numpy(), theirs[name], rtol=1e-12, atol=1e-13)
