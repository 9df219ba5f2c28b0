"""Where prepared windows lie while a run trains: on the host, or on a GPU where it has room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal, TypeVar

import torch

from ..datasets import images
from ..datasets.examples import Examples
from ..datasets.images import HospitalImages
from ..datasets.windows import HospitalWindows, distinct_volumes, num_bytes, on_device
from .cohort import Hospital

T = TypeVar("T")

SHARE = 4
"""Windows may take one part in so many of what is free on the device; the rest is for the model and its batches."""


def free_bytes(device: torch.device) -> int:
    """Bytes that nothing takes on a device, 0 where it does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def place_windows(
    hospitals: Mapping[str, Hospital],
    device: torch.device,
    where: Literal["auto", "device", "host"],
    free: Callable[[torch.device], int] = free_bytes,
) -> dict[str, Hospital]:
    """The hospitals with their training windows where batches are cut out.

    Windows on the host are brought to a GPU batch by batch, in the background. What a batch holds does not depend on
    it.

    Args:
        hospitals: Hospitals by name.
        device: Where the model is. On a CPU windows stay as they are.
        where: ``device``: all of them there; ``auto``: those that fit into a quarter of its free memory, in order of
            names; ``host``: none.
        free: Bytes that are free on a device.
    """
    if where == "host" or device.type == "cpu":
        return dict(hospitals)
    examples = {name: hospitals[name].train for name in sorted(hospitals)}
    chosen = examples if where == "device" else _fitting(examples, free(device) // SHARE)
    moved = _moved(chosen, device)
    return {name: replace(hospital, train=moved.get(name, hospital.train)) for name, hospital in hospitals.items()}


def _fitting(examples: Mapping[str, Examples], room: int) -> dict[str, Examples]:
    """The hospitals whose examples fit, one after the other; what several of them have takes room once."""
    chosen: dict[str, Examples] = {}
    for name, own in examples.items():
        wanted = {**chosen, name: own}
        if _num_bytes(wanted.values()) <= room:
            chosen = wanted
    return chosen


def _moved(chosen: Mapping[str, Examples], device: torch.device) -> dict[str, Examples]:
    """The hospitals with their examples on a device."""
    windows = on_device(_of(HospitalWindows, chosen), device)
    pictures = images.images_on_device(_of(HospitalImages, chosen), device)
    return {**windows, **pictures}


def _num_bytes(chosen: Iterable[Examples]) -> int:
    """Bytes of examples, what several hospitals have once."""
    named = {str(number): own for number, own in enumerate(chosen)}
    volumes = distinct_volumes(_of(HospitalWindows, named).values()).values()
    return sum(map(num_bytes, volumes)) + images.num_bytes(_of(HospitalImages, named).values())


def _of(kind: type[T], hospitals: Mapping[str, Examples]) -> dict[str, T]:
    """The hospitals that have examples of a kind."""
    return {name: own for name, own in hospitals.items() if isinstance(own, kind)}
