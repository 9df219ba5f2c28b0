"""The stacked replica: several hospitals in one pass are what the replica makes of one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wardround.aggregators.contract import Tensors
from wardround.clients.lora import LoRA
from wardround.clients.methods import (
    METHODS,
    Attention,
    AttentionCode,
    Bias,
    BottleneckAdapter,
    Decoder,
    Dvpt,
    FlapSam,
    Full,
    LinearProbe,
    LoraDecoder,
    LoraOnly,
    LoraSb,
    LoraVpt,
    MaSam,
    Method,
    PartialDecoder,
    Samed,
    SamedLoRA,
    SamedS,
    Sba,
    UnionOf,
    VptDeep,
    VptShallow,
)
from wardround.clients.replica import Replica
from wardround.clients.sam import Sam
from wardround.clients.stack import Stack, stackable
from wardround.clients.vit import Vit
from wardround.simulator.randomness import generator, streams

MakeReplica = Callable[..., Replica]

LORA = LoRA(rank=4, alpha=2.0, power=1.0)  # the scale depends on the rank
SAMED = SamedLoRA(rank=4, alpha=2.0, power=1.0)

STACKED: dict[str, Method] = {
    "decoder": Decoder(),
    "partial_decoder": PartialDecoder(),
    "lora": LoraOnly(lora=LORA),
    "lora_decoder": LoraDecoder(lora=LORA),
    "flap_sam": FlapSam(lora=LORA),
    "lora_sb": LoraSb(rank=4),
    "samed": Samed(lora=SAMED),
    "samed_s": SamedS(lora=SAMED),
    "ma_sam": MaSam(width=4),
}
ALONE: dict[str, Method] = {"full": Full(), "attention": Attention(), "attention_code": AttentionCode()}
OF_VIT: list[Method] = [
    Full(),
    LinearProbe(),
    Bias(),
    Attention(),
    Sba(),
    VptShallow(prompts=3),
    VptDeep(prompts=3),
    Dvpt(prompts=5, rank=4),
    Dvpt(prompts=5, rank=4, form="shared_basis"),
    LoraOnly(lora=replace(LORA, matrices="qkvo")),
    LoraVpt(lora=LORA, prompts=3),
    BottleneckAdapter(width=4),
    UnionOf(of=(LoraOnly(lora=LORA), Dvpt(prompts=5, rank=4), BottleneckAdapter(width=4), Bias())),
]


def normal(*shape: int, key: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(0, "test", key), dtype=dtype)


def hospitals(replica: Replica, count: int) -> list[dict[str, Tensor]]:
    """Values of hospitals, all different, with the ranks 2, 4, 1 where there are pairs."""
    start = replica.read()
    ranks = [2, 4, 1] if replica.layout.pairs else [None] * 3
    noise = [{name: 0.1 * normal(*value.shape, key=f"{k}/{name}") for name, value in start.items()} for k in range(3)]
    return [
        {name: replica.narrowed_to(ranks[k], name, start[name] + noise[k][name].to(start[name])) for name in start}
        for k in range(count)
    ]


def windows(count: int, depth: int) -> Tensor:
    return torch.rand(count, depth, 32, 32, generator=generator(0, "test", "windows"))


def one_by_one(
    replica: Replica, starts: Sequence[Tensors], images: Tensor, weights: Tensor
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Logits, and per hospital the gradients of their weighted sum at its own rank, on the plain replica."""
    logits, gradients = [], []
    for tensors, own, weight in zip(starts, images.chunk(len(starts)), weights.chunk(len(starts)), strict=True):
        replica.load(tensors)
        replica.zero_grad()
        logits.append(replica.decode(replica.proceed(replica.begin(own), own.shape[1])))
        (logits[-1] * weight).sum().backward()
        trained = replica.parameters(replica.values)
        gradients.append({n: replica.narrowed(n, v.grad).clone() for n, v in trained.items() if v.grad is not None})
    return torch.cat(logits).detach(), gradients


