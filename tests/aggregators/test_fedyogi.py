"""FedYogi: a second moment that moves by at most (1 - beta2) D^2."""

from __future__ import annotations

import pytest
from one_number import number_state, number_update

from wardround.aggregators import FedYogi
from wardround.aggregators.toy import streams


@pytest.mark.parametrize(("v_init", "v"), [(0.0, 0.4), (4.0, 4.0), (9.0, 8.6)])
def test_the_first_step_by_hand(v_init: float, v: float) -> None:
    """From theta = 0 with D = 2, D^2 = 4, beta2 0.9: v goes up by 0.4 from below 4, down from above, and stays at 4.

    m = 0.1 * 2 = 0.2; theta = 0.5 * 0.2 / (sqrt(v) + 1).
    """
    aggregator = FedYogi(lr=0.5, beta2=0.9, tau=1.0, v_init=v_init)
    server = aggregator.aggregate(number_state(0.0), [number_update("a", 2.0)], streams).server
    assert server.memory["v/w"].item() == pytest.approx(v)
    assert server.tensors["w"].item() == pytest.approx(0.1 / (v**0.5 + 1.0))


def test_rounds_without_movement_leave_v_alone() -> None:
    """Adam's v would shrink. D = 0: v stays at tau^2, its value before round 1."""
    server = FedYogi(tau=0.5).aggregate(number_state(3.0), [number_update("a", 3.0)], streams).server
    assert server.memory["v/w"] == 0.25
    assert server.tensors["w"] == 3.0
