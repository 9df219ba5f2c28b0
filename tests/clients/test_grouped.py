"""Layers with the weights of several hospitals: each hospital's inputs meet its own weight, and one's are PyTorch's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wardround.clients.grouped import (
    GROUPED,
    GroupedLinear,
    GroupedSamLayerNorm,
    conv3d,
    conv_transpose,
    layer_norm,
    linear,
    make_grouped,
    patches,
    per_image,
    together,
)
from wardround.clients.lora import LoRALinear
from wardround.clients.methods import Decoder, FlapSam, MaSam, Method, Samed
from wardround.clients.replica import Replica
from wardround.simulator.randomness import generator

K, N = 3, 2
"""Hospitals, and inputs of each."""

Layer = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def norm_rows(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return layer_norm(inputs, (4,), weight, bias, 1e-6)


def conv_along(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return conv3d(inputs, weight, bias, (1, 0, 0))


def torch_norm(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.layer_norm(inputs, (4,), weight, bias, 1e-6)


def torch_conv_along(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.conv3d(inputs, weight, bias, padding=(1, 0, 0))


def torch_conv_transpose(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.conv_transpose2d(inputs, weight, bias, stride=2)


def torch_patches(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.conv2d(inputs, weight, bias, stride=2)


LAYERS: dict[str, tuple[Layer, Layer, tuple[int, ...], tuple[int, ...], int]] = {
    "linear": (linear, functional.linear, (4,), (5, 4), 5),
    "linear on tokens": (linear, functional.linear, (1, 6, 4), (5, 4), 5),
    "layer norm": (norm_rows, torch_norm, (2, 3, 4), (4,), 4),
    "transposed convolution": (conv_transpose, torch_conv_transpose, (4, 3, 2), (4, 5, 2, 2), 5),
    "patches": (patches, torch_patches, (4, 6, 4), (5, 4, 2, 2), 5),
    "convolution": (conv_along, torch_conv_along, (4, 3, 2, 2), (5, 4, 3, 1, 1), 5),
}
"""Ours, PyTorch's, and the shapes: one input, weight, length of the bias."""


def normal(*shape: int, key: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(0, "test", key), dtype=dtype).requires_grad_(True)


