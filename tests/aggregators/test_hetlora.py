"""HetLoRA: weights from norms, a penalty on the last directions, ranks that shrink and are remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import normal, one_pair, product, random_updates, tensor, update
from rounds import advance

from wardround.aggregators import HetLora, PaddedFedAvg
from wardround.aggregators.contract import ClientUpdate, Download, Fit, HospitalInfo, Layout, Setting, Tensors
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def told(one: ClientUpdate, rank: int | None = None) -> ClientUpdate:
    """The update with the metric that the rule sends."""
    return replace(one, metrics={"rank": float(rank or one.tensors["A"].shape[0])})


def test_two_by_two_by_hand() -> None:
    """W_a = diag(3, 0) and W_b = diag(0, 1): q = (3/4, 1/4), whatever the weights 1 : 9.

    B = 3/4 (3, 0) + 1/4 (0, 1) and A = 3/4 (1, 0) + 1/4 (0, 1). The weights give w = (1 + 9 * 5) / 10.
    """
    updates = [
        told(update("a", 1.0, B=tensor([3.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(1.0))),
        told(update("b", 9.0, B=tensor([0.0], [1.0]), A=tensor([0.0, 1.0]), w=tensor(5.0))),
    ]
    after = HetLora().aggregate(HetLora().init(one_pair(), streams), updates, streams).server
    torch.testing.assert_close(after.tensors["B"], tensor([2.25], [0.25]))
    torch.testing.assert_close(after.tensors["A"], tensor([0.75, 0.25]))
    assert after.tensors["w"] == pytest.approx(4.6)


def test_weights_are_norms_of_products_with_their_scales() -> None:
    """Padding with the weights replaced by dense NumPy norms of ``s_k B_k A_k`` gives the same; ranks 1, 2, 4."""
    setting = one_pair(5, 6, ranks=(1, 2, 4), alpha=3.0, power=1.0)
    updates = [told(one) for one in random_updates(setting, [1.0, 2.0, 3.0])]
    norms = [np.linalg.norm(product(setting, one.tensors).numpy()) for one in updates]
    reweighted = [replace(one, weight=float(norm)) for one, norm in zip(updates, norms, strict=True)]
    server = HetLora().init(setting, streams)
    ours = HetLora().aggregate(server, updates, streams).server
    padded = PaddedFedAvg(mean="zero").aggregate(server, reweighted, streams).server
    for name in ("A", "B"):
        torch.testing.assert_close(ours.tensors[name], padded.tensors[name], rtol=1e-12, atol=1e-14)


def test_while_all_products_are_zero_the_weights_of_the_run_count() -> None:
    setting = one_pair(2, 2, ranks=(1, 1))
    updates = [
        told(update("a", 3.0, B=tensor([0.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(1.0))),
        told(update("b", 1.0, B=tensor([0.0], [0.0]), A=tensor([0.0, 1.0]), w=tensor(1.0))),
    ]
    after = HetLora().aggregate(HetLora().init(setting, streams), updates, streams).server
    assert after.tensors["A"].tolist() == [[0.75, 0.25]]


def download(rank: int) -> Download:
    setting = one_pair(3, 4, ranks=(rank, rank))
    server = replace(HetLora().init(setting, streams), tensors={**setting.trainable, "B": normal(3, rank, seed="B")})
    return HetLora().broadcast(server, setting.hospitals[0])


def fit(tensors: Tensors) -> Fit:
    return Fit(tensors=tensors, learning_rates=(1.0,))


def test_the_penalty_by_hand() -> None:
    """At rank 4 with gamma 1/2, lam ||B[:, 2:]||_F ||A[2:]||_F by NumPy; no gradient on the first directions."""
    given = download(4)
    phase = HetLora(lam=0.1, gamma=0.5).rule.phases(given, {})[0]
    trained = {name: value.clone().requires_grad_() for name, value in given.start.items()}
    penalty = phase.penalty(trained, {})
    A, B = given.start["A"].numpy(), given.start["B"].numpy()
    assert penalty.item() == pytest.approx(0.1 * np.linalg.norm(B[:, 2:]) * np.linalg.norm(A[2:]))
    gradient = torch.autograd.grad(penalty, trained["B"])[0].numpy()
    assert not gradient[:, :2].any()
    expected = 0.1 * B[:, 2:] / np.linalg.norm(B[:, 2:]) * np.linalg.norm(A[2:])
    np.testing.assert_allclose(gradient[:, 2:], expected)


def test_the_penalty_at_zero_has_a_finite_gradient() -> None:
    """B starts at zero, where the norm has no derivative: the penalty pulls nowhere."""
    setting = one_pair(3, 4, ranks=(2, 2))
    given = HetLora().broadcast(HetLora().init(setting, streams), setting.hospitals[0])
    trained = {name: value.clone().requires_grad_() for name, value in given.start.items()}
    penalty = HetLora().rule.phases(given, {})[0].penalty(trained, {})
    assert not torch.autograd.grad(penalty, trained["B"])[0].any()


@pytest.mark.parametrize(("factor", "rank"), [(0.9, 2), (1.0, 4), (1.1, 4)])
def test_a_tail_that_became_smaller_is_given_up(factor: float, rank: int) -> None:
    """At rank 4 with gamma 1/2, where the last two columns of B are scaled by a factor."""
    given = download(4)
    ended = {**given.start, "B": torch.cat([given.start["B"][:, :2] + 1, factor * given.start["B"][:, 2:]], dim=1)}
    result = HetLora(gamma=0.5).rule.finish(given, [fit(ended)], {})
    assert result.metrics == {"rank": float(rank)}
    assert {name: tuple(value.shape) for name, value in result.tensors.items()} == dict(given.returns)
    assert not result.tensors["A"][rank:].any()
    assert not result.tensors["B"][:, rank:].any()
    assert torch.equal(result.tensors["B"][:, :rank], ended["B"][:, :rank])
    assert torch.equal(result.tensors["A"][:rank], ended["A"][:rank])


@pytest.mark.parametrize(
    ("rank", "gamma", "min_rank", "left"),
    [
        (8, 0.99, 1, 7),
        (8, 0.5, 1, 4),
        (8, 0.5, 6, 6),
        (2, 0.5, 6, 2),
        (1, 0.5, 1, 1),
        (8, 1.0, 1, 8),
        (100, 0.29, 1, 29),
    ],
)
def test_where_the_tail_begins(rank: int, gamma: float, min_rank: int, left: int) -> None:
    """``max(min_rank, floor(gamma r))``, at most r; 0.29 * 100 is 29, though floats make it 28.99..."""
    assert HetLora(gamma=gamma, min_rank=min_rank).rule.kept(rank) == left


def test_a_reached_rank_is_remembered_and_deployed_with_zeros() -> None:
    """A rank-dependent scale: what hospital b is handed at rank 2 and what is deployed there at rank 4 are the same."""
    setting = one_pair(5, 6, ranks=(3, 4), alpha=6.0, power=1.0)
    first, second = random_updates(setting, [1.0, 1.0])
    server = HetLora().init(setting, streams)
    assert server.memory["rank"].tolist() == [3, 4]
    server = HetLora().aggregate(server, [told(first), told(second, 2)], streams).server
    assert server.memory["rank"].tolist() == [3, 2]
    server = HetLora().aggregate(server, [told(first)], streams).server
    assert server.memory["rank"].tolist() == [3, 2]
    b = setting.hospitals[1]
    start, deployed = HetLora().broadcast(server, b).start, HetLora().deploy(server, b, {})
    assert start["A"].shape == (2, 6)
    assert deployed["A"].shape == (4, 6)
    assert not deployed["A"][2:].any()
    torch.testing.assert_close(product(setting, start), product(setting, deployed))
    global_two = 6.0 / 4 * server.tensors["B"][:, :2] @ server.tensors["A"][:2]
    torch.testing.assert_close(product(setting, start), global_two)
    assert HetLora().deploy(server, HospitalInfo(name="z", num_examples=1, rank=3), {})["A"].shape == (3, 6)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_what_one_hospital_gives_up_is_not_lost_to_the_others(power: float) -> None:
    """Ranks 4 and 4. Only a answers, and prunes to 3: direction 4 stays as it was, and b still trains it.

    Directions 1 to 3 are a's, with its product at its new scale. When both answer, a has no say in direction 4: it is
    what b sent, times b's share.
    """
    setting = one_pair(6, 5, ranks=(4, 4), alpha=8.0, power=power)
    before = HetLora().init(setting, streams)
    before = HetLora().aggregate(before, [told(one) for one in random_updates(setting, [1.0, 1.0])], streams).server
    a, b = random_updates(setting, [1.0, 1.0], seed=1)
    a.tensors["B"][:, 3], a.tensors["A"][3] = 0.0, 0.0  # what PruneTail sends
    after = HetLora().aggregate(before, [told(a, 3)], streams).server
    assert after.memory["rank"].tolist() == [3, 4]
    assert torch.equal(after.tensors["A"][3], before.tensors["A"][3])
    assert torch.equal(after.tensors["B"][:, 3], before.tensors["B"][:, 3])
    assert before.tensors["A"][3].any()
    for_a = HetLora().broadcast(after, setting.hospitals[0]).start
    torch.testing.assert_close(product(setting, for_a), product(setting, a.tensors))
    both = HetLora().aggregate(before, [told(a, 3), told(b)], streams).server
    norms = [product(setting, one.tensors).norm() for one in (a, b)]
    torch.testing.assert_close(both.tensors["A"][3], norms[1] / sum(norms) * b.tensors["A"][3])
    b.tensors["B"][:, 3], b.tensors["A"][3] = 0.0, 0.0
    nobody = HetLora().aggregate(after, [told(b, 3)], streams).server  # b was the last to have direction 4
    assert not nobody.tensors["A"][3].any()
    assert not nobody.tensors["B"][:, 3].any()


def test_a_strong_penalty_prunes_to_the_smallest_rank_and_gamma_1_never() -> None:
    """Ten rounds on the toy federation."""
    world, ends = make_world((2, 3, 4)), []
    for aggregator in (HetLora(lam=3.0, gamma=0.5, min_rank=2), HetLora(lam=3.0, gamma=1.0)):
        server = initial_state(aggregator, world)
        for _ in range(10):
            server = run_round(aggregator, world, server).after
        ends.append(server.memory["rank"].tolist())
    assert ends == [[2, 2, 2], [2, 3, 4]]


def test_without_penalty_and_pruning_only_the_weights_differ_from_padding() -> None:
    """One hospital: q = 1 = p, so that both are the same over three rounds."""
    world, ends = make_world((2,)), []
    for aggregator in (HetLora(gamma=1.0), PaddedFedAvg(mean="zero")):
        server = initial_state(aggregator, world)
        for _ in range(3):
            server = run_round(aggregator, world, server).after
        ends.append(server.tensors)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_strong_pruning_keeps_the_contract() -> None:
    reason = "what one hospital gives up stays for the others"
    check_aggregator(HetLora(lam=5.0, gamma=0.5), Claims(identity="none", reason=reason, gauge="not", ranks="mixed"))


def test_the_engine_trains_at_the_rank_that_was_reached(make_federated: Callable) -> None:
    """On the tiny SAM: ranks 2 and 4, a penalty that dominates; the rank of every round is in the run's metrics."""
    aggregator = HetLora(lam=5.0, gamma=0.5)
    federated, before = make_federated(aggregator, volumes=(1, 1), ranks={"hospital-0": 2, "hospital-1": 4}, rank=4)
    ranks, shapes, checkpoint = [], [], before
    for _ in range(4):
        outcome = advance(federated, checkpoint)
        checkpoint = outcome.checkpoint
        ranks.append([row["value"] for row in outcome.rows["metrics"] if row["metric"] == "rank"])
        pair = checkpoint.server.setting.layout.pairs[0]
        start = aggregator.broadcast(checkpoint.server, federated.hospitals["hospital-1"].info).start
        shapes.append(start[pair.A].shape[0])
    assert ranks[0] == [2.0, 4.0]
    assert ranks[-1] == [1.0, 1.0]
    assert shapes == [int(row[1]) for row in ranks]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": -1.0}, "lam: expected a number of at least 0, got -1.0"),
        ({"gamma": 0.0}, "gamma: expected a number above 0 and at most 1, got 0.0"),
        ({"gamma": 1.5}, "gamma: expected a number above 0 and at most 1, got 1.5"),
        ({"min_rank": 0}, "min_rank: expected an integer of at least 1, got 0"),
        ({"min_rank": 1.5}, "min_rank: expected an integer of at least 1, got 1.5"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        HetLora(**settings)


def test_a_method_without_pairs_is_refused() -> None:
    setting = Setting(
        trainable={"w": tensor(0.0)},
        layout=Layout(pairs=(), dense=("w",), part={"w": "head"}, kind={"w": "weight"}),
        hospitals=(HospitalInfo(name="a", num_examples=1),),
    )
    with pytest.raises(ValueError, match="expected low-rank pairs, got a layout without any"):
        HetLora().init(setting, streams)
