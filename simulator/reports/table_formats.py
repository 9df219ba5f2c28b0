"""A table as a file for other programs: Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv as csv_files
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .page import Table


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown, the note below it. Source: GitHub Flavored Markdown, "Tables"."""
    rule = ("---", *("---:" for _ in table.header[1:]))
    rows = [table.header, *table.rows, *table.footer]
    lines = [_piped(list(map(_markdown_text, row))) for row in rows]
    note = ["", _markdown_text(table.note)] if table.note else []
    return "\n".join([lines[0], _piped(rule), *lines[1:], *note, ""])


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_text(text: str) -> str:
    """Text that no renderer takes for markup. Underscores within a word are none."""
    escaped = re.sub(r"([\\|*`<>&$~])", r"\\\1", " ".join(text.split()))
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", escaped)
    return escaped.replace("](", r"\](")


def latex(table: Table) -> str:
    r"""A ``tabular`` with the rules of booktabs, to be read by ``\input`` inside a ``table`` environment.

    Names are left in their own script: other than Latin needs XeLaTeX or LuaLaTeX.
    """
    columns = "l" + "r" * (len(table.header) - 1)
    parts = [[table.header], table.rows, table.footer]
    body = "\\midrule\n".join("".join(map(_latex_row, rows)) for rows in parts if rows)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{columns}}}",
        f"\\toprule\n{body}\\bottomrule",
        "\\end{tabular}",
    ]
    if table.note:
        lines.append(f"\\par\\smallskip\n\\parbox{{\\linewidth}}{{\\footnotesize {_latex_text(table.note)}}}")
    return "\n".join([*lines, ""])


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(_latex_text, cells))} \\\\\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after the end of a row it would be read as a length, and a star as "no page break"
    "*": "{*}",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "…": r"\ldots{}",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "Δ": r"$\Delta$",
    "σ": r"$\sigma$",
    "ε": r"$\varepsilon$",
    "²": "$^2$",
    "°": r"$^\circ$",
}
"""What LaTeX reads as a command, and what its Computer Modern fonts lack."""


_LETTERS = re.compile(r"(?P<minus>(?<![\w.)-])-(?=\.?\d))|(?P<hyphens>-{2,})|.")


def _latex_text(text: str) -> str:
    """Text as LaTeX sets it: the sign of a number becomes a minus, neighbouring hyphens do not become a dash."""
    return _LETTERS.sub(_latex_letters, " ".join(text.split()))


def _latex_letters(found: re.Match[str]) -> str:
    if found.lastgroup == "minus":
        return "$-$"
    return "{}".join(found[0]) if found.lastgroup == "hyphens" else _LATEX.get(found[0], found[0])


def csv(table: Table) -> str:
    """The cells as they are, header first and footer last; without the note."""
    text = io.StringIO()
    csv_files.writer(text, lineterminator="\n").writerows([table.header, *table.rows, *table.footer])
    return text.getvalue()
