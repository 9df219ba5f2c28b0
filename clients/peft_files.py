"""Adapters as PEFT's LoRA files: ``adapter_config.json`` and ``adapter_model.safetensors``, written and read.

::

    LoRA, LoRA-SB         W[rows] += B A       lora_A, lora_B of the module; the scale of PEFT is 1, ours lies in B
    q and v of one layer  W += [B_q 0; 0 0; 0 B_v] [A_q; A_v]                    one adapter of the sum of the ranks
    dense tensors         the module as it is now                                            ``modules_to_save``

A module is either saved whole or has an adapter: where both are needed, the adapter is merged into what is saved.

PEFT itself is not needed here. Source of the format: ``peft`` 0.21 (``LoraConfig``, ``get_peft_model_state_dict``,
``get_pattern_key``).

Legend: r rank, d_in and d_out width of input and of the adapted rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..aggregators.contract import Tensors
from . import sam_weights, vit_weights
from .lora import AdaptedLinear
from .merged import LowRankChange, check_mergeable, low_rank_changes, merged_state
from .network import Network
from .weight_files import listed, read_json, read_safetensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

NO_MODULES = "dummy-target-modules"
"""What ``target_modules`` says where no module has an adapter and all is in ``modules_to_save``; PEFT's own word."""

PREFIX = "base_model.model."
"""What the names in a PEFT file begin with."""

VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
"""Settings of PEFT's LoRA that make it another thing than ``W + s B A``."""

PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the weights of the base as they are."""

_SAM = ("vision_encoder.", "prompt_encoder.", "mask_decoder.")
_OFFICIAL = "image_encoder."
_VIT = ("vit.embeddings.", "vit.layers.", "vit.layernorm.", "head.")
_FUSED = re.compile(r"vision_encoder\.layers\.\d+\.attn\.qkv\.weight")


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """What a PEFT file changes in a network, in our names.

    Args:
        changes: Low-rank changes of weights, of scale 1: it lies in B. Read from a file, those of a fused projection
            are parted into q, k and v, so that ``adapter`` and ``rows`` are those of LoRA in our networks.
        saved: Tensors that take the place of the base's.
    """

    changes: tuple[LowRankChange, ...]
    saved: Tensors


# --- writing ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def peft_adapter(network: Network, touched: Collection[str]) -> PeftAdapter:
    """What a network adds to its base, as PEFT can hold it: one adapter per weight, everything else module by module.

    Args:
        network: With its adapters.
        touched: Names of all tensors beside those of adapters that are not those of the base any more.

    Raises:
        ValueError: it has adapters that are no changes of weights, or one of the tensors belongs to no layer.
    """
    check_mergeable(network)
    whole = _saved_modules(network, touched)
    merged = merged_state(network)
    saved = {name: _plain(value) for name, value in merged.items() if name.rpartition(".")[0] in whole}
    changes = [change for change in low_rank_changes(network) if change.weight not in saved]
    fused = tuple(_fused(network, weight, list(of_it)) for weight, of_it in groupby(changes, lambda one: one.weight))
    return PeftAdapter(changes=fused, saved=saved)


def _saved_modules(network: Network, touched: Collection[str]) -> set[str]:
    """The layers that own tensors.

    Raises:
        ValueError: a tensor belongs to a module that is made of others, all of which PEFT would save with it.
    """
    owners = {name: name.rpartition(".")[0] for name in touched}
    bare = [name for name, owner in owners.items() if not _is_layer(network.get_submodule(owner))]
    if bare:
        raise ValueError(
            f"expected changes of layers, got changes of tensors that belong to none: {', '.join(sorted(bare))}; PEFT "
            "has no place for them. Use the format hf, which holds the whole model"
        )
    return set(owners.values())


def _is_layer(module: nn.Module) -> bool:
    """Whether it has no modules within, but for the adapters that PEFT's network does not have."""
    return isinstance(module, AdaptedLinear) or not any(module.children())


def _plain(value: Tensor) -> Tensor:
    """As it goes into a file: fp32, on the host, in one piece."""
    return value.detach().to("cpu", torch.float32).contiguous()


