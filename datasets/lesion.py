"""Procedural skin lesions: kinds that differ in outline, colour and inner structure, and that overlap.

A lesion is pigments in skin, not colours: light passes them and comes back, ``skin exp(-sum of pigment * absorption)``.
What a picture of it looks like is the camera's business (:mod:`~wardround.datasets.camera`). All structures are
functions of a position in units of the lesion's radius, so that one lesion can be shown from several views and on any
grid.

Nothing in it is anatomically true; the kinds are named after patterns of dermatoscopy that they resemble.

Legend: H rows, W columns of a picture; u, v position (to the right and down), 0 in the middle of the lesion, 1 at its
mean border; n plane waves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a lesion is like; strengths are 0 (absent) to 1 (as strong as it gets).

    Args:
        irregular: Deviation of the border from an ellipse, in radii.
        long: Long axis over short axis, minus 1.
        soft: Width of the border, in radii.
        melanin: Brown pigment.
        blood: Red pigment.
        veil: Pigment that lies deep and looks blue.
        mottled: Relative variation of the pigments from place to place.
        network: A brown mesh with light holes.
        globules: Brown dots of various sizes.
        streaks: Brown lines that leave the border outwards.
        ulcer: A sore without brown pigment, red, with a dark rim.
        cysts: White dots.
        lacunae: Red round patches.
    """

    irregular: float = 0.09
    long: float = 0.25
    soft: float = 0.16
    melanin: float = 0.62
    blood: float = 0.12
    veil: float = 0.12
    mottled: float = 0.25
    network: float = 0.16
    globules: float = 0.16
    streaks: float = 0.14
    ulcer: float = 0.06
    cysts: float = 0.10
    lacunae: float = 0.05


COMMON = Traits()
"""What lesions are like whatever their kind: a bit of everything."""

SPREAD = Traits(
    irregular=0.035, long=0.14, soft=0.05, melanin=0.19, blood=0.09, veil=0.11, mottled=0.09,
    network=0.21, globules=0.21, streaks=0.19, ulcer=0.15, cysts=0.18, lacunae=0.14,
)  # fmt: skip
"""Standard deviation of each trait among lesions of one kind."""

LIMITS = Traits(
    irregular=0.25, long=1.0, soft=0.45, melanin=1.4, blood=1.2, veil=0.8, mottled=0.6,
    network=1.0, globules=1.0, streaks=1.0, ulcer=1.0, cysts=1.0, lacunae=1.0,
)  # fmt: skip
"""Largest value of each trait; the smallest is 0, or a hundredth of this where the border would have no width."""

KINDS: Mapping[str, Traits] = {
    "reticular": Traits(network=0.72, melanin=0.66, soft=0.20),
    "globular": Traits(globules=0.74, melanin=0.60, long=0.20),
    "starburst": Traits(streaks=0.74, melanin=0.82, long=0.14, irregular=0.07, network=0.22),
    "homogeneous": Traits(veil=0.34, mottled=0.14, network=0.06, globules=0.06, streaks=0.06, irregular=0.06),
    "ulcerated": Traits(ulcer=0.62, irregular=0.12, long=0.38, melanin=0.48, blood=0.26, mottled=0.34),
    "keratotic": Traits(cysts=0.74, soft=0.09, melanin=0.56, mottled=0.32, globules=0.22),
    "vascular": Traits(lacunae=0.74, blood=0.36, melanin=0.36, veil=0.18),
}
"""The mean lesion of each kind; a federation has the first C of them."""

ABSORPTION: Mapping[str, tuple[float, float, float]] = {
    "melanin": (0.55, 0.95, 1.40),
    "blood": (0.10, 0.80, 0.70),
    "veil": (1.15, 0.80, 0.40),
}
"""Of red, green and blue light, by one unit of pigment."""

PALE = (0.95, 0.84, 0.77)
"""Red, green and blue of skin without pigment."""


