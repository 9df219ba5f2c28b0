"""``wardround.json`` of an export: which run its model comes from, for programs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..builder import resolve
from ..files import read_json
from ..rundir import RunDirectory
from ..seen_cases import TRAINED_ON, collections_of
from ..trained import Trained

FILE = "wardround.json"
"""The name of the file."""

BASE = "base"
"""Folder with the base in an export of adapters."""

KEYS = (
    *("experiment", "run", "round", "hospital", "data", "classes", "model", "method", "aggregator"),
    *("started_from", "trained_on", "collections"),
)
"""What every ``wardround.json`` has."""


def origin(trained: Trained, hospital: str | None = None) -> dict[str, Any]:
    """What ``wardround.json`` says.

    Args:
        trained: The run.
        hospital: Whose model is written; None: that of a site never seen.

    Returns:
        ``experiment`` (its name), ``run`` (its id), ``round``, ``hospital`` (a name or None), ``data``, ``model``,
        ``method`` and ``aggregator`` with their settings and without paths (of ``model.weights`` the last part),
        ``classes``, ``seed`` and ``weights_hash`` (with the model they say what the base is), ``started_from``: what
        the manifest says of another run or adapter that this one began with, but for its path, None where there is
        none; ``trained_on``: sorted hashes of the training cases, None where the run has no list, and where it promises
        differential privacy: who has a case could tell by its hash that it was there; and ``collections`` of images
        that the bases (``pretrained_on``) and all runs (``data``) have seen, this one and those before it.
    """
    settings: dict[str, Any] = resolve(trained.experiment, without=Path)
    model = settings["model"]
    if isinstance(model.get("weights"), str):
        model = {**model, "weights": Path(model["weights"]).name}
    pretrained_on, data = collections_of(trained.experiment)
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
        "weights_hash": trained.experiment.model.weights_hash(),
        "started_from": started_from(trained),
        "trained_on": listed_cases(trained),
        "collections": {"pretrained_on": list(pretrained_on), "data": list(data)},
    }


def started_from(trained: Trained) -> dict[str, Any] | None:
    """What the manifest says of the model that a run began with, without its path; None: it began with its base."""
    if trained.experiment.start_from is None:
        return None
    said = (RunDirectory(trained.path).manifest or {}).get("started_from", {})
    return {key: value for key, value in said.items() if key != "path"}


def listed_cases(trained: Trained) -> list[str] | None:
    """The lines of a run's ``trained_on.txt``; None: it has none, or promises differential privacy."""
    file = trained.path / TRAINED_ON
    if trained.experiment.stages.privacy or not file.is_file():
        return None
    return file.read_text(encoding="utf-8").split()


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
