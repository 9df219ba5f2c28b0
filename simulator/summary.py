"""``summary.json``: a finished run in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .results import UNSEEN
from .rundir import RunDirectory


def summarise_run(directory: RunDirectory, classes: Sequence[str]) -> dict[str, Any]:
    """The scores of the last round on the test volumes, and what the run cost.

    ``dice.mean`` is the mean over hospitals of the mean over classes of the mean over volumes; ``dice.worst`` the
    lowest hospital; ``dice.unseen`` the sites that did not train; ``seconds`` the wall time of all rounds; bytes are
    sums over hospitals and rounds.
    """
    metrics = directory.rows("metrics")
    rounds = max(row["round"] for row in metrics)
    last = [row for row in metrics if row["round"] == rounds]
    test = [row for row in last if row["split"] == "test"]
    unseen = [row for row in last if row["split"] == UNSEEN and row["metric"] == "dice"]
    per_hospital = {row["hospital"]: row["value"] for row in test if row["metric"] == "dice"}
    per_class = {name: _mean([row["value"] for row in test if row["metric"] == f"dice/{name}"]) for name in classes}
    per_region = {name: _mean(values) for name, values in _by_region(test).items()}
    ledger, timing = directory.rows("ledger"), directory.rows("timing")
    return {
        "dice": {
            "mean": _mean(list(per_hospital.values())),
            "worst": min(per_hospital.values()),
            "per_hospital": per_hospital,
            "per_class": per_class,
            **({"per_region": per_region} if per_region else {}),
            **({"unseen": {row["hospital"]: row["value"] for row in unseen}} if unseen else {}),
        },
        "rounds": rounds,
        "seconds": round(sum(value for row in timing for name, value in row.items() if name != "round"), 3),
        "bytes_up": sum(row["bytes_up"] for row in ledger),
        "bytes_down": sum(row["bytes_down"] for row in ledger),
        "steps": sum(row["steps"] for row in ledger),
    }


def _by_region(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Dice of the hospitals per region, in the order of the experiment."""
    found: dict[str, list[float]] = {}
    for row in rows:
        kind, _, name = row["metric"].partition("/")
        if kind == "dice_region":
            found.setdefault(name, []).append(row["value"])
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(np.array(values, dtype=np.float64)))
