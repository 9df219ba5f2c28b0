"""``wardround verify``: runs the last round again from the checkpoint before it and compares every bit."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .assembly import Located, assemble, locate
from .checkpoint import state_hash
from .config import Experiment, identity, load_resolved
from .engine import recorded_in
from .federation import Stopwatch, joined, run_round
from .progress import Progress
from .run import as_begun, check_fits, measure_round
from .rundir import RunDirectory, check_environment, environment, run_id
from .runtime import prepare_device
from .scoring import Scoring


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of it: the round, the two hashes of the state, and the rows that differ."""

    round: int
    recorded: str
    repeated: str
    differing_rows: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether state and rows are bit-identical."""
        return self.recorded == self.repeated and not self.differing_rows

    def __str__(self) -> str:
        if self.identical:
            return f"round {self.round} repeated: state {self.recorded[:16]} and all rows are bit-identical"
        state = "equal" if self.recorded == self.repeated else f"{self.recorded[:16]} then, {self.repeated[:16]} now"
        rows = "; ".join(self.differing_rows[:5]) or "none"
        return f"round {self.round} repeated with a DIFFERENT result: state {state}; differing rows: {rows}"


def verify(path: Path, *, data: Path | None = None, allow_changed_environment: bool = False) -> Verdict:
    """Repeats the last saved round of a run. Writes nothing into the run.

    Args:
        path: The run directory.
        data: Folder of the data, as for the run.
        allow_changed_environment: Compare although code, device or threads changed.

    Raises:
        ValueError: no run, no two checkpoints, or other data than the run had.
    """
    directory = RunDirectory(path)
    if directory.manifest is None:
        raise ValueError(f"{path}: expected a run directory with manifest.json")
    if "checkpoints" in directory.manifest.get("cleaned", []):
        raise ValueError(
            f"{path}: its checkpoints were removed by `wardround clean`, and no round can be repeated without them; to "
            "verify, run the experiment again in another folder (--out) and compare"
        )
    experiment = as_begun(directory, load_resolved(path / "config.yaml"))
    if experiment.rounds == 0:
        raise ValueError(f"{path}: nothing to repeat: the run has no rounds (rounds: 0), it only scores the base")
    device = prepare_device(experiment.runtime)
    if not allow_changed_environment:
        last = [directory.manifest, *directory.manifest["continued"]][-1]
        check_environment(last["environment"], environment(device, experiment))
    located = locate(experiment, data)
    _check_config(directory, experiment, located)
    number = directory.checkpoints.latest()
    if not number:
        raise ValueError(f"{path}: expected at least one finished round, got none")
    assembled = assemble(experiment, located, device)
    engine = recorded_in(directory.manifest)
    federated = replace(assembled.federated, stack=1 if engine is None else engine.stack)
    setting = assembled.initial.server.setting
    before = directory.checkpoints.load(number - 1, setting)
    check_fits(before, assembled.initial)
    with Progress(rounds=number, start=number - 1, quiet=True) as progress, tempfile.TemporaryDirectory() as folder:
        repeated = run_round(federated, before, progress, Stopwatch())
        scoring = Scoring(assembled=assembled, progress=progress, folder=Path(folder), images=False)
        waited = scoring.test(repeated.checkpoint) if _finished(directory, number, experiment) else {}
        scores = joined(scoring.round(repeated.checkpoint), waited)
        rows = joined(repeated.rows, measure_round(assembled, repeated), scores)
    return Verdict(
        round=number,
        recorded=state_hash(directory.checkpoints.load(number, setting)),
        repeated=state_hash(repeated.checkpoint),
        differing_rows=tuple(_differences(directory, rows, number)),
    )


def _finished(directory: RunDirectory, number: int, experiment: Experiment) -> bool:
    """Whether the rows of a round are all there, those that wait for the end too."""
    return number == experiment.rounds and (directory.manifest or {})["state"] == "finished"


def _check_config(directory: RunDirectory, experiment: Experiment, located: Located) -> None:
    """Raises ValueError when data or config are not those that the run is named after."""
    manifest = directory.manifest or {}
    if located.data_hash != manifest["data_hash"]:
        raise ValueError(f"{directory.path}: other data than the run was trained on; give their folder with --data")
    if run_id(identity(experiment), located.data_hash, located.weights_hash) != manifest["id"]:
        raise ValueError(
            f"{directory.path / 'config.yaml'}: not the config (or base weights) that the run is named after"
        )


def _differences(directory: RunDirectory, rows: dict[str, list[dict[str, Any]]], number: int) -> list[str]:
    found = []
    for name, repeated in rows.items():
        recorded = [row for row in directory.rows(name) if row["round"] == number]
        if len(recorded) != len(repeated):
            found.append(f"{name}.jsonl: {len(recorded)} rows then, {len(repeated)} now")
        found += [f"{then} then, {now} now" for then, now in zip(recorded, repeated, strict=False) if then != now]
    return found
