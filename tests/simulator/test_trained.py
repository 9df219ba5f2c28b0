"""The model of a run, read back from its checkpoint and merged: the same model as the run scored."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wardround.aggregators.contract import Tensors
from wardround.clients.merged import low_rank_changes, merged_state
from wardround.simulator.files import read_json, write_json
from wardround.simulator.trained import load_trained

Make = Callable[..., Path]


def images(size: int, channels: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(3, channels, size, size, generator=draw)


def test_the_deployed_model_is_that_of_the_checkpoint(trained_run: Make) -> None:
    """FedAvg deploys the server's tensors everywhere; FedPer those, and at a hospital the head that it kept."""
    average = load_trained(trained_run("aggregator=fedavg"), device="cpu")
    assert average.round == average.experiment.rounds == 2
    assert average.classes == ("edema", "core")
    same(average.load().read(), saved(average.path / "checkpoint" / "round-0002" / "server.safetensors"))
    personal = load_trained(trained_run("aggregator=fedper"), device="cpu")
    server = saved(personal.path / "checkpoint" / "round-0002" / "server.safetensors")
    same(personal.load().read(), server)
    for hospital in personal.hospitals:
        head = saved(personal.path / "checkpoint" / "memory" / f"{hospital}-0002.safetensors")
        assert head.keys() < server.keys()
        assert any(not torch.equal(value, server[name]) for name, value in head.items())
        same(personal.load(hospital).read(), {**server, **head})


def saved(file: Path) -> dict[str, torch.Tensor]:
    """The trainable tensors in a file of a checkpoint."""
    return {
        name.removeprefix("tensors/"): value for name, value in load_file(file).items() if name.startswith("tensors/")
    }


def same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys() > set()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_without_a_model_of_all_a_hospital_is_asked_for(trained_run: Make) -> None:
    trained = load_trained(trained_run("aggregator=local"), device="cpu")
    with pytest.raises(ValueError, match="there is no model of all; got none: choose one of hospital-1, hospital-2"):
        trained.load()
    one, other = trained.tensors("hospital-1"), trained.tensors("hospital-2")
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", ["flap_sam", "lora_sb", "attention", "lora_decoder"])
def test_the_merged_network_computes_the_same(trained_run: Make, method: str) -> None:
    trained = load_trained(trained_run(f"method={method}"), device="cpu")
    network = trained.load().model
    plain = trained.experiment.model.build_meta(len(trained.classes))
    plain.load_state_dict(merged_state(network), assign=True)
    asked = images(trained.experiment.model.image_size)
    with torch.no_grad():
        torch.testing.assert_close(plain(asked), network(asked), rtol=1e-5, atol=1e-6)


def test_a_hospital_of_a_lower_rank_changes_weights_at_its_rank(trained_run: Make) -> None:
    settings = ("aggregator=hetlora", "ranks.hospital-1=1", "ranks.hospital-2=3", "ranks.hospital-3=2")
    trained = load_trained(trained_run(*settings), device="cpu")
    for hospital, rank in (("hospital-1", 1), ("hospital-2", 3), ("hospital-3", 2)):
        trained.load(hospital)
        assert {len(change.A) for change in low_rank_changes(trained.replica.model)} == {rank}


def test_merging_leaves_the_network_alone(trained_run: Make) -> None:
    network = load_trained(trained_run(), device="cpu").load().model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for value in merged_state(network).values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_prompts_cannot_be_merged(trained_run: Make) -> None:
    trained = load_trained(trained_run("method=vpt_deep", "rounds=1", name="vit-tiny"), device="cpu")
    with pytest.raises(ValueError, match=r"expected adapters that are changes of weights .* got prompts"):
        merged_state(trained.load().model)


def test_what_is_not_there_is_said(trained_run: Make, tmp_path: Path) -> None:
    path = trained_run()
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
