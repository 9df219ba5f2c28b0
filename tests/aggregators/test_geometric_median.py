"""RFA: the geometric median by smoothed Weiszfeld."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from pairs import one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FlapSam, GeometricMedian
from wardround.aggregators.contract import ClientUpdate, Setting
from wardround.aggregators.geometric_median import distances_to_mean
from wardround.aggregators.toy import streams


def scalars(*values: float) -> list[ClientUpdate]:
    """Factors as the server has them, and w as given."""
    first = one_pair(ranks=(1,) * len(values)).trainable
    return [
        update(name, A=first["A"], B=first["B"], w=tensor(value)) for name, value in zip("abcde", values, strict=False)
    ]


@pytest.mark.parametrize(("iterations", "z", "kept"), [(1, 4 / 3, 7 / 9), (2, 20 / 17, 2 / 3 + 1 / 17)])
def test_iterations_by_hand(iterations: int, z: float, kept: float) -> None:
    """Values 1, 1, 4 from the server's 0: distances 1, 1, 4, weights in the ratio 4 : 4 : 1, z = 12 / 9.

    Then distances 1/3, 1/3, 8/3, weights in the ratio 8 : 8 : 1, z = 20 / 17. Of 1/3 each the rule keeps 1/3 + 1/3 and
    what the third has left.
    """
    rule = GeometricMedian(iterations=iterations)
    result = rule.aggregate(state(one_pair(ranks=(1, 1, 1))), scalars(1.0, 1.0, 4.0), streams)
    torch.testing.assert_close(result.server.tensors["w"], tensor(z))
    assert result.diagnostics["kept_weight"] == pytest.approx(kept)
    assert result.diagnostics["rejected"] == 0.0


def test_a_majority_in_one_place_has_its_way() -> None:
    """Two of three send the same: it ends there, whatever the third sends."""
    result = GeometricMedian().aggregate(state(one_pair(ranks=(1, 1, 1))), scalars(1.0, 1.0, 1e6), streams)
    assert result.server.tensors["w"].item() == pytest.approx(1.0, abs=1e-5)


def test_hospitals_that_send_the_start_back_do_not_hold_it() -> None:
    """Two of five are where the iteration begins; the minimum is where the others are."""
    updates = scalars(0.0, 0.0, 1.0, 1.0, 1.0)
    result = GeometricMedian().aggregate(state(one_pair(ranks=(1,) * 5)), updates, streams)
    assert result.server.tensors["w"].item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("on", ["factors", "product"])
@pytest.mark.parametrize(("n", "f"), [(5, 1), (5, 2), (7, 3)])
@pytest.mark.parametrize("size", [1e1, 1e2, 1e4, 1e6])
def test_the_default_does_not_break_down(on: str, n: int, f: int, size: float) -> None:
    """Within ``(1 - alpha) / sqrt(1 - 2 alpha)`` times the furthest honest update, alpha = f / n: Minsker's bound.

    All attackers send the same, as far away as they like.
    """
    setting = one_pair(5, 4, ranks=(2,) * n)
    updates = random_updates(setting, [1.0] * n)
    far = {name: size * value for name, value in updates[-1].tensors.items()}
    updates = updates[: n - f] + [update(one.hospital, **far) for one in updates[n - f :]]
    points = points_of(on, setting, updates)
    honest = points[: n - f].mean(0)
    furthest = np.linalg.norm(points[: n - f] - honest, axis=1).max()
    z = np.array(GeometricMedian(on=on).reweigh(state(setting), updates)) @ points
    assert np.linalg.norm(z - honest) <= (1 - f / n) / np.sqrt(1 - 2 * f / n) * furthest
    assert np.linalg.norm(points[-1] - honest) > 3 * furthest


def test_the_slope_is_what_ends_it() -> None:
    """It is at most 1, and 0 where everybody is at one place; a tolerance of 0 never ends it."""
    setting = one_pair(5, 4, ranks=(2,) * 5)
    updates = random_updates(setting, [1.0] * 5)

    def weights(**settings: float) -> list[float]:
        return GeometricMedian(**settings).reweigh(state(setting), updates)

    assert weights(tolerance=1.0) == weights(iterations=1)
    assert weights() == pytest.approx(weights(tolerance=0.0), abs=1e-4)
    assert weights(tolerance=0.1) != pytest.approx(weights(), abs=1e-4)


def points_of(on: str, setting: Setting, updates: list[ClientUpdate]) -> np.ndarray:
    """One dense row per update."""
    names = ("A", "B", "w") if on == "factors" else ("w",)
    rows = []
    for one in updates:
        values = [one.tensors[name] for name in names]
        values += [product(setting, one.tensors)] if on == "product" else []
        rows.append(np.concatenate([value.numpy().ravel() for value in values]))
    return np.stack(rows)


@pytest.mark.parametrize("on", ["factors", "product"])
@pytest.mark.parametrize("weights", [(1.0,) * 6, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)])
def test_it_is_the_dense_geometric_median(on: str, weights: tuple[float, ...]) -> None:
    """The minimum of ``sum_k p_k ||z - x_k||`` over dense z, found by BFGS from the mean, to 1e-6."""
    setting = one_pair(5, 4, ranks=(2,) * 6 if on == "factors" else (1, 2, 3, 1, 2, 3), alpha=2.0, power=1.0)
    updates = random_updates(setting, weights)
    points = points_of(on, setting, updates)
    p = np.array(weights) / sum(weights)

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        distances = np.linalg.norm(points - z, axis=1)
        return float(p @ distances), (p / distances) @ (z - points)

    best = scipy.optimize.minimize(objective, p @ points, jac=True, method="BFGS", options={"gtol": 1e-10})
    rule = GeometricMedian(tolerance=1e-12, nu=1e-12, on=on)
    z = np.array(rule.reweigh(state(setting), updates)) @ points
    np.testing.assert_allclose(z, best.x, rtol=0, atol=1e-6)


def test_distances_to_a_mean_from_inner_products() -> None:
    x = torch.randn(4, 9, dtype=torch.float64, generator=streams("x"))
    w = tensor(0.1, -0.2, 0.3, 0.5)
    torch.testing.assert_close(distances_to_mean(x @ x.mT, w), (w @ x - x).norm(dim=1))


def test_a_large_nu_leaves_the_mean() -> None:
    """With nu beyond all distances every update counts as before: FLAP-SAM."""
    setting = one_pair(5, 4, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    rule = GeometricMedian(nu=1e9)
    assert rule.reweigh(state(setting), updates) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    result = rule.aggregate(state(setting), updates, streams).server.tensors
    expected = FlapSam().aggregate(state(setting), updates, streams).server.tensors
    torch.testing.assert_close(product(setting, result), product(setting, expected))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"iterations": 0}, "iterations: .* 1, got 0"),
        ({"tolerance": -0.1}, "tolerance: .* 0, got -0.1"),
        ({"nu": 0.0}, "nu: "),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeometricMedian(**setting)
