from pathlib import Path

import pytest
import torch

from wardround.aggregators.contract import Layout, ServerState, Setting
from wardround.clients.hospital import Memory
from wardround.clients.training import OptimizerState
from wardround.simulator.checkpoint import Checkpoint, Checkpoints, state_hash

SETTING = Setting(trainable={}, layout=Layout(pairs=(), dense=(), part={}, kind={}), hospitals=())


def state(number: int, *, personal: float = 0.0) -> Checkpoint:
    flat = torch.arange(6.0) + number
    server = ServerState(
        setting=SETTING,
        round=number,
        tensors={"a": flat[:2], "b": flat[2:].view(2, 2)},  # views of one buffer, as the replica gives them
        base={"w": torch.full((2, 2), float(number))},
        memory={"momentum": torch.tensor(number)},
    )
    kept = OptimizerState(moments={"a/exp_avg": torch.ones(2) * number}, steps=3 * number)
    memories = {
        "north": Memory(tensors={"head": torch.full((2,), personal)}, optimizer=(kept,)),
        "a/b c": Memory(tensors={"head": torch.full((2,), personal + 1)}),
        "a_b_c": Memory(),
    }
    return Checkpoint(server=server, memories=memories)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(0), changed=["north", "a/b c", "a_b_c"])
    loaded = checkpoints.load(0, SETTING)
    assert state_hash(loaded) == state_hash(state(0))
    assert loaded.memories["north"].optimizer[0].steps == 0
    torch.testing.assert_close(loaded.memories["a/b c"].tensors["head"], torch.ones(2), rtol=0, atol=0)
    assert loaded.memories["a_b_c"] == Memory()


def test_the_hash_sees_every_part() -> None:
    base = state_hash(state(1))
    assert base == state_hash(state(1))
    assert base != state_hash(state(1, personal=1e-6))
    assert base != state_hash(state(2))


def test_memory_is_written_only_for_those_who_changed_and_only_two_rounds_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(0), changed=["north", "a/b c"])
    checkpoints.save(state(1, personal=5.0), changed=["north"])
    files = {path.name for path in (tmp_path / "memory").iterdir()}
    assert len(files) == 3  # round 0 of both, round 1 of north
    assert checkpoints.load(1, SETTING).memories["a/b c"].tensors["head"][0] == 1.0  # still that of round 0
    checkpoints.save(state(2, personal=6.0), changed=["north"])
    assert {path.name for path in tmp_path.iterdir()} == {"latest.json", "memory", "round-0001", "round-0002"}
    assert "north-0000.safetensors" not in {path.name for path in (tmp_path / "memory").iterdir()}
    assert checkpoints.load(1, SETTING).memories["north"].tensors["head"][0] == 5.0
    assert checkpoints.latest() == 2


def test_a_round_that_was_never_finished_is_not_seen(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(0), changed=["north"])
    (tmp_path / "round-0001").mkdir()
    (tmp_path / "round-0001" / "server.safetensors").write_bytes(b"half")
    assert checkpoints.latest() == 0
    checkpoints.save(state(1), changed=["north"])
    assert checkpoints.load(1, SETTING).server.tensors["a"][0] == 1.0


def test_a_broken_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(0), changed=[])
    (tmp_path / "round-0000" / "server.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="expected a whole checkpoint of round 0"):
        checkpoints.load(0, SETTING)
