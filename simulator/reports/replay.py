"""What ``wardround replay`` shows: a table for the terminal, and a folder with a page, a CSV and the rows.

::

    replay.jsonl    a row per aggregator, round and layer
    replay.csv      a row per aggregator and round, for the whole model
    replay.html     table and pictures
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..replay import Replayed
from ..results import mean
from .instruments import COLUMNS, instrument_text
from .page import Html, Section, Table, figure, figures, join, legend, note, page, svg_picture, tag

COMPARED = ("ideal_distance", "gauge_imbalance", "server_step")
"""Instruments that depend on the aggregator; the others describe the updates, which are the same for all."""

ONE_STEP = (
    "Every aggregator took its step from the same recorded state and updates, round by round. This compares single"
    " steps, not training: after another step the hospitals would have gone on from another model."
)


def replay_table(steps: Sequence[Replayed]) -> Table:
    """Mean over the rounds, a row per aggregator; what describes the updates alone stands in the note."""
    rows = [_row(name, [step for step in steps if step.aggregator == name]) for name in _names(steps)]
    header = ("aggregator", "distance", "worst layer", "gauge imbalance", "server step", "ms")
    read = f"Means over {_rounds_text(steps)}. Distance: from the ideal mean, relative to it; worst layer: its largest."
    return Table(header=header, rows=tuple(rows), note=f"{read} ms: median time of a step. {_updates_text(steps)}")


def write_replay(folder: Path, run: Path, steps: Sequence[Replayed]) -> Path:
    """Writes rows, CSV and page into a folder; returns the page."""
    lines = "".join(json.dumps(row) + "\n" for step in steps for row in step.rows())
    files.write_text(folder / "replay.jsonl", lines)
    files.write_text(folder / "replay.csv", _csv(steps))
    title = f"Replay of {run.name}"
    table = join([tag("p", ONE_STEP), replay_table(steps).html()])
    sections = [
        Section(title="One step, side by side", body=table),
        Section(title="Round by round", body=figures(_figure(steps, name) for name in COMPARED)),
        Section(title="Layer by layer", body=_layers(steps)),
    ]
    head = join(
        [
            tag("h1", title),
            note(f"{len(_names(steps))} aggregators on {_rounds_text(steps)} of one run of {run.parent.name}."),
        ]
    )
    files.write_text(folder / "replay.html", page(title=title, head=head, sections=sections))
    return folder / "replay.html"


def _row(name: str, steps: Sequence[Replayed]) -> tuple[str, ...]:
    distance, imbalance, moved = (mean(step.numbers.get(measure) for step in steps) for measure in COMPARED)
    distances = [layer.ideal_distance for step in steps for layer in step.layers]
    worst = max((value for value in distances if value is not None), default=None)
    seconds = statistics.median(step.seconds for step in steps)
    return (name, *map(instrument_text, (distance, worst, imbalance, moved)), f"{1000 * seconds:.1f}")


def _names(steps: Sequence[Replayed]) -> list[str]:
    return list(dict.fromkeys(step.aggregator for step in steps))


def _rounds_text(steps: Sequence[Replayed]) -> str:
    rounds = sorted({step.round for step in steps})
    return f"round {rounds[0]}" if len(rounds) == 1 else f"{len(rounds)} rounds ({rounds[0]} to {rounds[-1]})"


def _updates_text(steps: Sequence[Replayed]) -> str:
    """What is the same for all: it says how hard the updates are to aggregate."""
    first = [step for step in steps if step.aggregator == steps[0].aggregator]
    said = [
        f"{COLUMNS[name]} {instrument_text(mean(step.numbers.get(name) for step in first))}"
        for name in COLUMNS
        if name not in COMPARED and any(name in step.numbers for step in first)
    ]
    return f"The updates themselves: {', '.join(said)}."


def _csv(steps: Sequence[Replayed]) -> str:
    names = [name for name in COLUMNS if any(name in step.numbers for step in steps)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["aggregator", "round", *names, "seconds"])
    for step in steps:
        writer.writerow([step.aggregator, step.round, *(step.numbers.get(name, "") for name in names), step.seconds])
    return text.getvalue()


def _figure(steps: Sequence[Replayed], name: str) -> Html:
    """A line per aggregator over the rounds."""
    from .figures import LINE_COLOURS, MARKS, Line, curve_chart

    lines, entries, ends = [], [], []
    for place, aggregator in enumerate(_names(steps)):
        colour = LINE_COLOURS[place % len(LINE_COLOURS)]
        marker, mark = list(MARKS.items())[place % len(MARKS)]
        points = [(step.round, step.numbers.get(name)) for step in steps if step.aggregator == aggregator]
        lines.append(Line(points=points, colour=colour, marker=marker))
        entries.append((mark, colour, aggregator))
        ends.append(f"{aggregator} {instrument_text(points[-1][1])}")
    logarithmic = name == "ideal_distance"  # exact and averaged factors are orders of magnitude apart
    drawing = curve_chart(f"replay-{name}", lines, x_label="round", y_label=COLUMNS[name], logarithmic=logarithmic)
    alt = f"{COLUMNS[name].capitalize()} per round; in the last one: {', '.join(ends)}."
    return figure(svg_picture(drawing, alt), f"{COLUMNS[name].capitalize()} per round.", legend(entries))


def _layers(steps: Sequence[Replayed]) -> Html:
    """The distance of every layer, mean over the rounds, a column per aggregator."""
    names = _names(steps)
    layers = list(dict.fromkeys(layer.name for step in steps for layer in step.layers))
    found: dict[tuple[str, str], list[float | None]] = {}
    for step in steps:
        for layer in step.layers:
            found.setdefault((layer.name, step.aggregator), []).append(layer.ideal_distance)
    rows = [(layer, *(instrument_text(mean(found.get((layer, name), []))) for name in names)) for layer in layers]
    text = "Distance from the ideal mean, mean over the rounds."
    return Table(header=("layer", *names), rows=tuple(rows), note=text).html()
