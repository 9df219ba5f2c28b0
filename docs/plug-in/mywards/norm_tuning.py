"""Training the layer norms alone (Basu et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from wardround.aggregators.contract import Layout
from wardround.clients.contract import Dense
from wardround.clients.layout import layout
from wardround.clients.network import Network
from wardround.clients.sam import SamNet


@dataclass(frozen=True, kw_only=True)
class NormTuning(Dense):
    """Trains scale and shift of every layer norm of the encoder, and the head.

    ViT-B/16 has 25 of them, two in each of 12 blocks and one behind, of 2 * 768 numbers each: 38,400, and 769 C in the
    head of C classes.

    Args:
        head: Whether SAM's mask decoder trains its upscaler and hypernetworks too, as FLAP-SAM does. A ViT's head
            always trains.

    Source: LN-Tune of Basu et al., "Strong Baselines for Parameter Efficient Few-Shot Fine-tuning", arXiv 2304.01917.
    """

    models: ClassVar[tuple[str, ...]] = ("sam", "vit")

    head: bool = True

    def attach(self, model: Network) -> Layout:
        """Adds nothing, and says that the norms train."""
        if isinstance(model, SamNet):
            head = model.mask_decoder.head() if self.head else ()
            return layout(model, dense=[*_norms(model.vision_encoder), *head])
        return layout(model, dense=_norms(model))


def _norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.LayerNorm)]
