"""Procedural anatomy: soft shapes that differ from subject to subject, with distractors that look like the target.

An anatomy is a map of tissues, not of intensities: what a tissue looks like is the scanner's business
(:mod:`~wardround.datasets.scanner`). All shapes are functions of a position in millimetres, so that one subject could
be imaged on any grid.

What is drawn for a subject does not depend on the grid: the same generator state gives the same subject on any part of
a grid, so that a large volume can be made slab by slab.

Legend: S slices, H rows (anterior at the top), W columns; position z (up), y (to the back), x (to the right of the
picture, the patient's left).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
class Challenge:
    """How hard the anatomy of a subject is.

    Args:
        distractors: Multiplies the number of structures that look like the target.
        size: Multiplies the diameters of the target.
    """

    distractors: float = 1.0
    size: float = 1.0

    def number(self, count: int) -> int:
        """How many of ``count`` distractors there are."""
        return round(self.distractors * count)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of image.

    Args:
        classes: Names of labels 1..C.
        modality: As ``dataset.json`` calls it.
        tissues: Base intensity of every tissue, 0 (air) to about 1. CT: 1 + HU / 1000.
        field_mm: Height and width of the imaged region.
        cover_mm: Its largest extent across slices.
        grow: Makes a subject on a grid.
        targets: Which tissue a target is told apart from; where contrast is lowered it resembles that one.
        enhance: What contrast agent adds to a tissue, at full dose.
        spread: Multiplies how much tissues differ between scanners and subjects; CT numbers are calibrated.
        texture: Standard deviation of the relative texture of tissues.
    """

    classes: tuple[str, ...]
    modality: str
    tissues: Mapping[str, float]
    field_mm: float
    cover_mm: float
    grow: Callable[[Grid, np.random.Generator, Challenge], Anatomy]
    targets: Mapping[str, str]
    enhance: Mapping[str, float] = field(default_factory=dict)
    spread: float = 1.0
    texture: float = 0.04


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


def _oval(y: Array, x: Array) -> Array:
    """Distance from the middle of an ellipse with fuller corners."""
    y2, x2 = y**2, x**2
    return np.asarray(np.sqrt(np.sqrt(y2**2 + y2 * x2 + x2**2)))


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


def brain(grid: Grid, rng: np.random.Generator, challenge: Challenge) -> Anatomy:
    """A head with a tumour: edema around a core; white-matter spots and vessels of the same intensity distract."""
    canvas = _Canvas(BRAIN_TISSUES, grid.shape)
    points = grid.points((3 * waves(grid, 130, rng), 3 * waves(grid, 130, rng), 3 * waves(grid, 130, rng)))
    inside = _paint_head(canvas, grid, points, rng) < 0.80
    _paint_ventricles(canvas, points, rng)
    for name, count, low, high in (("spot", rng.integers(1, 5), 4, 10), ("vessel", rng.integers(1, 4), 4, 8)):
        for _ in range(challenge.number(int(count))):
            blob = ellipsoid(points, _somewhere(rng), rng.uniform(low, high) * rng.uniform(0.7, 1.3, 3))
            canvas.paint(name, (blob < 1) & inside & ~canvas.where("csf"))
    return Anatomy(label=_paint_tumour(canvas, inside, grid, points, rng, challenge.size), tissue=canvas.tissue)


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
    canvas: _Canvas, inside: Mask, grid: Grid, points: Points, rng: np.random.Generator, size: float
) -> NDArray[np.uint8]:
    """Edema that spares the ventricles, and a core somewhere in its middle; returns the labels."""
    centre, axes = _somewhere(rng), rng.uniform(28, 40, 3) * size
    edema = ellipsoid(points, centre, axes) + 0.12 * waves(grid, 40, rng)
    core_axes = axes * rng.uniform(0.45, 0.65)
    core = ellipsoid(points, centre + 0.15 * axes * rng.uniform(-1, 1, 3), core_axes) + 0.10 * waves(grid, 30, rng)
    whole = (edema < 1) & inside & ~canvas.where("csf")
    canvas.paint("edema", whole)
    canvas.paint("core", whole & (core < 1))
    return _nested(whole, whole & (core < 1))


