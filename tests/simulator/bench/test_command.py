"""Which rows a bench has, what its words mean, and what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from wardround.simulator import cli
from wardround.simulator.bench import ENGINES, command
from wardround.simulator.bench.command import PARTS, Settings, bench, jobs, settings
from wardround.simulator.bench.jobs import Job
from wardround.simulator.bench.rows import Row
from wardround.simulator.runtime import Runtime

CPU = Runtime(device="cpu")


def test_the_grid_is_engines_by_models_by_methods_by_hospitals_and_ours_by_cohorts() -> None:
    asked = Settings(parts=("engines",), models=("tiny", "mini"), methods=("decoder",), hospitals=(2, 3), runtime=CPU)
    found = [(job.engine, job.runtime.cohort, job.workload.model, job.workload.hospitals) for job in jobs(asked)]
    assert found[:4] == [
        ("ours", "sequential", "tiny", 2),
        ("ours", "stacked", "tiny", 2),
        ("naive", "sequential", "tiny", 2),
        ("bare", "sequential", "tiny", 2),
    ]
    assert len(found) == 2 * 2 * 4
    assert all(job.runtime.features_mb == 0 for job in jobs(asked))


def test_quick_has_every_part_in_few_rows() -> None:
    found = list(jobs(Settings(quick=True, runtime=CPU)))
    assert [job.kind for job in found] == ["engine"] * 4 + ["host_memory"] * 2 + ["stacked", "features"] + [
        "kernel"
    ] * 2
    assert {job.workload.model for job in found} == {"tiny"}
    assert [job.workload.hospitals for job in found if job.kind == "host_memory"] == [200, 1000]


def test_features_are_those_of_decoders_on_windows_as_they_are() -> None:
    asked = settings({"parts": "features", "augment": "standard", "models": "tiny", "device": "cpu"})
    (job,) = jobs(asked)
    assert (job.workload.method, job.workload.augment, job.runtime.features_mb) == ("decoder", "none", 1024)


def test_the_trace_is_of_the_first_row_of_our_engine() -> None:
    asked = Settings(quick=True, engines=("bare", "ours"), profile=Path("trace.json"), runtime=CPU)
    assert [job.profile for job in jobs(asked)][:4] == [None, "trace.json", None, None]


def test_words_of_the_command_line() -> None:
    words = {"hospitals": "6, 100", "methods": "lora", "stack": "4", "threads": None, "compile": True, "quick": False}
    found = settings({**words, "steps": "3", "precision": "bf16", "device": "cpu", "profile": "t.json"})
    assert (found.hospitals, found.methods, found.models, found.quick) == ((6, 100), ("lora",), None, False)
    assert (found.work.steps, found.work.precision) == (3, "bf16")
    assert found.runtime == Runtime(device="cpu", stack=4, compile=True)
    assert found.profile == Path("t.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engines", "our"], "unknown engine 'our', did you mean 'ours'?"),
        (["--methods", "decodr"], "unknown method 'decodr', did you mean 'decoder'?"),
        (["--models", "tiny,vitb"], "unknown model 'vitb', did you mean 'vit-b'?"),
        (["--cohorts", "stack"], "unknown cohort 'stack', did you mean 'stacked'?"),
        (["--parts", "kernels"], "unknown part 'kernels', did you mean 'kernel'?"),
        (["--hospitals", "6,many"], "hospitals: expected a whole number, got 'many'"),
        (["--repetitions", "0"], "repetitions: expected at least 1, got 0"),
        (["--stack", "1"], "stack: expected at least 2, got 1"),
        (["--device", "gpu"], "unknown device 'gpu', did you mean 'cpu'?"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_2(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run", lambda job: pytest.fail(f"began {job.title}"))
    assert cli.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_row_that_fails_leaves_the_others_and_exit_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def some(job: Job) -> list[Row]:
        error = "out of memory" if job.engine == "naive" else None
        return [Row(section="engines", engine=job.engine, cohort=job.runtime.cohort, dice_or_loss=0.5, error=error)]

    monkeypatch.setattr(command, "run", some)
    file = tmp_path / "bench.csv"
    assert cli.main(["bench", "--quick", "--parts", "engines", "--device", "cpu", "--csv", str(file)]) == 0
    captured = capsys.readouterr()
    assert "engines naive sequential: out of memory" in captured.out
    assert "[4/4] bare flap_sam tiny 6 hospitals" in captured.err
    assert len(file.read_text().splitlines()) == 1 + 4


def test_the_slope_is_printed_when_both_of_its_rows_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def some(job: Job) -> list[Row]:
        number = job.workload.hospitals
        return [Row(section="memory", engine="host", hospitals=number, declared_mb=number, resident_mb=1.25 * number)]

    monkeypatch.setattr(command, "run", some)
    printed = bench(Settings(quick=True, parts=("memory",), runtime=CPU))
    assert "per added hospital   800        800.0       1000.0   1.25" in printed


def test_every_engine_and_part_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert ", ".join(ENGINES) in printed
    assert ",".join(PARTS) in printed
    assert "docs/performance.md" in printed


@pytest.mark.parametrize("option", ["parts", "engines", "hospitals", "models"])
def test_an_empty_list_is_a_mistake(option: str) -> None:
    with pytest.raises(ValueError, match=rf"{option}: expected at least one, separated by commas, got ','"):
        settings({option: ","})


def test_files_that_cannot_be_written_are_found_before_anything_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"--csv: expected a file .*folder: Is a directory"):
        bench(Settings(), csv=folder)
    with pytest.raises(ValueError, match=r"--profile: expected a file that .*folder"):
        bench(Settings(profile=folder))
