"""``wardround compare``: two finished runs side by side: what was different, and what came of it, case by case.

::

    d_i = score of the second run on case i - score of the first;   difference = mean over sites of mean over cases

A case is a volume of a segmentation, scored by its Dice, or an image of a classification: 1 where it was told right, 0
where not. The interval is over cases within sites (:mod:`.sweeps.statistics`). It says nothing about another seed: that
needs a sweep.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .builder import leaves
from .headline import HIGHER, Headline
from .reports.page import UNDEFINED, Table, count_text, signed_text
from .results import UNSEEN, RunRecords, mean
from .sweeps.pairing import unpaired as drew_otherwise
from .sweeps.records import PLAN
from .sweeps.statistics import MIN_PAIRS, MIN_VOLUMES, Interval, Volume, by_site, mean_over_sites, paired

WIDTH = 100
"""Columns of a terminal."""

ABSENT = "(not there)"
"""What a setting is called in the run that has none."""

WORDS = ("purpose",)
"""Entries of a config that are for people."""

ENGINE = ("compile", "precision", "deterministic", "features_mb", "cohort_mode", "stack", "wardround")
"""Entries of a manifest that say how the run was computed."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting, or a fact about a run, that is not the same in both."""

    path: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.path}: {_value(self.left)} -> {_value(self.right)}"


@dataclass(frozen=True, kw_only=True)
class SiteDifference:
    """One site.

    Args:
        site: Its name.
        unseen: Which runs left it out of their training: none, ``left``, ``right`` or ``both``.
        cases: Pairs of cases.
        left: Mean of the first run over them.
        right: Mean of the second run over them.
        difference: Second minus first.
    """

    site: str
    unseen: str
    cases: int
    left: float
    right: float
    difference: Interval


@dataclass(frozen=True, kw_only=True)
class ScoreDifference:
    """One score over all cases that both runs were scored on.

    Args:
        name: ``Dice``, ``HD95 mm`` or ``surface Dice``; ``Accuracy``.
        left: Mean over sites of the first run.
        right: Mean over sites of the second run.
        difference: Second minus first.
        sites: Per site.
        worst_site: Where the second run does worst against the first.
        cases: Pairs of cases.
        undefined: Cases times classes that are left out, as the score of one of the two is undefined.
    """

    name: str
    left: float
    right: float
    difference: Interval
    sites: tuple[SiteDifference, ...]
    worst_site: str
    cases: int
    undefined: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs.

    Args:
        left: Folder of the first.
        right: Folder of the second.
        settings: What differs in the config.
        circumstances: What differs in data, weights, code and environment.
        headline: What both are judged by.
        scores: The headline's first; HD95 and surface Dice where they are defined.
        whole: Scores that no single case has, such as AUROC, by name: of the first and of the second run. Of the mean
            over the hospitals, and of all images together.
        only_left: Cases, per site, that only the first run was scored on.
        only_right: Cases, per site, that only the second run was scored on.
        warnings: What a reader has to know.
    """

    left: Path
    right: Path
    settings: tuple[Difference, ...]
    circumstances: tuple[Difference, ...]
    headline: Headline
    scores: tuple[ScoreDifference, ...]
    whole: Mapping[str, tuple[float, float]]
    only_left: Mapping[str, int]
    only_right: Mapping[str, int]
    warnings: tuple[str, ...]


def compare(left: Path, right: Path) -> Comparison:
    """Compares two finished runs.

    Args:
        left: Folder of the first run.
        right: Folder of the second run.

    Raises:
        ValueError: a folder is no finished run, or the two have other tasks, other classes or no case in common.
    """
    first, second = _load(left), _load(right)
    headline = first.headline
    if headline != second.headline:
        raise ValueError(
            f"expected runs of one task, got {first.task} in {left} and {second.task} in {right}: their scores are of "
            "other kinds"
        )
    if first.classes != second.classes:
        raise ValueError(
            f"expected runs that {_does(headline)} the same classes, got {list(first.classes)} in {left} and "
            f"{list(second.classes)} in {right}"
        )
    ours, theirs = _scored(first), _scored(second)
    if not ours.keys() & theirs.keys():
        raise ValueError(
            f"expected {headline.cases} that both runs were scored on, got none: "
            f"{count_text(len(ours), headline.case)} in {left}, "
            f"{len(theirs)} others in {right}; compare runs of the same data and split_seed"
        )
    settings = tuple(_differences(_settings(first.config), _settings(second.config)))
    circumstances = tuple(_differences(_circumstances(first), _circumstances(second)))
    unseen = {site: _unseen(site, first, second) for site in {*first.unseen, *second.unseen}}
    made = (
        _score(name, metrics, better, ours, theirs, unseen)
        for name, metrics, better in _scores(headline, first.classes)
    )
    scores = tuple(score for score in made if score is not None)
    only_left, only_right = _counted(ours.keys() - theirs.keys()), _counted(theirs.keys() - ours.keys())
    return Comparison(
        left=left,
        right=right,
        settings=settings,
        circumstances=circumstances,
        headline=headline,
        scores=scores,
        whole=dict(_whole(first, second)),
        only_left=only_left,
        only_right=only_right,
        warnings=tuple(_warnings(first, second, scores[0], only_left, only_right)),
    )


def _does(headline: Headline) -> str:
    return {"segmentation": "segment", "classification": "tell apart"}[headline.task]


def _load(path: Path) -> RunRecords:
    if (path / PLAN).is_file():
        raise ValueError(f"{path}: expected a run, got a sweep; its page compares all its runs: `wardround report`")
    records = RunRecords.load(path)
    if not records.finished:
        raise ValueError(
            f"{path}: expected a finished run, got one that is {records.manifest.get('state')!r} after round "
            f"{records.rounds} of {records.config.get('rounds')}; the command that began it goes on with it"
        )
    return records


# ---- what was different ----------------------------------------------------------------------------------------------


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config by path, without words for people."""
    return {path: value for path, value in leaves(config).items() if path not in WORDS}


