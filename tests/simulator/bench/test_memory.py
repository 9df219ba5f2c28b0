"""Memory: what the system says, and the slope between two numbers of hospitals."""

from __future__ import annotations

import pytest
import torch

from wardround.simulator.bench.memory import (
    give_back,
    host_memory,
    num_bytes,
    peak_host_mb,
    resident_mb,
    slope,
)
from wardround.simulator.bench.rows import Row
from wardround.simulator.bench.workload import Workload
from wardround.simulator.runtime import Runtime

SMALL = Workload(hospitals=3, image_size=16, batch_size=2, rank=2, steps=1)


def test_memory_that_is_taken_and_given_back_is_seen() -> None:
    give_back()
    before = resident_mb()
    taken = [torch.ones(15_000) for _ in range(1_667)]  # 100 MB in pieces too small to go back by themselves
    assert resident_mb() - before == pytest.approx(100, abs=15)
    del taken[:-1]
    give_back()
    assert resident_mb() - before < 10
    assert peak_host_mb() >= before + 90


def test_the_slope_is_what_the_added_hospitals_cost_per_byte() -> None:
    """(150 - 100) MB for (60 - 20) MB that they remember; (200 - 120) MB at the peak."""
    few = Row(section="memory", engine="host", hospitals=10, declared_mb=20, resident_mb=100, peak_host_mb=120)
    many = Row(section="memory", engine="host", hospitals=40, declared_mb=60, resident_mb=150, peak_host_mb=200)
    found = slope(few, many)
    assert (found.hospitals, found.declared_mb, found.resident_mb) == (30, 40, 50)
    assert (found.slope, found.peak_slope) == (1.25, 2.0)


def test_every_hospital_remembers_all_its_tensors() -> None:
    found = [host_memory(Workload(**{**vars(SMALL), "hospitals": number}), Runtime()) for number in (1, 3)]
    assert found[1].aggregator == "local"
    assert found[0].declared_mb == pytest.approx(found[1].declared_mb / 3)
    assert found[0].declared_mb > 0.03  # fp32 of about ten thousand numbers
    assert found[0].resident_mb <= found[0].peak_host_mb


def test_bytes_of_tensors() -> None:
    assert num_bytes({"a": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.uint8)}) == 29
