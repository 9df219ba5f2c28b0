"""How much a hospital counts in a mean. The one place where weights are made; aggregators only read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Protocol

from ..aggregators import GeometricMedian, Krum, MultiKrum
from ..aggregators.arithmetic import normalised_weights
from ..aggregators.contract import Aggregator, ClientUpdate, Download, HospitalInfo, ServerState, Setting
from ..aggregators.products import for_rank
from ..aggregators.robust import Reweighting, kept, reweighed
from ..aggregators.scheduled import Scheduled

RULES: dict[str, type] = {"krum": Krum, "multi_krum": MultiKrum, "geometric_median": GeometricMedian}
"""The robust aggregators that yield weights."""


class Weighting(Protocol):
    """Gives every hospital a weight, not normalised."""

    def weights(self, hospitals: Sequence[HospitalInfo]) -> dict[str, float]:
        """Weight per hospital name, each >= 0, not all 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class Examples:
    """``w_k = n_k``, the training windows of the hospital (McMahan et al., 2017)."""

    def weights(self, hospitals: Sequence[HospitalInfo]) -> dict[str, float]:
        """See :class:`Weighting`."""
        return {hospital.name: float(hospital.num_examples) for hospital in hospitals}


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """``w_k = 1``."""

    def weights(self, hospitals: Sequence[HospitalInfo]) -> dict[str, float]:
        """See :class:`Weighting`."""
        return {hospital.name: 1.0 for hospital in hospitals}


@dataclass(frozen=True, kw_only=True)
class Explicit:
    """Weights by hand, one per hospital, as in FLAP-SAM's released code.

    Args:
        values: Weight per hospital name, each >= 0.
    """

    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        negative = {name: value for name, value in self.values.items() if not value >= 0}
        if negative:
            raise ValueError(f"values: expected numbers of at least 0, got {negative!r}")
        if self.values and not any(self.values.values()):
            raise ValueError("values: expected at least one weight above 0, got none")

    def weights(self, hospitals: Sequence[HospitalInfo]) -> dict[str, float]:
        """See :class:`Weighting`. Raises ValueError when names and hospitals differ."""
        names = {hospital.name for hospital in hospitals}
        if names != set(self.values):
            raise ValueError(
                f"weights.values: expected one weight for each of {sorted(names)}; "
                f"missing {sorted(names - set(self.values))}, unknown {sorted(set(self.values) - names)}"
            )
        return dict(self.values)


@dataclass(frozen=True, kw_only=True)
class Robust:
    """Weights by a robust rule that looks at the updates of every round; an aggregator that uses weights follows.

    ``w_k`` of the rule from ``p_k`` of the base, round by round. What the rule gives no weight is not shown to the
    aggregator at all. A hospital that sends part of its tensors is compared by what it was handed in the place of the
    rest: with a frozen A, products are B_k A.

    Aggregators that ignore weights are refused before round 1 (:func:`check_rule`).

    The rule needs every update by itself: no secure sum, no central differential privacy.

    Args:
        rule: ``krum``, ``multi_krum`` or ``geometric_median``, with their settings. Distances on the product do not
            see how a hospital splits it; an aggregator on the factors behind them can be misled by that.
        base: ``examples`` or ``uniform``: the weights before the rule. Krum and Multi-Krum do not look at them.
    """

    rule: Annotated[Reweighting, RULES] = field(default_factory=MultiKrum)
    base: Literal["examples", "uniform"] = "examples"

    def __post_init__(self) -> None:
        if self.base not in ("examples", "uniform"):
            raise ValueError(f"base: expected 'examples' or 'uniform', got {self.base!r}")

    def weights(self, hospitals: Sequence[HospitalInfo]) -> dict[str, float]:
        """The weights before the rule."""
        return (Examples() if self.base == "examples" else Uniform()).weights(hospitals)


WEIGHTINGS: dict[str, type] = {"examples": Examples, "uniform": Uniform, "explicit": Explicit, "robust": Robust}


def rule_of(weighting: Weighting) -> Reweighting | None:
    """The rule that weighs the updates of a round once more, if there is one."""
    return weighting.rule if isinstance(weighting, Robust) else None


def check_rule(rule: Reweighting | None, aggregator: Aggregator, setting: Setting) -> None:
    """Checks before round 1 that robust weights can work.

    Args:
        rule: The rule; None: nothing to check.
        aggregator: What comes after it.
        setting: Says who takes part.

    Raises:
        ValueError: the aggregator ignores weights, or the rule cannot work with these hospitals.
    """
    if rule is None:
        return
    if not aggregator.uses_weights:
        raise ValueError(
            f"weights 'robust': expected an aggregator that uses weights, got {type(aggregator).__name__}, which does "
            "not: a lower weight would change nothing, and what the server keeps about hospitals (control variates) "
            "would miss those that are left out. Use fedavg, flap_sam or another one whose `uses_weights` is true, or "
            "weights 'uniform'"
        )
    if isinstance(aggregator, Scheduled) and aggregator.draw == "per_client":
        raise ValueError(
            "weights 'robust': expected hospitals that train the same tensors, but with draw 'per_client' two of them "
            "are far apart because they drew different groups. Use 'draw: shared', or weights 'uniform'"
        )
    try:
        rule.check(setting.hospitals, setting.cohort_size)
    except ValueError as error:
        raise ValueError(f"weights.rule: {error}") from error


def weighed(
    rule: Reweighting | None, server: ServerState, downloads: Mapping[str, Download], updates: Sequence[ClientUpdate]
) -> tuple[list[ClientUpdate], dict[str, float]]:
    """The updates as the aggregator gets to see them, and what there is to say about it.

    Args:
        rule: The rule; None: nothing changes.
        server: The state that was broadcast.
        downloads: What every hospital was handed, by name.
        updates: The checked updates.

    Returns:
        Updates with the weights of the rule, those of weight 0 left out; diagnostics ``robust_kept_weight`` and
        ``robust_rejected``.
    """
    if rule is None or not updates:
        return list(updates), {}
    server = replace(server, tensors={**server.setting.trainable, **server.tensors})
    whole = [_completed(server, downloads[update.hospital], update) for update in updates]
    weights = rule.reweigh(server, whole)
    notes = kept(normalised_weights(updates), weights)
    return reweighed(updates, weights), {f"robust_{name}": value for name, value in notes.items()}


def _completed(server: ServerState, download: Download, update: ClientUpdate) -> ClientUpdate:
    """The update with what the hospital was handed, or else what the server has, where it sent nothing."""
    info = next((info for info in server.setting.hospitals if info.name == update.hospital), None)
    return replace(update, tensors={**for_rank(server, info), **download.start, **update.tensors})
