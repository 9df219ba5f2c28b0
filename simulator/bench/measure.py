"""Times and memory of one engine on one workload, beside the bare loop.

::

    prepare -> one round (warm-up, its loss) -> peaks of memory -> idle rounds -> R pairs (bare loop, round) -> row

The engine's own time is a round in which every hospital takes zero steps, without its aggregation. Memory is read
before the bare loop has a model of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from ..runtime import Runtime, prepare_device
from . import ENGINES, bare
from .memory import peak_device_mb, peak_host_mb
from .rows import Row, Spread
from .timing import Timed, in_pairs, timed
from .workload import Prepared, Workload

SIDE = 8192
"""Rows and columns of the matrices whose product stands for what a GPU can do."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What came of one round: its loss and the seconds of its aggregation."""

    loss: float
    aggregation_s: float | None


def measure(
    engine: str, workload: Workload, runtime: Runtime, repetitions: int = 5, profile: Path | None = None
) -> Row:
    """The row of an engine.

    Args:
        engine: A name of :data:`~wardround.simulator.bench.ENGINES`.
        workload: The work; what it leaves open is the model's own.
        runtime: Device, threads, and for our engine the cohort mode and what it may keep.
        repetitions: R, pairs of bare loop and round, and idle rounds, >= 1.
        profile: Where to write a trace of one more round (Chrome's format), None: nowhere.

    Raises:
        ValueError: the engine cannot do this work, with the reason.
        ImportError: it needs a package that is not there.
    """
    device = prepare_device(runtime)
    workload = workload.resolved()
    prepared = ENGINES[engine](workload, runtime, device)
    try:
        values = _values(prepared, workload, runtime, device, repetitions)
        if profile is not None:
            write_profile(profile, prepared, device)
        values |= prepared.facts()
    finally:
        prepared.close()
    about = {**described(workload), **values}  # an engine may know better: Flower averages, whatever was asked for
    return Row(section="engines", engine=engine, repetitions=repetitions, **about)


def described(workload: Workload) -> dict[str, Any]:
    """The columns that say what the work is."""
    names = ("hospitals", "method", "model", "image_size", "batch_size", "steps", "rank", "aggregator", "augment")
    return {name: getattr(workload, name) for name in (*names, "precision")}


def _values(
    prepared: Prepared, workload: Workload, runtime: Runtime, device: torch.device, repetitions: int
) -> dict[str, Any]:
    """The columns that are measured."""
    loss = prepared.round()
    idle_s = _idle_s(prepared, device, repetitions)
    peaks = {"peak_device_mb": peak_device_mb(device), "peak_host_mb": peak_host_mb()}
    loop = bare.prepare(workload, runtime, device)
    loop.round()
    pairs = in_pairs(loop.round, lambda: _observed(prepared), repetitions, device)
    bare_s, round_s = (median(one.seconds for one in timeds) for timeds in zip(*pairs, strict=True))
    ratio = Spread.of([one.seconds / loop.seconds for loop, one in pairs])
    return {
        **peaks,
        "parameters": loop.num_trained,
        "images_per_second": workload.images / round_s,
        "round_ms": 1e3 * round_s,
        "bare_ms": 1e3 * bare_s,
        "ratio_to_bare": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "engine_ms_per_hospital": 1e3 * idle_s / workload.hospitals,
        "engine_fraction": idle_s / bare_s,
        "aggregation_ms": _aggregation_ms([one for _, one in pairs]),
        "dice_or_loss": loss,
        "loss_last": pairs[-1][1].value.loss,
        "mfu": _utilisation(loop, round_s, device),
    }


def _observed(prepared: Prepared) -> Observed:
    return Observed(loss=prepared.round(), aggregation_s=prepared.aggregation_s())


def _idle_s(prepared: Prepared, device: torch.device, repetitions: int) -> float:
    """Median seconds of an idle round without its aggregation; the first one is not counted."""
    prepared.idle()
    return median(timed(prepared.idle, device).seconds - (prepared.aggregation_s() or 0.0) for _ in range(repetitions))


def _aggregation_ms(rounds: Sequence[Timed[Observed]]) -> float | None:
    seconds = [one.value.aggregation_s for one in rounds if one.value.aggregation_s is not None]
    return 1e3 * median(seconds) if seconds else None


def _utilisation(loop: bare.Bare, round_s: float, device: torch.device) -> float | None:
    """Operations of the model per second of a round / what this GPU does in a large product of matrices."""
    if device.type != "cuda":
        return None
    with FlopCounterMode(display=False) as counter:
        loop.round()
    return float(counter.get_total_flops() / round_s / _product_rate(loop, device))


def _product_rate(loop: bare.Bare, device: torch.device) -> float:
    """Operations per second of a square product in the precision of the model, the best of ten."""
    dtype = torch.bfloat16 if loop.made.workload.precision == "bf16" else loop.made.dtype
    matrix = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
    seconds = [timed(lambda: matrix @ matrix, device).seconds for _ in range(10)]
    return float(2 * SIDE**3 / min(seconds))


def write_profile(path: Path, prepared: Prepared, device: torch.device) -> None:
    """Writes a trace of one round, for chrome://tracing or Perfetto."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        prepared.round()
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
