"""Weighted means and factors at another rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import normal, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators.arithmetic import (
    at_rank,
    difference,
    effective,
    folded,
    half_squared_distance,
    mean_update,
    normalised_weights,
    rescaled,
    resized,
    stacked,
    unfolded,
    uniform_mean,
    weighted_mean,
    with_product,
)
from wardround.aggregators.checks import AggregationError
from wardround.aggregators.contract import Pair


def test_weighted_mean_by_hand() -> None:
    """(1 * 4 + 3 * 8) / 4 = 7; with the weights turned round, (3 * 4 + 1 * 8) / 4 = 5."""
    x, y = tensor(4.0), tensor(8.0)
    assert weighted_mean([update("a", 1.0, w=x), update("b", 3.0, w=y)])["w"] == 7.0
    assert weighted_mean([update("a", 3.0, w=x), update("b", 1.0, w=y)])["w"] == 5.0


def test_a_mean_is_over_the_senders_of_each_tensor() -> None:
    """u: only b sent it, so b's value; w: (1 * 2 + 3 * 6) / 4 = 5; nobody sent v."""
    updates = [update("a", 1.0, w=tensor(2.0)), update("b", 3.0, w=tensor(6.0), u=tensor(9.0))]
    assert weighted_mean(updates) == {"w": tensor(5.0), "u": tensor(9.0)}
    assert weighted_mean(updates, ["u", "v"]) == {"u": tensor(9.0)}


def test_sums_run_in_double_precision() -> None:
    """In float32, 2^24 + 1 is 2^24 and the ones would be lost; here (2^24 + 1 + 1) / 3 is rounded once."""
    values = [torch.tensor([2.0**24]), torch.tensor([1.0]), torch.tensor([1.0])]
    mean = weighted_mean([update(name, 1.0, w=value) for name, value in zip("abc", values, strict=True)])["w"]
    assert mean.dtype == torch.float32
    assert mean.item() == np.float32((2.0**24 + 2.0) / 3.0)
    assert np.float32(np.float32(2.0**24) + np.float32(1.0)) == 2.0**24


def test_equal_tensors_have_themselves_as_mean() -> None:
    value = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    updates = [update(name, weight, w=value) for name, weight in (("a", 0.1), ("b", 0.7), ("c", 1.3))]
    assert torch.equal(weighted_mean(updates)["w"], value)


def test_agrees_with_numpy_average() -> None:
    updates = random_updates(one_pair(5, 7, ranks=(2, 2, 2)), [1.0, 5.0, 2.5])
    expected = np.average([one.tensors["B"] for one in updates], axis=0, weights=[1.0, 5.0, 2.5])
    np.testing.assert_allclose(weighted_mean(updates)["B"], expected, rtol=1e-14)


def test_zero_total_weight_is_an_error() -> None:
    nobody = [update("a", 0.0, w=tensor(1.0)), update("b", 0.0, w=tensor(2.0))]
    with pytest.raises(AggregationError, match=r"total weight above 0, got 0.0 from \['a', 'b'\]"):
        normalised_weights(nobody)
    with pytest.raises(AggregationError, match=r"mean of tensor 'u'.*total weight above 0"):
        weighted_mean([update("a", 0.0, u=tensor(1.0)), update("b", 1.0, w=tensor(2.0))])


def test_different_shapes_are_an_error() -> None:
    with pytest.raises(AggregationError, match=r"mean of tensor 'A'.*one shape.*'a': \(1, 2\), 'b': \(2, 2\)"):
        weighted_mean([update("a", 1.0, A=torch.zeros(1, 2)), update("b", 1.0, A=torch.zeros(2, 2))])


def test_a_uniform_mean_looks_at_no_weight() -> None:
    """Also not at one of zero: (1 + 4) / 2 and 3 from the one that sent it."""
    updates = [update("a", 0.0, w=tensor(1.0), v=tensor(3.0)), update("b", 9.0, w=tensor(4.0))]
    assert uniform_mean(updates) == {"w": tensor(2.5), "v": tensor(3.0)}


def test_half_squared_distance_by_hand() -> None:
    """((3 - 1)^2 + (4 - 1)^2 + (0 - 2)^2) / 2 = 8.5; its gradient is the difference; other anchors do not count."""
    w, v = tensor(3.0, 4.0).requires_grad_(), tensor(0.0)
    distance = half_squared_distance({"w": w, "v": v}, {"w": tensor(1.0, 1.0), "v": tensor(2.0), "u": tensor(9.0)})
    distance.backward()
    assert distance.item() == 8.5
    assert torch.equal(w.grad, tensor(2.0, 3.0))
    assert half_squared_distance({}, {}).item() == 0.0


def test_mean_update_by_hand() -> None:
    """Weight 1 + 3 = 4; loss (1 * 2 + 3 * 4) / 4 = 3.5; extra (1 * 0 + 3 * 8) / 4 = 6."""
    a = replace(update("a", 1.0, w=tensor(0.0)), extra={"c": tensor(0.0)}, metrics={"loss": 2.0}, bytes=8)
    b = replace(update("b", 3.0, w=tensor(4.0)), extra={"c": tensor(8.0)}, metrics={"loss": 4.0}, bytes=8)
    mean = mean_update([a, b])
    assert (mean.weight, mean.num_examples, mean.num_steps, mean.bytes) == (4.0, 2, 2, 16)
    assert (mean.tensors["w"], mean.extra["c"], dict(mean.metrics)) == (3.0, 6.0, {"loss": 3.5})


