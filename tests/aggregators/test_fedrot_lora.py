"""FedRot-LoRA: rotations at the hospital."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from pairs import ideal_mean, normal, one_pair, product, random_updates, state, tensor, update
from torch import Tensor

from wardround.aggregators import FedAvg, FedRotLora
from wardround.aggregators.contract import ClientUpdate, Download, Fit
from wardround.aggregators.fedrot_lora import rotation
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def turned(degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return tensor([c, -s], [s, c])


def sent(rule: FedRotLora, download: Download, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a hospital sends that ended with these tensors."""
    fit = Fit(tensors=trained, learning_rates=(1.0,))
    return dict(rule.rule.finish(download, [fit], {}).tensors)


@pytest.mark.parametrize(("lam", "degrees"), [(0.0, 0.0), (0.5, 30.0), (1.0, 60.0)])
def test_undoes_a_turn_as_far_as_asked(lam: float, degrees: float) -> None:
    """A = Q(60) A_ref, so R = Q(60) and R^T A = A_ref. Halfway, (I + Q(60)) / 2 is cos(30) Q(30), a turn by 30."""
    reference = normal(2, 5)
    R = rotation(turned(60.0) @ reference, reference, lam)
    torch.testing.assert_close(R, turned(degrees))


@pytest.mark.parametrize("seed", range(5))
def test_is_the_best_rotation(seed: int) -> None:
    """Against SciPy's Procrustes where that is a rotation; better than random rotations where it is a reflection."""
    factor, reference = normal(3, 7, seed=("factor", seed)), normal(3, 7, seed=("reference", seed))
    R = rotation(factor, reference, 1.0)
    torch.testing.assert_close(R.mT @ R, torch.eye(3).double())
    assert torch.linalg.det(R).item() == pytest.approx(1.0)
    best, _ = scipy.linalg.orthogonal_procrustes(factor.numpy().T, reference.numpy().T)
    if np.linalg.det(best) > 0:
        np.testing.assert_allclose(R.numpy(), best, atol=1e-12)
    error = (R.mT @ factor - reference).norm()
    for number in range(200):
        other = torch.linalg.qr(normal(3, 3, seed=("other", number))).Q
        other = other * torch.linalg.det(other).sign()
        assert error <= (other.mT @ factor - reference).norm() + 1e-12


def test_mirrored_factors_are_not_mirrored_back() -> None:
    """A = diag(1, -1) A_ref with rows of length 2 and 1: the best rotation is I, which keeps the longer row."""
    reference = tensor([2.0, 0.0], [0.0, 1.0])
    torch.testing.assert_close(rotation(tensor([2.0, 0.0], [0.0, -1.0]), reference, 1.0), torch.eye(2).double())


@pytest.mark.parametrize(("rounds", "aligned"), [(0, None), (1, "A"), (2, "B"), (3, "A")])
def test_the_factors_take_turns(rounds: int, aligned: str | None) -> None:
    """With lam = 1, a hospital whose pair is the global one in turned coordinates comes back to it, by either factor.

    Only the factor of the turn decides: the other one is made unlike the global one, and does not matter.
    """
    setting = one_pair(4, 5, ranks=(2, 2))
    tensors = {"A": normal(2, 5, seed="A"), "B": normal(4, 2, seed="B"), "w": tensor(0.0)}
    server = state(setting)
    server = type(server)(setting=setting, round=rounds, tensors=tensors)
    download = FedRotLora(lam=1.0).broadcast(server, setting.hospitals[0])
    Q = turned(50.0)
    trained = {"A": Q @ tensors["A"], "B": tensors["B"] @ Q.mT, "w": tensor(1.0)}
    if aligned is not None:
        other = "B" if aligned == "A" else "A"
        trained[other] = normal(*tensors[other].shape, seed="unlike")
    got = sent(FedRotLora(lam=1.0), download, trained)
    for name in "AB":
        expected = tensors[name] if name == aligned else None
        if aligned is None:
            expected = trained[name]
        if expected is not None:
            torch.testing.assert_close(got[name], expected)
    torch.testing.assert_close(got["B"] @ got["A"], trained["B"] @ trained["A"])
    assert got["w"] == 1.0


def test_one_byte_says_which_factor() -> None:
    world = make_world()
    aggregator = FedRotLora()
    first = run_round(aggregator, world, initial_state(aggregator, world))
    second = run_round(aggregator, world, first.after)

    def size(download: Download) -> int:
        return sum(value.numel() * value.element_size() for value in download.traffic.values())

    (one, two) = (next(iter(done.downloads.values())) for done in (first, second))
    assert size(two) == size(one) + 1
    assert two.returns_extra == {}


