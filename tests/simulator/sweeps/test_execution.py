"""Carrying out a sweep: skipping, interrupting, failing, selecting, sharing the work; real runs of ``tiny``."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from wardround.simulator import cli
from wardround.simulator import run as run_module
from wardround.simulator.builder import ConfigError
from wardround.simulator.checkpoint import Checkpoints
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.files import write_json
from wardround.simulator.progress import SweepProgress
from wardround.simulator.resident import Resident
from wardround.simulator.scoring import Scoring
from wardround.simulator.sweeps import execution as sweep_module
from wardround.simulator.sweeps.execution import How, NoSpaceError, SweepOutcome, run_sweep
from wardround.simulator.sweeps.plan import Plan, make_plan
from wardround.simulator.sweeps.records import SweepRecords
from wardround.simulator.sweeps.results import analyse, results_json

SMALL = ["rounds=2", "instruments.every=0", "evaluation.predictions=false", "runtime.device=cpu"]
SMALL += ["sweep.references=[]", "sweep.seeds=[0]"]
SELECT = ["sweep.select={over: lr, values: [1e-4, 1e-3]}", "split.validation_fraction=0.5"]
BAD = "sweep.variants.bad={ranks: {nowhere: 1}}"
WILD = "sweep.variants.wild={training: {optimizer: {name: adamw, lr: 1e30}, schedule: {warmup_steps: 0}}}"
CLOCKS = ("timing.jsonl", "manifest.json", "report.html", ".lock")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Phantoms of this module go into a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDROUND_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def pages() -> Iterator[None]:
    """Pages take most of the time of so small a run, and are tested elsewhere: only their files are there."""

    def page(folder: Path, **_: object) -> Path:
        (folder / "report.html").touch()
        return folder / "report.html"

    def sweep_page(records: SweepRecords, **_: object) -> Path:
        write_json(records.path / "results.json", results_json(analyse(records)))
        return page(records.path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_report", page)
        patch.setattr(sweep_module, "write_sweep_report", sweep_page)
        yield


def plan(*settings: str) -> Plan:
    return make_plan("sweep-tiny", open_file(PACKAGED), [*SMALL, *settings])


def quiet(out: Path, **more: Any) -> How:
    return How(out=out, quiet=True, images=False, **more)


def content(out: Path) -> dict[str, object]:
    """Everything of all runs that must be equal: tensors as bytes, rows, summaries; not the clock."""
    files = [file for file in (out / "tiny").rglob("*") if file.is_file() and file.name not in CLOCKS]
    found: dict[str, object] = {file.relative_to(out).as_posix(): file.read_bytes() for file in files}
    for name in [name for name in found if name.endswith("summary.json")]:
        summary = json.loads((out / name).read_text())
        found[name] = {key: value for key, value in summary.items() if key != "seconds"}
    return found


def results(out: Path) -> dict[str, Any]:
    return results_json(analyse(SweepRecords.load(out / "sweep-tiny")))


def states(out: Path) -> dict[str, str]:
    return {cell.key: cell.state for cell in SweepRecords.load(out / "sweep-tiny").cells}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two runs."""
    out = tmp_path_factory.mktemp("plain")
    run_sweep(plan(), quiet(out))
    return out


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two variants, each with two learning rates."""
    out = tmp_path_factory.mktemp("tuned")
    run_sweep(plan(*SELECT), quiet(out))
    return out


def copied(out: Path, folder: Path) -> Path:
    return Path(shutil.copytree(out, folder / "runs"))


# ---- finished runs are skipped ---------------------------------------------------------------------------------------


def test_finished_runs_are_neither_loaded_nor_written(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("begun again")

    monkeypatch.setattr(sweep_module, "run", fail)
    before = {file: file.stat().st_mtime_ns for file in (plain / "tiny").rglob("*")}
    outcome = run_sweep(plan(), quiet(plain))
    assert (outcome.did, outcome.failed, outcome.results.complete) == (0, {}, True)
    assert {file: file.stat().st_mtime_ns for file in (plain / "tiny").rglob("*")} == before


def test_another_path_to_the_same_folder_is_the_same_sweep(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copied(plain, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_sweep(plan(), quiet(Path("runs"))).did == 0
    monkeypatch.chdir(copy)
    assert run_sweep(plan(), quiet(Path())).did == 0
    assert set(states(copy).values()) == {"finished"}


def test_a_new_seed_adds_runs_and_says_so(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = copied(plain, tmp_path)
    outcome = run_sweep(plan("sweep.seeds=[1]"), How(out=copy, images=False))
    said = capsys.readouterr().out
    assert "the sweep was changed: 2 runs more, 2 no longer part of it (their folders stay)\n" in said
    assert "[1/2] fedavg, seed 1: Dice 0." in said
    assert outcome.did == 2
    assert len(list((copy / "tiny").iterdir())) == 4
    assert set(states(copy)) == {"fedavg, seed 1", "flap_sam, seed 1"}


def test_the_manifest_says_whose_run_it_is(tuned: Path) -> None:
    cells = SweepRecords.load(tuned / "sweep-tiny").named("fedavg").cells
    made = [cell.measured.manifest["cell"] for cell in cells]
    assert made == [{"sweep": "sweep-tiny", "variant": "fedavg", "seed": 0, "choice": rate} for rate in (1e-4, 1e-3)]


# ---- interrupted -----------------------------------------------------------------------------------------------------


STEPS = [(run_module, "run_round"), (Scoring, "test"), (run_module, "summarise_run"), (Checkpoints, "save")]


class Interrupter:
    """Lets so many steps of runs pass, then is Ctrl-C: before, or right after the step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left, self.passed = 0, 0
        for where, name in STEPS:
            patch.setattr(where, name, self._counted(getattr(where, name)))

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.passed += 1
            result = step(*args, **options)
            if self.left == 0 and self.passed % 2:
                self.left = -1
                raise KeyboardInterrupt
            return result

        return counted


