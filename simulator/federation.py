"""The round loop: a federation learns.

::

    sample cohort -> broadcast -> train locally -> [attack, clip, compress, sum, noise] -> aggregate
                  -> evaluate -> record -> checkpoint

Every round is a pure function of the checkpoint before it and of the experiment's seed; that is all that resume and
verification rest on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ..aggregators.checks import AggregationError, check_download, check_server_state, check_updates
from ..aggregators.contract import Aggregated, Aggregator, ClientUpdate, Download, ServerState, Streams, Tensors
from ..aggregators.robust import Reweighting, with_diagnostics
from ..clients.hospital import Assignment, Memory, Turn
from ..clients.stack import Stack
from ..clients.training import Workplace
from .checkpoint import Checkpoint, Memories
from .cohort import Hospital, Outsider, train_cohort
from .privacy import Account
from .progress import Progress
from .randomness import Key, streams
from .sampling import Cohort, draw, drop
from .stages import Arrived, Crossing, Stages, cross
from .weights import weighed

Rows = dict[str, list[dict[str, Any]]]

REPORT_BYTES = 8
"""Bytes of a number that a rule reports beside its tensors (a loss, a rank)."""


@dataclass(frozen=True, kw_only=True)
class Federated:
    """What stays the same from round to round.

    Args:
        aggregator: The algorithm.
        workplace: The replica and how hospitals train on it.
        hospitals: Hospitals by name, sorted.
        weights: Weight per hospital.
        cohort: Who takes part in a round.
        seed: The experiment's seed.
        outsiders: Test volumes that belong to no hospital.
        rule: Weighs the updates of a round once more, before the aggregator sees them.
        stages: What happens to updates on their way to the server.
        stack: Most hospitals that share every step; 1: they take turns.
    """

    aggregator: Aggregator
    workplace: Workplace
    hospitals: Mapping[str, Hospital]
    weights: Mapping[str, float]
    cohort: Cohort
    seed: int
    outsiders: tuple[Outsider, ...] = ()
    rule: Reweighting | None = None
    stages: Stages = field(default_factory=Stages)
    stack: int = 1

    @cached_property
    def shared(self) -> Stack | None:
        """Room for hospitals that train together, made once; None: they take turns."""
        return None if self.stack == 1 else Stack(self.workplace.replica, self.stack)

    def rng(self, purpose: str, *keys: Key) -> Streams:
        """Streams of this experiment."""
        return streams(self.seed, purpose, *keys)

    def guarantee(self, rounds: int) -> str | None:
        """What differential privacy promises after so many rounds, None without it."""
        privacy = self.stages.privacy
        if privacy is None:
            return None
        return Account(privacy=privacy, cohort=self.cohort, num_hospitals=len(self.hospitals)).statement(rounds)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the aggregator was given: the state before, what every hospital was handed, and the updates as it saw them.

    Args:
        before: The server's state before the round.
        downloads: Download per hospital of the cohort.
        updates: The updates, sorted by hospital.
    """

    before: ServerState
    downloads: Mapping[str, Download]
    updates: tuple[ClientUpdate, ...]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What came of a round: the state after it, who may have changed, its rows, and what went into the step."""

    checkpoint: Checkpoint
    changed: frozenset[str]
    rows: Rows
    step: Step


@dataclass
class Stopwatch:
    """Wall-clock seconds per stage of a round."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run_round(federated: Federated, before: Checkpoint, progress: Progress, watch: Stopwatch) -> Round:
    """One round of the federation.

    Args:
        federated: What stays the same.
        before: The state after the round before.
        progress: Shows where it is.
        watch: Takes the times.

    Raises:
        ValueError: names the round, and the hospital and tensor where there is one.
    """
    number = before.round + 1
    try:
        cohort = draw(federated.cohort, list(federated.hospitals), federated.rng("cohort", number))
        dropped = drop(federated.cohort, cohort, federated.rng("drop", number))
        progress.round(number, hospitals=len(cohort) - len(dropped))
        with watch.stage("broadcast_s"):
            downloads = _broadcast(federated, before.server, cohort, number)
        with watch.stage("train_s"):
            turns = _train(federated, before, downloads, dropped, progress)
        with watch.stage("aggregate_s"):
            sent = _collect(federated, turns, downloads, number)
            memories = {**before.memories, **{turn.hospital.name: turn.memory for turn in turns}}
            arrived = _cross(federated, before, memories, sent, downloads, number)
            seen, notes = weighed(federated.rule, before.server, arrived.downloads, arrived.updates)
            aggregated = with_diagnostics(_aggregate(federated, before.server, seen, number), notes)
    except AggregationError:
        raise  # it names the round itself
    except ValueError as error:
        raise ValueError(f"round {number}: {error}") from error
    except Exception as error:  # in the code of a plug-in, whose traceback is kept
        error.add_note(f"in round {number} of {type(federated.aggregator).__name__}")
        raise
    server = replace(aggregated.server, round=number)
    changed = frozenset(turn.hospital.name for turn in turns)
    return Round(
        checkpoint=Checkpoint(server=server, memories=_with_feedback(memories, arrived), stages=arrived.state),
        changed=changed,
        rows=_rows(federated, number, downloads, turns, sent, arrived, aggregated),
        step=Step(before=before.server, downloads=arrived.downloads, updates=tuple(seen)),
    )


