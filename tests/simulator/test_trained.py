"""The model of a run, read back from its checkpoint and merged: the same model as the run scored."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wardround.clients.merged import low_rank_changes, merged_state
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.files import read_json, write_json
from wardround.simulator.run import run
from wardround.simulator.trained import load_trained

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Runs ``tiny`` with settings; the same settings once."""
    out = tmp_path_factory.mktemp("trained")

    def ran(*settings: str, name: str = "tiny") -> Path:
        experiment = load_experiment(name, open_file(PACKAGED), settings)
        return run(experiment, out=out, quiet=True, images=False).path

    return ran


def images(size: int, channels: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(3, channels, size, size, generator=draw)


@pytest.mark.parametrize("aggregator", ["flap_sam", "fedavg", "fedex_lora", "fedper", "local"])
def test_the_deployed_model_is_that_of_the_checkpoint(make: Make, aggregator: str) -> None:
    """What the aggregator deploys at a site never seen, from the tensors of the file."""
    trained = load_trained(make(f"aggregator={aggregator}"), device="cpu")
    assert trained.round == trained.experiment.rounds
    assert trained.classes == ("edema", "core")
    first = trained.load().read()
    again = load_trained(trained.path, device="cpu").tensors()
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.parametrize("method", ["flap_sam", "lora_sb", "attention", "lora_decoder"])
def test_the_merged_network_computes_the_same(make: Make, method: str) -> None:
    trained = load_trained(make(f"method={method}"), device="cpu")
    network = trained.load().model
    plain = trained.experiment.model.build_meta(len(trained.classes))
    plain.load_state_dict(merged_state(network), assign=True)
    asked = images(trained.experiment.model.image_size)
    with torch.no_grad():
        torch.testing.assert_close(plain(asked), network(asked), rtol=1e-5, atol=1e-6)


def test_a_hospital_of_a_lower_rank_changes_weights_at_its_rank(make: Make) -> None:
    settings = ("aggregator=hetlora", "ranks.hospital-1=1", "ranks.hospital-2=3", "ranks.hospital-3=2")
    trained = load_trained(make(*settings), device="cpu")
    for hospital, rank in (("hospital-1", 1), ("hospital-2", 3), ("hospital-3", 2)):
        trained.load(hospital)
        assert {len(change.A) for change in low_rank_changes(trained.replica.model)} == {rank}


def test_merging_leaves_the_network_alone(make: Make) -> None:
    network = load_trained(make(), device="cpu").load().model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for value in merged_state(network).values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_prompts_cannot_be_merged(make: Make) -> None:
    trained = load_trained(make("method=vpt_deep", "rounds=1", name="vit-tiny"), device="cpu")
    with pytest.raises(ValueError, match=r"expected adapters that are changes of weights .* got prompts"):
        merged_state(trained.load().model)


def test_what_is_not_there_is_said(make: Make, tmp_path: Path) -> None:
    path = make()
    with pytest.raises(ValueError, match=r"expected one of the rounds that are kept, 1, 2, got 7"):
        load_trained(path, round_number=7)
    with pytest.raises(ValueError, match="expected one of the hospitals hospital-1, hospital-2, hospital-3, got 'x'"):
        load_trained(path, device="cpu").tensors("x")
    with pytest.raises(ValueError, match=r"expected a run directory with manifest\.json"):
        load_trained(tmp_path)
    other = tmp_path / "old"
    shutil.copytree(path, other)
    manifest = read_json(other / "manifest.json")
    write_json(other / "manifest.json", {name: value for name, value in manifest.items() if name != "hospitals"})
    with pytest.raises(ValueError, match="expected hospitals in its manifest"):
        load_trained(other)
    write_json(other / "manifest.json", {**manifest, "weights_hash": "other"})
    with pytest.raises(ValueError, match="its base weights 'random' are other ones now"):
        load_trained(other)
    write_json(other / "manifest.json", {**manifest, "cleaned": ["checkpoints"]})
    with pytest.raises(ValueError, match="removed by `wardround clean`"):
        load_trained(other)
