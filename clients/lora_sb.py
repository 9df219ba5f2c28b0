"""LoRA-SB: a small trained matrix R between two frozen factors, beside frozen linear layers.

``h = W x + b``, and on the rows of an adapter ``h[rows] += s B R A x`` with B (d_out, r) and A (r, d_in) frozen and the
same at every hospital. Only R (r, r) trains. The update is linear in R, so that the mean of the R of several hospitals
has the mean of their updates, exactly: ``sum_k p_k s B R_k A = s B (sum_k p_k R_k) A``.

R starts at zero: the adapted model starts equal to the base. B and A have orthonormal columns and rows, so that a step
of R of length l is a step of the weight of length s l: of the same length where s is 1.

Legend: r rank, d_in and d_out width of input and of the adapted rows.

Source: Ponkshe et al. 2024 (LoRA-SB), arXiv 2411.19557; Singhal et al. 2025 (Fed-SB), arXiv 2502.15436.

Differs from the papers in: they take B and A from the truncated SVD of an averaged first gradient of the full weight,
which costs every hospital one dense upload, and start R at its singular values. That is not done. Our two starts need
no data: random factors, or the singular vectors of the frozen weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..aggregators.contract import Streams
from ..aggregators.lowrank import orthonormal_rows, svd_of_matrix
from .grouped import linear
from .lora import AdaptedLinear, Rows, normal_rows

Init = Literal["orthonormal", "weights"]


class Core(nn.Module):
    """One adapter: frozen A and B as buffers, R as its only parameter. All are NaN until they are initialised.

    Where a width is smaller than the rank, the rank is that width: more directions there are not.

    Args:
        d_in: Width of the input.
        d_out: Width of the adapted rows.
        rank: r.
        scale: s.
        device: Where the tensors are made.
    """

    A: Tensor
    B: Tensor

    def __init__(self, d_in: int, d_out: int, rank: int, scale: float, device: torch.device) -> None:
        super().__init__()
        r = min(rank, d_in, d_out)
        self.scale = scale
        self.register_buffer("A", torch.full((r, d_in), math.nan, device=device))
        self.register_buffer("B", torch.full((d_out, r), math.nan, device=device))
        self.R = nn.Parameter(torch.full((r, r), math.nan, device=device), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """``s B R A x``: (..., d_in) to (..., d_out)."""
        return self.scale * linear(linear(linear(inputs, self.A), self.R), self.B)


class CoreLinear(AdaptedLinear):
    """A linear layer with cores.

    Args:
        base: The layer to adapt.
        rows: Rows per adapter name, in rising order; None: all rows.
        rank: r.
        scale: s.
    """

    def __init__(self, base: nn.Linear, rows: Mapping[str, Rows], rank: int, scale: float) -> None:
        super().__init__(base, rows)
        self.settings = (rank, scale)
        for name, (first, last) in self.rows.items():
            self.add_module(name, Core(base.in_features, last - first, rank, scale, base.weight.device))


def adapt_core(parent: nn.Module, child: str, rows: Mapping[str, Rows], rank: int, scale: float) -> None:
    """Replaces the linear layer ``parent.child`` by one with cores. Does nothing where these cores are there.

    Raises:
        ValueError: the layer has other adapters.
    """
    base = parent.get_submodule(child)
    assert isinstance(base, nn.Linear)
    if not isinstance(base, AdaptedLinear):
        setattr(parent, child, CoreLinear(base, rows, rank, scale))
    elif not isinstance(base, CoreLinear) or base.settings != (rank, scale):
        raise ValueError(
            f"layer {child!r}: expected no adapters or cores of rank {rank} and scale {scale}, got {base.settings!r}"
        )


def cores(model: nn.Module) -> list[Core]:
    """The cores of a model, in model order."""
    return [module for module in model.modules() if isinstance(module, Core)]


@torch.no_grad()
def initialise_cores(model: nn.Module, init: Init, rng: Streams) -> None:
    """Sets B, A and R in place; R is zero.

    Args:
        model: With cores.
        init: ``orthonormal``: normal rows of A and columns of B, made orthonormal one after the other, so that rank 4
            is the first four of rank 64; ``weights``: the first singular vectors of the adapted rows of the frozen
            weight.
        rng: Streams; the tensor called ``name`` is drawn from ``rng(name)``.
    """
    for prefix, layer in model.named_modules():
        if isinstance(layer, CoreLinear):
            for name, (first, last) in layer.rows.items():
                core = layer.get_submodule(name)
                assert isinstance(core, Core)
                core.R.zero_()
                if init == "weights":
                    _from_weight(core, layer.weight[first:last])
                else:
                    core.A.copy_(orthonormal_rows(normal_rows(core.A, rng(f"{prefix}.{name}.A"))))
                    core.B.copy_(orthonormal_rows(normal_rows(core.B.mT, rng(f"{prefix}.{name}.B"))).mT)


def _from_weight(core: Core, weight: Tensor) -> None:
    svd, r = svd_of_matrix(weight), len(core.R)
    core.A.copy_(svd.Vh[:r])
    core.B.copy_(svd.U[:, :r])
