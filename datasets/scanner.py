"""Procedural scanners: what turns an anatomy into a hospital's volume.

Per hospital: contrast curve, brightness of each tissue, bias field, noise, blur, slice thickness, field of view, tilt
of the slices and the convention in which intensities are stored. Four kinds of scanner differ clearly; further
hospitals get one of them with other random details.

Legend: S slices, H rows, W columns, F fine slices per slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from .anatomy import Anatomy, Array, Family, Grid, waves

Convention = Literal["uint8", "int16", "float_1e3", "float_1e5"]
FINE = 4
"""Fine slices per slice: a slice is the mean of what lies in its thickness (partial volume)."""


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """The constants of one hospital.

    Args:
        size: Rows and columns.
        slices: Slices of a volume.
        pixel_mm: In-plane spacing.
        thickness_mm: Slice spacing and thickness.
        gamma: Exponent of the contrast curve.
        brightness: Added to the base intensity of each tissue.
        bias: Relative strength of the bias field.
        noise: Standard deviation of the (Rician) noise; the brightest tissue is about 1.
        blur_mm: Standard deviation of the in-plane point spread.
        tilt_deg: Rotation of the slices about the left-right axis, in the header only.
        convention: How intensities are stored.
    """

    size: int
    slices: int
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
    """What is typical of a kind of scanner; the field of view and thickness are relative to the family's."""

    zoom: float
    thickness: float
    size: float
    gamma: float
    bias: float
    noise: float
    blur: float
    convention: Convention


KINDS: tuple[Kind, ...] = (
    Kind(zoom=1.00, thickness=1.0, size=1.00, gamma=1.0, bias=0.10, noise=0.02, blur=0.5, convention="uint8"),
    Kind(zoom=1.12, thickness=0.8, size=0.875, gamma=1.6, bias=0.25, noise=0.035, blur=0.7, convention="int16"),
    Kind(zoom=0.95, thickness=1.2, size=0.75, gamma=0.75, bias=0.30, noise=0.045, blur=0.8, convention="float_1e5"),
    Kind(zoom=1.05, thickness=1.45, size=1.125, gamma=1.2, bias=0.20, noise=0.04, blur=0.9, convention="float_1e3"),
)
"""A crisp 3 T machine, a 1.5 T one with steep contrast, a noisy low-field one, and one that images fast and thick."""


def make_scanner(family: Family, kind: Kind, size: int, slices: int, shift: float, rng: np.random.Generator) -> Scanner:
    """One hospital's scanner.

    Args:
        family: Gives field of view and cover.
        kind: What it resembles.
        size: Rows of a scanner of relative size 1.
        slices: Slices of a scanner of relative thickness 1.
        shift: How much tissues differ in brightness between hospitals (standard deviation).
        rng: Draws the details.
    """
    pixels = max(8, 2 * round(size * kind.size / 2))
    number = max(1, round(slices / kind.thickness))
    field = family.field_mm * kind.zoom * rng.uniform(0.97, 1.03)
    pixel = field / pixels
    return Scanner(
        size=pixels,
        slices=number,
        pixel_mm=round(pixel, 4),
        thickness_mm=round(family.cover_mm / number, 4),
        gamma=kind.gamma * rng.uniform(0.92, 1.08),
        brightness={name: shift * rng.normal() for name in family.tissues},
        bias=kind.bias,
        noise=kind.noise,
        blur_mm=kind.blur * family.field_mm / size,
        tilt_deg=rng.uniform(-12, 12),
        convention=kind.convention,
    )


def fine_grid(scanner: Scanner) -> Grid:
    """The scanner's grid with every slice cut in F, the middle of the volume at 0."""

    def axis(number: int, step: float) -> Array:
        return np.asarray((np.arange(number) - (number - 1) / 2) * step, np.float64)

    plane = axis(scanner.size, scanner.pixel_mm)
    return Grid(z=axis(scanner.slices * FINE, scanner.thickness_mm / FINE), y=plane, x=plane)


def acquire(
    family: Family, scanner: Scanner, anatomy: Anatomy, rng: np.random.Generator
) -> tuple[Array, NDArray[np.uint8]]:
    """Images an anatomy that was grown on :func:`fine_grid`.

    ``noise(thick slices(blur(bias * texture * curve(tissue intensity))))``. A voxel has a label where most of its
    thickness has it.

    Returns:
        The image (S, H, W), about 0 to 1, before storage, and the labels (S, H, W) uint8.
    """
    grid = fine_grid(scanner)
    texture = 1 + 0.04 * waves(grid, 25, rng)
    bias = 1 + scanner.bias * np.clip(waves(grid, 400, rng, number=3) / 1.5, -1, 1)
    fine = _intensities(family, scanner, rng)[anatomy.tissue] * texture * bias
    blur = scanner.blur_mm / scanner.pixel_mm
    image = _thick(gaussian_filter(fine, (0, blur, blur)), scanner.slices)
    real, imaginary = scanner.noise * rng.normal(size=(2, *image.shape))
    label = np.zeros(image.shape, np.uint8)
    for number in range(1, len(family.classes) + 1):
        label += _thick(anatomy.label >= number, scanner.slices) >= 0.5
    return np.hypot(image + real, imaginary), label


def _intensities(family: Family, scanner: Scanner, rng: np.random.Generator) -> Array:
    """The intensity of each tissue in one subject."""
    base = np.array([value + scanner.brightness[name] for name, value in family.tissues.items()])
    values = np.clip(base + 0.02 * rng.normal(size=len(base)), 0, 1.2) ** scanner.gamma
    return np.where(np.array(list(family.tissues)) == "air", 0.0, values)


def _thick(fine: NDArray[Any], slices: int) -> Array:
    """(S * F, H, W) to (S, H, W): the mean over the thickness of each slice."""
    return np.asarray(fine.reshape(slices, FINE, *fine.shape[1:]).mean(axis=1))


def store(image: Array, convention: Convention) -> NDArray[Any]:
    """Intensities as the hospital's files have them; rounded, so that the last bits of a sum do not show."""
    if convention == "uint8":
        return np.clip(np.round(image * 220), 0, 255).astype(np.uint8)
    if convention == "int16":
        return np.round(image * 1400 - 200).astype(np.int16)
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
