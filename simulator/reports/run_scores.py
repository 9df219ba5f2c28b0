"""The scores of a run per hospital: as the table at its end, as tables and heat maps of its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..headline import LOWER, Headline, OtherScore
from ..results import UNSEEN, FinalScores, RunRecords, mean
from ..sweeps.best_site import best_single_site
from .across import across_drawing, across_table
from .page import (
    UNDEFINED,
    Drawing,
    Section,
    Table,
    bytes_text,
    counted_text,
    details,
    drawing_files,
    join,
    number_text,
    svg_picture,
    tag,
    wide,
)

DIGITS = 3
"""After the point."""

MOST_COLUMNS = 12
"""A heat map with more of them shows the headline alone, with its classes."""


def scores_section(records: RunRecords) -> Section:
    """The scores per hospital: tables, and a heat map where there are hospitals to compare."""
    tables = {"scores": score_table(records), "validation": validation_table(records), "regions": region_table(records)}
    made = {name: table for name, table in tables.items() if table is not None}
    drawing = _site_drawing(records)
    drawn = [] if drawing is None else [drawing]
    parts = [*(table.html() for table in made.values()), *(wide(each) for each in drawn)]
    return Section(title="Scores per hospital", body=join(parts), tables=made, drawings=drawing_files(drawn))


def validation_table(records: RunRecords) -> Table | None:
    """The headline of the validation cases per hospital at their last evaluation; None when there are none."""
    headline = records.headline
    scores = [score for score in records.final("validation") if score.score is not None]
    if not scores:
        return None
    columns = [[score.per_class[name] for score in scores] for name in records.classes]
    columns.append([score.score for score in scores])
    cells = [[number_text(value, DIGITS) for value in (*column, mean(column))] for column in columns]
    names = [*((score.hospital, str(score.cases)) for score in scores), ("mean", "")]
    *rows, last = ((*name, *(column[place] for column in cells)) for place, name in enumerate(names))
    return Table(
        header=("hospital", "validation", *_class_titles(records), headline.word),
        rows=tuple(rows),
        footer=(last,),
        note=f"Validation {headline.cases} after round {records.last_evaluation('validation')}.",
    )


def _class_titles(records: RunRecords) -> list[str]:
    """``Dice kidney``, ``recall melanoma``."""
    return [f"{records.headline.class_word} {name}" for name in records.classes]


def _site_drawing(records: RunRecords) -> Drawing | None:
    """The scores between 0 and 1, of every class too, at every site; None with fewer than two sites."""
    from .figures import heat_map

    sites = {(name, "test"): name for name in records.hospitals}
    sites |= {(name, UNSEEN): f"{name} (unseen)" for name in records.unseen}
    columns = _site_columns(records)
    found = _last_values(records)
    values = [[found.get((*site, metric)) for metric in columns] for site in sites]
    known = [value for row in values for value in row if value is not None]
    if len(sites) < 2 or not known:
        return None
    drawing = heat_map("sites", list(sites.values()), list(columns.values()), values, value_range=(0.0, 1.0))
    kinds = _kinds(records.headline, columns)
    alt = f"{kinds} per hospital and class, from {min(known):.2f} to {max(known):.2f}."
    caption = f"{kinds} of the test {records.headline.cases}: dark blue is 0, yellow is 1."
    return Drawing(name="sites", picture=svg_picture(drawing, alt), caption=caption)


def _site_columns(records: RunRecords) -> dict[str, str]:
    """The metrics of a heat map and their titles; the headline with its classes where they would be too many."""
    headline = records.headline
    keys = [f"{headline.class_key}/{name}" for name in records.classes]
    titles = dict(zip(keys, _class_titles(records), strict=True))
    whole = {headline.key: headline.word}
    if headline.class_key != headline.key:
        alone = whole | titles
    else:  # with one class its score is the headline
        alone = titles | (whole if len(records.classes) != 1 else {})
    others = [other for other in headline.others if other.better != LOWER]
    both = alone | {metric: title for other in others for metric, title in _other_columns(records, other).items()}
    return both if len(both) <= MOST_COLUMNS else alone


def _other_columns(records: RunRecords, other: OtherScore) -> dict[str, str]:
    """The metrics of a score beside the headline that the run has, and their titles."""
    if not other.per_class:
        return {other.key: other.short}
    present = records.metric_names(f"{other.key}/")
    columns = {f"{other.key}/{name}": f"{other.short} {name}" for name in records.classes}
    return {metric: title for metric, title in columns.items() if metric in present}


def _kinds(headline: Headline, columns: Mapping[str, str]) -> str:
    """What a heat map shows, in words."""
    shown = [other.word for other in headline.others if any(name.split("/")[0] == other.key for name in columns)]
    kinds = [headline.word, *(["recall"] if headline.class_key != headline.key else []), *shown]
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} and {kinds[-1]}"


def _last_values(records: RunRecords) -> dict[tuple[str, str, str], float | None]:
    """Per site, split and metric what the last evaluation of test cases found."""
    last = {split: records.last_evaluation(split) for split in ("test", UNSEEN)}
    return {
        (row.hospital, row.split, row.metric): row.value
        for row in records.metrics
        if row.hospital is not None and row.split in last and row.round == last[row.split]
    }


def cross_site_section(records: RunRecords) -> Section | None:
    """Every hospital's model at every site; None where models were not scored elsewhere."""
    scores = records.cross_site()
    if not scores:
        return None
    best = best_single_site(records)
    headline = records.headline
    caption = f"{headline.word} of test {headline.cases}: a row per model, a column per site."
    drawings = [across_drawing("across", scores, caption, headline)]
    drawn = [drawing for drawing in drawings if drawing is not None]
    what = f"Mean {headline.word_inside} of the test {headline.cases} of a site"
    table = across_table(scores, f"{what}, under the model of the hospital in the row.")
    words = f"Best single site: {best.site}, chosen on {best.chosen_on} {headline.cases} of all hospitals."
    numbers = details("Across sites as numbers", table.html())
    return Section(
        title="Across sites",
        body=join([tag("p", words), *map(wide, drawn), numbers]),
        tables={"across": table},
        drawings=drawing_files(drawn),
    )


