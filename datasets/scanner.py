"""Procedural scanners: what turns an anatomy into a hospital's volume.

Per hospital: contrast curve, brightness of each tissue, dose of contrast agent, bias field, noise, blur, slice
thickness, field of view, tilt of the slices and the convention in which intensities are stored. Each family has a few
kinds of scanner that differ clearly; further hospitals get one of them with other random details.

Legend: S slices, H rows, W columns, F fine slices per slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from .anatomy import Anatomy, Array, Challenge, Family, Grid, waves

Convention = Literal["uint8", "int16", "float_1e3", "float_1e5", "hu", "hu_float"]
FINEST_MM = 1.7
"""A slice is the mean of what lies in its thickness (partial volume): of fine slices of at least this thickness."""
FINE = 4
"""Fine slices per slice, at most."""
SLAB_VOXELS = 1 << 20
"""Fine voxels that are made at once, about: 0.2 GB of working memory."""


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """What makes a federation of phantoms easy or hard.

    Args:
        noise: Multiplies every scanner's noise.
        shift: How differently hospitals show a tissue (standard deviation; the brightest tissue is about 1).
        contrast: Multiplies the contrast between a target and the tissue it is told apart from.
        distractors: Multiplies the number of structures that look like the target.
        size: Multiplies the diameters of the target.
    """

    noise: float
    shift: float
    contrast: float
    distractors: float
    size: float

    @property
    def challenge(self) -> Challenge:
        """The part that concerns anatomy."""
        return Challenge(distractors=self.distractors, size=self.size)


DIFFICULTIES: Mapping[str, Difficulty] = {
    "easy": Difficulty(noise=0.5, shift=0.02, contrast=1.25, distractors=0.5, size=1.15),
    "medium": Difficulty(noise=1.0, shift=0.04, contrast=1.0, distractors=1.0, size=1.0),
    "hard": Difficulty(noise=1.75, shift=0.08, contrast=0.75, distractors=1.75, size=0.85),
}


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """The constants of one hospital.

    Args:
        size: Rows and columns.
        slices: Slices of a volume.
        fine: F.
        pixel_mm: In-plane spacing.
        thickness_mm: Slice spacing and thickness.
        gamma: Exponent of the contrast curve.
        brightness: Added to the base intensity of each tissue: the hospital's own deviation, and contrast agent.
        bias: Relative strength of the bias field.
        noise: Standard deviation of the (Rician) noise; the brightest tissue is about 1.
        blur_mm: Standard deviation of the in-plane point spread.
        tilt_deg: Rotation of the slices about the left-right axis, in the header only.
        convention: How intensities are stored.
    """

    size: int
    slices: int
    fine: int
    pixel_mm: float
    thickness_mm: float
    gamma: float
    brightness: Mapping[str, float]
    bias: float
    noise: float
    blur_mm: float
    tilt_deg: float
    convention: Convention


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is typical of a kind of scanner.

    Args:
        zoom: Field of view, relative to the family's.
        thickness: How much fewer slices a volume has than one asks for.
        size: Rows and columns, relative to the ones asked for.
        gamma: Exponent of the contrast curve.
        bias: Relative strength of the bias field.
        noise: Standard deviation.
        blur: Standard deviation, in pixels of the size asked for.
        convention: How intensities are stored.
        thickness_mm: Thickness of a slice, unless so many would cover more than the family does. None: the slices
            share the family's cover.
        agent: Dose of contrast agent, 0 to 1.
        tilt_deg: Largest rotation of the slices.
    """

    zoom: float
    thickness: float
    size: float
    gamma: float
    bias: float
    noise: float
    blur: float
    convention: Convention
    thickness_mm: float | None = None
    agent: float = 0.0
    tilt_deg: float = 12.0


HEAD_MR: tuple[Kind, ...] = (
    Kind(zoom=1.00, thickness=1.0, size=1.00, gamma=1.0, bias=0.10, noise=0.02, blur=0.5, convention="uint8"),
    Kind(zoom=1.12, thickness=0.8, size=0.875, gamma=1.6, bias=0.25, noise=0.035, blur=0.7, convention="int16"),
    Kind(zoom=0.95, thickness=1.2, size=0.75, gamma=0.75, bias=0.30, noise=0.045, blur=0.8, convention="float_1e5"),
    Kind(zoom=1.05, thickness=1.45, size=1.125, gamma=1.2, bias=0.20, noise=0.04, blur=0.9, convention="float_1e3"),
)
"""A crisp 3 T machine, a 1.5 T one with steep contrast, a noisy low-field one, and one that images fast and thick."""

HEAD_T1: tuple[Kind, ...] = (
    Kind(zoom=1.00, thickness=1.0, size=1.00, gamma=1.1, bias=0.15, noise=0.03, blur=0.6, convention="int16"),
    Kind(zoom=1.06, thickness=1.0, size=1.00, gamma=0.8, bias=0.35, noise=0.02, blur=0.5, convention="float_1e3"),
    Kind(zoom=0.94, thickness=1.0, size=0.875, gamma=1.5, bias=0.25, noise=0.05, blur=0.9, convention="uint8"),
)
"""1.5 T, 3 T with its uneven field, and an older 1.5 T machine of another maker."""


