"""The low-rank kernel: singular value decomposition of a sum of low-rank terms, without forming the sum.

For ``M = sum_k w_k B_k A_k`` put the terms side by side, ``B = [w_1 B_1 | ... | w_K B_K]`` and ``A = [A_1; ...; A_K]``,
so that ``M = B A``. With thin QR decompositions ``B = Q_B R_B`` and ``A^T = Q_A R_A``, the core ``R_B R_A^T`` (R, R)
has the singular values of M exactly, and its singular vectors, lifted by Q_B and Q_A, are those of M. The cost is
``O((d_out + d_in) R^2 + R^3)`` instead of ``O(d_out d_in min(d_out, d_in))``.

Everything takes leading batch dimensions ``...`` (layers of equal shape) and computes in float32, or float64 where the
factors are.

Legend: K terms, r_k rank of a term, R = sum of ranks, q = min(R, d_out, d_in), r rank wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .checks import AggregationError

Split = Literal["right", "left", "symmetric"]


def check_split(split: str) -> None:
    """Raises ValueError when a split is none of the three."""
    if split not in get_args(Split):
        choices = ", ".join(repr(choice) for choice in get_args(Split))
        raise ValueError(f"split: expected one of {choices}, got {split!r}")


@dataclass(frozen=True, kw_only=True)
class LowRankSvd:
    """``M = U diag(S) Vh``: U (..., d_out, q) and Vh (..., q, d_in) orthonormal, S (..., q) descending, >= 0."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def __getitem__(self, layer: int) -> LowRankSvd:
        """One layer of the batch."""
        return LowRankSvd(U=self.U[layer], S=self.S[layer], Vh=self.Vh[layer])

    def energy(self, rank: int | None = None) -> Tensor:
        """Squared Frobenius norm of the first ``rank`` directions, per layer (...), in float64; None: of M."""
        return self.S[..., :rank].double().square().sum(-1)


def svd_of_product(B: Tensor, A: Tensor) -> LowRankSvd:
    """Singular value decomposition of ``B A``, signs fixed: the largest entry of every left vector is positive.

    Goes through QR while R is at most half the smaller dimension of M, and through the dense product beyond it, where
    QR no longer helps.

    Args:
        B: (..., d_out, R).
        A: (..., R, d_in).
    """
    dtype = torch.promote_types(B.dtype, torch.float32)
    B, A = B.to(dtype), A.to(dtype)
    use_qr = 2 * B.shape[-1] <= min(B.shape[-2], A.shape[-1])
    return _signs_fixed(_through_qr(B, A) if use_qr else _through_dense(B, A))


def svd_of_matrix(M: Tensor) -> LowRankSvd:
    """Singular value decomposition of dense matrices (..., d_out, d_in), signs fixed."""
    U, S, Vh = _svd(M.to(torch.promote_types(M.dtype, torch.float32)))
    return _signs_fixed(LowRankSvd(U=U, S=S, Vh=Vh))


def _through_qr(B: Tensor, A: Tensor) -> LowRankSvd:
    Q_B, R_B = torch.linalg.qr(B)  # (..., d_out, R), (..., R, R)
    Q_A, R_A = torch.linalg.qr(A.mT)  # (..., d_in, R), (..., R, R)
    U, S, Vh = _svd(R_B @ R_A.mT)  # the core (..., R, R)
    return LowRankSvd(U=Q_B @ U, S=S, Vh=Vh @ Q_A.mT)


def _through_dense(B: Tensor, A: Tensor) -> LowRankSvd:
    q = min(B.shape[-2], B.shape[-1], A.shape[-1])  # beyond R, singular values are rounding errors
    U, S, Vh = _svd(B @ A)
    return LowRankSvd(U=U[..., :q], S=S[..., :q], Vh=Vh[..., :q, :])


