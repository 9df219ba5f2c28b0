"""Rounds of the toy federation in which some hospitals attack."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from wardround.aggregators.contract import Aggregator, ClientUpdate, ServerState
from wardround.aggregators.robust import Reweighting
from wardround.aggregators.toy import Round, World, initial_state, run_round, streams
from wardround.simulator.attacks import Attack
from wardround.simulator.weights import weighed


def corrupted(last: Round, attack: Attack) -> list[ClientUpdate]:
    """The updates of a round with those of the attackers moved to ``start + corrupted step``."""
    starts = {name: download.start for name, download in last.downloads.items()}
    honest = {update.hospital: update.tensors for update in last.updates}
    steps = {
        hospital: {name: value - starts[hospital][name] for name, value in honest[hospital].items()}
        for hospital in attack.hospitals
    }
    sent = attack.corrupt(steps, partial(streams, "attack", last.before.round + 1))
    moved = {
        hospital: {name: starts[hospital][name] + step for name, step in tensors.items()}
        for hospital, tensors in sent.items()
    }
    return [replace(update, tensors=moved.get(update.hospital, update.tensors)) for update in last.updates]


def under_attack(
    aggregator: Aggregator, world: World, attack: Attack, rounds: int = 1, rule: Reweighting | None = None
) -> ServerState:
    """The state after some rounds in which everybody takes part and the attackers attack."""
    server = initial_state(aggregator, world)
    for number in range(1, rounds + 1):
        last = run_round(aggregator, world, server)
        seen, _ = weighed(rule, server, last.downloads, corrupted(last, attack))
        server = aggregator.aggregate(server, seen, partial(streams, "aggregate", number)).server
    return server


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Of two models, as effective weights."""
    return torch.stack([(left[name] - value).square().sum() for name, value in right.items()]).sum().sqrt().item()
