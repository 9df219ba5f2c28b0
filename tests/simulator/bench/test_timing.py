"""Pairs: both calls as often, in turn first and second."""

from __future__ import annotations

import time

import torch

from wardround.simulator.bench.timing import in_pairs, timed

CPU = torch.device("cpu")


def test_pairs_alternate_who_comes_first_and_keep_who_is_who() -> None:
    order: list[str] = []
    pairs = in_pairs(lambda: order.append("a") or "a", lambda: order.append("b") or "b", 3, CPU)
    assert "".join(order) == "abbaab"
    assert [(one.value, other.value) for one, other in pairs] == [("a", "b")] * 3


def test_seconds_are_those_of_the_call() -> None:
    found = timed(lambda: time.sleep(0.02) or 7, CPU)
    assert found.value == 7
    assert 0.02 <= found.seconds < 1
