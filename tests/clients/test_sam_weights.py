"""Weights in every form they come in, tables resized, and every way a file can be wrong."""

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from wardround.clients import sam_weights, weight_files
from wardround.clients.sam import SIZES, Sam, SamNet
from wardround.clients.sam_weights import digest, resize_grid, resize_table
from wardround.datasets import fingerprints
from wardround.simulator.randomness import generator, streams

SIZE = SIZES["tiny"]
HEAD_NAMES = ("mask_decoder.mask_tokens", "mask_decoder.output_hypernetworks_mlps", "mask_decoder.iou_prediction_head")


def hugging_face(image_size: int = 32) -> SamModel:
    """A Hugging Face SAM of size tiny, every tensor random, with the official eps in its decoder."""
    vision = SamVisionConfig(
        hidden_size=SIZE.width,
        output_channels=SIZE.neck,
        num_hidden_layers=SIZE.layers,
        num_attention_heads=SIZE.heads,
        image_size=image_size,
        patch_size=SIZE.patch,
        window_size=SIZE.window,
        global_attn_indexes=list(SIZE.global_layers),
        num_pos_feats=SIZE.neck // 2,
    )
    prompts = SamPromptEncoderConfig(hidden_size=SIZE.neck, image_size=image_size, patch_size=SIZE.patch)
    decoder = SamMaskDecoderConfig(
        hidden_size=SIZE.neck,
        mlp_dim=SIZE.decoder_mlp,
        num_attention_heads=SIZE.decoder_heads,
        iou_head_hidden_dim=SIZE.neck,
        layer_norm_eps=1e-5,
    )
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():  # the positional matrix, kept twice, is one parameter
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator(0, "weights", name)))
    return model


