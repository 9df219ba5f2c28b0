"""Batches of training windows: drawn on the CPU, made on the device.

::

    draws: which windows, in which form -> cut out and augmented -> the frozen start of the encoder -> Batch

What is drawn (:class:`Draw`) does not depend on how batches are made: one hospital at a time or several together,
straight from the windows or from what is kept of them (:class:`Kept`).

Legend: N windows of a hospital, b windows of a batch, D slices of a window, M fixed forms of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from ..aggregators.contract import Streams
from ..datasets.augment import Augmentation, AugmentParameters, apply, choose, fixed_variants, of_variants
from ..datasets.examples import Examples
from ..datasets.windows import epoch_batches, pinned, put
from .prefetch import ahead
from .replica import Replica


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What a hospital's batches are cut from. Equal to itself alone.

    Args:
        windows: Its N windows or images.
        variants: Their M fixed forms; none where every epoch draws fresh ones.
    """

    windows: Examples
    variants: tuple[AugmentParameters, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One batch of one hospital, as it was drawn on the CPU.

    Args:
        source: What it is cut from.
        index: (b,) int64 window numbers.
        parameters: How each of them is augmented, b rows.
        variants: (b,) which of its fixed forms each of them takes; None where forms are fresh.
        size: How many of the b windows count; the others only fill the batch.
    """

    source: Source
    index: Tensor
    parameters: AugmentParameters
    variants: Tensor | None
    size: int

    def filled(self, width: int) -> Draw:
        """The same batch with ``width`` windows: the last one is repeated, and the repetitions do not count."""
        rows = torch.arange(width).clamp(max=len(self.index) - 1)
        variants = None if self.variants is None else self.variants[rows]
        return replace(self, index=self.index[rows], parameters=self.parameters.select(rows), variants=variants)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch on the device, of one hospital or of several, one after the other.

    Args:
        hidden: What the frozen start of the encoder made of the windows, (b * D, ...).
        labels: (b, D, H, W) uint8; (b, 1) where images have a class each.
        sizes: Per hospital, how many of its windows count; the others only fill the batch. Empty: all count.
    """

    hidden: Tensor
    labels: Tensor
    sizes: tuple[int, ...] = ()

    @property
    def begun(self) -> tuple[Tensor, int]:
        """``hidden`` with the depth of its windows, for what goes on from there."""
        return self.hidden, self.depth

    @property
    def depth(self) -> int:
        """D."""
        return self.labels.shape[1]

    def counted(self, values: Tensor) -> Tensor:
        """The rows that count of (b * D, ...) values, in a batch of one hospital."""
        rows = self.sizes[0] * self.depth if self.sizes else len(values)
        return values if rows == len(values) else values[:rows]


class Kept(Protocol):
    """Keeps what the frozen start made of windows (:mod:`.features`)."""

    def find(self, replica: Replica, draw: Draw) -> Batch | None:
        """The batch, out of what is kept; None where these windows are not kept."""
        ...


def draws(
    windows: Examples, batch_size: int, augment: Augmentation, num_steps: int, rng: Streams, lasting: Streams
) -> Iterator[Draw]:
    """The ``num_steps`` batches of a phase.

    Args:
        windows: The hospital's N windows.
        batch_size: Windows of a batch; the last one of an epoch may be shorter.
        augment: What is done to a window.
        num_steps: How many.
        rng: Streams of this hospital, round and phase; keys used: ``batches``, ``augment`` and ``variant`` with the
            epoch's number.
        lasting: Streams of this hospital that are the same in every round; keys used: ``augment`` with the number of a
            variant.
    """
    source = Source(windows=windows, variants=fixed_variants(augment, len(windows), lasting))
    per_epoch = math.ceil(len(windows) / batch_size)
    for epoch in range(math.ceil(num_steps / per_epoch)):
        batches = epoch_batches(len(windows), batch_size, rng("batches", epoch))
        chosen = choose(len(source.variants), len(windows), rng("variant", epoch)) if source.variants else None
        if chosen is None:
            parameters = augment.sample(len(windows), rng("augment", epoch))
        else:
            parameters = of_variants(source.variants, chosen)
        for index in batches[: num_steps - epoch * per_epoch]:
            yield Draw(
                source=source,
                index=index,
                parameters=parameters.select(index),
                variants=None if chosen is None else chosen[index],
                size=len(index),
            )


def in_order(windows: Examples, batch_size: int) -> Iterator[Draw]:
    """All windows once, in their own order and not augmented, ``batch_size`` at a time."""
    neutral = AugmentParameters.neutral(len(windows))
    source = Source(windows=windows, variants=(neutral,))
    for index in torch.arange(len(windows)).split(batch_size):
        yield Draw(
            source=source,
            index=index,
            parameters=neutral.select(index),
            variants=torch.zeros_like(index),
            size=len(index),
        )


def feed(
    replica: Replica, steps: Iterable[Sequence[Draw]], kept: Kept | None = None, width: int | None = None
) -> Iterator[Batch]:
    """Makes batches on the device of the replica, one per step.

    Windows that lie elsewhere than the replica are cut out in the background, a few steps ahead.

    Args:
        replica: Has the frozen start.
        steps: Per step the draw of every hospital that takes part in it; all of one depth.
        kept: Where to look for what was made before.
        width: Fill every hospital's part of a batch to so many windows (:meth:`.Replica.width`); None: as drawn.
    """
    orders = (_order(replica, step if width is None else _filled(step, width), kept) for step in steps)
    for order, slices in _cut_out(replica, orders):
        fresh = iter(_made(replica, order.missing, slices))
        batches = [next(fresh) if batch is None else batch for batch in order.found]
        batch = batches[0] if len(batches) == 1 else _joined(batches)
        yield replace(batch, sizes=tuple(draw.size for draw in order.step))


def filled_up(step: Sequence[Draw], width: int | None) -> Sequence[Draw]:
    """A step with ``width`` windows over all its draws: the last draw is filled. None: as it is."""
    lacking = 0 if width is None else width - sum(len(draw.index) for draw in step)
    return step if lacking <= 0 else [*step[:-1], step[-1].filled(len(step[-1].index) + lacking)]


def _filled(step: Sequence[Draw], width: int) -> list[Draw]:
    return [draw if len(draw.index) == width else draw.filled(width) for draw in step]


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What a step needs: its draws, and per draw the batch that was found, None where it has to be made."""

    step: Sequence[Draw]
    found: Sequence[Batch | None]

    @property
    def missing(self) -> list[Draw]:
        return [draw for draw, batch in zip(self.step, self.found, strict=True) if batch is None]


def _order(replica: Replica, step: Sequence[Draw], kept: Kept | None) -> _Order:
    found = [None if kept is None else kept.find(replica, draw) for draw in step]
    if replica.compiled and None in found:
        found = [None] * len(found)  # the frozen start is compiled for whole batches only
    return _Order(step=step, found=found)


Slices = list[tuple[Tensor, Tensor]]
"""Images and labels per draw that has to be made, where its windows lie."""


def _cut_out(replica: Replica, orders: Iterator[_Order]) -> Iterator[tuple[_Order, Slices]]:
    """Every order with its windows, cut out ahead of time where they lie elsewhere than the replica."""

    def cut_out(order: _Order) -> tuple[_Order, Slices]:
        drawn = (draw.source.windows.gather(draw.index) for draw in order.missing)
        return order, [(pinned(images, replica.device), pinned(labels, replica.device)) for images, labels in drawn]

    first = next(orders, None)
    if first is None:
        return iter(())
    orders = chain([first], orders)
    elsewhere = any(draw.source.windows.device.type != replica.device.type for draw in first.step)
    return ahead(cut_out, orders) if elsewhere else map(cut_out, orders)


def _made(replica: Replica, missing: Sequence[Draw], slices: Slices) -> list[Batch]:
    """The batches of one step, made in one pass through the frozen start."""
    if not missing:
        return []
    cut_out = ((put(images, replica.device), put(labels, replica.device)) for images, labels in slices)
    formed = [apply(*windows, draw.parameters) for windows, draw in zip(cut_out, missing, strict=True)]
    images, labels = zip(*formed, strict=True)
    hidden = replica.begin(images[0] if len(images) == 1 else torch.cat(images))
    parts = hidden.split([part.shape[0] * part.shape[1] for part in images])
    return [Batch(hidden=part, labels=masks) for part, masks in zip(parts, labels, strict=True)]


def cut(draw: Draw, device: torch.device) -> tuple[Tensor, Tensor]:
    """The augmented examples of a draw on a device, shaped as :meth:`.Examples.gather` gives them."""
    images, labels = draw.source.windows.gather(draw.index, device)
    return apply(images, labels, draw.parameters)


def _joined(batches: Sequence[Batch]) -> Batch:
    return Batch(
        hidden=torch.cat([batch.hidden for batch in batches]), labels=torch.cat([batch.labels for batch in batches])
    )
