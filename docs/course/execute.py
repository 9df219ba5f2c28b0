"""Runs the course notebook, hidden answers included, and says how long every cell took.

    python docs/course/execute.py --out build/course         execute; the result is written there
    python docs/course/execute.py --store                    the same, and keep the outputs in the notebook itself

An answer is a ``python`` block inside ``<details>`` of a markdown cell. It is executed behind the cell that asks.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = Path(__file__).with_name("one-round.ipynb")
LIMIT_S = 300
"""Processor time that the whole notebook may take; in seconds of the clock a busy machine takes longer."""

DETAILS = re.compile(r"<details>(.*?)</details>", re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ANSWER = "answer"


def answers(cell: Any) -> list[str]:
    """The code hidden in a cell, nothing in a code cell."""
    if cell.cell_type != "markdown":
        return []
    return [code.rstrip() for hidden in DETAILS.findall(cell.source) for code in PYTHON.findall(hidden)]


def with_answers(notebook: Any) -> Any:
    """A copy in which every hidden answer is a code cell of its own, tagged ``answer``."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        for number, code in enumerate(answers(cell)):
            cells.append(nbformat.v4.new_code_cell(code, id=f"{cell.id}-answer-{number}", metadata={"tags": [ANSWER]}))
    return nbformat.from_dict({**notebook, "cells": [nbformat.from_dict(dict(cell)) for cell in cells]})


def without_answers(notebook: Any) -> Any:
    """The same without the cells that :func:`with_answers` put in."""
    kept = [cell for cell in notebook.cells if ANSWER not in cell.metadata.get("tags", [])]
    for number, cell in enumerate((cell for cell in kept if cell.cell_type == "code"), start=1):
        _count(cell, number)
    return nbformat.from_dict({**notebook, "cells": kept})


def _count(cell: Any, number: int) -> None:
    """Numbers a cell, as if no answer had run before it."""
    cell.execution_count = number
    for output in cell.outputs:
        if "execution_count" in output:
            output.execution_count = number


def execute(notebook: Any, folder: Path) -> float:
    """Executes a notebook in place, in a folder.

    Args:
        notebook: Its outputs are replaced.
        folder: The working directory of the kernel.

    Returns:
        Seconds of all cells, without the start of the kernel.

    Raises:
        CellExecutionError: a cell failed; with its traceback.
    """
    resources = {"metadata": {"path": folder}}
    client = NotebookClient(
        notebook, timeout=4 * LIMIT_S, kernel_name="python3", record_timing=False, resources=resources
    )
    total = 0.0
    with client.setup_kernel():
        for index, cell in _code_cells(notebook):
            start = time.perf_counter()
            client.execute_cell(cell, index)
            seconds = time.perf_counter() - start
            total += seconds
            print(f"{seconds:6.1f} s  {cell.id:18} {_title(cell)}", flush=True)
    return total


def _code_cells(notebook: Any) -> Iterator[tuple[int, Any]]:
    return ((index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code")


def _title(cell: Any) -> str:
    lines: list[str] = cell.source.splitlines()
    return lines[0][:80] if lines else ""


def main() -> int:
    """Executes, writes and reports; 1 where a cell failed or all took too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/course"), help="folder for the executed notebook")
    parser.add_argument("--store", action="store_true", help="keep the outputs in the notebook itself")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    executed = with_answers(nbformat.read(NOTEBOOK, as_version=4))
    try:
        seconds = execute(executed, arguments.out)
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        nbformat.write(executed, arguments.out / NOTEBOOK.name)
    busy = os.times()
    cpu = busy.children_user + busy.children_system  # of the kernel, which has ended
    print(f"{seconds:6.1f} s  all cells ({cpu:.1f} s of processor), written to {arguments.out / NOTEBOOK.name}")
    if cpu > LIMIT_S:
        print(f"expected at most {LIMIT_S} s of processor time for all cells, they took {cpu:.0f} s", file=sys.stderr)
        return 1
    if arguments.store:
        stored = without_answers(executed)
        stored.metadata["executed"] = {"seconds": round(seconds, 1), "processor_seconds": round(cpu, 1)}
        nbformat.write(stored, NOTEBOOK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
