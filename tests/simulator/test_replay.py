"""Recorded updates and their replay: the recorded aggregator repeats its own step; others step from the same state."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from outline import Outline

from wardround.aggregators.contract import Setting
from wardround.aggregators.instruments import overall
from wardround.simulator.cli import main
from wardround.simulator.config import ConfigError, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.recording import Instruments, read_rounds, read_setting
from wardround.simulator.replay import named_aggregators, replay
from wardround.simulator.reports.replay import replay_table, write_replay
from wardround.simulator.results import RunRecords
from wardround.simulator.run import run
from wardround.simulator.tensor_files import pack, unpack


def recorded(out: Path, *settings: str, record_updates: bool = True) -> Path:
    experiment = load_experiment("tiny", open_file(PACKAGED), settings)
    return run(experiment, out=out, quiet=True, images=False, record_updates=record_updates).path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("recorded"))


def test_what_was_recorded_is_what_the_run_had(finished: Path) -> None:
    """Round 2 starts from the server of the checkpoint of round 1; weights are the examples of the ledger."""
    from safetensors.torch import load_file

    rounds = read_rounds(finished / "updates")
    checkpoint = load_file(finished / "checkpoint/round-0001/server.safetensors")
    assert [one.number for one in rounds] == [1, 2]
    for name, value in rounds[1].tensors.items():
        assert torch.equal(value, checkpoint[f"tensors/{name}"])
    ledger = [row for row in RunRecords.load(finished).ledger if row.round == 2]
    assert [(u.hospital, u.weight, u.num_steps, u.bytes) for u in rounds[1].updates] == [
        (row.hospital, float(row.examples), row.steps, row.bytes_up) for row in ledger
    ]
    setting = read_setting(finished / "updates")
    assert isinstance(setting, Setting)
    assert setting.layout.names == tuple(rounds[0].updates[0].tensors)
    assert {pair.rows for pair in setting.layout.pairs} >= {(0, 32), (64, 96)}
    assert setting.rank == 2


def test_the_recorded_aggregator_repeats_its_own_steps(finished: Path) -> None:
    """Its instruments are those of the run, digit for digit."""
    records = RunRecords.load(finished)
    for step in replay(finished, named_aggregators("flap_sam")):
        for name, value in overall(step.layers).items():
            assert dict(records.series(f"instrument/{name}")["server"])[step.round] == value
        rows = [row for row in records.instruments if row.round == step.round]
        assert [(row.name, row.ideal_distance, tuple(row.spectrum)) for row in rows] == [
            (layer.name, layer.ideal_distance, layer.spectrum) for layer in step.layers
        ]


def test_every_aggregator_sees_the_same_updates(finished: Path) -> None:
    steps = replay(finished, named_aggregators("fedit, flap_sam"))
    assert [(step.aggregator, step.round) for step in steps] == [
        ("fedit", 1), ("fedit", 2), ("flap_sam", 1), ("flap_sam", 2),
    ]  # fmt: skip
    for fedit, flap_sam in zip(steps[:2], steps[2:], strict=True):
        assert fedit.numbers["hospital_step"] == flap_sam.numbers["hospital_step"]
        assert fedit.numbers["ideal_distance"] > flap_sam.numbers["ideal_distance"]


def test_memory_goes_on_from_step_to_step(finished: Path) -> None:
    """FedAvgM's first step is FedAvg's; its second has the momentum of the first in it."""
    steps = {(s.aggregator, s.round): s for s in replay(finished, named_aggregators("fedavg, fedavgm"))}
    first, second = (
        steps["fedavgm", r].numbers["server_step"] / steps["fedavg", r].numbers["server_step"] for r in (1, 2)
    )
    assert first == pytest.approx(1.0, rel=1e-5)
    assert second > 1.05


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fedprox", "fedprox: its hospitals do not train plainly"),
        ("ffa_lora", "ffa_lora: its hospitals train or send other tensors"),
        ("{name: krum, byzantine: 1}", "krum .*hospitals"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_the_reason(finished: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replay(finished, named_aggregators(f"fedit, {text}"))


def test_all_reasons_come_at_once(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)fedprox: .*ffa_lora: "):
        replay(finished, named_aggregators("fedprox, ffa_lora"))


def test_names_with_settings() -> None:
    found = named_aggregators("fedit, {name: flap_sam, split: left}")
    assert list(found) == ["fedit", "flap_sam (split left)"]
    with pytest.raises(
        ConfigError, match=r"(?s)unknown name 'fedti', did you mean 'fedit'.*aggregator.split: expected"
    ):
        named_aggregators("fedti, {name: flap_sam, split: middle}")
    with pytest.raises(ConfigError, match="expected every aggregator once, got 'fedit' twice"):
        named_aggregators("fedit, fedit")
    with pytest.raises(ConfigError, match="expected at least one name"):
        named_aggregators("")


def test_the_command_prints_and_writes(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(finished), "--aggregators", "fedit,flap_sam", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "flap_sam" in printed
    assert "not training" in printed
    assert max(map(len, printed.splitlines())) <= 100 or str(tmp_path) in max(printed.splitlines(), key=len)
    rows = [json.loads(line) for line in (tmp_path / "replay.jsonl").read_text().splitlines()]
    assert {row["aggregator"] for row in rows} == {"fedit", "flap_sam"}
    with (tmp_path / "replay.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["aggregator"], row["round"]) for row in table][:2] == [("fedit", "1"), ("fedit", "2")]
    page = Outline((tmp_path / "replay.html").read_text())
    drawings = [attributes for name, attributes in page.elements if name == "svg"]
    assert len(drawings) == 3
    assert all(item.get("aria-label") for item in drawings)
    assert not {name for name, _ in page.elements} & {"script", "link", "iframe"}


def test_the_table_is_made_of_the_steps(finished: Path, tmp_path: Path) -> None:
    steps = replay(finished, named_aggregators("fedit"))
    (row,) = replay_table(steps).rows
    distance = sum(step.numbers["ideal_distance"] for step in steps) / 2
    assert row[:2] == ("fedit", f"{distance:.3g}")
    assert write_replay(tmp_path, finished, steps).name == "replay.html"


def test_a_run_without_recording_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path, "rounds=1", record_updates=False)
    assert main(["replay", str(path), "--aggregators", "fedit"]) == 2
    assert "--record-updates" in capsys.readouterr().err
    note = run(load_experiment("tiny", open_file(PACKAGED), ["rounds=1"]), out=tmp_path, quiet=True,
               record_updates=True).note  # fmt: skip
    assert "its updates were not recorded: remove" in note


def test_a_damaged_recording_is_named(tmp_path: Path) -> None:
    path = recorded(tmp_path, "rounds=1")
    file = path / "updates/round-0001.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"round-0001.safetensors: expected tensors of a run, the file is damaged"):
        replay(path, named_aggregators("fedit"))


def test_mixed_ranks_are_recorded_at_each_rank(tmp_path: Path) -> None:
    path = recorded(tmp_path, "rounds=1", "ranks={hospital-1: 1}")
    (one,) = read_rounds(path / "updates")
    pair = read_setting(path / "updates").layout.pairs[0]
    assert [u.tensors[pair.A].shape[0] for u in one.updates] == [1, 2, 2]
    (step,) = replay(path, named_aggregators("flap_sam"))
    assert step.numbers["energy_kept"] > 0
    with pytest.raises(ValueError, match="fedit: expected one LoRA rank"):
        replay(path, named_aggregators("fedit"))


def test_the_size_of_the_cohort_is_recorded(tmp_path: Path) -> None:
    """Krum needs three hospitals for no attacker; two are asked in a round."""
    path = recorded(tmp_path, "rounds=1", "cohort={sampling: fixed, size: 2}")
    assert read_setting(path / "updates").cohort_size == 2
    with pytest.raises(ValueError, match=r"krum .*: expected at least .* = 3 hospitals .* got 2"):
        replay(path, named_aggregators("{name: krum, byzantine: 0}"))


def test_instruments_are_off_or_rare_on_request(tmp_path: Path) -> None:
    every_second = RunRecords.load(recorded(tmp_path / "a", "instruments.every=2", record_updates=False))
    assert {row.round for row in every_second.instruments} == {2}
    off = RunRecords.load(recorded(tmp_path / "b", "instruments.every=0", record_updates=False))
    assert not off.instruments
    assert not off.metric_names("instrument/")
    with pytest.raises(ValueError, match="every: expected at least 0, got -1"):
        Instruments(every=-1)


def test_the_report_shows_the_instruments(finished: Path) -> None:
    """A small chart per instrument, one of the singular values, and a row per layer."""
    html = (finished / "report.html").read_text()
    page = Outline(html)
    assert "distance from ideal mean" in html
    labels = [attributes["aria-label"] for name, attributes in page.elements if name == "svg"]
    assert sum(label.startswith("Singular values relative to the first") for label in labels) == 1
    layers = {row.name for row in RunRecords.load(finished).instruments}
    assert len(layers) > 10
    assert all(f">{name}</th>" in html for name in layers)


@pytest.mark.parametrize("aggregator", ["ffa_lora", "feddyn", "hetlora", "scaffold", "local"])
def test_what_other_runs_record_is_replayed_by_themselves_or_refused(aggregator: str, tmp_path: Path) -> None:
    """A run that trains one factor replays through itself; those with a rule of their own are refused."""
    path = recorded(tmp_path, f"aggregator={aggregator}")
    if aggregator == "ffa_lora":
        steps = replay(path, named_aggregators(aggregator))
        records = RunRecords.load(path)
        for step in steps:
            for name, value in step.numbers.items():
                assert dict(records.series(f"instrument/{name}")["server"])[step.round] == value
    else:
        with pytest.raises(ValueError, match=r"do not train plainly|other tensors"):
            replay(path, named_aggregators(aggregator))


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    """The setting in the place of a round, and the other way round."""
    path = recorded(tmp_path, "rounds=1") / "updates"
    setting, first = path / "setting.safetensors", path / "round-0001.safetensors"
    kept = first.read_bytes()
    first.write_bytes(setting.read_bytes())
    with pytest.raises(ValueError, match=r"round-0001.safetensors: expected what this version of wardround records"):
        read_rounds(path)
    setting.write_bytes(kept)
    with pytest.raises(ValueError, match=r"setting.safetensors: expected what this version of wardround records"):
        read_setting(path)


def test_recorded_updates_are_checked_as_those_of_a_run(tmp_path: Path) -> None:
    """A NaN that somebody wrote into a recording is found by hospital and tensor."""
    path = recorded(tmp_path, "rounds=1")
    file = path / "updates/round-0001.safetensors"
    tensors, words = unpack(file)
    name = next(name for name in tensors if name.startswith("update-1/"))
    file.write_bytes(pack({**tensors, name: torch.full_like(tensors[name], torch.nan)}, words))
    with pytest.raises(ValueError, match=f"round 1.*'hospital-2'.*{name.removeprefix('update-1/')}"):
        replay(path, named_aggregators("fedit"))


def test_what_was_asked_for_before_a_kill_in_round_1_is_recorded(tmp_path: Path) -> None:
    path = recorded(tmp_path, "rounds=1")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "state": "running"}))
    for folder in ("checkpoint", "updates"):
        shutil.rmtree(path / folder)
    assert recorded(tmp_path, "rounds=1", record_updates=False) == path
    assert len(read_rounds(path / "updates")) == 1
