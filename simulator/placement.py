"""Where prepared windows lie while a run trains: on the host, or on a GPU where it has room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch

from ..datasets.windows import HospitalWindows, distinct_volumes, num_bytes, on_device
from .cohort import Hospital

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
    windows = {name: hospitals[name].train for name in sorted(hospitals)}
    chosen = windows if where == "device" else _fitting(windows, free(device) // SHARE)
    moved = on_device(chosen, device)
    return {name: replace(hospital, train=moved.get(name, hospital.train)) for name, hospital in hospitals.items()}


def _fitting(windows: Mapping[str, HospitalWindows], room: int) -> dict[str, HospitalWindows]:
    """The hospitals whose volumes fit, one after the other; a volume that several of them have takes room once."""
    chosen: dict[str, HospitalWindows] = {}
    for name, own in windows.items():
        wanted = {**chosen, name: own}
        if sum(num_bytes(volume) for volume in distinct_volumes(wanted.values()).values()) <= room:
            chosen = wanted
    return chosen
