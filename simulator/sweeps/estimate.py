"""What a sweep will take before anything is run: runs that are left, what they send, time and disk.

Nothing is written but what the cache of volumes keeps. Counts are exact; the time is an estimate, and says what it
rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from textwrap import wrap
from typing import TYPE_CHECKING, TypeVar

from ...aggregators.contract import HospitalInfo
from ...clients import MODELS
from ..assembly import locate
from ..builder import called, leaves, resolve
from ..headline import HEADLINES, Task
from ..reports.page import UNDEFINED, Table, bytes_text, count_text, seconds_text
from ..resident import Resident
from ..rundir import environment
from ..runtime import prepare_device
from ..table import TableSetting
from .pace import Kind, Pace, measure, pace_of_runs, spent
from .traffic import Traffic, first_round
from .work import Slices, Work, count_slices, steps_alone, work_of

if TYPE_CHECKING:
    from ..config import Experiment
    from .plan import Cell, Plan, Variant

T = TypeVar("T", int, float)

WIDTH = 100
"""Columns of what is printed."""

PAPERS = 400_000
"""Bytes of the report and the rows of a small run."""

SETTINGS = 36
"""Most columns of what tells a variant apart."""


def headline(plan: Plan, paths: Mapping[str, str], out: Path) -> str:
    """What there is to do, in one sentence; the time only where runs of this sweep are done already.

    Args:
        plan: The sweep.
        paths: Folder of every cell's run by its key, relative to ``out``.
        out: Folder of all runs.
    """
    found = [spent(out / paths[cell.key]) for cell in plan.cells]
    done = [run.seconds for run in found if run is not None]
    left = len(found) - len(done)
    text = f"sweep {plan.name}: {count_text(len(found), 'run')}, {len(done)} done before"
    if done and left:
        text += f"; about {seconds_text(left * fmean(done))} for the other {left}, as long as those took"
    return text


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant or a reference of the plan.

    Args:
        variant: Which one.
        done: Its runs that are done.
        traffic: What its hospitals send; None where it cannot run, or nothing travels.
        seconds: Of its runs that are left; None where that is not known.
        size: Bytes that these will take; None where that is not known.
        problem: Why it cannot run.
    """

    variant: Variant
    done: int
    traffic: Traffic | None
    seconds: float | None
    size: int | None
    problem: str | None = None

    @property
    def left(self) -> int:
        """Its runs that are left."""
        return len(self.variant.cells) - self.done


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a sweep will take.

    Args:
        plan: The sweep.
        rows: Variants, then references.
        paces: What the time rests on, by kind of run.
        unknown: Why there is no time, or what it leaves out; None where nothing is missing.
        steps: Optimizer steps of one variant over all values and seeds; None where they are not known.
    """

    plan: Plan
    rows: tuple[Row, ...]
    paces: Mapping[Kind, Pace]
    unknown: str | None = None
    steps: int | None = None

    @property
    def done(self) -> int:
        """Runs that are done."""
        return sum(row.done for row in self.rows)

    @property
    def left(self) -> int:
        """Runs that are left."""
        return sum(row.left for row in self.rows)

    @property
    def seconds(self) -> float | None:
        """Of all runs that are left, one after the other."""
        return _sum(row.seconds for row in self.rows)

    @property
    def size(self) -> int | None:
        """Bytes that the runs that are left will take."""
        return _sum(row.size for row in self.rows)

    def text(self) -> str:
        """For a terminal."""
        parts = [self._head(), _variants(self.rows), _references(self.rows), self._tuning(), self._time(), self._disk()]
        return "\n\n".join(filter(None, [*parts, _filled(self.problems)]))

    @property
    def problems(self) -> list[str]:
        """Why which variants cannot run."""
        return [f"{row.variant.name} cannot run: {row.problem}" for row in self.rows if row.problem]

    def _head(self) -> str:
        sweep, compared = self.plan.sweep, [row for row in self.rows if row.variant.role == "variant"]
        size = f"{count_text(len(compared), 'variant')} x {count_text(len(sweep.seeds), 'seed')}"
        if sweep.select is not None:
            size += f" x {len(sweep.select.values)} values of {sweep.select.over}"
        runs = f"{count_text(len(self.plan.cells), 'run')} with references, {self.done} done before"
        return _filled([f"sweep {self.plan.name}: {self.plan.purpose}", f"base {sweep.base}: {size}; {runs}."])

    def _tuning(self) -> str:
        select = self.plan.sweep.select
        if select is None:
            return ""
        values, seeds = len(select.values), len(self.plan.sweep.seeds)
        cases = HEADLINES[self.plan.cells[0].experiment.model.task].cases
        steps = "" if self.steps is None else f", {self.steps:,} optimizer steps over all hospitals"
        return _filled(
            [
                f"tuning: {select.path} of each variant is the best of {list(select.values)} on validation {cases}: "
                f"{values} values x {count_text(seeds, 'seed')} = {values * seeds} runs{steps}."
            ]
        )

    def _time(self) -> str:
        if not self.left:
            return "time: nothing is left."
        if self.seconds is None:
            return _filled([f"time: not known. {self.unknown or 'Some runs cannot be made, as said below.'}"])
        head = f"time: about {seconds_text(self.seconds)} for {count_text(self.left, 'run')}, one after the other."
        lacking = [] if self.unknown is None else [self.unknown]
        return _filled([head, *lacking, *(_rests_on(kind, pace) for kind, pace in self.paces.items())])

    def _disk(self) -> str:
        if not self.left or self.size is None:
            return ""
        runs = count_text(self.left, "run")
        return f"disk: about {bytes_text(self.size)} for {runs}: checkpoints, predictions, reports."


def _rests_on(kind: Kind, pace: Pace) -> str:
    """What a pace was taken from."""
    model = called(MODELS, type(kind.model))
    what = f"{model} {kind.model.size} at {kind.model.image_size} px, batches of {kind.batch_size}, {kind.precision}"
    scored, rest = _SCORED[kind.model.task]
    speed = f"{pace.step_s:.3g} s for a step and {pace.slice_s:.3g} s for {scored} that is scored"
    if pace.runs:
        done = "1 run that is done" if pace.runs == 1 else f"{pace.runs} runs that are done"
        return f"It rests on {done} ({what}): {speed}."
    return (
        f"It rests on {speed}, measured now on noise with the method that trains most ({what}). {rest} and "
        f"rounds without steps are taken as {pace.rest_s:.0f} s a run."
    )


_SCORED: Mapping[Task, tuple[str, str]] = {
    "segmentation": ("a slice", "Surface scores, pictures"),
    "classification": ("an image", "Pictures"),
}
"""What is scored at a pace, and what of scoring that leaves out."""


# ---- tables ----------------------------------------------------------------------------------------------------------


def _variants(rows: Sequence[Row]) -> str:
    compared = [row for row in rows if row.variant.role == "variant"]
    settings = [_settings(row.variant) for row in compared]
    told = any(text and text != row.variant.name for text, row in zip(settings, compared, strict=True))
    header = ("variant", *(("settings",) if told else ()), "runs", "done", "parameters sent", "bytes up", "bytes down")
    cells = [
        (row.variant.name, *((text,) if told else ()), str(len(row.variant.cells)), str(row.done), *_sent(row.traffic))
        for row, text in zip(compared, settings, strict=True)
    ]
    note = "Parameters and bytes: of a hospital, mean over the hospitals, in round 1; bytes after all stages."
    return Table(header=header, rows=tuple(cells), note=note).text(WIDTH)


def _sent(traffic: Traffic | None) -> tuple[str, str, str]:
    if traffic is None:
        return UNDEFINED, UNDEFINED, UNDEFINED
    return f"{traffic.parameters_up:,.0f}", f"{traffic.bytes_up:,.0f}", f"{traffic.bytes_down:,.0f}"


def _references(rows: Sequence[Row]) -> str:
    made = [row for row in rows if row.variant.role != "variant"]
    if not made:
        return ""
    compared = [row.variant for row in rows if row.variant.role == "variant"]
    cells = [
        (row.variant.name, str(len(row.variant.cells)), str(row.done), _sharing(row.variant, compared)) for row in made
    ]
    return Table(header=("reference", "runs", "done", "of"), rows=tuple(cells)).text(WIDTH)


def _sharing(reference: Variant, compared: Sequence[Variant]) -> str:
    """Who is compared with a reference."""
    names = [variant.name for variant in compared if reference.name in variant.references.values()]
    if len(names) == len(compared):
        return "all variants"
    text = "; ".join(names)
    return text if len(text) <= WIDTH // 2 else f"{count_text(len(names), 'variant')}, {names[0]} the first"


def _settings(variant: Variant) -> str:
    """What tells a variant apart, in a few words."""
    text = ", ".join(f"{path}={value}" for path, value in leaves(variant.settings).items()) or "as the base"
    return text if len(text) <= SETTINGS else f"{text[: SETTINGS - 1]}…"


# ---- numbers ---------------------------------------------------------------------------------------------------------


def estimate(plan: Plan, *, data: Path | None = None, out: Path = Path("runs")) -> Estimate:
    """What a sweep will take.

    Args:
        plan: The sweep.
        data: Folder of the data, None for the data set's default.
        out: Folder of all runs; what is done there is not counted.

    Raises:
        ConfigError: every problem of data and settings that `wardround sweep` would find before the first run.
    """
    absent = _absent(plan, data)
    if absent is not None:
        return _without_data(plan, absent)
    counted = _Counted(plan, data, out)
    return counted.estimate()


def _absent(plan: Plan, data: Path | None) -> str | None:
    """Why the data of a sweep are not here; None where they are."""
    for cell in {repr(cell.experiment.data): cell for cell in plan.cells}.values():
        try:
            cell.experiment.data.locate(data)
        except ValueError as error:
            return f"The data are not here: {error}"
    return None


def _without_data(plan: Plan, absent: str) -> Estimate:
    """The plan with what is known of it everywhere: what a hospital sends."""
    traffic = _Traffics()
    rows = []
    for variant in plan.variants:
        experiment = replace(variant.cells[0].experiment, rounds=1)  # classes are those of `wardround table`
        found, problem = traffic.of(
            experiment, TableSetting.of(experiment).classes, [HospitalInfo(name="any", num_examples=1)]
        )
        rows.append(Row(variant=variant, done=0, traffic=found, seconds=None, size=None, problem=problem))
    return Estimate(plan=plan, rows=tuple(rows), paces={}, unknown=absent)


_UNKNOWN = (
    "Nobody has read all volumes yet, `wardround data prepare` does: how many slices there are to be scored is not "
    "known, nor how many steps an epoch has."
)


class _Traffics:
    """What hospitals send; counted once for all runs that send the same."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Traffic | None, str | None]] = {}

    def of(
        self, experiment: Experiment, num_classes: int, hospitals: Sequence[HospitalInfo]
    ) -> tuple[Traffic | None, str | None]:
        """What a run's hospitals send, or why it cannot run."""
        names = ("model", "method", "aggregator", "ranks", "stages", "training", "cohort")
        parts = [resolve(getattr(experiment, name)) for name in names]
        if hasattr(experiment.method, "draw"):  # what a schedule draws is another for every seed
            parts.append((experiment.seed, experiment.rounds))
        key = repr([parts, type(experiment.aggregator), type(experiment.method), num_classes, hospitals])
        if key not in self._found:
            try:
                self._found[key] = first_round(experiment, num_classes, hospitals), None
            except ValueError as error:
                self._found[key] = None, str(error)
        return self._found[key]


