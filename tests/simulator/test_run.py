"""A run from beginning to end on the experiment ``tiny``: files, killing, going on, verifying, refusing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from wardround.simulator.assembly import locate
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.run import run
from wardround.simulator.tensor_files import pack, unpack
from wardround.simulator.verify import verify

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SETTINGS = ["rounds=4", "evaluation.every=2", "cohort.sampling=fixed", "cohort.size=2", "training.moments=keep"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """Phantoms of this module go into a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDROUND_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny(*settings: str):
    return load_experiment("tiny", open_file(PACKAGED), [*SETTINGS, *settings])


def start(out: Path, *arguments: str, **options: object) -> subprocess.Popen:
    program = "import sys; from wardround.simulator.cli import main; sys.exit(main())"
    settings = [word for setting in (*SETTINGS, *arguments) for word in ("--set", setting)]
    command = [
        sys.executable,
        "-c",
        program,
        "run",
        "tiny",
        "--experiments",
        str(PACKAGED),
        "--out",
        str(out),
        *settings,
    ]
    environment = {**ENVIRONMENT, "WARDROUND_CACHE": os.environ["WARDROUND_CACHE"]}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return run(tiny(), out=tmp_path_factory.mktemp("runs"), quiet=True).path


def content(path: Path) -> dict[str, object]:
    """Everything that must be equal: tensors as bytes, rows, predictions; not the clock."""
    files = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    clocks = ("timing.jsonl", "manifest.json", "summary.json", "report.html", ".lock")
    return {name: value for name, value in files.items() if name not in clocks}


def test_what_a_run_leaves_behind(finished: Path) -> None:
    assert finished.parent.name == "tiny"
    assert len(finished.name) == 12
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) >= {"dice", "rounds", "seconds", "bytes_up", "bytes_down"}
    assert set(summary["dice"]) >= {"mean", "per_hospital", "per_class"}
    assert summary["rounds"] == 4
    assert summary["dice"]["mean"] == pytest.approx(np.mean(list(summary["dice"]["per_hospital"].values())))
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["environment"]["threads"] >= 1
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {row["round"] for row in rows if row["metric"] == "dice"} == {0, 2, 4}
    assert {row["round"] for row in rows if row["metric"].startswith("hd95_mm")} == {4}
    ledger = [json.loads(line) for line in (finished / "ledger.jsonl").read_text().splitlines()]
    assert summary["bytes_up"] == sum(row["bytes_up"] for row in ledger) > 0
    assert (finished / "report.html").stat().st_size > 10_000
    assert {path.name for path in (finished / "checkpoint").iterdir()} >= {"round-0003", "round-0004", "latest.json"}


