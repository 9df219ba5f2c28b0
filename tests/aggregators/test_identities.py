"""What algebra says about one aggregation of low-rank pairs, checked on the registered algorithms in float64.

Everything is drawn at random: factors of every hospital (:func:`pairs.random_updates`), unequal weights, a scale that
depends on the rank. ``W* = sum_k p_k s_k B_k A_k`` is the ideal mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from pairs import ideal_mean, normal, one_pair, product, random_updates, tensor
from torch import Tensor

from wardround.aggregators import AGGREGATORS, FloraNa, LoraFairRidge
from wardround.aggregators.contract import Aggregator, ClientUpdate, Setting
from wardround.aggregators.toy import initial_state, make_world, run_round, streams

EXACT = ("flora", "fedex_lora", "fedmomentum")
EXACT_BY_A_FIXED_FACTOR = ("ffa_lora", "rolora", "fedsvd")
BEST_OF_ITS_RANK = ("flap_sam", "flexlora")
CORRECTED = ("lora_fair", "lora_fair_ridge", "flora_na", "fedrot_lora")
FACTORS = ("fedit", *CORRECTED, "padded_fedavg", "hetlora", "fedrpca")
MIXED_RANKS = ("flora", "fedmomentum", *BEST_OF_ITS_RANK)
SEEDS = range(4)


def aggregated(aggregator: Aggregator, setting: Setting, updates: Sequence[ClientUpdate]) -> Tensor:
    """What one aggregation adds to W: the change of the frozen weight and the new pair."""
    after = aggregator.aggregate(aggregator.init(setting, streams), updates, streams).server
    base = after.base.get("W", torch.zeros(setting.frozen["W"], dtype=torch.float64))
    return base.double() + product(setting, aggregator.deploy(after, None, {}))


def error(aggregator: Aggregator, setting: Setting, updates: Sequence[ClientUpdate]) -> float:
    return (aggregated(aggregator, setting, updates) - ideal_mean(setting, updates)).norm().item()


def a_round(seed: int, ranks: Sequence[int] = (2, 2, 2, 2)) -> tuple[Setting, list[ClientUpdate]]:
    setting = one_pair(12, 10, ranks=ranks, alpha=3.0, power=1.0)
    updates = random_updates(setting, [float(k + 1) for k in range(len(ranks))], seed)
    told = [{"rank": float(rank)} for rank in ranks]  # what HetLoRA's hospitals report
    return setting, [replace(one, metrics=metrics) for one, metrics in zip(updates, told, strict=True)]


# --- the error of averaged factors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_what_averaged_factors_miss_is_their_weighted_covariance(seed: int) -> None:
    """W* - s B A = s sum_k p_k (B_k - B)(A_k - A) = s sum_j<k p_j p_k (B_j - B_k)(A_j - A_k), of rank (K - 1) r."""
    setting, updates = a_round(seed)
    missed = ideal_mean(setting, updates) - aggregated(AGGREGATORS["fedit"](), setting, updates)
    p, s = [0.1, 0.2, 0.3, 0.4], 3.0 / 2
    B, A = (torch.stack([one.tensors[name] for one in updates]) for name in "BA")
    mean_B, mean_A = (torch.einsum("k,kij->ij", tensor(*p), stack) for stack in (B, A))
    covariance = s * sum(p[k] * (B[k] - mean_B) @ (A[k] - mean_A) for k in range(4))
    pairs = s * sum(p[j] * p[k] * (B[j] - B[k]) @ (A[j] - A[k]) for k in range(4) for j in range(k))
    torch.testing.assert_close(missed, covariance, rtol=0, atol=1e-13)
    torch.testing.assert_close(missed, pairs, rtol=0, atol=1e-13)
    assert np.linalg.matrix_rank(missed.numpy(), tol=1e-10) == 3 * 2
    assert np.linalg.matrix_rank(ideal_mean(setting, updates).numpy(), tol=1e-10) == 4 * 2


@pytest.mark.parametrize("shared", ["A", "B"])
@pytest.mark.parametrize(
    "name", ["fedit", "lora_fair", "lora_fair_ridge", "flora_na", "fedrot_lora", "padded_fedavg", *BEST_OF_ITS_RANK]
)
def test_a_shared_factor_makes_it_exact(name: str, shared: str) -> None:
    """``sum_k p_k B_k A = (sum_k p_k B_k) A``: nothing is missed, nothing is left to correct."""
    setting, updates = a_round(0)
    common = updates[0].tensors[shared]
    updates = [replace(one, tensors={**one.tensors, shared: common}) for one in updates]
    assert error(AGGREGATORS[name](), setting, updates) < 1e-9
    assert error(AGGREGATORS["fedit"](), *a_round(0)) > 1.0


# --- the order of the errors ------------------------------------------------------------------------------------------


def errors(seed: int) -> dict[str, float]:
    setting, updates = a_round(seed)
    aggregators = {
        "best": AGGREGATORS["flap_sam"](),
        "flora_na": FloraNa(),
        "ridge, lam 0": LoraFairRidge(lam=0.0),
        "ridge, lam 1": LoraFairRidge(lam=1.0),
        "fedit": AGGREGATORS["fedit"](),
    }
    return {name: error(aggregator, setting, updates) for name, aggregator in aggregators.items()}


@pytest.mark.parametrize("seed", range(8))
def test_no_pair_is_closer_than_the_best_and_no_correction_farther_than_fedit(seed: int) -> None:
    """Best <= FLoRA-NA < FedIT, and best <= ridge with lam 0 < ridge with lam 1 < FedIT.

    The best is that of Eckart and Young: what is left are the singular values of W* beyond the rank.
    """
    setting, updates = a_round(seed)
    found = errors(seed)
    assert found["best"] == pytest.approx(np.linalg.norm(scipy.linalg.svdvals(ideal_mean(setting, updates))[2:]))
    assert found["best"] <= found["flora_na"] < found["fedit"]
    assert found["best"] <= found["ridge, lam 0"] < found["ridge, lam 1"] < found["fedit"]


@pytest.mark.parametrize("name", BEST_OF_ITS_RANK)
def test_the_best_of_its_rank_is_the_best(name: str) -> None:
    setting, updates = a_round(1)
    best = np.linalg.norm(scipy.linalg.svdvals(ideal_mean(setting, updates))[2:])
    assert error(AGGREGATORS[name](), setting, updates) == pytest.approx(best, rel=1e-12)


# --- exact algorithms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXACT)
def test_exact_is_exact(name: str, seed: int) -> None:
    setting, updates = a_round(seed)
    assert error(AGGREGATORS[name](), setting, updates) < 1e-12 * ideal_mean(setting, updates).norm().item()


@pytest.mark.parametrize("name", [name for name in EXACT if name in MIXED_RANKS])
def test_exact_is_exact_with_different_ranks(name: str) -> None:
    """Scales 3 / r_k differ too: forgetting to fold them would show here and only here."""
    setting, updates = a_round(0, ranks=(1, 2, 3))
    assert error(AGGREGATORS[name](), setting, updates) < 1e-12 * ideal_mean(setting, updates).norm().item()


def largest_miss(name: str, rounds: int) -> float:
    """How far the model after a round is from the mean of the hospitals' models, over some rounds of training."""
    world, aggregator = make_world(), AGGREGATORS[name]()
    server, memories, misses = initial_state(aggregator, world), {}, []
    for _ in range(rounds):
        done = run_round(aggregator, world, server, memories)
        after = world.model(aggregator.deploy(done.after, None, {}), done.after.base)
        total = sum(one.weight for one in done.updates)
        for weight in world.setting.frozen:
            mean = sum(
                one.weight
                / total
                * world.model({**done.downloads[one.hospital].start, **one.tensors}, done.before.base)[weight]
                for one in done.updates
            )
            misses.append((after[weight] - mean).norm().item() / mean.norm().item())
        server, memories = done.after, done.memories
    return max(misses)


