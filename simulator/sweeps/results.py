"""What a sweep found out, in numbers: scores, differences with intervals, costs. The report only draws what is here.

Every number is of the last round of a finished run. The score of a case is averaged over the seeds first; then over the
cases of a site, then over the sites. A case is a volume of a segmentation, scored by its Dice, or an image of a
classification, which is 1 where it was told right and 0 where not. Intervals come from :mod:`.statistics`.

Sites that were left out of the training (``split.leave_out``) have numbers of their own, beside the mean over the sites
that train: the first says what a new hospital can expect, the second whether the others suffer. A hospital that is left
out is paired, case by case, with itself where it trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from ..headline import Headline
from ..results import UNSEEN, CaseRow, FinalScores, RunRecords, mean
from .best_site import BestSite, best_single_site
from .checks import check_cells
from .costs import Cost, CurvePoint, cost, curve
from .records import SweepRecords, VariantRecord
from .slope import Slope, fit
from .statistics import (
    Interval,
    Paired,
    Scores,
    Volume,
    adjusted,
    by_site,
    center,
    counted,
    mean_over_sites,
    named,
    over_seeds,
    paired,
    per_seed,
    spread,
    too_few,
    undefined,
    verdict,
)

__all__ = [
    "Cost",
    "CurvePoint",
    "Effect",
    "Interval",
    "SiteNumber",
    "Slope",
    "SweepResults",
    "VariantResult",
    "analyse",
    "cases_rows",
    "choice_text",
    "results_json",
    "variants_rows",
]

SCORED = ("test", UNSEEN)
"""The splits that a sweep compares."""


@dataclass(frozen=True, kw_only=True)
class SiteNumber:
    """A score, or a difference of two, at one site.

    Args:
        site: Its name.
        unseen: Whether the site was left out of the training (of the variant, not of what it is compared with).
        cases: How many volumes or images are behind it.
        value: The number.
    """

    site: str
    unseen: bool
    cases: int
    value: Interval


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The paired difference of a variant to something else, case by case: above 0 the variant is better.

    Args:
        against: What it is compared with.
        overall: Over the sites that both train (or, where there is none, over all that both are scored at).
        unseen: Over the sites that the variant left out, None without. In a sweep that leaves out one site after the
            other this is the number that matters, and ``overall`` says whether the others suffer.
        sites: Per site, those that were left out too.
        worst_site: Which of the sites of ``overall`` has the lowest difference.
        per_seed: ``overall``, seed by seed.
        seeds_sd: Standard deviation of those, None with fewer than two.
        cases: Pairs of cases behind ``overall``.
        unpaired: Cases that only one of the two was scored on.
        undefined: Pairs (cases times seeds) that are left out as a score is undefined.
        few: What there is too little of to say much, in plain words.
        warnings: What else a reader has to know.
    """

    against: str
    overall: Interval
    unseen: Interval | None = None
    sites: tuple[SiteNumber, ...]
    worst_site: str
    per_seed: Mapping[int, float]
    seeds_sd: float | None
    cases: int
    unpaired: int
    undefined: int = 0
    few: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def told(self) -> bool:
        """Whether a difference can be told: the interval leaves out 0, and the seeds move it by less than its size.

        An interval that is too narrow leaves out 0 too often: see ``few``.
        """
        return not self.overall.includes_zero and abs(self.overall.mean) > (self.seeds_sd or 0.0)


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """What one variant, or a reference, reached.

    Args:
        name: Its name.
        role: ``variant``, ``local``, ``pooled`` or ``zero_shot``.
        seeds: The seeds that are finished.
        score: The mean over the sites that train; None where nothing is finished. For the local reference every
            hospital is scored with its own model, and the common test set and sites that are left out with those of
            all hospitals, the mean.
        unseen: The mean over the sites that were left out of the training, None without.
        per_seed: The same, seed by seed.
        seeds_sd: Standard deviation of those, None with fewer than two.
        sites: Per site, those that were left out too.
        worst_site: The site with the lowest score of those that train, None where nothing is finished.
        undefined: Scores (cases times seeds) that are left out as they are undefined.
        effect: Against the baseline; None for the baseline itself, and for references.
        gain: Against its local reference, site by site and the mean over sites (FLAP-SAM's collaborative gain); None
            without.
        references: Scores of its references, the mean over the sites that train: ``local``, ``pooled``, ``zero_shot``,
            ``best_site``; None where nothing is finished.
        cost: What it sent and computed.
        curve: Round by round, where test cases were scored on the way.
        choice: The selected value, None where nothing is selected.
        validation: Mean validation score of every value that was tried, as text; empty where nothing is selected.
        others: The headline's other scores that no single case has, by metric: the mean over the seeds of the mean over
            the hospitals that train. Without intervals.
        together: The headline and those, over the images of all hospitals in one heap; the mean over the seeds.
        seconds: Wall-clock seconds of a run, the mean. Not reproducible: left out of the JSON.
        warnings: What a reader has to know.
    """

    name: str
    role: str
    seeds: tuple[int, ...]
    score: Interval | None = None
    unseen: Interval | None = None
    per_seed: Mapping[int, float] = field(default_factory=dict)
    seeds_sd: float | None = None
    sites: tuple[SiteNumber, ...] = ()
    worst_site: str | None = None
    undefined: int = 0
    effect: Effect | None = None
    gain: Effect | None = None
    references: Mapping[str, float | None] = field(default_factory=dict)
    cost: Cost | None = None
    curve: tuple[CurvePoint, ...] = ()
    choice: Any = None
    validation: Mapping[str, float | None] = field(default_factory=dict)
    others: Mapping[str, float | None] = field(default_factory=dict)
    together: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """All numbers of a sweep.

    Args:
        sweep: Its name.
        baseline: Name of the variant that the others are compared with.
        variants: In the order of the plan; references last.
        headline: What all runs are judged by.
        slope: The scores against the parameters that are sent; None with fewer than three variants that differ in it.
        complete: Whether every run that counts is finished.
        warnings: What a reader has to know of the whole: cells that are missing or ran different code, few cases,
            many comparisons.
    """

    sweep: str
    baseline: str
    variants: tuple[VariantResult, ...]
    headline: Headline
    slope: Slope | None
    complete: bool
    warnings: tuple[str, ...] = ()


