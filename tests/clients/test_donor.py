"""What a network takes over of another one, by hand and by logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wardround.clients.donor import Donor, Plan, begin, plan, taken_apart, weights_for
from wardround.clients.lora import LoRA, pairs
from wardround.clients.merged import LowRankChange
from wardround.clients.methods import Decoder, Dvpt, FlapSam, LoraOnly, LoraSb, MaSam, Method, VptDeep
from wardround.clients.network import Network
from wardround.clients.sam import Sam
from wardround.clients.vit import Vit
from wardround.clients.vit_methods import BottleneckAdapter
from wardround.simulator.randomness import streams

SAM = Sam(size="tiny", image_size=32)
VIT = Vit(size="tiny", image_size=32)
CLASSES = ("edema", "core")
QUERY = "vit.layers.0.attention.q_proj.weight"


def trained(model: Sam | Vit, method: Method, *, classes: int = 2, seed: int = 0) -> Network:
    """A network whose every floating tensor was moved a little, as training does."""
    network = model.build(classes, streams(seed, "init"))
    method.attach(network)
    method.initialise(network, streams(seed, "init"))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=draw))
    return network


def started(
    donor: Donor, model: Sam | Vit, method: Method, classes: tuple[str, ...] | None = CLASSES, seed: int = 1
) -> tuple[Network, Plan]:
    """A new network of another seed that begins with a donor, and what it took."""
    number = 2 if classes is None else len(classes)
    meta = model.build_meta(number)
    method.attach(meta)
    made = plan(donor, meta, model.build_meta(number), classes)
    fresh = model.build(number, streams(seed, "init"))
    network = model.build(number, streams(seed, "init"), weights_for(donor, made, fresh.state_dict()))
    method.attach(network)
    method.initialise(network, streams(seed, "init"))
    begin(network, donor, made)
    return network, made


def images(channels: int) -> Tensor:
    return torch.rand(4, channels, 32, 32, generator=torch.Generator().manual_seed(7))


def check_equal_logits(one: Network, other: Network, tolerance: float = 1e-5) -> None:
    asked = images(1)
    with torch.no_grad():
        torch.testing.assert_close(one(asked, 1), other(asked, 1), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("theirs", "ours", "counts"),
    [
        pytest.param(LoRA(rank=2), LoRA(rank=2), (18, 0), id="same"),
        pytest.param(LoRA(rank=2), LoRA(rank=5), (18, 0), id="larger"),
        pytest.param(LoRA(rank=3, alpha=6.0, power=1.0), LoRA(rank=4, alpha=2.0, power=0.5), (18, 0), id="other scale"),
        pytest.param(LoRA(rank=5), LoRA(rank=2), (0, 18), id="smaller"),
        pytest.param(LoRA(rank=2), LoRA(rank=4, init_b="normal"), (18, 0), id="B starts random"),
        pytest.param(LoRA(rank=2), LoRA(rank=2, blocks=1), (16, 2), id="fewer blocks"),
        pytest.param(LoRA(rank=2, matrices="qkvo"), LoRA(rank=2), (18, 18), id="fewer matrices"),
    ],
)
def test_the_new_network_computes_what_the_donor_did(theirs: LoRA, ours: LoRA, counts: tuple[int, int]) -> None:
    donor = trained(SAM, FlapSam(lora=theirs))
    network, made = started(taken_apart(donor, CLASSES), SAM, FlapSam(lora=ours))
    assert (len(made.taken), len(made.merged)) == counts
    assert made.anew == ()
    check_equal_logits(network, donor)


@pytest.mark.parametrize(
    ("theirs", "ours", "going_on"),
    [
        (LoraSb(rank=3), LoraSb(rank=3), 18),
        (LoraSb(rank=3), LoraSb(rank=4), 0),
        (LoraSb(rank=3), FlapSam(lora=LoRA(rank=4)), 18),
        (FlapSam(lora=LoRA(rank=2)), LoraSb(rank=3), 0),
        (FlapSam(lora=LoRA(rank=2)), Decoder(), 0),
        (MaSam(width=4), MaSam(width=4), 0),
    ],
)
def test_methods_hand_on_to_each_other(theirs: Method, ours: Method, going_on: int) -> None:
    donor = trained(SAM, theirs)
    network, made = started(taken_apart(donor, CLASSES), SAM, ours)
    assert len(made.taken) + len(made.cores) == going_on
    check_equal_logits(network, donor)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (VptDeep(prompts=3), VptDeep(prompts=3)),
        (Dvpt(prompts=4, rank=2), Dvpt(prompts=4, rank=3)),
        (BottleneckAdapter(width=4), BottleneckAdapter(width=4)),
        (LoraOnly(lora=LoRA(rank=2)), BottleneckAdapter(width=4)),
    ],
)
def test_prompts_and_bottlenecks_are_taken_as_they_are(theirs: Method, ours: Method) -> None:
    donor = trained(VIT, theirs)
    check_equal_logits(started(taken_apart(donor, CLASSES), VIT, ours)[0], donor)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (VptDeep(prompts=3), LoraOnly(), "which has prompts, which are tokens of their own"),
        (VptDeep(prompts=3), VptDeep(prompts=4), "expected the method and the sizes of the model"),
        (VptDeep(prompts=4), Dvpt(prompts=4, rank=2), "got one without 'prompts' of this kind and size"),
        (Dvpt(prompts=4, rank=3), Dvpt(prompts=4, rank=2), "expected pairs of rank 3 or more on 'prompts.table'"),
        (BottleneckAdapter(width=4), LoraOnly(), "bottleneck adapters, which are layers of their own"),
    ],
)
def test_what_no_weight_can_stand_for_is_refused(theirs: Method, ours: Method, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        started(taken_apart(trained(VIT, theirs), CLASSES), VIT, ours)


def test_rows_of_a_and_columns_of_b_by_hand() -> None:
    """Rank 1 with s = 2 into rank 2 with s' = 1: B doubles; row 2 of A stays as drawn, column 2 of B is zero."""
    theirs = trained(VIT, LoraOnly(lora=LoRA(rank=1, alpha=2.0)))
    network, _ = started(taken_apart(theirs, CLASSES), VIT, LoraOnly(lora=LoRA(rank=2, alpha=2.0, power=1.0)))
    fresh = VIT.build(2, streams(1, "init"))
    method = LoraOnly(lora=LoRA(rank=2))
    method.attach(fresh)
    method.initialise(fresh, streams(1, "init"))
    pair = pairs(network)[0]
    mine, other, drawn = (dict(one.named_parameters()) for one in (network, theirs, fresh))
    assert torch.equal(mine[pair.A][0], other[pair.A][0])
    assert torch.equal(mine[pair.A][1], drawn[pair.A][1])
    torch.testing.assert_close(mine[pair.B], torch.cat([2 * other[pair.B], torch.zeros_like(other[pair.B])], dim=1))


