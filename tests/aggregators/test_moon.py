"""MOON: the contrast by hand, when there is none, and where it cannot work."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pairs import tensor
from quadratics import rounds

from wardround.aggregators import FedAvg, Moon
from wardround.aggregators.contract import Download
from wardround.aggregators.moon import Contrastive
from wardround.aggregators.toy import initial_state, make_world, run_round, streams
from wardround.clients.lora import LoRA
from wardround.clients.methods import METHODS, FlapSam
from wardround.clients.sam import Sam


def same(left: dict, right: dict) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())


def test_contrast_by_hand() -> None:
    """Like the global model's feature and unlike the previous one's: cosines 1 and 0, T = 1/2.

    The term is -log(e^2 / (e^2 + 1)) = log(1 + e^-2); the other way round log(1 + e^2); equally far log 2. Lengths do
    not matter, and a batch is averaged.
    """
    rule = Contrastive(mu=3.0, temperature=0.5)
    z, x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 7.0]])
    near, far = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert rule.contrast(z, {"global": x, "previous": y}, {}).item() == pytest.approx(3 * near)
    assert rule.contrast(z, {"global": y, "previous": x}, {}).item() == pytest.approx(3 * far)
    assert rule.contrast(z, {"global": y, "previous": y}, {}).item() == pytest.approx(3 * math.log(2))
    both = {"global": torch.cat([x, y]), "previous": torch.cat([y, x])}
    assert rule.contrast(torch.cat([z, z]), both, {}).item() == pytest.approx(1.5 * (near + far), rel=1e-6)


def test_half_precision_features_are_compared_in_single() -> None:
    rule = Contrastive(mu=1.0, temperature=0.01)
    z = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    others = {"global": torch.tensor([[1.0, 0.125]]).bfloat16(), "previous": torch.tensor([[1.0, 0.25]]).bfloat16()}
    cosines = [1 / math.sqrt(1 + slope**2) for slope in (0.125, 0.25)]
    expected = math.log(1 + math.exp((cosines[1] - cosines[0]) / 0.01))
    got = rule.contrast(z, others, {})
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected, rel=1e-4)


def test_features_go_towards_the_global_model() -> None:
    """A step down the gradient turns z away from the previous feature and to the global one."""
    rule = Contrastive(mu=1.0, temperature=0.5)
    z = tensor(1.0, 1.0)[None].requires_grad_()
    rule.contrast(z, {"global": tensor(1.0, 0.0)[None], "previous": tensor(0.0, 1.0)[None]}, {}).backward()
    assert z.grad is not None
    assert z.grad[0, 0] < 0 < z.grad[0, 1]


def test_without_mu_it_is_fedavg_and_with_mu_it_is_not() -> None:
    world = make_world()
    plain = rounds(FedAvg(), world, 3).after.tensors
    for mu, close in ((0.0, True), (1.0, False)):
        got = rounds(Moon(mu=mu), world, 3).after.tensors
        assert all(torch.allclose(got[name], v, rtol=1e-12, atol=1e-12) for name, v in plain.items()) == close


def test_a_first_round_is_plain_training() -> None:
    """Round 1 is FedAvg to the bit, without a pass for references; so is the first of a hospital that comes later."""
    world = make_world()
    cohort = ["hospital-01", "hospital-03"]
    first, plain = (rounds(aggregator, world, 1, [cohort]) for aggregator in (Moon(mu=5.0), FedAvg()))
    assert same(dict(first.after.tensors), dict(plain.after.tensors))
    (phase,) = Moon(mu=5.0).rule.phases(first.downloads["hospital-01"], {})
    assert (phase.contrast, phase.references) == (None, {})
    cohort = ["hospital-01", "hospital-02"]
    later = run_round(Moon(mu=5.0), world, first.after, first.memories, cohort)
    expected = run_round(FedAvg(), world, plain.after, plain.memories, cohort)
    equal = [same(dict(a.tensors), dict(b.tensors)) for a, b in zip(later.updates, expected.updates, strict=True)]
    assert equal == [False, True]


def test_the_previous_model_is_the_one_it_last_sent() -> None:
    last = rounds(Moon(), make_world(), 2, [["hospital-01"], ["hospital-02"]])
    sent = last.updates[0].tensors
    assert same(dict(last.memories["hospital-02"]), dict(sent))
    (phase,) = Moon().rule.phases(last.downloads["hospital-02"], last.memories["hospital-02"])
    assert same(dict(phase.references["previous"]), dict(sent))
    assert phase.references["global"] is last.downloads["hospital-02"].start
    assert all(one.extra == {} for one in last.updates)


def test_frozen_tensors_come_from_the_download() -> None:
    """A memory that lacks a name is completed, so that a reference is always a whole model."""
    download = Download(start={"w": tensor(1.0), "v": tensor(2.0)}, train=("w",), returns={"w": (1,)})
    (phase,) = Moon().rule.phases(download, {"w": tensor(3.0)})
    assert phase.references["previous"] == {"w": tensor(3.0), "v": tensor(2.0)}


@pytest.mark.parametrize("name", ["decoder", "partial_decoder"])
def test_a_method_that_trains_nothing_before_the_feature_is_refused(name: str) -> None:
    layout = METHODS[name]().attach(Sam(size="tiny", image_size=32).build(2, streams))
    with pytest.raises(ValueError, match=r"expected a method that trains some of the encoder, got one .*\bhead\b"):
        Moon().init(replace(make_world().setting, layout=layout), streams)


def test_adapters_in_the_encoder_are_enough() -> None:
    layout = FlapSam(lora=LoRA(rank=1)).attach(Sam(size="tiny", image_size=32).build(2, streams))
    assert Moon().init(replace(make_world().setting, layout=layout), streams).round == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mu": -1.0}, r"^mu: expected a number of at least 0, got -1.0$"),
        ({"mu": math.nan}, r"^mu: .* got nan$"),
        ({"temperature": 0.0}, r"^temperature: expected a number above 0, got 0.0$"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Moon(**settings)


def test_different_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one LoRA rank"):
        initial_state(Moon(), make_world(ranks=(1, 2)))
