"""Imports go one way: simulator -> clients -> (aggregators, datasets). Read from the source, nothing is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]
ALLOWED = {
    "aggregators": {"aggregators"},
    "datasets": {"datasets"},
    "clients": {"clients", "aggregators", "datasets"},
    "simulator": {"simulator", "clients", "aggregators", "datasets"},
}
FILES = sorted(path for folder in ALLOWED for path in (PACKAGE / folder).rglob("*.py"))


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """Absolute names of all modules that a source imports anywhere in it; ``package`` is where it lives."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def package_of(path: Path) -> tuple[str, ...]:
    return ("wardround", *path.relative_to(PACKAGE).parent.parts)


def test_imported_resolves_relative_names() -> None:
    source = (
        "from . import a\nfrom ..clients.sam import Sam\nimport torch\nfrom torch import nn\nif a: from .b import c"
    )
    assert imported(source, ("wardround", "simulator")) == {
        "wardround.simulator.a",
        "wardround.clients.sam.Sam",
        "torch",
        "torch.nn",
        "wardround.simulator.b.c",
    }


def test_there_are_files_to_look_at() -> None:
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    package = package_of(path)
    names = imported(path.read_text(), package)
    ours = {name.split(".")[1] for name in names if name.startswith("wardround.")}
    assert ours <= ALLOWED[package[1]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_does_not_import_itself_by_name(path: Path) -> None:
    """Relative imports mirror the tree; ``import datasets`` would be Hugging Face's."""
    absolute = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and node.level == 0
            else []
        )
    }
    assert not {name for name in absolute if name.split(".")[0] in {"wardround", *ALLOWED}}


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["list"]], ids=" ".join)
def test_the_command_line_answers_without_heavy_imports(command: list[str]) -> None:
    """``--help`` and ``list`` in well under a second: none of the libraries that take seconds is loaded."""
    script = (
        "import sys\n"
        "from wardround.simulator.cli import main\n"
        "try:\n"
        f"    main({command!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'monai', 'matplotlib', 'nibabel', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_front_door_is_light() -> None:
    script = "import sys, wardround; dir(wardround); wardround.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-c", script], check=False).returncode == 0


def test_the_front_door_has_what_it_names() -> None:
    import wardround

    assert set(wardround.__all__) <= set(dir(wardround))
    assert callable(wardround.run)
    assert wardround.Experiment.__name__ == "Experiment"
    with pytest.raises(AttributeError, match="no attribute 'rum'; it has Experiment, Run, __version__, base_network"):
        wardround.rum  # noqa: B018  the access is what is tested
