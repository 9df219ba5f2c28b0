"""What each hospital got: rows that can be counted by hand, tables that fit, pictures of few and many hospitals."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wardround.datasets.contract import Case, Cases, Federation
from wardround.datasets.facts import Facts
from wardround.simulator.reports.data_tables import (
    COMMON,
    HospitalRow,
    federation_rows,
    figure,
    in_words,
    png,
    table,
    text,
)

CLASSES = ("kidney", "tumour")


def case(name: str, patient: str | None = None) -> Case:
    return Case(name=name, patient=patient or name, image=Path(name), label=Path(name))


def fact(slices: int, slice_mm: float, *label_ml: float) -> Facts:
    return Facts(
        shape=(slices, 8, 8),
        spacing_mm=(slice_mm, 0.5, 0.75),
        label_ml=label_ml,
        percentiles=(-slices, 0.0, 10.0 * slices, 20.0, 1000.0 * slices),
        histogram=(1.0,),
        low=0.0,
        high=1.0,
    )


FEDERATION = Federation(
    hospitals={
        "north": Cases(train=(case("a"), case("b", "a")), validation=(case("c"),), test=(case("d"),)),
        "south": Cases(train=(case("e"),), validation=(), test=()),
    },
    classes=CLASSES,
    common=(case("f"), case("g")),
    unseen={"east": (case("h"),)},
)

FACTS = {
    "a": fact(10, 3.0, 1.0, 0.0),
    "b": fact(30, 3.0, 5.0, 2.0),
    "c": fact(20, 5.0, 3.0, 0.5),
    "d": fact(40, 3.0, 4.0, 1.0),
    "e": fact(50, 2.5, 123.4, 1234.5),
    "f": fact(60, 1.0, 7.0, 7.0),
    "g": fact(60, 1.0, 7.0, 7.0),
    "h": fact(70, 1.0, 8.0, 8.0),
}


@pytest.fixture
def rows() -> list[HospitalRow]:
    return federation_rows(FEDERATION, FACTS)


def many(number: int, classes: int = 1) -> list[HospitalRow]:
    """Hospitals with 1, 2, 3, 4, 1, ... cases."""
    rows = []
    for place in range(number):
        cases = 1 + place % 4
        volumes = tuple(tuple(1.0 + place + label + case for case in range(cases)) for label in range(classes))
        rows.append(
            HospitalRow(
                name=f"hospital-{place + 1:03d}",
                role="trains",
                train=cases - cases // 2,
                validation=0,
                test=cases // 2,
                patients=cases,
                unmeasured=0,
                slices=(24,) * cases,
                slice_mm=(1.0,) * cases,
                pixel_mm=(1.0,) * (2 * cases),
                label_ml=volumes,
                percentiles=((0.0,) * cases,) * 5,
            )
        )
    return rows


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_rows_count_and_collect(rows: list[HospitalRow]) -> None:
    assert [(row.name, row.role) for row in rows] == [
        ("north", "trains"),
        ("south", "trains"),
        ("east", "unseen"),
        (COMMON, "common"),
    ]
    assert [(row.train, row.validation, row.test) for row in rows] == [(2, 1, 1), (1, 0, 0), (0, 0, 1), (0, 0, 2)]
    assert [row.patients for row in rows] == [3, 1, 1, 2]  # a and b are scans of one patient
    north = rows[0]
    assert north.cases == 4
    assert north.slices == (10, 30, 20, 40)
    assert north.slice_mm == (3.0, 3.0, 5.0, 3.0)
    assert set(north.pixel_mm) == {0.5, 0.75}
    assert north.label_ml == ((1.0, 5.0, 3.0, 4.0), (0.0, 2.0, 0.5, 1.0))
    assert north.percentiles[2] == (100.0, 300.0, 200.0, 400.0)


def test_a_case_without_facts_is_counted() -> None:
    known = {name: facts for name, facts in FACTS.items() if name not in "be"}
    north, south, *_ = federation_rows(FEDERATION, known)
    assert (north.cases, north.unmeasured, north.slices) == (4, 1, (10, 20, 40))
    assert (south.cases, south.unmeasured, south.slices) == (1, 1, ())
    lines = text([north, south], CLASSES).splitlines()
    assert lines[3].split() == ["south", "1", "0", "0", "1", *"––––––"]
    assert " ".join(lines).endswith("2 cases could not be measured.")


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_text(rows: list[HospitalRow]) -> None:
    """Medians of 10, 20, 30, 40 and of 1, 3, 4, 5; over all eight cases 45 slices and 6 ml."""
    assert (
        text(rows, CLASSES)
        == """\
hospital         train  validation  test  patients      slices  slice mm  pixel mm          intensity
─────────────────────────────────────────────────────────────────────────────────────────────────────
north                2           1     1         3  25 (10-40)       3-5  0.5-0.75  -25 / 250 / 25000
south                1           0     0         1          50       2.5  0.5-0.75  -50 / 500 / 50000
east (unseen)        0           0     1         1          70         1  0.5-0.75  -70 / 700 / 70000
common test set      0           0     2         2          60         1  0.5-0.75  -60 / 600 / 60000
─────────────────────────────────────────────────────────────────────────────────────────────────────
all                  3           1     4         7  45 (10-70)       1-5  0.5-0.75  -45 / 450 / 45000

hospital         kidney ml     tumour ml
────────────────────────────────────────
north            3.5 (1-5)    0.75 (0-2)
south                  123          1234
east (unseen)            8             8
common test set          7             7
────────────────────────────────────────
all              6 (1-123)  4.5 (0-1234)

