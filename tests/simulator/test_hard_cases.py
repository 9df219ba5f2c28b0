"""Algorithms that each need something hard of the contract, on the real engine: it does what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from algorithms import DrawnPart
from rounds import advance

from wardround.aggregators import (
    Ditto,
    FedAvg,
    FedBn,
    FedDyn,
    FedPer,
    FedProx,
    FedRep,
    FfaLora,
    FlexLora,
    Flora,
    Local,
    Moon,
    QFedAvg,
    Scaffold,
)
from wardround.aggregators.arithmetic import effective
from wardround.aggregators.checks import check_server_state
from wardround.aggregators.contract import Aggregator
from wardround.clients.methods import Decoder
from wardround.clients.training import mean_loss
from wardround.simulator.checkpoint import Checkpoint, Checkpoints, state_hash
from wardround.simulator.federation import Federated

Make = Callable[..., tuple[Federated, Checkpoint]]


def deployed(federated: Federated, checkpoint: Checkpoint, name: str | None) -> dict[str, torch.Tensor]:
    """The tensors evaluated at a hospital, or at a site never seen."""
    info = None if name is None else federated.hospitals[name].info
    memory = {} if name is None else checkpoint.memories[name].tensors
    return dict(federated.aggregator.deploy(checkpoint.server, info, memory))


def same(left: dict, right: dict, tolerance: float = 0.0) -> bool:
    return all(torch.allclose(value, right[name], rtol=tolerance, atol=tolerance) for name, value in left.items())


HARD: tuple[Aggregator, ...] = (
    FfaLora(),
    DrawnPart(),
    FlexLora(),
    Flora(),
    FedPer(),
    FedRep(head_epochs=2.0),
    FedBn(),
    Ditto(),
    FedProx(),
    Scaffold(),
    FedDyn(),
    Moon(),
    QFedAvg(),
)


@pytest.mark.parametrize("algorithm", HARD, ids=lambda algorithm: type(algorithm).__name__)
def test_every_case_trains_two_rounds_resumes_and_deploys_everywhere(
    make_federated: Make, tmp_path, algorithm: Aggregator
) -> None:
    ranks = {"hospital-0": 1} if isinstance(algorithm, FlexLora | Flora) else None
    federated, before = make_federated(algorithm, ranks=ranks)
    first = advance(federated, before).checkpoint
    whole = advance(federated, first).checkpoint
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(first, changed=list(first.memories))
    resumed = advance(federated, checkpoints.load(1, before.server.setting)).checkpoint
    assert state_hash(resumed) == state_hash(whole)
    check_server_state(whole.server)
    federated.workplace.replica.set_base(whole.server.base)
    for hospital in (*federated.hospitals, None):
        federated.workplace.replica.load(deployed(federated, whole, hospital))


def test_ffa_moves_b_only_and_sends_half(make_federated: Make) -> None:
    federated, before = make_federated(FfaLora())
    outcome = advance(federated, before)
    layout, after = before.server.setting.layout, outcome.checkpoint.server.tensors
    for pair in layout.pairs:
        assert torch.equal(after[pair.A], before.server.tensors[pair.A])
        assert not torch.equal(after[pair.B], before.server.tensors[pair.B])
    full = advance(*make_federated(FedAvg())).rows["ledger"][0]["bytes_up"]
    factors = sum(8 * before.server.tensors[pair.A].numel() for pair in layout.pairs)
    assert outcome.rows["ledger"][0]["bytes_up"] == full - factors


def test_a_personal_head_stays_and_never_travels(make_federated: Make) -> None:
    federated, before = make_federated(FedPer())
    after = advance(federated, before, rounds=2).checkpoint
    layout = before.server.setting.layout
    head = [name for name in layout.names if layout.part[name] == "head"]
    assert same({n: after.server.tensors[n] for n in head}, before.server.tensors)
    mine, other, unseen = (deployed(federated, after, name) for name in ("hospital-0", "hospital-1", None))
    assert not same({n: mine[n] for n in head}, other, 1e-9)
    assert same({n: unseen[n] for n in head}, before.server.tensors)
    assert set(after.memories["hospital-0"].tensors) == set(head)


def test_two_phases_run_in_order_each_on_its_own_tensors(make_federated: Make) -> None:
    """FedRep counts the steps of its phases apart: head 2 epochs, body 1."""
    federated, before = make_federated(FedRep(head_epochs=2.0))
    after = advance(federated, before).checkpoint
    assert [state.steps for state in after.memories["hospital-1"].optimizer] == [8, 4]
    layout = before.server.setting.layout
    moved = {n for n, value in after.server.tensors.items() if not torch.equal(value, before.server.tensors[n])}
    assert moved
    assert all(layout.part[name] != "head" for name in moved)


def test_dittos_global_model_is_fedavg_and_its_personal_one_is_near_for_a_strong_pull(make_federated: Make) -> None:
    plain = advance(*make_federated(FedAvg())).checkpoint.server.tensors
    federated, before = make_federated(Ditto(lam=10.0))
    after = advance(federated, before).checkpoint
    assert same(dict(after.server.tensors), dict(plain))
    loose_federated, loose_before = make_federated(Ditto(lam=0.0))
    loose = advance(loose_federated, loose_before).checkpoint

    def distance(checkpoint: Checkpoint) -> float:
        own = checkpoint.memories["hospital-2"].tensors
        return sum((own[n] - before.server.tensors[n]).square().sum().item() for n in own)

    assert distance(after) < 0.5 * distance(loose)


def test_fedprox_without_mu_is_fedavg_and_with_it_stays_nearer(make_federated: Make) -> None:
    plain, none, some = (
        advance(*make_federated(algorithm)).checkpoint.server.tensors
        for algorithm in (FedAvg(), FedProx(mu=0.0), FedProx(mu=5.0))
    )
    assert same(dict(plain), dict(none))
    start = make_federated(FedAvg())[1].server.tensors
    near, far = (sum((v[n] - start[n]).square().sum() for n in start) for v in (some, plain))
    assert near < 0.9 * far


def test_scaffolds_first_round_is_fedavg_and_its_control_variate_the_mean_of_the_hospitals(
    make_federated: Make,
) -> None:
    plain = advance(*make_federated(FedAvg(), uniform=True)).checkpoint.server.tensors
    federated, before = make_federated(Scaffold())
    first = advance(federated, before).checkpoint
    assert same(dict(first.server.tensors), dict(plain))
    second = advance(federated, first).checkpoint
    assert not same(
        dict(second.server.tensors),
        dict(advance(*make_federated(FedAvg(), uniform=True), rounds=2).checkpoint.server.tensors),
    )
    for name, c in second.server.memory.items():
        mean = sum(memory.tensors[name] for memory in second.memories.values()) / 3
        torch.testing.assert_close(c, mean, rtol=1e-9, atol=1e-12)


def test_scaffold_sends_twice_as_much_both_ways(make_federated: Make) -> None:
    plain = advance(*make_federated(FedAvg())).rows["ledger"][0]
    double = advance(*make_federated(Scaffold())).rows["ledger"][0]
    assert (double["bytes_up"], double["bytes_down"]) == (2 * plain["bytes_up"], 2 * plain["bytes_down"])


def test_flora_puts_the_exact_mean_into_the_base(make_federated: Make) -> None:
    """What the model computes after the merge: base + mean of the hospitals' own products (from local training)."""
    federated, before = make_federated(Flora())
    after = advance(federated, before).checkpoint
    alone = advance(*make_federated(Local())).checkpoint.memories
    weights = [4 / 24, 8 / 24, 12 / 24]
    for pair in before.server.setting.layout.pairs:
        mean = sum(w * effective(alone[h].tensors, pair) for w, h in zip(weights, sorted(alone), strict=True))
        first, last = pair.rows or (0, mean.shape[0])
        torch.testing.assert_close(after.server.base[pair.base][first:last], mean, rtol=1e-9, atol=1e-12)
        assert not after.server.tensors[pair.B].any()
    replica, hospital = federated.workplace.replica, federated.hospitals["hospital-2"]
    losses = []
    for base in ({}, after.server.base):
        replica.set_base(base)
        replica.load(deployed(federated, after, "hospital-2"))
        losses.append(mean_loss(federated.workplace, hospital.train))
    assert losses[1] < losses[0]  # what was learned is in the base


