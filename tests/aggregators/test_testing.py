"""The contract suite catches what it is there for: for every check there is an algorithm that breaks it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from wardround.aggregators import FedAvg, FlapSam, Local, Scaffold
from wardround.aggregators import testing as suite
from wardround.aggregators.arithmetic import shapes_of, weighted_mean
from wardround.aggregators.contract import Aggregated, ClientUpdate, Download, LocalResult, Phase, ServerState, Tensors
from wardround.aggregators.plain import PlainTraining
from wardround.aggregators.testing import CHECKS, Bench, Claims, check_aggregator

EXACT = Claims(identity="exact", gauge="not")

Change = Callable[[Tensors, Sequence[ClientUpdate], Any], Tensors]


@dataclass(frozen=True, kw_only=True)
class Changed(FedAvg):
    """FedAvg whose server does something to the mean."""

    change: Change

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Any) -> Aggregated:
        after = super().aggregate(server, updates, rng).server
        return Aggregated(server=replace(after, tensors={**server.tensors, **self.change(after.tensors, updates, rng)}))


def scaled(by: float) -> Change:
    return lambda mean, updates, rng: {name: by * value for name, value in mean.items()}


def of_first(mean: Tensors, updates: Sequence[ClientUpdate], rng: Any) -> Tensors:
    return updates[0].tensors


def unnormalised(mean: Tensors, updates: Sequence[ClientUpdate], rng: Any) -> Tensors:
    return {name: sum(u.weight * u.tensors[name] for u in updates) / 12 for name in mean}


def uniform(mean: Tensors, updates: Sequence[ClientUpdate], rng: Any) -> Tensors:
    return weighted_mean([replace(update, weight=1.0) for update in updates])


def median(mean: Tensors, updates: Sequence[ClientUpdate], rng: Any) -> Tensors:
    return {name: torch.stack([u.tensors[name] for u in updates]).median(dim=0).values for name in mean}


def noisy(mean: Tensors, updates: Sequence[ClientUpdate], rng: Any) -> Tensors:
    return {name: value + torch.randn_like(value) * 1e-3 for name, value in mean.items()}


def shuffled(mean: Tensors, updates: Sequence[ClientUpdate], rng: Any) -> Tensors:
    random.random()
    return mean


def doubled(mean: Tensors, updates: Sequence[ClientUpdate], rng: Any) -> Tensors:
    return {name: value.double() for name, value in mean.items()}


def all_or_nothing(mean: Tensors, updates: Sequence[ClientUpdate], rng: Any) -> Tensors:
    by_name = {update.hospital: update for update in updates}
    return {name: value + 0 * by_name["hospital-03"].tensors[name] for name, value in mean.items()}


def in_place(mean: Tensors, updates: Sequence[ClientUpdate], rng: Any) -> Tensors:
    updates[0].tensors["head.bias"].add_(1.0)
    return mean


class Thawed(FedAvg.__mro__[1]):  # object: a class that is no dataclass at all
    consumes, rule = "sum", PlainTraining()
    init, broadcast, aggregate, deploy = FedAvg.init, FedAvg.broadcast, FedAvg.aggregate, FedAvg.deploy


@dataclass(kw_only=True)
class Mutable(Thawed):
    pass


@dataclass(frozen=True, kw_only=True)
class ConsumesAll(FedAvg):
    consumes = "all"


@dataclass(frozen=True, kw_only=True)
class DeniesItsWeights(FedAvg):
    uses_weights = False


@dataclass(frozen=True, kw_only=True)
class StartsLate(FedAvg):
    def init(self, setting: Any, rng: Any) -> ServerState:
        return replace(super().init(setting, rng), round=1)


@dataclass(frozen=True, kw_only=True)
class NeverCounts(FedAvg):
    def aggregate(self, server: ServerState, updates: Any, rng: Any) -> Aggregated:
        return Aggregated(server=replace(super().aggregate(server, updates, rng).server, round=0))


@dataclass(frozen=True, kw_only=True)
class SaysNaN(FedAvg):
    def aggregate(self, server: ServerState, updates: Any, rng: Any) -> Aggregated:
        return replace(super().aggregate(server, updates, rng), diagnostics={"norm": math.nan})


@dataclass(frozen=True, kw_only=True)
class DeploysHalf(FedAvg):
    def deploy(self, server: ServerState, hospital: Any, memory: Tensors) -> Tensors:
        return {name: value for name, value in server.tensors.items() if name != "head.bias"}


@dataclass(frozen=True, kw_only=True)
class KnowsItsHospitals(FedAvg):
    def deploy(self, server: ServerState, hospital: Any, memory: Tensors) -> Tensors:
        return {h.name: server.tensors for h in server.setting.hospitals}[hospital.name]


@dataclass(frozen=True, kw_only=True)
class RemembersInSecret(FedAvg):
    """Server momentum, kept beside the state."""

    hidden: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def aggregate(self, server: ServerState, updates: Any, rng: Any) -> Aggregated:
        after = super().aggregate(server, updates, rng).server
        last = self.hidden.get(id(server), torch.zeros(3))
        bias = after.tensors["head.bias"] + 0.5 * last
        after = replace(after, tensors={**after.tensors, "head.bias": bias})
        self.hidden[id(after)] = bias - server.tensors["head.bias"]
        return Aggregated(server=after)


@dataclass(frozen=True, kw_only=True)
class Forgetful(PlainTraining):
    def finish(self, download: Download, fits: Any, memory: Tensors) -> LocalResult:
        tensors = super().finish(download, fits, memory).tensors
        return LocalResult(tensors={name: value for name, value in tensors.items() if name != "head.bias"})


@dataclass(frozen=True, kw_only=True)
class SendsLess(FedAvg):
    rule = Forgetful()


@dataclass(frozen=True, kw_only=True)
class TrainsTheUnknown(PlainTraining):
    def phases(self, download: Download, memory: Tensors) -> list[Phase]:
        return [Phase(train=(*download.train, "head.colour"))]


@dataclass(frozen=True, kw_only=True)
class UnknownName(FedAvg):
    rule = TrainsTheUnknown()


@dataclass(frozen=True, kw_only=True)
class WritesIntoTheDownload(PlainTraining):
    def phases(self, download: Download, memory: Tensors) -> list[Phase]:
        download.start["head.bias"].mul_(0.5)
        return list(super().phases(download, memory))


@dataclass(frozen=True, kw_only=True)
class ImpureRule(FedAvg):
    rule = WritesIntoTheDownload()


@dataclass(frozen=True, kw_only=True)
class AnyRank(FedAvg):
    def init(self, setting: Any, rng: Any) -> ServerState:
        return ServerState(setting=setting, round=0, tensors=dict(setting.trainable))


@dataclass(frozen=True, kw_only=True)
class FullRankForAll(FlapSam):
    def broadcast(self, server: ServerState, hospital: Any) -> Download:
        start = server.tensors
        return Download(start=start, train=server.setting.layout.names, returns=shapes_of(start))

    def deploy(self, server: ServerState, hospital: Any, memory: Tensors) -> Tensors:
        return server.tensors


@dataclass(frozen=True, kw_only=True)
class WrongScale(FlapSam):
    """Forgets the scale of the rank a hospital has."""

    def aggregate(self, server: ServerState, updates: Any, rng: Any) -> Aggregated:
        result = super().aggregate(server, updates, rng)
        tensors = {n: 2 * value if n == "encoder.q.B" else value for n, value in result.server.tensors.items()}
        return replace(result, server=replace(result.server, tensors=tensors))


BROKEN: list[tuple[str, Any, Claims]] = [
    ("is_a_plain_value", Thawed(), EXACT),
    ("is_a_plain_value", Mutable(), EXACT),
    ("is_a_plain_value", ConsumesAll(), EXACT),
    ("is_a_plain_value", Changed(change=lambda mean, updates, rng: mean), EXACT),  # a lambda cannot be pickled
    ("starts_in_round_0", StartsLate(), EXACT),
    ("starts_in_round_0", DeploysHalf(), EXACT),
    ("returns_what_the_contract_says", NeverCounts(), EXACT),
    ("returns_what_the_contract_says", SaysNaN(), EXACT),
    ("returns_what_the_contract_says", UnknownName(), EXACT),
    ("returns_what_the_contract_says", Changed(change=scaled(math.nan)), EXACT),
    ("leaves_its_inputs_alone", Changed(change=in_place), EXACT),
    ("leaves_its_inputs_alone", ImpureRule(), EXACT),
    ("draws_only_from_its_streams", Changed(change=noisy), EXACT),
    ("draws_only_from_its_streams", Changed(change=shuffled), EXACT),
    ("does_not_depend_on_the_order", Changed(change=of_first), EXACT),
    ("uses_weights_as_claimed", Changed(change=unnormalised), EXACT),
    ("uses_weights_as_claimed", Changed(change=uniform), EXACT),
    ("uses_weights_as_claimed", FedAvg(), Claims(weights="uniform")),
    ("uses_weights_as_claimed", DeniesItsWeights(), EXACT),
    ("uses_weights_as_claimed", Changed(change=uniform), Claims(identity="exact", weights="uniform", gauge="not")),
    ("keeps_what_all_agree_on", Changed(change=scaled(0.9)), EXACT),
    ("keeps_what_all_agree_on", WrongScale(), Claims()),
    ("keeps_what_all_agree_on", FlapSam(), EXACT),  # only the products are those of the hospitals
    ("stays_where_nobody_trains", Changed(change=scaled(0.9)), EXACT),
    ("survives_a_checkpoint", RemembersInSecret(), EXACT),
    ("announces_what_it_gets", SendsLess(), EXACT),
    ("needs_no_more_than_a_mean", Changed(change=median), EXACT),
    ("takes_part_of_the_hospitals", Changed(change=all_or_nothing), EXACT),
    ("takes_part_of_the_hospitals", FedAvg(), Claims(min_hospitals=2)),  # takes one update as well
    ("serves_a_site_never_seen", KnowsItsHospitals(), EXACT),
    ("keeps_dtypes", Changed(change=doubled), EXACT),
    ("handles_ranks_as_claimed", AnyRank(), EXACT),
    ("handles_ranks_as_claimed", AnyRank(), Claims(ranks="mixed")),
    ("handles_ranks_as_claimed", FullRankForAll(), Claims(ranks="mixed")),
    ("moves_with_the_gauge_as_claimed", FedAvg(), Claims(gauge="invariant")),
    ("moves_with_the_gauge_as_claimed", FlapSam(), Claims(gauge="not")),
    ("learns", Changed(change=scaled(3.0)), EXACT),
]


@pytest.mark.parametrize(
    ("name", "aggregator", "claims"), BROKEN, ids=lambda value: value if type(value) is str else ""
)
def test_each_check_catches_what_breaks_it(name: str, aggregator: Any, claims: Claims) -> None:
    failure = suite._failure(getattr(suite, name), Bench(aggregator=aggregator, claims=claims))
    assert failure is not None
    assert failure.startswith(f"{name}: ")


def test_there_is_a_broken_algorithm_for_every_check() -> None:
    assert {name for name, _, _ in BROKEN} == {check.__name__ for check in CHECKS}


def test_all_failed_checks_are_told_at_once() -> None:
    with pytest.raises(AssertionError) as caught:
        check_aggregator(Changed(change=uniform), Claims(identity="exact"))
    assert "breaks the contract in 2 checks" in str(caught.value)
    assert "needs_no_more_than_a_mean" in str(caught.value)
    assert (
        "uses_weights_as_claimed: weights are claimed to be used, but the ratio of the weights changes nothing"
        in str(caught.value)
    )


def test_what_an_algorithm_raises_is_told() -> None:
    with pytest.raises(AssertionError, match="returns_what_the_contract_says: ValueError: the phase trains"):
        check_aggregator(UnknownName(), EXACT)


def test_claims_default_to_those_of_a_product_aggregator() -> None:
    check_aggregator(Local(), Claims(weights="uniform", ranks="mixed"))
    with pytest.raises(AssertionError, match="handles_ranks_as_claimed"):
        check_aggregator(FlapSam())


def test_a_claim_without_identity_needs_a_reason() -> None:
    with pytest.raises(ValueError, match=r"^reason: expected one exactly when identity is 'none', got ''"):
        Claims(identity="none")
    with pytest.raises(ValueError, match=r"^min_hospitals: expected at least 1, got 0"):
        Claims(min_hospitals=0)


def test_a_wrong_control_variate_is_found() -> None:
    """SCAFFOLD that forgets to announce its extra tensors is stopped by the checks of the round."""

    @dataclass(frozen=True, kw_only=True)
    class Quiet(Scaffold):
        def broadcast(self, server: ServerState, hospital: Any) -> Download:
            return replace(FedAvg().broadcast(server, hospital), extra=server.memory)

    bench = Bench(aggregator=Quiet(), claims=EXACT)
    assert "extra" not in (suite._failure(suite.starts_in_round_0, bench) or "")
    learned = suite._failure(suite.returns_what_the_contract_says, bench)
    assert learned is not None
    assert "KeyError" in learned
