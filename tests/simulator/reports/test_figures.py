"""Heat maps, bands and contrast; the other charts and the overlays are tested with the page of a run."""

from __future__ import annotations

import re

import pytest

from wardround.simulator.reports.figures import (
    BLUE,
    Line,
    contrast,
    curve_chart,
    difference_map,
    drawable,
    heat_map,
    readable_on,
)


def texts(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</(?:text|tspan)>", svg)


def test_a_heat_map_has_its_numbers_and_names() -> None:
    svg = heat_map("m", ["north", "a & b"], ["kidney", "x$y$"], [[0.25, 1.0], [None, 0.125]])
    assert {"north", "a &amp; b", "kidney", "x$y$", "0.25", "1.00", "–", "0.12"} <= set(texts(svg))


def test_numbers_stand_out_from_their_cells() -> None:
    """On each of 101 colours of the map; black or white alone would not do."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colours = [to_hex(colormaps["cividis"](share / 100)) for share in range(101)]
    assert min(contrast(readable_on(colour), colour) for colour in colours) >= 4.5
    assert {readable_on(colour) for colour in colours} == {"#000000", "#ffffff"}


def test_the_colours_of_a_heat_map_are_those_of_its_range() -> None:
    """Cividis goes from #00224e to #fee838; 0.5 of [0.5, 1] is its start, 1 its end."""
    svg = heat_map("m", ["r"], ["a", "b"], [[0.5, 1.0]], value_range=(0.5, 1.0))
    assert "#00224e" in svg
    assert "#fee838" in svg or "#fde737" in svg
    assert "#00224e" not in heat_map("m", ["r"], ["a", "b"], [[0.5, 1.0]], value_range=(0.0, 1.0))


def test_a_large_heat_map_is_a_picture_without_numbers() -> None:
    names = [f"h{number:03}" for number in range(60)]
    svg = heat_map("m", names, names, [[row / 60 for _ in names] for row in range(60)])
    shown = texts(svg)
    assert "h000" in shown
    assert "h001" not in shown
    assert not any(re.fullmatch(r"0\.\d\d", text) for text in shown)
    assert "data:image/png;base64," in svg
    assert len(svg) < 60_000


@pytest.mark.parametrize("value", [0.3, None])
def test_a_heat_map_of_one_value_or_none(value: float | None) -> None:
    assert ("0.30" if value else "–") in texts(heat_map("m", ["r"], ["c"], [[value]]))


def test_long_titles_of_columns_are_slanted_and_short_ones_take_two_lines() -> None:
    values = [[0.1] * 6]
    assert "rotate(-30" in heat_map("m", ["r"], [f"hospital-{number}" for number in range(6)], values)
    svg = heat_map("m", ["r"], [f"surface {letter}" for letter in "abcdef"], values)
    assert "rotate(-30" not in svg
    assert "surface" in texts(svg)


def test_a_band_lies_behind_its_line() -> None:
    plain = Line(points=[(0.5, 0.1), (2.5, 0.3)], colour=BLUE)
    banded = Line(points=plain.points, colour=BLUE, band=[(0.5, 0.0, 0.2), (2.5, 0.2, 0.4)])
    without, with_band = (
        curve_chart("b", [line], x_label="MB", y_label="Dice", x_axis="linear") for line in (plain, banded)
    )
    assert "fill-opacity: 0.3" in with_band
    assert "fill-opacity: 0.3" not in without
    assert "0.50" in texts(with_band)  # the axis does not count in whole numbers


def test_names_are_drawn_where_every_font_has_them() -> None:
    assert drawable("north", "#1") == "north"
    assert drawable("病院", "#1") == "#1"
    assert drawable("a\nb", "#1") == "#1"
    assert drawable("x" * 23, "#1") == "x" * 21 + "~"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("#000000", "#ffffff", 21.0), ("#777777", "#ffffff", 4.48), ("#abcdef", "#abcdef", 1.0)],
)
def test_contrast_is_that_of_the_guidelines(one: str, other: str, expected: float) -> None:
    """#777777 on white misses 4.5 by a hair: ((119/255 + 0.055) / 1.055)^2.4 = 0.1845, and 1.05 / 0.2345 = 4.48."""
    assert contrast(one, other) == pytest.approx(expected, abs=0.005)
    assert contrast(other, one) == contrast(one, other)


def test_a_map_writes_its_numbers_and_a_dash_where_there_is_none() -> None:
    found = texts(heat_map("h", ["a", "b"], ["x", "y"], [[0.5, None], [0.25, 0.125]], form="{:.3f}", framed=[(0, 0)]))
    assert {"0.500", "0.250", "0.125", "–", "a", "b", "x", "y"} <= set(found)


def test_differences_are_white_at_zero_blue_above_and_orange_below() -> None:
    svg = difference_map("d", ["a"], ["x", "y", "z"], [[-0.1, 0.0, 0.1]])
    fills = re.findall(r"fill: (#[0-9a-f]{6})", svg)
    assert {"#e69f00", "#0072b2"} <= set(fills)
    assert fills.index("#e69f00") < fills.index("#0072b2")
    assert {"-0.100", "+0.000", "+0.100"} <= set(texts(svg))


def test_equal_numbers_can_be_mapped() -> None:
    assert texts(heat_map("h", ["a"], ["x"], [[0.5]], form="{:.3f}")).count("0.500") == 1
    assert "+0.000" in texts(difference_map("d", ["a"], ["x"], [[0.0]]))
