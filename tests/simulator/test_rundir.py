from pathlib import Path

import pytest
import torch

from wardround.simulator.rundir import RunDirectory, changes, check_environment, code_hash, environment, run_id


def test_the_id_depends_on_config_data_and_weights_and_not_on_the_order_of_keys() -> None:
    base = run_id({"a": 1, "b": 2}, "data", "weights")
    assert len(base) == 12
    assert base == run_id({"b": 2, "a": 1}, "data", "weights")
    others = [
        ({"a": 1, "b": 3}, "data", "weights"),
        ({"a": 1, "b": 2}, "x", "weights"),
        ({"a": 1, "b": 2}, "data", "x"),
    ]
    assert base not in {run_id(*other) for other in others}


def test_the_environment_says_what_bits_depend_on() -> None:
    here = environment(torch.device("cpu"))
    assert here["threads"] == torch.get_num_threads()
    assert here["torch"] == torch.__version__
    assert here["code_hash"] == code_hash()
    check_environment(here, here)
    assert changes({**here, "threads": 99}, here) == [f"threads: 99 then, {here['threads']} now"]
    with pytest.raises(ValueError, match="threads: 99 then"):
        check_environment({**here, "threads": 99}, here)


def test_the_code_hash_sees_the_package_and_not_the_tests() -> None:
    """Recomputed here over the same files, listed by hand."""
    import hashlib

    import wardround

    root = Path(wardround.__file__).parent
    folders = ("aggregators", "clients", "datasets", "simulator")
    files = [root / "__init__.py", *(file for folder in folders for file in (root / folder).rglob("*.py"))]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    assert code_hash() == digest.hexdigest()[:12]


def test_rows_are_added_and_cut(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append({"metrics": [{"round": 0}, {"round": 1}, {"round": 2}], "ledger": [{"round": 2}]})
    directory.cut(1)
    assert directory.rows("metrics") == [{"round": 0}, {"round": 1}]
    assert directory.rows("ledger") == []
    assert directory.rows("cases") == []


def test_scores_of_splits_that_were_half_written_are_dropped(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    rows = [{"round": 2, "split": split} for split in ("validation", "test")]
    directory.append({"metrics": rows, "cases": rows, "confusion": rows, "ledger": [{"round": 2}]})
    directory.drop(2, ("test", "unseen"))
    assert all(directory.rows(name) == rows[:1] for name in ("metrics", "cases", "confusion"))
    assert directory.count_rows() == {"metrics": 1, "cases": 1, "ledger": 1, "confusion": 1}


def test_there_is_no_manifest_before_the_run(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).manifest is None
