"""What a sweep is: everything wrong with a definition at once, extending, overriding, its size without model code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wardround.simulator import yaml12
from wardround.simulator.builder import ConfigError
from wardround.simulator.experiments import PACKAGED, ExperimentsFile, open_file
from wardround.simulator.sweeps.definition import Select, layered, load_sweep, size_of, size_text
from wardround.simulator.sweeps.plan import make_plan


def file(text: str) -> ExperimentsFile:
    """The packaged entries and some of a test's own."""
    return ExperimentsFile(path=Path("f.yaml"), entries={**open_file(PACKAGED).entries, **yaml12.loads(text, "f")})


def problems(text: str, *overrides: str) -> tuple[Any, ...]:
    with pytest.raises(ConfigError) as caught:
        load_sweep("s", file(text), overrides)
    return caught.value.problems


def test_everything_wrong_with_a_definition_is_told_with_its_place() -> None:
    found = problems("s: {pupose: x, sweep: {base: tiny, seeds: [0, 0], fuu: 1, grid: {rounds: []}, baseline: 3}}")
    assert [str(each).partition(": expected")[0] for each in found[1:]] == [
        "f.yaml: s.sweep.fuu: unknown key (known: base, baseline, grid, references, seeds, select, settings, variants)",
        "f.yaml: s.sweep.baseline",
        "f.yaml: s.sweep.seeds",
        "f.yaml: s.sweep.grid.rounds",
    ]
    assert "f.yaml: s.pupose: expected below sweep.settings, or a known key, did you mean 'purpose'?" in str(found[0])


def test_what_stands_beside_the_sweep_is_told() -> None:
    assert problems("s: {seeds: [1], sweep: {base: tiny}}") == ("f.yaml: s.seeds: expected below sweep: indent it",)
    (found,) = problems("s: {extends: tiny, sweep: {base: tiny}}")
    assert str(found) == "f.yaml: s.extends: expected another sweep, got the experiment 'tiny': name it as sweep.base"


def test_a_sweep_that_is_no_mapping_or_has_no_base_is_told() -> None:
    found = problems("s: {sweep: 3}")
    assert str(found[0]) == "f.yaml: s.sweep: expected a mapping with keys such as base and variants, got 3"
    assert problems("s: {sweep: {seeds: [0]}}") == ("f.yaml: s.sweep.base: missing",)


def test_an_experiment_is_no_sweep_and_a_sweep_no_experiment() -> None:
    with pytest.raises(ConfigError, match="'tiny' is one experiment, no sweep: `wardround run tiny`"):
        load_sweep("tiny", open_file(PACKAGED))


def test_a_variant_that_changes_nothing_is_no_empty_line() -> None:
    """``flap_sam:`` is null in YAML, which drops a variant of the sweep that is extended; here there is none."""
    (found,) = problems("s: {sweep: {base: tiny, variants: {flap_sam: }}}")
    assert "s.sweep.variants.flap_sam: expected settings, {} for none, got nothing, which drops a variant" in str(found)


def test_an_extending_sweep_merges_and_drops() -> None:
    text = """
    parent: {sweep: {base: tiny, variants: {a: {aggregator: fedprox}, b: {}}, grid: {rounds: [1, 2]}, seeds: [0, 1]}}
    s: {extends: parent, sweep: {variants: {a: {aggregator: {mu: 0.5}}, b: null, c: {}}, grid: {rounds: null}}}
    """
    sweep = load_sweep("s", file(text))
    assert sweep.variants == {"a": {"aggregator": {"name": "fedprox", "mu": 0.5}}, "c": {}}
    assert sweep.grid == {}
    assert sweep.seeds == (0, 1)


def test_problems_of_an_extended_sweep_name_its_entry() -> None:
    text = "parent: {sweep: {base: tiny, seeds: [x]}}\ns: {extends: parent, sweep: {baseline: 3}}"
    assert [str(each).partition(": expected")[0] for each in problems(text)] == [
        "f.yaml: parent.sweep.seeds[0]",
        "f.yaml: s.sweep.baseline",
    ]


