"""Our engine in the bench: rounds go on, idle rounds take no step and lead nowhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wardround.aggregators import AGGREGATORS
from wardround.aggregators.contract import Download, Phase
from wardround.simulator.bench import ours
from wardround.simulator.bench.ours import Rested, Resting
from wardround.simulator.bench.workload import Workload
from wardround.simulator.checkpoint import state_hash
from wardround.simulator.runtime import Runtime

CPU = torch.device("cpu")
SMALL = Workload(hospitals=3, image_size=16, batch_size=2, rank=2, steps=2)


def made(**changes: object) -> ours.Ours:
    return ours.prepare(replace(SMALL, **changes), Runtime(features_mb=0), CPU)


@pytest.mark.parametrize("aggregator", ["flap_sam", "fedrep", "ditto", "local"])
def test_the_wrapped_rule_takes_zero_steps(aggregator: str) -> None:
    engine = made(aggregator=aggregator)
    rested = replace(engine.federated, aggregator=Rested(aggregator=engine.federated.aggregator))
    assert {row["steps"] for row in engine._round(engine.federated).rows["ledger"]} != {0}
    assert {row["steps"] for row in engine._round(rested).rows["ledger"]} == {0}


def test_a_resting_phase_keeps_all_but_its_epochs_and_its_measuring() -> None:
    class Rule:
        def phases(self, download: Download, memory: object) -> list[Phase]:
            return [Phase(train=("a",), measure=True, record_gradient=True), Phase(train=("b",), epochs=2)]

    found = Resting(rule=Rule()).phases(Download(start={}, train=("a",), returns={}), {})
    assert found == [Phase(train=("a",), epochs=0, record_gradient=True), Phase(train=("b",), epochs=0)]


@pytest.mark.parametrize("name", ["fedavg", "flap_sam"])
def test_a_rested_aggregator_is_the_same_server(name: str) -> None:
    inner = AGGREGATORS[name]()
    rested = Rested(aggregator=inner)
    assert (rested.consumes, rested.uses_weights) == (inner.consumes, inner.uses_weights)


def test_rounds_go_on_and_idle_rounds_lead_nowhere() -> None:
    engine, twin = made(), made()
    losses = [engine.round()]
    engine.idle()
    losses.append(engine.round())
    assert losses == [twin.round(), twin.round()]
    assert engine.state.round == 2
    assert state_hash(engine.state) == state_hash(twin.state)


def test_rest_keeps_what_hospitals_would_remember() -> None:
    engine = made(aggregator="local")
    start = engine.state.server.tensors
    engine.rest()
    for memory in engine.state.memories.values():
        assert memory.tensors.keys() == start.keys()
        assert all(torch.equal(memory.tensors[name], value) for name, value in start.items())


def test_the_time_of_aggregation_is_that_of_the_last_round() -> None:
    engine = made()
    engine.round()
    seconds = engine.aggregation_s()
    engine.idle()
    assert seconds is not None
    assert engine.aggregation_s() not in (None, seconds)
