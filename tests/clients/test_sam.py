"""Our SAM against the official one with every tensor random, its shapes, and its random start."""

import importlib.machinery
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from wardround.clients.sam import SIZES, Sam, SamNet, SamSize
from wardround.clients.sam_weights import _our_name
from wardround.simulator.randomness import generator, streams

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}  # fp32, outputs of order one


@pytest.fixture(scope="module")
def official() -> Iterator[ModuleType]:
    """segment_anything.modeling without the package's own __init__, which needs torchvision."""
    found = importlib.util.find_spec("segment_anything")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("segment-anything is not installed")
    package = ModuleType("segment_anything")
    package.__spec__ = importlib.machinery.ModuleSpec("segment_anything", None, is_package=True)
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["segment_anything"] = package
    yield importlib.import_module("segment_anything.modeling")
    for name in [name for name in sys.modules if name.split(".")[0] == "segment_anything"]:
        del sys.modules[name]


def official_sam(modeling: ModuleType, size: SamSize, image_size: int, masks: int = 4) -> nn.Module:
    """The official model of a size, every tensor random, position tables included."""
    side = image_size // size.patch
    with torch.device("meta"):
        model = modeling.Sam(
            image_encoder=modeling.ImageEncoderViT(
                depth=size.layers,
                embed_dim=size.width,
                img_size=image_size,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                num_heads=size.heads,
                patch_size=size.patch,
                use_rel_pos=True,
                global_attn_indexes=size.global_layers,
                window_size=size.window,
                out_chans=size.neck,
            ),
            prompt_encoder=modeling.PromptEncoder(
                embed_dim=size.neck,
                image_embedding_size=(side, side),
                input_image_size=(image_size, image_size),
                mask_in_chans=16,
            ),
            mask_decoder=modeling.MaskDecoder(
                num_multimask_outputs=masks - 1,
                transformer=modeling.TwoWayTransformer(
                    depth=2, embedding_dim=size.neck, mlp_dim=size.decoder_mlp, num_heads=size.decoder_heads
                ),
                transformer_dim=size.neck,
                iou_head_depth=3,
                iou_head_hidden_dim=size.neck,
            ),
        )
    model.to_empty(device="cpu")
    randomise(model)
    return model.eval()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Fills every tensor of the state so that activations and attention scores stay of order one."""
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator(0, "parity", name))
        if "rel_pos" in name:
            tensor.copy_(0.3 * noise)
        elif name in embeddings or "pos_embed" in name or "gaussian" in name:
            tensor.copy_(noise)
        elif tensor.ndim > 1:
            tensor.copy_(noise / math.sqrt(tensor[0].numel()))
        else:
            tensor.copy_(0.2 * noise + name.endswith("weight"))  # a vector called weight belongs to a norm


@torch.no_grad()
def official_outputs(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Embedding and promptless logits of all masks of one image (1, 3, H, W), at the image's own grid."""
    embedding = model.image_encoder(image)
    prompts = model.prompt_encoder
    prompts.image_embedding_size = tuple(embedding.shape[2:])
    sparse, no_mask = prompts(None, None, None)
    logits, _ = model.mask_decoder.predict_masks(embedding, prompts.get_dense_pe(), sparse, no_mask)
    return embedding, logits


def at_image_size(model: nn.Module, side: int) -> nn.Module:
    """Resizes the official absolute table in place; the relative ones are interpolated in every forward pass."""
    table = model.image_encoder.pos_embed.data.permute(0, 3, 1, 2)
    model.image_encoder.pos_embed.data = interpolate(table, size=side, mode="bilinear").permute(0, 2, 3, 1)
    return model


def loaded(model: nn.Module, path: Path, size: str, image_size: int) -> SamNet:
    """Our network with the weights of the official one, through a file."""
    torch.save(model.state_dict(), path)
    plug_in = Sam(size=size, image_size=image_size, upscaler="sam", weights=str(path), heads="checkpoint")
    return plug_in.build(3, streams(0, "init"))


def image_of(size: int) -> Tensor:
    return torch.rand(1, 3, size, size, generator=generator(0, "image"))


