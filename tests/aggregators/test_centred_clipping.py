"""Centred clipping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pairs import one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import CentredClipping, FedAvg, FlapSam
from wardround.aggregators.toy import streams

SETTING = one_pair(7, 6, ranks=(2, 2, 2))


def scalars(*values: float) -> list:
    """Factors as the server has them, and w as given."""
    first = one_pair(ranks=(1,) * len(values)).trainable
    return [
        update(name, A=first["A"], B=first["B"], w=tensor(value)) for name, value in zip("abc", values, strict=False)
    ]


@pytest.mark.parametrize(("iterations", "result"), [(1, 4 / 3), (2, 16 / 9)])
def test_by_hand(iterations: int, result: float) -> None:
    """Steps 1, 1 and 100 with tau = 2: v = (1 + 1 + 2) / 3 = 4/3; then v + (-1/3 - 1/3 + 2) / 3 = 4/3 + 4/9 = 16/9."""
    rule = CentredClipping(tau=2.0, iterations=iterations)
    outcome = rule.aggregate(state(one_pair(ranks=(1, 1, 1))), scalars(1.0, 1.0, 100.0), streams)
    torch.testing.assert_close(outcome.server.tensors["w"], tensor(result))
    assert outcome.diagnostics["clipped"] == 1.0
    assert outcome.diagnostics["median_step"] == pytest.approx(1.0)
    if iterations == 1:
        assert outcome.diagnostics["kept_weight"] == pytest.approx(1 / 3 + 1 / 3 + 1 / 3 * 2 / 100)


@pytest.mark.parametrize(("iterations", "result"), [(1, 5 / 3), (2, 16 / 9)])
def test_the_default_tau_by_hand(iterations: int, result: float) -> None:
    """Steps 1, 2 and 100: tau = 2 and v = (1 + 2 + 2) / 3 = 5/3.

    Distances from there 2/3, 1/3 and 295/3: tau = 2/3 and v = 5/3 + (-2/3 + 1/3 + 2/3) / 3 = 16/9.
    """
    rule = CentredClipping(iterations=iterations)
    outcome = rule.aggregate(state(one_pair(ranks=(1, 1, 1))), scalars(1.0, 2.0, 100.0), streams)
    torch.testing.assert_close(outcome.server.tensors["w"], tensor(result))
    assert outcome.diagnostics["clipped"] == 1.0


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_the_default_does_not_break_down(size: float) -> None:
    """Steps 1, 1 and -size: tau = 1 and v = 1/3 whatever the size. The rest shrinks to 2/3 with every iteration."""
    server, updates = state(one_pair(ranks=(1, 1, 1))), scalars(1.0, 1.0, -size)
    once = CentredClipping(iterations=1).aggregate(server, updates, streams).server.tensors["w"]
    torch.testing.assert_close(once, tensor(1 / 3))
    by_default = CentredClipping().aggregate(server, updates, streams).server.tensors["w"]
    torch.testing.assert_close(by_default, tensor(1 - (2 / 3) ** 5))


def test_nobody_moved() -> None:
    server = state(one_pair(ranks=(1, 1, 1)))
    outcome = CentredClipping().aggregate(server, scalars(0.0, 0.0, 0.0), streams)
    assert outcome.server.tensors["w"] == 0.0
    assert outcome.diagnostics == {"kept_weight": pytest.approx(1.0), "clipped": 0.0, "median_step": 0.0}


@pytest.mark.parametrize(("on", "mean"), [("factors", FedAvg()), ("product", FlapSam())])
def test_a_large_tau_is_the_mean(on: str, mean: object) -> None:
    updates = random_updates(SETTING, [1.0, 2.0, 3.0])
    clipped = CentredClipping(tau=1e9, iterations=3, on=on).aggregate(state(SETTING), updates, streams).server.tensors
    expected = mean.aggregate(state(SETTING), updates, streams).server.tensors
    torch.testing.assert_close(product(SETTING, clipped), product(SETTING, expected))
    torch.testing.assert_close(clipped["w"], expected["w"])


def test_on_the_product_against_dense_steps() -> None:
    """The iteration written out in NumPy on dense products, cut to rank 2 by a dense SVD; the server is not at 0."""
    server = state(SETTING)
    server = type(server)(setting=SETTING, round=3, tensors=random_updates(SETTING, [1.0] * 3, "server")[0].tensors)
    updates = random_updates(SETTING, [1.0, 2.0, 3.0])
    p = np.array([1.0, 2.0, 3.0]) / 6

    def point(tensors: dict) -> np.ndarray:
        return np.append(product(SETTING, tensors).numpy(), tensors["w"].numpy())

    steps = np.stack([point(one.tensors) - point(server.tensors) for one in updates])
    v = np.zeros(steps.shape[1])
    for _ in range(4):
        pulls = np.minimum(1, 5.0 / np.linalg.norm(steps - v, axis=1))
        v = v + (p * pulls) @ (steps - v)
    U, S, Vh = np.linalg.svd((point(server.tensors) + v)[:-1].reshape(7, 6))
    rule = CentredClipping(tau=5.0, iterations=4)
    result = rule.aggregate(server, updates, streams)
    assert result.diagnostics["clipped"] > 0
    np.testing.assert_allclose(product(SETTING, result.server.tensors), (U[:, :2] * S[:2]) @ Vh[:2], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("setting", "message"), [({"tau": 0.0}, "tau: .* above 0"), ({"iterations": 0}, "iterations: ")]
)
def test_settings_out_of_range_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CentredClipping(**setting)
