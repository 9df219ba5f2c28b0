"""Rows in processes of their own: what comes back, and what comes of one that fails."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace

import pytest
import torch

from wardround.simulator.bench import jobs
from wardround.simulator.bench.jobs import Job, rows_of, run
from wardround.simulator.bench.workload import Workload
from wardround.simulator.runtime import Runtime

SMALL = Workload(hospitals=2, image_size=16, batch_size=2, rank=2, steps=1)
JOB = Job(
    kind="engine", engine="bare", workload=SMALL, runtime=Runtime(device="cpu", threads=1, features_mb=0), repetitions=1
)


def test_a_job_survives_its_way_through_json() -> None:
    assert Job.read(json.loads(json.dumps(asdict(JOB)))) == JOB


def test_a_row_of_a_fresh_process_whatever_libraries_print(monkeypatch: pytest.MonkeyPatch) -> None:
    child = (
        "from wardround.simulator.bench import jobs\n"
        "engine = jobs.KINDS['engine']\n"
        "jobs.KINDS['engine'] = lambda job: print('noise') or engine(job)\n"
        "jobs.answer()"
    )
    monkeypatch.setattr(jobs, "CHILD", child)
    (row,) = run(JOB)
    assert row.error is None
    assert (row.engine, row.device, row.threads, row.torch) == ("bare", "cpu", 1, torch.__version__)
    assert row.code is not None
    assert row.images_per_second is not None
    (here,) = rows_of(JOB)
    assert row.dice_or_loss == here.dice_or_loss


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (ModuleNotFoundError("No module named 'flwr'"), "No module named 'flwr'"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate"), "out of memory"),
        (MemoryError(), "out of memory"),
        (ValueError("aggregator: expected\nmore"), "aggregator: expected"),
    ],
)
def test_what_stops_a_row_is_its_error(raised: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job) -> None:
        raise raised

    monkeypatch.setitem(jobs.KINDS, "host_memory", fail)
    (row,) = rows_of(replace(JOB, kind="host_memory", engine="host"))
    assert (row.section, row.engine, row.error, row.hospitals) == ("memory", "host", reason, 2)
    assert row.date is not None


def test_a_mistake_of_the_program_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job) -> None:
        raise KeyError("ours")

    monkeypatch.setitem(jobs.KINDS, "engine", fail)
    with pytest.raises(KeyError):
        rows_of(JOB)


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by the system: out of memory?"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("raise KeyError('ours')", "KeyError: 'ours'"),
    ],
)
def test_a_process_that_ends_early_leaves_a_reason(child: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "CHILD", child)
    (row,) = run(JOB)
    assert (row.section, row.engine, row.error) == ("engines", "bare", reason)


def test_a_row_of_our_engine_says_how_it_took_hospitals() -> None:
    runtime = replace(JOB.runtime, cohort="stacked", stack=2)
    (row,) = rows_of(replace(JOB, engine="ours", runtime=runtime))
    assert (row.cohort, row.stack, row.features_mb) == ("stacked", 2, 0)


def test_titles_name_the_work() -> None:
    assert JOB.title == "bare flap_sam tiny 2 hospitals"
    assert (
        replace(JOB, engine="ours", runtime=Runtime(cohort="stacked")).title == "ours stacked flap_sam tiny 2 hospitals"
    )


def test_processes_do_not_see_the_folder_they_start_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="[]", stderr="")

    monkeypatch.setattr(subprocess, "run", note)
    assert run(JOB) == []
    assert seen[0][1:3] == ["-P", "-c"]
