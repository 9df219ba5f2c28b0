"""The page of a sweep: ``report.html``, and its numbers, tables and pictures as files beside it.

::

    runs/<sweep>/report.html  results.json  variants.csv  volumes.csv  figures/*.svg  tables/*.md, *.tex, *.csv

The scores of images are in ``images.csv``.

As the page of a run, it is a list of sections, each made by one small function. :mod:`..sweeps.results` computes,
:mod:`.sweep_tables` words the tables, :mod:`.sweep_figures` draws.
"""

from __future__ import annotations

import csv
import io
import os
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..headline import Headline
from ..results import RunRecords, Series, mean, mean_series
from ..sweeps.commands import commands
from ..sweeps.numeric import NumericSetting, numeric_settings
from ..sweeps.records import CellRecord, SweepRecords, VariantRecord
from ..sweeps.results import (
    CurvePoint,
    Interval,
    SweepResults,
    VariantResult,
    analyse,
    cases_rows,
    results_json,
    variants_rows,
)
from .across import MANY_SITES, Matrix, across_drawing, across_table
from .export import export
from .figures import difference_map, heat_map
from .instruments import COLUMNS, NOTE, instrument_text
from .page import (
    UNDEFINED,
    Drawing,
    Html,
    Section,
    Table,
    banner,
    count_text,
    details,
    drawing_files,
    facts,
    figure,
    figures,
    join,
    legend,
    note,
    number_text,
    page,
    svg_picture,
    tag,
    tiles,
)
from .run_overlays import class_legend, hospital_slices, no_slices, stored_slices
from .sweep_figures import (
    FEW,
    Course,
    Dot,
    Guide,
    Mark,
    against_number,
    band_chart,
    bytes_tick,
    forest,
    mark,
    number_tick,
    scatter,
    small_courses,
)
from .sweep_tables import (
    ROLE_NAMES,
    SitesOf,
    all_sites,
    called,
    compared,
    cost_table,
    effect_sites,
    interval_text,
    ledger_table,
    manifest_facts,
    mean_of,
    others_table,
    ranked,
    ranking_table,
    reference_values,
    remarks,
    run_name,
    run_table,
    score_sites,
    selection_table,
    site_table,
    slope_table,
    states_text,
    unseen_table,
)

QUANTILES = {"worst": 0.0, "10 %": 0.1, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9, "best": 1.0}

MANY_RUNS = 40
"""With more of them, the list of runs is folded."""

MOST_SLICED = 8
"""So many sites at most have their slices on the page."""


def write_sweep_report(
    records: SweepRecords, *, images: bool = True, out: Path | None = None, export_to: Path | None = None
) -> Path:
    """Writes one self-contained HTML page about a sweep, finished or not, and its numbers beside it.

    The same records give the same bytes.

    Args:
        records: The sweep.
        images: Whether slices of the hospitals' test volumes may be on the page.
        out: The file to write, and nothing else; None: ``report.html`` in the sweep's folder, with ``results.json``,
            ``variants.csv``, ``volumes.csv`` (or ``images.csv``), and the pictures and tables in ``figures`` and
            ``tables``.
        export_to: A further folder for all of those.

    Returns:
        The page.
    """
    view = View(records=records, results=analyse(records), folder=(out or records.path / "report.html").parent)
    sections = sweep_sections(view, images)
    for place in (records.path if out is None else None, export_to):
        if place is not None:
            write_numbers(place, view)
            export(place, sections)
    path = out or records.path / "report.html"
    files.write_text(path, page(title=records.name, head=_head(view), sections=sections))
    return path


