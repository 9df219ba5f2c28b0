"""The best single site: who is chosen, on which volumes, and what is then known of its model everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wardround.simulator.results import AcrossRow, CaseRow, RunRecords
from wardround.simulator.sweeps.best_site import best_single_site


def records(
    own: dict[tuple[str, str, str], float], others: dict[tuple[str, str, str, str], float | None]
) -> RunRecords:
    """A run of two rounds with a Dice per (site, split, case), and per (trained at, site, split, case)."""
    cases = [
        CaseRow(round=number, hospital=site, split=split, case=case, metric="dice", value=value * number / 2)
        for (site, split, case), value in own.items()
        for number in (1, 2)
    ]
    across = [
        AcrossRow(round=2, trained_at=trained, hospital=site, split=split, case=case, metric="dice", value=value)
        for (trained, site, split, case), value in others.items()
    ]
    return RunRecords(path=Path("run"), config={}, manifest={}, cases=cases, across=across)


TEST = records(
    {("A", "test", "a1"): 0.9, ("A", "test", "a2"): 0.7, ("B", "test", "b1"): 0.6},
    {("A", "B", "test", "b1"): 0.2, ("B", "A", "test", "a1"): 0.5, ("B", "A", "test", "a2"): 0.7},
)


def test_the_matrix_has_the_own_scores_of_the_last_round_on_its_diagonal() -> None:
    """A at home (0.9 + 0.7) / 2; B at A (0.5 + 0.7) / 2; round 1, with half of it, does not count."""
    assert TEST.cross_site() == {
        "A": {"A": pytest.approx(0.8), "B": pytest.approx(0.2)},
        "B": {"A": pytest.approx(0.6), "B": pytest.approx(0.6)},
    }


def test_without_validation_volumes_test_volumes_choose_and_it_is_said() -> None:
    """A has (0.8 + 0.2) / 2 = 0.5, B 0.6: sites count alike, however many volumes they have."""
    best = best_single_site(TEST)
    assert (best.site, best.chosen_on) == ("B", "test")
    assert best.per_case == {("B", "b1"): 0.6, ("A", "a1"): 0.5, ("A", "a2"): 0.7}


def test_validation_volumes_choose_where_there_are_any() -> None:
    """A is better on validation volumes, 0.5 to 0.4, and worse on test volumes; what is told is of test volumes."""
    validated = records(
        {
            **{("A", "test", "a"): 0.1, ("B", "test", "b"): 0.9},
            **{("A", "validation", "av"): 0.6, ("B", "validation", "bv"): 0.4},
        },
        {
            **{("A", "B", "test", "b"): 0.1, ("B", "A", "test", "a"): 0.9},
            **{("A", "B", "validation", "bv"): 0.4, ("B", "A", "validation", "av"): 0.4},
        },
    )
    best = best_single_site(validated)
    assert (best.site, best.chosen_on) == ("A", "validation")
    assert best.per_case == {("A", "a"): 0.1, ("B", "b"): 0.1}


def test_sites_that_did_not_train_are_told_of_and_do_not_choose() -> None:
    """B would win by its Dice at the unseen site."""
    run = records(
        {("A", "test", "a"): 0.6, ("B", "test", "b"): 0.5},
        {
            **{("A", "B", "test", "b"): 0.5, ("B", "A", "test", "a"): 0.5},
            **{("A", "C", "unseen", "c"): 0.1, ("B", "C", "unseen", "c"): 0.9},
        },
    )
    best = best_single_site(run)
    assert best.site == "A"
    assert best.per_case["C", "c"] == 0.1
    assert run.cross_site()["B"] == {"A": 0.5, "B": 0.5, "C": 0.9}


def test_equal_models_and_undefined_volumes() -> None:
    """The first by name; a volume without a Dice is in no mean and not in the list."""
    run = records(
        {("A", "test", "a"): 0.5, ("B", "test", "b"): 0.5},
        {("A", "B", "test", "b"): 0.5, ("B", "A", "test", "a"): 0.5, ("A", "B", "test", "b2"): None},
    )
    best = best_single_site(run)
    assert best.site == "A"
    assert ("B", "b2") not in best.per_case


def test_a_run_without_other_sites_is_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.cross_site: true"):
        best_single_site(records({("A", "test", "a"): 0.5}, {}))


def test_it_needs_no_torch() -> None:
    modules = "wardround.simulator.sweeps.best_site, wardround.simulator.sweeps.pairing"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
