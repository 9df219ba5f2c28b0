"""``wardround run``: from an experiment to a finished run directory, beginning or going on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..datasets.class_counts import class_counts, holders
from ..datasets.contract import Federation, has_classes
from .assembly import Assembled, Located, assemble, locate
from .assessment import HELD_SPLITS
from .checkpoint import Checkpoint
from .common_numbers import common_numbers
from .engine import asked_for, settle
from .federation import Round, Rows, Stopwatch, joined, run_round
from .files import write_json, write_text
from .modality import training_intensities
from .out_of_memory import memory_errors
from .progress import Progress
from .recording import instrument_rows, record_updates
from .reports.run import write_report
from .resident import Resident
from .results import COMMON
from .rundir import HELD, RunDirectory, changes, check_environment, environment, new_manifest, now, run_id
from .runtime import prepare_device
from .scoring import Scoring
from .seen_cases import write_trained_on
from .summary import summarise_run
from .tensorboard import check_log, log_afterwards, logged

if TYPE_CHECKING:
    from .config import Experiment


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the run is, and what there is to say about it.

    Args:
        path: Its folder.
        already_finished: Whether it had been finished before.
        note: What to say about that.
        environment: The part of it that says that other code or another machine made the run; empty: the same did.
        held: Whether it is done but for its test volumes, which wait.
    """

    path: Path
    already_finished: bool
    note: str = ""
    environment: str = ""
    held: bool = False


def run(
    experiment: Experiment,
    *,
    data: Path | None = None,
    out: Path = Path("runs"),
    quiet: bool = False,
    images: bool = True,
    record_updates: bool = False,
    allow_changed_environment: bool = False,
    experiments_file: str | None = None,
    resident: Resident | None = None,
    progress: Callable[..., Progress] = Progress,
    hold_test: bool = False,
    cell: Mapping[str, Any] | None = None,
    log: str | None = None,
) -> Outcome:
    """Runs an experiment, or goes on with it, or finds that it is finished.

    Args:
        experiment: What to run.
        data: Folder of the data, None for the data set's default.
        out: Folder of all runs.
        quiet: No progress bars.
        images: Keep slices of test volumes for the report.
        record_updates: Keep the updates of every round to come for ``wardround replay``.
        allow_changed_environment: Go on although code, device or threads changed since the run began.
        experiments_file: Where the experiment was defined, for the manifest.
        resident: What runs of this process share.
        progress: Makes the bars.
        hold_test: Stop before test volumes are scored; needs ``evaluation.test: last``. Without it the same run goes on
            there later.
        cell: Its place in a sweep, for the manifest.
        log: Where else rows are written: ``tensorboard``, or None.

    Raises:
        ValueError: bad input, with where and how to mend it. What was finished stays.
        OutOfMemoryError: there is no memory left; a ValueError too.
        InUseError: another process works on the run; a ValueError too.
        OSError: the disk is full or not writable.
    """
    if hold_test and experiment.evaluation.test != "last":
        raise ValueError("evaluation.test: expected 'last' in a run whose test volumes wait, got 'due'")
    check_log(log)
    device = prepare_device(experiment.runtime)
    located = locate(experiment, data, resident)
    directory, config = run_directory(experiment, located, out)
    if is_over(directory, hold_test=hold_test):
        log_afterwards(directory, log)
        return _over_before(directory, environment(device, experiment), images, record_updates)
    with directory.locked():
        if is_over(directory, hold_test=hold_test):  # by another process, meanwhile
            return _over_before(directory, environment(device, experiment), images, record_updates)
        record_updates = record_updates or directory.records_updates  # asked for before a kill in round 1
        _begin(directory, experiment, config, located, device, allow_changed_environment, experiments_file, cell)
        if record_updates:
            directory.update_manifest(record_updates=True)
        make = partial(assemble, as_begun(directory, experiment), located, device, quiet=quiet, resident=resident)
        with _recorded(directory), memory_errors(experiment, device), logged(directory, log):
            _complete(directory, make, partial(progress, quiet=quiet), images, hold_test)
    return Outcome(path=directory.path, already_finished=False, held=hold_test)


def is_over(directory: RunDirectory, *, hold_test: bool) -> bool:
    """Whether nothing is left to do but perhaps a report: it is finished, or waits where it is to wait."""
    state = None if directory.manifest is None else directory.manifest["state"]
    return state == "finished" or (hold_test and state == HELD)


def _over_before(directory: RunDirectory, here: Mapping[str, Any], images: bool, record_updates: bool) -> Outcome:
    """What there is to say of a run that is over."""
    if (directory.manifest or {})["state"] == HELD:
        return Outcome(path=directory.path, already_finished=False, held=True)
    return _finished_before(directory, here, images, record_updates)


@contextmanager
def _recorded(directory: RunDirectory) -> Iterator[None]:
    """Says in the manifest what stopped the run; a full disk must not hide the error itself."""
    try:
        yield
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(OSError):
            directory.update_manifest(state=state, error=f"{type(error).__name__}: {error}", finished=now())
        raise


