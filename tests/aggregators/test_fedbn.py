"""FedBN: normalisation stays at the hospital, all else is FedAvg's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pairs import one_pair
from quadratics import rounds

from wardround.aggregators import FedAvg, FedBn
from wardround.aggregators.contract import Layout
from wardround.aggregators.toy import LR, STEPS_PER_EPOCH, initial_state, make_world, streams
from wardround.clients.methods import METHODS
from wardround.clients.network import Model
from wardround.clients.sam import Sam
from wardround.clients.vit import Vit

TINY: Model = Sam(size="tiny", image_size=32)
NORMS = {"encoder.norm.weight", "encoder.norm.bias"}


def test_norms_stay_and_never_travel() -> None:
    world = make_world()
    last = rounds(FedBn(), world, 2)
    assert all(not NORMS & update.tensors.keys() and update.extra == {} for update in last.updates)
    assert all(not NORMS & download.traffic.keys() for download in last.downloads.values())
    assert all(set(memory) == NORMS for memory in last.memories.values())


def test_everything_else_is_fedavg() -> None:
    """The toy's norms touch nothing else."""
    world = make_world()
    got, plain = (rounds(aggregator, world, 3).after.tensors for aggregator in (FedBn(), FedAvg()))
    for name, value in plain.items():
        expected = world.setting.trainable[name] if name in NORMS else value
        assert torch.equal(got[name], expected)


def test_norms_are_those_of_training_alone() -> None:
    """Pulled to their target alone, two rounds shrink the distance by the square of what a round does."""
    world = make_world()
    last = rounds(FedBn(), world, 2)
    shrunk = math.prod(1 - LR / (1 + step) for step in range(STEPS_PER_EPOCH)) ** 2
    for hospital, memory in last.memories.items():
        for name in NORMS:
            start, target = world.setting.trainable[name], world.targets[hospital][name]
            torch.testing.assert_close(memory[name] - target, shrunk * (start - target))


def test_who_gets_which_norms() -> None:
    world = make_world()
    last = rounds(FedBn(), world, 1, [["hospital-01"]])
    own = FedBn().deploy(last.after, world.hospital("hospital-01"), last.memories["hospital-01"])
    assert all(torch.equal(own[name], last.memories["hospital-01"][name]) for name in NORMS)
    for hospital in (world.hospital("hospital-02"), None):
        other = FedBn().deploy(last.after, hospital, {})
        assert all(torch.equal(other[name], world.setting.trainable[name]) for name in NORMS)
        assert torch.equal(other["head.bias"], own["head.bias"])


def layout_of(method: str, model: Model = TINY) -> Layout:
    return METHODS[method]().attach(model.build(2, streams))


def test_what_the_docstring_says_of_the_methods() -> None:
    of_sam = [name for name, cls in METHODS.items() if "sam" in cls.models]
    parts = {name: {one.part[n] for n in FedBn().personal(one)} for name in of_sam for one in [layout_of(name)]}
    assert parts["lora"] == set()
    assert all(parts[name] == {"head"} for name in ("attention_code", "partial_decoder", "flap_sam"))
    assert all(len(parts[name]) > 1 for name in ("full", "decoder", "lora_decoder", "samed", "ma_sam"))


def test_of_a_vit_full_trains_scale_and_shift_and_bias_the_shift() -> None:
    kinds = {
        name: {one.rsplit(".", 1)[-1] for one in FedBn().personal(layout_of(name, Vit(size="tiny", image_size=32)))}
        for name in ("full", "bias", "lora", "linear")
    }
    assert kinds == {"full": {"weight", "bias"}, "bias": {"bias"}, "lora": set(), "linear": set()}


def test_a_method_without_norms_is_refused() -> None:
    setting = replace(one_pair(), layout=layout_of("lora"))
    with pytest.raises(ValueError, match=r"expected trainable .* lora_decoder, samed, ma_sam.* a ViT full, or bias"):
        FedBn().init(setting, streams)


def test_a_layout_of_norms_alone_is_refused() -> None:
    setting = one_pair()
    norms = replace(setting, layout=replace(setting.layout, kind=dict.fromkeys("ABw", "norm")))
    with pytest.raises(ValueError, match=r"expected something to share, .* aggregator local"):
        FedBn().init(norms, streams)


def test_different_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one LoRA rank"):
        initial_state(FedBn(), make_world(ranks=(1, 2)))