def write_numbers(folder: Path, view: View) -> None:
    """Writes ``results.json``, ``variants.csv`` and ``volumes.csv`` or ``images.csv``."""
    files.write_json(folder / "results.json", results_json(view.results))
    files.write_text(folder / "variants.csv", _csv(variants_rows(view.results)))
    files.write_text(folder / f"{view.headline.cases}.csv", _csv(cases_rows(view.records)))


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows with the columns of the first; nothing is an empty field."""
    text, ordered = io.StringIO(), iter(rows)
    first = next(ordered, {})
    writer = csv.DictWriter(text, list(first), lineterminator="\n")
    writer.writeheader()
    writer.writerows([first] if first else [])
    writer.writerows(ordered)
    return text.getvalue()


@dataclass(frozen=True, kw_only=True)
class View:
    """A sweep as its page shows it.

    Args:
        records: The sweep.
        results: Its numbers.
        folder: Where the page will be; links start there.
    """

    records: SweepRecords
    results: SweepResults
    folder: Path

    @property
    def headline(self) -> Headline:
        """What all runs are judged by."""
        return self.results.headline

    @cached_property
    def shown(self) -> list[VariantResult]:
        """The variants that have a score, in the order of the plan."""
        return [variant for variant in compared(self.results) if variant.score is not None]

    @cached_property
    def marks(self) -> dict[str, Mark]:
        """How each variant looks, the same in all pictures."""
        return {variant.name: mark(place) for place, variant in enumerate(compared(self.results))}

    @cached_property
    def guides(self) -> list[Guide]:
        """The references that all variants share, as lines across a picture of scores."""
        values = {role: found[0] for role, found in reference_values(self.results).items() if len(found) == 1}
        return [Guide(name=f"{ROLE_NAMES[role]} {value:.3f}", value=value) for role, value in values.items()]

    @cached_property
    def best(self) -> VariantResult | None:
        """The variant with the highest score."""
        first = ranked(self.results)[0]
        return first if first.score is not None else None

    def entries(self, names: Iterable[str]) -> list[tuple[str, str, str]]:
        """Marks and names, for pictures that name nothing."""
        return [(self.marks[name].sign, self.marks[name].colour, name) for name in names]

    def extra_entries(self, names: Sequence[str]) -> list[tuple[str, str, str]]:
        """The same where there are too many to name in the picture; nothing where there are few."""
        return self.entries(names) if len(names) > FEW else []


def sweep_sections(view: View, images: bool) -> list[Section]:
    """The parts of the page in order; what a sweep has nothing for is left out."""
    made = [
        _ranking(view),
        _costs_and_scores(view),
        _parameters(view),
        _course(view),
        _sites(view),
        _across(view),
        _selection(view),
        *_settings(view),
        _unseen(view),
        _aggregation(view),
        _pictures(view, images),
        _cost(view),
        _runs(view),
        _manifest(view),
        _repeat(view),
    ]
    return [section for section in made if section is not None]


# ---- head ------------------------------------------------------------------------------------------------------------


def _head(view: View) -> Html:
    records, results = view.records, view.results
    purpose = str(records.plan.get("purpose") or "")
    waiting = len(records.unfinished)
    unfinished = (
        f"This sweep is not finished: {count_text(waiting, 'run')} of {len(records.cells)} that count "
        f"{'is' if waiting == 1 else 'are'} missing or did not end. The page shows what there is."
    )
    parts = [tag("h1", records.name), note("A sweep of federated fine-tuning, simulated on one machine.")]
    parts += [tag("p", purpose)] if purpose else []
    warnings = [*([unfinished] if waiting else []), *results.warnings]
    return join([*parts, _banners(warnings), tiles(_tiles(view))])


def _banners(texts: Sequence[str]) -> Html:
    """Remarks that must not be overlooked: one box, so that many still leave room for the numbers."""
    if len(texts) < 2:
        return join(banner(_sentence(text)) for text in texts)
    items = [tag("li", _sentence(text)) for text in texts]
    return tag("div", tag("ul", *items, style="margin: 0; padding-left: 1.1rem"), class_="banner", role="status")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."


def _tiles(view: View) -> dict[str, tuple[str, str]]:
    records, results = view.records, view.results
    variants = compared(results)
    references = [variant.name for variant in results.variants if variant.role != "variant"]
    done = len(records.cells) - len(records.unfinished)
    cases = sum(number.cases for number in view.best.sites) if view.best else 0
    return {
        "Variants": (
            str(len(variants)),
            f"and {count_text(len(references), 'reference')}; baseline {results.baseline}",
        ),
        "Seeds": (str(len(records.seeds)), ", ".join(map(str, records.seeds))),
        "Runs done": (f"{done} of {len(records.cells)}", states_text(records.cells)),
        "Sites": (str(len(all_sites(view.shown))), f"{count_text(cases, f'test {view.headline.case}')} in all"),
        "Best of the variants": verdict_tile(results),
    }


def verdict_tile(results: SweepResults) -> tuple[str, str]:
    """The variant with the highest score, if it can be told from the baseline, and the numbers behind it."""
    first, word = ranked(results)[0], results.headline.word
    if first.score is None:
        return UNDEFINED, "no run is finished yet"
    effects = [variant.effect for variant in compared(results) if variant.effect is not None]
    if not effects:
        return _big(first.name), f"{word} {interval_text(first.score)}; nothing to compare it with"
    if first.effect is None:
        above = all(effect.told and effect.overall.mean < 0 for effect in effects)
        text = f"{word} {interval_text(first.score)}; it is the baseline"
        return (_big(first.name), f"{text}, all others are below it") if above else _no_difference(text)
    text = f"{interval_text(first.effect.overall, signed=True)} {results.headline.word_inside} to {results.baseline}"
    if first.effect.told and first.effect.overall.mean > 0:
        return _big(first.name), text
    return _no_difference(f"{first.name} has the highest {results.headline.word_inside}, {text}")


def _big(name: str) -> Html:
    return tag("span", name, style="font-size: 1.1rem; overflow-wrap: anywhere")


def _no_difference(text: str) -> tuple[Html, str]:
    return _big("no difference can be told"), text


# ---- ranking ---------------------------------------------------------------------------------------------------------


def _ranking(view: View) -> Section:
    tables = {"ranking": ranking_table(view.results)}
    others = others_table(view.results)
    tables |= {"other-scores": others} if others is not None else {}
    drawn = [drawing for name in _FOREST_TEXT if (drawing := _forest(view, name)) is not None]
    known = remarks(view.results)
    more = [details("What to know of single variants", facts(known))] if known else []
    body = join([*(table.html() for table in tables.values()), *map(_scrolled, drawn), *more])
    return Section(title="Ranking", body=body, tables=tables, drawings=drawing_files(drawn))


_FOREST_TEXT = {
    "differences": (
        "Difference in {word} to the baseline, best first: mean over seeds, then {cases} of a site, then sites. Line:"
        " 95 % bootstrap interval over the {cases} within sites. Faint dots: single seeds. Right of the zero line is"
        " better; an interval that holds zero tells no difference."
    ),
    "gains": (
        "Collaborative gain: the same difference to hospitals that train alone, with as many steps, each scored with"
        " its own model."
    ),
}


def _forest(view: View, name: str) -> Drawing | None:
    """Differences to the baseline, or gains over local training."""
    effects = {v.name: v.effect if name == "differences" else v.gain for v in ranked(view.results)}
    known = {who: effect for who, effect in effects.items() if effect is not None}
    if not known:
        return None
    dots = [_dot(view, who, effect.overall, seeds=tuple(effect.per_seed.values())) for who, effect in known.items()]
    against = view.results.baseline if name == "differences" else "local-only training"
    told = [f"{who} {interval_text(effect.overall, signed=True)}" for who, effect in known.items()]
    word = view.headline.word_inside
    alt = f"Difference in {word} to {against}, with 95 % intervals: {_listed(told)}."
    picture = svg_picture(forest(name, dots, x_label=f"difference in {word} to {against}"), alt)
    return Drawing(name=name, picture=picture, caption=_worded(_FOREST_TEXT[name], view.headline))


def _worded(text: str, headline: Headline) -> str:
    """A text with the words of a headline in it."""
    return text.format(Word=headline.word, word=headline.word_inside, cases=headline.cases)


def _dot(view: View, name: str, number: Interval, *, at: float = 0.0, seeds: tuple[float, ...] = ()) -> Dot:
    return Dot(
        name=name, mark=view.marks[name], value=number.mean, low=number.low, high=number.high, at=at, seeds=seeds
    )


def _listed(texts: Sequence[str], most: int = 12) -> str:
    shown = "; ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown}; and {len(texts) - most} more, in the table"


def _scrolled(drawing: Drawing, most_rem: float = 40.0) -> Html:
    """A drawing at least as large as its text needs; it scrolls sideways by itself where the window is narrow."""
    width_rem = float(drawing.picture.split('viewBox="', 1)[1].split('"', 1)[0].split()[2]) / 12
    size = f"min-width: min({width_rem:.1f}rem, {most_rem:g}rem); max-width: {1.4 * width_rem:.1f}rem"
    inner = tag("div", drawing.picture, style=size)
    return figure(tag("div", inner, class_="scroll", tabindex="0"), drawing.caption)


def _beside(drawings: Iterable[Drawing]) -> Html:
    """Drawings beside each other; what their marks mean is said once, after them."""
    return figures(_scrolled(drawing, most_rem=30.0) for drawing in drawings)


# ---- the score against what it costs ---------------------------------------------------------------------------------

COSTS: Mapping[str, tuple[str, Callable[[VariantResult], float | None], Callable[[float], str]]] = {
    "bytes": (
        "bytes sent in a run, both ways, all hospitals",
        lambda variant: None if variant.cost is None else variant.cost.bytes_up + variant.cost.bytes_down,
        bytes_tick,
    ),
    "steps": (
        "optimizer steps of all hospitals in a run",
        lambda variant: None if variant.cost is None else variant.cost.steps,
        "{:,.6g}".format,
    ),
    "time": ("seconds of all rounds, wall clock", lambda variant: variant.seconds, "{:,.3g}".format),
}


def _costs_and_scores(view: View) -> Section | None:
    """The paper's Fig. 1, and the same for other costs."""
    drawn = [drawing for cost in COSTS if (drawing := _cost_chart(view, cost)) is not None]
    if not drawn:
        return None
    marks = legend(view.extra_entries([variant.name for variant in view.shown]))
    body = join([note(_worded(_COSTS_NOTE, view.headline)), _beside(drawn), marks])
    return Section(title=f"{view.headline.word} against cost", body=body, drawings=drawing_files(drawn))


