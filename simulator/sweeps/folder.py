"""The folder of a sweep beside those of its runs, and what is in it.

::

    runs/<sweep>/plan.json            the runs there are, each with its folder (relative to runs/)
    runs/<sweep>/failures/<cell>.json what stopped a run, until it succeeds
    runs/<experiment>/<id>/           the runs themselves, as `wardround run` makes them

Nothing in it belongs to one process: several that share a sweep write equal plans, and their folders can be copied
together.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..builder import resolve
from ..files import read_json, write_json
from ..reports.page import count_text
from ..rundir import now
from .plan import Cell, Plan
from .records import PLAN, failure_file

EXPECTED = (ValueError, OSError, ArithmeticError)
"""Errors whose message says it all: of settings, data, files and numbers. Any other one is a mistake of the program."""


def write_plan(folder: Path, plan: Plan, paths: Mapping[str, str], **more: Any) -> str:
    """Writes ``plan.json``; what runs there were stays.

    Args:
        folder: The sweep's.
        plan: The plan.
        paths: Folder of every cell's run by its key, relative to the folder of all runs.
        more: Further entries: the command, the file of experiments.

    Returns:
        How the plan differs from the one that was there, in a sentence; nothing where it does not.
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
    note = _changed(folder, set(paths.values()))
    write_json(folder / PLAN, {**head, "variants": variants, "cells": cells})
    return note


def _changed(folder: Path, paths: set[str]) -> str:
    """What is new and what is gone. A plan that cannot be read is written anew: nothing depends on the old one."""
    if not (folder / PLAN).exists():
        return ""
    try:
        before = {str(cell["path"]) for cell in plan_of(folder)["cells"]}
    except (ValueError, TypeError, KeyError):
        return f"{folder / PLAN} could not be read and is written anew"
    new, gone = len(paths - before), len(before - paths)
    if not (new or gone):
        return ""
    return f"the sweep was changed: {count_text(new, 'run')} more, {gone} no longer part of it (their folders stay)"


def record_failure(folder: Path, cell: Cell, path: str, error: BaseException) -> str:
    """Says what stopped a cell; with the traceback where it is a mistake of the program.

    Args:
        folder: The sweep's.
        cell: The cell.
        path: Folder of its run, relative to the folder of all runs.
        error: What stopped it.

    Returns:
        The error in words.
    """
    text = f"{type(error).__name__}: {error}"
    entry = {"key": cell.key, "path": path, "error": text, "at": now()}
    if not isinstance(error, EXPECTED):
        entry["traceback"] = "".join(traceback.format_exception(error))
        text += f" (a mistake of the program; its traceback is in {failure_file(folder, cell.key)})"
    write_json(failure_file(folder, cell.key), entry)
    return text


def forget_failure(folder: Path, cell: Cell) -> None:
    """The cell succeeded, or is tried again."""
    failure_file(folder, cell.key).unlink(missing_ok=True)


def plan_of(folder: Path) -> Any:
    """What ``plan.json`` holds. Raises ValueError where it is damaged."""
    return read_json(folder / PLAN, ("sweep", "variants", "cells"))
