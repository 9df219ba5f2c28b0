"""The runs of a sweep: names, settings, references, and what is refused before any of them is run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from wardround.simulator import yaml12
from wardround.simulator.builder import ConfigError
from wardround.simulator.experiments import PACKAGED, ExperimentsFile, open_file
from wardround.simulator.sweeps.plan import Plan, label, make_plan


def plan(definition: str, *overrides: str) -> Plan:
    """The plan of a sweep of ``tiny`` with these keys in ``sweep``."""
    entries = yaml12.loads(f"s: {{sweep: {{base: tiny, {definition}}}}}", "f")
    return make_plan(
        "s", ExperimentsFile(path=Path("f"), entries={**open_file(PACKAGED).entries, **entries}), overrides
    )


def problems(definition: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(definition, *overrides)
    return [str(problem) for problem in caught.value.problems]


def names(of: Plan, role: str) -> list[str]:
    return [variant.name for variant in of.variants if variant.role == role]


# ---- what is built ---------------------------------------------------------------------------------------------------


def test_cells_are_variants_on_the_grid_with_every_seed() -> None:
    made = plan("variants: {a: {}, b: {rounds: 3}}, grid: {method.lora.rank: [1, 4]}, seeds: [5, 6], references: []")
    assert [cell.key for cell in made.cells] == [
        f"{variant}, rank={rank}, seed {seed}" for seed in (5, 6) for variant in "ab" for rank in (1, 4)
    ]
    last = made.cells[-1].experiment
    assert (last.seed, last.rounds, last.method.lora.rank) == (6, 3, 4)  # type: ignore[attr-defined]  # FlapSam has one
    assert made.variants[-1].settings == {"rounds": 3, "method": {"lora": {"rank": 4}}}


def test_settings_of_a_variant_and_of_the_grid_are_merged_deep() -> None:
    """What both set below ``method`` is kept: replaced at the top, alpha would be lost."""
    made = plan("variants: {a: {method: {lora: {alpha: 2.0}}}}, grid: {method.lora.rank: [4]}, references: []")
    assert made.variants[0].settings == {"method": {"lora": {"alpha": 2.0, "rank": 4}}}
    made = plan("variants: {a: {aggregator: fedprox}}, grid: {aggregator.mu: [0.5]}, references: []")
    assert made.variants[0].settings == {"aggregator": {"name": "fedprox", "mu": 0.5}}
    assert made.cells[0].experiment.aggregator.mu == 0.5  # type: ignore[attr-defined]  # FedProx has one


def test_labels() -> None:
    assert label("pooled", True) == "pooled=true"
    assert label("every", None) == "every=null"
    assert label("aggregator", "fedavg") == "fedavg"
    assert label("aggregator", {"class": "a:B", "mu": 0.1}) == "B (mu=0.1)"
    assert label("p", {"mu": 0.1}) == 'p={"mu": 0.1}'
    made = plan("grid: {rounds: [1], training.steps: [2], windows.depth: [3]}, references: []")
    assert made.variants[0].name == "rounds=1, steps=2, depth=3"


def test_a_selected_value_is_part_of_the_name_and_test_volumes_wait() -> None:
    made = plan("select: {over: lr, values: [1e-3, 0.1]}, seeds: [0, 1], references: [zero_shot, pooled]")
    assert [cell.key for cell in made.variants[0].cells] == [
        f"tiny, lr={lr}, seed {seed}" for seed in (0, 1) for lr in ("0.001", "0.1")
    ]
    assert {cell.experiment.evaluation.test for cell in made.cells} == {"last"}
    zero_shot = next(variant for variant in made.variants if variant.role == "zero_shot")
    assert [(cell.seed, cell.choice) for cell in zero_shot.cells] == [(0, None), (1, None)]
    assert len(next(variant for variant in made.variants if variant.role == "pooled").cells) == 4


# ---- references ------------------------------------------------------------------------------------------------------


def test_references_are_named_after_what_their_variants_share() -> None:
    made = plan("variants: {a: {aggregator: fedavg}, b: {}}, grid: {method.lora.rank: [1, 2]}, references: [local]")
    assert names(made, "local") == ["local of rank=1", "local of rank=2"]
    assert [dict(variant.references) for variant in made.variants[:4]] == [
        {"local": "local of rank=1"},
        {"local": "local of rank=2"},
    ] * 2


def test_references_of_variants_that_share_no_word_are_named_after_the_first() -> None:
    made = plan("variants: {a: {rounds: 1}, b: {rounds: 3}, c: {rounds: 3, aggregator: fedavg}}, references: [local]")
    assert names(made, "local") == ["local of a", "local of b"]


def test_a_variant_may_be_called_like_a_reference() -> None:
    made = plan("variants: {local: {aggregator: local}, flap: {}}, references: [local, pooled]")
    assert names(made, "local") == ["local reference"]
    assert len({variant.name for variant in made.variants}) == len(made.variants)
    assert len({cell.key for cell in made.cells}) == len(made.cells)


def test_other_weights_are_another_experiment() -> None:
    """The path of the weights is no part of a run's id, as their hash is: two files are two bases all the same."""
    made = plan("variants: {a: {model: {weights: one.pth}}, b: {model: {weights: two.pth}}}, references: [zero_shot]")
    assert names(made, "zero_shot") == ["zero_shot of a", "zero_shot of b"]


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_everything_wrong_is_told_once_with_its_place() -> None:
    definition = """settings: {trainning: {}}, baseline: bb, grid: {windows.dept: [1, 3]}, seeds: [0, 1],
    variants: {a: {agregator: fedavg}, b: {method: {lora: {rank: x}}}}"""
    found = problems(definition)
    assert [text.partition(",")[0].partition("(")[0].strip() for text in found] == [
        "f: s.sweep.baseline: no variant 'bb'",
        "f: s.sweep.settings.trainning: unknown key",
        "f: s.sweep.variants.a.agregator: unknown key",
        "f: s.sweep.grid: windows.dept: unknown key",
        "f: s.sweep.variants.b.method.lora.rank: expected a whole number",
    ]
    assert "did you mean 'training'?" in found[1]
    assert "did you mean 'depth'?" in found[3]


