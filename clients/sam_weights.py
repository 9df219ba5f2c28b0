"""SAM weights from a file: official ``.pth``, Hugging Face directory or file, our own ``.safetensors``.

Names are turned into those of ``transformers``, position tables are resized to the image size in use, everything that
matches is loaded. Files are read as data only (safetensors, or pickle restricted to tensors).

Source: names of facebookresearch/segment-anything; resizing as in arXiv 2407.21739 (FLAP-SAM).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import SamVisionConfig

from ..aggregators.contract import Tensors
from . import weight_files
from .weight_files import listed, misshapen

if TYPE_CHECKING:
    from .sam import SamNet, SamSize

PACKAGED = ("sam-mini",)
"""Weights that come with the package, by name."""

HEADS = (
    "mask_decoder.mask_tokens.",
    "mask_decoder.output_hypernetworks_mlps.",
    "mask_decoder.iou_prediction_head.",
)
"""Beginnings of the names in a file whose shapes depend on the number of classes."""

UPSCALER = "mask_decoder.upscale_more."
"""Beginning of the names of our further upscaling stages, which no SAM file has."""

_POS_EMBED = "vision_encoder.pos_embed"
_PATCHES = "vision_encoder.patch_embed.projection.weight"

MATRIX = "prompt_encoder.shared_embedding.positional_embedding"
"""Our name of the positional matrix, which ``transformers`` keeps twice."""

MATRIX_IN_HUGGING_FACE = "shared_image_embedding.positional_embedding"
"""Its name in files of ``transformers``."""

_OFFICIAL = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^image_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_encoder.layers.\1.layer_norm\2."),
        (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
        (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
        (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
        (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
        (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
        (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
        (r"^image_encoder\.", "vision_encoder."),
        (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", MATRIX),
        (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
        (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
        (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
        (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
        (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
        (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
        (r"^(mask_decoder\.transformer\.(?:layers\.\d+\.)?)norm(\d|_final_attn)\.", r"\1layer_norm\2."),
        (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
        (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
        (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.0\.", r"\1proj_in."),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.1\.", r"\1layers.0."),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.2\.", r"\1proj_out."),
    )
)

_TO_OFFICIAL = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^vision_encoder\.layers\.(\d+)\.layer_norm([12])\.", r"image_encoder.blocks.\1.norm\2."),
        (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
        (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
        (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
        (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
        (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
        (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
        (r"^vision_encoder\.", "image_encoder."),
        (rf"^{re.escape(MATRIX)}$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
        (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
        (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
        (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
        (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
        (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
        (r"^(mask_decoder\.transformer\.(?:layers\.\d+\.)?)layer_norm(\d|_final_attn)\.", r"\1norm\2."),
        (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
        (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
        (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)proj_in\.", r"\1layers.0."),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.0\.", r"\1layers.1."),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)proj_out\.", r"\1layers.2."),
    )
)
"""The way back of ``_OFFICIAL``, row by row."""


def official_name(name: str) -> str:
    """The name that one of our tensors has in the official release.

    Example:
        >>> official_name("vision_encoder.layers.0.layer_norm1.weight")
        'image_encoder.blocks.0.norm1.weight'
    """
    return _replaced(name, _TO_OFFICIAL)


def load(
    weights: str, net: SamNet, heads: Literal["new", "checkpoint"], sizes: Mapping[str, SamSize]
) -> dict[str, Tensor]:
    """The tensors of a weights file that a network takes, in its names and shapes, fp32.

    Args:
        weights: Name of packaged weights, or a path.
        net: The network to fill; only its names and shapes are read (it may be on the meta device).
        heads: ``new`` leaves mask tokens, hypernetworks and IoU head out.
        sizes: The known sizes, to name the right one in an error.

    Returns:
        Tensors by name. Names of the network that are not in it start anew.

    Raises:
        ValueError: the file is absent or damaged, of another size, or has missing, unexpected or misshapen tensors
            (all of them listed).
    """
    where = f"weights {weights!r}"
    tensors = _renamed(read(weights))
    _check_size(tensors, net, sizes, where)
    _check_config(weights, net.size)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    optional = (*HEADS, UPSCALER) if heads == "new" else (UPSCALER,)
    resized = {name: _resized(name, tensor, net) for name, tensor in tensors.items() if name in shapes}
    taken = {name: tensor for name, tensor in resized.items() if heads == "checkpoint" or not name.startswith(HEADS)}
    problems = (
        *listed("missing", (n for n in shapes if n not in tensors and not n.startswith(optional))),
        *listed("unexpected", (n for n in tensors if n not in shapes and not n.startswith(optional))),
        *listed("wrong shape", misshapen(taken, shapes)),
        *listed("not finite", (n for n, tensor in taken.items() if not tensor.isfinite().all())),
    )
    if problems:
        raise ValueError(f"{where}: expected the tensors of this SAM; {'; '.join(problems)}")
    return taken


def read(weights: str) -> Tensors:
    """All tensors of a weights file or directory, in the file's own names.

    Raises:
        ValueError: absent or damaged.
    """
    return weight_files.read(weights, PACKAGED, _read_file)


def digest(weights: str) -> str:
    """SHA-256 of the weights file; where there are several, of their digests in the order of their names.

    A file that has not changed is read once; its hash is remembered in the cache.

    Raises:
        ValueError: absent, or the cache cannot be written.
    """
    return weight_files.digest(weight_files.find(weights, PACKAGED))


def our_names(names: Iterable[str]) -> dict[str, str]:
    """The name in our network of every tensor of a file, of the official release or of ``transformers``."""
    names = list(names)
    official = any(name.startswith("image_encoder.") for name in names)  # "layers.0" of an MLP means two things
    return {name: _our_name(name) if official else name for name in names}


def _read_file(file: Path) -> Tensors:
    if file.suffix == ".safetensors":
        return weight_files.read_safetensors(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise almost anything
        raise weight_files.unreadable(file, error) from error
    return _unwrapped(content, file)


def _unwrapped(content: object, file: Path) -> dict[str, Tensor]:
    """The state of a checkpoint: without the wrapper ``model`` and the prefix ``module.`` of training scripts."""
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"weights {str(file)!r}: expected tensors by name, got {type(content).__name__} of other things"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _renamed(tensors: Tensors) -> dict[str, Tensor]:
    """Names as in our network. The positional matrix, which ``transformers`` keeps twice, becomes one."""
    if any(name.startswith("image_encoder.") for name in tensors):  # "layers.0" of an MLP means two things: tell first
        return {_our_name(name): tensor for name, tensor in tensors.items()}
    renamed = dict(tensors)
    matrix = renamed.pop(MATRIX_IN_HUGGING_FACE, None)
    return renamed if matrix is None else {MATRIX: matrix, **renamed}


def _our_name(name: str) -> str:
    """Our name of a tensor of the official release."""
    return _replaced(name, _OFFICIAL)


def _replaced(name: str, table: Iterable[tuple[re.Pattern[str], str]]) -> str:
    """The name after the first row of a table that fits it."""
    for pattern, replacement in table:
        name, replaced = pattern.subn(replacement, name)
        if replaced:
            return name
    return name


def _check_size(tensors: Tensors, net: SamNet, sizes: Mapping[str, SamSize], where: str) -> None:
    """Tells a file of another size, or of no SAM at all, before its tensors are compared one by one."""
    patches = tensors.get(_PATCHES)
    if patches is None or patches.ndim != 4:
        raise ValueError(f"{where}: expected a SAM with tensor {_PATCHES!r}, got the names {sorted(tensors)[:5]!r} ...")
    layers = len({name.split(".")[2] for name in tensors if name.startswith("vision_encoder.layers.")})
    got = (patches.shape[0], layers, patches.shape[-1])
    if got == _signature(net.size):
        return
    names = {_signature(size): name for name, size in sizes.items()}
    raise ValueError(
        f"{where}: expected a SAM of size {names.get(_signature(net.size), 'of your own')}"
        f" ({_described(_signature(net.size))}), got {_described(got)};"
        f" {f'set size: {names[got]}' if got in names else 'no known size'}"
    )


def _check_config(weights: str, size: SamSize) -> None:
    """Compares what no tensor shows (which blocks see the whole grid) with the config of a Hugging Face directory."""
    file = Path(weights).expanduser() / "config.json"
    if weights in PACKAGED or not file.is_file():
        return
    content = weight_files.read_json(file)
    if content.get("model_type", "sam") != "sam":
        raise ValueError(f"{str(file)!r}: expected model_type 'sam', got {content['model_type']!r}")
    vision = SamVisionConfig.from_dict(content.get("vision_config", {}))
    got = (tuple(vision.global_attn_indexes), vision.window_size, vision.num_attention_heads)
    expected = (size.global_layers, size.window, size.heads)
    if got != expected:
        raise ValueError(
            f"{str(file)!r}: expected global_attn_indexes, window_size, num_attention_heads {expected!r}, got {got!r}"
        )


def _signature(size: SamSize) -> tuple[int, int, int]:
    return size.width, size.layers, size.patch


def _described(signature: tuple[int, int, int]) -> str:
    width, layers, patch = signature
    return f"{layers} blocks of width {width}, patch {patch}"


def _resized(name: str, tensor: Tensor, net: SamNet) -> Tensor:
    """Position tables at the network's grid; anything else as it is. Always fp32 and contiguous."""
    tensor = tensor.float()
    if name == _POS_EMBED and tensor.ndim == 4:
        tensor = resize_grid(tensor, net.grid)
    elif name in _global_tables(net.size) and tensor.ndim == 2:
        tensor = resize_table(tensor, 2 * net.grid - 1)
    return tensor.contiguous()


def _global_tables(size: SamSize) -> set[str]:
    """Names of the relative tables that span the whole grid, known from the size and never from their lengths."""
    return {f"vision_encoder.layers.{layer}.attn.rel_pos_{axis}" for layer in size.global_layers for axis in "hw"}


def resize_grid(table: Tensor, side: int) -> Tensor:
    """Bilinear resizing of an absolute position table (1, g, g, D) to (1, side, side, D)."""
    if table.shape[1:3] == (side, side):
        return table
    channels_first = table.permute(0, 3, 1, 2)  # (1, D, g, g)
    return interpolate(channels_first, size=(side, side), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def resize_table(table: Tensor, length: int) -> Tensor:
    """Linear resizing of a relative position table (L, d) to (length, d)."""
    if len(table) == length:
        return table
    return interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T