def official_names(model: SamModel) -> dict[str, Tensor]:
    """The state of a Hugging Face SAM in the names of the official release, written down a second time by hand."""
    words = [
        ("vision_encoder.layers.", "image_encoder.blocks."),
        ("vision_encoder.", "image_encoder."),
        ("patch_embed.projection", "patch_embed.proj"),
        ("neck.conv1", "neck.0"),
        ("neck.layer_norm1", "neck.1"),
        ("neck.conv2", "neck.2"),
        ("neck.layer_norm2", "neck.3"),
        ("shared_image_embedding.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        ("prompt_encoder.point_embed.", "prompt_encoder.point_embeddings."),
        ("mask_embed.conv1", "mask_downscaling.0"),
        ("mask_embed.layer_norm1", "mask_downscaling.1"),
        ("mask_embed.conv2", "mask_downscaling.3"),
        ("mask_embed.layer_norm2", "mask_downscaling.4"),
        ("mask_embed.conv3", "mask_downscaling.6"),
        ("upscale_conv1", "output_upscaling.0"),
        ("upscale_layer_norm", "output_upscaling.1"),
        ("upscale_conv2", "output_upscaling.3"),
        ("layer_norm_final_attn", "norm_final_attn"),
        ("layer_norm", "norm"),
    ]
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("prompt_encoder.shared_embedding"):
            continue
        if "hypernetworks" in name or "iou_prediction" in name:
            name = name.replace("layers.0", "layers.1").replace("proj_in", "layers.0").replace("proj_out", "layers.2")
        for ours, theirs in words:
            name = name.replace(ours, theirs)
        state[name] = tensor.clone()
    return state


def image_of(size: int) -> Tensor:
    return torch.rand(1, 3, size, size, generator=generator(0, "image"))


@torch.no_grad()
def hugging_face_logits(model: SamModel, image: Tensor) -> Tensor:
    """Promptless maps: token 0, then tokens 1 to 3, which Hugging Face returns in two calls."""
    embedding = model.vision_encoder(image).last_hidden_state
    no_mask = model.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
    position = model.get_image_wide_positional_embeddings()
    maps = [model.mask_decoder(embedding, position, None, no_mask, multi)[0][:, 0] for multi in (False, True)]
    return torch.cat(maps, dim=1)


def build(path: Path | str, image_size: int = 32, **settings: object) -> SamNet:
    settings = {"upscaler": "sam", "heads": "checkpoint", **settings}
    plug_in = Sam(size="tiny", image_size=image_size, weights=str(path), **settings)
    return plug_in.build(3, streams(0, "init"))


Writer = Callable[[SamModel, Path], Path]


def as_official(model: SamModel, folder: Path) -> Path:
    torch.save(official_names(model), folder / "sam.pth")
    return folder / "sam.pth"


def as_training_checkpoint(model: SamModel, folder: Path) -> Path:
    """As MedSAM saves it: wrapped, from several devices, beside other things."""
    state = {f"module.{name}": tensor for name, tensor in official_names(model).items()}
    torch.save({"model": state, "epoch": 3, "optimizer": {"state": {}}}, folder / "sam.pth")
    return folder / "sam.pth"


def as_directory(model: SamModel, folder: Path) -> Path:
    model.save_pretrained(folder / "sam")
    return folder / "sam"


def as_shards(model: SamModel, folder: Path) -> Path:
    model.save_pretrained(folder / "sam", max_shard_size="100KB")
    assert (folder / "sam" / "model.safetensors.index.json").is_file()
    return folder / "sam"


def as_file(model: SamModel, folder: Path) -> Path:
    return as_directory(model, folder) / "model.safetensors"


def as_half(model: SamModel, folder: Path) -> Path:
    """In float64, to see that any floating type becomes fp32."""
    state = {name: tensor.double() for name, tensor in official_names(model).items()}
    torch.save(state, folder / "sam.pt")
    return folder / "sam.pt"


WRITERS = [as_official, as_training_checkpoint, as_directory, as_shards, as_file, as_half]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_form_gives_the_same_network(write: Writer, tmp_path: Path) -> None:
    model = hugging_face()
    net = build(write(model, tmp_path))
    expected = hugging_face_logits(model, image_of(32))
    assert expected.std() > 0.1
    with torch.no_grad():
        torch.testing.assert_close(net(image_of(32)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("trained_at", "used_at"), [(64, 32), (32, 64), (48, 40)])
def test_tables_resized_at_load_agree_with_interpolation_at_run_time(
    trained_at: int, used_at: int, tmp_path: Path
) -> None:
    """Hugging Face interpolates relative tables in every forward pass; its absolute table is resized by hand here."""
    model = hugging_face(trained_at)
    net = build(as_directory(model, tmp_path), used_at)
    side = used_at // SIZE.patch
    table = model.vision_encoder.pos_embed.data.permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, size=(side, side), mode="bilinear")
    model.vision_encoder.pos_embed.data = table.permute(0, 2, 3, 1)
    model.vision_encoder.patch_embed.image_size = (used_at, used_at)
    model.config.prompt_encoder_config.image_embedding_size = side
    with torch.no_grad():
        torch.testing.assert_close(
            net(image_of(used_at)), hugging_face_logits(model, image_of(used_at)), rtol=1e-5, atol=1e-5
        )


def test_windowed_tables_keep_their_length(tmp_path: Path) -> None:
    """At 16 px a global table has 3 rows, as many as a windowed one: only the config tells them apart."""
    model = hugging_face(16)
    net = build(as_directory(model, tmp_path), 64)
    windowed, whole = (net.vision_encoder.layers[layer].attn.rel_pos_h for layer in (0, 1))
    assert torch.equal(windowed, model.vision_encoder.layers[0].attn.rel_pos_h)
    assert (len(windowed), len(whole)) == (3, 15)


def test_resizing_by_hand() -> None:
    """Half the points: means of neighbours. Twice the points: quarter steps, the ends held."""
    table = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert resize_table(table, 2).flatten().tolist() == [0.5, 2.5]
    assert resize_table(table[:2], 4).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    assert resize_grid(table.view(1, 2, 2, 1), 1).flatten().tolist() == [1.5]
    assert resize_grid(table.view(1, 2, 2, 1), 2).flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_new_heads_are_drawn_and_the_rest_is_loaded(tmp_path: Path) -> None:
    model = hugging_face()
    path = as_directory(model, tmp_path)
    net = build(path, heads="new", upscaler="full").state_dict()
    fresh = Sam(size="tiny", image_size=32).build(3, streams(0, "init")).state_dict()
    theirs = model.state_dict()
    for name, tensor in net.items():
        new = name.startswith(HEAD_NAMES) or "upscale_more" in name
        assert torch.equal(tensor, fresh[name] if new else theirs[name]), name


def test_new_heads_fit_any_number_of_classes(tmp_path: Path) -> None:
    path = as_official(hugging_face(), tmp_path)
    for classes in (1, 6):
        net = Sam(size="tiny", image_size=32, weights=str(path)).build(classes, streams(0, "init"))
        assert net(image_of(32)).shape == (1, classes + 1, 32, 32)


def test_our_own_file_comes_back_whole(tmp_path: Path) -> None:
    net = Sam(size="tiny", image_size=32).build(3, streams(5, "other"))
    save_file(net.state_dict(), tmp_path / "own.safetensors")
    again = build(tmp_path / "own.safetensors", upscaler="full").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in net.state_dict().items())


