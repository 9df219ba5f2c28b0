"""The low-rank kernel against dense float64 decompositions of the explicit sum."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from pairs import normal, tensor
from torch import Tensor

from wardround.aggregators import lowrank
from wardround.aggregators.checks import AggregationError
from wardround.aggregators.lowrank import (
    LowRankSvd,
    gram,
    numerical_rank,
    product_inner,
    resplit,
    svd_of_matrix,
    svd_of_product,
)
from wardround.aggregators.toy import streams

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64


def terms(
    d_out: int, d_in: int, ranks: tuple[int, ...], layers: int | None = None, seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    batch = () if layers is None else (layers,)
    Bs = [normal(*batch, d_out, r, seed=f"{seed} B {k}") for k, r in enumerate(ranks)]
    As = [normal(*batch, r, d_in, seed=f"{seed} A {k}") for k, r in enumerate(ranks)]
    return Bs, As


def dense(Bs: list[Tensor], As: list[Tensor], weights: list[float]) -> Tensor:
    return sum(weight * B @ A for weight, B, A in zip(weights, Bs, As, strict=True))


def svd_of_sum(Bs: list[Tensor], As: list[Tensor], weights: list[float]) -> LowRankSvd:
    """Of ``sum_k w_k B_k A_k``, through the stacks that aggregators make."""
    B = torch.cat([weight * B_k for weight, B_k in zip(weights, Bs, strict=True)], dim=-1)
    return svd_of_product(B, torch.cat(As, dim=-2))


def explicit(svd: LowRankSvd, rank: int | None = None) -> Tensor:
    """The first directions as a dense matrix; None: all of them."""
    return (svd.U[..., :rank] * svd.S[..., None, :rank]) @ svd.Vh[..., :rank, :]


def stream() -> torch.Generator:
    return streams("spare")


CASES = [
    pytest.param(40, 30, (3, 2, 4), True, id="through QR"),
    pytest.param(30, 40, (5, 5, 5), True, id="through QR, at the switch"),
    pytest.param(30, 40, (8, 8), False, id="dense, just beyond the switch"),
    pytest.param(10, 7, (4, 4, 4), False, id="dense, R beyond full rank"),
    pytest.param(12, 12, (1,), True, id="one hospital of rank 1"),
]


@pytest.mark.parametrize(("d_out", "d_in", "ranks", "through_qr"), CASES)
def test_qr_up_to_half_the_smaller_dimension(
    d_out: int, d_in: int, ranks: tuple[int, ...], through_qr: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for route in ("_through_qr", "_through_dense"):
        original = getattr(lowrank, route)
        monkeypatch.setattr(lowrank, route, lambda B, A, f=original, name=route: taken.append(name) or f(B, A))
    svd_of_sum(*terms(d_out, d_in, ranks), [1.0] * len(ranks))
    assert taken == ["_through_qr" if through_qr else "_through_dense"]


@pytest.mark.parametrize(("d_out", "d_in", "ranks", "through_qr"), CASES)
def test_equals_the_dense_svd_of_the_sum(d_out: int, d_in: int, ranks: tuple[int, ...], through_qr: bool) -> None:
    Bs, As = terms(d_out, d_in, ranks)
    weights = [1.0 / (k + 1) for k in range(len(ranks))]
    M = dense(Bs, As, weights)
    svd = svd_of_sum(Bs, As, weights)
    q = min(sum(ranks), d_out, d_in)
    np.testing.assert_allclose(svd.S, scipy.linalg.svdvals(M)[:q], **EXACT)
    torch.testing.assert_close(explicit(svd), M, **EXACT)
    torch.testing.assert_close(svd.U.mT @ svd.U, torch.eye(q, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(svd.Vh @ svd.Vh.mT, torch.eye(q, dtype=torch.float64), **EXACT)


def test_both_routes_agree_vector_by_vector() -> None:
    Bs, As = terms(40, 30, (3, 2, 4))
    B, A = torch.cat(Bs, dim=-1), torch.cat(As, dim=-2)
    qr, plain = (lowrank._signs_fixed(route(B, A)) for route in (lowrank._through_qr, lowrank._through_dense))
    torch.testing.assert_close(qr.U, plain.U, rtol=0, atol=1e-11)
    torch.testing.assert_close(qr.Vh, plain.Vh, rtol=0, atol=1e-11)


def test_single_precision_is_good_to_a_few_millionths() -> None:
    Bs, As = terms(96, 64, (8, 8, 8))
    M = dense(Bs, As, [0.2, 0.3, 0.5])
    svd = svd_of_sum([B.float() for B in Bs], [A.float() for A in As], [0.2, 0.3, 0.5])
    assert svd.S.dtype == torch.float32
    assert svd.energy().dtype == torch.float64
    assert (explicit(svd).double() - M).norm() / M.norm() < 2e-6


def test_half_precision_is_computed_in_single() -> None:
    svd = svd_of_product(torch.ones(6, 1).bfloat16(), torch.ones(1, 5).bfloat16())
    assert svd.U.dtype == torch.float32
    assert svd.S.item() == pytest.approx(30**0.5)


@pytest.mark.parametrize("ranks", [(3, 2), (6, 6, 6)], ids=["through QR", "dense"])
def test_a_batch_of_layers_is_each_layer(ranks: tuple[int, ...]) -> None:
    Bs, As = terms(20, 16, ranks, layers=4)
    weights = [0.5] * len(ranks)
    batch = svd_of_sum(Bs, As, weights)
    for layer in range(4):
        alone = svd_of_sum([B[layer] for B in Bs], [A[layer] for A in As], weights)
        for name in ("U", "S", "Vh"):
            torch.testing.assert_close(getattr(batch[layer], name), getattr(alone, name), **EXACT)


def test_the_error_of_a_cut_is_that_of_eckart_and_young() -> None:
    """``||M - M_r||^2`` is the sum of the squared singular values beyond r; those up to r add up to ``||M_r||^2``."""
    Bs, As = terms(40, 30, (3, 4))
    M, svd = dense(Bs, As, [1.0, 2.0]), svd_of_sum(Bs, As, [1.0, 2.0])
    for rank in range(1, 8):
        error = (M - explicit(svd, rank)).square().sum()
        torch.testing.assert_close(error, svd.S[rank:].square().sum(), **EXACT)
        torch.testing.assert_close(svd.energy(rank) + error, M.square().sum(), **EXACT)


@pytest.mark.parametrize("split", ["right", "left", "symmetric"])
def test_a_split_at_full_rank_loses_nothing(split: lowrank.Split) -> None:
    Bs, As = terms(40, 30, (3, 4))
    for rank in (7, 9):  # 9 > R: two spare directions
        B, A = resplit(svd_of_sum(Bs, As, [1.0, 2.0]), rank, split, stream())
        assert (B.shape, A.shape) == ((40, rank), (rank, 30))
        torch.testing.assert_close(B @ A, dense(Bs, As, [1.0, 2.0]), **EXACT)


def test_where_the_singular_values_go() -> None:
    """M = diag(9, 4): right B = I, A = M; left B = M, A = I; symmetric both diag(3, 2)."""
    svd = svd_of_product(torch.eye(2).double(), torch.diag(tensor(9.0, 4.0)))
    eye, M, root = torch.eye(2).double(), torch.diag(tensor(9.0, 4.0)), torch.diag(tensor(3.0, 2.0))
    for split, B, A in (("right", eye, M), ("left", M, eye), ("symmetric", root, root)):
        torch.testing.assert_close(resplit(svd, 2, split, stream()), (B, A), **EXACT)


def test_signs_by_hand() -> None:
    """M = [-3, 1]^T [2, 0]: the largest entry on the left is -3, so the vector is turned to (3, -1) / sqrt(10)."""
    svd = svd_of_product(tensor([-3.0], [1.0]), tensor([2.0, 0.0]))
    torch.testing.assert_close(svd.U[:, 0], tensor(3.0, -1.0) / 10**0.5, **EXACT)
    torch.testing.assert_close(svd.Vh[0], tensor(-1.0, 0.0), **EXACT)


def test_signs_are_fixed_in_every_layer() -> None:
    svd = svd_of_sum(*terms(20, 16, (3, 2), layers=5), [1.0, 1.0])
    largest = svd.U.gather(-2, svd.U.abs().argmax(-2, keepdim=True))
    assert (largest > 0).all()


def test_another_gauge_changes_nothing() -> None:
    Bs, As = terms(20, 30, (3, 4))
    Gs = [normal(r, r, seed=f"G {r}") + 3 * torch.eye(r) for r in (3, 4)]
    moved = (
        [B @ G for B, G in zip(Bs, Gs, strict=True)],
        [torch.linalg.solve(G, A) for A, G in zip(As, Gs, strict=True)],
    )
    one, other = svd_of_sum(Bs, As, [1.0, 2.0]), svd_of_sum(*moved, [1.0, 2.0])
    for name in ("U", "S", "Vh"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-10)


def test_the_order_of_the_terms_changes_nothing() -> None:
    Bs, As = terms(20, 30, (3, 4, 2))
    one = svd_of_sum(Bs, As, [1.0, 2.0, 3.0])
    other = svd_of_sum(Bs[::-1], As[::-1], [3.0, 2.0, 1.0])
    for name in ("U", "S", "Vh"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-11)


@pytest.mark.parametrize("count", [1, 3])
def test_identical_terms_give_that_term(count: int) -> None:
    """R is 2 K but the sum has rank 2: the spare singular values are rounding errors, and known as such."""
    (B,), (A,) = terms(30, 20, (2,))
    svd = svd_of_sum([B] * count, [A] * count, [1.0 / count] * count)
    assert numerical_rank(svd.S) == 2
    torch.testing.assert_close(explicit(svd, 2), B @ A, **EXACT)
    single = svd_of_sum([B.float()] * count, [A.float()] * count, [1.0 / count] * count)
    assert numerical_rank(single.S) == 2


@pytest.mark.parametrize(("split", "filled", "empty"), [("right", 0, 1), ("left", 1, 0), ("symmetric", 1, 0)])
def test_spare_directions_can_learn(split: lowrank.Split, filled: int, empty: int) -> None:
    """One factor has orthonormal vectors there, orthogonal to those in use, the other zeros; never zeros in both."""
    svd = svd_of_sum(*terms(30, 20, (2,)), [1.0])
    B, A = resplit(svd, 5, split, stream())
    columns = (B, A.mT)
    used, spare = columns[filled][:, :2], columns[filled][:, 2:]
    torch.testing.assert_close(spare.mT @ spare, torch.eye(3).double(), **EXACT)
    assert (used.mT @ spare).abs().max() < 1e-12
    assert not columns[empty][:, 2:].any()
    torch.testing.assert_close(B @ A, explicit(svd), **EXACT)


def test_spare_directions_come_from_the_stream_alone() -> None:
    svd = svd_of_sum(*terms(30, 20, (2,)), [1.0])
    first, second = (resplit(svd, 4, "right", stream())[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.allclose(first, resplit(svd, 4, "right", streams("other"))[0])


@pytest.mark.parametrize("split", ["right", "left", "symmetric"])
def test_the_zero_matrix_gives_factors_that_can_learn(split: lowrank.Split) -> None:
    svd = svd_of_product(torch.zeros(8, 2), torch.zeros(2, 6))
    B, A = resplit(svd, 2, split, stream())
    assert not (B @ A).any()
    assert numerical_rank(svd.S) == 0
    assert bool(B.any()) != bool(A.any())


def test_more_directions_than_the_matrix_has_are_zero() -> None:
    """A 2 x 3 matrix has two directions; of a rank of 4 the last two stay empty in both factors."""
    svd = svd_of_product(normal(2, 4), normal(4, 3))
    B, A = resplit(svd, 4, "right", stream())
    torch.testing.assert_close(B @ A, explicit(svd), **EXACT)
    assert not B[:, 2:].any()
    assert not A[2:].any()


def test_inner_products_through_gram_blocks() -> None:
    Bs, As = terms(20, 30, (3, 4, 2))
    products = [B @ A for B, A in zip(Bs, As, strict=True)]
    expected = torch.stack([torch.stack([(X * Y).sum() for Y in products]) for X in products])
    torch.testing.assert_close(gram(Bs, As), expected, **EXACT)
    assert product_inner(Bs[0], As[0], Bs[2], As[2]).item() == pytest.approx(expected[0, 2].item(), rel=1e-12)


def test_gram_by_hand() -> None:
    """Products diag(2, 0) and diag(1, 0): G = [[4, 2], [2, 1]]; the squared distance is 4 + 1 - 2 * 2 = 1."""
    G = gram([tensor([2.0], [0.0]), tensor([1.0], [0.0])], [tensor([1.0, 0.0])] * 2)
    assert torch.equal(G, tensor([4.0, 2.0], [2.0, 1.0]))
    assert G[0, 0] + G[1, 1] - 2 * G[0, 1] == 1.0


def test_gram_is_batched_and_in_double() -> None:
    Bs, As = terms(6, 5, (2, 2), layers=3)
    G = gram([B.float() for B in Bs], [A.float() for A in As])
    assert (G.shape, G.dtype) == ((3, 2, 2), torch.float64)


def test_energy_by_hand() -> None:
    """Singular values 2, 1: energy 5 in all, 4 in the first direction."""
    svd = LowRankSvd(U=torch.eye(2), S=torch.tensor([2.0, 1.0]), Vh=torch.eye(2))
    assert (svd.energy(), svd.energy(1)) == (5.0, 4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ranks", [(3, 2), (6, 6, 6)], ids=["through QR", "dense"])
def test_computes_in_the_precision_of_the_factors(ranks: tuple[int, ...], dtype: torch.dtype) -> None:
    """Within a hundred rounding errors of float64; of two precisions the better one counts."""
    Bs, As = terms(20, 16, ranks)
    M = dense(Bs, As, [1.0] * len(ranks))
    svd = svd_of_sum([B.to(dtype) for B in Bs], [A.to(dtype) for A in As], [1.0] * len(ranks))
    assert {svd.U.dtype, svd.S.dtype, svd.Vh.dtype} == {dtype}
    assert (explicit(svd).double() - M).norm() / M.norm() < 100 * torch.finfo(dtype).eps


def test_a_dense_matrix_is_decomposed_as_a_product_is() -> None:
    """A batch of explicit products: the same values, vectors and signs as through QR of the factors."""
    Bs, As = terms(20, 16, (3, 2), layers=3)
    ours = svd_of_sum(Bs, As, [1.0, 1.0])
    M = dense(Bs, As, [1.0, 1.0])
    plain = svd_of_matrix(M)
    torch.testing.assert_close(plain.S[:, :5], ours.S, **EXACT)
    torch.testing.assert_close(plain.U[..., :5], ours.U, rtol=0, atol=1e-11)
    torch.testing.assert_close(plain.Vh[:, :5], ours.Vh, rtol=0, atol=1e-11)
    assert svd_of_matrix(M.bfloat16()).S.dtype == torch.float32


def test_half_the_singular_values_on_either_side() -> None:
    """Symmetric: ``B^T B = A A^T = S``, so that both factors get gradients of one size."""
    Bs, As = terms(20, 30, (3, 4))
    svd = svd_of_sum(Bs, As, [1.0, 2.0])
    B, A = resplit(svd, 5, "symmetric", stream())
    torch.testing.assert_close(B.mT @ B, torch.diag(svd.S[:5]), **EXACT)
    torch.testing.assert_close(A @ A.mT, torch.diag(svd.S[:5]), **EXACT)


def test_a_large_layer_is_never_formed() -> None:
    """The fp32 matrix of this layer would have 160 GB; its SVD goes through stacks of 200,000 x 3."""
    d = 200_000
    svd = svd_of_product(torch.ones(d, 3), torch.ones(3, d))
    assert svd.S[0].item() == pytest.approx(3 * d, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ranks", [(3, 2), (6, 6, 6)], ids=["through QR", "dense"])
def test_the_gpu_agrees_with_the_cpu(ranks: tuple[int, ...], dtype: torch.dtype) -> None:
    """The batch vector by vector; of a split with spare directions the product, and that they are orthonormal."""
    Bs, As = ([one.to(dtype) for one in side] for side in terms(20, 16, ranks, layers=4))
    weights, tolerance = [0.5] * len(ranks), 1e4 * torch.finfo(dtype).eps
    cpu = svd_of_sum(Bs, As, weights)
    gpu = svd_of_sum([B.cuda() for B in Bs], [A.cuda() for A in As], weights)
    for name in ("U", "S", "Vh"):
        there = getattr(gpu, name)
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), getattr(cpu, name), rtol=tolerance, atol=tolerance)
    B, A = resplit(gpu[0], 16, "left", stream())
    torch.testing.assert_close((B @ A).cpu(), explicit(cpu[0]), rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close((A @ A.mT).cpu(), torch.eye(16, dtype=dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("d", [4, 40])
def test_a_product_that_overflows_is_an_error_of_ours(d: int) -> None:
    """Finite factors in float32, 1e30 times 1e30: dense (d = 4) and through QR (d = 40)."""
    large = torch.full((d, 2), 1e30)
    with pytest.raises(AggregationError, match="expected a finite product of the factors"):
        svd_of_product(large, large.mT)
