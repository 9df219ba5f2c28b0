"""Bottleneck adapters: a small residual network on what the MLP of every block gives.

``m = MLP(norm(x))``, and in its place ``m + up(GELU(down(m)))``; the block then adds x as ever. ``down`` (D -> b) and
``up`` (b -> D) are linear with bias: 2 D b + b + D numbers per block. ``up`` starts at zero, so that the adapted model
starts equal to the base.

Legend: B images, N tokens, D width, b width of the adapter.

Source: Houlsby et al. 2019, arXiv 1902.00751.

Differs from the paper in: one adapter per block, after the MLP and none after the attention; norms are frozen; ``up``
starts at zero and ``down`` as PyTorch's linear layers, where the paper has both near zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.models.vit.modeling_vit import ViTMLP

from ..aggregators.contract import Streams
from .vit import VitNet


class Bottleneck(nn.Module):
    """One adapter. Its tensors are NaN until :func:`initialise_bottlenecks` (or a loaded state) fills them.

    Args:
        tokens: D.
        width: b.
        device: Where the tensors are made.
    """

    def __init__(self, tokens: int, width: int, device: torch.device) -> None:
        super().__init__()
        with torch.device("meta"):  # draws nothing
            self.down = nn.Linear(tokens, width)
            self.up = nn.Linear(width, tokens)
        self.to_empty(device=device).requires_grad_(False)
        for tensor in self.parameters():
            tensor.fill_(math.nan)

    def forward(self, hidden: Tensor) -> Tensor:
        """Tokens (B, N, D) to the same shape."""
        changed: Tensor = self.up(gelu(self.down(hidden)))
        return hidden + changed


class AdaptedMLP(ViTMLP):
    """The MLP of a block with an adapter behind it. The MLP's own tensors keep their names.

    Args:
        base: The MLP, whose modules it takes over.
        width: b.
    """

    def __init__(self, base: ViTMLP, width: int) -> None:
        nn.Module.__init__(self)
        self.width = width
        self.config, self.activation_fn, self.fc1, self.fc2 = base.config, base.activation_fn, base.fc1, base.fc2
        self.adapter = Bottleneck(base.fc2.out_features, width, base.fc2.weight.device)
        self.train(base.training)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Tokens (B, N, D) to the same shape."""
        adapted: Tensor = self.adapter(super().forward(hidden_states))
        return adapted


def adapt_blocks(model: VitNet, width: int) -> None:
    """Gives the MLP of every block its adapter. Does nothing where it is there.

    Raises:
        ValueError: there are adapters of another width.
    """
    for number, layer in enumerate(model.vit.layers):
        mlp = layer.mlp
        assert isinstance(mlp, ViTMLP)
        if not isinstance(mlp, AdaptedMLP):
            layer.mlp = AdaptedMLP(mlp, width)
        elif mlp.width != width:
            raise ValueError(f"block {number}: expected no adapter or one of width {width}, got {mlp.width}")


def bottlenecks(model: nn.Module) -> list[Bottleneck]:
    """The adapters of a model, in model order."""
    return [module for module in model.modules() if isinstance(module, Bottleneck)]


@torch.no_grad()
def initialise_bottlenecks(model: nn.Module, rng: Streams) -> None:
    """Fills the adapters in place: ``up`` zero, ``down`` uniform within 1 / sqrt(D), as in PyTorch.

    Args:
        model: With adapters.
        rng: Streams; the tensor called ``name`` is drawn from ``rng(name)``.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, Bottleneck):
            module.up.weight.zero_()
            module.up.bias.zero_()
            for name, tensor in module.down.named_parameters(prefix=f"{prefix}.down"):
                uniform = 2 * torch.rand(tensor.shape, generator=rng(name)) - 1
                tensor.copy_(uniform / math.sqrt(module.down.in_features))
