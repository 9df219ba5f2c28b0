"""q-FedAvg: more weight to hospitals that do badly."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from one_number import number_state, number_update
from pairs import one_pair, product, random_updates, state

from wardround.aggregators import FedAvg, FlapSam, QFedAvg
from wardround.aggregators.checks import AggregationError
from wardround.aggregators.contract import Aggregator, ClientUpdate, Setting
from wardround.aggregators.toy import initial_state, make_world, run_round, streams

LOSSES = (0.3, 1.7, 0.9)


def measured(setting: Setting, seed: int = 0) -> list[ClientUpdate]:
    updates = random_updates(setting, [1.0, 2.0, 5.0], seed)
    return [replace(one, metrics={"loss_before": loss}) for one, loss in zip(updates, LOSSES, strict=True)]


def test_a_step_by_hand() -> None:
    """With q = 1, L = 2 and theta = 0: a goes to 1 with loss 1, b to -1 with loss 4.

    h_a = ||2||^2 + 2 * 1 = 6 and h_b = 4 + 2 * 4 = 12; theta = (1 * 2 * 1 - 4 * 2 * 1) / 18 = -1/3.
    """
    updates = [number_update("a", 1.0, loss_before=1.0), number_update("b", -1.0, loss_before=4.0)]
    after = QFedAvg(q=1.0, lipschitz=2.0).aggregate(number_state(0.0), updates, streams)
    assert after.server.tensors["w"].item() == pytest.approx(-1 / 3, rel=1e-9)
    assert after.diagnostics["step_length"] == pytest.approx(10 / 18, rel=1e-9)


@pytest.mark.parametrize(("on", "twin"), [("factors", FedAvg()), ("product", FlapSam())])
def test_with_q_0_it_is_the_uniform_mean(on, twin: Aggregator) -> None:
    setting = one_pair(7, 6, ranks=(2, 2, 2))
    updates = measured(setting)
    uniform = [replace(one, weight=1.0) for one in updates]
    ours = QFedAvg(q=0.0, on=on).aggregate(state(setting), updates, streams).server.tensors
    theirs = twin.aggregate(state(setting), uniform, streams).server.tensors
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-12, atol=1e-12)


def test_on_the_product_against_dense_numpy() -> None:
    """The paper's formulas on dense s B A, and a NumPy SVD cut to rank 2; ranks 1, 2, 2, scale 4 / r; three rounds."""
    setting, q, L = one_pair(7, 6, ranks=(1, 2, 2), alpha=4.0, power=1.0), 1.5, 3.0
    aggregator = QFedAvg(q=q, lipschitz=L, on="product")
    server = aggregator.init(setting, streams)
    W, w = np.zeros((7, 6)), setting.trainable["w"].item()
    for number in range(3):
        updates = measured(setting, number)
        server = aggregator.aggregate(server, updates, partial(streams, number)).server
        steps = [
            (L * (W - product(setting, one.tensors).numpy()), L * (w - one.tensors["w"].item())) for one in updates
        ]
        h = sum(
            q * F ** (q - 1) * ((dW**2).sum() + dw**2) + L * F**q for F, (dW, dw) in zip(LOSSES, steps, strict=True)
        )
        W = W - sum(F**q * dW for F, (dW, _) in zip(LOSSES, steps, strict=True)) / h
        w = w - sum(F**q * dw for F, (_, dw) in zip(LOSSES, steps, strict=True)) / h
        U, S, Vh = np.linalg.svd(W)
        W = (U[:, :2] * S[:2]) @ Vh[:2]
        np.testing.assert_allclose(product(setting, server.tensors).numpy(), W, rtol=1e-8, atol=1e-8)
        assert server.tensors["w"].item() == pytest.approx(w, rel=1e-8)


def test_with_a_large_q_the_worst_hospital_leads() -> None:
    """With q = 30 the direction is that of the hospital with the highest loss, to (0.9 / 1.7)^30 of its length."""
    updates = [
        number_update(name, w, loss_before=F) for name, w, F in zip("abc", (5.0, -1.0, 3.0), LOSSES, strict=True)
    ]
    step = QFedAvg(q=30.0).aggregate(number_state(0.0), updates, streams).server.tensors["w"].item()
    F, q = 1.7, 30.0
    assert step == pytest.approx(-(F**q) / (q * F ** (q - 1) + F**q), rel=1e-6)


def test_a_loss_of_zero_is_no_division_by_zero() -> None:
    for q in (0.0, 0.5, 1.0, 2.0):
        updates = [number_update("a", 1.0, loss_before=0.0), number_update("b", -1.0, loss_before=0.0)]
        after = QFedAvg(q=q).aggregate(number_state(0.0), updates, streams)
        assert after.server.tensors["w"].item() == pytest.approx(0.0)


def test_the_reported_loss_is_that_of_the_model_before_training() -> None:
    world = make_world((2, 2, 2))
    aggregator = QFedAvg()
    server = run_round(aggregator, world, initial_state(aggregator, world)).after
    last = run_round(aggregator, world, server)
    for one in last.updates:
        before = world.loss(one.hospital, last.downloads[one.hospital].start, {}).item()
        after = world.loss(one.hospital, one.tensors, {}).item()
        assert one.metrics["loss_before"] == before > after


def test_a_negative_loss_is_refused_by_name() -> None:
    updates = [number_update("a", 1.0, loss_before=1.0), number_update("b", -1.0, loss_before=-0.25)]
    with pytest.raises(AggregationError, match=r"^round 1, q-FedAvg: hospital 'b': .* at least 0, got -0\.25"):
        QFedAvg().aggregate(number_state(0.0), updates, streams)


@pytest.mark.parametrize(("field", "value"), [("q", -1.0), ("lipschitz", 0.0)])
def test_a_field_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: expected a number .*, got {value}"):
        QFedAvg(**{field: value})