def test_interrupted_again_and_again_it_ends_the_same(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds, the selection, test scores and summaries: after every few steps of any kind."""
    interrupter = Interrupter(monkeypatch)
    times = 0
    while True:
        interrupter.left = 3
        try:
            run_sweep(plan(*SELECT), quiet(tmp_path))
            break
        except KeyboardInterrupt:
            times += 1
            assert (tmp_path / "sweep-tiny" / "plan.json").exists()
    assert times >= 5
    assert content(tmp_path) == content(tuned)
    assert results(tmp_path) == results(tuned)


@pytest.mark.parametrize("half", [False, True])
def test_scores_of_test_volumes_that_a_kill_left_are_dropped(half: bool, tuned: Path, tmp_path: Path) -> None:
    """Killed while they were written, the last line half: the run waits again, is selected again, scores them again."""
    copy = copied(tuned, tmp_path)
    cell = next(cell for cell in SweepRecords.load(copy / "sweep-tiny").cells if cell.state == "finished")
    manifest = cell.path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "state": "running"}))
    (cell.path / "summary.json").unlink()
    (cell.path / "report.html").unlink()
    if half:
        metrics = cell.path / "metrics.jsonl"
        metrics.write_text(metrics.read_text()[:-20])
    assert states(copy)[cell.key] == "interrupted"
    experiment = next(one.experiment for one in plan(*SELECT).cells if one.key == cell.key)
    assert run_module.run(experiment, out=copy, quiet=True, images=False, hold_test=True).held
    (waiting,) = [one for one in SweepRecords.load(copy / "sweep-tiny").cells if one.key == cell.key]
    assert {row.split for row in waiting.measured.cases} == {"validation"}
    run_sweep(plan(*SELECT), quiet(copy))
    assert content(copy) == content(tuned)


def test_a_run_that_waits_has_no_scores_of_test_volumes(tuned: Path) -> None:
    cells = SweepRecords.load(tuned / "sweep-tiny").cells
    waiting = [cell for cell in cells if cell.state == "held"]
    assert len(waiting) == 2
    for cell in cells:
        splits = {row.split for row in cell.measured.cases}
        assert splits == ({"validation"} if cell in waiting else {"validation", "test"})


def start(out: Path, *settings: str, **options: Any) -> subprocess.Popen[str]:
    words = [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    program = "import sys; from wardround.simulator.cli import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", program, "sweep", "sweep-tiny", "--experiments", str(PACKAGED), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--no-images", "--out", str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.01)


def test_ctrl_c_is_130_and_leaves_a_sweep_that_can_be_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def listen() -> None:  # a program started in the background of a shell ignores Ctrl-C, and so do its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = start(tmp_path, "rounds=200", preexec_fn=listen)
    wait_for(tmp_path / "sweep-tiny" / "plan.json", process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    folder = tmp_path / "sweep-tiny"
    assert errors.endswith(
        "wardround: interrupted; the same command goes on after the last finished round; "
        f"`wardround report {folder}` shows what there is\n"
    )
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(tuned: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    for _ in range(6):
        process = start(tmp_path, *SELECT)
        wait_for(tmp_path / "sweep-tiny" / "plan.json", process)
        time.sleep(moments.uniform(0.0, 6.0))
        process.kill()
        process.communicate()
    process = start(tmp_path, *SELECT)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "fedavg" in printed
    assert content(tmp_path) == content(tuned)
    assert results(tmp_path) == results(tuned)


# ---- failing ---------------------------------------------------------------------------------------------------------


def test_what_fails_is_written_down_and_the_rest_goes_on(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that is not finite."""
    words = [word for setting in (*SMALL, WILD) for word in ("--set", setting)]
    command = ["sweep", "sweep-tiny", "--experiments", str(PACKAGED), *words, "--no-images", "--out", str(tmp_path)]
    assert cli.main(command) == 1
    printed = capsys.readouterr()
    assert "[3/3] wild, seed 0: failed: ValueError: round 1: hospital " in printed.out
    assert printed.err.startswith(
        "wardround: 1 run failed, the others went on; the same command tries again what failed:\n"
        "  wild, seed 0: ValueError: round 1: hospital "
    )
    records = {cell.key: cell for cell in SweepRecords.load(tmp_path / "sweep-tiny").cells}
    assert {key: cell.state for key, cell in records.items()} == {
        "fedavg, seed 0": "finished",
        "flap_sam, seed 0": "finished",
        "wild, seed 0": "failed",
    }
    assert "the loss of batch" in str(records["wild, seed 0"].error)
    same = content(plain)
    assert {name: value for name, value in content(tmp_path).items() if name in same} == same


def test_what_could_not_run_is_refused_before_the_first_run(tmp_path: Path) -> None:
    """A hospital that is not there, and more Byzantine hospitals than Krum allows: both are told at once."""
    krum = "sweep.variants.krum={aggregator: {name: krum, byzantine: 1}}"
    with pytest.raises(ConfigError) as refused:
        run_sweep(plan(BAD, krum), quiet(tmp_path))
    told = str(refused.value)
    assert "bad cannot run: ranks: unknown hospitals ['nowhere']" in told
    assert "krum cannot run: " in told
    assert not list(tmp_path.iterdir())


def test_a_run_that_lost_data_is_not_trusted(plain: Path, tmp_path: Path) -> None:
    """Half of its scores are gone, or half of its manifest: it is left out and named, and the others stay."""
    out = tmp_path / "runs"
    shutil.copytree(plain, out)
    first, second = SweepRecords.load(out / "sweep-tiny").cells
    scores = (first.path / "cases.jsonl").read_text().splitlines(keepends=True)
    (first.path / "cases.jsonl").write_text("".join(scores[: len(scores) // 2]))
    (second.path / "manifest.json").write_text((second.path / "manifest.json").read_text()[:100])
    outcome = run_sweep(plan(), quiet(out))
    assert set(outcome.failed) == {first.key, second.key}
    assert f"cases.jsonl had {len(scores)} rows and has {len(scores) // 2}" in outcome.failed[first.key]
    assert "remove the folder" in outcome.failed[first.key]
    assert set(states(out).values()) == {"damaged"}
    assert any(text.startswith("2 runs lost data or cannot be read") for text in outcome.results.warnings)
    for cell in (first, second):
        shutil.rmtree(cell.path)
    assert run_sweep(plan(), quiet(out)).failed == {}
    assert results(out) == results(plain)


def test_a_mistake_of_the_program_leaves_its_traceback_and_is_forgotten_when_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def broken(*_: object, **__: object) -> None:
            raise KeyError("ours")

        patch.setattr(run_module, "summarise_run", broken)
        outcome = run_sweep(plan(), quiet(tmp_path))
    assert list(outcome.failed) == ["fedavg, seed 0", "flap_sam, seed 0"]
    assert "a mistake of the program; its traceback is in " in outcome.failed["fedavg, seed 0"]
    files = list((tmp_path / "sweep-tiny" / "failures").iterdir())
    assert all("in broken\n" in json.loads(file.read_text())["traceback"] for file in files)
    assert run_sweep(plan(), quiet(tmp_path)).failed == {}
    assert not list((tmp_path / "sweep-tiny" / "failures").iterdir())


def test_a_full_disk_stops_the_sweep(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it: it hits the first checkpoint."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(NoSpaceError, match=r"File too large\. The sweep stopped here, .* make room .* again"):
            run_sweep(plan(), quiet(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert states(tmp_path) == {"fedavg, seed 0": "failed", "flap_sam, seed 0": "missing"}


def test_a_full_disk_is_seen_behind_another_error() -> None:
    full = ValueError("cache")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device", "cache/x")
    with pytest.raises(NoSpaceError, match="No space left on device: cache/x"):
        sweep_module._stop_without_space(full)
    sweep_module._stop_without_space(OSError(errno.ENOENT, "No such file", "x"))


def test_out_of_memory_stops_one_run_which_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round of the first run asks for more than there is; its model is gone when the second one begins."""
    replicas: list[weakref.ref[object]] = []
    whole = run_module.run_round

    def greedy(federated: Any, *args: Any, **options: Any) -> Any:
        if not replicas:
            replicas.append(weakref.ref(federated.workplace.replica))
            torch.empty(1 << 60)
        assert replicas[0]() is None
        return whole(federated, *args, **options)

    cleared: list[Resident] = []
    clear = Resident.clear
    monkeypatch.setattr(Resident, "clear", lambda resident: (cleared.append(resident), clear(resident)))
    monkeypatch.setattr(run_module, "run_round", greedy)
    outcome = run_sweep(plan(), quiet(tmp_path))
    assert len(cleared) == 1  # windows of a run that are too many would be there for the next one too
    assert list(outcome.failed) == ["fedavg, seed 0"]
    reason = outcome.failed["fedavg, seed 0"]
    assert reason.startswith("OutOfMemoryError: out of memory on cpu: lower training.batch_size (now ")
    assert "DefaultCPUAllocator: can't allocate memory: you tried to allocate" in reason
    assert states(tmp_path)["flap_sam, seed 0"] == "finished"


def test_runs_leave_nothing_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the collector of cycles does not come."""
    replicas: list[weakref.ref[object]] = []
    whole = run_module.run_round

    def noted(federated: Any, *args: Any, **options: Any) -> Any:
        replicas.append(weakref.ref(federated.workplace.replica))
        return whole(federated, *args, **options)

    monkeypatch.setattr(run_module, "run_round", noted)
    gc.disable()
    try:
        run_sweep(plan("rounds=1"), quiet(tmp_path))
        assert [replica() for replica in replicas] == [None, None]
    finally:
        gc.enable()


# ---- several processes -----------------------------------------------------------------------------------------------


def test_parts_in_two_folders_copied_together_are_the_whole(tuned: Path, tmp_path: Path) -> None:
    outcomes = [run_sweep(plan(*SELECT), quiet(tmp_path / str(part)), (part, 2)) for part in (1, 2)]
    assert [(outcome.did, outcome.elsewhere) for outcome in outcomes] == [
        (2, 2),
        (2, 2),
    ]  # what waits there is not seen
    for part in (1, 2):
        shutil.copytree(tmp_path / str(part), tmp_path / "both", dirs_exist_ok=True)
    assert content(tmp_path / "both") == content(tuned)
    assert results(tmp_path / "both") == results(tuned)
    stale = (tmp_path / "both" / "sweep-tiny" / "results.json").read_text()
    assert run_sweep(plan(*SELECT), How(out=tmp_path / "both", quiet=True)).did == 0
    assert (tmp_path / "both" / "sweep-tiny" / "results.json").read_text() != stale


def test_a_part_without_runs_is_fine(tmp_path: Path) -> None:
    outcome = run_sweep(plan(), quiet(tmp_path), (3, 3))
    assert (outcome.did, outcome.elsewhere, outcome.failed) == (0, 2, {})


def lock(path: Path) -> Any:
    path.mkdir(parents=True, exist_ok=True)
    file = (path / ".lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_a_run_of_another_process_is_left_alone(plain: Path, tmp_path: Path) -> None:
    taken = SweepRecords.load(plain / "sweep-tiny").cells[0].path.relative_to(plain)
    with lock(tmp_path / taken):
        outcome = run_sweep(plan(), quiet(tmp_path))
    assert outcome.busy == ("fedavg, seed 0",)
    assert (outcome.did, outcome.failed, outcome.results.complete) == (1, {}, False)


def test_a_run_of_another_process_is_tried_once_more(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = SweepRecords.load(plain / "sweep-tiny").cells[0].path.relative_to(plain)
    said = []

    def message(self: SweepProgress, text: str) -> None:
        said.append(text)
        if "another process works on it" in text:
            held.close()

    monkeypatch.setattr(SweepProgress, "message", message)
    held = lock(tmp_path / taken)
    outcome = run_sweep(plan(), quiet(tmp_path))
    assert said[1:] == ["fedavg, seed 0: another process works on it"]
    assert (outcome.did, outcome.busy, outcome.results.complete) == (2, (), True)


# ---- selecting -------------------------------------------------------------------------------------------------------


def test_a_value_that_fails_is_left_out_and_said(tmp_path: Path) -> None:
    """1e30 explodes with every variant; the other values are compared all the same."""
    wild = ["sweep.select={over: lr, values: [1e-4, 1e-3, 1e30]}", "training.schedule.warmup_steps=0", *SELECT[1:]]
    outcome = run_sweep(plan(*wild), quiet(tmp_path))
    assert set(outcome.failed) == {"fedavg, lr=1e+30, seed 0", "flap_sam, lr=1e+30, seed 0"}
    variant = outcome.records.named("fedavg")
    assert variant.choice in (1e-4, 1e-3)
    assert variant.left_out == (1e30,)
    assert variant.selection_warnings[0].startswith("left out of the selection, as it failed: fedavg, lr=1e+30, seed 0")
    assert [cell.state for cell in variant.chosen] == ["finished"]


def test_values_may_be_mappings(tmp_path: Path) -> None:
    values = "[{name: adamw, lr: 1e-4}, {name: sgd, lr: 1e-3}]"
    select = [f"sweep.select={{over: training.optimizer, values: {values}}}", "split.validation_fraction=0.5"]
    outcome = run_sweep(plan(*select, "rounds=1", "sweep.variants.fedavg=null"), quiet(tmp_path))
    variant = outcome.records.named("flap_sam")
    assert variant.choice in ({"name": "adamw", "lr": 1e-4}, {"name": "sgd", "lr": 1e-3})
    assert sorted(cell.state for cell in variant.cells) == ["finished", "held"]
    assert not variant.at_edge


def test_a_sweep_ends_with_its_table(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for setting in (*SMALL, *SELECT) for word in ("--set", setting)]
    command = ["sweep", "sweep-tiny", "--experiments", str(PACKAGED), *words, "--out", str(tuned), "--quiet"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("variant   selected  seeds   Dice  sd of seeds  difference  95 % interval\n")
    assert "2 values of lr x 1 seed = 2 runs for fedavg, flap_sam." in printed
    assert "all runs were finished before; nothing to do\n" in printed
    assert printed.endswith(f"sweep:  {tuned / 'sweep-tiny'}\nreport: {tuned / 'sweep-tiny' / 'report.html'}\n")
    assert max(map(len, printed.splitlines()[:-2])) <= 100


def test_what_a_sweep_gives_back(plain: Path) -> None:
    outcome = run_sweep(plan(), quiet(plain))
    assert isinstance(outcome, SweepOutcome)
    assert outcome.path == plain / "sweep-tiny"
    assert outcome.report.is_file()
