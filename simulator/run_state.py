"""What the server of a run held after a round, as named tensors: from a checkpoint, or from recorded updates.

Nothing is built for it: neither the model nor the data need be there.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from ..aggregators.contract import Tensors
from .checkpoint import Checkpoints
from .recording import read_round, recorded
from .tensor_files import below

UPDATES = "updates"
"""The folder of recorded updates in a run directory."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a run after a round; all tensors are on the CPU.

    Args:
        round: The round, 0 before training.
        tensors: The server's value of every trainable tensor, pairs at the largest rank of the federation.
        base: Changes to frozen weights, by the name of the weight; empty for most aggregators.
        memory: What the aggregator remembers; None where the state comes from recorded updates, which do not hold it.
        hospitals: What every hospital remembers, named ``tensors/...``, ``feedback/...`` and ``moments-0/...``; None
            like ``memory``.
    """

    round: int
    tensors: Tensors
    base: Tensors
    memory: Tensors | None
    hospitals: Mapping[str, Tensors] | None

    def __repr__(self) -> str:
        count = sum(value.numel() for value in self.tensors.values())
        return f"State(round={self.round}, tensors={len(self.tensors)} with {count:,} values)"


@overload
def whole(number: None) -> None: ...


@overload
def whole(number: int) -> int: ...


def whole(number: int | None) -> int | None:
    """The number of a round, one of NumPy too; None stays None. Raises ValueError for all else, also 1.0 and True."""
    if number is None:
        return None
    try:
        if isinstance(number, bool):
            raise TypeError
        return operator.index(number)
    except TypeError:
        raise ValueError(f"round: expected a whole number, got {number!r}") from None


def saved_rounds(path: Path) -> list[int]:
    """The rounds whose state is there: those of the last checkpoints, and those before a recorded round."""
    before = {number - 1 for number in recorded(path / UPDATES)}
    return sorted({*_checkpoints(path).rounds(), *before})


def read_state(path: Path, number: int | None = None) -> State:
    """The state of a run after a round.

    Args:
        path: The run directory; the run need not be finished.
        number: Which round, 0 before training; None: the last one that is there.

    Raises:
        ValueError: the state after this round was not kept, it is no whole number, or a file is damaged.
    """
    number = whole(number)
    there = saved_rounds(path)
    if not there:
        raise ValueError(
            f"{path}: expected the state after some round, but neither a checkpoint nor a recorded round is there: the "
            "run did not come so far, or `wardround clean` removed them"
        )
    number = there[-1] if number is None else number
    if number not in there:
        raise ValueError(
            f"{path}: expected one of the rounds whose state is kept, {', '.join(map(str, there))}, got {number!r}; a "
            "run keeps its last two, and all of them where updates are recorded (record_updates=True)"
        )
    return _from_checkpoint(path, number) if number in _checkpoints(path).rounds() else _from_updates(path, number)


def _from_checkpoint(path: Path, number: int) -> State:
    saved, memories = _checkpoints(path).read(number)
    return State(
        round=number,
        tensors=below("tensors/", saved),
        base=below("base/", saved),
        memory=below("memory/", saved),
        hospitals={name: memory.named() for name, memory in memories.items()},
    )


def _from_updates(path: Path, number: int) -> State:
    """The state before the round that follows, which was recorded with its updates."""
    after = read_round(path / UPDATES, number + 1)
    return State(round=number, tensors=after.tensors, base=after.base, memory=None, hospitals=None)


def _checkpoints(path: Path) -> Checkpoints:
    return Checkpoints(path / "checkpoint")
