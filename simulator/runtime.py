"""Where and how a run computes: device, threads, and the choices that change speed but not the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how a run computes; changes speed, not the method.

    Args:
        device: ``auto`` is CUDA where there is one, else the CPU.
        threads: Threads on the CPU, >= 1; None: as many as torch takes.
        deterministic: On CUDA, cuDNN takes deterministic algorithms only (other kernels may still differ in the last
            bits). On the CPU runs are bit-identical either way, with the same number of threads.
        cohort: ``sequential``: hospitals take turns on the replica; ``stacked``: several share every step, where the
            method and the aggregator allow it; ``auto``: whichever is faster here, which on a CPU is sequential. Equal
            to rounding; a run keeps to what it began with.
        stack: Most hospitals that share a step, >= 2.
        compile: Compile the model with ``torch.compile``, which may take minutes in round 1. Equal to rounding; a run
            keeps to what it began with. Hospitals that share a step train on the model as it is.
        features_mb: Memory for what the frozen start of the model makes of windows, in MB, >= 0; 0: nothing is kept.
            Used by methods whose first trained layer comes late, where windows have fixed forms (``augment: none``, or
            ``variants`` above 0), and to score volumes.
        features_disk_mb: Room on disk for the same, shared by runs, in MB, >= 0; 0: memory only.
        windows: Where prepared windows lie: on the ``device``, or on the ``host`` and brought batch by batch; ``auto``:
            those that fit into a quarter of its free memory, in order of names, on the device.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = None
    deterministic: bool = True
    cohort: Literal["sequential", "stacked", "auto"] = "auto"
    stack: int = 8
    compile: bool = False
    features_mb: int = 1024
    features_disk_mb: int = 0
    windows: Literal["auto", "device", "host"] = "auto"

    def __post_init__(self) -> None:
        least = {"threads": 1, "stack": 2, "features_mb": 0, "features_disk_mb": 0}
        given = {name: getattr(self, name) for name in least}
        problems = [
            f"{name}: expected at least {least[name]}, got {value!r}"
            for name, value in given.items()
            if value is not None and value < least[name]
        ]
        if self.threads is not None and self.threads > MOST_THREADS:
            problems.append(f"threads: expected at most {MOST_THREADS}, got {self.threads!r}")
        if problems:
            raise ValueError("; ".join(problems))


MOST_THREADS = 1024
"""More than any processor has; torch takes what it is given."""

WHERE_AND_HOW = ("device", "threads", "cohort", "stack", "compile", "features_mb", "features_disk_mb", "windows")
"""Settings of :class:`Runtime` that are no part of what an experiment is: they do not enter a run's id."""


def prepare_device(runtime: Runtime) -> torch.device:
    """Sets threads and determinism, and picks the device.

    Raises:
        ValueError: the device that was asked for is not there.
    """
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    torch.backends.cudnn.benchmark = not runtime.deterministic
    torch.backends.cudnn.deterministic = runtime.deterministic
    torch.backends.cudnn.allow_tf32 = False  # fp32 has 23 bits behind the point, also in a convolution
    return choose_device(runtime.device)


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[name]:
        raise ValueError(f"runtime.device: expected a device of this machine, got {name!r}; use 'auto' or 'cpu'")
    return torch.device(name)
