"""Exported adapters against PEFT itself: it loads them, computes the run's logits, merges them, and saves the same.

The networks that PEFT wraps are those of plain ``transformers``, and our own for SAM with our upscaler.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import SamModel, ViTForImageClassification

from wardround.aggregators.contract import HospitalInfo
from wardround.clients.merged import low_rank_changes, merged_state
from wardround.clients.peft_files import read_peft
from wardround.clients.sam import SamNet
from wardround.clients.weight_files import ASSETS
from wardround.simulator import run as run_module
from wardround.simulator.assembly import build_replica, setting_of
from wardround.simulator.checkpoint import Checkpoint
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.exports import export, origin
from wardround.simulator.exports.peft import base_network, write_peft
from wardround.simulator.files import write_json
from wardround.simulator.randomness import streams
from wardround.simulator.run import run
from wardround.simulator.trained import Trained, load_trained

Make = Callable[..., Path]

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""Logits of two programs in fp32."""

RUNS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "flap_sam": ("tiny", None, ()),
    "fedavg": ("tiny", None, ("aggregator=fedavg", "model.upscaler=sam")),
    "fedex_lora": ("tiny", None, ("aggregator=fedex_lora", "model.upscaler=sam")),
    "hetlora": ("tiny", "hospital-2", ("aggregator=hetlora", *(f"ranks.hospital-{n}={n}" for n in (1, 2, 3)))),
    "fedper": ("tiny", "hospital-1", ("aggregator=fedper", "model.upscaler=sam")),
    "lora_sb": ("tiny", None, ("method=lora_sb", "method.rank=4", "aggregator=fedavg")),
    "vit": ("vit-tiny", None, ()),
    "started": ("tiny", None, ("method=lora", "seed=3", "model.upscaler=sam")),
}
"""Experiment, hospital and settings of real runs."""

DONOR = ("model.upscaler=sam", "method=lora_decoder", "seed=1")
"""What the run ``started`` begins with: another method and seed, whose decoder has trained."""

FAST = ("fedex_lora", "started")
"""Those whose base is more than the seed says."""

MODELS: dict[str, tuple[str, ...]] = {
    "our upscaler": (),
    "sam's upscaler": ("model.upscaler=sam",),
    "fp64": ("training.precision=fp64",),
    "scale": ("method.lora.alpha=3", "method.lora.power=0.5", "method.lora.matrices=qkvo", "model.upscaler=sam"),
    "lora": ("method=lora", "model.upscaler=sam"),
    "lora_sb": ("method=lora_sb", "method.rank=4", "method.scale=0.7", "aggregator=fedavg"),
    "lora_decoder": ("method=lora_decoder", "model.upscaler=sam"),
    "samed": ("method=samed", "model.upscaler=sam"),
    "samed_s": ("method=samed_s",),
    "vit": (),
    "vit, one block": ("method.lora.blocks=1", "method.lora.matrices=qkvo"),
    "vit, union": ("method={name: union, of: [lora, bias]}",),
}
"""Settings of models with random values in everything that trains."""


@pytest.fixture(scope="module", autouse=True)
def pages() -> Iterator[None]:
    """Pages are tested elsewhere: only their files are there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_report", lambda folder, **_: (folder / "report.html").write_text(""))
        yield


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Runs ``tiny`` or ``vit-tiny`` with settings for one round."""
    out = tmp_path_factory.mktemp("peft")

    def ran(*settings: str, name: str = "tiny") -> Path:
        experiment = load_experiment(name, open_file(PACKAGED), (*settings, "rounds=1"))
        return run(experiment, out=out, quiet=True, images=False).path

    return ran


def untrained(*settings: str, name: str, rank: int | None = None, changed: bool = False) -> Trained:
    """A model as a run has it, with random values in everything that trains.

    Args:
        settings: Of the experiment.
        name: Of the experiment.
        rank: Of a hospital that has fewer rows; None: all.
        changed: Whether the server has changed every other adapted weight, as FedEx-LoRA does.
    """
    experiment = load_experiment(name, open_file(PACKAGED), settings)
    hospitals = {"hospital-1": HospitalInfo(name="hospital-1", num_examples=1, rank=rank)}
    replica = build_replica(experiment, 2, torch.device("cpu"), tuple(hospitals))
    draw = torch.Generator().manual_seed(1)
    tensors = {n: 0.3 * torch.randn(v.shape, generator=draw) for n, v in replica.values.items()}
    base = {n: 0.1 * torch.randn(s, generator=draw) for n, s in [*replica.frozen_shapes().items()][::2] if changed}
    setting = setting_of(experiment, replica, tuple(hospitals.values()))
    server = replace(experiment.aggregator.init(setting, streams(0, "server")), tensors=tensors, base=base)
    replica.set_base(base)
    replica.load({n: replica.narrowed_to(rank, n, value) for n, value in tensors.items()})
    return Trained(
        path=Path("runs/tiny/0123"),
        experiment=experiment,
        classes=("edema", "core"),
        hospitals=hospitals,
        replica=replica,
        aggregator=experiment.aggregator,
        checkpoint=Checkpoint(server=replace(server, round=1), memories={}),
    )


