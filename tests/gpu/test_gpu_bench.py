"""The bench on a GPU: one base whatever the number of hospitals, and what its columns hold there."""

from __future__ import annotations

import pytest
import torch

from wardround.simulator.bench.measure import measure
from wardround.simulator.bench.memory import device_memory
from wardround.simulator.bench.workload import Workload
from wardround.simulator.runtime import Runtime

pytestmark = pytest.mark.gpu
RUNTIME = Runtime(device="cuda", cohort="sequential", features_mb=0)


def test_a_gpu_holds_one_base_whatever_the_number_of_hospitals() -> None:
    peaks = []
    for number in (1, 100):
        torch.cuda.reset_peak_memory_stats()
        row = device_memory(Workload(model="mini", hospitals=number, steps=1, batch_size=4), RUNTIME)
        peaks.append(row.peak_device_mb)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.01)


def test_a_row_has_the_columns_of_a_gpu() -> None:
    row = measure("ours", Workload(model="mini", hospitals=2, steps=2), RUNTIME, 2)
    bare = measure("bare", Workload(model="mini", hospitals=2, steps=2), RUNTIME, 2)
    assert 0 < row.mfu < 1
    assert row.peak_device_mb > 1
    assert row.dice_or_loss == pytest.approx(bare.dice_or_loss, rel=1e-4)
