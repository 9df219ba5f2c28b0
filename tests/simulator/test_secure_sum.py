"""Secure summation: masks cancel bit for bit, sums fit or are refused, and what travels is counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wardround.simulator.randomness import streams
from wardround.simulator.secure_sum import (
    SecureSum,
    flattened,
    masked,
    to_grid,
    to_grid_inwards,
    unflattened,
    unmasked_sum,
)

MASKS = streams(0, "masks", 1)


def vectors(hospitals: int, coordinates: int = 500) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(hospitals)
    return {f"h{k}": torch.randn(coordinates, generator=generator, dtype=torch.float64) for k in range(hospitals)}


def words_of(secure: SecureSum, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: to_grid(secure, value, streams(0, "rounding", name)) for name, value in values.items()}


def uploads_of(secure: SecureSum, words: dict[str, Tensor], cohort: list[str]) -> dict[str, Tensor]:
    return {name: masked(secure, value, name, cohort, MASKS) for name, value in words.items()}


# ---- the sum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "word_bits"), [(2, 5), (8, 16), (20, 32), (32, 62)])
@pytest.mark.parametrize("hospitals", [1, 2, 7])
def test_the_masked_sum_is_the_plain_sum_bit_for_bit(hospitals: int, bits: int, word_bits: int) -> None:
    secure = SecureSum(bits=bits, word_bits=word_bits)
    words = words_of(secure, vectors(hospitals))
    total = unmasked_sum(secure, uploads_of(secure, words, list(words)), list(words), MASKS)
    assert torch.equal(total, sum(words.values()))


@pytest.mark.parametrize("dropped", [("h0",), ("h6",), ("h1", "h3", "h4")])
def test_masks_of_those_who_dropped_out_are_removed(dropped: tuple[str, ...]) -> None:
    secure, values = SecureSum(), vectors(7)
    words = words_of(secure, values)
    answered = {name: value for name, value in uploads_of(secure, words, list(words)).items() if name not in dropped}
    total = unmasked_sum(secure, answered, list(words), MASKS)
    assert torch.equal(total, sum(words[name] for name in answered))
    forgotten = unmasked_sum(secure, answered, list(answered), MASKS)  # as if nobody had dropped out
    assert (forgotten != total).float().mean() > 0.99


@pytest.mark.parametrize(("threshold", "enough"), [(0.0, 1), (0.5, 3), (0.6, 4), (0.99, 5)])
def test_below_the_threshold_the_round_fails(threshold: float, enough: int) -> None:
    secure = SecureSum(threshold=threshold)
    words = words_of(secure, vectors(5, 3))
    uploads = uploads_of(secure, words, list(words))
    assert secure.needed(5) == enough
    few = dict(list(uploads.items())[: enough - 1])
    unmasked_sum(secure, dict(list(uploads.items())[:enough]), list(words), MASKS)
    with pytest.raises(
        ValueError, match=rf"{enough - 1} of 5 hospitals answered.*at least {enough}; lower .*threshold"
    ):
        unmasked_sum(secure, few, list(words), MASKS)


def test_a_single_upload_looks_like_noise() -> None:
    """Of a constant vector: all 64 leading patterns equally often (chi-square of 63 degrees: 63 +- 11), no trend."""
    secure = SecureSum(word_bits=32)
    words = torch.full((64_000,), 7, dtype=torch.int64)
    upload, other = (masked(secure, words, name, ["a", "b", "c"], MASKS) for name in ("a", "b"))
    counts = torch.bincount(upload >> 26, minlength=64).double()
    assert ((counts - 1000).square() / 1000).sum().item() < 63 + 5 * 11.3
    assert 0 <= upload.min() < 2**32 / 1000
    assert 2**32 * 0.999 < upload.max() < 2**32
    assert abs(torch.corrcoef(torch.stack([upload, other]).double())[0, 1].item()) < 5 / 64_000**0.5
    again = masked(secure, words, "a", ["a", "b", "c"], streams(0, "masks", 2))
    assert (again != upload).float().mean() > 0.99


# ---- overflow --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_that_fits_is_right_and_one_hospital_more_is_refused(sign: int) -> None:
    """With bits 3, h = 3; with word_bits 5, M = 32; 2 n 3 < 32 holds up to n = 5."""
    secure = SecureSum(bits=3, word_bits=5, clip=1.0)
    for hospitals, right in ((5, True), (6, False)):
        words = {f"h{k}": to_grid_inwards(secure, torch.full((4,), 9.0 * sign)) for k in range(hospitals)}
        assert words["h0"].tolist() == [3 * sign] * 4
        total = unmasked_sum(secure, uploads_of(secure, words, list(words)), list(words), MASKS)
        assert (total.tolist() == [3 * sign * hospitals] * 4) == right
    secure.check(5)
    with pytest.raises(
        ValueError, match=r"word_bits: the sum of 6 hospitals of 3 bits may overflow 5 bits; set it to 6"
    ):
        secure.check(6)


def test_nobody_hides_alone() -> None:
    with pytest.raises(ValueError, match="expected at least 2 hospitals in a round, got 1"):
        SecureSum().check(1)


# ---- quantisation ----------------------------------------------------------------------------------------------------


def test_stochastic_rounding_is_right_in_the_mean() -> None:
    """With bits 3 and c = 3 the grid is -3 .. 3. 1.25 becomes 2 with probability 1/4; 20,000 draws know it to 0.003."""
    secure = SecureSum(bits=3, word_bits=8, clip=3.0)
    words = to_grid(secure, torch.full((20_000,), 1.25), streams(0, "rounding"))
    assert set(words.tolist()) == {1, 2}
    assert words.double().mean().item() == pytest.approx(1.25, abs=0.015)
    assert to_grid(secure, torch.tensor([-9.0, -3.0, 0.0, 2.0, 9.0]), streams(0, "rounding")).tolist() == [
        -3,
        -3,
        0,
        2,
        3,
    ]


def test_rounding_inwards_never_makes_a_step_longer() -> None:
    secure = SecureSum(bits=6, word_bits=16, clip=1.0)
    assert to_grid_inwards(secure, torch.tensor([-0.999, -1e-9, 0.0, 0.05, 2.0])).tolist() == [-30, 0, 0, 1, 31]
    for seed in range(50):
        vector = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rounded = to_grid_inwards(secure, vector) * secure.spacing
        assert (rounded.abs() <= vector.abs() * (1 + 1e-15)).all()
        inside = vector.abs() <= 1
        assert ((vector - rounded).abs()[inside] < secure.spacing).all()


def test_the_mean_agrees_with_flowers_quantisation() -> None:
    """Both are within one grid point per hospital of the exact mean; Flower's grid is offset by c, ours is signed."""
    import numpy as np
    from flwr.common.secure_aggregation.quantization import dequantize, quantize

    values = {name: value.clamp(-1, 1) for name, value in vectors(4).items()}
    secure = SecureSum(clip=1.0, bits=16)
    ours = sum(words_of(secure, values).values()) * secure.spacing / 4
    flower = sum(quantize([value.numpy()], 1.0, 2**16)[0] for value in values.values())
    theirs = dequantize([flower.astype(np.float64)], 1.0, 2**16)[0] + 1.0 - 4 * 1.0  # the offset of four hospitals
    exact = sum(values.values()) / 4
    assert (ours - exact).abs().max().item() < secure.spacing
    assert np.abs(theirs / 4 - exact.numpy()).max() < 2 * secure.spacing


