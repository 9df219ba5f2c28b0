"""What a run says about itself: the table at its end and the page ``report.html``.

A page is a list of sections, each made by one small function of the run's records; :mod:`.report_page` renders, and
:mod:`.figures` draws. A new section is a new function and a line in :func:`_sections`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import files
from .instrument_report import COLUMNS, layers_body
from .report_page import (
    UNDEFINED,
    Html,
    Section,
    Table,
    banner,
    bytes_text,
    bytes_unit,
    count_text,
    counted_text,
    details,
    facts,
    figure,
    figures,
    join,
    legend,
    note,
    number_text,
    page,
    png_picture,
    seconds_text,
    svg_picture,
    tag,
    tiles,
)
from .results import SERVER, UNSEEN, FinalScores, RunRecords, Series, mean, mean_series

MANY_HOSPITALS = 8
"""With more of them, hospitals have no colour of their own."""

DICE_DIGITS, MM_DIGITS = 3, 2


def write_report(run_dir: Path | str, *, images: bool = True, out: Path | None = None) -> Path:
    """Writes one self-contained HTML page about a run, finished or not.

    The page depends on the files of the run directory alone: the same files give the same bytes.

    Args:
        run_dir: The run directory.
        images: Whether slices of the hospitals' test volumes may be on the page.
        out: The file to write; None: ``report.html`` in the run directory.

    Returns:
        The file written.

    Raises:
        ValueError: Not a run directory, or a file in it is damaged.
    """
    records = RunRecords.load(run_dir)
    path = records.path / "report.html" if out is None else Path(out)
    title = f"{records.manifest.get('experiment', 'run')} · {records.manifest.get('id', records.path.name)}"
    files.write_text(path, page(title=title, head=_head(records, title), sections=_sections(records, images)))
    return path


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
    tolerance = _in(records.config, "evaluation", "surface_tolerance_mm")
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
    if records.unseen:
        parts.append("Unseen: sites that did not train, scored with the global model; they enter no mean.")
    return " ".join(parts)


def _sections(records: RunRecords, images: bool) -> list[Section]:
    made = [
        _what_ran(records),
        _scores(records),
        _course(records),
        _traffic(records),
        _aggregation(records),
        _ledger(records),
        _overlays(records) if images else _no_overlays(),
        _timing(records),
        _manifest(records),
        _repeat(records),
    ]
    return [section for section in made if section is not None]


def _head(records: RunRecords, title: str) -> Html:
    scores = records.final()
    ranked = sorted((score.dice, score.hospital) for score in scores if score.dice is not None)
    last = records.last_evaluation()
    worst = (number_text(ranked[0][0]), ranked[0][1]) if ranked else (UNDEFINED, "no test volume scored yet")
    boxes = {
        "Mean test Dice": (number_text(mean(score.dice for score in scores)), _over(len(ranked), len(scores), last)),
        "Worst hospital": worst,
        "Rounds": (_rounds_text(records), count_text(len(records.members), "hospital")),
        "Sent": (_total_sent(records), _both_ways(records)),
        "Time": (seconds_text(records.seconds), _device(records)),
    }
    remark = "Federated fine-tuning, simulated on one machine."
    return join([tag("h1", title), note(remark), _state_banner(records), tiles(boxes)])


def _device(records: RunRecords) -> str:
    return str(_in(records.manifest, "environment", "device") or _in(records.manifest, "hardware", "device") or "")


def _over(defined: int, hospitals: int, last: int | None) -> str:
    if last is None:
        return "no test volume scored yet"
    missing = f", undefined at {hospitals - defined}" if defined < hospitals else ""
    return f"mean over {count_text(defined, 'hospital')}, round {last}{missing}"


def _rounds_text(records: RunRecords) -> str:
    planned = records.config.get("rounds")
    return str(records.rounds) if planned in (None, records.rounds) else f"{records.rounds} of {planned}"


def _total_sent(records: RunRecords) -> str:
    return bytes_text(records.bytes_down + records.bytes_up)


def _both_ways(records: RunRecords) -> str:
    return f"{bytes_text(records.bytes_down)} to the hospitals, {bytes_text(records.bytes_up)} back"


def _state_banner(records: RunRecords) -> Html:
    if records.finished:
        return Html("")
    text = f"This run is not finished: the page shows it after round {_rounds_text(records)}."
    if records.manifest.get("state") == "interrupted":
        return banner(f"{text} It was interrupted.")
    error = records.manifest.get("error")
    return banner(f"{text} It stopped with an error: {error}" if error else text)


def _what_ran(records: RunRecords) -> Section:
    """One line per part of the experiment, and everything below it."""
    return Section(
        title="What was run",
        body=join(
            [
                facts({key: _setting_text(value) for key, value in records.config.items()}),
                details("Every setting", facts(_flat(records.config))),
            ]
        ),
    )


def _setting_text(value: object) -> str:
    """``flap_sam (rank 8, alpha 1.0)`` for a plug-in, plain text for anything else."""
    if not isinstance(value, Mapping):
        return _plain(value)
    inner = ", ".join(f"{key} {_nested(item)}" for key, item in value.items() if key != "name")
    if "name" not in value:
        return inner or "none"
    return f"{value['name']} ({inner})" if inner else str(value["name"])


def _nested(value: object) -> str:
    return f"[{_setting_text(value)}]" if isinstance(value, Mapping | list | tuple) else _plain(value)


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_nested, value)) if isinstance(value, list | tuple) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"method.lora.rank": "8"}``."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value) if not isinstance(value, Mapping) else "none"
    return flat


def _scores(records: RunRecords) -> Section:
    regions = region_table(records)
    tables = [score_table(records).html(), *([regions.html()] if regions is not None else [])]
    return Section(title="Scores per hospital", body=join(tables))


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


def _course(records: RunRecords) -> Section:
    """Dice and loss over the rounds."""
    drawn = [_dice_figure(records, split) for split in ("test", "validation", UNSEEN)]
    drawn.append(
        _series_figure("loss", "Training loss", records.series("loss", "train"), y_label="mean loss of the steps")
    )
    parts = [item for item in drawn if item is not None]
    if not parts:
        return Section(title="Round by round", body=note("No round has been recorded yet."))
    numbers = _round_table(records.series("dice", "test"))
    return Section(title="Round by round", body=join([figures(parts), details("Test Dice as numbers", numbers.html())]))


def _dice_figure(records: RunRecords, split: str) -> Html | None:
    title = f"{split.capitalize()} Dice"
    return _series_figure(f"dice-{split}", title, records.series("dice", split), y_label="Dice", y_range=(0.0, 1.0))


def _series_figure(
    name: str, title: str, series: Series, *, y_label: str, y_range: tuple[float, float] | None = None
) -> Html | None:
    """A line per hospital and their mean; None when there is nothing to draw."""
    from .figures import line_chart

    if not _any_value(series):
        return None
    lines, entries = _hospital_lines(series)
    picture = svg_picture(line_chart(name, lines, y_label=y_label, y_range=y_range), _course_text(title, series))
    return figure(
        picture,
        f"{title} per round and hospital; round 0 is the model before training."
        if _starts_at_zero(series)
        else f"{title} per round and hospital.",
        legend(entries),
    )


def _any_value(series: Series) -> bool:
    return any(value is not None for points in series.values() for _, value in points)


def _starts_at_zero(series: Series) -> bool:
    return any(points and points[0][0] == 0 for points in series.values())


def _hospital_lines(series: Series) -> tuple[list[Any], list[tuple[str, str, str]]]:
    """Lines and legend: a colour and mark each, or thin lines when there are many; the mean on top."""
    from .figures import INK, LINE_COLOURS, MARKS, SKY, Line

    average = Line(points=mean_series(series), colour=INK, width=2.6)
    if len(series) > MANY_HOSPITALS:
        thin = [Line(points=points, colour=SKY, width=0.8) for points in series.values()]
        entries = [("━", "inherit", f"mean of {len(series)} hospitals"), ("─", SKY, "one hospital each")]
        return [*thin, average], entries
    lines, entries = [], []
    for place, (name, points) in enumerate(series.items()):
        colour, (marker, mark) = LINE_COLOURS[place % len(LINE_COLOURS)], list(MARKS.items())[place % len(MARKS)]
        lines.append(Line(points=points, colour=colour, marker=marker))
        entries.append((mark, colour, name))
    if len(series) == 1:
        return lines, entries
    return [*lines, average], [*entries, ("━", "inherit", "mean")]


def _course_text(title: str, series: Series) -> str:
    """The text alternative of a chart over rounds."""
    points = [(number, value) for number, value in mean_series(series) if value is not None]
    (first, start), (last, end) = points[0], points[-1]
    who = "" if set(series) == {SERVER} else f", mean over {count_text(len(series), 'hospital')}"
    text = f"{title}{who}: {start:.3f} in round {first}, {end:.3f} in round {last}."
    ends = {name: course[-1][1] for name, course in series.items() if 1 < len(series) <= MANY_HOSPITALS}
    return " ".join([text, *(f"{name}: {number_text(value)}." for name, value in ends.items())])


def _round_table(series: Series) -> Table:
    average = dict(mean_series(series))
    columns = {name: dict(points) for name, points in series.items()}
    rows = [
        (str(number), *(number_text(points.get(number)) for points in columns.values()), number_text(average[number]))
        for number in average
    ]
    return Table(header=("round", *series, "mean"), rows=tuple(rows))


def _traffic(records: RunRecords) -> Section:
    """Bytes per round and so far, both ways."""
    sent = records.bytes_per_round()
    if not sent:
        return Section(title="Bytes sent", body=note("Nothing has been sent yet."))
    total = f"{_total_sent(records)} in {count_text(len(sent), 'round')}: {_both_ways(records)}."
    return Section(
        title="Bytes sent",
        body=join([tag("p", total), figures([_traffic_figure(sent), _cumulative_figure(sent)])]),
    )


def _traffic_figure(sent: Mapping[int, tuple[int, int]]) -> Html:
    from .figures import BLUE, ORANGE, bar_chart

    factor, unit = bytes_unit(max(max(pair) for pair in sent.values()))
    down, up = ([(number, pair[way] / factor) for number, pair in sent.items()] for way in (0, 1))
    drawing = bar_chart("bytes", {BLUE: down, ORANGE: up}, y_label=f"{unit} per round")
    last = max(sent)
    down_text, up_text = map(bytes_text, sent[last])
    alt = f"Bytes per round; in round {last} {down_text} to the hospitals, {up_text} back."
    return figure(svg_picture(drawing, alt), "Bytes per round, all hospitals together.", legend(_ways(BLUE, ORANGE)))


def _cumulative_figure(sent: Mapping[int, tuple[int, int]]) -> Html:
    from .figures import BLUE, ORANGE, area_chart

    down, up = np.cumsum([[0, 0], *sent.values()], axis=0).T.tolist()
    factor, unit = bytes_unit(down[-1] + up[-1])
    rounds = [min(sent) - 1, *sent]
    layers = {
        BLUE: [(number, size / factor) for number, size in zip(rounds, down, strict=True)],
        ORANGE: [(number, size / factor) for number, size in zip(rounds, up, strict=True)],
    }
    alt = f"Bytes sent so far, growing to {bytes_text(down[-1] + up[-1])} in round {max(sent)}."
    picture = svg_picture(area_chart("bytes-sum", layers, y_label=f"{unit} so far"), alt)
    return figure(picture, "Bytes so far, the two ways stacked.", legend(_ways(BLUE, ORANGE)))


def _ways(down: str, up: str) -> list[tuple[str, str, str]]:
    return [("■", down, "to the hospitals"), ("■", up, "back to the server")]


def _aggregation(records: RunRecords) -> Section | None:
    """A small chart for each thing the aggregator reports and each instrument, and the instruments per layer."""
    measured = [name for column in COLUMNS if (name := f"instrument/{column}") in records.metric_names("instrument/")]
    names = [*records.metric_names("aggregate/"), *_stage_names(records), *measured]
    drawn = [_small_figure(number, name, records.series(name)) for number, name in enumerate(names)]
    guarantee = (records.summary or {}).get("privacy")
    parts = [tag("p", f"Privacy: {guarantee}.")] if guarantee else []
    parts += [figures(drawn, small=True)] if drawn else []
    if records.instruments:
        parts.append(layers_body(records.instruments))
    return Section(title="Aggregation", body=join(parts)) if parts else None


def _stage_names(records: RunRecords) -> list[str]:
    """What the stages report, in reading order; delta is a setting."""
    names = [*records.metric_names("privacy/"), *records.metric_names("secure_sum/")]
    return [name for name in names if name != "privacy/delta"]


def _small_figure(number: int, name: str, series: Series) -> Html:
    from .figures import line_chart

    prefix, _, word = name.partition("/")
    title = {"instrument": COLUMNS.get(word, word), "aggregate": word}.get(prefix, name)
    if not _any_value(series):
        return figure(Html(""), f"{title}: undefined in every round")
    lines, entries = _hospital_lines(series)
    picture = svg_picture(line_chart(f"aggregate-{number}", lines, y_label="", small=True), _course_text(title, series))
    return figure(picture, title, legend([] if set(series) == {SERVER} else entries))


def _ledger(records: RunRecords) -> Section:
    """Who took part, who was dropped, what each sent and did."""
    if not records.ledger:
        return Section(title="Ledger", body=note("No hospital has taken part in a round yet."))
    dropped = sum(row.status == "dropped" for row in records.ledger)
    text = (
        f"{dropped} of {len(records.ledger)} times a hospital failed its round."
        if dropped
        else "No hospital was dropped."
    )
    rows = tuple(_ledger_row(records, name) for name in records.members)
    header = ("hospital", "rounds done", "rounds dropped", "dropped in", "windows", "steps", "down", "up")
    return Section(title="Ledger", body=join([tag("p", text), Table(header=header, rows=rows).html()]))


def _ledger_row(records: RunRecords, hospital: str) -> tuple[str, ...]:
    rows = [row for row in records.ledger if row.hospital == hospital]
    missed = [row.round for row in rows if row.status == "dropped"]
    return (
        hospital,
        str(len(rows) - len(missed)),
        str(len(missed)),
        _ranges(missed),
        str(max((row.examples for row in rows), default=0)),
        str(sum(row.steps for row in rows)),
        bytes_text(sum(row.bytes_down for row in rows)),
        bytes_text(sum(row.bytes_up for row in rows)),
    )


def _ranges(numbers: Sequence[int]) -> str:
    """``2, 5–7`` for 2, 5, 6, 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _no_overlays() -> Section:
    return Section(title="Slices", body=note("Slices of the hospitals' volumes were left out of this page on request."))