_COSTS_NOTE = (
    "A dot per variant: {Word} after the last round, mean over sites, with its 95 % interval over {cases}. Dots at the"
    " same cost are drawn beside each other. Dashed: references that all variants share; an arrow: beyond the picture."
)


def _cost_chart(view: View, cost: str) -> Drawing | None:
    label, cost_of, text = COSTS[cost]
    known = [(variant, cost_of(variant) or 0.0, variant.score) for variant in view.shown]
    dots = [_dot(view, variant.name, score, at=at) for variant, at, score in known if at > 0 and score is not None]
    free = [_free(variant) for variant, at, _ in known if at <= 0]
    if not dots:
        return None
    costs = [dot.at for dot in dots]
    logarithmic = cost == "bytes" or max(costs) > 5 * min(costs)
    name, guides = f"{view.headline.key}-{cost}", [*view.guides, *free]
    drawing = scatter(
        name, dots, guides, x_label=label, y_label=view.headline.word, x_text=text, logarithmic=logarithmic
    )
    return Drawing(
        name=name,
        picture=svg_picture(drawing, _cost_alt(view, cost)),
        caption=_worded(_COST_TEXT[cost], view.headline),
        entries=view.extra_entries([variant.name for variant in view.shown]),
    )


def _free(variant: VariantResult) -> Guide:
    """A variant that has no cost of a kind, as a line."""
    return Guide(name=f"{variant.name} {mean_of(variant.score, 0.0):.3f}", value=mean_of(variant.score, 0.0))