def analyse(records: SweepRecords) -> SweepResults:
    """All numbers of a sweep, finished or not.

    Raises:
        ValueError: its runs have different tasks.
    """
    headline = records.headline
    measured = _Measured(records=records)
    variants = tuple(_result(measured, variant) for variant in records.variants)
    return SweepResults(
        sweep=records.name,
        baseline=records.baseline.name,
        variants=variants,
        headline=headline,
        slope=fit(sent_and_scored(variants)),
        complete=not records.unfinished,
        warnings=(*check_cells(records), *_unlike(variants, headline), *_few(variants), *_many(variants)),
    )


def sent_and_scored(variants: Iterable[VariantResult]) -> list[tuple[float, float]]:
    """Per variant that sends something: the numbers that a hospital sends in a round, and the score."""
    return [
        (variant.cost.parameters_up, variant.score.mean)
        for variant in variants
        if variant.role == "variant" and variant.score is not None
        if variant.cost is not None and variant.cost.parameters_up > 0
    ]


# --- what was measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """The scores of a sweep, each read once."""

    records: SweepRecords
    known: dict[str, Scores] = field(default_factory=dict)
    best: dict[str, dict[int, BestSite]] = field(default_factory=dict)

    def scores(self, name: str) -> Scores:
        """Scores of the cases in the last round of a variant's finished runs."""
        if name not in self.known:
            read = {cell.seed: _scores(cell.measured) for cell in self.records.named(name).finished}
            self.known[name] = {seed: scores for seed, scores in read.items() if scores}
        return self.known[name]

    def best_sites(self, local: str) -> Mapping[int, BestSite]:
        """The best single site of every seed; none where models were not scored at other sites."""
        if local not in self.best:
            cells = self.records.named(local).finished if self.asks_for_best_site else ()
            self.best[local] = {cell.seed: best_single_site(cell.measured) for cell in cells if cell.measured.across}
        return self.best[local]

    @property
    def headline(self) -> Headline:
        """What all runs are judged by."""
        return self.records.headline

    @property
    def asks_for_best_site(self) -> bool:
        """Whether the best single site is one of the sweep's references."""
        return "best_site" in self.records.plan.get("definition", {}).get("references", ())

    @cached_property
    def left_out(self) -> dict[str, frozenset[str]]:
        """The sites that each variant left out of the training."""
        return {
            variant.name: frozenset(site for cell in variant.finished for site in cell.measured.unseen)
            for variant in self.records.variants
        }