@dataclass(frozen=True, kw_only=True)
class Waves:
    """A smooth random function of the plane, mean 0 and variance 1: n plane waves.

    Args:
        k: (n, 2) wave vectors, of u and v.
        phase: (n,).
    """

    k: Array
    phase: Array

    def at(self, points: Points) -> Array:
        """(H, W), at every point of a picture.

        Points are an affine function of row and column, of which a plane wave makes a product ``exp(i a row) exp(i b
        column)``: this is one matrix product.
        """
        origin, rows, columns = points.frame
        down = np.exp(1j * (np.outer(points.rows, self.k @ rows) + self.k @ origin + self.phase))  # (H, n)
        across = np.exp(1j * np.outer(points.columns, self.k @ columns))  # (W, n)
        return np.asarray((down.real @ across.real.T - down.imag @ across.imag.T) * np.sqrt(2 / len(self.k)))


def draw_waves(wavelength: float, rng: np.random.Generator, number: int = 8) -> Waves:
    """Waves of random direction and phase, about ``wavelength`` radii from crest to crest."""
    angle = rng.uniform(0, 2 * np.pi, number)
    length = 2 * np.pi / (wavelength * rng.uniform(0.7, 1.4, number))
    k = np.stack([np.cos(angle), np.sin(angle)], axis=1) * length[:, None]
    return Waves(k=k, phase=rng.uniform(0, 2 * np.pi, number))


