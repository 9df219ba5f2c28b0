"""The server's step on low-rank pairs by three routes: QR of the stacked factors, dense SVD, randomised dense SVD.

Each route takes the K updates of a round and gives the factors of rank r of their mean product,

::

    M = sum_k p_k s_k B_k A_k,    B A ~ M, B (d_out, r) orthonormal, A (r, d_in)

and is timed in one process. The routes take turns, so that a slow moment of the machine hits all of them.

Legend: K hospitals, r their rank, d_out and d_in of a layer's weight, p_k normalised weight, s_k scale of the pair.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from ...aggregators.arithmetic import effective, normalised_weights, stacked
from ...aggregators.contract import ClientUpdate, Pair, Streams, Tensors
from ...aggregators.lowrank import resplit
from ...aggregators.products import Stack, ideal_means
from ..randomness import streams

OVERSAMPLES = 10
"""Directions that a randomised SVD draws beyond those it is asked for; scikit-learn's default."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """The pairs of a model at one rank, and who sends them.

    Args:
        name: How the row is called.
        shapes: (d_out, d_in) of every layer.
        rank: r, >= 1.
        hospitals: K, >= 1.
    """

    name: str
    shapes: tuple[tuple[int, int], ...]
    rank: int
    hospitals: int = 6

    def __post_init__(self) -> None:
        wrong = [
            f"{name}: expected at least 1, got {value!r}"
            for name, value in {"rank": self.rank, "hospitals": self.hospitals, "shapes": len(self.shapes)}.items()
            if value < 1
        ]
        if wrong:
            raise ValueError("; ".join(wrong))

    def pairs(self) -> tuple[Pair, ...]:
        """One pair per layer."""
        return tuple(
            Pair(A=f"{number}.A", B=f"{number}.B", base=f"{number}.weight") for number in range(len(self.shapes))
        )

    def updates(self, rng: Streams, device: torch.device) -> list[ClientUpdate]:
        """Random updates of K hospitals of equal weight that began with the same factors and moved apart a little."""
        start = self._factors(rng("start"), device)
        updates = []
        for number in range(self.hospitals):
            step = self._factors(rng("step", number), device)
            moved = {name: value + 0.3 * step[name] for name, value in start.items()}
            hospital = f"hospital-{number}"
            updates.append(ClientUpdate(hospital=hospital, weight=1.0, num_examples=1, num_steps=1, tensors=moved))
        return updates

    def _factors(self, generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
        """Gaussian factors of every pair, each of Frobenius norm about the root of its rank."""
        tensors: dict[str, Tensor] = {}
        for pair, (d_out, d_in) in zip(self.pairs(), self.shapes, strict=True):
            A = torch.randn(self.rank, d_in, generator=generator) / d_in**0.5
            B = torch.randn(d_out, self.rank, generator=generator) / d_out**0.5
            tensors |= {pair.A: A.to(device), pair.B: B.to(device)}
        return tensors


SAM_VIT_B = ((768, 768),) * 24 + ((256, 256),) * 4 + ((128, 256),) * 10
"""d_out and d_in of the 38 pairs of FLAP-SAM on ViT-B: q and v of 12 encoder blocks and of 7 decoder attentions."""

CASES = (
    Case(name="768x768", shapes=((768, 768),), rank=16),
    Case(name="768x768", shapes=((768, 768),), rank=32),
    Case(name="vit-b", shapes=SAM_VIT_B, rank=32),
)
"""What ``wardround bench`` measures."""


Route = Callable[[Sequence[ClientUpdate], Sequence[Pair], int, Streams], dict[Pair, Stack]]
"""``route(updates, pairs, rank, rng)``: factors (d_out, r) and (r, d_in) of the mean product of every pair."""


def through_qr(updates: Sequence[ClientUpdate], pairs: Sequence[Pair], rank: int, rng: Streams) -> dict[Pair, Stack]:
    """Ours, as :class:`~wardround.aggregators.flap_sam.FlapSam` does it: no dense product; equal shapes together."""
    means = ideal_means(updates, pairs)
    return {pair: resplit(svd, rank, "right", rng("spare directions", pair.B)) for pair, svd in means.items()}


def through_dense(updates: Sequence[ClientUpdate], pairs: Sequence[Pair], rank: int, rng: Streams) -> dict[Pair, Stack]:
    """``torch.linalg.svd`` of the dense mean of every pair, one after the other."""
    return {pair: _cut(*_svd(dense_mean(updates, pair)), rank) for pair in pairs}


def through_randomised(
    updates: Sequence[ClientUpdate], pairs: Sequence[Pair], rank: int, rng: Streams
) -> dict[Pair, Stack]:
    """:func:`randomised_svd` of the dense mean of every pair on the CPU, as FLAP-SAM's release does it."""
    return {
        pair: _cut(*randomised_svd(dense_mean(updates, pair).cpu(), rank, rng("sketch", pair.B)), rank)
        for pair in pairs
    }


ROUTES: Mapping[str, Route] = {"qr": through_qr, "dense": through_dense, "randomised": through_randomised}
"""Every route by name."""

BASELINE = "dense"
"""The route that the others are compared with."""

