"""Range checks of hyper-parameters: every message says which one, what was expected and what came."""

from __future__ import annotations

import math


def check_positive(**values: float) -> None:
    """Raises ValueError unless every value is a finite number above 0."""
    _check("a number above 0", {name: 0 < value < math.inf for name, value in values.items()}, values)


def check_not_negative(**values: float) -> None:
    """Raises ValueError unless every value is a finite number of at least 0."""
    _check("a number of at least 0", {name: 0 <= value < math.inf for name, value in values.items()}, values)


def check_fraction(**values: float) -> None:
    """Raises ValueError unless every value is in [0, 1)."""
    _check("a number in [0, 1)", {name: 0 <= value < 1 for name, value in values.items()}, values)


def _check(expected: str, fits: dict[str, bool], values: dict[str, float]) -> None:
    problems = [f"{name}: expected {expected}, got {values[name]!r}" for name, fit in fits.items() if not fit]
    if problems:
        raise ValueError("; ".join(problems))