def test_overrides_of_a_definition() -> None:
    """A path of the grid is one key, and so is a variant's name, dots and all."""
    text = 's: {sweep: {base: tiny, variants: {"mu 0.5": {rounds: 3}, b: {}}, grid: {method.lora.rank: [1, 2]}}}'
    overrides = [
        "sweep.seeds=[7]",
        "sweep.grid.method.lora.rank=[4]",
        "sweep.variants.mu 0.5.rounds=1",
        "sweep.variants.b=null",
    ]
    sweep = load_sweep("s", file(text), overrides)
    assert sweep.seeds == (7,)
    assert sweep.grid == {"method.lora.rank": (4,)}
    assert sweep.variants == {"mu 0.5": {"rounds": 1}}
    assert "--set sweep.seeds: expected a list, got 7" in map(str, problems(text, "sweep.seeds=7"))
    with pytest.raises(ConfigError, match=r"--set sweep=3: expected path=value, such as sweep.seeds=\[0\]"):
        load_sweep("s", file(text), ["sweep=3"])


def test_layers_of_settings_merge_where_a_plugin_is_a_word() -> None:
    assert layered({"p": {"name": "a", "x": 1}}, {"p": "b"}) == {"p": {"name": "b"}}
    assert layered({"p": {"name": "a", "x": 1}}, {"p": "a"}) == {"p": {"name": "a", "x": 1}}
    assert layered({"m": {"p": "a"}}, {"m": {"p": {"x": 2}}, "n": 1}) == {"m": {"p": {"name": "a", "x": 2}}, "n": 1}


def test_what_can_be_selected() -> None:
    assert Select(over="lr", values=(1, 2)).path == "training.optimizer.lr"
    for values in ((1,), (1, 1), (1, None)):
        with pytest.raises(ValueError, match="values: expected at least two different values, not null"):
            Select(over="lr", values=values)


# ---- size ------------------------------------------------------------------------------------------------------------

SIZES = {
    "two variants share references": ("variants: {a: {}, b: {aggregator: fedavg}}, seeds: [0, 1]", 2, 2, 1, 10),
    "a grid of the method parts them": ("grid: {method.lora.rank: [1, 2]}", 2, 1, 1, 8),
    "zero-shot has no rounds": ("grid: {rounds: [1, 3]}", 2, 1, 1, 7),
    "mixed ranks are pooled at one": ("variants: {a: {}, b: {ranks: {hospital-1: 1}}}", 2, 1, 1, 6),
    "selected": ("select: {over: lr, values: [1e-3, 1e-2, 1e-1]}, references: [local, zero_shot]", 1, 1, 3, 7),
    "alone": ("references: []", 1, 1, 1, 1),
}


@pytest.mark.parametrize("name", SIZES)
def test_size_is_what_the_plan_builds(name: str) -> None:
    """Derived by hand: variants x seeds x values, and per reference as many as there are groups that share it."""
    definition, variants, seeds, values, runs = SIZES[name]
    own = file(f"s: {{sweep: {{base: tiny, {definition}}}}}")
    size = size_of(load_sweep("s", own))
    assert (size.variants, size.seeds, size.values, size.runs) == (variants, seeds, values, runs)
    assert len(make_plan("s", own).cells) == runs


def test_size_of_packaged_sweeps_is_what_the_plan_builds() -> None:
    packaged = open_file(PACKAGED)
    for name in packaged.sweeps:
        assert size_of(load_sweep(name, packaged)).runs == len(make_plan(name, packaged).cells), name


def test_size_in_words() -> None:
    assert size_text("sweep-tiny", open_file(PACKAGED)) == "size: 2 variants x 2 seeds, 10 runs with references"
    assert size_text("s", file("s: {sweep: {seeds: 3}}")) == "size: not known, the definition has 2 problems"


def test_no_model_code_is_needed() -> None:
    """`wardround list` answers at once."""
    script = "import sys, wardround.simulator.sweeps.definition; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-c", script], check=False).returncode == 0
