"""The round loop on the smallest real model, in float64: identities, order, drop-outs, ranks, memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from rounds import advance

from wardround.aggregators import AGGREGATORS
from wardround.aggregators.arithmetic import effective
from wardround.aggregators.fedavg import FedAvg
from wardround.aggregators.flap_sam import FlapSam
from wardround.aggregators.local import Local
from wardround.aggregators.plain import PlainTraining
from wardround.clients.losses import SegmentationLoss
from wardround.clients.optimizers import SGD, Schedule
from wardround.clients.training import OptimizerState, Training, fit
from wardround.datasets.augment import Augment
from wardround.simulator.checkpoint import Checkpoint, state_hash
from wardround.simulator.federation import Federated, num_bytes
from wardround.simulator.sampling import Cohort

Make = Callable[..., tuple[Federated, Checkpoint]]


def assert_same(left: dict, right: dict, tolerance: float = 1e-12) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(
            value, right[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_one_hospital_is_plain_training(make_federated: Make) -> None:
    federated, before = make_federated(FedAvg(), volumes=(2,))
    after = advance(federated, before).checkpoint
    replica, hospital = federated.workplace.replica, federated.hospitals["hospital-0"]
    replica.load(before.server.tensors)
    phase = PlainTraining().phases(federated.aggregator.broadcast(before.server, hospital.info), {})[0]
    streams = federated.rng("local", 1, "hospital-0"), federated.rng("lasting", "hospital-0")
    plain, _ = fit(federated.workplace, phase, hospital.train, OptimizerState(), *streams)
    assert_same(dict(after.server.tensors), dict(plain.tensors), 0.0)


@pytest.mark.parametrize("name", ["fedavg", "flap_sam"])
def test_identical_hospitals_are_one(make_federated: Make, name: str) -> None:
    """Full batches, no augmentation: every hospital takes the same step, and the mean of products is the product."""
    training = Training(batch_size=100, optimizer=SGD(lr=0.05), schedule=Schedule(warmup_steps=0))
    many, one = (
        make_federated(AGGREGATORS[name](), volumes=volumes, same_data=True, training=training)
        for volumes in ((2, 2, 2), (2,))
    )
    left, right = (advance(*both, rounds=2).checkpoint.server for both in (many, one))
    layout = left.setting.layout
    for pair in layout.pairs:
        torch.testing.assert_close(effective(left.tensors, pair), effective(right.tensors, pair), rtol=1e-8, atol=1e-12)
    for dense in layout.dense:
        torch.testing.assert_close(left.tensors[dense], right.tensors[dense], rtol=1e-9, atol=1e-12)


def test_fedavg_is_the_weighted_mean_of_what_each_would_have_trained(make_federated: Make) -> None:
    federated, before = make_federated(FedAvg())
    after = advance(federated, before).checkpoint
    alone, alone_before = make_federated(Local())
    each = advance(alone, alone_before).checkpoint.memories
    weights = torch.tensor([4.0, 8.0, 12.0]) / 24  # windows: 1, 2 and 3 volumes of 4 slices
    for name, value in after.server.tensors.items():
        mean = sum(w * each[h].tensors[name] for w, h in zip(weights, sorted(each), strict=True))
        torch.testing.assert_close(value, mean, rtol=1e-6, atol=1e-9)


def test_a_hospital_more_or_another_order_does_not_change_what_the_others_train(make_federated: Make) -> None:
    """Every hospital trains from its download with streams of its own; the replica carries nothing over."""
    small = advance(*make_federated(Local(), volumes=(1, 2))).checkpoint.memories
    large = advance(*make_federated(Local(), volumes=(1, 2, 3))).checkpoint.memories
    for name, memory in small.items():
        assert_same(dict(memory.tensors), dict(large[name].tensors), 0.0)


def test_a_round_is_a_function_of_the_checkpoint_and_leaves_it_alone(make_federated: Make) -> None:
    federated, before = make_federated(FlapSam())
    first = advance(federated, before)
    frozen = state_hash(first.checkpoint)
    second = advance(federated, first.checkpoint)
    advance(federated, before)  # something else in between
    again = advance(federated, first.checkpoint)
    assert state_hash(first.checkpoint) == frozen
    assert state_hash(again.checkpoint) == state_hash(second.checkpoint)
    assert again.rows == second.rows


def test_augmentation_and_batches_are_the_same_for_every_aggregator(make_federated: Make) -> None:
    """Common random numbers: in round 1 local training does not depend on the aggregator."""
    losses = []
    for aggregator in (FedAvg(), FlapSam(), Local()):
        federated, before = make_federated(aggregator)
        federated = replace(federated, workplace=replace(federated.workplace, augment=Augment()))
        losses.append([row for row in advance(federated, before).rows["metrics"] if row["metric"] == "loss"])
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(("variants", "fewest", "most"), [(0, 120, 120), (1, 24, 24), (2, 40, 48)])
def test_variants_last_over_rounds(
    make_federated: Make, monkeypatch: pytest.MonkeyPatch, variants: int, fewest: int, most: int
) -> None:
    """24 windows in 5 rounds of one epoch: 24 M forms in all, of which 1 in 16 is missed with M = 2."""
    federated, checkpoint = make_federated(FedAvg())
    augment = Augment(rotation_p=1, variants=variants)
    federated = replace(federated, workplace=replace(federated.workplace, augment=augment))
    replica, seen = federated.workplace.replica, []
    begin = replica.begin
    monkeypatch.setattr(replica, "begin", lambda images: seen.extend(images.numpy().copy()) or begin(images))
    for _ in range(5):
        checkpoint = advance(federated, checkpoint).checkpoint
    assert len(seen) == 5 * 24
    forms = {form.tobytes() for form in seen}
    assert fewest <= len(forms) <= most
    assert {form.tobytes() for form in seen[:24]} != {form.tobytes() for form in seen[24:48]} or variants == 1


def test_the_ledger_counts_the_bytes_that_travel(make_federated: Make) -> None:
    """fp64 here, so 8 bytes per trained parameter each way; a hospital of rank 1 sends less; local sends nothing."""
    federated, before = make_federated(FedAvg())
    parameters = sum(value.numel() for value in before.server.tensors.values())
    rows = advance(federated, before).rows["ledger"]
    assert [(row["bytes_down"], row["bytes_up"]) for row in rows] == [(8 * parameters, 8 * parameters)] * 3
    assert [row["examples"] for row in rows] == [4, 8, 12]
    assert [row["steps"] for row in rows] == [2, 4, 6]

    federated, before = make_federated(FlapSam(), ranks={"hospital-1": 1})
    rows = advance(federated, before).rows["ledger"]
    per_rank = (
        sum(before.server.tensors[n].numel() for p in before.server.setting.layout.pairs for n in (p.A, p.B)) // 3
    )
    assert rows[0]["bytes_up"] - rows[1]["bytes_up"] == 8 * 2 * per_rank

    rows = advance(*make_federated(Local())).rows["ledger"]
    assert {(row["bytes_down"], row["bytes_up"]) for row in rows} == {(0, 0)}


def test_mixed_ranks_train_at_their_own_rank(make_federated: Make) -> None:
    federated, before = make_federated(FlapSam(), ranks={"hospital-0": 1, "hospital-1": 2})
    after = advance(federated, before, rounds=2).checkpoint
    for name, rank in (("hospital-0", 1), ("hospital-1", 2), ("hospital-2", 3)):
        tensors = federated.aggregator.deploy(after.server, federated.hospitals[name].info, {})
        assert {tensors[pair.A].shape[0] for pair in after.server.setting.layout.pairs} == {rank}
        federated.workplace.replica.load(tensors)


def test_factor_averaging_refuses_mixed_ranks(make_federated: Make) -> None:
    with pytest.raises(ValueError, match="expected one LoRA rank for all hospitals"):
        make_federated(FedAvg(), ranks={"hospital-0": 1})


def test_a_dropped_hospital_downloads_and_changes_nothing(make_federated: Make) -> None:
    cohort = Cohort(drop_rate=0.6)
    federated, before = make_federated(Local(), volumes=(1, 1, 1, 1), cohort=cohort)
    outcome = advance(federated, before)
    dropped = {row["hospital"] for row in outcome.rows["ledger"] if row["status"] == "dropped"}
    assert 0 < len(dropped) < 4
    for name, memory in outcome.checkpoint.memories.items():
        assert (memory.tensors == {}) == (name in dropped)
    assert outcome.changed == outcome.checkpoint.memories.keys() - dropped
    rows = advance(*make_federated(FedAvg(), volumes=(1, 1, 1, 1), cohort=cohort)).rows["ledger"]
    assert all(row["bytes_down"] > 0 and (row["bytes_up"] == 0) == (row["status"] == "dropped") for row in rows)


def test_an_empty_poisson_round_changes_nothing_but_its_number(make_federated: Make) -> None:
    federated, before = make_federated(FedAvg(), cohort=Cohort(sampling="poisson", rate=1e-9))
    outcome = advance(federated, before)
    assert outcome.checkpoint.server.round == 1
    assert_same(dict(outcome.checkpoint.server.tensors), dict(before.server.tensors), 0.0)
    assert outcome.rows == {"ledger": [], "metrics": []}


def test_steps_are_counted_over_rounds(make_federated: Make) -> None:
    federated, before = make_federated(FedAvg())
    after = advance(federated, before, rounds=3).checkpoint
    assert [after.memories[name].optimizer[0].steps for name in sorted(after.memories)] == [6, 12, 18]


def test_an_error_names_round_and_hospital(make_federated: Make) -> None:
    training = Training(batch_size=2, optimizer=SGD(lr=1e200), schedule=Schedule(warmup_steps=0))
    federated, before = make_federated(FedAvg(), training=training)
    with pytest.raises(ValueError, match=r"round 1: hospital 'hospital-0': the loss of batch 2 is nan. Lower"):
        advance(federated, before)


@pytest.mark.parametrize(("task", "cases"), [("segmentation", "volumes"), ("classification", "images")])
def test_a_loss_that_is_not_finite_speaks_of_what_the_hospital_has(make_federated: Make, task: str, cases: str) -> None:
    @dataclass(frozen=True)
    class OfTask(SegmentationLoss):
        task: ClassVar[Any] = ""

    OfTask.task = task
    training = Training(batch_size=2, optimizer=SGD(lr=1e200), schedule=Schedule(warmup_steps=0))
    federated, before = make_federated(FedAvg(), training=training)
    federated = replace(federated, workplace=replace(federated.workplace, loss=OfTask()))
    with pytest.raises(ValueError, match=f"look for odd intensities in its {cases}$"):
        advance(federated, before)


@dataclass(frozen=True, kw_only=True)
class Forgetful(PlainTraining):
    """A rule that leaves out a tensor it announced."""

    def finish(self, download, fits, memory):
        result = super().finish(download, fits, memory)
        return replace(result, tensors=dict(list(result.tensors.items())[1:]))


def test_an_update_that_is_not_what_was_announced_is_an_error(make_federated: Make) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Broken(FedAvg):
        rule = Forgetful()

    federated, before = make_federated(Broken())
    first = re.escape(before.server.setting.layout.names[0])
    with pytest.raises(ValueError, match=f"round 1.*hospital 'hospital-0'.*{first}"):
        advance(federated, before)


def test_bytes_of_tensors() -> None:
    assert num_bytes({"a": torch.zeros(3, dtype=torch.float16), "b": torch.zeros(2, 2)}) == 6 + 16
