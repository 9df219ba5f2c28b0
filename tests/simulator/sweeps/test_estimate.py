"""The dry run: counts that are exact, times within a factor of a real run, and nothing written."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from wardround.simulator import cli, yaml12
from wardround.simulator.builder import ConfigError
from wardround.simulator.experiments import PACKAGED, ExperimentsFile, open_file
from wardround.simulator.resident import Resident
from wardround.simulator.run import run
from wardround.simulator.sweeps import work as work_module
from wardround.simulator.sweeps.estimate import Estimate, estimate, headline
from wardround.simulator.sweeps.execution import How, folders
from wardround.simulator.sweeps.pace import spent
from wardround.simulator.sweeps.plan import Plan, make_plan

TWO_HUNDRED = """
    variants:
      {fedavg: {aggregator: fedavg}, flap_sam: {}, ffa: {aggregator: ffa_lora}, ex: {aggregator: fedex_lora},
       local: {aggregator: local}},
    grid: {method.lora.rank: [1, 2, 4, 8]}, seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], references: []
"""


def plan(definition: str, *overrides: str) -> Plan:
    """The plan of a sweep of ``tiny`` with these keys in ``sweep``."""
    entries = yaml12.loads(f"s: {{purpose: To see., sweep: {{base: tiny, {definition}}}}}", "f")
    return make_plan(
        "s", ExperimentsFile(path=Path("f"), entries={**open_file(PACKAGED).entries, **entries}), overrides
    )


def paths(of: Plan, out: Path) -> dict[str, str]:
    return folders(of, How(out=out), Resident())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path, float]:
    """A sweep of two aggregators and two seeds of which one run is done, and the seconds that it took."""
    out = tmp_path_factory.mktemp("done")
    made = plan("variants: {fedavg: {aggregator: fedavg}, flap_sam: {}}, seeds: [0, 1], references: [zero_shot]")
    begun = time.perf_counter()
    run(made.cells[0].experiment, out=out, quiet=True)
    return made, out, time.perf_counter() - begun


def test_what_is_done_is_not_counted(done: tuple[Plan, Path, float]) -> None:
    made, out, _ = done
    found = estimate(made, out=out)
    assert [(row.variant.name, row.done, row.left) for row in found.rows] == [
        ("fedavg", 1, 1),
        ("flap_sam", 0, 2),
        ("zero_shot", 0, 2),
    ]
    assert (found.done, found.left) == (1, 5)
    (pace,) = found.paces.values()
    assert pace.runs == 1
    assert "It rests on 1 run that is done (sam tiny at 32 px, batches of 8, fp32)" in found.text()


def test_times_and_sizes_are_near_those_of_a_real_run(done: tuple[Plan, Path, float], tmp_path: Path) -> None:
    """At the pace of a run, the same run takes what it took; measured now, within a factor of five."""
    made, out, seconds = done
    again, new = estimate(made, out=out), estimate(made, out=tmp_path)
    real = spent(out / paths(made, out)[made.cells[0].key])
    assert real is not None
    assert real.seconds < seconds + 1
    assert again.rows[0].seconds == pytest.approx(real.seconds)
    assert again.rows[0].size == real.size
    assert new.rows[0].seconds is not None
    assert real.seconds / 5 < new.rows[0].seconds / 2 < real.seconds * 5
    assert new.rows[0].size is not None
    assert real.size / 3 < new.rows[0].size / 2 < real.size * 3


def test_headline(done: tuple[Plan, Path, float], tmp_path: Path) -> None:
    made, out, _ = done
    assert re.fullmatch(
        r"sweep s: 6 runs, 1 done before; about .* s for the other 5, as long as those took",
        headline(made, paths(made, out), out),
    )
    assert headline(made, paths(made, tmp_path), tmp_path) == "sweep s: 6 runs, 0 done before"


def test_numbers_of_what_is_sent(tmp_path: Path) -> None:
    found = estimate(plan("variants: {all: {aggregator: fedavg}, b: {aggregator: ffa_lora}}"), out=tmp_path)
    whole, half = (row.traffic for row in found.rows[:2])
    assert whole is not None
    assert half is not None
    assert whole.bytes_up == 4 * whole.parameters_up > half.bytes_up
    assert [row.traffic for row in found.rows[2:]] == [None, None, None]  # references send nothing
    text = found.text()
    assert re.search(rf"all +aggregator=fedavg +1 +0 +{whole.parameters_up:,.0f} +{whole.bytes_up:,.0f}", text)
    assert re.search(r"local +1 +0  all variants", text)
    assert max(map(len, text.splitlines())) <= 100


def test_the_budget_of_tuning(tmp_path: Path) -> None:
    """Two values x three seeds; two rounds of three hospitals with two steps each are 12 steps a run."""
    of = plan(
        "settings: {training.steps: 2}, select: {over: lr, values: [1e-3, 1e-2]}, seeds: [0, 1, 2]".replace(
            "training.steps: 2", "training: {steps: 2}, split: {validation_fraction: 0.5}"
        )
    )
    found = estimate(of, out=tmp_path)
    assert found.steps == 72
    text = " ".join(found.text().split())
    assert "tuning: training.optimizer.lr of each variant is the best of [0.001, 0.01] on validation" in text
    assert "2 values x 3 seeds = 6 runs, 72 optimizer steps" in text


def test_a_sweep_of_classifications_speaks_of_images(tmp_path: Path) -> None:
    text = (
        "s: {sweep: {base: vit-tiny, settings: {split: {validation_fraction: 0.5}}, variants: {a: {}}, references: [],"
        " select: {over: lr, values: [1e-3, 1e-2]}}}"
    )
    entries = {**open_file(PACKAGED).entries, **yaml12.loads(text, "f")}
    told = estimate(make_plan("s", ExperimentsFile(path=Path("f"), entries=entries)), out=tmp_path).text()
    words = " ".join(told.split())
    assert "on validation images: 2 values" in words
    assert "s for an image that is scored, measured now" in words
    assert "(vit tiny at 32 px, batches of 8, fp32). Pictures and rounds without steps" in words
    assert not [word for word in ("sam", "volume", "slice", "Surface") if word in words]


def test_two_hundred_runs_in_seconds(tmp_path: Path) -> None:
    """In processor time, with one measured step; nothing is written where runs go."""
    made = plan(TWO_HUNDRED)
    begun = time.process_time()
    found = estimate(made, out=tmp_path / "runs")
    assert time.process_time() - begun < 10
    assert (found.left, len(found.rows), len(found.paces)) == (200, 20, 1)
    assert not (tmp_path / "runs").exists()


def test_what_cannot_run_is_told(tmp_path: Path) -> None:
    found = estimate(plan("variants: {a: {}, b: {aggregator: fednova}}, references: []"), out=tmp_path)
    assert found.rows[1].problem is not None
    assert "b cannot run: optimizer: expected 'sgd', got 'adamw'" in found.text()


def test_without_the_data_there_is_a_plan_and_no_time(tmp_path: Path) -> None:
    text = "s: {sweep: {base: prostate, seeds: [0, 1]}}"
    entries = {**open_file(PACKAGED).entries, **yaml12.loads(text, "f")}
    made = make_plan("s", ExperimentsFile(path=Path("f"), entries=entries))
    found = estimate(made, data=tmp_path / "nowhere", out=tmp_path)
    assert found.seconds is None
    assert found.rows[0].traffic is not None
    assert "time: not known. The data are not here:" in found.text()


def test_problems_of_data_and_settings_are_those_of_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"split.validation_fraction above 0"):
        estimate(plan("select: {over: lr, values: [1e-3, 1e-2]}"), out=tmp_path)


def test_volumes_that_nobody_read_leave_the_time_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(work_module, "READ_MB", 0)
    made = plan("references: []")
    assert estimate(made, out=tmp_path).seconds is None
    assert "time: not known. Nobody has read all volumes yet" in estimate(made, out=tmp_path).text()
    fixed: Estimate = estimate(plan("settings: {training: {steps: 3}}, references: []"), out=tmp_path)
    assert fixed.seconds is not None
    assert "how many slices there are to be scored is not known" in " ".join(fixed.text().split())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "sweep-tiny", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("sweep sweep-tiny: Two aggregators and two seeds on tiny")
    assert "2 variants x 2 seeds; 10 runs with references, 0 done before." in printed
    assert not list(tmp_path.iterdir())
