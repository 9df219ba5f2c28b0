"""Compression of what a hospital sends: fewer bytes upward, for a message that is no longer exact.

What is compressed is a hospital's *step*, the difference between what it ends with and what it was handed, tensor by
tensor: the factors A and B of a pair have very different sizes, and a common scale would spend the bits on one of them.
Every tensor is turned into a message of bytes and back, and the bytes that are counted are those of that message. Names
and shapes are announced by the server and do not travel.

=========  ================================  =====================================  ========
name       message per tensor of n scalars   bytes                                  unbiased
=========  ================================  =====================================  ========
``fp16``   n half-precision numbers          2 n                                    no
``int8``   c fp32 scales, n whole numbers    4 c + n                                yes
``top_k``  k scalars as they are, k places   k itemsize + ceil(k ceil(log2 n) / 8)  no
=========  ================================  =====================================  ========

*Error feedback* keeps what a message leaves out of a step and adds it to the next one (:func:`with_feedback`), so that
nothing of it is lost but only late::

    u = step + e;    send c = compress(u);    e <- u - c

After T rounds ``sum_t c_t + e_T = sum_t step_t``. It belongs to the hospital, is as old as its last round, and means
something only as long as a tensor's coordinates do: where the server turns the basis of a pair in every round (the
aggregators that decompose products), what was left out is added in directions it was not measured in.

Under differential privacy a step is clipped before and its message after compression, and c is the clipped message:
``e <- u - clip(compress(u))``. What the first clip takes from a step is never in u and does not come later. As long as
the second one bites, more is added to e than leaves, and it grows: then the clip norm is small for this compression.

Sources: top-k with memory, Stich et al., "Sparsified SGD with Memory", arXiv 1809.07599; error feedback, Karimireddy et
al., arXiv 1901.09847; unbiased quantisation, Alistarh et al., "QSGD", arXiv 1610.02132 (which scales by the norm of the
vector; the scale here is the largest entry), in federated averaging FedPAQ, Reisizadeh et al., arXiv 1909.13014.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..aggregators.contract import Streams, Tensors

Array = NDArray[Any]
Rounding = Literal["stochastic", "nearest"]


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What the server decodes, in the dtypes of the step, and the bytes of the messages it decoded."""

    tensors: dict[str, Tensor]
    bytes: int


class Compression(Protocol):
    """A frozen dataclass that compresses a hospital's step; a row of :data:`COMPRESSIONS`."""

    @property
    def error_feedback(self) -> bool:
        """Whether the hospital keeps what is left out for its next step."""
        ...

    def compress(self, step: Tensors, rng: Streams) -> Compressed:
        """Encodes and decodes every tensor of a step.

        Args:
            step: Differences by name, float32 or float64.
            rng: Randomness by name of the tensor.

        Raises:
            ValueError: names a tensor that is not finite.
        """
        ...


def with_feedback(
    compression: Compression,
    step: Tensors,
    feedback: Tensors,
    rng: Streams,
    bound: Callable[[Tensors], Tensors] = dict,
) -> tuple[Compressed, dict[str, Tensor]]:
    """Compresses ``step + feedback``, bounds the message and returns what it leaves out as the new feedback.

    Feedback of a tensor that is not in this step waits; feedback of another shape than its tensor (another rank) is
    dropped. Without error feedback the step is compressed as it is and nothing is kept.

    Args:
        compression: How; says whether there is feedback.
        step: Differences by name.
        feedback: What earlier steps left out, by name; empty at first.
        rng: Randomness by name of the tensor.
        bound: What is done to the decoded message before anybody uses it, such as a clip.
    """
    earlier = feedback if compression.error_feedback else {}
    due = {name: value + earlier[name] if _fits(earlier, name, value) else value for name, value in step.items()}
    message = compression.compress(due, rng)
    sent = replace(message, tensors=dict(bound(message.tensors)))
    if not compression.error_feedback:
        return sent, {}
    waiting = {name: value for name, value in earlier.items() if name not in step}
    return sent, {**waiting, **{name: (value - sent.tensors[name]).to(value) for name, value in due.items()}}