def test_the_next_hospital_does_not_see_the_base_of_another_algorithm(make_federated: Make) -> None:
    """One replica, two runs: FLoRA leaves its base behind, FedAvg starts from the pristine one."""
    flora, start = make_federated(Flora())
    advance(flora, start, rounds=2)
    fedavg, before = make_federated(FedAvg())
    expected = advance(fedavg, before).checkpoint
    reused = replace(fedavg, workplace=flora.workplace)
    assert state_hash(advance(reused, before).checkpoint) == state_hash(expected)


def test_moons_contrast_reaches_the_gradient_from_round_two_on(make_federated: Make) -> None:
    """In round 1 there is no previous model to be different from: it is FedAvg to the bit."""
    fedavg, moon = make_federated(FedAvg()), make_federated(Moon(mu=5.0))
    plain, contrast = advance(*fedavg).checkpoint, advance(*moon).checkpoint
    assert same(dict(plain.server.tensors), dict(contrast.server.tensors))
    plain, contrast = advance(fedavg[0], plain).checkpoint, advance(moon[0], contrast).checkpoint
    assert not same(dict(plain.server.tensors), dict(contrast.server.tensors), 1e-9)


def test_feddyns_server_follows_what_the_hospitals_keep(make_federated: Make) -> None:
    """``h`` is the mean of the h_k although nothing but the model travels; it is evaluated where it does not start."""
    federated, before = make_federated(FedDyn(alpha=0.5))
    outcome = advance(federated, before, rounds=2)
    plain, after = advance(*make_federated(FedAvg())).rows["ledger"][0], outcome.checkpoint
    row = outcome.rows["ledger"][0]
    assert (row["bytes_up"], row["bytes_down"]) == (plain["bytes_up"], plain["bytes_down"])
    for name, h in after.server.memory.items():
        mean = sum(memory.tensors[name] for memory in after.memories.values()) / 3
        torch.testing.assert_close(h, mean, rtol=1e-9, atol=1e-12)
    start = federated.aggregator.broadcast(after.server, federated.hospitals["hospital-0"].info).start
    assert same(deployed(federated, after, "hospital-0"), dict(after.server.tensors))
    assert not same(dict(start), dict(after.server.tensors), 1e-6)


