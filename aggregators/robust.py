"""What the robust aggregators share: distances, scores, quorums, and the mean that follows a rule.

A *byzantine* hospital may send anything. There are two kinds of defence. Rules that yield **weights**
(:class:`Reweighting`: Krum, Multi-Krum, the geometric median) look at distances between whole updates and say how much
each counts; any mean can follow. Rules that work **per coordinate** (median, trimmed mean, the second stage of Bulyan)
need the coordinates themselves.

Distances on the product come from Gram blocks of the factors (:func:`~wardround.aggregators.spaces.gram_of_steps`), so
that rules that yield weights never form a dense product. Rules per coordinate have no low-rank form: on the product
they run on the dense (d_out, d_in) matrix of one layer after the other, which is then cut to the server's rank.

Legend: n hospitals in the round, f byzantine ones at most, p_k weight of the run and w_k of the rule, both normalised,
theta the server's model and theta_k that of hospital k, in factors or on the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from .arithmetic import accumulator, normalised_weights
from .checks import AggregationError
from .contract import (
    Aggregated,
    ClientUpdate,
    HospitalInfo,
    Layout,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from .mean_in_space import MeanInSpace
from .spaces import On, coordinates, from_coordinates, gram_of_steps

Updates = Sequence[ClientUpdate]


class Reweighting(Protocol):
    """A rule that looks at the updates of a round and says how much each of them counts."""

    def check(self, hospitals: Sequence[HospitalInfo], cohort_size: int | None = None) -> None:
        """Raises ValueError where the rule cannot work.

        Args:
            hospitals: All hospitals.
            cohort_size: How many of them take part in a round; None: all.
        """
        ...

    def reweigh(self, server: ServerState, updates: Updates) -> list[float]:
        """The weight of every update, each >= 0, with sum 1.

        Args:
            server: theta, with every trainable tensor.
            updates: theta_k with every trainable tensor, and p_k.

        Raises:
            AggregationError: too few updates for the rule.
        """
        ...


# ---- distances and scores --------------------------------------------------------------------------------------------


def squared_distances(on: On, server: ServerState, updates: Updates) -> Tensor:
    """``||theta_i - theta_j||^2`` in a space, (n, n), float64, symmetric, 0 on the diagonal; from Gram blocks."""
    G = gram_of_steps(on, server, updates)
    G = (G + G.mT) / 2
    norms = G.diagonal()
    return (norms[:, None] + norms[None, :] - 2 * G).clamp(min=0).fill_diagonal_(0)


def krum_scores(distances: Tensor, byzantine: int) -> Tensor:
    """Per update the sum of the squared distances to its n - f - 2 nearest others, at least one of them; (n,).

    An update is kept from its own neighbourhood by its number, not by its distance of 0: others may be as near.

    Args:
        distances: (n, n), squared.
        byzantine: f.
    """
    n = len(distances)
    others = distances.masked_fill(torch.eye(n, dtype=torch.bool), torch.inf)
    return others.sort(dim=1).values[:, : max(1, n - byzantine - 2)].sum(1)


def lowest(scores: Tensor, updates: Updates, number: int) -> list[int]:
    """Where the ``number`` lowest scores are; among equals the hospital that comes first by name."""
    ranked = sorted(range(len(updates)), key=lambda k: (scores[k].item(), updates[k].hospital))
    return ranked[:number]


def picked(chosen: Sequence[int], number: int) -> list[float]:
    """Equal weights for the chosen of ``number`` updates, 0 for the rest."""
    return [1 / len(chosen) if k in chosen else 0.0 for k in range(number)]


# ---- who may be wrong, and how many ----------------------------------------------------------------------------------


def check_byzantine(byzantine: int) -> None:
    """Raises ValueError when it is no number of hospitals."""
    if byzantine < 0:
        raise ValueError(f"byzantine: expected a number of hospitals of at least 0, got {byzantine!r}")


def quorum_problem(number: int, byzantine: int, factor: int) -> str | None:
    """What is wrong when ``n >= factor f + 3`` does not hold."""
    needed = factor * byzantine + 3
    if number >= needed:
        return None
    return (
        f"expected at least {factor} * byzantine + 3 = {needed} hospitals in a round for byzantine = {byzantine}, "
        f"got {number}; set a lower byzantine, a larger cohort, or use geometric_median, which needs no such number"
    )


def require(problem: str | None, server: ServerState | None = None) -> None:
    """Raises what is wrong, if anything is: ValueError before round 1, AggregationError that names the round in one."""
    if problem is None:
        return
    if server is None:
        raise ValueError(problem)
    raise AggregationError(f"round {server.round + 1}", [problem])


def ranks_problem(on: On, hospitals: Sequence[HospitalInfo]) -> str | None:
    """What is wrong when factors of different ranks would be compared."""
    ranks = {hospital.name: hospital.rank for hospital in hospitals}
    if on == "product" or len(set(ranks.values())) < 2:
        return None
    return f"expected one LoRA rank for all hospitals on the factors, got {ranks}; set equal ranks, or on: product"


# ---- the aggregators -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RobustMean(MeanInSpace):
    """The round of the mean in a space, with a step of a subclass's own that looks at every update."""

    on: On = "product"
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # every update by itself

    def problem(self, number: int) -> str | None:
        """What is wrong with a round of so many hospitals, if anything is."""
        return None

    def check(self, hospitals: Sequence[HospitalInfo], cohort_size: int | None = None) -> None:
        """See :class:`Reweighting`."""
        require(ranks_problem(self.on, hospitals))
        require(self.problem(len(hospitals) if cohort_size is None else cohort_size))

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values. Raises ValueError when ranks or the number of hospitals do not fit."""
        server = super().init(setting, rng)
        self.check(setting.hospitals, setting.cohort_size)
        return server


@dataclass(frozen=True, kw_only=True)
class ReweighedMean(RobustMean):
    """The mean with the weights of the class's own rule: ``theta <- sum_k w_k theta_k`` in the space."""

    def reweigh(self, server: ServerState, updates: Updates) -> list[float]:
        """See :class:`Reweighting`."""
        raise NotImplementedError

    def aggregate(self, server: ServerState, updates: Updates, rng: Streams) -> Aggregated:
        """The rule, then the mean in the space."""
        weights = self.reweigh(server, updates)
        return with_diagnostics(
            super().aggregate(server, reweighed(updates, weights), rng), kept(normalised_weights(updates), weights)
        )


