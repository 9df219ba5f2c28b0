"""The documentation: its code runs, its links lead somewhere, its reference is what the code says.

Fences are read by language. Outside the reference a page's ``bash`` and ``python`` blocks run in order, in an empty
folder of the page's own: each bash block is one script, python blocks share their names and run in this
process. A ``python`` or ``yaml`` block that begins with ``# NAME.py`` or ``# NAME.yaml`` is a file and is written. A
``text`` block below :data:`PRINTED` is exactly what the block before it printed. Everything else is only shown:
``console`` (commands or their output), ``text``, ``yaml``, or no language at all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import preloaded
import pytest

from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.exports import export
from wardround.simulator.replay import named_aggregators, replay
from wardround.simulator.reports.replay import write_replay
from wardround.simulator.run import run

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *(REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG"))])
WITH_CODE = sorted(
    path for kind in ("tutorial", "how-to", "concepts", "aggregators", "data") for path in (DOCS / kind).glob("*.md")
)
LANGUAGES = {"", "bash", "python", "console", "text", "yaml", "pycon", "bibtex"}
PRINTED = "<!-- printed by the block above -->"
README_LINES = 150


def called(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


class Block(NamedTuple):
    """A fenced block: its language, its text, the line of its opening fence, and whether PRINTED stands above it."""

    language: str
    text: str
    line: int
    printed: bool


def blocks(page: str) -> Iterator[Block]:
    lines = page.splitlines()
    opened: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        above = [text for text in lines[:opened] if text]
        body = "\n".join(lines[opened + 1 : number]) + "\n"
        yield Block(lines[opened].removeprefix("```"), body, opened + 1, above[-1:] == [PRINTED])
        opened = None
    assert opened is None, f"the fence in line {opened} is never closed"


def prose(page: str) -> str:
    """The page without its blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL))


def test_blocks_are_found() -> None:
    page = f"a\n```bash\nx\ny\n```\n\n{PRINTED}\n```text\nz\n```\n"
    assert list(blocks(page)) == [Block("bash", "x\ny\n", 2, False), Block("text", "z\n", 8, True)]
    assert prose("a `[b](c)` [d](e)\n```\n[f](g)\n```\nh") == "a  [d](e)\n\nh"


# ---- the code runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pages' phantoms lie: all of them use the same few."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def commands() -> Iterator[Path]:
    """A folder with the command ``wardround``; its path is short, as that of a socket must be."""
    with tempfile.TemporaryDirectory() as folder, preloaded.install(Path(folder)):
        yield Path(folder)


