"""One process per row: it is asked with JSON on its standard input and answers with JSON on its standard output.

What stops it (no memory, a package that is not there, an engine that cannot do this work) becomes the row's ``error``,
and the rest go on.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from ..rundir import code_hash, now
from ..runtime import Runtime, choose_device
from . import compare, kernel, memory
from .measure import described, measure
from .rows import Row
from .workload import Workload

CHILD = "from wardround.simulator.bench.jobs import answer; answer()"
"""What the process of a row runs; ``-P`` keeps the folder that it starts in off its path."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process does.

    Args:
        kind: A name of :data:`KINDS`.
        engine: An engine, or what is measured.
        workload: The work.
        runtime: Where and how.
        repetitions: Of what the medians are taken.
        profile: File for a trace of one round.
        case: Number of a case of :mod:`.kernel`.
    """

    kind: str
    engine: str
    workload: Workload
    runtime: Runtime
    repetitions: int = 5
    profile: str | None = None
    case: int = 0

    @property
    def title(self) -> str:
        """What to call it while it runs."""
        work = self.workload
        if self.kind == "kernel":
            return f"kernel {self.engine} rank {work.rank}"
        cohort = self.runtime.cohort if self.engine == "ours" else ""
        return " ".join(f"{self.engine} {cohort} {work.method} {work.model} {work.hospitals} hospitals".split())

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """From the mapping that :func:`dataclasses.asdict` makes."""
        nested = {"workload": Workload(**values["workload"]), "runtime": Runtime(**values["runtime"])}
        return cls(**{**values, **nested})

    def failed(self, reason: str) -> Row:
        """The row that says why there are no numbers."""
        section = {"engine": "engines", "host_memory": "memory", "device_memory": "memory"}.get(self.kind, self.kind)
        cohort = self.runtime.cohort if self.engine == "ours" else None
        return Row(section=section, engine=self.engine, cohort=cohort, error=reason, **described(self.workload))


def _engine(job: Job) -> list[Row]:
    profile = None if job.profile is None else Path(job.profile)
    row = measure(job.engine, job.workload, job.runtime, job.repetitions, profile)
    if job.engine != "ours":
        return [row]
    stack = job.runtime.stack if job.runtime.cohort == "stacked" else 1
    return [replace(row, cohort=job.runtime.cohort, stack=stack, features_mb=job.runtime.features_mb)]


def _kernel(job: Job) -> list[Row]:
    found = kernel.measure(
        kernel.CASES[job.case], turns=job.repetitions, seed=job.workload.seed, device=choose_device(job.runtime.device)
    )
    return [
        Row(
            section="kernel",
            engine=f"{row.route} {row.case.name}",
            hospitals=row.case.hospitals,
            rank=row.case.rank,
            aggregation_ms=row.ms,
            speedup=row.speedup,
            speedup_low=row.speedup_low,
            speedup_high=row.speedup_high,
            difference=row.distance,
            repetitions=job.repetitions,
        )
        for row in found
    ]


KINDS: dict[str, Callable[[Job], list[Row]]] = {
    "engine": _engine,
    "host_memory": lambda job: [memory.host_memory(job.workload, job.runtime)],
    "device_memory": lambda job: [memory.device_memory(job.workload, job.runtime)],
    "stacked": lambda job: [compare.stacked(job.workload, job.runtime, job.repetitions)],
    "features": lambda job: [compare.features(job.workload, job.runtime, job.repetitions)],
    "kernel": _kernel,
}
"""What a process can do, by name."""


def rows_of(job: Job) -> list[Row]:
    """Does a job in this process; a job that cannot be done is one row with the reason."""
    if job.runtime.threads is not None:
        torch.set_num_threads(job.runtime.threads)
    try:
        rows = KINDS[job.kind](job)
    except (ImportError, ValueError, RuntimeError, MemoryError, OSError) as error:
        rows = [job.failed(_reason(error))]
    return [replace(row, **surroundings(job)) for row in rows]


def surroundings(job: Job) -> dict[str, Any]:
    """The columns that say where and when."""
    device = choose_device(job.runtime.device)
    return {
        "compile": job.runtime.compile and job.engine not in ("naive", "flower", "bare"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "code": code_hash(),
        "date": now(),
    }


def _reason(error: Exception) -> str:
    """The first line of an error; an engine without its package says how to get it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def run(job: Job) -> list[Row]:
    """Does a job in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", CHILD],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return [replace(job.failed(_ending(done)), **surroundings(job))]
    return [Row(**row) for row in json.loads(done.stdout)]


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended early."""
    if done.returncode == -signal.SIGKILL:
        return "killed by the system: out of memory?"
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1]


def answer() -> None:
    """The process of a row: one job in, its rows out. Whatever libraries print goes to standard error."""
    job = Job.read(json.loads(sys.stdin.read()))
    with contextlib.redirect_stdout(sys.stderr):
        rows = rows_of(job)
    print(json.dumps([asdict(row) for row in rows]))