def _last(records: RunRecords) -> list[CaseRow]:
    """The rows of test cases after the last round that scored them."""
    scored = [row for row in records.cases if row.split in SCORED]
    last = max((row.round for row in scored), default=None)
    return [row for row in scored if row.round == last]


def _scores(records: RunRecords) -> dict[Volume, float | None]:
    """The score of every case after the last round.

    Hospitals that stay alone have no model for a site that does not train (its row is of the initial values). What
    counts there is the mean over the models of all hospitals, where the run scored them.
    """
    key = records.headline.key
    scores = {(row.hospital, row.case): row.value for row in _last(records) if row.metric == key}
    if not records.stays_alone:
        return scores
    foreign = records.untrained
    under: dict[Volume, list[float | None]] = {}
    for row in records.across:
        if row.metric == key and row.split in SCORED and row.hospital in foreign:
            under.setdefault((row.hospital, row.case), []).append(row.value)
    own = {case: value for case, value in scores.items() if case[0] not in foreign}
    return own | {case: mean(values) for case, values in under.items()}


# --- a variant --------------------------------------------------------------------------------------------------------


def _result(measured: _Measured, variant: VariantRecord) -> VariantResult:
    scores, left_out = measured.scores(variant.name), measured.left_out[variant.name]
    summary = _summary(over_seeds(scores), left_out, left_out)
    seeds = per_seed(_at_sites(scores, summary.main))
    compared = variant.role == "variant"
    baseline = measured.records.baseline.name
    effect = _effect(measured, variant, baseline) if compared and variant.name != baseline else None
    gain = _effect(measured, variant, variant.references["local"]) if "local" in variant.references else None
    return VariantResult(
        name=variant.name,
        role=variant.role,
        seeds=tuple(sorted(scores)),
        score=summary.overall,
        unseen=summary.unseen,
        per_seed=seeds,
        seeds_sd=spread(seeds.values()),
        sites=summary.sites,
        worst_site=summary.worst_site,
        undefined=undefined(scores),
        effect=effect,
        gain=gain,
        references=_references(measured, variant),
        cost=cost(variant),
        curve=curve(variant),
        choice=variant.choice,
        validation=_validation(variant),
        others=_others(variant, measured.headline),
        together=_together(variant, measured.headline),
        seconds=mean(cell.measured.seconds for cell in variant.finished),
        warnings=tuple(_variant_warnings(measured, variant, effect)),
    )


def _others(variant: VariantRecord, headline: Headline) -> dict[str, float | None]:
    """Means over the seeds and the hospitals; not of hospitals that stay alone at a test set of nobody."""
    runs = [cell.measured for cell in variant.finished]
    scores = [[score for score in run.final() if score.hospital not in run.untrained] for run in runs]
    keys = [other.key for other in headline.others if not other.per_class]
    return {key: mean(mean(score.others[key] for score in of_run) for of_run in scores) for key in keys}


def _together(variant: VariantRecord, headline: Headline) -> dict[str, float | None]:
    """Means over the seeds of the scores over all images in one heap; empty where a task has none."""
    if not headline.pools:
        return {}
    found = [score for cell in variant.finished if (score := cell.measured.together()) is not None]
    names = [headline.key, *(other.key for other in headline.others if not other.per_class)]
    return {name: mean(_named_score(score, name, headline) for score in found) for name in names}