@pytest.fixture
def folder(commands: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the command ``wardround`` on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setenv("WARDROUND_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("WARDROUND_DATA", raising=False)
    return tmp_path


def run_bash(text: str, where: str) -> str:
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_python(text: str, where: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, where, "exec"), names)
    return out.getvalue()


def file_name(block: Block) -> str | None:
    """The file that a block is, if it is one."""
    match = re.match(r"# ([\w/-]+\.(?:py|yaml))\n", block.text)
    return match[1] if match and block.language in ("python", "yaml") else None


@pytest.mark.parametrize("path", WITH_CODE, ids=called)
def test_code_runs(path: Path, folder: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    output = ""
    for block in blocks(path.read_text()):
        where = f"{called(path)}:{block.line}"
        if file := file_name(block):
            (folder / file).write_text(block.text)
        elif block.language == "bash":
            output = run_bash(block.text, where)
        elif block.language == "python":
            output = run_python(block.text, where, names)
        elif block.printed:
            assert output == block.text, f"{where}: the block above prints something else"


@pytest.mark.parametrize("path", PAGES, ids=called)
def test_blocks_say_what_they_are(path: Path) -> None:
    assert {block.language for block in blocks(path.read_text())} <= LANGUAGES


# ---- pages and links -------------------------------------------------------------------------------------------------


def links(path: Path) -> list[str]:
    """Targets of the links of a page, those to the web left out."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text()))
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def anchors(path: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=called)
def test_links_lead_somewhere(path: Path) -> None:
    for target in links(path):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{called(path)}: no file {target}"
        assert not anchor or anchor in anchors(there), f"{called(path)}: no heading {target}"


def test_every_page_is_reached_from_the_index() -> None:
    reached, todo = set(), [DOCS / "README.md"]
    while todo:
        page = todo.pop().resolve()
        if page not in reached and page.suffix == ".md" and page.is_relative_to(DOCS) and page.exists():
            reached.add(page)
            todo += [page.parent / target.partition("#")[0] for target in links(page)]
    assert {called(path) for path in DOCS.rglob("*.md")} == {called(path) for path in reached}


@pytest.mark.parametrize("path", PAGES, ids=called)
def test_no_paths_of_a_machine(path: Path) -> None:
    assert not re.search(r"(^|[\s\"'`(=])/(work|home|root|tmp|usr|Users)\b", path.read_text())


def test_the_front_page_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= README_LINES


# ---- the reference ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The script docs/make_reference.py as a module."""
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says(reference: ModuleType) -> None:
    committed = {path.name: path.read_text() for path in (DOCS / "reference").glob("*.md")}
    made = reference.pages()
    old = [name for name in sorted(made.keys() | committed.keys()) if made.get(name) != committed.get(name)]
    assert not old, f"docs/reference: {', '.join(old)} out of date; run `make docs` and commit the result"


def test_docstrings_are_read(reference: ModuleType) -> None:
    def example(size: int) -> None:
        """Makes one :class:`~a.b.Thing` of ``size``.

        ::

            y = x

        Args:
            size: How large,
                in mm.

        Source: somebody.
        """

    doc = reference.docstring(example)
    assert doc.arguments == {"size": "How large, in mm."}
    assert reference._text(example) == ["Makes one `Thing` of `size`.", "```text\ny = x\n```", "Source: somebody."]


def pattern(name: str) -> str:
    """A name in the reference's tables as a regular expression: capitals and ``<words>`` stand for anything."""
    return re.sub(r"<\w+>|HOSPITAL|CASE", ".+", name.replace(".", r"\.").replace("NNNN", r"\d{4}"))


@pytest.fixture(scope="module")
def tiny(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that leaves every kind of file and row: kept moments, validation, regions, a site left out."""
    settings = ["training.moments=keep", "split={validation_fraction: 0.5, leave_out: [hospital-3]}"]
    settings += ["evaluation.regions={whole: [edema, core]}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDROUND_CACHE", str(cache))
        path = run(tiny_with(*settings), out=tmp_path_factory.mktemp("runs"), quiet=True, record_updates=True).path
        write_replay(path / "replay", path, replay(path, named_aggregators("fedit")))
        export(path, "peft")
        return path


@pytest.fixture(scope="module")
def started(cache: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that begins with the model of another one, and only scores it."""
    settings = [f"start_from={tiny}", "rounds=0", "split={validation_fraction: 0.5, leave_out: [hospital-3]}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDROUND_CACHE", str(cache))
        return run(tiny_with(*settings), out=tmp_path_factory.mktemp("started"), quiet=True, images=False).path


@pytest.fixture(scope="module")
def reports(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs with the rows that only some aggregators and stages leave."""
    privacy = "stages.privacy={noise_multiplier: 1.0, clip_norm: 1.0, delta: 0.01}"
    variants = [
        ("aggregator=qfedavg",),
        ("aggregator=hetlora",),
        ("aggregator=fednova", "training.optimizer=sgd", "stages.secure_sum={}"),
        ("aggregator=fedavg", "weights=uniform", privacy),
        ("aggregator=geometric_median",),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDROUND_CACHE", str(cache))
        out = tmp_path_factory.mktemp("reports")
        return [run(tiny_with(*settings, "rounds=1"), out=out, quiet=True, images=False).path for settings in variants]


@pytest.fixture(scope="module")
def classified(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of classification, with validation images and a site left out."""
    settings = ["split={validation_fraction: 0.5, leave_out: [hospital-3]}", "method=linear"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDROUND_CACHE", str(cache))
        experiment = load_experiment("vit-tiny", open_file(PACKAGED), settings)
        return run(experiment, out=tmp_path_factory.mktemp("classified"), quiet=True).path


def tiny_with(*settings: str) -> Experiment:
    return load_experiment("tiny", open_file(PACKAGED), settings)


def test_the_files_of_a_run_are_the_described_ones(reference: ModuleType, tiny: Path, classified: Path) -> None:
    found = {
        path.relative_to(folder).as_posix()
        for folder in (tiny, classified)
        for path in folder.rglob("*")
        if path.is_file()
    }
    used = {name for name in reference.FILES for file in found if re.fullmatch(pattern(name), file)}
    assert used == set(reference.FILES)
    assert not [file for file in found if not any(re.fullmatch(pattern(name), file) for name in reference.FILES)]


def test_the_names_in_a_run_are_the_described_ones(
    reference: ModuleType, tiny: Path, reports: list[Path], classified: Path, started: Path
) -> None:
    every = (tiny, *reports, classified)
    summaries = [json.loads((path / "summary.json").read_text()) for path in every]
    headlines = ("dice", "accuracy")
    names = {key for summary in summaries for key in summary if key not in headlines}
    names |= {f"{word}.{key}" for summary in summaries for word in headlines for key in summary.get(word, ())}
    assert names == set(reference.SUMMARY)
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (tiny, classified, started)]
    assert {key for manifest in manifests for key in manifest} == set(reference.MANIFEST)
    files = [path / "metrics.jsonl" for path in every]
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    found = {(row["metric"], row["split"] or "null") for row in rows}
    described = {(name, split) for name, (splits, _) in reference.METRICS.items() for split in splits.split(", ")}

    def describes(row: tuple[str, str], metric: tuple[str, str]) -> bool:
        return row[1] == metric[1] and re.fullmatch(pattern(row[0]), metric[0]) is not None

    assert not [metric for metric in found if not any(describes(row, metric) for row in described)]
    assert not [row for row in described if not any(describes(row, metric) for metric in found)]
