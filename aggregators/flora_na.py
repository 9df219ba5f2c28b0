"""FLoRA-NA: weighted sums of the factors whose product is nearly the mean of the products (Nguyen et al.)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .arithmetic import folded, normalised_weights
from .contract import Aggregated, ClientUpdate, Pair, ServerState, Streams
from .fedavg import FedAvg
from .ranges import check_integer, check_not_negative

Coefficients = Literal["shared", "per_pair"]


@dataclass(frozen=True, kw_only=True)
class FloraNa(FedAvg):
    """Two numbers per hospital, fitted by the server, in the place of FedIT's one weight.

    ::

        B <- sum_k b_k B_k,    A <- sum_k a_k A_k,    a, b minimise  sum_pairs ||W* - (sum_k b_k B_k)(sum_k a_k A_k)||^2
                                                                     + mu_a ||a - p||^2 + mu_b ||b - p||^2
        W* = sum_k p_k s B_k A_k

    FedIT is ``a = b = p``, where the fit begins; it alternates between b and a, each a least-squares problem of size K,
    and every step lowers the objective. So the error, summed over the pairs that share coefficients, is never larger
    than FedIT's. Coefficients may be negative and need not sum to 1; the ridge keeps those that the data do not
    determine (hospitals that sent nearly the same) at p.

    All inner products come from the blocks ``B_i^T B_k`` and ``A_i A_k^T``: cost O(K^2 d r^2) per pair once and
    O(K^2 r^2) per pair and sweep, memory O(K^2 r^2) per pair.

    Traffic: r (d_out + d_in) up, r (d_out + d_in) down per pair; all else as FedAvg.

    Args:
        coefficients: ``shared``: one (a, b) for all pairs, as in the paper; ``per_pair``: one for each, never worse
            than FedIT on any pair.
        ridge: mu relative to the mean diagonal of the least-squares problem at the start, at least 0.
        sweeps: Rounds of the alternation, at least 0; 0 is FedIT.

    Example:
        >>> FloraNa(coefficients="per_layer")
        Traceback (most recent call last):
        ...
        ValueError: coefficients: expected 'shared' or 'per_pair', got 'per_layer'

    Source: Nguyen et al., "Communication-Efficient and Accurate Approach for Aggregation in Federated Low-Rank
    Adaptation", arXiv 2509.26399 v3.

    Differs from the paper in: alternating least squares for AdamW (there 200 steps of size 0.01, from coefficients that
    are all 1, keeping the best); the squared error itself for a loss that is divided by its own smallest entry;
    coefficients multiply the factors, as the paper writes it, and not their changes with 1/K in front, as seen in
    development code; the ridge.
    """

    coefficients: Coefficients = "shared"
    ridge: float = 1e-6
    sweeps: int = 50
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # it needs the factors of the single hospitals

    def __post_init__(self) -> None:
        if self.coefficients not in get_args(Coefficients):
            raise ValueError(f"coefficients: expected 'shared' or 'per_pair', got {self.coefficients!r}")
        check_not_negative(ridge=self.ridge)
        check_integer(0, sweeps=self.sweeps)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """FedAvg on dense tensors, fitted sums of the factors."""
        after = super().aggregate(server, updates, rng).server
        pairs = server.setting.layout.pairs
        if not pairs:
            return Aggregated(server=after)
        tensors = dict(after.tensors)
        for pair, a, b in zip(pairs, *self.fit(updates, pairs), strict=True):
            tensors[pair.A] = _combined(updates, pair.A, a)
            tensors[pair.B] = _combined(updates, pair.B, b)
        return Aggregated(server=replace(after, tensors=tensors))

    def fit(self, updates: Sequence[ClientUpdate], pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """The coefficients a and b of every pair, each (pairs, K) in the order of the updates.

        Args:
            updates: Updates with both factors of every pair, of equal ranks.
            pairs: At least one.
        """
        blocks = [_blocks(updates, pair) for pair in pairs]
        of_B, of_A = (torch.stack(side) for side in zip(*blocks, strict=True))  # (pairs, K, K, r, r)
        p = torch.tensor([normalised_weights(updates)], dtype=of_B.dtype, device=of_B.device)  # (1, K)
        mu_b, mu_a = self._ridge(of_B, of_A, p), self._ridge(of_A, of_B, p)
        a = b = p
        for _ in range(self.sweeps):
            b = _solved(*self._least_squares(of_B, of_A, a, p), mu_b, p)
            a = _solved(*self._least_squares(of_A, of_B, b, p), mu_a, p)
        return a.expand(len(pairs), -1), b.expand(len(pairs), -1)

    def _ridge(self, fitted: Tensor, held: Tensor, p: Tensor) -> Tensor:
        """Mu (groups, 1, 1)."""
        N, _ = self._least_squares(fitted, held, p, p)
        return self.ridge * N.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]

    def _least_squares(self, fitted: Tensor, held: Tensor, coefficients: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Normal equations N (groups, K, K), c (groups, K) of one side, the coefficients (groups, K) of the other held.

        With ``A = sum_j a_j A_j`` held, ``N_ik = <B_i A, B_k A>`` and ``c_i = <B_i A, W*>``. Pairs that share
        coefficients are one group, and their equations are summed.
        """
        mixed = torch.einsum("ljkrs,lj->lkrs", held, coefficients)  # A A_k^T
        N = torch.einsum("likrs,lrs->lik", fitted, torch.einsum("lkrs,lk->lrs", mixed, coefficients))
        c = torch.einsum("likrs,lkrs,lk->li", fitted, mixed, p)
        if self.coefficients == "shared":
            return N.sum(0, keepdim=True), c.sum(0, keepdim=True)
        return N, c


def _blocks(updates: Sequence[ClientUpdate], pair: Pair) -> tuple[Tensor, Tensor]:
    """``B_i^T B_k`` and ``A_i A_k^T``, each (K, K, r, r); the scale is in B."""
    factors = [folded(update.tensors, pair) for update in updates]
    B = torch.stack([B_k for B_k, _ in factors]).double()  # (K, d_out, r)
    A = torch.stack([A_k for _, A_k in factors]).double()  # (K, r, d_in)
    return torch.einsum("ior,kos->ikrs", B, B), torch.einsum("iro,kso->ikrs", A, A)


def _solved(N: Tensor, c: Tensor, mu: Tensor, p: Tensor) -> Tensor:
    """``argmin_x x^T N x - 2 c^T x + mu ||x - p||^2`` per group, (groups, K); where nothing decides, p."""
    inverse: Tensor = torch.linalg.pinv(N + mu * torch.eye(N.shape[-1]).to(N), hermitian=True)
    return p + (inverse @ (c[..., None] - N @ p[..., None]))[..., 0]


def _combined(updates: Sequence[ClientUpdate], name: str, coefficients: Tensor) -> Tensor:
    stack = torch.stack([update.tensors[name] for update in updates])
    combined: Tensor = torch.einsum("k,kab->ab", coefficients, stack.double())
    return combined.to(stack)