def check_parity(modeling: ModuleType, path: Path, size: str, trained_at: int, used_at: int) -> None:
    reference = official_sam(modeling, SIZES[size], trained_at)
    ours = loaded(reference, path, size, used_at)
    if used_at != trained_at:
        at_image_size(reference, used_at // SIZES[size].patch)
    embedding, logits = official_outputs(reference, image_of(used_at))
    assert embedding.std() > 0.5
    assert logits.std() > 0.1
    with torch.no_grad():
        own = ours.encode(image_of(used_at))
        torch.testing.assert_close(own, embedding, **TOLERANCE)
        torch.testing.assert_close(ours.decode(own), logits, **TOLERANCE)


@pytest.mark.parametrize(
    ("trained_at", "used_at"),
    [(64, 64), (96, 96), (128, 64), (64, 128)],
    ids=["windows fit", "windows are padded", "tables shrink", "tables grow"],
)
def test_parity_with_the_official_model(official: ModuleType, tmp_path: Path, trained_at: int, used_at: int) -> None:
    check_parity(official, tmp_path / "sam.pth", "mini", trained_at, used_at)


def test_parity_of_vit_b_at_224_with_tables_resized_at_load(official: ModuleType, tmp_path: Path) -> None:
    """The official model keeps its tables for 1024 px and interpolates them at run time."""
    check_parity(official, tmp_path / "sam.pth", "vit-b", 1024, 224)


@pytest.mark.slow
def test_parity_of_vit_b_at_1024(official: ModuleType, tmp_path: Path) -> None:
    check_parity(official, tmp_path / "sam.pth", "vit-b", 1024, 1024)


def test_every_norm_has_the_official_eps(official: ModuleType) -> None:
    """Outputs of order one hide the difference between 1e-5 (two-way transformer) and 1e-6 (everything else)."""
    expected = eps_of(official_sam(official, SIZES["tiny"], 32), _our_name)
    got = eps_of(Sam(size="tiny", image_size=32, upscaler="sam").build_meta(3), str)
    assert got == expected
    assert set(got.values()) == {1e-5, 1e-6}


def eps_of(model: nn.Module, rename: Callable[[str], str]) -> dict[str, float]:
    return {rename(f"{name}.weight"): module.eps for name, module in model.named_modules() if hasattr(module, "eps")}


@torch.no_grad()
def test_parity_would_notice_swapped_tables(official: ModuleType, tmp_path: Path) -> None:
    reference = official_sam(official, SIZES["mini"], 64)
    ours = loaded(reference, tmp_path / "sam.pth", "mini", 64)
    attention = ours.vision_encoder.layers[0].attn
    attention.rel_pos_h, attention.rel_pos_w = attention.rel_pos_w, attention.rel_pos_h
    embedding, _ = official_outputs(reference, image_of(64))
    assert (ours.encode(image_of(64)) - embedding).abs().max() > 0.01


def build(**settings: object) -> SamNet:
    return Sam(**{"size": "tiny", "image_size": 32, **settings}).build(2, streams(0, "init"))


@pytest.mark.parametrize(
    ("settings", "logit_size"),
    [
        ({}, 32),
        ({"upscaler": "sam"}, 16),
        ({"image_size": 40}, 40),
        ({"size": "mini", "image_size": 64}, 64),
        ({"size": "mini", "image_size": 96, "upscaler": "sam"}, 48),
    ],
    ids=repr,
)
def test_logit_sizes(settings: dict[str, object], logit_size: int) -> None:
    net = build(**settings)
    logits = net(torch.zeros(2, 1, net.image_size, net.image_size))
    assert logits.shape == (2, 3, logit_size, logit_size)
    assert net.logit_size == logit_size


@pytest.mark.parametrize(("upscaler", "logit_size", "channels"), [("full", 224, 8), ("sam", 56, 32)])
def test_vit_b_has_the_papers_upscaler(upscaler: str, logit_size: int, channels: int) -> None:
    net = Sam(size="vit-b", image_size=224, upscaler=upscaler).build_meta(2)
    assert net(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 3, logit_size, logit_size)
    assert net.mask_decoder.output_hypernetworks_mlps[0].proj_out.out_features == channels


@torch.no_grad()
def test_one_channel_is_three_equal_ones() -> None:
    net, image = build(), torch.rand(2, 1, 32, 32, generator=generator(0, "image"))
    assert torch.equal(net(image), net(image.repeat(1, 3, 1, 1)))


@torch.no_grad()
def test_forward_is_decode_of_encode() -> None:
    net, image = build(), torch.rand(2, 1, 32, 32, generator=generator(0, "image"))
    embedding = net.encode(image)
    assert embedding.shape == (2, 32, 4, 4)
    assert torch.equal(net(image), net.decode(embedding))
    torch.testing.assert_close(net.features(image), embedding.flatten(2).mean(2))


@torch.no_grad()
def test_images_do_not_mix() -> None:
    net, images = build().double(), torch.rand(3, 1, 32, 32, generator=generator(0, "image")).double()
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_bf16_autocast_keeps_the_positions_exact() -> None:
    """Phases reach 20 and more; bf16 would round them to 0.06."""
    encoding = build(image_size=128).prompt_encoder.shared_embedding
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encoding.grid(16)
    assert torch.equal(rounded, encoding.grid(16))


def test_another_image_size_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"32.*doesn't match|doesn't match.*32"):
        build()(torch.zeros(1, 1, 40, 40))