def cannot_run(variants: Sequence[Variant], data: Path | None, resident: Resident) -> list[str]:
    """Why variants cannot run in their federations, found without data or weights; empty where nothing is known.

    Args:
        variants: The variants, with the cells that are to be run.
        data: Folder of the data.
        resident: What runs of this process share.
    """
    traffics, problems = _Traffics(), []
    for variant in variants:
        experiment = variant.cells[0].experiment
        federation = locate(experiment, data, resident).federation
        names = ["pooled"] if experiment.pooled else sorted(federation.hospitals)
        hospitals = [HospitalInfo(name=name, num_examples=100) for name in names]
        _, problem = traffics.of(experiment, len(federation.classes), hospitals)
        problems += [] if problem is None else [f"{variant.name} cannot run: {problem}"]
    return problems


class _Counted:
    """The runs of a sweep with their data: what each does, which are done, and at which pace."""

    def __init__(self, plan: Plan, data: Path | None, out: Path) -> None:
        from .execution import How, folders

        resident = Resident()
        paths = folders(plan, How(data=data, out=out), resident)
        self.plan = plan
        self.done = {cell.key: spent(out / paths[cell.key]) for cell in plan.cells}
        self.located = {cell.key: locate(cell.experiment, data, resident) for cell in plan.cells}
        self.slices: dict[str, Slices | None] = {}
        self.traffics = _Traffics()
        self.device = prepare_device(plan.cells[0].experiment.runtime)
        self.kinds = _kinds(plan.cells)

    def estimate(self) -> Estimate:
        """All of it."""
        works = {cell.key: self._work(cell) for cell in self.plan.cells}
        known = {key: work for key, work in works.items() if work is not None}
        unknown = None if all(self._slices(cell) for cell in self.plan.cells) else _UNKNOWN
        paces = self._paces(known)
        rows = tuple(self._row(variant, known, paces) for variant in self.plan.variants)
        first = [works[cell.key] for cell in self.plan.variants[0].cells]
        steps = _sum(None if work is None else work.steps for work in first)
        return Estimate(plan=self.plan, rows=rows, paces=paces, unknown=unknown, steps=steps)

    def _row(self, variant: Variant, works: Mapping[str, Work], paces: Mapping[Kind, Pace]) -> Row:
        left = [cell for cell in variant.cells if self.done[cell.key] is None]
        traffic, problem = self._traffic(variant.cells[0])
        nothing = variant.role != "variant" or traffic is None
        return Row(
            variant=variant,
            done=len(variant.cells) - len(left),
            traffic=None if nothing else traffic,
            seconds=_sum(self._seconds(cell, works, paces) for cell in left) if left else 0.0,
            size=_sum(self._size(variant, cell) for cell in left) if left else 0,
            problem=problem,
        )

    def _seconds(self, cell: Cell, works: Mapping[str, Work], paces: Mapping[Kind, Pace]) -> float | None:
        pace = paces.get(self.kinds[cell.key])
        return None if pace is None or cell.key not in works else pace.seconds(works[cell.key])

    def _traffic(self, cell: Cell) -> tuple[Traffic | None, str | None]:
        federation, slices = self.located[cell.key].federation, self._slices(cell)
        known = {} if slices is None else slices.train
        hospitals = [HospitalInfo(name=name, num_examples=known.get(name, 1)) for name in sorted(federation.hospitals)]
        if cell.experiment.pooled:
            hospitals = [HospitalInfo(name="pooled", num_examples=sum(known.values()))]
        return self.traffics.of(cell.experiment, len(federation.classes), hospitals)

    def _slices(self, cell: Cell) -> Slices | None:
        located = self.located[cell.key]
        key = f"{located.data_hash} {cell.experiment.windows.grid}"
        if key not in self.slices:
            self.slices[key] = count_slices(cell.experiment, located)
        return self.slices[key]

    def _work(self, cell: Cell) -> Work | None:
        slices, (traffic, _) = self._slices(cell), self._traffic(cell)
        if traffic is None:
            return None
        select = self.plan.sweep.select
        tested = 1.0 if select is None or cell.choice is None else 1 / len(select.values)
        if slices is not None:
            return work_of(cell.experiment, slices, traffic.phases, tested=tested)
        return steps_alone(cell.experiment, sorted(self.located[cell.key].federation.hospitals), traffic.phases)

    def _paces(self, works: Mapping[str, Work]) -> dict[Kind, Pace]:
        """One for every kind of run of which any is left."""
        kinds: dict[Kind, list[Cell]] = {}
        for cell in self.plan.cells:
            if cell.key in works:
                kinds.setdefault(self.kinds[cell.key], []).append(cell)
        waiting = {kind: cells for kind, cells in kinds.items() if any(self.done[cell.key] is None for cell in cells)}
        return {kind: self._of_runs(cells, works) or self._measured(cells) for kind, cells in waiting.items()}

    def _of_runs(self, cells: Sequence[Cell], works: Mapping[str, Work]) -> Pace | None:
        here = environment(self.device)["device"]
        found = [(self.done[cell.key], works[cell.key]) for cell in cells]
        return pace_of_runs([(run, work) for run, work in found if run is not None and run.device == here])

    def _measured(self, cells: Sequence[Cell]) -> Pace:
        """With the run that trains most."""
        trained = [(traffic.trained, cell) for cell in cells for traffic, _ in [self._traffic(cell)] if traffic]
        _, cell = max(trained, key=lambda pair: pair[0])
        slices, size = self._slices(cell), cell.experiment.model.image_size
        native = (size, size, size) if slices is None else slices.native
        return measure(cell.experiment, len(self.located[cell.key].federation.classes), self.device, native)

    def _size(self, variant: Variant, cell: Cell) -> int | None:
        """Bytes of a run: as those of its variant that are done, or two checkpoints, predictions, a report."""
        sizes = [run.size for each in variant.cells if (run := self.done[each.key]) is not None]
        if sizes:
            return round(fmean(sizes))
        slices, (traffic, _) = self._slices(cell), self._traffic(cell)
        if traffic is None:
            return None
        memories = len(self.located[cell.key].federation.hospitals) * traffic.memory_bytes
        predicted = slices.voxels if slices is not None and cell.experiment.evaluation.predictions else 0
        return round(2 * (traffic.server_bytes + memories)) + predicted + PAPERS


def _kinds(cells: Sequence[Cell]) -> dict[str, Kind]:
    """The kind of every run; a run without rounds is of one that trains, which scores at the same pace."""
    kinds = {cell.key: Kind.of(cell.experiment) for cell in cells}
    training = {replace(kinds[cell.key], batch_size=0): kinds[cell.key] for cell in cells if cell.experiment.rounds}
    idle = [cell.key for cell in cells if not cell.experiment.rounds]
    return {**kinds, **{key: training.get(replace(kinds[key], batch_size=0), kinds[key]) for key in idle}}


# ---- small helpers ---------------------------------------------------------------------------------------------------


def _sum(values: Iterable[T | None]) -> T | None:
    """The sum, None where a part of it is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known[1:], start=known[0]) if known and len(known) == len(found) else None


def _filled(lines: Iterable[str]) -> str:
    return "\n".join(part for line in lines for part in wrap(line, WIDTH))
