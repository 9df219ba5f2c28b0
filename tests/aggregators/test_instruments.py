"""The instruments against dense NumPy, by hand, and where they have nothing to measure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from pairs import ideal_mean, normal, one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import FedAvg, FlapSam
from wardround.aggregators.arithmetic import with_product
from wardround.aggregators.contract import Aggregated, ClientUpdate, Download, ServerState, Setting
from wardround.aggregators.instruments import Layer, measure, overall
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def downloads(server: ServerState, updates: list[ClientUpdate]) -> dict[str, Download]:
    """What the senders are handed: the server's tensors, at their rank."""
    hospitals = {hospital.name: hospital for hospital in server.setting.hospitals}
    return {u.hospital: FlapSam().broadcast(server, hospitals[u.hospital]) for u in updates}


def step(aggregator: FedAvg | FlapSam, setting: Setting, updates: list[ClientUpdate]) -> Aggregated:
    return aggregator.aggregate(state(setting), updates, streams)


def layers(aggregator: FedAvg | FlapSam, setting: Setting, updates: list[ClientUpdate]) -> tuple[Layer, Layer]:
    """The pair and the dense tensor."""
    before, after = state(setting), step(aggregator, setting, updates).server
    pair, dense = measure(aggregator, before, downloads(before, updates), updates, after)
    return pair, dense


def by_hand() -> list[ClientUpdate]:
    """B A = diag(2, 0) and diag(0, 4): with equal weights M = diag(1, 2)."""
    return [
        update("a", 1.0, B=tensor([1.0], [0.0]), A=tensor([2.0, 0.0]), w=tensor(1.0)),
        update("b", 1.0, B=tensor([0.0], [1.0]), A=tensor([0.0, 4.0]), w=tensor(5.0)),
    ]


def test_two_by_two_by_hand() -> None:
    """M = diag(1, 2), best rank 1 diag(0, 2), start W = 0.

    Distance 1 / sqrt(5); energy 4 of 5; effective rank exp(H(1/3, 2/3)); steps 2 and 4, so sqrt((4 + 16) / 2); the
    mean step has norm sqrt(5), so that drift^2 = (10 - 5) / 10; the products are orthogonal; the server moves by 2. B
    has norm 1 and A has norm 2: |1 - 4| / (1 + 4). Dense: steps 1 and 5, mean 3.
    """
    pair, dense = layers(FlapSam(), one_pair(), by_hand())
    assert pair.name == "W"
    assert pair.ideal_norm == pytest.approx(math.sqrt(5))
    assert pair.ideal_distance == pytest.approx(1 / math.sqrt(5))
    assert pair.energy_kept == pytest.approx(0.8)
    assert pair.effective_rank == pytest.approx(math.exp(math.log(3) - 2 / 3 * math.log(2)))
    assert pair.spectrum == pytest.approx((2.0, 1.0))
    assert pair.hospital_step == pytest.approx(math.sqrt(10))
    assert pair.drift == pytest.approx(math.sqrt(0.5))
    assert pair.cosine == pytest.approx(0.0, abs=1e-12)
    assert pair.server_step == pytest.approx(2.0)
    assert pair.gauge_imbalance == pytest.approx(0.6)
    assert (dense.name, dense.ideal_norm, dense.ideal_distance) == ("head (dense)", pytest.approx(3.0), 0.0)
    assert dense.hospital_step == pytest.approx(math.sqrt((1 + 25) / 2))
    assert dense.drift == pytest.approx(math.sqrt(4 / 13))
    assert dense.cosine == pytest.approx(1.0)
    assert dense.server_step == pytest.approx(3.0)
    assert dense.energy_kept is dense.effective_rank is dense.gauge_imbalance is None


def test_the_same_pair_in_another_gauge_is_as_far_and_better_balanced() -> None:
    symmetric, _ = layers(FlapSam(split="symmetric"), one_pair(), by_hand())
    assert symmetric.ideal_distance == pytest.approx(1 / math.sqrt(5))
    assert symmetric.gauge_imbalance == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("ranks", [(3, 3, 3), (1, 2, 4)])
