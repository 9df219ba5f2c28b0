"""LoRA: low-rank adapters beside frozen linear layers, whole or on rows of a fused projection.

``h = W x + b``, and on the rows of an adapter ``h[rows] += s B A x`` with A (R, d_in), B (d_out, R) and
``s = alpha / R^power``. The product ``B A`` is never formed. The base weight keeps its name, the adapter's tensors live
below it.

Legend: R rank, d_in and d_out width of input and of the adapted rows.

Source: Hu et al. 2021 (LoRA), arXiv 2407.21739 (FLAP-SAM: s = 1, B = 0), arXiv 2312.03732 (rsLoRA: power 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from ..aggregators.contract import Pair, Streams
from .grouped import linear

Rows = tuple[int, int] | None

Matrices = Literal["qv", "qkv", "qkvo"]
"""Projections of an attention, a letter each: queries, keys, values, output."""

Place = tuple[nn.Module, str, Mapping[str, Rows]]
"""A module, the name of a linear layer of it, and the rows of that layer per adapter."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Settings of the low-rank adapters.

    Args:
        rank: R, >= 1. Hospitals may use fewer rows; this is the largest.
        alpha: Numerator of the scale ``alpha / rank^power``, > 0.
        power: 0: constant scale (FLAP-SAM), 1: LoRA, 0.5: rsLoRA.
        init_b: ``zero``: B starts at zero and the adapted model equals the base (the papers); ``normal``: B starts
            random, as in FLAP-SAM's released code.
        blocks: Adapt only the last so many blocks of the encoder, >= 1; None: all of them. The mask decoder keeps its
            adapters, where the method puts any there. What lies before the first adapter is the same in every round,
            and may be kept (:mod:`~wardround.clients.features`).
        matrices: Projections of every attention that have an adapter: ``qv``, ``qkv`` or ``qkvo`` (o: the output).
    """

    rank: int = 32
    alpha: float = 1.0
    power: float = 0.0
    init_b: Literal["zero", "normal"] = "zero"
    blocks: int | None = None
    matrices: Matrices = "qv"

    def __post_init__(self) -> None:
        problems = []
        if self.rank < 1:
            problems.append(f"rank: expected at least 1, got {self.rank!r}")
        if not 0 < self.alpha < math.inf:
            problems.append(f"alpha: expected a finite number above 0, got {self.alpha!r}")
        if not 0 <= self.power < math.inf:
            problems.append(f"power: expected a finite number of at least 0, got {self.power!r}")
        if self.init_b not in ("zero", "normal"):
            problems.append(f"init_b: expected 'zero' or 'normal', got {self.init_b!r}")
        if self.blocks is not None and self.blocks < 1:
            problems.append(f"blocks: expected at least 1, or null for all, got {self.blocks!r}")
        if self.matrices not in get_args(Matrices):
            problems.append(f"matrices: expected one of {', '.join(get_args(Matrices))}, got {self.matrices!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def scale(self, rank: int) -> float:
        """The factor in front of ``B A`` at a rank."""
        return float(self.alpha / rank**self.power)


class Adapter(nn.Module):
    """One adapter: the tensors A and B and their scale.

    A is NaN until :func:`initialise_adapters` (or a loaded state) fills it: a forgotten start is noticed at once.

    Args:
        d_in: Width of the input.
        d_out: Width of the adapted rows.
        settings: Rank and scale.
        device: Where the tensors are made.
    """

    scale: Tensor

    def __init__(self, d_in: int, d_out: int, settings: LoRA, device: torch.device) -> None:
        super().__init__()
        self.settings = settings
        self.rank = settings.rank
        self.A = nn.Parameter(torch.full((settings.rank, d_in), math.nan, device=device), requires_grad=False)
        self.B = nn.Parameter(torch.zeros(d_out, settings.rank, device=device), requires_grad=False)
        self.register_buffer("scale", torch.tensor(settings.scale(settings.rank), device=device), persistent=False)

    def set_rank(self, rank: int) -> None:
        """Sets the scale to that of a rank; a tensor write, so that nothing is compiled again."""
        self.rank = rank
        self.scale.fill_(self.settings.scale(rank))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
        self.set_rank(self.rank)  # a scale that was rounded to fp32 does not become exact by .double()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """``s B A x``: (..., d_in) to (..., d_out). Stacked, every hospital has its own scale as well: (K,)."""
        inner = linear(inputs, self.A)
        if self.scale.ndim == 1:
            return linear(inner, self.scale[:, None, None] * self.B)
        return self.scale * linear(inner, self.B)

    def product(self, rows: slice = slice(None)) -> Tensor:
        """``s B A`` itself, or some of its rows: (rows, d_in); (K, rows, d_in) where the factors are stacked."""
        scale = self.scale[:, None, None] if self.scale.ndim == 1 else self.scale
        return scale * (self.B[..., rows, :] @ self.A)


class AdaptedLinear(nn.Linear):
    """A linear layer with adapters on ranges of its output rows, which must not overlap.

    Made from an existing layer, whose weight and bias it takes over. A subclass adds one module per name of ``rows``,
    from (..., d_in) to (..., number of rows).

    Args:
        base: The layer to adapt.
        rows: Rows per adapter name, in rising order; None: all rows.
    """

    def __init__(self, base: nn.Linear, rows: Mapping[str, Rows]) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rows = {name: span or (0, base.out_features) for name, span in rows.items()}

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        outputs = linear(inputs, self.weight, self.bias)
        parts, done = [], 0
        for name, (first, last) in self.rows.items():
            if first > done:
                parts.append(outputs[..., done:first])
            parts.append(outputs[..., first:last] + self.get_submodule(name)(inputs))
            done = last
        if done < self.out_features:
            parts.append(outputs[..., done:])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class LoRALinear(AdaptedLinear):
    """A linear layer with low-rank adapters.

    Args:
        base: The layer to adapt.
        rows: Rows per adapter name, in rising order; None: all rows.
        settings: Rank and scale.
    """

    def __init__(self, base: nn.Linear, rows: Mapping[str, Rows], settings: LoRA) -> None:
        super().__init__(base, rows)
        self.settings = settings
        for name, (first, last) in self.rows.items():
            self.add_module(name, Adapter(base.in_features, last - first, settings, base.weight.device))

    def pairs(self, prefix: str) -> Iterator[Pair]:
        """See :class:`HasPairs`."""
        for adapter, rows in self.rows.items():
            yield Pair(
                A=f"{prefix}.{adapter}.A",
                B=f"{prefix}.{adapter}.B",
                base=f"{prefix}.weight",
                rows=None if rows == (0, self.out_features) else rows,
                alpha=self.settings.alpha,
                power=self.settings.power,
            )


@runtime_checkable
class HasPairs(Protocol):
    """A module with low-rank pairs on a frozen tensor of its own."""

    def pairs(self, prefix: str) -> Iterator[Pair]:
        """The pairs, in order; ``prefix`` is the name of the module in the model."""
        ...


def adapt(parent: nn.Module, child: str, rows: Mapping[str, Rows], settings: LoRA) -> None:
    """Replaces the linear layer ``parent.child`` by one with adapters. Does nothing where these adapters are there.

    Raises:
        ValueError: the layer has other adapters.
    """
    base = parent.get_submodule(child)
    assert isinstance(base, nn.Linear)
    if not isinstance(base, AdaptedLinear):
        setattr(parent, child, LoRALinear(base, rows, settings))
    elif not isinstance(base, LoRALinear) or base.settings != settings:
        raise ValueError(f"layer {child!r}: expected no adapters or those of {settings!r}, got {base.settings!r}")


def pairs(model: nn.Module) -> tuple[Pair, ...]:
    """The low-rank pairs of a model, in model order."""
    modules = ((name, module) for name, module in model.named_modules() if isinstance(module, HasPairs))
    return tuple(pair for name, module in modules for pair in module.pairs(name))


def set_rank(model: nn.Module, rank: int) -> None:
    """Sets the scale of every adapter to that of a rank (factors of a lower rank are padded with zeros)."""
    for module in model.modules():
        if isinstance(module, Adapter):
            module.set_rank(rank)


@torch.no_grad()
def initialise_adapters(model: nn.Module, rng: Streams) -> None:
    """Draws the initial adapters of linear layers in place.

    ``A ~ N(0, 1 / (3 d_in))``, one row after the other, so that rank 4 is the first four rows of rank 32. B is zero, or
    with ``init_b: normal`` ``B ~ N(0, 1 / (3 R))``, one column after the other. The papers give no deviation; these are
    the ones of PyTorch's initial linear layers.

    Args:
        model: With adapters.
        rng: Streams; the adapter tensor called ``name`` is drawn from ``rng(name)``.
    """
    for prefix, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            for name in layer.rows:
                adapter = layer.get_submodule(name)
                assert isinstance(adapter, Adapter)
                _draw(adapter, f"{prefix}.{name}", rng)


def _draw(adapter: Adapter, name: str, rng: Streams) -> None:
    A, B = adapter.A, adapter.B
    A.copy_(normal_rows(A, rng(f"{name}.A")) / math.sqrt(3 * A.shape[1]))
    B.zero_()
    if adapter.settings.init_b == "normal":
        B.copy_(normal_rows(B.T, rng(f"{name}.B")).T / math.sqrt(3 * B.shape[1]))


def normal_rows(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal rows, drawn one by one on the CPU in fp32."""
    return torch.stack([torch.randn(like.shape[1], generator=generator) for _ in range(like.shape[0])])
