"""FedRPCA: robust PCA of the hospitals' steps, and the sparse part amplified."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import normal, one_pair, random_updates, state, tensor, update
from torch import Tensor

from wardround.aggregators import FedAvg, FedRpca
from wardround.aggregators.checks import AggregationError
from wardround.aggregators.contract import Aggregated, ClientUpdate, ServerState
from wardround.aggregators.fedrpca import robust_pca
from wardround.aggregators.toy import streams


def planted(m: int, K: int, rank: int, spikes: float) -> tuple[Tensor, Tensor]:
    """A product of normal factors, and a share of large entries."""
    L = normal(m, rank, seed="left") @ normal(rank, K, seed="right")
    places = torch.rand(m, K, generator=streams("places"), dtype=torch.float64) < spikes
    return L, 10 * places * normal(m, K, seed="spikes")


def objective(L: np.ndarray, S: np.ndarray) -> float:
    return float(np.linalg.norm(L, "nuc") + np.abs(S).sum() / math.sqrt(max(L.shape)))


def by_fixed_penalty(M: np.ndarray, iterations: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """The same problem by the alternating direction method with a penalty that stays (Candès et al., Algorithm 1)."""
    mu, lam = M.size / (4 * np.abs(M).sum()), 1 / math.sqrt(max(M.shape))
    S, Y = np.zeros_like(M), np.zeros_like(M)
    for _ in range(iterations):
        U, s, Vh = np.linalg.svd(M - S + Y / mu, full_matrices=False)
        L = (U * np.maximum(s - 1 / mu, 0)) @ Vh
        rest = M - L + Y / mu
        S = np.sign(rest) * np.maximum(np.abs(rest) - lam / mu, 0)
        Y = Y + mu * (M - L - S)
    return M - S, S


def test_recovers_a_planted_decomposition() -> None:
    """60 x 60, rank 2, 5 % of spikes: both parts come back."""
    L, S = planted(60, 60, rank=2, spikes=0.05)
    got_L, got_S = robust_pca(L + S)
    assert (got_L - L).norm() < 1e-4 * L.norm()
    assert torch.equal(got_S.abs() > 1e-3, S != 0)


@pytest.mark.parametrize(("m", "K"), [(40, 6), (6, 40), (20, 20), (20, 1)])
def test_is_at_the_minimum(m: int, K: int) -> None:
    """Dense data, which nothing recovers: the minimum and the parts of a slow method that is known to converge."""
    M = normal(m, K, seed="noise") + normal(m, 1, seed="common")
    L, S = robust_pca(M)
    torch.testing.assert_close(L + S, M, rtol=0, atol=1e-14)
    slow_L, slow_S = by_fixed_penalty(M.numpy())
    assert objective(L.numpy(), S.numpy()) == pytest.approx(objective(slow_L, slow_S), rel=5e-5)
    assert K == 1 or np.linalg.norm(S.numpy() - slow_S) < 1e-2 * M.norm().item()


def test_a_matrix_with_a_single_entry_is_sparse() -> None:
    """``||M||_* = 6`` is more than ``lambda ||M||_1 = 6 / sqrt(8)``.

    A method that stops at L + S = M stops after one step, with about half of the entry in L.
    """
    M = torch.zeros(8, 3)
    M[3, 0] = 6.0
    torch.testing.assert_close(robust_pca(M)[1], M.double())


def test_few_hospitals_determine_the_split_weakly() -> None:
    """As the docstring says: ten columns of 300 entries, rank 2, 5 % of spikes, and a fifth of L is wrong."""
    L, S = planted(300, 10, rank=2, spikes=0.05)
    assert 0.1 < ((robust_pca(L + S)[0] - L).norm() / L.norm()).item() < 0.3


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_the_parts_scale_with_the_matrix(size: float) -> None:
    M = normal(30, 5)
    for part, scaled in zip(robust_pca(M), robust_pca(size * M), strict=True):
        torch.testing.assert_close(scaled, size * part, rtol=1e-9, atol=1e-9 * size)


@pytest.mark.parametrize("K", [2, 3, 6, 20])
@pytest.mark.parametrize("m", [16, 300])
def test_arrives_on_easy_and_hard_matrices(m: int, K: int) -> None:
    """Noise; a common step; heavy tails; exact rank 1; equal columns of equal entries."""
    noise, common = normal(m, K, seed="noise"), normal(m, 1, seed="common")
    for M in (noise, noise + 3 * common, noise**3 + 3 * common**3, common @ noise[:1], torch.ones(m, K)):
        robust_pca(M, max_iterations=500)


def test_zero_has_two_zero_parts() -> None:
    assert not torch.stack(robust_pca(torch.zeros(4, 3))).any()


def test_too_few_iterations_are_an_error() -> None:
    message = (
        r"at most 1e-05 and 0\.001 \(primal, dual\) after 3 iterations, got 0\.\d+ and 0\.\d+; raise max_iterations"
    )
    with pytest.raises(AggregationError, match=message):
        robust_pca(normal(20, 5), max_iterations=3)


# ---- the aggregator --------------------------------------------------------------------------------------------------


def moved(server: ServerState, hospital: str, A: Tensor, B: Tensor, weight: float = 1.0) -> ClientUpdate:
    """The update of a hospital that took these steps from the server's factors."""
    return update(hospital, weight, A=server.tensors["A"] + A, B=server.tensors["B"] + B, w=tensor(weight))


