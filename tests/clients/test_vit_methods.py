"""The methods of the Vision Transformer train what the paper's table says, and LoRA computes what PEFT's does."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from wardround.aggregators.fedper import FedPer
from wardround.clients import METHODS
from wardround.clients.common_methods import Attention, Full, LoraOnly
from wardround.clients.contract import Method, at_rank, rank_of
from wardround.clients.lora import LoRA
from wardround.clients.testing import check_method
from wardround.clients.vit import Vit, VitNet
from wardround.clients.vit_methods import (
    COMPONENTS,
    Bias,
    BottleneckAdapter,
    Dvpt,
    LinearProbe,
    LoraVpt,
    Sba,
    UnionOf,
    VptDeep,
    VptShallow,
)
from wardround.simulator.builder import ConfigError, build, resolve
from wardround.simulator.randomness import generator, streams

B16 = Vit(size="b16", image_size=224)
TINY = Vit(size="tiny", image_size=32)
D, L = 768, 12

COUNTS: list[tuple[Method, int]] = [  # without the head; the right-hand sides are those of the paper's table
    (Full(), 85_798_656),
    (LinearProbe(), 0),
    (Bias(), 102_912),
    (Attention(), 28_348_416),
    (Sba(), 28_348_416),
    (VptShallow(), 10 * D),
    (VptShallow(prompts=50), 50 * D),
    (VptDeep(), L * 10 * D),
    (VptDeep(prompts=1), L * D),
    (Dvpt(prompts=10, rank=4), L * 4 * (10 + D)),
    (Dvpt(prompts=50, rank=1), L * 1 * (50 + D)),
    (Dvpt(prompts=10, rank=4, form="shared_basis"), 4 * (L * 10 + D)),
    (Dvpt(prompts=50, rank=8, form="shared_basis"), 8 * (L * 50 + D)),
    (LoraOnly(lora=LoRA(rank=8)), 18_432 * 2 * 8),
    (LoraOnly(lora=LoRA(rank=8, matrices="qkv")), 18_432 * 3 * 8),
    (LoraOnly(lora=LoRA(rank=1, matrices="qkvo")), 18_432 * 4 * 1),
    (LoraOnly(lora=LoRA(rank=8, blocks=3)), 18_432 * 2 * 8 // 4),
    (LoraVpt(lora=LoRA(rank=8), prompts=5), 18_432 * 2 * 8 + L * 5 * D),
    (BottleneckAdapter(width=8), L * (2 * D * 8 + 8 + D)),
    (BottleneckAdapter(width=64), L * (2 * D * 64 + 64 + D)),
    (
        UnionOf(of=(LoraOnly(lora=LoRA(rank=8)), VptDeep(), BottleneckAdapter(width=8))),
        18_432 * 2 * 8 + L * 10 * D + L * (2 * D * 8 + 8 + D),
    ),
    (UnionOf(of=(Bias(), Attention())), 28_348_416 + 102_912 - L * 4 * D),  # biases of attention count once
    (UnionOf(of=(BottleneckAdapter(width=8), Bias())), 102_912 + L * (2 * D * 8 + 8 + D)),
]


@pytest.mark.parametrize("classes", [8, 7])
def test_counts_are_those_of_the_paper(classes: int) -> None:
    """And the head's d C + C: 6,152 at C = 8 and 5,383 at C = 7."""
    found = {repr(method): trained(method, classes) for method, _ in COUNTS}
    assert found == {repr(method): number + D * classes + classes for method, number in COUNTS}


@cache
def bare(model: Vit, classes: int) -> VitNet:
    return model.build_meta(classes)


def trained(method: Method, classes: int, model: Vit = B16) -> int:
    net = copy.deepcopy(bare(model, classes))
    names = method.attach(net).names
    parameters = dict(net.named_parameters())
    return sum(parameters[name].numel() for name in names)


def test_a_round_of_sba_trains_one_block() -> None:
    """Twelve groups of q, k, v and o with their biases: 4 (768^2 + 768) = 2,362,368 each; the head is in none."""
    net = B16.build_meta(8)
    found = Sba().attach(net)
    parameters = dict(net.named_parameters())
    assert [sum(parameters[name].numel() for name in group) for group in found.groups] == [2_362_368] * 12
    drawn = {name for group in found.groups for name in group}
    assert {*found.names} - drawn == {"head.weight", "head.bias"}
    for number, group in enumerate(found.groups):
        assert {".".join(name.split(".")[:4]) for name in group} == {f"vit.layers.{number}.attention"}
    assert not Attention().attach(B16.build_meta(8)).groups


