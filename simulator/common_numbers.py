"""What a run draws, in hashes: runs of one seed can be shown to have drawn the same (:mod:`.sweeps.pairing`).

::

    {"cohorts":      {"":                {"of": ..., "drawn": [hash of all rounds]}},
     "batches":      {hospital:          {"of": ..., "drawn": [round 1, round 2]}},
     "augmentation": {hospital:          {"of": ..., "drawn": [round 1, round 2]}},
     "initial":      {"part/kind":       {"of": ..., "drawn": [hash, or one per row of all A]}},
     "schedule":     {"":                {"of": ..., "drawn": [hash of all rounds]}}}     where tensors have one

``of`` is a hash of the settings that a draw depends on: where two runs have the same, they draw the same, as far as the
shorter of the two lists goes. Rows of A have a hash each, as rank 4 is the first four rows of rank 32.

Everything is drawn here once more, by the functions that the run draws with; no stream of the run is touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import islice
from typing import Any

from torch import Tensor

from ..aggregators.contract import Phase, Tensors
from ..aggregators.scheduled import Scheduled
from ..clients.batches import Draw, draws
from ..datasets.fingerprints import text_hash
from .builder import resolve
from .cohort import Hospital
from .federation import Federated
from .sampling import draw, drop

ROUNDS = 2
"""Rounds whose batches are hashed."""

HOSPITALS = 20
"""Hospitals whose batches are hashed, the first by name."""

DIGITS = 16

Drawn = dict[str, Any]
"""``of`` and ``drawn``."""


def common_numbers(federated: Federated, rounds: int) -> dict[str, dict[str, Drawn]]:
    """Hashes of what a run draws, for its manifest.

    Batches and augmentations are those of the first ROUNDS rounds in which a hospital would take part, as an algorithm
    of one phase draws them.

    Args:
        federated: The run, with its model at the initial values.
        rounds: Its rounds.
    """
    hospitals = dict(islice(sorted(federated.hospitals.items()), HOSPITALS if rounds else 0))
    taken = {name: _taken(federated, hospital, min(ROUNDS, rounds)) for name, hospital in hospitals.items()}
    return {
        "cohorts": {"": _cohorts(federated, rounds)},
        "batches": {name: batches for name, (batches, _) in taken.items()},
        "augmentation": {name: augmentation for name, (_, augmentation) in taken.items()},
        "initial": initial_values(federated),
        **_schedule(federated, rounds),
    }


def _schedule(federated: Federated, rounds: int) -> dict[str, dict[str, Drawn]]:
    """Which group of tensors every hospital would train, all rounds; empty without a schedule."""
    scheduled, names = federated.aggregator, sorted(federated.hospitals)
    if not isinstance(scheduled, Scheduled):
        return {}
    layout, digest = federated.workplace.replica.layout, hashlib.sha256()
    shared = scheduled.draw == "shared"
    asked = names[:1] if shared else names
    for number in range(1, rounds + 1):
        digest.update(repr([scheduled.drawn(layout, number, name) for name in asked]).encode())
    who = "all" if shared else names
    of = _of(len(layout.groups), who, getattr(scheduled.schedule, "__qualname__", ""), rounds)
    return {"schedule": {"": {"of": of, "drawn": [digest.hexdigest()[:DIGITS]]}}}


def _cohorts(federated: Federated, rounds: int) -> Drawn:
    """Who takes part and who fails, all rounds."""
    names = list(federated.hospitals)
    digest = hashlib.sha256()
    for number in range(1, rounds + 1):
        cohort = draw(federated.cohort, names, federated.rng("cohort", number))
        dropped = drop(federated.cohort, cohort, federated.rng("drop", number))
        digest.update(repr((cohort, sorted(dropped))).encode())
    return {"of": _of(resolve(federated.cohort), rounds, sorted(names)), "drawn": [digest.hexdigest()[:DIGITS]]}


def _taken(federated: Federated, hospital: Hospital, rounds: int) -> tuple[Drawn, Drawn]:
    """The batches of a hospital, and how they are augmented, round by round."""
    place, name, windows = federated.workplace, hospital.info.name, hospital.train
    num_steps = place.training.num_steps(Phase(train=()), len(windows))
    size = place.training.batch_size
    index, parameters = [], []
    for number in range(1, rounds + 1):
        rng, lasting = federated.rng("local", number, name), federated.rng("lasting", name)
        taken = list(draws(windows, size, place.augment, num_steps, rng, lasting))
        index.append(_hash([one.index for one in taken]))
        parameters.append(_hash(_parameters(taken)))
    asked = (len(windows), size, num_steps)
    augmented = (*asked, type(place.augment).__qualname__, resolve(place.augment))
    return {"of": _of(*asked), "drawn": index}, {"of": _of(*augmented), "drawn": parameters}


def _parameters(taken: Iterable[Draw]) -> Iterator[Tensor]:
    for one in taken:
        yield from (getattr(one.parameters, field.name) for field in fields(one.parameters))


def initial_values(federated: Federated) -> dict[str, Drawn]:
    """What everything that may train starts from, by part and kind of the tensor."""
    replica = federated.workplace.replica
    layout, values = replica.layout, replica.read()
    groups: dict[str, list[str]] = {}
    for name in sorted(layout.names):
        groups.setdefault(f"{layout.part[name]}/{layout.kind[name]}", []).append(name)
    start = {group: {name: values[name] for name in names} for group, names in sorted(groups.items())}
    return {group: _rows(named) if group.endswith("/lora_A") else _whole(named) for group, named in start.items()}


def _whole(named: Tensors) -> Drawn:
    """One hash of all tensors of a group."""
    return {"of": _of([(name, list(value.shape)) for name, value in named.items()]), "drawn": [_hash(named.values())]}


def _rows(named: Tensors) -> Drawn:
    """A hash per row of all A of a group; how many rows there are is no matter of ``of``."""
    rows = zip(*(value.unbind() for value in named.values()), strict=True)
    return {"of": _of([(name, value.shape[1]) for name, value in named.items()]), "drawn": [_hash(row) for row in rows]}


def _of(*settings: object) -> str:
    return text_hash(*settings)[:DIGITS]


def _hash(tensors: Iterable[Tensor]) -> str:
    """Over the values, whatever dtype they were widened to."""
    digest = hashlib.sha256()
    for value in tensors:
        exact = value.float() if value.is_floating_point() else value
        digest.update(exact.contiguous().numpy().data)
    return digest.hexdigest()[:DIGITS]
