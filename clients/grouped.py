"""Layers for one hospital or for several at once, told apart by the weight.

A weight with its usual dimensions is one hospital's, and the layer is PyTorch's own call. A weight with one dimension
more holds the weights of K hospitals; the first dimension of the inputs is then K * n, hospital after hospital, and
every hospital's inputs meet its own weight. Layers that nobody trains need no second case: to them the images of K
hospitals are one large batch.

Legend: K hospitals, n inputs of a hospital, d_in and d_out widths, c_in and c_out channels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.sam.modeling_sam import SamLayerNorm


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``W x + b``.

    Args:
        inputs: (n, ..., d_in), or (K * n, ..., d_in) for K hospitals.
        weight: (d_out, d_in), or (K, d_out, d_in).
        bias: (d_out,), or (K, d_out); with or without K, whatever the weight.

    Returns:
        (..., d_out), shaped as the inputs.
    """
    if weight.ndim == 2 and (bias is None or bias.ndim == 1):
        return functional.linear(inputs, weight, bias)
    if weight.ndim == 2:
        assert bias is not None
        return shifted(functional.linear(inputs, weight), bias)
    apart = inputs.unflatten(0, (len(weight), -1)).flatten(1, -2)  # (K, n * ..., d_in)
    rows = weight.mT
    outputs = torch.bmm(apart, rows) if bias is None else torch.baddbmm(bias.unsqueeze(-2), apart, rows)
    return outputs.reshape(*inputs.shape[:-1], -1)


