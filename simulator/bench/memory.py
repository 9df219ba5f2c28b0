"""Memory: peaks of a process, and what one more hospital costs.

The aggregator ``local`` makes every hospital remember all its tensors, which is the most that any algorithm of this
package keeps of a hospital beside optimizer moments. Two processes hold two numbers of hospitals, and the difference of
their resident memory is set against the bytes of what was added: between two rounds, when freed pages have gone back to
the system, and at its peak within a round, when what hospitals remembered before is still there as well. On a GPU
nothing may be added at all.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ..federation import num_bytes
from ..runtime import Runtime, prepare_device
from .rows import Row
from .workload import Workload, materials

MB = 1e6
"""Bytes of a megabyte."""

ROUNDS = 4
"""Rounds of which the last two show whether memory still grows."""


def peak_host_mb() -> float:
    """The most resident memory this process ever had.

    Linux counts it per program (``VmHWM``); ``getrusage`` would begin with the peak of the process that started us.
    """
    return _status_mb("VmHWM") or _usage_mb()


def resident_mb() -> float:
    """Resident memory now; where the system does not tell, the peak."""
    return _status_mb("VmRSS") or _usage_mb()


def give_back() -> None:
    """Frees what nobody holds and returns its pages to the system, where the C library can be asked to (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _status_mb(key: str) -> float | None:
    """An entry of /proc/self/status, which is in kibibytes; None where there is no such file."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 / MB if found else None


def _usage_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def peak_device_mb(device: torch.device) -> float | None:
    """The most memory that tensors ever held on the GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / MB if device.type == "cuda" else None


def host_memory(workload: Workload, runtime: Runtime) -> Row:
    """Resident memory of a process after some rounds in which every hospital comes to remember all its tensors.

    The rounds are rounds at rest: what is remembered does not depend on the number of steps.
    """
    from .ours import Ours, federation

    device = prepare_device(runtime)
    workload = replace(workload.resolved(), aggregator="local")
    ours = Ours(*federation(materials(workload, device), runtime))
    seen = []
    for _ in range(ROUNDS):
        ours.rest()
        give_back()
        seen.append(resident_mb())
    remembered = [memory.tensors for memory in ours.state.memories.values()]
    return Row(
        section="memory",
        engine="host",
        hospitals=workload.hospitals,
        method=workload.method,
        model=workload.model,
        rank=workload.rank,
        aggregator=workload.aggregator,
        declared_mb=sum(map(num_bytes, remembered)) / MB,
        resident_mb=seen[-1],
        growth_mb=(seen[-1] - seen[1]) / (ROUNDS - 2),
        peak_host_mb=peak_host_mb(),
    )


def device_memory(workload: Workload, runtime: Runtime) -> Row:
    """The peak of the GPU's memory over two rounds of training."""
    from .ours import prepare

    device = prepare_device(runtime)
    workload = workload.resolved()
    ours = prepare(workload, runtime, device)
    ours.round()
    ours.round()
    return Row(
        section="memory",
        engine="device",
        hospitals=workload.hospitals,
        method=workload.method,
        model=workload.model,
        rank=workload.rank,
        aggregator=workload.aggregator,
        peak_device_mb=peak_device_mb(device),
        peak_host_mb=peak_host_mb(),
    )


def slope(few: Row, many: Row) -> Row:
    """What the hospitals that one process has more than the other cost, per byte of what they remember."""
    resident = (many.resident_mb or 0.0) - (few.resident_mb or 0.0)
    declared = (many.declared_mb or 0.0) - (few.declared_mb or 0.0)
    peak = (many.peak_host_mb or 0.0) - (few.peak_host_mb or 0.0)
    return replace(
        many,
        engine="per added hospital",
        hospitals=(many.hospitals or 0) - (few.hospitals or 0),
        declared_mb=declared,
        resident_mb=resident,
        peak_host_mb=peak,
        growth_mb=None,
        slope=resident / declared if declared else None,
        peak_slope=peak / declared if declared else None,
    )
