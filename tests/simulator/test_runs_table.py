"""The listing of runs: states, numbers, sweeps, what is damaged, and how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import fill, make_plan, make_run

from wardround.simulator import cli
from wardround.simulator.locks import held
from wardround.simulator.runs_table import WIDTH, RunLine, folder_bytes, list_runs, listing_json, listing_text, run_line

IDS = [f"{number:012x}" for number in range(20)]


def test_a_finished_run_is_its_manifest_and_summary(tmp_path: Path) -> None:
    """Bytes: all files, and the 400 of the checkpoint with its pointer ``{"round": 2}`` of 12."""
    path = make_run(tmp_path / "tiny" / IDS[0], scores={"a": [{"dice": 0.5}], "b": [{"dice": 0.7}]})
    for name in ("metrics.jsonl", "cases.jsonl", "config.yaml"):
        (path / name).write_text("not read: [")
    line = run_line(path)
    assert line == RunLine(
        path=path,
        experiment="tiny",
        id=IDS[0],
        state="finished",
        seed=0,
        round=2,
        rounds=2,
        score=0.6,
        began="2026-03-01T08:00:00+00:00",
        ended="2026-03-01T09:30:00+00:00",
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        checkpoint_bytes=412,
    )


@pytest.mark.parametrize(("state", "shown"), [("running", "stopped"), ("failed", "failed"), ("held", "held")])
def test_a_run_is_running_while_a_process_works_on_it(tmp_path: Path, state: str, shown: str) -> None:
    """A process that died leaves the word ``running`` behind, and no lock."""
    path = make_run(tmp_path / "tiny" / IDS[0], state=state, rounds=5, done=3, manifest={"error": "why"})
    assert run_line(path).state == shown
    with held(path):
        assert run_line(path).state == "running"
    line = run_line(path)
    assert (line.state, line.round, line.rounds, line.reason) == (shown, 3, 5, "why")
    assert line.score == (None if state == "held" else 0.5)


def test_a_run_that_only_began_has_no_round(tmp_path: Path) -> None:
    path = tmp_path / "tiny" / IDS[0]
    path.mkdir(parents=True)
    with held(path):
        assert run_line(path).state == "running"
    assert run_line(path).reason == "expected a manifest.json, but it is not there"
    line = run_line(make_run(tmp_path / "tiny" / IDS[1], state="running", done=0, scores={}))
    assert (line.state, line.round, line.score) == ("stopped", None, None)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("manifest.json", "{", "manifest.json: expected JSON"),
        ("manifest.json", "[]", "manifest.json: expected the entries state, started; missing: state, started"),
        ("manifest.json", '{"state": "finished", "started": 1, "cell": 3}', "TypeError"),
        ("summary.json", '{"dice": 1, "rounds": 2}', "TypeError"),
        ("summary.json", None, "expected a summary.json in a finished run"),
    ],
)
def test_a_damaged_run_is_listed_with_the_reason(tmp_path: Path, name: str, text: str | None, reason: str) -> None:
    path = make_run(tmp_path / "tiny" / IDS[0])
    (path / name).unlink()
    if text is not None:
        (path / name).write_text(text)
    good = make_run(tmp_path / "tiny" / IDS[1])
    bad, fine = list_runs(tmp_path).runs
    assert (bad.path, bad.state, fine.path, fine.state) == (path, "damaged", good, "finished")
    assert reason in str(bad.reason)
    assert str(tmp_path) not in str(bad.reason)
    assert bad.bytes > 0


def test_damaged_rows_of_an_unfinished_run(tmp_path: Path) -> None:
    path = make_run(tmp_path / "tiny" / IDS[0], state="failed")
    (path / "metrics.jsonl").write_text("{\n{}\n")
    line = run_line(path)
    assert line.state == "damaged"
    assert str(line.reason).startswith("metrics.jsonl, line 1: expected a JSON object")


def test_links_do_not_count_as_disk(tmp_path: Path) -> None:
    fill(tmp_path / "real" / "file", 1000)
    fill(tmp_path / "folder" / "file", 10)
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder" / "one").symlink_to(tmp_path / "real" / "file")
    assert folder_bytes(tmp_path / "folder") == 10
    assert folder_bytes(tmp_path / "absent") == 0


def make_sweep(out: Path) -> Path:
    """Five cells: two finished, one stopped, one that failed before it had a folder, one that was not begun."""
    for name in IDS[:2]:
        make_run(out / "base" / name)
    make_run(out / "base" / IDS[2], state="running")
    cells = [("rank=16", 0, IDS[0]), ("rank=2", 0, IDS[1]), ("rank=4", 0, IDS[2]), ("rank=8", 0, IDS[3])]
    cells += [("rank=8", 1, IDS[4])]
    where = [(variant, seed, f"base/{name}") for variant, seed, name in cells]
    return make_plan(out / "ranks", where, {"rank=8": "ValueError: no data"})


def test_a_sweep_counts_its_cells(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    make_run(tmp_path / "other" / IDS[5])
    listing = list_runs(tmp_path)
    (sweep,) = listing.sweeps
    assert (sweep.name, sweep.cells) == ("ranks", 5)
    assert sweep.states == {"finished": 2, "stopped": 1, "failed": 1, "missing": 1}
    runs = {line.id: line for line in listing.runs}
    assert sorted(runs) == [*IDS[:3], IDS[5]]
    assert sweep.bytes == folder_bytes(folder) + sum(runs[name].bytes for name in IDS[:3])
    assert runs[IDS[0]].cell is not None
    assert runs[IDS[5]].cell is None


def test_a_failure_of_an_earlier_plan_is_another_run_s(tmp_path: Path) -> None:
    """The sweep was changed: the run of the same name has another folder now, and was not begun."""
    folder = make_plan(tmp_path / "ranks", [("rank=8", 0, f"base/{IDS[0]}")], {"rank=8": "ValueError: no data"})
    plan = folder / "plan.json"
    assert list_runs(tmp_path).sweeps[0].states == {"failed": 1}
    plan.write_text(plan.read_text().replace(IDS[0], IDS[1]))
    assert list_runs(tmp_path).sweeps[0].states == {"missing": 1}


def test_a_name_is_an_experiment_or_a_sweep(tmp_path: Path) -> None:
    """Of a sweep also the runs that are missing are shown, variants as they are planned."""
    make_sweep(tmp_path)
    make_run(tmp_path / "other" / IDS[5])
    assert [line.id for line in list_runs(tmp_path, "other").runs] == [IDS[5]]
    found = list_runs(tmp_path, "ranks")
    assert [(line.id, line.state) for line in found.runs] == [
        (IDS[0], "finished"),
        (IDS[1], "finished"),
        (IDS[2], "stopped"),
        (IDS[3], "failed"),
        (IDS[4], "missing"),
    ]
    assert found.runs[3].reason == "ValueError: no data"
    with pytest.raises(ValueError, match="no experiment or sweep 'rank', did you mean 'ranks'"):
        list_runs(tmp_path, "rank")


def test_a_run_of_two_sweeps_is_shown_under_the_one_that_was_asked_for(tmp_path: Path) -> None:
    make_run(tmp_path / "base" / IDS[0])
    for name in ("one", "two"):
        make_plan(tmp_path / name, [(f"variant of {name}", 0, f"base/{IDS[0]}")])
    for name in ("one", "two"):
        (line,) = list_runs(tmp_path, name).runs
        assert line.cell is not None
        assert line.cell.variant == f"variant of {name}"


def test_a_damaged_plan_is_listed(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "plan.json").write_text('{"cells": [{}]}')
    (sweep,) = list_runs(tmp_path).sweeps
    assert sweep.reason == "plan.json lacks 'key'"
    assert "ranks: plan.json lacks 'key'" in listing_text(list_runs(tmp_path))


def test_the_manifest_knows_the_sweep_where_there_is_no_plan(tmp_path: Path) -> None:
    """As after copying a single run's folder."""
    cell = {"sweep": "ranks", "variant": "rank=2", "seed": 1, "choice": None}
    path = make_run(tmp_path / "base" / IDS[0], manifest={"cell": cell})
    found = run_line(path).cell
    assert found is not None
    assert (found.sweep, found.variant, found.seed) == ("ranks", "rank=2", 1)