def written(trained: Trained, folder: Path, *, base: bool = True) -> Path:
    """The files of an export without its card."""
    folder.mkdir()
    write_peft(trained, folder, base=base)
    write_json(folder / "wardround.json", origin(trained))
    return folder


def images(trained: Trained) -> Tensor:
    size, channels = trained.experiment.model.image_size, 3 if trained.experiment.model.task == "classification" else 1
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def ours(trained: Trained) -> Tensor:
    """The logits of the run's own network."""
    return trained.replica.model(images(trained).to(trained.replica.dtype)).float()


@torch.no_grad()
def theirs(model: Any, trained: Trained) -> Tensor:
    """The logits of a network of ``transformers`` or of ours, wrapped by PEFT or not."""
    asked, network = images(trained), model.get_base_model() if hasattr(model, "get_base_model") else model
    if isinstance(network, SamNet):
        return model(asked)
    if isinstance(network, ViTForImageClassification):
        net: Any = trained.replica.model
        return model(pixel_values=(asked - net.mean) / net.std).logits
    assert isinstance(network, SamModel)
    maps = [model(pixel_values=asked.expand(-1, 3, -1, -1), multimask_output=many).pred_masks for many in (False, True)]
    return torch.cat(maps, dim=2)[:, 0]


def check(trained: Trained, folder: Path, again: Path) -> nn.Module:
    """PEFT loads an export, computes the run's logits, saves the same files, and merges it into the same logits."""
    expected = ours(trained)
    assert not torch.allclose(theirs(base_network(folder), trained), expected, **CLOSE)
    model = PeftModel.from_pretrained(base_network(folder), folder).eval()
    torch.testing.assert_close(theirs(model, trained), expected, **CLOSE)
    model.save_pretrained(again)
    same_files(folder, again)
    merged = model.merge_and_unload()
    torch.testing.assert_close(theirs(merged, trained), expected, **CLOSE)
    return merged


def same_files(written: Path, again: Path) -> None:
    """The tensors are the same bits, and whatever our config says theirs says too."""
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (written, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    said, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in (written, again))
    del said["base_model_name_or_path"]  # theirs is the folder that transformers has read
    targets, others = (set(one.pop("target_modules")) for one in (said, theirs))
    assert {name for name in targets if not name.endswith(tuple(others))} == set()  # PEFT shortens a long list
    assert set(theirs.pop("modules_to_save") or ()) == set(said.pop("modules_to_save") or ())
    assert {key: theirs[key] for key in said} == said


@pytest.mark.parametrize("case", MODELS)
def test_peft_computes_the_same(tmp_path: Path, case: str) -> None:
    trained = untrained(*MODELS[case], name="vit-tiny" if case.startswith("vit") else "tiny")
    check(trained, written(trained, tmp_path / "export"), tmp_path / "again")


@pytest.mark.parametrize("changed", [False, True])
def test_a_hospital_of_a_lower_rank_is_written_at_its_rank(tmp_path: Path, changed: bool) -> None:
    """Fused layers have twice the rank, the decoder's have it once; weights that the server changed are saved whole."""
    trained = untrained(name="tiny", rank=1, changed=changed)
    folder = written(trained, tmp_path / "export")
    check(trained, folder, tmp_path / "again")
    tensors = load_file(folder / "adapter_model.safetensors")
    ranks = {name: len(value) for name, value in tensors.items() if "lora_A" in name}
    assert {rank for name, rank in ranks.items() if ".qkv." in name} == {2}
    assert {rank for name, rank in ranks.items() if ".qkv." not in name} == {1}
    assert len(ranks) == (8 if changed else 16)
    for name in trained.checkpoint.server.base:
        torch.testing.assert_close(tensors[f"base_model.model.{name}"], merged_state(trained.replica.model)[name])


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in RUNS]
)
def test_peft_computes_what_a_run_has(make: Make, tmp_path: Path, case: str) -> None:
    name, hospital, settings = RUNS[case]
    first = [f"start_from={make(*DONOR)}"] if case == "started" else []
    path = make(*first, *settings, name=name)
    trained = load_trained(path, device="cpu")
    trained.load(hospital)
    check(trained, export(path, "peft", tmp_path / "export", hospital=hospital), tmp_path / "again")


@pytest.mark.parametrize(
    ("case", "base"), [("our upscaler", True), ("sam's upscaler", True), ("vit", True), ("vit", False)]
)
def test_the_code_of_the_card_gives_the_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, base: bool
) -> None:
    trained = untrained(*MODELS[case], name="vit-tiny" if case == "vit" else "tiny")
    (tmp_path / "export").mkdir()
    recipe = write_peft(trained, tmp_path / "export", base=base)
    write_json(tmp_path / "export" / "wardround.json", origin(trained))
    monkeypatch.chdir(tmp_path / "export")
    scope: dict[str, Any] = {}
    exec(recipe.code, scope)
    with torch.no_grad():
        expected = trained.replica.model(scope["pixels"])
    torch.testing.assert_close(scope["logits"], expected, **CLOSE)


