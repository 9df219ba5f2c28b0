"""Two runs side by side: what differs, the paired difference by hand, and what cannot be compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import make_plan, make_run

from wardround.simulator import cli
from wardround.simulator.compare import ABSENT, Difference, compare, comparison_text
from wardround.simulator.sweeps.statistics import mean_over_sites

LEFT = {"a": [{"dice": 0.5}, {"dice": 0.6}], "b": [{"dice": 0.8}]}
RIGHT = {"a": [{"dice": 0.6}, {"dice": 0.9}], "b": [{"dice": 0.7}]}


def pair(tmp_path: Path, left: dict | None = None, right: dict | None = None) -> tuple[Path, Path]:
    one = make_run(tmp_path / "tiny" / "one", **{"scores": LEFT, **(left or {})})
    return one, make_run(tmp_path / "tiny" / "two", **{"scores": RIGHT, **(right or {})})


def test_the_difference_is_the_mean_over_sites_of_the_mean_over_volumes(tmp_path: Path) -> None:
    """Second minus first: at a (0.1 + 0.3) / 2 = 0.2, at b -0.1; the mean of these is 0.05, not (0.1+0.3-0.1)/3."""
    found = compare(*pair(tmp_path))
    (dice,) = found.scores
    assert dice.difference.mean == pytest.approx(0.05)
    assert dice.difference == mean_over_sites({"a": [0.6 - 0.5, 0.9 - 0.6], "b": [0.7 - 0.8]})
    assert [(site.site, site.cases) for site in dice.sites] == [("a", 2), ("b", 1)]
    assert [site.difference.mean for site in dice.sites] == pytest.approx([0.2, -0.1])
    assert [(site.left, site.right) for site in dice.sites] == [
        (pytest.approx(0.55), pytest.approx(0.75)),
        (pytest.approx(0.8), pytest.approx(0.7)),
    ]
    assert (dice.left, dice.right) == (pytest.approx(0.675), pytest.approx(0.725))
    assert (dice.worst_site, dice.cases, dice.undefined) == ("b", 3, 0)


def test_the_other_way_round_has_the_other_sign(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    there, back = compare(one, two).scores[0].difference, compare(two, one).scores[0].difference
    assert there.low is not None
    assert back.high == pytest.approx(-there.low, abs=0.02)
    assert back.mean == pytest.approx(-there.mean)


def test_a_distance_is_worst_where_it_grew_most_and_counts_where_both_have_it(tmp_path: Path) -> None:
    """a: the first volume has no HD95 in the second run and is left out, the second one shrinks by 2; b grows by 1."""
    left = {"a": [{"dice": 0.5, "hd95_mm/core": 9.0}, {"dice": 0.5, "hd95_mm/core": 6.0}]}
    right = {"a": [{"dice": 0.5, "hd95_mm/core": None}, {"dice": 0.5, "hd95_mm/core": 4.0}]}
    left["b"], right["b"] = [{"dice": 0.5, "hd95_mm/core": 3.0}], [{"dice": 0.5, "hd95_mm/core": 4.0}]
    _, distance = compare(*pair(tmp_path, {"scores": left}, {"scores": right})).scores
    assert [site.difference.mean for site in distance.sites] == [-2.0, 1.0]
    assert distance.difference.mean == -0.5
    assert (distance.name, distance.worst_site, distance.cases, distance.undefined) == ("HD95 mm", "b", 2, 1)


def test_volumes_that_only_one_has_are_counted(tmp_path: Path) -> None:
    right = {"a": [{"dice": 0.6}], "c": [{"dice": 0.1}, {"dice": 0.2}]}
    found = compare(*pair(tmp_path, None, {"scores": right}))
    assert (found.only_left, found.only_right) == ({"a": 1, "b": 1}, {"c": 2})
    assert [site.site for site in found.scores[0].sites] == ["a"]
    warning = "Volumes that only one run was scored on are left out: 2 of the first, 2 of the second."
    assert warning in found.warnings


def test_a_site_that_one_run_left_out_is_compared_and_marked(tmp_path: Path) -> None:
    found = compare(*pair(tmp_path, None, {"unseen": ["b"]}))
    assert [site.unseen for site in found.scores[0].sites] == ["none", "right"]
    assert "b (unseen: right)" in comparison_text(found)


def test_settings_that_differ_have_their_path(tmp_path: Path) -> None:
    left = {"aggregator": {"name": "fedavg"}, "weights": [1, 2], "purpose": "to see", "same": {"x": 1}}
    right = {"aggregator": {"name": "fedprox", "mu": 0.01}, "weights": [1, 3], "purpose": "other", "same": {"x": 1}}
    found = compare(*pair(tmp_path, {"config": left}, {"config": right}))
    assert found.settings == (
        Difference(path="aggregator.name", left="fedavg", right="fedprox"),
        Difference(path="weights", left=[1, 2], right=[1, 3]),
        Difference(path="aggregator.mu", left=ABSENT, right=0.01),
    )
    assert [str(difference) for difference in found.settings] == [
        "aggregator.name: fedavg -> fedprox",
        "weights: [1, 2] -> [1, 3]",
        "aggregator.mu: (not there) -> 0.01",
    ]


def test_circumstances_are_those_of_the_last_process(tmp_path: Path) -> None:
    later = {"continued": [{"after_round": 1, "environment": {"code_hash": "0ther", "threads": 1}}]}
    found = compare(*pair(tmp_path, None, {"manifest": {**later, "data_hash": "e15e", "stack": 4}}))
    assert [str(difference) for difference in found.circumstances] == [
        "data_hash: da7a -> e15e",
        "code_hash: c0de -> 0ther",
        "stack: (not there) -> 4",
    ]
    assert any("other data" in warning for warning in found.warnings)
    assert any("other code" in warning for warning in found.warnings)


def test_other_seeds_and_other_draws_are_said(tmp_path: Path) -> None:
    def drawn(value: str) -> dict:
        return {"common_numbers": {"batches": {"a": {"of": "settings", "drawn": [value]}}}}

    one, two = pair(tmp_path, {"manifest": drawn("x")}, {"manifest": drawn("y")})
    assert any("drew other batches (a) than tiny/one" in warning for warning in compare(one, two).warnings)
    other = make_run(tmp_path / "tiny" / "three", scores=RIGHT, config={"seed": 1}, manifest={"seed": 1})
    assert any(warning.startswith("Other seeds (0 and 1)") for warning in compare(one, other).warnings)
    assert not any("seed" in warning.lower() for warning in compare(two, two).warnings)


def test_few_volumes_are_said_and_enough_are_not(tmp_path: Path) -> None:
    few = compare(*pair(tmp_path)).warnings
    assert "3 pairs of volumes: only large differences can be told (below 20)." in few
    assert "Fewer than 5 volumes at a, b: the intervals there are too narrow." in few
    enough = {site: [{"dice": number / 20} for number in range(10)] for site in "ab"}
    one = make_run(tmp_path / "enough" / "one", scores=enough)
    assert compare(one, one).warnings == ()


def test_text_is_at_most_100_columns(tmp_path: Path) -> None:
    volume = {"dice": 0.5, "hd95_mm/core": 123.456, "surface_dice/core": 0.25}
    scores = {f"a hospital with a rather long name {number}": [volume] * 2 for number in range(3)}
    one, two = pair(tmp_path, {"scores": scores}, {"scores": scores})
    table = comparison_text(compare(one, two)).partition("the same\n\n")[2]
    assert max(map(len, table.splitlines())) <= 100
    assert "mean" in table
    assert "+0.000" in table
    assert "-0.000" not in table


# ---- what cannot be compared -----------------------------------------------------------------------------------------


def test_an_unfinished_run(tmp_path: Path) -> None:
    one, two = pair(tmp_path, None, {"state": "interrupted", "rounds": 5, "done": 3})
    with pytest.raises(
        ValueError, match="two: expected a finished run, got one that is 'interrupted' after round 3 of 5"
    ):
        compare(one, two)


def test_other_classes(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    rows = (two / "metrics.jsonl").read_text().replace("dice/core", "dice/edema")
    (two / "metrics.jsonl").write_text(rows)
    with pytest.raises(ValueError, match=r"the same classes, got \['core'\] in .*one and \['edema'\] in .*two"):
        compare(one, two)


def test_no_volume_in_common(tmp_path: Path) -> None:
    one, two = pair(tmp_path, None, {"scores": {"c": [{"dice": 0.5}]}})
    with pytest.raises(ValueError, match=r"that both runs were scored on, got none: 3 volumes in .*one, 1 others in"):
        compare(one, two)


def test_a_sweep_is_no_run(tmp_path: Path) -> None:
    one, _ = pair(tmp_path)
    sweep = make_plan(tmp_path / "ranks", [])
    with pytest.raises(ValueError, match=r"ranks: expected a run, got a sweep; .* `wardround report`"):
        compare(one, sweep)


def test_the_command_needs_no_torch_and_prints_json(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    script = (
        "import sys; from wardround.simulator.cli import main\n"
        f"code = main(['compare', {str(one)!r}, {str(two)!r}, '--json'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert value["left"] == one.as_posix()
    assert value["scores"][0]["difference"]["mean"] == pytest.approx(0.05)


def test_a_missing_run_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, _ = pair(tmp_path)
    assert cli.main(["compare", str(one), str(tmp_path / "absent")]) == 2
    assert "absent: expected a run directory" in capsys.readouterr().err
