"""The log for TensorBoard: what is in it, and that killing, going on and holding leave no trace in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from wardround.simulator import cli
from wardround.simulator.checkpoint import Checkpoints
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.run import run
from wardround.simulator.rundir import RunDirectory
from wardround.simulator.sweeps.execution import How, run_sweep
from wardround.simulator.sweeps.plan import make_plan
from wardround.simulator.tensorboard import FOLDER, TensorboardLog, check_log

SETTINGS = ("rounds=3", "evaluation.every=1", "split.validation_fraction=0.5")

Log = dict[str, list[tuple[int, float]]]


def tiny(*settings: str) -> Experiment:
    return load_experiment("tiny", open_file(PACKAGED), [*SETTINGS, *settings])


def events(path: Path) -> Any:
    """What TensorBoard itself reads of a run's log."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the package tensorboard (wardround[tensorboard])",
    ).EventAccumulator
    found = accumulator(str(path / FOLDER), size_guidance={"scalars": 0})
    found.Reload()
    return found


def read_log(path: Path) -> Log:
    """All scalars by tag, but for the clock's."""
    found = events(path)
    tags = [tag for tag in found.Tags()["scalars"] if not tag.startswith("seconds/")]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a log, from beginning to end."""
    pytest.importorskip("tensorboard", reason="needs the package tensorboard (wardround[tensorboard])")
    return run(tiny(), out=tmp_path_factory.mktemp("runs"), quiet=True, images=False, log="tensorboard").path


def test_scalars_are_the_rows(logged: Path) -> None:
    """Every value from metrics.jsonl and ledger.jsonl by hand; in the log they are 32-bit numbers."""
    log = read_log(logged)
    rows = [json.loads(line) for line in (logged / "metrics.jsonl").read_text().splitlines()]
    for number in range(4):
        dice = {
            r["hospital"]: r["value"] for r in rows if (r["round"], r["split"], r["metric"]) == (number, "test", "dice")
        }
        assert len(dice) == 3
        for name, value in dice.items():
            assert log[f"dice_test/{name}"][number] == (number, pytest.approx(value, rel=1e-6))
        assert log["dice/test"][number] == (number, pytest.approx(sum(dice.values()) / 3, rel=1e-6))
    losses = [r["value"] for r in rows if (r["round"], r["metric"]) == (2, "loss")]
    assert log["loss/train"][1] == (2, pytest.approx(sum(losses) / len(losses), rel=1e-6))
    cosine = [r["value"] for r in rows if r["metric"] == "instrument/cosine"]
    assert [value for _, value in log["instrument/cosine"]] == pytest.approx(cosine, rel=1e-6)
    ledger = [json.loads(line) for line in (logged / "ledger.jsonl").read_text().splitlines()]
    so_far = [sum(row["bytes_up"] for row in ledger if row["round"] <= number) for number in (1, 2, 3)]
    assert log["bytes/up"] == list(zip((1, 2, 3), map(pytest.approx, so_far), strict=True))
    assert [event.step for event in events(logged).Scalars("seconds/train")] == [1, 2, 3]
    assert {tag.split("/")[0] for tag in log} == {
        *("dice", "dice_test", "dice_validation", "loss", "loss_train", "instrument", "bytes")
    }


def test_settings_are_hyperparameters(logged: Path) -> None:
    content = events(logged).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"method.lora.rank" in content
    assert b"training.optimizer.lr" in content


def test_the_log_changes_no_bit_of_the_run(logged: Path, tmp_path: Path) -> None:
    plain = run(tiny(), out=tmp_path, quiet=True, images=False).path
    assert not (plain / FOLDER).exists()
    for name in ("metrics.jsonl", "cases.jsonl", "ledger.jsonl", "checkpoint/round-0003/server.safetensors"):
        assert (plain / name).read_bytes() == (logged / name).read_bytes()


def test_a_killed_run_that_goes_on_has_the_same_log(
    logged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped when the rows of round 2 were written and logged, and its checkpoint was not; then once more."""
    save = Checkpoints.save

    def killed(self: Checkpoints, checkpoint: Any, changed: Any) -> None:
        if checkpoint.round == 2:
            raise KeyboardInterrupt
        save(self, checkpoint, changed)

    monkeypatch.setattr(Checkpoints, "save", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tiny(), out=tmp_path, quiet=True, images=False, log="tensorboard")
    (path,) = (tmp_path / "tiny").iterdir()
    assert read_log(path)["dice/test"][-1][0] == 2
    monkeypatch.undo()
    run(tiny(), out=tmp_path, quiet=True, images=False, log="tensorboard")
    assert read_log(path) == read_log(logged)


