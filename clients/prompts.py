"""Prompts of a Vision Transformer: learned tokens between CLS and patches, free or as products of low rank.

::

    shallow    CLS, T prompts, patches before block 1; what becomes of the prompts goes on through the network
    deep       CLS, T fresh prompts, patches before every block; what becomes of them is dropped after it

Prompts carry no position. A table P holds the prompts of all L blocks, one below the other: (L T, D). Free prompts are
the table itself; of low rank it is ``P = base + s B A``, a pair as LoRA has it, on a frozen ``base`` of zeros, so that
server and hospital treat its factors as those of LoRA::

    per_block       rows of block l: P_l = B_l A_l, B_l (T, R), A_l (R, D)       L R (T + D) numbers
    shared_basis    all rows:        P   = B A,     B (L T, R), A (R, D)         R (L T + D) numbers

Initial values: entries of P have mean 0 and the variance ``v^2 / 3`` of a uniform draw from [-v, v] with
``v = sqrt(6 / (3 p^2 + D))`` (p: side of a patch; ViT-B/16: 0.0625); free prompts are that draw. Neither factor may
start at zero, as B of LoRA does: the T prompts of a block would be equal, get equal gradients and stay equal for good,
one prompt T times. A has the variance ``v / sqrt(3)`` and B ``v / (sqrt(3) R)``; the rows of A are drawn one after the
other, so that rank 2 has the first two of rank 8.

Legend: B images, N tokens, T prompts of a block, L blocks with prompts of their own, D width, R rank, K hospitals.

Source: Jia et al. 2022 (VPT), arXiv 2203.12119, and its released code (v); the low-rank form: arXiv 2407.11573.

Differs from the papers in: no dropout and no projection of the prompts; how the low-rank form starts is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from ..aggregators.contract import Pair, Streams
from .grouped import per_image
from .lora import Adapter, LoRA, normal_rows

Form = Literal["per_block", "shared_basis"]


class Prompts(nn.Module):
    """The prompts of a network. They are NaN until :func:`initialise_prompts` (or a loaded state) fills them.

    Args:
        blocks: L: 1 where they are put in before the first block and stay; the number of blocks where each has its own.
        count: T.
        width: D.
        device: Where the table is made.
    """

    def __init__(self, blocks: int, count: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.blocks, self.count = blocks, count
        self.table = nn.Parameter(torch.full((blocks * count, width), torch.nan, device=device), requires_grad=False)

    @property
    def settings(self) -> tuple[object, ...]:
        """What two sets of prompts have in common that are of one kind."""
        return (self.blocks, self.count)

    @property
    def stay(self) -> bool:
        """Whether prompts go on through the network."""
        return self.blocks == 1

    def of_block(self, block: int) -> Tensor:
        """The prompts of a block: (T, D); (K, T, D) for K hospitals."""
        return self.table[..., block * self.count : (block + 1) * self.count, :]

    def put_in(self, block: int, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) with the block's prompts after CLS: (B, N + T, D); as they are where it has none."""
        if block >= self.blocks:
            return tokens
        own = self.of_block(block)
        prompts = per_image(own if own.ndim == 3 else own[None], len(tokens)).expand(len(tokens), -1, -1)
        return torch.cat([tokens[:, :1], prompts.to(tokens.dtype), tokens[:, 1:]], dim=1)

    def take_out(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N + T, D) without prompts: (B, N, D); as they are where prompts stay."""
        return tokens if self.stay else torch.cat([tokens[:, :1], tokens[:, 1 + self.count :]], dim=1)

    def draw(self, bound: float, prefix: str, rng: Streams) -> None:
        """Sets the table to a uniform draw from [-bound, bound]; ``prefix`` is the module's name in the model."""
        self.table.copy_(bound * (2 * torch.rand(self.table.shape, generator=rng(f"{prefix}.table")) - 1))


class LowRankPrompts(Prompts):
    """Prompts as products of low rank, on a table of zeros that never trains.

    Args:
        blocks: L.
        count: T.
        width: D.
        rank: R.
        form: ``per_block``: a pair for every block; ``shared_basis``: one for all of them.
        device: Where the tensors are made.
    """

    def __init__(self, blocks: int, count: int, width: int, rank: int, form: Form, device: torch.device) -> None:
        super().__init__(blocks, count, width, device)
        self.table.zero_()
        self.rank, self.form = rank, form
        number = {"per_block": blocks, "shared_basis": 1}[form]
        self.rows = blocks * count // number  # of the table, per pair
        self.factors = nn.ModuleList(Adapter(width, self.rows, LoRA(rank=rank), device) for _ in range(number))

    @property
    def settings(self) -> tuple[object, ...]:
        """See :class:`Prompts`."""
        return (*super().settings, self.rank, self.form)

    def of_block(self, block: int) -> Tensor:
        """``base + s B A`` on the rows of a block: (T, D); (K, T, D) for K hospitals."""
        number, first = divmod(block * self.count, self.rows)
        factors = self.factors[number]
        assert isinstance(factors, Adapter)
        return super().of_block(block) + factors.product(slice(first, first + self.count))

    def pairs(self, prefix: str) -> Iterator[Pair]:
        """See :class:`.HasPairs`."""
        for number in range(len(self.factors)):
            name, first = f"{prefix}.factors.{number}", number * self.rows
            rows = None if len(self.factors) == 1 else (first, first + self.rows)
            yield Pair(A=f"{name}.A", B=f"{name}.B", base=f"{prefix}.table", rows=rows)

    def draw(self, bound: float, prefix: str, rng: Streams) -> None:
        """Sets the base to zero, and A and B so that entries of their product have the variance ``bound^2 / 3``."""
        self.table.zero_()
        scale = math.sqrt(bound / math.sqrt(3))
        for number, factors in enumerate(self.factors):
            assert isinstance(factors, Adapter)
            A, B, name = factors.A, factors.B, f"{prefix}.factors.{number}"
            A.copy_(scale * normal_rows(A, rng(f"{name}.A")))
            B.copy_(scale / math.sqrt(self.rank) * normal_rows(B.T, rng(f"{name}.B")).T)


def bound_of(patch: int, width: int) -> float:
    """v: initial entries of prompts lie in [-v, v].

    Args:
        patch: Side of a patch, in pixels; it has 3 colours.
        width: D.

    Example:
        >>> bound_of(16, 768)
        0.0625
    """
    return math.sqrt(6 / (3 * patch**2 + width))


@torch.no_grad()
def initialise_prompts(model: nn.Module, patch: int, rng: Streams) -> None:
    """Draws the prompts of a model in place.

    Args:
        model: With prompts.
        patch: Side of a patch, in pixels.
        rng: Streams; the tensor called ``name`` is drawn from ``rng(name)``.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, Prompts):
            module.draw(bound_of(patch, module.table.shape[1]), prefix, rng)
