"""The courses of a run: round by round, against what they cost, and what was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ..headline import Headline
from ..results import SERVER, UNSEEN, RunRecords, Series, mean_series
from ..sweeps.costs import link_hours
from .page import (
    UNDEFINED,
    Drawing,
    Section,
    Table,
    bytes_text,
    bytes_unit,
    count_text,
    details,
    drawing_files,
    figures,
    join,
    note,
    number_text,
    svg_picture,
    tag,
)
from .run_overlays import MANY_HOSPITALS

MEGABITS = (10, 100)
"""Links, in Mbit/s, for which the hours are told that a run's bytes take."""


# ---- round by round --------------------------------------------------------------------------------------------------


def course_section(records: RunRecords) -> Section:
    """The headline and the loss over the rounds."""
    drawn = [_score_drawing(records, split) for split in ("test", "validation", UNSEEN)]
    drawn.append(
        course_drawing("loss", "Training loss", records.series("loss", "train"), y_label="mean loss of the steps")
    )
    parts = [item for item in drawn if item is not None]
    if not parts:
        return Section(title="Round by round", body=note("No round has been recorded yet."))
    headline = records.headline
    numbers = _round_table(records.series(headline.key, "test"))
    title = f"Test {headline.word_inside} as numbers"
    body = join([figures(part.html() for part in parts), details(title, numbers.html())])
    return Section(title="Round by round", body=body, tables={"rounds": numbers}, drawings=drawing_files(parts))


def _score_drawing(records: RunRecords, split: str) -> Drawing | None:
    headline = records.headline
    return course_drawing(
        f"{headline.key}-{split}",
        f"{split.capitalize()} {headline.word_inside}",
        records.series(headline.key, split),
        y_label=headline.word,
        y_range=(0.0, 1.0),
    )


def course_drawing(
    name: str, title: str, series: Series, *, y_label: str, y_range: tuple[float, float] | None = None
) -> Drawing | None:
    """A line per hospital and their mean; None when there is nothing to draw.

    Args:
        name: Of the drawing, unique on the page.
        title: What is measured.
        series: Per hospital.
        y_label: Axis label with its unit.
        y_range: Fixed range of the axis; None: what the values need.
    """
    from .figures import line_chart

    if not any_value(series):
        return None
    lines, entries = hospital_lines(series)
    picture = svg_picture(line_chart(name, lines, y_label=y_label, y_range=y_range), _course_text(title, series))
    start = "; round 0 is the model before training" if _starts_at_zero(series) else ""
    return Drawing(name=name, picture=picture, caption=f"{title} per round and hospital{start}.", entries=entries)


def small_drawing(name: str, title: str, series: Series) -> Drawing:
    """The same for many beside each other, of values that some hospital or the server has."""
    from .figures import line_chart

    lines, entries = hospital_lines(series)
    picture = svg_picture(line_chart(name, lines, y_label="", small=True), _course_text(title, series))
    alone = set(series) == {SERVER}
    return Drawing(name=name, picture=picture, caption=title, entries=[] if alone else entries)


def any_value(series: Series) -> bool:
    """Whether there is anything to draw."""
    return any(value is not None for points in series.values() for _, value in points)


def _starts_at_zero(series: Series) -> bool:
    return any(points and points[0][0] == 0 for points in series.values())


def hospital_lines(series: Series) -> tuple[list[Any], list[tuple[str, str, str]]]:
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


