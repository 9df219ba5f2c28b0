"""The cameras: each constant does to a picture what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from wardround.datasets.camera import (
    CAMERAS,
    DIFFICULTIES,
    JITTER,
    REFERENCE,
    Camera,
    _compressed,
    make_camera,
    take,
)
from wardround.datasets.lesion import draw_lesion

LESION = draw_lesion("reticular", 0.1, 1.0, 1.0, np.random.default_rng(0))
PLAIN = Camera(gradient=0, vignette=0, blur=0.3, noise=0, coarse=0, hair=0, ruler=0, bubbles=0)


def picture(size: int = 32, seed: int = 0, **constants: float) -> NDArray[np.float64]:
    """The same view of the same lesion with another camera."""
    return take(LESION, replace(PLAIN, **constants), size, np.random.default_rng(seed)).astype(float)


def test_same_stream_same_picture() -> None:
    assert np.array_equal(picture(), picture())
    assert not np.array_equal(picture(), picture(seed=1))


def test_white_balance_multiplies_colours() -> None:
    """Without clipping red is half, and green stays."""
    plain, half = picture(), picture(red=0.5)
    assert np.allclose(half[..., 0], plain[..., 0] / 2, atol=1)
    assert np.array_equal(half[..., 1:], plain[..., 1:])


def test_gamma_is_an_exponent() -> None:
    assert np.allclose(picture(gamma=2.0) / 255, (picture() / 255) ** 2, atol=0.01)


def test_light_falls_off_to_the_corners_and_rises_to_one_side() -> None:
    """Vignette v: 1 - v in the corners, where the distance from the middle is sqrt(2); gradients keep the mean."""
    corner = picture(vignette=0.5)[0, 0] / picture()[0, 0]
    assert corner == pytest.approx([0.5] * 3, abs=0.05)
    ratio = (picture(gradient=0.3, exposure=0.6) / picture(exposure=0.6)).mean(axis=-1)
    assert ratio.max() > 1.15
    assert ratio.min() < 0.85
    assert ratio.mean() == pytest.approx(1, abs=0.03)


def test_mask_darkens_what_is_outside_a_circle() -> None:
    masked, plain = picture(mask=1.0), picture()
    assert masked[0, 0].max() < 3
    assert np.allclose(masked[8:24, 8:24], plain[8:24, 8:24], atol=2)


def test_blur_and_noise() -> None:
    rough = [np.abs(np.diff(picture(blur=blur), axis=0)).mean() for blur in (0.3, 1.5, 4.0)]
    assert rough[0] > rough[1] > rough[2]
    noisy = picture(noise=0.05, exposure=0.6) - picture(exposure=0.6)
    assert noisy.std() / 255 == pytest.approx(0.05, rel=0.1)


def test_zoom_shows_more_skin() -> None:
    """The picture from farther away is brighter, since skin is brighter than the lesion."""
    assert picture(zoom=3.0).mean() > picture(zoom=1.5).mean() + 5


@pytest.mark.parametrize("what", ["hair", "bubbles", "ruler"])
def test_artefacts_appear_as_often_as_asked(what: str) -> None:
    without = picture(size=48)
    many = picture(size=48, **{what: 1.0 if what == "ruler" else 5.0})
    changed = (np.abs(many - without).max(axis=-1) > 20).mean()
    assert 0.005 < changed < 0.5


@pytest.mark.parametrize("shape", [(16, 24, 3), (13, 17, 3)])
def test_compression_rounds_more_with_larger_steps(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).uniform(size=shape)
    assert _compressed(image, 0.0) is image
    errors = [np.abs(_compressed(image, coarse) - image).mean() for coarse in (1e-6, 0.01, 0.05)]
    assert errors[0] < 1e-4
    assert errors[0] < errors[1] < errors[2]


def test_compression_keeps_a_grey_block() -> None:
    """A constant block of grey g has one frequency, 8 g; the step there is 8 * coarse / 2, and 0.5 is a multiple."""
    grey = np.full((8, 8, 3), 0.5)
    assert np.allclose(_compressed(grey, 0.1), grey, atol=1e-3)
    assert np.allclose(_compressed(np.full((8, 8, 3), 0.52), 0.1), grey, atol=2e-3)


def test_shift_leads_from_the_reference_to_the_kinds() -> None:
    """A fraction of the shift is a fraction of the way; without it all cameras are the reference."""
    medium = DIFFICULTIES["medium"]

    def camera(shift: float) -> Camera:
        return make_camera(1, replace(medium, shift=shift), np.random.default_rng(0))

    assert camera(0.0) == REFERENCE
    assert camera(0.5).red == pytest.approx((REFERENCE.red + camera(1.0).red) / 2)
    assert abs(camera(1.0).red - CAMERAS[1].red) < 4 * JITTER.red


def test_difficulty_multiplies_noise_and_artefacts() -> None:
    easy, hard = (
        make_camera(2, replace(DIFFICULTIES[name], shift=1.0), np.random.default_rng(0)) for name in ("easy", "hard")
    )
    assert hard.noise / easy.noise == pytest.approx(1.75 / 0.5)
    assert hard.hair / easy.hair == pytest.approx(1.6 / 0.5)
