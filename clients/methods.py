"""Methods: which tensors may train, and hence travel. One dataclass per method, one table.

What trains is found through modules (their place in the network, their class), never through parts of names.

+-----------------+--------------------------------------------------------------------------------+
| method          | trains                                                                         |
+=================+================================================================================+
| full            | everything                                                                     |
| attention       | encoder attention, the decoder's transformer                                   |
| attention_code  | encoder attention, decoder attention, head (as the released code has it)       |
| decoder         | the mask decoder                                                               |
| partial_decoder | head: upscaler, hypernetworks, mask tokens                                     |
| lora            | LoRA on every attention of encoder and decoder                                 |
| lora_decoder    | LoRA and the mask decoder                                                      |
| flap_sam        | LoRA and head                                                                  |
| lora_sb         | an r x r matrix between frozen factors where LoRA sits, and head               |
+-----------------+--------------------------------------------------------------------------------+
| samed           | LoRA of rank 4 in the encoder alone, prompt encoder, mask decoder              |
+-----------------+--------------------------------------------------------------------------------+
| samed_s         | LoRA of rank 4, prompt encoder, mask decoder without its transformer           |
+-----------------+--------------------------------------------------------------------------------+
| ma_sam          | slice adapters in the encoder, the mask decoder                                |
+-----------------+--------------------------------------------------------------------------------+

Those above are SAM's. ``full``, ``attention`` and ``lora`` serve the Vision Transformer as well, whose other methods
are in :mod:`.vit_methods`. The Gaussian matrix of the positional encoding is fixed: a buffer, which no method trains.

Source: arXiv 2407.21739 (FLAP-SAM), Fig. 1 and released code; arXiv 2304.13785 (SAMed) and arXiv 2309.08842 (MA-SAM)
with theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from ..aggregators.contract import Layout, Streams
from .common_methods import Attention, Full, LoraOnly
from .contract import Dense, LowRank, Method
from .layout import adapt_attention, layout
from .lora import LoRA, adapt
from .lora_sb import Init, adapt_core, cores, initialise_cores
from .sam import SamNet
from .slice_adapter import adapt_slices, initialise_slice_adapters, slice_adapters
from .vit_methods import Bias, BottleneckAdapter, Dvpt, LinearProbe, LoraVpt, Sba, UnionOf, VptDeep, VptShallow


class AttentionCode(Dense):
    """Trains what the released code of FLAP-SAM calls attention: all attention modules, and the head."""

    models: ClassVar[tuple[str, ...]] = ("sam",)

    def attach(self, model: SamNet) -> Layout:
        """See :class:`.Method`."""
        dense = [*model.encoder_attention(), *model.decoder_attention(), *model.mask_decoder.head()]
        return layout(model, dense=dense)


class Decoder(Dense):
    """Trains the whole mask decoder; the IoU token and head count."""

    models: ClassVar[tuple[str, ...]] = ("sam",)

    def attach(self, model: SamNet) -> Layout:
        """See :class:`.Method`."""
        return layout(model, dense=[model.mask_decoder])


class PartialDecoder(Dense):
    """Trains the head: upscaler, hypernetworks, mask tokens."""

    models: ClassVar[tuple[str, ...]] = ("sam",)

    def attach(self, model: SamNet) -> Layout:
        """See :class:`.Method`."""
        return layout(model, dense=model.mask_decoder.head())


class LoraDecoder(LowRank):
    """Trains LoRA and the whole mask decoder, adapted weights included: the paper's row "SAMed"."""

    models: ClassVar[tuple[str, ...]] = ("sam",)

    def attach(self, model: SamNet) -> Layout:
        """See :class:`.Method`."""
        adapt_attention(model, self.lora)
        return layout(model, dense=[model.mask_decoder])


class FlapSam(LowRank):
    """Trains LoRA and the head: FLAP-SAM."""

    models: ClassVar[tuple[str, ...]] = ("sam",)

    def attach(self, model: SamNet) -> Layout:
        """See :class:`.Method`."""
        adapt_attention(model, self.lora)
        return layout(model, dense=model.mask_decoder.head())


