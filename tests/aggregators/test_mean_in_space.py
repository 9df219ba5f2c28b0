"""FedAvg in one of two spaces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from one_number import number_state, number_update
from pairs import one_pair, random_updates, state

from wardround.aggregators import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi, FlapSam, QFedAvg
from wardround.aggregators.contract import Aggregator
from wardround.aggregators.mean_in_space import MeanInSpace
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import streams

ALL = (FedAvgM, FedAdam, FedYogi, FedAdagrad, FedProx, QFedAvg)


@pytest.mark.parametrize(("on", "twin"), [("factors", FedAvg()), ("product", FlapSam())])
def test_it_is_fedavg_or_flap_sam(on, twin: Aggregator) -> None:
    setting = one_pair(7, 6, ranks=(2, 2, 2))
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    mean = MeanInSpace(on=on)
    assert mean.consumes == twin.consumes
    ours, theirs = (a.aggregate(a.init(setting, streams), updates, streams).server for a in (mean, twin))
    assert ours.round == theirs.round == 1
    for name, value in theirs.tensors.items():
        assert torch.equal(ours.tensors[name], value)
    for name, value in mean.broadcast(ours, setting.hospitals[0]).start.items():
        assert torch.equal(value, twin.broadcast(theirs, setting.hospitals[0]).start[name])


def test_it_keeps_the_contract_in_both_spaces() -> None:
    check_aggregator(MeanInSpace(), Claims(identity="exact", gauge="not"))
    check_aggregator(MeanInSpace(on="product"), Claims(gauge="invariant", ranks="mixed"))


@pytest.mark.parametrize("algorithm", ALL)
def test_another_space_is_refused(algorithm: type) -> None:
    with pytest.raises(ValueError, match=r"^on: expected 'factors' or 'product', got 'both'"):
        algorithm(on="both")


@pytest.mark.parametrize("algorithm", ALL)
def test_different_ranks_need_the_product(algorithm: type) -> None:
    with pytest.raises(ValueError, match="one LoRA rank for all hospitals"):
        algorithm().init(one_pair(ranks=(1, 2)), streams)
    assert algorithm(on="product").init(one_pair(ranks=(1, 2)), streams).round == 0


@pytest.mark.parametrize("algorithm", ALL)
def test_on_the_product_mixed_ranks_and_other_factors_change_nothing(algorithm: type) -> None:
    weights = "uniform" if algorithm is QFedAvg else "used"
    claims = Claims(gauge="invariant", ranks="mixed", weights=weights)
    if algorithm is not FedProx:
        claims = Claims(identity="none", reason="of the step", gauge="invariant", ranks="mixed", weights=weights)
    check_aggregator(algorithm(on="product"), claims)


@pytest.mark.parametrize("algorithm", ALL)
def test_without_pairs_the_spaces_are_one(algorithm: type) -> None:
    """Three rounds of a model that is one number."""
    ends = []
    for on in ("factors", "product"):
        server = number_state(0.5)
        for number in range(3):
            updates = [number_update("a", 1.0 + number, 2.0, loss_before=0.7), number_update("b", -1.0, loss_before=2)]
            server = algorithm(on=on).aggregate(server, updates, streams).server
        ends.append(server.tensors["w"])
    torch.testing.assert_close(*ends, rtol=1e-14, atol=1e-14)
    assert ends[0] != 0.5


@pytest.mark.parametrize("algorithm", ALL)
def test_with_one_shared_factor_only_what_is_linear_is_the_same(algorithm: type) -> None:
    """Two rounds of one A: means and their momentum agree on the product; lengths and scaled steps do not.

    The server's step of FedProx is a mean; its hospitals' penalties differ (4 times ||B - B'||^2 where A has length 2).
    """
    setting = one_pair(6, 5, ranks=(2, 2))
    models = []
    for on in ("factors", "product"):
        server = state(setting)
        for number in range(2):
            updates = [
                replace(one, tensors={**one.tensors, "A": setting.trainable["A"]}, metrics={"loss_before": 0.5})
                for one in random_updates(setting, [1.0, 3.0], seed=number)
            ]
            server = algorithm(on=on).aggregate(server, updates, streams).server
        models.append(server.tensors["B"] @ server.tensors["A"])
    assert torch.allclose(*models, rtol=1e-10, atol=1e-12) == (algorithm in (FedAvgM, FedProx))


def test_one_hospital_and_a_whole_step_make_the_spaces_one() -> None:
    """With one hospital, momentum 0 and learning rate 1 the new theta is its own: in either space the same product."""
    setting = one_pair(6, 5, ranks=(2,), alpha=4.0, power=1.0)
    updates = [replace(one, metrics={"loss_before": 0.5}) for one in random_updates(setting, [3.0])]
    sent = updates[0].tensors["B"] @ updates[0].tensors["A"]
    for on in ("factors", "product"):
        for algorithm in (FedAvgM(beta=0.0, on=on), QFedAvg(q=0.0, on=on), FedProx(on=on)):
            after = algorithm.aggregate(state(setting), updates, streams).server.tensors
            torch.testing.assert_close(after["B"] @ after["A"], sent, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(after["w"], updates[0].tensors["w"], rtol=1e-12, atol=1e-12)