_COST_TEXT = {
    "bytes": "{Word} against bytes sent; the axis is logarithmic.",
    "steps": "{Word} against optimizer steps.",
    "time": "{Word} against time; it depends on the machine and on what else ran.",
}


def _cost_alt(view: View, cost: str) -> str:
    _, cost_of, text = COSTS[cost]
    told = [
        f"{variant.name} {interval_text(variant.score)} at {text(cost_of(variant) or 0.0)}"
        for variant in ranked(view.results)
        if variant.score is not None
    ]
    references = _listed([guide.name for guide in view.guides]) or "none"
    return f"{view.headline.word} against {cost}: {_listed(told)}. References: {references}."


def _parameters(view: View) -> Section | None:
    """The score against the parameters sent, with the line through all variants; None where there is no line."""
    slope, table = view.results.slope, slope_table(view.results)
    if slope is None or table is None:
        return None
    headline = view.headline
    sending = [variant for variant in view.shown if variant.cost is not None and variant.cost.parameters_up > 0]
    dots = [
        _dot(view, variant.name, variant.score, at=variant.cost.parameters_up)
        for variant in sending
        if variant.score is not None and variant.cost is not None
    ]
    name, label = f"{headline.key}-parameters", "parameters sent per round and hospital"
    drawing = scatter(name, dots, x_label=label, y_label=headline.word, x_text=number_tick, line=slope.at)
    told = _listed([f"{dot.name} {dot.value:.3f} at {dot.at:,.0f}" for dot in dots])
    alt = f"{headline.word} against {label}: {told}. The line rises by {slope.per_decade:+.4f} per decade."
    drawn = Drawing(
        name=name,
        picture=svg_picture(drawing, alt),
        caption=_worded(_PARAMETERS_TEXT, headline),
        entries=view.extra_entries([variant.name for variant in sending]),
    )
    marks = legend(drawn.entries)
    body = join([_scrolled(drawn), marks, table.html()])
    title = f"{headline.word} against parameters sent"
    return Section(title=title, body=body, tables={"slope": table}, drawings=drawing_files([drawn]))


_PARAMETERS_TEXT = (
    "{Word} against the parameters (numbers of four bytes) that a hospital sends in a round; the axis is logarithmic."
    " Line: the least-squares fit over the variants, a dot each."
)


# ---- round by round --------------------------------------------------------------------------------------------------


def _course(view: View) -> Section | None:
    """The test score on the way."""
    if not view.shown:
        return None
    courses: Curves = {variant.name: variant.curve for variant in view.shown if len(variant.curve) > 1}
    if not courses:
        text = (
            f"Test {view.headline.cases} were scored after the last round only (evaluation.every), so there is no "
            "course to draw."
        )
        return Section(title="Round by round", body=note(text))
    drawn = [drawing for name in _COURSE_TEXT if (drawing := _course_chart(view, name, courses)) is not None]
    table = _course_table(courses)
    marks = legend(view.extra_entries(list(courses)))
    body = join([_beside(drawn), marks, details(f"Test {view.headline.word_inside} as numbers", table.html())])
    return Section(title="Round by round", body=body, tables={"course": table}, drawings=drawing_files(drawn))


