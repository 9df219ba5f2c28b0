"""Every hospital's model at every other hospital: how far a local model carries, and which single site's is best."""

from __future__ import annotations

from typing import Any

from ..clients.evaluation import evaluate, source_of
from .assessment import Assessor
from .checkpoint import Checkpoint
from .federation import Federated, Rows


def assess_across(federated: Federated, assessor: Assessor, checkpoint: Checkpoint) -> Rows:
    """Rows of ``across.jsonl``: Dice of each test volume under the deployed model of each other hospital.

    Args:
        federated: The run.
        assessor: How to score.
        checkpoint: The state to score.
    """
    place = federated.workplace
    place.replica.set_base(checkpoint.server.base)
    scored_at = {name: hospital.test for name, hospital in federated.hospitals.items() if hospital.test}
    scored_at |= {outsider.name: outsider.volumes for outsider in federated.outsiders if outsider.split == "test"}
    rows: list[dict[str, Any]] = []
    for name, hospital in federated.hospitals.items():
        model = federated.aggregator.deploy(checkpoint.server, hospital.info, checkpoint.memories[name].tensors)
        place.replica.load(model)
        others = {site: volumes for site, volumes in scored_at.items() if site != name}
        sources = [source_of(volumes, assessor.windows, place.replica) for volumes in others.values()]
        scored = evaluate(place, sources, assessor.classes, assessor.evaluation, surfaces=False)
        sites = (site for site, volumes in others.items() for _ in volumes)
        for site, one in zip(sites, scored, strict=True):
            where = {"round": checkpoint.round, "trained_at": name, "hospital": site, "case": one.volume.case.name}
            rows.append({**where, "metric": "dice", "value": one.scores["dice"]})
    return {"across": rows}