@dataclass(frozen=True, kw_only=True)
class LoraSb:
    """Trains an r x r matrix R between frozen factors on q and v of every attention, and the head: LoRA-SB, Fed-SB.

    ``W + s B R A`` (:mod:`~wardround.clients.lora_sb`). For an aggregator R is a dense tensor of kind ``core``, and
    with ``fedavg`` the mean of the updates is exact. B and A never train and never travel: they belong to what every
    hospital installs, and follow from the run's seed (``orthonormal``) or from the frozen weights (``weights``; on
    machines with other linear algebra libraries they may differ, so that a real federation sends them once). All
    hospitals have one rank: what R means depends on it.

    ViT-B: 38 r^2 numbers while r is at most 128 (the narrowest projections of the decoder), where LoRA has 42,752 r: at
    r = 64 that is 155,648. A projection narrower than r gets a square R of its own width.

    Args:
        rank: r, >= 1. R grows with its square; the papers use 64 to 200 to come near LoRA.
        scale: s, > 0.
        init: ``orthonormal``: B and A random; ``weights``: singular vectors of the frozen weight. R starts at zero.
        head: ``trained``, or ``frozen`` for a head that fits already.

    Source: Singhal et al. 2025 (Fed-SB), arXiv 2502.15436; Ponkshe et al. 2024 (LoRA-SB), arXiv 2411.19557.

    Differs from the papers in: their start, the SVD of an averaged first gradient of the full weights (one dense
    upload), is not done, both starts are ours; and the head of the mask decoder trains beside R.
    """

    models: ClassVar[tuple[str, ...]] = ("sam",)

    rank: int = 64
    scale: float = 1.0
    init: Init = "orthonormal"
    head: Literal["trained", "frozen"] = "trained"

    def __post_init__(self) -> None:
        problems = []
        if self.rank < 1:
            problems.append(f"rank: expected at least 1, got {self.rank!r}")
        if not 0 < self.scale < math.inf:
            problems.append(f"scale: expected a finite number above 0, got {self.scale!r}")
        if self.init not in get_args(Init):
            problems.append(f"init: expected 'orthonormal' or 'weights', got {self.init!r}")
        if self.head not in ("trained", "frozen"):
            problems.append(f"head: expected 'trained' or 'frozen', got {self.head!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def attach(self, model: SamNet) -> Layout:
        """See :class:`.Method`."""
        for parent, child, rows in model.places("qv"):
            adapt_core(parent, child, rows, self.rank, self.scale)
        head = model.mask_decoder.head() if self.head == "trained" else ()
        return layout(model, dense=[*cores(model), *head])

    def initialise(self, model: SamNet, rng: Streams) -> None:
        """Sets B and A, and R to zero."""
        initialise_cores(model, self.init, rng)


@dataclass(frozen=True, kw_only=True)
class SamedLoRA(LoRA):
    """SAMed's settings of the low-rank adapters: :class:`~wardround.clients.lora.LoRA` of rank 4."""

    rank: int = 4


@dataclass(frozen=True, kw_only=True)
class Samed(LowRank):
    """Trains LoRA on q and v of the encoder, the prompt encoder and the mask decoder: SAMed.

    Of the prompt encoder, which counts and travels whole, a forward pass without prompts reaches the "no mask"
    embedding alone. SAMed's images have 512 px and its logits SAM's own 4x resolution: ``image_size: 512`` and
    ``upscaler: sam`` of the model.

    ViT-B at rank R, C classes and 512 px: 36,864 R + 6,220 + the decoder; at R = 4 and C = 2 that is
    147,456 + 6,220 + 3,918,019 = 4,071,695.

    Args:
        lora: Settings of the adapters.

    Source: Zhang and Liu 2023, arXiv 2304.13785, and its released code.
    """

    models: ClassVar[tuple[str, ...]] = ("sam",)

    lora: SamedLoRA = field(default_factory=SamedLoRA)

    def attach(self, model: SamNet) -> Layout:
        """See :class:`.Method`."""
        for parent, child, rows in model.encoder_places(self.lora.matrices, self.lora.blocks):
            adapt(parent, child, rows, self.lora)
        return layout(model, dense=[model.prompt_encoder, model.mask_decoder])


class SamedS(Samed):
    """Trains LoRA on q and v of encoder and decoder, the prompt encoder, and the decoder but for its transformer.

    The small SAMed, as its released code has it: the decoder's transformer is frozen apart from LoRA; mask tokens,
    hypernetworks, upscaler, IoU token, IoU head and the prompt encoder train.

    ViT-B at rank R and C classes: 42,752 R + 6,220 + the decoder without the 3,291,264 of its transformer; at R = 4,
    C = 2 and ``upscaler: sam`` that is 171,008 + 6,220 + 626,755 = 803,983.
    """

    def attach(self, model: SamNet) -> Layout:
        """See :class:`.Method`."""
        adapt_attention(model, self.lora)
        decoder = model.mask_decoder
        rest = [decoder.iou_token, decoder.iou_prediction_head, *decoder.head()]
        return layout(model, dense=[model.prompt_encoder, *rest])


@dataclass(frozen=True, kw_only=True)
class MaSam:
    """Trains slice adapters in the encoder and the mask decoder: MA-SAM. The slices of a window see each other.

    The window is the data's: the paper's five slices are ``windows: {depth: 5}``. At depth 1 the adapters see no
    neighbours, only zeros, and are adapters of single slices: allowed, as the reference for what neighbours are worth.
    The decoder of the released code is the one of ``upscaler: full``.

    ViT-B at R = 384 has 24 adapters of 2 * 768 (norm) + 2 * 768 R (down, up) + 3 R^2 + R (conv) = 1,034,112 parameters,
    together 24,818,688; with the decoder at C = 2 that is 24,818,688 + 3,902,195 = 28,720,883.

    Args:
        width: R, width of the adapters, >= 1.

    Source: Chen et al. 2023, arXiv 2309.08842, and its released code.

    Differs from the released code in: no low-rank factors (FacT) on q and v of the encoder; the prompt encoder is
    frozen; the adapters' last layer starts at zero.
    """

    models: ClassVar[tuple[str, ...]] = ("sam",)

    width: int = 384

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width: expected at least 1, got {self.width!r}")

    def attach(self, model: SamNet) -> Layout:
        """See :class:`.Method`."""
        adapt_slices(model.vision_encoder, self.width)
        return layout(model, dense=[*slice_adapters(model), model.mask_decoder])

    def initialise(self, model: SamNet, rng: Streams) -> None:
        """Draws all but norms and last layers of the adapters."""
        initialise_slice_adapters(model, rng)


METHODS: dict[str, type[Method]] = {
    "full": Full,
    "attention": Attention,
    "attention_code": AttentionCode,
    "decoder": Decoder,
    "partial_decoder": PartialDecoder,
    "lora": LoraOnly,
    "lora_decoder": LoraDecoder,
    "flap_sam": FlapSam,
    "lora_sb": LoraSb,
    "samed": Samed,
    "samed_s": SamedS,
    "ma_sam": MaSam,
    "linear": LinearProbe,
    "bias": Bias,
    "sba": Sba,
    "vpt_shallow": VptShallow,
    "vpt_deep": VptDeep,
    "dvpt": Dvpt,
    "lora_vpt": LoraVpt,
    "adapter": BottleneckAdapter,
    "union": UnionOf,
}
"""All methods by name; which models each suits is its ``models``."""

__all__ = [
    "METHODS",
    "Attention",
    "AttentionCode",
    "Bias",
    "BottleneckAdapter",
    "Decoder",
    "Dense",
    "Dvpt",
    "FlapSam",
    "Full",
    "LinearProbe",
    "LoraDecoder",
    "LoraOnly",
    "LoraSb",
    "LoraVpt",
    "LowRank",
    "MaSam",
    "Method",
    "PartialDecoder",
    "Samed",
    "SamedLoRA",
    "SamedS",
    "Sba",
    "UnionOf",
    "VptDeep",
    "VptShallow",
]