@dataclass(frozen=True, kw_only=True)
class Points:
    """The positions of a picture's pixels on the lesion.

    Args:
        rows: (H,) position of each row in the picture, -1 (top) to 1.
        columns: (W,) position of each column.
        frame: Three vectors (u, v): where the middle of the picture lies, and what a step of 1 down its rows and across
            its columns is; the two steps are of one length and at a right angle.
    """

    rows: Array
    columns: Array
    frame: tuple[Array, Array, Array]

    def uv(self) -> tuple[Array, Array]:
        """Both coordinates of every pixel, (H, W) each."""
        origin, rows, columns = self.frame
        u, v = (
            origin[axis] + rows[axis] * self.rows[:, None] + columns[axis] * self.columns[None, :] for axis in (0, 1)
        )
        return u, v

    def dots(self, places: Array, sizes: Array) -> Array:
        """(H, W): round dots, ``sum exp(-(distance / size)^2)``; places (N, 2) and sizes (N,) in radii.

        The frame keeps angles, so that a dot is a product over rows and columns.
        """
        origin, rows, columns = self.frame
        scale = np.hypot(*rows)
        row, column = ((places - origin) @ axis / scale**2 for axis in (rows, columns))  # (N,) each
        width = sizes / scale
        down = np.exp(-(((self.rows[:, None] - row) / width) ** 2))  # (H, N)
        across = np.exp(-(((self.columns[:, None] - column) / width) ** 2))  # (W, N)
        return np.asarray(down @ across.T)


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One lesion: its traits, and everything else that was drawn for it.

    Args:
        traits: How strong is what.
        tone: Melanin of the skin around it.
        flush: Blood of the skin around it.
        angle: Of the long axis.
        border: (6, 2) amplitude and phase of the waves that bend the border, of 2 to 7 periods.
        mesh: Distance of the holes of the network, in radii.
        spikes: Number of streaks, and the phase of the first one.
        sore: u, v and radius of the ulcer.
        globules: (N, 3) u, v and size of each.
        cysts: (N, 3).
        lacunae: (N, 3).
        mottles: Slow changes of melanin, blood and veil.
        warp: What bends the network and the streaks, and the border of the ulcer.
        skin: Fine texture of skin.
    """

    traits: Traits
    tone: float
    flush: float
    angle: float
    border: Array
    mesh: float
    spikes: tuple[int, float]
    sore: Array
    globules: Array
    cysts: Array
    lacunae: Array
    mottles: tuple[Waves, Waves, Waves]
    warp: tuple[Waves, Waves]
    skin: Waves


def draw_traits(kind: str, separation: float, spread: float, rng: np.random.Generator) -> Traits:
    """Traits of one lesion of a kind: ``common + separation (kind - common) + spread * deviation * normal``, clipped.

    Args:
        kind: A key of :data:`KINDS`.
        separation: 0: all kinds are alike; 1: as the table has them.
        spread: Multiplies the deviation within a kind.
        rng: Drawn from once per trait.
    """
    values = {}
    for name, common in vars(COMMON).items():
        middle = common + separation * (getattr(KINDS[kind], name) - common)
        value = middle + spread * getattr(SPREAD, name) * rng.normal()
        largest = getattr(LIMITS, name)
        values[name] = float(np.clip(value, 0.01 * largest, largest))
    return Traits(**values)


def draw_lesion(kind: str, tone: float, separation: float, spread: float, rng: np.random.Generator) -> Lesion:
    """One lesion of a kind.

    Args:
        kind: A key of :data:`KINDS`.
        tone: Mean melanin of the skin of this hospital's patients.
        separation: As in :func:`draw_traits`.
        spread: As in :func:`draw_traits`.
        rng: Draws everything.
    """
    traits = draw_traits(kind, separation, spread, rng)
    return Lesion(
        traits=traits,
        tone=float(np.clip(tone + 0.07 * rng.normal(), 0, 0.6)),
        flush=float(np.clip(0.14 + 0.05 * rng.normal(), 0, 0.4)),
        angle=rng.uniform(0, 2 * np.pi),
        border=np.stack([rng.normal(size=6) / np.arange(2, 8) ** 0.7, rng.uniform(0, 2 * np.pi, 6)], axis=1),
        mesh=rng.uniform(0.20, 0.30),
        spikes=(int(rng.integers(12, 23)), rng.uniform(0, 2 * np.pi)),
        sore=np.array([*rng.uniform(-0.4, 0.4, 2), rng.uniform(0.25, 0.5)]),
        globules=_scatter(45, 0.95, (0.045, 0.095), rng),
        cysts=_scatter(14, 0.85, (0.035, 0.075), rng),
        lacunae=_scatter(13, 0.75, (0.10, 0.19), rng),
        mottles=(draw_waves(1.3, rng), draw_waves(1.5, rng), draw_waves(1.5, rng)),
        warp=(draw_waves(0.9, rng), draw_waves(0.6, rng)),
        skin=draw_waves(0.16, rng, number=24),
    )


def _scatter(number: int, reach: float, sizes: tuple[float, float], rng: np.random.Generator) -> Array:
    """Places (u, v) within ``reach`` of the middle, evenly over the disc, and sizes: (number, 3)."""
    angle, distance = rng.uniform(0, 2 * np.pi, number), reach * np.sqrt(rng.uniform(0, 1, number))
    return np.stack([distance * np.cos(angle), distance * np.sin(angle), rng.uniform(*sizes, number)], axis=1)


def show(lesion: Lesion, points: Points) -> Array:
    """The light (H, W, 3) that comes back from a lesion and the skin around it, 0 to 1, red, green and blue."""
    traits = lesion.traits
    rho, theta = _polar(lesion, points)
    rays = np.cos(lesion.spikes[0] * theta + lesion.spikes[1] + 0.8 * lesion.warp[0].at(points))
    bent = (lesion.border[:, 0, None, None] * np.cos(_multiples(theta) + lesion.border[:, 1, None, None])).sum(axis=0)
    edge = 1 + traits.irregular * bent + 0.22 * traits.streaks * np.clip(rays, 0, 1)
    inside = expit((edge - rho) / (0.35 * traits.soft + 0.01))
    rim = np.exp(-(((rho - 0.88 * edge) / 0.24) ** 2))
    brown = _brown(lesion, points, rays * rim)
    blue, red = (np.clip(1 + 2 * traits.mottled * waves.at(points), 0, 2) for waves in lesion.mottles[1:])
    pigment = {
        "melanin": lesion.tone + inside * brown,
        "blood": lesion.flush + inside * traits.blood * red,
        "veil": inside * traits.veil * blue,
    }
    _open_sore(lesion, points, inside, pigment)
    pigment["blood"] = pigment["blood"] + 1.3 * traits.lacunae * inside * _dots(lesion.lacunae, points)
    light = _light(pigment) * (1 + 0.025 * lesion.skin.at(points))[..., None]
    white = (0.75 * traits.cysts * inside * _dots(lesion.cysts, points))[..., None]
    return np.asarray(np.clip(light + white * (np.array([0.97, 0.93, 0.85]) - light), 0, 1))


def _polar(lesion: Lesion, points: Points) -> tuple[Array, Array]:
    """Distance from the middle, 1 on the ellipse that the lesion is without its bends, and angle to its long axis."""
    u, v = points.uv()
    stretch = np.sqrt(1 + lesion.traits.long)
    cos, sin = np.cos(lesion.angle), np.sin(lesion.angle)
    along, across = (cos * u + sin * v) / stretch, (cos * v - sin * u) * stretch
    return np.hypot(along, across), np.arctan2(across, along)


def _multiples(theta: Array) -> Array:
    """2 to 7 times an angle: (6, H, W)."""
    return np.asarray(np.arange(2, 8)[:, None, None] * theta)


def _dots(dots: Array, points: Points) -> Array:
    """Round dots (N, 3), 0 to 1, flat on top."""
    return np.asarray(np.clip(1.6 * points.dots(dots[:, :2], dots[:, 2]), 0, 1))


def _brown(lesion: Lesion, points: Points, rays: Array) -> Array:
    """Melanin of the lesion: even, mottled, and with network, globules and streaks."""
    traits = lesion.traits
    even = np.clip(1 + traits.mottled * lesion.mottles[0].at(points), 0.1, 2)
    mesh = expit(5 * (-0.25 - _honeycomb(lesion, points)))  # (H, W), 1 on the lines
    structure = (
        1.1 * traits.network * (mesh - 0.4)
        + 1.1 * traits.globules * (_dots(lesion.globules, points) - 0.25)
        + 1.2 * traits.streaks * (np.clip(1.5 * rays, 0, 1) - 0.15)
    )
    return np.asarray(np.clip(traits.melanin * even * (1 + structure), 0, None))


def _honeycomb(lesion: Lesion, points: Points) -> Array:
    """Three waves at 60 degrees, bent: 3 in the middle of a hole, below 0 between holes."""
    u, v = points.uv()
    bend = 0.9 * lesion.warp[0].at(points), 0.9 * lesion.warp[1].at(points)
    step = 4 * np.pi / np.sqrt(3) / lesion.mesh
    total = np.zeros_like(u)
    for number in range(3):
        angle = lesion.angle + number * np.pi / 3
        total += np.cos(step * (u * np.cos(angle) + v * np.sin(angle)) + (bend[0], bend[1], bend[1] - bend[0])[number])
    return total


def _open_sore(lesion: Lesion, points: Points, inside: Array, pigment: dict[str, Array]) -> None:
    """Takes the melanin out of the ulcer, puts blood in, and a dark crust around it."""
    u, v = points.uv()
    distance = np.hypot(u - lesion.sore[0], v - lesion.sore[1]) / lesion.sore[2] + 0.22 * lesion.warp[1].at(points)
    strength = lesion.traits.ulcer * inside
    sore = strength * expit((1 - distance) / 0.09)
    crust = strength * np.exp(-(((distance - 1.1) / 0.2) ** 2))
    pigment["melanin"] = pigment["melanin"] * (1 - 0.85 * sore) + 0.5 * crust
    pigment["blood"] = pigment["blood"] + 0.9 * sore + 0.5 * crust
    pigment["veil"] = pigment["veil"] * (1 - sore)


def _light(pigment: Mapping[str, Array]) -> Array:
    """(H, W, 3) of pigments (H, W) each."""
    depth = sum(amount[..., None] * np.array(ABSORPTION[name]) for name, amount in pigment.items())
    return np.asarray(np.array(PALE) * np.exp(-depth))
