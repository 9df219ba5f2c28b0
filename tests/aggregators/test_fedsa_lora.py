"""FedSA-LoRA: A is shared, B and the head belong to the hospital."""

from __future__ import annotations

import pytest
import torch
from pairs import one_pair, tensor, update

from wardround.aggregators import FedAvg, FedSaLora
from wardround.aggregators.contract import HospitalInfo, Layout, Setting
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def test_two_by_two_by_hand() -> None:
    """Weights 3 : 1: A = (3 (1, 0) + (5, 4)) / 4 = (2, 1). Hospital a, with B = (1, 2), uses [[2, 1], [4, 2]]."""
    setting = one_pair()
    server = FedSaLora().init(setting, streams)
    updates = [update("a", 3.0, A=tensor([1.0, 0.0])), update("b", 1.0, A=tensor([5.0, 4.0]))]
    after = FedSaLora().aggregate(server, updates, streams).server
    own = {"B": tensor([1.0], [2.0]), "w": tensor(7.0)}
    deployed = FedSaLora().deploy(after, setting.hospitals[0], own)
    assert (deployed["B"] @ deployed["A"]).tolist() == [[2.0, 1.0], [4.0, 2.0]]
    assert deployed["w"] == 7.0


def test_a_site_never_seen_gets_the_base_model_and_the_initial_head() -> None:
    """B is still zero at the server: nothing is added to the frozen weights, though hospitals have learnt."""
    world = make_world()
    server, memories = initial_state(FedSaLora(), world), {}
    for _ in range(2):
        last = run_round(FedSaLora(), world, server, memories)
        server, memories = last.after, last.memories
    new, known = FedSaLora().deploy(server, None, {}), world.setting.hospitals[0]
    layout, initial = world.setting.layout, world.setting.trainable
    assert not any(new[pair.B].any() for pair in layout.pairs)
    assert all(torch.equal(new[name], initial[name]) == (layout.part[name] == "head") for name in layout.dense)
    assert all(FedSaLora().deploy(server, known, memories[known.name])[pair.B].any() for pair in layout.pairs)


@pytest.mark.parametrize("head", ["local", "shared"])
def test_a_federation_of_one_is_fedavg_of_one(head: str) -> None:
    """What stays at the only hospital and what it gets back are the same."""
    world, ends = make_world((2,)), []
    for aggregator in (FedSaLora(head=head), FedAvg()):
        server, memories = initial_state(aggregator, world), {}
        for _ in range(3):
            last = run_round(aggregator, world, server, memories)
            server, memories = last.after, last.memories
        ends.append(aggregator.deploy(server, world.setting.hospitals[0], memories["hospital-01"]))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize(("head", "stays"), [("local", {"head.weight", "head.bias"}), ("shared", set())])
def test_b_and_a_local_head_never_travel(head: str, stays: set[str]) -> None:
    world = make_world()
    layout = world.setting.layout
    stays = stays | {pair.B for pair in layout.pairs}
    last = run_round(FedSaLora(head=head), world, initial_state(FedSaLora(head=head), world))
    for download, sent in zip(last.downloads.values(), last.updates, strict=True):
        assert set(download.traffic) == set(sent.tensors) == set(layout.names) - stays
        assert set(download.train) == set(layout.names)
    assert all(set(memory) == stays for memory in last.memories.values())


def test_a_hospital_that_was_away_goes_on_with_its_own_b() -> None:
    world = make_world()
    names = [hospital.name for hospital in world.setting.hospitals]
    first = run_round(FedSaLora(), world, initial_state(FedSaLora(), world), cohort=names)
    second = run_round(FedSaLora(), world, first.after, first.memories, cohort=names[1:])
    pair = world.setting.layout.pairs[0]
    deployed = FedSaLora().deploy(second.after, world.hospital(names[0]), second.memories[names[0]])
    assert torch.equal(deployed[pair.B], first.memories[names[0]][pair.B])
    assert torch.equal(deployed[pair.A], second.after.tensors[pair.A])


def test_a_shared_head_keeps_the_contract() -> None:
    check_aggregator(FedSaLora(head="shared"), Claims(identity="exact"))


def test_a_method_without_pairs_is_refused() -> None:
    setting = Setting(
        trainable={"w": tensor(0.0)},
        layout=Layout(pairs=(), dense=("w",), part={"w": "head"}, kind={"w": "weight"}),
        hospitals=(HospitalInfo(name="a", num_examples=1),),
    )
    with pytest.raises(ValueError, match="expected low-rank pairs, got a layout without any"):
        FedSaLora().init(setting, streams)


def test_an_unknown_place_of_the_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^head: expected 'local' or 'shared', got 'mine'"):
        FedSaLora(head="mine")
