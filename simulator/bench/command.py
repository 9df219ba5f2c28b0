"""``wardround bench``: which rows there are, and what is printed of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from ..builder import unknown
from ..runtime import Runtime, choose_device
from . import ENGINES
from .jobs import Job, run
from .kernel import CASES
from .memory import slope
from .rows import Row, text, write_csv
from .workload import Workload

Part = Literal["engines", "memory", "stacked", "features", "kernel"]
"""A part of the bench."""

PARTS: tuple[Part, ...] = get_args(Part)

COHORTS = ("sequential", "stacked")
"""Ways in which our engine takes hospitals."""

QUICK_ENGINES = ("ours", "naive", "bare")
"""Those that are prepared in seconds."""

FEW, MANY = 200, 1000
"""Hospitals between which the slope of the host's memory is taken."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line asks for. What is None depends on the device and on ``quick``.

    Args:
        quick: The smallest of everything: minutes on two cores.
        parts: Names of :data:`PARTS`.
        engines: Names of :data:`~wardround.simulator.bench.ENGINES`.
        hospitals: Numbers of hospitals.
        methods: Names of :data:`~wardround.clients.methods.METHODS`.
        models: Names of :data:`~wardround.simulator.bench.workload.SHAPES`.
        cohorts: Names of :data:`COHORTS`, for our engine.
        work: What all workloads share; its hospitals, method and model are replaced.
        runtime: Device, threads, most hospitals in a step, and whether to compile.
        repetitions: Of what the medians are taken, >= 1.
        profile: Where to write a trace of one round of the first row of our engine.
    """

    quick: bool = False
    parts: tuple[str, ...] = PARTS
    engines: tuple[str, ...] = ("ours", "naive", "bare")
    hospitals: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    cohorts: tuple[str, ...] = COHORTS
    work: Workload = field(default_factory=Workload)
    runtime: Runtime = field(default_factory=Runtime)
    repetitions: int = 5
    profile: Path | None = None

    def __post_init__(self) -> None:
        for name, given, known in (
            ("part", self.parts, PARTS),
            ("engine", self.engines, ENGINES),
            ("cohort", self.cohorts, COHORTS),
        ):
            for word in given:
                if word not in known:
                    raise ValueError(unknown(f"unknown {name} {word!r}", word, known))
        if self.repetitions < 1:
            raise ValueError(f"repetitions: expected at least 1, got {self.repetitions!r}")

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU of CUDA. Raises ValueError where the device is not there."""
        return choose_device(self.runtime.device).type == "cuda"

    def workloads(self) -> list[Workload]:
        """The grid: models, methods, numbers of hospitals. Raises ValueError for a name that there is not."""
        models = self.models or (("tiny",) if self.quick else ("mini", "vit-b") if self.on_gpu else ("tiny", "mini"))
        methods = self.methods or (("flap_sam",) if self.quick else ("flap_sam", "decoder"))
        hospitals = self.hospitals or ((6, 100) if self.on_gpu and not self.quick else (6,))
        return [
            replace(self.work, model=model, method=method, hospitals=number)
            for model, method, number in product(models, methods, hospitals)
        ]


WORDS = ("parts", "engines", "methods", "models", "cohorts")
NUMBERS = ("image_size", "batch_size", "rank", "steps", "seed")
DEVICES = ("auto", "cpu", "cuda", "mps")


def settings(given: Mapping[str, Any]) -> Settings:
    """The settings that the words of a command line mean.

    Args:
        given: Words by name of the option; None, or False of a switch: not given.

    Raises:
        ValueError: a number that is none, a number out of range, an unknown name.
    """
    words = {name: word for name, word in given.items() if word is not None and word is not False}
    quick = "quick" in words
    lists: dict[str, Any] = {"engines": QUICK_ENGINES if quick else tuple(ENGINES)}
    lists |= {name: _names(name, words[name]) for name in WORDS if name in words}
    if "hospitals" in words:
        lists["hospitals"] = tuple(_number("hospitals", word) for word in _names("hospitals", words["hospitals"]))
    shared: dict[str, Any] = {name: words[name] for name in ("aggregator", "augment", "precision") if name in words}
    shared |= {name: _number(name, words[name]) for name in NUMBERS if name in words}
    how: dict[str, Any] = {"threads": 1} if quick else {}  # the smallest model is fastest on one
    how |= {name: _number(name, words[name]) for name in ("threads", "stack") if name in words}
    device = words.get("device", "auto")
    if device not in DEVICES:
        raise ValueError(unknown(f"unknown device {device!r}", device, DEVICES))
    return Settings(
        **lists,
        quick=quick,
        work=Workload(**shared),
        runtime=Runtime(**how, device=device, compile="compile" in words),
        repetitions=_number("repetitions", words.get("repetitions", 9 if quick else 5)),
        profile=Path(words["profile"]) if "profile" in words else None,
    )


def _names(option: str, word: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in word.split(",") if name.strip())
    if not names:
        raise ValueError(f"{option}: expected at least one, separated by commas, got {word!r}")
    return names