def layer_norm(inputs: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalises the last dimension of inputs, then scales and shifts it.

    Args:
        inputs: (n, ..., d), or (K * n, ..., d) for K hospitals.
        shape: (d,).
        weight: (d,), or (K, d).
        bias: (d,), or (K, d).
        eps: Added to the variance.
    """
    if not any(value is not None and value.ndim > len(shape) for value in (weight, bias)):
        return functional.layer_norm(inputs, shape, weight, bias, eps)
    normal = functional.layer_norm(inputs, shape, eps=eps)
    outputs = normal if weight is None else scaled(normal, weight)
    outputs = outputs if bias is None else shifted(outputs, bias)
    return outputs.to(normal.dtype)  # what autocast makes of the plain case


def scaled(inputs: Tensor, weight: Tensor) -> Tensor:
    """Inputs (n, ..., d) times a vector (d,), or inputs (K * n, ..., d) times each hospital's vector (K, d)."""
    if weight.ndim == 1:
        return inputs * weight
    products: Tensor = inputs.unflatten(0, (len(weight), -1)) * _aligned(weight, inputs.ndim)
    return products.flatten(0, 1)


def shifted(inputs: Tensor, bias: Tensor) -> Tensor:
    """Inputs (n, ..., d) plus a vector (d,), or inputs (K * n, ..., d) plus each hospital's vector (K, d)."""
    if bias.ndim == 1:
        return inputs + bias
    sums: Tensor = inputs.unflatten(0, (len(bias), -1)) + _aligned(bias, inputs.ndim)
    return sums.flatten(0, 1)


def _aligned(vectors: Tensor, ndim: int) -> Tensor:
    """(K, d) to (K, 1, ..., 1, d): beside inputs of ``ndim`` dimensions whose first was parted into K and n."""
    return vectors.reshape(len(vectors), *[1] * (ndim - 1), -1)


def conv_transpose(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A transposed convolution whose kernel is its stride: every pixel becomes a patch of its own.

    For K hospitals that is one matrix product per hospital, and the patches put in their places.

    Args:
        inputs: (n, c_in, h, w), or (K * n, c_in, h, w) for K hospitals.
        weight: (c_in, c_out, p, p), or (K, c_in, c_out, p, p).
        bias: (c_out,), or (K, c_out).

    Returns:
        (n or K * n, c_out, p * h, p * w).
    """
    if weight.ndim == 4 and (bias is None or bias.ndim == 1):
        return functional.conv_transpose2d(inputs, weight, bias, stride=weight.shape[-2:])
    if weight.ndim == 4:
        assert bias is not None
        return _channels_shifted(functional.conv_transpose2d(inputs, weight, stride=weight.shape[-2:]), bias)
    patch = weight.shape[-2:]
    rows = weight.permute(0, 3, 4, 2, 1).flatten(1, 3)  # (K, p * p * c_out, c_in)
    tiled = None if bias is None else bias.repeat(*[1] * (bias.ndim - 1), patch.numel())
    patches = linear(inputs.movedim(1, -1), rows, tiled)  # (K * n, h, w, p * p * c_out)
    squares: Tensor = patches.unflatten(-1, (*patch, -1)).transpose(2, 3)  # (K * n, h, p, w, p, c_out)
    return squares.flatten(3, 4).flatten(1, 2).movedim(-1, 1)


def patches(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution whose kernel is its stride: every patch becomes a pixel.

    For K hospitals it is one convolution with K groups of channels.

    Args:
        inputs: (n, c_in, p * h, p * w), or (K * n, c_in, p * h, p * w) for K hospitals.
        weight: (c_out, c_in, p, p), or (K, c_out, c_in, p, p).
        bias: (c_out,), or (K, c_out).

    Returns:
        (n or K * n, c_out, h, w).
    """
    stride = weight.shape[-2:]
    if weight.ndim == 4 and (bias is None or bias.ndim == 1):
        return functional.conv2d(inputs, weight, bias, stride=stride)
    if weight.ndim == 4:
        assert bias is not None
        return _channels_shifted(functional.conv2d(inputs, weight, stride=stride), bias)
    beside = inputs.unflatten(0, (len(weight), -1)).transpose(0, 1).flatten(1, 2)  # (n, K * c_in, p * h, p * w)
    flat = None if bias is None else bias.expand(len(weight), -1).flatten()
    outputs = functional.conv2d(beside, weight.flatten(0, 1), flat, stride=stride, groups=len(weight))
    by_hospital: Tensor = outputs.unflatten(1, (len(weight), -1)).transpose(0, 1)  # (K, n, c_out, h, w)
    return by_hospital.flatten(0, 1)


def conv3d(inputs: Tensor, weight: Tensor, bias: Tensor | None, padding: str | Sequence[int]) -> Tensor:
    """A convolution over volumes with stride 1. For K hospitals it is one convolution with K groups of channels.

    Args:
        inputs: (n, c_in, D, h, w), or (K * n, c_in, D, h, w) for K hospitals.
        weight: (c_out, c_in, *kernel), or (K, c_out, c_in, *kernel).
        bias: (c_out,), or (K, c_out).
        padding: Zeros on both sides of D, h and w, as PyTorch takes it.
    """
    if weight.ndim == 5 and (bias is None or bias.ndim == 1):
        return functional.conv3d(inputs, weight, bias, padding=padding)
    if weight.ndim == 5:
        assert bias is not None
        return _channels_shifted(functional.conv3d(inputs, weight, padding=padding), bias)
    beside = inputs.unflatten(0, (len(weight), -1)).transpose(0, 1).flatten(1, 2)  # (n, K * c_in, D, h, w)
    flat = None if bias is None else bias.expand(len(weight), -1).flatten()
    outputs = functional.conv3d(beside, weight.flatten(0, 1), flat, padding=padding, groups=len(weight))
    by_hospital: Tensor = outputs.unflatten(1, (len(weight), -1)).transpose(0, 1)  # (K, n, c_out, D, h, w)
    return by_hospital.flatten(0, 1)


def _channels_shifted(inputs: Tensor, bias: Tensor) -> Tensor:
    """Inputs (K * n, c, ...) plus each hospital's number per channel (K, c)."""
    return shifted(inputs.movedim(1, -1), bias).movedim(-1, 1)


def together(tables: Sequence[Tensor]) -> Tensor:
    """Rows of several tables (N_i, D) or (K, N_i, D), one below the other: (N, D), or (K, N, D) where any has K."""
    counts = [len(table) for table in tables if table.ndim == 3]
    if counts:  # not max(..., default=None), which torch.compile does not take
        tables = [table.expand(max(counts), -1, -1) for table in tables]
    return torch.cat(list(tables), dim=-2)


def per_image(values: Tensor, images: int) -> Tensor:
    """What every image sees of (K, ...) values of K hospitals: (images, ...), image after image.

    Values of one hospital (1, ...) stay as they are: they go together with any number of images.
    """
    return values if len(values) == 1 else values.repeat_interleave(images // len(values), dim=0)


class GroupedLinear(nn.Linear):
    """A linear layer for one hospital or several."""

    def forward(self, inputs: Tensor) -> Tensor:
        """See :func:`linear`."""
        return linear(inputs, self.weight, self.bias)


class GroupedLayerNorm(nn.LayerNorm):
    """A layer norm for one hospital or several."""

    def forward(self, inputs: Tensor) -> Tensor:
        """See :func:`layer_norm`."""
        return layer_norm(inputs, self.normalized_shape, self.weight, self.bias, self.eps)


class GroupedSamLayerNorm(SamLayerNorm, GroupedLayerNorm):
    """The layer norm of ``transformers``' SAM, which brings the channels to the end, for one hospital or several."""


class GroupedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution whose kernel is its stride, for one hospital or several."""

    def forward(self, inputs: Tensor, output_size: list[int] | None = None) -> Tensor:
        """See :func:`conv_transpose`."""
        return conv_transpose(inputs, self.weight, self.bias)


class GroupedConv2d(nn.Conv2d):
    """A convolution whose kernel is its stride, for one hospital or several."""

    def forward(self, inputs: Tensor) -> Tensor:
        """See :func:`patches`."""
        return patches(inputs, self.weight, self.bias)


class GroupedConv3d(nn.Conv3d):
    """A convolution over volumes with stride 1, for one hospital or several."""

    def forward(self, inputs: Tensor) -> Tensor:
        """See :func:`conv3d`."""
        return conv3d(inputs, self.weight, self.bias, self.padding)


GROUPED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: GroupedLinear,
    nn.LayerNorm: GroupedLayerNorm,
    SamLayerNorm: GroupedSamLayerNorm,
    nn.ConvTranspose2d: GroupedConvTranspose2d,
    nn.Conv2d: GroupedConv2d,
    nn.Conv3d: GroupedConv3d,
}
"""Per class of a layer the one that takes weights of several hospitals as well, and computes the same with one's."""


def make_grouped(model: nn.Module, names: Collection[str]) -> None:
    """Gives every layer of which something trains a class that takes weights of several hospitals as well.

    Tensors, their names and their order stay, and with the weights of one hospital every bit of the outputs.

    Args:
        model: Changed in place.
        names: Of the parameters that train.
    """
    for name in sorted({name.rpartition(".")[0] for name in names}):
        layer = model.get_submodule(name)
        layer.__class__ = GROUPED.get(type(layer), type(layer))
