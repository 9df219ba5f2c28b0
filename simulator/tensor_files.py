"""Tensors by name in a file, in the order they had, with a few words beside them.

The safetensors format sorts by name; sums over a loaded mapping would then round otherwise than over the one that was
saved. So the order goes into the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..aggregators.contract import Tensors

_KEY = "wardround"


def pack(tensors: Tensors, words: Mapping[str, Any] | None = None) -> bytes:
    """Bytes of a file; copies, because tensors of one flat buffer share storage.

    Args:
        tensors: Tensors by name, in any dtype and on any device.
        words: Anything JSON can hold.
    """
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    return save(copies, metadata={_KEY: json.dumps({"order": list(tensors), "words": dict(words or {})})})


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors in the order in which they were packed, and the words.

    Raises:
        ValueError: the file is damaged, or of something else.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            beside = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in beside["order"]}, beside["words"]
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected tensors of a run, the file is damaged: {error}") from error


def below(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
