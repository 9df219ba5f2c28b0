"""What every page has in common: readable colours, tables that can be read aloud."""

from __future__ import annotations

import re

import pytest

from wardround.simulator.reports.figures import contrast
from wardround.simulator.reports.page import STYLE, Drawing, Html, Section, Table, page, tag, wide


def palette(after: str) -> dict[str, str]:
    """The colours that the page's style sets after a piece of it, six digits each."""
    block = STYLE.partition(after)[2].partition("}")[0]
    found = dict(re.findall(r"--([a-z-]+): #([0-9a-f]+)", block))
    return {
        name: "#" + (value if len(value) == 6 else "".join(2 * letter for letter in value))
        for name, value in found.items()
    }


LIGHT, DARK, PRINT = (
    palette(after) for after in (":root {", "(prefers-color-scheme: dark) { :root {", "@media print { :root {")
)


@pytest.mark.parametrize("colours", [LIGHT, DARK, PRINT])
@pytest.mark.parametrize(
    ("text", "behind"),
    [("text", "page"), ("dim", "page"), ("link", "page"), ("text", "box"), ("dim", "box"), ("text", "warn")],
)
def test_text_stands_out_from_what_is_behind_it(colours: dict[str, str], text: str, behind: str) -> None:
    assert contrast(colours[text], colours[behind]) >= 4.5


def test_a_table_says_what_its_headers_head() -> None:
    html = Table(header=("name", "x"), rows=(("a", "1"),), footer=(("mean", "1"),)).html()
    assert re.findall(r'<th scope="(\w+)">(\w+)</th>', html) == [
        ("col", "name"), ("col", "x"), ("row", "a"), ("row", "mean"),
    ]  # fmt: skip


def test_what_is_wide_scrolls_by_itself_over_its_caption() -> None:
    html = wide(Drawing(name="x", picture=Html("<svg></svg>"), caption="Sites."))
    assert html == (
        '<figure><div class="scroll wide" tabindex="0"><svg></svg></div><figcaption>Sites.</figcaption>'
        '<ul class="legend"></ul></figure>'
    )


def test_a_section_is_linked_by_its_title() -> None:
    html = page(title="t", head=tag("h1", "t"), sections=[Section(title="Dice & co", body=Html("x"))])
    assert '<a href="#dice-co">Dice &amp; co</a>' in html
    assert '<section id="dice-co"><h2>Dice &amp; co</h2>x</section>' in html