def _nested(outer: Mask, inner: Mask) -> NDArray[np.uint8]:
    """Label 1 in the outer structure, 2 in the inner one."""
    return (outer.astype(np.uint8) + (outer & inner)).astype(np.uint8)


def _warped(grid: Grid, strength_mm: float, wavelength_mm: float, rng: np.random.Generator, lift_mm: float) -> Points:
    """The grid bent smoothly, its middle at height ``lift_mm``."""
    z, y, x = (strength_mm * waves(grid, wavelength_mm, rng) for _ in range(3))
    return grid.points((z + lift_mm, y, x))


T1_TISSUES = {
    "air": 0.0, "fat": 0.95, "muscle": 0.50, "skull": 0.06, "marrow": 0.72, "csf": 0.16, "grey": 0.56, "white": 0.78,
    "meninges": 0.60, "eye": 0.22,
}  # fmt: skip
"""White matter bright, grey matter like muscle, fluid dark, fat brightest. Meninges look like grey matter."""


def head_t1(grid: Grid, rng: np.random.Generator, challenge: Challenge) -> Anatomy:
    """A head whose brain, with its fluid-filled ventricles, is the target.

    What touches it from outside, meninges, marrow and muscle, has the brain's intensities. ``Challenge.size`` widens
    the fluid between brain and skull where it is above 1 and narrows it where it is below.
    """
    canvas = _Canvas(T1_TISSUES, grid.shape)
    points = _warped(grid, 3, 130, rng, lift_mm=0.0)
    axes = np.array([88.0, 96.0, 76.0]) * rng.uniform(0.92, 1.08, 3)
    r = ellipsoid(points, np.zeros(3), axes) + 0.012 * waves(grid, 70, rng)
    folds = waves(grid, 18, rng)
    brain_r = 0.855 - 0.035 * challenge.size * rng.uniform(0.7, 1.3) + 0.014 * folds
    _paint_neck(canvas, points, axes)
    for name, reach in (("fat", 1.0), ("muscle", 0.975), ("skull", 0.95)):
        canvas.paint(name, (r < reach) & (points[0] > -58 + 0.3 * points[1]))
    canvas.paint("marrow", (np.abs(r - 0.915) < 0.012) & (waves(grid, 60, rng) > -0.4))
    _paint_skull_base(canvas, grid, points, r, rng)
    hull = _brain_hull(points, r, brain_r, axes)
    canvas.paint("grey", hull)
    canvas.paint("white", hull & (r < 0.70 + 0.07 * folds))
    canvas.paint("csf", (np.abs(points[2]) < 1.5) & (r > 0.5) & (r < 0.85) & (points[0] > -20))
    _paint_ventricles(canvas, points, rng)
    _paint_meninges(canvas, grid, points, hull, r, rng, challenge)
    return Anatomy(tissue=canvas.tissue, label=hull.astype(np.uint8))


def _brain_hull(points: Points, r: Array, reach: Array, axes: Array) -> Mask:
    """Cerebrum above the base of the skull, cerebellum at the back below it, and the stem between them."""
    z, y, x = points
    cerebrum = (r < reach) & (z > _base_of(points))
    cerebellum = ellipsoid(points, np.array([-50.0, 42.0, 0.0]), np.array([24.0, 33.0, 50.0])) < 1
    stem = (np.hypot(y - 10 - 0.15 * (z + 50), x) < 13) & (z < -30) & (z > -axes[0] * 1.1)
    return np.asarray(cerebrum | (cerebellum & (r < reach + 0.02)) | stem)


def _base_of(points: Points) -> Array:
    """The height of the base of the skull, higher in front."""
    _, y, x = points
    return np.asarray(-42 + 0.25 * np.abs(y + 10) * (y < -10) - 0.12 * np.abs(x))


