"""The package of plug-ins in docs/plug-in, copied elsewhere: its own tests, and the commands of its page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import preloaded
import pytest

HERE = Path(__file__).resolve().parents[1] / "docs" / "plug-in"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """The folder, after the commands of its page, and the environment they ran in."""
    folder = tmp_path_factory.mktemp("somewhere") / "plug-in"
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("__pycache__", "runs", "npz", ".*"))
    (script,) = re.findall(r"^```bash\n(.*?)^```", (folder / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    with tempfile.TemporaryDirectory() as commands, preloaded.install(Path(commands)):  # a socket's path is short
        path = os.pathsep.join([commands, str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield folder, environment


def run_of(folder: Path, name: str) -> Path:
    (path,) = (folder / "runs" / name).iterdir()
    return path


def test_its_classes_train(copied: tuple[Path, Mapping[str, str]]) -> None:
    """Its aggregator on its data set: finished, with its diagnostic, and with other scores than FedAvg's."""
    ours, theirs = (run_of(copied[0], name) for name in ("diloco", "fedavg"))
    rows = [json.loads(line) for line in (ours / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if row["metric"] == "aggregate/step_norm"] == [1, 2, 3]
    first, second = (json.loads((path / "summary.json").read_text())["dice"]["mean"] for path in (ours, theirs))
    assert first != second


def test_its_source_is_known_to_its_runs(copied: tuple[Path, Mapping[str, str]]) -> None:
    for name in ("diloco", "fedavg"):  # fedavg has the data set from outside
        manifest = json.loads((run_of(copied[0], name) / "manifest.json").read_text())
        assert list(manifest["environment"]["plug_ins"]) == ["mywards"]


def test_a_round_can_be_verified(copied: tuple[Path, Mapping[str, str]]) -> None:
    folder, environment = copied
    command = ["wardround", "verify", str(run_of(folder, "diloco")), "--data", "npz"]
    done = subprocess.run(
        command, cwd=folder, env={**environment, "PYTHONPATH": "."}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical" in done.stdout
