"""Experiments: from a file and overrides to one object; its resolved form, its identity; problems with their place."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from wardround.aggregators import AGGREGATORS, FedAvg, Local
from wardround.clients.optimizers import SGD, AdamW
from wardround.simulator import yaml12
from wardround.simulator.config import (
    ConfigError,
    Experiment,
    Runtime,
    build,
    identity,
    load_experiment,
    load_resolved,
    resolve,
)
from wardround.simulator.experiments import PACKAGED, ExperimentsFile, open_file
from wardround.simulator.weights import Explicit, Uniform

PACKAGED_FILE = open_file(PACKAGED)
SINGLE = [name for name in PACKAGED_FILE.entries if name not in PACKAGED_FILE.sweeps]
BASE = {"data": "phantom", "model": "sam", "method": "flap_sam", "aggregator": "fedavg"}


def load(*overrides: str, name: str = "x", **entries: dict[str, Any]) -> Experiment:
    """Experiment ``x`` (extends nothing, so it holds BASE) or another of the entries."""
    file = ExperimentsFile(path=Path("f.yaml"), entries={"x": BASE, **entries})
    return load_experiment(name, file, overrides)


def problems(*overrides: str, name: str = "x", **entries: dict[str, Any]) -> tuple[object, ...]:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, name=name, **entries)
    return caught.value.problems


@pytest.mark.parametrize("name", SINGLE)
def test_every_packaged_experiment_is_valid_and_reads_back_equal(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(name, PACKAGED_FILE)
    assert experiment.name == name
    assert experiment.purpose
    (tmp_path / "config.yaml").write_text(yaml12.dump(resolve(experiment)))
    assert load_resolved(tmp_path / "config.yaml") == experiment


@pytest.mark.parametrize("name", SINGLE)
def test_the_resolved_config_is_plain_for_json_and_for_yaml_1_1(name: str) -> None:
    plain = resolve(load_experiment(name, PACKAGED_FILE))
    assert json.loads(json.dumps(plain)) == plain
    assert yaml.safe_load(yaml12.dump(plain)) == plain


def test_every_default_is_written_out() -> None:
    plain = resolve(load())
    assert plain["rounds"] == 25
    assert plain["cohort"] == {"sampling": "full", "size": None, "rate": None, "drop_rate": 0.0}
    assert plain["training"]["optimizer"]["name"] == "adamw"
    assert plain["weights"] == {"name": "examples"}
    assert plain["runtime"] == {
        "device": "auto",
        "threads": None,
        "deterministic": True,
        "cohort": "auto",
        "stack": 8,
        "compile": False,
        "features_mb": 1024,
        "features_disk_mb": 0,
        "windows": "auto",
    }


# ---- extends and overrides -------------------------------------------------------------------------------------------


def test_extends_merges_mappings_and_replaces_the_rest() -> None:
    child = {"extends": "parent", "training": {"batch_size": 3}, "aggregator": "local"}
    parent = {**BASE, "training": {"steps": 7, "batch_size": 2}, "rounds": 3}
    experiment = load(name="child", child=child, parent=parent)
    assert (experiment.training.steps, experiment.training.batch_size, experiment.rounds) == (7, 3, 3)
    assert experiment.aggregator == Local()


def test_a_plugin_of_another_name_leaves_the_old_settings_behind() -> None:
    parent = {**BASE, "training": {"optimizer": {"name": "adamw", "betas": [0.5, 0.5], "lr": 0.1}}}
    same = {"extends": "parent", "training": {"optimizer": {"lr": 0.2}}}
    other = {"extends": "parent", "training": {"optimizer": "sgd"}}
    assert load(name="same", same=same, parent=parent).training.optimizer == AdamW(betas=(0.5, 0.5), lr=0.2)
    assert load(name="other", other=other, parent=parent).training.optimizer == SGD()


def test_words_for_people_are_not_inherited() -> None:
    parent = {**BASE, "purpose": "p", "paper": "q", "expected_time": "1 s", "expected_score": "0.5"}
    assert load(name="child", child={"extends": "parent"}, parent=parent).purpose == ""
    assert load(name="parent", parent=parent).purpose == "p"


def test_overrides_win_and_the_last_one_most() -> None:
    child = {"extends": "x", "rounds": 5}
    assert load("rounds=6", "rounds=7", name="child", child=child).rounds == 7


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("method.lora.rank=8", "method.lora.rank", 8),
        ("training.optimizer.lr=8e-4", "training.optimizer.lr", 8e-4),
        ("training.optimizer=sgd", "training.optimizer", SGD()),
        ("training.optimizer={name: sgd, lr: 1}", "training.optimizer", SGD(lr=1.0)),
        ("training.clip_norm=null", "training.clip_norm", None),
        ("training.schedule.horizon_epochs=", "training.schedule.horizon_epochs", None),
        ("data.seed=010", "data.seed", 10),
        ("aggregator=fedit", "aggregator", FedAvg()),
        ("weights=uniform", "weights", Uniform()),
        ("weights={name: explicit, values: {a: 1, b: 2}}", "weights", Explicit(values={"a": 1.0, "b": 2.0})),
        ("ranks.hospital-1=4", "ranks", {"hospital-1": 4}),
        ("data.train_cases=[1, 2, 3, 4]", "data.train_cases", (1, 2, 3, 4)),
        ("purpose=a=b", "purpose", "a=b"),
        ("runtime.device=cpu", "runtime", Runtime(device="cpu")),
    ],
)
def test_overrides_use_the_paths_of_the_file_and_yaml_values(override: str, path: str, value: object) -> None:
    found: Any = load(override)
    for key in path.split("."):
        found = getattr(found, key)
    assert found == value


@pytest.mark.parametrize("override", ["rounds", "=3", "a..b=1", ".=1"])
def test_an_override_that_is_none_is_told(override: str) -> None:
    assert problems(override) == (f"--set {override}: expected path=value, such as method.lora.rank=8",)


def test_an_override_whose_value_is_no_yaml_is_told() -> None:
    with pytest.raises(yaml12.YamlError, match=r"--set rounds=\[1: line 1, column 3"):
        load("rounds=[1")


# ---- problems --------------------------------------------------------------------------------------------------------


RNAK = "unknown key, did you mean 'rank'? (known: alpha, blocks, init_b, matrices, power, rank)"


def test_every_problem_is_told_at_once_with_the_place_that_brought_it() -> None:
    """From two overrides, the entry, the entry it extends, and a key that nobody gave."""
    parent = {**BASE, "method": {"name": "flap_sam", "lora": {"rnak": 8}}, "rounds": -1}
    child = {"extends": "parent", "aggregator": "fedvg", "cohort": {"sampling": "fixed"}, "evluation": {}}
    found = problems("training.optimizer.lr=-1", "training.batch_size=big", name="child", child=child, parent=parent)
    keys = ", ".join(sorted(field.name for field in dataclasses.fields(Experiment)))
    assert sorted(map(str, found)) == sorted(
        [
            f"f.yaml: child.evluation: unknown key, did you mean 'evaluation'? (known: {keys})",
            "f.yaml: child.aggregator: unknown name 'fedvg', did you mean 'fedavg'? "
            f"(known: {', '.join(sorted(AGGREGATORS))})",
            "f.yaml: child.cohort.size: expected a number exactly with sampling 'fixed', got None",
            f"f.yaml: parent.method.lora.rnak: {RNAK}",
            "f.yaml: parent.rounds: expected at least 0, got -1",
            "--set training.optimizer.lr: expected a number above 0, got -1.0",
            "--set training.batch_size: expected a whole number, got 'big'",
        ]
    )


def test_an_override_of_a_path_that_is_not_there_is_told_with_a_guess() -> None:
    (found,) = problems("method.lora.rnak=8")
    assert found == f"--set method.lora.rnak: {RNAK}"
    (found,) = problems("rounds.x=8")
    assert found == "--set rounds: expected a whole number, got {'x': 8}"


@pytest.mark.parametrize("override", ["name=y", "extends=y", "expected_time=y"])
def test_what_is_no_setting_cannot_be_set(override: str) -> None:
    assert str(problems(override)[0]).startswith(f"--set {override.partition('=')[0]}: ")


def test_a_name_within_an_entry_is_told() -> None:
    (found,) = problems(name="y", y={"extends": "x", "name": "z"})
    assert found == "f.yaml: y.name: no setting: an experiment is called by its key in the file"


@pytest.mark.parametrize("name", ["../x", "", "a b", "-x", "a/b"])
def test_a_name_that_is_no_folder_name_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="name: expected letters, digits"):
        load(name=name, **{name: BASE})


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("rounds=-1", "rounds: expected at least 0, got -1"),
        ("seed=-1", "seed: expected a number of at least 0, got -1"),
        ("ranks={a: 0, b: 1}", "ranks: expected numbers of at least 1, got {'a': 0}"),
        ("runtime.threads=0", "runtime.threads: expected at least 1, got 0"),
        ("runtime.threads=99999999999", "runtime.threads: expected at most 1024, got 99999999999"),
        ("runtime.device=gpu", "runtime.device: expected one of the known words, got 'gpu'"),
    ],
)
def test_ranges(override: str, problem: str) -> None:
    assert str(problems(override)[0]).startswith(f"--set {problem}")


def test_a_damaged_resolved_config_is_told_with_its_file(tmp_path: Path) -> None:
    plain = resolve(load())
    (tmp_path / "config.yaml").write_text(yaml12.dump({**plain, "rounds": "many"}))
    with pytest.raises(ConfigError, match=r"config\.yaml: rounds: expected a whole number, got 'many'"):
        load_resolved(tmp_path / "config.yaml")


# ---- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "purpose=other",
        "runtime.device=cpu",
        "runtime.threads=2",
        "model.weights=somewhere/sam.pth",
        "aggregator=fedit",
    ],
)
def test_what_changes_no_result_does_not_enter_the_identity(override: str) -> None:
    assert identity(load(override)) == identity(load())


@pytest.mark.parametrize(
    "override",
    [
        "rounds=3",
        "seed=1",
        "method.lora.rank=8",
        "method.lora.blocks=1",
        "training.optimizer.lr=0.1",
        "aggregator=flap_sam",
        "runtime.deterministic=false",
        "model.image_size=32",
        "cohort.drop_rate=0.1",
    ],
)
def test_what_changes_the_result_enters_the_identity(override: str) -> None:
    assert identity(load(override)) != identity(load())


def test_a_later_setting_leaves_earlier_ids_alone() -> None:
    """``method.lora.blocks`` came later: without it nothing of it is hashed, also where there is no LoRA."""
    assert "blocks" not in identity(load())["method"]["lora"]
    assert identity(load("method.lora.blocks=null")) == identity(load())
    assert identity(load("method=decoder"))["method"] == {"name": "decoder"}


def test_the_name_does_not_enter_the_identity() -> None:
    assert identity(load(name="y", y=BASE)) == identity(load())


def test_the_identity_is_json_and_resolving_leaves_it_alone() -> None:
    experiment = load()
    plain = resolve(experiment)
    assert json.loads(json.dumps(identity(experiment))) == identity(experiment)
    assert resolve(experiment) == plain


def test_numbers_written_differently_are_the_same_experiment() -> None:
    assert identity(load("training.epochs=1", "training.optimizer.lr=1e-3")) == identity(
        load("training.epochs=1.0", "training.optimizer.lr=0.001")
    )


def test_building_from_a_plain_mapping_needs_no_file() -> None:
    experiment = build(Experiment, {"name": "mine", **BASE})
    assert math.isclose(experiment.training.optimizer.lr, 8e-4)
