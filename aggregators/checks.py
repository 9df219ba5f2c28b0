"""What crosses the wall between server and hospital is checked here: names, shapes, dtypes, finite values, weights.

Every check collects all that is wrong and raises one :class:`AggregationError` that names round, hospital and tensor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .contract import ClientUpdate, Download, Layout, ServerState, Shape, Tensors

_LISTED = 5  # names written out before "and n more"
_SMALL = 2**14  # elements up to which a copy costs less than a further call


class AggregationError(ValueError):
    """What a server or a hospital sent is not what was announced. ``problems`` holds one sentence per finding."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  ".join([f"{where}: {self.problems[0]}", *self.problems[1:]]))


def check_download(
    download: Download, layout: Layout, *, hospital: str, round_number: int, seen: dict[int, Tensor] | None = None
) -> None:
    """Checks a broadcast before anyone trains from it.

    Args:
        download: What the server hands to the hospital.
        layout: What may train.
        hospital: Name of the hospital.
        round_number: Number of the round.
        seen: Tensors by id that were found finite in this round, to which this call adds: what every hospital is handed
            is looked at once.

    Raises:
        AggregationError: an unknown name, a non-finite value, or factors that disagree about the rank.
    """
    problems = [
        *_unknown("start", download.start, layout.names),
        *_unknown("train", download.train, layout.names),
        *_unknown("returns", download.returns, layout.names),
        *_ranks("start", {name: tuple(value.shape) for name, value in download.start.items()}, layout),
        *_ranks("returns", download.returns, layout),
        *_not_finite(_unseen(download.start, seen), "tensor"),
        *_not_finite(_unseen(download.extra, seen), "extra tensor"),
        *_not_finite(_unseen(download.sent or {}, seen), "sent tensor"),
    ]
    if problems:
        raise AggregationError(f"round {round_number}, broadcast to hospital {hospital!r}", problems)
    if seen is not None:
        groups = (download.start, download.extra, download.sent or {})
        seen.update({id(value): value for tensors in groups for value in tensors.values()})


def _unseen(tensors: Tensors, seen: dict[int, Tensor] | None) -> Tensors:
    return {name: value for name, value in tensors.items() if id(value) not in seen} if seen else tensors


def check_updates(
    round_number: int,
    downloads: Mapping[str, Download],
    updates: Sequence[ClientUpdate],
    *,
    allow_empty: bool = False,
) -> None:
    """Checks what arrived against what was announced, before any aggregator sees it.

    Args:
        round_number: Number of the round.
        downloads: What every hospital of the round was handed, by name.
        updates: What arrived, sorted by name of hospital. Hospitals that dropped out are simply absent.
        allow_empty: An empty round is no error (Poisson sampling may draw nobody).

    Raises:
        AggregationError: names round, hospital and tensor: a missing or unexpected tensor, a wrong shape or dtype, a
            non-finite value, a negative weight, weights that are all zero, an unknown or repeated hospital, no update.
    """
    problems = [*_cohort_problems(downloads, updates, allow_empty)]
    for update in updates:
        if update.hospital in downloads:
            found = _update_problems(downloads[update.hospital], update)
            problems += [f"hospital {update.hospital!r}: {problem}" for problem in found]
    if problems:
        raise AggregationError(f"round {round_number}", problems)


def check_server_state(server: ServerState) -> None:
    """Checks that a state can be saved and loaded again: tensors by name, dense, finite, and a base in fp32 or better.

    Raises:
        AggregationError: names the group and the tensor.
    """
    groups = {"tensors": server.tensors, "base": server.base, "memory": server.memory}
    problems = [f"{group}: {problem}" for group, tensors in groups.items() for problem in _not_savable(tensors)]
    problems += [
        f"base: tensor {name!r}: expected float32 or float64, got {value.dtype}"
        for name, value in server.base.items()
        if isinstance(value, Tensor) and value.dtype not in (torch.float32, torch.float64)
    ]
    if problems:
        raise AggregationError(f"server state after round {server.round}", problems)