# ---- against costs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """A scored round: what it took to get there, and the score.

    Args:
        round: The round.
        bytes: Sent so far, both ways, of all hospitals together; None where nothing travels.
        steps: Optimizer steps so far, of all hospitals together.
        seconds: Wall clock so far of all stages, None where not every round's is known.
        score: The mean over the hospitals.
        lowest: The hospital with the lowest score.
        highest: The one with the highest.
    """

    round: int
    bytes: int | None
    steps: int
    seconds: float | None
    score: float
    lowest: float
    highest: float


def cost_curve(records: RunRecords) -> tuple[str, list[CostPoint]]:
    """The split and a point per scored round: of test cases, or of validation cases where they have more rounds."""
    curves = {split: _points(records, split) for split in ("test", "validation")}
    return max(curves.items(), key=lambda item: len(item[1]))  # the first one of equals


def _points(records: RunRecords, split: str) -> list[CostPoint]:
    scores: dict[int, list[float]] = {}
    for points in records.series(records.headline.key, split).values():
        for number, value in points:
            if value is not None:
                scores.setdefault(number, []).append(value)
    return [_point(records, number, scores[number]) for number in sorted(scores)]


def _point(records: RunRecords, number: int, scores: Sequence[float]) -> CostPoint:
    rows = [row for row in records.ledger if row.round <= number]
    stages = zip(records.timing, records.timing_stages(), strict=True)
    times = {row.round: sum(seconds.values()) for row, seconds in stages if row.round <= number}
    return CostPoint(
        round=number,
        bytes=None if records.pooled else sum(row.bytes_down + row.bytes_up for row in rows),
        steps=sum(row.steps for row in rows),
        seconds=sum(times.values()) if set(range(1, number + 1)) <= set(times) else None,
        score=sum(scores) / len(scores),
        lowest=min(scores),
        highest=max(scores),
    )


def cost_section(records: RunRecords) -> Section | None:
    """The score against bytes, steps and wall time; None with fewer than two scored rounds."""
    split, points = cost_curve(records)
    headline = records.headline
    if len(points) < 2:
        return None
    factor, unit = bytes_unit(max(point.bytes or 0 for point in points))
    second, time = _time_unit(max(point.seconds or 0.0 for point in points))
    axes: dict[str, tuple[str, str, list[float | None]]] = {
        "bytes": ("bytes sent", f"{unit} sent so far", [_over(point.bytes, factor) for point in points]),
        "steps": ("optimizer steps", "optimizer steps so far", [point.steps for point in points]),
        "time": ("wall time", f"{time} so far", [_over(point.seconds, second) for point in points]),
    }
    drawn = [_cost_drawing(name, headline, split, *axis, points) for name, axis in axes.items() if any(axis[2])]
    words = (
        f"The mean {split} {headline.word_inside} of the hospitals after every scored round; the area goes from the "
        "lowest hospital to the highest. Bytes and steps: all hospitals together, both ways. Wall time: all stages, on "
        "this machine."
    )
    table = _cost_table(points, headline)
    parts = [
        note(words),
        figures((each.html() for each in drawn), small=True),
        details("The same as numbers", table.html()),
    ]
    title = f"{headline.word} against costs"
    return Section(title=title, body=join(parts), tables={"costs": table}, drawings=drawing_files(drawn))


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _time_unit(most: float) -> tuple[float, str]:
    """The unit in which the longest of some times is readable."""
    return (3600.0, "hours") if most >= 7200 else (60.0, "minutes") if most >= 300 else (1.0, "seconds")


def _cost_drawing(
    name: str,
    headline: Headline,
    split: str,
    what: str,
    x_label: str,
    across: Sequence[float | None],
    points: Sequence[CostPoint],
) -> Drawing:
    from .figures import BLUE, Line, curve_chart

    known = [(x, point) for x, point in zip(across, points, strict=True) if x is not None]
    line = Line(
        points=[(x, point.score) for x, point in known],
        colour=BLUE,
        marker="o",
        band=[(x, point.lowest, point.highest) for x, point in known],
    )
    name, word = f"{headline.key}-{name}", headline.word_inside
    drawing = curve_chart(
        name, [line], x_label=x_label, y_label=f"mean {word}", x_axis="linear", y_range=(0.0, 1.0), small=True
    )
    (first, start), (last, end) = known[0], known[-1]
    ends = f"{start.score:.3f} at {first:.3g}, {end.score:.3f} at {last:.3g} {x_label}"
    alt = f"Mean {split} {word} against {what}: {ends}."
    caption = f"{split.capitalize()} {word} against {what}."
    return Drawing(name=name, picture=svg_picture(drawing, alt), caption=caption)


def _cost_table(points: Sequence[CostPoint], headline: Headline) -> Table:
    rows = tuple(
        (
            str(point.round),
            UNDEFINED if point.bytes is None else bytes_text(point.bytes),
            str(point.steps),
            number_text(point.seconds, 1),
            *(number_text(value) for value in (point.score, point.lowest, point.highest)),
        )
        for point in points
    )
    header = ("round", "sent", "steps", "seconds", f"mean {headline.word_inside}", "lowest", "highest")
    return Table(header=header, rows=rows)


# ---- bytes -----------------------------------------------------------------------------------------------------------


def traffic_section(records: RunRecords) -> Section:
    """Bytes per round and so far, both ways, and how long a hospital's part of them takes."""
    sent = records.bytes_per_round()
    why = _why_nothing(records)
    if why:
        return Section(title="Bytes sent", body=note(why))
    total = f"{total_sent(records)} in {count_text(len(sent), 'round')}: {both_ways(records)}."
    hours, drawn = hours_table(records), [_traffic_drawing(sent), _cumulative_drawing(sent)]
    return Section(
        title="Bytes sent",
        body=join([tag("p", total), figures(each.html() for each in drawn), hours.html()]),
        tables={"hours": hours},
        drawings=drawing_files(drawn),
    )


