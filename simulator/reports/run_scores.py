"""The scores of a run per hospital: as the table at its end, as tables and heat maps of its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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

DICE_DIGITS, MM_DIGITS = 3, 2

MOST_COLUMNS = 12
"""A heat map with more of them shows Dice alone."""


def scores_section(records: RunRecords) -> Section:
    """The scores per hospital: tables, and a heat map where there are hospitals to compare."""
    tables = {"scores": score_table(records), "validation": validation_table(records), "regions": region_table(records)}
    made = {name: table for name, table in tables.items() if table is not None}
    drawing = _site_drawing(records)
    drawn = [] if drawing is None else [drawing]
    parts = [*(table.html() for table in made.values()), *(wide(each) for each in drawn)]
    return Section(title="Scores per hospital", body=join(parts), tables=made, drawings=drawing_files(drawn))


def validation_table(records: RunRecords) -> Table | None:
    """Dice of the validation volumes per hospital at their last evaluation; None when there are none."""
    scores = [score for score in records.final("validation") if score.dice is not None]
    if not scores:
        return None
    columns = [[score.per_class[name] for score in scores] for name in records.classes]
    columns.append([score.dice for score in scores])
    cells = [[number_text(value, DICE_DIGITS) for value in (*column, mean(column))] for column in columns]
    names = [*((score.hospital, str(score.volumes)) for score in scores), ("mean", "")]
    *rows, last = ((*name, *(column[place] for column in cells)) for place, name in enumerate(names))
    return Table(
        header=("hospital", "validation", *(f"Dice {name}" for name in records.classes), "Dice"),
        rows=tuple(rows),
        footer=(last,),
        note=f"Validation volumes after round {records.last_evaluation('validation')}.",
    )


def _site_drawing(records: RunRecords) -> Drawing | None:
    """Dice and surface Dice of every class at every site; None with fewer than two sites."""
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
    kinds = "Dice and surface Dice" if any(metric.startswith("surface") for metric in columns) else "Dice"
    alt = f"{kinds} per hospital and class, from {min(known):.2f} to {max(known):.2f}."
    caption = f"{kinds} of the test volumes: dark blue is 0, yellow is 1."
    return Drawing(name="sites", picture=svg_picture(drawing, alt), caption=caption)


def _site_columns(records: RunRecords) -> dict[str, str]:
    """The metrics of a heat map and their titles; Dice alone where they would be too many."""
    dice = {f"dice/{name}": f"Dice {name}" for name in records.classes}
    dice |= {"dice": "Dice"} if len(records.classes) != 1 else {}
    present = records.metric_names("surface_dice/")
    surface = {f"surface_dice/{name}": f"surface {name}" for name in records.classes}
    both = dice | {metric: title for metric, title in surface.items() if metric in present}
    return both if len(both) <= MOST_COLUMNS else dice


def _last_values(records: RunRecords) -> dict[tuple[str, str, str], float | None]:
    """Per site, split and metric what the last evaluation of test volumes found."""
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
    caption = "Dice of test volumes: a row per model, a column per site."
    drawn = [drawing for drawing in [across_drawing("across", scores, caption)] if drawing is not None]
    table = across_table(scores, "Mean Dice of the test volumes of a site, under the model of the hospital in the row.")
    words = f"Best single site: {best.site}, chosen on {best.chosen_on} volumes of all hospitals."
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


def score_table(records: RunRecords) -> Table:
    """Windows, volumes, Dice, distances and bytes per hospital, with the mean and the worst of each column."""
    scores = records.final()
    names = tuple(f"Dice {name}" for name in records.classes)
    header = ("hospital", "train", "test", *names, "Dice", "HD95 mm", "surface", "down", "up")
    return Table(
        header=header,
        rows=tuple(_score_row(score) for score in scores),
        footer=(
            (_mean_row(scores, records.classes), _worst_row(scores, records.classes), *_unseen_rows(records))
            if scores
            else ()
        ),
        note=_score_note(records, scores),
    )


def _score_row(score: FinalScores) -> tuple[str, ...]:
    return (
        score.hospital,
        UNDEFINED if score.windows is None else str(score.windows),
        str(score.volumes) if score.volumes else UNDEFINED,
        *(number_text(value, DICE_DIGITS) for value in score.per_class.values()),
        number_text(score.dice, DICE_DIGITS),
        counted_text(score.hd95_mm, score.hd95_undefined, MM_DIGITS),
        counted_text(score.surface_dice, score.surface_undefined, DICE_DIGITS),
        bytes_text(score.bytes_down),
        bytes_text(score.bytes_up),
    )


def _unseen_rows(records: RunRecords) -> list[tuple[str, ...]]:
    """The sites that did not train, below the means that they do not enter."""
    return [(f"{row[0]} (unseen)", *row[1:-2], "", "") for row in map(_score_row, records.final(UNSEEN))]


def _mean_row(scores: Sequence[FinalScores], classes: Sequence[str]) -> tuple[str, ...]:
    trained = [score for score in scores if score.windows is not None]  # the common test set is no hospital
    return (
        "mean",
        "",
        "",
        *(number_text(mean(score.per_class[name] for score in scores), DICE_DIGITS) for name in classes),
        number_text(mean(score.dice for score in scores), DICE_DIGITS),
        counted_text(mean(s.hd95_mm for s in scores), sum(s.hd95_undefined for s in scores), MM_DIGITS),
        counted_text(mean(s.surface_dice for s in scores), sum(s.surface_undefined for s in scores), DICE_DIGITS),
        bytes_text(mean(score.bytes_down for score in trained) or 0),
        bytes_text(mean(score.bytes_up for score in trained) or 0),
    )


def _worst_row(scores: Sequence[FinalScores], classes: Sequence[str]) -> tuple[str, ...]:
    def worst(values: list[float | None], pick: Callable[[list[float]], float], digits: int) -> str:
        defined = [value for value in values if value is not None]
        return number_text(pick(defined) if defined else None, digits)

    return (
        "worst",
        "",
        "",
        *(worst([score.per_class[name] for score in scores], min, DICE_DIGITS) for name in classes),
        worst([score.dice for score in scores], min, DICE_DIGITS),
        worst([score.hd95_mm for score in scores], max, MM_DIGITS),
        worst([score.surface_dice for score in scores], min, DICE_DIGITS),
        "",
        "",
    )


def _score_note(records: RunRecords, scores: Sequence[FinalScores]) -> str:
    last = records.last_evaluation()
    tolerance = _tolerance_mm(records)
    surface = "surface Dice" if tolerance is None else f"surface Dice at {tolerance} mm"
    when = "No test volume has been scored yet." if last is None else f"Test volumes after round {last}."
    parts = [
        when,
        f"Train: training windows; test: volumes; Dice, HD95, surface ({surface}): means over the classes;",
        "down, up: bytes sent to the hospital and back over the run.",
    ]
    if any(score.hd95_undefined or score.surface_undefined for score in scores):
        parts.append("(n): n values are undefined because a mask is empty, and are left out of the mean.")
    parts.append(f"{UNDEFINED}: not defined or not measured. Worst: of the hospitals, for each column by itself.")
    if records.untrained:
        where = ", ".join(sorted(records.untrained))
        parts.append(f"Every hospital trains alone: at {where} the model before training was scored.")
    elif records.unseen:
        parts.append("Unseen: sites that did not train, scored with the global model; they enter no mean.")
    return " ".join(parts)


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
    rows = [(hospital, *(number_text(column.get(hospital), DICE_DIGITS) for column in last)) for hospital in last[0]]
    means = ("mean", *(number_text(mean(column.values()), DICE_DIGITS) for column in last))
    return Table(
        header=("hospital", *(f"Dice {name}" for name in names), "mean of regions"),
        rows=tuple(rows),
        footer=(means,),
        note="A region is a union of classes (evaluation.regions).",
    )
