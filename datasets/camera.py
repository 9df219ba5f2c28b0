"""Procedural dermatoscopes: what turns a lesion into a hospital's picture.

Per hospital: white balance, contrast curve, illumination (brighter on one side, darker towards the corners, a round
mask), blur, magnification, noise, coarseness of the compression, and how often hair, a ruler or bubbles are in the
picture; and how dark the skin of its patients is. There are a few kinds of camera that differ clearly; further
hospitals get one of them with other random details.

Legend: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from .lesion import Array, Lesion, Points, show

BLOCK = 8
"""Side of the blocks of the compression, as in JPEG."""
LUMA = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
"""From red, green and blue to brightness and two differences of colour (ITU-R BT.601)."""
COLOURS = np.linalg.inv(LUMA)


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """What makes a federation of pictures easy or hard.

    Args:
        separation: How far the kinds of lesion are from what they have in common; 1: as in ``lesion.KINDS``.
        spread: Multiplies how much lesions of a kind differ.
        shift: How far the hospitals' cameras are from a common one; 0: all alike, 1: as in :data:`CAMERAS`.
        noise: Multiplies every camera's noise.
        artefacts: Multiplies how often hair, rulers and bubbles are in a picture.
    """

    separation: float
    spread: float
    shift: float
    noise: float
    artefacts: float


DIFFICULTIES: Mapping[str, Difficulty] = {
    "easy": Difficulty(separation=1.25, spread=0.6, shift=0.6, noise=0.5, artefacts=0.5),
    "medium": Difficulty(separation=1.0, spread=1.0, shift=1.0, noise=1.0, artefacts=1.0),
    "hard": Difficulty(separation=0.75, spread=1.15, shift=1.3, noise=1.75, artefacts=1.6),
}


@dataclass(frozen=True, kw_only=True)
class Camera:
    """The constants of one hospital.

    Args:
        red: Gain of red, relative to green.
        blue: Gain of blue, relative to green.
        gamma: Exponent of the contrast curve.
        exposure: Gain of all colours.
        gradient: How much brighter the one side is than the middle.
        vignette: How much darker the corners are.
        mask: How dark the field is outside a circle that touches the borders, 0 to 1.
        blur: Standard deviation of the point spread, in 64ths of a picture.
        zoom: Half the width of a picture, in radii of a lesion.
        noise: Standard deviation; white is 1.
        coarse: Step of the compression at the lowest frequency; white is 1.
        hair: Mean number of hairs in a picture.
        ruler: Fraction of pictures with a ruler in them.
        bubbles: Mean number of bubbles of gel.
        tone: Mean melanin of the patients' skin.
    """

    red: float = 1.0
    blue: float = 1.0
    gamma: float = 1.0
    exposure: float = 1.0
    gradient: float = 0.08
    vignette: float = 0.12
    mask: float = 0.0
    blur: float = 0.5
    zoom: float = 1.7
    noise: float = 0.02
    coarse: float = 0.015
    hair: float = 0.8
    ruler: float = 0.08
    bubbles: float = 0.3
    tone: float = 0.10


REFERENCE = Camera()
"""What the cameras have in common."""

CAMERAS: tuple[Camera, ...] = (
    Camera(red=1.04, blue=1.06, zoom=1.55, blur=0.35, noise=0.012, coarse=0.008, hair=0.6, tone=0.06),
    Camera(red=1.16, blue=0.78, gamma=0.85, vignette=0.35, zoom=1.8, blur=0.7, coarse=0.018, ruler=0.2, tone=0.14),
    Camera(red=0.86, blue=1.18, gamma=1.25, gradient=0.25, zoom=2.0, noise=0.035, hair=2.0, bubbles=1.0, tone=0.10),
    Camera(red=1.06, blue=0.98, exposure=0.88, mask=0.9, blur=0.55, zoom=1.65, noise=0.03, coarse=0.02, tone=0.22),
    Camera(red=1.02, blue=0.88, gamma=1.4, exposure=1.1, gradient=0.18, blur=0.85, coarse=0.026, hair=1.2, ruler=0.3),
    Camera(red=0.95, blue=1.05, gamma=0.75, exposure=0.92, zoom=1.45, blur=0.45, noise=0.045, bubbles=0.6, tone=0.30),
)
"""A crisp one, a warm one with dark corners, a cold noisy one from afar, one with a round mask, one that compresses
much, and one from near with a flat curve."""

JITTER = Camera(
    red=0.03, blue=0.03, gamma=0.05, exposure=0.03, gradient=0.02, vignette=0.03, mask=0.0, blur=0.05, zoom=0.05,
    noise=0.003, coarse=0.003, hair=0.15, ruler=0.03, bubbles=0.1, tone=0.02,
)  # fmt: skip
"""Standard deviation between two cameras of one kind."""


def make_camera(number: int, difficulty: Difficulty, rng: np.random.Generator) -> Camera:
    """One hospital's camera: ``reference + shift (kind + jitter * normal - reference)``.

    Args:
        number: Of the hospital, from 0; the kinds are given in turn.
        difficulty: Shift, noise and artefacts.
        rng: Draws the details.
    """
    kind = CAMERAS[number % len(CAMERAS)]
    values = {}
    for field in fields(Camera):
        common, own, jitter = (getattr(camera, field.name) for camera in (REFERENCE, kind, JITTER))
        values[field.name] = max(0.0, common + difficulty.shift * (own + jitter * rng.normal() - common))
    camera = Camera(**values)
    return replace(
        camera,
        noise=camera.noise * difficulty.noise,
        mask=min(camera.mask, 1.0),
        hair=camera.hair * difficulty.artefacts,
        ruler=camera.ruler * difficulty.artefacts,
        bubbles=camera.bubbles * difficulty.artefacts,
    )


def take(lesion: Lesion, camera: Camera, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One picture of a lesion, seen from a new side.

    ``compress(noise(curve(white balance * blur(illumination * what lies on the lesion))))``.

    Args:
        lesion: What is shown.
        camera: Takes it.
        size: H = W.
        rng: Draws view, light, hair and noise.

    Returns:
        (H, W, 3) uint8.
    """
    points = _view(camera, size, rng)
    light = show(lesion, points)
    light = _with_hair(light, points, rng.poisson(camera.hair), rng)
    light = _with_bubbles(light, points, rng.poisson(camera.bubbles), rng)
    if rng.uniform() < camera.ruler:
        light = _with_ruler(light, points, rng)
    light = light * _illumination(camera, points, rng)[..., None]
    blur = camera.blur * size / 64 * rng.uniform(0.7, 1.5)
    light = gaussian_filter(light, (blur, blur, 0))
    gains = np.array([camera.red, 1.0, camera.blue]) * camera.exposure * rng.uniform(0.93, 1.07)
    picture = np.clip(light * gains, 0, 1) ** camera.gamma + camera.noise * rng.normal(size=light.shape)
    return np.round(255 * np.clip(_compressed(picture, camera.coarse), 0, 1)).astype(np.uint8)