def test_a_change_at_no_pair_is_merged_by_hand() -> None:
    """On all rows of qkv, where q and v have pairs: W + s B A."""
    weight, width = "vision_encoder.layers.0.attn.qkv.weight", 32
    A, B = torch.arange(2.0 * width).reshape(2, width), torch.ones(3 * width, 2)
    bare = SAM.build(2, streams(0, "init"))
    fused = LowRankChange(adapter="", weight=weight, rows=(0, 3 * width), A=A, B=B, scale=0.5)
    network, made = started(Donor(weights=bare.state_dict(), factors=(fused,)), SAM, LoraOnly(lora=LoRA(rank=2)), None)
    assert (made.taken, [one.weight for one in made.merged]) == ((), [weight])
    expected = bare.state_dict()[weight] + 0.5 * B @ A
    torch.testing.assert_close(network.get_parameter(weight).detach(), expected)


def test_two_changes_of_one_place_are_one_pair_and_one_merged() -> None:
    A, B = torch.ones(1, 32), torch.ones(32, 1)
    change = LowRankChange(adapter="", weight=QUERY, rows=(0, 32), A=A, B=B)
    _, made = started(Donor(weights={}, whole=False, factors=(change, change)), VIT, LoraOnly(lora=LoRA(rank=2)))
    assert (len(made.taken), len(made.merged)) == (1, 1)