def _paint_skull_base(canvas: _Canvas, grid: Grid, points: Points, r: Array, rng: np.random.Generator) -> None:
    """Fluid above the base; below it, in front, muscle, marrow and air of the face, and the eyes."""
    z, y, _ = points
    face = (z < _base_of(points) - 5) & (y < 14)
    lumps = waves(grid, 26, rng)
    canvas.paint("csf", (r < 0.88) & ~face)
    canvas.paint("muscle", (r < 0.90) & face)
    canvas.paint("marrow", (r < 0.90) & face & (lumps > 0.7))
    canvas.paint("air", (r < 0.80) & face & (lumps < -0.9))
    for side in (-1, 1):
        eye = np.array([-34.0, -80.0, side * 31.0]) + rng.uniform(-2, 2, 3)
        canvas.paint("fat", ellipsoid(points, eye + np.array([0.0, 12.0, 0.0]), np.array([17.0, 24.0, 16.0])) < 1)
        canvas.paint("eye", ellipsoid(points, eye, np.array([12.0, 12.0, 12.0])) < 1)


def _paint_neck(canvas: _Canvas, points: Points, axes: Array) -> None:
    """Jaw and neck below the skull."""
    z, y, x = points
    below = np.hypot((y + 8) / (axes[1] * 0.92), x / (axes[2] * 0.88))
    low = z < -25
    canvas.paint("fat", (below < 1) & low)
    canvas.paint("muscle", (below < 0.90) & low)
    canvas.paint("air", (ellipsoid(points, np.array([-62.0, -48.0, 0.0]), np.array([26.0, 34.0, 13.0])) < 1) & low)


def _paint_meninges(
    canvas: _Canvas, grid: Grid, points: Points, hull: Mask, r: Array, rng: np.random.Generator, challenge: Challenge
) -> None:
    """Patches between brain and skull, and muscle at the temples, that join brain and surroundings."""
    for _ in range(challenge.number(int(rng.integers(3, 7)))):
        direction = rng.normal(size=3)
        place = 0.87 * np.array([88.0, 96.0, 76.0]) * direction / np.linalg.norm(direction)
        patch = ellipsoid(points, np.abs(place) * np.array([1.0, np.sign(direction[1]), np.sign(direction[2])]),
                          rng.uniform(12, 26, 3))  # fmt: skip
        canvas.paint("meninges", (patch < 1) & ~hull & (r < 0.955) & (r > 0.6))
    for side in (-1, 1):
        temple = ellipsoid(points, np.array([-22.0, -35.0, side * 70.0]), np.array([28.0, 26.0, 9.0]))
        canvas.paint("muscle", (temple < 1) & ~hull & (r > 0.90) & (r < 1))


PROSTATE_TISSUES = {
    "air": 0.0, "fat": 0.72, "muscle": 0.17, "marrow": 0.48, "bone": 0.06, "urine": 1.00, "wall": 0.26, "gas": 0.03,
    "stool": 0.40, "capsule": 0.14, "peripheral": 0.74, "central": 0.40, "nodule": 0.55, "stroma": 0.28,
    "plexus": 0.62, "vesicle": 0.76, "node": 0.45,
}  # fmt: skip
"""T2: urine brightest, peripheral zone bright like fat and vesicles, central gland grey and patchy, muscle dark."""


def pelvis(grid: Grid, rng: np.random.Generator, challenge: Challenge) -> Anatomy:
    """A male pelvis around the prostate, whose central gland (label 2) lies in a peripheral zone (label 1)."""
    canvas = _Canvas(PROSTATE_TISSUES, grid.shape)
    axes = np.array([21.0, 17.0, 23.5]) * rng.uniform(0.82, 1.2) * rng.uniform(0.92, 1.08, 3) * challenge.size
    points = _warped(grid, 2.0, 70, rng, lift_mm=float(rng.uniform(-5, 5)))
    _paint_pelvis(canvas, grid, points, rng)
    _paint_bladder_and_rectum(canvas, grid, points, axes, rng)
    _paint_lookalikes(canvas, points, axes, rng, challenge)
    return Anatomy(label=_paint_prostate(canvas, grid, points, axes, rng), tissue=canvas.tissue)