def test_tensors_survive_being_one_vector() -> None:
    step = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(7.0)}
    shapes = {name: tuple(value.shape) for name, value in step.items()}
    back = unflattened(flattened(step, shapes), shapes)
    assert all(torch.equal(back[name].float(), value) for name, value in step.items())
    assert flattened(step, ["a", "b"]).tolist() == [7, 0, 1, 2, 3, 4, 5]


# ---- what travels ----------------------------------------------------------------------------------------------------


def test_bytes_by_hand() -> None:
    """3 hospitals, 10 words of 20 bits: keys 64, shares for two others 2 * 80, words 25, shares of three 3 * 32."""
    secure = SecureSum(bits=16, word_bits=20)
    assert secure.bytes_up(10, 3, answered=True) == 64 + 160 + 25 + 96
    assert secure.bytes_up(10, 3, answered=False) == 64 + 160
    assert secure.bytes_down(3) == 2 * (64 + 80)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0.0}, "clip: expected a finite number above 0, got 0.0"),
        ({"clip": math.inf}, "clip: expected a finite number"),
        ({"bits": 1}, "bits: expected 2 to 32, got 1"),
        ({"bits": 20, "word_bits": 20}, "word_bits: expected more than bits = 20 and at most 62, got 20"),
        ({"word_bits": 63}, "word_bits: .* at most 62, got 63"),
        ({"threshold": 1.0}, "threshold: expected a number in .*got 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SecureSum(**settings)
