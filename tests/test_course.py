"""The course notebook: it has its parts, every exercise an answer, and stored outputs without errors.

Continuous integration executes it (`make notebook`); here nothing is run but what reads it.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

REPOSITORY = Path(__file__).resolve().parents[1]
COURSE = REPOSITORY / "docs" / "course"
MEGABYTE = 1_000_000
EXERCISE = re.compile(r"^### Exercise (\d+): (.+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """docs/course/execute.py as a module."""
    spec = importlib.util.spec_from_file_location("execute_course", COURSE / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(COURSE / "one-round.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_is_a_valid_notebook_for_any_python(notebook: Any) -> None:
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_has_its_parts_in_order(notebook: Any) -> None:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    numbers = [int(number) for number in re.findall(r"^## (\d)\.", text, re.MULTILINE)]
    assert numbers == list(range(1, 10))
    for topic in ("broadcasts", "update", "cross terms", "Eckart", "FedEx-LoRA", "Gauge", "interval", "Dirichlet"):
        assert topic in text, topic


def test_every_exercise_has_an_answer_and_a_place_for_ones_own(notebook: Any, script: ModuleType) -> None:
    found = []
    for cell, following in zip(notebook.cells, notebook.cells[1:], strict=False):
        titles = EXERCISE.findall(cell.source) if cell.cell_type == "markdown" else []
        assert len(titles) == len(script.answers(cell)), f"{cell.id}: {titles}"
        if titles:
            found.append(int(titles[0][0]))
            assert following.source == "# your code"
    assert found == list(range(1, 9))


def test_answers_are_python_that_checks_itself(notebook: Any, script: ModuleType) -> None:
    for cell in notebook.cells:
        for code in script.answers(cell):
            kinds = {type(node) for node in ast.walk(ast.parse(code))}
            assert ast.Assert in kinds, f"{cell.id}: its answer asserts nothing"


def test_the_page_lists_the_exercises(notebook: Any) -> None:
    page = (COURSE / "README.md").read_text()
    listed = re.findall(r"^\| (\d) \|", page.partition("\n## Exercises\n")[2], re.MULTILINE)
    assert listed == [number for cell in notebook.cells for number, _ in EXERCISE.findall(cell.source)]


def test_cells_are_short(notebook: Any) -> None:
    long = {cell.id: lines for cell in code_cells(notebook) if (lines := len(cell.source.splitlines())) > 18}
    assert not long, f"expected at most 18 lines in a cell, got {long}"


def test_stored_outputs_are_of_a_whole_execution_without_errors(notebook: Any) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 6


def test_was_executed_in_time_and_is_small(notebook: Any, script: ModuleType) -> None:
    assert 0 < notebook.metadata.executed.processor_seconds < script.LIMIT_S
    assert (COURSE / "one-round.ipynb").stat().st_size < 0.7 * MEGABYTE


def test_no_machine_shows_in_it(notebook: Any) -> None:
    texts = [cell.source for cell in notebook.cells]
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
        texts += [output.get("text", ""), json.dumps(data)]
    found = [match for text in texts for match in re.findall(r"(?<![\w.])/(?:home|root|tmp|Users|work|var)\b\S*", text)]
    assert not found, found
    assert not [cell.id for cell in notebook.cells if "execution" in cell.metadata]


def test_answers_run_behind_their_exercise_and_are_not_stored(script: ModuleType) -> None:
    hidden = "### Exercise 1: add\n<details>\n<summary>Answer</summary>\n\n```python\nx += 1\n```\n</details>"
    v4 = nbformat.v4
    plain = v4.new_notebook(cells=[v4.new_markdown_cell(hidden), v4.new_code_cell("x")])
    executed = script.with_answers(plain)
    assert [cell.source for cell in executed.cells] == [hidden, "x += 1", "x"]
    for number, cell in enumerate(code_cells(executed), start=1):
        cell.execution_count = number
    stored = script.without_answers(executed)
    assert [(cell.id, cell.source) for cell in stored.cells] == [(cell.id, cell.source) for cell in plain.cells]
    assert stored.cells[1].execution_count == 1
    assert len(plain.cells) == 2


@pytest.mark.slow
def test_a_wrong_answer_fails(script: ModuleType, tmp_path: Path) -> None:
    hidden = "<details>\n```python\nassert 1 + 1 == 3\n```\n</details>"
    v4 = nbformat.v4
    notebook = script.with_answers(v4.new_notebook(cells=[v4.new_markdown_cell(hidden)]))
    with pytest.raises(CellExecutionError, match=r"assert 1 \+ 1 == 3"):
        script.execute(notebook, tmp_path)
