"""``summary.json``: a finished run in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .headline import Headline, headline_of
from .results import UNSEEN, mean
from .rundir import RunDirectory

Rows = Sequence[Mapping[str, Any]]


def summarise_run(directory: RunDirectory, classes: Sequence[str]) -> dict[str, Any]:
    """The scores of the last round on the test cases, and what the run cost.

    Under the key of the headline, ``dice`` or ``accuracy``: ``mean`` over hospitals of the mean over their cases (of a
    segmentation the mean over classes of that), ``worst`` the lowest hospital, ``unseen`` the sites that did not train.
    Of a classification also ``pooled``, the same over the images of all hospitals in one heap, and the other scores.
    ``seconds`` is the wall time of all rounds; bytes are sums over hospitals and rounds.

    Args:
        directory: The run; its manifest names the task.
        classes: Names of its classes.
    """
    headline = headline_of(directory.manifest or {})
    metrics = directory.rows("metrics")
    rounds = max(row["round"] for row in metrics)
    last = [row for row in metrics if row["round"] == rounds]
    test = [row for row in last if row["split"] == "test"]
    unseen = _per_hospital([row for row in last if row["split"] == UNSEEN], headline.key)
    per_hospital = _per_hospital(test, headline.key)
    per_class = {name: _mean(_values(test, f"{headline.class_key}/{name}")) for name in classes}
    per_region = {name: _mean(values) for name, values in _by_region(test).items()}
    ledger, timing = directory.rows("ledger"), directory.rows("timing")
    return {
        headline.key: {
            "mean": _mean(list(per_hospital.values())),
            "worst": min(value for value in per_hospital.values() if value is not None),
            **_pooled(test, headline, headline.key),
            "per_hospital": per_hospital,
            "per_class": per_class,
            **({"per_region": per_region} if per_region else {}),
            **({"unseen": unseen} if unseen else {}),
        },
        **_others(test, headline),
        "rounds": rounds,
        "seconds": round(sum(value for row in timing for name, value in row.items() if name != "round"), 3),
        "bytes_up": sum(row["bytes_up"] for row in ledger),
        "bytes_down": sum(row["bytes_down"] for row in ledger),
        "steps": sum(row["steps"] for row in ledger),
    }


def _others(test: Rows, headline: Headline) -> dict[str, dict[str, float | None]]:
    """Scores beside the headline that have one value per hospital: mean over the hospitals, and pooled."""
    whole = [other.key for other in headline.others if not other.per_class]
    return {key: {"mean": mean(_values(test, key)), **_pooled(test, headline, key)} for key in whole}


def _pooled(test: Rows, headline: Headline, key: str) -> dict[str, float | None]:
    """The score over the cases of all hospitals in one heap, where a task has it."""
    return {"pooled": next(iter(_values(test, headline.pooled_key(key))), None)} if headline.pools else {}


def _per_hospital(rows: Rows, metric: str) -> dict[str, float | None]:
    return {row["hospital"]: row["value"] for row in rows if row["metric"] == metric}


def _values(rows: Rows, metric: str) -> list[float | None]:
    return [row["value"] for row in rows if row["metric"] == metric]


def _by_region(rows: Rows) -> dict[str, list[float | None]]:
    """Dice of the hospitals per region, in the order of the experiment."""
    found: dict[str, list[float | None]] = {}
    for row in rows:
        kind, _, name = row["metric"].partition("/")
        if kind == "dice_region":
            found.setdefault(name, []).append(row["value"])
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the defined values, as NumPy adds them; None without."""
    defined = np.array([value for value in values if value is not None], dtype=np.float64)
    return float(np.mean(defined)) if defined.size else None