def _ct(
    thickness_mm: float,
    slices: float,
    *,
    zoom: float,
    size: float,
    noise: float,
    blur: float,
    agent: float,
    convention: Convention,
) -> Kind:
    """A CT scanner: calibrated, even, upright; ``slices`` times as many slices as one asks for."""
    return Kind(
        zoom=zoom, thickness=1 / slices, size=size, gamma=1.0, bias=0.0, noise=noise, blur=blur, convention=convention,
        thickness_mm=thickness_mm, agent=agent, tilt_deg=0.0,
    )  # fmt: skip


ABDOMEN_CT: tuple[Kind, ...] = (
    _ct(5.0, 1.00, zoom=1.00, size=1.000, noise=0.012, blur=0.7, agent=1.00, convention="hu"),
    _ct(2.5, 1.25, zoom=1.10, size=1.000, noise=0.018, blur=0.5, agent=0.75, convention="hu_float"),
    _ct(1.0, 1.60, zoom=0.95, size=1.000, noise=0.024, blur=0.5, agent=0.60, convention="hu"),
    _ct(3.0, 1.00, zoom=1.04, size=1.125, noise=0.016, blur=0.8, agent=0.85, convention="hu_float"),
    _ct(5.0, 1.00, zoom=0.98, size=0.875, noise=0.012, blur=0.6, agent=0.50, convention="hu"),
    _ct(0.5, 2.00, zoom=1.02, size=1.000, noise=0.030, blur=0.4, agent=0.70, convention="hu_float"),
)
"""Slices of 5 to 0.5 mm, the thinner the noisier; from nearly native to nephrographic phase."""

PELVIS_T2: tuple[Kind, ...] = (
    Kind(zoom=1.00, thickness=1.0, size=1.00, gamma=1.0, bias=0.10, noise=0.02, blur=0.5, convention="float_1e3"),
    Kind(zoom=0.80, thickness=0.9, size=0.875, gamma=0.8, bias=0.55, noise=0.05, blur=0.7, convention="uint8"),
    Kind(zoom=1.15, thickness=0.8, size=1.00, gamma=1.4, bias=0.15, noise=0.03, blur=0.6, convention="float_1e3"),
    Kind(zoom=0.95, thickness=1.1, size=1.00, gamma=1.15, bias=0.20, noise=0.035, blur=0.8, convention="uint8"),
    Kind(zoom=0.82, thickness=1.2, size=1.00, gamma=0.7, bias=0.60, noise=0.04, blur=0.6, convention="float_1e5"),
    Kind(zoom=1.08, thickness=1.3, size=0.875, gamma=1.6, bias=0.25, noise=0.04, blur=0.9, convention="uint8"),
)
"""3 T and 1.5 T; the second and fifth image with a coil in the rectum: a small field, brighter near the coil."""

KINDS: Mapping[str, tuple[Kind, ...]] = {
    "brain_mr": HEAD_MR, "kidney_ct": ABDOMEN_CT, "brain_t1": HEAD_T1, "prostate_mr": PELVIS_T2,
}  # fmt: skip


def make_scanner(
    family: Family, kind: Kind, size: int, slices: int, difficulty: Difficulty, rng: np.random.Generator
) -> Scanner:
    """One hospital's scanner.

    Args:
        family: Gives field of view, cover and tissues.
        kind: What it resembles.
        size: Rows of a scanner of relative size 1.
        slices: Slices of a scanner of relative thickness 1.
        difficulty: Noise, shift and contrast.
        rng: Draws the details.
    """
    pixels = max(8, 2 * round(size * kind.size / 2))
    number = max(1, round(slices / kind.thickness))
    field = family.field_mm * kind.zoom * rng.uniform(0.97, 1.03)
    thickness = min(kind.thickness_mm or math.inf, family.cover_mm / number)
    return Scanner(
        size=pixels,
        slices=number,
        fine=min(FINE, math.ceil(thickness / FINEST_MM)),
        pixel_mm=round(field / pixels, 4),
        thickness_mm=round(thickness, 4),
        gamma=kind.gamma * rng.uniform(0.92, 1.08),
        brightness=_brightness(family, kind, difficulty, rng),
        bias=kind.bias,
        noise=kind.noise * difficulty.noise,
        blur_mm=kind.blur * family.field_mm / size,
        tilt_deg=rng.uniform(-kind.tilt_deg, kind.tilt_deg),
        convention=kind.convention,
    )


def _brightness(family: Family, kind: Kind, difficulty: Difficulty, rng: np.random.Generator) -> dict[str, float]:
    """What is added to each tissue: chance, contrast agent, and for targets what raises or lowers their contrast."""
    agent = {name: kind.agent * family.enhance.get(name, 0.0) for name in family.tissues}
    level = {name: value + agent[name] for name, value in family.tissues.items()}
    contrast = dict.fromkeys(family.tissues, 0.0)
    for target, other in family.targets.items():
        contrast[target] = (difficulty.contrast - 1) * (level[target] - level[other])
    return {
        name: difficulty.shift * family.spread * rng.normal() + agent[name] + contrast[name] for name in family.tissues
    }