@pytest.mark.parametrize("name", [*EXACT, *EXACT_BY_A_FIXED_FACTOR])
def test_exact_is_exact_in_training(name: str) -> None:
    """Three rounds on the toy federation: every weight is the mean of the hospitals' weights."""
    assert largest_miss(name, 3) < 1e-12


@pytest.mark.parametrize("name", ["fedit", "flap_sam"])
def test_others_are_not_exact_in_training(name: str) -> None:
    """The check above is no tautology: averaged factors and a cut to the rank both show in it."""
    assert largest_miss(name, 3) > 1e-4


@pytest.mark.parametrize("name", BEST_OF_ITS_RANK)
def test_a_rank_that_holds_all_hospitals_loses_nothing(name: str) -> None:
    """A federation of rank 6, a round of its hospitals with ranks 1 and 2: R = 3 directions fit."""
    setting, updates = a_round(0, ranks=(1, 2, 6))
    assert error(AGGREGATORS[name](), setting, updates[:2]) < 1e-12 * ideal_mean(setting, updates[:2]).norm().item()


@pytest.mark.parametrize("name", [*BEST_OF_ITS_RANK, "fedmomentum"])
def test_a_mean_that_fits_into_the_pair_goes_there_whole(name: str) -> None:
    """Two hospitals of rank 6 that use 1 and 2 of their directions: W* has rank 3, and nothing is left for the base."""
    setting, updates = a_round(0, ranks=(6, 6))
    for one, used in zip(updates, (1, 2), strict=True):
        one.tensors["B"][:, used:] = 0.0
    aggregator = AGGREGATORS[name]()
    after = aggregator.aggregate(aggregator.init(setting, streams), updates, streams).server
    torch.testing.assert_close(product(setting, after.tensors), ideal_mean(setting, updates), rtol=0, atol=1e-12)
    assert all(change.norm() < 1e-12 for change in after.base.values())