def test_the_table_of_methods_knows_them_all() -> None:
    vit = {name for name, cls in METHODS.items() if "vit" in cls.models}
    assert {type(method) for method, _ in COUNTS} == {METHODS[name] for name in vit}
    assert vit == {*COMPONENTS, "full", "sba", "union"}
    assert {name for name, cls in METHODS.items() if cls.models == ("sam", "vit")} == {"full", "attention", "lora"}


CONTRACT = [
    *(METHODS[name]() for name in METHODS if METHODS[name].models == ("vit",) and name != "union"),
    Dvpt(rank=3, form="shared_basis"),
    Sba(draw="per_client"),
    LoraOnly(lora=LoRA(rank=3, matrices="qkvo", blocks=1)),
    UnionOf(of=(LoraOnly(lora=LoRA(rank=3)), VptDeep(), BottleneckAdapter(width=8))),
    UnionOf(of=(LoraOnly(lora=LoRA(rank=3)), Dvpt(rank=3, form="shared_basis"))),
    UnionOf(of=(Bias(), BottleneckAdapter(width=2), VptShallow())),
    UnionOf(of=(LinearProbe(),)),
]


@pytest.mark.parametrize("method", CONTRACT, ids=repr)
def test_contract(method: Method) -> None:
    check_method(method)


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        (LinearProbe(), 4),
        (LoraOnly(lora=LoRA(rank=2, blocks=1)), 2),
        (LoraOnly(), 1),
        (Attention(), 1),
        (BottleneckAdapter(), 1),
        (VptShallow(), 1),
        (Dvpt(), 1),
        (Bias(), 0),
        (Full(), 0),
    ],
    ids=repr,
)
def test_what_comes_before_the_first_trained_tensor_is_frozen(method: Method, stages: int) -> None:
    """Stages of the tiny ViT: patches, two blocks, last norm."""
    net = TINY.build_meta(3)
    assert net.frozen_stages(method.attach(net).names) == stages


def test_the_frozen_start_ends_in_cls_alone() -> None:
    net = TINY.build(3, streams(0, "init"))
    images = torch.rand(2, 3, 32, 32, generator=generator(0, "images"))
    expected = net.vit((images - 0.5) / 0.5).last_hidden_state
    embedding = net.encode(images)
    assert embedding.shape == (2, 1, 32)
    torch.testing.assert_close(embedding, expected[:, :1])
    assert torch.equal(net.decode(embedding), net.head(net.pool(embedding)))


def test_parts_and_kinds() -> None:
    net = TINY.build_meta(3)
    found = UnionOf(of=(Bias(), VptDeep(), BottleneckAdapter(width=2), LoraOnly(lora=LoRA(rank=2)))).attach(net)
    expected = {
        "vit.layers.0.attention.q_proj.lora.A": ("encoder", "lora_A"),
        "vit.layers.0.attention.v_proj.lora.B": ("encoder", "lora_B"),
        "vit.layers.0.attention.q_proj.bias": ("encoder", "bias"),
        "vit.layers.1.layernorm_after.bias": ("encoder", "norm"),
        "vit.embeddings.patch_embeddings.projection.bias": ("encoder", "bias"),
        "vit.layers.1.mlp.adapter.down.weight": ("encoder", "weight"),
        "prompts.table": ("encoder", "prompt"),
        "head.weight": ("head", "weight"),
        "head.bias": ("head", "bias"),
    }
    assert {name: (found.part[name], found.kind[name]) for name in expected} == expected
    whole = Full().attach(TINY.build_meta(3))
    assert (whole.kind["vit.embeddings.cls_token"], whole.part["vit.embeddings.cls_token"]) == ("token", "encoder")
    assert whole.kind["vit.embeddings.position_embeddings"] == "position"


@pytest.mark.parametrize("form", ["per_block", "shared_basis"])
def test_the_pairs_of_prompts_cover_the_table(form: str) -> None:
    net = TINY.build_meta(3)
    found = Dvpt(prompts=5, rank=2, form=form).attach(net)
    assert {pair.base for pair in found.pairs} == {"prompts.table"}
    assert [pair.rows for pair in found.pairs] == {"per_block": [(0, 5), (5, 10)], "shared_basis": [None]}[form]
    assert "prompts.table" not in found.names
    assert {found.part[name] for pair in found.pairs for name in (pair.A, pair.B)} == {"encoder"}


