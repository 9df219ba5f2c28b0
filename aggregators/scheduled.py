"""A schedule of tensors: in every round only one group of them trains and travels (stochastic block attention).

:class:`Scheduled` stands around another aggregator. The groups come with the model
(:attr:`~wardround.aggregators.contract.Layout.groups`: one attention block each, for example); what is in no group, the
head, trains and travels in every round.

Who has which value of a group follows from two numbers, which the server keeps in ``ServerState.memory``::

    schedule/changed   (G,)   c_g: the last round that changed group g, 0: none yet
    schedule/has       (K,)   h_k: hospital k has all that the federation had after this round

Hospital k is sent what it lacks: all groups with ``c_g > h_k``. After it answered in round t it has the model of its
start, ``h_k = t - 1``. What round t made of the group it trained it gets when it comes again, in one broadcast with all
that changed while it was away. A hospital that was sent something and never answered counts as one that has not got
it; so does one whose update a robust rule (``weights: robust``) rejected: nothing of it comes before the aggregator.

Legend: G groups, K hospitals in the order of ``Setting.hospitals``, t number of the round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from . import AGGREGATORS
from .contract import (
    Aggregated,
    Aggregator,
    ClientUpdate,
    Download,
    HospitalInfo,
    Layout,
    LocalRule,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from .personal import PersonalMean

Draw = Literal["shared", "per_client"]

Schedule = Callable[[int, int, Streams], int]
"""``schedule(G, t, rng)``: which of G groups is drawn in round t = 1, 2, ...; a number of 0 to G - 1.

