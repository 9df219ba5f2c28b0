"""Procedural anatomy: soft shapes that differ from subject to subject, with distractors that look like the target.

An anatomy is a map of tissues, not of intensities: what a tissue looks like is the scanner's business
(:mod:`~wardround.datasets.scanner`). All shapes are functions of a position in millimetres, so that one subject could
be imaged on any grid.

Legend: S slices, H rows (anterior at the top), W columns; position z (up), y (to the back), x (to the right).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Points = tuple[Array, Array, Array]
"""z, y and x of every voxel, each (S, H, W), in mm."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One subject on one grid.

    Args:
        tissue: (S, H, W) uint8, positions in ``Family.tissues``.
        label: (S, H, W) uint8, 0..C, nested: label 2 lies inside label 1.
    """

    tissue: NDArray[np.uint8]
    label: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Positions in millimetres along the three axes: ``z`` (S,), ``y`` (H,), ``x`` (W,)."""

    z: Array
    y: Array
    x: Array

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, H, W)."""
        return (len(self.z), len(self.y), len(self.x))

    def points(self, shift: Points) -> Points:
        """The position of every voxel, moved by three (S, H, W) fields."""
        return (self.z[:, None, None] + shift[0], self.y[None, :, None] + shift[1], self.x[None, None, :] + shift[2])


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of image.

    Args:
        classes: Names of labels 1..C.
        modality: As ``dataset.json`` calls it.
        tissues: Base intensity of every tissue, 0 (air) to 1.
        field_mm: Height and width of the imaged region.
        cover_mm: Its extent across slices.
        grow: Makes a subject on a grid.
    """

    classes: tuple[str, ...]
    modality: str
    tissues: Mapping[str, float]
    field_mm: float
    cover_mm: float
    grow: Callable[[Grid, np.random.Generator], Anatomy]


