"""What a hospital gets, sends and remembers in a round, from shapes alone: no weights, no data, no training.

The model is built on the meta device, and the aggregator's own ``init`` and ``broadcast`` are asked, with zeros that
take no memory. Where a schedule draws tensors, the draws are those of the run: its mean round is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ...aggregators.contract import (
    Aggregator,
    ClientUpdate,
    Download,
    HospitalInfo,
    LocalResult,
    Phase,
    ServerState,
    Setting,
    Shape,
    Streams,
    Tensors,
)
from ...aggregators.scheduled import CHANGED, Scheduled
from ...clients.contract import rank_of
from ...clients.hospital import Memory
from ...clients.optimizers import SGD
from ..assembly import at_largest_rank
from ..federation import REPORT_BYTES, num_bytes
from ..randomness import streams
from ..sampling import Cohort, draw, drop
from ..scheduling import draw_of, with_schedule
from ..stages import Crossing, Stages, cross, without_training

if TYPE_CHECKING:
    from ..config import Experiment


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What travels in a round, and what is kept: round 1, or the mean of all where a schedule draws what travels.

    Hospitals differ in their ranks, or not at all: means over them.

    Args:
        trained: P, the parameters that the method offers for training, at the largest rank.
        parameters_up: Numbers that a hospital sends, before anything is compressed.
        bytes_up: Bytes that it sends, after all stages.
        bytes_down: Bytes that it gets.
        server_bytes: Bytes of the server's state.
        memory_bytes: Bytes of what a hospital remembers.
        phases: What a hospital fits in a round.
    """

    trained: int
    parameters_up: float
    bytes_up: float
    bytes_down: float
    server_bytes: int
    memory_bytes: float
    phases: tuple[Phase, ...]


def first_round(experiment: Experiment, num_classes: int, hospitals: Sequence[HospitalInfo]) -> Traffic:
    """What travels in round 1; the mean over all rounds where a schedule draws tensors.

    Args:
        experiment: The run.
        num_classes: C.
        hospitals: Those that train, sorted by name; their ranks are set here.

    Raises:
        ValueError: the method, the aggregator or a stage cannot work in this setting.
    """
    setting = _setting(experiment, num_classes, hospitals)
    draws = draw_of(experiment.method)
    aggregator = with_schedule(experiment.aggregator, setting.layout, draws, experiment.seed)
    if isinstance(aggregator, Scheduled):
        return _mean_round(experiment, aggregator, setting)
    return _first_round(experiment, aggregator, setting)


def _first_round(experiment: Experiment, aggregator: Aggregator, setting: Setting) -> Traffic:
    server = aggregator.init(setting, streams(experiment.seed, "server"))
    asked = _asked(experiment, setting.hospitals)
    downloads = {info.name: aggregator.broadcast(server, info) for info in asked}
    results = {name: without_training(aggregator.rule, server, each) for name, each in downloads.items()}
    up, down = _bytes(experiment, server, downloads, results)
    mean = partial(_mean, times={info.name: _times(experiment, info, setting.hospitals) for info in asked})
    return Traffic(
        trained=_numbers(setting.trainable),
        parameters_up=mean({name: _numbers(each.tensors) + _numbers(each.extra) for name, each in results.items()}),
        bytes_up=mean(up),
        bytes_down=mean(down),
        server_bytes=sum(map(num_bytes, (server.tensors, server.base, server.memory))),
        memory_bytes=mean({name: _remembered(experiment, server, each) for name, each in results.items()}),
        phases=tuple(aggregator.rule.phases(downloads[asked[0].name], {})),
    )


def _mean_round(experiment: Experiment, scheduled: Scheduled, setting: Setting) -> Traffic:
    """The mean message of all rounds: that of round 1 with each kind of group, and what hospitals lack later."""
    walk = _walk(experiment, scheduled, setting)
    kinds: Counter[tuple[Shape, ...]] = Counter()
    one: dict[tuple[Shape, ...], int] = {}  # groups of equal shapes cost the same: one of each is asked
    for group, number in (walk.trained or Counter([0])).items():
        shapes = tuple(tuple(setting.trainable[name].shape) for name in setting.layout.groups[group])
        kinds[shapes] += number
        one.setdefault(shapes, group)
    always = {kind: replace(scheduled, schedule=partial(_always, group)) for kind, group in one.items()}
    found = {kind: _first_round(experiment, each, setting) for kind, each in always.items()}
    first = next(iter(found.values()))
    sizes = _group_bytes(scheduled, setting)
    lacked = sum(sizes[group] * number for group, number in walk.lacked.items()) / max(1, walk.broadcasts)
    return replace(
        first,
        parameters_up=_mean({kind: each.parameters_up for kind, each in found.items()}, kinds),
        bytes_up=_mean({kind: each.bytes_up for kind, each in found.items()}, kinds),
        bytes_down=first.bytes_down + lacked,
    )


def _always(group: int, groups: int, number: int, rng: Streams) -> int:
    return group


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """What a schedule draws in all rounds of a run: how often a group was trained, and how often lacked."""

    trained: Counter[int]
    lacked: Counter[int]
    broadcasts: int


