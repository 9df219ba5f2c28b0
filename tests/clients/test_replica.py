from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wardround.clients.lora import LoRA
from wardround.clients.methods import Decoder, FlapSam, Full
from wardround.clients.replica import Replica

Make = Callable[..., Replica]


def noise(replica: Replica, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in replica.read().items()}


def windows(seed: int = 1, depth: int = 2) -> Tensor:
    return torch.rand(3, depth, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_what_is_loaded_is_read(make_replica: Make) -> None:
    replica = make_replica()
    values = noise(replica)
    replica.load(values)
    assert all(torch.equal(value, values[name]) for name, value in replica.read().items())


def test_reading_gives_copies(make_replica: Make) -> None:
    replica = make_replica()
    before = replica.read()
    kept = {name: value.clone() for name, value in before.items()}
    replica.load(noise(replica))
    assert all(torch.equal(before[name], kept[name]) for name in kept)


def test_the_model_computes_with_what_was_loaded_and_nothing_remains_of_the_last_one(make_replica: Make) -> None:
    replica, fresh = make_replica(), make_replica()
    initial = replica.read()
    replica.load(noise(replica, 1))
    other = replica.logits(windows())
    replica.load(initial)
    assert not torch.equal(other, replica.logits(windows()))
    assert torch.equal(replica.logits(windows()), fresh.logits(windows()))


def test_all_trainable_tensors_share_one_buffer(make_replica: Make) -> None:
    replica = make_replica()
    storages = {value.untyped_storage().data_ptr() for value in replica.values.values()}
    assert len(storages) == 1


def test_slices_of_a_window_are_independent_images(make_replica: Make) -> None:
    replica = make_replica()
    images = windows(depth=5)
    together = replica.logits(images)  # (3 * 5, C+1, h, w)
    assert together.shape == (15, 3, 32, 32)
    torch.testing.assert_close(together[7], replica.logits(images[1:2, 2:3])[0], rtol=1e-4, atol=1e-5)


def test_a_padded_lower_rank_is_the_small_model_forward_and_backward(make_replica: Make) -> None:
    """Rank 2 inside buffers of rank 5 against a replica of rank 2, with alpha / r scaling, in float64."""
    small = make_replica(rank=2, precision="fp64", alpha=3.0, power=1.0)
    large = make_replica(rank=5, precision="fp64", alpha=3.0, power=1.0)
    values = {name: value.double() for name, value in noise(small).items()}
    small.load(values)
    large.load(values)
    for replica in (small, large):
        replica.logits(windows().double()).square().mean().backward()
    torch.testing.assert_close(large.logits(windows()), small.logits(windows()), rtol=1e-12, atol=1e-12)
    wide = {name: value.grad for name, value in large.values.items() if value.grad is not None}
    for pair in small.layout.pairs:
        a, b = small.values[pair.A].grad, small.values[pair.B].grad
        assert a is not None
        assert b is not None
        torch.testing.assert_close(wide[pair.A][:2], a, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(wide[pair.B][:, :2], b, rtol=1e-10, atol=1e-14)
        assert not wide[pair.A][2:].any()  # zero padding stays zero
        assert not wide[pair.B][:, 2:].any()
    assert large.read()[small.layout.pairs[0].A].shape[0] == 2


def test_going_back_to_full_rank_restores_the_scale(make_replica: Make) -> None:
    replica = make_replica(rank=4, alpha=2.0, power=1.0)
    full = noise(replica)
    replica.load(full)
    before = replica.logits(windows())
    cut = {n: v[:2] if replica.layout.kind[n] == "lora_A" else v for n, v in full.items()}
    cut = {n: v[:, :2] if replica.layout.kind[n] == "lora_B" else v for n, v in cut.items()}
    replica.load(cut)
    replica.logits(windows())
    replica.load(full)
    assert torch.equal(replica.logits(windows()), before)


def test_base_changes_are_pristine_plus_change_and_can_be_taken_back(make_replica: Make) -> None:
    replica = make_replica()
    name = replica.layout.pairs[0].base
    pristine = dict(replica.model.named_parameters())[name].detach().clone()
    before = replica.logits(windows())
    change = torch.randn(pristine.shape, generator=torch.Generator().manual_seed(3))
    for _ in range(2):  # not cumulative
        replica.set_base({name: change})
        assert torch.equal(dict(replica.model.named_parameters())[name], pristine + change)
    assert not torch.equal(replica.logits(windows()), before)
    replica.set_base({})
    assert torch.equal(replica.logits(windows()), before)


def test_a_merged_pair_is_the_adapted_model(make_replica: Make) -> None:
    """``W[rows] += s B A`` put into the base equals the adapter, for every pair at once."""
    replica = make_replica(precision="fp64", alpha=2.0, power=0.5)
    values = {name: value.double() for name, value in noise(replica).items()}
    replica.load(values)
    adapted = replica.logits(windows())
    base: dict[str, Tensor] = {}
    named = dict(replica.model.named_parameters())
    for pair in replica.layout.pairs:
        change = base.setdefault(pair.base, torch.zeros_like(named[pair.base]))
        first, last = pair.rows or (0, change.shape[0])
        change[first:last] += pair.scale(4) * values[pair.B] @ values[pair.A]
    kinds = replica.layout.kind
    merged = {n: torch.zeros_like(v) if kinds[n] == "lora_B" else v for n, v in values.items()}
    replica.load(merged)
    replica.set_base(base)
    torch.testing.assert_close(replica.logits(windows()), adapted, rtol=1e-10, atol=1e-12)


def test_the_hash_of_the_frozen_start_follows_its_weights(make_replica: Make) -> None:
    """The first block lies before the adapted one, the second does not; what trains is no part of it."""
    replica = make_replica(method=FlapSam(lora=LoRA(rank=2, blocks=1)))
    first, second = (f"vision_encoder.layers.{block}.mlp.lin1.bias" for block in (0, 1))
    change = torch.ones_like(replica.model.get_parameter(first))
    pristine = replica.prefix_hash
    assert pristine == make_replica(method=FlapSam(lora=LoRA(rank=3, blocks=1))).prefix_hash
    assert pristine != make_replica(method=Decoder()).prefix_hash
    replica.load({name: value + 1 for name, value in replica.read().items()})
    replica.set_base({second: change})
    assert replica.prefix_hash == pristine
    replica.set_base({first: change})
    assert replica.prefix_hash != pristine
    replica.set_base({first: 2 * change})
    assert replica.prefix_hash != pristine
    replica.set_base({})
    assert replica.prefix_hash == pristine


def test_the_unused_tensors_are_found(make_replica: Make) -> None:
    """The IoU head gets no gradient; with ``full``, all of the prompt encoder but the no-mask embedding as well."""
    decoder = make_replica(method=Decoder())
    iou = {name for name, _ in decoder.model.mask_decoder.iou_prediction_head.named_parameters()}
    assert decoder.unused == {f"mask_decoder.iou_prediction_head.{name}" for name in iou}
    full = make_replica(method=Full())
    assert "prompt_encoder.no_mask_embed.weight" not in full.unused
    assert "prompt_encoder.point_embed.0.weight" in full.unused
    assert full.parameters(full.values).keys() == full.values.keys() - full.unused


def test_features_under_other_values_leave_the_replica_alone(make_replica: Make) -> None:
    replica = make_replica()
    initial, other = replica.read(), noise(replica, 5)
    there = replica.features_at(replica.padded(other), replica.begin(windows()), windows().shape[1])
    assert all(torch.equal(value, initial[name]) for name, value in replica.read().items())
    replica.load(other)
    expected = replica.model.pool(replica.encode(windows()))
    torch.testing.assert_close(there, expected.detach(), rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused(make_replica: Make) -> None:
    replica = make_replica()
    values = replica.read()
    dense, pair = replica.layout.dense[0], replica.layout.pairs[0]
    with pytest.raises(ValueError, match=f"missing .*{dense}"):
        replica.load({name: value for name, value in values.items() if name != dense})
    with pytest.raises(ValueError, match=r"unknown \['nobody'\]"):
        replica.load({**values, "nobody": torch.zeros(1)})
    with pytest.raises(ValueError, match=f"tensor '{dense}': expected shape"):
        replica.load({**values, dense: values[dense][:1]})
    with pytest.raises(ValueError, match="one rank for all pairs"):
        replica.load({**values, pair.A: values[pair.A][:1]})
    with pytest.raises(ValueError, match="expected the name of a frozen weight"):
        replica.set_base({dense: values[dense]})
    with pytest.raises(ValueError, match="expected shape"):
        replica.set_base({pair.base: torch.zeros(1)})


def test_the_same_tensors_are_brought_once_and_changed_ones_again(make_replica: Make) -> None:
    """Hospitals that are handed the same tensors get a copy on the device; whatever is written is noticed."""
    replica = make_replica()
    given = noise(replica, 7)
    replica.load(given)
    for value in replica.values.values():
        value.data.zero_()  # trained
    replica.load(given)
    assert all(torch.equal(replica.read()[name], value) for name, value in given.items())
    first = next(iter(given))
    given[first].add_(1.0)
    replica.load(given)
    assert torch.equal(replica.read()[first], given[first])
    replica.load({**given, first: given[first] - 3.0})
    assert torch.equal(replica.read()[first], given[first] - 3.0)


def test_what_was_read_does_not_change_with_the_replica(make_replica: Make) -> None:
    replica = make_replica()
    before = replica.read()
    copies = {name: value.clone() for name, value in before.items()}
    replica.load(noise(replica, 8))
    assert all(torch.equal(before[name], value) for name, value in copies.items())


def test_a_base_that_is_written_leaves_the_tensors_of_the_model_it_came_from(make_replica: Make) -> None:
    """They may belong to every run of a sweep: a changed weight lies elsewhere, and comes home when it is pristine."""
    replica = make_replica(precision="fp64")
    names = sorted({pair.base for pair in replica.layout.pairs})
    homes = {name: replica.model.get_parameter(name).data for name in names}
    pristine = {name: value.clone() for name, value in homes.items()}
    some, more = names[:3], names[2:5]
    for changed in (some, more, some):
        replica.set_base({name: torch.ones_like(homes[name], dtype=torch.float32) for name in changed})
        for name in names:
            weight = replica.model.get_parameter(name)
            assert (weight.data_ptr() == homes[name].data_ptr()) == (name not in changed), name
            assert torch.equal(weight, pristine[name] + (name in changed)), name
        assert all(torch.equal(homes[name], pristine[name]) for name in names)
    replica.set_base({})
    assert all(replica.model.get_parameter(name).data_ptr() == homes[name].data_ptr() for name in names)


def test_a_change_in_place_of_the_same_names_needs_no_new_memory(make_replica: Make) -> None:
    """Round after round the same weights change: each has one tensor beside the pristine one."""
    replica = make_replica()
    name = replica.layout.pairs[0].base
    change = torch.ones_like(replica.model.get_parameter(name))
    replica.set_base({name: change})
    place = replica.model.get_parameter(name).data_ptr()
    replica.set_base({name: 2 * change})
    assert replica.model.get_parameter(name).data_ptr() == place
