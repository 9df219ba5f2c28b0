"""Settings of a sweep that are numbers: what the score does along one of them, as along the rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..builder import leaves
from .records import SweepRecords, VariantRecord


@dataclass(frozen=True, kw_only=True)
class NumericSetting:
    """A setting that has different numbers in the variants of a sweep.

    Args:
        path: Where it is in an experiment, such as ``method.lora.rank``.
        lines: Variants that differ in nothing else, by what they share: ``(number, name of the variant)``, rising.
    """

    path: str
    lines: Mapping[str, tuple[tuple[float, str], ...]]


def numeric_settings(records: SweepRecords) -> list[NumericSetting]:
    """The settings along which variants can be put in a line; of finished variants, as their runs resolved them."""
    paths = _paths(records)
    known = {variant.name: _values(variant, paths) for variant in records.compared if variant.finished}
    made = [_setting(path, known, [other for other in paths if other != path]) for path in paths]
    return [setting for setting in made if setting.lines]


def _paths(records: SweepRecords) -> list[str]:
    """Paths that any variant sets."""
    grid = (records.plan.get("definition") or {}).get("grid") or {}
    return list(dict.fromkeys([*grid, *(path for v in records.compared for path in leaves(v.settings))]))


def _values(variant: VariantRecord, paths: Iterable[str]) -> dict[str, Any]:
    records = variant.finished[0].records
    config = {} if records is None else records.config
    return {path: _at(config, path) for path in paths}


def _at(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _setting(path: str, known: Mapping[str, Mapping[str, Any]], others: Sequence[str]) -> NumericSetting:
    """Variants with equal values at all other paths are one line, if it has at least two different numbers."""
    numbers = {name: values[path] for name, values in known.items() if _is_number(values[path])}
    groups: dict[str, list[str]] = {}
    for name in numbers:
        groups.setdefault(repr([known[name][other] for other in others]), []).append(name)
    lines = {
        _shared_name(names): tuple(sorted((float(numbers[name]), name) for name in names))
        for names in groups.values()
        if len({numbers[name] for name in names}) > 1
    }
    return NumericSetting(path=path, lines=lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shared_name(names: Sequence[str]) -> str:
    """The parts that all names share: ``fedavg`` of ``fedavg, rank=1`` and ``fedavg, rank=2``."""
    first, *rest = (name.split(", ") for name in names)
    shared = [part for part in first if all(part in parts for parts in rest)]
    return ", ".join(shared) or " / ".join(names[:3]) + (" ..." if len(names) > 3 else "")