def _complete(
    directory: RunDirectory,
    make: Callable[[], Assembled],
    bars: Callable[..., Progress],
    images: bool,
    hold_test: bool,
) -> None:
    """All that is left of a run. Tensors are held here and below, where an error is freed of them."""
    assembled = make()
    checkpoint = _work(directory, assembled, bars, images)
    if hold_test:  # after a kill there may be scores of test volumes, which wait again until a value is selected
        directory.drop(checkpoint.round, HELD_SPLITS)
        directory.update_manifest(state=HELD, rows=directory.count_rows())
    else:
        _finish(directory, assembled, checkpoint, images)


def _finished_before(directory: RunDirectory, here: Mapping[str, Any], images: bool, record_updates: bool) -> Outcome:
    """Does nothing but write a report that is missing; says when other code or another machine made the run."""
    if not (directory.path / "report.html").exists():
        write_report(directory.path, images=images)
    changed = changes((directory.manifest or {})["environment"], here)
    made = f"its environment was another: {'; '.join(changed)}; to repeat it, remove {directory.path}"
    other = made if changed else ""
    note = "this run was finished before; nothing to do" + (f" ({other})" if other else "")
    if not images and (directory.path / "overlays").exists():
        note += "; its report holds slices of images: write it again with `wardround report RUN --no-images`"
    if record_updates and not directory.records_updates:
        note += f"; its updates were not recorded: remove {directory.path} to run it again"
    return Outcome(path=directory.path, already_finished=True, note=note, environment=other)


def run_directory(experiment: Experiment, located: Located, out: Path) -> tuple[RunDirectory, Mapping[str, Any]]:
    """The folder of this experiment on this data, and the resolved config that names it."""
    from .config import identity, resolve

    identifier = run_id(identity(experiment), located.data_hash, located.weights_hash)
    config: dict[str, Any] = resolve(experiment)
    if experiment.start_from is not None:  # found again from any folder
        config["start_from"] = str(experiment.start_from.expanduser().absolute())
    return RunDirectory(out / experiment.name / identifier), config


def _begin(
    directory: RunDirectory,
    experiment: Experiment,
    config: Mapping[str, Any],
    located: Located,
    device: torch.device,
    allow_changed_environment: bool,
    experiments_file: str | None,
    cell: Mapping[str, Any] | None,
) -> None:
    """Writes config and manifest, or checks that an interrupted run may go on here."""
    from .yaml12 import dump

    here = environment(device, experiment)
    latest = directory.checkpoints.latest()
    if directory.manifest is None or latest is None:
        write_text(directory.path / "config.yaml", dump(config))
        manifest = new_manifest(
            experiment.name,
            directory.path.name,
            here,
            seed=experiment.seed,
            compile=experiment.runtime.compile,
            precision=experiment.training.precision,
            deterministic=experiment.runtime.deterministic,
            features_mb=experiment.runtime.features_mb,
            data_hash=located.data_hash,
            weights_hash=located.weights_hash,
            experiments_file=experiments_file,
            cell=cell,
            task=experiment.model.task,
            classes=list(located.federation.classes),
            **_class_counts(experiment, located.federation),
        )
        write_trained_on(directory.path, experiment, located)
        write_json(directory.path / "manifest.json", manifest)
        return
    compiled = experiment.runtime.compile  # a compiled model is equal to rounding only
    if not allow_changed_environment:
        begun = {**directory.manifest["environment"], **directory.manifest}
        asked = {"compile": compiled, **asked_for(experiment.runtime, directory.manifest)}
        check_environment(begun, {**here, **asked})
    continued = [*directory.manifest["continued"], {"after_round": latest, "at": now(), "environment": here}]
    directory.update_manifest(state="running", error=None, continued=continued, compile=compiled, rows=None)


def _class_counts(experiment: Experiment, federation: Federation) -> dict[str, Any]:
    """``class_counts``: images of every class per hospital (or outsider) and split; nothing where there are masks."""
    if not has_classes(experiment.data):
        return {}
    return {"class_counts": class_counts(holders(federation, COMMON), federation.classes)}


def _work(directory: RunDirectory, assembled: Assembled, bars: Callable[..., Progress], images: bool) -> Checkpoint:
    """All rounds that are left."""
    experiment = assembled.experiment
    engine = settle(directory.manifest or {}, experiment.runtime, assembled.federated, assembled.initial.server)
    drawn = common_numbers(assembled.federated, experiment.rounds)
    infos = {name: hospital.info for name, hospital in assembled.federated.hospitals.items()}
    hospitals = {name: {"num_examples": info.num_examples, "rank": info.rank} for name, info in infos.items()}
    started = {} if assembled.started_from is None else {"started_from": assembled.started_from}
    seen = training_intensities(experiment, assembled.federated, len((directory.manifest or {}).get("classes", [])))
    directory.update_manifest(**engine.recorded, common_numbers=drawn, hospitals=hospitals, **started, **seen)
    assembled = replace(assembled, federated=replace(assembled.federated, stack=engine.stack))
    checkpoint = _resume(directory, assembled)
    with bars(rounds=experiment.rounds, start=checkpoint.round) as progress:
        scoring = Scoring(assembled=assembled, progress=progress, folder=directory.path, images=images)
        if checkpoint.round == 0:
            _first_assessment(directory, scoring, checkpoint)
        while checkpoint.round < experiment.rounds:
            checkpoint = _one_round(directory, scoring, checkpoint)
    return checkpoint