def _fused(network: Network, weight: str, changes: list[LowRankChange]) -> LowRankChange:
    """Changes of one weight as a single one of all its rows: the A below each other, the B in blocks."""
    d_out = network.get_parameter(weight).shape[0]
    B = changes[0].B.new_zeros(d_out, sum(len(change.A) for change in changes))
    first = 0
    for change in changes:
        B[slice(*change.rows), first : first + len(change.A)] = change.scaled
        first += len(change.A)
    return LowRankChange(
        adapter=changes[0].adapter,
        weight=weight,
        rows=(0, d_out),
        A=_plain(torch.cat([change.A for change in changes])),
        B=_plain(B),
    )


def write_adapter(adapter: PeftAdapter, folder: Path, base_class: type[nn.Module], names: Mapping[str, str]) -> None:
    """Writes the two files of an adapter.

    Args:
        adapter: At most one change per weight, of all its rows.
        folder: Where.
        base_class: Of the network that PEFT is to wrap.
        names: What modules of that network are called, where their name is another than ours.
    """
    changes = {_module(change.weight, names): change for change in adapter.changes}
    factors = {f"{module}.lora_A.weight": change.A for module, change in changes.items()}
    factors |= {f"{module}.lora_B.weight": change.B for module, change in changes.items()}
    saved = {f"{_module(name, names)}.{name.rpartition('.')[2]}": value for name, value in adapter.saved.items()}
    content = {f"{PREFIX}{name}": value for name, value in {**factors, **saved}.items()}
    (folder / WEIGHTS).write_bytes(save(content, metadata={"format": "pt"}))  # save_file makes it unreadable to others
    config = _config({module: len(change.A) for module, change in changes.items()}, saved, base_class)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _module(tensor: str, names: Mapping[str, str]) -> str:
    """The module a tensor belongs to, in the names of the network that PEFT wraps."""
    module = tensor.rpartition(".")[0]
    return names.get(module, module)


def _config(ranks: Mapping[str, int], saved: Iterable[str], base_class: type[nn.Module]) -> dict[str, Any]:
    """``adapter_config.json``. Alpha is the rank everywhere: PEFT's scale alpha / r is 1, as the scale lies in B."""
    rank = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    pattern = {f"^{re.escape(module)}": own for module, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {"base_model_class": base_class.__name__, "parent_library": base_class.__module__},
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks) or NO_MODULES,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in saved}) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def read_peft(folder: Path) -> PeftAdapter:
    """Reads a LoRA adapter that PEFT has saved for a Vision Transformer or a SAM of ``transformers``, or we have.

    Names may be those of ``transformers`` 4 or 5. Directions of a fused projection that a third of it does not use are
    left out there, so that our own files give back A and B of q and of v (but for directions where B is zero).

    Args:
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ValueError: a file is absent or damaged, it is another kind of adapter, or of another network.
    """
    config = _read_config(folder)
    content = {name.removeprefix(PREFIX): value for name, value in read_safetensors(_file(folder, WEIGHTS)).items()}
    factors = {name: value for name, value in content.items() if ".lora_" in name}
    rest = {name: value for name, value in content.items() if name not in factors}
    _check_tensors(folder, config, factors, rest)
    modules = dict.fromkeys(name.partition(".lora_")[0] for name in factors)
    ours = _our_names([*(f"{module}.weight" for module in modules), *rest])
    _check_names(folder, ours)
    changes = [_change(folder, config, module, ours[f"{module}.weight"], factors) for module in modules]
    return PeftAdapter(
        changes=tuple(part for change in changes for part in _parted(change)),
        saved={ours[name]: value.float() for name, value in rest.items()},
    )


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else "no such directory"
        raise ValueError(
            f"PEFT adapter {str(folder)!r}: expected {name} in the directory, got {found!r}; `save_pretrained` of PEFT "
            "writes it (with safe_serialization, its default)"
        )
    return folder / name


