"""What a reader has to know before looking at a sweep's numbers: runs that are not there, or not like the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .pairing import unpaired
from .records import CellRecord, SweepRecords
from .statistics import counted, named

STATES = {
    "failed": "failed",
    "damaged": "lost data or cannot be read, and left out (remove the folder and give the sweep again)",
    "missing": "not begun, or on another machine",
    "interrupted": "interrupted",
    "running": "still running",
    "held": "waiting for their test {cases} to be scored",
}
"""The states of runs that count and are not finished, in words."""

ENVIRONMENT = {"code_hash": "code", "torch": "version of PyTorch", "device": "device"}
"""What should be the same in all runs, in ``environment`` of a manifest."""


def check_cells(records: SweepRecords) -> tuple[str, ...]:
    """Sentences about runs that are missing, ran something else or drew other numbers; none is good news."""
    finished = [cell for variant in records.variants for cell in variant.finished]
    return (
        *_unfinished(records),
        *_differing(finished),
        *unpaired([cell.measured.manifest for cell in finished]),
        *_edges(records),
    )


def _unfinished(records: SweepRecords) -> Iterator[str]:
    cells = records.unfinished
    for state, words in STATES.items():
        names = [cell.key for cell in cells if cell.state == state]
        if names:
            state_words = words.format(cases=records.headline.cases)
            yield f"{counted(len(names), 'run')} {state_words}: {named(names, between='; ')}"


def _differing(cells: Sequence[CellRecord]) -> Iterator[str]:
    for key, words in ENVIRONMENT.items():
        yield from _groups(cells, words, [cell.measured.manifest.get("environment", {}).get(key) for cell in cells])
    yield from _groups(cells, "precision", [cell.measured.manifest.get("precision") for cell in cells])


def _groups(cells: Sequence[CellRecord], words: str, values: Sequence[Any]) -> Iterator[str]:
    """One sentence where not all runs have the same: the smaller groups against the largest."""
    groups: dict[Any, list[str]] = {}
    for cell, value in zip(cells, values, strict=True):
        groups.setdefault(value, []).append(cell.key)
    if len(groups) < 2:
        return
    usual = max(groups, key=lambda value: len(groups[value]))
    others = [f"{named(keys, between='; ')} ({value})" for value, keys in groups.items() if value != usual]
    yield (
        f"not all runs have the same {words}: {', '.join(others)}; the others have {usual}. A difference between "
        "them may come from that"
    )


def _edges(records: SweepRecords) -> Iterator[str]:
    """Selected values that are the lowest or highest one tried: a better one may lie beyond."""
    names = [variant.name for variant in records.variants if variant.at_edge]
    if names:
        yield f"the selected value is the lowest or highest one tried for {named(names)}: a better one may lie beyond"
