"""A run's lock: one process works, others can see it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from wardround.simulator.locks import InUseError, held, is_held

HOLD = """
import sys, time
from pathlib import Path
from wardround.simulator.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_seen_and_refused_while_it_is_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "run")
    with held(tmp_path / "run"):
        assert is_held(tmp_path / "run")
        with (
            pytest.raises(InUseError, match="run: another process is working on this run; wait for it"),
            held(tmp_path / "run"),
        ):
            pass
    assert not is_held(tmp_path / "run")


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-I", "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    assert is_held(tmp_path)
    process.kill()
    process.wait()
    process.stdout.close()
    assert not is_held(tmp_path)


def test_who_looks_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    """Somebody who looks has the lock for a moment; the one who wants to work asks again."""
    import fcntl
    import threading

    with held(tmp_path):
        pass
    looking = (tmp_path / ".lock").open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.07, looking.close).start()
    begun = time.monotonic()
    with held(tmp_path):
        assert time.monotonic() - begun > 0.05
