"""Augmentation: what is drawn, what it does to known images, and that batches do not matter."""

from __future__ import annotations

import math
import time

import pytest
import torch

from wardround.datasets.augment import AUGMENTS, Augment, AugmentParameters, NoAugment, apply

OFF = {"rot90_flip_p": 0.0, "rotation_p": 0.0, "scale_p": 0.0, "gamma_p": 0.0}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 6, size: int = 12, depth: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(n, depth, size, size, generator=rng(1))
    return images, torch.randint(0, 3, images.shape, generator=rng(2), dtype=torch.uint8)


def only(affine: list[list[float]], gamma: float = 1.0, n: int = 6) -> AugmentParameters:
    return AugmentParameters(affine=torch.tensor(affine).repeat(n, 1, 1), gamma=torch.full((n,), gamma))


def test_nothing_drawn_is_bit_identical() -> None:
    images, labels = batch()
    for augment in (Augment(**OFF), NoAugment()):
        changed, masks = apply(images, labels, augment.sample(6, rng()))
        assert torch.equal(changed, images)
        assert torch.equal(masks, labels)


def test_only_the_windows_that_were_drawn_change() -> None:
    images, labels = batch(40)
    parameters = Augment(rot90_flip_p=0.3, rotation_p=0.0, scale_p=0.0, gamma_p=0.3).sample(40, rng())
    changed, masks = apply(images, labels, parameters)
    still = (parameters.affine == torch.eye(2)).all(2).all(1)
    assert 0 < int(still.sum()) < 40
    assert torch.equal(masks[still], labels[still])
    assert torch.equal(changed[still & (parameters.gamma == 1)], images[still & (parameters.gamma == 1)])
    assert not any(torch.equal(changed[i], images[i]) for i in torch.where(~still)[0])


def test_quarter_turns_and_flips_equal_torch() -> None:
    """The eight draws (0-3 counter-clockwise turns, then rows or columns) in all their combinations."""
    images, labels = batch(64)
    parameters = Augment(**OFF | {"rot90_flip_p": 1.0}).sample(64, rng())
    changed, masks = apply(images, labels, parameters)
    _, turn, axis = torch.rand(64, 3, generator=rng()).unbind(1)
    seen = set()
    for i in range(64):
        k, flip = int(turn[i] * 4), -2 + int(axis[i] * 2)
        torch.testing.assert_close(changed[i], torch.rot90(images[i], k, (-2, -1)).flip(flip), atol=1e-5, rtol=0)
        assert torch.equal(masks[i], torch.rot90(labels[i], k, (-2, -1)).flip(flip))
        seen.add((k, flip))
    assert len(seen) == 8


def test_rotation_is_counter_clockwise() -> None:
    """A pixel right of the centre goes up when turned by +90 degrees: column 10 of row 6.5 becomes row 1."""
    labels = torch.zeros(1, 1, 12, 12, dtype=torch.uint8)
    labels[0, 0, 5:7, 9:11] = 1
    turn = only([[0.0, -1.0], [1.0, 0.0]], n=1)
    _, masks = apply(labels.float(), labels, turn)
    assert masks.nonzero()[:, 2:].tolist() == [[1, 5], [1, 6], [2, 5], [2, 6]]
    parameters = Augment(**OFF | {"rotation_p": 1.0, "rotation_degrees": 30.0}).sample(200, rng())
    angle = torch.atan2(parameters.affine[:, 1, 0], parameters.affine[:, 0, 0])
    assert angle.abs().max() <= math.radians(30)
    assert angle.min() < -math.radians(25)
    assert angle.max() > math.radians(25)


def test_scale_above_one_enlarges() -> None:
    """A centred square of 4 pixels doubled has 8 pixels; halved it has 2."""
    labels = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    labels[0, 0, 6:10, 6:10] = 2
    for factor, side in ((2.0, 8), (0.5, 2)):
        parameters = Augment(**OFF | {"scale_p": 1.0, "scale": (factor, factor)}).sample(1, rng())
        images, masks = apply(labels.double() / 2, labels, parameters)
        assert int((masks == 2).sum()) == side**2
        assert float(images.sum()) == pytest.approx(side**2, rel=0.2)


def test_gamma_is_a_power_and_leaves_labels() -> None:
    images, labels = batch()
    changed, masks = apply(images, labels, only([[1.0, 0.0], [0.0, 1.0]], gamma=2.0))
    torch.testing.assert_close(changed, images * images)
    assert torch.equal(masks, labels)


def test_outside_is_zero_and_labels_stay_whole() -> None:
    images, labels = torch.ones(1, 2, 8, 8), torch.full((1, 2, 8, 8), 3, dtype=torch.uint8)
    changed, masks = apply(images, labels, only([[2.0, 0.0], [0.0, 2.0]], n=1))
    assert (changed[0, 0, 0, 0], masks[0, 0, 0, 0]) == (0, 0)
    assert set(masks.unique().tolist()) == {0, 3}
    assert masks.dtype == torch.uint8
    rotated = apply(*batch(30), Augment(rotation_p=1, scale_p=1).sample(30, rng()))[0]
    assert rotated.min() >= 0
    assert rotated.max() <= 1 + 1e-6


