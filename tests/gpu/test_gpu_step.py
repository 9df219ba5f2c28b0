"""A training step on a GPU: what it waits for, what it takes, and that its fast paths are the slow one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from rounds import advance

from wardround.aggregators.contract import Phase
from wardround.aggregators.fedavg import FedAvg
from wardround.clients.batches import Source, draws, feed
from wardround.clients.features import Features
from wardround.clients.methods import METHODS
from wardround.clients.optimizers import AdamW, Schedule
from wardround.clients.replica import Replica
from wardround.clients.training import OptimizerState, Training, Workplace, _Step, fit
from wardround.datasets.augment import FlapSamAugment, NoAugment, fixed_variants
from wardround.datasets.windows import HospitalWindows, on_device
from wardround.simulator.cohort import Hospital
from wardround.simulator.randomness import streams

pytestmark = pytest.mark.gpu

RNG, LASTING = streams(0, "local", 1, "hospital"), streams(0, "lasting", "hospital")
TRAINING = Training(steps=4, batch_size=3, optimizer=AdamW(lr=1e-3), schedule=Schedule(warmup_steps=0), clip_norm=1.0)
Make = Callable[..., Replica]
MakeWindows = Callable[..., HospitalWindows]


def on_gpu(make_replica: Make, **settings: Any) -> Replica:
    host = make_replica(image_size=16, **settings)
    return Replica(host.model, host.layout, device="cuda", precision=host.precision)


def everything(replica: Replica) -> Phase:
    return Phase(train=tuple(replica.values), record_gradient=True)


def fitted(replica: Replica, windows: HospitalWindows, **more: Any) -> dict[str, torch.Tensor]:
    workplace = Workplace(replica=replica, training=TRAINING, augment=NoAugment(), **more)
    start = replica.read()
    result, _ = fit(workplace, everything(replica), windows, OptimizerState(), RNG, LASTING)
    replica.load(start)
    return dict(result.tensors)


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loop_never_waits(
    make_replica: Make,
    make_windows: MakeWindows,
    no_waiting: AbstractContextManager[None],
    where: str,
    precision: str,
) -> None:
    """After one step, in which cuDNN and the allocator of pinned memory find their feet."""
    replica = on_gpu(make_replica, precision=precision)
    windows = make_windows().to("cuda") if where == "cuda" else make_windows()
    step = _Step(Workplace(replica=replica, training=TRAINING, augment=NoAugment()), everything(replica), {})
    batches = feed(replica, ((draw,) for draw in draws(windows, 3, FlapSamAugment(), 4, RNG, LASTING)))
    losses = [step(next(batches), 1e-3)]
    with no_waiting:
        losses += [step(batch, 1e-3) for batch in batches]
    assert len(losses) == 4
    assert all(torch.isfinite(loss) for loss in losses)


def test_bf16_leaves_what_is_trained_in_single_precision(make_replica: Make, make_windows: MakeWindows) -> None:
    replica = on_gpu(make_replica, precision="bf16")
    step = _Step(Workplace(replica=replica, training=TRAINING, augment=NoAugment()), everything(replica), {})
    (batch,) = feed(replica, ((draw,) for draw in draws(make_windows(), 3, NoAugment(), 1, RNG, LASTING)))
    assert replica.decode(replica.proceed(*batch.begun)).dtype == torch.bfloat16
    assert step(batch, 1e-3).dtype == torch.float32
    assert step.optimizer is not None
    assert step.optimizer.defaults["fused"]
    trained = list(replica.parameters(replica.values).values())
    moments = [value for state in step.optimizer.state.values() for value in state.values()]
    gradients = [value.grad for value in trained if value.grad is not None]
    assert {value.dtype for value in (*trained, *moments, *gradients)} == {torch.float32}


def test_windows_on_either_side_make_the_same_batches(make_replica: Make, make_windows: MakeWindows) -> None:
    replica, windows = on_gpu(make_replica), make_windows()
    here, there = (
        list(feed(replica, ((draw,) for draw in draws(where, 3, NoAugment(), 6, RNG, LASTING))))
        for where in (windows, windows.to("cuda"))
    )
    for left, right in zip(here, there, strict=True):
        assert torch.equal(left.labels, right.labels)
        assert torch.equal(left.hidden, right.hidden)


def test_hospitals_that_share_volumes_share_their_memory(make_windows: MakeWindows) -> None:
    windows = make_windows(volumes=8, slices=64)
    before = torch.cuda.memory_allocated()
    one = on_device({"a": windows}, "cuda")
    cost = torch.cuda.memory_allocated() - before
    many = on_device({str(number): windows for number in range(100)}, "cuda")
    assert torch.cuda.memory_allocated() - before <= 2.01 * cost
    assert len(one) == 1
    assert len(many) == 100


@pytest.mark.parametrize("method", ["flap_sam", "decoder"])
def test_a_compiled_model_trains_the_same(make_replica: Make, make_windows: MakeWindows, method: str) -> None:
    plain = on_gpu(make_replica, precision="fp64", method=METHODS[method]())
    fast = on_gpu(make_replica, precision="fp64", method=METHODS[method]())
    fast.compile()
    close(fitted(plain, make_windows()), fitted(fast, make_windows()), 1e-7)


def test_what_is_kept_trains_the_same(make_replica: Make, make_windows: MakeWindows) -> None:
    replica, windows = on_gpu(make_replica, precision="fp64", method=METHODS["decoder"]()), make_windows()
    source = Source(windows=windows, variants=fixed_variants(NoAugment(), len(windows), LASTING))
    kept = Features(replica, [source], memory_mb=64, disk_mb=0)
    assert bool(kept)
    close(fitted(replica, windows), fitted(replica, windows, kept=kept), 1e-9)


def federated_on_gpu(make_federated: Callable[..., Any], volumes: tuple[int, ...], **more: Any) -> tuple[Any, Any]:
    """The federation of the tests, moved to the GPU."""
    federated, before = make_federated(FedAvg(), volumes=volumes, training=TRAINING, same_data=True, **more)
    host = federated.workplace.replica
    replica = Replica(host.model, host.layout, device="cuda", precision=host.precision)
    return replace(federated, workplace=replace(federated.workplace, replica=replica)), before


def test_stacked_hospitals_train_as_one_after_the_other(make_federated: Callable[..., Any]) -> None:
    federated, before = federated_on_gpu(make_federated, (1, 2, 3))
    apart = advance(federated, before).checkpoint.server.tensors
    together = advance(replace(federated, stack=3), before).checkpoint.server.tensors
    close(dict(apart), dict(together), 1e-9)


def test_a_thousand_hospitals_take_the_memory_of_one(make_federated: Callable[..., Any]) -> None:
    """Their windows are on the host; what a hospital remembers is too."""
    federated, before = federated_on_gpu(make_federated, (2,), precision="fp32")
    (first,) = federated.hospitals.values()
    peaks = []
    for count in (1, 1000):
        infos = [replace(first.info, name=f"hospital-{number:04}") for number in range(count)]
        hospitals = {info.name: Hospital(info=info, train=first.train, validation=(), test=()) for info in infos}
        workplace = replace(federated.workplace, training=replace(TRAINING, steps=1))
        many = replace(federated, workplace=workplace, hospitals=hospitals, weights=dict.fromkeys(hospitals, 1.0))
        checkpoint = replace(before, memories=dict.fromkeys(hospitals, before.memories["hospital-0"]))
        torch.cuda.reset_peak_memory_stats()
        advance(many, checkpoint)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.01 * peaks[0]
