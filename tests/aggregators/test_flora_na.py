"""FLoRA-NA: fitted coefficients."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from pairs import ideal_mean, one_pair, product, random_updates, state, tensor, update
from torch import Tensor

from wardround.aggregators import FedAvg, FloraNa
from wardround.aggregators.arithmetic import effective
from wardround.aggregators.contract import ClientUpdate, Setting
from wardround.aggregators.toy import World, initial_state, make_world, run_round, streams

PER_PAIR, SHARED = FloraNa(coefficients="per_pair"), FloraNa(coefficients="shared")


def error(aggregator: FedAvg, setting: Setting, updates: list[ClientUpdate]) -> float:
    got = aggregator.aggregate(state(setting), updates, streams).server.tensors
    return (product(setting, got) - ideal_mean(setting, updates)).norm().item()


def test_two_by_two_by_hand() -> None:
    """B_a A_a = diag(2, 0), B_b A_b = diag(0, 1), equal weights: W* = diag(1, 1/2).

    (2 b_a, b_b)^T (a_a, a_b) can be any rank-1 matrix, and the best one is diag(1, 0), at distance 1/2 (FedIT: 0.791).
    """
    updates = [
        update("a", B=tensor([2.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(1.0)),
        update("b", B=tensor([0.0], [1.0]), A=tensor([0.0, 1.0]), w=tensor(5.0)),
    ]
    got = FloraNa(ridge=0.0).aggregate(state(one_pair()), updates, streams).server.tensors
    torch.testing.assert_close(got["B"] @ got["A"], tensor([1.0, 0.0], [0.0, 0.0]))
    assert got["w"] == 3.0
    assert error(FloraNa(ridge=0.0), one_pair(), updates) == pytest.approx(0.5)
    assert error(FedAvg(), one_pair(), updates) == pytest.approx(0.625**0.5)


@pytest.mark.parametrize("seed", range(2))
def test_no_coefficients_near_by_are_better(seed: int) -> None:
    """BFGS on the dense error from where the alternation ends finds nothing better; it begins below FedIT."""
    setting = one_pair(7, 8, ranks=(2, 2, 2), alpha=3.0)
    updates = random_updates(setting, [1.0, 2.0, 3.0], seed)
    M = ideal_mean(setting, updates).numpy()
    Bs, As = (np.stack([one.tensors[name].numpy() for one in updates]) for name in "BA")

    def distance(coefficients: np.ndarray) -> float:
        a, b = coefficients[:3], coefficients[3:]
        return np.linalg.norm(M - 3.0 * np.einsum("k,kor->or", b, Bs) @ np.einsum("k,kri->ri", a, As)) ** 2

    (a,), (b,) = FloraNa(ridge=0.0, sweeps=100).fit(updates, setting.layout.pairs)
    ended = np.concatenate([a.numpy(), b.numpy()])
    assert distance(ended) == pytest.approx(error(FloraNa(ridge=0.0, sweeps=100), setting, updates) ** 2)
    found = scipy.optimize.minimize(distance, ended, method="BFGS").fun
    assert found == pytest.approx(distance(ended), rel=1e-6)
    p = np.array([1, 2, 3]) / 6
    assert distance(ended) < 0.95 * distance(np.concatenate([p, p]))


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1, 10.0])
def test_every_sweep_is_an_improvement(ridge: float) -> None:
    """Errors with 0, 1, 2, 4, 8, 16 sweeps only fall: 0 is FedIT, whatever the ridge."""
    setting = one_pair(9, 8, ranks=(2, 2, 2, 2))
    updates = random_updates(setting, [4.0, 1.0, 1.0, 2.0])
    errors = [error(FloraNa(ridge=ridge, sweeps=n), setting, updates) for n in (0, 1, 2, 4, 8, 16)]
    assert errors[0] == pytest.approx(error(FedAvg(), setting, updates))
    assert errors[1] < errors[0]
    if ridge < 0.1:
        assert all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))
    assert all(later <= errors[0] for later in errors)


def toy_updates() -> tuple[World, list[ClientUpdate]]:
    world = make_world()
    last = run_round(FedAvg(), world, initial_state(FedAvg(), world))
    return world, list(last.updates)


def squared_errors(world: World, tensors: dict[str, Tensor], updates: list[ClientUpdate]) -> list[float]:
    total = sum(one.weight for one in updates)
    pairs = world.setting.layout.pairs
    ideals = [sum(one.weight / total * effective(one.tensors, pair) for one in updates) for pair in pairs]
    return [(effective(tensors, pair) - ideal).square().sum().item() for pair, ideal in zip(pairs, ideals, strict=True)]


def test_coefficients_of_its_own_are_better_for_every_pair_and_shared_ones_for_the_sum() -> None:
    world, updates = toy_updates()
    server = initial_state(FedAvg(), world)
    fedit, shared, own = (
        squared_errors(world, aggregator.aggregate(server, updates, streams).server.tensors, updates)
        for aggregator in (FedAvg(), SHARED, PER_PAIR)
    )
    assert all(mine < average for mine, average in zip(own, fedit, strict=True))
    assert sum(own) < sum(shared) < sum(fedit)


def test_coefficients_of_its_own_are_those_of_a_pair_alone() -> None:
    world, updates = toy_updates()
    pairs = world.setting.layout.pairs
    together, alone = PER_PAIR.fit(updates, pairs), [PER_PAIR.fit(updates, [pair]) for pair in pairs]
    for side in (0, 1):
        torch.testing.assert_close(together[side], torch.cat([one[side] for one in alone]), rtol=0, atol=1e-8)


def test_shared_coefficients_are_shared() -> None:
    """Every tensor of every pair is the same combination of the hospitals' tensors."""
    world, updates = toy_updates()
    pairs = world.setting.layout.pairs
    a, b = SHARED.fit(updates, pairs)
    assert torch.equal(a, a[:1].expand(3, -1))
    assert torch.equal(b, b[:1].expand(3, -1))
    got = SHARED.aggregate(initial_state(SHARED, world), updates, streams).server.tensors
    for pair in pairs:
        for name, coefficients in ((pair.A, a), (pair.B, b)):
            mixed = sum(c * one.tensors[name] for c, one in zip(coefficients[0], updates, strict=True))
            torch.testing.assert_close(got[name], mixed)