def test_against_dense_numpy(ranks: tuple[int, ...]) -> None:
    """Unequal weights, a scale that depends on the rank, a start that is not zero."""
    setting = one_pair(11, 13, ranks=ranks, alpha=4.0, power=1.0)
    setting = replace(setting, trainable={**setting.trainable, "B": normal(11, max(ranks), seed="start")})
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    pair, _ = layers(FlapSam(), setting, updates)
    M, old = ideal_mean(setting, updates).numpy(), product(setting, setting.trainable).numpy()
    handed = downloads(state(setting), updates)
    steps = [(product(setting, u.tensors) - product(setting, handed[u.hospital].start)).numpy() for u in updates]
    new = product(setting, step(FlapSam(), setting, updates).server.tensors).numpy()
    p = np.array([1, 2, 3]) / 6
    walked = sum(w * np.sum(s**2) for w, s in zip(p, steps, strict=True))
    middle = sum(w * s for w, s in zip(p, steps, strict=True))
    spread = sum(w * np.sum((s - middle) ** 2) for w, s in zip(p, steps, strict=True))
    meetings = [(0, 1), (0, 2), (1, 2)]
    cosines = [np.sum(steps[i] * steps[j]) / np.linalg.norm(steps[i]) / np.linalg.norm(steps[j]) for i, j in meetings]
    values = np.linalg.svd(M, compute_uv=False)
    q = values[values > 1e-12] / values.sum()
    assert pair.ideal_distance == pytest.approx(np.linalg.norm(new - M) / np.linalg.norm(M), rel=1e-9)
    assert pair.energy_kept == pytest.approx(np.sum(values[: max(ranks)] ** 2) / np.sum(values**2), rel=1e-12)
    assert pair.effective_rank == pytest.approx(np.exp(-np.sum(q * np.log(q))), rel=1e-9)
    assert pair.hospital_step == pytest.approx(np.sqrt(walked), rel=1e-12)
    assert pair.drift == pytest.approx(np.sqrt(spread / walked), rel=1e-9)
    assert pair.cosine == pytest.approx(np.mean(cosines), rel=1e-9)
    assert pair.server_step == pytest.approx(np.linalg.norm(new - old), rel=1e-9)


def test_a_change_of_the_frozen_weight_belongs_to_the_new_product() -> None:
    """What a rank-1 pair cannot hold is put into the weight: nothing is missing, and the server's step is M."""
    setting, updates = one_pair(), by_hand()
    before, after = state(setting), step(FlapSam(), setting, updates).server
    rest = ideal_mean(setting, updates) - product(setting, after.tensors)
    merged = replace(after, base=with_product(before, {}, setting.layout.pairs[0], rest))
    pair, _ = measure(FlapSam(), before, downloads(before, updates), updates, merged)
    assert pair.ideal_distance == pytest.approx(0.0, abs=1e-12)
    assert pair.server_step == pytest.approx(math.sqrt(5))
    again = replace(merged, round=2)
    (unmoved, _) = measure(FlapSam(), merged, downloads(before, updates), updates, again)
    assert unmoved.server_step == 0.0  # the change of an earlier round is no step


def test_hospitals_that_agree_and_hospitals_that_cancel() -> None:
    same = [replace(by_hand()[0], hospital=name) for name in "ab"]
    pair, _ = layers(FedAvg(), one_pair(), same)
    assert (pair.drift, pair.cosine) == (pytest.approx(0.0, abs=1e-7), pytest.approx(1.0))
    one = by_hand()[0]
    against = [one, replace(one, hospital="b", tensors={**one.tensors, "B": -one.tensors["B"]})]
    pair, _ = layers(FlapSam(), one_pair(), against)
    assert (pair.drift, pair.cosine) == (pytest.approx(1.0), pytest.approx(-1.0))
    assert (pair.ideal_norm, pair.ideal_distance, pair.energy_kept) == (0.0, 0.0, 1.0)