def _broadcast(federated: Federated, server: ServerState, cohort: tuple[str, ...], number: int) -> dict[str, Download]:
    layout = federated.workplace.replica.layout
    downloads: dict[str, Download] = {}
    seen: dict[int, Tensor] = {}
    for name in cohort:
        downloads[name] = federated.aggregator.broadcast(server, federated.hospitals[name].info)
        check_download(downloads[name], layout, hospital=name, round_number=number, seen=seen)
    return downloads


def _train(
    federated: Federated,
    before: Checkpoint,
    downloads: Mapping[str, Download],
    dropped: frozenset[str],
    progress: Progress,
) -> list[Turn]:
    """The hospitals that did not drop out train from the base of this round."""

    def announce(name: str, turn: Turn | None) -> None:
        progress.hospital(name) if turn is None else progress.step(turn.mean_loss)

    number = before.round + 1
    federated.workplace.replica.set_base(before.server.base)
    assignments = [
        Assignment(
            hospital=federated.hospitals[name].info,
            download=download,
            memory=before.memories[name],
            windows=federated.hospitals[name].train,
            rng=federated.rng("local", number, name),
            lasting=federated.rng("lasting", name),
        )
        for name, download in downloads.items()
        if name not in dropped
    ]
    return train_cohort(federated.workplace, federated.aggregator.rule, assignments, announce, federated.shared)


def _collect(
    federated: Federated, turns: list[Turn], downloads: Mapping[str, Download], number: int
) -> list[ClientUpdate]:
    """The updates as the hospitals send them, checked against what was announced."""
    updates = [_update(turn, federated.weights[turn.hospital.name]) for turn in turns]
    expected = {update.hospital: downloads[update.hospital] for update in updates}
    check_updates(number, expected, updates, allow_empty=federated.cohort.sampling == "poisson")
    return updates


def _update(turn: Turn, weight: float) -> ClientUpdate:
    result = turn.result
    return ClientUpdate(
        hospital=turn.hospital.name,
        weight=weight,
        num_examples=turn.hospital.num_examples,
        num_steps=turn.num_steps,
        tensors=result.tensors,
        extra=result.extra,
        metrics=result.metrics,
        bytes=num_bytes(result.tensors) + num_bytes(result.extra) + REPORT_BYTES * len(result.metrics),
    )


