"""The command line: what is printed, where, with which exit code; one real run through all its commands."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wardround.simulator import cli
from wardround.simulator import run as run_module

COMMANDS = (
    *("run", "sweep", "report", "runs", "compare", "clean", "predict", "verify"),
    *("export", "replay", "table", "list", "bench", "data"),
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from the repository, so that the packaged file is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WARDROUND_DEBUG", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One run of ``tiny`` with images; its folder and what it printed."""
    work = tmp_path_factory.mktemp("cli")
    script = "import sys; from wardround.simulator.cli import main; sys.exit(main())"
    command = (sys.executable, "-I", "-c", script, "run", "tiny", "--set", "rounds=1", "--data", str(work), "--quiet")
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, env=one_thread)
    assert done.returncode == 0, done.stderr
    (path,) = (work / "runs" / "tiny").iterdir()
    return path, done.stdout


# ---- a real run ------------------------------------------------------------------------------------------------------


def test_run_prints_a_row_per_hospital_and_where_the_report_is(finished: tuple[Path, str]) -> None:
    path, printed = finished
    assert all(f"hospital-{number}" in printed for number in (1, 2, 3))
    assert f"report: {Path('runs') / 'tiny' / path.name / 'report.html'}" in printed
    assert (path / "report.html").stat().st_size > 1000
    assert json.loads((path / "manifest.json").read_text())["experiments_file"] == "the packaged experiments.yaml"


