"""Weights of a ViT in every form they come in, against the models of transformers, and every way they can be wrong."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from wardround.clients import METHODS, vit_weights, weight_files
from wardround.clients.replica import Replica
from wardround.clients.vit import SIZES, Vit, VitNet
from wardround.clients.vit_weights import digest, normalisation, resize_positions
from wardround.simulator.randomness import generator, streams

SIZE = SIZES["tiny"]
POSITIONS = "vit.embeddings.position_embeddings"
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def hugging_face(
    kind: type[PreTrainedModel] = ViTForImageClassification, image_size: int = 32, **settings: object
) -> PreTrainedModel:
    """A model of transformers of size tiny, three classes, every tensor random."""
    config_of = DeiTConfig if kind is DeiTForImageClassification else ViTConfig
    dimensions = {
        "hidden_size": SIZE.width,
        "num_hidden_layers": SIZE.layers,
        "num_attention_heads": SIZE.heads,
        "intermediate_size": SIZE.mlp,
        "patch_size": SIZE.patch,
        "encoder_stride": SIZE.patch,
        "image_size": image_size,
        "num_labels": 3,
    }
    model = kind(config_of(**{**dimensions, **settings})).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator(0, "weights", name)))
    return model


def image_of(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=generator(0, "image"), dtype=torch.float64)


def build(weights: Path | str, image_size: int = 32, **settings: object) -> VitNet:
    return Vit(size="tiny", image_size=image_size, weights=str(weights), **settings).build(3, streams(0, "init"))


def normalised(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.5


@torch.no_grad()
def ours(net: VitNet, images: Tensor) -> Tensor:
    """CLS of our network in fp64."""
    return net.double().features(images)


@torch.no_grad()
def theirs(model: PreTrainedModel, images: Tensor, **settings: object) -> Tensor:
    """CLS of the model in fp64, after its last norm."""
    base = getattr(model.double(), model.base_model_prefix, model)
    cls: Tensor = base(normalised(images), **settings).last_hidden_state[:, 0]
    return cls


def as_directory(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder / "model")
    return folder / "model"


def as_shards(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder / "model", max_shard_size="20KB")
    assert len([*(folder / "model").glob("*.safetensors")]) > 1
    return folder / "model"


def as_file(model: PreTrainedModel, folder: Path) -> Path:
    return as_directory(model, folder) / "model.safetensors"


def with_names_of_version_5(model: PreTrainedModel, folder: Path) -> Path:
    save_file(model.state_dict(), folder / "five.safetensors")
    return folder / "five.safetensors"


def version_4(name: str) -> str:
    """The name that version 4 had for a tensor, written down a second time, the other way round."""
    for new, old in (
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        name = name.replace(new, old)
    return re.sub(r"(^|\.)layers\.", r"\1encoder.layer.", name)


def with_names_of_version_4(model: PreTrainedModel, folder: Path) -> Path:
    save_file({version_4(name): tensor for name, tensor in model.state_dict().items()}, folder / "four.safetensors")
    return folder / "four.safetensors"


Writer = Callable[[PreTrainedModel, Path], Path]
WRITERS = [as_directory, as_shards, as_file, with_names_of_version_5, with_names_of_version_4]


@pytest.mark.parametrize("kind", [ViTForImageClassification, ViTModel], ids=["with-head", "with-pooler"])
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_form_gives_the_model_of_transformers(kind: type, write: Writer, tmp_path: Path) -> None:
    model = hugging_face(kind)
    expected = theirs(model, image_of())
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(build(write(model.float(), tmp_path)), image_of()), expected, **EXACT)


def test_logits_are_theirs_with_their_head(tmp_path: Path) -> None:
    model = hugging_face()
    net = build(as_directory(model, tmp_path)).double()
    net.head.load_state_dict(model.double().classifier.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(net(image_of()), model(normalised(image_of())).logits, **EXACT)


def test_heads_mask_token_and_decoder_are_left_out(tmp_path: Path) -> None:
    """Of a model of masked images, which has them all but a classifier; our head is drawn."""
    model = hugging_face(ViTForMaskedImageModeling)
    net = build(as_directory(model, tmp_path))
    assert torch.equal(net.head.weight, Vit(size="tiny", image_size=32).build(3, streams(0, "init")).head.weight)
    torch.testing.assert_close(ours(net, image_of()), theirs(model, image_of()), **EXACT)


def test_deit_is_what_it_is_when_nobody_sees_its_distillation_token(tmp_path: Path) -> None:
    """Theirs with an attention mask over token 1, and by that another than theirs without."""
    model = hugging_face(DeiTForImageClassification)
    net = build(as_directory(model, tmp_path))
    mask = torch.ones(2, 2 + 16)
    mask[:, 1] = 0
    torch.testing.assert_close(ours(net, image_of()), theirs(model, image_of(), attention_mask=mask), **EXACT)
    assert (ours(net, image_of()) - theirs(model, image_of())).abs().max() > 1e-3


@pytest.mark.parametrize(("trained_at", "used_at"), [(32, 64), (64, 32), (48, 40)])
@pytest.mark.parametrize("kind", [ViTForImageClassification, DeiTForImageClassification], ids=["vit", "deit"])
def test_another_image_size_is_interpolation_at_run_time(
    kind: type, trained_at: int, used_at: int, tmp_path: Path
) -> None:
    """In fp64 with the resized table itself; the loaded one is that table in fp32."""
    model = hugging_face(kind, trained_at)
    net = build(as_directory(model, tmp_path), used_at)
    table = model.double().base_model.embeddings.position_embeddings.detach()
    special = table.shape[1] - (trained_at // SIZE.patch) ** 2
    table = resize_positions(torch.cat([table[:, :1], table[:, special:]], dim=1), used_at // SIZE.patch)
    assert torch.equal(net.get_parameter(POSITIONS)[:, 0], table[:, 0].float())
    torch.testing.assert_close(net.get_parameter(POSITIONS).detach(), table.float(), rtol=0, atol=1e-7)
    net.double().get_parameter(POSITIONS).copy_(table)
    mask = torch.ones(2, special + (used_at // SIZE.patch) ** 2)
    mask[:, 1:special] = 0
    expected = theirs(model, image_of(used_at), interpolate_pos_encoding=True, attention_mask=mask)
    torch.testing.assert_close(ours(net, image_of(used_at)), expected, **EXACT)


def test_resizing_by_hand() -> None:
    """One patch position holds for all of four; equal ones stay equal; CLS stays as it is."""
    assert resize_positions(torch.tensor([[[7.0], [1.0]]]), 2).flatten().tolist() == [7.0, 1.0, 1.0, 1.0, 1.0]
    table = torch.tensor([[[7.0], [2.0], [2.0], [2.0], [2.0]]])
    torch.testing.assert_close(resize_positions(table, 3).flatten(), torch.tensor([7.0] + 9 * [2.0]))
    assert resize_positions(table, 2) is table


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_type_becomes_fp32(kind: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(kind) for name, tensor in hugging_face().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    net = build(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}
    assert torch.equal(net.vit.layernorm.weight, state["vit.layernorm.weight"].float())


def test_our_own_file_comes_back_without_its_head(tmp_path: Path) -> None:
    net = Vit(size="tiny", image_size=32).build(5, streams(5, "other"))
    save_file(net.state_dict(), tmp_path / "own.safetensors")
    again = build(tmp_path / "own.safetensors")
    assert all(torch.equal(tensor, net.vit.state_dict()[name]) for name, tensor in again.vit.state_dict().items())


def test_all_wrong_tensors_are_listed_at_once(tmp_path: Path) -> None:
    state = dict(hugging_face().state_dict())
    del state["vit.layers.0.attention.q_proj.weight"], state["vit.embeddings.cls_token"]
    state |= {"vit.layers.1.adapter.weight": torch.zeros(1), "extra": torch.zeros(1)}
    state["vit.layernorm.weight"] = torch.zeros(3)
    state["vit.layernorm.bias"] = torch.full((32,), torch.nan)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match="expected the tensors of this ViT") as caught:
        build(tmp_path / "wrong.safetensors")
    for text in (
        "missing (2): vit.embeddings.cls_token, vit.layers.0.attention.q_proj.weight",
        "unexpected (2): extra, vit.layers.1.adapter.weight",
        "wrong shape (1): vit.layernorm.weight (expected (32,), got (3,))",
        "not finite (1): vit.layernorm.bias",
    ):
        assert text in str(caught.value)


def test_weights_of_another_size_name_it(tmp_path: Path) -> None:
    """A file with the patch embedding and the 12 blocks of ViT-S, read into ViT-B."""
    state = {f"encoder.layer.{number}.layernorm_before.bias": torch.zeros(384) for number in range(12)}
    state["embeddings.patch_embeddings.projection.weight"] = torch.zeros(384, 3, 16, 16)
    save_file(state, tmp_path / "small.safetensors")
    wrong = Vit(size="b16", image_size=224, weights=str(tmp_path / "small.safetensors"))
    with pytest.raises(ValueError, match=r"size b16 .*got 12 blocks of width 384, patch 16; did you mean size: s16"):
        wrong.build(2, streams(0, "init"))


def test_weights_of_another_patch_size(tmp_path: Path) -> None:
    path = as_directory(hugging_face(patch_size=16, encoder_stride=16), tmp_path)
    with pytest.raises(ValueError, match=r"size tiny .*patch 8\), got 2 blocks of width 32, patch 16; no known size"):
        build(path)


def test_a_position_table_that_is_no_square(tmp_path: Path) -> None:
    state = dict(hugging_face().state_dict())
    state[POSITIONS] = torch.zeros(1, 1 + 15, 32)
    save_file(state, tmp_path / "oblong.safetensors")
    with pytest.raises(ValueError, match=r"position_embeddings \(expected \(1, 17, 32\), got \(1, 16, 32\)\)"):
        build(tmp_path / "oblong.safetensors")


def test_weights_of_no_vit(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"expected a ViT with tensor .* got the names \['vit.fc.weight'\]"):
        build(tmp_path / "resnet.safetensors")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "vit_mae"}, r"expected model_type 'vit' or 'deit', got 'vit_mae'"),
        ({"num_attention_heads": 4}, r"num_attention_heads: expected 2, got 4"),
        ({"layer_norm_eps": 1e-6, "hidden_act": "relu"}, r"hidden_act: expected 'gelu', got 'relu'; layer_norm_eps"),
    ],
)
def test_a_config_of_another_model(changes: Mapping[str, object], problem: str, tmp_path: Path) -> None:
    folder = as_directory(hugging_face(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    for weights in (folder, folder / "model.safetensors"):
        with pytest.raises(ValueError, match=rf"config.json'.*{problem}"):
            build(weights)


@pytest.mark.parametrize("suffix", [".bin", ".pth", ""])
def test_pickles_are_not_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"pytorch_model{suffix}"
    torch.save(hugging_face().state_dict(), path)
    with pytest.raises(ValueError, match=r"expected a .safetensors file, got .*save_pretrained"):
        build(path)


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"bad.safetensors': expected a file of tensors, cannot read it"):
        build(tmp_path / "bad.safetensors")


def test_absent_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected 'random', 'vit-mini', 'vit-mini-derm' or the path .* none here"):
        build("nowhere.safetensors")
    with pytest.raises(ValueError, match=r"expected model.safetensors in the directory, got \[\]"):
        build(tmp_path)


def write_preprocessor(folder: Path, **content: object) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def test_pixels_are_normalised_as_the_directory_says(tmp_path: Path) -> None:
    folder = as_directory(hugging_face(), tmp_path)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert normalisation(str(folder)) == HALF
    write_preprocessor(folder, image_mean=mean, image_std=std)
    assert normalisation(str(folder)) == normalisation(str(folder / "model.safetensors")) == (mean, std)
    net = build(folder)
    torch.testing.assert_close(net.mean.flatten(), torch.tensor(mean))
    torch.testing.assert_close(net.std.flatten(), torch.tensor(std))
    torch.testing.assert_close(build(folder, mean=(0.1, 0.2, 0.3)).mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_pixels_that_are_not_normalised(tmp_path: Path) -> None:
    write_preprocessor(tmp_path, do_normalize=False, image_mean=[0.4] * 3)
    assert normalisation(str(tmp_path)) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"image_mean": 0.5}, r"image_mean: expected three numbers, got 0.5"),
        ({"image_mean": [0.5]}, r"image_mean: expected three numbers, got \[0.5\]"),
        ({"image_std": [1, 1, 0]}, r"image_std: expected three numbers above 0, got \[1, 1, 0\]"),
    ],
)
def test_a_normalisation_of_another_form(content: Mapping[str, object], problem: str, tmp_path: Path) -> None:
    write_preprocessor(tmp_path, **content)
    with pytest.raises(ValueError, match=rf"preprocessor_config.json': {problem}"):
        normalisation(str(tmp_path))


def test_parameters_are_counted_without_the_weights() -> None:
    """The network on the meta device, of weights that are nowhere."""
    net = Vit(size="tiny", image_size=32, weights="/nowhere/at/all").build_meta(3)
    assert (tuple(net.mean.flatten().tolist()), tuple(net.std.flatten().tolist())) == HALF


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_digest_changes_with_every_file_that_matters(tmp_path: Path) -> None:
    """One file: its own hash. A directory: also with what says how pixels are normalised, and not with its config."""
    folder = as_directory(hugging_face(), tmp_path)
    whole = sha256((folder / "model.safetensors").read_bytes())
    assert Vit(size="tiny", image_size=32, weights=str(folder)).weights_hash() == whole
    (folder / "config.json").unlink()
    assert digest(str(folder)) == digest(str(folder / "model.safetensors")) == whole
    write_preprocessor(folder, image_mean=[0.4] * 3)
    both = sha256((whole + sha256((folder / "preprocessor_config.json").read_bytes())).encode())
    assert digest(str(folder)) == digest(str(folder / "model.safetensors")) == both


def test_digest_of_shards(tmp_path: Path) -> None:
    folder = as_shards(hugging_face(), tmp_path)
    parts = [sha256(file.read_bytes()) for file in sorted(folder.glob("*.safetensors"))]
    assert digest(str(folder)) == sha256("".join(parts).encode())


@pytest.mark.parametrize("name", vit_weights.PACKAGED)
def test_packaged_weights_are_those_of_their_record(name: str) -> None:
    record = weight_files.about(name)
    file = weight_files.ASSETS / f"{name}.safetensors"
    assert Vit(weights=name).weights_hash() == record["sha256"] == sha256(file.read_bytes())
    assert file.stat().st_size <= 4_000_000
    net, saved = Vit(weights=name).build(2, streams(0, "init")), load_file(file)
    assert set(saved) == {key for key in net.state_dict() if not key.startswith("head.")}
    assert all(torch.equal(net.state_dict()[key], tensor.float()) for key, tensor in saved.items())
    assert normalisation(name) == (tuple(record["image_mean"]), tuple(record["image_std"]))


@pytest.mark.parametrize("image_size", [32, 128])
def test_packaged_weights_at_other_image_sizes(image_size: int) -> None:
    net = Vit(weights="vit-mini", image_size=image_size).build(2, streams(0, "init"))
    assert net(image_of(image_size).float()).isfinite().all()


def test_changed_packaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "vit-mini.safetensors")
    (tmp_path / "vit-mini.json").write_text(json.dumps({"sha256": "0" * 64}))
    monkeypatch.setattr(weight_files, "ASSETS", tmp_path)
    with pytest.raises(ValueError, match=r"vit-mini.safetensors is not the file of this release; install the package"):
        Vit(weights="vit-mini").build(1, streams(0, "init"))


def test_names_of_every_size_are_those_of_transformers() -> None:
    """A ViT-Ti of transformers, without values, has in both versions' names exactly the tensors of ours."""
    size = SIZES["ti16"]
    config = ViTConfig(
        hidden_size=size.width, num_hidden_layers=2, num_attention_heads=size.heads, intermediate_size=size.mlp
    )
    with torch.device("meta"):
        model = ViTForImageClassification(config)
        net = VitNet(replace(size, layers=2), 224, 3, *HALF)
    wanted = {name: tensor.shape for name, tensor in net.state_dict().items() if not name.startswith("head.")}
    for rename in (version_4, str):
        renamed = vit_weights._renamed({rename(name): tensor for name, tensor in model.state_dict().items()})
        assert {n: t.shape for n, t in renamed.items() if not n.startswith(vit_weights.LEFT_OUT)} == wanted


def test_the_frozen_start_depends_on_how_pixels_are_normalised() -> None:
    """Equal weights and another mean are another start: features that are kept on disk must not be shared."""
    own = [Vit(size="tiny", image_size=32, mean=mean).build(2, streams(0, "init")) for mean in (None, (0.1, 0.2, 0.3))]
    layouts = [METHODS["linear"]().attach(model) for model in own]
    hashes = [Replica(model, layout).prefix_hash for model, layout in zip(own, layouts, strict=True)]
    assert hashes[0] != hashes[1]