def _circumstances(records: RunRecords) -> dict[str, Any]:
    """What a run was made of and with, beside its config; of the last process that worked on it."""
    manifest = records.manifest
    last = [manifest, *manifest.get("continued", [])][-1]
    known = {key: manifest[key] for key in ("data_hash", "weights_hash", *ENGINE) if key in manifest}
    return {**known, **last.get("environment", {})}


def _differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Difference]:
    for path in dict.fromkeys([*left, *right]):
        ours, theirs = left.get(path, ABSENT), right.get(path, ABSENT)
        if ours != theirs or isinstance(ours, bool) is not isinstance(theirs, bool):
            yield Difference(path=path, left=ours, right=theirs)


def _value(value: Any) -> str:
    """A value as an experiment would have it."""
    return value if isinstance(value, str) else json.dumps(value)


# ---- what came of it -------------------------------------------------------------------------------------------------

Scored = dict[Volume, dict[str, float | None]]
"""The scores of every case by metric."""


def _scored(records: RunRecords) -> Scored:
    """Scores of the cases of the test split, and of sites that were left out, after the last round."""
    found: Scored = {}
    for row in records.cases:
        if row.split in ("test", UNSEEN) and row.round == records.rounds:
            found.setdefault((row.hospital, row.case), {})[row.metric] = row.value
    return found


def _scores(headline: Headline, classes: Iterable[str]) -> list[tuple[str, list[str], int]]:
    """Names of the scores that cases have, the metrics that each is the mean of, and which values are better."""
    per_class = list(classes)
    others = [
        (other.word, [f"{other.key}/{name}" for name in per_class], other.better)
        for other in headline.others
        if other.per_class
    ]
    return [(headline.word, [headline.key], HIGHER), *others]


def _whole(left: RunRecords, right: RunRecords) -> Iterator[tuple[str, tuple[float, float]]]:
    """Scores that no single case has, where both runs have them: the mean over hospitals, and of all cases together."""
    finals = [(records.final(), records.together()) for records in (left, right)]
    whole = [other for other in left.headline.others if not other.per_class]
    for other in whole:
        means = [mean(score.others[other.key] for score in scores) for scores, _ in finals]
        yield from _both(f"{other.word}, mean over hospitals", *means)
    words = {left.headline.word: [None if one is None else one.score for _, one in finals]}
    words |= {other.word: [None if one is None else one.others[other.key] for _, one in finals] for other in whole}
    for word, values in words.items():
        yield from _both(f"{word}, all {left.headline.cases} together", *values)