def with_gradients(outputs: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The outputs, and the gradients of a weighted sum of theirs."""
    weights = torch.randn(outputs.shape, generator=generator(0, "test", "sum"), dtype=torch.float64)
    return [outputs, *torch.autograd.grad((outputs * weights).sum(), tensors)]


@pytest.mark.parametrize("stacked", ["weight and bias", "weight", "bias", "weight, no bias"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_hospital_meets_its_own_weight(name: str, stacked: str) -> None:
    ours, theirs, shape, weight_shape, width = LAYERS[name]
    inputs = normal(K * N, *shape, key="inputs")
    weight = normal(*((K,) if "weight" in stacked else ()), *weight_shape, key="weight")
    bias = None if "no" in stacked else normal(*((K,) if "bias" in stacked else ()), width, key="bias")
    tensors = [inputs, weight] if bias is None else [inputs, weight, bias]
    weights = weight if "weight" in stacked else [weight] * K
    biases = bias if bias is not None and "bias" in stacked else [bias] * K
    rows = zip(inputs.chunk(K), weights, biases, strict=True)
    one_by_one = torch.cat([theirs(*row) for row in rows])
    got = with_gradients(ours(inputs, weight, bias), tensors)
    for value, expected in zip(got, with_gradients(one_by_one, tensors), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_one_hospital_gets_the_bits_of_pytorch(name: str) -> None:
    ours, theirs, shape, weight_shape, width = LAYERS[name]
    tensors = [
        normal(*size, key=key, dtype=torch.float32)
        for size, key in (((N, *shape), "inputs"), (weight_shape, "weight"), ((width,), "bias"))
    ]
    got = with_gradients(ours(*tensors), tensors)
    for value, expected in zip(got, with_gradients(theirs(*tensors), tensors), strict=True):
        assert torch.equal(value, expected)


def test_inputs_may_lie_in_any_order_in_memory() -> None:
    inputs, weight = normal(K * N, 3, 2, 4, key="inputs"), normal(K, 4, 5, 2, 2, key="weight")
    bias = normal(K, 5, key="bias")
    last = inputs.movedim(-1, 1)  # channels last in memory, as the decoder's transformer leaves them
    torch.testing.assert_close(
        conv_transpose(last, weight, bias), conv_transpose(last.contiguous(), weight, bias), rtol=1e-12, atol=1e-12
    )


def test_a_transposed_convolution_by_hand() -> None:
    """One pixel of value x becomes a patch: x w + b, for x = 2 and 3, w = [[1, 2], [3, 4]] and ten times that."""
    inputs = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    outputs = conv_transpose(inputs, torch.stack([weight, 10 * weight]), torch.tensor([[0.5], [0.25]]))
    expected = [[[2.5, 4.5], [6.5, 8.5]], [[30.25, 60.25], [90.25, 120.25]]]
    assert outputs[:, 0].tolist() == expected


def test_the_inputs_must_be_shared_out_evenly() -> None:
    with pytest.raises(RuntimeError, match="unflatten"):
        linear(torch.zeros(5, 4), torch.zeros(2, 3, 4))


def test_tables_are_laid_together_and_handed_to_every_image() -> None:
    iou, mask = torch.tensor([[9.0]]), torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])  # (1, 1) and (2, 2, 1)
    tokens = together([iou, mask])
    assert tokens[..., 0].tolist() == [[9, 1, 2], [9, 3, 4]]
    assert per_image(tokens, 4)[..., 0].tolist() == [[9, 1, 2], [9, 1, 2], [9, 3, 4], [9, 3, 4]]
    assert per_image(tokens[:1], 4).shape == (1, 3, 1)
    assert together([iou, mask[0]]).shape == (3, 1)


def test_a_layer_norm_keeps_the_precision_that_autocast_gives_one_hospital() -> None:
    inputs, weight, bias = torch.randn(4, 3, 4).bfloat16(), torch.ones(4), torch.zeros(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one = layer_norm(inputs, (4,), weight, bias, 1e-6)
        two = layer_norm(inputs, (4,), weight.expand(2, -1), bias.expand(2, -1), 1e-6)
    assert one.dtype == two.dtype
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("method", [Decoder(), Samed(), FlapSam(), MaSam(width=4)], ids=lambda m: type(m).__name__)
def test_a_model_of_grouped_layers_keeps_names_and_bits(make_replica: Callable[..., Replica], method: Method) -> None:
    replica = make_replica(method=method)
    images = torch.rand(2, 3, 32, 32, generator=generator(0, "test", "images"))
    names, before = [name for name, _ in replica.model.named_parameters()], gradients(replica, images)
    make_grouped(replica.model, replica.layout.names)
    assert [name for name, _ in replica.model.named_parameters()] == names
    after = gradients(replica, images)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def gradients(replica: Replica, images: Tensor) -> dict[str, Tensor]:
    replica.zero_grad()
    logits = replica.logits(images)
    logits.square().sum().backward()
    return {"logits": logits.detach(), **{n: v.grad for n, v in replica.values.items() if v.grad is not None}}


def test_only_layers_that_train_change_and_adapters_stay(make_replica: Callable[..., Replica]) -> None:
    replica = make_replica(method=FlapSam())
    make_grouped(replica.model, replica.layout.names)
    decoder = replica.model.mask_decoder
    assert type(decoder.output_hypernetworks_mlps[0].proj_in) is GroupedLinear
    assert type(decoder.upscale_layer_norm) is GroupedSamLayerNorm
    assert type(decoder.transformer.layers[0].self_attn.q_proj) is LoRALinear
    assert type(decoder.transformer.layers[0].self_attn.k_proj) is nn.Linear
    assert not any(type(module) in GROUPED.values() for module in replica.model.vision_encoder.modules())