``rng`` has the streams of the federation, or of one hospital where every hospital draws for itself. A schedule is a
function of its arguments alone, so that a resumed run needs no more than the number of the round.
"""

CHANGED, HAS = "schedule/changed", "schedule/has"

BY_TENSOR = (
    *("fedavg", "fedit", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox"),
    *("moon", "ditto", "fedper", "fedrep", "fedbn", "local"),
)
"""Aggregators that take every tensor by itself from those who sent it, and leave alone what nobody sent."""

BY_DENSE_TENSOR = (
    *("padded_fedavg", "hetlora", "ffa_lora", "rolora", "fedsa_lora", "lora_fair", "lora_fair_ridge", "flora_na"),
    *("fedrot_lora", "fedrpca", "flap_sam", "flexlora", "raflora", "florist", "fedsvd", "flora", "fedex_lora"),
    "fedmomentum",
)
"""Those that do so with dense tensors; low-rank pairs have to come whole and from every hospital."""


def uniform(groups: int, number: int, rng: Streams) -> int:
    """Every group with the same probability, whatever was drawn before."""
    return int(torch.randint(groups, (), generator=rng(number)))


def cyclic(groups: int, number: int, rng: Streams) -> int:
    """One group after the other; which of them comes first is drawn once."""
    first = int(torch.randint(groups, (), generator=rng("first")))
    return (first + number - 1) % groups


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """Another aggregator, of which in every round one drawn group of tensors trains and travels, and the head.

    ::

        g_k = schedule(G, t)                                     one of the groups, for all or for each hospital
        theta_g <- aggregate {theta_k,g : g_k = g},              over those who drew it, their weights normalised
        theta_g stays where nobody drew it

    Every hospital trains with the whole model, of which the other groups are frozen in this round. A name that is
    absent from an update means "not trained"; it has no say in the mean. The initial values of the groups belong to
    what every hospital installs, as the frozen base does, and cost nothing; the head is sent from round 1 on.

    With the draw ``shared``, and a cohort of all, a hospital gets the group of the round before; with ``per_client``
    all groups that anybody drew in it, up to min(K, G) of them.

    Which aggregators can work with absent tensors is in :data:`BY_TENSOR` and :data:`BY_DENSE_TENSOR`; one of one's own
    says so by a class variable ``absent_keys = True``. The momentum and the moments of a server optimizer rest with
    their tensors; its bias correction counts the rounds of the server, not those of the group. The others compare or
    combine whole updates (``krum``, ``qfedavg``), look at every coordinate of everybody (``median``), or keep for every
    tensor what each hospital has to report in each round (``scaffold``, ``feddyn``).

    Traffic: the head and one group up; the head and what the hospital lacks down.

    Args:
        aggregator: What is done with the updates.
        rng: Streams of the schedule; a function of its keys alone, so that no draw has to be saved.
        draw: ``shared``: one draw for all hospitals; ``per_client``: every hospital has its own, which another hospital
            in the federation does not shift.
        schedule: How a group is drawn: :func:`uniform`, :func:`cyclic`, or a function like these.

    Example:
        >>> from wardround.aggregators import FedAvg
        >>> from wardround.aggregators.toy import streams
        >>> Scheduled(aggregator=FedAvg(), rng=streams, draw="own")
        Traceback (most recent call last):
        ...
        ValueError: draw: expected 'shared' or 'per_client', got 'own'

    Source: stochastic block attention (SBA) of arXiv 2407.11573, here for any groups of tensors.

    Differs from the paper in: who draws is a setting, and what an absent hospital is sent later is worked out here; the
    paper was not re-read for either. Other schedules than the uniform one are not in it.
    """

    aggregator: Aggregator
    rng: Streams = field(repr=False, compare=False)
    draw: Draw = "shared"
    schedule: Schedule = uniform

    def __post_init__(self) -> None:
        if self.draw not in get_args(Draw):
            raise ValueError(f"draw: expected 'shared' or 'per_client', got {self.draw!r}")

    @property
    def consumes(self) -> Literal["sum", "updates"]:
        """As the aggregator; every update where hospitals train different groups, of which there is no one mean."""
        return self.aggregator.consumes if self.draw == "shared" else "updates"

    @property
    def uses_weights(self) -> bool:
        """As the aggregator."""
        return self.aggregator.uses_weights

    @property
    def rule(self) -> LocalRule:
        """As the aggregator: it trains and returns what the download says."""
        return self.aggregator.rule

    def select(self, layout: Layout, number: int, hospital: str) -> tuple[str, ...]:
        """The names of the group that a hospital trains in a round.

        Args:
            layout: Has the groups.
            number: The round, from 1.
            hospital: Its name; of no matter where the draw is shared.
        """
        return layout.groups[self.drawn(layout, number, hospital)]

    def drawn(self, layout: Layout, number: int, hospital: str) -> int:
        """The place of that group among all, from 0."""
        rng = self.rng if self.draw == "shared" else partial(self.rng, hospital)
        return self.schedule(len(layout.groups), number, rng)

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0 of the aggregator; every hospital has the initial values of all groups.

        Raises:
            ValueError: the groups are no groups of trainable tensors, or the aggregator cannot work with absent ones.
        """
        _check_groups(setting.layout)
        _check_aggregator(self.aggregator, setting.layout)
        server = self.aggregator.init(setting, rng)
        memory = {
            CHANGED: torch.zeros(len(setting.layout.groups), dtype=torch.int64),
            HAS: torch.zeros(len(setting.hospitals), dtype=torch.int64),
        }
        return replace(server, memory={**server.memory, **memory})

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """A whole start; the drawn group and the head train and come back; what the hospital has is not sent."""
        layout = server.setting.layout
        drawn = self.select(layout, server.round + 1, hospital.name)
        resting = _grouped(layout).difference(drawn)
        kept = set(_had(server, hospital))
        whole = self.aggregator.broadcast(_inner(server), hospital)
        return replace(
            whole,
            train=tuple(name for name in whole.train if name not in resting),
            returns={name: shape for name, shape in whole.returns.items() if name not in resting},
            sent={name: value for name, value in whole.traffic.items() if name not in kept},
        )

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The step of the aggregator; who answered has the start of the round, and nobody has what it made."""
        aggregated = self.aggregator.aggregate(_inner(server), self._counted(updates), rng)
        memory = {CHANGED: _changed_after(server, aggregated.server), HAS: _has_after(server, updates)}
        after = aggregated.server
        return replace(aggregated, server=replace(after, memory={**after.memory, **memory}))

    def _counted(self, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Without updates of weight 0: where a group has no other sender, there is no mean and it stays."""
        return [update for update in updates if update.weight > 0 or not self.uses_weights]

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """As the aggregator."""
        return self.aggregator.deploy(_inner(server), hospital, memory)


def name_of(aggregator: Aggregator) -> str:
    """The class that an experiment names, for messages: of a schedule that of the aggregator inside."""
    return type(aggregator.aggregator if isinstance(aggregator, Scheduled) else aggregator).__name__


