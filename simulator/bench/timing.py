"""Taking times: the device is waited for, and what is compared is timed in pairs.

Two loops that are compared run one after the other, in turn first and second: a machine that slows down slows down
both, and nobody always comes first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, kw_only=True)
class Timed(Generic[T]):
    """What a call returned, and its wall-clock seconds."""

    value: T
    seconds: float


def timed(call: Callable[[], T], device: torch.device) -> Timed[T]:
    """Calls, with an idle device before and after."""
    synchronise(device)
    start = time.perf_counter()
    value = call()
    synchronise(device)
    return Timed(value=value, seconds=time.perf_counter() - start)


def in_pairs(
    one: Callable[[], T], other: Callable[[], U], repetitions: int, device: torch.device
) -> list[tuple[Timed[T], Timed[U]]]:
    """Times two calls ``repetitions`` times each, one after the other, in turn first and second."""
    pairs = []
    for number in range(repetitions):
        if number % 2:
            second = timed(other, device)
            pairs.append((timed(one, device), second))
        else:
            first = timed(one, device)
            pairs.append((first, timed(other, device)))
    return pairs


def synchronise(device: torch.device) -> None:
    """Waits for what runs on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