def test_unused_modules_are_all_that_gets_no_gradient() -> None:
    net = build().requires_grad_(True)
    net(torch.rand(1, 1, 32, 32, generator=generator(0, "image"))).square().sum().backward()
    without = {name for name, tensor in net.named_parameters() if tensor.grad is None}
    unused = {id(tensor) for module in net.unused() for tensor in module.parameters()}
    assert without == {name for name, tensor in net.named_parameters() if id(tensor) in unused}


def test_double_precision_gradients_agree_with_differences() -> None:
    """Nothing in the network falls back to single precision: a central difference of step 1e-6 agrees to 1e-6."""
    net, images = build().double(), torch.rand(1, 1, 32, 32, generator=generator(0, "image")).double()
    table = net.vision_encoder.layers[0].attn.rel_pos_h.requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(images).square().sum(), table)
    direction = torch.randn(table.shape, generator=generator(0, "direction")).double()
    with torch.no_grad():
        table += 1e-6 * direction
        above = net(images).square().sum()
        table -= 2e-6 * direction
        below = net(images).square().sum()
    torch.testing.assert_close((above - below) / 2e-6, (gradient * direction).sum(), rtol=1e-6, atol=1e-9)


def test_a_built_network_is_frozen_and_in_evaluation_mode() -> None:
    net = build()
    assert not any(tensor.requires_grad for tensor in net.parameters())
    assert not any(module.training for module in net.modules())
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}


def test_random_start_is_seeded_and_leaves_the_global_stream_alone() -> None:
    state = torch.random.get_rng_state()
    first, again = build().state_dict(), build().state_dict()
    other = Sam(size="tiny", image_size=32).build(2, streams(1, "init")).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["vision_encoder.pos_embed"], other["vision_encoder.pos_embed"])
    assert not torch.equal(*(first[f"vision_encoder.layers.{layer}.attn.qkv.weight"] for layer in (0, 1)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_tensor_of_equal_name_and_shape_starts_equal_in_every_model() -> None:
    base = build().state_dict()
    for other in (
        build(upscaler="sam"),
        build(image_size=40),
        Sam(size="tiny", image_size=32).build(4, streams(0, "init")),
    ):
        state = other.state_dict()
        shared = [name for name in base.keys() & state.keys() if base[name].shape == state[name].shape]
        assert len(shared) > 80
        assert all(torch.equal(base[name], state[name]) for name in shared)


def test_random_start_is_alive() -> None:
    """Position tables and matrix are random, and two images give different logits."""
    net = build()
    state = net.state_dict()
    for name in ("vision_encoder.pos_embed", "vision_encoder.layers.1.attn.rel_pos_w"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.3)
    assert state["prompt_encoder.shared_embedding.positional_embedding"].std().item() == pytest.approx(1.0, rel=0.5)
    images = torch.rand(2, 1, 32, 32, generator=generator(0, "image"))
    with torch.no_grad():
        logits = net(images)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "fan_in"), [("transformer.final_attn_token_to_image.q_proj", 32), ("upscale_conv2", 16)]
)
def test_decoder_starts_as_torch_would(name: str, fan_in: int) -> None:
    """Uniform within 1 / sqrt(fan in): 32 in for q (32 to 16), 4 channels out * 4 for the convolution (8 to 4)."""
    start = build().state_dict()[f"mask_decoder.{name}.weight"]
    assert 0.95 < start.abs().max().item() * math.sqrt(fan_in) <= 1


def test_sizes_are_as_stated() -> None:
    """The packaged base stays small; SAM's own sizes with 4 masks and 4x upscaler have the published millions."""
    assert sum(t.numel() for t in Sam().build_meta(2).parameters()) == 1_715_903
    millions = {
        size: sum(t.numel() for t in Sam(size=size, image_size=1024, upscaler="sam").build_meta(3).parameters()) / 1e6
        for size in ("vit-b", "vit-l", "vit-h")
    }
    assert millions == pytest.approx({"vit-b": 93.7, "vit-l": 312.3, "vit-h": 641.1}, abs=0.1)


def test_settings_are_checked_all_at_once() -> None:
    with pytest.raises(ValueError, match=r"size: expected one of vit-b, .* got 'vit-g'; upscaler: .*; heads: .* 'old'"):
        Sam(size="vit-g", upscaler="half", heads="old")


@pytest.mark.parametrize("image_size", [0, -16, 100])
def test_image_sizes_that_are_no_multiple_of_the_patch(image_size: int) -> None:
    with pytest.raises(
        ValueError, match=f"image_size: expected a positive multiple of the patch size 16, got {image_size}"
    ):
        Sam(size="vit-b", image_size=image_size)


def test_heads_of_a_checkpoint_need_one() -> None:
    with pytest.raises(ValueError, match="heads: expected 'new', as random weights have no checkpoint"):
        Sam(heads="checkpoint")


def test_a_model_needs_a_class() -> None:
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        Sam().build_meta(0)
