"""Methods: which tensors may train, and hence travel. One dataclass per row of FLAP-SAM's comparison, one table.

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
+-----------------+--------------------------------------------------------------------------------+

Source: arXiv 2407.21739 (FLAP-SAM), Fig. 1 and released code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention, SamVisionEncoder

from ..aggregators.contract import Kind, Layout, Part, Streams
from .lora import Adapter, LoRA, Rows, adapt, initialise_adapters, pairs
from .sam import SamNet


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


METHODS: dict[str, type[Method]] = {
    "full": Full,
    "attention": Attention,
    "attention_code": AttentionCode,
    "decoder": Decoder,
    "partial_decoder": PartialDecoder,
    "lora": LoraOnly,
    "lora_decoder": LoraDecoder,
    "flap_sam": FlapSam,
}


def encoder_attention(model: SamNet) -> list[SamVisionAttention]:
    """The attention modules of the image encoder, in model order."""
    return [module for module in model.vision_encoder.modules() if isinstance(module, SamVisionAttention)]


def decoder_attention(model: SamNet) -> list[SamAttention]:
    """The attention modules of the mask decoder (7 in SAM), in model order."""
    return [module for module in model.mask_decoder.modules() if isinstance(module, SamAttention)]


def adapt_attention(model: SamNet, settings: LoRA) -> None:
    """Puts LoRA on q and v of every attention module.

    The encoder's q and v are rows of one fused projection [q | k | v]; the decoder has a projection each.
    """
    for attention in encoder_attention(model):
        width = attention.qkv.in_features
        adapt(attention, "qkv", {"lora_q": (0, width), "lora_v": (2 * width, 3 * width)}, settings)
    whole: dict[str, Rows] = {"lora": None}
    for decoder in decoder_attention(model):
        adapt(decoder, "q_proj", whole, settings)
        adapt(decoder, "v_proj", whole, settings)


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
    if isinstance(module, nn.LayerNorm):
        return "norm"
    if isinstance(module, nn.Embedding):
        return "token"
    if isinstance(module, SamVisionAttention | SamVisionEncoder):
        return "position"
    return "bias" if short == "bias" else "weight"
