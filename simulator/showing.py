"""How an experiment and a run show themselves: as text, and as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import yaml12
from .builder import differing, leaves, resolve
from .reports.page import Html, bytes_text, count_text, details, join, number_text, seconds_text, tag
from .results import RunRecords, mean

if TYPE_CHECKING:
    from .config import Experiment

_SETTINGS = ("setting", "value")

MOST_HOSPITALS = 12
"""A table with more of them names these only."""


def experiment_text(experiment: Experiment) -> str:
    """An entry of experiments.yaml: the settings that are not the defaults, one per line.

    Example:
        >>> import wardround
        >>> wardround.load_experiment("tiny", rounds=5)
        tiny:
          purpose: The smallest run that does everything once, for tests; its scores mean nothing.
          data: {name: phantom, hospitals: 3, train_cases: 2, test_cases: 1, size: 32, slices: 6}
          model: {name: sam, size: tiny, image_size: 32}
          method: {name: flap_sam, lora: {rank: 2}}
          training: {batch_size: 8, schedule: {warmup_steps: 2, horizon_epochs: null}}
          aggregator: flap_sam
          rounds: 5
          evaluation: {every: 1}
    """
    lines = [f"  {name}: {yaml12.one_line(value)}" for name, value in _settings(experiment).items()]
    return "\n".join([f"{experiment.name}:", *lines])


def experiment_html(experiment: Experiment) -> str:
    """The same as a table, with all settings to unfold."""
    rows = tuple((name, yaml12.one_line(value)) for name, value in _settings(experiment).items() if name != "purpose")
    every = tuple((path, yaml12.one_line(value)) for path, value in leaves(resolve(experiment)).items())
    purpose = tag("p", experiment.purpose) if experiment.purpose else ""
    title = tag("p", "experiment ", tag("strong", experiment.name))
    return join([title, purpose, _table(_SETTINGS, rows), details("All settings", _table(_SETTINGS, every))])


def _settings(experiment: Experiment) -> dict[str, Any]:
    return {name: value for name, value in differing(experiment).items() if name != "name"}


# ---- runs ------------------------------------------------------------------------------------------------------------


def run_text(records: RunRecords, status: str, note: str = "") -> str:
    """``Run('runs/tiny/e30c9dc1bea6'): finished, round 2 of 2, Dice 0.027``, and what else there is to know of it."""
    return f"Run({str(records.path)!r}): {_how_far(records, status)}{f' ({note})' if note else ''}"


def run_html(records: RunRecords, status: str, note: str = "") -> str:
    """The same, and the score of every hospital."""
    title = tag("p", "run ", tag("code", str(records.path)), f": {_how_far(records, status)}")
    title = join([title, tag("p", note)]) if note else title
    cost = f"{bytes_text(records.bytes_down + records.bytes_up)} sent, {seconds_text(records.seconds)}"
    scores = [score for score in records.final() if score.score is not None]
    if not scores:
        return join([title, tag("p", cost)])
    names = [f"{records.headline.class_word} {name}" for name in records.classes]
    rows = [
        (each.hospital, str(each.cases), *map(number_text, each.per_class.values()), number_text(each.score))
        for each in scores
    ]
    columns = [[each.per_class[name] for each in scores] for name in records.classes]
    columns.append([each.score for each in scores])
    last = ("mean", "", *(number_text(mean(column)) for column in columns))
    header = ("hospital", f"test {records.headline.cases}", *names, records.headline.word)
    more = len(rows) - MOST_HOSPITALS
    left_out = [tag("p", f"and {count_text(more, 'more hospital')}; print(run.results) shows all")] if more > 0 else []
    return join([title, _table(header, [*rows[:MOST_HOSPITALS], last]), *left_out, tag("p", cost)])


def score_of(records: RunRecords) -> float | None:
    """The mean over the hospitals of the score on their test cases, at the last evaluation; None without one."""
    return mean(final.score for final in records.final())


def _how_far(records: RunRecords, status: str) -> str:
    done, score = records.rounds, score_of(records)
    reached = "" if score is None else f", {records.headline.word} {number_text(score)}"
    return f"{status}, round {done} of {records.config.get('rounds', done)}{reached}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table as notebooks show it, all cells aligned to the left."""
    style = "text-align: left"
    head = tag("tr", *(tag("th", cell, style=style) for cell in header))
    body = [tag("tr", *(tag("td", cell, style=style) for cell in row)) for row in rows]
    return tag("table", tag("thead", head), tag("tbody", *body))
