"""A hospital's memory in one buffer: same values, same order, and nothing else alive."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from wardround.clients.flat import ALIGNMENT, FlatTensors
from wardround.clients.hospital import Memory
from wardround.clients.training import OptimizerState


def tensors() -> dict[str, Tensor]:
    """Odd sizes, several types, an empty one and a scalar, in an order that is not alphabetical."""
    return {
        "tensors/z": torch.arange(5, dtype=torch.float32),
        "tensors/a": torch.arange(6, dtype=torch.float64).view(2, 3),
        "moments-0/step": torch.tensor(7.0),
        "tensors/count": torch.tensor([3], dtype=torch.int64),
        "feedback/b": torch.arange(3, dtype=torch.bfloat16),
        "tensors/none": torch.zeros(0, 4),
    }


def test_values_types_shapes_and_order_stay() -> None:
    given = tensors()
    flat = FlatTensors.of(given)
    assert list(flat) == list(given)
    for name, value in given.items():
        assert flat[name].dtype == value.dtype, name
        assert torch.equal(flat[name], value), name
        assert flat[name].is_contiguous()
        assert flat[name].storage_offset() * value.element_size() % ALIGNMENT == 0
    assert "FlatTensors(tensors/z: (5,)" in repr(flat)
    with pytest.raises(KeyError, match="unknown"):
        flat["unknown"]


def test_it_is_a_copy_in_one_storage() -> None:
    given = tensors()
    flat = FlatTensors.of(given)
    given["tensors/z"].fill_(-1)
    assert flat["tensors/z"].tolist() == [0, 1, 2, 3, 4]
    assert {value.untyped_storage().data_ptr() for value in flat.values() if value.numel()} == {flat.buffer.data_ptr()}


def test_the_part_below_a_prefix_shares_the_buffer() -> None:
    flat = FlatTensors.of(tensors())
    below = flat.below("tensors/")
    assert list(below) == ["z", "a", "count", "none"]
    assert below.buffer is flat.buffer
    assert torch.equal(below["a"], flat["tensors/a"])


def test_hospitals_share_the_index() -> None:
    assert FlatTensors.of(tensors()).index is FlatTensors.of(tensors()).index
    assert FlatTensors.of(tensors()).below("tensors/").index is FlatTensors.of(tensors()).below("tensors/").index
    assert FlatTensors.of({"a": torch.zeros(2)}).index is not FlatTensors.of({"a": torch.zeros(3)}).index


def memory() -> Memory:
    states = (OptimizerState(steps=4, moments={"w/exp_avg": torch.ones(2)}), OptimizerState(steps=9))
    return Memory(tensors={"b": torch.arange(3.0), "a": torch.eye(2)}, optimizer=states, feedback={"w": torch.ones(1)})


def test_a_settled_memory_is_the_same_memory_in_one_buffer() -> None:
    before, after = memory(), memory().settled()
    assert after.steps == before.steps == (4, 9)
    assert list(after.tensors) == ["b", "a"]
    assert after.named().keys() == before.named().keys()
    assert all(torch.equal(after.named()[name], value) for name, value in before.named().items())
    assert len({value.untyped_storage().data_ptr() for value in after.named().values()}) == 1


def test_a_settled_memory_lets_go_of_the_tensor_it_was_cut_from() -> None:
    """What a rule remembers is a view of the whole replica as it was read."""
    whole = torch.zeros(1000)
    alive = weakref.ref(whole)
    kept = Memory(tensors={"head": whole[:10]}).settled()
    del whole
    gc.collect()
    assert alive() is None
    assert kept.tensors["head"].untyped_storage().nbytes() == 40


def test_an_empty_memory_needs_no_buffer() -> None:
    assert Memory().settled().named() == {}
    assert Memory(optimizer=(OptimizerState(steps=3),)).settled().steps == (3,)
