"""Tensors by name in one buffer: what a hospital remembers is one allocation and an index that it shares.

A thousand hospitals with a hundred small tensors each would be a hundred thousand objects, whose heads weigh more than
what is in them. Here a hospital holds one buffer of bytes; where each name lies is in an :class:`Index`, which is the
same object for all hospitals that remember tensors of the same names, shapes and types.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes; a tensor may begin at a multiple of this. A power of two that every element size divides."""

Signature = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """Where tensors lie in a buffer: ``entries`` in order, as name -> (first byte, end, dtype, shape)."""

    entries: Mapping[str, tuple[int, int, torch.dtype, tuple[int, ...]]]

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the buffer."""
        return max((end for _, end, _, _ in self.entries.values()), default=0)


class FlatTensors(Mapping[str, Tensor]):
    """A mapping from names to tensors that are views of one buffer, in the order in which they were given.

    Args:
        buffer: One-dimensional uint8, on the host.
        index: What lies where.
    """

    __slots__ = ("buffer", "index")

    def __init__(self, buffer: Tensor, index: Index) -> None:
        self.buffer = buffer
        self.index = index

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> FlatTensors:
        """A copy of tensors, on the host, in a buffer of their own."""
        index = _index(tuple((name, value.dtype, tuple(value.shape)) for name, value in tensors.items()))
        flat = FlatTensors(torch.zeros(index.num_bytes, dtype=torch.uint8), index)
        for name, value in tensors.items():
            flat[name].copy_(value.detach())
        return flat

    def below(self, prefix: str) -> FlatTensors:
        """The tensors whose names begin with a prefix, without it; of the same buffer."""
        return FlatTensors(self.buffer, _below(self.index, prefix))

    def __getitem__(self, name: str) -> Tensor:
        first, end, dtype, shape = self.index.entries[name]
        return self.buffer[first:end].view(dtype).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.index.entries)

    def __len__(self) -> int:
        return len(self.index.entries)

    def __repr__(self) -> str:
        return f"FlatTensors({', '.join(f'{name}: {tuple(value.shape)}' for name, value in self.items())})"


@lru_cache(maxsize=64)
def _index(signature: Signature) -> Index:
    """The one index for these names, types and shapes."""
    entries, first = {}, 0
    for name, dtype, shape in signature:
        end = first + math.prod(shape) * dtype.itemsize
        entries[name] = (first, end, dtype, shape)
        first = -(-end // ALIGNMENT) * ALIGNMENT
    return Index(entries=entries)


@lru_cache(maxsize=256)
def _below(index: Index, prefix: str) -> Index:
    """The part of an index whose names begin with a prefix."""
    entries = index.entries.items()
    return Index(entries={name.removeprefix(prefix): entry for name, entry in entries if name.startswith(prefix)})
