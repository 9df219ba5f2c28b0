"""What every trainable tensor of a network is: pairs and dense tensors, the part each belongs to, and its kind.

Read off the modules (their place in the network, their class), never off parts of names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionEncoder
from transformers.models.vit.modeling_vit import ViTEmbeddings

from ..aggregators.contract import Kind, Layout, Part
from .lora import Adapter, LoRA, adapt, pairs
from .lora_sb import Core
from .network import Network
from .prompts import Prompts


def layout(model: Network, dense: Iterable[nn.Module | nn.Parameter]) -> Layout:
    """The layout of a network's adapters and of all other parameters that train.

    Args:
        model: With its adapters. What always trains (:meth:`.Network.always_trained`) does so here.
        dense: Parameters that train, and modules all of whose parameters do.
    """
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    trained = _ids([*dense, *model.always_trained()]) - _ids(adapters)
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


def adapt_attention(model: Network, settings: LoRA) -> None:
    """Puts LoRA on the chosen projections of every attention that a network names (:meth:`.Network.places`).

    Raises:
        ValueError: LoRA is asked for in more blocks than there are.
    """
    for parent, child, rows in model.places(settings.matrices, settings.blocks):
        adapt(parent, child, rows, settings)


def _ids(trained: Iterable[nn.Module | nn.Parameter]) -> set[int]:
    return {
        id(parameter) for one in trained for parameter in ([one] if isinstance(one, nn.Parameter) else one.parameters())
    }


def _parts(model: Network) -> dict[int, Part]:
    """Part per parameter identity."""
    return {key: part for part, modules in model.parts() for key in _ids(modules)}


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
    if isinstance(module, Prompts):
        return "prompt"
    if isinstance(module, nn.LayerNorm):
        return "norm"
    if isinstance(module, ViTEmbeddings):
        return "token" if short == "cls_token" else "position"
    if isinstance(module, nn.Embedding):
        return "token"
    if isinstance(module, SamVisionAttention | SamVisionEncoder):
        return "position"
    return "bias" if short == "bias" else "weight"