def test_a_definition_and_its_runs_are_checked_together() -> None:
    found = problems("seeds: 3, variants: {a: {rnds: 3}}")
    assert found[0] == "f: s.sweep.seeds: expected a list, got 3"
    assert found[1].startswith("f: s.sweep.variants.a.rnds: unknown key, did you mean 'rounds'?")


def test_a_base_that_is_not_there_or_a_sweep_is_told() -> None:
    with pytest.raises(ConfigError, match=r"sweep.base: no experiment 'tyny', did you mean 'tiny'\?"):
        plan("seeds: [0]", "sweep.base=tyny")
    with pytest.raises(ConfigError, match=r"sweep\.base: expected an experiment, got the sweep 'sweep-tiny'"):
        plan("seeds: [0]", "sweep.base=sweep-tiny")


def test_a_baseline_is_guessed() -> None:
    (found,) = problems("grid: {method.lora.rank: [1, 2]}, baseline: rnk=2")
    assert found == "f: s.sweep.baseline: no variant 'rnk=2', did you mean 'rank=2'?"


@pytest.mark.parametrize(
    ("definition", "overrides", "message"),
    [
        (
            "variants: {a: {rounds: 1}}, grid: {rounds: [2]}",
            [],
            "sweep.grid.rounds: .* there is sweep.variants.a.rounds; rem",
        ),
        (
            "variants: {a: {aggregator: {name: fedprox, mu: 1.0}}}, grid: {aggregator: [fedavg]}",
            [],
            "grid.aggregator: ",
        ),
        ("grid: {training.optimizer.lr: [1e-3]}, select: {over: lr, values: [1, 2]}", [], "select.over: training.opt"),
        ("variants: {a: {rounds: 1}}", ["rounds=2"], "--set rounds: .*with --set sweep.variants.a.rounds=..."),
        ("grid: {method.lora.rank: [1]}", ["method.lora.rank=2"], r"with --set sweep.grid.method.lora.rank=\[...\]"),
        ("grid: {method.lora.rank: [1]}", ["method=lora"], "--set method: expected a setting that replaces no other"),
        ("select: {over: lr, values: [1, 2]}", ["training.optimizer.lr=3"], r"with --set sweep.select.values=\[...\]"),
    ],
)
def test_nothing_that_is_set_is_ignored(definition: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan(definition, *overrides)
    assert len(caught.value.problems) == 1


def test_settings_of_all_runs_may_be_replaced() -> None:
    made = plan("settings: {rounds: 5}, variants: {a: {rounds: 1}, b: {}}, references: []", "training.batch_size=3")
    assert [cell.experiment.rounds for cell in made.cells] == [1, 5]
    assert {cell.experiment.training.batch_size for cell in made.cells} == {3}


@pytest.mark.parametrize("definition", ["settings: {seed: 1}", "variants: {a: {seed: 1}}", "grid: {seed: [1, 2]}"])
def test_the_seed_has_one_place(definition: str) -> None:
    (found,) = problems(definition)
    assert found.endswith("seed: expected in sweep.seeds")


def test_the_seed_is_no_override_either() -> None:
    assert problems("seeds: [0]", "seed=3") == ["--set seed: expected in sweep.seeds"]


def test_test_volumes_wait_for_what_is_selected() -> None:
    (found,) = problems("select: {over: lr, values: [1, 2]}", "evaluation.test=due")
    assert found.startswith("--set evaluation.test: expected 'last', as test volumes wait for what is selected")


def test_two_variants_that_are_one_run_are_told_once() -> None:
    (found,) = problems("variants: {a: {}, b: {rounds: 2}}, seeds: [0, 1, 2]")
    assert "got 'a' and 'b', which differ in nothing that changes a result" in found


# ---- speed -----------------------------------------------------------------------------------------------------------


def test_two_hundred_cells_are_built_at_once() -> None:
    """5 aggregators x 4 ranks x 10 seeds, in processor time: two seconds are ten times what it takes."""
    begun = time.process_time()
    made = plan(TWO_HUNDRED)
    assert len(made.cells) == 200
    assert time.process_time() - begun < 2


TWO_HUNDRED = """
    variants:
      {fedavg: {aggregator: fedavg}, flap_sam: {}, ffa: {aggregator: ffa_lora}, ex: {aggregator: fedex_lora},
       local: {aggregator: local}},
    grid: {method.lora.rank: [1, 2, 4, 8]}, seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], references: []
"""


def test_parts_of_a_plan_are_the_plan() -> None:
    made = plan("variants: {a: {}, b: {aggregator: fedavg}}, seeds: [0, 1, 2]")
    parts: list[Any] = [cell.key for number in (1, 2, 3) for v in made.shard(number, 3) for cell in v.cells]
    assert sorted(parts) == sorted(cell.key for cell in made.cells)
    with pytest.raises(ValueError, match="--shard 4/3: expected a part from 1/3 to 3/3"):
        made.shard(4, 3)


@pytest.mark.parametrize("path", ["split.validation_fraction", "data.seed", "evaluation.batch_size"])
def test_what_decides_the_scores_cannot_be_selected_by_them(path: str) -> None:
    found = problems(f"select: {{over: {path}, values: [0.2, 0.4]}}")
    assert any(f"{path}: expected a setting that leaves alone which volumes are scored" in text for text in found)


def test_a_file_without_the_base_says_that_it_stands_alone() -> None:
    file = ExperimentsFile(path=Path("own.yaml"), entries={"s": {"sweep": {"base": "tiny"}}})
    with pytest.raises(ConfigError, match=r"no experiment 'tiny'.* takes the place of the packaged one"):
        make_plan("s", file)


def test_every_run_says_what_it_is_for() -> None:
    made = plan("references: [local]")
    assert {cell.experiment.purpose for cell in made.cells} == {"tiny of the sweep s", "local of the sweep s"}
