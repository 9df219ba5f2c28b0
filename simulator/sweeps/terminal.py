"""What a terminal shows after a sweep: a row per variant, how values were selected, and what a reader has to know."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..reports.page import UNDEFINED, Table, count_text, number_text, signed_text
from .records import SweepRecords
from .results import SweepResults, VariantResult, choice_text
from .statistics import Interval

if TYPE_CHECKING:
    from .execution import SweepOutcome

WIDTH = 100
"""Columns of a terminal."""


def sweep_text(outcome: SweepOutcome) -> str:
    """Table, tuning budget, warnings, what is left, and where the report is; in 100 columns."""
    records, results = outcome.records, outcome.results
    selection = (text for variant in records.variants for text in variant.selection_warnings)
    warnings = dict.fromkeys([*results.warnings, *selection])
    blocks = [
        summary_table(results).text(width=WIDTH),
        "\n".join(tuning_lines(records)),
        "\n".join("\n".join(textwrap.wrap(f"! {text}", WIDTH, subsequent_indent="  ")) for text in warnings),
        "\n".join(_left(outcome)),
        f"sweep:  {outcome.path}\nreport: {outcome.report}",
    ]
    return "\n\n".join(filter(None, blocks))


def failures_text(outcome: SweepOutcome) -> str:
    """Which runs failed and why, and what to do."""
    failed = [f"  {name}: {reason}" for name, reason in outcome.failed.items()]
    head = f"{count_text(len(failed), 'run')} failed, the others went on; the same command tries again what failed:"
    return "\n".join([head, *failed])


def _left(outcome: SweepOutcome) -> Iterator[str]:
    """What this process did not do."""
    if outcome.results.complete and not outcome.did:
        yield "all runs were finished before; nothing to do"
    if outcome.busy:
        yield f"another process works on {', '.join(outcome.busy)}; the same command shows the results when it is done"
    if outcome.elsewhere:
        yield f"{count_text(outcome.elsewhere, 'run')} of other parts (--shard) to come, or to be copied here"


def summary_table(results: SweepResults) -> Table:
    """A row per variant: score, spread over seeds, difference to the baseline with its interval. References below."""
    headline = results.headline
    selects = any(variant.choice is not None for variant in results.variants)
    compared = [variant for variant in results.variants if variant.role == "variant"]
    others = [variant for variant in results.variants if variant.role != "variant"]
    selected = ["selected"] if selects else []
    return Table(
        header=("variant", *selected, "seeds", headline.word, "sd of seeds", "difference", "95 % interval"),
        rows=tuple(_row(variant, selects, results.baseline) for variant in compared),
        footer=tuple(_row(variant, selects, results.baseline) for variant in others),
        note=f"{headline.word} after the last round, the mean over sites. Differences to {results.baseline} are "
        f"{headline.case} by {headline.case}; intervals by bootstrap over the {headline.cases} of a site.",
    )


def _row(variant: VariantResult, selects: bool, baseline: str) -> tuple[str, ...]:
    effect = None if variant.effect is None else variant.effect.overall
    chosen = UNDEFINED if variant.choice is None else choice_text(variant.choice)
    is_baseline = variant.role == "variant" and variant.name == baseline
    return (
        variant.name,
        *([chosen] if selects else []),
        str(len(variant.seeds)),
        number_text(None if variant.score is None else variant.score.mean),
        number_text(variant.seeds_sd),
        "baseline" if is_baseline else UNDEFINED if effect is None else signed_text(effect.mean),
        UNDEFINED if effect is None else _interval_text(effect),
    )


def _interval_text(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return UNDEFINED
    return f"{signed_text(interval.low)} to {signed_text(interval.high)}"


def tuning_lines(records: SweepRecords) -> Iterator[str]:
    """What selecting cost: every variant has the same number of runs, or it is said which has not."""
    over = (records.plan.get("definition", {}).get("select") or {}).get("over", "a setting")
    budgets: dict[str, list[str]] = {}
    for variant in records.variants:
        if variant.values:
            seeds = len({cell.seed for cell in variant.cells})
            values, runs = count_text(len(variant.values), "value"), count_text(variant.tuning_runs, "run")
            budgets.setdefault(f"{values} of {over} x {count_text(seeds, 'seed')} = {runs}", []).append(variant.name)
    cases = records.headline.cases
    for budget, names in budgets.items():
        yield from textwrap.wrap(f"Tuning, each on its own validation {cases}: {budget} for {', '.join(names)}.", WIDTH)
