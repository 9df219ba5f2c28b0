import json
from pathlib import Path

import pytest

from wardround.simulator.files import append_lines, cut_lines, drop_lines, remove_unfinished, write_bytes, write_json


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "file", "not bytes")  # type: ignore[arg-type]
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", {"value": float("nan")})


def test_lines_after_a_round_are_cut_and_so_is_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_lines(path, [{"round": 1, "value": 0.5}, {"round": 2, "value": 0.6}, {"round": 3, "value": 0.7}])
    with path.open("a") as file:
        file.write('{"round": 2, "val')
    cut_lines(path, 2)
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [0.5, 0.6]


def test_lines_of_splits_of_a_round_are_dropped_and_so_is_half_a_line(tmp_path: Path) -> None:
    """Others keep their bytes: here spaces that no program of ours writes."""
    path = tmp_path / "metrics.jsonl"
    kept = [
        '{"round":1, "split": "test"}',
        '{"round": 2,   "split": "validation"}',
        '{"round": 2, "split": null}',
        '{"round": 2}',
    ]
    gone = ['{"round": 2, "split": "test"}', '{"round": 2, "split": "unseen"}']
    path.write_text("\n".join([*gone, *kept]) + '\n{"round": 2, "spl')
    drop_lines(path, 2, ("test", "unseen"))
    assert path.read_text().splitlines() == kept
    before = path.stat().st_mtime_ns
    drop_lines(path, 2, ("test", "unseen"))
    assert path.stat().st_mtime_ns == before  # nothing was left to drop
    path.write_text("\n".join(kept) + '\n{"round": 2, "spl')
    drop_lines(path, 2, ("test",))
    assert path.read_text().splitlines() == kept
    path.write_text('{"split": "test"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: expected a JSON row with a round"):
        drop_lines(path, 2, ("test",))


def test_cutting_what_is_not_there_is_fine(tmp_path: Path) -> None:
    cut_lines(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """A file that was being written is hidden and ends in .unfinished."""
    write_bytes(tmp_path / "a" / "state.json", b"whole")
    (tmp_path / ".lock").touch()
    (tmp_path / "a" / ".state.json.x1y2.unfinished").write_bytes(b"ha")
    remove_unfinished(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".lock", "a/state.json"}
