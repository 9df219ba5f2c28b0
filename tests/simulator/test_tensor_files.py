"""Tensors come back in the order in which they were saved, with their words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wardround.simulator.tensor_files import below, pack, unpack


def test_order_dtype_and_words_survive(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    tensors = {"b": torch.arange(3), "a": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.zeros(())}
    file.write_bytes(pack(tensors, {"round": 3, "names": ["x"]}))
    loaded, words = unpack(file)
    assert list(loaded) == ["b", "a", "c"]
    assert words == {"round": 3, "names": ["x"]}
    assert all(
        value.dtype == tensors[name].dtype and torch.equal(value, tensors[name]) for name, value in loaded.items()
    )


def test_views_of_one_buffer_are_saved_apart(tmp_path: Path) -> None:
    flat = torch.arange(4.0)
    (tmp_path / "x").write_bytes(pack({"left": flat[:2], "right": flat[2:], "turned": flat.view(2, 2).T}))
    loaded, _ = unpack(tmp_path / "x")
    assert loaded["right"].tolist() == [2.0, 3.0]
    assert loaded["turned"].tolist() == [[0.0, 2.0], [1.0, 3.0]]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(pack({"a": torch.ones(100)})[:-7])
    with pytest.raises(ValueError, match=r"x.safetensors: expected tensors of a run, the file is damaged"):
        unpack(file)


def test_below_takes_the_names_under_a_prefix() -> None:
    one = torch.ones(1)
    assert list(below("a/", {"a/z": one, "b/y": one, "a/x": one})) == ["z", "x"]
