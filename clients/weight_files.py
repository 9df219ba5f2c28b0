"""Files of weights: packaged with the program, a Hugging Face directory (whole or in shards), or one file.

What the tensors in them mean is said by :mod:`.sam_weights` and :mod:`.vit_weights`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..aggregators.contract import Tensors
from ..datasets.fingerprints import file_hash

ASSETS = Path(__file__).parent / "assets"
"""Folder of the packaged weights: ``<name>.safetensors`` and ``<name>.json``, which says how they were made."""


def find(weights: str, packaged: tuple[str, ...]) -> list[Path]:
    """The files that hold the tensors, sorted by name.

    Args:
        weights: Name of packaged weights, or a path.
        packaged: The names that this kind of model knows.

    Raises:
        ValueError: absent.
    """
    if weights in packaged:
        return [ASSETS / f"{weights}.safetensors"]
    path = Path(weights).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        known = ", ".join(repr(name) for name in ("random", *packaged))
        raise ValueError(
            f"weights {weights!r}: expected {known} or the path of a file or directory; there is none here"
        )
    return _in_directory(path)


def _in_directory(path: Path) -> list[Path]:
    """The safetensors files of a Hugging Face directory, whole or in shards."""
    index = path / "model.safetensors.index.json"
    shards = read_json(index).get("weight_map", {}).values() if index.is_file() else ["model.safetensors"]
    names = sorted(set(shards))
    absent = [name for name in names if not (path / name).is_file()]
    if absent or not names:
        found = sorted(entry.name for entry in path.iterdir())
        raise ValueError(
            f"weights {str(path)!r}: expected {', '.join(names) or 'shards'} in the directory, got {found!r}"
        )
    return [path / name for name in names]


def read(weights: str, packaged: tuple[str, ...], read_file: Callable[[Path], Mapping[str, Tensor]]) -> Tensors:
    """All tensors of a weights file or directory, in the file's own names.

    Args:
        weights: Name of packaged weights, or a path.
        packaged: The names that this kind of model knows.
        read_file: Reads one file, as :func:`read_safetensors` does.

    Raises:
        ValueError: absent or damaged.
    """
    files = find(weights, packaged)
    if weights in packaged:
        _check_packaged(weights, files[0])
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_file(file)
    return tensors


def _check_packaged(name: str, file: Path) -> None:
    if file_hash(file) != about(name)["sha256"]:
        raise ValueError(f"weights {name!r}: {file.name} is not the file of this release; install the package again")


def about(name: str) -> dict[str, Any]:
    """What the JSON beside packaged weights says: their hash and how they were made."""
    return read_json(ASSETS / f"{name}.json")


def read_safetensors(file: Path) -> Tensors:
    """The tensors of one ``.safetensors`` file.

    Raises:
        ValueError: damaged, or another kind of file.
    """
    try:
        return load_file(file)
    except Exception as error:  # damaged files raise almost anything
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> ValueError:
    """The error of a file that cannot be read, in one line."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"weights {str(file)!r}: expected a file of tensors, cannot read it ({reason})")


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several, of their digests in the order given.

    A file that has not changed is read once; its hash is remembered in the cache.

    Raises:
        ValueError: a file cannot be read, or the cache cannot be written.
    """
    digests = [file_hash(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: damaged.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: expected JSON, got a damaged file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r}: expected a JSON object, got {type(content).__name__}")
    return content


def misshapen(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the tensors with another shape than expected, with both."""
    return [
        f"{name} (expected {shapes[name]}, got {tuple(tensor.shape)})"
        for name, tensor in tensors.items()
        if tuple(tensor.shape) != shapes[name]
    ]


def listed(what: str, names: Iterable[str]) -> tuple[str, ...]:
    """``what (number): names``; nothing where there are none."""
    names = list(names)
    return (f"{what} ({len(names)}): {', '.join(names)}",) if names else ()
