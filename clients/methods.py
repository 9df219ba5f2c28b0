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
| lora            | LoRA on q and v of every attention of encoder and decoder                      |
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

The Gaussian matrix of the positional encoding is fixed: a buffer, which no method trains.

Source: arXiv 2407.21739 (FLAP-SAM), Fig. 1 and released code; arXiv 2304.13785 (SAMed) and arXiv 2309.08842 (MA-SAM)
with theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from torch import nn
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention, SamVisionEncoder

from ..aggregators.contract import Kind, Layout, Part, Streams
from .lora import Adapter, LoRA, Rows, adapt, initialise_adapters, pairs
from .lora_sb import Core, Init, adapt_core, cores, initialise_cores
from .sam import SamNet
from .slice_adapter import adapt_slices, initialise_slice_adapters, slice_adapters


class Method(Protocol):
    """Which tensors of a model may train: a frozen dataclass with two methods."""

    def attach(self, model: SamNet) -> Layout:
        """Puts adapters into a freshly built model (which may be on the meta device) and says what may train.

        No parameter's ``requires_grad`` is touched. A second call changes nothing and returns the same layout.
        """
        ...

    def initialise(self, model: SamNet, rng: Streams) -> None:
        """Fills the attached adapters with their initial values, each from the stream of its own name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Dense:
    """What methods without adapters share: nothing to initialise."""

    def initialise(self, model: SamNet, rng: Streams) -> None:
        """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """What methods with LoRA share: their settings and their initial adapters.

    Args:
        lora: Settings of the adapters.
    """

    lora: LoRA = field(default_factory=LoRA)

    def initialise(self, model: SamNet, rng: Streams) -> None:
        """Draws A (and B, where it does not start at zero)."""
        initialise_adapters(model, rng)


class Full(Dense):
    """Trains everything: encoder, prompt encoder, decoder."""

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
        return layout(model, dense=[model])


class Attention(Dense):
    """Trains the encoder's attention (qkv, proj, relative positions) and the whole transformer of the decoder."""

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
        return layout(model, dense=[*encoder_attention(model), model.mask_decoder.transformer])


class AttentionCode(Dense):
    """Trains what the released code of FLAP-SAM calls attention: all attention modules, and the head."""

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
        dense = [*encoder_attention(model), *decoder_attention(model), *model.mask_decoder.head()]
        return layout(model, dense=dense)


class Decoder(Dense):
    """Trains the whole mask decoder; the IoU token and head count."""

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
        return layout(model, dense=[model.mask_decoder])


class PartialDecoder(Dense):
    """Trains the head: upscaler, hypernetworks, mask tokens."""

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
        return layout(model, dense=model.mask_decoder.head())


class LoraOnly(LowRank):
    """Trains LoRA on q and v of every attention of encoder and decoder, and nothing else."""

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
        adapt_attention(model, self.lora)
        return layout(model, dense=[])


class LoraDecoder(LowRank):
    """Trains LoRA and the whole mask decoder, adapted weights included: the paper's row "SAMed"."""

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
        adapt_attention(model, self.lora)
        return layout(model, dense=[model.mask_decoder])


class FlapSam(LowRank):
    """Trains LoRA and the head: FLAP-SAM."""

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
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
        """See :class:`Method`."""
        for parent, child, rows in [*encoder_places(model), *decoder_places(model)]:
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

    lora: SamedLoRA = field(default_factory=SamedLoRA)

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
        adapt_encoder(model, self.lora)
        return layout(model, dense=[model.prompt_encoder, model.mask_decoder])


class SamedS(Samed):
    """Trains LoRA on q and v of encoder and decoder, the prompt encoder, and the decoder but for its transformer.

    The small SAMed, as its released code has it: the decoder's transformer is frozen apart from LoRA; mask tokens,
    hypernetworks, upscaler, IoU token, IoU head and the prompt encoder train.

    ViT-B at rank R and C classes: 42,752 R + 6,220 + the decoder without the 3,291,264 of its transformer; at R = 4,
    C = 2 and ``upscaler: sam`` that is 171,008 + 6,220 + 626,755 = 803,983.
    """

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
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

    width: int = 384

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width: expected at least 1, got {self.width!r}")

    def attach(self, model: SamNet) -> Layout:
        """See :class:`Method`."""
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
}


