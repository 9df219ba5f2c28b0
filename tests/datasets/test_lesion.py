"""The lesions: fast formulas against slow ones, traits that follow kind, separation and limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wardround.datasets.lesion import (
    ABSORPTION,
    COMMON,
    KINDS,
    LIMITS,
    PALE,
    Points,
    draw_lesion,
    draw_traits,
    draw_waves,
    show,
)

ROWS, COLUMNS = np.linspace(-1, 1, 9), np.linspace(-1, 1, 7)


def points(angle: float = 0.4, zoom: float = 1.7) -> Points:
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    frame = (np.array([0.1, -0.2]), np.array([-sin, cos]), np.array([cos, sin]))
    return Points(rows=ROWS, columns=COLUMNS, frame=frame)


def test_waves_are_the_sum_of_cosines() -> None:
    """sqrt(2 / n) sum cos(k . (u, v) + phase), at every point by itself."""
    waves = draw_waves(0.5, np.random.default_rng(0))
    u, v = points().uv()
    slow = np.zeros_like(u)
    for (ku, kv), phase in zip(waves.k, waves.phase, strict=True):
        slow += np.cos(ku * u + kv * v + phase)
    assert np.allclose(waves.at(points()), slow * np.sqrt(2 / len(waves.k)))


def test_dots_are_sums_of_gaussians_of_the_distance() -> None:
    places, sizes = np.array([[0.2, 0.1], [-0.5, 0.7]]), np.array([0.3, 0.5])
    u, v = points().uv()
    slow = sum(np.exp(-((u - a) ** 2 + (v - b) ** 2) / size**2) for (a, b), size in zip(places, sizes, strict=True))
    assert np.allclose(points().dots(places, sizes), slow)


def test_a_view_does_not_change_the_lesion() -> None:
    """What is at the position (u, v) is the same light in two views whose grids share the point."""
    lesion = draw_lesion("reticular", 0.1, 1.0, 1.0, np.random.default_rng(3))
    one, turned = points(), points(angle=0.4 + np.pi)
    middle = Points(rows=-ROWS, columns=-COLUMNS, frame=turned.frame)
    assert np.allclose(one.uv(), middle.uv())
    assert np.allclose(show(lesion, one), show(lesion, middle))


def test_light_follows_the_law_of_absorption() -> None:
    """Far from the lesion there is skin: pale * exp(-tone * melanin - flush * blood), but for 2.5 % texture."""
    lesion = draw_lesion("homogeneous", 0.3, 1.0, 0.0, np.random.default_rng(0))
    far = Points(rows=ROWS, columns=COLUMNS, frame=(np.array([9.0, 9.0]), np.array([0.0, 1.0]), np.array([1.0, 0.0])))
    expected = PALE * np.exp(
        -lesion.tone * np.array(ABSORPTION["melanin"]) - lesion.flush * np.array(ABSORPTION["blood"])
    )
    assert show(lesion, far).mean(axis=(0, 1)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_can_be_shown_and_has_its_own_traits(kind: str) -> None:
    for seed in range(3):
        image = show(draw_lesion(kind, 0.1, 1.0, 1.0, np.random.default_rng(seed)), points())
        assert image.shape == (9, 7, 3)
        assert 0 <= image.min() < image.max() <= 1
    mean = draw_traits(kind, 1.0, 0.0, np.random.default_rng(0))
    assert vars(mean) == pytest.approx(vars(KINDS[kind]))
    assert sum(KINDS[kind] == other for other in KINDS.values()) == 1


def test_without_separation_all_kinds_are_alike() -> None:
    """The same stream then gives the same lesion, whatever its kind; half the separation is half the way."""
    alike = [draw_traits(kind, 0.0, 1.0, np.random.default_rng(5)) for kind in KINDS]
    assert len(set(alike)) == 1
    half = draw_traits("reticular", 0.5, 0.0, np.random.default_rng(0))
    assert half.network == pytest.approx((COMMON.network + KINDS["reticular"].network) / 2)


def test_traits_stay_within_their_limits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        traits = draw_traits("ulcerated", 2.0, 5.0, rng)
        assert all(0.01 * top <= getattr(traits, name) <= top for name, top in vars(LIMITS).items())


def test_a_structure_shows() -> None:
    """The picture of a lesion with one structure at full strength differs from the same lesion without it."""
    grid = Points(
        rows=np.linspace(-1, 1, 48), columns=np.linspace(-1, 1, 48),
        frame=(np.zeros(2), np.array([0.0, 1.4]), np.array([1.4, 0.0])),
    )  # fmt: skip
    lesion = draw_lesion("homogeneous", 0.1, 1.0, 0.0, np.random.default_rng(1))
    for trait in ("network", "globules", "streaks", "ulcer", "cysts", "lacunae", "veil"):
        without, full = (
            show(replace(lesion, traits=replace(lesion.traits, **{trait: value})), grid) for value in (0.01, 1.0)
        )
        assert np.abs(full - without).mean() > 0.008, trait
