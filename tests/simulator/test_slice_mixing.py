"""SAMed, SAMed_s and MA-SAM in a federation: rounds run, learn, and aggregate what they send."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rounds import advance

from wardround.aggregators.contract import Aggregator
from wardround.aggregators.fedavg import FedAvg
from wardround.aggregators.flap_sam import FlapSam
from wardround.aggregators.local import Local
from wardround.clients.lora import LoRA
from wardround.clients.methods import MaSam, Method, Samed, SamedS
from wardround.clients.replica import Precision, Replica
from wardround.clients.sam import Sam
from wardround.clients.training import mean_loss
from wardround.datasets.windows import HospitalWindows, Windows
from wardround.simulator.checkpoint import Checkpoint, Checkpoints, state_hash
from wardround.simulator.federation import Federated
from wardround.simulator.randomness import streams

Make = Callable[..., tuple[Federated, Checkpoint]]

METHODS: dict[str, Method] = {
    "samed": Samed(lora=LoRA(rank=2)),
    "samed_s": SamedS(lora=LoRA(rank=2)),
    "ma_sam": MaSam(width=4),
}


@pytest.fixture
def make_replica() -> Callable[..., Replica]:
    """The tiny SAM with a method's own adapters."""

    def make(*, method: Method, precision: Precision, image_size: int, rank: int) -> Replica:
        model = Sam(size="tiny", image_size=image_size).build(2, streams(0, "init"))
        layout = method.attach(model)
        method.initialise(model, streams(0, "init"))
        return Replica(model, layout, precision=precision)

    return make


@pytest.fixture
def make_windows(make_windows: Callable[..., HospitalWindows]) -> Callable[..., HospitalWindows]:
    """Windows of three slices."""

    def make(*arguments: int) -> HospitalWindows:
        return HospitalWindows(make_windows(*arguments).volumes, Windows(depth=3))

    return make


@pytest.mark.parametrize("aggregator", [FedAvg(), FlapSam()], ids=["fedavg", "flap_sam"])
@pytest.mark.parametrize("name", METHODS)
def test_rounds_run_resume_and_learn(make_federated: Make, tmp_path, name: str, aggregator: Aggregator) -> None:
    federated, before = make_federated(aggregator, volumes=(1, 2), method=METHODS[name])
    first = advance(federated, before).checkpoint
    whole = advance(federated, first).checkpoint
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(first, changed=list(first.memories))
    assert state_hash(advance(federated, checkpoints.load(1, before.server.setting)).checkpoint) == state_hash(whole)
    replica, losses = federated.workplace.replica, []
    for checkpoint in (before, whole):
        replica.load(aggregator.deploy(checkpoint.server, None, {}))
        losses.append([mean_loss(federated.workplace, h.train) for h in federated.hospitals.values()])
    assert all(after < start for start, after in zip(*losses, strict=True))


def test_slice_adapters_are_averaged_as_they_are(make_federated: Make) -> None:
    """No pairs: flap_sam is fedavg, and that is the weighted mean of what hospitals with 1 and 2 volumes reach."""
    averaged, product = (
        advance(*make_federated(aggregator, volumes=(1, 2), method=MaSam(width=4))).checkpoint.server.tensors
        for aggregator in (FedAvg(), FlapSam())
    )
    alone = advance(*make_federated(Local(), volumes=(1, 2), method=MaSam(width=4))).checkpoint.memories
    left, right = (alone[name].tensors for name in sorted(alone))
    assert any("slice_adapter" in name for name in averaged)
    for name, value in averaged.items():
        assert torch.equal(value, product[name])
        torch.testing.assert_close(value, left[name] / 3 + 2 * right[name] / 3, rtol=1e-9, atol=1e-12)


def test_the_slices_that_a_hospital_trains_on_are_mixed(make_federated: Make) -> None:
    federated, before = make_federated(FedAvg(), volumes=(2,), method=MaSam(width=4))
    after = advance(federated, before).checkpoint.server.tensors
    taps = after["vision_encoder.layers.0.slice_adapter1.conv.weight"]
    start = before.server.tensors["vision_encoder.layers.0.slice_adapter1.conv.weight"]
    assert (taps != start).any(dim=(0, 1)).flatten().tolist() == [True, True, True]  # neighbours were seen
