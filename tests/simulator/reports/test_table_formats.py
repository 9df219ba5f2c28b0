"""A table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re

import pytest

from wardround.simulator.reports.page import Table

TABLE = Table(
    header=("hospital", "Dice_kidney", "gain"),
    rows=(("a_b & 100 %", "0.712", "-0.021 [-0.050, 0.010]"), ("[north]*", "–", "0.5-5")),
    footer=(("mean", "0.712", ""),),
    note="Cost: $5 | 2^3, --out x.",
)


def test_markdown() -> None:
    assert TABLE.markdown().splitlines() == [
        "| hospital | Dice_kidney | gain |",
        "| --- | ---: | ---: |",
        r"| a_b \& 100 % | 0.712 | -0.021 [-0.050, 0.010] |",
        r"| [north]\* | – | 0.5-5 |",
        "| mean | 0.712 |  |",
        "",
        r"Cost: \$5 \| 2^3, --out x.",
    ]


@pytest.mark.parametrize(
    ("cell", "markdown"),
    [
        ("a|b\\c", r"a\|b\\c"),
        ("<img src=x>", r"\<img src=x\>"),
        ("[x](http://a)", r"[x\](http://a)"),
        ("_x_ flap_sam", r"\_x\_ flap_sam"),
        ("`a` ~b~ **c**", r"\`a\` \~b\~ \*\*c\*\*"),
        ("two\nlines", "two lines"),
    ],
)
def test_no_cell_is_markup_in_markdown(cell: str, markdown: str) -> None:
    table = Table(header=("name", "x"), rows=((cell, "1"),))
    assert table.markdown().splitlines()[2] == f"| {markdown} | 1 |"


def test_latex() -> None:
    assert TABLE.latex().splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"hospital & Dice\_kidney & gain \\",
        r"\midrule",
        r"a\_b \& 100 \% & 0.712 & $-$0.021 {[}$-$0.050, 0.010] \\",
        r"{[}north]{*} & -- & 0.5-5 \\",
        r"\midrule",
        r"mean & 0.712 &  \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip",
        r"\parbox{\linewidth}{\footnotesize Cost: \$5 \textbar{} 2\textasciicircum{}3, -{}-out x.}",
    ]


def test_latex_without_footer_and_note_is_a_table_alone() -> None:
    lines = Table(header=("a",), rows=(("b",),)).latex().splitlines()
    assert lines[1:] == [
        r"\begin{tabular}{l}", r"\toprule", r"a \\", r"\midrule", r"b \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "latex"),
    [
        ("a\\b{c}", r"a\textbackslash{}b\{c\}"),
        ("#1 ~ <x>", r"\#1 \textasciitilde{} \textless{}x\textgreater{}"),
        ("\"y\" `z`", r"''y'' \textasciigrave{}z\textasciigrave{}"),
        ("1e-05", "1e-05"),
        ("-.5 (-1) a-1", "$-$.5 ($-$1) a-1"),
        ("0.5 ± 0.1 × 2 …", r"0.5 $\pm$ 0.1 $\times$ 2 \ldots{}"),
    ],
)  # fmt: skip
def test_no_cell_is_a_command_in_latex(cell: str, latex: str) -> None:
    assert Table(header=("x", "y"), rows=((cell, "1"),)).latex().splitlines()[5] == rf"{latex} & 1 \\"


def test_every_special_letter_of_latex_is_escaped() -> None:
    """What is left once commands and their braces are gone has no letter that TeX acts on."""
    cell = "".join(map(chr, range(32, 127))).replace("&", "")
    line = Table(header=("x",), rows=((cell,),)).latex().splitlines()[5].removesuffix(r" \\")
    bare = re.sub(r"\\[a-z]+\{\}|\\[\\{}$&#_%]|\$[^$]*\$|\{[\[\]*]?\}", "", line)
    assert not set(bare) & set("\\{}$&#_%~^")
    depth = 0
    for letter in re.sub(r"\\[{}]", "", line):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0


def test_csv_has_the_cells_as_they_are() -> None:
    table = Table(header=("a", "b"), rows=(('x, "y"', "–"), ("two\nlines", "-1")), footer=(("mean", ""),), note="no")
    assert list(csv.reader(io.StringIO(table.csv()))) == [
        ["a", "b"], ['x, "y"', "–"], ["two\nlines", "-1"], ["mean", ""],
    ]  # fmt: skip
