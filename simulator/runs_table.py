"""``wardround runs``: every run and sweep below a folder, how far it is, what it reached, and the disk it takes.

Of a finished run only manifest and summary are read, so that thousands are listed in seconds. What cannot be read is
listed as damaged, with the reason. Needs no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import yaml12
from .builder import unknown
from .files import read_json
from .headline import SEGMENTATION, Headline, headline_of
from .locks import is_held
from .reports.page import UNDEFINED, Table, bytes_text, count_text, cut, number_text
from .results import RunRecords, mean
from .sweeps.records import PLAN, failure_of

STATES = ("finished", "held", "running", "stopped", "interrupted", "failed", "missing", "damaged")
"""What a run can be, in the order of the tables. ``stopped``: it says it is running, and no process works on it."""

WIDTH = 100
"""Columns of a terminal."""

NAME_WIDTH = 29
"""Columns of a run's name in the table: with them all other columns fit beside it."""


@dataclass(frozen=True, kw_only=True)
class CellOf:
    """A run's place in a sweep."""

    sweep: str
    variant: str
    seed: int
    choice: Any = None


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One run.

    Args:
        path: Its folder.
        experiment: The folder above it.
        id: Its name.
        state: One of :data:`STATES`.
        reason: Why it failed or cannot be read.
        cell: Its place in a sweep, None where no sweep names it.
        seed: Its seed.
        round: The last finished round, None before the first checkpoint.
        rounds: Rounds it is to have.
        headline: What it is judged by.
        score: Mean over the hospitals of that, on test cases at the last evaluation.
        began: When, UTC.
        ended: When it ended or was stopped, UTC.
        bytes: Of all its files.
        checkpoint_bytes: Of its checkpoints, in ``bytes`` too.
        cleaned: What ``wardround clean`` removed.
    """

    path: Path
    experiment: str
    id: str
    state: str
    reason: str | None = None
    cell: CellOf | None = None
    seed: int | None = None
    round: int | None = None
    rounds: int | None = None
    headline: Headline = SEGMENTATION
    score: float | None = None
    began: str | None = None
    ended: str | None = None
    bytes: int = 0
    checkpoint_bytes: int = 0
    cleaned: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepLine:
    """One sweep.

    Args:
        path: Its folder.
        name: Its name.
        cells: Runs it plans.
        states: How many of them are in which state.
        bytes: Of its own folder and of the runs that it names.
        reason: Why its plan cannot be read.
    """

    path: Path
    name: str
    cells: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Everything below a folder."""

    out: Path
    sweeps: tuple[SweepLine, ...]
    runs: tuple[RunLine, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the score of a run is called ``dice`` or ``accuracy``."""
        sweeps = [{**asdict(line), "path": line.path.as_posix()} for line in self.sweeps]
        return {"out": self.out.as_posix(), "sweeps": sweeps, "runs": [_plain(line) for line in self.runs]}


def _plain(line: RunLine) -> dict[str, Any]:
    """A run as JSON has it."""
    named = {"score": line.headline.key}
    plain = {named.get(key, key): value for key, value in asdict(line).items() if key != "headline"}
    return {**plain, "path": line.path.as_posix()}


def list_runs(out: Path, name: str | None = None) -> Listing:
    """Looks at all runs and sweeps below a folder.

    Args:
        out: The folder of all runs.
        name: Only the runs of this experiment, or the cells of this sweep; None: all.

    Raises:
        ValueError: no such folder, or nothing of this name in it.
    """
    if not out.is_dir():
        raise ValueError(f"{out}: expected the folder of all runs, but it is not there; give it with --out")
    plans = {path: _plan(path) for path in sweep_folders(out)}
    cells = {path: cell for plan in plans.values() for path, cell in plan.cells.items()}
    chosen = {path: plan for path, plan in plans.items() if name in (None, path.name)}
    wanted = {path for plan in chosen.values() for path in plan.cells} if name is not None else set()
    found = [path for path in run_folders(out) if name is None or path.parent.name == name or path in wanted]
    if name is not None and not chosen and not found:
        there = sorted({path.parent.name for path in run_folders(out)} | {path.name for path in plans})
        raise ValueError(f"{out}: {unknown(f'no experiment or sweep {name!r}', name, there)}")
    for plan in chosen.values() if name is not None else ():
        cells |= plan.cells  # a run of several sweeps: the one that was asked for
    lines = {path: run_line(path, cells.get(path)) for path in found}
    missing = [path for path in wanted if path not in lines]
    of_sweeps = {path: _sweep_line(path, plan, lines) for path, plan in chosen.items()}
    failures = {path: reason for plan in chosen.values() for path, reason in plan.failures.items()}
    runs = [*lines.values(), *(_without_folder(path, cells[path], failures.get(path)) for path in missing)]
    places = {(cell.sweep, cell.variant): place for place, cell in enumerate(reversed(cells.values()))}
    ordered = sorted(runs, key=lambda line: _order(line, places))
    return Listing(out=out, sweeps=tuple(of_sweeps.values()), runs=tuple(ordered))


def sweep_folders(out: Path) -> list[Path]:
    """Folders of sweeps right below a folder."""
    return [path for path in _folders(out) if (path / PLAN).is_file()]


def run_folders(out: Path) -> list[Path]:
    """Folders of runs, ``<experiment>/<id>``, below a folder."""
    return [path for above in _folders(out) for path in runs_in(above)]


def runs_in(folder: Path) -> list[Path]:
    """Folders of runs right below a folder: those with a manifest or config, and those that are called like a run."""
    return [path for path in _folders(folder) if is_run(path)]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, whole or not."""
    named = re.fullmatch(r"[0-9a-f]{12}", folder.name) is not None
    return named or any((folder / name).is_file() for name in ("manifest.json", "config.yaml"))


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder; links are not followed."""
    return sum(size for _, size in _files(folder))


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Every file with its size. What goes away meanwhile is not there."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield entry.path, entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return


def run_line(path: Path, cell: CellOf | None = None) -> RunLine:
    """What there is to say about one run.

    Args:
        path: Its folder.
        cell: Its place in a sweep; None: what its manifest says.
    """
    line = RunLine(path=path, experiment=path.parent.name, id=path.name, state="damaged", cell=cell)
    try:
        line = replace(line, bytes=folder_bytes(path), checkpoint_bytes=folder_bytes(path / "checkpoint"))
        return _read(line)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        known = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
        return replace(line, reason=known.replace(f"{path}/", "").replace(f"{path}: ", ""))


def _read(line: RunLine) -> RunLine:
    file = line.path / "manifest.json"
    if not file.is_file():
        if is_held(line.path):  # it has just begun
            return replace(line, state="running")
        raise ValueError("expected a manifest.json, but it is not there")
    manifest = read_json(file, ("state", "started"))
    line = replace(
        line,
        state=str(manifest["state"]),
        reason=_reason(manifest.get("error")),
        headline=headline_of(manifest),
        seed=manifest.get("seed"),
        began=manifest["started"],
        ended=manifest.get("finished"),
        cell=line.cell or _cell_of(manifest.get("cell")),
        cleaned=tuple(manifest.get("cleaned") or ()),
    )
    return _finished(line) if line.state == "finished" else _unfinished(line)


def _reason(error: str | None) -> str | None:
    """What stopped a run; None for an exception without a message where somebody interrupted it: the state says so."""
    return None if error is not None and error.rstrip(": ") == KeyboardInterrupt.__name__ else error


def _cell_of(entry: Mapping[str, Any] | None) -> CellOf | None:
    """The sweep that a run was made for, as its manifest has it."""
    if not entry:
        return None
    known = {key: entry[key] for key in ("sweep", "variant", "seed")}
    return CellOf(**known, choice=entry.get("choice"))


def _finished(line: RunLine) -> RunLine:
    file = line.path / "summary.json"
    if not file.is_file():
        raise ValueError("expected a summary.json in a finished run, but it is not there")
    key = line.headline.key
    summary = read_json(file, (key, "rounds"))
    rounds = int(summary["rounds"])
    return replace(line, round=rounds, rounds=rounds, score=summary[key]["mean"])


def _unfinished(line: RunLine) -> RunLine:
    """How far it is, from its checkpoint and rows."""
    state = "running" if is_held(line.path) else {"running": "stopped"}.get(line.state, line.state)
    pointer = line.path / "checkpoint" / "latest.json"
    done = int(read_json(pointer, ("round",))["round"]) if pointer.is_file() else None
    if state == "held":  # its test cases have not been scored
        rounds = int(yaml12.load(line.path / "config.yaml")["rounds"])
        return replace(line, state=state, round=done, rounds=rounds)
    records = RunRecords.load(line.path)
    score = mean(final.score for final in records.final())
    return replace(line, state=state, round=done, rounds=int(records.config["rounds"]), score=score)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The cells of a sweep by the folder of their run; what stopped some; why it cannot be read."""

    cells: Mapping[Path, CellOf] = field(default_factory=dict)
    failures: Mapping[Path, str] = field(default_factory=dict)
    reason: str | None = None


def _plan(folder: Path) -> _Plan:
    try:
        entries = read_json(folder / PLAN, ("cells",))["cells"]
        paths = {entry["key"]: folder.parent / entry["path"] for entry in entries}
        keys = ("variant", "seed", "choice")
        cells = {paths[entry["key"]]: CellOf(sweep=folder.name, **{k: entry[k] for k in keys}) for entry in entries}
        found = {paths[entry["key"]]: failure_of(folder, entry["key"], entry["path"]) for entry in entries}
        failures = {path: failure["error"] for path, failure in found.items() if failure is not None}
    except (ValueError, OSError, KeyError, TypeError) as error:
        return _Plan(reason=str(error) if isinstance(error, ValueError | OSError) else f"{PLAN} lacks {error}")
    return _Plan(cells=cells, failures=failures)


def _sweep_line(folder: Path, plan: _Plan, lines: Mapping[Path, RunLine]) -> SweepLine:
    counted = Counter(_state(path, plan, lines) for path in plan.cells)
    states = {state: counted[state] for state in (*STATES, *sorted(counted)) if counted[state]}
    size = folder_bytes(folder) + sum(lines[path].bytes for path in plan.cells if path in lines)
    return SweepLine(
        path=folder, name=folder.name, cells=len(plan.cells), states=states, bytes=size, reason=plan.reason
    )


def _state(path: Path, plan: _Plan, lines: Mapping[Path, RunLine]) -> str:
    state = lines[path].state if path in lines else "missing"
    stopped = state in ("missing", "interrupted", "failed")
    return "failed" if stopped and path in plan.failures else state


def _without_folder(path: Path, cell: CellOf, reason: str | None) -> RunLine:
    """A run of a sweep that was not begun, or that something stopped before it had a folder."""
    return RunLine(
        path=path,
        experiment=path.parent.name,
        id=path.name,
        state="missing" if reason is None else "failed",
        reason=reason,
        cell=cell,
        seed=cell.seed,
    )


def _order(line: RunLine, places: Mapping[tuple[str, str], int]) -> tuple[Any, ...]:
    """By experiment; first the runs of no sweep as they began, then sweep by sweep, variants as they are planned."""
    cell = line.cell
    if cell is None:
        return (line.experiment, "", 0, line.began or "", line.id)
    return (line.experiment, cell.sweep, -places.get((cell.sweep, cell.variant), 0), str(cell.choice), cell.seed)


# ---- text ------------------------------------------------------------------------------------------------------------


def listing_text(listing: Listing) -> str:
    """The listing for a terminal, at most 100 columns wide."""
    if not listing.sweeps and not listing.runs:
        return f"no runs below {listing.out}"
    groups: dict[str, list[RunLine]] = {}
    for line in listing.runs:
        groups.setdefault(line.experiment, []).append(line)
    parts = [_sweeps_text(listing.sweeps)] if listing.sweeps else []
    parts += [_group_text(listing.out / name, lines) for name, lines in groups.items()]
    total = sum(line.bytes for line in listing.runs)
    kept = sum(line.checkpoint_bytes for line in listing.runs)
    parts.append(f"{count_text(len(listing.runs), 'run')}, {bytes_text(total)}, checkpoints {bytes_text(kept)}; UTC")
    return "\n\n".join(parts)


def _sweeps_text(sweeps: Sequence[SweepLine]) -> str:
    others = [state for state in STATES[1:] if any(state in line.states for line in sweeps)]
    rows = tuple(
        (line.name, f"{line.states.get('finished', 0)}/{line.cells}", *_counts(line, others), bytes_text(line.bytes))
        for line in sweeps
    )
    table = Table(header=("sweep", "finished", *others, "disk"), rows=rows).text(width=WIDTH)
    return "\n".join([table, *(cut(f"{line.path}: {line.reason}", WIDTH) for line in sweeps if line.reason)])


def _counts(line: SweepLine, states: Sequence[str]) -> list[str]:
    return [str(line.states.get(state, UNDEFINED)) for state in states]


def _group_text(folder: Path, lines: Sequence[RunLine]) -> str:
    words = list(dict.fromkeys(line.headline.word for line in lines))
    score = words[0] if len(words) == 1 else "score"
    header = ("run", "seed", "state", "round", score, "when", "disk", "checkpoints")
    table = Table(header=header, rows=tuple(map(_row, lines))).text(width=WIDTH)
    reasons = [cut(f"{line.id} {line.state}: {' '.join(line.reason.split())}", WIDTH) for line in lines if line.reason]
    return "\n".join([str(folder), table, *reasons])


def _row(line: RunLine) -> tuple[str, ...]:
    return (
        _name(line),
        UNDEFINED if line.seed is None else str(line.seed),
        line.state,
        f"{UNDEFINED if line.round is None else line.round}/{UNDEFINED if line.rounds is None else line.rounds}",
        number_text(line.score),
        (line.ended or line.began or UNDEFINED).replace("T", " ")[:16],
        bytes_text(line.bytes),
        bytes_text(line.checkpoint_bytes),
    )


def _name(line: RunLine) -> str:
    chosen = "" if line.cell is None or line.cell.choice is None else f", {line.cell.choice}"
    return cut(line.id if line.cell is None else f"{line.id} {line.cell.variant}{chosen}", NAME_WIDTH)


def listing_json(listing: Listing) -> str:
    """The listing as JSON."""
    return json.dumps(listing.as_dict(), indent=2)