def _cross(
    federated: Federated,
    before: Checkpoint,
    memories: Memories,
    sent: list[ClientUpdate],
    downloads: Mapping[str, Download],
    number: int,
) -> Arrived:
    """The updates as they come out of the stages. Noise has a start to be added to also when nobody was drawn."""
    anybody = downloads or _broadcast(federated, before.server, tuple(federated.hospitals)[:1], number)
    at = Crossing(
        number=number,
        stages=federated.stages,
        cohort=federated.cohort,
        weights=federated.weights,
        downloads=downloads,
        common=next(iter(anybody.values())),
        memories=memories,
        state=before.stages,
        rng=federated.rng,
    )
    return cross(at, sent)


def _with_feedback(memories: Memories, arrived: Arrived) -> dict[str, Memory]:
    """What every hospital remembers after the round."""
    changed = {name: replace(memories[name], feedback=feedback) for name, feedback in arrived.feedback.items()}
    return {**memories, **{name: memory.settled() for name, memory in changed.items()}}


def _aggregate(federated: Federated, server: ServerState, updates: list[ClientUpdate], number: int) -> Aggregated:
    """The aggregator's step; a round in which Poisson sampling drew nobody changes nothing."""
    if not updates:
        return Aggregated(server=server)
    aggregated = federated.aggregator.aggregate(server, updates, federated.rng("aggregate", number))
    if not isinstance(aggregated, Aggregated):
        kind = type(federated.aggregator).__name__
        problem = f"expected Aggregated(server=...) from {kind}.aggregate, got {aggregated!r}"
        raise AggregationError(f"round {number}", [problem])
    check_server_state(aggregated.server)
    return aggregated


def num_bytes(tensors: Tensors) -> int:
    """Bytes of tensors on the wire, in their own dtype."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _rows(
    federated: Federated,
    number: int,
    downloads: Mapping[str, Download],
    turns: list[Turn],
    sent: list[ClientUpdate],
    arrived: Arrived,
    aggregated: Aggregated,
) -> Rows:
    """Ledger rows of the whole cohort, training losses and what the stages and the aggregator have to say."""
    steps = {update.hospital: update.num_steps for update in sent}
    ledger = [
        _ledger_row(federated, number, name, downloads[name], steps.get(name), arrived, aggregated)
        for name in downloads
    ]
    metrics = [metric_row(number, turn.hospital.name, "train", "loss", turn.mean_loss) for turn in turns]
    for update in sent:
        metrics += [metric_row(number, update.hospital, "train", name, value) for name, value in update.metrics.items()]
    metrics += [metric_row(number, None, None, name, value) for name, value in sorted(arrived.metrics.items())]
    for name, value in sorted(aggregated.diagnostics.items()):
        metrics.append(metric_row(number, None, None, f"aggregate/{name}", value))
    return {"ledger": ledger, "metrics": metrics}


def _ledger_row(
    federated: Federated,
    number: int,
    name: str,
    download: Download,
    steps: int | None,
    arrived: Arrived,
    aggregated: Aggregated,
) -> dict[str, Any]:
    """What a hospital got and sent; ``steps`` is None when it dropped out."""
    return {
        "round": number,
        "hospital": name,
        "status": "dropped" if steps is None else "ok",
        "bytes_down": num_bytes(download.traffic) + arrived.bytes_down + aggregated.extra_bytes_down,
        "bytes_up": arrived.bytes_up.get(name, 0) + (0 if steps is None else aggregated.extra_bytes_up),
        "examples": federated.hospitals[name].info.num_examples,
        "steps": steps or 0,
    }


def joined(*parts: Rows) -> Rows:
    """The rows of several parts, file by file."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [row for part in parts for row in part.get(name, [])] for name in names}


def metric_row(
    number: int, hospital: str | None, split: str | None, metric: str, value: float | None
) -> dict[str, Any]:
    """A row of ``metrics.jsonl``."""
    return {"round": number, "hospital": hospital, "split": split, "metric": metric, "value": value}


def initial_memories(hospitals: Mapping[str, Hospital]) -> dict[str, Memory]:
    """Nobody remembers anything yet."""
    return {name: Memory() for name in hospitals}