# --- what may be changed without changing the result ------------------------------------------------------------------


def regauged(updates: Sequence[ClientUpdate], kind: str) -> list[ClientUpdate]:
    """``(B G, G^-1 A)`` with a G of its own for every hospital: a rotation, or any invertible matrix."""
    result = []
    for one in updates:
        r = len(one.tensors["A"])
        G = torch.linalg.qr(normal(r, r, seed=f"gauge {one.hospital}")).Q
        if kind == "invertible":
            G = G * torch.linspace(0.5, 2.0, r, dtype=torch.float64)
        factors = {"B": one.tensors["B"] @ G, "A": torch.linalg.solve(G, one.tensors["A"])}
        result.append(replace(one, tensors={**one.tensors, **factors}))
    return result


@pytest.mark.parametrize("kind", ["rotation", "invertible"])
@pytest.mark.parametrize("name", [*EXACT, *BEST_OF_ITS_RANK, "florist", "median", "geometric_median"])
def test_products_do_not_know_the_gauge(name: str, kind: str) -> None:
    setting, updates = a_round(0)
    before = aggregated(AGGREGATORS[name](), setting, updates)
    after = aggregated(AGGREGATORS[name](), setting, regauged(updates, kind))
    assert (after - before).norm() < 1e-10 * before.norm()


@pytest.mark.parametrize("kind", ["rotation", "invertible"])
@pytest.mark.parametrize("name", FACTORS)
def test_factors_do(name: str, kind: str) -> None:
    """Also FedRot-LoRA, whose rotation takes place before anything is sent."""
    setting, updates = a_round(0)
    before = aggregated(AGGREGATORS[name](), setting, updates)
    after = aggregated(AGGREGATORS[name](), setting, regauged(updates, kind))
    assert (after - before).norm() > 0.1 * before.norm()


@pytest.mark.parametrize("name", [*EXACT, *BEST_OF_ITS_RANK, *FACTORS, "raflora", "florist"])
def test_only_ratios_of_weights_count_and_the_order_does_not(name: str) -> None:
    setting, updates = a_round(0)
    before = aggregated(AGGREGATORS[name](), setting, updates)
    other = [replace(one, weight=1e-3 * one.weight) for one in updates[::-1]]
    assert (aggregated(AGGREGATORS[name](), setting, other) - before).norm() < 1e-9 * before.norm()


@pytest.mark.parametrize("name", [*EXACT, *BEST_OF_ITS_RANK, *CORRECTED, "fedit", "hetlora", "raflora"])
def test_one_hospital_alone_gets_what_it_sent(name: str) -> None:
    setting, updates = a_round(0)
    alone = updates[:1]
    torch.testing.assert_close(
        aggregated(AGGREGATORS[name](), setting, alone), product(setting, alone[0].tensors), rtol=0, atol=1e-9
    )
