"""Prepared volumes on disk: each is read, normalised and resized once, and memory-mapped from then on.

::

    <cache>/prepared/<2 digits>/<key>/   images.npy (S', size, size) float32, labels.npy uint8, meta.json,
                                         truth.npy (S, H, W) uint8
    <cache>/facts/<2 digits>/<key>.json  what datasets/facts.py measures
    <cache>/hashes/<2 digits>/<key>.json hashes of source files (datasets/fingerprints.py)
    <cache>/features/...                 what the frozen start of a model made of windows (clients/features.py)

A key is a hash of all that decides what an entry holds: the bytes of the source files, the settings of the data set and
of the preparation, and the source code that reads, resizes and writes. Whatever changes gets another entry. An entry is
written beside its place and renamed: it is complete or not there, also after a kill, on a full disk, or with two
processes at work, of which the first one wins. Memory is bounded by one volume.

Legend: S slices, H rows and W columns of the native grid, S' prepared slices (S without ``windows.grid``).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .contract import Case, Dataset, Volume
from .facts import Facts, describe
from .fingerprints import (
    cache_folder,
    code_hash,
    file_hash,
    place_of,
    read_entry,
    settings_of,
    text_hash,
    using_cache,
    write_entry,
)
from .windows import PreparedVolume, Windows, prepared_chunks, prepared_shape
from .writing import UNFINISHED, beside, whole_folder

Announce = Callable[[int, int], None]

LEFTOVER_S = 24 * 3600
"""Age at which something unfinished belongs to a writer that was killed."""

ATTEMPTS = 3
"""How often an entry is made that another process takes away each time, because it found the one before damaged."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the volumes of a data set are prepared, and where they lie.

    Args:
        dataset: Reads the cases.
        num_classes: C.
        image_size: Rows and columns of a prepared slice.
        windows: Normalisation and grid; its depth does not matter.
    """

    dataset: Dataset
    num_classes: int
    image_size: int
    windows: Windows

    @property
    def folder(self) -> Path:
        """The cache."""
        return cache_folder()

    def prepare_all(self, cases: Sequence[Case], announce: Announce = lambda done, total: None) -> int:
        """Prepares every case that is not prepared yet, one after the other.

        Args:
            cases: The cases.
            announce: Told before the first and after every case.

        Returns:
            How many had to be prepared.

        Raises:
            ValueError: a case is bad, or the cache cannot be written.
        """
        with using_cache():
            remove_leftovers(self.folder)
        announce(0, len(cases))
        made = 0
        for done, case in enumerate(cases, start=1):
            made += self._load(case)[1]
            announce(done, len(cases))
        return made

    def load(self, case: Case) -> PreparedVolume:
        """A case, its slices memory-mapped; prepared now where it is not yet, or damaged, or changed.

        The tensors are for reading: what is written to them stays in this process.

        Raises:
            ValueError: the case is bad, or the cache cannot be written.
        """
        return self._load(case)[0]

    def facts(self, case: Case) -> Facts:
        """What a case is like, measured once.

        Raises:
            ValueError: the case is bad, or the cache cannot be written.
        """
        source = self._source(case)
        kept = _read_facts(source)
        return kept if kept is not None else self._measured(self._volume(case, source), source)

    def kept_facts(self, case: Case) -> Facts | None:
        """What :meth:`facts` measured before; None where nobody asked yet. Reads no volume."""
        return _read_facts(self._source(case))

    def _load(self, case: Case) -> tuple[PreparedVolume, bool]:
        """A case, and whether it had to be prepared."""
        source = self._source(case)
        entry = place_of("prepared", self._key(source))
        for attempt in range(ATTEMPTS):
            with using_cache():
                found = self._opened(entry, case)
            if found is not None:
                return found, attempt > 0
            self._build(entry, case, source)
        raise ValueError(f"{entry}: expected an entry of the cache that stays, but another process removes it")

    def _source(self, case: Case) -> str:
        """What decides the volume that is read."""
        code = code_hash(type(self.dataset), sys.modules[__name__])
        files = [file_hash(path) for path in case.files]
        return text_hash(files, case.name, case.site, settings_of(self.dataset), self.num_classes, code)

    def _key(self, source: str) -> str:
        return text_hash(source, self.image_size, self.windows.normalise, self.windows.grid)

    def _volume(self, case: Case, source: str) -> Volume:
        """Reads a case whose key is known."""
        volume = self.dataset.volume(case)
        if self._source(case) != source:
            raise ValueError(f"{case.image}: expected files that stay as they are while they are read; run again")
        return volume

    def _measured(self, volume: Volume, source: str) -> Facts:
        facts = describe(volume, self.num_classes)
        write_entry(place_of("facts", source, ".json"), asdict(facts))
        return facts

    def _opened(self, entry: Path, case: Case) -> PreparedVolume | None:
        """What an entry holds; None where there is none. A damaged one is removed."""
        if not entry.is_dir():
            return None
        try:
            return self._mapped(entry, case)
        except (ValueError, EOFError, KeyError, TypeError, FileNotFoundError):
            remove_entry(entry)
            return None

    def _mapped(self, entry: Path, case: Case) -> PreparedVolume:
        meta = json.loads((entry / "meta.json").read_bytes())
        slices, rows, columns = meta["native_shape"]
        native = (slices, rows, columns)
        shape = prepared_shape(native, self.image_size, self.windows)
        first, second, third = meta["spacing_mm"]
        return PreparedVolume(
            case=case,
            images=mapped(entry / "images.npy", shape, np.float32),
            labels=mapped(entry / "labels.npy", shape, np.uint8),
            truth=mapped(entry / "truth.npy", native, np.uint8),
            spacing_mm=(first, second, third),
            key=entry.name,
        )

    def _build(self, entry: Path, case: Case, source: str) -> None:
        """Makes an entry, whole or not at all."""
        volume = self._volume(case, source)
        if _read_facts(source) is None:
            self._measured(volume, source)
        with using_cache(), whole_folder(entry) as half:
            self._write(half, volume)

    def _chunks(self, volume: Volume) -> Iterator[tuple[Tensor, Tensor]]:
        """A few prepared slices at a time."""
        try:
            yield from prepared_chunks(volume, self.image_size, self.windows)
        except (RuntimeError, MemoryError) as error:  # what torch and numpy say when there is no memory
            raise ValueError(
                f"{volume.case.image}: expected slices that fit into memory, got image_size {self.image_size} and "
                f"windows.grid {self.windows.grid}: {' '.join(str(error).split())[:200]}"
            ) from error

    def _write(self, folder: Path, volume: Volume) -> None:
        """Slices as they are made, a few at a time; plain writes, which report a full disk where a mapping dies."""
        slices, rows, columns = volume.label.shape
        native = (slices, rows, columns)
        shape = prepared_shape(native, self.image_size, self.windows)
        with new_array(folder / "truth.npy", native, np.uint8) as truth_file:
            for truth in volume.label:
                truth_file.write(np.ascontiguousarray(truth).data)
        with (
            new_array(folder / "images.npy", shape, np.float32) as images_file,
            new_array(folder / "labels.npy", shape, np.uint8) as labels_file,
        ):
            for images, labels in self._chunks(volume):
                images_file.write(images.contiguous().numpy().data)
                labels_file.write(labels.contiguous().numpy().data)
        meta = {"case": volume.case.name, "native_shape": native, "spacing_mm": volume.spacing_mm}
        (folder / "meta.json").write_text(json.dumps(meta))


def _read_facts(source: str) -> Facts | None:
    with using_cache():
        kept = read_entry(place_of("facts", source, ".json"))
    try:
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()}
        return Facts(**fields)
    except (AttributeError, TypeError):  # no entry, or a damaged one
        return None


def mapped(path: Path, shape: tuple[int, ...], dtype: type) -> Tensor:
    """A .npy file as a tensor. Raises ValueError where it is not what was expected."""
    array = np.load(path, mmap_mode="c")  # copy on write: torch warns of arrays that are read-only
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path}: expected {shape} {np.dtype(dtype)}, got {array.shape} {array.dtype}")
    return torch.from_numpy(array)


@contextmanager
def new_array(path: Path, shape: tuple[int, ...], dtype: type) -> Iterator[IO[bytes]]:
    """A .npy file whose values are written in the block, and are on the disk after it."""
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, description)
        yield file
        file.flush()
        os.fsync(file.fileno())  # the rest needs none: what a crash loses of it is seen when it is opened


def remove_entry(entry: Path) -> None:
    """Moves an entry away before it is deleted, so that nobody sees half of it."""
    away = beside(entry)
    with suppress(FileNotFoundError):  # another process was first
        entry.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed writers left behind a day ago or longer; phantoms are made in the cache itself."""
    places = ("", "prepared/*/", "facts/*/", "hashes/*/", "features/*/")
    for path in [path for place in places for path in folder.glob(f"{place}.*{UNFINISHED}")]:
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
