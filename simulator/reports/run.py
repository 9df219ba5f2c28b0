"""What a run says about itself: the table at its end and the page ``report.html``.

A page is a list of sections, each made by one small function of the run's records; :mod:`.page` renders, and
:mod:`.figures` draws. A new section is a new function and a line in :func:`_sections`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..builder import PLUGIN_KEYS, leaves, word_of
from ..results import RunRecords, Series, mean
from .classification import class_section, classifies, confusion_section, no_pictures, pictures_section
from .export import export
from .instruments import COLUMNS, last_layers, layers_body, spectrum_drawings
from .page import (
    UNDEFINED,
    Drawing,
    Html,
    Section,
    Table,
    banner,
    bytes_text,
    count_text,
    details,
    drawing_files,
    facts,
    figure,
    figures,
    join,
    note,
    number_text,
    page,
    seconds_text,
    tag,
    tiles,
)
from .run_curves import (
    any_value,
    both_ways,
    cost_section,
    course_section,
    small_drawing,
    total_sent,
    traffic_section,
)
from .run_export import write_numbers
from .run_overlays import no_slices, slices_section
from .run_scores import cross_site_section, scores_section


def shows_images(run_dir: Path) -> bool:
    """Whether the page of a run holds slices of test volumes."""
    page_file = run_dir / "report.html"
    return page_file.is_file() and b"data:image/png" in page_file.read_bytes()


def write_report(
    run_dir: Path | str, *, images: bool = True, out: Path | None = None, export_to: Path | None = None
) -> Path:
    """Writes one self-contained HTML page about a run, finished or not.

    The page depends on the files of the run directory alone: the same files give the same bytes.

    Args:
        run_dir: The run directory.
        images: Whether slices of the hospitals' test volumes, or test images, may be on the page.
        out: The file to write; None: ``report.html`` in the run directory.
        export_to: A folder for the data of the page as files, too: numbers as JSON and CSV
            (:func:`.run_export.write_numbers`), figures as SVG, tables as Markdown, LaTeX and CSV. None: no such files.

    Returns:
        The page.

    Raises:
        ValueError: Not a run directory, or a file in it is damaged.
    """
    records = RunRecords.load(run_dir)
    path = records.path / "report.html" if out is None else Path(out)
    title = f"{records.manifest.get('experiment', 'run')} · {records.manifest.get('id', records.path.name)}"
    sections = _sections(records, images)
    files.write_text(path, page(title=title, head=_head(records, title), sections=sections))
    if export_to is not None:
        write_numbers(export_to, records)
        export(export_to, sections)
    return path


def _sections(records: RunRecords, images: bool) -> list[Section]:
    made = [
        _what_ran(records),
        scores_section(records),
        cross_site_section(records),
        confusion_section(records),
        class_section(records),
        course_section(records),
        cost_section(records),
        traffic_section(records),
        _aggregation(records),
        _ledger(records),
        _pictures(records, images),
        _timing(records),
        _manifest(records),
        _repeat(records),
    ]
    return [section for section in made if section is not None]


def _pictures(records: RunRecords, images: bool) -> Section:
    """Pictures of test cases, or that they were left out."""
    if classifies(records):
        return pictures_section(records) if images else no_pictures()
    return slices_section(records) if images else no_slices()


def _head(records: RunRecords, title: str) -> Html:
    scores = records.final()
    ranked = sorted((final.score, final.hospital) for final in scores if final.score is not None)
    score = number_text(mean(final.score for final in scores))
    boxes = {
        f"Mean test {records.headline.word_inside}": (score, _over(records, len(ranked), len(scores))),
        "Worst hospital": (number_text(ranked[0][0]), ranked[0][1]) if ranked else (UNDEFINED, _unscored(records)),
        "Rounds": (_rounds_text(records), _who_trains(records)),
        "Sent": _sent(records),
        "Time": (seconds_text(records.seconds), _device(records)),
    }
    return join([tag("h1", title), note(_kind(records)), _state_banner(records), tiles(boxes)])


def _kind(records: RunRecords) -> str:
    """What kind of run it is, in a sentence."""
    if records.config.get("rounds") == 0:
        return "The model before any training (zero-shot), scored at every hospital. Simulated on one machine."
    if records.pooled:
        return "One model trained on the cases of all hospitals (pooled), scored at each. Simulated on one machine."
    if _in(records.config, "aggregator", "name") == "local":
        return "Every hospital fine-tunes a model of its own (local-only). Simulated on one machine."
    return "Federated fine-tuning, simulated on one machine."


def _sent(records: RunRecords) -> tuple[str, str]:
    return ("nothing", "all cases are in one place") if records.pooled else (total_sent(records), both_ways(records))


def _who_trains(records: RunRecords) -> str:
    if records.config.get("rounds") == 0:
        return "no hospital trains"
    if records.pooled:
        return f"cases of {count_text(len(records.hospitals), 'hospital')} together"
    return count_text(len(records.members), "hospital")


def _device(records: RunRecords) -> str:
    return str(_in(records.manifest, "environment", "device") or _in(records.manifest, "hardware", "device") or "")


def _unscored(records: RunRecords) -> str:
    return "held back until the selection" if _held(records) else f"no test {records.headline.case} scored yet"


def _over(records: RunRecords, defined: int, hospitals: int) -> str:
    last = records.last_evaluation()
    if last is None:
        return _unscored(records)
    missing = f", undefined at {hospitals - defined}" if defined < hospitals else ""
    return f"mean over {count_text(defined, 'hospital')}, round {last}{missing}"


def _rounds_text(records: RunRecords) -> str:
    planned = records.config.get("rounds")
    return str(records.rounds) if planned in (None, records.rounds) else f"{records.rounds} of {planned}"


def _state_banner(records: RunRecords) -> Html:
    if records.finished:
        return Html("")
    if _held(records):
        cases = records.headline.cases
        return banner(
            f"All rounds are done. The test {cases} are not scored yet: they wait for the selection. A sweep compares "
            f"its runs on validation {cases} first, and scores test {cases} in the selected runs alone."
        )
    text = f"This run is not finished: the page shows it after round {_rounds_text(records)}."
    if records.manifest.get("state") == "interrupted":
        return banner(f"{text} It was interrupted.")
    error = records.manifest.get("error")
    return banner(f"{text} It stopped with an error: {error}" if error else text)


def _held(records: RunRecords) -> bool:
    return records.manifest.get("state") == "held"


def _what_ran(records: RunRecords) -> Section:
    """One line per part of the experiment, and everything below it."""
    shown = {key: _setting_text(value) for key, value in records.config.items()}
    if records.config.get("loss", ...) is None:
        shown["loss"] = records.headline.loss
    return Section(
        title="What was run",
        body=join(
            [
                facts(shown),
                details("Every setting", facts(_flat(records.config))),
            ]
        ),
    )


def _setting_text(value: object) -> str:
    """``flap_sam (rank 8, alpha 1.0)`` for a plug-in, plain text for anything else."""
    if not isinstance(value, Mapping):
        return _plain(value)
    word = word_of(value)
    if word is None:
        return ", ".join(f"{key} {_nested(item)}" for key, item in value.items()) or "none"
    inner = ", ".join(f"{key} {_nested(item)}" for key, item in value.items() if key not in PLUGIN_KEYS)
    return f"{word} ({inner})" if inner else word


def _nested(value: object) -> str:
    return f"[{_setting_text(value)}]" if isinstance(value, Mapping | list | tuple) else _plain(value)


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_nested, value)) if isinstance(value, list | tuple) else str(value)


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """``{"method.lora.rank": "8"}``."""
    return {path: "none" if isinstance(value, Mapping) else _plain(value) for path, value in leaves(values).items()}


def _aggregation(records: RunRecords) -> Section | None:
    """A small chart for each thing the aggregator reports and each instrument, and the instruments per layer."""
    measured = [name for column in COLUMNS if (name := f"instrument/{column}") in records.metric_names("instrument/")]
    names = [*records.metric_names("aggregate/"), *_stage_names(records), *measured]
    drawn = {name: _small_drawing(name, records.series(name)) for name in names}
    guarantee = (records.summary or {}).get("privacy")
    parts = [tag("p", f"Privacy: {guarantee}.")] if guarantee else []
    if drawn:
        parts.append(figures((_small_figure(name, each) for name, each in drawn.items()), small=True))
    if records.instruments:
        parts.append(layers_body(records.instruments))
    if not parts:
        return None
    spectra = spectrum_drawings(records.instruments)
    drawings = drawing_files([*(each for each in drawn.values() if each is not None), *spectra])
    tables = {"layers": last_layers(records.instruments)} if records.instruments else {}
    return Section(title="Aggregation", body=join(parts), tables=tables, drawings=drawings)


def _stage_names(records: RunRecords) -> list[str]:
    """What the stages report, in reading order; delta is a setting."""
    names = [*records.metric_names("privacy/"), *records.metric_names("secure_sum/")]
    return [name for name in names if name != "privacy/delta"]


def _small_drawing(name: str, series: Series) -> Drawing | None:
    file = files.file_stem(name.replace("/", "-"))
    return small_drawing(file, _measure(name), series) if any_value(series) else None


def _small_figure(name: str, drawing: Drawing | None) -> Html:
    if drawing is None:
        return figure(Html(""), f"{_measure(name)}: undefined in every round")
    return drawing.html()


def _measure(name: str) -> str:
    prefix, _, word = name.partition("/")
    return {"instrument": COLUMNS.get(word, word), "aggregate": word}.get(prefix, name)


def _ledger(records: RunRecords) -> Section:
    """Who took part, who was dropped, what each sent and did."""
    if not records.ledger:
        planned = records.config.get("rounds") != 0
        text = "No hospital has taken part in a round yet." if planned else "No hospital trains: the run has no rounds."
        return Section(title="Ledger", body=note(text))
    dropped = sum(row.status == "dropped" for row in records.ledger)
    text = (
        f"{dropped} of {len(records.ledger)} times a hospital failed its round."
        if dropped
        else "No hospital was dropped."
    )
    rows = tuple(_ledger_row(records, name) for name in records.members)
    examples = records.headline.examples
    header = ("hospital", "rounds done", "rounds dropped", "dropped in", examples, "steps", "down", "up")
    table = Table(header=header, rows=rows)
    return Section(title="Ledger", body=join([tag("p", text), table.html()]), tables={"ledger": table})


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
    return Section(title="Timing", body=table.html(), tables={"timing": table})


def _manifest(records: RunRecords) -> Section:
    rest = {key: value for key, value in records.manifest.items() if key not in ("command", "common_numbers")}
    drawn = records.manifest.get("common_numbers")
    hashes = [details("What was drawn at random, as hashes", facts(_flat(drawn)))] if drawn else []
    return Section(title="Manifest", body=join([facts(_flat(rest)), *hashes]))


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
