"""Exports end to end: written from a run, loaded by the libraries they are for, equal to the run's own logits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from official_sam import official_sam
from PIL import Image
from transformers import AutoImageProcessor, SamModel, ViTForImageClassification

from wardround.clients.sam import Sam
from wardround.clients.vit import Vit, VitNet
from wardround.datasets.images import resized
from wardround.simulator import cli
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.exports import FORMATS, export, origin, read_origin
from wardround.simulator.randomness import generator, streams
from wardround.simulator.results import RunRecords
from wardround.simulator.run import run
from wardround.simulator.trained import load_trained

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Runs ``tiny`` with settings; the same settings once."""
    out = tmp_path_factory.mktemp("exports")

    def ran(*settings: str, name: str = "tiny") -> Path:
        settings = ("model.upscaler=sam", *settings) if name == "tiny" else settings
        experiment = load_experiment(name, open_file(PACKAGED), settings)
        return run(experiment, out=out, quiet=True, images=False).path

    return ran


def pixels(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=generator(0, "images"))


def logits_of(path: Path, images: torch.Tensor, hospital: str | None = None) -> torch.Tensor:
    return load_trained(path, device="cpu").load(hospital).model(images).detach()


def maps_of(model: SamModel, images: torch.Tensor) -> torch.Tensor:
    """Background, then the classes."""
    maps = [model(pixel_values=images, multimask_output=more).pred_masks[:, 0] for more in (False, True)]
    return torch.cat(maps, dim=1).detach()


def cls_of(net: VitNet) -> torch.Tensor:
    return net.pool(net.encode(pixels(32))).detach()


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def code_of(folder: Path) -> str:
    """The Python in a model card."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    return code


def run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The card's code, executed in its folder as it stands; its variables."""
    monkeypatch.chdir(folder)
    torch.manual_seed(0)  # it draws pixels where a reader has an image
    variables: dict[str, object] = {}
    exec(code_of(folder), variables)
    return variables


# ---- hf --------------------------------------------------------------------------------------------------------------


def test_transformers_classifies_as_the_run_does(make: Make, tmp_path: Path) -> None:
    path = make(name="vit-tiny")
    folder = export(path, "hf", tmp_path / "out")
    images, net = pixels(32), load_trained(path, device="cpu").load().model
    theirs = ViTForImageClassification.from_pretrained(folder).eval()
    close(theirs((images - net.mean) / net.std).logits.detach(), logits_of(path, images))
    assert "Classes: 0 globular, 1 homogeneous" in (folder / "README.md").read_text()
    assert tuple(theirs.config.id2label.values()) == load_trained(path, device="cpu").classes


def test_its_image_processor_prepares_as_the_run_does(make: Make, tmp_path: Path) -> None:
    path = make(name="vit-tiny")
    processor = AutoImageProcessor.from_pretrained(export(path, "hf", tmp_path / "out"))
    image = torch.randint(0, 256, (1, 50, 70, 3), generator=generator(0, "picture"), dtype=torch.uint8).numpy()
    net = load_trained(path, device="cpu").load().model
    ours = (resized(image, 32) / 255 - net.mean) / net.std
    theirs = processor(Image.fromarray(image[0]), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1.01 / 255 / 0.5)  # one step of 8 bits


@pytest.mark.parametrize("hospital", [None, "hospital-2"])
def test_transformers_segments_as_the_run_does(make: Make, tmp_path: Path, hospital: str | None) -> None:
    path = make("aggregator=fedper")
    folder = export(path, "hf", tmp_path / "out", hospital=hospital)
    theirs, images = maps_of(SamModel.from_pretrained(folder).eval(), pixels(32)), pixels(32)
    close(theirs, logits_of(path, images, hospital))
    assert (theirs - logits_of(path, images, "hospital-1")).abs().max() > 1e-4  # another model
    assert json.loads((folder / "wardround.json").read_text())["hospital"] == hospital


@pytest.mark.parametrize(("form", "weights"), [("hf", ""), ("sam-pth", "sam.pth")])
def test_an_exported_sam_is_a_base_of_ours(make: Make, tmp_path: Path, form: str, weights: str) -> None:
    path = make("method=lora_decoder")
    folder = export(path, form, tmp_path / "out")
    model = Sam(size="tiny", image_size=32, upscaler="sam", heads="checkpoint", weights=str(folder / weights))
    close(model.build(2, streams(1, "init"))(pixels(32)), logits_of(path, pixels(32)))


def test_an_exported_vit_is_a_base_of_ours_with_a_new_head(make: Make, tmp_path: Path) -> None:
    path = make(name="vit-tiny")
    net = load_trained(path, device="cpu").load().model
    model = Vit(size="tiny", image_size=32, weights=str(export(path, "hf", tmp_path / "out")))
    again = model.build(2, streams(1, "init"))
    close(cls_of(again), cls_of(net))
    assert again.head.weight.shape == (2, 32)


# ---- sam-pth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hospital", [None, "hospital-2"])
def test_segment_anything_segments_as_the_run_does(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hospital: str | None
) -> None:
    """By the code of its card, which loads with ``strict=True``, torch's default."""
    path = make("aggregator=fedper")
    folder = export(path, "sam-pth", tmp_path / "out", hospital=hospital)
    with official_sam():
        found = run_code(folder, monkeypatch)
    close(found["logits"], logits_of(path, found["pixels"], hospital))


