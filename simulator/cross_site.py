"""Every hospital's model at every other hospital: how far a local model carries, and which single site's is best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..clients.evaluation import evaluate, source_of
from ..datasets.windows import PreparedVolume
from .assessment import Assessor
from .checkpoint import Checkpoint
from .federation import Federated, Rows

Site = tuple[str, str]
"""A site and one of its splits."""


def assess_across(federated: Federated, assessor: Assessor, checkpoint: Checkpoint) -> Rows:
    """Rows of ``across.jsonl``: Dice of each volume that is scored under the deployed model of each other hospital.

    Args:
        federated: The run.
        assessor: How to score.
        checkpoint: The state to score.
    """
    place = federated.workplace
    place.replica.set_base(checkpoint.server.base)
    scored_at = dict(_scored_at(federated))
    sources = {at: source_of(volumes, assessor.windows, place.replica) for at, volumes in scored_at.items()}
    rows: list[dict[str, Any]] = []
    for name, hospital in federated.hospitals.items():
        place.replica.load(
            federated.aggregator.deploy(checkpoint.server, hospital.info, checkpoint.memories[name].tensors)
        )
        others = [at for at in scored_at if at[0] != name]
        scored = evaluate(place, [sources[at] for at in others], assessor.classes, assessor.evaluation, surfaces=False)
        sites = (at for at in others for _ in scored_at[at])
        for (site, split), one in zip(sites, scored, strict=True):
            where = {"round": checkpoint.round, "trained_at": name, "hospital": site, "split": split}
            rows.append({**where, "case": one.volume.case.name, "metric": "dice", "value": one.scores["dice"]})
    return {"across": rows}


def _scored_at(federated: Federated) -> Iterator[tuple[Site, tuple[PreparedVolume, ...]]]:
    """All volumes that are scored, those of outsiders last."""
    for name, hospital in federated.hospitals.items():
        for split, volumes in (("validation", hospital.validation), ("test", hospital.test)):
            if volumes:
                yield (name, split), volumes
    for outsider in federated.outsiders:
        yield (outsider.name, outsider.split), outsider.volumes
