"""Slice adapters: the formula by hand, how far a slice reaches, windows apart, evaluation over windows."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.clients.evaluation import predict
from wardround.clients.losses import segmentation_loss
from wardround.clients.methods import MaSam
from wardround.clients.optimizers import SGD
from wardround.clients.replica import Precision, Replica
from wardround.clients.sam import Sam, SamNet
from wardround.clients.slice_adapter import SliceAdapter, SliceLayer, adapt_slices, slice_adapters
from wardround.datasets.windows import HospitalWindows, PreparedVolume, Windows
from wardround.simulator.randomness import generator, streams

TINY = Sam(size="tiny", image_size=32)
MixingReplica = Callable[..., Replica]


def normal(*shape: int, key: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator(0, "test", key)).to(dtype)


def as_if_trained(model: torch.nn.Module) -> None:
    """Puts noise on every tensor of the adapters: the last layers start at zero and would mix nothing."""
    with torch.no_grad():
        for prefix, module in model.named_modules():
            if isinstance(module, SliceAdapter):
                for name, tensor in module.named_parameters():
                    tensor.copy_(normal(*tensor.shape, key=f"{prefix}.{name}"))


def adapted(width: int = 4, seed: int = 0) -> SamNet:
    model, method = TINY.build(2, streams(seed, "init")), MaSam(width=width)
    method.attach(model)
    method.initialise(model, streams(seed, "init"))
    return model


@pytest.fixture
def make_mixing() -> MixingReplica:
    """Builds a replica of the tiny SAM whose slices mix, with noise in the adapters."""

    def make(precision: Precision = "fp64", *, trained: bool = True) -> Replica:
        model, method = TINY.build(2, streams(0, "init")), MaSam(width=4)
        layout = method.attach(model)
        method.initialise(model, streams(0, "init"))
        if trained:
            as_if_trained(model)
        return Replica(model, layout, precision=precision)

    return make


def windows(count: int = 2, depth: int = 5) -> Tensor:
    return torch.rand(count, depth, 32, 32, generator=generator(0, "windows"))


def volume(slices: int, key: int = 0) -> PreparedVolume:
    """A bright square on a dark ground, a size of its own in every slice."""
    images = 0.3 * torch.rand(slices, 32, 32, generator=generator(0, "volume", key))
    labels = torch.zeros(slices, 32, 32, dtype=torch.uint8)
    for number in range(slices):
        labels[number, 4 : 10 + 2 * (number % 5), 6:20] = 1
    images += 0.6 * labels
    case = object()  # nothing here reads it
    truth = torch.zeros(slices, 21, 13, dtype=torch.uint8)  # of which only the shape matters
    return PreparedVolume(case=case, images=images, labels=labels, truth=truth, spacing_mm=(1.0, 1.0, 1.0))


# ---- one adapter, one block ------------------------------------------------------------------------------------------


def test_one_adapter_by_hand() -> None:
    """Tokens (3, 1), (3, 1), (1, 3) of three slices: norm gives (1, -1), (1, -1), (-1, 1), down (1, 0) takes 1, 1, -1.

    The convolution (1, 10, 100) for (slice before, itself, slice after) gives 10 + 100 = 110, 1 + 10 - 100 = -89 and
    1 - 10 = -9; GELU leaves 110 and makes the others 0; up (1, 1/2) adds (110, 55) to the first slice.
    """
    adapter = SliceAdapter(2, 1, torch.device("cpu")).double()
    with torch.no_grad():
        adapter.norm.weight.fill_(1.0)
        adapter.norm.bias.zero_()
        adapter.down.weight.copy_(torch.tensor([[1.0, 0.0]]))
        adapter.conv.weight.copy_(torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 3, 1, 1))
        adapter.conv.bias.zero_()
        adapter.up.weight.copy_(torch.tensor([[1.0], [0.5]]))
    tokens = torch.tensor([[3.0, 1.0], [3.0, 1.0], [1.0, 3.0]], dtype=torch.float64).view(3, 1, 1, 2)
    expected = torch.tensor([[113.0, 56.0], [3.0, 1.0], [1.0, 3.0]], dtype=torch.float64).view(3, 1, 1, 2)
    torch.testing.assert_close(adapter(tokens, 3), expected, rtol=0, atol=1e-3)  # the norm's eps


def changed_slices(module: torch.nn.Module, tokens: Tensor, depth: int, touched: int) -> list[int]:
    """The slices whose output differs when one slice of the input is replaced."""
    other = tokens.clone()
    other[touched] = normal(*tokens.shape[1:], key="other", dtype=tokens.dtype)
    with torch.no_grad():
        pairs = zip(module(tokens, depth), module(other, depth), strict=True)
        return [number for number, (left, right) in enumerate(pairs) if not torch.equal(left, right)]


@pytest.mark.parametrize(
    ("touched", "by_one", "by_two"), [(4, [3, 4], [2, 3, 4]), (2, [1, 2, 3], [0, 1, 2, 3, 4]), (0, [0, 1], [0, 1, 2])]
)
def test_an_adapter_reaches_one_slice_and_a_block_two(touched: int, by_one: list[int], by_two: list[int]) -> None:
    model = adapted()
    as_if_trained(model)
    layer = model.vision_encoder.layers[0]
    tokens = normal(5, 4, 4, 32, key="tokens")
    assert changed_slices(layer.slice_adapter1, tokens, 5, touched) == by_one
    assert changed_slices(layer, tokens, 5, touched) == by_two


def test_only_the_same_place_of_a_slice_is_mixed() -> None:
    model = adapted()
    as_if_trained(model)
    adapter = model.vision_encoder.layers[0].slice_adapter1
    tokens = normal(3, 4, 4, 32, key="tokens")
    other = tokens.clone()
    other[0, 1, 2] = normal(32, key="other")
    with torch.no_grad():
        moved = (adapter(tokens, 3) != adapter(other, 3)).any(dim=-1)  # (3, g, g)
    assert moved.nonzero().tolist() == [[0, 1, 2], [1, 1, 2]]


def test_a_lone_slice_sees_zeros_on_both_sides() -> None:
    model = adapted()
    as_if_trained(model)
    adapter = model.vision_encoder.layers[0].slice_adapter1
    tokens = normal(3, 4, 4, 32, key="tokens")
    with torch.no_grad():
        middle = adapter.conv.weight[:, :, 1, 0, 0]
        inner = F.linear(adapter.down(adapter.norm(tokens)), middle, adapter.conv.bias)
        torch.testing.assert_close(adapter(tokens, 1), tokens + adapter.up(F.gelu(inner)), rtol=1e-5, atol=1e-5)


# ---- attached to a model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 5])
def test_the_adapted_model_starts_as_the_base_bit_for_bit(depth: int) -> None:
    images = windows(2, depth).flatten(0, 1)[:, None]
    with torch.no_grad():
        assert torch.equal(adapted()(images, depth), TINY.build(2, streams(0, "init"))(images))


def test_a_block_keeps_its_tensors_and_names() -> None:
    bare, model = TINY.build(2, streams(0, "init")), TINY.build(2, streams(0, "init"))
    before = dict(model.named_parameters())
    adapt_slices(model.vision_encoder, 4)
    after = dict(model.named_parameters())
    assert all(after[name] is tensor for name, tensor in before.items())
    added = {name.split(".")[3] for name in after.keys() - before.keys()}
    assert added == {"slice_adapter1", "slice_adapter2"}
    assert not bare.mixes_slices
    assert model.mixes_slices


def test_adapting_twice_is_once_and_another_width_an_error() -> None:
    model = adapted(width=4)
    layers = list(model.vision_encoder.layers)
    adapt_slices(model.vision_encoder, 4)
    assert all(left is right for left, right in zip(layers, model.vision_encoder.layers, strict=True))
    with pytest.raises(ValueError, match="block 0: expected no slice adapters or those of width 5, got 4"):
        adapt_slices(model.vision_encoder, 5)


def test_forgotten_initial_values_are_noticed() -> None:
    model = TINY.build(2, streams(0, "init"))
    MaSam(width=4).attach(model)
    with torch.no_grad():
        assert model(windows(1, 1)[0][:, None]).isnan().all()


def test_initial_values_depend_on_seed_and_name_and_stay_within_the_fan_in() -> None:
    """down: 1 / sqrt(32) = 0.177; conv: 1 / sqrt(3 * 4) = 0.289."""
    first, second = slice_adapters(adapted())[:2]
    assert not torch.equal(first.down.weight, second.down.weight)
    assert torch.equal(first.conv.weight, slice_adapters(adapted())[0].conv.weight)
    assert not torch.equal(first.conv.weight, slice_adapters(adapted(seed=1))[0].conv.weight)
    assert 0.15 < first.down.weight.abs().max() <= 1 / math.sqrt(32)
    assert 0.25 < first.conv.weight.abs().max() <= 1 / math.sqrt(12)
    assert not first.up.weight.any()


def test_meta() -> None:
    meta = TINY.build_meta(2)
    MaSam(width=4).attach(meta)
    assert all(tensor.is_meta for tensor in meta.parameters())
    assert meta(torch.empty(6, 1, 32, 32, device="meta"), 3).shape == (6, 3, 32, 32)


def test_a_block_is_one_graph() -> None:
    torch.compiler.reset()
    model = adapted()
    as_if_trained(model)
    layer, tokens = model.vision_encoder.layers[0], normal(6, 4, 4, 32, key="tokens")
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens, 3), layer(tokens, 3))


# ---- in a replica ----------------------------------------------------------------------------------------------------


def test_slices_of_a_window_see_each_other_and_windows_do_not(make_mixing: MixingReplica) -> None:
    """Two blocks have four adapters in a row: all five slices of the touched window change, none of the other."""
    replica, images = make_mixing("fp32"), windows(3)
    other = images.clone()
    other[1, 4] = 1 - other[1, 4]
    with torch.no_grad():
        same = (replica.logits(images) == replica.logits(other)).flatten(1).all(dim=1).view(3, 5)
    assert same.tolist() == [[True] * 5, [False] * 5, [True] * 5]


def test_a_batch_equals_its_windows_one_by_one(make_mixing: MixingReplica) -> None:
    replica, images = make_mixing(), windows(3).double()
    with torch.no_grad():
        alone = torch.cat([replica.logits(window[None]) for window in images])
        torch.testing.assert_close(replica.logits(images), alone, rtol=1e-9, atol=1e-10)


def test_features_under_other_values(make_mixing: MixingReplica) -> None:
    replica = make_mixing()
    initial = replica.read()
    other = {name: value + 0.1 * normal(*value.shape, key=name, dtype=value.dtype) for name, value in initial.items()}
    there = replica.features_at(replica.padded(other), replica.begin(windows()), windows().shape[1])
    assert all(torch.equal(value, initial[name]) for name, value in replica.read().items())
    replica.load(other)
    with torch.no_grad():
        expected = replica.model.pool(replica.encode(windows()))
    torch.testing.assert_close(there, expected, rtol=1e-9, atol=1e-10)


def test_bf16_is_near_fp32(make_mixing: MixingReplica) -> None:
    half, full = (make_mixing(precision).logits(windows()).float() for precision in ("bf16", "fp32"))
    assert (half - full).abs().mean() < 0.05 * full.abs().mean()


@pytest.mark.parametrize("depth", [1, 3])
def test_training_lowers_the_loss_and_moves_every_tensor_of_the_adapters(
    make_mixing: MixingReplica, depth: int
) -> None:
    replica = make_mixing(trained=False)
    images, labels = HospitalWindows([volume(6)], Windows(depth=depth)).gather(torch.arange(6))
    start, losses = replica.read(), []
    optimizer = SGD(lr=0.05).build(replica.parameters(replica.values).values())
    for _ in range(4):
        replica.zero_grad()
        loss = segmentation_loss(replica.logits(images), labels.flatten(0, 1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    adapters = {name: value for name, value in replica.read().items() if "slice_adapter" in name}
    assert adapters
    assert all(not torch.equal(value, start[name]) for name, value in adapters.items())


# ---- evaluation ------------------------------------------------------------------------------------------------------


def reference(replica: Replica, ready: PreparedVolume, windows: Windows) -> np.ndarray:
    """Slow and plain: place p of window n is slice n + p - D // 2; places beyond the ends do not count."""
    data = HospitalWindows([ready], windows)
    slices, rows, columns = ready.native_shape
    seen: list[list[Tensor]] = [[] for _ in range(slices)]
    for number in range(slices):
        images, _ = data.gather(torch.tensor([number]))
        with torch.no_grad():
            probabilities = replica.logits(images).softmax(dim=1)  # (D, 3, h, w)
        for place in range(windows.depth):
            index = number + place - windows.depth // 2
            if 0 <= index < slices:
                seen[index].append(probabilities[place])
    mean = torch.stack([torch.stack(maps).mean(dim=0) for maps in seen])
    return F.interpolate(mean, size=(rows, columns), mode="bilinear", align_corners=False).argmax(1).numpy()