def _read_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of plain LoRA.

    Raises:
        ValueError: it is another kind of adapter.
    """
    config = read_json(_file(folder, CONFIG))
    where = f"PEFT adapter {str(folder)!r}"
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{where}: expected peft_type 'LORA', got {config.get('peft_type')!r}")
    found = [f"{name}: {config[name]!r}" for name in VARIANTS if config.get(name)]
    if config.get("bias", "none") != "none":
        found.append(f"bias: {config['bias']!r}")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        found.append(f"init_lora_weights: {config['init_lora_weights']!r}, which changes the base")
    if found:
        raise ValueError(
            f"{where}: expected plain LoRA, W + s B A, got {', '.join(found)}; merge it into its base with PEFT "
            "(merge_and_unload) and give the merged model as weights"
        )
    return config


def _check_tensors(folder: Path, config: Mapping[str, Any], factors: Tensors, rest: Tensors) -> None:
    """Raises ValueError for tensors that are neither factors of linear layers nor of ``modules_to_save``."""
    kinds = re.compile(r".+\.lora_[AB]\.weight")
    saved = tuple(config.get("modules_to_save") or ())
    modules = {name: name.rpartition(".")[0] for name in rest}
    strange = [
        *(name for name, value in factors.items() if not kinds.fullmatch(name) or value.ndim != 2),
        *(name for name, module in modules.items() if not any(_within(module, word) for word in saved)),
    ]
    other = {"lora_A": "lora_B", "lora_B": "lora_A"}
    alone = [n for n in factors if n not in strange and re.sub("lora_[AB]", lambda m: other[m[0]], n) not in factors]
    problems = (
        *listed("neither lora_A and lora_B of a linear layer nor of modules_to_save", strange),
        *listed("without its other factor", alone),
    )
    if problems:
        raise ValueError(f"PEFT adapter {str(folder)!r}: expected LoRA of linear layers; {'; '.join(problems)}")


def _within(module: str, word: str) -> bool:
    """Whether a module is one that an entry of ``modules_to_save`` means, or lies in it."""
    return re.search(rf"(^|\.){re.escape(word)}($|\.)", module) is not None


def _our_names(names: Iterable[str]) -> dict[str, str]:
    """Our name of every tensor."""
    names = list(names)
    if any(name.startswith((*_SAM, _OFFICIAL)) for name in names):
        return sam_weights.our_names(names)
    return {n: re.sub(r"^classifier\.", "head.", own) for n, own in vit_weights.our_names(names).items()}


def _check_names(folder: Path, ours: Mapping[str, str]) -> None:
    """Raises ValueError for names that are of no network of ours."""
    strange = [name for name, own in ours.items() if not own.startswith((*_SAM, *_VIT))]
    if strange:
        raise ValueError(
            f"PEFT adapter {str(folder)!r}: expected names of a Vision Transformer or a SAM of transformers; "
            f"{listed('unknown', strange)[0]}"
        )


def _change(folder: Path, config: Mapping[str, Any], module: str, weight: str, factors: Tensors) -> LowRankChange:
    """The change of one weight.

    Raises:
        ValueError: the factors are of another rank than the config says.
    """
    A, B = factors[f"{module}.lora_A.weight"].float(), factors[f"{module}.lora_B.weight"].float()
    rank = _said(config.get("rank_pattern"), module, config.get("r", 8))
    if len(A) != rank or B.shape[1] != rank:
        raise ValueError(
            f"PEFT adapter {str(folder)!r}: {module}: expected factors of rank {rank}, as its {CONFIG} says, got A "
            f"{tuple(A.shape)} and B {tuple(B.shape)}"
        )
    alpha = _said(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    scale = alpha / (sqrt(rank) if config.get("use_rslora") else rank)
    owner = weight.rpartition(".")[0]
    return LowRankChange(adapter=f"{owner}.lora", weight=weight, rows=(0, len(B)), A=A, B=scale * B)


def _said(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """What the first pattern that fits a module says: a regular expression for the end of its name."""
    fits = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(fits, otherwise)


def _parted(change: LowRankChange) -> Iterator[LowRankChange]:
    """A change of a fused projection [q | k | v] as those of its thirds, with the directions each of them uses."""
    if not _FUSED.fullmatch(change.weight):
        yield change
        return
    width = change.A.shape[1]
    for number, letter in enumerate("qkv"):
        rows = (number * width, (number + 1) * width)
        block = change.B[slice(*rows)]
        used = block.any(dim=0)
        if used.any():
            name = f"{change.adapter}_{letter}"
            yield replace(change, adapter=name, rows=rows, A=change.A[used], B=block[:, used])
