"""Checkpoints: everything a run needs to go on, written so that a kill at any moment loses at most one round.

::

    checkpoint/
        latest.json                     the one pointer: {"round": 7}
        round-0007/state.json           steps per hospital and phase, names of the memory files
        round-0007/server.safetensors   tensors/..., base/..., memory/..., stages/...
        memory/<hospital>-0005.safetensors   written only in rounds the hospital took part in

Every file is written beside its place, synced and renamed; the pointer is replaced last. The last two rounds are kept,
so that the last round can be run again and compared.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..aggregators.contract import ServerState, Setting, Tensors
from ..clients.hospital import Memory
from ..datasets.fingerprints import file_hash
from .files import file_stem, read_json, write_bytes, write_json
from .tensor_files import below, pack, unpack

Memories = Mapping[str, Memory]

SERVER = "server.safetensors"
"""File of a round: the state of the server."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after a round: the server's, every hospital's memory, and what the stages between them keep."""

    server: ServerState
    memories: Memories
    stages: Tensors = field(default_factory=dict)

    @property
    def round(self) -> int:
        """The last finished round."""
        return self.server.round


class Checkpoints:
    """The checkpoint folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> int | None:
        """The last round that was saved whole, None when there is none."""
        pointer = self.folder / "latest.json"
        return int(read_json(pointer, ("round",))["round"]) if pointer.exists() else None

    def rounds(self) -> list[int]:
        """The rounds that are there, the last one last; those after it were never finished."""
        latest = self.latest()
        kept = sorted(int(folder.name.removeprefix("round-")) for folder in self.folder.glob("round-*"))
        return [number for number in kept if latest is not None and number <= latest]

    def save(self, checkpoint: Checkpoint, changed: Collection[str]) -> None:
        """Saves the state after a round.

        Args:
            checkpoint: What to save.
            changed: Hospitals whose memory may have changed since the last save; only their files are written.
        """
        files = self._save_memories(checkpoint, changed)
        folder = self._round(checkpoint.round)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_bytes(folder / SERVER, pack(_server_tensors(checkpoint)))
        steps = {name: list(memory.steps) for name, memory in checkpoint.memories.items()}
        write_json(folder / "state.json", {"round": checkpoint.round, "steps": steps, "memory": files})
        write_json(self.folder / "latest.json", {"round": checkpoint.round})
        self._prune(checkpoint.round)

    def load(self, number: int, setting: Setting) -> Checkpoint:
        """The state after a round.

        Args:
            number: The round.
            setting: What the algorithm was initialised with; it never changes and is not saved.

        Raises:
            ValueError: it is not there or unreadable.
        """
        saved, memories = self.read(number)
        return Checkpoint(
            server=_server_state(number, setting, saved), memories=memories, stages=below("stages/", saved)
        )

    def read(self, number: int) -> tuple[dict[str, Tensor], dict[str, Memory]]:
        """The tensors of the server after a round, named ``tensors/...``, ``base/...`` and so on, and the memories.

        Raises:
            ValueError: it is not there or unreadable.
        """
        folder = self._round(number)
        try:
            state = read_json(folder / "state.json", ("steps", "memory"))
            saved, _ = unpack(folder / SERVER)
            return saved, {name: self._memory(name, state) for name in state["steps"]}
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{folder}: expected a whole checkpoint of round {number}: {error}") from error

    def server_hash(self, number: int) -> str:
        """SHA-256 of the file with the server's state after a round."""
        return file_hash(self._round(number) / SERVER)

    def _save_memories(self, checkpoint: Checkpoint, changed: Collection[str]) -> dict[str, str]:
        """Writes the changed memory files; returns the file of every hospital that has one."""
        files = dict(self._state(self.latest())["memory"]) if self.latest() is not None else {}
        for name in sorted(changed):
            files.pop(name, None)
            tensors = checkpoint.memories[name].named()
            if tensors:
                files[name] = f"{file_stem(name)}-{checkpoint.round:04d}.safetensors"
                write_bytes(self.folder / "memory" / files[name], pack(tensors))
        return files

    def _memory(self, name: str, state: Mapping[str, Any]) -> Memory:
        file = state["memory"].get(name)
        tensors = {} if file is None else unpack(self.folder / "memory" / file)[0]
        return Memory.of(tensors, state["steps"][name])

    def _state(self, number: int | None) -> Any:
        return read_json(self._round(number or 0) / "state.json", ("steps", "memory"))

    def _round(self, number: int) -> Path:
        return self.folder / f"round-{number:04d}"

    def _prune(self, newest: int) -> None:
        """Keeps the last two rounds and the memory files they name."""
        keep = {newest, newest - 1}
        for folder in self.folder.glob("round-*"):
            if int(folder.name.removeprefix("round-")) not in keep:
                shutil.rmtree(folder)
        used = {
            file for number in keep if self._round(number).exists() for file in self._state(number)["memory"].values()
        }
        for path in (self.folder / "memory").glob("*"):
            if path.name not in used:
                path.unlink()


def state_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 over every tensor and counter of a checkpoint: equal exactly when the states are bit-identical."""
    digest = hashlib.sha256(str(checkpoint.round).encode())
    groups = {"server": _server_tensors(checkpoint)}
    groups |= {name: memory.named() for name, memory in sorted(checkpoint.memories.items())}
    for group, tensors in groups.items():
        for name in sorted(tensors):
            value = tensors[name].detach().cpu().contiguous()
            digest.update(f"{group}/{name}/{value.dtype}/{tuple(value.shape)}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    steps = {name: list(memory.steps) for name, memory in sorted(checkpoint.memories.items())}
    digest.update(json.dumps(steps).encode())
    return digest.hexdigest()


def _server_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    server = checkpoint.server
    groups = {"tensors": server.tensors, "base": server.base, "memory": server.memory, "stages": checkpoint.stages}
    return {f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()}


def _server_state(number: int, setting: Setting, tensors: Tensors) -> ServerState:
    return ServerState(
        setting=setting,
        round=number,
        tensors=below("tensors/", tensors),
        base=below("base/", tensors),
        memory=below("memory/", tensors),
    )
