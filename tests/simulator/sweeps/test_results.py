"""A sweep in numbers: pairs, intervals, references, costs and warnings, computed by hand from a few scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweeps import MadeUp, make_sweep, write_sweep

from wardround.simulator.results import COMMON, UNSEEN, AcrossRow, CaseRow, LedgerRow, MetricRow, RunRecords
from wardround.simulator.sweeps.records import CellRecord, State, SweepRecords, VariantRecord
from wardround.simulator.sweeps.results import (
    Effect,
    Interval,
    SweepResults,
    VariantResult,
    analyse,
    cases_rows,
    choice_text,
    results_json,
    variants_rows,
)

Scores = Mapping[tuple[str, str], float | None]

BASELINE: list[Scores] = [
    {("A", "1"): 0.5, ("A", "2"): 0.7, ("B", "1"): 0.2},
    {("A", "1"): 0.6, ("A", "2"): 0.6, ("B", "1"): 0.4},
]
BETTER: list[Scores] = [
    {("A", "1"): 0.6, ("A", "2"): 0.9, ("B", "1"): 0.1},
    {("A", "1"): 0.8, ("A", "2"): 0.6, ("B", "1"): 0.5},
]


def rows(scores: Scores, number: int, unseen: Sequence[str] = ()) -> list[CaseRow]:
    return [
        CaseRow(
            round=number,
            hospital=site,
            split=UNSEEN if site in unseen else "test",
            case=case,
            metric="dice",
            value=value,
        )
        for (site, case), value in scores.items()
    ]


def run(scores: Scores, unseen: Sequence[str] = (), aggregator: str = "fedavg", **more: Any) -> RunRecords:
    """A run of two rounds; its scores are those of the second, and perfect before."""
    metrics = [
        MetricRow(round=2, hospital=site, split=UNSEEN if site in unseen else "test", metric="dice", value=0.0)
        for site in sorted({site for site, _ in scores})
    ]
    perfect: Scores = dict.fromkeys(scores, 1.0)
    return RunRecords(
        **{
            "path": Path("run"),
            "config": {"aggregator": {"name": aggregator}},
            "manifest": {},
            "metrics": metrics,
            "cases": [*rows(perfect, 1, unseen), *rows(scores, 2, unseen)],
            **more,
        }
    )


def variant(
    name: str,
    runs: Sequence[RunRecords],
    role: str = "variant",
    states: Mapping[int, State] | None = None,
    **references: str,
) -> VariantRecord:
    cells = tuple(
        CellRecord(
            key=f"{name}, seed {seed}",
            variant=name,
            seed=seed,
            path=Path("run"),
            state=(states or {}).get(seed, "finished"),
            records=records,
        )
        for seed, records in enumerate(runs)
    )
    return VariantRecord(name=name, role=role, references=references, cells=cells)


def sweep(*variants: VariantRecord, references: Sequence[str] = ("local",)) -> SweepRecords:
    plan = {"sweep": "mine", "baseline": variants[0].name, "definition": {"references": list(references)}}
    return SweepRecords(path=Path("mine"), plan=plan, variants=variants)


def found(results: SweepResults, name: str) -> VariantResult:
    return next(result for result in results.variants if result.name == name)


def effect(results: SweepResults, name: str) -> Effect:
    difference = found(results, name).effect
    assert difference is not None
    return difference


def mean(number: Interval | None) -> float:
    assert number is not None
    return number.mean


# ---- differences -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two() -> SweepRecords:
    return sweep(variant("base", [run(scores) for scores in BASELINE]), variant("new", [run(s) for s in BETTER]))


def test_a_difference_by_hand(two: SweepRecords) -> None:
    """Differences of seed 0: A 0.1, 0.2, B -0.1; of seed 1: A 0.2, 0, B 0.1. Over seeds: A 0.15, 0.1, B 0.

    Over volumes: A 0.125, B 0; over sites: 0.0625. A's mean, drawn again, is 0.1, 0.125 or 0.15, half of that overall,
    as B's single volume does not vary. Seed by seed: (0.15 - 0.1) / 2 = 0.025 and (0.1 + 0.1) / 2 = 0.1, whose standard
    deviation is 0.075 / sqrt(2).
    """
    difference = effect(analyse(two), "new")
    assert difference.against == "base"
    overall = difference.overall
    assert (overall.mean, overall.low, overall.high) == pytest.approx((0.0625, 0.05, 0.075))
    a, b = difference.sites
    assert (a.site, a.cases, a.value.mean, a.value.low, a.value.high) == (
        "A",
        2,
        *(pytest.approx(number) for number in (0.125, 0.1, 0.15)),
    )
    assert (b.site, b.cases, b.value) == ("B", 1, Interval(mean=pytest.approx(0.0), low=None, high=None))
    assert difference.worst_site == "B"
    assert difference.per_seed == {0: pytest.approx(0.025), 1: pytest.approx(0.1)}
    assert difference.seeds_sd == pytest.approx(0.075 / 2**0.5)
    assert (difference.cases, difference.unpaired, difference.undefined) == (3, 0, 0)
    assert difference.told
    assert difference.warnings == ()  # 0.0625 is more than 0.053
    assert [text.split(":")[0] for text in difference.few] == [
        "2 seeds",
        "fewer than 5 volumes at A, B",
        "one volume at B",
        "3 volumes in all",
    ]


def test_a_variant_by_hand(two: SweepRecords) -> None:
    """The baseline over seeds: A 0.55, 0.65, B 0.3; sites 0.6 and 0.3. No earlier, perfect round has a say."""
    base = found(analyse(two), "base")
    assert mean(base.score) == pytest.approx(0.45)
    assert [(number.site, number.unseen, number.value.mean) for number in base.sites] == [
        ("A", False, pytest.approx(0.6)),
        ("B", False, pytest.approx(0.3)),
    ]
    assert (base.seeds, base.worst_site, base.effect, base.gain) == ((0, 1), "B", None, None)
    assert base.per_seed == {0: pytest.approx(0.4), 1: pytest.approx(0.5)}


def test_only_seeds_that_both_have_finished_are_paired(two: SweepRecords) -> None:
    base, _ = two.variants
    waiting = variant("new", [run(scores) for scores in BETTER], states={1: "interrupted"})
    results = analyse(sweep(base, waiting))
    difference = effect(results, "new")
    assert difference.per_seed == {0: pytest.approx(0.025)}
    assert (difference.overall.mean, difference.seeds_sd) == (pytest.approx(0.025), None)
    assert difference.warnings[0] == "seed 1 left out: not finished, with test scores, for both it and base"
    assert found(results, "new").warnings == ("seed 1 not finished",)
    assert mean(found(results, "base").score) == pytest.approx(0.45)  # its own number keeps both
    assert not results.complete
    assert "1 run interrupted: new, seed 1" in results.warnings


def test_without_a_common_seed_there_is_no_difference(two: SweepRecords) -> None:
    base, _ = two.variants
    results = analyse(sweep(base, variant("new", [run(s) for s in BETTER], states={0: "failed", 1: "failed"})))
    new = found(results, "new")
    assert (new.score, new.effect, new.seeds, new.cost, new.worst_site) == (None, None, (), None, None)
    other_volumes = sweep(base, variant("new", [run({("C", "1"): 0.5})]))
    assert found(analyse(other_volumes), "new").warnings == (
        "not compared with base: no seed, site and volume is scored for both",
    )


def test_undefined_and_unpaired_scores_are_left_out_and_counted(two: SweepRecords) -> None:
    """A/2 of seed 0 has no Dice, which leaves 0 of seed 1; C is scored for one only. A (0.15 + 0) / 2, B 0: 0.0375."""
    base, _ = two.variants
    first: Scores = {**BETTER[0], ("A", "2"): None, ("C", "1"): 0.3}
    results = analyse(sweep(base, variant("new", [run(first), run(BETTER[1])])))
    difference = effect(results, "new")
    assert difference.overall.mean == pytest.approx(0.0375)
    assert (difference.unpaired, difference.undefined) == (1, 1)
    assert difference.warnings[:2] == (
        "1 volume left out: scored for only one of it and base",
        "1 pair of scores left out: the Dice of one is undefined",
    )
    assert found(results, "new").undefined == 1
    assert "1 score left out: the Dice is undefined" in found(results, "new").warnings


def test_no_difference_is_said_to_be_none(two: SweepRecords) -> None:
    """A 0.1 and -0.1, B 0: the interval is around 0."""
    base, _ = two.variants
    scores: Scores = {("A", "1"): 0.6, ("A", "2"): 0.6, ("B", "1"): 0.2}
    difference = effect(analyse(sweep(base, variant("new", [run(scores)]))), "new")
    assert not difference.told
    assert "the interval includes 0: no difference can be told" in difference.warnings


# ---- sites that were left out ----------------------------------------------------------------------------------------


def test_a_left_out_site_is_paired_with_itself_and_kept_apart() -> None:
    """Without B: A + 0.1 (0.7 to 0.8), B - 0.4 (0.6 to 0.2). Overall is A alone, the unseen number B alone."""
    full: Scores = {("A", "1"): 0.7, ("A", "2"): 0.7, ("B", "1"): 0.6, ("B", "2"): 0.6}
    without: Scores = {("A", "1"): 0.8, ("A", "2"): 0.8, ("B", "1"): 0.2, ("B", "2"): 0.2}
    results = analyse(sweep(variant("all", [run(full)]), variant("leave_out=B", [run(without, unseen=["B"])])))
    left, difference = found(results, "leave_out=B"), effect(results, "leave_out=B")
    assert (mean(left.score), mean(left.unseen), left.worst_site) == (pytest.approx(0.8), pytest.approx(0.2), "A")
    assert difference.overall.mean == pytest.approx(0.1)
    assert mean(difference.unseen) == pytest.approx(-0.4)
    assert [(number.site, number.unseen) for number in difference.sites] == [("A", False), ("B", True)]
    assert (difference.worst_site, difference.cases) == ("A", 2)
    assert difference.per_seed == {0: pytest.approx(0.1)}
    assert "2 volumes at B, left out of the training: fewer than 20 can tell large differences only" in difference.few
    assert any(text.startswith("the mean Dice of the variants is over different sites") for text in results.warnings)


def test_a_reference_is_over_the_sites_that_train() -> None:
    scores: Scores = {("A", "1"): 0.8, ("B", "1"): 0.2}
    pooled = variant("pooled", [run(scores, unseen=["B"])], role="pooled")
    base = variant("base", [run(scores, unseen=["B"])], pooled="pooled")
    assert found(analyse(sweep(base, pooled)), "base").references == {"pooled": 0.8}


def test_where_the_baseline_was_not_trained_is_no_part_of_the_difference() -> None:
    """The baseline leaves out A, the variant B: only C counts, + 0.2."""
    sites = "ABC"
    base = run({(site, "1"): 0.5 for site in sites}, unseen=["A"])
    other = run({(site, "1"): 0.7 for site in sites}, unseen=["B"])
    difference = effect(analyse(sweep(variant("without A", [base]), variant("without B", [other]))), "without B")
    assert (difference.overall.mean, difference.cases) == (pytest.approx(0.2), 1)
    assert [number.unseen for number in difference.sites] == [False, True, False]
    assert "A not in the overall difference: without A was not trained there" in difference.warnings


def test_sites_that_nobody_trained_at_are_better_than_nothing() -> None:
    scores: Scores = {("A", "1"): 0.5, ("A", "2"): 0.5}
    records = [run(scores, unseen=["A"]), run(dict.fromkeys(scores, 0.6), unseen=["A"])]
    difference = effect(analyse(sweep(variant("one", records[:1]), variant("two", records[1:]))), "two")
    assert difference.overall.mean == pytest.approx(0.1)
    assert any(text.startswith("no site that both it and one were trained at") for text in difference.warnings)


# ---- references ------------------------------------------------------------------------------------------------------


def across(trained_at: str, scores: Scores, split: str = "test") -> list[AcrossRow]:
    return [
        AcrossRow(round=2, trained_at=trained_at, hospital=site, split=split, case=case, metric="dice", value=value)
        for (site, case), value in scores.items()
    ]


def test_gain_and_best_site_by_hand() -> None:
    """Alone A has 0.4, 0.6 and B 0.4; together 0.5, 0.7 and 0.2: gains of 0.1 and -0.2, the mean -0.05.

    A's model has 0.3 at B: (0.5 + 0.3) / 2 = 0.4. B's has 0.1 at A: (0.1 + 0.4) / 2. A's is the best one.
    """
    alone: Scores = {("A", "1"): 0.4, ("A", "2"): 0.6, ("B", "1"): 0.4}
    rows_across = [*across("A", {("B", "1"): 0.3}), *across("B", {("A", "1"): 0.1, ("A", "2"): 0.1})]
    local = variant("local", [run(alone, aggregator="local", across=rows_across)], role="local")
    records = sweep(variant("base", [run(BASELINE[0])], local="local"), local, references=("local", "best_site"))
    base = found(analyse(records), "base")
    assert base.gain is not None
    assert (base.gain.against, base.gain.worst_site) == ("local", "B")
    assert base.gain.overall.mean == pytest.approx(-0.05)
    assert [number.value.mean for number in base.gain.sites] == [pytest.approx(0.1), pytest.approx(-0.2)]
    assert base.references == {"local": pytest.approx(0.45), "best_site": pytest.approx(0.4)}
    assert "1 seed: fewer than 3 say little about chance in training" in analyse(records).warnings
    assert base.warnings == (
        "the best single site was chosen on the test volumes, as there are no others: its Dice is too high",
    )
    assert found(analyse(records), "local").gain is None


def test_local_models_at_a_common_test_set() -> None:
    """The row of the run itself, 0.01, is of the initial values. The models of A and B have 0.3 and 0.5."""
    common: Scores = {(COMMON, "1"): 0.6}
    alone = [*across("A", {(COMMON, "1"): 0.3}), *across("B", {(COMMON, "1"): 0.5})]
    here = variant("base", [run(common)], local="local")
    lone = run({(COMMON, "1"): 0.01}, aggregator="local", across=alone)
    base = found(analyse(sweep(here, variant("local", [lone], role="local"))), "base")
    assert base.gain is not None
    assert (base.gain.overall.mean, base.references["local"]) == (pytest.approx(0.2), pytest.approx(0.4))
    unscored = found(analyse(sweep(here, variant("local", [replace(lone, across=[])], role="local"))), "base")
    assert unscored.gain is None
    assert unscored.warnings[0].startswith("no gain: the local models were not scored on the common test set")


# ---- costs and courses -----------------------------------------------------------------------------------------------

SENT = [
    LedgerRow(round=1, hospital="A", status="ok", bytes_down=1000, bytes_up=400, examples=9, steps=3),
    LedgerRow(round=1, hospital="B", status="ok", bytes_down=1000, bytes_up=400, examples=9, steps=3),
    LedgerRow(round=2, hospital="A", status="ok", bytes_down=1000, bytes_up=1000, examples=9, steps=3),
    LedgerRow(round=2, hospital="B", status="dropped", bytes_down=1000, bytes_up=0, examples=9, steps=0),
]


def test_costs_by_hand() -> None:
    """400, 400 and 1000 bytes are 600 on average, 150 numbers. 5800 bytes of two hospitals are 23,200 bits of one.

    At 10 Mbit/s 2.32 ms. The paper's column: 32 * 150 * 2 / 2^30. A second run that costs nothing halves all.
    """
    one, free = run(BASELINE[0], ledger=SENT), run(BASELINE[1])
    cost = found(analyse(sweep(variant("base", [one]))), "base").cost
    assert cost is not None
    assert (cost.parameters_up, cost.bytes_up, cost.bytes_down, cost.steps) == (150, 1800, 4000, 9)
    assert cost.hours_10 == pytest.approx(2.32e-3 / 3600)
    assert cost.hours_100 == pytest.approx(2.32e-4 / 3600)
    assert cost.paper_overhead == pytest.approx(9600 / 2**30)
    both = found(analyse(sweep(variant("base", [one, free]))), "base").cost
    assert both is not None
    assert (both.bytes_up, both.steps, both.hours_10) == (900, 4.5, pytest.approx(1.16e-3 / 3600))


def test_nothing_travels_where_the_cases_do() -> None:
    pooled = variant("pooled", [run(BASELINE[0], ledger=SENT)], role="pooled")
    cost = found(analyse(sweep(variant("base", [run(BASELINE[0])]), pooled)), "pooled").cost
    assert cost is not None
    assert (cost.parameters_up, cost.bytes_up, cost.bytes_down, cost.hours_10, cost.steps) == (0, 0, 0, 0, 9)


def test_course_by_hand() -> None:
    """After round 1 (0.2 + 0.4) / 2 in one seed and 0.5 in the other: 0.4 between 0.3 and 0.5, for 2800 bytes of 5800.

    Round 0 is scored in one seed only, and left out.
    """

    def dice(number: int, value: float, hospital: str) -> MetricRow:
        return MetricRow(round=number, hospital=hospital, split="test", metric="dice", value=value)

    first = [dice(0, 0.0, "A"), dice(1, 0.2, "A"), dice(1, 0.4, "B"), dice(2, 0.6, "A"), dice(2, 0.8, "B")]
    second = [dice(1, 0.5, "A"), dice(1, 0.5, "B"), dice(2, 0.9, "A"), dice(2, 0.9, "B")]
    runs = [run(BASELINE[0], metrics=metrics, ledger=SENT) for metrics in (first, second)]
    one, two = found(analyse(sweep(variant("base", runs))), "base").curve
    assert (one.round, one.bytes, one.steps) == (1, 2800, 6)
    assert (one.mean, one.low, one.high) == pytest.approx((0.4, 0.3, 0.5))
    assert (two.round, two.bytes, two.steps) == (2, 5800, 9)
    assert (two.mean, two.low, two.high) == pytest.approx((0.8, 0.7, 0.9))


def test_the_course_of_hospitals_that_stay_alone_is_not_that_of_the_initial_values() -> None:
    lone = variant("base", [run({(COMMON, "1"): 0.1}, aggregator="local")])
    assert found(analyse(sweep(lone)), "base").curve == ()


# ---- selection -------------------------------------------------------------------------------------------------------


def test_only_the_selected_value_counts(tmp_path: Path) -> None:
    """The second of three rates is best on validation; the others have no test rows at all."""
    records = make_sweep(tmp_path, MadeUp(select=(1e-4, 1e-3, 1e-2), seeds=(0, 1)))
    results = analyse(records)
    assert {variant.choice for variant in results.variants if variant.role != "zero_shot"} == {1e-3}
    base = found(results, "fedavg")
    assert list(base.validation) == ["0.0001", "0.001", "0.01"]
    low, best, high = base.validation.values()
    assert best is not None
    assert low == high == pytest.approx(best - 0.05 * (1 - 0.8**5))  # what make_sweep takes off
    assert (base.seeds, results.complete) == ((0, 1), True)
    assert len(base.curve) == 1


def test_a_value_at_the_edge_is_told(tmp_path: Path) -> None:
    results = analyse(make_sweep(tmp_path, MadeUp(select=(1e-4, 1e-3), references=())))
    edge = [text for text in results.warnings if "lowest or highest one tried" in text]
    assert len(edge) == 1
    assert "fedavg, flap_sam, fedprox" in edge[0]


def test_values_as_text() -> None:
    assert [choice_text(value) for value in (1e-3, 8, "sgd", {"name": "sgd", "lr": 1})] == [
        "0.001",
        "8",
        "sgd",
        '{"name": "sgd", "lr": 1}',
    ]


# ---- warnings of the whole -------------------------------------------------------------------------------------------


def test_what_is_too_small_for_all_is_said_once(two: SweepRecords) -> None:
    base, new = two.variants
    third = replace(new, name="third", cells=new.cells[:1])
    texts = analyse(sweep(base, new, third)).warnings
    assert "3 volumes in all: fewer than 20 can tell large differences only" in texts
    assert "new: 2 seeds: fewer than 3 say little about chance in training" in texts
    assert "third: 1 seed: fewer than 3 say little about chance in training" in texts


def test_many_comparisons_are_told(two: SweepRecords) -> None:
    base, new = two.variants
    five = [replace(new, name=f"v{number}") for number in range(5)]
    text = analyse(sweep(base, *five)).warnings[-1]
    assert text.startswith("5 comparisons with the baseline")
    assert "99.00 % (Bonferroni)" in text
    assert not any("Bonferroni" in text for text in analyse(two).warnings)


# ---- files -----------------------------------------------------------------------------------------------------------

LARGE = MadeUp(leave_out={"fedprox": ["Ulm"]}, seeds=(0, 1), volumes=3)


def test_json_is_the_same_from_disk_and_anywhere_else(tmp_path: Path) -> None:
    """Other folders, times and seconds, and a run that was continued: the same JSON."""
    records = make_sweep(tmp_path / "one", LARGE)
    expected = results_json(analyse(records))
    assert results_json(analyse(SweepRecords.load(write_sweep(records)))) == expected
    text = json.dumps(expected, allow_nan=False)
    assert not any(word in text for word in (str(tmp_path), "second", "2026"))
    elsewhere = write_sweep(make_sweep(tmp_path / "two", LARGE))
    for path in elsewhere.parent.rglob("manifest.json"):
        manifest = {**json.loads(path.read_text()), "started": "later", "continued": [{"at_round": 1}]}
        path.write_text(json.dumps(manifest))
    for path in elsewhere.parent.rglob("summary.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 1e6}))
    assert json.dumps(results_json(analyse(SweepRecords.load(elsewhere)))) == text


def test_json_has_all_numbers(tmp_path: Path) -> None:
    results = analyse(make_sweep(tmp_path, LARGE))
    plain = results_json(results)
    first = plain["variants"][1]
    assert (first["name"], first["effect"]["per_seed"].keys()) == ("flap_sam", {"0", "1"})
    assert first["effect"]["overall"]["mean"] == effect(results, "flap_sam").overall.mean
    assert set(first["references"]) == {"local", "pooled", "zero_shot", "best_site"}


def test_rows_of_volumes_are_those_of_the_last_round(two: SweepRecords) -> None:
    found_rows = list(cases_rows(two))
    assert len(found_rows) == 2 * 2 * 3  # no perfect scores of round 1
    assert found_rows[0] == {
        "variant": "base",
        "role": "variant",
        "seed": 0,
        "choice": None,
        "site": "A",
        "split": "test",
        "case": "1",
        "metric": "dice",
        "value": 0.5,
    }


def test_rows_of_variants_are_a_table(tmp_path: Path) -> None:
    results = analyse(make_sweep(tmp_path, replace(LARGE, states={"flap_sam, seed 0": "failed"})))
    table = variants_rows(results)
    assert len({tuple(row) for row in table}) == 1  # the same columns in all
    assert [row["variant"] for row in table] == [variant.name for variant in results.variants]
    one = table[1]
    assert (one["effect"], one["effect_pairs"], one["seeds"]) == (effect(results, "flap_sam").overall.mean, 9, 1)
    assert (table[2]["unseen"], table[0]["effect"]) == (mean(found(results, "fedprox").unseen), None)
