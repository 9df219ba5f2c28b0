"""Cleaning: what goes, what stays, who is left alone, and what the other commands say afterwards."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import fill, make_plan, make_run

from wardround.simulator import clean as clean_module
from wardround.simulator import cli
from wardround.simulator.clean import cache_sizes, clean, clean_cache, look
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.locks import held
from wardround.simulator.run import run

IDS = [f"{number:012x}" for number in range(9)]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_looking_removes_nothing_and_cleaning_what_was_asked_for(tmp_path: Path) -> None:
    """A checkpoint of 400 bytes with a pointer of 12, predictions of 70, updates of 30."""
    path = make_run(tmp_path / "tiny" / IDS[0], updates=True)
    before = names(path)
    found = look([], tmp_path, ["checkpoints", "updates"])
    assert [(part.kind, part.bytes) for part in found.parts] == [("checkpoints", 412), ("updates", 30)]
    assert (found.bytes, names(path)) == (442, before)
    assert clean(found) == found
    assert names(path) == before - {"checkpoint", "updates"}
    assert json.loads((path / "manifest.json").read_text())["cleaned"] == ["checkpoints", "updates"]
    assert look([], tmp_path, ["checkpoints", "updates"]).parts == ()
    clean(look([], tmp_path, ["predictions"]))
    assert json.loads((path / "manifest.json").read_text())["cleaned"] == ["checkpoints", "updates", "predictions"]


@pytest.mark.parametrize("state", ["running", "held", "failed", "interrupted"])
def test_a_run_that_is_not_finished_is_left_alone(tmp_path: Path, state: str) -> None:
    path = make_run(tmp_path / "tiny" / IDS[0], state=state)
    found = look([], tmp_path, ["checkpoints"])
    assert found.parts == ()
    assert found.kept == {path: f"it is not finished ({state})"}


def test_damaged_runs_are_left_alone(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "tiny" / name) for name in IDS[:2]]
    (paths[0] / "manifest.json").write_text("{")
    (paths[1] / "summary.json").unlink()
    kept = look([], tmp_path, ["checkpoints"]).kept
    assert list(kept.values()) == ["its manifest cannot be read", "it has no summary.json"]


def test_a_run_that_somebody_works_on_is_left_alone(tmp_path: Path) -> None:
    busy, free = (make_run(tmp_path / "tiny" / name) for name in IDS[:2])
    found = look([], tmp_path, ["checkpoints"])
    with held(busy):
        done = clean(found)
    assert [part.run for part in done.parts] == [free]
    assert done.kept == {busy: "another process is working on this run; wait for it"}
    assert (busy / "checkpoint").is_dir()


def test_what_changed_since_it_was_looked_at_is_left_alone(tmp_path: Path) -> None:
    again, gone = (make_run(tmp_path / "tiny" / name) for name in IDS[:2])
    found = look([], tmp_path, ["checkpoints"])
    manifest = json.loads((again / "manifest.json").read_text())
    (again / "manifest.json").write_text(json.dumps({**manifest, "state": "running"}))
    gone.rename(tmp_path / "elsewhere")
    assert clean(found).kept == {again: "it is not finished (running)", gone: "it is gone"}
    assert not gone.exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A run behind a link, a checkpoint behind a link, and a link within a checkpoint."""
    out, away = tmp_path / "runs", tmp_path / "away"
    linked = make_run(away / "tiny" / IDS[0])
    (out / "tiny").mkdir(parents=True)
    (out / "tiny" / IDS[0]).symlink_to(linked)
    (out / "other").symlink_to(away / "tiny")
    moved = make_run(out / "tiny" / IDS[1])
    (moved / "checkpoint").rename(away / "checkpoint")
    (moved / "checkpoint").symlink_to(away / "checkpoint")
    inside = make_run(out / "tiny" / IDS[2])
    (inside / "checkpoint" / "link").symlink_to(away)
    found = look([], out, ["checkpoints"])
    assert [part.run for part in found.parts] == [inside]
    assert found.kept == {
        out / "other" / IDS[0]: "it lies behind a link; give the folder itself",
        out / "tiny" / IDS[0]: "it lies behind a link; give the folder itself",
        moved: "checkpoint is a link",
    }
    clean(found)
    assert not (inside / "checkpoint").exists()
    assert (linked / "checkpoint" / "latest.json").exists()
    assert (away / "checkpoint" / "latest.json").exists()