TURN_S = 0.1
"""Seconds that a route's turn lasts at least, so that a short one is not a matter of one hiccup."""


def dense_mean(updates: Sequence[ClientUpdate], pair: Pair) -> Tensor:
    """``M = sum_k p_k s_k B_k A_k`` (d_out, d_in), every product formed."""
    weights = normalised_weights(updates)
    products = [weight * effective(update.tensors, pair) for weight, update in zip(weights, updates, strict=True)]
    return torch.stack(products).sum(0)


def randomised_svd(
    M: Tensor, rank: int, generator: torch.Generator, iterations: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``rank`` singular triples of a matrix, from a random sketch of its range.

    ``Q = orth((M M^T)^n M G)`` with a Gaussian G of ``rank`` + :data:`OVERSAMPLES` columns, then the SVD of ``Q^T M``.

    Args:
        M: (d_out, d_in), on the CPU.
        rank: r, >= 1.
        generator: Draws G.
        iterations: Power iterations n; None: scikit-learn's choice, 7 where r is below a tenth of the smaller
            dimension, else 4.

    Returns:
        U (d_out, r), S (r,) and Vh (r, d_in).

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", arXiv 0909.4061, Algorithms 4.4 and 5.1;
    defaults of scikit-learn's ``randomized_svd``, which FLAP-SAM's release calls.

    Differs from them in: QR instead of LU between the iterations, as in ``torch.svd_lowrank``, which is no function of
    a generator. The three take about the same time.
    """
    if iterations is None:
        iterations = 7 if rank < 0.1 * min(M.shape) else 4
    sketch = torch.randn(M.shape[1], min(rank + OVERSAMPLES, *M.shape), generator=generator, dtype=M.dtype)
    Q = _orthonormal(M @ sketch)
    for _ in range(iterations):
        Q = _orthonormal(M @ _orthonormal(M.mT @ Q))
    U, S, Vh = _svd(Q.mT @ M)
    return (Q @ U)[:, :rank], S[:rank], Vh[:rank]


def _orthonormal(M: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(M).Q
    return basis


def _svd(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    return U, S, Vh


def _cut(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> Stack:
    """``B = U_r`` and ``A = S_r V_r^T``."""
    return U[:, :rank].contiguous(), (S[:rank, None] * Vh[:rank]).contiguous()


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One route on one case.

    Args:
        case: The case.
        route: A name of :data:`ROUTES`.
        ms: Median time of all layers together, in milliseconds.
        speedup: Median over the turns of the time of :data:`BASELINE` / this route's in the same turn.
        speedup_low: The lowest of them.
        speedup_high: The highest.
        distance: Largest over the layers of ``||B A - M_r|| / ||M_r||`` (Frobenius), M_r the best approximation of
            rank r of M in float64.
    """

    case: Case
    route: str
    ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    distance: float


def measure(case: Case, *, turns: int = 5, seed: int = 0, device: torch.device | None = None) -> list[KernelRow]:
    """A row per route.

    Args:
        case: The layers.
        turns: How often the routes take turns, >= 1.
        seed: Of the updates.
        device: Where they lie; None: the CPU.
    """
    rng = streams(seed, "kernel")
    updates, pairs = case.updates(rng, device or torch.device("cpu")), case.pairs()
    steps = {name: partial(route, updates, pairs, case.rank, rng) for name, route in ROUTES.items()}
    best = _best(updates, pairs, case.rank)
    distances = {
        name: max(_distance(stack, best[pair]) for pair, stack in step().items()) for name, step in steps.items()
    }
    calls = {name: math.ceil(TURN_S / _seconds(step)) for name, step in steps.items()}
    seconds = [{name: _seconds(step, calls[name]) for name, step in steps.items()} for _ in range(turns)]
    return [_row(case, name, seconds, distance) for name, distance in distances.items()]


def _best(updates: Sequence[ClientUpdate], pairs: Sequence[Pair], rank: int) -> dict[Pair, Tensor]:
    """M_r of every pair, in float64 on the CPU."""
    double = [_double(update.tensors) for update in updates]
    result = {}
    for pair in pairs:
        B, A = stacked(double, pair, normalised_weights(updates))
        U, scaled = _cut(*_svd(B @ A), rank)
        result[pair] = U @ scaled
    return result


def _double(tensors: Tensors) -> dict[str, Tensor]:
    return {name: value.double().cpu() for name, value in tensors.items()}


def _distance(factors: Stack, best: Tensor) -> float:
    B, A = (factor.double().cpu() for factor in factors)
    return float((B @ A - best).norm() / best.norm())


def _seconds(step: Callable[[], object], calls: int = 1) -> float:
    """Per call, of some calls in a row."""
    _synchronise()
    begun = time.perf_counter()
    for _ in range(calls):
        step()
    _synchronise()
    return (time.perf_counter() - begun) / calls


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _row(case: Case, route: str, seconds: Sequence[Mapping[str, float]], distance: float) -> KernelRow:
    speedups = [times[BASELINE] / times[route] for times in seconds]
    return KernelRow(
        case=case,
        route=route,
        ms=1e3 * median(times[route] for times in seconds),
        speedup=median(speedups),
        speedup_low=min(speedups),
        speedup_high=max(speedups),
        distance=distance,
    )