def as_begun(directory: RunDirectory, experiment: Experiment) -> Experiment:
    """An experiment with what the run's manifest says of kept features and compiling: others are equal to rounding."""
    manifest = directory.manifest or {}
    begun = {"features_mb": manifest.get("features_mb", 0), "compile": manifest.get("compile", False)}
    return replace(experiment, runtime=replace(experiment.runtime, **begun))


def _resume(directory: RunDirectory, assembled: Assembled) -> Checkpoint:
    """The last checkpoint, or the initial state, saved as round 0; later rows are cut."""
    number = directory.checkpoints.latest()
    if number is None:
        directory.cut(-1)
        directory.checkpoints.save(assembled.initial, changed=list(assembled.initial.memories))
        return assembled.initial
    directory.cut(number)
    checkpoint = directory.checkpoints.load(number, assembled.initial.server.setting)
    check_fits(checkpoint, assembled.initial)
    return checkpoint


def check_fits(checkpoint: Checkpoint, initial: Checkpoint) -> None:
    """Raises ValueError when a checkpoint is of another model, algorithm or federation."""
    there = {name: tuple(value.shape) for name, value in checkpoint.server.tensors.items()}
    here = {name: tuple(value.shape) for name, value in initial.server.tensors.items()}
    differing = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if differing:
        raise ValueError(
            f"the checkpoint of round {checkpoint.round} is of another model: {len(differing)} tensors differ, "
            f"for example {differing[:3]}; remove the run's folder to begin again"
        )
    if checkpoint.memories.keys() != initial.memories.keys():
        raise ValueError(
            f"the checkpoint of round {checkpoint.round} is of other hospitals: expected "
            f"{sorted(initial.memories)}, got {sorted(checkpoint.memories)}; remove the run's folder to begin again"
        )


def _first_assessment(directory: RunDirectory, scoring: Scoring, checkpoint: Checkpoint) -> None:
    """Scores the untrained model, where evaluations are asked for. Repeated whole if round 1 was never finished."""
    directory.cut(-1)
    directory.append(scoring.round(checkpoint))


def _one_round(directory: RunDirectory, scoring: Scoring, before: Checkpoint) -> Checkpoint:
    """Trains, scores, records and saves one round."""
    watch = Stopwatch()
    finished = run_round(scoring.assembled.federated, before, scoring.progress, watch)
    with watch.stage("instruments_s"):
        measured = measure_round(scoring.assembled, finished)
        if directory.records_updates:
            record_updates(directory.path / "updates", finished.step, finished.checkpoint.round)
    with watch.stage("evaluate_s"):
        scores = scoring.round(finished.checkpoint)
    directory.append(joined(finished.rows, measured, scores))
    with watch.stage("checkpoint_s"):
        directory.checkpoints.save(finished.checkpoint, finished.changed)
    directory.append({"timing": [{"round": finished.checkpoint.round, **_rounded(watch.seconds)}]})
    return finished.checkpoint


def measure_round(assembled: Assembled, finished: Round) -> Rows:
    """The instruments of a round's server step, when they are due."""
    after = finished.checkpoint.server
    instruments, aggregator = assembled.experiment.instruments, assembled.federated.aggregator
    return instrument_rows(instruments, aggregator, finished.step, after, finished.checkpoint.round)


def _finish(directory: RunDirectory, assembled: Assembled, checkpoint: Checkpoint, images: bool) -> None:
    """Test volumes that waited, summary and report; then the run is finished."""
    experiment = assembled.experiment
    directory.drop(checkpoint.round, HELD_SPLITS if experiment.evaluation.test == "last" else ())
    with Progress(rounds=experiment.rounds, start=checkpoint.round, quiet=True) as progress:
        scoring = Scoring(assembled=assembled, progress=progress, folder=directory.path, images=images)
        directory.append(scoring.test(checkpoint))
    summary = summarise_run(directory, assembled.assessor.classes)
    write_json(directory.path / "summary.json", {**summary, **_privacy(assembled, summary["rounds"])})
    used = asdict(assembled.features.use)
    directory.update_manifest(state="finished", finished=now(), features=used, rows=directory.count_rows())
    write_report(directory.path, images=images)


def _privacy(assembled: Assembled, rounds: int) -> dict[str, str]:
    """``privacy``: what the run promises; nothing without privacy. A model that it started from saw cases before it."""
    guarantee = assembled.federated.guarantee(rounds)
    if guarantee is None:
        return {}
    started = assembled.started_from is not None
    alone = "; of the rounds of this run alone, what the model it started from has seen is not covered"
    return {"privacy": guarantee + (alone if started else "")}


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    stages = ("broadcast_s", "train_s", "aggregate_s", "instruments_s", "evaluate_s", "checkpoint_s")
    return {stage: round(seconds.get(stage, 0.0), 6) for stage in stages}