def test_without_strength_and_in_the_first_round_it_is_fedit() -> None:
    world = make_world()
    states = {}
    for name, aggregator in {"fedit": FedAvg(), "none": FedRotLora(lam=0.0), "half": FedRotLora()}.items():
        first = run_round(aggregator, world, initial_state(aggregator, world))
        states[name] = first.after, run_round(aggregator, world, first.after).after
    for one, other in zip(states["fedit"], states["none"], strict=True):
        for name, value in one.tensors.items():
            torch.testing.assert_close(other.tensors[name], value, rtol=1e-12, atol=1e-14)
    first, second = states["half"]
    assert all(torch.equal(first.tensors[name], value) for name, value in states["fedit"][0].tensors.items())
    assert not torch.equal(second.tensors["encoder.q.A"], states["fedit"][1].tensors["encoder.q.A"])


def test_what_every_hospital_learned_is_the_same_in_other_coordinates() -> None:
    """In a round with rotations the updates of FedIT and FedRot-LoRA have equal products, hospital by hospital."""
    world = make_world()
    server = run_round(FedAvg(), world, initial_state(FedAvg(), world)).after
    plain, rotated = (run_round(aggregator, world, server).updates for aggregator in (FedAvg(), FedRotLora(lam=1.0)))
    for pair in world.setting.layout.pairs:
        for one, other in zip(plain, rotated, strict=True):
            assert not torch.allclose(one.tensors[pair.A], other.tensors[pair.A], rtol=1e-6)
            left, right = (it.tensors[pair.B] @ it.tensors[pair.A] for it in (one, other))
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-14)


def test_repairs_what_turned_coordinates_break() -> None:
    """Hospitals that learned nearly the same in turned coordinates: FedIT loses most of it, aligned factors do not."""
    setting = one_pair(6, 7, ranks=(2, 2, 2))
    common = {"A": normal(2, 7, seed="A"), "B": normal(6, 2, seed="B")}
    server = type(state(setting))(setting=setting, round=1, tensors={**common, "w": tensor(0.0)})
    rule = FedRotLora(lam=1.0)
    raw: list[ClientUpdate] = []
    aligned: list[ClientUpdate] = []
    for number, noise in enumerate(random_updates(setting, [1.0, 2.0, 3.0])):
        Q = turned(70.0 * number)
        trained = {
            "A": Q @ (common["A"] + 0.01 * noise.tensors["A"]),
            "B": (common["B"] + 0.01 * noise.tensors["B"]) @ Q.mT,
            "w": tensor(0.0),
        }
        raw.append(update(noise.hospital, noise.weight, **trained))
        download = rule.broadcast(server, setting.hospitals[number])
        aligned.append(update(noise.hospital, noise.weight, **sent(rule, download, trained)))
    errors = []
    for updates in (raw, aligned):
        got = FedAvg().aggregate(server, updates, streams).server.tensors
        errors.append((product(setting, got) - ideal_mean(setting, updates)).norm().item())
    assert errors[1] < 0.01 * errors[0]


@pytest.mark.parametrize("rounds", [1, 2])
def test_at_full_strength_a_turn_of_the_coordinates_is_undone(rounds: int) -> None:
    """``(B Q, Q^T A)`` and ``(B, A)`` send the same, for a rotation Q. Halfway they do not, and neither for FedIT."""
    setting = one_pair(6, 7, ranks=(2,))
    start = {"A": normal(2, 7, seed="A"), "B": normal(6, 2, seed="B"), "w": tensor(0.0)}
    server = type(state(setting))(setting=setting, round=rounds, tensors=start)
    A, B, Q = normal(2, 7, seed="trained A"), normal(6, 2, seed="trained B"), turned(130.0)
    differences = {}
    for lam in (0.0, 0.5, 1.0):
        rule = FedRotLora(lam=lam)
        download = rule.broadcast(server, setting.hospitals[0])
        one, other = (sent(rule, download, {"A": a, "B": b, "w": tensor(0.0)}) for a, b in ((A, B), (Q.mT @ A, B @ Q)))
        differences[lam] = (one["A"] - other["A"]).norm().item()
    assert differences[1.0] < 1e-13
    assert min(differences[0.0], differences[0.5]) > 0.1


def test_nothing_to_align_with_is_no_rotation() -> None:
    """The global B is zero (nobody has learned anything): every rotation is as good, and none is made."""
    torch.testing.assert_close(rotation(normal(2, 5), torch.zeros(2, 5).double(), 1.0), torch.eye(2).double())


@pytest.mark.parametrize("lam", [-0.1, 1.1, float("nan")])
def test_a_wrong_strength_is_refused(lam: float) -> None:
    with pytest.raises(ValueError, match=rf"^lam: expected a number between 0 and 1, got {lam!r}"):
        FedRotLora(lam=lam)