def test_a_finished_run_is_not_run_again(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, printed = finished
    work = path.parents[2]
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    monkeypatch.chdir(work)
    assert cli.main(["run", "tiny", "--set", "rounds=1", "--data", str(work), "--quiet"]) == 0
    again = capsys.readouterr().out
    assert again == f"this run was finished before; nothing to do\n{printed}"
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_verify_says_identical_and_exits_0_else_1(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = finished
    command = ["verify", str(path), "--data", str(path.parents[2]), "--allow-changed-environment"]
    assert cli.main(command) == 0
    assert "bit-identical" in capsys.readouterr().out
    rows = (path / "metrics.jsonl").read_text()
    try:
        (path / "metrics.jsonl").write_text(re.sub(r'("value": )[0-9.e-]+(\}\n)$', r"\g<1>0.123\g<2>", rows))
        assert cli.main(command) == 1
        assert "DIFFERENT" in capsys.readouterr().out
    finally:
        (path / "metrics.jsonl").write_text(rows)


def test_report_writes_a_page_with_or_without_images(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = finished
    assert cli.main(["report", str(path), "--no-images", "--out", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
    assert "data:image/png" not in (tmp_path / "page.html").read_text()
    assert "data:image/png" in (path / "report.html").read_text()


# ---- help, list, table -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"Example: wardround {command}" in capsys.readouterr().out


def test_help_names_the_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    named = re.findall(r"^    (\w+) ", capsys.readouterr().out, flags=re.MULTILINE)
    assert tuple(named) == COMMANDS


def test_list_shows_names_and_purposes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("experiments of the packaged experiments.yaml\n\nquickstart\n    Four phantom hospitals")
    assert "\nhippocampus-local\n" in printed


def test_list_shows_sweeps_after_experiments_with_their_size(capsys: pytest.CaptureFixture[str]) -> None:
    Path("experiments.yaml").write_text(
        "s: {purpose: To compare., sweep: {base: e, grid: {rounds: [1, 2]}, seeds: [0, 1, 2]}}\n"
        "bad: {sweep: {seeds: 3}}\ne: {purpose: To see.}\n"
    )
    assert cli.main(["list"]) == 0
    experiments, sweeps = capsys.readouterr().out.split("\nsweeps: ")
    assert experiments == "experiments of experiments.yaml\n\ne\n    To see.\n"
    assert "\ns\n    To compare.\n    size: 2 variants x 3 seeds, 21 runs with references\n" in sweeps
    assert "\nbad\n    size: not known, the definition has 2 problems\n" in sweeps


def test_list_reads_the_file_of_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("experiments.yaml").write_text("mine: {purpose: To see.}\n")
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().out == "experiments of experiments.yaml\n\nmine\n    To see.\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = "import sys; from wardround.simulator.cli import main; sys.exit(main(['list']))"
    command = f'{sys.executable} -I -c "{script}" | true'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_unicode_is_no_error() -> None:
    Path("experiments.yaml").write_text("mine: {purpose: Größe → Dice}\n", encoding="utf-8")
    script = "import sys; from wardround.simulator.cli import main; sys.exit(main(['list']))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = (sys.executable, "-P", "-c", script)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "    Gr??e ? Dice")


def test_table_json_has_the_keys_and_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["table", "--model", "sam-vit-b", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["flap_sam"] == {
        "method": "flap_sam",
        "rank": 32,
        "trained_parameters": 1846384,
        "parameters_per_round": 1846384,
        "bytes_up": 7385536,
        "bytes_down": 7385536,
        "paper_overhead": 1.38,
        "reduction": 90532927 / 1846384,
        "paper_reduction": 48.9,
    }


@pytest.mark.parametrize(("experiment", "full"), [("fed-ixi", 90_398_774), ("fed-kits19", 90_532_927)])
def test_table_counts_the_classes_of_the_experiments_data(
    experiment: str, full: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """FLAP-SAM's counts at one class and at two."""
    assert cli.main(["table", experiment, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["trained_parameters"] == full


def test_table_says_where_it_assumed_the_number_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON stays JSON. A data set that knows its classes, and a number on the command line, need no such line."""
    note = "classes: 2 assumed, as the data say how many there are only when they are read; --classes sets it.\n"
    assert cli.main(["table", "hippocampus"]) == 0
    assert capsys.readouterr().out.endswith(note)
    assert cli.main(["table", "hippocampus", "--json"]) == 0
    written = capsys.readouterr()
    assert (json.loads(written.out)[0]["trained_parameters"] > 0, written.err) == (True, note)
    for words in (["fed-kits19"], ["hippocampus", "--classes", "2"], ["hippocampus", "--classes", "2", "--json"]):
        assert cli.main(["table", *words]) == 0
        written = capsys.readouterr()
        assert ("assumed" in written.out, written.err) == (False, "")


def test_table_takes_an_experiment_and_options_win(capsys: pytest.CaptureFixture[str]) -> None:
    """LoRA on the tiny model: as many parameters per rank, so rank 6 has three times those of the entry's rank 2."""
    counts = []
    for words in ([], ["--rank", "6"], ["--set", "method.lora.rank=6"]):
        assert cli.main(["table", "tiny", "--json", *words]) == 0
        rows = json.loads(capsys.readouterr().out)
        counts += [row["trained_parameters"] for row in rows if row["method"] == "lora"]
    assert counts[1] == counts[2] == 3 * counts[0]


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "quikstart"], "no experiment 'quikstart', did you mean 'quickstart'?"),
        (["run", "tiny", "--set", "rounds=-1"], "--set rounds: expected at least 0, got -1"),
        (["run", "tiny", "--experiments", "absent.yaml"], "No such file or directory: absent.yaml"),
        (["run", "hippocampus", "--data", "absent"], "absent: expected a folder"),
        (["list", "--experiments", "bad.yaml"], "bad.yaml: line 2, column 1: key 'a' is given twice"),
        (["report", "absent"], "absent: expected a run directory"),
        (["verify", "absent"], "absent: expected a run directory"),
        (["table", "--model", "sam-vit-c"], "unknown model 'sam-vit-c', did you mean 'sam-vit-"),
        (["table", "--rank", "0"], "rank: expected at least 1, got 0"),
        (["table", "--set", "rounds=1"], "--set: expected an experiment to change"),
    ],
)
def test_a_mistake_gets_one_message_on_stderr_and_exit_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.yaml").write_text("a: {}\na: {}\n")
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("wardround: error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "words", [[], ["walk"], ["run"], ["run", "tiny", "--devic", "cpu"], ["run", "tiny", "--device", "gpu"]]
)
def test_wrong_words_get_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "usage: wardround" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 2, "error: No space left on device: runs/x"),
        (OSError("odd"), 2, "error: odd"),
        (ValueError("round 3: hospital a: the loss is nan"), 2, "error: round 3: hospital a: the loss is nan"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on after the last finished round"),
    ],
)
def test_what_stops_a_run_is_one_line_and_a_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run_module, "run", fail)
    assert cli.main(["run", "tiny", "--quiet"]) == code
    assert capsys.readouterr().err == f"wardround: {message}\n"


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(run_module, "run", fail)
    with pytest.raises(KeyError, match="ours"):
        cli.main(["run", "tiny", "--quiet"])


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--experiments", "absent.yaml", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("WARDROUND_DEBUG", "1")
    assert cli.main(["list", "--experiments", "absent.yaml"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_options_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def note(experiment: object, **options: object) -> None:
        seen.update(options, experiment=experiment)
        raise ValueError("enough")

    monkeypatch.setattr(run_module, "run", note)
    words = ["run", "tiny", "--data", "d", "--out", "o", "--device", "cpu", "--set", "seed=3", "--set", "rounds=4"]
    assert cli.main([*words, "--quiet", "--no-images", "--record-updates", "--allow-changed-environment"]) == 2
    experiment = seen.pop("experiment")
    assert (experiment.seed, experiment.rounds, experiment.runtime.device) == (3, 4, "cpu")
    assert seen == {
        "data": Path("d"),
        "out": Path("o"),
        "quiet": True,
        "images": False,
        "record_updates": True,
        "allow_changed_environment": True,
        "experiments_file": "the packaged experiments.yaml",
        "log": None,
    }
