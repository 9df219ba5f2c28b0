"""``wardround sweep``: the runs of a plan one after the other, in one process that holds base and data once.

::

    validate all -> plan.json -> every cell: skip | go on | run -> select on validation -> score test -> report

A cell is an ordinary run in an ordinary run directory: it is skipped, continued and verified like any other. What
stops one cell does not stop the others; only a full disk, which would stop them all, stops the sweep.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...datasets.contract import task_of
from ..assembly import Located, locate
from ..builder import ConfigError
from ..files import read_json
from ..headline import HEADLINES
from ..locks import InUseError
from ..out_of_memory import OutOfMemoryError, release
from ..progress import SweepProgress
from ..reports.page import number_text, seconds_text
from ..reports.run import shows_images, write_report
from ..reports.sweep import write_sweep_report
from ..resident import Resident
from ..results import RunRecords, mean
from ..run import is_over, run, run_directory
from ..rundir import RunDirectory
from ..tensorboard import check_log, log_afterwards
from .estimate import cannot_run, headline
from .folder import forget_failure, record_failure, write_plan
from .plan import Cell, Plan, Variant
from .records import SweepRecords
from .results import SweepResults, analyse, results_json

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says where nothing more can be written: full disk, quota, limit on files, read-only disk."""


class NoSpaceError(ValueError):
    """Nothing can be written any more; no other run would fare better."""


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """Where the sweep is and how far.

    Args:
        path: Its folder.
        report: Its page.
        records: All its runs, those of other processes too.
        results: What they found out.
        did: Runs that were worked on, and not only found finished.
        failed: Names of the runs that failed, with the reason.
        busy: Names of runs that another process works on.
        elsewhere: Runs that count and are not finished, and are not this part's.
    """

    path: Path
    report: Path
    records: SweepRecords
    results: SweepResults
    did: int
    failed: dict[str, str]
    busy: tuple[str, ...]
    elsewhere: int


@dataclass(frozen=True, kw_only=True)
class How:
    """How the runs of a sweep are made; as :func:`..run.run` takes it.

    Args:
        data: Folder of the data.
        out: Folder of all runs.
        quiet: No bars, no lines.
        images: Keep slices of test volumes for the reports.
        allow_changed_environment: Go on with runs that another code or machine began.
        experiments_file: Where the sweep was defined.
        log: Where else rows are written, ``tensorboard`` or nothing.
    """

    data: Path | None = None
    out: Path = Path("runs")
    quiet: bool = False
    images: bool = True
    allow_changed_environment: bool = False
    experiments_file: str | None = None
    log: str | None = None


def run_sweep(plan: Plan, how: How, shard: tuple[int, int] = (1, 1)) -> SweepOutcome:
    """Runs what is not finished yet of a sweep, or of a part of it.

    Args:
        plan: The sweep.
        how: Where and how.
        shard: ``(i, n)``: the i-th of n parts.

    Raises:
        ConfigError: every problem of data and settings that can be found before the first run.
        NoSpaceError: nothing can be written any more; a ValueError too.
    """
    check_log(how.log)
    mine = plan.shard(*shard)
    names = {cell.key for variant in mine for cell in variant.cells}
    cells = [cell for cell in plan.cells if cell.key in names]
    resident = Resident()
    paths = folders(plan, how, resident)
    _check_runnable(mine, how, paths, resident)
    folder = how.out / plan.name
    changed = write_plan(folder, plan, paths, experiments_file=how.experiments_file)
    scored_later = sum(len({cell.seed for cell in variant.cells}) for variant in mine if variant.tuned)
    with SweepProgress(cells=len(cells) + scored_later, quiet=how.quiet) as progress:
        for line in filter(None, (headline(plan, paths, how.out), changed)):
            progress.message(line)
        worker = _Worker(plan=plan, how=how, resident=resident, folder=folder, paths=paths, progress=progress)
        worker.work(cells, hold_test=True)
        if scored_later:
            worker.work(selected(SweepRecords.load(folder), mine), hold_test=False)
    records = SweepRecords.load(folder)
    results = analyse(records)
    report = folder / "report.html"
    if worker.did or changed or not how.images or not (report.exists() and _is_told(folder, results)):
        report = write_sweep_report(records, images=how.images)
    return SweepOutcome(
        path=folder,
        report=report,
        records=records,
        results=results,
        did=len(worker.did),
        failed=worker.failed,
        busy=tuple(worker.busy),
        elsewhere=sum(cell.key not in names for cell in records.unfinished),
    )


