"""The commands that repeat a sweep, one of its runs, and the check of one of its runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from .. import yaml12
from ..builder import leaves
from .definition import SHORT
from .records import CellRecord, SweepRecords

KEPT = ("--data", "--experiments", "--out", "--device")
"""Options that all commands about a sweep have in common."""


def commands(records: SweepRecords) -> dict[str, str]:
    """What each command does, and the command."""
    words = _words(records)
    options = [word for pair in _options(words) if pair[0] in KEPT for word in pair]
    overrides = [value for name, value in _options(words) if name == "--set"]
    sweep = ["wardround", "sweep", records.name, *options, *_set(overrides)]
    found = {"The sweep; what is finished is not run again": sweep}
    variants = (records.baseline, *records.compared)
    cell = next((cell for variant in variants for cell in variant.finished), None)
    if cell is not None:
        settings = _settings(records, cell, [text for text in overrides if not text.startswith("sweep.")])
        base = records.plan["definition"]["base"]
        found[f"One run: {cell.key}"] = ["wardround", "run", base, *options, *_set(settings)]
        checked = ["wardround", "verify", str(cell.path), *_only(options, "--data")]
        found["Whether it gives the same bits here: its last round again"] = checked
    return {what: shlex.join(command) for what, command in found.items()}


def _words(records: SweepRecords) -> list[str]:
    """The command that started the first run, if it was one for this sweep."""
    for cell in records.cells:
        command = {} if cell.records is None else cell.records.manifest.get("command")
        words = shlex.split(command) if isinstance(command, str) else [*map(str, command or [])]
        if words[1:2] == ["sweep"] and records.name in words:
            return words
    return []


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with a value: ``--out runs`` and ``--out=runs``."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in (*KEPT, "--set") and (equals or place + 1 < len(words)):
            yield name, value if equals else words[place + 1]


def _only(options: Sequence[str], name: str) -> list[str]:
    return [word for pair in _options(options) if pair[0] == name for word in pair]


def _settings(records: SweepRecords, cell: CellRecord, overrides: Sequence[str]) -> list[str]:
    """Everything that made the run of its base, in the order in which a sweep applies it."""
    definition = records.plan["definition"]
    layers = [definition.get("settings") or {}, records.named(cell.variant).settings]
    select = definition.get("select")
    if select is not None and cell.choice is not None:
        path = SHORT.get(select["over"], select["over"])
        layers += [{path: cell.choice}, {"evaluation": {"test": "last"}}]
    pairs = [pair for layer in layers for pair in leaves(layer).items()]
    return [*(f"{path}={_yaml(value)}" for path, value in [*pairs, ("seed", cell.seed)]), *overrides]


def _yaml(value: Any) -> str:
    """A value as a reader of YAML takes it for the same."""
    plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and yaml12.loads(value) == value
    return str(value) if plain else json.dumps(value)


def _set(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]