def _overlays(records: RunRecords) -> Section:
    """The best, the median and the worst test volume of each hospital."""
    found = {name: records.path / "overlays" / f"{files.file_stem(name)}.npz" for name in records.hospitals}
    stored = {name: path for name, path in found.items() if path.is_file()}
    if not stored:
        return Section(title="Slices", body=note("No slices are stored in this run directory."))
    many = len(stored) > MANY_HOSPITALS
    parts = [_hospital_slices(name, path, many) for name, path in stored.items()]
    explained = "Area: prediction. Outline: truth. Slices as stored in the file, in the proportions of the body."
    return Section(title="Slices", body=join([note(explained), _class_legend(records.classes), *parts]))


def _class_legend(classes: Sequence[str]) -> Html:
    from .figures import CLASS_COLOURS

    return legend(("■", CLASS_COLOURS[place % len(CLASS_COLOURS)], name) for place, name in enumerate(classes))


def _hospital_slices(hospital: str, path: Path, many: bool) -> Html:
    slices = _read_overlays(path)
    ranks = {1: ("only",), 2: ("best", "worst"), 3: ("best", "median", "worst")}[len(slices["case"])]
    shown = [_slice_figure(slices, place, f"{hospital}, {rank} volume", many) for place, rank in enumerate(ranks)]
    pictures = tag("div", *shown, class_="slices")
    return details(hospital, pictures) if many else join([tag("h3", hospital), pictures])