def _paint_pelvis(canvas: _Canvas, grid: Grid, points: Points, rng: np.random.Generator) -> None:
    """Fat, the pelvic wall and its muscles, the pubis in front and the tail of the spine behind."""
    z, y, x = points
    width, depth = rng.uniform(150, 185), rng.uniform(95, 120)
    canvas.paint("fat", np.hypot(y / depth, x / width) < 1)
    canvas.paint("muscle", (np.hypot(y / (depth - 22), x / (width - 20)) < 1) & (waves(grid, 45, rng) > -0.8))
    canvas.paint("fat", np.hypot((y - 2) / 52, x / 56) < 1 + 0.06 * waves(grid, 50, rng))
    for side in (-1, 1):
        hip = np.array([8.0, -8.0, side * 84.0]) + rng.uniform(-4, 4, 3)
        for name, grow_by in (("bone", 3.0), ("marrow", 0.0)):
            canvas.paint(name, ellipsoid(points, hip, np.array([40.0, 31.0, 21.0]) + grow_by) < 1)
        obturator = np.hypot((y + 2) / 40, (x - side * 52) / 10) < 1
        canvas.paint("muscle", obturator)
        levator = (np.abs(np.hypot((y - 18) / 1.25, x) - 33) < 2.6) & (y > -8) & (z < 22)
        canvas.paint("muscle", levator)
        for name, thick in (("bone", 2.5), ("marrow", 0.0)):
            pubis = ellipsoid(points, np.array([-12.0, -44.0, side * 17.0]), np.array([24.0, 10.0, 15.0]) + thick)
            canvas.paint(name, pubis < 1)
    for name, thick in (("bone", 2.5), ("marrow", 0.0)):
        canvas.paint(name, ellipsoid(points, np.array([10.0, 74.0, 0.0]), np.array([40.0, 9.0, 17.0]) + thick) < 1)


def _paint_bladder_and_rectum(
    canvas: _Canvas, grid: Grid, points: Points, axes: Array, rng: np.random.Generator
) -> None:
    """The bladder above the gland and the rectum behind it, with gas or stool."""
    z, y, x = points
    bladder = np.array([axes[0] + 22.0, -12.0, 0.0]) + rng.uniform(-4, 4, 3)
    size = np.array([24.0, 24.0, 34.0]) * rng.uniform(0.75, 1.2, 3)
    canvas.paint("wall", ellipsoid(points, bladder, size + 3.5) < 1)
    canvas.paint("urine", ellipsoid(points, bladder, size) < 1)
    middle, radius = axes[1] + rng.uniform(17, 20), rng.uniform(10, 14)
    tube = np.hypot((y - middle - 0.15 * z) / radius, (x - 3 * np.sin(z / 20)) / (radius * 1.15)) + 0.08 * waves(
        grid, 25, rng
    )
    canvas.paint("wall", tube < 1.22)
    canvas.paint("gas" if rng.uniform() < 0.5 else "stool", tube < 0.9)


def _paint_lookalikes(
    canvas: _Canvas, points: Points, axes: Array, rng: np.random.Generator, challenge: Challenge
) -> None:
    """Veins around the gland, vesicles above and behind it, nodes and bowel with its two intensities."""
    plexus = ellipsoid(points, np.array([0.0, -2.0, 0.0]), axes + np.array([6.0, 6.0, 9.0]))
    canvas.paint("plexus", (plexus < 1) & (np.abs(points[2]) > 0.5 * axes[2]))
    for side in (-1, 1):
        place = np.array([axes[0] + 5.0, axes[1] - 4.0, side * 15.0])
        canvas.paint("vesicle", ellipsoid(points, place, np.array([8.0, 6.0, 14.0]) * rng.uniform(0.8, 1.2, 3)) < 1)
    for _ in range(challenge.number(int(rng.integers(2, 6)))):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(42, 66)
        place = np.array([rng.uniform(-28, 28), reach * np.sin(angle), 1.15 * reach * np.cos(angle)])
        r = ellipsoid(points, place, rng.uniform(7, 14) * rng.uniform(0.8, 1.25, 3))
        canvas.paint("vesicle", r < 1)
        canvas.paint("node", r < 0.72)