@pytest.mark.parametrize("normalise", ["volume", "window"])
@pytest.mark.parametrize(("slices", "depth"), [(1, 3), (2, 5), (7, 3), (7, 1)])
def test_prediction_is_the_mean_over_the_windows(
    make_mixing: MixingReplica, normalise: str, slices: int, depth: int
) -> None:
    replica, cut = make_mixing(), Windows(depth=depth, normalise=normalise)
    ready = volume(slices)
    expected = reference(replica, ready, cut)
    for batch_size in (1, 100):
        found = predict(replica, ready, cut, batch_size)
        assert (found == expected).mean() > 0.999  # argmax ties of rounding


def test_a_mixing_model_predicts_something_else_slice_by_slice(make_mixing: MixingReplica) -> None:
    """The reason why windows are evaluated: otherwise the test above would prove nothing."""
    replica, ready, cut = make_mixing(), volume(7), Windows(depth=3)
    whole = predict(replica, ready, cut, 10)
    assert (whole != predict(replica, ready, replace(cut, depth=1), 10)).mean() > 0.01


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        MaSam(width=0)


def test_the_layers_of_the_encoder_are_ours() -> None:
    """A block of another kind would not be told how many slices a window has."""
    assert all(isinstance(layer, SliceLayer) for layer in adapted().vision_encoder.layers)