def _fits(feedback: Tensors, name: str, value: Tensor) -> bool:
    return name in feedback and feedback[name].shape == value.shape


@dataclass(frozen=True, kw_only=True)
class Fp16:
    """Half-precision numbers, rounded to the nearest (ties to even): 11 significant bits.

    What is larger than 65504 becomes 65504. Below 6.1e-5 the numbers lie 6e-8 apart, whatever their size: the small
    steps of a low learning rate lose digits. Bytes: 2 per scalar.

    Args:
        error_feedback: Keep the rounding errors for the next step.
    """

    error_feedback: bool = False

    def compress(self, step: Tensors, rng: Streams) -> Compressed:
        """Encodes and decodes every tensor."""
        return _over_the_wire(self, step, rng)

    def encode(self, value: Array, generator: torch.Generator) -> bytes:
        """Two bytes per scalar; draws nothing."""
        largest = np.finfo(np.float16).max
        return _bytes(np.clip(value, -largest, largest).astype(np.float16))

    def decode(self, message: bytes, like: Array) -> Array:
        """The numbers of a message, in shape and dtype of ``like``."""
        return np.frombuffer(message, np.float16).reshape(like.shape).astype(like.dtype)


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Whole numbers from -127 to 127 times a scale: ``q = round(x / s)``, ``s = max |x| / 127``, x' = s q.

    A matrix has one fp32 scale per slice along its shorter side, any other tensor one in all. For a factor of a
    low-rank pair that is one per direction, and directions are what differs in size. Bytes: n + 4 per scale.

    Args:
        rounding: ``stochastic``: ``floor(x / s + u)``, u uniform in [0, 1): the mean of x' is x, the error below s;
            ``nearest``: half the largest error, but biased.
        error_feedback: Keep the rounding errors for the next step.

    Example:
        >>> Int8(rounding="up")
        Traceback (most recent call last):
        ...
        ValueError: rounding: expected 'stochastic' or 'nearest', got 'up'
    """

    rounding: Rounding = "stochastic"
    error_feedback: bool = False

    def __post_init__(self) -> None:
        if self.rounding not in get_args(Rounding):
            raise ValueError(f"rounding: expected 'stochastic' or 'nearest', got {self.rounding!r}")

    def compress(self, step: Tensors, rng: Streams) -> Compressed:
        """Encodes and decodes every tensor."""
        return _over_the_wire(self, step, rng)

    def encode(self, value: Array, generator: torch.Generator) -> bytes:
        """Scales, then one byte per scalar."""
        x = _by_scale(value.astype(np.float64))  # (c, n / c)
        scale = _scales(x)
        ratio = np.divide(x, scale[:, None], out=np.zeros_like(x), where=scale[:, None] > 0)
        if self.rounding == "nearest":
            q = np.rint(ratio)
        else:
            q = np.floor(ratio + torch.rand(x.shape, generator=generator, dtype=torch.float64).numpy())
        return _bytes(scale) + _bytes(q.astype(np.int8))

    def decode(self, message: bytes, like: Array) -> Array:
        """The numbers of a message, in shape and dtype of ``like``."""
        c, columns = _by_scale(like).shape
        scale = np.frombuffer(message, np.float32, count=c).astype(np.float64)
        x = scale[:, None] * np.frombuffer(message, np.int8, offset=4 * c).reshape(c, columns)
        return (x.T if _is_tall(like) else x).reshape(like.shape).astype(like.dtype)


def _scales(x: Array) -> Array:
    """``max |x| / 127`` per row in fp32, rounded up so that no entry lies beyond 127; 0 for a row of zeros."""
    largest = np.abs(x).max(axis=1)
    scale = np.nextafter((largest / 127).astype(np.float32), np.float32(np.inf))
    return np.where(largest > 0, scale, np.float32(0))


def _by_scale(value: Array) -> Array:
    """(c, n / c): one row per scale."""
    if value.ndim != 2:
        return value.reshape(1, -1)
    return value.T if _is_tall(value) else value


def _is_tall(value: Array) -> bool:
    return value.ndim == 2 and value.shape[0] > value.shape[1]


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The ``k = ceil(fraction n)`` scalars of largest size of every tensor, as they are; the others are zero.

    Of equal ones the first in the tensor's order goes first. k and n are known on both sides. Bytes: the scalars', and
    ``ceil(log2 n)`` bits per position, rounded up to bytes.

    Args:
        fraction: Share of the scalars that travels, above 0 and at most 1; at least one per tensor.
        error_feedback: Keep what was not sent for the next step. Without it, small entries never arrive.

    Example:
        >>> step = {"w": torch.tensor([1.0, -3.0, 0.5, 3.0])}
        >>> sent = TopK(fraction=0.25).compress(step, lambda *keys: torch.Generator())
        >>> sent.tensors["w"], sent.bytes  # 4 bytes of value, 2 bits of position
        (tensor([ 0., -3.,  0.,  0.]), 5)
    """

    fraction: float = 0.1
    error_feedback: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: expected a number above 0 and at most 1, got {self.fraction!r}")

    def compress(self, step: Tensors, rng: Streams) -> Compressed:
        """Encodes and decodes every tensor."""
        return _over_the_wire(self, step, rng)

    def number(self, n: int) -> int:
        """k, ``ceil(fraction n)``; a product that exceeds a whole number by rounding counts as that number."""
        return min(n, max(1, math.ceil(self.fraction * n - 1e-9)))

    def encode(self, value: Array, generator: torch.Generator) -> bytes:
        """Values in order of their positions, then the positions; draws nothing."""
        flat = value.reshape(-1)
        largest = np.argsort(-np.abs(flat), kind="stable")[: self.number(flat.size)]
        positions = np.sort(largest)
        return _bytes(flat[positions]) + _packed(positions, _position_bits(flat.size))

    def decode(self, message: bytes, like: Array) -> Array:
        """The tensor with what travelled in its places, in shape and dtype of ``like``."""
        k = self.number(like.size)
        values = np.frombuffer(message, like.dtype, count=k)
        flat = np.zeros(like.size, like.dtype)
        flat[_unpacked(message[values.nbytes :], k, _position_bits(like.size))] = values
        return flat.reshape(like.shape)


