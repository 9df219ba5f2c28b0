"""Methods that mean the same in every model: the network itself says what its attention is and where LoRA goes."""

from __future__ import annotations

from typing import ClassVar

from ..aggregators.contract import Layout
from .contract import Dense, LowRank
from .layout import adapt_attention, layout
from .network import Network


class Full(Dense):
    """Trains everything. SAM: encoder, prompt encoder and decoder; ViT-B/16 at C classes: 85,798,656 + 769 C."""

    models: ClassVar[tuple[str, ...]] = ("sam", "vit")

    def attach(self, model: Network) -> Layout:
        """See :class:`.Method`."""
        return layout(model, dense=[model])


class Attention(Dense):
    """Trains the attention of all blocks. SAM: with relative positions, and the decoder's transformer; ViT: and head.

    ViT-B/16 at C classes: 12 * 2,362,368 + 769 C = 28,348,416 + 769 C; norms are frozen.
    """

    models: ClassVar[tuple[str, ...]] = ("sam", "vit")

    def attach(self, model: Network) -> Layout:
        """See :class:`.Method`."""
        return layout(model, dense=model.attention())


class LoraOnly(LowRank):
    """Trains LoRA on q and v (or as its ``matrices`` say) of every attention; ViT: and the head.

    SAM: of encoder and decoder, and nothing else. ViT-B/16 at rank R, m matrices and C classes: 18,432 m R + 769 C.
    """

    models: ClassVar[tuple[str, ...]] = ("sam", "vit")

    def attach(self, model: Network) -> Layout:
        """See :class:`.Method`."""
        adapt_attention(model, self.lora)
        return layout(model, dense=[])