def test_summary_equals_rows_of_the_volumes(finished: Path) -> None:
    """Means over volumes, then classes, then hospitals, from cases.jsonl alone."""
    rows = [json.loads(line) for line in (finished / "cases.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["round"] == 4 and row["metric"].startswith("dice/")]
    hospitals = sorted({row["hospital"] for row in last})
    means = []
    for hospital in hospitals:
        mine = [row for row in last if row["hospital"] == hospital]
        classes = sorted({row["metric"] for row in mine})
        means.append(np.mean([np.mean([row["value"] for row in mine if row["metric"] == name]) for name in classes]))
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["dice"]["mean"] == pytest.approx(np.mean(means), abs=1e-12)


def test_predictions_lie_on_the_input_grid_and_give_the_reported_dice(finished: Path) -> None:
    experiment = tiny()
    federation = locate(experiment, None).federation
    cases = {case.name: case for sides in federation.hospitals.values() for case in sides.test}
    rows = [json.loads(line) for line in (finished / "cases.jsonl").read_text().splitlines()]
    files = sorted((finished / "predictions").rglob("*.nii.gz"))
    assert len(files) == 3
    for file in files:
        case = cases[file.name.removesuffix(".nii.gz")]
        prediction, image = nib.load(file), nib.load(case.image)
        assert prediction.shape == image.shape
        np.testing.assert_array_equal(prediction.affine, image.affine)
        labels, truth = np.asarray(prediction.dataobj), np.asarray(nib.load(case.label).dataobj)
        both, size = ((labels == 1) & (truth == 1)).sum(), (labels == 1).sum() + (truth == 1).sum()
        reported = next(
            row["value"]
            for row in rows
            if row["case"] == case.name and row["round"] == 4 and row["metric"] == f"dice/{federation.classes[0]}"
        )
        assert reported == pytest.approx(2 * both / size, abs=1e-6)


def test_running_it_again_does_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert run(tiny(), out=finished.parent.parent, quiet=True).already_finished
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize("settings", ["seed=1", "training.optimizer.lr=1e-4", "method.lora.rank=1", "data.seed=1"])
def test_whatever_changes_a_result_changes_the_id(finished: Path, tmp_path: Path, settings: str) -> None:
    from wardround.simulator.assembly import locate
    from wardround.simulator.run import run_directory

    experiment = tiny(settings)
    assert run_directory(experiment, locate(experiment, None), tmp_path)[0].path.name != finished.name


def test_words_and_device_do_not_change_the_id(finished: Path, tmp_path: Path) -> None:
    from wardround.simulator.assembly import locate
    from wardround.simulator.run import run_directory

    experiment = tiny("purpose=another", "runtime.device=cpu", "runtime.threads=1")
    assert run_directory(experiment, locate(experiment, None), tmp_path)[0].path.name == finished.name


@pytest.mark.parametrize("moment", ["metrics.jsonl", "checkpoint/round-0001/state.json", "checkpoint/round-0003"])
def test_a_killed_run_goes_on_and_ends_bit_identical(tmp_path: Path, finished: Path, moment: str) -> None:
    """Kill -9 as soon as a file appears: in the first evaluation, after round 1, while round 3 is saved. Then again."""
    process = start(tmp_path)
    path = tmp_path / "tiny" / finished.name
    _wait_for(path / moment, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (path / "summary.json").exists()
    assert run(tiny(), out=tmp_path, quiet=True).path == path
    assert content(path) == content(finished)


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.002)


def test_ctrl_c_is_130_and_the_same_command_goes_on(tmp_path: Path, finished: Path) -> None:
    def listen() -> None:  # a program started in the background of a shell ignores Ctrl-C, and so do its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = start(tmp_path, preexec_fn=listen)
    path = tmp_path / "tiny" / finished.name
    _wait_for(path / "checkpoint" / "round-0001" / "state.json", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert json.loads((path / "manifest.json").read_text())["state"] == "interrupted"


def test_verify_repeats_the_last_round(finished: Path) -> None:
    verdict = verify(finished)
    assert verdict.identical, str(verdict)
    assert verdict.round == 4
    assert "bit-identical" in str(verdict)


def test_verify_sees_a_changed_number(finished: Path, tmp_path: Path) -> None:
    copy = _copy(finished, tmp_path)
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[-1] = lines[-1].replace('"value": ', '"value": 1')
    (copy / "metrics.jsonl").write_text("".join(lines))
    verdict = verify(copy)
    assert not verdict.identical
    assert "DIFFERENT" in str(verdict)


def test_verify_sees_a_changed_tensor(finished: Path, tmp_path: Path) -> None:
    copy = _copy(finished, tmp_path)
    file = copy / "checkpoint" / "round-0004" / "server.safetensors"
    tensors, _ = unpack(file)
    name = next(iter(tensors))
    file.write_bytes(pack({**tensors, name: tensors[name].nextafter(torch.tensor(9.0))}))
    assert not verify(copy).identical


def _copy(finished: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished, folder / "tiny" / finished.name))


def _interrupted(finished: Path, folder: Path) -> Path:
    copy = _copy(finished, folder)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "state": "interrupted"}))
    return copy


