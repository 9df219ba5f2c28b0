"""RoLoRA: the factors take turns, each round is exact, and only what is new travels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from pairs import one_pair, product, tensor, update

from wardround.aggregators import FfaLora, RoLora
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def test_two_rounds_by_hand() -> None:
    """Rank 1, equal weights, A starts at (1, 1).

    Round 1, B: ((2, 0) + (0, 4)) / 2 = (1, 2), product [[1, 1], [2, 2]]. Round 2, A: ((1, 0) + (3, 2)) / 2 = (2, 1),
    product [[2, 1], [4, 2]], which is the mean of (1, 2)^T (1, 0) and (1, 2)^T (3, 2).
    """
    setting = one_pair()
    setting = type(setting)(**{**vars(setting), "trainable": {**setting.trainable, "A": tensor([1.0, 1.0])}})
    aggregator, hospital = RoLora(), setting.hospitals[0]
    server = aggregator.init(setting, streams)
    assert aggregator.broadcast(server, hospital).train == ("B", "w")
    updates = [update("a", B=tensor([2.0], [0.0]), w=tensor(0.0)), update("b", B=tensor([0.0], [4.0]), w=tensor(2.0))]
    server = aggregator.aggregate(server, updates, streams).server
    assert product(setting, server.tensors).tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert aggregator.broadcast(server, hospital).train == ("A", "w")
    updates = [update("a", A=tensor([1.0, 0.0]), w=tensor(1.0)), update("b", A=tensor([3.0, 2.0]), w=tensor(4.0))]
    server = aggregator.aggregate(server, updates, streams).server
    assert product(setting, server.tensors).tolist() == [[2.0, 1.0], [4.0, 2.0]]
    assert server.tensors["w"] == 2.5
    assert aggregator.broadcast(server, hospital).train == ("B", "w")


def test_every_round_is_the_exact_mean_of_the_products() -> None:
    """Four rounds on the toy federation against dense NumPy; the factor of the round moves, the other does not."""
    world = make_world()
    server = initial_state(RoLora(), world)
    for number in range(1, 5):
        last = run_round(RoLora(), world, server)
        for pair in world.setting.layout.pairs:
            frozen, trained = (pair.A, pair.B) if number % 2 else (pair.B, pair.A)
            assert torch.equal(last.after.tensors[frozen], server.tensors[frozen])
            assert not torch.equal(last.after.tensors[trained], server.tensors[trained])
            values = [{**server.tensors, **one.tensors} for one in last.updates]
            mean = sum(
                p * value[pair.B].numpy() @ value[pair.A].numpy()
                for p, value in zip((3 / 12, 4 / 12, 5 / 12), values, strict=True)
            )
            got = last.after.tensors[pair.B].numpy() @ last.after.tensors[pair.A].numpy()
            np.testing.assert_allclose(got, mean, rtol=1e-12, atol=1e-14)
        server = last.after


def test_the_first_round_is_that_of_ffa_lora() -> None:
    world = make_world()
    ends = [
        run_round(aggregator, world, initial_state(aggregator, world)).after for aggregator in (RoLora(), FfaLora())
    ]
    assert all(torch.equal(value, ends[1].tensors[name]) for name, value in ends[0].tensors.items())


def test_only_what_is_new_travels() -> None:
    """Pairs alone: up B, A, B; down both, then what the round before averaged. The third hospital misses round 2."""
    world = make_world()
    names = [hospital.name for hospital in world.setting.hospitals]
    factors = {name: factor for pair in world.setting.layout.pairs for factor, name in (("A", pair.A), ("B", pair.B))}
    server, down, up = initial_state(RoLora(), world), [], []
    for cohort in (names, names[:2], names):
        last = run_round(RoLora(), world, server, cohort=cohort)
        down.append([{factors[name] for name in d.traffic if name in factors} for d in last.downloads.values()])
        up.append([{factors[name] for name in one.tensors if name in factors} for one in last.updates])
        server = last.after
    assert down == [[{"A", "B"}] * 3, [{"B"}] * 2, [{"A"}, {"A"}, {"A", "B"}]]
    assert up == [[{"B"}] * 3, [{"A"}] * 2, [{"B"}] * 3]


def test_a_round_to_which_nobody_came_takes_no_turn() -> None:
    """Rounds 1 and 3 are empty: B trains in round 2, A in round 4. A zero B would give A no gradient in round 2."""
    world, trained = make_world(), []
    factors = {name: factor for pair in world.setting.layout.pairs for factor, name in (("A", pair.A), ("B", pair.B))}
    server = initial_state(RoLora(), world)
    for number in range(1, 5):
        if number % 2:
            server = replace(server, round=number)  # as the round loop does
            continue
        last = run_round(RoLora(), world, server)
        trained.append({factors[name] for one in last.updates for name in one.tensors if name in factors})
        server = last.after
    assert trained == [{"B"}, {"A"}]


def test_dense_tensors_train_in_every_round() -> None:
    world = make_world()
    server = initial_state(RoLora(), world)
    for _ in range(2):
        last = run_round(RoLora(), world, server)
        assert all(not torch.equal(last.after.tensors[n], server.tensors[n]) for n in world.setting.layout.dense)
        server = last.after
