"""Update compression: every message against a NumPy one-liner, its bytes against a formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pairs import normal, tensor
from torch import Tensor

from wardround.simulator.compression import COMPRESSIONS, Compression, Fp16, Int8, TopK, with_feedback
from wardround.simulator.randomness import streams

RNG = streams(0, "compression")


def step(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Factors of a pair, one much smaller than the other; a vector; a kernel; a number."""
    values = {
        "A": normal(4, 30, seed="A"),
        "B": 1e-4 * normal(17, 4, seed="B"),
        "bias": normal(5, seed="bias"),
        "kernel": normal(3, 2, 2, 2, seed="kernel"),
        "number": tensor(0.3)[0],
    }
    return {name: value.to(dtype) for name, value in values.items()}


def numpy_int8(x: np.ndarray, axis: int | None) -> np.ndarray:
    """Nearest rounding with a scale along an axis, in float64."""
    s = np.abs(x).max(axis=axis, keepdims=True) / 127
    return np.round(x / s) * s


def numpy_top_k(x: np.ndarray, k: int) -> np.ndarray:
    return np.where(np.abs(x) >= np.sort(np.abs(x), axis=None)[-k], x, 0)


# ---- what arrives ----------------------------------------------------------------------------------------------------


def test_fp16_is_numpys() -> None:
    for name, value in Fp16().compress(step(), RNG).tensors.items():
        assert torch.equal(value, torch.from_numpy(np.asarray(step()[name].numpy().astype("f2").astype("f4"))))


def test_fp16_by_hand() -> None:
    """Between 1 and 2 the numbers lie 2^-10 apart: 1 + 2^-11 is a tie and goes to the even one, 1; 1e6 saturates."""
    sent = Fp16().compress({"w": tensor(1 + 2**-11, 1 + 3 * 2**-11, -1e6, 1e-9)}, RNG)
    assert torch.equal(sent.tensors["w"], tensor(1.0, 1 + 2**-9, -65504.0, 0.0))


def test_int8_is_a_numpy_line() -> None:
    """One scale per direction: A (4, 30) by row, B (17, 4) by column; one in all for what is no matrix."""
    sent = Int8(rounding="nearest").compress(step(torch.float64), RNG).tensors
    axes = {"A": 1, "B": 0, "bias": None, "kernel": None, "number": None}
    for name, axis in axes.items():
        expected = numpy_int8(step(torch.float64)[name].numpy(), axis)
        np.testing.assert_allclose(sent[name], expected, rtol=1e-6, atol=0)  # scales are single precision


