"""A schedule of tensors by hand: who trains what, what is averaged, what travels, and which aggregators can follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from one_number import number_setting
from pairs import one_pair, tensor, update
from quadratics import dense_setting

from wardround.aggregators import (
    AGGREGATORS,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBn,
    FedPer,
    FedProx,
    FedRep,
    FlapSam,
    Local,
)
from wardround.aggregators.arithmetic import mean_update
from wardround.aggregators.contract import ClientUpdate, Download, Layout, ServerState, Setting, Tensors
from wardround.aggregators.instruments import measure
from wardround.aggregators.scheduled import BY_DENSE_TENSOR, BY_TENSOR, Scheduled, cyclic, name_of, uniform
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import Round, World, initial_state, make_world, run_round, streams

U, V = 0, 1
DENSE = (("encoder.norm.weight", "encoder.norm.bias"), ("decoder.token",))
PAIRS = (("encoder.q.A", "encoder.q.B"), ("encoder.v.A", "encoder.v.B"), ("decoder.q.A", "decoder.q.B"))


def scheduled(aggregator: Any = None, draw: str = "shared", **more: Any) -> Scheduled:
    return Scheduled(aggregator=aggregator or FedAvg(), rng=partial(streams, "schedule"), draw=draw, **more)  # type: ignore[arg-type]  # a text


def by_hand(draws: Any, aggregator: Any = None, draw: str = "per_client") -> Scheduled:
    """A schedule that is written down: the group per (hospital, round), or per round where the draw is shared."""
    return Scheduled(
        aggregator=aggregator or FedAvg(),
        rng=lambda *keys: keys if draw == "per_client" else keys[0],
        draw=draw,
        schedule=lambda groups, number, rng: draws[rng(number)],
    )


def two_groups(hospitals: str = "abc") -> Setting:
    """A head of 1 number, a group u of 2 and a group v of 3, in float64: 8, 16 and 24 bytes."""
    start = {"h": tensor(0.0), "u": tensor(0.0, 0.0), "v": tensor(0.0, 0.0, 0.0)}
    setting = dense_setting(start, hospitals, part={"h": "head"})
    return replace(setting, layout=replace(setting.layout, groups=(("u",), ("v",))))


def answers(weights: dict[str, float], **values: dict[str, float]) -> list[ClientUpdate]:
    """Updates whose tensors hold one value each."""
    sizes = {"h": 1, "u": 2, "v": 3}
    return [
        update(name, weight, **{key: tensor(*[value] * sizes[key]) for key, value in values[name].items()})
        for name, weight in weights.items()
    ]


def no_streams(*keys: object) -> torch.Generator:
    raise AssertionError(f"nothing is drawn here, not {keys}")


def size(tensors: Tensors) -> int:
    return sum(value.nbytes for value in tensors.values())


# ---- what is trained and averaged ------------------------------------------------------------------------------------


def test_a_mean_is_over_the_senders_and_their_weights() -> None:
    """Weights 1, 3, 4; a and b draw u, c draws v.

    u = (1*2 + 3*6) / 4 = 5, v = 10, which c alone sent, h = (1*1 + 3*5 + 4*3) / 8 = 3.5.
    """
    schedule = by_hand({("a", 1): U, ("b", 1): U, ("c", 1): V})
    server = schedule.init(two_groups(), no_streams)
    updates = answers(
        {"a": 1.0, "b": 3.0, "c": 4.0}, a={"u": 2.0, "h": 1.0}, b={"u": 6.0, "h": 5.0}, c={"v": 10.0, "h": 3.0}
    )
    after = schedule.aggregate(server, updates, no_streams).server
    assert {name: value.unique().tolist() for name, value in after.tensors.items()} == {
        "h": [3.5],
        "u": [5.0],
        "v": [10.0],
    }
    one = mean_update(updates)
    assert one.senders == ("a", "b", "c")
    assert {name: value[0].item() for name, value in one.tensors.items()} == {"h": 3.5, "u": 5.0, "v": 10.0}


def test_a_group_whose_only_sender_has_no_weight_stays() -> None:
    """Group v of c, of weight 0, is no mean of anything; c answered all the same, and has what it was sent."""
    schedule = by_hand({("a", 1): U, ("c", 1): V})
    server = schedule.init(two_groups(), no_streams)
    updates = answers({"a": 1.0, "c": 0.0}, a={"u": 2.0, "h": 1.0}, c={"v": 10.0, "h": 3.0})
    after = schedule.aggregate(replace(server, round=4), updates, no_streams).server
    assert after.tensors["v"].tolist() == [0.0, 0.0, 0.0]
    assert after.tensors["h"].item() == 1.0
    assert after.memory["schedule/has"].tolist() == [4, 0, 4]
    assert after.memory["schedule/changed"].tolist() == [5, 0]


def test_only_the_drawn_group_and_the_head_train_and_come_back() -> None:
    schedule = by_hand({("a", 1): U, ("b", 1): V})
    server = schedule.init(two_groups(), no_streams)
    a, b = (schedule.broadcast(server, hospital) for hospital in server.setting.hospitals[:2])
    assert (a.train, dict(a.returns)) == (("h", "u"), {"h": (1,), "u": (2,)})
    assert (b.train, dict(b.returns)) == (("h", "v"), {"h": (1,), "v": (3,)})
    assert a.start.keys() == b.start.keys() == {"h", "u", "v"}, "all of the model is there to train with"


def test_what_rests_stays_bit_for_bit_and_the_rest_learns() -> None:
    world = make_world(groups=DENSE)
    last = run_round(scheduled(), world, initial_state(scheduled(), world))
    drawn = scheduled().select(world.setting.layout, 1, "hospital-01")
    for name, value in last.after.tensors.items():
        resting = name in {*DENSE[0], *DENSE[1]} - {*drawn}
        assert torch.equal(value, last.before.tensors[name]) == resting, name


def test_one_group_of_everything_is_the_aggregator_itself() -> None:
    world = make_world()
    whole = make_world(groups=(world.setting.layout.names,))
    for inner in (FedAvg(), FedAdam(), FedProx()):
        plain, one = initial_state(inner, world), initial_state(scheduled(inner), whole)
        for _ in range(2):
            plain, one = run_round(inner, world, plain).after, run_round(scheduled(inner), whole, one).after
        assert all(torch.equal(one.tensors[name], value) for name, value in plain.tensors.items())


def test_fedprox_holds_what_trains() -> None:
    """It is mu / 2 ((3 - 1)^2 + (0 - 2)^2) = 0.5 / 2 * 8 = 2 over h and one number of v; u is far from the anchor."""
    setting = two_groups()
    schedule = by_hand({1: V}, FedProx(mu=0.5), draw="shared")
    download = schedule.broadcast(schedule.init(setting, no_streams), setting.hospitals[0])
    [phase] = schedule.rule.phases(download, {})
    assert phase.train == ("h", "v")
    anchor = {"h": tensor(1.0), "u": tensor(100.0, 0.0), "v": tensor(2.0, 0.0, 0.0)}
    trained = {"h": tensor(3.0), "v": tensor(0.0, 0.0, 0.0)}
    assert phase.penalty is not None
    assert phase.penalty({name: trained[name] for name in phase.train}, anchor).item() == 2.0


@pytest.mark.parametrize("inner", [FedAvgM(), FedAdam()])
def test_momentum_rests_with_its_tensors(inner: Any) -> None:
    """Group u is drawn in rounds 1 and 3; in round 2 its value and its moments are what they were."""
    schedule = by_hand({1: U, 2: V, 3: U}, inner, draw="shared")
    server, states = schedule.init(two_groups("a"), no_streams), []
    for name in ("u", "v", "u"):
        sent = answers({"a": 1.0}, a={name: 1.0, "h": 1.0})
        server = schedule.aggregate(server, sent, no_streams).server
        states.append(server)
    first, second, third = states
    own = [name for name in first.memory if name.endswith("/u")]
    assert own
    assert all(torch.equal(first.memory[name], second.memory[name]) for name in own)
    assert torch.equal(first.tensors["u"], second.tensors["u"])
    assert not any(torch.equal(second.memory[name], third.memory[name]) for name in own)
    assert not torch.equal(second.tensors["u"], third.tensors["u"])


def test_fedavgm_by_hand() -> None:
    """First v = theta - mean = -1, theta = 1; it rests; then v = 0.5 * -1 + (1 - 3) = -2.5 and theta = 3.5."""
    schedule = by_hand({1: U, 2: V, 3: U}, FedAvgM(beta=0.5), draw="shared")
    server = schedule.init(two_groups("a"), no_streams)
    for sent in ({"u": 1.0, "h": 0.0}, {"v": 1.0, "h": 0.0}, {"u": 3.0, "h": 0.0}):
        server = schedule.aggregate(server, answers({"a": 1.0}, a=sent), no_streams).server
    assert server.tensors["u"].tolist() == [3.5, 3.5]


# ---- the draws -------------------------------------------------------------------------------------------------------


def test_shared_draws_are_the_same_for_all_and_own_ones_are_not() -> None:
    layout = make_world(groups=PAIRS).setting.layout
    names = [f"hospital-{number}" for number in range(12)]
    shared = [[scheduled().drawn(layout, t, name) for name in names] for t in range(1, 20)]
    assert all(len(set(row)) == 1 for row in shared)
    assert len({row[0] for row in shared}) == 3
    own = [[scheduled(draw="per_client").drawn(layout, t, name) for name in names] for t in range(1, 20)]
    assert all(len(set(row)) > 1 for row in own)
    assert own[0] != own[1]
    assert scheduled().select(layout, 1, "x") == layout.groups[shared[0][0]]


def test_uniform_draws_are_uniform() -> None:
    """6000 draws of 6 groups: every count within 4 standard deviations, sqrt(6000 * 1/6 * 5/6) = 28.9, of 1000."""
    counts = torch.bincount(torch.tensor([uniform(6, t, partial(streams, "u")) for t in range(6000)]))
    assert counts.sub(1000).abs().max() < 4 * 28.9


def test_cyclic_takes_one_after_the_other() -> None:
    drawn = [cyclic(4, t, partial(streams, "c")) for t in range(1, 10)]
    assert [(after - before) % 4 for before, after in pairwise(drawn)] == [1] * 8
    layout = make_world(groups=PAIRS).setting.layout
    firsts = {scheduled(draw="per_client", schedule=cyclic).drawn(layout, 1, f"h{number}") for number in range(20)}
    assert firsts == {0, 1, 2}


# ---- what travels ----------------------------------------------------------------------------------------------------

HEAD, BYTES_U, BYTES_V = 8, 16, 24


def ledger(schedule: Scheduled, rounds: Sequence[tuple[str, str]]) -> list[dict[str, tuple[int, int]]]:
    """Bytes (down, up) of every hospital of the cohort, round by round.

    Args:
        schedule: The aggregator.
        rounds: The hospitals of the cohort, and those of them that answer.
    """
    server, rows = schedule.init(two_groups(), no_streams), []
    hospitals = {info.name: info for info in server.setting.hospitals}
    for number, (cohort, answering) in enumerate(rounds, start=1):
        downloads = {name: schedule.broadcast(server, hospitals[name]) for name in cohort}
        updates = [_trained(name, downloads[name], number) for name in answering]
        up = {one.hospital: size(one.tensors) for one in updates}
        rows.append({name: (size(download.traffic), up.get(name, 0)) for name, download in downloads.items()})
        server = schedule.aggregate(server, updates, no_streams).server
    return rows


def _trained(name: str, download: Download, number: int) -> ClientUpdate:
    return update(name, **{key: download.start[key] + number for key in download.returns})


def test_bytes_of_shared_draws_by_hand() -> None:
    """u, v, v, u; hospital b is away in rounds 2 and 3, c drops out of round 2 after its download.

    1. All get the head alone: the initial values of u and v are there. All send head and u.
    2. a and c get u of round 1. c never answers.
    3. a gets v of round 2; c gets u once more, and v.
    4. a and c get v of round 3; b gets u of round 1 and v of round 3 (not that of round 2).
    """
    schedule = by_hand({1: U, 2: V, 3: V, 4: U}, draw="shared")
    rows = ledger(schedule, [("abc", "abc"), ("ac", "a"), ("ac", "ac"), ("abc", "abc")])
    send_u, send_v, both = HEAD + BYTES_U, HEAD + BYTES_V, HEAD + BYTES_U + BYTES_V
    assert rows == [
        dict.fromkeys("abc", (HEAD, send_u)),
        {"a": (send_u, send_v), "c": (send_u, 0)},
        {"a": (send_v, send_v), "c": (both, send_v)},
        {"a": (send_v, send_u), "b": (both, send_u), "c": (send_v, send_u)},
    ]


def test_bytes_of_own_draws_by_hand() -> None:
    """Hospital a draws u, u, u, u; b draws v, v, v, v; c, which is there in rounds 1 and 4 alone, draws u and v.

    Round 2 is without b: v changed in round 1, and u in rounds 1 and 2. In round 3 a gets u, and b gets u and v, which
    it trained in round 1 but has not seen since. In round 4 a and b get both of round 3, and c both.
    """
    draws = {(name, t): group for name, group in (("a", U), ("b", V)) for t in range(1, 5)}
    schedule = by_hand(draws | {("c", 1): U, ("c", 4): V})
    rows = ledger(schedule, [("abc", "abc"), ("a", "a"), ("ab", "ab"), ("abc", "abc")])
    send_u, send_v, both = HEAD + BYTES_U, HEAD + BYTES_V, HEAD + BYTES_U + BYTES_V
    assert rows == [
        {"a": (HEAD, send_u), "b": (HEAD, send_v), "c": (HEAD, send_u)},
        {"a": (both, send_u)},
        {"a": (send_u, send_u), "b": (both, send_v)},
        {"a": (both, send_u), "b": (both, send_v), "c": (both, send_v)},
    ]


def test_what_is_sent_is_the_present_value() -> None:
    schedule = by_hand({1: U, 2: V}, draw="shared")
    server = schedule.init(two_groups("a"), no_streams)
    server = schedule.aggregate(server, answers({"a": 1.0}, a={"u": 7.0, "h": 1.0}), no_streams).server
    sent = schedule.broadcast(server, server.setting.hospitals[0]).traffic
    assert {name: value.tolist() for name, value in sent.items()} == {"h": [1.0], "u": [7.0, 7.0]}


def test_a_mean_says_who_has_what() -> None:
    """Behind a secure sum or noise there is one update; its senders are those that answered."""
    schedule = by_hand({1: U}, draw="shared")
    server = replace(schedule.init(two_groups(), no_streams), round=2)
    mean = replace(answers({"mean": 1.0}, mean={"u": 1.0, "h": 1.0})[0], senders=("a", "c"))
    after = schedule.aggregate(server, [mean], no_streams).server
    assert after.memory["schedule/has"].tolist() == [2, 0, 2]


def test_a_hospital_nobody_knows_has_the_initial_values() -> None:
    schedule = by_hand({("new", 2): U, ("a", 1): U})
    server = schedule.init(two_groups("a"), no_streams)
    after = schedule.aggregate(server, answers({"a": 1.0}, a={"u": 7.0, "h": 1.0}), no_streams).server
    newcomer = replace(after.setting.hospitals[0], name="new")
    assert size(schedule.broadcast(after, newcomer).traffic) == HEAD + BYTES_U


def test_local_training_sends_nothing() -> None:
    schedule = by_hand({1: U, 2: V}, Local(), draw="shared")
    server = schedule.init(two_groups("a"), no_streams)
    download = schedule.broadcast(server, server.setting.hospitals[0])
    assert (download.traffic, download.returns, download.train) == ({}, {}, ("h", "u"))


def test_a_personal_head_stays_and_trains() -> None:
    schedule = by_hand({1: V}, FedPer(), draw="shared")
    server = schedule.init(two_groups("a"), no_streams)
    download = schedule.broadcast(server, server.setting.hospitals[0])
    assert (download.train, dict(download.returns), dict(download.traffic)) == (("h", "v"), {"v": (3,)}, {})


# ---- who can follow --------------------------------------------------------------------------------------------------

REFUSED = {
    *("fednova", "qfedavg", "scaffold", "feddyn"),
    *("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "centred_clipping"),
}


def test_every_aggregator_is_known_to_follow_or_not() -> None:
    assert {*BY_TENSOR, *BY_DENSE_TENSOR} | REFUSED == {*AGGREGATORS}
    assert not {*BY_TENSOR, *BY_DENSE_TENSOR} & REFUSED


def run(aggregator: Any, world: World, rounds: int = 4) -> list[Round]:
    last = run_round(aggregator, world, initial_state(aggregator, world))
    done = [last]
    for _ in range(rounds - 1):
        done.append(run_round(aggregator, world, done[-1].after, done[-1].memories))
    return done


def world_for(name: str) -> World:
    """A group of norms and one of tokens; without the norms, where they are personal."""
    return make_world(groups=DENSE[1:] if name == "fedbn" else DENSE)


STEPS = ("fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedrpca")
"""They end somewhere else than at the mean."""

FOLLOWING = [
    *((name, draw) for name in BY_TENSOR for draw in ("shared", "per_client")),
    *((name, "per_client") for name in BY_DENSE_TENSOR),
]


@pytest.mark.parametrize(("name", "draw"), FOLLOWING)
def test_dense_groups_rest_and_are_averaged_over_their_senders(name: str, draw: str) -> None:
    world = world_for(name)
    for one in run(scheduled(AGGREGATORS[name](), draw), world, 2):
        for group in world.setting.layout.groups:
            senders = [update for update in one.updates if group[0] in update.tensors]
            for key in group:
                before, after = one.before.tensors[key], one.after.tensors[key]
                assert torch.equal(before, after) == (not senders), "moves where somebody trained it, and only there"
                if senders and name not in STEPS:
                    torch.testing.assert_close(after, mean_of(key, senders), rtol=1e-12, atol=1e-12)


def mean_of(name: str, updates: Sequence[ClientUpdate]) -> torch.Tensor:
    """Over these, by their examples, which are their weights."""
    weights = torch.tensor([float(update.num_examples) for update in updates], dtype=torch.float64)
    return torch.tensordot(weights / weights.sum(), torch.stack([update.tensors[name] for update in updates]), 1)


@pytest.mark.parametrize("draw", ["shared", "per_client"])
@pytest.mark.parametrize("name", [name for name in BY_TENSOR if name != "local"])
def test_pairs_in_groups_rest_where_tensors_stand_alone(name: str, draw: str) -> None:
    world = make_world(groups=PAIRS)
    for one in run(scheduled(AGGREGATORS[name](), draw), world, 3):
        sent = {tensor_name for update in one.updates for tensor_name in update.tensors}
        for pair in PAIRS:
            for tensor_name in {*pair} - sent:
                assert torch.equal(one.before.tensors[tensor_name], one.after.tensors[tensor_name])
        assert sent & {factor for pair in PAIRS for factor in pair}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_others_are_refused(name: str) -> None:
    message = rf"^{name} cannot work with a schedule: expected all tensors from every hospital.* Use one of fedavg, "
    with pytest.raises(ValueError, match=message):
        initial_state(scheduled(AGGREGATORS[name]()), make_world([2] * 7, groups=DENSE))


@pytest.mark.parametrize("inner", [FlapSam(), FedProx(on="product")])
def test_pairs_in_groups_are_refused_where_products_are_averaged(inner: Any) -> None:
    with pytest.raises(ValueError, match="expected all low-rank pairs from every hospital"):
        initial_state(scheduled(inner), make_world(groups=PAIRS))
    initial_state(scheduled(inner), make_world(groups=DENSE))


def test_what_fits_instead_is_named() -> None:
    """Those that need pairs are named where there are pairs, and none of them in a group."""
    for pairs, groups, named in ((True, DENSE, True), (True, PAIRS, False), (False, DENSE, False)):
        world = make_world([2] * 7, groups=groups)
        if not pairs:
            names = {name for pair in world.setting.layout.pairs for name in (pair.A, pair.B)}
            layout = replace(world.setting.layout, pairs=())
            trainable = {name: value for name, value in world.setting.trainable.items() if name not in names}
            world = replace(world, setting=replace(world.setting, layout=layout, trainable=trainable))
        with pytest.raises(ValueError, match="krum cannot work with a schedule") as caught:
            initial_state(scheduled(AGGREGATORS["krum"]()), world)
        assert ("flap_sam" in str(caught.value)) == named


def test_moments_on_products_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fedadam cannot work with a schedule.*on: product"):
        initial_state(scheduled(FedAdam(on="product")), make_world(groups=DENSE))


def test_personal_tensors_in_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"FedBn keeps \['encoder.norm.weight'.*at the hospitals"):
        initial_state(scheduled(FedBn()), make_world(groups=DENSE))
    with pytest.raises(ValueError, match=r"FedRep keeps \['head.bias'\] at the hospitals"):
        initial_state(scheduled(FedRep()), make_world(groups=(("head.bias", "decoder.token"),)))


@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    """An aggregator outside the package."""


@dataclass(frozen=True, kw_only=True)
class MineByTensor(FedAvg):
    """One that says that it can follow."""

    absent_keys: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class MineWhole(FedAvg):
    """One that says that it cannot."""

    absent_keys: ClassVar[bool] = False


def test_an_aggregator_of_ones_own_says_so_itself() -> None:
    world = make_world(groups=DENSE)
    initial_state(scheduled(MineByTensor()), world)
    with pytest.raises(ValueError, match="Mine cannot work"):
        initial_state(scheduled(Mine()), world)
    with pytest.raises(ValueError, match="MineWhole cannot work"):
        initial_state(scheduled(MineWhole()), world)


def test_messages_name_the_aggregator_inside() -> None:
    assert (name_of(scheduled(FedPer())), name_of(FedPer())) == ("FedPer", "FedPer")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((), "expected groups of tensors to draw from, got none"),
        ((("u",), ()), "expected names in every group"),
        ((("u",), ("u", "v")), r"expected every name once.*got \['u'\]"),
        ((("x",), ("v",)), r"names of trainable tensors, got \['x'\]"),
    ],
)
def test_groups_are_checked(groups: Any, message: str) -> None:
    setting = two_groups()
    with pytest.raises(ValueError, match=message):
        scheduled().init(replace(setting, layout=replace(setting.layout, groups=groups)), no_streams)


def test_a_torn_pair_is_refused() -> None:
    setting = one_pair()
    with pytest.raises(ValueError, match=r"both factors of a low-rank pair in one group, got \['B'\] alone"):
        scheduled().init(replace(setting, layout=replace(setting.layout, groups=(("A",),))), no_streams)


def test_a_layout_has_no_groups_unless_it_is_given_some() -> None:
    assert number_setting().layout.groups == Layout(pairs=(), dense=(), part={}, kind={}).groups == ()


# ---- the contract, and what is measured ------------------------------------------------------------------------------

MIXED = (*PAIRS[:1], *DENSE)
ROWS = [
    (FedAvg(), "shared", Claims(identity="exact", gauge="not", groups=MIXED)),
    (FedAvg(), "per_client", Claims(identity="exact", gauge="not", groups=MIXED)),
    (FedProx(), "per_client", Claims(identity="exact", gauge="not", groups=MIXED)),
    (FlapSam(), "shared", Claims(gauge="invariant", ranks="mixed", groups=DENSE)),
    (FlapSam(), "per_client", Claims(gauge="invariant", ranks="mixed", groups=DENSE)),
    (FedPer(), "per_client", Claims(identity="exact", gauge="not", groups=DENSE)),
    (Local(), "shared", Claims(identity="exact", weights="uniform", ranks="mixed", groups=MIXED)),
]


@pytest.mark.parametrize(("inner", "draw", "claims"), ROWS)
def test_it_keeps_the_contract(inner: Any, draw: str, claims: Claims) -> None:
    check_aggregator(scheduled(inner, draw), claims)


def test_only_shared_draws_have_one_sum() -> None:
    assert scheduled().consumes == "sum"
    assert scheduled(draw="per_client").consumes == scheduled(FlapSam()).consumes == "updates"


def test_instruments_see_every_group_with_its_senders() -> None:
    """Hospitals a and b draw u, c draws v; u goes to 5, the mean of 2 and 6 by weights 1 and 3: by 5 sqrt(2)."""
    schedule = by_hand({("a", 1): U, ("b", 1): U, ("c", 1): V})
    server = schedule.init(two_groups(), no_streams)
    updates = answers(
        {"a": 1.0, "b": 3.0, "c": 4.0}, a={"u": 2.0, "h": 1.0}, b={"u": 6.0, "h": 5.0}, c={"v": 10.0, "h": 3.0}
    )
    downloads = {info.name: schedule.broadcast(server, info) for info in server.setting.hospitals}
    after = schedule.aggregate(server, updates, no_streams).server
    layers = {layer.name: layer for layer in measure(schedule, server, downloads, updates, after)}
    assert list(layers) == ["head (dense)", "encoder (dense, group 1)", "encoder (dense, group 2)"]
    first, second = layers["encoder (dense, group 1)"], layers["encoder (dense, group 2)"]
    assert first.server_step == pytest.approx(5 * 2**0.5)
    assert first.cosine == pytest.approx(1.0)
    assert (first.missed, second.missed, second.cosine) == (pytest.approx(0.0, abs=1e-12), 0.0, None)
    assert second.server_step == pytest.approx(10 * 3**0.5)


def test_a_state_through_a_file_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Rounds 3 and 4 after a checkpoint are those of the run that never stopped: tensors, memory and broadcasts."""
    from wardround.clients.hospital import Memory
    from wardround.simulator.checkpoint import Checkpoint, Checkpoints, state_hash

    world, schedule = make_world(groups=MIXED), scheduled(draw="per_client")
    straight = run(schedule, world)
    saved = Checkpoint(server=straight[1].after, memories={"hospital-01": Memory()})
    Checkpoints(tmp_path).save(saved, [])
    again: ServerState = Checkpoints(tmp_path).load(2, world.setting).server
    assert again.memory["schedule/has"].dtype == torch.int64
    for expected in straight[2:]:
        one = run_round(schedule, world, again)
        for name, download in one.downloads.items():
            assert download.traffic.keys() == expected.downloads[name].traffic.keys()
        again = one.after
        both = [Checkpoint(server=state, memories={}) for state in (again, expected.after)]
        assert state_hash(both[0]) == state_hash(both[1])