def waves(grid: Grid, wavelength_mm: float, rng: np.random.Generator, number: int = 6) -> Array:
    """A smooth random field (S, H, W) of mean 0 and variance 1: plane waves of random direction and phase.

    A plane wave is a product over the axes, ``exp(i kz z) exp(i ky y) exp(i kx x)``: this is one matrix product.

    Args:
        grid: Where.
        wavelength_mm: Distance between two crests, about.
        rng: Draws directions, lengths and phases.
        number: Waves that are summed.
    """
    direction = rng.normal(size=(number, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    k = direction * (2 * np.pi / wavelength_mm / rng.uniform(0.7, 1.4, size=(number, 1)))  # (number, 3)
    phase = rng.uniform(0, 2 * np.pi, size=number)
    z, y, x = (np.exp(1j * np.outer(axis, k[:, i])) for i, axis in enumerate((grid.z, grid.y, grid.x)))
    plane = (z * np.exp(1j * phase))[:, None, :] * y[None, :, :]  # (S, H, number)
    return np.asarray((plane.real @ x.real.T - plane.imag @ x.imag.T) * np.sqrt(2 / number))


def ellipsoid(points: Points, centre: Array, axes: Array) -> Array:
    """Distance from the centre in units of the half axes: below 1 inside. Centre and axes are (z, y, x) in mm."""
    offset = [(position - c) / a for position, c, a in zip(points, centre, axes, strict=True)]
    return np.asarray(np.sqrt(offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2))


class _Canvas:
    """A tissue map that is painted from the back to the front."""

    def __init__(self, names: Mapping[str, float], shape: tuple[int, ...]) -> None:
        self.number = {name: position for position, name in enumerate(names)}
        self.tissue = np.zeros(shape, np.uint8)

    def paint(self, name: str, where: Mask) -> None:
        self.tissue[np.broadcast_to(where, self.tissue.shape)] = self.number[name]

    def where(self, *names: str) -> Mask:
        return np.isin(self.tissue, [self.number[name] for name in names])


BRAIN_TISSUES = {
    "air": 0.0, "scalp": 0.88, "skull": 0.06, "csf": 0.12, "grey": 0.44, "white": 0.36,
    "edema": 0.74, "core": 1.00, "spot": 0.74, "vessel": 1.00,
}  # fmt: skip
"""Fluid dark, edema bright, its core brighter, the skin in between. Spots look like edema and vessels like core."""


def brain(grid: Grid, rng: np.random.Generator) -> Anatomy:
    """A head with a tumour: edema around a core; white-matter spots and vessels of the same intensity distract."""
    canvas = _Canvas(BRAIN_TISSUES, grid.shape)
    points = grid.points((3 * waves(grid, 130, rng), 3 * waves(grid, 130, rng), 3 * waves(grid, 130, rng)))
    inside = _paint_head(canvas, grid, points, rng) < 0.80
    _paint_ventricles(canvas, points, rng)
    for name, count, low, high in (("spot", rng.integers(1, 5), 4, 10), ("vessel", rng.integers(1, 4), 4, 8)):
        for _ in range(int(count)):
            blob = ellipsoid(points, _somewhere(rng), rng.uniform(low, high) * rng.uniform(0.7, 1.3, 3))
            canvas.paint(name, (blob < 1) & inside & ~canvas.where("csf"))
    return Anatomy(label=_paint_tumour(canvas, inside, grid, points, rng), tissue=canvas.tissue)


def _paint_head(canvas: _Canvas, grid: Grid, points: Points, rng: np.random.Generator) -> Array:
    """Scalp, skull, fluid, folded grey and white matter; returns the distance from the middle, 1 at the skin."""
    axes = np.array([80.0, 95.0, 76.0]) * rng.uniform(0.93, 1.07, 3)
    r = ellipsoid(points, np.zeros(3), axes) + 0.015 * waves(grid, 70, rng)
    folds = waves(grid, 20, rng)
    canvas.paint("scalp", r < 1)
    canvas.paint("skull", r < 0.94)
    canvas.paint("csf", r < 0.88)
    canvas.paint("grey", r < 0.83 + 0.03 * folds)
    canvas.paint("white", r < 0.66 + 0.07 * folds)
    canvas.paint("csf", (np.abs(points[2]) < 2.0) & (r < 0.83) & (r > 0.45))  # between the hemispheres
    return r


def _paint_ventricles(canvas: _Canvas, points: Points, rng: np.random.Generator) -> None:
    """Two ventricles and the grey nuclei beside them."""
    width, length = rng.uniform(0.7, 1.5), rng.uniform(0.8, 1.2)
    for side in (-1, 1):
        nucleus = ellipsoid(points, np.array([-6.0, 4.0, side * 18.0]), np.array([11.0, 16.0, 8.0]))
        ventricle = ellipsoid(points, np.array([6.0, -2.0, side * 10.0]), np.array([14.0, 28 * length, 6.5 * width]))
        canvas.paint("grey", nucleus < 1)
        canvas.paint("csf", ventricle < 1)


def _somewhere(rng: np.random.Generator) -> Array:
    """A position (z, y, x) inside the brain, off the midline."""
    side = rng.choice([-1.0, 1.0])
    return np.array([rng.uniform(-32, 32), rng.uniform(-48, 48), side * rng.uniform(18, 42)])


def _paint_tumour(
    canvas: _Canvas, inside: Mask, grid: Grid, points: Points, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Edema that spares the ventricles, and a core somewhere in its middle; returns the labels."""
    centre, axes = _somewhere(rng), rng.uniform(28, 40, 3)
    edema = ellipsoid(points, centre, axes) + 0.12 * waves(grid, 40, rng)
    core_axes = axes * rng.uniform(0.45, 0.65)
    core = ellipsoid(points, centre + 0.15 * axes * rng.uniform(-1, 1, 3), core_axes) + 0.10 * waves(grid, 30, rng)
    whole = (edema < 1) & inside & ~canvas.where("csf")
    canvas.paint("edema", whole)
    canvas.paint("core", whole & (core < 1))
    return (whole.astype(np.uint8) + (whole & (core < 1))).astype(np.uint8)


FAMILIES: Mapping[str, Family] = {
    "brain_mr": Family(
        classes=("edema", "core"), modality="MRI", tissues=BRAIN_TISSUES, field_mm=224, cover_mm=112, grow=brain
    ),
}