def _is_told(folder: Path, results: SweepResults) -> bool:
    """Whether the report is of these results; it is not where runs of other machines were copied here."""
    written = folder / "results.json"
    return written.is_file() and read_json(written) == results_json(results)


def folders(plan: Plan, how: How, resident: Resident) -> dict[str, str]:
    """The run directory of every cell, relative to the folder of all runs; finds all data, trains nothing.

    Raises:
        ConfigError: runs of different tasks; every problem of the data and of what looks at them.
    """
    _check_one_task(plan)
    paths: dict[str, str] = {}
    problems: list[str] = []
    for cell in plan.cells:
        try:
            located = locate(cell.experiment, how.data, resident)
            _check_validation(cell, located)
            directory, _ = run_directory(cell.experiment, located, how.out)
            paths[cell.key] = directory.path.relative_to(how.out).as_posix()
        except ValueError as error:
            problems += [text for text in [str(error)] if text not in problems]
    if problems:
        raise ConfigError(problems)
    return paths


def _check_one_task(plan: Plan) -> None:
    """Raises ConfigError where some runs segment and others classify: their scores cannot be compared."""
    first: dict[str, str] = {}
    for cell in plan.cells:
        first.setdefault(task_of(cell.experiment.data), cell.key)
    if len(first) > 1:
        found = "; ".join(f"{task}: {key}" for task, key in first.items())
        raise ConfigError([f"sweep {plan.name}: expected runs of one task, got {found}; make a sweep of each"])


def _check_runnable(variants: Sequence[Variant], how: How, paths: Mapping[str, str], resident: Resident) -> None:
    """Raises ConfigError with all variants that could not run, of those that have not been begun."""
    begun = {key for key, path in paths.items() if (how.out / path / "manifest.json").is_file()}
    fresh = [variant for variant in variants if not any(cell.key in begun for cell in variant.cells)]
    problems = cannot_run(fresh, how.data, resident)
    if problems:
        raise ConfigError(problems)


def _check_validation(cell: Cell, located: Located) -> None:
    lacking = [name for name, cases in located.federation.hospitals.items() if not cases.validation]
    if cell.choice is not None and lacking:
        cases = HEADLINES[task_of(cell.experiment.data)].cases
        raise ValueError(
            f"select: expected validation {cases} at every hospital, got none at {lacking[:5]}; set "
            "split.validation_fraction above 0, such as 0.2"
        )


