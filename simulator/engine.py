"""How a cohort trains: its hospitals take turns, or several of them share every step; and which of the two is chosen.

Both give the same result up to rounding, so that the choice is one of speed. A run keeps to what it began with: the
choice is written into its manifest before round 1, and read from there when the run goes on or is verified.

Legend: K hospitals in a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from ..aggregators.contract import Phase, ServerState
from ..aggregators.scheduled import name_of
from ..clients.hospital import Assignment, Memory
from ..clients.stack import Stack, stackable
from ..clients.stacked_training import fit_together
from ..clients.training import OptimizerState, Workplace, fit
from .cohort import phases_unlike
from .federation import Federated
from .runtime import Runtime

Clock = Callable[[], float]

FASTER = 0.95
"""More hospitals in a step have to take at most this share of the time per hospital: less is within the noise."""

TIMED = 10
"""Steps while the clock runs. The same are taken before: what they keep of windows is then there for every size."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How a run trains its cohorts.

    Args:
        cohort: ``sequential``: hospitals take turns; ``stacked``: several share every step.
        stack: Most hospitals in a step, 1 where they take turns.
        why: Why so, in words.
    """

    cohort: Literal["sequential", "stacked"]
    stack: int
    why: str

    @property
    def recorded(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return {"cohort_mode": self.cohort, "stack": self.stack, "cohort_why": self.why}


def recorded_in(manifest: Mapping[str, Any]) -> Engine | None:
    """What a run began with, None before it was chosen."""
    if "stack" not in manifest:
        return None
    return Engine(cohort=manifest["cohort_mode"], stack=manifest["stack"], why=manifest["cohort_why"])


def asked_for(runtime: Runtime, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a run that goes on would train with, to be compared with what its manifest says.

    Only what the settings rule out differs: another ``cohort``, or more hospitals in a step than ``stack`` allows.
    Empty before the engine was chosen.
    """
    begun = recorded_in(manifest)
    if begun is None:
        return {}
    cohort = begun.cohort if runtime.cohort == "auto" else runtime.cohort
    return {"cohort_mode": cohort, "stack": min(begun.stack, runtime.stack)}


def settle(manifest: Mapping[str, Any], runtime: Runtime, federated: Federated, server: ServerState) -> Engine:
    """What a run began with; chosen now where it has not begun, or where it was allowed to go on with something else.

    Raises:
        ValueError: as :func:`choose`.
    """
    begun = recorded_in(manifest)
    if begun is None:
        return choose(runtime, federated, server)
    if asked_for(runtime, manifest).items() <= begun.recorded.items():
        return begun
    chosen = choose(runtime, federated, server)
    return replace(chosen, why=f"{chosen.why}; began {begun.cohort}, {begun.stack} in a step")


def choose(runtime: Runtime, federated: Federated, server: ServerState) -> Engine:
    """How to train: as the settings say, or with ``auto`` whichever is faster on this device.

    Args:
        runtime: The settings.
        federated: The run.
        server: The state before round 1.

    Raises:
        ValueError: ``stacked`` was asked for and hospitals of this run cannot share a step.
    """
    auto, device = runtime.cohort == "auto", federated.workplace.replica.device.type
    if runtime.cohort == "sequential" or (auto and device != "cuda"):
        why = f"auto, on {device}" if auto else "runtime.cohort"
        return Engine(cohort="sequential", stack=1, why=why)
    reason = cannot_share(federated, server)
    if reason is not None and not auto:
        raise ValueError(f"runtime.cohort: expected 'sequential' or 'auto', got 'stacked': {reason}")
    if reason is not None:
        return Engine(cohort="sequential", stack=1, why=reason)
    most = min(runtime.stack, largest_cohort(federated))
    if not auto:
        return Engine(cohort="stacked", stack=most, why="runtime.cohort")
    return fastest(partial(seconds_per_step, federated, server), most)


def largest_cohort(federated: Federated) -> int:
    """Most hospitals that can take part in a round."""
    return federated.cohort.size or len(federated.hospitals)