def _named_score(score: FinalScores, name: str, headline: Headline) -> float | None:
    return score.score if name == headline.key else score.others[name]


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """Numbers per case, summed up: ``main`` are the sites behind ``overall``."""

    main: tuple[str, ...]
    overall: Interval | None
    unseen: Interval | None
    sites: tuple[SiteNumber, ...]

    @property
    def worst_site(self) -> str | None:
        """Of the sites behind ``overall`` the one with the lowest number."""
        main = [number for number in self.sites if number.site in self.main]
        return min(main, key=lambda number: number.value.mean).site if main else None


def _summary(values: Mapping[Volume, float], unseen: frozenset[str], apart: frozenset[str]) -> _Summary:
    """Over sites and per site.

    Args:
        values: A number per case.
        unseen: Sites that are marked as left out, with a mean of their own.
        apart: Sites that are not in ``overall``, unless there are no others.
    """
    samples = by_site(values)
    main = tuple(site for site in samples if site not in apart) or tuple(samples)
    new = [site for site in samples if site in unseen]
    return _Summary(
        main=main,
        overall=mean_over_sites({site: samples[site] for site in main}) if main else None,
        unseen=mean_over_sites({site: samples[site] for site in new}) if new else None,
        sites=tuple(
            SiteNumber(site=site, unseen=site in unseen, cases=len(found), value=mean_over_sites({site: found}))
            for site, found in samples.items()
        ),
    )


def _at_sites(scores: Scores, sites: Sequence[str]) -> Scores:
    """The scores at some of the sites."""
    return {
        seed: {volume: value for volume, value in found.items() if volume[0] in sites} for seed, found in scores.items()
    }


# --- differences ------------------------------------------------------------------------------------------------------


def _effect(measured: _Measured, variant: VariantRecord, against: str) -> Effect | None:
    """The difference to another variant or reference; None as long as there is no pair of cases."""
    pairs = paired(measured.scores(variant.name), measured.scores(against))
    values = over_seeds(pairs.differences)
    if not values:
        return None
    unseen = measured.left_out[variant.name]
    apart = unseen | measured.left_out[against]
    summary = _summary(values, unseen, apart)
    assert summary.overall is not None  # there are values
    assert summary.worst_site is not None
    seeds = per_seed(_at_sites(pairs.differences, summary.main))
    sd = spread(seeds.values())
    samples = by_site(values)
    return Effect(
        against=against,
        overall=summary.overall,
        unseen=summary.unseen,
        sites=summary.sites,
        worst_site=summary.worst_site,
        per_seed=seeds,
        seeds_sd=sd,
        cases=sum(len(samples[site]) for site in summary.main),
        unpaired=pairs.unpaired,
        undefined=pairs.undefined,
        few=_too_few(summary, values, len(seeds), measured.headline.case),
        warnings=tuple(_effect_warnings(measured, variant, against, pairs, summary, sd)),
    )


def _too_few(summary: _Summary, values: Mapping[Volume, float], seeds: int, case: str) -> tuple[str, ...]:
    samples = by_site(values)
    found = list(too_few({site: samples[site] for site in summary.main}, seeds, case=case))
    new = {number.site: samples[number.site] for number in summary.sites if number.unseen}
    if new and not set(new) <= set(summary.main):
        found += too_few(new, seeds, f"at {named(list(new))}, left out of the training", case)
    return tuple(dict.fromkeys(found))


