"""``wardround.json`` of an export: which run its model comes from, for programs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..assembly import weights_hash
from ..builder import resolve
from ..files import read_json
from ..trained import Trained

FILE = "wardround.json"
"""The name of the file."""

TRAINED_ON = "trained_on.txt"
"""In a run: a hash per case that its model was trained on, one per line."""

KEYS = ("experiment", "run", "round", "hospital", "data", "classes", "model", "method", "aggregator", "trained_on")
"""What every ``wardround.json`` has."""


def origin(trained: Trained, hospital: str | None = None) -> dict[str, Any]:
    """What ``wardround.json`` says.

    Args:
        trained: The run.
        hospital: Whose model is written; None: that of a site never seen.

    Returns:
        ``experiment`` (its name), ``run`` (its id), ``round``, ``hospital`` (a name or None), ``data``, ``model``,
        ``method`` and ``aggregator`` with their settings and without paths (of ``model.weights`` the last part),
        ``classes``, ``seed`` and ``weights_hash`` (with the model they say what the base is), and ``trained_on``:
        sorted hashes of the training cases, None where the run has no list, and where it promises differential privacy:
        who has a case could tell by its hash that it was there.
    """
    settings: dict[str, Any] = resolve(trained.experiment, without=Path)
    model = settings["model"]
    if isinstance(model.get("weights"), str):
        model = {**model, "weights": Path(model["weights"]).name}
    return {
        "wardround": version("wardround"),
        "experiment": trained.experiment.name,
        "run": trained.path.resolve().name,
        "round": trained.round,
        "hospital": hospital,
        "classes": list(trained.classes),
        "data": settings["data"],
        "model": model,
        "method": settings["method"],
        "aggregator": settings["aggregator"],
        "seed": trained.experiment.seed,
        "weights_hash": weights_hash(trained.experiment),
        "trained_on": None if trained.experiment.stages.privacy else _trained_on(trained.path),
    }


def _trained_on(run: Path) -> list[str] | None:
    file = run / TRAINED_ON
    return file.read_text(encoding="utf-8").split() if file.is_file() else None


def read_origin(folder: Path) -> Mapping[str, Any]:
    """What the ``wardround.json`` of an export says; see :func:`origin`.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        raise ValueError(f"{folder}: expected a folder that `wardround export` wrote, but it has no {FILE}")
    said: Mapping[str, Any] = read_json(file, KEYS)
    return said
