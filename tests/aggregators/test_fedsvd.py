"""FedSVD: the mean of B, and a new split of ``B A`` that keeps the rows of A orthonormal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pairs import normal, one_pair, product, tensor, update
from torch import Tensor

from wardround.aggregators import FedSvd, FfaLora
from wardround.aggregators.contract import Aggregator, ClientUpdate, HospitalInfo, ServerState, Setting
from wardround.aggregators.toy import World, initial_state, make_world, run_round, streams

EXACT = {"rtol": 0, "atol": 1e-12}  # float64


def state(setting: Setting) -> ServerState:
    return FedSvd().init(setting, streams)


def b_updates(server: ServerState, weights: tuple[float, ...]) -> list[ClientUpdate]:
    """Random B from hospitals a, b, c, ..., as the announcement wants them: no A."""
    shape = server.tensors["B"].shape
    return [
        update(name, weight, B=normal(*shape, seed=f"B {name}"), w=tensor(float(ord(name))))
        for name, weight in zip("abcdefgh", weights, strict=False)
    ]


def after_a_round(aggregator: FedSvd, server: ServerState, weights: tuple[float, ...] = (1.0, 3.0)) -> ServerState:
    return aggregator.aggregate(server, b_updates(server, weights), streams).server


def mean_b(server: ServerState, weights: tuple[float, ...] = (1.0, 3.0)) -> Tensor:
    updates = b_updates(server, weights)
    return sum(weight / sum(weights) * one.tensors["B"] for weight, one in zip(weights, updates, strict=True))


def test_two_by_two_by_hand() -> None:
    """A = (0, 2), B_a = (1, 0), B_b = (3, 0), weights 1 : 1: the mean (2, 0) times A is 4 in the corner.

    Its only singular value is 4: B = (4, 0) and A = (0, 1).
    """
    setting = one_pair(ranks=(1, 1))
    server = replace(state(setting), tensors={**setting.trainable, "A": tensor([0.0, 2.0])})
    updates = [
        update("a", B=tensor([1.0], [0.0]), w=tensor(1.0)),
        update("b", B=tensor([3.0], [0.0]), w=tensor(2.0)),
    ]
    tensors = FedSvd().aggregate(server, updates, streams).server.tensors
    torch.testing.assert_close((tensors["B"], tensors["A"]), (tensor([4.0], [0.0]), tensor([0.0, 1.0])))
    assert tensors["w"] == 1.5


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_mean_of_the_products_is_kept_and_split_by_its_svd(power: float) -> None:
    """Exact, against a dense SVD of the mean of the products: no cross terms, because A is common."""
    setting = one_pair(20, 17, ranks=(4, 4), alpha=6.0, power=power)
    server = state(setting)
    M = setting.layout.pairs[0].scale(4) * mean_b(server) @ server.tensors["A"]
    after = after_a_round(FedSvd(), server)
    torch.testing.assert_close(product(setting, after.tensors), M, **EXACT)
    torch.testing.assert_close(after.tensors["A"] @ after.tensors["A"].mT, torch.eye(4).double(), **EXACT)
    scaled = setting.layout.pairs[0].scale(4) * after.tensors["B"]
    S = np.linalg.svd(M.numpy(), compute_uv=False)[:4]
    torch.testing.assert_close(scaled.mT @ scaled, torch.diag(torch.from_numpy(S**2)), rtol=0, atol=1e-10)


def test_once_a_is_orthonormal_it_is_the_svd_of_b() -> None:
    """``B = U S V^T`` gives B <- U S and A <- V^T A, up to the signs of the directions; the rows' span stays."""
    setting = one_pair(20, 17, ranks=(4, 4))
    first = after_a_round(FedSvd(), state(setting))
    second = after_a_round(FedSvd(), first, (2.0, 1.0))
    U, S, Vh = np.linalg.svd(mean_b(first, (2.0, 1.0)).numpy(), full_matrices=False)
    A = torch.from_numpy(Vh) @ first.tensors["A"]
    signs = (A * second.tensors["A"]).sum(dim=1).sign()
    torch.testing.assert_close(second.tensors["A"], signs[:, None] * A, **EXACT)
    torch.testing.assert_close(second.tensors["B"], signs * torch.from_numpy(U * S), **EXACT)
    projector = [one.tensors["A"].mT @ one.tensors["A"] for one in (first, second)]
    torch.testing.assert_close(projector[0], projector[1], **EXACT)


def run(aggregator: Aggregator, world: World, server: ServerState, rounds: int) -> ServerState:
    for _ in range(rounds):
        server = run_round(aggregator, world, server).after
    return server


def test_with_plain_gradient_steps_it_is_ffa_lora_from_an_orthonormal_a() -> None:
    """From an orthonormal A on, the toy's SGD learns the same whether the basis turns every round or never."""
    world = make_world()
    server = run(FedSvd(), world, initial_state(FedSvd(), world), 1)
    turning, resting = (run(aggregator, world, server, 4) for aggregator in (FedSvd(), FfaLora()))
    models = [world.model(one.tensors, {}) for one in (turning, resting)]
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=0, atol=1e-12)
    assert not torch.allclose(turning.tensors["encoder.q.A"], resting.tensors["encoder.q.A"])