def test_the_code_of_the_cards_runs(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make()
    found = run_code(export(path, "hf", tmp_path / "sam"), monkeypatch)
    close(found["logits"], logits_of(path, found["pixels"]))
    assert found["labels"].shape == (1, 32, 32)
    path = make(name="vit-tiny")
    found = run_code(export(path, "hf", tmp_path / "vit"), monkeypatch)
    close(found["logits"], logits_of(path, torch.zeros(1, 3, 32, 32)))  # the picture is black


# ---- what cannot be written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "name", "form", "message"),
    [
        ((), "vit-tiny", "sam-pth", "expected a SAM, got a ViT; export it with --format hf"),
        (("model.upscaler=full",), "tiny", "hf", r"expected model\.upscaler: sam, .* got full"),
        (("model.upscaler=full",), "tiny", "sam-pth", r"expected model\.upscaler: sam, .* got full"),
        (("method=vpt_deep",), "vit-tiny", "hf", "got prompts, .* `wardround predict` uses the model as it is"),
        (("aggregator=local",), "tiny", "hf", "there is no model of all; got none: choose one of hospital-1"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    make: Make, tmp_path: Path, settings: tuple[str, ...], name: str, form: str, message: str
) -> None:
    path = make(*settings, name=name)
    with pytest.raises(ValueError, match=message):
        export(path, form, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["hf", "sam-pth"])
def test_only_adapters_can_do_without_the_base(make: Make, tmp_path: Path, form: str) -> None:
    with pytest.raises(ValueError, match=f"expected the format peft where the base is to be left out, got '{form}'"):
        export(make(), form, tmp_path / "out", base=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_and_an_unknown_format_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected peft, hf, sam-pth, got 'onnx'"):
        export(make(), "onnx")
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="expected a folder that is new or empty"):
        export(make(), "hf", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


# ---- where it comes from ---------------------------------------------------------------------------------------------


def test_the_origin_is_that_of_the_run(make: Make, tmp_path: Path) -> None:
    path = make()
    folder = export(path, "hf", tmp_path / "out", round_number=1)
    said = read_origin(folder)
    assert said == origin(load_trained(path, round_number=1, device="cpu"))
    assert (said["run"], said["round"], said["hospital"]) == (path.name, 1, None)
    assert (said["model"]["name"], said["model"]["upscaler"], said["classes"]) == ("sam", "sam", ["edema", "core"])
    assert (said["method"]["name"], said["aggregator"]["name"], said["data"]["name"]) == ("flap_sam",) * 2 + (
        "phantom",
    )
    with pytest.raises(ValueError, match=r"but it has no wardround\.json"):
        read_origin(tmp_path)


def test_the_list_of_training_cases_is_that_of_the_run(make: Make, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(make(), tmp_path / "run"))
    (copy / "trained_on.txt").write_text("aa\nbb\n")
    assert origin(load_trained(copy, device="cpu"))["trained_on"] == ["aa", "bb"]
    (copy / "trained_on.txt").unlink()
    assert origin(load_trained(copy, device="cpu"))["trained_on"] is None


def test_a_start_is_said_without_its_path(make: Make, tmp_path: Path) -> None:
    donor = make()
    path = make(f"start_from={donor}", "rounds=1")
    folder = export(path, "hf", tmp_path / "out")
    said = read_origin(folder)["started_from"]
    assert said.keys() == {"run", "round", "taken", "merged", "anew"}
    assert (said["run"], said["round"]) == (f"tiny/{donor.name}", 2)
    card = (folder / "README.md").read_text()
    assert f"started from another run, `tiny/{donor.name}` after round 2." in card
    assert "The terms of the model that it started from bind too." in card
    assert str(donor) not in card + (folder / "wardround.json").read_text()
    assert read_origin(export(donor, "hf", tmp_path / "first"))["started_from"] is None
    assert "started from" not in (tmp_path / "first" / "README.md").read_text()


def test_paths_of_the_machine_stay_at_home(make: Make, tmp_path: Path) -> None:
    base = export(make(), "sam-pth", tmp_path / "base", licence="mit")
    path = make(f"model.weights={base / 'sam.pth'}")
    folder = export(path, "hf", tmp_path / "out")
    assert read_origin(folder)["model"]["weights"] == "sam.pth"
    assert not [file for file in folder.glob("*.[jm][sd]*") if str(tmp_path) in file.read_text()]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_the_folder_and_what_is_in_it(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(shutil.copytree(make(), make().with_name("copy"), dirs_exist_ok=True))
    assert cli.main(["export", str(path), "--format", "sam-pth", "--hospital", "hospital-1"]) == 0
    first, *files = capsys.readouterr().out.splitlines()
    assert first == str(path / "export" / "sam-pth-hospital-1")
    assert [line.split()[-1] for line in files] == ["README.md", "sam.pth", "wardround.json"]
    assert all(re.fullmatch(r" +\d[\d.]* (k|M)?B  \S+", line) for line in files)
    assert cli.main(["export", str(path), "--format", "sam-pth", "--hospital", "hospital-1"]) == 2
    assert "expected a folder that is new or empty" in capsys.readouterr().err
    assert RunRecords.load(path).finished  # the export in it is in nobody's way


def test_the_command_knows_the_formats() -> None:
    assert tuple(FORMATS) == cli.EXPORTS
