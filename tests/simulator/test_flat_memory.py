"""What a federation holds between rounds: one base, and per hospital its memory and nothing else.

Counted exactly: the bytes of all storages that a living tensor refers to. What the process holds beside them is
measured by ``wardround bench``.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from rounds import advance

from wardround.aggregators.contract import Aggregator, Download, Fit, LocalResult, LocalRule, Phase, Tensors
from wardround.aggregators.fedavg import FedAvg
from wardround.aggregators.local import Local
from wardround.aggregators.scaffold import Scaffold
from wardround.clients.hospital import Memory
from wardround.clients.optimizers import SGD, AdamW
from wardround.clients.training import Training
from wardround.simulator.checkpoint import Checkpoint
from wardround.simulator.federation import Federated
from wardround.simulator.sampling import Cohort

Make = Callable[..., tuple[Federated, Checkpoint]]


@dataclass(frozen=True)
class Idle:
    """A rule that trains nothing: what is left is the engine."""

    rule: LocalRule

    def phases(self, download: Download, memory: Tensors) -> list[Phase]:
        return [replace(phase, epochs=0) for phase in self.rule.phases(download, memory)]

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        return self.rule.finish(download, fits, memory)


@dataclass(frozen=True, kw_only=True)
class IdleLocal(Local):
    """Every hospital remembers all its tensors, and takes no step."""

    @property
    def rule(self) -> LocalRule:
        return Idle(super().rule)


@dataclass(frozen=True, kw_only=True)
class IdleFedAvg(FedAvg):
    """FedAvg of hospitals that take no step."""

    @property
    def rule(self) -> LocalRule:
        return Idle(super().rule)


def living() -> tuple[int, int]:
    """Bytes of the storages of all living tensors, and how many tensors there are."""
    gc.collect()
    real = (torch.Tensor, torch.nn.Parameter)  # and not what torch.compile traces with
    tensors = [found for found in gc.get_objects() if type(found) in real]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()), len(tensors)


def hospitals(make: Make, aggregator: Aggregator, number: int, **settings: object) -> tuple[Federated, Checkpoint]:
    """A federation of so many hospitals with the same windows."""
    federated, before = make(aggregator, volumes=(1,), precision="fp32", **settings)
    ((_, only),) = federated.hospitals.items()
    names = [f"hospital-{k:04d}" for k in range(number)]
    there = {name: replace(only, info=replace(only.info, name=name)) for name in names}
    many = replace(federated, hospitals=there, weights=dict.fromkeys(names, 1.0))
    return many, replace(before, memories={name: Memory() for name in names})


def remembered(memories: Mapping[str, Memory]) -> int:
    """The bytes that the hospitals declare to remember."""
    values = (value for memory in memories.values() for value in memory.named().values())
    return sum(value.numel() * value.element_size() for value in values)


def held(make: Make, aggregator: Aggregator, number: int) -> tuple[int, int, int]:
    """Bytes and tensors that a round of so many hospitals leaves behind, and the bytes they declare."""
    federated, before = hospitals(make, aggregator, number)
    start = living()
    after = advance(federated, before).checkpoint
    (bytes_held, tensors) = (now - then for now, then in zip(living(), start, strict=True))
    return bytes_held, tensors, remembered(after.memories)


def test_hospitals_of_fedavg_hold_nothing(make_federated: Make) -> None:
    one, _, _ = held(make_federated, IdleFedAvg(), 1)
    thousand, _, declared = held(make_federated, IdleFedAvg(), 1000)
    assert declared == 0
    assert abs(thousand - one) < 100_000  # bytes: less than one copy of what trains


def test_a_hospital_is_its_memory_and_nothing_else(make_federated: Make) -> None:
    """200 and 1000 hospitals that remember all their tensors: one buffer each, and no more than they declare."""
    few, few_tensors, few_declared = held(make_federated, IdleLocal(), 200)
    many, many_tensors, many_declared = held(make_federated, IdleLocal(), 1000)
    assert many_declared - few_declared == 800 * few_declared // 200 > 30_000_000
    assert (many - few) / (many_declared - few_declared) < 1.05  # alignment
    assert many_tensors - few_tensors == 800


@pytest.mark.parametrize("aggregator", [FedAvg(), Scaffold()])
def test_fifty_rounds_hold_what_two_hold(make_federated: Make, aggregator: Aggregator) -> None:
    training = Training(steps=1, batch_size=2, optimizer=SGD(lr=0.01, momentum=0.0))
    cohort = Cohort(sampling="fixed", size=2)
    federated, before = hospitals(make_federated, aggregator, 4, training=training, cohort=cohort)
    early = advance(federated, before, 12).checkpoint  # everyone took part
    first = living()
    late = advance(federated, early, 50).checkpoint
    assert late.round == 62
    del early
    assert living() == first


def test_moments_that_are_kept_are_in_the_same_buffer(make_federated: Make) -> None:
    training = Training(steps=1, batch_size=2, optimizer=AdamW(), moments="keep")
    federated, before = hospitals(make_federated, Local(), 2, training=training)
    after = advance(federated, before).checkpoint
    for memory in after.memories.values():
        values = [value for value in memory.named().values() if value.numel()]
        assert any(name.startswith("moments-0/") for name in memory.named())
        assert len({value.untyped_storage().data_ptr() for value in values}) == 1