def test_directions_without_energy_get_orthonormal_rows_and_can_learn() -> None:
    """B of rank 1 in a pair of rank 3: A has three orthonormal rows, the last two with zero columns of B."""
    setting = one_pair(8, 9, ranks=(3, 3))
    B = normal(8, 1) @ tensor([1.0, 2.0, 3.0])
    sent = [update(name, B=B, w=tensor(0.0)) for name in ("a", "b")]
    tensors = FedSvd().aggregate(state(setting), sent, streams).server.tensors
    torch.testing.assert_close(tensors["A"] @ tensors["A"].mT, torch.eye(3).double(), **EXACT)
    assert tensors["B"][:, 0].any()
    assert not tensors["B"][:, 1:].any()
    torch.testing.assert_close(tensors["B"] @ tensors["A"], B @ setting.trainable["A"], **EXACT)


def test_the_rows_span_another_space_where_b_has_a_lower_rank() -> None:
    """Rank 4: a round in which B has rank 1 draws three rows anew, which lie outside what A spanned before."""
    setting = one_pair(20, 17, ranks=(4, 4))
    first = after_a_round(FedSvd(), state(setting))
    low = normal(20, 1, seed="column") @ normal(1, 4, seed="row")
    second = FedSvd().aggregate(first, [update("a", B=low, w=tensor(0.0))], streams).server
    projectors = [one.tensors["A"].mT @ one.tensors["A"] for one in (first, second)]
    assert (projectors[0] - projectors[1]).norm() > 1.0
    kept = second.tensors["A"][0] @ projectors[0]  # the one direction in use is still there
    torch.testing.assert_close(kept, second.tensors["A"][0], **EXACT)


def test_all_directions_are_spare_where_nobody_has_trained() -> None:
    setting = one_pair(8, 9, ranks=(3, 3))
    sent = [update("a", B=setting.trainable["B"], w=tensor(0.0))]
    tensors = FedSvd().aggregate(state(setting), sent, streams).server.tensors
    torch.testing.assert_close(tensors["A"] @ tensors["A"].mT, torch.eye(3).double(), **EXACT)
    assert not tensors["B"].any()


def test_the_split_waits_for_its_period_and_a_travels_only_when_new() -> None:
    """Period 2: new A after rounds 2 and 4; down is A and B in rounds 1, 3, 5, B alone in rounds 2 and 4."""
    world, aggregator = make_world(), FedSvd(period=2)
    server = initial_state(aggregator, world)
    changed, travelled = [], []
    for _ in range(5):
        last = run_round(aggregator, world, server)
        travelled.append("decoder.q.A" in last.downloads["hospital-01"].traffic)
        changed.append(not torch.equal(last.after.tensors["decoder.q.A"], server.tensors["decoder.q.A"]))
        server = last.after
    assert changed == [False, True, False, True, False]
    assert travelled == [True, False, True, False, True]


def test_only_b_and_dense_tensors_train_and_come_back() -> None:
    world = make_world()
    download = FedSvd().broadcast(initial_state(FedSvd(), world), world.setting.hospitals[0])
    fixed = {pair.A for pair in world.setting.layout.pairs}
    assert set(download.train) == download.returns.keys() == set(world.setting.layout.names) - fixed
    assert download.start.keys() == set(world.setting.layout.names)


def test_scalars_that_travel() -> None:
    """Per pair of 20 x 17 at rank 4: up 4 * 20; down 4 * 37, or 4 * 20 between two splits; w is one more."""
    setting = one_pair(20, 17, ranks=(4, 4))
    aggregator, server = FedSvd(period=2), state(setting)
    sizes = []
    for _ in range(3):
        download = aggregator.broadcast(server, setting.hospitals[0])
        assert sum(np.prod(shape) for shape in download.returns.values()) == 80 + 1
        sizes.append(sum(value.numel() for value in download.traffic.values()))
        server = after_a_round(aggregator, server)
    assert sizes == [149, 81, 149]


def test_a_hospital_that_missed_a_split_is_sent_a_later() -> None:
    """Period 3. Hospital 3 is absent in round 4, which brings the new A to the others: it gets it in round 5."""
    world, aggregator = make_world(), FedSvd(period=3)
    server = run(aggregator, world, initial_state(aggregator, world), 3)
    names = [one.name for one in world.setting.hospitals]
    server = run_round(aggregator, world, server, cohort=names[:2]).after
    got = {one.name: "decoder.q.A" in aggregator.broadcast(server, one).traffic for one in world.setting.hospitals}
    assert got == {"hospital-01": False, "hospital-02": False, "hospital-03": True}


def test_without_pairs_it_is_refused() -> None:
    dense = replace(
        one_pair(),
        trainable={"w": tensor(0.0)},
        layout=replace(one_pair().layout, pairs=()),
        hospitals=(HospitalInfo(name="a", num_examples=1),),
    )
    with pytest.raises(ValueError, match="expected low-rank pairs"):
        FedSvd().init(dense, streams)


def test_different_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one LoRA rank for all hospitals, got \{'a': 1, 'b': 2\}"):
        FedSvd().init(one_pair(ranks=(1, 2)), streams)


@pytest.mark.parametrize("period", [0, -1, 1.5])
def test_a_period_out_of_range_is_refused(period: Any) -> None:
    with pytest.raises(ValueError, match=r"^period: expected an integer of at least 1, got "):
        FedSvd(period=period)