def encoder_attention(model: SamNet) -> list[SamVisionAttention]:
    """The attention modules of the image encoder, in model order."""
    return [module for module in model.vision_encoder.modules() if isinstance(module, SamVisionAttention)]


def decoder_attention(model: SamNet) -> list[SamAttention]:
    """The attention modules of the mask decoder (7 in SAM), in model order."""
    return [module for module in model.mask_decoder.modules() if isinstance(module, SamAttention)]


Place = tuple[nn.Module, str, Mapping[str, Rows]]
"""A module, the name of a linear layer of it, and the rows of that layer per adapter."""


def encoder_places(model: SamNet, blocks: int | None = None) -> Iterator[Place]:
    """The q and v, which are rows of one fused projection [q | k | v], of the encoder's last blocks; None: of all."""
    for attention in encoder_attention(model)[-blocks if blocks else None :]:
        width = attention.qkv.in_features
        yield attention, "qkv", {"lora_q": (0, width), "lora_v": (2 * width, 3 * width)}


def decoder_places(model: SamNet) -> Iterator[Place]:
    """The decoder's q and v, which have a projection each."""
    for attention in decoder_attention(model):
        yield attention, "q_proj", {"lora": None}
        yield attention, "v_proj", {"lora": None}


def adapt_attention(model: SamNet, settings: LoRA) -> None:
    """Puts LoRA on q and v of every attention module of encoder and decoder."""
    adapt_encoder(model, settings)
    adapt_decoder(model, settings)


def adapt_encoder(model: SamNet, settings: LoRA) -> None:
    """Puts LoRA on the encoder's q and v, in its last blocks where the settings say so.

    Raises:
        ValueError: the encoder has fewer blocks.
    """
    there = len(encoder_attention(model))
    if settings.blocks is not None and settings.blocks > there:
        raise ValueError(
            f"method.lora.blocks: expected at most the {there} blocks of the model's encoder, got {settings.blocks!r}"
        )
    for parent, child, rows in encoder_places(model, settings.blocks):
        adapt(parent, child, rows, settings)


def adapt_decoder(model: SamNet, settings: LoRA) -> None:
    """Puts LoRA on the decoder's q and v."""
    for parent, child, rows in decoder_places(model):
        adapt(parent, child, rows, settings)


def layout(model: SamNet, dense: Iterable[nn.Module]) -> Layout:
    """The layout of a model's adapters and of all other parameters below some modules.

    Args:
        model: With its adapters.
        dense: Modules whose parameters train.
    """
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    trained = _ids(dense) - _ids(adapters)
    low_rank = pairs(model)
    chosen = tuple(name for name, parameter in model.named_parameters() if id(parameter) in trained)
    names = {*chosen, *(name for pair in low_rank for name in (pair.A, pair.B))}
    parts = _parts(model)
    return Layout(
        pairs=low_rank,
        dense=chosen,
        part={name: parts[id(tensor)] for name, tensor in model.named_parameters() if name in names},
        kind={name: kind for name, kind in _kinds(model) if name in names},
    )


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


def _parts(model: SamNet) -> dict[int, Part]:
    """Part per parameter identity; the head, which lies within the decoder, comes last and wins."""
    parts: tuple[tuple[Part, tuple[nn.Module, ...]], ...] = (
        ("encoder", (model.vision_encoder,)),
        ("prompt_encoder", (model.prompt_encoder,)),
        ("decoder", (model.mask_decoder,)),
        ("head", model.mask_decoder.head()),
    )
    return {key: part for part, modules in parts for key in _ids(modules)}


def _kinds(model: nn.Module) -> Iterator[tuple[str, Kind]]:
    """Role of every parameter by name."""
    for prefix, module in model.named_modules():
        for short, _ in module.named_parameters(recurse=False):
            yield f"{prefix}.{short}", _kind(module, short)


def _kind(module: nn.Module, short: str) -> Kind:
    """Role of a parameter from the class of the module that owns it."""
    if isinstance(module, Adapter):
        return "lora_A" if short == "A" else "lora_B"
    if isinstance(module, Core):
        return "core"
    if isinstance(module, nn.LayerNorm):
        return "norm"
    if isinstance(module, nn.Embedding):
        return "token"
    if isinstance(module, SamVisionAttention | SamVisionEncoder):
        return "position"
    return "bias" if short == "bias" else "weight"