def test_our_own_file_serves_the_smaller_upscaler(tmp_path: Path) -> None:
    net = Sam(size="tiny", image_size=32).build(3, streams(5, "other"))
    save_file(net.state_dict(), tmp_path / "own.safetensors")
    other = build(tmp_path / "own.safetensors", upscaler="sam", heads="new")
    assert torch.equal(other.mask_decoder.upscale_conv2.weight, net.mask_decoder.upscale_conv2.weight)


def test_files_without_heads_load_with_new_ones_only(tmp_path: Path) -> None:
    state = {name: t for name, t in official_names(hugging_face()).items() if "hypernetworks" not in name}
    torch.save(state, tmp_path / "sam.pth")
    build(tmp_path / "sam.pth", heads="new")
    with pytest.raises(ValueError, match=r"missing \(24\): mask_decoder.output_hypernetworks_mlps.0.proj_in.weight"):
        build(tmp_path / "sam.pth")


def test_heads_of_another_number_of_classes(tmp_path: Path) -> None:
    path = as_official(hugging_face(), tmp_path)
    plug_in = Sam(size="tiny", image_size=32, upscaler="sam", weights=str(path), heads="checkpoint")
    with pytest.raises(
        ValueError, match=r"unexpected \(6\).*wrong shape.*mask_tokens.weight \(expected \(3, 32\), got"
    ):
        plug_in.build(2, streams(0, "init"))


def test_all_wrong_tensors_are_listed_at_once(tmp_path: Path) -> None:
    state = official_names(hugging_face())
    del state["image_encoder.blocks.0.attn.qkv.weight"], state["mask_decoder.iou_token.weight"]
    state |= {"image_encoder.blocks.1.adapter.weight": torch.zeros(1), "extra": torch.zeros(1)}
    state["image_encoder.neck.0.weight"] = torch.zeros(3, 3)
    state["image_encoder.blocks.1.norm1.bias"][0] = torch.nan
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="expected the tensors of this SAM") as caught:
        build(tmp_path / "sam.pth")
    expected = (
        "missing (2): vision_encoder.layers.0.attn.qkv.weight, mask_decoder.iou_token.weight",
        "unexpected (2): vision_encoder.layers.1.adapter.weight, extra",
        "wrong shape (1): vision_encoder.neck.conv1.weight (expected (32, 32, 1, 1), got (3, 3))",
        "not finite (1): vision_encoder.layers.1.layer_norm1.bias",
    )
    assert all(text in str(caught.value) for text in expected)


def test_weights_of_another_size_name_it(tmp_path: Path) -> None:
    """A file with ViT-H's patch embedding and 32 blocks, read into ViT-B."""
    state = {f"image_encoder.blocks.{n}.norm1.bias": torch.zeros(1280) for n in range(32)}
    torch.save({**state, "image_encoder.patch_embed.proj.weight": torch.zeros(1280, 3, 16, 16)}, tmp_path / "h.pth")
    wrong = Sam(size="vit-b", image_size=224, weights=str(tmp_path / "h.pth"))
    with pytest.raises(ValueError, match=r"size vit-b .*got 32 blocks of width 1280, patch 16; set size: vit-h"):
        wrong.build(2, streams(0, "init"))


def test_weights_of_no_sam(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"expected a SAM with tensor .* got the names \['fc.weight'\]"):
        build(tmp_path / "resnet.pth")


def spoil_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content["vision_config"] |= changes
    file.write_text(json.dumps(content))


def test_a_config_with_other_global_blocks(tmp_path: Path) -> None:
    folder = as_directory(hugging_face(), tmp_path)
    spoil_config(folder, global_attn_indexes=[0])
    with pytest.raises(
        ValueError, match=r"config.json.*expected global_attn_indexes.*\(\(1,\), 2, 2\), got \(\(0,\), 2"
    ):
        build(folder)


def write_garbage(path: Path) -> None:
    path.write_bytes(b"no weights at all")


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Path("/"), protocol=2))


