"""The folder of a sweep beside those of its runs, and what is in it.

::

    runs/<sweep>/plan.json            the runs there are, each with its folder (relative to runs/)
    runs/<sweep>/failures/<cell>.json what stopped a run, until it succeeds
    runs/<experiment>/<id>/           the runs themselves, as `wardround run` makes them

Nothing in it belongs to one process: several that share a sweep write equal plans, and their folders can be copied
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .builder import resolve
from .files import file_stem, read_json, write_json
from .plan import Cell, Plan
from .rundir import now
from .sweep_records import FAILURES, PLAN


def write_plan(folder: Path, plan: Plan, paths: Mapping[str, str], **more: Any) -> None:
    """Writes ``plan.json``.

    Args:
        folder: The sweep's.
        plan: The plan.
        paths: Folder of every cell's run by its key, relative to the folder of all runs.
        more: Further entries: the command, the file of experiments.
    """
    variants = [
        {"name": v.name, "role": v.role, "settings": dict(v.settings), "references": dict(v.references)}
        for v in plan.variants
    ]
    cells = [
        {"key": c.key, "variant": c.variant, "seed": c.seed, "choice": c.choice, "path": paths[c.key]}
        for c in plan.cells
    ]
    definition = resolve(plan.sweep)
    head = {"sweep": plan.name, "purpose": plan.purpose, "baseline": plan.baseline, "definition": definition, **more}
    write_json(folder / PLAN, {**head, "variants": variants, "cells": cells})


def record_failure(folder: Path, cell: Cell, error: BaseException) -> None:
    """Says what stopped a cell."""
    text = f"{type(error).__name__}: {error}"
    write_json(_failure(folder, cell), {"key": cell.key, "error": text, "at": now()})


def forget_failure(folder: Path, cell: Cell) -> None:
    """The cell succeeded."""
    _failure(folder, cell).unlink(missing_ok=True)


def plan_of(folder: Path) -> Any:
    """What ``plan.json`` holds. Raises ValueError where it is damaged."""
    return read_json(folder / PLAN, ("sweep", "variants", "cells"))


def _failure(folder: Path, cell: Cell) -> Path:
    return folder / FAILURES / f"{file_stem(cell.key)}.json"