def _number(name: str, word: object) -> int:
    try:
        return int(str(word))
    except ValueError as error:
        raise ValueError(f"{name}: expected a whole number, got {word!r}") from error


def bench(settings: Settings, csv: Path | None = None) -> str:
    """Runs every row and returns the tables.

    Args:
        settings: What to run.
        csv: Where to write all columns of all rows, after every row; None: nowhere.

    Raises:
        ValueError: an unknown name, a device that is not there, or a file that cannot be written.
    """
    asked = list(jobs(settings))
    rows: list[Row] = []
    if csv is not None:
        _check_writable("--csv", csv)
    if settings.profile is not None:
        _check_writable("--profile", settings.profile)
    for number, job in enumerate(asked, start=1):
        print(f"[{number}/{len(asked)}] {job.title}", file=sys.stderr, flush=True)
        rows += run(job)
        if csv is not None:
            write_csv(csv, [*rows, *slopes(rows)])
    return text([*rows, *slopes(rows)])


def _check_writable(option: str, path: Path) -> None:
    """Raises ValueError where a file cannot be written: now, and not after hours of measuring."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
    except OSError as error:
        raise ValueError(f"{option}: expected a file that can be written, got {path}: {error.strerror}") from error


def jobs(settings: Settings) -> Iterator[Job]:
    """The processes of a bench, in order."""
    made = {
        "engines": engine_jobs,
        "memory": memory_jobs,
        "stacked": stacked_jobs,
        "features": feature_jobs,
        "kernel": kernel_jobs,
    }
    settings.workloads()  # a wrong name is found before the first process starts
    choose_device(settings.runtime.device)  # and a device that is not there
    for part in PARTS:
        if part in settings.parts:
            yield from made[part](settings)


def engine_jobs(settings: Settings) -> Iterator[Job]:
    """Every engine on every workload; ours in every cohort mode, and without keeping features."""
    plain = replace(settings.runtime, features_mb=0, features_disk_mb=0)
    profile = settings.profile
    for workload, engine in product(settings.workloads(), settings.engines):
        for cohort in settings.cohorts if engine == "ours" else ("sequential",):
            runtime = replace(plain, cohort=_cohort(cohort))
            traced = profile if engine == "ours" else None
            yield _job(settings, "engine", workload, runtime, engine=engine, profile=traced and str(traced))
            profile = None if traced else profile


def memory_jobs(settings: Settings) -> Iterator[Job]:
    """The host at two numbers of hospitals; a GPU at one hospital and at many."""
    smallest = replace(settings.workloads()[0], steps=1)
    runtime = replace(settings.runtime, cohort="sequential", features_mb=0)
    for number in (FEW, MANY):
        yield _job(settings, "host_memory", replace(smallest, hospitals=number), runtime, engine="host")
    for number in (1, MANY) if settings.on_gpu else ():
        yield _job(settings, "device_memory", replace(smallest, hospitals=number), runtime, engine="device")


def stacked_jobs(settings: Settings) -> Iterator[Job]:
    """Stacked against sequential, on every workload with the fewest hospitals."""
    for workload in _fewest(settings.workloads()):
        yield _job(settings, "stacked", workload, replace(settings.runtime, features_mb=0), engine="stacked")


def feature_jobs(settings: Settings) -> Iterator[Job]:
    """Kept features against none, for ``decoder``, whose encoder is frozen, on windows as they are."""
    decoders = [replace(workload, method="decoder", augment="none") for workload in settings.workloads()]
    runtime = replace(settings.runtime, cohort="sequential")
    for workload in _fewest(dict.fromkeys(decoders)):
        yield _job(settings, "features", workload, runtime, engine="kept features")


def kernel_jobs(settings: Settings) -> Iterator[Job]:
    """The server's step on low-rank products; quick: of one layer."""
    for number, case in enumerate(CASES):
        if not settings.quick or len(case.shapes) == 1:
            work = replace(settings.work, rank=case.rank, hospitals=case.hospitals)
            yield _job(settings, "kernel", work, settings.runtime, engine=case.name, case=number)


def _job(settings: Settings, kind: str, workload: Workload, runtime: Runtime, **more: object) -> Job:
    values = {"kind": kind, "workload": workload, "runtime": runtime, "repetitions": settings.repetitions, **more}
    return Job(**values)  # type: ignore[arg-type]  # checked by the class


def _cohort(name: str) -> Literal["sequential", "stacked"]:
    return "stacked" if name == "stacked" else "sequential"


def _fewest(workloads: Iterable[Workload]) -> list[Workload]:
    workloads = list(workloads)
    fewest = min(workload.hospitals for workload in workloads)
    return [workload for workload in workloads if workload.hospitals == fewest]


def slopes(rows: Iterable[Row]) -> list[Row]:
    """The row of the host's memory per hospital, once both of its measurements are there."""
    host = {row.hospitals: row for row in rows if row.engine == "host" and row.error is None}
    return [slope(host[FEW], host[MANY])] if host.keys() >= {FEW, MANY} else []
