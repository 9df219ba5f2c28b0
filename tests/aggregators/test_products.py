"""Decomposed means against dense NumPy, factors at the server's rank and dtype, and a hospital's share of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pairs import ideal_mean, normal, one_pair, product, random_updates, state

from wardround.aggregators.contract import HospitalInfo, ServerState
from wardround.aggregators.lowrank import svd_of_matrix
from wardround.aggregators.products import decomposed, factors, for_rank, ideal_means, on_rows
from wardround.aggregators.toy import streams


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 3, 2)])
def test_ideal_means_have_the_singular_values_of_the_dense_mean(ranks: tuple[int, ...]) -> None:
    setting = one_pair(20, 17, ranks=ranks, alpha=2.0, power=0.5)
    updates = random_updates(setting, [1.0, 4.0, 2.0])
    (pair,) = setting.layout.pairs
    svd = ideal_means(updates, [pair])[pair]
    M = ideal_mean(setting, updates).numpy()
    np.testing.assert_allclose(svd.S, np.linalg.svd(M, compute_uv=False)[: len(svd.S)], rtol=1e-11)
    np.testing.assert_allclose((svd.U * svd.S) @ svd.Vh, M, atol=1e-12)


def test_stacks_of_different_shapes_keep_their_order() -> None:
    pairs = [one_pair(d, 4).layout.pairs[0] for d in (5, 7)]
    named = {
        pair: (normal(d, 2, seed=d), normal(2, 4, seed=d)) for pair, d in zip(_renamed(pairs), (5, 7, 5), strict=True)
    }
    found = decomposed(named)
    assert list(found) == list(named)
    for pair, (B, A) in named.items():
        torch.testing.assert_close((found[pair].U * found[pair].S) @ found[pair].Vh, B @ A)


def _renamed(pairs: list) -> list:
    from dataclasses import replace

    return [replace(pair, A=f"A{k}", B=f"B{k}") for k, pair in enumerate((*pairs, pairs[0]))]


@pytest.mark.parametrize("split", ["right", "left", "symmetric"])
def test_factors_are_the_best_pair_of_the_servers_rank(split) -> None:
    setting = one_pair(6, 5, ranks=(2, 2), alpha=4.0, power=1.0)
    float32 = {name: value.float() for name, value in setting.trainable.items()}
    server = ServerState(setting=setting, round=0, tensors=float32)
    (pair,) = setting.layout.pairs
    M = normal(6, 5, seed="M")
    made = factors(server, {pair: svd_of_matrix(M)}, split, streams)
    assert all(value.dtype == torch.float32 for value in made.values())
    U, S, Vh = np.linalg.svd(M.numpy())
    np.testing.assert_allclose(product(setting, made), (U[:, :2] * S[:2]) @ Vh[:2], rtol=0, atol=1e-5)


def test_a_hospital_gets_the_first_directions_at_its_own_scale() -> None:
    """Alpha 6, power 1: s = 2 at rank 3 and 6 at rank 1, so that B shrinks by 3 and the product of column 1 stays."""
    setting = one_pair(4, 5, ranks=(3, 1), alpha=6.0, power=1.0)
    server = ServerState(setting=setting, round=0, tensors={**setting.trainable, "B": normal(4, 3)})
    small = for_rank(server, HospitalInfo(name="b", num_examples=1, rank=1))
    first = 2.0 * server.tensors["B"][:, :1] @ server.tensors["A"][:1]
    torch.testing.assert_close(product(setting, small), first)
    assert for_rank(server, None) == server.tensors


def test_what_a_fit_on_the_rows_of_a_needs() -> None:
    setting = one_pair(6, 5, ranks=(2, 2), alpha=3.0)
    updates = random_updates(setting, [1.0, 3.0])
    A = normal(2, 5, seed="rows")
    M_A, A_A = on_rows(updates, setting.layout.pairs[0], A)
    torch.testing.assert_close(M_A, ideal_mean(setting, updates) @ A.mT)
    torch.testing.assert_close(A_A, A @ A.mT)


def test_a_server_state_of_zero_keeps_directions_that_can_learn() -> None:
    setting = one_pair(6, 5, ranks=(2, 2))
    (pair,) = setting.layout.pairs
    made = factors(state(setting), {pair: svd_of_matrix(torch.zeros(6, 5, dtype=torch.float64))}, "right", streams)
    torch.testing.assert_close(made["B"].mT @ made["B"], torch.eye(2, dtype=torch.float64))
    assert not made["A"].any()