_COURSE_TEXT = {
    "course-rounds": (
        "Test {word} per round, mean over hospitals and seeds; the band reaches from the lowest to the highest seed."
        " Round 0 is the model before training. Nothing is chosen by it: all other numbers are of the last round."
    ),
    "course-bytes": "The same against the bytes sent so far, both ways, all hospitals; the axis is logarithmic.",
}

Curves = Mapping[str, Sequence[CurvePoint]]


def _course_chart(view: View, name: str, curves: Curves) -> Drawing | None:
    by_bytes = name == "course-bytes"
    courses = [
        Course(
            name=who,
            mark=view.marks[who],
            points=[(point.bytes if by_bytes else point.round, point.mean, point.low, point.high) for point in curve],
        )
        for who, curve in curves.items()
    ]
    if by_bytes:
        courses = [course for course in courses if any(point[0] > 0 for point in course.points)]
    if not courses:
        return None
    drawing = band_chart(
        name,
        courses,
        view.guides,
        x_label="bytes sent so far" if by_bytes else "round",
        y_label=f"test {view.headline.word_inside}",
        x_text=bytes_tick if by_bytes else "{:g}".format,
        logarithmic=by_bytes,
    )
    picture = svg_picture(drawing, _course_alt(curves, view.headline))
    caption = _worded(_COURSE_TEXT[name], view.headline)
    return Drawing(name=name, picture=picture, caption=caption, entries=view.extra_entries(list(curves)))


def _course_alt(courses: Curves, headline: Headline) -> str:
    told = [
        f"{name} from {curve[0].mean:.3f} in round {curve[0].round} to {curve[-1].mean:.3f} in round {curve[-1].round}"
        for name, curve in courses.items()
    ]
    return f"Test {headline.word_inside} round by round: {_listed(told)}."


def _course_table(courses: Curves) -> Table:
    known = {name: {point.round: point.mean for point in curve} for name, curve in courses.items()}
    rounds = sorted({number for curve in known.values() for number in curve})
    rows = tuple((str(number), *(number_text(curve.get(number)) for curve in known.values())) for number in rounds)
    return Table(header=("round", *known), rows=rows, note="Mean over hospitals and seeds.")


# ---- site by site ----------------------------------------------------------------------------------------------------


def _sites(view: View) -> Section | None:
    """Scores and differences per site: maps for the eye, tables for the numbers."""
    if not view.shown:
        return None
    different = [variant for variant in view.shown if variant.effect is not None]
    maps = [_site_map(view, "sites", view.shown, score_sites)]
    words = _worded(_SITES_NOTE, view.headline)
    tables = {"sites": site_table(view.shown, score_sites, signed=False, note=words)}
    if different:
        maps.append(_site_map(view, "sites-difference", different, effect_sites))
        tables["sites-difference"] = site_table(different, effect_sites, signed=True, note=words)
    parts = [
        join([_scrolled(drawn), details("As numbers with intervals", table.html())])
        for drawn, table in zip(maps, tables.values(), strict=True)
    ]
    return Section(title="Site by site", body=join(parts), tables=tables, drawings=drawing_files(maps))


_SITES_NOTE = (
    "Mean over seeds, then over the {cases} of the site, [95 % bootstrap interval over the {cases}]. *: the variant did"
    " not train there."
)


def _site_map(view: View, name: str, variants: Sequence[VariantResult], sites_of: SitesOf) -> Drawing:
    """A map of variants and sites, or of variants and quantiles where there are many sites."""
    names, sites = [variant.name for variant in variants], all_sites(variants)
    draw = difference_map if name == "sites-difference" else partial(heat_map, form="{:.3f}")
    numbers = {variant.name: {number.site: number.value.mean for number in sites_of(variant)} for variant in variants}
    if len(sites) > MANY_SITES:
        drawing = draw(name, names, list(QUANTILES), [_quantiles(list(known.values())) for known in numbers.values()])
    else:
        values = [[known.get(site) for site in sites] for known in numbers.values()]
        worst = [(row, sites.index(_worst(known))) for row, known in enumerate(numbers.values()) if known]
        drawing = draw(name, names, sites, values, framed=worst if len(sites) > 1 else ())
    alt = _site_alt(name, numbers, view.headline)
    return Drawing(name=name, picture=svg_picture(drawing, alt), caption=_site_text(view, name, len(sites)))


