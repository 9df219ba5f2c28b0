"""Every method passes the contract suite, and trains exactly what the paper's row says."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from wardround.aggregators.contract import Layout
from wardround.clients import METHODS
from wardround.clients.layout import layout
from wardround.clients.lora import LoRA, set_rank
from wardround.clients.methods import (
    FlapSam,
    Full,
    LoraOnly,
    LoraSb,
    LowRank,
    MaSam,
    Method,
    Samed,
    SamedS,
)
from wardround.clients.sam import Sam, SamNet
from wardround.clients.slice_adapter import adapt_slices
from wardround.clients.testing import check_method
from wardround.simulator.builder import build
from wardround.simulator.randomness import streams

VIT_B = Sam(size="vit-b", image_size=224)
TINY = Sam(size="tiny", image_size=32)
TINY_BLOCKS = 2


@pytest.mark.parametrize("name", [name for name, cls in METHODS.items() if "sam" in cls.models])
def test_contract(name: str) -> None:
    check_method(METHODS[name]())


@pytest.mark.parametrize("name", ["lora", "lora_decoder", "flap_sam", "samed", "samed_s"])
@pytest.mark.parametrize(
    "settings", [LoRA(rank=1, blocks=1), LoRA(rank=5, power=1.0), LoRA(rank=4, init_b="normal")], ids=repr
)
def test_contract_at_other_settings(name: str, settings: LoRA) -> None:
    check_method(METHODS[name](lora=settings))


@pytest.mark.parametrize("method", [LoraSb(rank=1, init="weights"), LoraSb(rank=5, scale=2.0, head="frozen")], ids=repr)
def test_contract_of_lora_sb_at_other_settings(method: LoraSb) -> None:
    check_method(method)


class Forgetful(LowRank):
    """Breaks the contract: its adapters are never initialised."""

    models = ("sam",)

    def attach(self, model: SamNet) -> Layout:  # see the class
        return FlapSam(lora=self.lora).attach(model)

    def initialise(self, model: SamNet, rng: object) -> None:  # see the class
        pass


class Homeless(LowRank):
    """Breaks the contract: suits no model."""

    def attach(self, model: SamNet) -> Layout:  # see the class
        return FlapSam(lora=self.lora).attach(model)


class Boasting(FlapSam):
    """Breaks the contract: its pairs have another rank than it says."""

    @property
    def pair_rank(self) -> int | None:  # see the class
        return self.lora.rank + 1


class Unstable(Full):
    """Breaks the contract: adds a parameter at every call."""

    def attach(self, model: SamNet) -> Layout:  # see the class
        model.mask_decoder.upscale_more.append(nn.Linear(1, 1, device=next(model.parameters()).device))
        return layout(model, dense=[model.mask_decoder])


class Touching(Full):
    """Breaks the contract: changes a weight of the base."""

    def attach(self, model: SamNet) -> Layout:  # see the class
        with torch.no_grad():
            model.mask_decoder.iou_token.weight.zero_()
        return super().attach(model)


class Secretive(MaSam):
    """Breaks the contract: the last block mixes slices and the model does not say so."""

    def attach(self, model: SamNet) -> Layout:  # see the class
        found = super().attach(model)
        model.__class__ = _Silent
        return found


class _Silent(SamNet):
    mixes_slices = False  # type: ignore[assignment]


class Leaking(MaSam):
    """Breaks the contract: takes the whole batch for one window."""

    def attach(self, model: SamNet) -> Layout:  # see the class
        adapt_slices(model.vision_encoder, self.width)
        for block in model.vision_encoder.layers:
            block.register_forward_pre_hook(lambda module, inputs: (inputs[0], len(inputs[0])))
        return super().attach(model)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Forgetful(), "left unset"),
        (Homeless(), r"models: expected names of models it suits, of \['sam', 'vit'\], got \(\)"),
        (Boasting(), r"pair_rank: expected the one rank of all pairs, which have \[32\], got 33"),
        (Unstable(), "another layout"),
        (Touching(), "changed their values"),
        (Secretive(), "mixes_slices: expected True"),
        (Leaking(), "another window"),
    ],
)
def test_the_contract_suite_notices(method: Method, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(method)


def test_pieces_have_the_papers_sizes() -> None:
    """ViT-B at 224 px and C = 2; the decoder's attention is 2 (263,168 + 2 * 131,712) + 131,712, with biases."""
    net = VIT_B.build_meta(2)
    decoder = net.mask_decoder
    sizes = {
        "encoder": count(net.vision_encoder),
        "encoder attention": count(*net.encoder_attention()),
        "prompt encoder": count(net.prompt_encoder),
        "transformer": count(decoder.transformer),
        "decoder attention": count(*net.decoder_attention()),
        "upscaler": count(*decoder.upscaler()),
        "hypernetworks": count(decoder.output_hypernetworks_mlps),
        "mask tokens": count(decoder.mask_tokens),
        "IoU token": count(decoder.iou_token),
        "IoU head": count(decoder.iou_prediction_head),
    }
    assert sizes == {
        "encoder": 86_624_512,
        "encoder attention": 28_389_888,
        "prompt encoder": 6_220,
        "transformer": 3_291_264,
        "decoder attention": 1_184_896,
        "upscaler": 76_632,
        "hypernetworks": 400_920,
        "mask tokens": 768,
        "IoU token": 256,
        "IoU head": 132_355,
    }