def _why_nothing(records: RunRecords) -> str:
    """Why no byte travels, "" where some do."""
    if records.pooled:
        return (
            "Nothing travels: one model is trained where the cases of all hospitals are. The ledger below counts what "
            "a hospital that holds them all would send and receive."
        )
    if records.config.get("rounds") == 0:
        return "Nothing is sent: the run has no rounds."
    if not records.ledger:
        return "Nothing has been sent yet."
    return "" if records.bytes_down + records.bytes_up else "Nothing was sent: every hospital trained on its own."


def hours_table(records: RunRecords) -> Table:
    """Hours in which the mean hospital's bytes go over a link of 10 and of 100 Mbit/s."""
    down, up = mean_traffic(records)
    ways = (down, up, down + up)
    rows = tuple(
        (f"{megabits} Mbit/s", *(f"{link_hours(size, megabits):.3g}" for size in ways)) for megabits in MEGABITS
    )
    return Table(
        header=("link", "down, hours", "up, hours", "both, hours"),
        rows=rows,
        note=f"The mean hospital over the run: {bytes_text(down)} down, {bytes_text(up)} up. "
        "Hours = 8 x bytes / (1,000,000 x Mbit/s) / 3600, without latency and without what protocols add.",
    )


def mean_traffic(records: RunRecords) -> tuple[float, float]:
    """Bytes down and up over the run, the mean over the hospitals that took part in a round."""
    hospitals = len({row.hospital for row in records.ledger})
    return records.bytes_down / hospitals, records.bytes_up / hospitals


def total_sent(records: RunRecords) -> str:
    """``31.0 MB``: everything, both ways."""
    return bytes_text(records.bytes_down + records.bytes_up)


def both_ways(records: RunRecords) -> str:
    """``18.0 MB to the hospitals, 13.0 MB back``."""
    return f"{bytes_text(records.bytes_down)} to the hospitals, {bytes_text(records.bytes_up)} back"


def _traffic_drawing(sent: Mapping[int, tuple[int, int]]) -> Drawing:
    from .figures import BLUE, ORANGE, bar_chart

    factor, unit = bytes_unit(max(max(pair) for pair in sent.values()))
    down, up = ([(number, pair[way] / factor) for number, pair in sent.items()] for way in (0, 1))
    drawing = bar_chart("bytes", {BLUE: down, ORANGE: up}, y_label=f"{unit} per round")
    last = max(sent)
    down_text, up_text = map(bytes_text, sent[last])
    alt = f"Bytes per round; in round {last} {down_text} to the hospitals, {up_text} back."
    caption = "Bytes per round, all hospitals together."
    return Drawing(name="bytes", picture=svg_picture(drawing, alt), caption=caption, entries=_ways(BLUE, ORANGE))


def _cumulative_drawing(sent: Mapping[int, tuple[int, int]]) -> Drawing:
    from .figures import BLUE, ORANGE, area_chart

    down, up = (list(accumulate((pair[way] for pair in sent.values()), initial=0)) for way in (0, 1))
    factor, unit = bytes_unit(down[-1] + up[-1])
    rounds = [min(sent) - 1, *sent]
    layers = {
        BLUE: [(number, size / factor) for number, size in zip(rounds, down, strict=True)],
        ORANGE: [(number, size / factor) for number, size in zip(rounds, up, strict=True)],
    }
    alt = f"Bytes sent so far, growing to {bytes_text(down[-1] + up[-1])} in round {max(sent)}."
    picture = svg_picture(area_chart("bytes-sum", layers, y_label=f"{unit} so far"), alt)
    caption = "Bytes so far, the two ways stacked."
    return Drawing(name="bytes-sum", picture=picture, caption=caption, entries=_ways(BLUE, ORANGE))


def _ways(down: str, up: str) -> list[tuple[str, str, str]]:
    return [("■", down, "to the hospitals"), ("■", up, "back to the server")]