def test_a_kill_half_way_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path / "tiny" / IDS[0])

    def killed(folder: Path, **_: object) -> None:
        (folder / "latest.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(clean_module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        clean(look([], tmp_path, ["checkpoints"]))
    assert json.loads((path / "manifest.json").read_text())["cleaned"] == ["checkpoints"]
    monkeypatch.undo()
    clean(look([], tmp_path, ["checkpoints"]))
    assert not (path / "checkpoint").exists()
    assert json.loads((path / "manifest.json").read_text())["cleaned"] == ["checkpoints"]


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ([], {0, 1, 2}),
        (["tiny"], {0, 1}),
        ([f"tiny/{IDS[1]}"], {1}),
        (["sweep"], {1, 2}),
        (["sweep", "tiny"], {0, 1, 2}),
    ],
)
def test_a_path_is_a_run_an_experiment_or_a_sweep(tmp_path: Path, given: list[str], cleaned: set[int]) -> None:
    paths = [make_run(tmp_path / ("tiny" if number < 2 else "other") / IDS[number]) for number in range(3)]
    make_plan(tmp_path / "sweep", [("x", 0, f"tiny/{IDS[1]}"), ("y", 0, f"other/{IDS[2]}"), ("z", 0, "tiny/absent")])
    found = look([tmp_path / name for name in given], tmp_path, ["checkpoints"])
    assert {paths.index(part.run) for part in found.parts} == cleaned
    assert len(found.parts) == len(cleaned)


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "absent: expected a folder of runs"), ("empty", "but there is no run in it")]
)
def test_a_folder_without_runs_is_a_mistake(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        look([tmp_path / name], tmp_path, ["checkpoints"])


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def command(*words: object) -> str:
        assert cli.main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return command


def test_without_yes_nothing_goes(tmp_path: Path, say: Callable[..., str]) -> None:
    path = make_run(tmp_path / "tiny" / IDS[0], updates=True)
    printed = say("clean", "--out", tmp_path)
    assert "checkpoints" in printed
    assert "updates" not in printed
    assert printed.endswith("would free 412 B\nnothing was removed; the same command with --yes removes it\n")
    assert (path / "checkpoint").is_dir()
    printed = say("clean", "--out", tmp_path, "--updates", "--yes")
    assert printed.endswith("freed 30 B\n")
    assert (path / "checkpoint").is_dir()
    assert not (path / "updates").exists()
    assert say("clean", "--out", tmp_path, "--updates") == "nothing to remove\n"


def test_it_says_who_is_left_alone(tmp_path: Path, say: Callable[..., str]) -> None:
    for name in IDS[:2]:
        make_run(tmp_path / "tiny" / name, state="held")
    printed = say("clean", "--out", tmp_path)
    assert printed.startswith(f"left alone: 2 runs, it is not finished (held) ({tmp_path / 'tiny' / IDS[0]})\n")


def test_a_cleaned_run_is_finished_reported_and_says_what_is_gone(
    tmp_path: Path, say: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The real thing: after cleaning all commands work or say why not."""
    experiment = load_experiment("tiny", open_file(PACKAGED), ["rounds=1"])
    path = run(experiment, out=tmp_path, quiet=True, record_updates=True).path
    say("clean", path, "--checkpoints", "--updates", "--yes")
    assert not {"checkpoint", "updates"} & names(path)
    outcome = run(experiment, out=tmp_path, quiet=True)
    assert outcome.already_finished
    assert not (path / "checkpoint").exists()
    (path / "report.html").unlink()
    say("report", path)
    assert (path / "report.html").stat().st_size > 10_000
    assert re.search(rf"{path.name} +0 +finished +1/1", say("runs", "--out", tmp_path))
    assert cli.main(["verify", str(path)]) == 2
    assert "its checkpoints were removed by `wardround clean`" in capsys.readouterr().err
    assert cli.main(["replay", str(path), "--aggregators", "fedit"]) == 2
    assert "its updates were removed by `wardround clean`; run it again with" in capsys.readouterr().err


def test_without_the_cache_it_needs_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "tiny" / IDS[0])
    script = (
        "import sys; from wardround.simulator.cli import main\n"
        f"code = main(['clean', '--out', {str(tmp_path)!r}, '--yes'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---- the cache -------------------------------------------------------------------------------------------------------


def make_cache(cache: Path) -> Path:
    fill(cache / "prepared" / "ab" / "abc" / "images.npy", 100)
    fill(cache / "prepared" / "ab" / ".abd.123.unfinished" / "images.npy", 7)
    fill(cache / "features" / "cd" / "cde.safetensors", 50)
    fill(cache / "hashes" / "ef" / "efg.json", 3)
    return cache


def test_the_cache_is_sized_and_loses_what_can_be_made_again(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    assert cache_sizes(cache) == {"features": 50, "hashes": 3, "prepared": 107}
    assert clean_cache(cache) == 150
    assert cache_sizes(cache) == {"features": 0, "hashes": 3, "prepared": 7}  # somebody is writing those 7
    assert (clean_cache(cache), cache_sizes(tmp_path / "absent")) == (0, {})


def test_links_in_the_cache_stay(tmp_path: Path) -> None:
    cache, away = tmp_path / "cache", make_cache(tmp_path / "away")
    cache.mkdir()
    (cache / "features").symlink_to(away / "features")
    (cache / "prepared" / "ab").mkdir(parents=True)
    (cache / "prepared" / "ab" / "abc").symlink_to(away / "prepared" / "ab" / "abc")
    (cache / "prepared" / "cd").symlink_to(away / "prepared" / "ab")
    assert clean_cache(cache) == 0
    assert cache_sizes(away) == {"features": 50, "hashes": 3, "prepared": 107}


def test_the_command_for_the_cache_leaves_runs_alone(
    tmp_path: Path, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path / "runs" / "tiny" / IDS[0])
    monkeypatch.setenv("WARDROUND_CACHE", str(make_cache(tmp_path / "cache")))
    assert "with --yes" in say("clean", "--cache", "--out", tmp_path / "runs")
    assert "freed 150 B" in say("clean", "--cache", "--out", tmp_path / "runs", "--yes")
    assert (path / "checkpoint").is_dir()


def test_a_removed_volume_is_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs with the cache cleaned between them have the same rows."""
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "cache"))
    experiment = load_experiment("tiny", open_file(PACKAGED), ["rounds=1"])
    first = run(experiment, out=tmp_path / "first", quiet=True, images=False).path
    assert clean_cache(tmp_path / "cache") > 0
    second = run(experiment, out=tmp_path / "second", quiet=True, images=False).path
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