def _slice_figure(slices: Mapping[str, NDArray[Any]], place: int, what: str, many: bool) -> Html:
    from .figures import overlay_png

    most = max(slices["image"].shape[1:])
    row_mm, column_mm = slices["spacing_mm"][place].tolist()
    png = overlay_png(
        slices["image"][place],
        slices["truth"][place],
        slices["prediction"][place],
        spacing_mm=(row_mm, column_mm),
        side=int(np.clip(most, 160, 256) if many else np.clip(most, 320, 512)),
    )
    dice = float(slices["dice"][place])
    score = number_text(dice if np.isfinite(dice) else None)
    text = f"Dice {score}, {slices['case'][place]}, slice {slices['slice'][place]}"
    caption = f"{what.rpartition(', ')[2].capitalize()}: {text}"
    return figure(png_picture(png, f"Prediction and truth, {what}: {text}"), caption)


def _read_overlays(path: Path) -> dict[str, NDArray[Any]]:
    wanted = ("image", "truth", "prediction", "case", "slice", "dice", "spacing_mm")
    try:
        with np.load(path, allow_pickle=False) as file:
            slices = {name: file[name] for name in wanted}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path}: expected the arrays {', '.join(wanted)}, but reading it failed ({error})") from error
    shapes = {name: array.shape for name, array in slices.items()}
    same = len({shapes[name] for name in ("image", "truth", "prediction")}) == 1
    if not same or len({shape[0] for shape in shapes.values()}) != 1 or not 1 <= len(slices["case"]) <= 3:
        raise ValueError(f"{path}: expected 1 to 3 slices of one size in every array, got shapes {shapes!r}")
    return slices