def test_a_zero_mean_that_is_missed_has_no_relative_distance() -> None:
    """B A = 3 and -3 cancel, the product of the means (1)(2) does not: ||W' - M|| = 2, relative to nothing."""
    updates = [
        update("a", 1.0, B=tensor([3.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(0.0)),
        update("b", 1.0, B=tensor([-1.0], [0.0]), A=tensor([3.0, 0.0]), w=tensor(0.0)),
    ]
    pair, dense = layers(FedAvg(), one_pair(), updates)
    assert (pair.ideal_norm, pair.missed, pair.ideal_distance) == (0.0, pytest.approx(2.0), None)
    assert "ideal_distance" not in overall((pair, dense))


def test_steps_are_measured_from_what_a_hospital_was_handed() -> None:
    """Ranks 1 and 3, nobody trains: nobody walks, though the smaller model is not the server's."""
    setting = one_pair(4, 5, ranks=(1, 3))
    setting = replace(setting, trainable={**setting.trainable, "B": normal(4, 3, seed="start")})
    before = state(setting)
    handed = {hospital.name: FlapSam().broadcast(before, hospital) for hospital in setting.hospitals}
    still = [replace(update(name, 1.0), tensors=download.start) for name, download in handed.items()]
    after = FlapSam().aggregate(before, still, streams).server
    pair, _ = measure(FlapSam(), before, handed, still, after)
    assert (pair.hospital_step, pair.drift, pair.cosine) == (0.0, None, None)
    assert pair.server_step > 0  # the mean with the smaller model is not the server's


def test_a_single_hospital_and_one_that_did_not_move_have_no_cosine() -> None:
    setting = one_pair(ranks=(1, 1))
    alone, _ = layers(FedAvg(), setting, by_hand()[:1])
    assert (alone.cosine, alone.drift) == (None, 0.0)
    still = [replace(by_hand()[0], tensors=setting.trainable), replace(by_hand()[1], tensors=setting.trainable)]
    unmoved, _ = layers(FedAvg(), setting, still)
    assert (unmoved.cosine, unmoved.drift, unmoved.hospital_step) == (None, None, 0.0)


def test_a_factor_that_did_not_train_is_the_one_handed_out() -> None:
    """Only B comes back: the products are B_k with the A of the download."""
    setting = one_pair(3, 4, ranks=(2, 2))
    sent = [update(name, 1.0, B=normal(3, 2, seed=name)) for name in "ab"]
    before = state(setting)
    handed = {u.hospital: Download(start=before.tensors, train=("B",), returns={"B": (3, 2)}) for u in sent}
    after = FedAvg().aggregate(before, sent, streams).server
    (pair,) = measure(FedAvg(), before, handed, sent, after)
    assert pair.ideal_distance == pytest.approx(0.0, abs=1e-12)
    assert pair.ideal_norm > 0


def test_a_pair_of_which_a_factor_stays_at_home_is_left_out() -> None:
    setting = one_pair(3, 4, ranks=(2, 2))
    sent = [update(name, 1.0, A=normal(2, 4, seed=name)) for name in "ab"]
    before = state(setting)
    handed = {u.hospital: Download(start=before.tensors, train=("A", "B"), returns={"A": (2, 4)}) for u in sent}
    assert measure(FedAvg(), before, handed, sent, before) == ()


def test_nobody_and_no_weight_measure_nothing() -> None:
    before = state(one_pair())
    assert measure(FedAvg(), before, {}, [], before) == ()
    weightless = [replace(u, weight=0.0) for u in by_hand()]
    assert measure(FedAvg(), before, downloads(before, weightless), weightless, before) == ()
    assert overall(()) == {}


def test_the_whole_model_is_one_long_vector() -> None:
    """The toy model has three pairs and dense tensors in three parts; distances are those of the pairs alone."""
    world = make_world()
    last = run_round(FlapSam(), world, initial_state(FlapSam(), world))
    found = measure(FlapSam(), last.before, last.downloads, last.updates, last.after)
    assert [layer.name for layer in found] == [
        "encoder.qkv[0:12]", "encoder.qkv[24:36]", "decoder.q", "encoder (dense)", "decoder (dense)", "head (dense)",
    ]  # fmt: skip
    numbers = overall(found)
    pairs = found[:3]
    missed = math.hypot(*(layer.ideal_distance * layer.ideal_norm for layer in pairs))
    assert numbers["ideal_distance"] == pytest.approx(missed / math.hypot(*(layer.ideal_norm for layer in pairs)))
    assert numbers["server_step"] == pytest.approx(math.hypot(*(layer.server_step for layer in found)))
    assert numbers["energy_kept"] == pytest.approx(sum(layer.energy_kept or 0.0 for layer in pairs) / 3)
    old, new = (world.model(s.tensors, s.base) for s in (last.before, last.after))
    moved = math.sqrt(sum(float((new[name] - old[name]).square().sum()) for name in old))
    assert numbers["server_step"] == pytest.approx(moved, rel=1e-9)


def test_it_is_the_view_of_the_updates_that_were_sent() -> None:
    """Weights matter: with all the weight on one hospital the ideal mean is its product."""
    updates = [replace(u, weight=w) for u, w in zip(by_hand(), (1.0, 0.0), strict=True)]
    pair, _ = layers(FlapSam(), one_pair(), updates)
    assert pair.ideal_norm == pytest.approx(2.0)
    assert pair.ideal_distance == pytest.approx(0.0, abs=1e-12)