def test_int8_by_hand() -> None:
    """The scale is 254 / 127 = 2: 254, -3.2, 5.2 and 0.9 are 127, -1.6, 2.6 and 0.45 times 2."""
    sent = Int8(rounding="nearest").compress({"w": tensor(254.0, -3.2, 5.2, 0.9)}, RNG)
    torch.testing.assert_close(sent.tensors["w"], tensor(254.0, -4.0, 6.0, 0.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("rounding", "from_", "to"), [("stochastic", 0.6, 1.0), ("nearest", 0.4, 0.5)])
def test_int8_errs_by_less_than_a_scale(rounding: Any, from_: float, to: float) -> None:
    value = normal(4, 30)
    sent = Int8(rounding=rounding).compress({"A": value}, RNG).tensors["A"]
    scale = value.abs().amax(dim=1, keepdim=True) / 127
    error = ((sent - value).abs() / scale).max().item()
    assert from_ < error < to * (1 + 1e-6)


def test_no_entry_lies_beyond_127_scales() -> None:
    """Scales are rounded up to single precision: 128 would wrap around to -128 and turn the largest entry's sign."""
    value = normal(300, 301, seed="rows").numpy()
    scale = np.frombuffer(Int8().encode(value, RNG("w")), np.float32, count=300).astype(np.float64)
    ratio = np.abs(value).max(axis=1) / scale
    assert (ratio <= 127).all()
    assert (ratio > 127 * (1 - 3e-7)).all()


def test_top_k_is_a_numpy_line() -> None:
    for name, value in TopK(fraction=0.3).compress(step(), RNG).tensors.items():
        x = step()[name].numpy()
        np.testing.assert_array_equal(value, numpy_top_k(x, math.ceil(0.3 * x.size)))


def test_of_equal_scalars_the_first_travel() -> None:
    sent = TopK(fraction=0.5).compress({"w": tensor([1.0, -1.0, 1.0], [-1.0, 1.0, 1.0])}, RNG)
    assert torch.equal(sent.tensors["w"], tensor([1.0, -1.0, 1.0], [0.0, 0.0, 0.0]))


def test_all_of_top_k_is_the_step() -> None:
    sent = TopK(fraction=1.0).compress(step(), RNG).tensors
    assert all(torch.equal(sent[name], value) for name, value in step().items())


@pytest.mark.parametrize(
    ("fraction", "n", "k"), [(0.07, 100, 7), (0.1, 31, 4), (0.01, 5, 1), (1.0, 7, 7), (0.7, 10, 7)]
)
def test_k_is_rounded_up(fraction: float, n: int, k: int) -> None:
    """0.07 * 100 is 7.000000000000001 in floating point, and k = 7."""
    sent = TopK(fraction=fraction).compress({"w": torch.arange(1.0, n + 1)}, RNG).tensors["w"]
    assert int((sent != 0).sum()) == k


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", COMPRESSIONS)
def test_shapes_and_dtypes_stay_and_nothing_is_written_to(name: str, dtype: torch.dtype) -> None:
    given = step(dtype)
    sent = COMPRESSIONS[name]().compress(given, RNG).tensors
    for key, value in step(dtype).items():
        assert (sent[key].shape, sent[key].dtype) == (value.shape, dtype)
        assert torch.equal(given[key], value)


# ---- what is random --------------------------------------------------------------------------------------------------


def test_stochastic_rounding_is_unbiased() -> None:
    """The mean of 1000 messages is the step: within 5 standard errors, of at most s / 2 each."""
    value = normal(3, 8)
    sent = torch.stack([Int8().compress({"w": value}, streams(0, "draw", n)).tensors["w"] for n in range(1000)], dim=0)
    scale = value.abs().amax(dim=1, keepdim=True) / 127
    assert ((sent.mean(dim=0) - value).abs() < 5 * 0.5 * scale / 1000**0.5).all()
    assert sent.std(dim=0).max() > 0.3 * scale.min()


def test_nearest_rounding_is_biased() -> None:
    """0.4 of a scale is always rounded down: the mean is 0 and the step is lost."""
    value = tensor(127.0, 0.4)
    sent = [Int8(rounding="nearest").compress({"w": value}, streams(0, "draw", n)).tensors["w"] for n in range(20)]
    assert not torch.stack(sent)[:, 1].any()


def test_draws_come_from_the_stream_of_the_tensor_alone() -> None:
    """Another tensor beside it shifts nothing; another stream or another name does."""
    whole, alone = Int8().compress(step(), RNG), Int8().compress({"A": step()["A"]}, RNG)
    assert torch.equal(whole.tensors["A"], alone.tensors["A"])
    assert not torch.equal(whole.tensors["A"], Int8().compress(step(), streams(1, "compression")).tensors["A"])
    twins = Int8().compress({"A": step()["A"], "A2": step()["A"]}, RNG).tensors
    assert not torch.equal(twins["A"], twins["A2"])


# ---- bytes -----------------------------------------------------------------------------------------------------------


def test_bytes_of_fp16() -> None:
    assert Fp16().compress(step(), RNG).bytes == 2 * (120 + 68 + 5 + 24 + 1)


def test_bytes_of_int8() -> None:
    """A and B have 4 scales each, the others one."""
    assert Int8().compress(step(), RNG).bytes == (120 + 68 + 5 + 24 + 1) + 4 * (4 + 4 + 1 + 1 + 1)


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.float32, 4), (torch.float64, 8)])
def test_bytes_of_top_k(dtype: torch.dtype, itemsize: int) -> None:
    """K = 36, 21, 2, 8, 1 values; positions of 7, 7, 3, 5 and 0 bits."""
    ks, bits = (36, 21, 2, 8, 1), (7, 7, 3, 5, 0)
    expected = sum(itemsize * k + math.ceil(k * b / 8) for k, b in zip(ks, bits, strict=True))
    assert TopK(fraction=0.3).compress(step(dtype), RNG).bytes == expected


