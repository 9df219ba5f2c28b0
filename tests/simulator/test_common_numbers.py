"""Runs of one seed draw the same: shown by the hashes that every run writes into its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import advance

from wardround.clients import training
from wardround.simulator.assembly import Assembled, assemble, locate
from wardround.simulator.common_numbers import _hash, common_numbers
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.resident import Resident
from wardround.simulator.run import run
from wardround.simulator.sweeps.pairing import unpaired

SMALL = ("data.size=16", "data.slices=3", "model.image_size=16", "training.batch_size=2")


def small(*settings: str) -> Experiment:
    return load_experiment("tiny", open_file(PACKAGED), [*SMALL, *settings])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def resident() -> Resident:
    return Resident()


@pytest.fixture
def made(folder: Path, resident: Resident) -> Any:
    """Assembles the small experiment with settings."""

    def make(*settings: str) -> Assembled:
        experiment = small(*settings)
        return assemble(experiment, locate(experiment, folder, resident), torch.device("cpu"), resident=resident)

    return make


@pytest.fixture
def numbers(made: Any) -> Any:
    """What the small experiment with settings draws."""

    def make(*settings: str) -> dict[str, Any]:
        assembled = made(*settings)
        return common_numbers(assembled.federated, assembled.experiment.rounds)

    return make


FIXED = "cohort={sampling: fixed, size: 2, drop_rate: 0.3}"


@pytest.mark.parametrize(
    "setting",
    ["aggregator=fedavg", "training.optimizer.lr=0.5", "stages.attack={name: sign_flip, hospitals: [hospital-1]}"],
)
def test_what_the_server_does_and_the_learning_rate_change_no_draw(numbers, setting: str) -> None:
    assert numbers(FIXED, setting) == numbers(FIXED)


def test_methods_share_all_but_what_only_one_of_them_has(numbers) -> None:
    """FLAP-SAM is LoRA with a head, and the decoder's head is the same; batches and augmentations are equal."""
    flap, lora, decoder = (
        numbers(f"method={method}")
        for method in ("{name: flap_sam, lora: {rank: 2}}", "{name: lora, lora: {rank: 2}}", "decoder")
    )
    for what in ("cohorts", "batches", "augmentation"):
        assert flap[what] == lora[what] == decoder[what]
    flap, lora, decoder = (found["initial"] for found in (flap, lora, decoder))
    assert {name: flap[name] for name in lora} == lora
    assert {"encoder/lora_A", "decoder/lora_A"} <= lora.keys()
    heads = {name for name in decoder if name.startswith("head/")}
    assert {name: flap[name] for name in heads} == {name: decoder[name] for name in heads}
    assert len(heads) == 4


def test_a_low_rank_is_the_first_rows_of_a_high_one(numbers) -> None:
    four, eight = (numbers(f"method.lora.rank={rank}")["initial"] for rank in (4, 8))
    for group in ("encoder/lora_A", "decoder/lora_A"):
        assert eight[group]["drawn"][:4] == four[group]["drawn"]
        assert len(set(eight[group]["drawn"])) == 8
        assert eight[group]["of"] == four[group]["of"]
    assert eight["encoder/lora_B"]["of"] != four["encoder/lora_B"]["of"]  # no values to compare
    assert eight["head/weight"] == four["head/weight"]


def test_double_precision_starts_at_the_same_values(numbers) -> None:
    assert numbers("training.precision=fp64") == numbers()


def test_another_seed_draws_otherwise(numbers) -> None:
    """Everything that is drawn; what asks for it (``of``) stays. B and biases start at zero, norms at one."""
    first, second = numbers(FIXED), numbers(FIXED, "seed=1")
    for what, places in first.items():
        for place, entry in places.items():
            assert entry["of"] == second[what][place]["of"]
            constant = what == "initial" and place.split("/")[1] in ("lora_B", "norm")
            assert (entry["drawn"] == second[what][place]["drawn"]) == constant, (what, place)


def test_a_further_hospital_shifts_nobody_else(numbers) -> None:
    """One of three is left out; who is drawn of three is another question than who is drawn of two."""
    three, two = numbers(), numbers("split.leave_out=[hospital-2]")
    for what in ("batches", "augmentation"):
        assert two[what] == {name: three[what][name] for name in ("hospital-1", "hospital-3")}
    assert two["initial"] == three["initial"]
    assert two["cohorts"][""]["of"] != three["cohorts"][""]["of"]


@pytest.mark.parametrize("augment", ["standard", "{name: standard, variants: 2}"])
def test_the_hashes_are_those_of_what_a_round_trains_on(made, numbers, monkeypatch, augment: str) -> None:
    """Every batch of hospital 2 in rounds 1 and 2, taken down where training asks for it."""
    setting = f"augment={augment}"
    taken: list[Any] = []
    draws = training.draws

    def noted(windows: Any, *rest: Any) -> Any:
        for one in draws(windows, *rest):
            taken.append((len(windows), windows, one))
            yield one

    monkeypatch.setattr(training, "draws", noted)
    assembled = made(setting)
    expected = numbers(setting)
    own = assembled.federated.hospitals["hospital-2"].train
    checkpoint = assembled.initial
    for number in range(2):
        taken.clear()
        checkpoint = advance(assembled.federated, checkpoint).checkpoint
        mine = [one for _, windows, one in taken if windows is own]
        assert len(mine) == len(own) / 2 == 4
        assert expected["batches"]["hospital-2"]["drawn"][number] == _hash([one.index for one in mine])
        rows = [getattr(one.parameters, name) for one in mine for name in vars(one.parameters)]
        assert expected["augmentation"]["hospital-2"]["drawn"][number] == _hash(rows)


def test_runs_write_them_and_are_paired(numbers, folder: Path, tmp_path: Path) -> None:
    """A pooled run and one of the base alone draw for other settings, and are unpaired with nobody."""
    done = run(small("rounds=0"), data=folder, out=tmp_path, quiet=True, images=False)
    written = json.loads((done.path / "manifest.json").read_text())
    assert written["common_numbers"] == numbers("rounds=0")
    assert written["common_numbers"]["batches"] == {}
    others = ([], ["aggregator=fedavg"], ["method.lora.rank=3"], ["aggregator=fedavg", "pooled=true"])
    assert unpaired([written, *({**written, "common_numbers": numbers(*settings)} for settings in others)]) == []
    of_other_seed = {**written, "common_numbers": numbers("seed=1")}
    assert len(unpaired([written, of_other_seed])) == 1
    assert len(unpaired([{**written, "common_numbers": numbers()}, of_other_seed])) == 3