def _both(name: str, left: float | None, right: float | None) -> Iterator[tuple[str, tuple[float, float]]]:
    if left is not None and right is not None:
        yield name, (left, right)


def _score(
    name: str, metrics: list[str], better: int, ours: Scored, theirs: Scored, unseen: Mapping[str, str]
) -> ScoreDifference | None:
    """One score over all cases that have it in both runs; None where none has."""
    left: dict[Volume, float] = {}
    right: dict[Volume, float] = {}
    undefined = 0
    for case in sorted(ours.keys() & theirs.keys()):
        pairs = [(ours[case].get(metric), theirs[case].get(metric)) for metric in metrics]
        both = [(one, other) for one, other in pairs if one is not None and other is not None]
        undefined += len(pairs) - len(both)
        if both:  # a class counts where both have it
            left[case] = sum(one for one, _ in both) / len(both)
            right[case] = sum(other for _, other in both) / len(both)
    if not left:
        return None
    differences = by_site(paired({0: right}, {0: left}).differences[0])
    means = [{site: float(values.mean()) for site, values in by_site(of_run).items()} for of_run in (left, right)]
    sites = tuple(
        SiteDifference(
            site=site,
            unseen=unseen.get(site, "none"),
            cases=len(values),
            left=means[0][site],
            right=means[1][site],
            difference=mean_over_sites({site: values}),
        )
        for site, values in differences.items()
    )
    return ScoreDifference(
        name=name,
        left=mean(means[0].values()) or 0.0,
        right=mean(means[1].values()) or 0.0,
        difference=mean_over_sites(differences),
        sites=sites,
        worst_site=min(sites, key=lambda site: better * site.difference.mean).site,
        cases=len(left),
        undefined=undefined,
    )


def _unseen(site: str, left: RunRecords, right: RunRecords) -> str:
    sides = [name for name, records in (("left", left), ("right", right)) if site in records.unseen]
    return "both" if len(sides) == 2 else sides[0]


def _counted(cases: Iterable[Volume]) -> dict[str, int]:
    """How many cases there are per site."""
    return dict(sorted(Counter(site for site, _ in cases).items()))