def count(*modules: nn.Module) -> int:
    return sum(tensor.numel() for module in modules for tensor in module.parameters())


def test_lora_sits_on_q_and_v_everywhere() -> None:
    """12 fused encoder projections with two pairs each, 7 decoder attentions with two: 38 pairs of 42,752 r numbers."""
    net = VIT_B.build_meta(2)
    found = METHODS["lora"]().attach(net)
    parameters = dict(net.named_parameters())
    encoder = [pair for pair in found.pairs if found.part[pair.A] == "encoder"]
    decoder = [pair for pair in found.pairs if found.part[pair.A] == "decoder"]
    assert (len(encoder), len(decoder)) == (24, 14)
    assert {pair.rows for pair in encoder} == {(0, 768), (1536, 2304)}
    assert {pair.rows for pair in decoder} == {None}
    assert sum(parameters[n].numel() for pair in encoder for n in (pair.A, pair.B)) == 36_864 * 32
    assert sum(parameters[n].numel() for pair in decoder for n in (pair.A, pair.B)) == 5_888 * 32


@pytest.mark.parametrize(("blocks", "pairs", "prefix"), [(None, 24, 1), (12, 24, 1), (3, 6, 10), (1, 2, 12)])
def test_lora_in_the_last_blocks_alone(blocks: int | None, pairs: int, prefix: int) -> None:
    """Two pairs a block in the last of 12, 14 in the decoder as ever; patches and the blocks before them are frozen."""
    net = VIT_B.build_meta(2)
    found = METHODS["lora"](lora=LoRA(rank=4, blocks=blocks)).attach(net)
    encoder = [pair.base for pair in found.pairs if found.part[pair.A] == "encoder"]
    last = [f"vision_encoder.layers.{number}.attn.qkv.weight" for number in range(12 - pairs // 2, 12)]
    assert encoder == [name for name in last for _ in range(2)]
    assert len(found.pairs) == pairs + 14
    assert net.frozen_stages(found.names) == prefix


@pytest.mark.parametrize(
    ("matrices", "encoder", "decoder"),
    [
        ("qv", {"qkv": 2}, {"q_proj", "v_proj"}),
        ("qkv", {"qkv": 3}, {"q_proj", "k_proj", "v_proj"}),
        ("qkvo", {"qkv": 3, "proj": 1}, {"q_proj", "k_proj", "v_proj", "out_proj"}),
    ],
)
def test_lora_on_other_matrices(matrices: str, encoder: dict[str, int], decoder: set[str]) -> None:
    """In rank-one numbers: a block has 2 * 768 per matrix; an attention of the decoder 256 + its inner width."""
    net = VIT_B.build_meta(2)
    found = METHODS["lora"](lora=LoRA(rank=1, matrices=matrices)).attach(net)
    layers = [pair.base.split(".")[-2] for pair in found.pairs if found.part[pair.A] == "encoder"]
    assert {layer: layers.count(layer) for layer in layers} == {layer: 12 * n for layer, n in encoder.items()}
    assert {pair.base.split(".")[-2] for pair in found.pairs if found.part[pair.A] == "decoder"} == decoder
    rows = {"qv": {(0, 768), (1536, 2304)}, "qkv": {(0, 768), (768, 1536), (1536, 2304)}}
    assert {pair.rows for pair in found.pairs if pair.base.endswith("qkv.weight")} == rows[matrices[:3]]
    assert trained(LoraOnly(lora=LoRA(rank=1, matrices=matrices)), VIT_B) == (12 * 1536 + 2944) * len(matrices)


def test_more_blocks_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"method.lora.blocks: expected at most the 2 blocks .*, got 3"):
        FlapSam(lora=LoRA(rank=1, blocks=3)).attach(TINY.build_meta(2))


HEAD_SAM = 73_952 + 3 * 139_808 + 768
"""Upscaler, hypernetworks and mask tokens of ViT-B at C = 2 and ``upscaler: sam``.

Upscaler: 256 * 64 * 4 + 64 = 65,600, norm 128, 64 * 32 * 4 + 32 = 8,224. A hypernetwork 256 -> 256 -> 256 -> 32:
2 * 65,792 + 8,224 = 139,808. Tokens: 3 * 256.
"""


@pytest.mark.parametrize(
    ("method", "full", "sam"),
    [
        (LoraSb(), 38 * 64**2 + 478_320, 38 * 64**2 + HEAD_SAM),
        (LoraSb(rank=200, head="frozen"), 28 * 200**2 + 10 * 128**2, None),
        (Samed(), 36_864 * 4 + 6_220 + 3_902_195, 36_864 * 4 + 6_220 + 3_291_264 + HEAD_SAM + 256 + 132_355),
        (SamedS(), 42_752 * 4 + 6_220 + 478_320 + 256 + 132_355, 42_752 * 4 + 6_220 + HEAD_SAM + 256 + 132_355),
        (
            MaSam(),
            24 * (2 * 768 + 2 * 768 * 384 + 3 * 384**2 + 384) + 3_902_195,
            24 * (2 * 768 + 2 * 768 * 384 + 3 * 384**2 + 384) + 3_291_264 + HEAD_SAM + 256 + 132_355,
        ),
        (MaSam(width=1), 24 * (2 * 768 + 2 * 768 + 3 + 1) + 3_902_195, None),
    ],
    ids=repr,
)
def test_counts_by_hand(method: Method, full: int, sam: int | None) -> None:
    """ViT-B at C = 2, 224 px with the full upscaler and 512 px with SAM's: LoRA, prompt encoder, pieces of the decoder.

    SAMed at full: 147,456 + 6,220 + 3,902,195 = 4,055,871; SAMed_s: 171,008 + 6,220 + 610,931 = 788,159; MA-SAM:
    24 * 1,034,112 + 3,902,195 = 28,720,883. LoRA-SB: 24 encoder places of width 768, 4 of 256 and 10 of 128 in the
    decoder; at rank 200 the ten have 128 x 128.
    """
    assert trained(method, VIT_B) == full
    if sam is not None:
        assert trained(method, replace(VIT_B, image_size=512, upscaler="sam")) == sam


def trained(method: Method, model: Sam) -> int:
    net = model.build_meta(2)
    names = method.attach(net).names
    parameters = dict(net.named_parameters())
    return sum(parameters[name].numel() for name in names)


def parts_of(method: Method) -> tuple[SamNet, Layout, set[str]]:
    """The adapted tiny model, its layout, and the first words of what trains."""
    net = TINY.build_meta(2)
    found = method.attach(net)
    return net, found, {".".join(name.split(".")[:2]) for name in found.dense}


def test_samed_adapts_the_encoder_alone_and_trains_decoder_and_prompt_encoder_whole() -> None:
    net, found, _ = parts_of(Samed())
    assert {found.part[pair.A] for pair in found.pairs} == {"encoder"}
    assert len(found.pairs) == 2 * TINY_BLOCKS
    whole = [name for name, _ in net.named_parameters() if name.startswith(("prompt_encoder.", "mask_decoder."))]
    assert list(found.dense) == whole
    assert not any("positional_embedding" in name for name in found.names)  # a buffer


def test_samed_s_freezes_the_decoders_transformer_apart_from_lora() -> None:
    _, found, words = parts_of(SamedS())
    assert found.pairs == FlapSam(lora=Samed().lora).attach(TINY.build_meta(2)).pairs
    assert "mask_decoder.transformer" not in words
    assert {"mask_decoder.iou_token", "mask_decoder.iou_prediction_head", "prompt_encoder.no_mask_embed"} <= words


def test_ma_sam_trains_its_adapters_and_the_decoder() -> None:
    net, found, _ = parts_of(MaSam(width=4))
    assert not found.pairs
    decoder = [name for name, _ in net.named_parameters() if name.startswith("mask_decoder.")]
    adapters = [name for name, _ in net.named_parameters() if "slice_adapter" in name]
    assert list(found.dense) == adapters + decoder
    first = "vision_encoder.layers.0.slice_adapter1."
    kinds = {name.removeprefix(first): found.kind[name] for name in found.dense if name.startswith(first)}
    assert kinds == {
        "norm.weight": "norm",
        "norm.bias": "norm",
        "down.weight": "weight",
        "conv.weight": "weight",
        "conv.bias": "bias",
        "up.weight": "weight",
    }
    assert {found.part[name] for name in adapters} == {"encoder"}


def test_samed_keeps_its_rank_when_another_setting_of_its_lora_is_given() -> None:
    assert Samed().lora.rank == SamedS().lora.rank == 4
    assert build(Samed, {"lora": {"alpha": 2.0}}).lora.rank == 4


def test_adapter_names_lie_below_the_unchanged_base_name() -> None:
    found = FlapSam().attach(TINY.build_meta(2))
    assert found.pairs[0].A == "vision_encoder.layers.0.attn.qkv.lora_q.A"
    assert found.pairs[0].base == "vision_encoder.layers.0.attn.qkv.weight"
    assert found.pairs[-1].B == "mask_decoder.transformer.final_attn_token_to_image.v_proj.lora.B"


def test_parts_and_kinds() -> None:
    found = Full().attach(TINY.build_meta(2))
    expected = {
        "vision_encoder.pos_embed": ("encoder", "position"),
        "vision_encoder.layers.0.attn.rel_pos_h": ("encoder", "position"),
        "vision_encoder.layers.0.attn.qkv.weight": ("encoder", "weight"),
        "vision_encoder.layers.0.attn.qkv.bias": ("encoder", "bias"),
        "vision_encoder.neck.layer_norm1.bias": ("encoder", "norm"),
        "vision_encoder.neck.conv1.weight": ("encoder", "weight"),
        "prompt_encoder.no_mask_embed.weight": ("prompt_encoder", "token"),
        "mask_decoder.iou_token.weight": ("decoder", "token"),
        "mask_decoder.iou_prediction_head.proj_in.weight": ("decoder", "weight"),
        "mask_decoder.transformer.layer_norm_final_attn.weight": ("decoder", "norm"),
        "mask_decoder.mask_tokens.weight": ("head", "token"),
        "mask_decoder.output_hypernetworks_mlps.2.proj_out.bias": ("head", "bias"),
        "mask_decoder.upscale_layer_norm.weight": ("head", "norm"),
        "mask_decoder.upscale_more.0.layer_norm.weight": ("head", "norm"),
        "mask_decoder.upscale_more.0.conv.weight": ("head", "weight"),
    }
    assert {name: (found.part[name], found.kind[name]) for name in expected} == expected


def test_full_has_every_parameter_and_no_buffer() -> None:
    net = TINY.build_meta(2)
    names = Full().attach(net).names
    assert names == tuple(name for name, _ in net.named_parameters())
    assert "prompt_encoder.shared_embedding.positional_embedding" not in names


def test_adapted_decoder_weights_train_themselves_too() -> None:
    """lora_decoder trains q and v of the decoder twice: the weight and the pair on it."""
    found = METHODS["lora_decoder"]().attach(TINY.build_meta(2))
    assert found.pairs[-1].base in found.dense
    assert found.pairs[0].base not in found.dense


def test_the_scale_of_a_pair_is_the_methods() -> None:
    pair = FlapSam(lora=LoRA(rank=4, alpha=2.0, power=0.5)).attach(TINY.build_meta(2)).pairs[0]
    assert pair.scale(4) == 1.0
    assert pair.scale(1) == 2.0


def test_other_adapters_in_place_are_an_error() -> None:
    net, method = TINY.build_meta(2), FlapSam(lora=LoRA(rank=2))
    method.attach(net)
    with pytest.raises(ValueError, match=r"layer 'qkv': expected no adapters or those of LoRA\(rank=3"):
        replace(method, lora=LoRA(rank=3)).attach(net)


def test_another_rank_compiles_nothing_again() -> None:
    """The whole network is one graph, and the scale of the adapters is a tensor in it."""
    torch.compiler.reset()
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    net, method, rng = TINY.build(1, streams(0, "init")), FlapSam(lora=LoRA(rank=2, power=1.0)), streams(0, "init")
    method.attach(net)
    method.initialise(net, rng)
    compiled, image = torch.compile(net, backend=backend, fullgraph=True), torch.zeros(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), net(image))
        set_rank(net, 1)
        torch.testing.assert_close(compiled(image), net(image))
    assert len(graphs) == 1