def _effect_warnings(
    measured: _Measured, variant: VariantRecord, against: str, pairs: Paired, summary: _Summary, sd: float | None
) -> Iterable[str]:
    assert summary.overall is not None
    headline = measured.headline
    planned = {cell.seed for cell in (*variant.cells, *measured.records.named(against).cells)}
    waiting = sorted(planned - pairs.differences.keys())
    new = [number for number in summary.sites if number.unseen and number.site not in summary.main]
    if waiting:
        yield f"{_seeds(waiting)} left out: not finished, with test scores, for both it and {against}"
    if pairs.unpaired:
        yield f"{counted(pairs.unpaired, headline.case)} left out: scored for only one of it and {against}"
    if pairs.undefined:
        yield f"{counted(pairs.undefined, 'pair')} of scores left out: the {headline.word_inside} of one is undefined"
    yield from verdict(summary.overall, sd)
    if new and summary.unseen is not None:
        yield from verdict(summary.unseen, None, f"at {named([number.site for number in new])}, left out: ")
    foreign = sorted({number.site for number in summary.sites} - set(summary.main) - {n.site for n in new})
    if foreign:
        yield f"{named(foreign)} not in the overall difference: {against} was not trained there"
    if summary.main and set(summary.main) <= measured.left_out[variant.name] | measured.left_out[against]:
        yield f"no site that both it and {against} were trained at: the overall difference is over all others"


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _references(measured: _Measured, variant: VariantRecord) -> dict[str, float | None]:
    """Mean scores of the references, over the sites that train."""
    found = {role: _level(measured.scores(name), measured.left_out[name]) for role, name in variant.references.items()}
    local = variant.references.get("local")
    if local is not None and measured.asks_for_best_site:
        under = {seed: best.per_case for seed, best in measured.best_sites(local).items()}
        found["best_site"] = _level(under, measured.left_out[local])
    return found


def _level(scores: Scores, left_out: frozenset[str]) -> float | None:
    """The mean over sites that train; over all where none does."""
    samples = by_site(over_seeds(scores))
    main = {site: found for site, found in samples.items() if site not in left_out} or samples
    return center(main) if main else None


def _variant_warnings(measured: _Measured, variant: VariantRecord, effect: Effect | None) -> Iterable[str]:
    scores, baseline = measured.scores(variant.name), measured.records.baseline.name
    headline = measured.headline
    waiting = sorted({cell.seed for cell in variant.cells} - scores.keys())
    if waiting:
        yield f"{_seeds(waiting)} not finished"
    yield from variant.selection_warnings
    if missing := undefined(scores):
        yield f"{counted(missing, 'score')} left out: the {headline.word_inside} is undefined"
    if scores and effect is None and variant.role == "variant" and variant.name != baseline:
        yield f"not compared with {baseline}: no seed, site and {headline.case} is scored for both"
    local = variant.references.get("local")
    if local is not None and measured.records.named(local).finished and not measured.scores(local):
        yield "no gain: the local models were not scored on the common test set; best_site in `references` asks for it"
    if local is not None and any(best.chosen_on == "test" for best in measured.best_sites(local).values()):
        yield (
            f"the best single site was chosen on the test {headline.cases}, as there are no others: its "
            f"{headline.word_inside} is too high"
        )


def _validation(variant: VariantRecord) -> dict[str, float | None]:
    """Mean validation score over seeds of every value that was tried."""
    tried: dict[str, list[float | None]] = {}
    for cell in variant.cells:
        if cell.choice is not None:
            tried.setdefault(choice_text(cell.choice), []).append(cell.validation_score)
    return {text: mean(found) for text, found in tried.items()}


def choice_text(choice: Any) -> str:
    """A selected value as text: as it is, or as JSON where it is no plain value."""
    return choice if isinstance(choice, str) else json.dumps(choice)


# --- of the whole -----------------------------------------------------------------------------------------------------


def _unlike(variants: Iterable[VariantResult], headline: Headline) -> list[str]:
    """That means over different sites are no ranking."""
    compared = [variant for variant in variants if variant.role == "variant" and variant.sites]
    sites = {frozenset(number.site for number in variant.sites if not number.unseen) for variant in compared}
    if len(sites) < 2:
        return []
    return [
        f"the mean {headline.word_inside} of the variants is over different sites: compare their differences, which "
        "are paired"
    ]


def _few(variants: Iterable[VariantResult]) -> list[str]:
    """What is too small, said once for all differences that it holds for."""
    effects = {variant.name: found for variant in variants if (found := variant.effect or variant.gain)}
    who: dict[str, list[str]] = {}
    for name, effect in effects.items():
        for text in effect.few:
            who.setdefault(text, []).append(name)
    return [text if len(names) == len(effects) else f"{named(names)}: {text}" for text, names in who.items()]