def selected(records: SweepRecords, variants: Sequence[Variant]) -> list[Cell]:
    """The cells of variants at the value that was selected; none where nothing is selected, or not yet."""
    tuned = [variant for variant in variants if variant.tuned]
    chosen = {cell.key for variant in tuned for cell in records.named(variant.name).chosen}
    return [cell for variant in tuned for cell in variant.cells if cell.key in chosen]


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """Makes runs one after the other, and keeps what became of them.

    Args:
        plan: The sweep.
        how: How they are made.
        resident: What they share.
        folder: The sweep's.
        paths: Folder of every run by its cell's key, relative to the folder of all runs.
        progress: Where they are announced.
        did: Names of those that were worked on.
        failed: Names of those that failed, with the reason.
        busy: Names of those that another process works on.
    """

    plan: Plan
    how: How
    resident: Resident
    folder: Path
    paths: dict[str, str]
    progress: SweepProgress
    did: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)

    def work(self, cells: Collection[Cell], *, hold_test: bool) -> None:
        """What is left of some cells; those that another process works on are tried again once at the end.

        Args:
            cells: The cells.
            hold_test: Test volumes wait where a setting is selected.
        """
        whole = [cell for cell in cells if self._is_whole(cell)]
        left = [cell for cell in whole if not self._is_over(cell, hold_test)]
        self.progress.skip(len(cells) - len(left))
        again = [cell for cell in left if not self._attempt(cell, hold_test)]
        for cell in again:
            if not self._attempt(cell, hold_test):
                self.busy.append(cell.key)

    def _is_whole(self, cell: Cell) -> bool:
        """Whether a run that was begun can be read and lost nothing; where not, that is written down."""
        directory = RunDirectory(self.how.out / self.paths[cell.key])
        try:
            if directory.manifest is not None:
                directory.check_whole()
        except ValueError as error:
            self._fail(cell, error)
            return False
        return True

    def _is_over(self, cell: Cell, hold_test: bool) -> bool:
        """Whether nothing is left to do, as its manifest says; what is known of an earlier failure is then old."""
        directory = RunDirectory(self.how.out / self.paths[cell.key])
        hold = hold_test and cell.choice is not None
        over = is_over(directory, hold_test=hold) and (hold or (directory.path / "report.html").exists())
        if over:
            if not self.how.images and shows_images(directory.path):
                write_report(directory.path, images=False)
            forget_failure(self.folder, cell)
            log_afterwards(directory, self.how.log)
        return over

    def _attempt(self, cell: Cell, hold_test: bool) -> bool:
        """One run. What stops it is written down, and is no reason to stop the sweep; False where others work on it."""
        self.progress.begin(cell.key)
        begun = time.monotonic()
        forget_failure(self.folder, cell)
        try:
            path = self._run(cell, hold_test and cell.choice is not None)
        except InUseError:
            self.progress.message(f"{cell.key}: another process works on it")
            return False
        except Exception as error:
            self._fail(cell, error)
            return True
        self.did.add(cell.key)
        self.progress.over(f"{cell.key}: {_said(path)}, {seconds_text(time.monotonic() - begun)}")
        return True

    def _run(self, cell: Cell, hold_test: bool) -> Path:
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        place = {"sweep": self.plan.name, "variant": cell.variant, "seed": cell.seed, "choice": cell.choice}
        outcome = run(
            cell.experiment,
            data=self.how.data,
            out=self.how.out,
            quiet=self.how.quiet,
            images=self.how.images,
            allow_changed_environment=self.how.allow_changed_environment,
            experiments_file=self.how.experiments_file,
            resident=self.resident,
            progress=self.progress.bars,
            hold_test=hold_test,
            cell=place,
            log=self.how.log,
        )
        return outcome.path

    def _fail(self, cell: Cell, error: Exception) -> None:
        """Writes down what stopped a run, and lets go of all that it held."""
        _stop_without_space(error)
        self.did.add(cell.key)
        self.failed[cell.key] = record_failure(self.folder, cell, self.paths[cell.key], error)
        if isinstance(error, OutOfMemoryError):
            self.resident.clear()  # the next run finds its own data again; those of this one may have been too many
        release(error)
        self.progress.failed(f"{cell.key}: failed: {self.failed[cell.key]}")


def _stop_without_space(error: BaseException) -> None:
    """Raises NoSpaceError where an error, or one behind it, says that nothing more can be written."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno in NO_SPACE:
            where = f": {behind.filename}" if behind.filename else ""
            raise NoSpaceError(
                f"{behind.strerror}{where}. The sweep stopped here, as no other run could be written either; make "
                "room (`wardround clean` removes the checkpoints of finished runs) and give the same command again"
            ) from error
        behind = behind.__cause__ or behind.__context__


def _said(path: Path) -> str:
    """The score of a run that is over: on test cases, or on validation cases where the others wait."""
    records = RunRecords.load(path)
    if records.finished:
        return f"{records.headline.word} {number_text(mean(final.score for final in records.final()))}"
    score = mean(final.score for final in records.final("validation"))
    return f"validation {records.headline.word_inside} {number_text(score)}"