def _cohort_problems(
    downloads: Mapping[str, Download], updates: Sequence[ClientUpdate], allow_empty: bool
) -> Iterator[str]:
    """Who sent something, and with which weight."""
    names = [update.hospital for update in updates]
    unknown, twice = sorted(set(names) - set(downloads)), sorted(n for n, times in Counter(names).items() if times > 1)
    if not updates and not allow_empty:
        yield (
            "expected the update of at least one hospital, got none: every hospital of the round dropped out; "
            "lower the drop rate or use a larger cohort"
        )
    if unknown:
        yield f"expected updates of the hospitals in the round, got one from {_listed(unknown)}"
    if twice:
        yield f"expected one update per hospital, got several from {_listed(twice)}"
    if names != sorted(names):
        yield f"expected updates sorted by hospital, got the order {_listed(names)}"
    bad = {update.hospital: update.weight for update in updates if not 0 <= update.weight < math.inf}
    for hospital, weight in bad.items():
        yield f"hospital {hospital!r}: weight: expected a finite number of at least 0, got {weight!r}"
    if updates and not bad and not any(update.weight for update in updates):
        yield f"expected a total weight above 0, got weight 0 from all of {_listed(names)}"


def _update_problems(download: Download, update: ClientUpdate) -> Iterator[str]:
    dtypes = {name: value.dtype for name, value in download.start.items()}
    extra_dtypes = {name: value.dtype for name, value in download.extra.items()}
    yield from _differences(download.returns, update.tensors, dtypes, "tensor")
    yield from _differences(download.returns_extra, update.extra, extra_dtypes, "extra tensor")
    for name, value in update.metrics.items():
        if not math.isfinite(value):
            yield f"metric {name!r}: expected a finite number, got {value!r}"


def _differences(
    announced: Mapping[str, Shape], sent: Tensors, dtypes: Mapping[str, torch.dtype], what: str
) -> Iterator[str]:
    """How what was sent differs from what was announced."""
    missing, unexpected = sorted(announced.keys() - sent.keys()), sorted(sent.keys() - announced.keys())
    if missing:
        yield f"{what}s announced but not sent: {_listed(missing)}"
    if unexpected:
        yield f"{what}s sent but not announced: {_listed(unexpected)}"
    for name, value in sent.items():
        shape = announced.get(name)
        if shape is not None and tuple(value.shape) != tuple(shape):
            yield f"{what} {name!r}: expected shape {tuple(shape)}, got {tuple(value.shape)}"
        dtype = dtypes.get(name, value.dtype)
        if value.dtype != dtype or not value.dtype.is_floating_point:
            yield f"{what} {name!r}: expected dtype {dtype}, got {value.dtype}"
    yield from _not_finite(sent, what)


def _not_finite(tensors: Tensors, what: str) -> Iterator[str]:
    if _all_finite(tensors.values()):
        return
    for name, value in tensors.items():
        if not is_finite(value):
            bad = int((~torch.isfinite(value)).sum())
            yield f"{what} {name!r}: expected finite values, got {bad} NaN or infinite of {value.numel()}"


def _all_finite(values: Collection[Tensor]) -> bool:
    """Whether every element of all of them is finite. The small ones, most of an adapter, are looked at as one."""
    small = [value.flatten() for value in values if value.numel() <= _SMALL]
    large = (value for value in values if value.numel() > _SMALL)
    return all(map(is_finite, large)) and (not small or is_finite(torch.cat(small)))


def is_finite(value: Tensor) -> bool:
    """Whether every element is finite. A finite sum proves it in one pass; only an overflow needs the second look."""
    return math.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())


def _not_savable(tensors: Tensors) -> Iterator[str]:
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            yield f"{name!r}: expected a tensor under a text, got {type(value).__name__}"
        elif value.layout != torch.strided or value.requires_grad or not value.is_contiguous():
            yield f"tensor {name!r}: expected a dense, contiguous tensor without gradient"
        elif not is_finite(value):
            yield f"tensor {name!r}: expected finite values"


def _unknown(field: str, names: Collection[str], known: Collection[str]) -> Iterator[str]:
    unknown = sorted(set(names) - set(known))
    if unknown:
        yield f"{field}: expected names of trainable tensors, got {_listed(unknown)}"


def _ranks(field: str, shapes: Mapping[str, Shape], layout: Layout) -> Iterator[str]:
    """All factors of one download must have one rank: a hospital has one."""
    ranks = Counter(
        [shapes[pair.A][0] for pair in layout.pairs if pair.A in shapes]
        + [shapes[pair.B][1] for pair in layout.pairs if pair.B in shapes]
    )
    if len(ranks) > 1:
        yield f"{field}: expected one rank for all low-rank factors of a hospital, got {sorted(ranks)}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