def test_resized_pads_with_zeros_and_cuts() -> None:
    value = tensor([1.0, 2.0], [3.0, 4.0])
    assert torch.equal(resized(value, 0, 1), tensor([1.0, 2.0]))
    assert torch.equal(resized(value, 1, 3), tensor([1.0, 2.0, 0.0], [3.0, 4.0, 0.0]))
    assert resized(value, 1, 1).is_contiguous()


def test_padding_keeps_the_product_and_cutting_undoes_it() -> None:
    layout = one_pair(3, 4, ranks=(2,), power=0.0).layout
    tensors = {"A": normal(2, 4), "B": normal(3, 2), "w": tensor(1.0)}
    padded = at_rank(tensors, layout, 5)
    assert (padded["A"].shape, padded["B"].shape) == ((5, 4), (3, 5))
    assert torch.equal(effective(padded, layout.pairs[0]), effective(tensors, layout.pairs[0]))
    again = at_rank(padded, layout, 2)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert at_rank(tensors, layout, None) == tensors


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_at_another_rank_the_product_of_what_is_left_stays(power: float) -> None:
    """From rank 4 to 2 the first two directions, from 4 to 6 everything, at whatever scale."""
    setting = one_pair(3, 5, ranks=(4,), alpha=8.0, power=power)
    tensors = {"A": normal(4, 5), "B": normal(3, 4), "w": tensor(1.0)}
    for rank, kept in ((2, 2), (4, 4), (6, 4), (None, 4)):
        other = rescaled(tensors, setting.layout, rank)
        assert other["A"].shape == (rank or 4, 5)
        expected = 8.0 / 4**power * tensors["B"][:, :kept] @ tensors["A"][:kept]
        torch.testing.assert_close(product(setting, other), expected)


def test_the_rows_of_a_pair_are_an_index() -> None:
    weight = torch.arange(6)
    some, whole = (Pair(A="A", B="B", base="W", rows=rows) for rows in ((2, 5), None))
    assert weight[some.slice].tolist() == [2, 3, 4]
    assert weight[whole.slice].tolist() == weight.tolist()


@pytest.mark.parametrize(("power", "scale"), [(0.0, 8.0), (1.0, 2.0), (0.5, 4.0)])
def test_the_scale_is_folded_in_and_taken_out_again(power: float, scale: float) -> None:
    """Alpha = 8, rank 4: 8 / 4^0 = 8, 8 / 4 = 2, 8 / 4^(1/2) = 4."""
    pair = Pair(A="A", B="B", base="W", alpha=8.0, power=power)
    tensors = {"A": normal(4, 5, seed=1), "B": normal(3, 4, seed=2)}
    B, A = folded(tensors, pair)
    torch.testing.assert_close(B, scale * tensors["B"])
    torch.testing.assert_close(B @ A, effective(tensors, pair))
    torch.testing.assert_close(unfolded(B, A, pair), tensors)


def test_stacked_factors_multiply_to_the_ideal_mean() -> None:
    """Ranks 1 and 3, scales 6 / 1 and 6 / 3 = 2: p_a 6 B_a A_a + p_b 2 B_b A_b."""
    setting = one_pair(4, 5, ranks=(1, 3), alpha=6.0, power=1.0)
    a, b = random_updates(setting, [1.0, 3.0])
    B, A = stacked([a.tensors, b.tensors], setting.layout.pairs[0], [0.25, 0.75])
    assert (B.shape, A.shape) == ((4, 4), (4, 5))
    by_hand = 0.25 * 6 * a.tensors["B"] @ a.tensors["A"] + 0.75 * 2 * b.tensors["B"] @ b.tensors["A"]
    torch.testing.assert_close(B @ A, by_hand)


def test_a_product_is_added_to_its_rows_of_the_base() -> None:
    setting = one_pair(2, 3)
    fused = replace(setting, frozen={"W": (6, 3)})
    pair = replace(setting.layout.pairs[0], rows=(2, 4))
    added = torch.ones(2, 3)
    once = with_product(state(fused), {}, pair, added)
    twice = with_product(state(fused), once, pair, added)
    assert torch.equal(once["W"], torch.tensor([0.0, 0, 1, 1, 0, 0])[:, None].expand(6, 3))
    assert torch.equal(twice["W"], 2 * once["W"])
    with pytest.raises(AggregationError, match=r"base change 'W'.*Setting.frozen"):
        with_product(state(replace(setting, frozen={})), {}, pair, added)


def test_the_base_is_kept_in_single_precision_or_better() -> None:
    pair = one_pair(2, 3).layout.pairs[0]
    assert with_product(state(one_pair(2, 3)), {}, pair, torch.ones(2, 3).bfloat16())["W"].dtype == torch.float32


def test_product_of_helper_is_the_scaled_product() -> None:
    setting = one_pair(2, 2, ranks=(2,), alpha=4.0, power=1.0)
    tensors = {"A": tensor([1.0, 0.0], [0.0, 1.0]), "B": tensor([1.0, 2.0], [3.0, 4.0])}
    assert torch.equal(product(setting, tensors), tensor([2.0, 4.0], [6.0, 8.0]))


def test_the_difference_of_two_pairs_of_different_ranks() -> None:
    """Scales differ with the rank, and the lower one is padded."""
    setting = one_pair(5, 6, ranks=(1, 3), alpha=3.0, power=1.0)
    left, right = (update.tensors for update in random_updates(setting, [1.0, 1.0]))
    B, A = difference(left, right, setting.layout.pairs[0])
    torch.testing.assert_close(B @ A, product(setting, left) - product(setting, right))


def test_of_equal_pairs_nothing_is_left() -> None:
    setting = one_pair(5, 6, ranks=(2, 2))
    (one, _) = random_updates(setting, [1.0, 1.0])
    B, A = difference(one.tensors, one.tensors, setting.layout.pairs[0])
    assert not (B @ A).any()