def _by_other_code(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether the package, or a plug-in from outside that both runs have, was another."""
    plug_ins, others = left.get("plug_ins") or {}, right.get("plug_ins") or {}
    changed = [name for name in plug_ins if name in others and plug_ins[name] != others[name]]
    return bool(changed) or left.get("code_hash") != right.get("code_hash")


def _warnings(
    left: RunRecords,
    right: RunRecords,
    score: ScoreDifference,
    only_left: Mapping[str, int],
    only_right: Mapping[str, int],
) -> Iterator[str]:
    if left.manifest.get("data_hash") != right.manifest.get("data_hash"):
        holds = "may hold other images" if left.task == "segmentation" else "may be others"
        yield f"The runs saw other data: {left.headline.cases} are paired by hospital and name, and {holds}."
    seeds = [records.config.get("seed") for records in (left, right)]
    if seeds[0] != seeds[1]:
        yield (
            f"Other seeds ({seeds[0]} and {seeds[1]}): cohorts, batches and initial values differ too, and the "
            "difference holds their chance."
        )
    yield from drew_otherwise([left.manifest, right.manifest])
    if _by_other_code(_circumstances(left), _circumstances(right)):
        yield "The runs were made by other code: a difference may come from it."
    if only_left or only_right:
        counts = f"{sum(only_left.values())} of the first, {sum(only_right.values())} of the second"
        yield f"{left.headline.cases.capitalize()} that only one run was scored on are left out: {counts}."
    for which, records in (("first", left), ("second", right)):
        foreign = sorted(records.untrained & {site.site for site in score.sites})
        if foreign:
            yield (
                f"The {which} run trains every hospital alone: at {', '.join(foreign)} it was scored with the initial "
                "values, a model of nobody's."
            )
    if score.cases < MIN_PAIRS:
        pairs = f"{count_text(score.cases, 'pair')} of {left.headline.cases}"
        yield f"{pairs}: only large differences can be told (below {MIN_PAIRS})."
    small = [site.site for site in score.sites if site.cases < MIN_VOLUMES]
    if small:
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        where = f"{', '.join(small[:5])}{more}"
        yield f"Fewer than {MIN_VOLUMES} {left.headline.cases} at {where}: the intervals there are too narrow."


# ---- text ------------------------------------------------------------------------------------------------------------


def comparison_json(comparison: Comparison) -> str:
    """The comparison as JSON; cases are called ``volumes`` or ``images``."""
    plain = asdict(comparison)
    headline, whole = plain.pop("headline"), plain.pop("whole")
    value = {**plain, "left": comparison.left.as_posix(), "right": comparison.right.as_posix()}
    value["scores"] = [_called(score, headline["cases"]) for score in value["scores"]]
    return json.dumps({**value, **({"whole": whole} if whole else {})}, indent=2)


def _called(score: Mapping[str, Any], cases: str) -> dict[str, Any]:
    """A score with its sites, whose numbers of cases have a name."""
    sites = [{cases if key == "cases" else key: value for key, value in site.items()} for site in score["sites"]]
    return {cases if key == "cases" else key: value for key, value in {**score, "sites": sites}.items()}


def comparison_text(comparison: Comparison) -> str:
    """The comparison for a terminal; its table is at most 100 columns wide."""
    parts = [
        f"first:  {comparison.left}\nsecond: {comparison.right}",
        _list("settings, first -> second", comparison.settings, "none: the same config"),
        _list("data, weights, code, environment, first -> second", comparison.circumstances, "the same"),
        _table(comparison).text(width=WIDTH),
        _overall(comparison),
        "\n".join(line for warning in comparison.warnings for line in _wrapped(f"! {warning}")),
    ]
    return "\n\n".join(part for part in parts if part)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def _list(title: str, differences: Iterable[Difference], nothing: str) -> str:
    lines = [f"  {difference}" for difference in differences] or [f"  {nothing}"]
    return "\n".join([title, *lines])


def _table(comparison: Comparison) -> Table:
    first, *others = comparison.scores
    headline = comparison.headline
    by_name = [{site.site: site for site in score.sites} for score in others]
    header = (
        "site",
        headline.cases,
        "first",
        "second",
        headline.word,
        "95 % interval",
        *(score.name for score in others),
    )
    rows = tuple(
        (
            site.site if site.unseen == "none" else f"{site.site} (unseen: {site.unseen})",
            str(site.cases),
            f"{site.left:.3f}",
            f"{site.right:.3f}",
            signed_text(site.difference.mean),
            _ends(site.difference),
            *(signed_text(sites[site.site].difference.mean) if site.site in sites else UNDEFINED for sites in by_name),
        )
        for site in first.sites
    )
    total = ("mean", str(first.cases), f"{first.left:.3f}", f"{first.right:.3f}", signed_text(first.difference.mean))
    footer = (*total, _ends(first.difference), *(signed_text(score.difference.mean) for score in others))
    note = (
        f"{headline.word}, {', '.join(score.name for score in others) or 'no other score'}: second minus first on the "
        f"{headline.cases} that both were scored on, after the last round; the mean is over sites. The intervals are "
        f"over {headline.cases}: they say nothing about other seeds."
    )
    return Table(header=header, rows=rows, footer=(footer,), note=note)


def _overall(comparison: Comparison) -> str:
    """A line per score."""
    lines = []
    for score in comparison.scores:
        left_out = f"; {count_text(score.undefined, 'undefined value')} left out" if score.undefined else ""
        lines += _wrapped(
            f"{score.name}: {signed_text(score.difference.mean)}, 95 % interval {_ends(score.difference)}, over "
            f"{count_text(score.cases, comparison.headline.case)}; worst site {score.worst_site}{left_out}"
        )
    for name, (left, right) in comparison.whole.items():
        lines += _wrapped(f"{name}: {left:.3f} -> {right:.3f}, {signed_text(right - left)}; no interval")
    return "\n".join(lines)


def _ends(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return UNDEFINED
    return f"[{signed_text(interval.low)}, {signed_text(interval.high)}]"
