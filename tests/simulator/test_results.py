"""Reading a run directory: rows, queries, and what happens when a file is incomplete or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wardround.simulator.reports.run_scores import results_table
from wardround.simulator.results import SERVER, CaseRow, LedgerRow, MetricRow, RunRecords, TimingRow, mean, mean_series


def metric(
    number: int, hospital: str | None, name: str, value: float | None, split: str | None = "test"
) -> dict[str, Any]:
    return {"round": number, "hospital": hospital, "split": split, "metric": name, "value": value}


def ledger(number: int, hospital: str, down: int, up: int, status: str = "ok") -> dict[str, Any]:
    sizes = {"bytes_down": down, "bytes_up": up, "examples": 12, "steps": 4}
    return {"round": number, "hospital": hospital, "status": status, **sizes}


METRICS = [
    metric(0, "b", "dice", 0.1),
    metric(0, "a", "dice", None),
    metric(1, "a", "loss", 0.9, "train"),
    metric(1, "a", "aggregate/drift", 0.3, None),
    metric(1, None, "aggregate/energy", 0.95, None),
    metric(2, "b", "dice", 0.5),
    metric(2, "b", "dice/tumour", 0.4),
    metric(2, "b", "dice/kidney", 0.6),
    metric(2, "a", "dice", 0.7),
    metric(2, "a", "dice/tumour", 0.7),
    metric(2, "a", "dice/kidney", None),
    metric(2, "a", "hd95_mm/tumour", 3.0),
    metric(2, "a", "hd95_mm/kidney", 5.0),
    metric(2, "a", "undefined/hd95_mm/tumour", 1),
    metric(2, "a", "undefined/hd95_mm/kidney", 2),
    metric(2, "b", "hd95_mm/tumour", None),
    metric(2, "b", "undefined/hd95_mm/tumour", 3),
]
LEDGER = [ledger(1, "a", 10, 5), ledger(1, "b", 10, 0, "dropped"), ledger(2, "a", 10, 5), ledger(2, "b", 20, 7)]
STAGES = {"broadcast_s": 1.0, "train_s": 2.0, "aggregate_s": 0.5, "evaluate_s": 0.25, "checkpoint_s": 0.25}


def case(number: int, name: str) -> dict[str, Any]:
    return {"round": number, "hospital": "a", "split": "test", "case": name, "metric": "dice", "value": 0.7}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("rounds: 2\noptimizer: {lr: 8e-4}\n")
    (folder / "manifest.json").write_text('{"state": "running", "id": "abc"}')
    write(folder / "metrics.jsonl", METRICS)
    write(folder / "ledger.jsonl", LEDGER)
    write(folder / "cases.jsonl", [case(0, "one"), case(0, "gone"), case(2, "one"), case(2, "two"), case(2, "two")])
    write(folder / "timing.jsonl", [{"round": 1, **STAGES}, {"round": 2, **STAGES}])
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_every_file_is_read_into_records(run: Path) -> None:
    records = RunRecords.load(run)
    assert records.config == {"rounds": 2, "optimizer": {"lr": 0.0008}}  # a number, as YAML 1.2 has it
    assert records.manifest["id"] == "abc"
    assert records.metrics[0] == MetricRow(round=0, hospital="b", split="test", metric="dice", value=0.1)
    assert records.cases[0] == CaseRow(round=0, hospital="a", split="test", case="one", metric="dice", value=0.7)
    assert records.ledger[1] == LedgerRow(
        round=1, hospital="b", status="dropped", bytes_down=10, bytes_up=0, examples=12, steps=4
    )
    assert records.timing[1] == TimingRow(round=2, **STAGES)
    assert [len(rows) for rows in (records.metrics, records.cases, records.ledger, records.timing)] == [17, 5, 4, 2]


def test_queries(run: Path) -> None:
    records = RunRecords.load(run)
    assert records.hospitals == ("a", "b")
    assert records.classes == ("tumour", "kidney")  # the order of the rows, which is the order of the labels
    assert records.rounds == 2
    assert records.series("dice", "test") == {"a": [(0, None), (2, 0.7)], "b": [(0, 0.1), (2, 0.5)]}
    assert records.series("loss", "train") == {"a": [(1, 0.9)]}
    assert records.series("loss", "test") == {}
    assert records.series("aggregate/energy") == {SERVER: [(1, 0.95)]}
    assert records.metric_names("aggregate/") == ["aggregate/drift", "aggregate/energy"]
    assert records.bytes_per_round() == {1: (20, 5), 2: (30, 12)}
    assert (records.bytes_down, records.bytes_up) == (50, 17)
    assert records.last_evaluation() == 2
    assert records.last_evaluation("validation") is None


def test_final_scores_average_over_the_classes_that_are_defined(run: Path) -> None:
    a, b = RunRecords.load(run).final()
    assert (a.hospital, a.examples, a.cases, a.score) == ("a", 12, 2, 0.7)
    assert a.per_class == {"tumour": 0.7, "kidney": None}
    assert (a.others["hd95_mm"], a.undefined["hd95_mm"]) == (4.0, 3)  # (3 + 5) / 2 and 1 + 2 volumes
    assert (b.others["hd95_mm"], b.undefined["hd95_mm"]) == (None, 3)
    assert (b.others["surface_dice"], b.undefined["surface_dice"]) == (None, 0)  # never measured
    assert (a.bytes_down, a.bytes_up, b.bytes_down, b.bytes_up) == (20, 10, 30, 7)


def test_seconds_are_the_stages_until_there_is_a_summary(run: Path) -> None:
    assert RunRecords.load(run).seconds == 8.0
    (run / "summary.json").write_text('{"seconds": 9.5}')
    assert RunRecords.load(run).seconds == 9.5


@pytest.mark.parametrize(
    ("state", "summary", "finished"),
    [("running", False, False), ("finished", True, True), ("running", True, False), ("failed", False, False)],
)
def test_finished_needs_state_and_summary(run: Path, state: str, summary: bool, finished: bool) -> None:
    (run / "manifest.json").write_text(json.dumps({"state": state}))
    if summary:
        (run / "summary.json").write_text("{}")
    assert RunRecords.load(run).finished is finished


def test_a_run_that_has_just_begun_is_empty(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("rounds: 2\n")
    (tmp_path / "manifest.json").write_text("{}")
    records = RunRecords.load(tmp_path)
    assert (records.rounds, records.hospitals, records.final(), records.bytes_per_round()) == (0, (), [], {})
    assert records.summary is None


def test_a_last_line_still_being_written_is_left_out(run: Path) -> None:
    with (run / "ledger.jsonl").open("a") as file:
        file.write('{"round": 3, "hospi')
    assert len(RunRecords.load(run).ledger) == 4


def test_a_whole_last_line_without_newline_counts(run: Path) -> None:
    with (run / "ledger.jsonl").open("a") as file:
        file.write(json.dumps(ledger(3, "a", 1, 1)))
    assert len(RunRecords.load(run).ledger) == 5


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(run: Path) -> None:
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join([lines[0], '{"round": 3, "hospi\n', *lines[1:]]))
    with pytest.raises(ValueError, match=r"ledger\.jsonl, line 2: expected a JSON object"):
        RunRecords.load(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes_up": "5"}, "bytes_up: expected int, got '5'"),
        ({"round": True}, "round: expected int, got True"),
        ({"steps": 1.5}, "steps: expected int, got 1.5"),
        ({"hospital": None}, "hospital: expected str, got None"),
        ({"status": "lost"}, "status: expected Status, got 'lost'"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error(run: Path, change: dict[str, Any], message: str) -> None:
    write(run / "ledger.jsonl", [LEDGER[0], LEDGER[1] | change])
    with pytest.raises(ValueError, match=f"line 2: {message}"):
        RunRecords.load(run)


def test_all_missing_keys_are_named_and_further_keys_are_left_out(run: Path) -> None:
    write(run / "timing.jsonl", [{"round": 1, "train_s": 1.0, "broadcast_s": 1.0, "aggregate_s": 1.0, "noise_s": 1.0}])
    with pytest.raises(ValueError, match="evaluate_s: expected float, got nothing; checkpoint_s"):
        RunRecords.load(run)
    write(run / "timing.jsonl", [{"round": 1, **STAGES, "noise_s": 1.0}])
    assert len(RunRecords.load(run).timing) == 1


def test_a_number_that_is_none_is_undefined(run: Path) -> None:
    (run / "metrics.jsonl").write_text(json.dumps(metric(1, "a", "dice", float("nan"))) + "\n")
    assert RunRecords.load(run).metrics[0].value is None


def test_a_line_separator_in_a_name_does_not_end_the_line(run: Path) -> None:
    row = json.dumps(ledger(1, "a\u2028b", 1, 1), ensure_ascii=False)
    (run / "ledger.jsonl").write_text(row + "\n", encoding="utf-8")
    assert RunRecords.load(run).ledger[0].hospital == "a\u2028b"


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_a_folder_that_is_no_run_is_an_error(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(ValueError, match=f"expected a run directory, but it has no {name}"):
        RunRecords.load(run)


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "[1, 2]"), ("manifest.json", "[1]")])
def test_what_should_be_a_mapping_is_checked(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: expected a mapping"):
        RunRecords.load(run)


def test_half_a_manifest_is_an_error(run: Path) -> None:
    (run / "manifest.json").write_text('{"state": ')
    with pytest.raises(ValueError, match=r"manifest\.json: expected JSON"):
        RunRecords.load(run)


def test_means_are_over_defined_values() -> None:
    assert mean([1.0, None, 2.0]) == 1.5
    assert mean([None]) is None
    assert mean([]) is None
    series = {"a": [(0, None), (2, 0.7)], "b": [(0, 0.1), (1, None), (2, 0.5)]}
    assert mean_series(series) == [(0, 0.1), (1, None), (2, 0.6)]


@pytest.mark.parametrize(("aggregator", "untrained"), [("local", {"common", "far"}), ("fedavg", set())])
def test_where_a_run_of_lonely_hospitals_was_scored_untrained(aggregator: str, untrained: set[str]) -> None:
    """No model of its own is at the common test set and at a site that was left out."""
    places = [("a", "test"), ("common", "test"), ("far", "unseen")]
    records = RunRecords(
        path=Path("run"),
        config={"aggregator": {"name": aggregator}},
        manifest={},
        metrics=[MetricRow(round=1, hospital=name, split=split, metric="dice", value=0.5) for name, split in places],
        cases=[CaseRow(round=1, hospital=name, split=s, case="1", metric="dice", value=0.5) for name, s in places],
    )
    told = "at common, far the model before training was scored" in " ".join(results_table(records).split())
    assert records.untrained == untrained
    assert told is bool(untrained)
