"""A row per engine, in this process, of the smallest work there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wardround.simulator.bench import ENGINES, bare
from wardround.simulator.bench.measure import measure
from wardround.simulator.bench.rows import Row
from wardround.simulator.bench.workload import Workload, materials
from wardround.simulator.runtime import Runtime

SMALL = Workload(hospitals=2, image_size=16, batch_size=2, rank=2, steps=2)
RUNTIME = Runtime(device="cpu", cohort="sequential", features_mb=0)


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {engine: measure(engine, SMALL, RUNTIME, 2) for engine in ("ours", "naive", "bare")}


def test_rows_of_the_same_work_have_the_same_loss(rows: dict[str, Row]) -> None:
    assert rows["naive"].dice_or_loss == pytest.approx(rows["bare"].dice_or_loss, rel=1e-6)
    assert rows["ours"].dice_or_loss == pytest.approx(rows["bare"].dice_or_loss, rel=1e-6)
    assert rows["naive"].loss_last == pytest.approx(rows["ours"].loss_last, rel=1e-3)


@pytest.mark.parametrize("engine", ["ours", "naive", "bare"])
def test_a_row_has_every_number(engine: str, rows: dict[str, Row]) -> None:
    row = rows[engine]
    assert row.images_per_second == pytest.approx(SMALL.images / (row.round_ms / 1e3))
    assert row.ratio_low <= row.ratio_to_bare <= row.ratio_high
    assert row.engine_fraction == pytest.approx(row.engine_ms_per_hospital * 2 / row.bare_ms)
    assert (row.hospitals, row.steps, row.batch_size, row.image_size, row.rank) == (2, 2, 2, 16, 2)
    assert row.peak_host_mb > 100
    assert (row.peak_device_mb, row.mfu) == (None, None)
    assert row.parameters == rows["bare"].parameters


def test_the_bare_loop_has_no_engine(rows: dict[str, Row]) -> None:
    assert rows["bare"].aggregation_ms is None
    assert rows["bare"].engine_ms_per_hospital < 0.1
    assert rows["ours"].engine_ms_per_hospital > 0
    assert 0 < rows["ours"].aggregation_ms < rows["ours"].round_ms


def test_a_trace_of_a_round_is_written(tmp_path: Path) -> None:
    measure("ours", SMALL, RUNTIME, 1, tmp_path / "below" / "trace.json")
    names = {event.get("name") for event in json.loads((tmp_path / "below" / "trace.json").read_text())["traceEvents"]}
    assert "aten::addmm" in names


def test_what_an_engine_says_of_itself_stands_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower averages the factors, whatever aggregator was asked for."""

    class Averaging(bare.Bare):
        def facts(self) -> dict[str, str | float]:
            return {"aggregator": "fedavg", "peak_host_mb": 5.0}

    monkeypatch.setitem(ENGINES, "averaging", lambda work, _, device: Averaging(materials(work, device)))
    row = measure("averaging", SMALL, RUNTIME, 1)
    assert (row.aggregator, row.peak_host_mb, row.method) == ("fedavg", 5.0, "flap_sam")