def test_a_finished_run_can_be_given_a_log(logged: Path, tmp_path: Path) -> None:
    path = run(tiny(), out=tmp_path, quiet=True, images=False).path
    assert run(tiny(), out=tmp_path, quiet=True, images=False, log="tensorboard").already_finished
    assert read_log(path) == read_log(logged)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    run(tiny(), out=tmp_path, quiet=True, images=False, log="tensorboard")
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_a_reader_that_watches_forgets_what_was_cut(logged: Path, tmp_path: Path) -> None:
    """The log is written anew while somebody has the old one open: a point per round all the same."""
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    for name in ("config.yaml", "manifest.json", "metrics.jsonl", "ledger.jsonl", "timing.jsonl"):
        (directory.path / name).write_bytes((logged / name).read_bytes())
    TensorboardLog(directory).add({})
    watching = events(directory.path)
    assert [event.step for event in watching.Scalars("dice/test")] == [0, 1, 2, 3]
    directory.cut(1)
    TensorboardLog(directory).add({})
    watching.Reload()
    assert [event.step for event in watching.Scalars("dice/test")] == [0, 1]
    assert len({path.name.split(".")[3] for path in (directory.path / FOLDER).iterdir()}) == 2  # their seconds differ


def test_test_volumes_that_waited_are_in_the_log_at_the_end(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the package tensorboard (wardround[tensorboard])")
    experiment = tiny("evaluation.test=last")
    path = run(experiment, out=tmp_path, quiet=True, images=False, hold_test=True, log="tensorboard").path
    assert "dice/test" not in read_log(path)
    run(experiment, out=tmp_path, quiet=True, images=False, log="tensorboard")
    log = read_log(path)
    assert [step for step, _ in log["dice/test"]] == [3]
    assert [step for step, _ in log["dice/validation"]] == [0, 1, 2, 3]


def test_a_sweep_logs_every_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the package tensorboard (wardround[tensorboard])")
    words = ["sweep.seeds=[0]", "sweep.references=[]", "rounds=1"]
    plan = make_plan("sweep-tiny", open_file(PACKAGED), words)
    outcome = run_sweep(plan, How(out=tmp_path, quiet=True, images=False, log="tensorboard"))
    assert not outcome.failed
    paths = [path for path in (tmp_path / "tiny").iterdir() if path.is_dir()]
    assert len(paths) == 2
    assert all(read_log(path)["dice/test"] for path in paths)


# ---- without the package ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["run", "tiny"], ["sweep", "sweep-tiny"]], ids=["run", "sweep"])
def test_without_the_package_nothing_begins(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert cli.main([*words, "--out", str(tmp_path / "runs"), "--quiet", "--log", "tensorboard"]) == 2
    error = capsys.readouterr().err
    assert "expected the package tensorboard, which cannot be imported" in error
    assert "pip install 'wardround[tensorboard]'" in error
    assert not (tmp_path / "runs").exists()


def test_another_log_is_a_mistake() -> None:
    check_log(None)
    with pytest.raises(ValueError, match="log: expected one of tensorboard, got 'wandb'"):
        check_log("wandb")
