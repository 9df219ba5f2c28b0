"""Flower's half of the bench: its messages without a simulation, and (where Ray is installed) the simulation whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from wardround.simulator.bench import bare, flower, ours
from wardround.simulator.bench.workload import Workload
from wardround.simulator.runtime import Runtime

CPU = torch.device("cpu")
WORK = Workload(
    hospitals=2, image_size=16, batch_size=2, rank=2, steps=2, precision="fp64", aggregator="fedavg"
).resolved()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if flwr and Ray were there."""
    monkeypatch.setattr(flower, "find_spec", lambda name: object())


def request(content: Any) -> Any:
    """A message as it arrives at a client: outside a simulation, nobody says whose task this process is."""
    from flwr.app import Message, Metadata

    about = dict.fromkeys(("message_id", "reply_to_message_id", "group_id"), "")
    nodes = {"run_id": 1, "src_node_id": 1, "dst_node_id": 2}
    return Message(
        content=content, metadata=Metadata(**about, **nodes, created_at=time.time(), ttl=60, message_type="train")
    )


def task(number: int, partition: int, tensors: dict[str, torch.Tensor]) -> Any:
    """What a client answers when it is asked to train."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

    config = ConfigRecord({"number": number, "workload": json.dumps(asdict(WORK))})
    message = request(RecordDict({"arrays": ArrayRecord(tensors), "config": config}))
    node = {"partition-id": partition, "num-partitions": WORK.hospitals}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
    return flower._task(message, context)


@pytest.fixture
def start() -> dict[str, torch.Tensor]:
    """The initial values as they travel."""
    return {name: value.clone() for name, value in flower._tensors(bare.prepare(WORK, Runtime(), CPU)).items()}


def test_tasks_have_the_loss_of_our_first_round(start: dict[str, torch.Tensor]) -> None:
    losses = [task(1, partition, start).content.metric_records["metrics"]["loss"] for partition in range(2)]
    assert sum(losses) / 2 == pytest.approx(ours.prepare(WORK, Runtime(), CPU).round(), rel=1e-12)
    assert losses[0] != losses[1]


def test_a_round_of_messages_ends_where_fedavg_ends(start: dict[str, torch.Tensor]) -> None:
    strategy = flower._strategy(WORK.hospitals)
    arrays, metrics = strategy.aggregate_train(1, [task(1, partition, start) for partition in range(2)])
    reference = ours.prepare(WORK, Runtime(), CPU)
    assert metrics["loss"] == pytest.approx(reference.round(), rel=1e-12)
    expected = list(reference.state.server.tensors.values())
    found = arrays.to_torch_state_dict()
    for number, value in enumerate(expected):
        torch.testing.assert_close(found[str(number)], value, rtol=1e-9, atol=1e-12)
    assert strategy.seconds > 0


def test_an_idle_task_sends_back_what_it_got(start: dict[str, torch.Tensor]) -> None:
    other = {name: value + 1 for name, value in start.items()}
    task(1, 0, start)
    returned = task(0, 0, other).content.array_records["arrays"].to_torch_state_dict()
    assert all(torch.equal(returned[name], value) for name, value in other.items())


def test_a_task_trains_from_what_it_got(start: dict[str, torch.Tensor]) -> None:
    other = {name: 1.1 * value for name, value in start.items()}
    loop = bare.prepare(WORK, Runtime(), CPU)
    loop.start, loop.number = list(other.values()), 1
    expected = float(torch.stack(loop.train("hospital-0")).mean())
    task(1, 1, start)
    assert task(1, 0, other).content.metric_records["metrics"]["loss"] == expected
    assert task(1, 0, start).content.metric_records["metrics"]["loss"] != expected


def test_a_failed_task_is_no_round(start: dict[str, torch.Tensor]) -> None:
    from flwr.app import Error, Message, RecordDict

    good = task(0, 0, start)
    bad = Message(Error(code=1, reason="out of memory"), reply_to=request(RecordDict()))
    with pytest.raises(RuntimeError, match=r"expected 2 replies, got 2, with errors: \['out of memory'\]"):
        flower._strategy(2).aggregate_train(1, [good, bad])
    with pytest.raises(RuntimeError, match="expected 2 replies, got 1"):
        flower._strategy(2).aggregate_train(1, [good])


def test_what_is_missing_is_said_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "find_spec", lambda name: None if name == "ray" else object())
    with pytest.raises(ImportError, match=r"^ray not installed: pip install 'wardround\[flower\]'$"):
        flower.prepare(WORK, Runtime(), CPU)


@pytest.mark.usefixtures("installed")
def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="device: expected 'cpu' with the engine flower, got 'meta'"):
        flower.prepare(WORK, Runtime(), torch.device("meta"))


@pytest.mark.usefixtures("installed")
def test_a_simulation_that_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of Python, a program that ends at once."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ValueError, match="the simulation of Flower ended unexpectedly; its last words"):
        flower.prepare(WORK, Runtime(), CPU)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_a_family_counts_children() -> None:
    before = flower.family_mb(os.getpid())
    code = "held = b'x' * 50_000_000; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = flower.family_mb(os.getpid())
        child.communicate(b"\n")
    assert 50 < with_child - before < 100


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra flower")
def test_the_simulation_whole() -> None:
    engine = flower.prepare(WORK, Runtime(threads=1), CPU)
    try:
        reference = ours.prepare(WORK, Runtime(), CPU)
        assert engine.round() == pytest.approx(reference.round(), rel=1e-12)
        engine.idle()
        assert engine.round() == pytest.approx(reference.round(), rel=1e-9)
        assert engine.facts()["peak_host_mb"] > 100
        assert engine.aggregation_s() > 0
    finally:
        engine.close()
    assert engine.process.returncode is not None