def test_another_environment_is_refused_unless_allowed(finished: Path, tmp_path: Path) -> None:
    copy = _interrupted(finished, tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["environment"] |= {"threads": 64, "code_hash": "another"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"code_hash: 'another' then.*threads: 64 then.*--allow-changed-environment"):
        run(tiny(), out=tmp_path, quiet=True)
    assert run(tiny(), out=tmp_path, quiet=True, allow_changed_environment=True).path == copy


def test_a_run_does_not_go_on_compiled_unless_allowed(finished: Path, tmp_path: Path) -> None:
    """A compiled model is equal to rounding only; every round is over here, so that nothing is compiled."""
    copy = _interrupted(finished, tmp_path)
    compiled = tiny("runtime.compile=true")
    with pytest.raises(ValueError, match=r"compile: False then, True now.*--allow-changed-environment"):
        run(compiled, out=tmp_path, quiet=True)
    assert run(compiled, out=tmp_path, quiet=True, allow_changed_environment=True).path == copy
    assert json.loads((copy / "manifest.json").read_text())["compile"] is True


def test_a_checkpoint_of_another_model_is_refused(finished: Path, tmp_path: Path) -> None:
    copy = _interrupted(finished, tmp_path)
    file = copy / "checkpoint" / "round-0004" / "server.safetensors"
    tensors, _ = unpack(file)
    tensors.popitem()
    file.write_bytes(pack(tensors))
    with pytest.raises(ValueError, match="the checkpoint of round 4 is of another model: 1 tensors differ"):
        run(tiny(), out=tmp_path, quiet=True)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """The learning rate explodes after the warm-up of some steps; the rounds before stay."""
    wild = [
        "training.optimizer.lr=1e30",
        "training.schedule.warmup_steps=0",
        "cohort.sampling=full",
        "cohort.size=null",
    ]
    with pytest.raises(ValueError, match=r"round \d: hospital 'hospital-\d': the loss of batch \d is (nan|inf)"):
        run(tiny(*wild), out=tmp_path, quiet=True)
    path = next((tmp_path / "tiny").iterdir())
    assert json.loads((path / "checkpoint" / "latest.json").read_text())["round"] >= 0
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["state"] == "failed"
    assert "the loss of batch" in manifest["error"]


def test_no_space_left_is_one_clear_error_and_the_run_goes_on_later(tmp_path: Path, finished: Path) -> None:
    """A limit on the size of files stands in for a full disk: it hits the first checkpoint."""
    limit = 20_000

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(tmp_path, preexec_fn=small_files)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error:" in errors
    assert "Traceback" not in errors
    path = tmp_path / "tiny" / finished.name
    assert not [file for file in path.rglob(".*safetensors*") if file.is_file()]  # no half-written file
    assert run(tiny(), out=tmp_path, quiet=True).path == path


def test_a_report_that_is_missing_is_written_and_other_code_is_named(finished: Path, tmp_path: Path) -> None:
    """A kill between the last round and the report; and a finished run that was made by other code."""
    copy = _copy(finished, tmp_path)
    (copy / "report.html").unlink()
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["environment"] |= {"code_hash": "another"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    outcome = run(tiny(), out=tmp_path, quiet=True)
    assert outcome.already_finished
    assert (copy / "report.html").exists()
    assert "nothing to do (its environment was another: code_hash: 'another' then" in outcome.note


def test_no_images_on_a_finished_run_says_what_to_do(finished: Path) -> None:
    assert "report RUN --no-images" in run(tiny(), out=finished.parent.parent, quiet=True, images=False).note


def test_a_run_that_failed_before_its_first_round_begins_anew(finished: Path, tmp_path: Path) -> None:
    """Nothing was trained, so nothing binds it to the environment it failed in."""
    copy = _interrupted(finished, tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["environment"] |= {"code_hash": "another"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (copy / "checkpoint" / "latest.json").unlink()
    assert run(tiny(), out=tmp_path, quiet=True).path == copy
    assert content(copy) == content(finished)


def test_verify_sees_a_changed_config(finished: Path, tmp_path: Path) -> None:
    copy = _copy(finished, tmp_path)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("rounds: 4", "rounds: 5"))
    with pytest.raises(ValueError, match=r"config\.yaml: not the config .* that the run is named after"):
        verify(copy)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("manifest.json", "{}", r"manifest\.json: expected the entries .*missing: state"),
        ("manifest.json", "{", r"manifest\.json: expected JSON"),
        ("checkpoint/latest.json", "7", r"latest\.json: expected the entries round"),
        ("metrics.jsonl", "nonsense\n", r"metrics\.jsonl, line 1: expected"),
    ],
)
def test_a_damaged_file_is_named(finished: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    copy = _interrupted(finished, tmp_path)
    (copy / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        run(tiny(), out=tmp_path, quiet=True)


def test_going_on_elsewhere_is_written_down(finished: Path, tmp_path: Path) -> None:
    copy = _interrupted(finished, tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["environment"] |= {"threads": 64}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    run(tiny(), out=tmp_path, quiet=True, allow_changed_environment=True)
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest["environment"]["threads"] == 64
    assert [(entry["after_round"], entry["environment"]["threads"]) for entry in manifest["continued"]] == [(4, 1)]


def test_two_processes_do_not_work_on_one_run(finished: Path, tmp_path: Path) -> None:
    import fcntl

    copy = _interrupted(finished, tmp_path)
    with (copy / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is working on this run"):
            run(tiny(), out=tmp_path, quiet=True)


def test_no_images_leaves_patients_out(tmp_path: Path) -> None:
    path = run(tiny("evaluation.predictions=false"), out=tmp_path, quiet=True, images=False).path
    assert not (path / "overlays").exists()
    assert not (path / "predictions").exists()
    assert "data:image/png" not in (path / "report.html").read_text()