def aggregated(beta: float, A: list[Tensor], B: list[Tensor]) -> tuple[Aggregated, dict[str, Tensor]]:
    """The result of hospitals that took these steps, and the steps of the server."""
    server = state(one_pair(8, 8, ranks=[1] * len(A)))
    updates = [moved(server, name, *steps) for name, *steps in zip("abcdefgh", A, B, strict=False)]
    result = FedRpca(beta=beta).aggregate(server, updates, streams)
    return result, {name: result.server.tensors[name] - server.tensors[name] for name in ("A", "B")}


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.0])
def test_one_entry_of_one_hospital_by_hand(beta: float) -> None:
    """Of three hospitals, one moves one entry of A by 6, and all move all of B by 1.

    A: ``||M||_* = 6`` but ``lambda ||M||_1 = 6 / sqrt(8)``, so it is all sparse: beta * 6 / 3. B: all ones, rank 1;
    ``u v^T = 1 / sqrt(24) <= lambda = 1 / sqrt(8)`` in every entry certifies that nothing of it is sparse: 1.
    """
    spike = torch.zeros(1, 8, dtype=torch.float64)
    spike[0, 3] = 6.0
    zero, ones = torch.zeros_like(spike), torch.ones(8, 1, dtype=torch.float64)
    result, steps = aggregated(beta, [spike, zero, zero], [ones, ones, ones])
    torch.testing.assert_close(steps["A"], beta / 3 * spike, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(steps["B"], ones, rtol=1e-6, atol=1e-6)
    assert result.diagnostics["sparse_share"] == pytest.approx(36 / (36 + 24), rel=1e-6)


def test_what_stands_out_is_amplified_even_where_all_agree() -> None:
    """As the docstring says. Three hospitals, one step for all, one entry of it ten times the others.

    ``u v^T = 10 / sqrt(107) / sqrt(3) = 0.56`` in that entry exceeds lambda = 1 / sqrt(8) = 0.35: L cannot be all.
    """
    step = torch.ones(1, 8, dtype=torch.float64)
    step[0, 0] = 10.0
    _, steps = aggregated(2.0, [step] * 3, [step.mT] * 3)
    assert steps["A"][0, 0] > 12
    torch.testing.assert_close(steps["A"][0, 1:], step[0, 1:], rtol=1e-4, atol=1e-4)


def test_beta_1_is_the_uniform_mean_bit_for_bit() -> None:
    setting = one_pair(6, 5, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    ours = FedRpca(beta=1.0).aggregate(state(setting), updates, streams).server
    uniform = [replace(one, weight=1.0) for one in updates]
    fedit = FedAvg().aggregate(state(setting), uniform, streams).server
    assert all(torch.equal(value, ours.tensors[name]) for name, value in fedit.tensors.items())


def test_the_step_is_the_mean_of_both_parts() -> None:
    """``mean L + beta mean S``, per factor, from the start the hospitals had, which is not zero."""
    setting = one_pair(6, 5, ranks=(2, 2, 2))
    setting.trainable["B"].add_(1.0)
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    after = FedRpca(beta=2.5).aggregate(state(setting), updates, streams).server
    for name in ("A", "B"):
        M = torch.stack([(one.tensors[name] - setting.trainable[name]).flatten() for one in updates], dim=1)
        L, S = robust_pca(M)
        step = (L.mean(1) + 2.5 * S.mean(1)).view(setting.trainable[name].shape)
        torch.testing.assert_close(after.tensors[name], setting.trainable[name] + step)
    torch.testing.assert_close(after.tensors["w"], sum(one.tensors["w"] for one in updates) / 3)


@pytest.mark.parametrize(("K", "factor"), [(2, 1.8), (3, 1.7), (6, 1.5), (10, 1.4)])
def test_with_few_hospitals_it_is_mostly_a_larger_step(K: int, factor: float) -> None:
    """As the docstring says: a common step and as much noise at each hospital, 4096 entries, beta = 2."""
    M = normal(4096, 1, seed="common") + normal(4096, K, seed="noise")
    L, S = robust_pca(M)
    mean, step = M.mean(1), L.mean(1) + 2.0 * S.mean(1)
    assert (step.norm() / mean.norm()).item() == pytest.approx(factor, abs=0.05)
    assert torch.cosine_similarity(step, mean, dim=0).item() > math.cos(math.radians(7))
    assert S.square().sum() > 0.5 * M.square().sum()


def test_a_round_in_which_nobody_trains_changes_nothing() -> None:
    zero = torch.zeros(1, 8, dtype=torch.float64)
    result, steps = aggregated(2.0, [zero, zero], [zero.mT, zero.mT])
    assert not steps["A"].any()
    assert not steps["B"].any()
    assert result.diagnostics == {"sparse_share": 0.0}


def test_one_hospital_is_refused() -> None:
    setting = one_pair(ranks=(1, 1))
    for alone in (one_pair(ranks=(1,)), replace(setting, cohort_size=1)):
        with pytest.raises(
            ValueError, match=r"expected at least 2 hospitals in a round, got 1; what one .* Use fedavg"
        ):
            FedRpca().init(alone, streams)
    with pytest.raises(AggregationError, match="expected at least 2 updates, got 1"):
        FedRpca().aggregate(state(setting), random_updates(setting, [1.0, 1.0])[:1], streams)


def test_a_decomposition_that_does_not_arrive_ends_the_round() -> None:
    setting = one_pair(6, 5, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    with pytest.raises(AggregationError, match=r"^FedRPCA of tensor 'A': expected at most .* raise max_iterations"):
        FedRpca(max_iterations=3).aggregate(state(setting), updates, streams)
    with pytest.raises(ValueError, match=r"^max_iterations: expected an integer of at least 1, got 2\.5"):
        FedRpca(max_iterations=2.5)


@pytest.mark.parametrize("beta", [-0.1, math.inf, math.nan])
def test_an_impossible_beta_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"^beta: expected a number of at least 0, got"):
        FedRpca(beta=beta)
