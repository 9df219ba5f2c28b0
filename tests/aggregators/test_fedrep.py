"""FedRep: first the head, then the body; what it shares with FedPer is tested there."""

from __future__ import annotations

import math

import pytest
from quadratics import products, rounds

from wardround.aggregators import FedRep
from wardround.aggregators.toy import make_world


def test_the_body_is_fitted_to_the_new_head_by_hand() -> None:
    """1/2 (body head - 3)^2 from 1, 1, a step of 0.05 each: the head goes to 1 + 0.05 * 2 = 1.1.

    The body then sees the residual -1.9 through the head 1.1 and goes to 1 + 0.05 * 1.9 * 1.1 = 1.1045 (together they
    would both go to 1.1; the body first, it would stop at 1.1).
    """
    last = rounds(FedRep(head_epochs=0.25, body_epochs=0.25), products([3.0]), 1)
    assert last.memories["a"]["head"].item() == pytest.approx(1.1)
    assert last.after.tensors["body"].item() == pytest.approx(1.1045)


def test_phases_train_disjoint_parts() -> None:
    world = make_world()
    last = rounds(FedRep(), world, 1)
    head, body = FedRep(head_epochs=3.0).rule.phases(last.downloads["hospital-01"], last.memories["hospital-01"])
    assert set(head.train) == {"head.weight", "head.bias"}
    assert {*head.train, *body.train} == set(world.setting.layout.names)
    assert not set(head.train) & set(body.train)
    assert (head.epochs, body.epochs, body.start) == (3.0, None, None)
    assert head.start == last.memories["hospital-01"]


@pytest.mark.parametrize(("settings", "steps"), [({}, 44), ({"head_epochs": 2.0}, 12), ({"body_epochs": 3.0}, 52)])
def test_each_phase_has_its_own_number_of_epochs(settings: dict, steps: int) -> None:
    """Four steps an epoch: 10 epochs for the head and 1 for the body, as the run says."""
    assert rounds(FedRep(**settings), products([3.0]), 1).updates[0].num_steps == steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_epochs": 0.0}, r"^head_epochs: expected a number above 0, got 0.0$"),
        ({"head_epochs": math.nan}, r"^head_epochs: .* got nan$"),
        ({"body_epochs": -1.0}, r"^body_epochs: expected a number above 0, got -1.0$"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedRep(**settings)