def _worst(known: Mapping[str, float]) -> str:
    return min(known, key=lambda site: known[site])


def _quantiles(values: Sequence[float]) -> list[float | None]:
    return (
        [float(value) for value in np.quantile(values, list(QUANTILES.values()))] if values else [None] * len(QUANTILES)
    )


def _site_text(view: View, name: str, sites: int) -> str:
    what, shades = {
        "sites": (view.headline.word, "light: high, dark: low"),
        "sites-difference": (
            f"Difference in {view.headline.word_inside} to {view.results.baseline}",
            "white: none, blue: better, orange: worse",
        ),
    }[name]
    cases = view.headline.cases
    if sites > MANY_SITES:
        return f"{what}: quantiles over {sites} sites, mean over seeds and the {cases} of a site ({shades})."
    return f"{what} per site, mean over seeds and the {cases} of the site ({shades}). Framed: a variant's worst site."


def _site_alt(name: str, numbers: Mapping[str, Mapping[str, float]], headline: Headline) -> str:
    form = "{:+.3f}" if name == "sites-difference" else "{:.3f}"
    told = []
    for who, known in numbers.items():
        if known:
            worst, best = _worst(known), max(known, key=lambda site: known[site])
            told.append(f"{who} from {form.format(known[worst])} at {worst} to {form.format(known[best])} at {best}")
    return f"{'Difference to the baseline' if name == 'sites-difference' else headline.word} per site: {_listed(told)}."


def _across(view: View) -> Section | None:
    """How the models of hospitals that train alone do at each other."""
    drawn, tables, parts = [], {}, []
    text = _worded(_ACROSS_TEXT, view.headline)
    for variant in view.records.variants:
        matrix = _mean_matrix([cell.measured.cross_site() for cell in variant.finished])
        if not matrix:
            continue
        name = "across" if variant.name == "local" else f"across-{variant.name}"
        tables[name] = across_table(matrix, f"{view.headline.word} at each site, mean over seeds.")
        parts.append(tag("h3", called(variant.name, variant.role)))
        if (drawing := across_drawing(name, matrix, text, view.headline)) is not None:
            drawn.append(drawing)
            parts.append(_scrolled(drawing))
        parts.append(details("As numbers", tables[name].html()))
    if not parts:
        return None
    return Section(title="Local models elsewhere", body=join(parts), tables=tables, drawings=drawing_files(drawn))


_ACROSS_TEXT = (
    "{Word} of the model that trained at the hospital of the row alone, at the site of the column: mean over seeds and"
    " the {cases} of the site."
)


def _mean_matrix(found: Sequence[Matrix]) -> Matrix:
    """The mean over seeds, entry by entry; trained at -> site."""
    rows = sorted({row for matrix in found for row in matrix})
    columns = sorted({column for matrix in found for row in matrix.values() for column in row})
    return {row: {c: mean(m.get(row, {}).get(c) for m in found) for c in columns} for row in rows}


# ---- what was selected, along a setting, at unseen sites -------------------------------------------------------------


def _selection(view: View) -> Section | None:
    select = (view.records.plan.get("definition") or {}).get("select")
    table = selection_table(view.records, view.results, str(select["over"])) if select else None
    if table is None:
        return None
    known = {v.name: "; ".join(v.selection_warnings) for v in view.records.variants if v.selection_warnings}
    body = join([table.html(), *([facts(known)] if known else [])])
    return Section(title="Selection", body=body, tables={"selection": table})


def _settings(view: View) -> list[Section]:
    """A section for each setting that is a number and varies, such as the rank."""
    return [_setting(view, setting) for setting in numeric_settings(view.records)]


def _setting(view: View, setting: NumericSetting) -> Section:
    word = setting.path.rpartition(".")[2].replace("_", " ")
    known = {variant.name: variant for variant in view.shown}
    scores = {name: [(at, known[who], known[who].score) for at, who in line] for name, line in setting.lines.items()}
    effects = {
        name: [(at, variant, _effect_or_zero(view, variant)) for at, variant, _ in line]
        for name, line in scores.items()
    }
    name = f"along-{setting.path.replace('.', '-')}"
    table = _along_table(setting.path, scores, effects, view.headline)
    told = _listed([f"{row[1]} at {row[0]}: {row[2]}, difference {row[3]}" for row in table.rows])
    drawn = [
        _along(name, scores, view.guides, setting.path, f"test {view.headline.word_inside}"),
        _along(f"{name}-difference", effects, [], setting.path, f"difference to {view.results.baseline}"),
    ]
    headline = view.headline
    captions = [f"{headline.word} against {setting.path}, with 95 % intervals over {headline.cases}.", _ALONG_TEXT]
    captions[1] = captions[1].format(case=headline.case)
    entries = [(mark(place).sign, mark(place).colour, line) for place, line in enumerate(scores)]
    shown = [
        Drawing(
            name=made[0],
            picture=svg_picture(made[1], f"{headline.word} along {setting.path}: {told}."),
            caption=caption,
            entries=entries if len(entries) > FEW else [],
        )
        for made, caption in zip(drawn, captions, strict=True)
    ]
    marks = legend(entries if len(entries) > FEW else [])
    body = join([_beside(shown), marks, details("As numbers", table.html())])
    return Section(title=f"Along {word}", body=body, tables={name: table}, drawings=drawing_files(shown))