Train, test: cases. Slices, ml: median over the cases (smallest-largest). Slice, pixel mm: spacing, smallest-largest.
Intensity: medians over the cases of the 0.5th, 50th and 99.5th percentile, after clipping. Unseen: does not train, its
test cases are scored with the global model."""
    )


def test_one_hospital_needs_no_sum_and_nobody_validating_no_column() -> None:
    made = table(many(1), CLASSES[:1])
    assert made.footer == ()
    assert made.header[:4] == ("hospital", "train", "test", "patients")


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_text_fits_the_width(classes: int) -> None:
    names = ["left ventricle wall", "a class with a name that does not end", "c", "d"][:classes]
    lines = text(many(100, classes), names).splitlines()
    assert max(map(len, lines)) <= 120
    assert sum(line.startswith("hospital-100") for line in lines) == (1 if classes == 1 else 2)  # blocks


def test_digits() -> None:
    row = replace(many(1)[0], percentiles=((-1024.4,), (0.0,), (0.01234,), (0.0,), (424_104.0,)))
    assert table([row], ("x",)).rows[0][7] == "-1024 / 0.0123 / 4.24e5"


def test_markdown(rows: list[HospitalRow]) -> None:
    lines = table([replace(rows[0], name="a|b\\c"), *rows[1:]], CLASSES).markdown().splitlines()
    assert lines[0].startswith("| hospital | train | validation | test | patients | slices |")
    assert lines[1] == "| --- |" + " ---: |" * 10
    assert lines[2].startswith("| a\\|b\\\\c | 2 | 1 | 1 | 3 | 25 (10-40) |")
    assert lines[6].startswith("| all | 3 | 1 | 4 | 7 |")
    assert lines[7] == ""
    assert lines[8].startswith("Train, test: cases.")


# ---- words and pictures ----------------------------------------------------------------------------------------------


def test_in_words(rows: list[HospitalRow]) -> None:
    assert in_words(rows, CLASSES) == (
        "2 hospitals with 3 training, 1 validation and 1 test cases. Fewest: south with 1; most: north with 4. "
        "Median volume of kidney: from 3.5 ml at north to 123 ml at south. "
        "Median volume of tumour: from 0.75 ml at north to 1234 ml at south. "
        "east (unseen): 1 test case. common test set: 2 test cases."
    )


def drawn_text(svg: str) -> list[str]:
    """The texts of a drawing, which must be well-formed."""
    return [
        (element.text or "").strip() for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def test_a_few_hospitals_are_named(rows: list[HospitalRow]) -> None:
    svg = figure(rows, CLASSES)
    found = drawn_text(svg)
    assert {"north", "south", "east (unseen)", COMMON, "train", "validation", "test"} <= set(found)
    assert {"cases", "kidney, ml", "tumour, ml"} <= set(found)
    assert svg == figure(rows, CLASSES)
    assert "currentColor" in svg


def test_many_hospitals_are_numbered() -> None:
    found = drawn_text(figure(many(100), ("kidney",)))
    assert {"1", "10", "50", "100", "hospital, in the order of the table"} <= set(found)
    assert not any(name.startswith("hospital-") for name in found)
    assert "validation" not in found  # nobody does


def test_names_are_text_and_never_markup(rows: list[HospitalRow]) -> None:
    """Mathematical signs stay as they are; names that not every font has become numbers."""
    plain = drawn_text(figure([replace(rows[0], name="$a_b$ <i>&")], ("$x^2$", "腎臓")))
    assert {"$a_b$ <i>&", "$x^2$, ml", "class 2, ml"} <= set(plain)
    foreign = drawn_text(figure([replace(rows[0], name="東京"), rows[1]], CLASSES))
    assert {"1", "2", "hospital, in the order of the table"} <= set(foreign)


def test_many_classes_are_drawn_together() -> None:
    names = [f"organ {number}" for number in range(8)]
    found = drawn_text(figure(many(2, classes=8), names))
    assert "all classes, ml" in found
    assert not any(name.startswith("organ") for name in found)
    assert "all classes: from 36 ml at hospital-001" in in_words(many(2, classes=8), names)  # 1 + 2 + ... + 8


def test_volumes_of_different_magnitude_are_drawn_on_a_logarithmic_axis(rows: list[HospitalRow]) -> None:
    """Kidneys 1 to 5 ml from zero; tumours 0 to 1234.5 ml in powers of ten, zero included."""
    assert {"0", "1", "10", "100", "1000"} <= set(drawn_text(figure(rows, CLASSES)))
    assert "1000" not in drawn_text(figure(rows[:1], CLASSES))


def test_hospitals_without_any_facts_are_drawn() -> None:
    drawn_text(figure(federation_rows(FEDERATION, {}), CLASSES))
    assert "Median" not in in_words(federation_rows(FEDERATION, {}), CLASSES)


def test_png_shows_the_proportions() -> None:
    """Blue and orange areas of the bars are as training and test cases: 6 to 4."""
    import io

    from matplotlib.image import imread

    picture = (imread(io.BytesIO(png(many(4), ("kidney",))))[:, :, :3] * 255).round().astype(int)
    blue, orange = (
        (abs(picture - np.array(colour)).max(2) <= 2).sum() for colour in ((0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00))
    )
    assert blue / orange == pytest.approx(6 / 4, rel=0.1)
    assert (picture[:2] == 255).all()  # on white