def _walk(experiment: Experiment, scheduled: Scheduled, setting: Setting) -> _Walk:
    """The rounds as they will be, but for updates that change nothing."""
    layout, names = setting.layout, [info.name for info in setting.hospitals]
    cohort = Cohort() if experiment.pooled else experiment.cohort
    changed, has = [0] * len(layout.groups), dict.fromkeys(names, 0)
    trained, lacked, broadcasts = Counter[int](), Counter[int](), 0
    for number in range(1, experiment.rounds + 1):
        asked = draw(cohort, names, streams(experiment.seed, "cohort", number))
        dropped = drop(cohort, asked, streams(experiment.seed, "drop", number))
        broadcasts += len(asked)
        for name in asked:
            lacked.update(group for group, last in enumerate(changed) if last > has[name])
        for name in sorted(set(asked) - dropped):
            group = scheduled.drawn(layout, number, name)
            trained[group] += 1
            has[name], changed[group] = number - 1, number
    return _Walk(trained=trained, lacked=lacked, broadcasts=broadcasts)


def _group_bytes(scheduled: Scheduled, setting: Setting) -> list[int]:
    """What a group costs a hospital that lacks it; 0 where it never travels."""
    groups = setting.layout.groups
    server = scheduled.init(setting, streams(0, "server"))
    server = replace(server, memory={**server.memory, CHANGED: torch.ones(len(groups), dtype=torch.int64)})
    sent = scheduled.broadcast(server, setting.hospitals[0]).traffic
    return [num_bytes({name: sent[name] for name in group if name in sent}) for group in groups]


def _asked(experiment: Experiment, hospitals: Sequence[HospitalInfo]) -> Sequence[HospitalInfo]:
    """Those whose messages are looked at: one of each rank; where the stages mix them, all of a round."""
    if experiment.stages != Stages():
        return hospitals[: experiment.cohort.size]
    return list({info.rank: info for info in reversed(hospitals)}.values())


def _times(experiment: Experiment, one: HospitalInfo, hospitals: Sequence[HospitalInfo]) -> int:
    """How many hospitals one stands for."""
    return 1 if experiment.stages != Stages() else sum(info.rank == one.rank for info in hospitals)


def _setting(experiment: Experiment, num_classes: int, hospitals: Sequence[HospitalInfo]) -> Setting:
    """What the aggregator may know before round 1, with zeros for values (:func:`..assembly.make_setting`)."""
    method = at_largest_rank(experiment.method, experiment.ranks, [info.name for info in hospitals])
    net = experiment.model.build_meta(num_classes)
    layout = method.attach(net)
    shapes = {name: parameter.shape for name, parameter in net.named_parameters()}
    zero = torch.zeros((), dtype=torch.float64 if experiment.training.precision == "fp64" else torch.float32)
    own = rank_of(experiment.method)
    ranks = {info.name: None if own is None else experiment.ranks.get(info.name, own) for info in hospitals}
    return Setting(
        trainable={name: zero.expand(shapes[name]) for name in layout.names},
        layout=layout,
        hospitals=tuple(replace(info, rank=ranks[info.name]) for info in hospitals),
        frozen={pair.base: tuple(shapes[pair.base]) for pair in layout.pairs if pair.base not in layout.names},
        optimizer="sgd" if isinstance(experiment.training.optimizer, SGD) else "adamw",
        momentum=experiment.training.momentum,
        cohort_size=experiment.cohort.size,
    )


def _bytes(
    experiment: Experiment,
    server: ServerState,
    downloads: Mapping[str, Download],
    results: Mapping[str, LocalResult],
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Bytes up and down per hospital: what the ledger of round 1 says, but for what an aggregator adds."""
    up = {name: _message(result) for name, result in results.items()}
    down = {name: num_bytes(download.traffic) for name, download in downloads.items()}
    if experiment.stages == Stages():
        return up, down
    updates = [_update(name, result, up[name]) for name, result in results.items()]
    arrived = cross(_crossing(experiment, server, downloads), updates)
    return arrived.bytes_up, {name: size + arrived.bytes_down for name, size in down.items()}


def _message(result: LocalResult) -> int:
    return num_bytes(result.tensors) + num_bytes(result.extra) + REPORT_BYTES * len(result.metrics)


def _update(name: str, result: LocalResult, size: int) -> ClientUpdate:
    return ClientUpdate(
        hospital=name,
        weight=1.0,
        num_examples=1,
        num_steps=1,
        tensors={key: value.contiguous() for key, value in result.tensors.items()},
        extra=result.extra,
        metrics=result.metrics,
        bytes=size,
    )


def _crossing(experiment: Experiment, server: ServerState, downloads: Mapping[str, Download]) -> Crossing:
    return Crossing(
        number=1,
        stages=experiment.stages,
        cohort=experiment.cohort,
        weights={info.name: 1.0 for info in server.setting.hospitals},
        downloads=downloads,
        common=next(iter(downloads.values())),
        memories={name: Memory() for name in downloads},
        state={},
        rng=partial(streams, experiment.seed),
    )


def _remembered(experiment: Experiment, server: ServerState, result: LocalResult) -> int:
    """What a hospital keeps: the rule's memory, moments of the optimizer, what compression left out."""
    kept, training, compression = num_bytes(result.memory), experiment.training, experiment.stages.compression
    if training.moments == "keep":
        per_number = int(training.momentum > 0) if isinstance(training.optimizer, SGD) else 2
        kept += per_number * num_bytes(server.setting.trainable)
    if compression is not None and compression.error_feedback:
        kept += num_bytes(result.tensors)
    return kept


def _numbers(tensors: Tensors) -> int:
    return sum(value.numel() for value in tensors.values())


def _mean(values: Mapping[Any, float], times: Mapping[Any, int]) -> float:
    return sum(value * times[name] for name, value in values.items()) / sum(times[name] for name in values)
