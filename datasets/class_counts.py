"""Images of every class: of some cases, and of all whom a federation knows.

Legend: C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from .contract import Case, Federation

Holders = Mapping[str, Mapping[str, tuple[Case, ...]]]
"""Cases by who has them and what they are for."""


def histogram(cases: Sequence[Case], num_classes: int) -> list[int]:
    """Cases of each class, (C,)."""
    counts = Counter(case.target for case in cases)
    return [counts[number] for number in range(num_classes)]


def holders(federation: Federation, common: str) -> dict[str, dict[str, tuple[Case, ...]]]:
    """Hospitals that train (``train``, ``validation``, ``test``), sites that do not (``unseen``), the common test set.

    A side without cases is not there.

    Args:
        federation: Who has what.
        common: What the common test set is called.
    """
    found: dict[str, dict[str, tuple[Case, ...]]] = {
        name: {"train": cases.train, "validation": cases.validation, "test": cases.test}
        for name, cases in federation.hospitals.items()
    }
    found |= {name: {"unseen": cases} for name, cases in federation.unseen.items()}
    found |= {common: {"test": federation.common}} if federation.common else {}
    return {name: {side: cases for side, cases in sides.items() if cases} for name, sides in found.items()}


def class_counts(held: Holders, classes: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    """Images by holder, side and class; every side that a holder has names every class.

    Args:
        held: Who has what.
        classes: Names of the C classes.
    """
    return {
        name: {side: dict(zip(classes, histogram(cases, len(classes)), strict=True)) for side, cases in sides.items()}
        for name, sides in held.items()
    }
