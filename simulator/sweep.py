"""``wardround sweep``: the runs of a plan one after the other, in one process that holds base and data once.

::

    validate all -> plan.json -> every cell: skip | go on | run -> select on validation -> score test -> report

A cell is an ordinary run in an ordinary run directory: it is skipped, continued and verified like any other. What
stops one cell does not stop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .assembly import Located, locate
from .builder import ConfigError
from .plan import Cell, Plan, Variant
from .progress import SweepProgress
from .resident import Resident
from .run import run, run_directory
from .sweep_folder import forget_failure, record_failure, write_plan
from .sweep_records import SweepRecords
from .sweep_report import write_sweep_report


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """Where the sweep is and how far.

    Args:
        path: Its folder.
        report: Its page.
        finished: Runs of this process that are finished now, or wait because another value was selected.
        failed: Names of the runs that failed, with the reason.
        elsewhere: Runs that count and are not finished, and are not this process's.
    """

    path: Path
    report: Path
    finished: int
    failed: dict[str, str]
    elsewhere: int


@dataclass(frozen=True, kw_only=True)
class How:
    """How the runs of a sweep are made; as :func:`.run.run` takes it.

    Args:
        data: Folder of the data.
        out: Folder of all runs.
        quiet: No bars.
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
    """
    mine = plan.shard(*shard)
    resident = Resident()
    paths = folders(plan, how, resident)
    folder = how.out / plan.name
    write_plan(folder, plan, paths, experiments_file=how.experiments_file)
    failed: dict[str, str] = {}
    cells = [cell for cell in plan.cells if any(cell in variant.cells for variant in mine)]
    with SweepProgress(cells=len(cells), quiet=how.quiet) as progress:
        for cell in cells:
            _run_cell(cell, how, resident, folder, progress, failed, hold_test=cell.choice is not None)
        for variant in mine:
            for cell in selected(folder, variant):
                _run_cell(cell, how, resident, folder, progress, failed, hold_test=False)
    records = SweepRecords.load(folder)
    report = write_sweep_report(records, images=how.images)
    own = {cell.key for cell in cells}
    return SweepOutcome(
        path=folder,
        report=report,
        finished=len(cells) - len(failed),
        failed=failed,
        elsewhere=sum(cell.key not in own for cell in records.unfinished),
    )


def folders(plan: Plan, how: How, resident: Resident) -> dict[str, str]:
    """The run directory of every cell, relative to the folder of all runs; finds all data, trains nothing.

    Raises:
        ConfigError: every problem of the data and of what looks at them.
    """
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


def _check_validation(cell: Cell, located: Located) -> None:
    lacking = [name for name, cases in located.federation.hospitals.items() if not cases.validation]
    if cell.choice is not None and lacking:
        raise ValueError(
            f"select: expected validation volumes at every hospital, got none at {lacking[:5]}; set "
            "split.validation_fraction above 0, such as 0.2"
        )


def selected(folder: Path, variant: Variant) -> Sequence[Cell]:
    """The cells of a variant at the selected value; none where nothing is selected, or not yet."""
    if not variant.tuned:
        return []
    choice = SweepRecords.load(folder).named(variant.name).choice
    return [] if choice is None else [cell for cell in variant.cells if cell.choice == choice]


def _run_cell(
    cell: Cell,
    how: How,
    resident: Resident,
    folder: Path,
    progress: SweepProgress,
    failed: dict[str, str],
    *,
    hold_test: bool,
) -> None:
    """One run. What stops it is written down, and is no reason to stop the sweep."""
    progress.cell(cell.key)
    try:
        run(
            cell.experiment,
            data=how.data,
            out=how.out,
            quiet=how.quiet,
            images=how.images,
            allow_changed_environment=how.allow_changed_environment,
            experiments_file=how.experiments_file,
            resident=resident,
            progress=progress.bars,
            hold_test=hold_test,
        )
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        failed[cell.key] = f"{type(error).__name__}: {error}"
        record_failure(folder, cell, error)
        progress.message(f"{cell.key} failed: {error}")
    else:
        forget_failure(folder, cell)
