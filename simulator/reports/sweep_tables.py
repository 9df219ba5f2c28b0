"""The tables on the page of a sweep, from its results alone; every cell is text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..headline import Headline
from ..results import RunRecords
from ..sweeps.records import CellRecord, SweepRecords
from ..sweeps.results import Effect, Interval, SiteNumber, SweepResults, VariantResult, choice_text
from . import sweep_figures
from .page import UNDEFINED, Table, bytes_text, count_text, number_text, seconds_text, signed_text

ROLE_NAMES = {"local": "local only", "pooled": "pooled", "zero_shot": "zero-shot", "best_site": "best single site"}
"""References in words."""


def compared(results: SweepResults) -> list[VariantResult]:
    """The variants without the references, in the order of the plan."""
    return [variant for variant in results.variants if variant.role == "variant"]


def ranked(results: SweepResults) -> list[VariantResult]:
    """The variants from the highest score to the lowest, those without one last. Of equals the first in the plan."""
    return sorted(compared(results), key=lambda variant: -mean_of(variant.score, -1.0))


def called(name: str, role: str) -> str:
    """The name of a variant, and of a reference in words.

    Example:
        >>> called("local of fedavg", "local"), called("fedavg", "variant")
        ('local only of fedavg', 'fedavg')
    """
    return name.replace(role, ROLE_NAMES[role], 1) if role in ROLE_NAMES else name


def mean_of(number: Interval | None, without: float) -> float:
    """The mean of a number, or what stands for it where there is none."""
    return without if number is None else number.mean


def reference_values(results: SweepResults) -> dict[str, list[float]]:
    """The different scores that a reference reached for the variants, by role."""
    found: dict[str, list[float]] = {}
    for role in ROLE_NAMES:
        values = (variant.references.get(role) for variant in compared(results))
        found[role] = list(dict.fromkeys(value for value in values if value is not None))
    return {role: values for role, values in found.items() if values}


def interval_text(number: Interval | None, *, signed: bool = False) -> str:
    """``0.712 [0.690, 0.733]``; signed: ``+0.021 [-0.003, +0.044]``; a dash where there is none.

    Example:
        >>> interval_text(Interval(mean=0.0214, low=-0.003, high=0.0441), signed=True)
        '+0.021 [-0.003, +0.044]'
        >>> interval_text(Interval(mean=0.5, low=None, high=None))
        '0.500'
    """
    if number is None:
        return UNDEFINED
    return sweep_figures.interval_text(number.mean, number.low, number.high, signed=signed)


# ---- ranking ---------------------------------------------------------------------------------------------------------


def _ranking_header(headline: Headline) -> tuple[str, ...]:
    word = f"{headline.word} [95 %]"
    return ("variant", word, "SD", "difference [95 %]", "worst site", "gain [95 %]", "sent", "time")


def ranking_table(results: SweepResults) -> Table:
    """Every variant with its intervals and costs, best first; the references below."""
    references = [variant for variant in results.variants if variant.role != "variant" and variant.score is not None]
    headline = results.headline
    header, cases, word = _ranking_header(headline), headline.cases, headline.word_inside
    blank = ("",) * (len(header) - 2)
    footer = [
        *(_ranking_row(variant, results.baseline) for variant in references),
        *((name, number_text(value), *blank) for name, value in _best_sites(results).items()),
    ]
    return Table(
        header=header,
        rows=tuple(_ranking_row(variant, results.baseline) for variant in ranked(results)),
        footer=tuple(footer),
        note=(
            f"{headline.word}: of the test {cases} after the last round; the mean over seeds of each {headline.case},"
            f" then over the {cases} of a site, then over sites. [95 %]: bootstrap interval over the {cases} within"
            f" sites. SD: standard deviation of the runs' {word} over seeds. Difference: to {results.baseline},"
            f" {headline.case} by {headline.case}. Worst site: where that is lowest. Gain: over hospitals that train"
            " alone. Sent: bytes both ways, all hospitals, whole run. Time: wall clock of the rounds of a run. Below"
            " the line: references. Steps and the numbers sent are under Communication and work."
        ),
    )


def _best_sites(results: SweepResults) -> dict[str, float]:
    """The score of the best single site; of each, where variants differ in more than the aggregator."""
    values = {variant.name: variant.references.get("best_site") for variant in compared(results)}
    first = {value: name for name, value in reversed(values.items()) if value is not None}
    name = ROLE_NAMES["best_site"]
    found = {f"{name} of {who}" if len(first) > 1 else name: value for value, who in first.items()}
    return dict(reversed(found.items()))


def _ranking_row(variant: VariantResult, baseline: str) -> tuple[str, ...]:
    cost, effect = variant.cost, variant.effect
    named = called(variant.name, variant.role)
    return (
        f"{named} (baseline)" if variant.name == baseline else named,
        interval_text(variant.score),
        number_text(variant.seeds_sd),
        interval_text(_overall(effect), signed=True) if variant.role == "variant" else "",
        _worst_text(effect) if variant.role == "variant" else "",
        interval_text(_overall(variant.gain), signed=True) if variant.role == "variant" else "",
        UNDEFINED if cost is None else bytes_text(cost.bytes_up + cost.bytes_down),
        UNDEFINED if variant.seconds is None else seconds_text(variant.seconds),
    )


def _overall(effect: Effect | None) -> Interval | None:
    return None if effect is None else effect.overall


def _worst_text(effect: Effect | None) -> str:
    """``-0.021, Basel``."""
    if effect is None:
        return UNDEFINED
    worst = next(number for number in effect.sites if number.site == effect.worst_site)
    return f"{signed_text(worst.value.mean)}, {worst.site}"


def others_table(results: SweepResults) -> Table | None:
    """The scores that no single case has, without intervals; None where a task has none.

    Two different numbers of each: the mean over the hospitals, and over the images of all hospitals in one heap.
    """
    headline = results.headline
    whole = {other.key: other.word for other in headline.others if not other.per_class}
    ordered = [*ranked(results), *(variant for variant in results.variants if variant.role != "variant")]
    rows = tuple(
        (
            called(variant.name, variant.role),
            number_text(None if variant.score is None else variant.score.mean),
            *(number_text(variant.others.get(key)) for key in whole),
            *(number_text(variant.together.get(key)) for key in (headline.key, *whole)),
        )
        for variant in ordered
        if variant.seeds
    )
    if not whole or not rows:
        return None
    words = [headline.word_inside, *(other.short for other in headline.others if not other.per_class)]
    return Table(
        header=("variant", headline.word, *whole.values(), *(f"{word}, together" for word in words)),
        rows=rows,
        note=(
            f"After the last round, on the test {headline.cases}; means over seeds, without intervals. Without a word:"
            f" the mean over the hospitals that train, each of which counts alike. Together: over the {headline.cases}"
            " of all hospitals in one heap, where hospitals with many count more."
        ),
    )


def slope_table(results: SweepResults) -> Table | None:
    """The line through the scores of the variants; None where there is none."""
    slope = results.slope
    if slope is None:
        return None
    share = UNDEFINED if slope.r_squared is None else f"{slope.r_squared:.3f}"
    row = (
        results.headline.word,
        str(slope.variants),
        f"{slope.per_decade:+.4f}",
        UNDEFINED if slope.low is None else f"{slope.low:+.4f} to {slope.high:+.4f}",
        share,
    )
    return Table(
        header=("score", "variants", "slope per decade", "95 % interval", "R²"),
        rows=(row,),
        note=(
            "Slope: what ten times as many parameters sent per round and hospital go with; ordinary least squares over"
            f" the variants, interval by Student's t with {count_text(slope.variants - 2, 'degree')} of freedom. It"
            f" is over {count_text(slope.variants, 'variant')} that differ in more than what they send: it describes"
            " these, and says little of others."
        ),
    )


def remarks(results: SweepResults) -> dict[str, str]:
    """What a reader has to know of a variant, by its name."""
    found = {
        variant.name: [*variant.warnings, *(variant.effect.warnings if variant.effect is not None else ())]
        for variant in results.variants
    }
    return {name: "; ".join(dict.fromkeys(texts)) for name, texts in found.items() if texts}


# ---- sites -----------------------------------------------------------------------------------------------------------

SitesOf = Callable[[VariantResult], Sequence[SiteNumber]]


def score_sites(variant: VariantResult) -> Sequence[SiteNumber]:
    """The score per site."""
    return variant.sites


def effect_sites(variant: VariantResult) -> Sequence[SiteNumber]:
    """Differences to the baseline per site."""
    return () if variant.effect is None else variant.effect.sites


def all_sites(variants: Iterable[VariantResult]) -> list[str]:
    """The sites that any of the variants is scored at, sorted by name."""
    return sorted({number.site for variant in variants for number in variant.sites})


def site_table(variants: Sequence[VariantResult], sites_of: SitesOf, *, signed: bool, note: str) -> Table:
    """A row per site, a column per variant; ``*`` marks sites that the variant left out of its training."""
    numbers = {variant.name: {number.site: number for number in sites_of(variant)} for variant in variants}
    rows = tuple(
        (site, *(_site_text(numbers[variant.name].get(site), signed) for variant in variants))
        for site in all_sites(variants)
    )
    return Table(header=("site", *(variant.name for variant in variants)), rows=rows, note=note)


def _site_text(number: SiteNumber | None, signed: bool) -> str:
    if number is None:
        return UNDEFINED
    return interval_text(number.value, signed=signed) + (" *" if number.unseen else "")


def unseen_table(results: SweepResults) -> Table | None:
    """A row per variant and site that it left out of the training; None where there is none."""
    rows = [
        (variant.name, number.site, str(number.cases), interval_text(number.value), _difference_at(variant, number))
        for variant in compared(results)
        for number in variant.sites
        if number.unseen
    ]
    means = [
        (variant.name, "all of them", "", interval_text(variant.unseen), _unseen_difference(variant))
        for variant in compared(results)
        if sum(number.unseen for number in variant.sites) > 1
    ]
    if not rows:
        return None
    headline = results.headline
    there = f"{headline.word} there [95 %]"
    return Table(
        header=("variant", "site it never saw", headline.cases, there, "difference [95 %]"),
        rows=(*rows, *means),
        note=(
            f"A site that was left out is scored with the global model. Difference: to {results.baseline} at the same"
            f" {headline.cases}; where that one trained with the site, it is what a hospital loses by staying out."
        ),
    )


def _unseen_difference(variant: VariantResult) -> str:
    return interval_text(None if variant.effect is None else variant.effect.unseen, signed=True)


def _difference_at(variant: VariantResult, at: SiteNumber) -> str:
    found = [number for number in effect_sites(variant) if number.site == at.site]
    return interval_text(found[0].value, signed=True) if found else UNDEFINED


# ---- selection -------------------------------------------------------------------------------------------------------


def selection_table(records: SweepRecords, results: SweepResults, over: str) -> Table | None:
    """Validation score of every value that was tried; None where nothing is selected."""
    tuned = [variant for variant in results.variants if variant.validation]
    if not tuned:
        return None
    word, cases = results.headline.word_inside, results.headline.cases
    values = list(dict.fromkeys(value for variant in tuned for value in variant.validation))
    rows = tuple(
        (
            variant.name,
            *(_tried_text(variant, value) for value in values),
            UNDEFINED if variant.choice is None else choice_text(variant.choice),
            interval_text(variant.score),
            str(records.named(variant.name).tuning_runs),
        )
        for variant in tuned
    )
    return Table(
        header=("variant", *(f"{over} {value}" for value in values), "chosen", f"test {word} [95 %]", "runs"),
        rows=rows,
        note=(
            f"Mean {word} of the validation {cases} after the last round, over hospitals and seeds; * marks the value"
            f" that was chosen by it. Test {cases} were scored for the chosen value only. Runs: values x seeds, the"
            " tuning budget; a comparison is fair where it is the same for all."
        ),
    )


def _tried_text(variant: VariantResult, value: str) -> str:
    chosen = variant.choice is not None and choice_text(variant.choice) == value
    return number_text(variant.validation.get(value)) + (" *" if chosen else "")


# ---- costs -----------------------------------------------------------------------------------------------------------


def cost_table(results: SweepResults) -> Table:
    """What every variant sends and how long that takes."""
    rows = tuple(
        (
            variant.name,
            f"{cost.parameters_up:,.0f}",
            bytes_text(cost.bytes_up),
            bytes_text(cost.bytes_down),
            _hours_text(cost.hours_10),
            _hours_text(cost.hours_100),
            f"{cost.paper_overhead:.3g}",
            f"{cost.steps:,.0f}",
        )
        for variant in results.variants
        if (cost := variant.cost) is not None
    )
    return Table(
        header=("variant", "numbers per update", "up", "down", "at 10 Mbit/s", "at 100 Mbit/s", "overhead", "steps"),
        rows=rows,
        note=(
            "Means over seeds. Up, down: bytes of all hospitals over the run. At 10 and 100 Mbit/s: how long one"
            " hospital, the mean one, sends and receives over the run. Overhead: in gibibits, 32 x numbers x rounds /"
            " 2^30, as FLAP-SAM (arXiv 2407.21739) prints it. Pooled: nothing travels but the cases, before training."
        ),
    )


def _hours_text(hours: float) -> str:
    """``3.2 h``, ``4.1 min`` or ``12 s``."""
    seconds = 3600 * hours
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{hours:.1f} h"


def ledger_table(records: SweepRecords) -> Table:
    """What the hospitals did in all finished runs of each variant that count."""
    rows = tuple(
        _ledger_row(variant.name, [cell.records for cell in variant.finished if cell.records is not None])
        for variant in records.variants
    )
    return Table(
        header=("variant", "runs", "rounds", "updates", "dropped", "steps", "down", "up"),
        rows=rows,
        note=(
            "Sums over the finished runs that count: rounds; updates that hospitals sent, and times that one dropped"
            " out; optimizer steps; bytes."
        ),
    )


def _ledger_row(name: str, runs: Sequence[RunRecords]) -> tuple[str, ...]:
    rows = [row for run in runs for row in run.ledger]
    dropped = sum(row.status == "dropped" for row in rows)
    return (
        name,
        str(len(runs)),
        str(sum(run.rounds for run in runs)),
        f"{len(rows) - dropped:,}",
        f"{dropped:,}",
        f"{sum(row.steps for row in rows):,}",
        bytes_text(sum(row.bytes_down for row in rows)),
        bytes_text(sum(row.bytes_up for row in rows)),
    )


# ---- runs ------------------------------------------------------------------------------------------------------------


def run_table(records: SweepRecords, results: SweepResults, link: Callable[[CellRecord], str] | None = None) -> Table:
    """Every run: how far it is and what it reached.

    Args:
        records: The sweep.
        results: Its numbers.
        link: Makes the cell with the run's folder; None: its name.
    """
    named = {variant.name: variant for variant in results.variants}
    where, word = link or run_name, results.headline.word_inside
    rows = tuple(
        (
            cell.key,
            cell.state,
            number_text(_score_of(records, cell, named[cell.variant])),
            number_text(cell.validation_score) if cell.choice is not None else "",
            seconds_text(cell.records.seconds) if cell.records is not None else UNDEFINED,
            where(cell),
        )
        for cell in records.cells
    )
    return Table(
        header=("run", "state", f"test {word}", f"validation {word}", "time", "page"),
        rows=rows,
        note=(
            f"{results.headline.word}: the mean over sites after the last round. Held: test {results.headline.cases}"
            " wait until a value is chosen, or another one was. Missing: not begun, or not on this machine."
        ),
    )


def _score_of(records: SweepRecords, cell: CellRecord, result: VariantResult) -> float | None:
    counts = cell.state == "finished" and (cell.choice is None or cell.choice == result.choice)
    return result.per_seed.get(cell.seed) if counts else None


def run_name(cell: CellRecord) -> str:
    """``tiny/675bf4289702``."""
    return "/".join(cell.path.parts[-2:])


def states_text(cells: Sequence[CellRecord]) -> str:
    """``18 finished, 5 held, 1 failed``."""
    states = [cell.state for cell in cells]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


MANIFEST = {
    "package": ("wardround",),
    "code": ("environment", "code_hash"),
    "torch": ("environment", "torch"),
    "Python": ("environment", "python"),
    "device": ("environment", "device"),
    "processor": ("environment", "cpu"),
    "threads": ("environment", "threads"),
    "precision": ("precision",),
    "deterministic": ("deterministic",),
    "data": ("data_hash",),
    "weights": ("weights_hash",),
    "experiments": ("experiments_file",),
}
"""What the page says of where the runs were made, and where a manifest has it."""


def manifest_facts(records: SweepRecords) -> dict[str, str]:
    """Every value that a manifest of the runs has, with the number of its runs where there is more than one."""
    manifests = [cell.records.manifest for cell in records.cells if cell.records is not None]
    found = {name: [_deep(manifest, keys) for manifest in manifests] for name, keys in MANIFEST.items()}
    return {name: _values_text(values) for name, values in found.items() if any(value is not None for value in values)}


def _values_text(values: Sequence[Any]) -> str:
    texts = ["none" if value is None else str(value) for value in values]
    different = dict.fromkeys(texts)
    if len(different) == 1:
        return texts[0]
    return "; ".join(f"{text} ({count_text(texts.count(text), 'run')})" for text in different)


def _deep(values: Mapping[str, Any], keys: Sequence[str]) -> Any:
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