def results_table(records: RunRecords) -> str:
    """The scores per hospital as text for a terminal, at most 100 columns wide."""
    return score_table(records).text(width=100)


def results_text(records: RunRecords) -> str:
    """The same with the regions, where there are some: what ``wardround run`` prints."""
    regions = region_table(records)
    return "\n\n".join([results_table(records), *([regions.text(width=100)] if regions is not None else [])])


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A column of scores.

    Args:
        title: Its head.
        value: The score of a hospital.
        undefined: How many values behind it are undefined.
        digits: After the point.
        worst: The worst of several.
    """

    title: str
    value: Callable[[FinalScores], float | None]
    undefined: Callable[[FinalScores], int] = lambda score: 0
    digits: int = DIGITS
    worst: Callable[[Sequence[float]], float] = min

    def text(self, score: FinalScores) -> str:
        """The cell of a hospital."""
        return counted_text(self.value(score), self.undefined(score), self.digits)

    def mean_text(self, scores: Sequence[FinalScores]) -> str:
        """The mean over hospitals."""
        return counted_text(mean(map(self.value, scores)), sum(map(self.undefined, scores)), self.digits)

    def worst_text(self, scores: Sequence[FinalScores]) -> str:
        """The worst of the hospitals."""
        defined = [value for value in map(self.value, scores) if value is not None]
        return number_text(self.worst(defined) if defined else None, self.digits)


def _columns(records: RunRecords) -> list[_Column]:
    """The scores of a run in reading order: Dice after that of its classes, accuracy before the recall of them."""
    headline = records.headline
    titles = zip(records.classes, _class_titles(records), strict=True)
    classes = [_class_column(name, title) for name, title in titles]
    score = _Column(title=headline.word, value=lambda score: score.score)
    others = [_other_column(other) for other in headline.others]
    return [*classes, score, *others] if headline.class_key == headline.key else [score, *others, *classes]


def _class_column(name: str, title: str) -> _Column:
    return _Column(title=title, value=lambda score: score.per_class[name])


def _other_column(other: OtherScore) -> _Column:
    return _Column(
        title=other.short,
        value=lambda score: score.others[other.key],
        undefined=lambda score: score.undefined[other.key],
        digits=other.digits,
        worst=max if other.better == LOWER else min,
    )


def score_table(records: RunRecords) -> Table:
    """Training examples, cases, scores and bytes per hospital, with the mean and the worst of each column."""
    scores, columns = records.final(), _columns(records)
    return Table(
        header=("hospital", "train", "test", *(column.title for column in columns), "down", "up"),
        rows=tuple(_score_row(score, columns) for score in scores),
        footer=tuple(_footer(records, scores, columns)) if scores else (),
        note=_score_note(records),
    )


def _score_row(score: FinalScores, columns: Sequence[_Column]) -> tuple[str, ...]:
    return (
        score.hospital,
        UNDEFINED if score.examples is None else str(score.examples),
        str(score.cases) if score.cases else UNDEFINED,
        *(column.text(score) for column in columns),
        bytes_text(score.bytes_down),
        bytes_text(score.bytes_up),
    )


def _footer(
    records: RunRecords, scores: Sequence[FinalScores], columns: Sequence[_Column]
) -> Iterator[tuple[str, ...]]:
    """Mean and worst of the hospitals; sites that did not train, which enter neither; all images in one heap."""
    together = records.together()
    trained = [score for score in scores if score.examples is not None]  # the common test set is no hospital
    down, up = (mean(getattr(score, way) for score in trained) or 0 for way in ("bytes_down", "bytes_up"))
    means = (column.mean_text(scores) for column in columns)
    yield ("mean" if together is None else MEAN, "", "", *means, bytes_text(down), bytes_text(up))
    yield ("worst", "", "", *(column.worst_text(scores) for column in columns), "", "")
    for score in records.final(UNSEEN):
        row = _score_row(score, columns)
        yield (f"{row[0]} (unseen)", *row[1:-2], "", "")
    if together is not None:
        row = _score_row(together, columns)
        yield (row[0], "", *row[2:-2], "", "")


MEAN = "mean of hospitals"
"""What the mean is called where there is a line of all images together, too."""


def _score_note(records: RunRecords) -> str:
    last, headline = records.last_evaluation(), records.headline
    none, some = f"No test {headline.case} has been scored yet.", f"Test {headline.cases} after round {last}."
    parts = [none if last is None else some, *_MEANINGS[headline.task](records)]
    parts.append(f"{UNDEFINED}: not defined or not measured. Worst: of the hospitals, for each column by itself.")
    if records.untrained:
        where = ", ".join(sorted(records.untrained))
        parts.append(f"Every hospital trains alone: at {where} the model before training was scored.")
    elif records.unseen:
        parts.append("Unseen: sites that did not train, scored with the global model; they enter no mean.")
    return " ".join(parts)


def _of_segmentation(records: RunRecords) -> list[str]:
    """What the columns mean."""
    tolerance = _tolerance_mm(records)
    empty = "(n): n values are undefined because a mask is empty, and are left out of the mean."
    surface = "surface Dice" if tolerance is None else f"surface Dice at {tolerance} mm"
    return [
        f"Train: training windows; test: volumes; Dice, HD95, surface ({surface}): means over the classes;",
        "down, up: bytes sent to the hospital and back over the run.",
        *([empty] if any(number for score in records.final() for number in score.undefined.values()) else []),
    ]


def _of_classification(records: RunRecords) -> list[str]:
    """What the columns mean."""
    heap = (
        f"{MEAN.capitalize()}: every hospital counts alike, whatever its number of images. All images together: the "
        "same scores over the images of all hospitals in one heap, where hospitals with many count more; two different "
        "numbers."
    )
    return [
        "Train, test: images; accuracy: share of the images told right; balanced: mean of the recalls of the classes; "
        "macro-F1: mean of their F1; AUROC: each class against the others, mean over the classes; recall: share of the "
        "images of a class told right;",
        "down, up: bytes sent to the hospital and back over the run.",
        *([heap] if records.together() is not None else []),
    ]


_MEANINGS: Mapping[str, Callable[[RunRecords], list[str]]] = {
    "segmentation": _of_segmentation,
    "classification": _of_classification,
}
"""What the columns of a task mean."""


def _tolerance_mm(records: RunRecords) -> object:
    evaluation = records.config.get("evaluation")
    return evaluation.get("surface_tolerance_mm") if isinstance(evaluation, Mapping) else None


def region_table(records: RunRecords) -> Table | None:
    """Dice of the unions of classes that the experiment asks for, per hospital; None when it asks for none."""
    names = [name.partition("/")[2] for name in records.metric_names("dice_region/")]
    if not names:
        return None
    columns = [records.series(f"dice_region/{name}", "test") for name in names] + [
        records.series("dice_regions", "test")
    ]
    last = [{hospital: points[-1][1] for hospital, points in series.items()} for series in columns]
    rows = [(hospital, *(number_text(column.get(hospital), DIGITS) for column in last)) for hospital in last[0]]
    means = ("mean", *(number_text(mean(column.values()), DIGITS) for column in last))
    return Table(
        header=("hospital", *(f"Dice {name}" for name in names), "mean of regions"),
        rows=tuple(rows),
        footer=(means,),
        note="A region is a union of classes (evaluation.regions).",
    )