def test_pairs_count_by_their_scale() -> None:
    """Of two pairs that share coefficients, one has a scale of 1000: the fit is that of this pair alone."""
    setting = one_pair(7, 8, ranks=(2, 2, 2))
    small, large = (
        replace(setting.layout.pairs[0], A=f"A{n}", B=f"B{n}", alpha=alpha) for n, alpha in enumerate((1.0, 1e3))
    )
    drawn = [random_updates(setting, [1.0, 2.0, 3.0], seed) for seed in range(2)]
    updates = [
        update(
            one.hospital,
            one.weight,
            **{f"{name}{n}": it.tensors[name] for n, it in enumerate((one, two)) for name in "AB"},
        )
        for one, two in zip(*drawn, strict=True)
    ]
    together, alone, other = (SHARED.fit(updates, pairs)[0][0] for pairs in ([small, large], [large], [small]))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)
    assert (together - other).norm() > 0.05


def test_hospitals_that_sent_the_same_keep_their_weights() -> None:
    """Nothing in the data tells them apart: the coefficients stay p, with and without a ridge."""
    setting = one_pair(5, 4, ranks=(2, 2, 2))
    one = random_updates(setting, [1.0, 1.0, 1.0])[0].tensors
    updates = [update(name, weight, **one) for name, weight in (("a", 1.0), ("b", 2.0), ("c", 5.0))]
    for ridge in (0.0, 1e-6):
        for coefficients in FloraNa(ridge=ridge).fit(updates, setting.layout.pairs):
            torch.testing.assert_close(coefficients, tensor([1 / 8, 2 / 8, 5 / 8]), rtol=0, atol=1e-9)


def test_a_strong_ridge_is_fedit() -> None:
    setting = one_pair(5, 4, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    a, b = FloraNa(ridge=1e12).fit(updates, setting.layout.pairs)
    torch.testing.assert_close(a, tensor([1 / 6, 2 / 6, 3 / 6]), rtol=0, atol=1e-9)
    torch.testing.assert_close(b, a, rtol=0, atol=1e-9)


def test_when_nobody_has_learned_anything_it_is_fedavg() -> None:
    setting = one_pair(ranks=(1, 1))
    zero = {"A": tensor([1.0, 2.0]), "B": torch.zeros(2, 1).double(), "w": tensor(1.0)}
    got = FloraNa().aggregate(state(setting), [update("a", **zero), update("b", **zero)], streams).server.tensors
    torch.testing.assert_close(got["A"], zero["A"])
    assert not got["B"].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coefficients": "all"}, "coefficients: expected 'shared' or 'per_pair', got 'all'"),
        ({"ridge": -1.0}, "ridge: expected a number of at least 0, got -1.0"),
        ({"sweeps": -1}, "sweeps: expected an integer of at least 0, got -1"),
        ({"sweeps": 2.5}, "sweeps: expected an integer of at least 0, got 2.5"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        FloraNa(**settings)