def _position_bits(n: int) -> int:
    """``ceil(log2 n)``: bits that tell n positions apart."""
    return (n - 1).bit_length()


def _packed(numbers: Array, bits: int) -> bytes:
    """Whole numbers of that many bits each, the highest bit first, one after the other."""
    return _bytes(np.packbits((numbers[:, None] >> np.arange(bits)[::-1]) & 1))


def _unpacked(message: bytes, count: int, bits: int) -> Array:
    binary = np.unpackbits(np.frombuffer(message, np.uint8), count=count * bits).reshape(count, bits)
    numbers: Array = (binary.astype(np.intp) << np.arange(bits)[::-1]).sum(axis=1)
    return numbers


class _Code(Protocol):
    def encode(self, value: Array, generator: torch.Generator) -> bytes: ...

    def decode(self, message: bytes, like: Array) -> Array: ...


def _over_the_wire(code: _Code, step: Tensors, rng: Streams) -> Compressed:
    """Every tensor through a message and back. Only the bytes, shape and dtype reach ``decode``."""
    tensors, total = {}, 0
    for name, value in step.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"compression of {name!r}: expected finite values, got NaN or infinity")
        array = value.detach().cpu().numpy()
        message = code.encode(array, rng(name))
        tensors[name] = torch.from_numpy(code.decode(message, np.empty_like(array))).to(value)
        total += len(message)
    return Compressed(tensors=tensors, bytes=total)


def _bytes(values: Array) -> bytes:
    message: bytes = values.tobytes()
    return message


COMPRESSIONS: dict[str, type] = {
    "fp16": Fp16,
    "int8": Int8,
    "top_k": TopK,
}