def _many(variants: Iterable[VariantResult]) -> list[str]:
    """That intervals hold one by one."""
    number = sum(variant.effect is not None for variant in variants)
    if number < 2:
        return []
    return [
        f"{number} comparisons with the baseline, and every interval holds for its own alone: where nothing differs, "
        f"one in twenty leaves out 0. All of them together would need intervals at {100 * adjusted(number):.2f} % "
        "(Bonferroni)."
    ]


# --- as files ---------------------------------------------------------------------------------------------------------


def results_json(results: SweepResults) -> dict[str, Any]:
    """The results as plain JSON, without seconds, times and paths: a sweep that was continued gives the same again.

    Scores have the headline's name, ``dice`` or ``accuracy``, and cases theirs; ``slope_per_decade`` is there where it
    can be fitted, other scores where they are no case's.
    """
    plain: dict[str, Any] = json.loads(json.dumps(asdict(results)))
    del plain["headline"]
    slope = plain.pop("slope")
    plain["variants"] = [_variant_json(variant, results.headline) for variant in plain["variants"]]
    return {**plain, **({"slope_per_decade": slope} if slope is not None else {})}


def _variant_json(variant: Mapping[str, Any], headline: Headline) -> dict[str, Any]:
    left_out = {"seconds", *(() if headline.pools else ("others", "together"))}
    plain = {key: value for key, value in variant.items() if key not in left_out}
    for name in ("effect", "gain"):
        if plain[name] is not None:
            plain[name] = _with_cases({**plain[name], "sites": _sites_json(plain[name]["sites"], headline)}, headline)
    plain["sites"] = _sites_json(plain["sites"], headline)
    return {headline.key if key == "score" else key: value for key, value in plain.items()}


def _sites_json(sites: Iterable[Mapping[str, Any]], headline: Headline) -> list[dict[str, Any]]:
    return [_with_cases(site, headline) for site in sites]


def _with_cases(values: Mapping[str, Any], headline: Headline) -> dict[str, Any]:
    return {headline.cases if key == "cases" else key: value for key, value in values.items()}


def cases_rows(records: SweepRecords) -> Iterator[dict[str, Any]]:
    """Every score of every test case after the last round: a row per variant, seed, site, case and metric."""
    return (
        {
            "variant": variant.name,
            "role": variant.role,
            "seed": cell.seed,
            "choice": None if cell.choice is None else choice_text(cell.choice),
            "site": row.hospital,
            "split": row.split,
            "case": row.case,
            "metric": row.metric,
            "value": row.value,
        }
        for variant in records.variants
        for cell in variant.finished
        for row in _last(cell.measured)
    )


def variants_rows(results: SweepResults) -> list[dict[str, Any]]:
    """A row per variant and reference: its score, the difference to the baseline, the gain, its costs, other scores."""
    return [_variant_row(variant, results.headline) for variant in results.variants]


def _variant_row(variant: VariantResult, headline: Headline) -> dict[str, Any]:
    effect, gain = variant.effect, variant.gain
    costs = [item.name for item in fields(Cost)]
    return {
        "variant": variant.name,
        "role": variant.role,
        "choice": None if variant.choice is None else choice_text(variant.choice),
        "seeds": len(variant.seeds),
        **_columns(headline.key, variant.score),
        f"{headline.key}_seeds_sd": variant.seeds_sd,
        "worst_site": variant.worst_site,
        **_columns("unseen", variant.unseen),
        **_columns("effect", None if effect is None else effect.overall),
        **_columns("effect_unseen", None if effect is None else effect.unseen),
        "effect_seeds_sd": None if effect is None else effect.seeds_sd,
        "effect_pairs": None if effect is None else effect.cases,
        **_columns("gain", None if gain is None else gain.overall),
        **{name: variant.references.get(name) for name in ("local", "pooled", "zero_shot", "best_site")},
        **{name: None if variant.cost is None else getattr(variant.cost, name) for name in costs},
        **(dict(variant.others) if headline.pools else {}),
        **{headline.pooled_key(name): value for name, value in variant.together.items()},
    }


def _columns(name: str, number: Interval | None) -> dict[str, float | None]:
    if number is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: number.mean, f"{name}_low": number.low, f"{name}_high": number.high}