def write_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def write_truncated(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("spoil", [write_garbage, write_pickle, write_list, write_truncated])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_files(spoil: Callable[[Path], None], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad.{suffix}"
    spoil(path)
    with pytest.raises(ValueError, match=r"weights '.*bad\.\w+': expected") as caught:
        build(path)
    assert "\n" not in str(caught.value)


class Trap:
    """Pickles into a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def test_reading_a_file_runs_no_code(tmp_path: Path) -> None:
    torch.save({"a": Trap(tmp_path / "made")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="expected a file of tensors, cannot read it"):
        build(tmp_path / "bad.pth")
    assert not (tmp_path / "made").exists()


def test_absent_files() -> None:
    with pytest.raises(ValueError, match=r"expected 'random', 'sam-mini' or the path .* there is none here"):
        build("nowhere.pth")


def test_a_directory_without_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"expected model.safetensors in the directory, got \['pytorch_model.bin'\]"):
        build(tmp_path)


def test_a_directory_without_one_of_its_shards(tmp_path: Path) -> None:
    folder = as_shards(hugging_face(), tmp_path)
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match="expected model-00001-of-"):
        build(folder)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_digest_is_the_files_sha256(tmp_path: Path) -> None:
    path = as_official(hugging_face(), tmp_path)
    assert digest(str(path)) == sha256(path.read_bytes())
    assert Sam(size="tiny", image_size=32, weights=str(path)).weights_hash() == sha256(path.read_bytes())
    assert Sam().weights_hash() == "random"


def test_digest_of_shards(tmp_path: Path) -> None:
    folder = as_shards(hugging_face(), tmp_path)
    parts = [sha256(file.read_bytes()) for file in sorted(folder.glob("*.safetensors"))]
    assert len(parts) > 1
    assert digest(str(folder)) == sha256("".join(parts).encode())


def test_packaged_weights_are_those_of_their_record() -> None:
    folder = Path(sam_weights.__file__).parent / "assets"
    record = json.loads((folder / "sam-mini.json").read_text())
    assert Sam(weights="sam-mini").weights_hash() == record["sha256"]
    net = Sam(weights="sam-mini").build(2, streams(0, "init"))
    random = Sam().build(2, streams(0, "init")).state_dict()
    same = {name for name, tensor in net.state_dict().items() if torch.equal(tensor, random[name])}
    assert "vision_encoder.pos_embed" not in same
    assert "mask_decoder.mask_tokens.weight" in same


@pytest.mark.parametrize("image_size", [32, 128])
def test_packaged_weights_at_other_image_sizes(image_size: int) -> None:
    net = Sam(weights="sam-mini", image_size=image_size).build(1, streams(0, "init"))
    with torch.no_grad():
        assert net(image_of(image_size)).isfinite().all()


def test_changed_packaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "sam-mini.safetensors")
    (tmp_path / "sam-mini.json").write_text(json.dumps({"sha256": "0" * 64}))
    monkeypatch.setattr(weight_files, "ASSETS", tmp_path)
    with pytest.raises(ValueError, match=r"sam-mini.safetensors is not the file of this release; install the package"):
        Sam(weights="sam-mini").build(1, streams(0, "init"))


def test_official_names_of_vit_b_all_map() -> None:
    """The 314 tensors of the release are exactly what a ViT-B with SAM's upscaler and 4 masks has."""
    net = Sam(size="vit-b", image_size=1024, upscaler="sam").build_meta(3)
    assert len(net.state_dict()) == 314


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_official_names_give_ours_and_nothing_else() -> None:
    renamed = sam_weights._renamed(official_names(hugging_face()))
    assert shapes(renamed) == shapes(Sam(size="tiny", image_size=32, upscaler="sam").build_meta(3).state_dict())
    assert not any(re.search(r"image_encoder|norm_final_attn$|\.norm\d", name) for name in renamed)


def test_a_network_holds_the_tensors_that_were_read_themselves(tmp_path: Path) -> None:
    """Every one of them, and equal to a network that reads the file on its own; heads that are new are drawn."""
    model = Sam(size="tiny", image_size=32, weights=str(as_official(hugging_face(), tmp_path)))
    loaded = model.pretrained(2)
    first, second = (model.build(2, streams(seed, "init"), loaded).state_dict() for seed in (0, 1))
    alone = model.build(2, streams(0, "init")).state_dict()
    assert loaded.keys() < first.keys()
    for name, value in first.items():
        shared = name in loaded and value.data_ptr() == second[name].data_ptr() == loaded[name].data_ptr()
        assert shared == (name in loaded), name
        assert torch.equal(value, alone[name]), name
    assert Sam().pretrained(2) == {}


def test_a_file_that_has_not_changed_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies there for a while, as weights do: files of this very moment are not remembered."""
    monkeypatch.setattr(fingerprints, "SETTLED_NS", 0)
    path = as_official(hugging_face(), tmp_path)
    reads, read = [], fingerprints._digest
    monkeypatch.setattr(fingerprints, "_digest", lambda file: reads.append(file) or read(file))
    assert digest(str(path)) == digest(str(path)) == sha256(path.read_bytes())
    assert len(reads) == 1
    path.write_bytes(path.read_bytes() + b"0")
    assert digest(str(path)) == sha256(path.read_bytes())
    assert len(reads) == 2