def _svd(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin decomposition. Raises AggregationError where finite factors have a product that is not."""
    if not torch.isfinite(M).all():
        raise AggregationError(
            "singular value decomposition",
            ["expected a finite product of the factors, got NaN or infinity: an update is too large for its dtype"],
        )
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    return U, S, Vh


def _signs_fixed(svd: LowRankSvd) -> LowRankSvd:
    largest = svd.U.abs().argmax(dim=-2, keepdim=True)  # (..., 1, q)
    sign = torch.where(svd.U.gather(-2, largest) < 0, -1.0, 1.0).to(svd.U.dtype)
    return LowRankSvd(U=svd.U * sign, S=svd.S, Vh=svd.Vh * sign.mT)


def rounding(dtype: torch.dtype) -> float:
    """The share of the largest singular value up to which another one is a rounding error: ten machine epsilons."""
    return 10.0 * torch.finfo(dtype).eps


def numerical_rank(S: Tensor) -> int:
    """How many of the descending singular values (q,) stand above rounding errors of the largest."""
    return int((rounding(S.dtype) * S[:1] < S).sum())


def resplit(svd: LowRankSvd, rank: int, split: Split, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factors ``B A`` of the best rank-``rank`` approximation of M, for one layer.

    ``right``: ``B = U, A = S Vh``; ``left``: ``B = U S, A = Vh``; ``symmetric``: ``B = U S^1/2, A = S^1/2 Vh``.

    Where M has fewer than ``rank`` directions, the rest of the factor that carries no S (of A, if symmetric) is filled
    with random orthonormal vectors, orthogonal to the directions in use, and the other factor with zeros: the product
    stays what it is, and the spare directions can still learn, as those of a fresh LoRA pair can. Two factors that are
    both zero would never get a gradient.

    Args:
        svd: One layer: U (d_out, q), S (q,), Vh (q, d_in).
        rank: Directions of the result, r.
        split: Where the singular values go.
        generator: Draws the spare directions, on the CPU.

    Returns:
        B (d_out, r) and A (r, d_in).
    """
    used = min(rank, numerical_rank(svd.S))
    U, S, V = svd.U[:, :used], svd.S[:used], svd.Vh[:used].mT
    if split == "right":
        return _filled(U, rank, generator), _padded(V * S, rank).mT.contiguous()
    if split == "left":
        return _padded(U * S, rank), _filled(V, rank, generator).mT.contiguous()
    root = S.sqrt()
    spare = _filled(V, rank, generator)[:, used:]
    return _padded(U * root, rank), torch.cat([V * root, spare], dim=1).mT.contiguous()


def _filled(basis: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns (d, u) continued to (d, size); zeros beyond d columns, where no direction is left."""
    d, used = basis.shape
    spare = min(size, d) - used
    if spare <= 0:
        return _padded(basis, size)
    fresh = torch.randn(spare, d, generator=generator, dtype=torch.float64).to(basis).mT
    for _ in range(2):  # twice is enough: the second pass removes the rounding errors of the first
        fresh = torch.linalg.qr(fresh - basis @ (basis.mT @ fresh)).Q
    return _padded(torch.cat([basis, fresh], dim=1), size)


def _padded(columns: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(columns, (0, size - columns.shape[1])).contiguous()


def orthonormal_rows(rows: Tensor) -> Tensor:
    """Gram-Schmidt of the rows (r, d), r <= d, by a thin QR whose R has a positive diagonal; in their dtype.

    The first rows of the result depend on the first rows alone.
    """
    Q, R = torch.linalg.qr(rows.mT.to(torch.promote_types(rows.dtype, torch.float32)))  # (d, r), (r, r)
    sign = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q)
    result: Tensor = (Q * sign).mT
    return result.to(rows.dtype).contiguous()


def product_inner(B_i: Tensor, A_i: Tensor, B_j: Tensor, A_j: Tensor) -> Tensor:
    """Frobenius inner product ``<B_i A_i, B_j A_j> = sum((B_i^T B_j) * (A_i A_j^T))`` without the products.

    Args:
        B_i: (..., d_out, r_i).
        A_i: (..., r_i, d_in).
        B_j: (..., d_out, r_j).
        A_j: (..., r_j, d_in).

    Returns:
        One number per layer (...).
    """
    return ((B_i.mT @ B_j) * (A_i @ A_j.mT)).sum((-2, -1))


def gram(Bs: Sequence[Tensor], As: Sequence[Tensor]) -> Tensor:
    """All inner products of K low-rank terms, (..., K, K), in float64: norms, distances and cosines follow from it.

    ``||B_i A_i - B_j A_j||^2 = G_ii + G_jj - 2 G_ij``; ``||sum_k p_k B_k A_k||^2 = p^T G p``.

    Args:
        Bs: K factors (..., d_out, r_k).
        As: K factors (..., r_k, d_in).
    """
    B, A = torch.cat([B.double() for B in Bs], dim=-1), torch.cat([A.double() for A in As], dim=-2)
    blocks = (B.mT @ B) * (A @ A.mT)  # (..., R, R); entry (i, j) of the Gram matrix is the sum of its block
    ranks = torch.tensor([A_k.shape[-2] for A_k in As], device=B.device)
    owner = torch.repeat_interleave(torch.arange(len(ranks), device=B.device), ranks)
    member = torch.nn.functional.one_hot(owner, len(ranks)).to(B)  # (R, K)
    return member.mT @ blocks @ member
