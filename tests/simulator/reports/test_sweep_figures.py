"""The pictures of a sweep: what is in them, where names go, and that names cannot break them."""

from __future__ import annotations

import math
import re
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from wardround.simulator.reports.figures import heat_map
from wardround.simulator.reports.sweep_figures import (
    FEW,
    Box,
    Course,
    Dot,
    Guide,
    _covered,
    _free_place,
    against_number,
    apart,
    band_chart,
    bytes_tick,
    forest,
    interval_text,
    mark,
    powers_of_two,
    round_numbers,
    scatter,
    small_courses,
)

EVIL = '<b>$x$ & "中" _1'


def texts(svg: str) -> list[str]:
    """The texts of a drawing, in the order in which they are drawn; it must be well-formed."""
    root = ET.fromstring(svg)
    return ["".join(item.itertext()).strip() for item in root.iter() if item.tag.endswith("text")]


def dots(number: int, at: float = 1e6) -> list[Dot]:
    return [
        Dot(name=f"variant {n}", mark=mark(n), value=0.5 + 0.01 * n, low=0.45, high=0.6, at=at * (n + 1))
        for n in range(number)
    ]


def courses(number: int) -> list[Course]:
    points = [(float(r), 0.1 * r, 0.1 * r - 0.02, 0.1 * r + 0.02) for r in range(5)]
    return [Course(name=f"variant {n}", mark=mark(n), points=points) for n in range(number)]


# ---- looks and texts -------------------------------------------------------------------------------------------------


def test_the_first_48_variants_look_different_and_the_first_six_differ_in_colour_and_mark() -> None:
    looks = [mark(place) for place in range(48)]
    assert len(set(looks)) == 48
    assert len({look.colour for look in looks[:6]}) == len({look.marker for look in looks[:6]}) == 6


def test_interval_text() -> None:
    assert interval_text(0.7119, 0.69, 0.7334) == "0.712 [0.690, 0.733]"
    assert interval_text(-0.02, None, None, signed=True) == "-0.020"


@pytest.mark.parametrize(("values", "expected"), [([1, 2, 64], True), ([0.5, 4], True), ([2], False), ([1, 6], False)])
def test_powers_of_two(values: list[float], expected: bool) -> None:
    assert powers_of_two(values) is expected


def test_sizes_at_an_axis_have_no_needless_zeros() -> None:
    assert [bytes_tick(size) for size in (1e6, 2.5e6, 3e10)] == ["1 MB", "2.5 MB", "30 GB"]


@pytest.mark.parametrize("low", [1e-3, 0.7, 3.0, 9e5, 4e12])
@pytest.mark.parametrize("ratio", [1.2, 3.0, 50.0, 1e5, 1e9])
def test_round_numbers_are_inside_few_and_at_least_one(low: float, ratio: float) -> None:
    found = round_numbers(low, low * ratio)
    assert 1 <= len(found) <= 6
    assert all(low <= number <= low * ratio for number in found)
    assert found == sorted(found)


# ---- places of names -------------------------------------------------------------------------------------------------


def test_places_are_kept_where_there_is_room() -> None:
    assert apart([0.9, 0.1, 0.5], 0.1) == [0.9, 0.1, 0.5]


def test_places_move_apart_around_their_middle() -> None:
    """0.5, 0.5, 0.52 at a distance of 0.1: mean 0.5067, so 0.4067, 0.5067, 0.6067."""
    assert apart([0.5, 0.5, 0.52], 0.1) == pytest.approx([0.506666667 - 0.1, 0.506666667, 0.506666667 + 0.1])


@pytest.mark.parametrize("wanted", [[1.0] * 9, [0.0] * 9, [-3.0, 0.5, 7.0], [0.95, 1.0, 0.98, 0.2, 0.21]])
def test_places_stay_between_0_and_1_and_do_not_touch(wanted: list[float]) -> None:
    found = apart(wanted, 0.1)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in found)
    assert all(b - a > 0.1 - 1e-6 for a, b in zip(sorted(found), sorted(found)[1:], strict=False))


def test_names_find_free_places_around_one_spot() -> None:
    """Eight names of 60 points at the same dot: none covers another or the dot."""
    spot, inside = (200.0, 100.0), (0.0, 0.0, 400.0, 200.0)
    taken: list[Box] = [(195.5, 95.5, 204.5, 104.5)]
    for _ in range(8):
        box = _free_place(spot, 60.0, taken, inside)
        assert _covered(box, taken) == 0.0
        taken.append(box)
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= 400 and box[3] <= 200 for box in taken)


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_a_forest_names_every_row_and_writes_its_numbers() -> None:
    found = texts(forest("f", [replace(dot, seeds=(0.4, 0.5)) for dot in dots(3)], x_label="difference"))
    assert {"variant 0", "variant 2", "+0.500 [+0.450, +0.600]", "difference"} <= set(found)


@pytest.mark.parametrize(("number", "named"), [(FEW, True), (FEW + 1, False)])
def test_dots_are_named_as_long_as_they_are_few(number: int, named: bool) -> None:
    found = texts(scatter("s", dots(number), [Guide(name="pooled 0.550", value=0.55)], x_label="bytes"))
    assert ("variant 0" in found) is named
    assert "pooled 0.550" in found


