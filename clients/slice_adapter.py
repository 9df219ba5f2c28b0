"""Slice adapters: small residual networks by which the slices of a window see each other inside the image encoder.

Every block of the encoder gets two, one before its attention and one before its MLP. On the tokens x of a window, slice
by slice and place by place::

    x <- x + up(GELU(conv(down(norm(x)))))

``down`` (width -> R) and ``up`` (R -> width) are linear without bias. ``conv`` (R -> R, dense, with bias) has kernel
(3, 1, 1) and zero padding: a place of a slice is mixed with the same place of the slices on both sides, and beyond the
window there are zeros. One adapter reaches one slice far, n in a row n slices.

Legend: b windows, D slices of a window, g grid, R width of the adapter.

Source: Chen et al. 2023 (MA-SAM), arXiv 2309.08842, and its released code.

Differs from the released code in: ``up`` starts at zero, so that the adapted model starts equal to the base (there it
is random).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.models.sam.modeling_sam import SamVisionEncoder, SamVisionLayer

from ..aggregators.contract import Streams


class SliceAdapter(nn.Module):
    """One adapter. Its tensors are NaN until :func:`initialise_slice_adapters` (or a loaded state) fills them.

    Args:
        tokens: Width of the encoder's tokens.
        width: R.
        device: Where the tensors are made.
    """

    def __init__(self, tokens: int, width: int, device: torch.device) -> None:
        super().__init__()
        with torch.device("meta"):  # draws nothing
            self.norm = nn.LayerNorm(tokens, eps=1e-6)
            self.down = nn.Linear(tokens, width, bias=False)
            self.conv = nn.Conv3d(width, width, kernel_size=(3, 1, 1), padding=(1, 0, 0))
            self.up = nn.Linear(width, tokens, bias=False)
        self.to_empty(device=device).requires_grad_(False)
        for tensor in self.parameters():
            tensor.fill_(math.nan)

    def forward(self, hidden: Tensor, depth: int) -> Tensor:
        """Tokens (b * D, g, g, width), window after window, to the same shape; ``depth`` is D."""
        inner = self.down(self.norm(hidden)).unflatten(0, (-1, depth))  # (b, D, g, g, R)
        inner = self.conv(inner.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)  # along D; (b, D, g, g, R) again
        mixed: Tensor = self.up(gelu(inner.flatten(0, 1)))
        return hidden + mixed


class SliceLayer(SamVisionLayer):  # type: ignore[no-untyped-call]  # theirs
    """A block of the encoder with its two adapters. The block's own tensors keep their names.

    Args:
        base: The block, whose modules it takes over.
        width: R.
    """

    def __init__(self, base: SamVisionLayer, width: int) -> None:
        nn.Module.__init__(self)
        self.width = width
        self.window_size = base.window_size
        self.layer_norm1, self.attn = base.layer_norm1, base.attn
        self.layer_norm2, self.mlp = base.layer_norm2, base.mlp
        weight = base.layer_norm1.weight
        self.slice_adapter1 = SliceAdapter(len(weight), width, weight.device)
        self.slice_adapter2 = SliceAdapter(len(weight), width, weight.device)
        self.train(base.training)

    def forward(self, hidden: Tensor, depth: int) -> Tensor:  # type: ignore[override]  # theirs knows no windows
        """Tokens (b * D, g, g, width), window after window, to the same shape; ``depth`` is D."""
        hidden = self.slice_adapter1(hidden, depth)
        hidden = hidden + self._attended(self.layer_norm1(hidden))
        hidden = self.slice_adapter2(hidden, depth)
        out: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return out

    def _attended(self, hidden: Tensor) -> Tensor:
        """The attention, over the whole grid or over windows of it, as the block had it."""
        if self.window_size == 0:
            whole: Tensor = self.attn(hidden_states=hidden)[0]
            return whole
        rows, columns = hidden.shape[1:3]
        parts, padded = self.window_partition(hidden, self.window_size)
        attended = self.attn(hidden_states=parts)[0]
        return self.window_unpartition(attended, self.window_size, padded, (rows, columns))


def adapt_slices(encoder: SamVisionEncoder, width: int) -> None:
    """Gives every block of an encoder its two adapters. Does nothing where they are there.

    Raises:
        ValueError: there are adapters of another width.
    """
    for number, layer in enumerate(encoder.layers):
        assert isinstance(layer, SamVisionLayer)
        if not isinstance(layer, SliceLayer):
            encoder.layers[number] = SliceLayer(layer, width)
        elif layer.width != width:
            raise ValueError(f"block {number}: expected no slice adapters or those of width {width}, got {layer.width}")


def slice_adapters(model: nn.Module) -> list[SliceAdapter]:
    """The adapters of a model, in model order."""
    return [module for module in model.modules() if isinstance(module, SliceAdapter)]


@torch.no_grad()
def initialise_slice_adapters(model: nn.Module, rng: Streams) -> None:
    """Fills the adapters in place: norm 1 and 0, ``up`` zero, the rest uniform within 1 / sqrt(fan in), as in PyTorch.

    Args:
        model: With adapters.
        rng: Streams; the tensor called ``name`` is drawn from ``rng(name)``.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, SliceAdapter):
            module.norm.weight.fill_(1.0)
            module.norm.bias.zero_()
            module.up.weight.zero_()
            for name, tensor, fan_in in _drawn(module):
                uniform = 2 * torch.rand(tensor.shape, generator=rng(f"{prefix}.{name}")) - 1
                tensor.copy_(uniform / math.sqrt(fan_in))


def _drawn(adapter: SliceAdapter) -> Iterator[tuple[str, Tensor, int]]:
    """Name, tensor and fan-in of what starts random."""
    down, conv = adapter.down, adapter.conv
    fan_in = conv.weight[0].numel()
    yield "down.weight", down.weight, down.in_features
    yield "conv.weight", conv.weight, fan_in
    if conv.bias is not None:
        yield "conv.bias", conv.bias, fan_in
