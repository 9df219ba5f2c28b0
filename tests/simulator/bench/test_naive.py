"""The naive engine does the same work as ours, another way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from wardround.aggregators.arithmetic import effective
from wardround.simulator.bench import bare, naive, ours
from wardround.simulator.bench.workload import Workload
from wardround.simulator.runtime import Runtime

CPU = torch.device("cpu")
Make = Callable[..., naive.Naive]


def work(**settings: object) -> Workload:
    """Small, in double precision; the mean of two hospitals of rank 2 has rank 4, which a sketch finds whole."""
    small = {"hospitals": 2, "image_size": 16, "batch_size": 2, "rank": 2, "steps": 2, "precision": "fp64"}
    return Workload(**{**small, **settings}).resolved()  # type: ignore[arg-type]


@pytest.fixture
def make() -> Iterator[Make]:
    """Prepares the naive engine and closes it afterwards."""
    made: list[naive.Naive] = []

    def prepare(workload: Workload) -> naive.Naive:
        made.append(naive.prepare(workload, Runtime(), CPU))
        return made[-1]

    yield prepare
    for engine in made:
        engine.close()


@pytest.mark.parametrize(("method", "aggregator"), [("flap_sam", "flap_sam"), ("decoder", "fedavg")])
def test_the_first_round_has_the_loss_of_the_other_engines(make: Make, method: str, aggregator: str) -> None:
    workload = work(method=method, aggregator=aggregator)
    loss = make(workload).round()
    others = [engine.prepare(workload, Runtime(), CPU).round() for engine in (ours, bare)]
    assert others == pytest.approx([loss, loss], rel=1e-12)


def test_two_rounds_end_where_flap_sam_ends(make: Make) -> None:
    """The same products of pairs and the same dense tensors; the factors themselves may have other signs."""
    workload = work()
    engine, reference = make(workload), ours.prepare(workload, Runtime(), CPU)
    assert [engine.round() for _ in range(2)] == pytest.approx([reference.round() for _ in range(2)], rel=1e-9)
    expected = reference.state.server.tensors
    found = {name: value.detach() for name, value in engine.trained.items()}
    for pair in engine.layout.pairs:
        torch.testing.assert_close(effective(found, pair), effective(expected, pair), rtol=1e-7, atol=1e-10)
    for name in engine.layout.dense:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-7, atol=1e-10)


def test_with_fedavg_the_factors_are_averaged(make: Make) -> None:
    workload = work(aggregator="fedavg")
    engine, reference = make(workload), ours.prepare(workload, Runtime(), CPU)
    engine.round(), reference.round()
    for name, value in reference.state.server.tensors.items():
        torch.testing.assert_close(engine.trained[name].detach(), value, rtol=1e-9, atol=1e-12)


def test_every_hospital_writes_its_full_state(make: Make) -> None:
    engine = make(work())
    engine.round()
    files = sorted(Path(engine.folder.name).iterdir())
    assert [file.stem for file in files] == ["hospital-0", "hospital-1"]
    assert torch.load(files[0], weights_only=True).keys() == engine.model.state_dict().keys()
    assert engine.aggregation_s() > 0
    engine.close()
    assert not files[0].parent.exists()


def test_an_idle_round_changes_nothing(make: Make) -> None:
    engine, other = make(work()), make(work())
    engine.round(), other.round()
    before = {name: value.detach().clone() for name, value in engine.trained.items()}
    engine.idle()
    assert all(torch.equal(value, before[name]) for name, value in engine.trained.items())
    assert engine.round() == other.round()


def test_only_what_the_method_names_is_trained(make: Make) -> None:
    """A copy that trained its base would be slower than it has to be, and travel whole."""
    engine = make(work())
    assert {name for name, value in engine.model.named_parameters() if value.requires_grad} == set(engine.layout.names)


def test_other_aggregators_are_refused() -> None:
    with pytest.raises(ValueError, match=r"aggregator: expected one of .*'flap_sam'.*, got 'fedprox'"):
        naive.prepare(work(aggregator="fedprox"), Runtime(), CPU)
