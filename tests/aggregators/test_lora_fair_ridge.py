"""The ridge correction of B in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pairs import ideal_mean, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FedAvg, LoraFairRidge
from wardround.aggregators.toy import streams


def aggregated(aggregator: FedAvg, setting, updates) -> dict:
    return dict(aggregator.aggregate(state(setting), updates, streams).server.tensors)


def by_hand() -> list:
    """B_a A_a = diag(2, 0) and B_b A_b = diag(0, 1)."""
    return [
        update("a", B=tensor([2.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(1.0)),
        update("b", B=tensor([0.0], [1.0]), A=tensor([0.0, 1.0]), w=tensor(5.0)),
    ]


@pytest.mark.parametrize("lam", [0.0, 0.5, 1e9])
def test_two_by_two_by_hand_needs_no_correction(lam: float) -> None:
    """W* = diag(1, 1/2), B = (1, 1/2), A = (1/2, 1/2): W* A^T = (1/2, 1/4) = B A A^T, so D = 0 at any lam. w = 3."""
    tensors = aggregated(LoraFairRidge(lam=lam), one_pair(), by_hand())
    torch.testing.assert_close(tensors["B"], tensor([1.0], [0.5]))
    torch.testing.assert_close(tensors["A"], tensor([0.5, 0.5]))
    assert tensors["w"] == 3.0


@pytest.mark.parametrize(("lam", "B"), [(0.0, tensor([1.8], [0.1])), (0.625, tensor([1.65], [0.175]))])
def test_two_by_two_by_hand_with_other_weights(lam: float, B: torch.Tensor) -> None:
    """Weights 3 : 1. W* = diag(3/2, 1/4), B = (3/2, 1/4), A = (3/4, 1/4), A A^T = 5/8.

    W* A^T = (9/8, 1/16), B A A^T = (15/16, 5/32): the residual is (3/16, -3/32), and D is that over 5/8 + lam:
    (0.3, -0.15) for lam 0 and (0.15, -0.075) for lam 5/8. B becomes (1.8, 0.1) and (1.65, 0.175).
    """
    updates = [update(one.hospital, weight, **one.tensors) for one, weight in zip(by_hand(), (3.0, 1.0), strict=True)]
    tensors = aggregated(LoraFairRidge(lam=lam), one_pair(), updates)
    torch.testing.assert_close(tensors["B"], B)
    torch.testing.assert_close(tensors["A"], tensor([0.75, 0.25]))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.01, 3.0])
def test_is_the_minimiser(lam: float, power: float) -> None:
    """Against dense NumPy least squares of ``[A^T; sqrt(lam) I] D^T = [W*^T - (B A)^T; 0]`` without scales."""
    setting = one_pair(11, 13, ranks=(3, 3, 3), alpha=4.0, power=power)
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    p = [1 / 6, 2 / 6, 3 / 6]
    B = sum(w * one.tensors["B"].numpy() for w, one in zip(p, updates, strict=True))
    A = sum(w * one.tensors["A"].numpy() for w, one in zip(p, updates, strict=True))
    W = sum(w * one.tensors["B"].numpy() @ one.tensors["A"].numpy() for w, one in zip(p, updates, strict=True))
    left = np.concatenate([A.T, np.sqrt(lam) * np.eye(3)])
    right = np.concatenate([(W - B @ A).T, np.zeros((3, 11))])
    D = np.linalg.lstsq(left, right, rcond=None)[0].T
    got = aggregated(LoraFairRidge(lam=lam), setting, updates)
    np.testing.assert_allclose(got["B"], B + D, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got["A"], A, rtol=1e-14)


def test_without_a_penalty_the_error_is_what_the_row_space_cannot_reach() -> None:
    """||W* - (B + D) A|| = ||W* (I - A^+ A)||, and the error is orthogonal to the rows of A."""
    setting = one_pair(7, 9, ranks=(2, 2, 2))
    updates = random_updates(setting, [3.0, 1.0, 1.0])
    got = aggregated(LoraFairRidge(lam=0.0), setting, updates)
    error = ideal_mean(setting, updates) - product(setting, got)
    torch.testing.assert_close(error @ got["A"].mT, torch.zeros(7, 2).double(), rtol=0, atol=1e-13)


def test_a_singular_mean_of_factors_is_no_problem() -> None:
    """Both rows of every A are equal: A A^T has rank 1. The result is least squares all the same."""
    setting = one_pair(5, 6, ranks=(2, 2))
    updates = [
        update(one.hospital, one.weight, A=one.tensors["A"][:1].repeat(2, 1), B=one.tensors["B"], w=one.tensors["w"])
        for one in random_updates(setting, [1.0, 2.0])
    ]
    got = aggregated(LoraFairRidge(lam=0.0), setting, updates)
    M, A = ideal_mean(setting, updates), got["A"]
    best = M @ torch.linalg.pinv(A) @ A
    torch.testing.assert_close(product(setting, got), best, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("apart", "kept"), [(0.0, 1), (1e-8, 1), (1e-7, 1), (1e-6, 1), (1e-4, 2)])
def test_rows_that_differ_by_rounding_errors_are_one(apart: float, kept: int) -> None:
    """Both rows of every A point the same way up to so much, in float32: B is not blown up to make use of the rest.

    From 1e-4 on there are a thousand roundings between the rows: they are two, and least squares takes both.
    """
    setting = one_pair(20, 18, ranks=(2, 2))
    updates = []
    for one in random_updates(setting, [1.0, 1.0]):
        first, other = one.tensors["A"]
        A = torch.stack([first, 0.37 * first + apart * other])
        updates.append(update(one.hospital, A=A.float(), B=one.tensors["B"].float(), w=torch.zeros(1)))
    got = aggregated(LoraFairRidge(lam=0.0), setting, updates)
    means = aggregated(FedAvg(), setting, updates)
    largest = got["B"].abs().max().item()
    assert (largest < 10 * means["B"].abs().max().item()) == (kept == 1)
    M = sum(0.5 * product(setting, {n: v.double() for n, v in one.tensors.items()}) for one in updates)
    Vh = torch.linalg.svd(means["A"].double(), full_matrices=False).Vh
    error = (M - product(setting, {n: v.double() for n, v in got.items()})).norm()
    best = (M - M @ Vh[:kept].mT @ Vh[:kept]).norm()
    assert error.item() == pytest.approx(best.item(), rel=1e-5)


def test_when_nobody_has_learned_anything_it_is_fedavg() -> None:
    setting = one_pair(ranks=(1, 1))
    zero = {"A": torch.zeros(1, 2).double(), "B": torch.zeros(2, 1).double(), "w": tensor(1.0)}
    got = aggregated(LoraFairRidge(lam=0.0), setting, [update("a", **zero), update("b", **zero)])
    assert not got["B"].any()


def test_a_large_penalty_is_fedavg() -> None:
    setting = one_pair(7, 9, ranks=(2, 2))
    updates = random_updates(setting, [1.0, 2.0])
    got, fedavg = (aggregated(one, setting, updates) for one in (LoraFairRidge(lam=1e12), FedAvg()))
    torch.testing.assert_close(got["B"], fedavg["B"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("lam", [-1.0, float("inf"), float("nan")])
def test_a_wrong_penalty_is_refused(lam: float) -> None:
    with pytest.raises(ValueError, match=rf"^lam: expected a number of at least 0, got {lam!r}"):
        LoraFairRidge(lam=lam)
