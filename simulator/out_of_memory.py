"""Out of memory: how it is recognised, what to lower, and how to let go of what filled it.

CUDA has an error of its own, Python another one; on a CPU torch raises a plain RuntimeError whose text is all there is
to tell it by (``DefaultCPUAllocator: can't allocate memory`` in ``c10/core/impl/alloc_cpu.cpp``).
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .config import Experiment

WORDS = (
    "allocate memory",  # torch on a CPU, and the system: "can't allocate memory", "Cannot allocate memory"
    "not enough memory",  # torch on Windows
    "out of memory",  # CUDA and MPS
    "alloc_failed",  # cuBLAS and cuDNN
    "bad_alloc",  # C++
    "storage size calculation overflowed",  # more bytes than there are addresses
)
"""What libraries say, in small letters."""

LENGTH = 200
"""Characters that are quoted of their message."""


class OutOfMemoryError(ValueError):
    """The device or the machine has no memory left; says what to lower."""


@contextmanager
def memory_errors(experiment: Experiment, device: torch.device) -> Iterator[None]:
    """Turns what torch and Python say when there is no memory into one error that says what to lower.

    Everything that the failed work held is let go before: whoever catches the error has the memory back. The caller
    must hold no tensors of its own.

    Args:
        experiment: What was run.
        device: Where.

    Raises:
        OutOfMemoryError: there was no memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not no_memory(error):
            raise
        detail = " ".join(str(error).split())[:LENGTH] or type(error).__name__
        release(error)
        what = advice(experiment, device.type)
        raise OutOfMemoryError(f"out of memory on {device.type}: {what} ({detail})") from error


def no_memory(error: BaseException) -> bool:
    """Whether an error of torch, Python or the system means that there is no memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in WORDS)


def advice(experiment: Experiment, device: str) -> str:
    """What to lower: settings of this experiment that are not at their lowest.

    Args:
        experiment: The experiment.
        device: Where it ran: ``cpu``, ``cuda``, ``mps``.
    """
    training, runtime = experiment.training, experiment.runtime
    shares = runtime.cohort == "stacked" or (runtime.cohort == "auto" and device == "cuda")
    numbers = {
        "training.batch_size": (training.batch_size, 1),
        "evaluation.batch_size": (experiment.evaluation.batch_size, 1),
        "model.image_size": (experiment.model.image_size, experiment.model.patch),
        "windows.depth": (experiment.windows.depth, 1),
        "runtime.features_mb": (runtime.features_mb, 0),
    }
    lower = [f"{name} (now {now})" for name, (now, least) in numbers.items() if now > least]
    lower += [f"runtime.stack (now {runtime.stack}; or set runtime.cohort=sequential)"] if shares else []
    lower_precision = {"fp64": "fp32", "fp32": "bf16"} if device == "cuda" else {"fp64": "fp32"}
    change = ["runtime.windows=host"] if device == "cuda" and runtime.windows != "host" else []
    if training.precision in lower_precision:
        change.append(f"training.precision={lower_precision[training.precision]}")
    parts = [f"lower {', '.join(lower)}"] if lower else []
    parts += [f"set {' or '.join(change)}"] if change else []
    return ", or ".join(parts) or "take a smaller model (model.size) or a machine with more memory"


def release(error: BaseException | None = None) -> None:
    """Gives memory back: what the frames of an error hold, cycles, and what torch keeps of the device.

    Args:
        error: An error whose frames are emptied, with those of the errors behind it; its lines stay printable.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
