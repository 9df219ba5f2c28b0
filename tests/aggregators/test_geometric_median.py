"""RFA: the geometric median by smoothed Weiszfeld."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from pairs import one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FlapSam, GeometricMedian
from wardround.aggregators.geometric_median import distances_to_mean
from wardround.aggregators.toy import streams


def test_one_iteration_by_hand() -> None:
    """Values 0, 0, 6 with equal weights: z = 2, distances 2, 2, 4, weights in the ratio 2 : 2 : 1, z = 6 / 5.

    Of 1/3 + 1/3 + 1/3 the rule keeps 1/3 + 1/3 + 1/5.
    """
    factors = {"A": tensor([1.0, 0.0]), "B": tensor([1.0], [0.0])}
    updates = [update(name, **factors, w=tensor(w)) for name, w in zip("abc", (0.0, 0.0, 6.0), strict=True)]
    result = GeometricMedian(iterations=1).aggregate(state(one_pair(ranks=(1, 1, 1))), updates, streams)
    torch.testing.assert_close(result.server.tensors["w"], tensor(1.2))
    assert result.diagnostics["kept_weight"] == pytest.approx(2 / 3 + 1 / 5)
    assert result.diagnostics["rejected"] == 0.0


def test_a_majority_in_one_place_has_its_way() -> None:
    """Two of three send the same: more iterations end there, whatever the third sends."""
    factors = {"A": tensor([1.0, 0.0]), "B": tensor([1.0], [0.0])}
    updates = [update(name, **factors, w=tensor(w)) for name, w in zip("abc", (1.0, 1.0, 1e6), strict=True)]
    result = GeometricMedian(iterations=60).aggregate(state(one_pair(ranks=(1, 1, 1))), updates, streams)
    assert result.server.tensors["w"].item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("on", ["factors", "product"])
@pytest.mark.parametrize("weights", [(1.0,) * 6, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)])
def test_it_is_the_dense_geometric_median(on: str, weights: tuple[float, ...]) -> None:
    """The minimum of ``sum_k p_k ||z - x_k||`` over dense z, found by BFGS from the mean, to 1e-6."""
    setting = one_pair(5, 4, ranks=(2,) * 6 if on == "factors" else (1, 2, 3, 1, 2, 3), alpha=2.0, power=1.0)
    updates = random_updates(setting, weights)
    keys = ("A", "B", "w") if on == "factors" else ("w",)
    dense = [] if on == "factors" else [product(setting, one.tensors) for one in updates]
    points = np.stack(
        [
            np.concatenate(
                [one.tensors[name].numpy().ravel() for name in keys] + [x.numpy().ravel() for x in dense[k : k + 1]]
            )
            for k, one in enumerate(updates)
        ]
    )
    p = np.array(weights) / sum(weights)

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        distances = np.linalg.norm(points - z, axis=1)
        return float(p @ distances), (p / distances) @ (z - points)

    best = scipy.optimize.minimize(objective, p @ points, jac=True, method="BFGS", options={"gtol": 1e-10})
    rule = GeometricMedian(iterations=300, nu=1e-12, on=on)
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
    ("setting", "message"), [({"iterations": 0}, "iterations: .* 1, got 0"), ({"nu": 0.0}, "nu: ")]
)
def test_settings_out_of_range_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeometricMedian(**setting)
