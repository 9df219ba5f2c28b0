"""Krum and Multi-Krum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import normal, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FedAvg, FlapSam, Krum, MultiKrum
from wardround.aggregators.contract import ClientUpdate, Setting
from wardround.aggregators.toy import streams

SEVEN = one_pair(8, 6, ranks=(3, 2, 1, 3, 2, 1, 3), alpha=2.0, power=1.0)


def same_product_other_factors() -> list[ClientUpdate]:
    """Products 1, 1.1, 0.9 and 1 in entry (1, 1), the last of them split as 0.1 * 10; and -25 in entry (2, 2)."""

    def of(name: str, B: torch.Tensor, A: torch.Tensor) -> ClientUpdate:
        return update(name, B=B, A=A, w=tensor(0.0))

    return [
        of("a", tensor([1.0], [0.0]), tensor([1.0, 0.0])),
        of("b", tensor([1.1], [0.0]), tensor([1.0, 0.0])),
        of("c", tensor([0.9], [0.0]), tensor([1.0, 0.0])),
        of("d", tensor([0.1], [0.0]), tensor([10.0, 0.0])),
        of("e", tensor([0.0], [-5.0]), tensor([0.0, 5.0])),
    ]


def test_two_by_two_by_hand() -> None:
    """Two neighbours each. On the product e is at more than 625 from all others and d at 0 from a: e is left out.

    On the factors (squared) d is at 81.81 from a, while e is at 52 from a, 52.21 from b and 51.81 from c: d, which
    means the same as a, is left out, and e stays.
    """
    server = state(one_pair(ranks=(1,) * 5))
    assert MultiKrum(on="product").reweigh(server, same_product_other_factors()) == [0.25, 0.25, 0.25, 0.25, 0.0]
    assert MultiKrum(on="factors").reweigh(server, same_product_other_factors()) == [0.25, 0.25, 0.25, 0.0, 0.25]
    result = MultiKrum().aggregate(server, same_product_other_factors(), streams)
    torch.testing.assert_close(product(server.setting, result.server.tensors), tensor([1.0, 0.0], [0.0, 0.0]))
    assert result.diagnostics["kept_weight"] == pytest.approx(0.8)
    assert result.diagnostics["rejected"] == 1.0


def test_krum_takes_the_update_in_the_middle() -> None:
    """On the product: a and d are equal, 0 + 0.01 each; a comes first by name."""
    server = state(one_pair(ranks=(1,) * 5))
    assert Krum().reweigh(server, same_product_other_factors()) == [1.0, 0.0, 0.0, 0.0, 0.0]


def brute_force(setting: Setting, updates: list[ClientUpdate], byzantine: int) -> list[float]:
    """Scores from dense products with two loops in NumPy."""
    points = [np.append(product(setting, one.tensors).numpy(), one.tensors["w"].numpy()) for one in updates]
    scores = []
    for i, x in enumerate(points):
        others = sorted(float(((x - y) ** 2).sum()) for j, y in enumerate(points) if j != i)
        scores.append(sum(others[: len(points) - byzantine - 2]))
    return scores


@pytest.mark.parametrize("byzantine", [0, 1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_on_the_product_it_is_brute_force_on_dense_products(byzantine: int, seed: int) -> None:
    updates = random_updates(SEVEN, [1.0] * 7, seed)
    scores = brute_force(SEVEN, updates, byzantine)
    chosen = Krum(byzantine=byzantine).reweigh(state(SEVEN), updates)
    assert chosen.index(1.0) == int(np.argmin(scores))
    several = MultiKrum(byzantine=byzantine, keep=3).reweigh(state(SEVEN), updates)
    assert [k for k, w in enumerate(several) if w] == sorted(np.argsort(scores)[:3].tolist())


def test_other_factors_of_the_same_products_make_the_same_choice() -> None:
    updates = random_updates(SEVEN, [1.0] * 7)
    moved = []
    for one in updates:
        G = normal(len(one.tensors["A"]), len(one.tensors["A"]), seed=one.hospital)
        tensors = {**one.tensors, "B": one.tensors["B"] @ G, "A": torch.linalg.solve(G, one.tensors["A"])}
        moved.append(replace(one, tensors=tensors))
    for rule in (Krum(), MultiKrum(keep=2)):
        assert rule.reweigh(state(SEVEN), moved) == rule.reweigh(state(SEVEN), updates)


def test_colluders_who_send_the_same_are_not_chosen() -> None:
    """Two of seven send one far point: each has the other at distance 0, and 5 - 2 further neighbours far away."""
    updates = random_updates(SEVEN, [1.0] * 7)
    far = {"A": 9 * updates[0].tensors["A"], "B": updates[0].tensors["B"], "w": tensor(50.0)}
    updates[0], updates[3] = replace(updates[0], tensors=far), replace(updates[3], tensors=far)
    assert MultiKrum(byzantine=2).reweigh(state(SEVEN), updates) == [0.0, 0.2, 0.2, 0.0, 0.2, 0.2, 0.2]


def test_identical_updates_stay_what_they_are() -> None:
    setting = one_pair(8, 6, ranks=(2,) * 7)
    one = random_updates(setting, [1.0] * 7)[0]
    updates = [replace(one, hospital=name) for name in "abcdefg"]
    for rule in (Krum(byzantine=2), MultiKrum(byzantine=2)):
        result = rule.aggregate(state(setting), updates, streams).server.tensors
        torch.testing.assert_close(product(setting, result), product(setting, one.tensors))


@pytest.mark.parametrize(("on", "mean"), [("factors", FedAvg()), ("product", FlapSam())])
def test_keeping_all_is_the_uniform_mean(on: str, mean: object) -> None:
    """With f = 0 it keeps n: bit for bit FedAvg or FLAP-SAM with equal weights."""
    setting = one_pair(8, 6, ranks=(2,) * 4)
    updates = random_updates(setting, [1.0, 2.0, 3.0, 4.0])
    equal = [replace(one, weight=0.25) for one in updates]
    result = MultiKrum(byzantine=0, on=on).aggregate(state(setting), updates, streams).server.tensors
    expected = mean.aggregate(state(setting), equal, streams).server.tensors
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_keeping_one_is_krum() -> None:
    updates = random_updates(SEVEN, [1.0] * 7)
    assert MultiKrum(byzantine=2, keep=1).reweigh(state(SEVEN), updates) == Krum(byzantine=2).reweigh(
        state(SEVEN), updates
    )


def test_keeping_more_than_the_honest_is_refused() -> None:
    rule = MultiKrum(byzantine=2, keep=6)
    message = r"keep of at most n - byzantine = 7 - 2 = 5, got 6"
    with pytest.raises(ValueError, match=message):
        rule.init(SEVEN, streams)
    with pytest.raises(ValueError, match=rf"^round 1: .*{message}"):
        rule.aggregate(state(SEVEN), random_updates(SEVEN, [1.0] * 7), streams)
    with pytest.raises(ValueError, match=r"^keep: .* at least 1, got 0"):
        MultiKrum(keep=0)