def test_a_head_of_ones_own_leaves_all_else_shared() -> None:
    """FedPer and the like go by the part ``head``: it is in every method, and ``linear`` alone has nothing else."""
    for method, _ in COUNTS:
        found = method.attach(Vit(size="mini", image_size=32).build_meta(3))
        assert {name for name in found.names if found.part[name] == "head"} == {"head.weight", "head.bias"}
        if not isinstance(method, LinearProbe):
            assert {*FedPer().personal(found)} == {"head.weight", "head.bias"}


# ---- LoRA against PEFT -----------------------------------------------------------------------------------------------


def randomised(net: VitNet) -> VitNet:
    """In double precision, every tensor moved from its start by a draw of its own name."""
    net.double()
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator(0, "noise", name)))
    return net


@pytest.mark.parametrize("matrices", ["qv", "qkv", "qkvo"])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_lora_is_pefts(matrices: str, power: float) -> None:
    """Outputs and gradients of the same transformers ViT with PEFT's LoRA (rsLoRA at power 0.5) inside, in fp64."""
    settings = LoRA(rank=3, alpha=2.0, power=power, matrices=matrices)
    ours, theirs = (randomised(TINY.build(3, streams(0, "init"))) for _ in range(2))
    method = LoraOnly(lora=settings)
    layout = method.attach(ours)
    method.initialise(ours, streams(0, "init"))
    config = LoraConfig(
        r=3, lora_alpha=2.0, use_rslora=power == 0.5, target_modules=[f"{word}_proj" for word in matrices]
    )
    inject_adapter_in_model(config, theirs.vit)
    ours.double()
    theirs.double()
    pairs = []
    for pair in layout.pairs:
        place = theirs.get_submodule(pair.base.removesuffix(".weight"))
        for name, weight in ((pair.A, place.lora_A.default.weight), (pair.B, place.lora_B.default.weight)):
            with torch.no_grad():
                own = ours.get_parameter(name)
                own.copy_(torch.randn(own.shape, dtype=own.dtype, generator=generator(0, "factor", name)))
                weight.copy_(own)
            pairs.append((own, weight))
    assert len(pairs) == 2 * 2 * len(matrices)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=generator(0, "images"))
    weights = torch.randn(2, 3, dtype=torch.float64, generator=generator(0, "weights"))
    left, right = ours(images), theirs(images)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    factors = [[side.requires_grad_(True) for side in sides] for sides in zip(*pairs, strict=True)]
    found = torch.autograd.grad((ours(images) * weights).sum(), factors[0])
    expected = torch.autograd.grad((theirs(images) * weights).sum(), factors[1])
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


# ---- unions and mistakes ---------------------------------------------------------------------------------------------


