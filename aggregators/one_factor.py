"""Rounds in which one factor of every low-rank pair trains and the other stays: what FFA-LoRA and RoLoRA share.

With a common A the mean of the products is the product of the mean, ``sum_k p_k B_k A = (sum_k p_k B_k) A``, and
likewise with a common B: a weighted mean of the trained factor is exact.

A factor that did not change since a hospital last had it need not travel again: the hospital keeps it. The server knows
this of the hospitals that answered: ``ServerState.memory`` holds, per factor, who has its present value. A hospital
that received it and never answered counts as one that has nothing. So does one whose update a robust rule
(``weights: robust``) rejected, because nothing of it comes before the aggregator, and every hospital of a round of
which the server sees the mean alone (secure aggregation). To those, both factors are sent: more than they would need.

Everything is charged from round 1 on, the random initial values too: the server assumes of nobody that it could draw
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from .arithmetic import check_equal_ranks, check_has_pairs, shapes_of, weighted_mean
from .contract import Aggregated, ClientUpdate, Download, HospitalInfo, Layout, ServerState, Setting, Tensors

Factor = Literal["A", "B"]


def check_pairs(setting: Setting) -> None:
    """Raises ValueError when there are no low-rank pairs, or hospitals have different ranks."""
    check_has_pairs(setting)
    check_equal_ranks(setting)


def factor_names(layout: Layout, factor: Factor) -> tuple[str, ...]:
    """The names of all A, or of all B, in model order."""
    return tuple(pair.A if factor == "A" else pair.B for pair in layout.pairs)


def first_state(setting: Setting, tensors: Tensors) -> ServerState:
    """Round 0 with these tensors, of which nobody has any."""
    nobody = torch.zeros(len(setting.hospitals), dtype=torch.bool)
    memory = {"has/A": nobody, "has/B": nobody.clone()}
    return ServerState(setting=setting, round=0, tensors=dict(tensors), memory=memory)


def train_one(server: ServerState, hospital: HospitalInfo, trained: Factor) -> Download:
    """One factor and the dense tensors train and come back; a factor that the hospital has does not travel.

    Args:
        server: Values, and who has which factor.
        hospital: Who is served.
        trained: The factor of this round.
    """
    layout = server.setting.layout
    moving = {name: server.tensors[name] for name in (*factor_names(layout, trained), *layout.dense)}
    known = {name for factor in ("A", "B") if _has(server, factor, hospital) for name in factor_names(layout, factor)}
    return Download(
        start=server.tensors,
        train=tuple(moving),
        returns=shapes_of(moving),
        sent={name: value for name, value in server.tensors.items() if name not in known},
    )


def average_one(server: ServerState, updates: Sequence[ClientUpdate], trained: Factor) -> Aggregated:
    """The weighted mean of what came back. Nobody has the new factor yet; who answered has the other one.

    Args:
        server: The state before the round.
        updates: The trained factor and the dense tensors of every hospital that answered.
        trained: The factor of this round.
    """
    frozen = "A" if trained == "B" else "B"
    memory = {
        **server.memory,
        f"has/{trained}": torch.zeros_like(server.memory[f"has/{trained}"]),
        f"has/{frozen}": server.memory[f"has/{frozen}"] | _answered(server.setting, updates),
    }
    tensors = {**server.tensors, **weighted_mean(updates)}
    return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors, memory=memory))


def _answered(setting: Setting, updates: Sequence[ClientUpdate]) -> Tensor:
    names = {update.hospital for update in updates}
    return torch.tensor([hospital.name in names for hospital in setting.hospitals])


def _has(server: ServerState, factor: str, hospital: HospitalInfo) -> bool:
    names = [one.name for one in server.setting.hospitals]
    return hospital.name in names and bool(server.memory[f"has/{factor}"][names.index(hospital.name)])