def _timing(records: RunRecords) -> Section | None:
    """Seconds per stage."""
    stages = records.timing_stages()
    if not stages:
        return None
    totals = {name: sum(row[name] for row in stages) for name in stages[0]}
    whole = sum(totals.values())
    rows = tuple(
        (name, f"{total:.2f}", f"{total / len(stages):.2f}", f"{100 * total / whole if whole else 0:.0f} %")
        for name, total in totals.items()
    )
    everything = ("sum", f"{whole:.2f}", f"{whole / len(stages):.2f}", "")
    table = Table(
        header=("stage", "seconds", "per round", "share"),
        rows=rows,
        footer=(everything,),
        note="Wall clock: times are what a repeated run does not reproduce.",
    )
    return Section(title="Timing", body=table.html())


def _manifest(records: RunRecords) -> Section:
    flat = _flat({key: value for key, value in records.manifest.items() if key != "command"})
    return Section(title="Manifest", body=facts(flat))


def _repeat(records: RunRecords) -> Section | None:
    command = records.manifest.get("command")
    if not command:
        return None
    text = shlex.join(map(str, command)) if isinstance(command, list) else str(command)
    return Section(title="To repeat it", body=tag("pre", text))


def _in(values: Mapping[str, Any], *keys: str) -> object:
    """A value deep inside a mapping, None when it is not there."""
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
