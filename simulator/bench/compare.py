"""Two ways of our engine to do the same: are they equal, and how much faster is one?

Equality is looked at in double precision, where nothing but a mistake makes a visible difference; speed in the
precision of the workload.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..runtime import Runtime, prepare_device
from .measure import described
from .ours import Ours, prepare
from .rows import Row, Spread
from .timing import in_pairs
from .workload import Workload

ROUNDS = 2
"""Rounds after which the states are compared."""


def stacked(workload: Workload, runtime: Runtime, repetitions: int = 5) -> Row:
    """Stacked cohorts against sequential ones. ``runtime.stack`` is the most hospitals that share a step."""
    plain, fast = replace(runtime, cohort="sequential"), replace(runtime, cohort="stacked")
    values = _compared(workload, plain, fast, repetitions)
    return Row(section="stacked", engine="stacked / sequential", cohort="stacked", stack=runtime.stack, **values)


def features(workload: Workload, runtime: Runtime, repetitions: int = 5) -> Row:
    """Kept features against none. ``runtime.features_mb`` is their budget."""
    plain = replace(runtime, features_mb=0, features_disk_mb=0)
    values = _compared(workload, plain, replace(runtime, features_disk_mb=0), repetitions)
    return Row(
        section="features", engine="kept / anew", cohort=runtime.cohort, features_mb=runtime.features_mb, **values
    )


def _compared(workload: Workload, plain: Runtime, fast: Runtime, repetitions: int) -> dict[str, Any]:
    device = prepare_device(plain)
    workload = workload.resolved()
    exact = replace(workload, precision="fp64")
    largest = difference(prepare(exact, plain, device), prepare(exact, fast, device))
    slow, quick = prepare(workload, plain, device), prepare(workload, fast, device)
    loss = slow.round()
    quick.round()  # warm-up; what can be kept is kept now
    pairs = in_pairs(slow.round, quick.round, repetitions, device)
    speedup = Spread.of([one.seconds / other.seconds for one, other in pairs])
    return {
        **described(workload),
        "difference": largest,
        "speedup": speedup.median,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "dice_or_loss": loss,
        "repetitions": repetitions,
    }


def difference(one: Ours, other: Ours) -> float:
    """The largest relative difference between two engines after two rounds.

    Over the losses and the server's tensors: ``max |a - b| / max |a|`` of each.
    """
    losses = [(one.round(), other.round()) for _ in range(ROUNDS)]
    numbers = [(torch.tensor(a), torch.tensor(b)) for a, b in losses]
    tensors = [(value, other.state.server.tensors[name]) for name, value in one.state.server.tensors.items()]
    return max(_relative(a.double(), b.double()) for a, b in [*numbers, *tensors])


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp(min=torch.finfo(a.dtype).tiny))
