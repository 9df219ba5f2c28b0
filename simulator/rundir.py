"""The run directory: its name, its manifest, its rows, and the rule for going on with an interrupted run.

``runs/<experiment>/<id>/``, where id = first 12 hex digits of SHA-256 over the resolved config (without paths, device
and display), the hash of the data and the hash of the base weights: the same experiment on the same data is the same
folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..datasets.fingerprints import LIBRARIES, foreign_sources
from .checkpoint import Checkpoints
from .files import append_lines, cut_lines, drop_lines, read_json, read_lines, remove_unfinished, write_json
from .locks import held
from .plug_ins import classes_in
from .results import check_rows, lost

HELD = "held"
"""The state of a run whose rounds are done and whose test volumes wait."""

ROWS = ("metrics", "cases", "ledger", "instruments", "timing", "across", "confusion")
"""The JSON-lines files of a run, one row per line, each with its round."""

_PACKAGE = Path(__file__).parent.parent


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / "manifest.json").is_file() and (folder / "config.yaml").is_file()


class RunDirectory:
    """One run on disk.

    Args:
        path: Its folder.

    Attributes:
        log: Told of rows after they were added (:mod:`.tensorboard`); does nothing by itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log: Callable[[Mapping[str, list[dict[str, Any]]]], None] = lambda rows: None
        self.checkpoints = Checkpoints(path / "checkpoint")

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What ``manifest.json`` says, None before the run exists."""
        file = self.path / "manifest.json"
        if not file.exists():
            return None
        manifest: dict[str, Any] = read_json(file, ("state", "id", "environment", "data_hash", "continued"))
        return manifest

    @property
    def records_updates(self) -> bool:
        """Whether the run keeps the updates of its rounds."""
        return bool((self.manifest or {}).get("record_updates"))

    def update_manifest(self, **changes: Any) -> None:
        """Replaces entries of the manifest."""
        write_json(self.path / "manifest.json", {**(self.manifest or {}), **changes})

    def append(self, rows: Mapping[str, list[dict[str, Any]]]) -> None:
        """Adds rows by file, ``{"metrics": [...], "ledger": [...]}``, and tells the log."""
        for name, lines in rows.items():
            append_lines(self.path / f"{name}.jsonl", lines)
        self.log(rows)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All rows of one file."""
        return read_lines(self.path / f"{name}.jsonl")

    def count_rows(self) -> dict[str, int]:
        """Whole lines of every file of rows that is there."""
        files = {name: self.path / f"{name}.jsonl" for name in ROWS}
        return {name: file.read_bytes().count(b"\n") for name, file in files.items() if file.exists()}

    def check_whole(self) -> None:
        """Raises ValueError where a run that is over has other rows than when it ended, or cannot be read."""
        check_rows(self.path, self.manifest or {}, self.count_rows())
        if not (self.path / "config.yaml").is_file():
            raise ValueError(lost(self.path, "config.yaml is missing"))

    def cut(self, last_round: int) -> None:
        """Drops all rows of rounds after the last checkpoint."""
        for name in ROWS:
            cut_lines(self.path / f"{name}.jsonl", last_round)

    def drop(self, number: int, splits: Sequence[str]) -> None:
        """Drops the scores of splits after a round, all or part of which were written before a kill."""
        if splits:
            for name in ("metrics", "cases", "confusion"):
                drop_lines(self.path / f"{name}.jsonl", number, splits)
            drop_lines(self.path / "across.jsonl", number, ("validation", *splits))  # it is written whole, at the end

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out while this one works.

        Raises:
            InUseError: another process holds the run; a ValueError too.
        """
        with held(self.path):
            remove_unfinished(self.path)
            yield


def run_id(config: Mapping[str, Any], data_hash: str, weights_hash: str) -> str:
    """First 12 hex digits of SHA-256 over what determines the result."""
    text = json.dumps([config, data_hash, weights_hash], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def environment(device: torch.device, experiment: object = None) -> dict[str, Any]:
    """What bit-identity depends on beside the config: a run is continued only where all of it is the same.

    Args:
        device: Where it computes.
        experiment: What runs; classes in it from outside the package add ``plug_ins``, a hash of their source code by
            package.
    """
    outside = foreign_sources(classes_in(experiment))
    return {
        "code_hash": code_hash(),
        "device": _device_name(device),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
        **({"plug_ins": outside} if outside else {}),
    }


def check_environment(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError listing what changed since the run began.

    Args:
        then: The environment in the manifest.
        now: The present one.
    """
    changed = changes(then, now)
    if changed:
        raise ValueError(
            "this run was begun in another environment and would not end bit-identical ("
            + "; ".join(changed)
            + "). Restore it, or go on with --allow-changed-environment"
        )


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two environments, one text each."""
    return [f"{key}: {then.get(key)!r} then, {now[key]!r} now" for key in now if then.get(key) != now[key]]


@cache
def code_hash() -> str:
    """SHA-256 (12 hex digits) over the package's Python files, as they were when the process first asked."""
    digest = hashlib.sha256()
    folders = (_PACKAGE / name for name in ("aggregators", "clients", "datasets", "simulator"))
    files = [_PACKAGE / "__init__.py", *(file for folder in folders for file in folder.rglob("*.py"))]
    for file in sorted(files):
        digest.update(file.relative_to(_PACKAGE).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def new_manifest(experiment: str, identity: str, environment: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The manifest of a run that begins now."""
    return {
        "experiment": experiment,
        "id": identity,
        "wardround": metadata.version("wardround"),
        "environment": dict(environment),
        "continued": [],
        "cleaned": [],
        "rows": None,
        "command": _command(),
        "state": "running",
        "error": None,
        "started": now(),
        "finished": None,
        **more,
    }


def _command() -> str:
    """The command that began the run, "" where a script or a notebook did: their words are none of ours."""
    program, *words = sys.argv or [""]
    return shlex.join(["wardround", *words]) if Path(program).stem == "wardround" else ""


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _cpu_name() -> str:
    return f"{platform.machine()} {_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    """The processor's name where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