def _grouped(layout: Layout) -> set[str]:
    return {name for group in layout.groups for name in group}


def _check_groups(layout: Layout) -> None:
    """Raises ValueError when there are none, or they are empty, overlap, name what does not train or tear a pair."""
    if not layout.groups:
        raise ValueError("expected groups of tensors to draw from, got none: set a method that has them (sba)")
    if not all(layout.groups):
        raise ValueError(f"layout.groups: expected names in every group, got {layout.groups!r}")
    times = Counter(name for group in layout.groups for name in group)
    odd = sorted(name for name, number in times.items() if number > 1 or name not in layout.names)
    if odd:
        raise ValueError(f"layout.groups: expected every name once, and names of trainable tensors, got {odd[:5]}")
    torn = [pair.B for pair in layout.pairs for group in layout.groups if (pair.A in group) != (pair.B in group)]
    if torn:
        raise ValueError(f"layout.groups: expected both factors of a low-rank pair in one group, got {torn[:5]} alone")


def _check_aggregator(aggregator: Aggregator, layout: Layout) -> None:
    """Raises ValueError when an aggregator cannot work with what hospitals leave out."""
    kind, on = type(aggregator), getattr(aggregator, "on", "factors")
    by_tensor = any(kind is AGGREGATORS[name] for name in BY_TENSOR) or vars(kind).get("absent_keys") is True
    by_dense = any(kind is AGGREGATORS[name] for name in (*BY_DENSE_TENSOR, "fedprox"))
    whole_pairs = not any(pair.A in _grouped(layout) for pair in layout.pairs)
    if isinstance(aggregator, PersonalMean):
        _check_shared(aggregator, layout)
    if (by_tensor and on == "factors") or (by_dense and whole_pairs):
        return
    wants = "low-rank pairs" if by_dense else "tensors (on: product)" if by_tensor else "tensors"
    word = next((name for name, row in AGGREGATORS.items() if row is kind), kind.__name__)
    fitting = f"one of {', '.join(BY_TENSOR)} (on factors)"
    if layout.pairs and whole_pairs:
        fitting += f", one that needs low-rank pairs, which are in no group here ({', '.join(BY_DENSE_TENSOR)})"
    raise ValueError(
        f"{word} cannot work with a schedule: expected all {wants} from every hospital, got a group of them. "
        f"Use {fitting}, or a method without a schedule"
    )


def _check_shared(aggregator: PersonalMean, layout: Layout) -> None:
    """Raises ValueError when a group has tensors that stay at the hospitals: what rests would be forgotten."""
    personal = [name for name in aggregator.personal(layout) if name in _grouped(layout)]
    if personal:
        raise ValueError(
            f"{type(aggregator).__name__} keeps {personal[:5]} at the hospitals: expected groups of shared tensors. "
            "Use local, ditto or fedavg"
        )


def _inner(server: ServerState) -> ServerState:
    """The state as the aggregator knows it."""
    return replace(server, memory={name: v for name, v in server.memory.items() if name not in (CHANGED, HAS)})


def _had(server: ServerState, hospital: HospitalInfo) -> Iterator[str]:
    """Names of all groups that did not change since a hospital was here; one never seen has the initial values."""
    names = [one.name for one in server.setting.hospitals]
    has = int(server.memory[HAS][names.index(hospital.name)]) if hospital.name in names else 0
    for group, changed in zip(server.setting.layout.groups, server.memory[CHANGED].tolist(), strict=True):
        if changed <= has:
            yield from group


def _changed_after(before: ServerState, after: ServerState) -> Tensor:
    """c_g after the round."""
    changed = before.memory[CHANGED].clone()
    for number, group in enumerate(before.setting.layout.groups):
        if any(_differ(before.tensors[name], after.tensors[name]) for name in group):
            changed[number] = before.round + 1
    return changed


def _differ(left: Tensor, right: Tensor) -> bool:
    return left is not right and not torch.equal(left, right)


def _has_after(server: ServerState, updates: Sequence[ClientUpdate]) -> Tensor:
    """h_k after the round."""
    answered = {name for update in updates for name in update.senders or (update.hospital,)}
    here = torch.tensor([hospital.name in answered for hospital in server.setting.hospitals])
    return torch.where(here, server.round, server.memory[HAS])