def test_the_text_fits_and_says_why(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    cell = {"sweep": "s", "variant": "an aggregator with a long name (mu=0.01)", "seed": 1234}
    for number, state in enumerate(("interrupted", "finished")):
        path = make_run(out / "base" / IDS[number], state=state, rounds=2000, manifest={"cell": cell, "seed": 1234})
        fill(path / "predictions" / "large", 99_900)
    make_run(out / "tiny" / IDS[2], state="failed", manifest={"error": "ValueError: round 3:\n" + "no " * 60})
    text = listing_text(list_runs(out))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.count("checkpoints\n") == 2  # every column stands beside the first one
    assert f"{IDS[2]} failed: ValueError: round 3: no no" in text
    assert f"{IDS[0]} an aggregator w…  1234  interrupted" in text
    assert text.splitlines()[-1].startswith("3 runs, ")


def test_an_interruption_says_no_more_than_that(tmp_path: Path) -> None:
    for number, error in enumerate(("KeyboardInterrupt: ", "KeyboardInterrupt: by a signal")):
        make_run(tmp_path / "tiny" / IDS[number], state="interrupted", manifest={"error": error})
    text = listing_text(list_runs(tmp_path))
    assert text.count("KeyboardInterrupt") == 1
    assert f"{IDS[1]} interrupted: KeyboardInterrupt: by a signal" in text


def test_json_has_every_field(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    value = json.loads(listing_json(list_runs(tmp_path)))
    assert value["sweeps"][0]["states"]["finished"] == 2
    assert value["runs"][0]["path"] == (tmp_path / "base" / IDS[0]).as_posix()
    assert value["runs"][0]["cell"] == {"sweep": "ranks", "variant": "rank=16", "seed": 0, "choice": None}


def test_no_runs_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs below {tmp_path}\n"
    assert cli.main(["runs", "--out", str(tmp_path / "absent")]) == 2
    assert "expected the folder of all runs, but it is not there; give it with --out" in capsys.readouterr().err


def test_many_runs_are_listed_without_torch(tmp_path: Path) -> None:
    for number in range(300):
        make_run(tmp_path / f"experiment-{number % 7}" / f"{number:012x}")
    script = (
        "import sys; from wardround.simulator.cli import main\n"
        f"main(['runs', '--out', {str(tmp_path)!r}])\n"
        "sys.exit(len({'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert "300 runs" in done.stdout