def test_composed_map_is_turn_flip_then_rotation_then_scale() -> None:
    """Points: forward (scale * rotation * flip * turn) undoes ``affine``."""
    angle, factor = math.radians(10), 1.25
    augment = Augment(rot90_flip_p=1, rotation_p=1, rotation_degrees=10, scale_p=1, scale=(factor, factor), gamma_p=0)
    parameters = augment.sample(50, rng())
    draws = rng()
    _, turn, axis = torch.rand(50, 3, generator=draws).unbind(1)
    _, where = torch.rand(50, 2, generator=draws).unbind(1)
    for i in range(50):
        k, theta = int(turn[i] * 4), angle * (2 * float(where[i]) - 1)
        quarter = torch.linalg.matrix_power(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), k)
        flip = torch.diag(torch.tensor([1.0, -1.0] if int(axis[i] * 2) == 0 else [-1.0, 1.0]))
        cos, sin = math.cos(theta), math.sin(theta)
        forward = factor * torch.tensor([[cos, sin], [-sin, cos]]) @ flip @ quarter
        torch.testing.assert_close(forward @ parameters.affine[i], torch.eye(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batched_equals_one_by_one(dtype: torch.dtype) -> None:
    images, labels = batch(9)
    parameters = Augment().sample(9, rng())
    together = apply(images.to(dtype), labels, parameters)
    for i in range(9):
        row = parameters.select(torch.tensor([i]))
        alone = apply(images[i : i + 1].to(dtype), labels[i : i + 1], row)
        torch.testing.assert_close(alone[0][0], together[0][i], atol=1e-6 if dtype == torch.float32 else 1e-12, rtol=0)
        assert torch.equal(alone[1][0], together[1][i])


def test_all_slices_of_a_window_get_the_same_draw() -> None:
    images, labels = batch(20, depth=1)
    parameters = Augment().sample(20, rng())
    deep = apply(images.repeat(1, 5, 1, 1), labels.repeat(1, 5, 1, 1), parameters)
    flat = apply(images, labels, parameters)
    for slice_number in range(5):
        torch.testing.assert_close(deep[0][:, slice_number], flat[0][:, 0], atol=1e-6, rtol=0)
        assert torch.equal(deep[1][:, slice_number], flat[1][:, 0])


def test_draws_are_seeded_and_about_half() -> None:
    first, again, other = (Augment().sample(2000, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.affine, again.affine)
    assert torch.equal(first.gamma, again.gamma)
    assert not torch.equal(first.gamma, other.gamma)
    assert float((first.gamma != 1).float().mean()) == pytest.approx(0.5, abs=0.04)
    drawn = first.gamma[first.gamma != 1]
    assert 0.5 <= float(drawn.min()) < 0.6
    assert 3.4 < float(drawn.max()) <= 3.5
    moved = (first.affine != torch.eye(2)).any(2).any(1)
    assert float(moved.float().mean()) == pytest.approx(1 - 0.5**3, abs=0.03)
    turned = torch.linalg.det(first.affine) < 0  # a flip reverses orientation
    assert float(turned.float().mean()) == pytest.approx(0.5, abs=0.04)
    zoom = torch.linalg.det(first.affine).abs().rsqrt()
    assert 0.8 - 1e-6 <= float(zoom.min()) < 0.82
    assert 1.18 < float(zoom.max()) <= 1.2 + 1e-6


def test_a_batch_of_the_mini_model_costs_little() -> None:
    """Well below a training step (about 100 ms); the best of several runs, so that a busy machine does not decide."""
    images, labels = batch(16, size=64, depth=1)
    parameters = Augment().sample(16, rng())
    times = []
    for _ in range(20):
        start = time.perf_counter()
        apply(images, labels, parameters)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"rotation_p: expected a probability .* got 2; scale: .* got \(1.2, 0.8\)"):
        Augment(rotation_p=2, scale=(1.2, 0.8))
    with pytest.raises(ValueError, match=r"gamma: expected two positive numbers, the smaller first, got \(0, 1\)"):
        Augment(gamma=(0, 1))
    with pytest.raises(ValueError, match=r"square images .* got images \(6, 2, 12, 10\) and 6 rows"):
        apply(batch()[0][..., :10], batch()[1][..., :10], NoAugment().sample(6, rng()))
    assert set(AUGMENTS) == {"standard", "none"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_equals_cpu() -> None:
    images, labels = batch(16)
    parameters = Augment().sample(16, rng())
    there = apply(images.cuda(), labels.cuda(), parameters)
    here = apply(images, labels, parameters)
    torch.testing.assert_close(there[0].cpu(), here[0], atol=1e-4, rtol=0)
    assert float((there[1].cpu() != here[1]).float().mean()) < 0.01  # ties between two pixels may fall differently