def all_at_once(
    stack: Stack, count: int, names: Sequence[str], images: Tensor, weights: Tensor
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The same for the first hospitals of a stack."""
    leaf = stack.leaf(names)[:count].detach().requires_grad_(True)
    tensors = stack.split(names, leaf)
    depth = images.shape[1]
    logits = stack.decode(stack.proceed(stack.replica.begin(images), depth, tensors), tensors)
    (logits * weights).sum().backward()
    assert leaf.grad is not None
    gradients = stack.split(names, leaf.grad)
    return logits.detach(), [
        {name: stack.narrowed(k, name, value[k]) for name, value in gradients.items()} for k in range(count)
    ]


def assert_same(stacked: tuple[Tensor, list[dict[str, Tensor]]], plain: tuple[Tensor, list[dict[str, Tensor]]]) -> None:
    torch.testing.assert_close(stacked[0], plain[0], rtol=1e-12, atol=1e-12)
    for got, expected in zip(stacked[1], plain[1], strict=True):
        assert got.keys() == expected.keys()
        largest = max(value.abs().max().item() for value in expected.values())
        assert largest > 0
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-12 * max(largest, 1.0), msg=name)


OF_SAM = [name for name, cls in METHODS.items() if "sam" in cls.models]


def test_every_method_is_here() -> None:
    assert {*STACKED, *ALONE} == {*OF_SAM}
    assert {type(method) for method in OF_VIT} == {cls for cls in METHODS.values() if "vit" in cls.models}


@pytest.mark.parametrize(("count", "depth"), [(1, 1), (2, 3), (3, 1)])
@pytest.mark.parametrize("name", STACKED)
def test_stacked_is_one_after_the_other(make_replica: MakeReplica, name: str, count: int, depth: int) -> None:
    replica = make_replica(method=STACKED[name], precision="fp64")
    starts, images = hospitals(replica, count), windows(2 * count, depth)
    stack = Stack(replica, 3)
    stack.load(starts)
    weights = normal(2 * count * depth, 3, 32, 32, key="weights")
    stacked = all_at_once(stack, count, list(replica.values), images, weights)
    assert_same(stacked, one_by_one(replica, starts, images, weights))


def vit_replica(method: Method, precision: str = "fp64", device: str = "cpu") -> Replica:
    net = Vit(size="tiny", image_size=32).build(3, streams(0, "init"))
    layout = method.attach(net)
    method.initialise(net, streams(0, "init"))
    return Replica(net, layout, device=device, precision=precision)


def photographs(count: int) -> Tensor:
    return torch.rand(count, 1, 3, 32, 32, generator=generator(0, "test", "photographs"))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("method", OF_VIT, ids=repr)
def test_vits_stacked_are_one_after_the_other(method: Method, count: int) -> None:
    """Every method of the ViT can be stacked; hospitals of ranks 2, 4 and 1 where there are pairs."""
    replica = vit_replica(method)
    assert stackable(replica.model, replica.layout.names) is None
    starts, images = hospitals(replica, count), photographs(2 * count)
    stack = Stack(replica, 3)
    stack.load(starts)
    weights = normal(2 * count, 3, key="weights")
    stacked = all_at_once(stack, count, list(replica.values), images, weights)
    assert_same(stacked, one_by_one(replica, starts, images, weights))


def test_the_first_hospitals_can_take_a_step_without_the_others(make_replica: MakeReplica) -> None:
    replica = make_replica(method=STACKED["flap_sam"], precision="fp64")
    starts, images, weights = hospitals(replica, 3), windows(4, 1), normal(4, 3, 32, 32, key="weights")
    stack = Stack(replica, 4)
    stack.load(starts)
    stacked = all_at_once(stack, 2, list(replica.values), images, weights)
    assert_same(stacked, one_by_one(replica, starts[:2], images, weights))


def test_what_is_not_handed_in_comes_from_the_storage(make_replica: MakeReplica) -> None:
    replica = make_replica(method=STACKED["lora_decoder"], precision="fp64")
    starts, images, weights = hospitals(replica, 3), windows(3, 1), normal(3, 3, 32, 32, key="weights")
    stack = Stack(replica, 3)
    stack.load(starts)
    names = [pair.B for pair in replica.layout.pairs]
    logits, gradients = one_by_one(replica, starts, images, weights)
    for count in (2, 3):
        stacked = all_at_once(stack, count, names, images[:count], weights[:count])
        own = [{name: gradient[name] for name in names} for gradient in gradients[:count]]
        assert_same(stacked, (logits[:count], own))
    everything = stack.decode(stack.proceed(replica.begin(images), 1, {}), {})
    torch.testing.assert_close(everything, logits, rtol=1e-12, atol=1e-12)


def test_bf16_is_as_near_as_bf16_gets(make_replica: MakeReplica) -> None:
    """Either way is about 1 % from the exact logits; one ReLU that falls on the other side moves gradients by more."""
    replica = make_replica(method=STACKED["lora_decoder"], precision="bf16")
    starts, images, weights = hospitals(replica, 2), windows(4, 1), normal(4, 3, 32, 32, key="weights").float()
    stack = Stack(replica, 2)
    stack.load(starts)
    logits, gradients = all_at_once(stack, 2, list(replica.values), images, weights)
    expected, expected_gradients = one_by_one(replica, starts, images, weights)
    assert logits.dtype == expected.dtype
    assert (logits - expected).norm() < 0.03 * expected.norm()
    for got, own in zip(gradients, expected_gradients, strict=True):
        flat, other = (torch.cat([side[name].flatten() for name in own]) for side in (got, own))
        assert (flat - other).norm() < 0.3 * other.norm()


def test_what_is_loaded_is_read_again_at_its_own_rank(make_replica: MakeReplica) -> None:
    replica = make_replica(method=FlapSam(lora=LORA))
    stack = Stack(replica, 3)
    starts = hospitals(replica, 3)
    stack.load(starts)
    assert stack.ranks == (2, 4, 1)
    assert stack.count == 3
    for got, expected in zip(stack.read(), starts, strict=True):
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    stack.load(starts[1:2])
    assert stack.ranks == (4,)
    assert len(stack.read()) == 1


def test_what_was_read_is_nobody_elses(make_replica: MakeReplica) -> None:
    replica = make_replica(method=PartialDecoder())
    stack = Stack(replica, 2)
    starts = hospitals(replica, 2)
    stack.load(starts)
    first, second = stack.read()
    name = next(iter(first))
    assert first[name].untyped_storage().data_ptr() != second[name].untyped_storage().data_ptr()
    stack.load(starts[::-1])
    assert torch.equal(first[name], starts[0][name])


def test_a_leaf_is_a_copy_that_takes_its_gradient_from_one_split(make_replica: MakeReplica) -> None:
    replica = make_replica(method=Decoder())
    stack = Stack(replica, 2)
    stack.load(hospitals(replica, 2))
    names = [*PartialDecoder().attach(replica.model).names, *replica.unused]
    leaf = stack.leaf(names)
    tensors = stack.split(names, leaf)
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert not replica.unused & tensors.keys()
    assert leaf.shape == (2, sum(replica.values[name].numel() for name in tensors))
    assert all(value.shape == (2, *replica.values[name].shape) for name, value in tensors.items())
    assert len({_source(value) for value in tensors.values()}) == 1
    sum(value.sum() for value in tensors.values()).backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))
    before = stack.read()
    with torch.no_grad():
        leaf += 1
    assert all(
        torch.equal(own[name], same[name]) for own, same in zip(stack.read(), before, strict=True) for name in own
    )


def _source(view: Tensor) -> object:
    """The split that a view comes from: the node behind the one that shapes it."""
    return view.grad_fn.next_functions[0][0]


def test_fitted_values_are_stored_where_they_belong(make_replica: MakeReplica) -> None:
    replica = make_replica(method=FlapSam(lora=LORA))
    stack = Stack(replica, 3)
    stack.load(hospitals(replica, 3))
    names = [pair.B for pair in replica.layout.pairs]
    before = stack.read()
    stack.store(names, stack.leaf(names)[:2] + 1)
    for k, (own, earlier) in enumerate(zip(stack.read(), before, strict=True)):
        for name, value in own.items():
            expected = earlier[name] + 1 if name in names and k < 2 else earlier[name]
            assert torch.equal(value, expected), (k, name)


def test_the_storage_is_made_once(make_replica: MakeReplica) -> None:
    replica = make_replica(method=FlapSam(lora=LORA))
    stack = Stack(replica, 3)
    names = list(replica.values)
    places = []
    for count in (3, 1, 2):
        stack.load(hospitals(replica, count))
        stack.store(names, stack.leaf(names))
        places.append(
            (
                stack._storage.data_ptr(),
                stack._staged.data_ptr(),
                *(value.data_ptr() for value in stack._scales.of_first(1).values()),
            )
        )
    assert len(set(places)) == 1
    assert stack._storage.shape == (3, sum(value.numel() for value in replica.values.values()))


def test_a_value_is_cut_to_and_padded_from_the_rank_of_its_hospital(make_replica: MakeReplica) -> None:
    replica = make_replica(method=FlapSam(lora=LORA))
    stack = Stack(replica, 3)
    stack.load(hospitals(replica, 3))
    pair = replica.layout.pairs[0]
    A, B = torch.ones(4, 32), torch.ones(32, 4)
    assert [stack.narrowed(k, pair.A, A).shape[0] for k in range(3)] == [2, 4, 1]
    assert [stack.narrowed(k, pair.B, B).shape[1] for k in range(3)] == [2, 4, 1]
    assert stack.replica.widened(pair.A, A[:2]).sum(1).tolist() == [32, 32, 0, 0]


def test_features_under_other_tensors_are_those_of_the_replica(make_replica: MakeReplica) -> None:
    replica = make_replica(method=STACKED["flap_sam"], precision="fp64")
    starts, images = hospitals(replica, 2), windows(4, 3)
    stack = Stack(replica, 2)
    stack.load(starts[::-1])
    padded = [replica.padded(tensors) for tensors in starts]
    others = {name: torch.stack([own[name] for own in padded]).requires_grad_(True) for name in replica.values}
    stack.load([starts[0], starts[1]])
    features = stack.features_at(others, replica.begin(images), 3)
    expected = []
    for tensors, own in zip(starts, images.chunk(2), strict=True):
        replica.load(tensors)
        expected.append(replica.features_at(replica.padded(tensors), replica.begin(own), 3))
    torch.testing.assert_close(features, torch.cat(expected), rtol=1e-12, atol=1e-12)
    assert not features.requires_grad


def test_the_replica_stays_what_it_was(make_replica: MakeReplica) -> None:
    replica = make_replica(method=LoraDecoder(lora=LORA))
    images = windows(2, 1)
    before, values = replica.logits(images).detach(), replica.read()
    stack = Stack(replica, 2)
    stack.load(hospitals(replica, 2))
    stack.decode(stack.proceed(replica.begin(images), 1, {}), {})
    assert torch.equal(replica.logits(images), before)
    assert all(torch.equal(value, values[name]) for name, value in replica.read().items())


@pytest.mark.parametrize("name", OF_SAM)
def test_a_method_is_stackable_or_says_what_is_in_the_way(name: str) -> None:
    model, method = Sam(size="tiny", image_size=32).build_meta(2), METHODS[name]()
    reason = stackable(model, method.attach(model).names)
    if name in STACKED:
        assert reason is None
    else:
        table = "vision_encoder.pos_embed" if name == "full" else "vision_encoder.layers.0.attn.rel_pos_h"
        assert str(reason).startswith(f"'{table}' trains, and ")


@pytest.mark.parametrize(("setting", "value"), [("stride", (1, 1)), ("padding", (1, 1)), ("groups", 2)])
def test_a_transposed_convolution_that_is_no_matrix_product_is_in_the_way(setting: str, value: object) -> None:
    model = Sam(size="tiny", image_size=32).build(2, streams(0, "init"))
    names = PartialDecoder().attach(model).names
    setattr(model.mask_decoder.upscale_conv2, setting, value)
    assert "upscale_conv2.weight' trains, and ConvTranspose2d" in str(stackable(model, names))


@pytest.mark.parametrize(("setting", "value"), [("stride", (4, 4)), ("padding", (1, 1)), ("groups", 3)])
def test_a_convolution_whose_patches_overlap_is_in_the_way(setting: str, value: object) -> None:
    model = Vit(size="tiny", image_size=32).build(3, streams(0, "init"))
    names = Bias().attach(model).names
    setattr(model.vit.embeddings.patch_embeddings.projection, setting, value)
    assert "projection.bias' trains, and Conv2d" in str(stackable(model, names))


@pytest.mark.parametrize("method", ALONE.values(), ids=ALONE)
def test_a_method_that_cannot_be_stacked_is_refused(make_replica: MakeReplica, method: Method) -> None:
    with pytest.raises(ValueError, match=r"pos.* trains, and .* takes the tensors of one hospital only; use cohort"):
        Stack(make_replica(method=method), 2)


def test_what_does_not_fit_is_refused(make_replica: MakeReplica) -> None:
    replica = make_replica(method=FlapSam(lora=LORA))
    stack = Stack(replica, 2)
    starts = hospitals(replica, 3)
    with pytest.raises(ValueError, match="expected 1 to 2 hospitals in a stack, got 3"):
        stack.load(starts)
    with pytest.raises(ValueError, match="expected 1 to 2 hospitals in a stack, got 0"):
        stack.load([])
    name = replica.layout.dense[0]
    with pytest.raises(ValueError, match="missing"):
        stack.load([{n: value for n, value in starts[0].items() if n != name}])
    with pytest.raises(ValueError, match=f"tensor '{name}': expected shape"):
        stack.load([{**starts[0], name: torch.zeros(1, 2, 3)}])


def on_cuda(method: Method, precision: str) -> Replica:
    model = Sam(size="tiny", image_size=32).build(2, streams(0, "init"))
    layout = method.attach(model)
    method.initialise(model, streams(0, "init"))
    return Replica(model, layout, device="cuda", precision=precision)


def test_where_nothing_trains_the_stored_hospitals_run(make_replica: MakeReplica) -> None:
    replica = make_replica(method=PartialDecoder())
    stack = Stack(replica, 2)
    stack.load(hospitals(replica, 2))
    leaf = stack.leaf(())
    assert leaf.shape == (2, 0)
    assert stack.split((), leaf) == {}
    stack.store((), leaf)
    embedding = stack.proceed(replica.begin(windows(2, 1)), 1, {})
    assert stack.decode(embedding, {}).shape == (2, 3, 32, 32)


@pytest.mark.gpu
@pytest.mark.parametrize("name", STACKED)
def test_stacked_is_one_after_the_other_on_cuda(name: str) -> None:
    replica = on_cuda(STACKED[name], "fp64")
    starts, images, weights = hospitals(replica, 3), windows(6, 1), normal(6, 3, 32, 32, key="weights").cuda()
    stack = Stack(replica, 3)
    stack.load(starts)
    stacked = all_at_once(stack, 3, list(replica.values), images, weights)
    assert_same(stacked, one_by_one(replica, starts, images, weights))


@pytest.mark.gpu
def test_memory_is_flat_on_cuda() -> None:
    replica = on_cuda(STACKED["flap_sam"], "bf16")
    stack, names = Stack(replica, 3), list(replica.values)
    images, weights = windows(6, 1), normal(6, 3, 32, 32, key="weights").cuda()
    starts, allocated = hospitals(replica, 3), []
    for _ in range(3):
        stack.load(starts)
        all_at_once(stack, 3, names, images, weights)
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[1] == allocated[2]
