"""The schedule of a run: which group of tensors trains in which round (:mod:`wardround.aggregators.scheduled`).

One place says where its randomness comes from, for runs, for their replay and for what is said about them beforehand.
"""

from __future__ import annotations

from ..aggregators.contract import Aggregator, Layout
from ..aggregators.scheduled import Draw, Scheduled
from .randomness import streams


def with_schedule(aggregator: Aggregator, layout: Layout, draw: Draw, seed: int) -> Aggregator:
    """An aggregator with the schedule of a run around it; the aggregator itself where nothing is drawn.

    Args:
        aggregator: What an experiment names.
        layout: Has the groups, or none.
        draw: Who draws.
        seed: The experiment's seed; the streams are those of the purpose ``schedule``.
    """
    if not layout.groups:
        return aggregator
    return Scheduled(aggregator=aggregator, draw=draw, rng=streams(seed, "schedule"))


def draw_of(method: object) -> Draw:
    """Who draws in a method; a method without a schedule has no such field, and nothing is drawn."""
    draw: Draw = getattr(method, "draw", "shared")
    return draw