def cannot_share(federated: Federated, server: ServerState) -> str | None:
    """Whether hospitals of a run can share a step: None, or why they cannot. Two stand for all of them."""
    if largest_cohort(federated) < 2:
        return "one hospital takes part in a round"
    replica = federated.workplace.replica
    reason = stackable(replica.model, replica.layout.names)
    if reason is not None:
        return f"the method does not allow it: {reason}"
    names, rule = sorted(federated.hospitals), federated.aggregator.rule
    first, last = (_assignment(federated, server, name).phases(rule) for name in (names[0], names[-1]))
    reason = phases_unlike([first, last])
    return None if reason is None else f"aggregator {name_of(federated.aggregator)} does not allow it: {reason}"


def _assignment(federated: Federated, server: ServerState, name: str) -> Assignment:
    """What a hospital would be handed in round 1, with streams that no round uses."""
    hospital = federated.hospitals[name]
    return Assignment(
        hospital=hospital.info,
        download=federated.aggregator.broadcast(server, hospital.info),
        memory=Memory(),
        windows=hospital.train,
        rng=federated.rng("timing"),
        lasting=federated.rng("lasting", name),
    )


# --- timing -----------------------------------------------------------------------------------------------------------


def fastest(seconds: Callable[[int], float], most: int) -> Engine:
    """The number of hospitals in a step that takes the least time per hospital.

    Tried are 1, 2, 4, ... and ``most``. More hospitals have to be clearly faster (:data:`FASTER`) than the best so far.
    The search ends where the device's memory does.

    Args:
        seconds: Time of a step of so many hospitals.
        most: Hospitals in a step at most, >= 2.
    """
    best, each, end = 1, {1: seconds(1)}, ""
    for size in [*(2**power for power in range(1, most.bit_length()) if 2**power < most), most]:
        try:
            each[size] = seconds(size) / size
        except torch.OutOfMemoryError:
            end = f", out of memory with {size}"
            break
        if each[size] < FASTER * each[best]:
            best = size
    times = ", ".join(f"{1000 * time:.3g} with {size}" for size, time in each.items())
    cohort: Literal["sequential", "stacked"] = "sequential" if best == 1 else "stacked"
    return Engine(cohort=cohort, stack=best, why=f"ms per hospital in a step: {times}{end}")


def seconds_per_step(federated: Federated, server: ServerState, size: int, clock: Clock | None = None) -> float:
    """Time of a training step of so many hospitals, on batches of the largest one.

    Args:
        federated: The run.
        server: The state before round 1.
        size: Hospitals in a step; 1: without a stack.
        clock: Seconds, after all that the device was told to do is done; None: :func:`synchronised`.

    Raises:
        torch.OutOfMemoryError: there is no room for so many.
    """
    now = clock or synchronised
    train = _trainer(federated, server, size)
    try:
        train(TIMED)
        start = now()
        train(TIMED)
        return (now() - start) / TIMED
    finally:
        del train
        torch.cuda.empty_cache()


def synchronised() -> float:
    """Seconds on a clock that is read when the device has done all that it was told to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _trainer(federated: Federated, server: ServerState, size: int) -> Callable[[int], object]:
    """A function that trains the hospital with most windows for some steps, as often at the same time as is asked."""
    name = max(federated.hospitals, key=lambda name: len(federated.hospitals[name].train))
    assignment = _assignment(federated, server, name)
    phase = max(assignment.phases(federated.aggregator.rule), key=lambda phase: len(phase.train))
    phase = replace(phase, epochs=None, measure=False)
    start = {**assignment.download.start, **(phase.start or {})}
    if size == 1:
        return partial(_train_one, federated.workplace, assignment, phase, start)
    return partial(
        _train_several, federated.workplace, Stack(federated.workplace.replica, size), assignment, phase, start
    )


def _train_one(place: Workplace, assignment: Assignment, phase: Phase, start: Mapping[str, Any], steps: int) -> None:
    place.replica.load(start)
    fit(_for_steps(place, steps), phase, assignment.windows, OptimizerState(), assignment.rng, assignment.lasting)


def _train_several(
    place: Workplace, stack: Stack, assignment: Assignment, phase: Phase, start: Mapping[str, Any], steps: int
) -> None:
    def times(value: Any) -> list[Any]:
        return [value] * stack.size

    stack.load(times(start))
    own = (phase, assignment.windows, OptimizerState(), assignment.rng, assignment.lasting)
    fit_together(stack, _for_steps(place, steps), *(times(value) for value in own))


def _for_steps(place: Workplace, steps: int) -> Workplace:
    return replace(place, training=replace(place.training, steps=steps))