@pytest.mark.parametrize("case", ["our upscaler", "sam's upscaler", "vit"])
def test_without_the_base_it_is_built_again(tmp_path: Path, case: str) -> None:
    """From the seed: the same bits as those of the folder."""
    trained = untrained(*MODELS[case], "seed=3", name="vit-tiny" if case == "vit" else "tiny")
    whole, alone = written(trained, tmp_path / "whole"), written(trained, tmp_path / "alone", base=False)
    assert {path.name for path in whole.iterdir()} - {path.name for path in alone.iterdir()} == {"base"}
    one, two = base_network(whole).state_dict(), base_network(str(alone)).state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_the_weights_of_a_base_that_was_left_out_are_named(tmp_path: Path) -> None:
    """By the last part of their path alone; other ones than the run's are refused."""
    (tmp_path / "elsewhere").mkdir()
    weights = tmp_path / "elsewhere" / "mine.safetensors"
    shutil.copy(ASSETS / "sam-mini.safetensors", weights)
    settings = ("model.size=mini", "model.image_size=64", f"model.weights={weights}")
    trained = untrained(*settings, name="tiny")
    folder = written(trained, tmp_path / "export", base=False)
    assert str(tmp_path) not in (folder / "wardround.json").read_text()
    with pytest.raises(ValueError, match=r"weights 'mine\.safetensors': expected .* there is none here"):
        base_network(folder)
    with pytest.raises(
        ValueError, match=r"expected the weights 'mine\.safetensors' of the run, but 'random' are other"
    ):
        base_network(folder, weights="random")
    model = PeftModel.from_pretrained(base_network(folder, weights=str(weights)), folder)
    torch.testing.assert_close(theirs(model, trained), ours(trained), **CLOSE)


def test_a_base_that_is_there_is_the_base(tmp_path: Path) -> None:
    folder = written(untrained(name="vit-tiny"), tmp_path / "export")
    with pytest.raises(ValueError, match="weights: expected none, as the folder base holds the base, got 'random'"):
        base_network(folder, weights="random")


def test_the_base_of_a_run_that_started_from_another_is_in_its_folder_alone(make: Make, tmp_path: Path) -> None:
    path = make(f"start_from={make(*DONOR)}", *RUNS["started"][2])
    with pytest.raises(ValueError, match="expected an export with its base"):
        export(path, "peft", tmp_path / "alone", base=False)
    folder = export(path, "peft", tmp_path / "whole")
    shutil.rmtree(folder / "base")
    with pytest.raises(ValueError, match="expected the folder base, as the run started from another one"):
        base_network(folder)


def test_where_every_adapted_weight_has_changed_no_adapter_is_left(tmp_path: Path) -> None:
    trained = untrained("method=lora", name="tiny", changed=True)
    shapes = trained.replica.frozen_shapes()
    base = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    trained.replica.set_base(base)
    state = trained.checkpoint
    trained = replace(trained, checkpoint=replace(state, server=replace(state.server, base=base)))
    folder = written(trained, tmp_path / "export")
    check(trained, folder, tmp_path / "again")
    adapter = read_peft(folder)
    assert adapter.changes == ()
    assert {name for name in adapter.saved if name.endswith(".weight")} == set(base)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "tiny",
            ("method=attention",),
            "the method attention, which has none; with model.upscaler: sam",
        ),
        ("tiny", ("method=full", "model.upscaler=sam"), "method full, which has none; use --format hf or sam-pth"),
        ("vit-tiny", ("method=linear",), "got the method linear, which has none; use --format hf, which holds"),
        ("vit-tiny", ("method=bias",), "got the method bias"),
        ("vit-tiny", ("method=lora_vpt",), "got prompts, .*, which no format can hold"),
        ("vit-tiny", ("method=dvpt",), "got prompts"),
        ("vit-tiny", ("method=adapter",), "got bottleneck adapters"),
        ("tiny", ("method=ma_sam",), "got slice adapters"),
    ],
)
def test_a_model_without_low_rank_changes_is_refused(
    tmp_path: Path, name: str, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_peft(untrained(*settings, name=name), tmp_path, base=True)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no wardround\.json"):
        base_network(tmp_path)


@pytest.mark.parametrize("case", ["scale", "vit", "lora_sb"])
def test_what_was_written_is_read_back(tmp_path: Path, case: str) -> None:
    """In our names: A of every adapter and B with its scale, and what trains beside them."""
    trained = untrained(*MODELS[case], name="vit-tiny" if case == "vit" else "tiny")
    read = read_peft(written(trained, tmp_path / "export", base=False))
    changes = {change.adapter: change for change in low_rank_changes(trained.replica.model)}
    assert {change.adapter for change in read.changes} == changes.keys()
    for change in read.changes:
        expected = changes[change.adapter]
        assert (change.weight, change.rows) == (expected.weight, expected.rows)
        assert torch.equal(change.A, expected.A)
        assert torch.equal(change.B, expected.scaled)
    dense = {name for name in trained.replica.layout.dense if trained.replica.layout.kind[name] != "core"}
    assert read.saved.keys() == dense
    assert all(torch.equal(value, trained.replica.model.state_dict()[name]) for name, value in read.saved.items())