def slabs(scanner: Scanner) -> Iterator[range]:
    """The slices of a volume, in parts that are made one after the other; usually one part."""
    step = max(1, SLAB_VOXELS // (scanner.fine * scanner.size**2))
    return (range(first, min(first + step, scanner.slices)) for first in range(0, scanner.slices, step))


def fine_grid(scanner: Scanner, slab: range) -> Grid:
    """The scanner's grid for some slices, every slice cut in F; the middle of the whole volume is at 0."""

    def axis(number: int, step: float) -> Array:
        return np.asarray((np.arange(number) - (number - 1) / 2) * step, np.float64)

    plane = axis(scanner.size, scanner.pixel_mm)
    whole = axis(scanner.slices * scanner.fine, scanner.thickness_mm / scanner.fine)
    return Grid(z=whole[slab.start * scanner.fine : slab.stop * scanner.fine], y=plane, x=plane)


def acquire(
    family: Family, scanner: Scanner, anatomy: Anatomy, grid: Grid, rng: np.random.Generator
) -> tuple[Array, NDArray[np.uint8]]:
    """Images an anatomy that was grown on a part of :func:`fine_grid`, without noise.

    ``thick slices(blur(bias * texture * curve(tissue intensity)))``. A voxel has a label where most of its thickness
    has it.

    Returns:
        The image (S, H, W), about 0 to 1, before storage, and the labels (S, H, W) uint8.
    """
    texture = 1 + family.texture * waves(grid, 25, rng)
    bias = 1 + scanner.bias * np.clip(waves(grid, 400, rng, number=3) / 1.5, -1, 1)
    fine = _intensities(family, scanner, rng)[anatomy.tissue] * texture * bias
    blur = scanner.blur_mm / scanner.pixel_mm
    image = _thick(gaussian_filter(fine, (0, blur, blur)), scanner.fine)
    label = np.zeros(image.shape, np.uint8)
    for number in range(1, len(family.classes) + 1):
        label += _thick(anatomy.label >= number, scanner.fine) >= 0.5
    return image, label


def add_noise(image: Array, scanner: Scanner, rng: np.random.Generator) -> Array:
    """Rician noise; where the image is bright, as everywhere in CT but in the air, it is as good as Gaussian."""
    real, imaginary = scanner.noise * rng.normal(size=(2, *image.shape))
    return np.asarray(np.hypot(image + real, imaginary))


def _intensities(family: Family, scanner: Scanner, rng: np.random.Generator) -> Array:
    """The intensity of each tissue in one subject."""
    base = np.array([value + scanner.brightness[name] for name, value in family.tissues.items()])
    brightest = 1.2 * max(family.tissues.values())
    values = np.clip(base + 0.02 * family.spread * rng.normal(size=len(base)), 0, brightest) ** scanner.gamma
    return np.where(np.array(list(family.tissues)) == "air", 0.0, values)


def _thick(fine: NDArray[Any], number: int) -> Array:
    """(S * F, H, W) to (S, H, W): the mean over the F fine slices of each slice."""
    return np.asarray(fine.reshape(-1, number, *fine.shape[1:]).mean(axis=1))


def store(image: Array, convention: Convention) -> NDArray[Any]:
    """Intensities as the hospital's files have them; rounded, so that the last bits of a sum do not show."""
    if convention == "uint8":
        return np.clip(np.round(image * 220), 0, 255).astype(np.uint8)
    if convention == "int16":
        return np.round(image * 1400 - 200).astype(np.int16)
    if convention in ("hu", "hu_float"):
        hu = np.maximum(image * 1000 - 1000, -1024)
        return np.round(hu).astype(np.int16) if convention == "hu" else np.round(hu, 1).astype(np.float32)
    return np.round(image * (1e3 if convention == "float_1e3" else 1e5), 1).astype(np.float32)


def affine(scanner: Scanner) -> Array:
    """(4, 4) map of (row, column, slice) to NIfTI's world (left to right, back to front, up), in mm.

    Rows run to the back, columns to the patient's left as in radiology, slices up, tilted about the left-right axis.
    """
    tilt = np.deg2rad(scanner.tilt_deg)
    cos, sin = np.cos(tilt), np.sin(tilt)
    steps = np.zeros((4, 4))
    steps[:3, 0] = np.array([0, -cos, -sin]) * scanner.pixel_mm
    steps[:3, 1] = np.array([-1, 0, 0]) * scanner.pixel_mm
    steps[:3, 2] = np.array([0, -sin, cos]) * scanner.thickness_mm
    steps[3, 3] = 1
    middle = (np.array([scanner.size, scanner.size, scanner.slices]) - 1) / 2
    steps[:3, 3] = -steps[:3, :3] @ middle
    return steps