def test_norms_stay_and_never_travel(make_federated: Make) -> None:
    """FLAP-SAM trains those of the upscaler; what is sent is less by them, in both directions."""
    federated, before = make_federated(FedBn())
    outcome = advance(federated, before)
    layout = before.server.setting.layout
    norms = [name for name in layout.names if layout.kind[name] == "norm"]
    held = sum(8 * before.server.tensors[name].numel() for name in norms)
    plain, row = advance(*make_federated(FedAvg())).rows["ledger"][0], outcome.rows["ledger"][0]
    assert (row["bytes_up"], row["bytes_down"]) == (plain["bytes_up"] - held, plain["bytes_down"] - held)
    assert set(outcome.checkpoint.memories["hospital-0"].tensors) == set(norms)
    mine, other = (deployed(federated, outcome.checkpoint, name) for name in ("hospital-0", "hospital-1"))
    assert not same({name: mine[name] for name in norms}, other, 1e-9)


def test_a_measured_loss_reaches_server_and_metrics(make_federated: Make) -> None:
    federated, before = make_federated(QFedAvg())
    rows = [row for row in advance(federated, before).rows["metrics"] if row["metric"] == "loss_before"]
    replica = federated.workplace.replica
    for row in rows:
        replica.load(before.server.tensors)
        expected = mean_loss(federated.workplace, federated.hospitals[row["hospital"]].train)
        assert row["value"] == expected


def test_fedper_refuses_a_method_without_a_head(make_federated: Make) -> None:
    from wardround.clients.lora import LoRA
    from wardround.clients.methods import LoraOnly

    make_federated(FedPer(), method=Decoder())
    with pytest.raises(ValueError, match="expected a head"):
        make_federated(FedPer(), method=LoraOnly(lora=LoRA(rank=2)))
