"""Krum and Multi-Krum: the updates that have the nearest neighbours (Blanchard et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .contract import ClientUpdate, ServerState
from .robust import (
    ReweighedMean,
    check_byzantine,
    krum_scores,
    lowest,
    picked,
    quorum_problem,
    require,
    squared_distances,
)


@dataclass(frozen=True, kw_only=True)
class Krum(ReweighedMean):
    """The one update whose n - f - 2 nearest others are nearest; all the rest is thrown away.

    ::

        score_i = sum of ||theta_i - theta_j||^2 over the n - f - 2 nearest j != i
        theta <- theta_k,   k = argmin_i score_i

    With up to f byzantine hospitals among n >= 2 f + 3 the choice stays close to the honest ones, even if all f send
    the same. On the product the distances are those of ``s B A``, through Gram blocks of the factors, and the choice
    does not depend on how a hospital splits its product.

    Traffic: ``r (d_out + d_in)`` up and down per pair, as FedAvg.

    Args:
        byzantine: f, hospitals that may send anything, >= 0.
        on: ``product`` (any ranks) or ``factors``: where distances are measured and the mean is taken.

    Example:
        >>> from wardround.aggregators.contract import HospitalInfo
        >>> Krum(byzantine=1).check([HospitalInfo(name=name, num_examples=1) for name in "abcd"])
        Traceback (most recent call last):
        ...
        ValueError: expected at least 2 * byzantine + 3 = 5 hospitals in a round for byzantine = 1, got 4; ...

    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", arXiv
    1703.02757, section 4.

    Differs from the paper in: models after local training instead of gradients; equal scores go to the hospital that
    comes first by name; distances on the product.
    """

    byzantine: int = 1
    uses_weights: ClassVar[bool] = False  # one update is kept, whatever its weight

    def __post_init__(self) -> None:
        super().__post_init__()
        check_byzantine(self.byzantine)

    def problem(self, number: int) -> str | None:
        """Too few hospitals for f."""
        return quorum_problem(number, self.byzantine, 2)

    def reweigh(self, server: ServerState, updates: Sequence[ClientUpdate]) -> list[float]:
        """1 for the update of the lowest score, 0 for the others."""
        return _lowest_scores(self, server, updates, 1)


@dataclass(frozen=True, kw_only=True)
class MultiKrum(ReweighedMean):
    """The plain mean of the m updates of the lowest Krum score.

    ::

        theta <- (1 / m) sum of theta_k over the m lowest scores of Krum

    Between Krum (m = 1) and the mean of all: it loses less of what honest hospitals learned.

    Traffic: ``r (d_out + d_in)`` up and down per pair, as FedAvg.

    Args:
        byzantine: f, hospitals that may send anything, >= 0; n >= 2 f + 3.
        keep: m, 1..n - f; None: n - f.
        on: ``product`` (any ranks) or ``factors``: where distances are measured and the mean is taken.

    Source: Blanchard et al., arXiv 1703.02757, section 4; m <= n - f as usual since.

    Differs from the paper in: what is listed for :class:`Krum`. The mean is uniform: a byzantine hospital may lie about
    its number of examples.
    """

    byzantine: int = 1
    keep: int | None = None
    uses_weights: ClassVar[bool] = False  # the mean is uniform

    def __post_init__(self) -> None:
        super().__post_init__()
        check_byzantine(self.byzantine)
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep: expected a number of updates of at least 1, got {self.keep!r}")

    def problem(self, number: int) -> str | None:
        """Too few hospitals for f, or for m."""
        return quorum_problem(number, self.byzantine, 2) or self._keep_problem(number)

    def reweigh(self, server: ServerState, updates: Sequence[ClientUpdate]) -> list[float]:
        """1 / m for the m lowest scores, 0 for the others."""
        number = self.keep if self.keep is not None else len(updates) - self.byzantine
        return _lowest_scores(self, server, updates, number)

    def _keep_problem(self, number: int) -> str | None:
        if self.keep is None or self.keep <= number - self.byzantine:
            return None
        return (
            f"expected keep of at most n - byzantine = {number} - {self.byzantine} = {number - self.byzantine}, "
            f"got {self.keep}"
        )


def _lowest_scores(
    rule: Krum | MultiKrum, server: ServerState, updates: Sequence[ClientUpdate], number: int
) -> list[float]:
    require(rule.problem(len(updates)), server)
    scores = krum_scores(squared_distances(rule.on, server, updates), rule.byzantine)
    return picked(lowest(scores, updates, number), len(updates))
