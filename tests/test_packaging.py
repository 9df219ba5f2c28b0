"""The wheel: everything is in it, it works from another folder, and beside Hugging Face's ``datasets``."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("", "aggregators/", "clients/", "datasets/", "simulator/")


def sh(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that no build/ folder of the repository is in play."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "experiments.yaml", "py.typed", "__init__.py"):
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    for folder in PACKAGES[1:]:
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = source / path.relative_to(REPOSITORY)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    build = ("-I", "-m", "build", "--no-isolation", "--outdir", work / "dist", source)
    sh(sys.executable, *build, cwd=work)  # the sdist, and from the sdist the wheel
    (built,) = (work / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own; the other packages come from this environment."""
    target = tmp_path_factory.mktemp("installed")
    pip = ("-I", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    sh(sys.executable, *pip, cwd=target)
    return target


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    suffixes = {".py", ".csv", ".safetensors", ".json"}
    wanted = {"wardround/experiments.yaml", "wardround/py.typed", "wardround/__init__.py"} | {
        f"wardround/{path.relative_to(REPOSITORY).as_posix()}"
        for folder in PACKAGES[1:]
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in suffixes
    }
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == wanted


def test_the_wheel_has_one_top_level_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wardround"}


def test_the_installed_command_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "wardround"
    assert "Example: wardround run quickstart" in sh(command, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    listed = sh(command, "list", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "experiments of the packaged experiments.yaml" in listed
    assert "quickstart" in listed


def test_it_lives_beside_hugging_faces_datasets(installed: Path, tmp_path: Path) -> None:
    """``datasets`` stays somebody else's in both orders of import, and ours is ``wardround.datasets``."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("OWNER = 'Hugging Face'\n")
    first = "import datasets, wardround.datasets"
    second = "import wardround.datasets, datasets"
    check = "assert datasets.OWNER == 'Hugging Face'; assert wardround.datasets.DATASETS; print(wardround.__file__)"
    for order in (first, second):
        file = sh(
            sys.executable, "-c", f"{order}; {check}", cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{installed}"
        )
        assert Path(file.strip()).is_relative_to(installed)