_ALONG_TEXT = "The difference to the baseline, {case} by {case}; the baseline itself lies at 0."

Along = Mapping[str, Sequence[tuple[float, VariantResult, Interval | None]]]


def _effect_or_zero(view: View, variant: VariantResult) -> Interval | None:
    if variant.name == view.results.baseline:
        return Interval(mean=0.0, low=None, high=None)
    return None if variant.effect is None else variant.effect.overall


def _along(name: str, lines: Along, guides: Sequence[Guide], path: str, y_label: str) -> tuple[str, str]:
    courses = [
        Course(
            name=line,
            mark=mark(place),
            points=[(at, number.mean, number.low, number.high) for at, _, number in points if number is not None],
        )
        for place, (line, points) in enumerate(lines.items())
    ]
    courses = [course for course in courses if course.points]
    return name, against_number(name, courses, guides, x_label=path, y_label=y_label)


def _along_table(path: str, scores: Along, effects: Along, headline: Headline) -> Table:
    rows = [
        (f"{at:g}", line, interval_text(number), interval_text(effect, signed=True))
        for line in scores
        for (at, _, number), (_, _, effect) in zip(scores[line], effects[line], strict=True)
    ]
    return Table(header=(path, "variant", f"{headline.word} [95 %]", "difference [95 %]"), rows=tuple(rows))


def _unseen(view: View) -> Section | None:
    table = unseen_table(view.results)
    return None if table is None else Section(title="Unseen sites", body=table.html(), tables={"unseen": table})


# ---- the aggregator's instruments ------------------------------------------------------------------------------------

PREFIXES = ("instrument/", "aggregate/")


def _aggregation(view: View) -> Section | None:
    """A small picture for each thing that aggregators report, a course per variant."""
    measured = {variant.name: _measures(view.records.named(variant.name)) for variant in view.shown}
    names = _measure_order({name for known in measured.values() for name in known})
    if not names:
        return None
    drawn = [_measure(view, name, measured) for name in names]
    remark = note(
        "What the server's steps looked like, per round: mean over seeds (and over hospitals, where each has a value),"
        f" the band from the lowest to the highest seed. The page of each run has them layer by layer. {NOTE}"
    )
    body = join(
        [
            remark,
            legend(view.entries(measured)),
            figures((figure(one.picture, one.caption) for one in drawn), small=True),
        ]
    )
    return Section(title="Aggregation", body=body, drawings=drawing_files(drawn))


def _measure(view: View, name: str, measured: Mapping[str, Mapping[str, Points]]) -> Drawing:
    courses = [
        Course(name=who, mark=view.marks[who], points=known[name]) for who, known in measured.items() if name in known
    ]
    word = name.partition("/")[2]
    title, slug = COLUMNS.get(word, word.replace("_", " ")), f"aggregation-{name.replace('/', '-')}"
    picture = svg_picture(small_courses(slug, courses), _measure_alt(title, courses))
    return Drawing(name=slug, picture=picture, caption=title, entries=view.entries([c.name for c in courses]))


Points = list[tuple[float, float, float | None, float | None]]


def _measures(variant: VariantRecord) -> dict[str, Points]:
    """Every measure over the rounds: mean, lowest and highest over the finished runs."""
    found: dict[str, dict[int, list[float]]] = {}
    for cell in variant.finished:
        for name, series in _series_of(cell.measured).items():
            for number, value in mean_series(series):
                if value is not None:
                    found.setdefault(name, {}).setdefault(number, []).append(value)
    return {
        name: [(number, float(np.mean(v)), min(v), max(v)) for number, v in sorted(rounds.items())]
        for name, rounds in found.items()
    }


def _series_of(records: RunRecords) -> dict[str, Series]:
    """All measures of a run, read in one go: runs have many rows."""
    found: dict[str, Series] = {}
    for row in records.metrics:
        if row.metric.startswith(PREFIXES):
            found.setdefault(row.metric, {}).setdefault(row.hospital or "", []).append((row.round, row.value))
    return found


