"""Every hospital's model at every other hospital: how far a local model carries, and which single site's is best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .assessment import Assessor
from .checkpoint import Checkpoint
from .cohort import Scored
from .federation import Federated, Rows

Site = tuple[str, str]
"""A site and one of its splits."""


def assess_across(federated: Federated, assessor: Assessor, checkpoint: Checkpoint) -> Rows:
    """Rows of ``across.jsonl``: the headline score of each case under the deployed model of each other hospital.

    Args:
        federated: The run.
        assessor: How to score.
        checkpoint: The state to score.
    """
    place = federated.workplace
    place.replica.set_base(checkpoint.server.base)
    scored_at = dict(_scored_at(federated))
    sources = {at: assessor.source(cases, place.replica) for at, cases in scored_at.items()}
    rows: list[dict[str, Any]] = []
    for name, hospital in federated.hospitals.items():
        place.replica.load(
            federated.aggregator.deploy(checkpoint.server, hospital.info, checkpoint.memories[name].tensors)
        )
        others = [at for at in scored_at if at[0] != name]
        scored = assessor.values(place, [sources[at] for at in others])
        sites = (at for at in others for _ in range(len(scored_at[at])))
        for (site, split), (case, value) in zip(sites, scored, strict=True):
            where = {"round": checkpoint.round, "trained_at": name, "hospital": site, "split": split}
            rows.append({**where, "case": case, "metric": assessor.headline, "value": value})
    return {"across": rows}


def _scored_at(federated: Federated) -> Iterator[tuple[Site, Scored]]:
    """All cases that are scored, those of outsiders last."""
    for name, hospital in federated.hospitals.items():
        for split, cases in (("validation", hospital.validation), ("test", hospital.test)):
            if len(cases):
                yield (name, split), cases
    for outsider in federated.outsiders:
        yield (outsider.name, outsider.split), outsider.cases