def _paint_prostate(
    canvas: _Canvas, grid: Grid, points: Points, axes: Array, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The gland in its capsule, the peripheral zone behind and beside a patchy central gland; returns the labels."""
    z, y, x = points
    taper = 1 + 0.25 * np.clip(z / axes[0], -1, 1)  # the apex, below, is narrower than the base
    gland = ellipsoid((z, y / taper, x / taper), np.zeros(3), axes) + 0.06 * waves(grid, 35, rng)
    share = rng.uniform(0.62, 0.82)
    middle = np.array([0.12, -0.22, 0.0]) * axes
    central = ellipsoid((z, y / taper, x / taper), middle, axes * np.array([0.92, share, share])) + 0.05 * waves(
        grid, 25, rng
    )
    whole, inner = gland < 1, (gland < 0.97) & (central < 1)
    canvas.paint("capsule", gland < 1.07)
    canvas.paint("peripheral", whole)
    canvas.paint("capsule", whole & (central < 1.06))
    canvas.paint("central", inner)
    patches = waves(grid, 16, rng)
    canvas.paint("nodule", inner & (patches > 0.8))
    canvas.paint("stroma", inner & (patches < -0.9))
    return _nested(whole, inner)


def _hounsfield(**hu: float) -> dict[str, float]:
    """CT numbers as base intensities: air 0, water 1."""
    return {name: round(1 + value / 1000, 4) for name, value in hu.items()}


ABDOMEN_TISSUES = _hounsfield(
    air=-1000, skin=20, fat=-100, muscle=55, marrow=200, bone=520, bowel=35, gas=-880, liver=55, spleen=46, vessel=42,
    cortex=34, medulla=32, tumour=36, necrosis=14, cyst=6, loop=38,
)  # fmt: skip
"""Without contrast agent, in which a kidney, its tumour, spleen and bowel are within a few HU."""

ABDOMEN_ENHANCEMENT = {
    "muscle": 0.010, "bowel": 0.030, "liver": 0.055, "spleen": 0.080, "vessel": 0.150, "cortex": 0.165,
    "medulla": 0.130, "tumour": 0.050, "necrosis": 0.008, "loop": 0.085,
}  # fmt: skip


def abdomen(grid: Grid, rng: np.random.Generator, challenge: Challenge) -> Anatomy:
    """Two kidneys (label 1) and a tumour of one of them (label 2), between liver, spleen and bowel.

    The stack is centred between the middle of that kidney and the tumour, so that a thin one shows both.
    """
    canvas = _Canvas(ABDOMEN_TISSUES, grid.shape)
    sides = [_draw_kidney(side, rng) for side in (-1, 1)]
    sick = int(rng.integers(2))
    tumour, radius = _draw_renal_tumour(sides[sick], (-1, 1)[sick], rng)
    lift = sides[sick][0][0] + rng.uniform(0.6, 1.0) * (tumour[0] - sides[sick][0][0])
    points = _warped(grid, 3.5, 150, rng, lift_mm=float(lift))
    inside = _paint_trunk(canvas, grid, points, rng)
    _paint_organs(canvas, grid, points, inside, rng, challenge)
    kidney = np.zeros(grid.shape, np.bool_)
    for side, (centre, axes) in zip((-1, 1), sides, strict=True):
        kidney |= _paint_kidney(canvas, grid, points, side, centre, axes, rng)
    _paint_cysts(canvas, points, kidney, sides, rng, challenge)
    lesion = _paint_renal_tumour(canvas, grid, points, inside, tumour, radius * challenge.size, rng)
    return Anatomy(label=_nested(kidney | lesion, lesion), tissue=canvas.tissue)


def _draw_kidney(side: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Centre and half axes; the right one (at negative x) lies lower."""
    centre = np.array([-8.0 * (side < 0), 34.0, side * 67.0]) + rng.uniform(-1, 1, 3) * np.array([6.0, 5.0, 5.0])
    return centre, np.array([58.0, 31.0, 29.0]) * rng.uniform(0.92, 1.08) * rng.uniform(0.93, 1.07, 3)


def _draw_renal_tumour(kidney: tuple[Array, Array], side: int, rng: np.random.Generator) -> tuple[Array, float]:
    """Centre and radius: on the surface of the kidney, away from its hilum."""
    centre, axes = kidney
    angle, height = rng.uniform(-0.6 * np.pi, 0.6 * np.pi), rng.uniform(-0.6, 0.6)
    reach = 0.85 * np.sqrt(1 - height**2)
    place = centre + axes * np.array([height, reach * np.sin(angle), side * reach * np.cos(angle)])
    place[2] -= side * 0.2 * (place[0] - centre[0])
    return place, float(rng.uniform(24, 40))


def _paint_trunk(canvas: _Canvas, grid: Grid, points: Points, rng: np.random.Generator) -> Mask:
    """Skin, fat, the muscular wall with ribs, and the spine with its muscles; returns the inside of the wall."""
    z, y, x = points
    width, depth, fat = rng.uniform(128, 142), rng.uniform(96, 112), rng.uniform(6, 18)
    r = _oval(y / depth, x / width) + 0.012 * waves(grid, 160, rng)
    wall = _oval(y / (depth - fat), x / (width - fat)) + 0.012 * waves(grid, 160, rng)
    canvas.paint("skin", r < 1)
    canvas.paint("fat", r < 0.985)
    canvas.paint("muscle", wall < 1)
    canvas.paint("bone", (np.abs(wall - 0.95) < 0.025) & (np.sin(z / 4.5 + 0.06 * y + 0.012 * x) > 0.55))
    inside = np.asarray(wall < 0.88)
    canvas.paint("fat", inside)
    for side in (-1, 1):
        canvas.paint("muscle", np.hypot((y - 72) / 24, (x - side * 36) / 30) < 1)
        canvas.paint("muscle", np.hypot((y - 50) / 20, (x - side * (35 - 0.1 * z)) / 15) < 1)
    canvas.paint("bone", np.hypot((y - 54) / 19, x / 24) < 1)
    canvas.paint("marrow", np.hypot((y - 54) / 16.5, x / 21.5) < 1)
    canvas.paint("bone", (np.hypot((y - 84) / 15, x / 15) < 1) | ((np.abs(x) < 4) & (y > 84) & (y < 106)))
    canvas.paint("muscle", np.hypot((y - 80) / 9, x / 10) < 1)
    return inside


def _paint_organs(
    canvas: _Canvas, grid: Grid, points: Points, inside: Mask, rng: np.random.Generator, challenge: Challenge
) -> None:
    """Bowel, liver, spleen, vessels, and loops of bowel that take up contrast agent as a tumour does."""
    _, y, x = points
    front = inside & (y < 12 + 4 * waves(grid, 60, rng))
    lumps = waves(grid, 42, rng)
    canvas.paint("bowel", front & (lumps > -0.35))
    canvas.paint("gas", front & (lumps > 1.25) & (y < -12))
    liver = ellipsoid(points, np.array([72.0, -16.0, -70.0]), np.array([88.0, 72.0, 66.0]) * rng.uniform(0.9, 1.12, 3))
    spleen = ellipsoid(points, np.array([66.0, 24.0, 98.0]), np.array([52.0, 40.0, 24.0]) * rng.uniform(0.85, 1.2, 3))
    canvas.paint("liver", inside & (liver + 0.05 * waves(grid, 80, rng) < 1))
    canvas.paint("spleen", inside & (spleen + 0.05 * waves(grid, 60, rng) < 1))
    canvas.paint("vessel", np.hypot(y - 26, x - 12) < rng.uniform(8, 12))
    canvas.paint("vessel", np.hypot((y - 24) / 0.8, x + 18) < rng.uniform(9, 13))
    for _ in range(challenge.number(int(rng.integers(3, 7)))):
        place = np.array([rng.uniform(-60, 60), rng.uniform(-70, 20), rng.uniform(-95, 95)])
        loop = ellipsoid(points, place, rng.uniform(9, 22) * rng.uniform(0.75, 1.3, 3))
        canvas.paint("loop", inside & (loop < 1) & ~canvas.where("vessel", "bone", "marrow"))


def _paint_kidney(
    canvas: _Canvas, grid: Grid, points: Points, side: int, centre: Array, axes: Array, rng: np.random.Generator
) -> Mask:
    """Cortex, medulla, and a sinus of fat and vessels that opens towards the middle; returns the mask without it."""
    z, y, x = (position - c for position, c in zip(points, centre, strict=True))
    local = (z, y + 0.15 * z, x + side * 0.2 * z)  # upper poles lie nearer to the spine, and further back
    r = ellipsoid(local, np.zeros(3), axes) + 0.04 * waves(grid, 45, rng)
    sinus = ellipsoid(local, axes * np.array([0.0, -0.12, -0.72 * side]), axes * np.array([0.50, 0.32, 0.56]))
    capsule = ellipsoid(local, np.zeros(3), axes * 1.35) < 1
    canvas.paint("fat", capsule & ~canvas.where("liver", "spleen", "vessel", "bone", "marrow", "muscle"))
    kidney = np.asarray((r < 1) & (sinus > 1))
    canvas.paint("cortex", kidney)
    canvas.paint("medulla", kidney & (r < 0.80) & (waves(grid, 17, rng) > -0.25))
    canvas.paint("fat", (sinus < 1) & (r < 1.02))
    canvas.paint("vessel", (sinus < 1) & (np.hypot(local[0] / 7, (local[1] + 3) / 5) < 1))
    return kidney


def _paint_cysts(
    canvas: _Canvas, points: Points, kidney: Mask, sides: list[tuple[Array, Array]], rng: np.random.Generator,
    challenge: Challenge,
) -> None:  # fmt: skip
    """Fluid in the kidneys, counted as kidney as KiTS19 does."""
    for _ in range(challenge.number(int(rng.integers(0, 4)))):
        centre, axes = sides[int(rng.integers(2))]
        place = centre + axes * rng.uniform(-0.8, 0.8, 3)
        canvas.paint("cyst", kidney & (ellipsoid(points, place, np.full(3, rng.uniform(5, 12))) < 1))


def _paint_renal_tumour(
    canvas: _Canvas, grid: Grid, points: Points, inside: Mask, place: Array, radius: float, rng: np.random.Generator
) -> Mask:
    """A lumpy ball that grows out of the kidney, in the larger ones a dead middle; returns its mask."""
    r = ellipsoid(points, place, radius * rng.uniform(0.85, 1.15, 3)) + 0.08 * waves(grid, 35, rng)
    lesion = np.asarray((r < 1) & inside & ~canvas.where("bone", "marrow", "muscle"))
    canvas.paint("tumour", lesion)
    dead = ellipsoid(points, place + 0.2 * radius * rng.uniform(-1, 1, 3), radius * rng.uniform(0.25, 0.5, 3))
    canvas.paint("necrosis", lesion & (dead < 1) & (radius > 22))
    return lesion


FAMILIES: Mapping[str, Family] = {
    "brain_mr": Family(
        classes=("edema", "core"), modality="MRI", tissues=BRAIN_TISSUES, field_mm=224, cover_mm=112, grow=brain,
        targets={"edema": "white", "core": "edema"},
    ),
    "kidney_ct": Family(
        classes=("kidney", "tumour"), modality="CT", tissues=ABDOMEN_TISSUES, field_mm=300, cover_mm=300, grow=abdomen,
        targets={"tumour": "medulla"}, enhance=ABDOMEN_ENHANCEMENT, spread=0.2, texture=0.006,
    ),
    "brain_t1": Family(
        classes=("brain",), modality="MRI", tissues=T1_TISSUES, field_mm=224, cover_mm=170, grow=head_t1,
        targets={"grey": "csf", "white": "grey"},
    ),
    "prostate_mr": Family(
        classes=("peripheral", "central"), modality="MRI", tissues=PROSTATE_TISSUES, field_mm=180, cover_mm=64,
        grow=pelvis, targets={"peripheral": "plexus", "central": "muscle"},
    ),
}  # fmt: skip