@pytest.mark.parametrize("n", [1, 2, 3, 256, 257, 70_000])
def test_positions_survive_their_bits(n: int) -> None:
    """First, last and a few between, for lengths around powers of two."""
    value = torch.zeros(n)
    places = sorted({0, n // 3, n // 2, n - 1})
    value[places] = torch.arange(1.0, len(places) + 1)
    sent = TopK(fraction=len(places) / n).compress({"w": value}, RNG)
    assert torch.equal(sent.tensors["w"], value)
    assert sent.bytes == 4 * len(places) + math.ceil(len(places) * math.ceil(math.log2(n)) / 8)


# ---- error feedback --------------------------------------------------------------------------------------------------

WITH_FEEDBACK = [TopK(fraction=0.1), Int8(error_feedback=True), Fp16(error_feedback=True)]


@pytest.mark.parametrize("compression", WITH_FEEDBACK, ids=lambda c: type(c).__name__)
def test_what_is_sent_and_what_is_left_add_up_to_the_steps(compression: Compression) -> None:
    """``sum_t c_t + e_T = sum_t step_t`` over ten rounds, in float64."""
    steps = [{"w": normal(6, 7, seed=t), "b": normal(9, seed=-t)} for t in range(1, 11)]
    sent, left = {"w": 0.0, "b": 0.0}, {}
    for number, one in enumerate(steps):
        message, left = with_feedback(compression, one, left, streams(0, "round", number))
        sent = {name: sent[name] + value for name, value in message.tensors.items()}
    for name in sent:
        assert left[name].any()
        torch.testing.assert_close(sent[name] + left[name], sum(one[name] for one in steps), rtol=0, atol=1e-13)


def test_top_k_with_feedback_by_hand() -> None:
    """With k = 1. u = (4, 3): send 4, keep 3. Then u = (4, 3 + 3): send 6, keep 4. Then u = (4 + 4, 3): send 8."""
    compression, left = TopK(fraction=0.5), {}
    for expected in (tensor(4.0, 0.0), tensor(0.0, 6.0), tensor(8.0, 0.0)):
        message, left = with_feedback(compression, {"w": tensor(4.0, 3.0)}, left, RNG)
        assert torch.equal(message.tensors["w"], expected)
    assert torch.equal(left["w"], tensor(0.0, 3.0))


def test_without_feedback_nothing_is_kept_and_small_entries_never_arrive() -> None:
    for _ in range(3):
        message, left = with_feedback(TopK(fraction=0.5, error_feedback=False), {"w": tensor(4.0, 3.0)}, {}, RNG)
        assert torch.equal(message.tensors["w"], tensor(4.0, 0.0))
        assert left == {}


def test_feedback_of_another_shape_is_dropped() -> None:
    """A factor that comes back at another rank starts anew."""
    message, left = with_feedback(TopK(fraction=1.0), {"A": tensor([1.0, 2.0])}, {"A": tensor([5.0], [5.0])}, RNG)
    assert torch.equal(message.tensors["A"], tensor([1.0, 2.0]))
    assert torch.equal(left["A"], tensor([0.0, 0.0]))


def test_feedback_of_a_tensor_that_does_not_travel_waits() -> None:
    before = {"other": tensor(1.0)}
    _, left = with_feedback(TopK(fraction=0.5), {"w": tensor(4.0, 3.0)}, before, RNG)
    assert left["other"] is before["other"]
    assert left.keys() == {"w", "other"}


@pytest.mark.parametrize("compression", WITH_FEEDBACK, ids=lambda c: type(c).__name__)
def test_feedback_leaves_its_inputs_alone(compression: Compression) -> None:
    one, before = {"w": tensor(4.0, 3.3)}, {"w": tensor(0.1, 0.2)}
    with_feedback(compression, one, before, RNG)
    assert torch.equal(one["w"], tensor(4.0, 3.3))
    assert torch.equal(before["w"], tensor(0.1, 0.2))


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_hospital_that_did_not_move(name: str) -> None:
    """A zero step arrives as zeros, at the price of any other."""
    compression = COMPRESSIONS[name]()
    zero = {key: torch.zeros_like(value) for key, value in step().items()}
    message, left = with_feedback(compression, zero, {}, RNG)
    assert not any(value.any() for value in (*message.tensors.values(), *left.values()))
    assert message.bytes == compression.compress(step(), RNG).bytes


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_tiny_steps_arrive_finite(name: str) -> None:
    sent = COMPRESSIONS[name]().compress({"w": torch.tensor([1e-45, 0.0, -1e-40])}, RNG).tensors["w"]
    assert torch.isfinite(sent).all()
    assert sent.abs().max() <= 2e-40


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_step_that_is_not_finite_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^compression of 'w': expected finite values, got NaN or infinity"):
        COMPRESSIONS[name]().compress({"v": tensor(1.0), "w": tensor(1.0, math.inf)}, RNG)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, math.nan])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"^fraction: expected a number above 0 and at most 1, got "):
        TopK(fraction=fraction)


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rounding: expected 'stochastic' or 'nearest', got 'up'"):
        Int8(rounding="up")