def reweighed(updates: Updates, weights: Sequence[float]) -> list[ClientUpdate]:
    """The updates with these weights; those of weight 0 are left out, so that no aggregator can still use them."""
    return [replace(update, weight=weight) for update, weight in zip(updates, weights, strict=True) if weight > 0]


def with_diagnostics(aggregated: Aggregated, diagnostics: Mapping[str, float]) -> Aggregated:
    """The same with more to say."""
    return replace(aggregated, diagnostics={**aggregated.diagnostics, **diagnostics})


def kept(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """What a rule that yields weights did: how much of the weight stayed where the run put it, how many got none.

    Args:
        before: p_k.
        after: w_k.

    Returns:
        ``kept_weight``: ``sum_k min(p_k, w_k)``, 1 where nothing changed; ``rejected``: number of updates of weight 0.
    """
    share = sum(min(p, w) for p, w in zip(before, after, strict=True))
    return {"kept_weight": share, "rejected": float(sum(w == 0 for w in after))}


# ---- per coordinate --------------------------------------------------------------------------------------------------


def per_coordinate(
    on: On, server: ServerState, updates: Updates, rule: Callable[[Tensor], Tensor], rng: Streams
) -> dict[str, Tensor]:
    """The model whose every coordinate is made by ``rule`` from those of the hospitals.

    On the product one dense matrix per hospital is held for one layer at a time, and one per layer for the result.

    Args:
        on: The space.
        server: Says rank and dtypes.
        updates: theta_k.
        rule: (n, ...) values sorted along the first dimension to (...); in float64 where the device has it.
        rng: Draws directions where a product has fewer than the rank.
    """
    values: dict[str, Tensor] = {}
    for part in _parts(server.setting.layout):
        each = [coordinates(on, part, _wide(part, update.tensors)) for update in updates]
        for name in each[0]:
            values[name] = rule(torch.stack([one[name] for one in each]).sort(dim=0).values)
    return from_coordinates(on, server, values, rng)


def _parts(layout: Layout) -> Iterator[Layout]:
    """One pair or one dense tensor at a time."""
    yield from (replace(layout, pairs=(pair,), dense=()) for pair in layout.pairs)
    yield from (replace(layout, pairs=(), dense=(name,)) for name in layout.dense)


def _wide(part: Layout, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of a part in float64 where there is one: what an attacker sends may overflow float32 as a product."""
    return {name: tensors[name].to(accumulator(tensors[name])) for name in part.names}


def median_of_sorted(values: Tensor) -> Tensor:
    """(n, ...) sorted to (...): the middle one, or the mean of the two in the middle when n is even."""
    n = len(values)
    return (values[(n - 1) // 2] + values[n // 2]) / 2
