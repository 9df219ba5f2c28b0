"""A network without its adapters: what they change, matrix by matrix, and the weights with these changes in them.

::

    W[rows] + s B A     LoRA
    W[rows] + s B R A   LoRA-SB

Adapters that are no change of a weight (prompts, bottlenecks, slice adapters) cannot be merged.

Legend: r rank, d_in and d_out width of input and of the adapted rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..aggregators.contract import Tensors
from .bottleneck import Bottleneck
from .lora import AdaptedLinear, Adapter
from .lora_sb import Core
from .network import Network
from .prompts import Prompts
from .slice_adapter import SliceAdapter

UNMERGEABLE: dict[type[nn.Module], str] = {
    Prompts: "prompts, which are tokens of their own",
    Bottleneck: "bottleneck adapters, which are layers of their own",
    SliceAdapter: "slice adapters, which are layers of their own",
}
"""Modules that no weight of the base can stand for, and why."""


@dataclass(frozen=True, kw_only=True)
class LowRankChange:
    """``W[rows] += s B A`` of one adapter.

    Args:
        adapter: Name of the adapter in the network.
        weight: Name of W.
        rows: ``(first, last + 1)`` rows of W.
        A: (r, d_in).
        B: (d_out, r).
        scale: s.
    """

    adapter: str
    weight: str
    rows: tuple[int, int]
    A: Tensor
    B: Tensor
    scale: float = 1.0

    @property
    def scaled(self) -> Tensor:
        """``s B``: (d_out, r)."""
        return self.B if self.scale == 1 else self.scale * self.B

    @property
    def product(self) -> Tensor:
        """(d_out, d_in) float64."""
        return self.scale * (self.B.double() @ self.A.double())


@torch.no_grad()
def low_rank_changes(network: Network) -> tuple[LowRankChange, ...]:
    """What the adapters of a network change, in model order, at the rank they were loaded with; A and B are views."""
    return tuple(_changes(network))


def _changes(network: Network) -> Iterator[LowRankChange]:
    for prefix, layer in network.named_modules():
        if isinstance(layer, AdaptedLinear):
            for name, rows in layer.rows.items():
                adapter, weight = layer.get_submodule(name), f"{prefix}.weight"
                A, B, scale = factors(adapter)
                yield LowRankChange(adapter=f"{prefix}.{name}", weight=weight, rows=rows, A=A, B=B, scale=scale)


def factors(adapter: nn.Module) -> tuple[Tensor, Tensor, float]:
    """A, B and s of an adapter, cut to the rank that is loaded; R of LoRA-SB belongs to B."""
    if isinstance(adapter, Core):
        return adapter.A.detach(), adapter.B.detach() @ adapter.R.detach(), adapter.scale
    assert isinstance(adapter, Adapter)
    rank = adapter.rank
    return adapter.A.detach()[:rank], adapter.B.detach()[:, :rank], adapter.settings.scale(rank)


def plain_state(network: Network) -> dict[str, Tensor]:
    """All tensors of a network but those of its adapters, as they are; not copied."""
    adapters = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, Adapter | Core))
    return {name: value for name, value in network.state_dict().items() if not name.startswith(adapters)}


@torch.no_grad()
def merged_state(network: Network) -> dict[str, Tensor]:
    """The tensors of a network without adapters that computes the same: their changes are in its weights.

    Sums in float64, rounded to the type of the weight.

    Raises:
        ValueError: it has adapters that no weight can stand for.
    """
    check_mergeable(network)
    state = plain_state(network)
    merged = changed(state, low_rank_changes(network))
    return {name: value.clone() if value is state[name] else value for name, value in merged.items()}


@torch.no_grad()
def changed(weights: Tensors, changes: Iterable[LowRankChange]) -> dict[str, Tensor]:
    """Weights with changes in them; those that nothing changes are not copied.

    Sums in float64, rounded to the type of the weight.

    Args:
        weights: By name.
        changes: Of some of them.
    """
    sums: dict[str, Tensor] = {}
    for change in changes:
        if change.weight not in sums:
            sums[change.weight] = weights[change.weight].to(torch.float64, copy=True)
        sums[change.weight][slice(*change.rows)] += change.product
    return {name: sums[name].to(value.dtype) if name in sums else value for name, value in weights.items()}


def check_mergeable(network: Network) -> None:
    """Raises ValueError where a network has adapters that no weight can stand for."""
    found = [why for module in network.modules() for kind, why in UNMERGEABLE.items() if isinstance(module, kind)]
    if found:
        raise ValueError(f"expected adapters that are changes of weights (LoRA, LoRA-SB), got {found[0]}")
