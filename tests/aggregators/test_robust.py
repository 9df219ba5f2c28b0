"""What the robust aggregators share: distances, scores, quorums, values per coordinate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pairs import normal, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import Bulyan, CentredClipping, GeometricMedian, Krum, Median, MultiKrum, TrimmedMean
from wardround.aggregators.contract import HospitalInfo
from wardround.aggregators.robust import (
    kept,
    krum_scores,
    lowest,
    median_of_sorted,
    per_coordinate,
    quorum_problem,
    reweighed,
    squared_distances,
)
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import streams

ON_FACTORS = {
    Median: Claims(weights="uniform", identity="exact", gauge="not"),
    TrimmedMean: Claims(weights="uniform", identity="exact", min_hospitals=5, gauge="not"),
    Krum: Claims(weights="uniform", identity="exact", min_hospitals=5, gauge="not"),
    MultiKrum: Claims(weights="uniform", identity="exact", min_hospitals=5, gauge="not"),
    Bulyan: Claims(weights="uniform", identity="exact", min_hospitals=7, gauge="not"),
    GeometricMedian: Claims(identity="exact", gauge="not"),
    CentredClipping: Claims(identity="exact", gauge="not"),
}


@pytest.mark.parametrize("rule", ON_FACTORS)
def test_every_rule_keeps_the_contract_on_the_factors(rule: Any) -> None:
    check_aggregator(rule(on="factors"), ON_FACTORS[rule])


@pytest.mark.parametrize("rule", ON_FACTORS)
def test_an_unknown_space_is_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match=r"^on: expected 'factors' or 'product', got 'weights'"):
        rule(on="weights")


@pytest.mark.parametrize("ranks", [(3, 3, 3, 3), (1, 2, 3, 4)])
def test_distances_on_the_product_are_those_of_dense_products(ranks: tuple[int, ...]) -> None:
    setting = one_pair(9, 7, ranks=ranks, alpha=3.0, power=1.0)
    updates = random_updates(setting, [1.0] * 4)
    dense = [torch.cat([product(setting, one.tensors).flatten(), one.tensors["w"]]) for one in updates]
    expected = torch.stack([torch.stack([(a - b).square().sum() for b in dense]) for a in dense])
    torch.testing.assert_close(squared_distances("product", state(setting), updates), expected, rtol=1e-12, atol=1e-12)


def test_distances_on_the_factors_are_those_of_one_long_vector() -> None:
    setting = one_pair(9, 7, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0] * 3)
    long = torch.stack([torch.cat([value.flatten() for value in one.tensors.values()]) for one in updates])
    expected = torch.cdist(long, long).square()
    torch.testing.assert_close(squared_distances("factors", state(setting), updates), expected, rtol=1e-12, atol=1e-12)


def test_small_distances_far_from_the_server_are_told_apart() -> None:
    """Three updates 1e5 away from the server and 0.1 from each other: Gram blocks leave three digits of the square."""
    setting = one_pair(9, 7, ranks=(2, 2, 2))
    base = {"A": normal(2, 7, seed="A"), "B": 1e4 * normal(9, 2, seed="B"), "w": normal(1)}
    updates = [update(name, **{**base, "w": base["w"] + 1e-1 * k}) for k, name in enumerate("abc")]
    expected = 1e-2 * tensor([0.0, 1.0, 4.0], [1.0, 0.0, 1.0], [4.0, 1.0, 0.0])
    distances = squared_distances("product", state(setting), updates)
    torch.testing.assert_close(distances, expected, rtol=1e-3, atol=1e-5)


def test_scores_by_hand() -> None:
    """Points 0, 0, 1, 5 and f = 0: each has n - 2 = 2 neighbours. Two equal points are neighbours of each other.

    0: 0 + 1, 0: 0 + 1, 1: 1 + 1, 5: 16 + 25.
    """
    points = tensor(0.0, 0.0, 1.0, 5.0)
    distances = (points[:, None] - points[None, :]).square()
    assert krum_scores(distances, 0).tolist() == [1.0, 1.0, 2.0, 41.0]
    assert krum_scores(distances, 1).tolist() == [0.0, 0.0, 1.0, 16.0]
    assert krum_scores(distances, 2).tolist() == [0.0, 0.0, 1.0, 16.0]  # one neighbour at least


def test_equal_scores_go_to_the_first_name() -> None:
    updates = [update("b"), update("a"), update("c")]
    assert lowest(tensor(1.0, 1.0, 1.0), updates, 2) == [1, 0]
    assert lowest(tensor(1.0, 1.0, 0.0), updates, 2) == [2, 1]


@pytest.mark.parametrize(("number", "byzantine", "factor"), [(5, 1, 2), (7, 1, 4), (3, 0, 4), (9, 3, 2)])
def test_quorum_at_the_edge(number: int, byzantine: int, factor: int) -> None:
    assert quorum_problem(number, byzantine, factor) is None
    message = quorum_problem(number - 1, byzantine, factor)
    assert message is not None
    assert f"= {number} hospitals in a round for byzantine = {byzantine}, got {number - 1}" in message


@pytest.mark.parametrize("rule", [Krum, MultiKrum, Bulyan])
def test_too_few_hospitals_are_refused_before_round_1_and_in_a_round(rule: Any) -> None:
    setting = one_pair(ranks=(1,) * 8)
    needed = 7 if rule is Bulyan else 5
    few = replace(setting, hospitals=setting.hospitals[: needed - 1])
    with pytest.raises(ValueError, match=rf"3 = {needed} hospitals in a round for byzantine = 1, got {needed - 1}"):
        rule().init(few, streams)
    server = rule().init(setting, streams)
    updates = random_updates(setting, [1.0] * 8)
    with pytest.raises(ValueError, match=rf"^round 1: .*3 = {needed} .* got {needed - 1}"):
        rule().aggregate(server, updates[: needed - 1], streams)
    assert rule().aggregate(server, updates[:needed], streams).server.round == 1


@pytest.mark.parametrize(
    ("rule", "needed"),
    [(Krum(), 5), (MultiKrum(), 5), (MultiKrum(keep=5), 6), (Bulyan(), 7), (TrimmedMean(), 5)],
    ids=str,
)
def test_it_is_the_size_of_the_cohort_that_counts(rule: Any, needed: int) -> None:
    """Of eight hospitals fewer than enough are asked in a round: that is known before round 1."""
    setting = one_pair(ranks=(1,) * 8)
    with pytest.raises(ValueError, match=f"got {needed - 1}"):
        rule.init(replace(setting, cohort_size=needed - 1), streams)
    assert rule.init(replace(setting, cohort_size=needed), streams).round == 0


@pytest.mark.parametrize("rule", [Krum, MultiKrum, Bulyan])
def test_a_negative_number_of_attackers_is_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match=r"^byzantine: .* at least 0, got -1"):
        rule(byzantine=-1)


def test_different_ranks_have_no_distances_on_factors() -> None:
    hospitals = [HospitalInfo(name=name, num_examples=1, rank=rank) for rank, name in enumerate("abcde", start=1)]
    Krum(on="product").check(hospitals)
    with pytest.raises(ValueError, match=r"one LoRA rank .* on the factors, got \{'a': 1, 'b': 2"):
        Krum(on="factors").check(hospitals)


def test_what_is_kept_by_hand() -> None:
    """Weights 1/2, 1/4, 1/4 and a rule that keeps the first two alike: 1/2 stays, 1/4 stays, 1/4 is gone."""
    assert kept([0.5, 0.25, 0.25], [0.5, 0.5, 0.0]) == {"kept_weight": 0.75, "rejected": 1.0}
    assert kept([0.5, 0.5], [0.5, 0.5]) == {"kept_weight": 1.0, "rejected": 0.0}


def test_updates_of_weight_zero_are_left_out() -> None:
    a, b = reweighed([update("a", 5.0), update("b", 6.0), update("c", 7.0)], [0.25, 0.0, 0.75])
    assert (a.hospital, a.weight, b.hospital, b.weight) == ("a", 0.25, "c", 0.75)


@pytest.mark.parametrize(
    ("values", "middle"), [((3.0,), 3.0), ((1.0, 3.0), 2.0), ((1.0, 2.0, 9.0), 2.0), ((1.0, 2.0, 4.0, 9.0), 3.0)]
)
def test_the_median_of_an_even_number_is_between_the_two_in_the_middle(
    values: tuple[float, ...], middle: float
) -> None:
    assert median_of_sorted(tensor(*values)) == middle


def test_a_rule_per_coordinate_sees_sorted_values_of_one_tensor_at_a_time() -> None:
    """On the product a 3 x 2 matrix of the pair and then w, each with the hospitals in front."""
    setting = one_pair(3, 2, ranks=(1, 1))
    shapes = []

    def rule(values: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(values.shape))
        assert torch.equal(values, values.sort(dim=0).values)
        return values.mean(0)

    per_coordinate("product", state(setting), random_updates(setting, [1.0, 1.0]), rule, streams)
    assert shapes == [(2, 3, 2), (2, 1)]
