"""Prompts: the network with them is the one written out by hand; how they start; and what a product server does."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from wardround.aggregators.contract import ClientUpdate, HospitalInfo, Setting
from wardround.aggregators.fedex_lora import FedExLora
from wardround.aggregators.flap_sam import FlapSam
from wardround.clients.contract import Method
from wardround.clients.prompts import LowRankPrompts, Prompts, bound_of, initialise_prompts
from wardround.clients.replica import Replica
from wardround.clients.vit import Vit, VitNet
from wardround.clients.vit_methods import Dvpt, VptDeep, VptShallow
from wardround.simulator.randomness import generator, streams

TINY = Vit(size="tiny", image_size=32)
BLOCKS, HEADS, WIDTH, PATCH = 2, 2, 32, 8


def built(method: Method) -> VitNet:
    """The tiny ViT in double precision, every tensor random, so that no zero hides a mistake."""
    net = TINY.build(3, streams(0, "init"))
    method.attach(net)
    method.initialise(net, streams(0, "init"))
    net.double()
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator(0, "noise", name)))
    return net


def photographs(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 32, dtype=torch.float64, generator=generator(0, "images"))


# ---- a ViT written out: one image, one token and one head at a time ------------------------------------------------


def normed(token: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * w + b`` of one token."""
    centred = token - token.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-12) * weight + bias


def attended(tokens: list[Tensor], w: Mapping[str, Tensor], block: str) -> list[Tensor]:
    """Softmax attention: for every head and query, weights over all keys."""
    q, k, v = (
        [w[f"{block}.attention.{x}_proj.weight"] @ t + w[f"{block}.attention.{x}_proj.bias"] for t in tokens]
        for x in "qkv"
    )
    outputs, d = [], WIDTH // HEADS
    for i in range(len(tokens)):
        heads = []
        for h in range(HEADS):
            part = slice(h * d, (h + 1) * d)
            scores = torch.stack([q[i][part] @ k[j][part] / math.sqrt(d) for j in range(len(tokens))])
            shares = scores.exp() / scores.exp().sum()
            heads.append(sum(share * v[j][part] for j, share in enumerate(shares)))
        joined = torch.cat(heads)
        outputs.append(w[f"{block}.attention.o_proj.weight"] @ joined + w[f"{block}.attention.o_proj.bias"])
    return outputs