def test_a_union_is_read_from_plain_values_and_written_again() -> None:
    plain = {"of": ["lora", "vpt_deep", {"name": "adapter", "width": 8}, {"name": "dvpt", "rank": 32}]}
    method = build(UnionOf, plain)
    assert method.of == (LoraOnly(), VptDeep(), BottleneckAdapter(width=8), Dvpt(rank=32))
    resolved = resolve(method)
    assert [one["name"] for one in resolved["of"]] == ["lora", "vpt_deep", "adapter", "dvpt"]
    assert build(UnionOf, resolved) == method


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"of": []}, "of: expected at least one method, got none"),
        ({}, "of: missing"),
        ({"of": ["lora", {"name": "dvpt", "rank": 4}]}, r"of: expected one rank .*got 32 \(lora\), 4 \(dvpt\)"),
        ({"of": ["lora", {"name": "adapter", "width": 0}]}, r"of\[1\].width: expected at least 1, got 0"),
        ({"of": ["lora", {"name": "lora", "lora": {"rank": 4}}]}, r"got 32 \(lora\), 4 \(lora\)"),
        ({"of": ["lora", "full"]}, r"of\[1\]: expected one of linear, .*, got full, which trains everything already"),
        ({"of": ["sba"]}, r"of\[0\]: expected one of .*, got sba, which trains one drawn block in a round"),
        ({"of": ["decoder"]}, r"of\[0\].*unknown name 'decoder'"),
        ({"of": "lora"}, "of: expected a list"),
    ],
)
def test_unions_that_make_no_sense_are_refused(plain: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(UnionOf, plain)


def test_two_sets_of_prompts_are_refused() -> None:
    message = r"^method.of\[1\] \(vpt_shallow\): prompts: expected one kind of them .* got \(2, 10\) and \(1, 10"
    with pytest.raises(ValueError, match=message):
        UnionOf(of=(VptDeep(), VptShallow())).attach(TINY.build_meta(3))


def test_errors_of_a_method_in_a_union_say_which_one_it_is() -> None:
    two = UnionOf(of=(LoraOnly(), BottleneckAdapter(width=8), BottleneckAdapter(width=4)))
    with pytest.raises(ValueError, match=r"^method.of\[2\] \(adapter\): block 0: expected .* one of width 4"):
        two.attach(TINY.build_meta(3))
    with pytest.raises(ValueError, match=r"^method.of\[0\] \(lora\): lora.blocks: expected at most the 2 blocks"):
        UnionOf(of=(LoraOnly(lora=LoRA(blocks=3)),)).attach(TINY.build_meta(3))


@pytest.mark.parametrize(
    ("form", "prompts", "most"),
    [("per_block", 10, 10), ("shared_basis", 10, 20), ("per_block", 1000, 32), ("shared_basis", 1000, 32)],
)
def test_prompts_have_no_more_directions_than_their_product(form: str, prompts: int, most: int) -> None:
    """Two blocks of width 32: a pair has T rows per block, 2 T with a shared basis, and 32 columns."""
    fits = Dvpt(prompts=prompts, rank=most, form=form)
    fits.attach(TINY.build_meta(3))
    with pytest.raises(ValueError, match=f"^method.rank: expected at most {most}, .*, got {most + 1}$"):
        replace(fits, rank=most + 1).attach(TINY.build_meta(3))
    LoraOnly(lora=LoRA(rank=1000)).attach(TINY.build_meta(3))


def test_a_union_does_what_its_methods_do() -> None:
    """The order is of no matter, the same twice is one, and lora with vpt_deep is lora_vpt."""
    lora, deep = LoraOnly(lora=LoRA(rank=2)), VptDeep()
    layouts, values = [], []
    both: tuple[Method, ...] = (LoraVpt(lora=LoRA(rank=2)),)
    for of in ((lora, deep), (deep, lora), (lora, deep, lora), both):
        method, net = UnionOf(of=of), TINY.build(3, streams(0, "init"))
        layouts.append(method.attach(net))
        method.initialise(net, streams(0, "init"))
        values.append(dict(net.named_parameters()))
    assert all(layout == layouts[0] for layout in layouts)
    assert all(torch.equal(one[name], values[0][name]) for one in values for name in layouts[0].names)


def test_ranks() -> None:
    union = UnionOf(of=(VptDeep(), LoraOnly(lora=LoRA(rank=4)), BottleneckAdapter()))
    assert [rank_of(method) for method in (union, Dvpt(), VptDeep(), UnionOf(of=(Bias(),)))] == [4, 4, None, None]
    assert at_rank(union, 2) == UnionOf(of=(VptDeep(), LoraOnly(lora=LoRA(rank=2)), BottleneckAdapter()))
    assert at_rank(Dvpt(form="shared_basis"), 2) == Dvpt(rank=2, form="shared_basis")
    assert at_rank(VptDeep(), 2) == VptDeep()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VptShallow(prompts=0), "^prompts: expected at least 1, got 0$"),
        (lambda: Dvpt(rank=0, prompts=0), "^prompts: expected at least 1, got 0; rank: expected at least 1, got 0$"),
        (lambda: Dvpt(form="both"), "^form: expected 'per_block' or 'shared_basis', got 'both'$"),
        (lambda: LoraVpt(prompts=0), "^prompts: expected at least 1, got 0$"),
        (lambda: BottleneckAdapter(width=0), "^width: expected at least 1, got 0$"),
        (lambda: Sba(draw="never"), "^draw: expected 'shared' or 'per_client', got 'never'$"),
        (lambda: LoRA(matrices="vq"), "^matrices: expected one of qv, qkv, qkvo, got 'vq'$"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_more_blocks_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"method.lora.blocks: expected at most the 2 blocks .*, got 3"):
        LoraOnly(lora=LoRA(rank=1, blocks=3)).attach(TINY.build_meta(3))


def test_the_scale_of_a_pair_is_the_methods() -> None:
    pair = LoraOnly(lora=LoRA(rank=4, alpha=2.0, power=0.5)).attach(TINY.build_meta(3)).pairs[0]
    assert pair.scale(4) == 1.0
    assert Dvpt(rank=4).attach(TINY.build_meta(3)).pairs[0].scale(4) == 1.0
    assert math.isclose(pair.scale(1), 2.0)
