"""Adapters that PEFT itself has saved, for networks of plain ``transformers``, in our names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import SamModel, ViTForImageClassification, ViTModel

from wardround.clients import sam, vit
from wardround.clients.layout import adapt_attention
from wardround.clients.lora import LoRA
from wardround.clients.peft_files import PeftAdapter, peft_adapter, read_peft
from wardround.clients.sam import Sam
from wardround.clients.vit import Vit
from wardround.simulator.randomness import streams

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CLASSES = ("a", "b", "c")

VERSION_4 = {
    "vit.layers.0.": "vit.encoder.layer.0.",
    "vit.layers.1.": "vit.encoder.layer.1.",
    "attention.q_proj": "attention.attention.query",
    "attention.v_proj": "attention.attention.value",
}
"""What ``transformers`` 4 calls the modules of a ViT, and PEFT its tensors."""


def classifier() -> ViTForImageClassification:
    return ViTForImageClassification(vit.hugging_face_config(Vit(size="tiny", image_size=32).build_meta(3), CLASSES))


def segmenter() -> SamModel:
    return SamModel(sam.hugging_face_config(Sam(size="tiny", image_size=32, upscaler="sam").build_meta(2)))


def saved(model: nn.Module, folder: Path, **settings: Any) -> tuple[Any, Path]:
    """A LoRA of PEFT with random values, and the folder it is saved in."""
    wrapped: Any = get_peft_model(model, LoraConfig(**settings))
    draw = torch.Generator().manual_seed(0)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    wrapped.save_pretrained(folder)
    return wrapped, folder


def check_sums(adapter: PeftAdapter, wrapped: Any, names: dict[str, str]) -> None:
    """Every change is what PEFT adds to the weight of that module.

    Args:
        adapter: What was read.
        wrapped: PEFT's model.
        names: Module of the model per weight of ours.
    """
    sums: dict[str, torch.Tensor] = {}
    for change in adapter.changes:
        own = wrapped.get_base_model().get_submodule(names[change.weight])
        sums.setdefault(change.weight, torch.zeros_like(own.weight, dtype=torch.float64))
        sums[change.weight][slice(*change.rows)] += change.product
    assert sums.keys() == names.keys()
    for weight, module in names.items():
        expected = wrapped.get_base_model().get_submodule(module).get_delta_weight("default").double()
        torch.testing.assert_close(sums[weight], expected, rtol=1e-5, atol=1e-5)


OF_VIT = {
    f"vit.layers.{n}.attention.{p}_proj.weight": f"vit.layers.{n}.attention.{p}_proj" for n in (0, 1) for p in "qv"
}


@pytest.mark.parametrize("settings", [
    {},
    {"lora_alpha": 3},
    {"lora_alpha": 3, "use_rslora": True},
    {"rank_pattern": {"layers.1.attention.q_proj": 5}, "alpha_pattern": {"^vit.layers.0.*v_proj": 7}},
    {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
])  # fmt: skip
def test_a_lora_of_a_vit(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"], **settings}
    wrapped, folder = saved(classifier(), tmp_path, **settings)
    adapter = read_peft(folder)
    check_sums(adapter, wrapped, OF_VIT)
    assert {change.adapter for change in adapter.changes} == {name.replace("weight", "lora") for name in OF_VIT}
    head = wrapped.get_base_model().classifier.modules_to_save["default"]
    assert adapter.saved.keys() == {"head.weight", "head.bias"}
    assert torch.equal(adapter.saved["head.weight"], head.weight)


def test_the_scale_is_in_b(tmp_path: Path) -> None:
    """It is alpha / sqrt(r) = 3 / 2 for rsLoRA and alpha / r = 3 / 4 for LoRA."""
    for rslora, scale in ((True, 3 / math.sqrt(4)), (False, 3 / 4)):
        targets = ["vit.layers.0.attention.q_proj"]
        settings = {"r": 4, "lora_alpha": 3, "use_rslora": rslora, "target_modules": targets}
        wrapped, folder = saved(classifier(), tmp_path / str(rslora), **settings)
        (change,) = read_peft(folder).changes
        own = wrapped.get_base_model().vit.layers[0].attention.q_proj
        assert torch.equal(change.A, own.lora_A["default"].weight)
        torch.testing.assert_close(change.B, scale * own.lora_B["default"].weight)


def renamed(folder: Path, names: dict[str, str]) -> None:
    """Gives the tensors of an adapter other names."""
    tensors = load_file(folder / WEIGHTS)
    for old, new in names.items():
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    save_file(tensors, folder / WEIGHTS)


def test_names_of_transformers_4(tmp_path: Path) -> None:
    targets = {"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
    wrapped, folder = saved(classifier(), tmp_path, **targets)
    renamed(folder, VERSION_4)
    assert "base_model.model.vit.encoder.layer.0.attention.attention.query.lora_A.weight" in load_file(folder / WEIGHTS)
    adapter = read_peft(folder)
    check_sums(adapter, wrapped, OF_VIT)
    assert adapter.saved.keys() == {"head.weight", "head.bias"}


def test_a_vit_without_a_head(tmp_path: Path) -> None:
    config = vit.hugging_face_config(Vit(size="tiny", image_size=32).build_meta(3), CLASSES)
    wrapped, folder = saved(ViTModel(config, add_pooling_layer=False), tmp_path, target_modules=["fc1"])
    names = {f"vit.layers.{n}.mlp.fc1.weight": f"layers.{n}.mlp.fc1" for n in (0, 1)}
    check_sums(read_peft(folder), wrapped, names)


def test_a_lora_of_sam(tmp_path: Path) -> None:
    """A fused projection is parted: all three thirds have the whole A."""
    head = ["mask_decoder.upscale_conv1", "mask_tokens"]
    wrapped, folder = saved(segmenter(), tmp_path, r=4, target_modules=["qkv", "v_proj"], modules_to_save=head)
    adapter = read_peft(folder)
    modules = [name for name, _ in wrapped.get_base_model().named_modules() if name.endswith((".qkv", ".v_proj"))]
    check_sums(adapter, wrapped, {f"{module}.weight": module for module in modules})
    of_first = [change for change in adapter.changes if change.weight == "vision_encoder.layers.0.attn.qkv.weight"]
    assert [change.rows for change in of_first] == [(0, 32), (32, 64), (64, 96)]
    assert [change.adapter[-6:] for change in of_first] == ["lora_q", "lora_k", "lora_v"]
    short = ("upscale_conv1.weight", "upscale_conv1.bias", "mask_tokens.weight")
    assert adapter.saved.keys() == {f"mask_decoder.{name}" for name in short}


def test_names_of_the_official_release(tmp_path: Path) -> None:
    _, folder = saved(segmenter(), tmp_path, target_modules=["vision_encoder.layers.1.attn.proj"])
    renamed(folder, {"vision_encoder.layers": "image_encoder.blocks"})
    (change,) = read_peft(folder).changes
    assert change.weight == "vision_encoder.layers.1.attn.proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "ADALORA"}, "expected peft_type 'LORA', got 'ADALORA'"),
        ({"use_dora": True}, "expected plain LoRA, .* got use_dora: True; merge it into its base"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"bias": "lora_only"}, "bias: 'lora_only'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa', which changes the base"),
        ({"target_parameters": ["vit.w"]}, "target_parameters"),
        ({"r": 9}, r"expected factors of rank 9, as its adapter_config.json says, got A \(4, 32\) and B \(32, 4\)"),
        ({"modules_to_save": None}, r"neither lora_A and lora_B .* \(2\): classifier\.bias, classifier\.weight"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _, folder = saved(classifier(), tmp_path, r=4, target_modules=["q_proj"], modules_to_save=["classifier"])
    assert read_peft(folder).changes
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        read_peft(folder)


def test_adapters_of_other_layers_are_refused(tmp_path: Path) -> None:
    _, conv = saved(classifier(), tmp_path / "conv", target_modules=["projection"])
    with pytest.raises(ValueError, match=r"expected LoRA of linear layers; .*patch_embeddings\.projection\.lora_A"):
        read_peft(conv)
    _, dora = saved(classifier(), tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(ValueError, match="use_dora: True"):
        read_peft(dora)


def test_an_adapter_of_another_network_is_refused(tmp_path: Path) -> None:
    """That of a language model, and of a head that our networks do not have."""
    inner = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(4, 4)})])})
    _, folder = saved(nn.ModuleDict({"model": inner}), tmp_path / "text", target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"expected names of a Vision .*; unknown \(1\): model\.layers\.0\.q_proj"):
        read_peft(folder)
    _, folder = saved(nn.ModuleDict({"pooler": nn.Linear(4, 4)}), tmp_path / "pooler", target_modules=["pooler"])
    with pytest.raises(ValueError, match=r"unknown \(1\): pooler"):
        read_peft(folder)


def test_absent_and_damaged_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected adapter_config\.json in the directory, got 'no such directory'"):
        read_peft(tmp_path / "absent")
    _, folder = saved(classifier(), tmp_path / "adapter", target_modules=["q_proj"])
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"expected adapter_model\.safetensors .* safe_serialization"):
        read_peft(folder)
    (folder / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="expected a file of tensors"):
        read_peft(folder)


def test_a_factor_without_the_other_is_refused(tmp_path: Path) -> None:
    _, folder = saved(classifier(), tmp_path, target_modules=["q_proj"])
    tensors = load_file(folder / WEIGHTS)
    del tensors["base_model.model.vit.layers.0.attention.q_proj.lora_B.weight"]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"without its other factor \(1\): vit\.layers\.0\.attention\.q_proj\.lora_A"):
        read_peft(folder)


@pytest.mark.parametrize("name", ["vit.embeddings.cls_token", "vit.embeddings.position_embeddings"])
def test_tensors_that_belong_to_no_layer_are_refused(name: str) -> None:
    network = Vit(size="tiny", image_size=32).build(3, streams(0, "init"))
    adapt_attention(network, LoRA(rank=2))
    with pytest.raises(ValueError, match=rf"tensors that belong to none: {name}; .* Use the format hf"):
        peft_adapter(network, {"head.weight", name})