def _measure_order(names: set[str]) -> list[str]:
    """Instruments in reading order, then what aggregators report of themselves."""
    known = [f"instrument/{name}" for name in COLUMNS]
    return [*(name for name in known if name in names), *sorted(names - set(known))]


def _measure_alt(title: str, courses: Sequence[Course]) -> str:
    told = [
        f"{course.name} {instrument_text(course.points[0][1])} to {instrument_text(course.points[-1][1])}"
        for course in courses
    ]
    return f"{title}, first to last round: {_listed(told)}."


# ---- slices ----------------------------------------------------------------------------------------------------------


def _pictures(view: View, images: bool) -> Section | None:
    """Slices of volumes; a sweep of classifications shows none: the page of each run has its images."""
    if view.headline.task == "classification":
        return None
    return _slices(view) if images else no_slices()


def _slices(view: View) -> Section:
    """The best, median and worst volume of each site, for the baseline and the best variant."""
    cells = _sliced(view)
    stored = {name: stored_slices(cell.measured) for name, cell in cells.items()}
    sites = sorted({site for found in stored.values() for site in found})
    if not sites:
        return Section(title="Slices", body=note("No slices are stored in the runs that are shown here."))
    kept = _some_sites(view, sites)
    parts = []
    for site in kept:
        parts.append(tag("h3", site))
        for name, found in stored.items():
            if site in found:
                parts += [note(name), hospital_slices(f"{site}, {name}", found[site], many=True)]
    seeds = ", ".join(f"{name} (seed {cell.seed})" for name, cell in cells.items())
    left = (
        f" {len(kept)} of {len(sites)} sites: the best, the worst and some between." if len(kept) < len(sites) else ""
    )
    text = (
        f"Best, median and worst test volume of each site, of {seeds}; which volumes these are can differ between the"
        f" two.{left} Area: prediction. Outline: truth."
    )
    classes = next(iter(cells.values())).measured.classes
    return Section(title="Slices", body=join([note(text), class_legend(classes), *parts]))


def _sliced(view: View) -> dict[str, CellRecord]:
    """The first finished run of the baseline and of the best variant."""
    names = dict.fromkeys([view.results.baseline, *([view.best.name] if view.best else [])])
    finished = {name: view.records.named(name).finished for name in names}
    return {name: cells[0] for name, cells in finished.items() if cells}


def _some_sites(view: View, sites: Sequence[str]) -> list[str]:
    """All sites where they are few; else evenly from the best to the worst of the best variant."""
    if len(sites) <= MOST_SLICED or view.best is None:
        return list(sites)
    scores = {number.site: number.value.mean for number in view.best.sites}
    order = sorted((site for site in sites if site in scores), key=lambda site: -scores[site]) or list(sites)
    places = np.linspace(0, len(order) - 1, min(MOST_SLICED, len(order))).round().astype(int)
    return [order[place] for place in dict.fromkeys(places.tolist())]


# ---- costs, runs, how to repeat them ---------------------------------------------------------------------------------


def _cost(view: View) -> Section | None:
    table, ledger = cost_table(view.results), ledger_table(view.records)
    if not table.rows:
        return None
    body = join([table.html(), details("Ledger of all runs together", ledger.html())])
    return Section(title="Communication and work", body=body, tables={"cost": table, "ledger": ledger})


def _runs(view: View) -> Section:
    """Every run with a link to its page, and what stopped it."""
    records = view.records
    linked = run_table(records, view.results, lambda cell: _link(cell, view.folder)).html()
    errors = {cell.key: cell.error for cell in records.cells if cell.error}
    stopped = [tag("h3", "What stopped runs"), facts(errors)] if errors else []
    many = len(records.cells) > MANY_RUNS
    shown = details(f"All {len(records.cells)} runs", linked) if many else linked
    table = run_table(records, view.results)
    return Section(title="Runs", body=join([*stopped, shown]), tables={"runs": table})


def _link(cell: CellRecord, folder: Path) -> str:
    """A relative link to the page of a run, or its name where there is none."""
    if not (cell.path / "report.html").is_file():
        return run_name(cell)
    relative = Path(os.path.relpath(cell.path / "report.html", folder)).as_posix()
    return tag("a", run_name(cell), href=urllib.parse.quote(relative))


def _manifest(view: View) -> Section | None:
    found = manifest_facts(view.records)
    return Section(title="Manifest", body=facts(found)) if found else None


def _repeat(view: View) -> Section:
    blocks = [part for what, line in commands(view.records).items() for part in (note(what), tag("pre", line))]
    return Section(title="To repeat it", body=join(blocks))
