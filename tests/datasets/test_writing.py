"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from wardround.datasets import writing
from wardround.datasets.writing import UNFINISHED, beside, whole_folder, write_whole


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_permissions_are_those_of_other_new_files(tmp_path: Path, umask: int) -> None:
    write_whole(tmp_path / "file", b"x")
    with whole_folder(tmp_path / "folder"):
        pass
    assert (mode(tmp_path / "file"), mode(tmp_path / "folder")) == (0o666 & ~umask, 0o777 & ~umask)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "a" / "b" / "file"
    for data in (b"old and long", b"new"):
        write_whole(path, data, sync=sync)
        assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "file", b"old")
    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_what_is_unfinished_is_hidden_beside_its_place_and_unique(tmp_path: Path) -> None:
    one, other = beside(tmp_path / "x"), beside(tmp_path / "x")
    assert one != other
    assert one.parent == tmp_path
    assert one.name.startswith(".x.")
    assert one.name.endswith(UNFINISHED)


def test_a_folder_is_there_at_the_end_only(tmp_path: Path) -> None:
    place = tmp_path / "a" / "folder"
    with whole_folder(place) as half:
        (half / "file").touch()
        assert not place.exists()
        assert half.parent == place.parent
    assert names(place) == ["file"]
    assert names(place.parent) == ["folder"]


def test_the_first_folder_wins(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "x") as half:
        (half / "second").touch()
        with whole_folder(tmp_path / "x") as other:
            (other / "first").touch()
    assert names(tmp_path / "x") == ["first"]
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "x") as half:
            (half / "file").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(OSError, match="x"), whole_folder(tmp_path / "x"):
        pass
    assert names(tmp_path) == ["x"]


def test_a_kill_leaves_what_can_be_told_from_the_rest(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with whole_folder(tmp_path / "x"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.match(f".x.*{UNFINISHED}")


def test_a_long_name_is_cut_for_what_is_unfinished(tmp_path: Path) -> None:
    """255 bytes are the most for a name, and this one has them; a letter of two bytes is not cut in the middle."""
    path = tmp_path / ("é" * 120 + "a" * 8 + ".nii.gz")
    assert len(os.fsencode(path.name)) == 255
    write_whole(path, b"x")
    assert names(tmp_path) == [path.name]
    assert len(os.fsencode(beside(path).name)) in (254, 255)
    assert beside(path).name.isprintable()