def test_a_reference_far_away_is_named_with_an_arrow_and_does_not_press_the_others() -> None:
    far = scatter("s", dots(3), [Guide(name="zero-shot 0.010", value=0.01)], x_label="bytes")
    assert "↓ zero-shot 0.010" in texts(far)
    ticks = [float(text) for text in texts(far) if re.fullmatch(r"0\.\d+", text)]
    assert min(ticks) > 0.3


def test_dots_at_the_same_cost_are_beside_each_other() -> None:
    same = scatter("s", [replace(dot, at=1e6) for dot in dots(3)], x_label="bytes")
    uses = re.findall(r'<use xlink:href="[^"]*" x="([\d.]+)"', same)
    places = sorted({round(float(x), 1) for x in uses})
    assert len(places) >= 3


def test_one_cost_that_all_share_is_the_only_one_at_the_axis() -> None:
    """Dots are moved aside of it: ticks at 160 and 200 would make costs of that."""
    same = scatter("s", [replace(dot, at=180.0) for dot in dots(3)], x_label="steps", logarithmic=False)
    assert [text for text in texts(same) if re.fullmatch(r"\d+", text)] == ["180"]


def test_a_name_is_not_nearer_to_another_dot() -> None:
    """A second dot 12 points to the right: a name that begins above that one would be read as its; higher is clear."""
    spot, other, inside = (100.0, 100.0), (112.0, 100.0), (0.0, 0.0, 200.0, 200.0)
    taken = [(x - 4.5, y - 4.5, x + 4.5, y + 4.5) for x, y in (spot, other)]
    taken.append((0.0, 90.0, 95.0, 110.0))
    assert _free_place(spot, 50.0, taken, inside)[0] == 112.0
    assert _free_place(spot, 50.0, taken, inside, [other])[0] == 75.0


def test_one_dot_without_an_interval_can_be_drawn() -> None:
    alone = [Dot(name="only", mark=mark(0), value=0.4, at=0.0)]
    assert "only" in texts(scatter("s", alone, x_label="steps", logarithmic=False))
    assert "+0.400" in texts(forest("f", alone, x_label="difference"))


def test_courses_are_named_at_their_ends_as_long_as_they_are_few() -> None:
    assert "variant 2" in texts(band_chart("b", courses(3), x_label="round", y_label="Dice"))
    assert "variant 2" not in texts(band_chart("b", courses(FEW + 1), x_label="round", y_label="Dice"))


def test_points_at_zero_bytes_are_left_out_of_a_logarithmic_axis() -> None:
    svg = band_chart("b", courses(1), x_label="bytes", y_label="Dice", logarithmic=True)
    assert "nan" not in svg.lower()
    assert not any(text.startswith("0 ") for text in texts(svg))


def test_small_courses_of_nearly_equal_numbers_have_short_ticks() -> None:
    points = [(float(r), 0.999999 + 1e-8 * r, None, None) for r in range(4)]
    found = texts(small_courses("m", [Course(name="a", mark=mark(0), points=points)]))
    assert all(len(text) <= 6 for text in found)


def test_a_setting_of_powers_of_two_has_a_tick_at_each_evenly() -> None:
    """1, 2, 4 on a logarithmic axis: the middle tick is half way; 1, 2, 3, 10 are on a linear one."""
    line = replace(courses(1)[0], points=[(1.0, 0.5, 0.4, 0.6), (2.0, 0.6, None, None), (4.0, 0.7, 0.6, 0.8)])
    svg = against_number("a", [line], x_label="method.lora.rank", y_label="Dice")
    assert {"1", "2", "4", "method.lora.rank"} <= set(texts(svg))
    ticks = re.findall(r'id="a-xtick_\d+".*?<use [^>]*x="([\d.]+)"', svg, flags=re.S)
    first, middle, last = map(float, ticks[:3])
    assert math.isclose(middle - first, last - middle, abs_tol=0.01)


def test_names_are_text_and_nothing_else() -> None:
    """Markup, mathematics and letters that the font lacks are drawn as they are, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = [
            forest("f", [replace(dots(1)[0], name=EVIL)], x_label=EVIL),
            scatter(
                "s", [replace(dots(1)[0], name=EVIL)], [Guide(name=EVIL, value=0.5)], x_label="bytes", y_label=EVIL
            ),
            band_chart("b", [replace(courses(1)[0], name=EVIL)], x_label="round", y_label="Dice"),
            heat_map("h", [EVIL], [EVIL], [[0.5]]),
        ]
    assert all(EVIL in texts(svg) for svg in pictures)


def test_pictures_are_the_same_every_time_and_have_ids_of_their_own() -> None:
    first, again = (scatter("one", dots(4), x_label="bytes") for _ in range(2))
    assert first == again
    other = scatter("two", dots(4), x_label="bytes")
    assert not set(re.findall(r' id="([^"]*)"', first)) & set(re.findall(r' id="([^"]*)"', other))
