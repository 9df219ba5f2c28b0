"""How much a hospital counts in a mean. The one place where weights are made; aggregators only read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..aggregators.contract import HospitalInfo


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


WEIGHTINGS: dict[str, type] = {"examples": Examples, "uniform": Uniform, "explicit": Explicit}