def _view(camera: Camera, size: int, rng: np.random.Generator) -> Points:
    """Turned by any angle, shifted by a tenth, and a tenth nearer or farther."""
    axis = np.asarray((np.arange(size) - (size - 1) / 2) / (size / 2), np.float64)
    angle, zoom = rng.uniform(0, 2 * np.pi), camera.zoom * np.exp(0.1 * rng.normal())
    columns = zoom * np.array([np.cos(angle), np.sin(angle)])
    rows = zoom * np.array([-np.sin(angle), np.cos(angle)])
    return Points(rows=axis, columns=axis, frame=(0.1 * zoom * rng.normal(size=2), rows, columns))


def _illumination(camera: Camera, points: Points, rng: np.random.Generator) -> Array:
    """(H, W): brighter on one side, darker towards the corners, and outside the mask."""
    y, x = points.rows[:, None], points.columns[None, :]
    angle = rng.normal(scale=0.5)  # the lamp sits on one side of the instrument
    far = np.hypot(y, x)
    field = 1 + camera.gradient * (x * np.cos(angle) + y * np.sin(angle)) - camera.vignette * far**2 / 2
    return np.asarray(np.clip(field, 0, None) * (1 - camera.mask * expit((far - 0.99) / 0.02)))


def _with_hair(light: Array, points: Points, number: int, rng: np.random.Generator) -> Array:
    """Dark curved lines across the picture."""
    y, x = points.rows[:, None], points.columns[None, :]
    for _ in range(number):
        angle, offset, bend = rng.uniform(0, np.pi), rng.uniform(-0.9, 0.9), rng.normal(scale=0.25)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        distance = across - offset - bend * along**2
        cover = rng.uniform(0.5, 0.9) * np.exp(-((distance / rng.uniform(0.015, 0.03)) ** 2))
        light = light * (1 - cover[..., None]) + cover[..., None] * np.array([0.16, 0.11, 0.09])
    return light


def _with_bubbles(light: Array, points: Points, number: int, rng: np.random.Generator) -> Array:
    """Bright rings with a highlight."""
    y, x = points.rows[:, None], points.columns[None, :]
    for _ in range(number):
        row, column, radius = *rng.uniform(-0.95, 0.95, 2), rng.uniform(0.04, 0.14)
        far = np.hypot(y - row, x - column)
        spot = np.hypot(y - row + radius / 2, x - column + radius / 2)
        glow = 0.35 * np.exp(-(((far - radius) / 0.02) ** 2)) + 0.6 * np.exp(-((spot / 0.03) ** 2))
        light = light + glow[..., None] * (1 - light)
    return light


def _with_ruler(light: Array, points: Points, rng: np.random.Generator) -> Array:
    """Dark ticks along one border."""
    y, x = points.rows[:, None], points.columns[None, :]
    along, depth = (x, 1 - y) if rng.uniform() < 0.5 else (y, 1 - x)
    ticks = np.exp(-((np.mod(along + rng.uniform(0, 0.2), 0.2) - 0.1) ** 2) / 0.02**2)
    cover = 0.85 * ticks * expit((0.2 - depth) / 0.02)
    return np.asarray(light * (1 - cover[..., None]))


def _compressed(picture: Array, coarse: float) -> Array:
    """Frequencies of blocks rounded to steps that grow with the frequency, as in JPEG; twice as much for colours.

    Args:
        picture: (H, W, 3).
        coarse: Step at the lowest frequency; 0: nothing is rounded.
    """
    if coarse == 0:
        return picture
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((0, -height % BLOCK), (0, -width % BLOCK), (0, 0)), mode="edge") @ LUMA.T
    blocks = padded.reshape(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK, 3)
    frequency = np.add.outer(np.arange(BLOCK), np.arange(BLOCK))[:, None, :, None]
    step = BLOCK * coarse * (1 + 0.5 * frequency) / 2 * np.array([1.0, 2.0, 2.0])
    kept = step * np.round(dctn(blocks, axes=(1, 3), norm="ortho") / step)
    return np.asarray((idctn(kept, axes=(1, 3), norm="ortho").reshape(padded.shape) @ COLOURS.T)[:height, :width])
