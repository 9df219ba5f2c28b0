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
from typing import Protocol

import torch
from torch import Tensor

from ..aggregators.contract import Streams
from ..datasets.augment import Augmentation, AugmentParameters, apply, choose, fixed_variants, of_variants
from ..datasets.windows import HospitalWindows, epoch_batches
from .replica import Replica


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a hospital's batches are cut from.

    Args:
        windows: Its N windows.
        variants: Their M fixed forms; none where every epoch draws fresh ones.
    """

    windows: HospitalWindows
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
        labels: (b, D, H, W) uint8.
    """

    hidden: Tensor
    labels: Tensor

    @property
    def begun(self) -> tuple[Tensor, int]:
        """``hidden`` with the depth of its windows, for what goes on from there."""
        return self.hidden, self.depth

    @property
    def depth(self) -> int:
        """D."""
        return self.labels.shape[1]


class Kept(Protocol):
    """Keeps what the frozen start made of windows (:mod:`.features`)."""

    def find(self, replica: Replica, draw: Draw) -> Batch | None:
        """The batch, out of what is kept; None where these windows are not kept."""
        ...


def draws(
    windows: HospitalWindows, batch_size: int, augment: Augmentation, num_steps: int, rng: Streams, lasting: Streams
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


def feed(replica: Replica, steps: Iterable[Sequence[Draw]], kept: Kept | None = None) -> Iterator[Batch]:
    """Makes batches on the device of the replica, one per step.

    Args:
        replica: Has the frozen start.
        steps: Per step the draw of every hospital that takes part in it; all of one depth.
        kept: Where to look for what was made before.
    """
    for step in steps:
        found = [None if kept is None else kept.find(replica, draw) for draw in step]
        fresh = iter(_made(replica, [draw for draw, batch in zip(step, found, strict=True) if batch is None]))
        batches = [next(fresh) if batch is None else batch for batch in found]
        yield batches[0] if len(batches) == 1 else _joined(batches)


def _made(replica: Replica, step: Sequence[Draw]) -> list[Batch]:
    """The batches of one step, made in one pass through the frozen start."""
    if not step:
        return []
    images, labels = zip(*(cut(draw, replica.device) for draw in step), strict=True)
    hidden = replica.begin(images[0] if len(images) == 1 else torch.cat(images))
    parts = hidden.split([part.shape[0] * part.shape[1] for part in images])
    return [Batch(hidden=part, labels=masks) for part, masks in zip(parts, labels, strict=True)]


def cut(draw: Draw, device: torch.device) -> tuple[Tensor, Tensor]:
    """The augmented windows of a draw on a device: images (b, D, H, W) in [0, 1] and labels (b, D, H, W) uint8."""
    images, labels = draw.source.windows.gather(draw.index, device)
    return apply(images, labels, draw.parameters)


def _joined(batches: Sequence[Batch]) -> Batch:
    return Batch(
        hidden=torch.cat([batch.hidden for batch in batches]), labels=torch.cat([batch.labels for batch in batches])
    )
