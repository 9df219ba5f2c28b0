"""A compiled model: the same numbers, and nothing is compiled after the first round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rounds import advance
from torch import Tensor

from wardround.aggregators.moon import Moon
from wardround.aggregators.padded_fedavg import PaddedFedAvg
from wardround.aggregators.qfedavg import QFedAvg
from wardround.clients.compiled import compiled
from wardround.clients.evaluation import predictions, source_of
from wardround.clients.methods import METHODS, BottleneckAdapter, Dvpt, Full, LoraVpt, Method, UnionOf, VptShallow
from wardround.clients.optimizers import SGD, Schedule
from wardround.clients.replica import Replica
from wardround.clients.training import Training
from wardround.clients.vit import Vit
from wardround.simulator.federation import Federated
from wardround.simulator.randomness import streams

TRAINING = Training(epochs=2, batch_size=3, optimizer=SGD(lr=0.05), schedule=Schedule(warmup_steps=0))


class Counting:
    """A backend that counts graphs and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


def scored(federated: Federated) -> None:
    """Predicts every test volume: 3 slices at once, of 4, 8 and 12."""
    replica = federated.workplace.replica
    for hospital in federated.hospitals.values():
        sources = [source_of(hospital.test, hospital.train.windows, replica)]
        assert len(list(predictions(replica, sources, 3))) == len(hospital.test)


def test_nothing_is_compiled_after_the_first_round(make_federated: Callable[..., Any]) -> None:
    """Hospitals of 4, 8 and 12 windows in batches of 3, mixed ranks, evaluations: as if the model was not compiled.

    Five graphs, as training and scoring have batches of one shape here: the frozen start, and what follows it and the
    decoder with and without gradient.
    """
    settings = {"training": TRAINING, "ranks": {"hospital-0": 1, "hospital-2": 2}}
    plain, initial = make_federated(PaddedFedAvg(), **settings)
    expected = advance(plain, initial, rounds=2)
    federated, before = make_federated(PaddedFedAvg(), **settings)
    backend = Counting()
    federated.workplace.replica.compile(backend)
    first = advance(federated, before)
    scored(federated)
    assert backend.graphs == 5
    outcome = advance(federated, first.checkpoint)
    scored(federated)
    assert backend.graphs == 5
    for name, value in expected.checkpoint.server.tensors.items():
        torch.testing.assert_close(outcome.checkpoint.server.tensors[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("aggregator", [Moon(), QFedAvg()])  # contrasts features; measures losses before it trains
def test_filled_batches_train_the_same(make_federated: Callable[..., Any], aggregator: Any) -> None:
    results = []
    for fills in (False, True):
        federated, before = make_federated(aggregator, training=TRAINING)
        federated.workplace.replica.compiled = fills  # and nothing else
        results.append(advance(federated, before, rounds=2).checkpoint.server.tensors)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, cls in METHODS.items() if "sam" in cls.models])
def test_every_method_compiles_without_a_break(make_replica: Callable[..., Replica], method: str) -> None:
    """And models of one structure share what was compiled: the second takes nothing anew."""
    backend, windows = Counting(), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    graphs = []
    for _ in range(2):
        replica = make_replica(method=METHODS[method](), image_size=16, precision="fp64")
        expected = replica.logits(windows)
        replica.compile(backend)
        logits = replica.logits(windows)
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
        trained = list(replica.parameters(replica.values).values())
        pairs = zip(*(torch.autograd.grad(maps.sum(), trained) for maps in (expected, logits)), strict=True)
        for left, right in pairs:
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
        graphs.append(backend.graphs)
    assert graphs[0] == graphs[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [Full(), UnionOf(of=(VptShallow(), BottleneckAdapter(width=2))), LoraVpt(), Dvpt()], ids=repr
)
def test_a_vit_compiles_without_a_break(method: Method) -> None:
    images, logits = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []
    for backend in (None, Counting()):
        net = Vit(size="tiny", image_size=32).build(3, streams(0, "init"))
        layout = method.attach(net)
        method.initialise(net, streams(0, "init"))
        replica = Replica(net, layout, precision="fp64")
        if backend is not None:
            replica.compile(backend)
        logits.append(replica.logits(images).detach())
    assert backend.graphs > 0
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_bf16_compiles_under_autocast(make_replica: Callable[..., Replica]) -> None:
    replica, windows = make_replica(image_size=16, precision="bf16"), torch.rand(2, 1, 16, 16)
    expected = replica.logits(windows)
    replica.compile("eager")
    logits = replica.logits(windows)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, expected)


def test_what_cannot_be_compiled_is_an_error() -> None:
    def waits(values: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return values

    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        compiled(waits, "eager")(torch.ones(2))


def test_a_batch_may_have_any_number_of_windows_until_the_model_is_compiled(
    make_replica: Callable[..., Replica],
) -> None:
    replica = make_replica(image_size=16)
    assert replica.width(6) is None
    replica.compile("eager")
    assert replica.width(6) == 6


@pytest.mark.slow
def test_the_real_compiler_comes_to_the_same(make_federated: Callable[..., Any]) -> None:
    """The backend of torch writes kernels in C++, which takes minutes; sums may go in another order in them."""
    results = []
    for backend in (None, "inductor"):
        federated, before = make_federated(PaddedFedAvg(), training=TRAINING, ranks={"hospital-0": 1})
        if backend is not None:
            federated.workplace.replica.compile(backend)
        results.append(advance(federated, before, rounds=2))
        scored(federated)
    left, right = (outcome.checkpoint.server.tensors for outcome in results)
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-9, atol=1e-9)
