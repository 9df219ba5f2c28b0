"""``wardround clean``: gives back the disk that finished runs no longer need.

::

    checkpoint/    what a run goes on from; of a finished one only `wardround verify` needs it
    predictions/   label maps of the test volumes
    updates/       what `--record-updates` kept for `wardround replay`

A run that is not finished, or that a process works on, is left alone. What was removed stands in the manifest as
``cleaned``, written before the first file goes. Links are not followed. Needs no torch, but for the cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import read_json, write_json
from .locks import held
from .reports.page import Table, bytes_text, count_text
from .runs_table import folder_bytes, is_run, run_folders, runs_in
from .sweeps.records import PLAN

KINDS: Mapping[str, str] = {"checkpoints": "checkpoint", "predictions": "predictions", "updates": "updates"}
"""What can be removed of a run, and its folder in it."""

CACHE_KINDS = ("prepared", "features")
"""What can be removed of the cache; it is made again when it is needed."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A folder that can be removed of a finished run."""

    run: Path
    kind: str
    bytes: int

    @property
    def folder(self) -> Path:
        """What is removed."""
        return self.run / KINDS[self.kind]


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What was found.

    Args:
        parts: What can be removed.
        kept: Runs that are left alone, with the reason.
    """

    parts: tuple[Part, ...]
    kept: Mapping[Path, str]

    @property
    def bytes(self) -> int:
        """What it frees."""
        return sum(part.bytes for part in self.parts)


def look(paths: Sequence[Path], out: Path, kinds: Iterable[str]) -> Cleaning:
    """Finds what can be removed.

    Args:
        paths: Folders of runs, of sweeps, or of an experiment; none: everything below ``out``.
        out: The folder of all runs.
        kinds: Keys of :data:`KINDS`.

    Raises:
        ValueError: a folder holds no run.
    """
    runs = dict.fromkeys(run for path in paths or [out] for run in _runs_of(path))
    wanted = list(kinds)
    parts: list[Part] = []
    kept: dict[Path, str] = {}
    for run in runs:
        reason = _reason(run)
        if reason is not None:
            kept[run] = reason
            continue
        folders = {kind: run / KINDS[kind] for kind in wanted}
        linked = [folder.name for folder in folders.values() if folder.is_symlink()]
        if linked:
            kept[run] = f"{', '.join(linked)} is a link"
        parts += [
            Part(run=run, kind=kind, bytes=folder_bytes(folder))
            for kind, folder in folders.items()
            if folder.is_dir() and not folder.is_symlink()
        ]
    return Cleaning(parts=tuple(parts), kept=kept)


def clean(cleaning: Cleaning) -> Cleaning:
    """Removes what :func:`look` found; returns what was removed. Runs that changed meanwhile are left alone."""
    done: list[Part] = []
    kept = dict(cleaning.kept)
    for run in dict.fromkeys(part.run for part in cleaning.parts):
        mine = [part for part in cleaning.parts if part.run == run]
        try:
            _remove(run, mine)
        except ValueError as error:
            kept[run] = str(error).removeprefix(f"{run}: ")
        else:
            done += mine
    return Cleaning(parts=tuple(done), kept=kept)


def _remove(run: Path, parts: Sequence[Part]) -> None:
    """The manifest first: after a kill half-way nothing that is left is taken for whole."""
    if not run.is_dir():
        raise ValueError("it is gone")
    with held(run):
        reason = _reason(run)
        if reason is not None:
            raise ValueError(reason)
        manifest = read_json(run / "manifest.json")
        cleaned = dict.fromkeys([*manifest.get("cleaned", []), *(part.kind for part in parts)])
        write_json(run / "manifest.json", {**manifest, "cleaned": list(cleaned)})
        for part in parts:
            if not part.folder.is_symlink():
                shutil.rmtree(part.folder, ignore_errors=False)


def _runs_of(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ValueError(f"{path}: expected a folder of runs, but it is not there")
    if (path / PLAN).is_file():
        cells = read_json(path / PLAN, ("cells",))["cells"]
        folders = [path.parent / cell["path"] for cell in cells]
        return [folder for folder in folders if folder.is_dir()]
    found = [path] if is_run(path) else runs_in(path) or run_folders(path)
    if not found:
        raise ValueError(f"{path}: expected the folder of a run, of a sweep or of all runs, but there is no run in it")
    return found


def _reason(run: Path) -> str | None:
    """Why a run is left alone, None when it is not."""
    if run.is_symlink() or run.parent.is_symlink():
        return "it lies behind a link; give the folder itself"
    try:
        state = read_json(run / "manifest.json", ("state",))["state"]
    except (ValueError, OSError):
        return "its manifest cannot be read"
    if state != "finished":
        return f"it is not finished ({state})"
    if not (run / "summary.json").is_file():
        return "it has no summary.json"
    return None


def cleaning_text(cleaning: Cleaning, *, done: bool) -> str:
    """What was found or done, a row per folder of experiments.

    Args:
        cleaning: What :func:`look` or :func:`clean` gave.
        done: Whether it was removed.
    """
    groups = dict.fromkeys((part.run.parent, part.kind) for part in cleaning.parts)
    rows = []
    for folder, kind in groups:
        sizes = [part.bytes for part in cleaning.parts if (part.run.parent, part.kind) == (folder, kind)]
        rows.append((str(folder), kind, str(len(sizes)), bytes_text(sum(sizes))))
    lines = [Table(header=("folder", "what", "runs", "size"), rows=tuple(rows)).text(width=100)] if rows else []
    lines += _kept_text(cleaning.kept)
    verb = "freed" if done else "would free"
    return "\n".join([*lines, f"{verb} {bytes_text(cleaning.bytes)}" if rows else "nothing to remove"])


def _kept_text(kept: Mapping[Path, str]) -> list[str]:
    """How many runs are left alone for each reason, with one of them."""
    reasons: dict[str, list[Path]] = {}
    for run, reason in kept.items():
        reasons.setdefault(reason, []).append(run)
    return [f"left alone: {count_text(len(runs), 'run')}, {why} ({runs[0]})" for why, runs in reasons.items()]


# ---- the cache -------------------------------------------------------------------------------------------------------


def cache_sizes(cache: Path) -> dict[str, int]:
    """Bytes per kind of entry of the cache."""
    if not cache.is_dir():
        return {}
    folders = [path for path in sorted(cache.iterdir()) if path.is_dir() and not path.is_symlink()]
    return {path.name: folder_bytes(path) for path in folders}


def clean_cache(cache: Path) -> int:
    """Removes prepared volumes and kept features; returns how many bytes.

    Entries are moved aside before they are removed: a process that reads one goes on with what it has, and one that
    looks for it makes it again. What another process is writing is left alone.
    """
    from ..datasets.writing import beside

    freed = 0
    for kind in CACHE_KINDS:
        if (cache / kind).is_symlink():
            continue
        for entry in (cache / kind).glob("??/[!.]*"):
            if entry.is_symlink() or entry.parent.is_symlink():
                continue
            size = entry.stat().st_size if entry.is_file() else folder_bytes(entry)
            aside = beside(entry)
            try:
                entry.rename(aside)
            except FileNotFoundError:  # another process was first
                continue
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
            freed += size
    return freed


def cache_text(cache: Path, sizes: Mapping[str, int]) -> str:
    """What the cache holds."""
    rows = tuple((kind, bytes_text(size), "yes" if kind in CACHE_KINDS else "no") for kind, size in sizes.items())
    title = f"cache {cache}"
    return "\n".join([title, Table(header=("kind", "size", "removed"), rows=rows).text(width=100)]) if rows else title
