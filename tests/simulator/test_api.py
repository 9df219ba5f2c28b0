"""The Python API: what is given is what the command line builds, and a run shows everything that is in its files."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from made_runs import write_run

import wardround
from wardround.aggregators import FedAvg
from wardround.aggregators.fedprox import FedProx
from wardround.clients.lora import LoRA
from wardround.clients.optimizers import SGD
from wardround.datasets.partition import Iid
from wardround.simulator import yaml12
from wardround.simulator.builder import ConfigError, build
from wardround.simulator.checkpoint import Checkpoints
from wardround.simulator.config import Experiment, identity
from wardround.simulator.config import load_experiment as from_the_command_line
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.exports import export
from wardround.simulator.prediction import predict
from wardround.simulator.replay import replay
from wardround.simulator.results import RunRecords
from wardround.simulator.run import run as run_to_the_end

load = wardround.load_experiment
FILE = open_file(PACKAGED)
SHORT = ("tiny", "sweep-tiny")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a short experiments.yaml: the packaged one takes a while to read."""
    folder = tmp_path_factory.getbasetemp() / "api-here"
    if not folder.exists():
        folder.mkdir()
        (folder / "experiments.yaml").write_text(yaml12.dump({name: FILE.entries[name] for name in SHORT}))
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def done(out: Path) -> wardround.Run:
    """``tiny`` with three rounds and recorded updates."""
    return wardround.run("tiny", rounds=3, out=out, quiet=True, record_updates=True, experiments=PACKAGED)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without the API, and without its updates."""
    experiment = from_the_command_line("tiny", FILE, ["rounds=3"])
    return run_to_the_end(experiment, out=tmp_path_factory.mktemp("plain"), quiet=True).path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- what is given ---------------------------------------------------------------------------------------------------

GIVEN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a number": ({"rounds": 7}, ["rounds=7"]),
    "a path": ({"method__lora__rank": 4}, ["method.lora.rank=4"]),
    "a mapping is merged": ({"method": {"lora": {"rank": 4}}}, ["method={lora: {rank: 4}}"]),
    "a word": ({"aggregator": "fedprox"}, ["aggregator=fedprox"]),
    "a plug-in": ({"aggregator": FedProx(mu=0.5)}, ["aggregator={name: fedprox, mu: 0.5}"]),
    "nothing": ({"training__schedule__horizon_epochs": None}, ["training.schedule.horizon_epochs=null"]),
    "NumPy's numbers": (
        {"seed": np.int64(3), "training__optimizer__lr": np.float64(0.5)},
        ["seed=3", "training.optimizer.lr=0.5"],
    ),
    "a number in a mapping": ({"ranks": {"hospital-1": np.int32(1)}}, ["ranks.hospital-1=1"]),
    "a tuple": ({"augment": {"name": "standard", "gamma": (0.5, 2)}}, ["augment={name: standard, gamma: [0.5, 2]}"]),
    "a path of a file": ({"model__weights": Path("a.pth")}, ["model.weights=a.pth"]),
    "a dataclass below": ({"method__lora": LoRA(rank=7)}, ["method.lora.rank=7"]),
    "a dataclass in a mapping": ({"method": {"lora": LoRA(rank=7)}}, ["method.lora.rank=7"]),
    "a plug-in below": ({"training__optimizer": SGD(lr=0.5)}, ["training.optimizer={name: sgd, lr: 0.5}"]),
    "a plug-in in a mapping": (
        {"training": {"optimizer": SGD(lr=0.5)}, "split": {"partition": Iid(hospitals=2)}},
        ["training.optimizer={name: sgd, lr: 0.5}", "split.partition={name: iid, hospitals: 2}"],
    ),
    "dots": ({"method.lora.rank": 4}, ["method.lora.rank=4"]),
    "the last one wins": ({"method__lora__rank": 4, "method__lora": {"rank": 5}}, ["method.lora.rank=5"]),
}


@pytest.mark.parametrize("how", GIVEN)
def test_overrides_are_those_of_the_command_line(how: str) -> None:
    overrides, words = GIVEN[how]
    wanted = from_the_command_line("tiny", FILE, words)
    assert load("tiny", **overrides) == wanted
    assert load(load("tiny"), **overrides) == wanted
    assert identity(load({"extends": "tiny"}, **overrides)) == identity(wanted)


def test_an_experiment_is_taken_as_it_is() -> None:
    experiment = load("tiny")
    assert load(experiment) is experiment
    assert load(experiment, name="other").name == "other"


def test_settings_have_a_name_and_a_purpose_of_their_own() -> None:
    assert load({"extends": "tiny"}).name == "notebook"
    own = load({"extends": "tiny", "name": "mine", "purpose": "To see."})
    assert (own.name, own.purpose) == ("mine", "To see.")
    assert load("tiny", name="mine").name == "mine"


def test_settings_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments.yaml").write_text("broken: [")
    monkeypatch.chdir(tmp_path)
    settings = yaml12.loads(repr(load("tiny", experiments=PACKAGED)))["tiny"]
    assert load(settings).rounds == 2
    with pytest.raises(ValueError, match=r"experiments\.yaml"):
        load({"extends": "tiny"})


ENDLESS: dict[str, Any] = {}
ENDLESS["lora"] = [ENDLESS]

WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a class": (
        "tiny",
        {"aggregator": FedProx},
        r"^aggregator: expected an object, such as FedProx\(\), got the class",
    ),
    "a class below": ("tiny", {"method": {"lora": LoRA}}, r"^method\.lora: expected an object, such as LoRA\(\)"),
    "without an end": (
        "tiny",
        {"method": ENDLESS},
        r"^method\.lora\[0\]: expected settings, got a dict that holds itself",
    ),
    "settings without an end": ({"method": ENDLESS}, {}, r"^method\.lora\[0\]: .* a dict that holds itself"),
    "dots": ("tiny", {"method.lora.rnak": 3}, "^method.lora.rnak: unknown key, did you mean 'rank'"),
    "a dataclass for a number": ("tiny", {"rounds": LoRA()}, "^rounds: expected a whole number, got {'rank'"),
    "a setting": ("tiny", {"ruonds": 3}, "^ruonds: unknown key, did you mean 'rounds'"),
    "a path": ("tiny", {"method__lora__rnak": 3}, "^method__lora__rnak: unknown key, did you mean 'rank'"),
    "in a mapping": (
        "tiny",
        {"method": {"lora": {"rnak": 3}}},
        r"^method\.lora\.rnak: unknown key, did you mean 'rank'",
    ),
    "below a path": ("tiny", {"method__lora": {"rnak": 3}}, r"^method__lora\.rnak: unknown key, did you mean 'rank'"),
    "a name": ("tiny", {"aggregator": "fedavgg"}, "^aggregator: unknown name 'fedavgg', did you mean 'fedavg'"),
    "a range": ("tiny", {"method__lora__rank": -3}, "^method__lora__rank: expected at least 1, got -3"),
    "a text": ("tiny", {"rounds": "3"}, "^rounds: expected a whole number, got '3': leave out the quotes"),
    "no setting": ("tiny", {"__rounds": 3}, "^__rounds: expected names of settings joined by '__'"),
    "an object": ("tiny", {"method__lora": object()}, "^method__lora: expected a number, a text, .* got <object"),
    "an experiment": ("tinny", {}, r"experiments\.yaml: no experiment 'tinny', did you mean 'tiny'"),
    "a sweep": ("sweep-tiny", {}, "'sweep-tiny' is a sweep of many runs: `wardround sweep sweep-tiny`"),
    "a setting of settings": ({"extends": "tiny", "agregator": 1}, {}, "^agregator: unknown key, did you mean"),
    "what it extends": ({"extends": ["tiny"]}, {}, r"^extends: expected the name of an experiment, got \['tiny'\]"),
    "a folder": ({"extends": "tiny", "name": "a/b"}, {}, "^name: expected letters, digits"),
    "anything else": (3, {}, "^experiment: expected a name, settings or an Experiment, got 3"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_as_it_was_written(what: str) -> None:
    experiment, overrides, match = WRONG[what]
    with pytest.raises(ConfigError, match=match):
        load(experiment, **overrides)


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)3 problems:.*method__lora__rnak: .*rounds: .*cohort: "):
        load("tiny", method__lora__rnak=3, rounds="3", cohort=5)


def test_a_misspelt_argument_is_pointed_out() -> None:
    with pytest.raises(ConfigError, match=r"^quite: unknown key .*; or is the argument 'quiet' meant\?$"):
        wardround.run("tiny", quite=True)
    with pytest.raises(ConfigError, match=r"^experimets: unknown key .*; or is the argument 'experiments' meant\?$"):
        load("tiny", experimets=PACKAGED)


MISTAKEN: dict[str, tuple[dict[str, Any], type[ValueError], str]] = {
    "no such file": ({"experiments": "nope.yaml"}, ConfigError, "^experiments: expected a file .* got 'nope.yaml': No"),
    "a folder": (
        {"experiments": "."},
        ConfigError,
        "^experiments: expected a file of experiments .* got '.': Is a dir",
    ),
    "settings": ({"experiments": {}}, ValueError, "^experiments: expected a path, got {}"),
    "a number": ({"root": 5}, ValueError, "^root: expected a path, got 5"),
    "a file": ({"out": "experiments.yaml"}, ValueError, "^out: expected the folder .* but experiments.yaml is a file"),
    "below a file": ({"out": "experiments.yaml/a"}, ValueError, "^out: .* but experiments.yaml is a file"),
    "no folder": ({"out": None}, ValueError, "^out: expected the folder of all runs, got None"),
    "nobody's home": ({"out": "~nobody-of-this-name/a"}, ValueError, "^out: expected a path, got '~nobody-of"),
}


@pytest.mark.parametrize("what", MISTAKEN)
def test_what_is_no_path_is_said(what: str) -> None:
    arguments, kind, match = MISTAKEN[what]
    with pytest.raises(kind, match=match):
        wardround.run("tiny", quiet=True, **arguments)


# ---- an experiment shows itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FILE.entries if name not in FILE.sweeps])
def test_an_experiment_shows_an_entry_that_gives_it_back(name: str) -> None:
    experiment = from_the_command_line(name, FILE)
    ((key, settings),) = yaml12.loads(repr(experiment)).items()
    assert build(Experiment, {**settings, "name": key}) == experiment
    assert str(experiment) == repr(experiment)


def test_an_experiment_shows_what_is_not_the_default_and_nothing_else() -> None:
    assert repr(load("tiny", aggregator=FedProx(mu=0.5), purpose="a: b")) == (
        "tiny:\n"
        "  purpose: 'a: b'\n"
        "  data: {name: phantom, hospitals: 3, train_cases: 2, test_cases: 1, size: 32, slices: 6}\n"
        "  model: {name: sam, size: tiny, image_size: 32}\n"
        "  method: {name: flap_sam, lora: {rank: 2}}\n"
        "  training: {batch_size: 8, schedule: {warmup_steps: 2, horizon_epochs: null}}\n"
        "  aggregator: {name: fedprox, mu: 0.5}\n"
        "  rounds: 2\n"
        "  evaluation: {every: 1}"
    )


def test_an_experiment_in_a_notebook_is_a_table_with_all_settings_to_unfold() -> None:
    html = load("tiny", purpose="<b>")._repr_html_()
    shown, unfolded = html.split("<details>")
    assert "&lt;b&gt;" in shown
    assert "{name: flap_sam, lora: {rank: 2}}" in shown
    assert "split_seed" not in shown
    assert "split_seed" in unfolded
    assert "training.optimizer.lr" in unfolded


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_the_same_run_as_that_of_the_command_line(done: wardround.Run, plain: Path) -> None:
    assert done.id == plain.name
    for name in ("metrics", "cases", "ledger", "instruments"):
        assert (done.path / f"{name}.jsonl").read_bytes() == (plain / f"{name}.jsonl").read_bytes()
    assert done.manifest["experiments_file"] == "the packaged experiments.yaml"
    assert done.manifest["command"] == ""  # nothing that a shell could repeat


@pytest.mark.parametrize("name", ["metrics", "cases", "ledger", "instruments", "timing", "across", "confusion"])
def test_rows_are_those_of_the_files_and_a_table_of_pandas(done: wardround.Run, name: str) -> None:
    file = done.path / f"{name}.jsonl"
    wanted = rows(file) if file.exists() else []
    found = getattr(done, name)
    assert found == wanted
    assert len(pd.DataFrame(found)) == len(wanted)


def test_numbers_of_a_run(done: wardround.Run) -> None:
    table = pd.DataFrame(done.metrics)
    last = table[(table.metric == "dice") & (table.split == "test") & (table["round"] == 3)]
    assert done.score == pytest.approx(last.value.mean(), abs=1e-12)
    assert done.summary == json.loads((done.path / "summary.json").read_text())
    assert done.summary["dice"]["mean"] == pytest.approx(done.score, abs=1e-12)
    assert (done.status, done.finished) == ("finished", True)
    assert done.classes == ("edema", "core")
    assert done.hospitals == ("hospital-1", "hospital-2", "hospital-3")
    assert done.experiment == load("tiny", rounds=3)
    assert done.report.is_file()


def test_results_are_what_the_command_prints(done: wardround.Run, capsys: pytest.CaptureFixture[str]) -> None:
    from wardround.simulator.cli import main

    assert main(["run", "tiny", "--set", "rounds=3", "--out", str(done.path.parents[1]), "--quiet"]) == 0
    assert done.results in capsys.readouterr().out


def test_states_come_from_checkpoints_and_from_recorded_updates(done: wardround.Run) -> None:
    assert done.rounds == [0, 1, 2, 3]
    last, first = done.state(), done.state(0)
    assert (last.round, first.round) == (3, 0)
    checkpoint = done.trained(device="cpu").checkpoint
    assert all(torch.equal(value, checkpoint.server.tensors[name]) for name, value in last.tensors.items())
    assert last.hospitals is not None
    assert set(last.hospitals) == set(done.hospitals)
    assert (first.memory, first.hospitals) == (None, None)
    setting = done.setting
    assert all(torch.equal(value, setting.trainable[name]) for name, value in first.tensors.items())
    saved, _ = Checkpoints(done.path / "checkpoint").read(2)
    recorded = done.updates(3)  # the same state, once as a checkpoint and once beside the updates that follow
    assert all(torch.equal(saved[f"tensors/{name}"], value) for name, value in recorded.tensors.items())
    assert not all(torch.equal(value, last.tensors[name]) for name, value in recorded.tensors.items())


def test_updates_are_what_the_hospitals_sent(done: wardround.Run) -> None:
    taken = done.updates(2)
    assert taken.number == 2
    assert [update.hospital for update in taken.updates] == list(done.hospitals)
    examples = {row["hospital"]: row["examples"] for row in done.ledger if row["round"] == 2}
    assert {update.hospital: update.num_examples for update in taken.updates} == examples


def test_a_replay_is_that_of_the_command(done: wardround.Run) -> None:
    given, named = done.replay({"fedavg": FedAvg()}), done.replay("fedavg")
    wanted = replay(done.path, {"fedavg": FedAvg()})
    assert [step.numbers for step in given] == [step.numbers for step in named] == [step.numbers for step in wanted]
    assert [(step.aggregator, step.round) for step in named] == [("fedavg", 1), ("fedavg", 2), ("fedavg", 3)]
    for wrong, match in (
        (3, "^aggregators: expected a text, or aggregators by the name to show, got 3"),
        ({"a": FedAvg}, r"^aggregators: expected objects, such as FedAvg\(\), got the class"),
        ("fedavgg", "^aggregators: aggregator: unknown name 'fedavgg', did you mean 'fedavg'"),
    ):
        with pytest.raises(ValueError, match=match):
            done.replay(wrong)  # type: ignore[arg-type]  # what somebody may write


@pytest.mark.parametrize("number", [1.0, True, "1", np.True_])
def test_a_round_is_a_whole_number(done: wardround.Run, number: Any) -> None:
    for use in (done.state, done.updates, done.trained, partial(done.network, None)):
        with pytest.raises(ValueError, match=f"^round: expected a whole number, got {re.escape(repr(number))}$"):
            use(number)
    assert done.state(np.int64(1)).round == 1  # type: ignore[arg-type]  # a number of NumPy is one


def test_the_network_is_the_hospitals(out: Path) -> None:
    done = wardround.run("tiny", aggregator="local", rounds=1, out=out, quiet=True)
    first, second = (dict(done.network(name, device="cpu").named_parameters()) for name in done.hospitals[:2])
    assert not done.network("hospital-3", device="cpu").training
    trained = done.trained(device="cpu").tensors("hospital-1")
    assert all(torch.equal(first[name], value) for name, value in trained.items())
    assert not all(torch.equal(first[name], second[name]) for name in trained)


def test_what_was_not_kept_is_said(done: wardround.Run, plain: Path, tmp_path: Path) -> None:
    bare = wardround.Run(shutil.copytree(plain, tmp_path / "tiny" / plain.name))
    assert bare.rounds == [2, 3]
    with pytest.raises(ValueError, match=r"expected one of the rounds whose state is kept, 2, 3, got 1; a run keeps"):
        bare.state(1)
    with pytest.raises(ValueError, match=r"expected updates recorded by `wardround run --record-updates` .* got none"):
        bare.updates(1)
    with pytest.raises(ValueError, match="expected one of the rounds that were recorded, 1, 2, 3, got 9"):
        done.updates(9)
    with pytest.raises(ValueError, match="expected a run directory, but it has no manifest"):
        wardround.Run(tmp_path / "tiny")
    for nothing in (None, 5):
        with pytest.raises(ValueError, match=f"^path: expected .* got {nothing}$"):
            wardround.Run(nothing)  # type: ignore[arg-type]  # what somebody may write
    with pytest.raises(ValueError, match=r"record_updates: .* was finished before, without its updates; remove"):
        wardround.run("tiny", rounds=3, out=tmp_path, quiet=True, record_updates=True)
    shutil.rmtree(bare.path / "checkpoint")
    with pytest.raises(ValueError, match="neither a checkpoint nor a recorded round is there"):
        bare.state()


def test_a_finished_run_is_found_and_says_so(
    done: wardround.Run, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = wardround.run("tiny", rounds=3, out=str(out), record_updates=True)
    assert again.path == done.path
    assert "this run was finished before; nothing to do" in capsys.readouterr().out
    wardround.run("tiny", rounds=3, out=out, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_quiet_run_says_that_other_code_made_it(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(plain, tmp_path / "tiny" / plain.name)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["environment"]["code_hash"] = "another"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    found = wardround.run("tiny", rounds=3, out=tmp_path, quiet=True)
    assert found.note.startswith("its environment was another: code_hash: ")
    assert capsys.readouterr().out == f"{found.note}\n"
    assert repr(found).endswith(f" ({found.note})")
    assert "code_hash" in found._repr_html_()
    assert wardround.Run(copied).note == ""


def test_a_tilde_is_the_home_directory(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = shutil.copytree(plain, tmp_path / "tiny" / plain.name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wardround.Run(f"~/tiny/{plain.name}").path == copied
    assert [run.path for run in wardround.runs("~")] == [copied]
    shutil.copy("experiments.yaml", tmp_path / "mine.yaml")
    run = wardround.run("tiny", rounds=3, experiments="~/mine.yaml", root="~/data", out=Path("~"), quiet=True)
    assert run.path == copied
    assert (tmp_path / "data").is_dir()
    assert not Path("~").exists()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_trains_where_gradients_are_off(mode: Any, done: wardround.Run, out: Path, tmp_path: Path) -> None:
    with mode():
        inside = wardround.run("tiny", aggregator="local", rounds=1, out=tmp_path, quiet=True)
        network = done.network(device="cpu")
        done.replay("fedavg")
        done.export("peft", tmp_path / "adapter")
    outside = wardround.run("tiny", aggregator="local", rounds=1, out=out, quiet=True)
    assert inside.metrics == outside.metrics
    assert not any(tensor.is_inference() for tensor in network.parameters())


def test_a_run_that_is_still_going(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs" / "quickstart" / "abc", rounds=4, planned=9, state="running")
    going = wardround.Run(path)
    assert (going.finished, going.status) == (False, "stopped")  # nobody works on it
    assert repr(going) == f"Run({str(path)!r}): stopped, round 4 of 9, Dice {going.score:.3f}"
    with pytest.raises(ValueError, match=r"expected a finished run, this one is stopped; `score`, `results`"):
        going.summary  # noqa: B018  the access is what is tested
    before = len(going.metrics)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(going.metrics[-1]) + "\n")
    assert len(going.metrics) == before + 1


def test_runs_of_a_folder(done: wardround.Run, out: Path) -> None:
    assert done.path in [run.path for run in wardround.runs(out)]
    assert {run.path.parent.name for run in wardround.runs(str(out), "tiny")} == {"tiny"}
    with pytest.raises(ValueError, match="no experiment or sweep 'tinny', did you mean 'tiny'"):
        wardround.runs(out, "tinny")


# ---- a run shows itself ----------------------------------------------------------------------------------------------


def test_a_run_shows_itself(done: wardround.Run) -> None:
    assert repr(done) == f"Run({str(done.path)!r}): finished, round 3 of 3, Dice {done.score:.3f}"
    html = done._repr_html_()
    assert f'<td style="text-align: left">{done.score:.3f}</td>' in html
    assert all(name in html for name in (*done.hospitals, "Dice edema", "3 of 3"))


def test_a_run_of_many_hospitals_names_some(tmp_path: Path) -> None:
    html = wardround.Run(write_run(tmp_path / "run", hospitals=30))._repr_html_()
    assert "hospital-12" in html
    assert "hospital-13" not in html
    assert "and 18 more hospitals" in html


def test_names_are_no_markup(tmp_path: Path) -> None:
    html = wardround.Run(write_run(tmp_path / "run", names=["<script>", "b"]))._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize("beside", ["loss", "bytes"])
def test_the_plot_draws_every_hospital_and_leaves_pyplot_alone(done: wardround.Run, beside: Any) -> None:
    import matplotlib.pyplot as plt

    settings = dict(plt.rcParams)
    figure = done.plot(beside)
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == settings
    scores, other = figure.axes
    *hospitals, average = scores.get_lines()
    assert len(hospitals) == 3
    wanted = [row["value"] for row in done.metrics if row["metric"] == "dice" and row["hospital"] == "hospital-2"]
    assert list(hospitals[1].get_ydata()) == wanted
    assert average.get_ydata()[-1] == pytest.approx(done.score)
    words = {"loss": "training loss", "bytes": "kB sent so far"}
    assert (scores.get_ylabel(), other.get_ylabel()) == ("test Dice", words[beside])
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]  # what a notebook asks for


def test_the_plot_of_a_run_that_is_still_going(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", rounds=4, planned=9, state="running")
    scores, losses = wardround.Run(path).plot().axes
    assert max(scores.get_lines()[0].get_xdata()) == 4
    assert len(losses.get_lines()) == 4


def test_the_plot_of_a_classification(out: Path) -> None:
    few = {"train_images": 8, "test_images": 4}
    run = wardround.run("vit-tiny", data=few, rounds=1, out=out, quiet=True, images=False, experiments=PACKAGED)
    scores, losses = run.plot().axes
    assert (scores.get_ylabel(), losses.get_ylabel()) == ("test accuracy", "training loss")
    assert scores.get_lines()[-1].get_ydata()[-1] == pytest.approx(run.score)


@pytest.mark.parametrize("kept", ["validation", "train"])
def test_the_plot_without_test_cases(done: wardround.Run, tmp_path: Path, kept: str) -> None:
    """Validation cases in their place, or the training loss alone."""
    for name in ("config.yaml", "manifest.json"):
        shutil.copy(done.path / name, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "state": "running", "rows": None}))
    renamed = [{**row, "split": kept if row["split"] == "test" else row["split"]} for row in done.metrics]
    rows = renamed if kept == "validation" else [row for row in done.metrics if row["split"] == "train"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [axes.get_ylabel() for axes in wardround.Run(tmp_path).plot().axes]
    assert words == {"validation": ["validation Dice", "training loss"], "train": ["training loss"]}[kept]


def test_many_hospitals_are_thin_lines_with_two_entries(tmp_path: Path) -> None:
    figure = wardround.Run(write_run(tmp_path / "run", hospitals=30)).plot()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["mean of 30 hospitals", "one hospital each"]
    thick, thin = legend.get_lines()
    assert thick.get_linewidth() > thin.get_linewidth()


def test_nothing_to_plot_is_said(done: wardround.Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="beside: expected loss or bytes, got 'los', did you mean 'loss'"):
        done.plot("los")  # type: ignore[arg-type]  # what somebody may write
    for name in ("config.yaml", "manifest.json"):
        shutil.copy(done.path / name, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "state": "running", "rows": None}))
    with pytest.raises(ValueError, match="expected at least one round with numbers, found none"):
        wardround.Run(tmp_path).plot()


# ---- doors -----------------------------------------------------------------------------------------------------------


def test_rows_are_read_without_torch(done: wardround.Run) -> None:
    script = (
        "import sys, wardround\n"
        f"run = wardround.Run({str(done.path)!r})\n"
        "run.metrics, run.summary, run.score, run.results, repr(run), run._repr_html_(), run.hospitals, run.classes\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-I", "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(("method", "function"), [(wardround.Run.predict, predict), (wardround.Run.export, export)])
def test_methods_take_what_the_functions_take(method: Any, function: Any) -> None:
    taken = [(name, each.default) for name, each in inspect.signature(method).parameters.items() if name != "self"]
    wanted = [(name, each.default) for name, each in inspect.signature(function).parameters.items() if name != "run"]
    assert taken == [("round" if name == "round_number" else name, default) for name, default in wanted]


def test_an_export_of_a_run(done: wardround.Run, tmp_path: Path) -> None:
    folder = done.export("peft", str(tmp_path / "out"), hospital="hospital-1", round=3)
    assert folder == tmp_path / "out"
    assert (folder / "adapter_model.safetensors").is_file()


def test_every_row_type_has_its_property() -> None:
    lists = [field.name for field in fields(RunRecords) if field.default_factory is list]
    assert [name for name in lists if not isinstance(getattr(wardround.Run, name, None), property)] == []