def mlp(token: Tensor, w: Mapping[str, Tensor], block: str) -> Tensor:
    inner = w[f"{block}.mlp.fc1.weight"] @ token + w[f"{block}.mlp.fc1.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return w[f"{block}.mlp.fc2.weight"] @ inner + w[f"{block}.mlp.fc2.bias"]


def after_block(tokens: list[Tensor], w: Mapping[str, Tensor], block: str) -> list[Tensor]:
    before = [normed(t, w[f"{block}.layernorm_before.weight"], w[f"{block}.layernorm_before.bias"]) for t in tokens]
    tokens = [token + change for token, change in zip(tokens, attended(before, w, block), strict=True)]
    after = [normed(t, w[f"{block}.layernorm_after.weight"], w[f"{block}.layernorm_after.bias"]) for t in tokens]
    return [token + mlp(inner, w, block) for token, inner in zip(tokens, after, strict=True)]


def written_out(w: Mapping[str, Tensor], image: Tensor, prompts: list[list[Tensor]]) -> Tensor:
    """Logits (C,) of an image (3, 32, 32); the prompts of every block: one entry, which stays, or one for each."""
    image = (image - 0.5) / 0.5
    kernel, bias = (w[f"vit.embeddings.patch_embeddings.projection.{x}"] for x in ("weight", "bias"))
    patches = [
        torch.stack([(kernel[d] * image[:, r : r + PATCH, c : c + PATCH]).sum() for d in range(WIDTH)]) + bias
        for r in range(0, 32, PATCH)
        for c in range(0, 32, PATCH)
    ]
    positions = w["vit.embeddings.position_embeddings"][0]
    cls, *rest = [t + p for t, p in zip([w["vit.embeddings.cls_token"][0, 0], *patches], positions, strict=True)]
    for number in range(BLOCKS):
        put_in = prompts[number] if number < len(prompts) else []
        cls, *rest = after_block([cls, *put_in, *rest], w, f"vit.layers.{number}")
        if len(prompts) > 1:
            rest = rest[len(put_in) :]
    last = normed(cls, w["vit.layernorm.weight"], w["vit.layernorm.bias"])
    return w["head.weight"] @ last + w["head.bias"]


def table_by_hand(method: Method, w: Mapping[str, Tensor]) -> Tensor:
    """P (L T, D), entry by entry where it is a product."""
    if not isinstance(method, Dvpt):
        return w["prompts.table"]
    rows = []
    for row in range(BLOCKS * method.prompts):
        number, within = divmod(row, method.prompts) if method.form == "per_block" else (0, row)
        A, B = (w[f"prompts.factors.{number}.{x}"] for x in "AB")
        product = [sum(B[within, r] * A[r, d] for r in range(method.rank)) for d in range(WIDTH)]
        rows.append(w["prompts.table"][row] + torch.stack(product))
    return torch.stack(rows)


PROMPTED = [
    VptShallow(prompts=3),
    VptDeep(prompts=3),
    Dvpt(prompts=3, rank=2),
    Dvpt(prompts=3, rank=2, form="shared_basis"),
]


@pytest.mark.parametrize("method", PROMPTED, ids=repr)
def test_the_network_is_the_one_written_out(method: Method) -> None:
    net, images = built(method), photographs()
    w = {name: tensor.detach() for name, tensor in net.named_parameters()}
    table = table_by_hand(method, w)
    prompts = [list(rows) for rows in table.split(3)]
    expected = torch.stack([written_out(w, image, prompts) for image in images])
    torch.testing.assert_close(net(images).detach(), expected, rtol=1e-11, atol=1e-11)


def test_without_prompts_too() -> None:
    net = TINY.build(3, streams(0, "init")).double()
    w = dict(net.named_parameters())
    [image] = photographs(1)
    torch.testing.assert_close(net(image[None])[0], written_out(w, image, []), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", [VptShallow(prompts=3), VptDeep(prompts=3)], ids=repr)
def test_gradients_are_those_of_the_network_written_out(method: Method) -> None:
    net, [image] = built(method), photographs(1)
    w = dict(net.named_parameters())
    table = w["prompts.table"].requires_grad_(True)
    prompts = [list(rows) for rows in table.split(3)]
    [expected] = torch.autograd.grad(written_out(w, image, prompts)[0], table)
    [found] = torch.autograd.grad(net(image[None])[0, 0], table)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_prompts_stand_between_cls_and_patches_and_go_again() -> None:
    """Tokens (0, 1, 2) and one prompt of value 7 per block; block 2 has its own; what stays is not taken out."""
    tokens = torch.tensor([[[0.0], [1.0], [2.0]]])
    deep = Prompts(2, 1, 1, torch.device("cpu"))
    with torch.no_grad():
        deep.table.copy_(torch.tensor([[7.0], [8.0]]))
    assert deep.put_in(0, tokens).flatten().tolist() == [0, 7, 1, 2]
    assert deep.put_in(1, tokens).flatten().tolist() == [0, 8, 1, 2]
    assert deep.take_out(deep.put_in(1, tokens)).tolist() == tokens.tolist()
    shallow = Prompts(1, 2, 1, torch.device("cpu"))
    with torch.no_grad():
        shallow.table.copy_(torch.tensor([[7.0], [8.0]]))
    inside = shallow.put_in(0, tokens)
    assert inside.flatten().tolist() == [0, 7, 8, 1, 2]
    assert shallow.take_out(inside) is inside
    assert shallow.put_in(1, inside) is inside


# ---- how they start ------------------------------------------------------------------------------------------------


def test_the_bound_is_that_of_vpt() -> None:
    """sqrt(6 / (3 * 16^2 + 768)) = sqrt(6 / 1536) = sqrt(1 / 256) = 1 / 16."""
    assert bound_of(16, 768) == 0.0625


def started(prompts: Prompts) -> Prompts:
    initialise_prompts(torch.nn.ModuleDict({"prompts": prompts}), 16, streams(0, "init"))
    return prompts


def test_free_prompts_are_uniform_within_the_bound() -> None:
    """Variance of a uniform draw from [-v, v]: v^2 / 3; 30,720 draws know it to about 1 %."""
    table = started(Prompts(4, 10, 768, torch.device("cpu"))).table
    assert table.abs().max() <= 0.0625
    assert table.var().item() == pytest.approx(0.0625**2 / 3, rel=0.03)


@pytest.mark.parametrize("form", ["per_block", "shared_basis"])
@pytest.mark.parametrize("rank", [1, 4, 32])
def test_products_have_the_same_variance(form: str, rank: int) -> None:
    """Many blocks and prompts, so that a sample of R rows of B says little more than the expectation."""
    prompts = started(LowRankPrompts(24, 64, 768, rank, form, torch.device("cpu")))
    table = torch.cat([prompts.of_block(block) for block in range(24)])
    assert table.shape == (24 * 64, 768)
    assert table.var().item() == pytest.approx(0.0625**2 / 3, rel=0.12)
    assert not prompts.table.any()


def test_the_rows_of_a_nest_and_each_tensor_has_its_own_draw() -> None:
    small, large = (started(LowRankPrompts(2, 3, 8, rank, "per_block", torch.device("cpu"))) for rank in (2, 5))
    for few, many in zip(small.factors, large.factors, strict=True):
        assert torch.equal(few.A, many.A[:2])
        torch.testing.assert_close(few.B, many.B[:, :2] * math.sqrt(5 / 2))
    assert not torch.equal(small.factors[0].A, small.factors[1].A)


def test_prompts_that_start_equal_stay_equal() -> None:
    """Why B may not start at zero: equal prompts of a block have equal gradients, for good."""
    net = built(Dvpt(prompts=3, rank=2))
    net.requires_grad_(True)
    assert isinstance(net.prompts, LowRankPrompts)
    with torch.no_grad():
        for factors in net.prompts.factors:
            factors.B.zero_()
        net.prompts.table.zero_()
    net(photographs())[:, 0].sum().backward()
    for factors in net.prompts.factors:
        gradient = factors.B.grad
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradient[:1].expand_as(gradient), rtol=1e-9, atol=1e-13)


# ---- ranks and servers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["per_block", "shared_basis"])
def test_a_hospital_of_lower_rank_uses_the_first_rows(form: str) -> None:
    method = Dvpt(prompts=5, rank=4, form=form)
    net = built(method)
    net.prompts.table.data.zero_()  # a replica says what is beside zero in its base
    replica = Replica(net, method.attach(net), precision="fp64")
    start = replica.read()
    low = {name: replica.narrowed_to(2, name, value).clone() for name, value in start.items()}
    replica.load(low)
    tokens = net.prompts.of_block(1)
    number = {"per_block": 1, "shared_basis": 0}[form]
    A, B = start[f"prompts.factors.{number}.A"], start[f"prompts.factors.{number}.B"][-5:]  # the last block's rows
    torch.testing.assert_close(tokens, B[:, :2] @ A[:2], rtol=1e-12, atol=1e-12)
    assert replica.rank == 2


def update(name: str, tensors: Mapping[str, Tensor]) -> ClientUpdate:
    return ClientUpdate(hospital=name, weight=1.0, num_examples=1, num_steps=1, tensors=tensors)


@pytest.mark.parametrize("form", ["per_block", "shared_basis"])
@pytest.mark.parametrize("aggregator", [FlapSam(), FedExLora()], ids=["flap_sam", "fedex_lora"])
def test_averaging_products_is_averaging_prompts(form: str, aggregator: FlapSam | FedExLora) -> None:
    """Two hospitals of rank 2 and a server of rank 4: the mean of two products of rank 2 has rank 4 at most.

    FedEx-LoRA keeps what the mean of the factors lacks in the base, whatever the rank: the table of zeros.
    """
    method = Dvpt(prompts=6, rank=4, form=form)
    net = TINY.build(3, streams(0, "init")).double()
    layout = method.attach(net)
    method.initialise(net, streams(0, "init"))
    replica = Replica(net, layout, precision="fp64")
    start, names = replica.read(), ("hospital-1", "hospital-2")
    hospitals = tuple(HospitalInfo(name=name, num_examples=1, rank=4) for name in names)
    setting = Setting(trainable=start, layout=layout, hospitals=hospitals, frozen=replica.frozen_shapes())
    server = aggregator.init(setting, streams(0, "server"))
    updates, tables = [], []
    for name in names:
        own = {
            key: value + 0.1 * torch.randn(value.shape, dtype=value.dtype, generator=generator(0, name, key))
            for key, value in start.items()
        }
        for pair in layout.pairs:  # of rank 2, in four rows
            own[pair.A][2:], own[pair.B][:, 2:] = 0, 0
        replica.load(own)
        tables.append(torch.cat([net.prompts.of_block(block) for block in range(BLOCKS)]).detach())
        updates.append(update(name, own))
    assert not torch.allclose(tables[0], tables[1], atol=1e-3)
    after = aggregator.aggregate(server, updates, streams(0, "server")).server
    replica.set_base(after.base)
    replica.load(aggregator.deploy(after, hospitals[0], {}))
    mean = torch.cat([net.prompts.of_block(block) for block in range(BLOCKS)]).detach()
    torch.testing.assert_close(mean, (tables[0] + tables[1]) / 2, rtol=1e-6, atol=1e-7)
    assert ("prompts.table" in after.base) == isinstance(aggregator, FedExLora)