@pytest.mark.parametrize("classes", [("edema", "core", "cyst"), ("kidney", "tumour"), ("core", "edema")])
@pytest.mark.parametrize("model", [SAM, VIT])
def test_heads_of_other_classes_begin_anew(model: Sam | Vit, classes: tuple[str, ...]) -> None:
    """By number, by name and by order; the head is then what it would be without a donor, all else is the donor's."""
    donor = trained(model, LoraOnly(lora=LoRA(rank=2)))
    network, made = started(taken_apart(donor, CLASSES), model, LoraOnly(lora=LoRA(rank=2)), classes)
    plain = model.build(len(classes), streams(1, "init"))
    heads = {f"{name}." for name, module in plain.named_modules() if module in plain.per_class()}
    assert made.anew == tuple(name for name, _ in plain.named_parameters() if name.startswith(tuple(heads)))
    state, old, fresh = network.state_dict(), donor.state_dict(), plain.state_dict()
    for name in fresh:
        assert torch.equal(state[name], fresh[name] if name in made.anew else old[name]), name


def test_classes_that_nobody_knows_are_taken_where_they_fit() -> None:
    donor = replace(taken_apart(trained(VIT, LoraOnly()), CLASSES), classes=None)
    assert started(donor, VIT, LoraOnly())[1].anew == ()
    assert started(donor, VIT, LoraOnly(), ("a", "b", "c"))[1].anew == ("head.weight", "head.bias")


def without(donor: Donor, name: str, **more: Tensor) -> Mapping[str, Tensor]:
    return {**{key: value for key, value in donor.weights.items() if key != name}, **more}


def test_tensors_that_do_not_fit_are_named() -> None:
    donor = taken_apart(trained(VIT, LoraOnly()), CLASSES)
    cases: dict[str, Mapping[str, Tensor]] = {
        rf"missing \(1\): {QUERY}": without(donor, QUERY),
        r"unexpected \(1\): other": without(donor, "", other=torch.zeros(1)),
        rf"wrong shape \(1\): {QUERY} \(expected \(32, 32\), got \(3, 3\)\)": {
            **donor.weights,
            QUERY: torch.zeros(3, 3),
        },
        rf"not finite \(1\): {QUERY}": {**donor.weights, QUERY: torch.full((32, 32), torch.nan)},
    }
    for message, weights in cases.items():
        with pytest.raises(ValueError, match=message):
            started(replace(donor, weights=weights), VIT, LoraOnly())


def test_a_donor_in_part_leaves_the_rest_to_the_base() -> None:
    donor = Donor(weights={QUERY: torch.zeros(32, 32)}, whole=False)
    network, _ = started(donor, VIT, LoraOnly())
    fresh = VIT.build(2, streams(1, "init")).state_dict()
    state = network.state_dict()
    assert not state[QUERY].any()
    assert all(torch.equal(state[name], value) for name, value in fresh.items() if name != QUERY)


def test_a_change_of_no_weight_is_refused() -> None:
    factors = LowRankChange(adapter="", weight=QUERY, rows=(0, 32), A=torch.ones(99, 5), B=torch.ones(32, 99))
    with pytest.raises(ValueError, match=r"expected a change of \(32, 32\), got \(32, 5\)"):
        started(Donor(weights={}, whole=False, factors=(factors,)), VIT, LoraOnly())


def test_the_donor_is_left_alone() -> None:
    """Its tensors are shared between runs: what the new network trains are copies, what is merged too."""
    source = trained(SAM, FlapSam(lora=LoRA(rank=3)))
    before = {name: value.clone() for name, value in source.state_dict().items()}
    network, made = started(taken_apart(source, CLASSES), SAM, LoraOnly(lora=LoRA(rank=2)))
    assert made.merged
    with torch.no_grad():
        for pair in pairs(network):
            network.get_parameter(pair.A).zero_()
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
