"""What FFA-LoRA and RoLoRA share: who already has which factor, and what is refused."""

from __future__ import annotations

import pytest
from pairs import one_pair, random_updates, tensor

from wardround.aggregators import FfaLora, RoLora
from wardround.aggregators.arithmetic import mean_update
from wardround.aggregators.contract import HospitalInfo, Layout, ServerState, Setting
from wardround.aggregators.one_factor import average_one, first_state, train_one
from wardround.aggregators.toy import streams


def sent(server: ServerState, name: str, trained: str = "B") -> str:
    """The names that would travel to a hospital, as one word."""
    hospital = HospitalInfo(name=name, num_examples=1, rank=1)
    return "".join(sorted(train_one(server, hospital, trained).traffic))


def after(server: ServerState, answered: str, trained: str = "B") -> ServerState:
    """A round in which these hospitals answered."""
    names = ("B", "w") if trained == "B" else ("A", "w")
    updates = [one for one in random_updates(server.setting, [1.0, 1.0, 1.0]) if one.hospital in answered]
    kept = [type(one)(**{**vars(one), "tensors": {name: one.tensors[name] for name in names}}) for one in updates]
    return average_one(server, kept, trained).server


@pytest.fixture
def start() -> ServerState:
    setting = one_pair(3, 4, ranks=(1, 1, 1))
    return first_state(setting, setting.trainable)


def test_who_answered_has_the_frozen_factor_and_nobody_the_new_one(start: ServerState) -> None:
    """Hospital c heard of round 1 and never answered: the server cannot rely on what it has."""
    assert {sent(start, name) for name in "abc"} == {"ABw"}
    second = after(start, "ab")
    assert [sent(second, name) for name in "abc"] == ["Bw", "Bw", "ABw"]
    third = after(second, "c")
    assert [sent(third, name) for name in "abc"] == ["Bw", "Bw", "Bw"]


def test_turns_make_the_other_factor_new(start: ServerState) -> None:
    """After B, then A: who was there in the second round has B, whoever was there before; nobody has A."""
    third = after(after(start, "ab", "B"), "bc", "A")
    assert [sent(third, name) for name in "abc"] == ["ABw", "Aw", "Aw"]


def test_a_hospital_unknown_to_the_server_has_nothing(start: ServerState) -> None:
    assert sent(after(start, "abc"), "z") == "ABw"


@pytest.mark.parametrize("aggregator", [FfaLora(), RoLora()], ids=repr)
def test_from_a_mean_the_server_cannot_tell_who_was_there(aggregator: FfaLora | RoLora) -> None:
    """Secure aggregation: values are the same, and everything is sent to everybody again."""
    setting = one_pair(3, 4, ranks=(1, 1, 1))
    server = aggregator.init(setting, streams)
    updates = [
        type(one)(**{**vars(one), "tensors": {name: one.tensors[name] for name in ("B", "w")}})
        for one in random_updates(setting, [1.0, 2.0, 3.0])
    ]
    summed = aggregator.aggregate(server, [mean_update(updates)], streams).server
    known = aggregator.aggregate(server, updates, streams).server
    assert (summed.tensors["B"] == known.tensors["B"]).all()
    traffic = [len(aggregator.broadcast(state, setting.hospitals[0]).traffic) for state in (summed, known)]
    assert traffic == [3, 2]


@pytest.mark.parametrize("aggregator", [FfaLora(), RoLora()], ids=repr)
def test_a_method_without_pairs_is_refused(aggregator: FfaLora | RoLora) -> None:
    setting = Setting(
        trainable={"w": tensor(0.0)},
        layout=Layout(pairs=(), dense=("w",), part={"w": "head"}, kind={"w": "weight"}),
        hospitals=(HospitalInfo(name="a", num_examples=1),),
    )
    with pytest.raises(ValueError, match=r"expected low-rank pairs, got a layout without any: set a method with LoRA"):
        aggregator.init(setting, streams)
