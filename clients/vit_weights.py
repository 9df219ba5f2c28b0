"""Weights of a Vision Transformer: packaged bases, Hugging Face directories (ViT, DeiT), ``.safetensors`` files.

Names in a file are those of ``transformers`` 4, which are also what ``save_pretrained`` of version 5 writes, or those
of the modules of version 5. Position tables are resized to the image size in use. Heads, pooling layer and mask token
are left out, and so are the distillation token of DeiT and its position: our network has CLS and patches only, so that
a distilled DeiT computes here what it would compute if no token could see its distillation token.

Source: ``transformers`` (names, ``interpolate_pos_encoding``); Touvron et al. 2020 (DeiT), arXiv 2012.12877.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..aggregators.contract import Tensors
from . import weight_files
from .weight_files import listed, misshapen

if TYPE_CHECKING:
    from .vit import Colour, VitNet, VitSize

PACKAGED = ("vit-mini", "vit-mini-derm")
"""Weights that come with the package, by name."""

FAMILIES = ("vit", "deit")
"""What ``model_type`` in a ``config.json`` may be; also what the names of a model with a head begin with."""

LEFT_OUT = (
    "head.",
    "classifier.",
    "cls_classifier.",
    "distillation_classifier.",
    "decoder.",
    "vit.pooler.",
    "vit.embeddings.mask_token",
    "vit.embeddings.distillation_token",
)
"""Beginnings of the names of tensors that a file may have and the network never takes."""

SETTINGS = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True}
"""What the network assumes and no tensor shows, by its name in ``config.json``."""

_POSITIONS = "vit.embeddings.position_embeddings"
_DISTILLATION = "vit.embeddings.distillation_token"
_PATCHES = "vit.embeddings.patch_embeddings.projection.weight"

_VERSION_4 = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^encoder\.layer\.(\d+)\.attention\.attention\.query\.", r"layers.\1.attention.q_proj."),
        (r"^encoder\.layer\.(\d+)\.attention\.attention\.key\.", r"layers.\1.attention.k_proj."),
        (r"^encoder\.layer\.(\d+)\.attention\.attention\.value\.", r"layers.\1.attention.v_proj."),
        (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.attention.o_proj."),
        (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"layers.\1.mlp.fc1."),
        (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"layers.\1.mlp.fc2."),
        (r"^encoder\.layer\.", "layers."),
    )
)


def load(weights: str, net: VitNet, sizes: Mapping[str, VitSize]) -> Tensors:
    """The tensors of a network, all but its head, by name, on the CPU, fp32 (whatever type the file has).

    Args:
        weights: Name of packaged weights, or the path of a Hugging Face directory or of a ``.safetensors`` file.
        net: The network to fill; only its names and shapes are read (it may be on the meta device).
        sizes: The known sizes, to name the right one in an error.

    Raises:
        ValueError: the weights are absent or damaged, of another size or patch size, say in their ``config.json`` that
            they are of another model, or have missing, unexpected or misshapen tensors (all of them listed).
    """
    where = f"weights {weights!r}"
    _check_config(weights, net.size)
    tensors = _renamed(weight_files.read(weights, PACKAGED, _read_file))
    _check_size(tensors, net.size, sizes, where)
    taken = _without_distillation({n: t for n, t in tensors.items() if not n.startswith(LEFT_OUT)}, tensors)
    shapes = {n: tuple(t.shape) for n, t in net.state_dict().items() if not n.startswith(LEFT_OUT)}
    fitted = {n: _fitted(n, t, net).float().contiguous() for n, t in taken.items() if n in shapes}
    problems = (
        *listed("missing", (n for n in shapes if n not in taken)),
        *listed("unexpected", (n for n in taken if n not in shapes)),
        *listed("wrong shape", misshapen(fitted, shapes)),
        *listed("not finite", (n for n, tensor in fitted.items() if not tensor.isfinite().all())),
    )
    if problems:
        raise ValueError(f"{where}: expected the tensors of this ViT; {'; '.join(problems)}")
    return fitted


def normalisation(weights: str) -> tuple[Colour, Colour]:
    """Mean and deviation of the pixels per colour that the weights were trained with; 0.5 where they do not say.

    They say so in ``preprocessor_config.json`` (``image_mean``, ``image_std``, ``do_normalize``), packaged ones in
    their JSON.

    Args:
        weights: As for :func:`load`, or ``random``. Weights that are not there say nothing: parameters can be counted
            without them.

    Raises:
        ValueError: the file is damaged, or holds other things than numbers per colour.
    """
    file = _preprocessor(weights)
    said: Mapping[str, Any] = {} if file is None else weight_files.read_json(file)
    if said.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return _colour(said, "image_mean", file), _colour(said, "image_std", file)


def digest(weights: str) -> str:
    """SHA-256 of the weights file; where there are several, of their digests in the order of their names.

    The last of them is ``preprocessor_config.json`` where a directory has one: it says what images look like to the
    weights. ``config.json`` is not among them: what it says is compared with what the network is, and changes nothing.

    Raises:
        ValueError: absent, or the cache cannot be written.
    """
    files = weight_files.find(weights, PACKAGED)
    said = None if weights in PACKAGED else _preprocessor(weights)
    return weight_files.digest([*files, *([] if said is None else [said])])


def our_names(names: Iterable[str]) -> dict[str, str]:
    """The name in our network of every tensor of a file: with ``vit.`` before all but the heads."""
    names = list(names)
    bare = not any(name.startswith(tuple(f"{family}." for family in FAMILIES)) for name in names)
    whole = {name: f"vit.{name}" if bare and not name.startswith(LEFT_OUT) else name for name in names}
    return {name: _our_name(long) for name, long in whole.items()}  # bare: a model without a head, saved on its own


def _read_file(file: Path) -> Tensors:
    if file.suffix != ".safetensors":
        raise ValueError(
            f"weights {str(file)!r}: expected a .safetensors file, got {file.suffix or 'no suffix'!r}; load the model"
            " with transformers and write it with save_pretrained"
        )
    return weight_files.read_safetensors(file)


def _beside(weights: str, name: str) -> Path | None:
    """A file of the Hugging Face directory that weights lie in, also where its only weights file is named itself."""
    if weights in PACKAGED:
        return None
    path = Path(weights).expanduser()
    folder = path.parent if path.name == "model.safetensors" else path
    return folder / name if (folder / name).is_file() else None


def _preprocessor(weights: str) -> Path | None:
    """The file that says how pixels are normalised."""
    if weights in PACKAGED:
        return weight_files.ASSETS / f"{weights}.json"
    return _beside(weights, "preprocessor_config.json")


def _colour(said: Mapping[str, Any], key: str, file: Path | None) -> Colour:
    values = said.get(key, (0.5, 0.5, 0.5))
    numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    if not numbers or len(values) != 3 or (key == "image_std" and min(values) <= 0):
        above = " above 0" if key == "image_std" else ""
        raise ValueError(f"{str(file)!r}: {key}: expected three numbers{above}, got {values!r}")
    red, green, blue = map(float, values)
    return red, green, blue


def _renamed(tensors: Tensors) -> Tensors:
    """Names as in our network."""
    names = our_names(tensors)
    return {names[name]: tensor for name, tensor in tensors.items()}


def _our_name(name: str) -> str:
    family, _, rest = name.partition(".")
    if family not in FAMILIES:
        return name
    for pattern, replacement in _VERSION_4:
        rest, replaced = pattern.subn(replacement, rest)
        if replaced:
            break
    return f"vit.{rest}"


def _check_size(tensors: Tensors, size: VitSize, sizes: Mapping[str, VitSize], where: str) -> None:
    """Tells a file of another size, or of no ViT at all, before its tensors are compared one by one."""
    patches = tensors.get(_PATCHES)
    if patches is None or patches.ndim != 4:
        raise ValueError(f"{where}: expected a ViT with tensor {_PATCHES!r}, got the names {sorted(tensors)[:5]!r} ...")
    layers = len({name.split(".")[2] for name in tensors if name.startswith("vit.layers.")})
    got = (patches.shape[0], layers, patches.shape[-1])
    if got == _signature(size):
        return
    names = {_signature(known): name for name, known in sizes.items()}
    raise ValueError(
        f"{where}: expected a ViT of size {names.get(_signature(size), 'of your own')}"
        f" ({_described(_signature(size))}), got {_described(got)};"
        f" {f'did you mean size: {names[got]}' if got in names else 'no known size'}"
    )


def _signature(size: VitSize) -> tuple[int, int, int]:
    return size.width, size.layers, size.patch


def _described(signature: tuple[int, int, int]) -> str:
    width, layers, patch = signature
    return f"{layers} blocks of width {width}, patch {patch}"


def _check_config(weights: str, size: VitSize) -> None:
    """Compares what no tensor shows with the config of a Hugging Face directory."""
    file = _beside(weights, "config.json")
    if file is None:
        return
    content = weight_files.read_json(file)
    family = content.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{str(file)!r}: expected model_type {' or '.join(map(repr, FAMILIES))}, got {family!r}")
    same_size = content.get("hidden_size", size.width) == size.width  # another size is told by its tensors
    expected = SETTINGS | ({"num_attention_heads": size.heads} if same_size else {})
    problems = [
        f"{key}: expected {value!r}, got {content[key]!r}"
        for key, value in expected.items()
        if content.get(key, value) != value
    ]
    if problems:
        raise ValueError(f"{str(file)!r}: expected the settings of this ViT; {'; '.join(problems)}")


def _without_distillation(taken: Tensors, tensors: Tensors) -> Tensors:
    """Drops the second position, which is that of the distillation token, where there is one."""
    positions = taken.get(_POSITIONS)
    if _DISTILLATION not in tensors or positions is None or positions.ndim != 3:
        return taken
    return {**taken, _POSITIONS: positions[:, [0, *range(2, positions.shape[1])]]}


def _fitted(name: str, tensor: Tensor, net: VitNet) -> Tensor:
    """Positions at the network's grid; anything else as it is."""
    if name != _POSITIONS or tensor.ndim != 3 or not _is_square(tensor.shape[1] - 1):
        return tensor
    return resize_positions(tensor, net.image_size // net.size.patch)


def _is_square(number: int) -> bool:
    return number >= 1 and round(number**0.5) ** 2 == number


def resize_positions(table: Tensor, side: int) -> Tensor:
    """Bicubic resizing of a position table to another grid; the position of CLS stays as it is.

    The numbers are those of ``interpolate_pos_encoding`` of ``transformers``, computed in fp64.

    Args:
        table: (1, 1 + g^2, D), CLS first, then rows of patches.
        side: g of the new table.

    Returns:
        (1, 1 + side^2, D), of the table's type; the table itself where its grid is that already.
    """
    old = round((table.shape[1] - 1) ** 0.5)
    if old == side:
        return table
    cls, patches = table[:, :1], table[:, 1:].double().unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, D, g, g)
    patches = interpolate(patches, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([cls, patches.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)
