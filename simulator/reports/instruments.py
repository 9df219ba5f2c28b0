"""The instruments of a run as a table and a picture: one row and one curve per layer."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import InstrumentRow
from .page import Drawing, Html, Table, details, figures, join, number_text, svg_picture, tag

COLUMNS = {
    "ideal_distance": "distance from ideal mean",
    "energy_kept": "energy kept",
    "effective_rank": "effective rank",
    "gauge_imbalance": "gauge imbalance",
    "hospital_step": "hospital step",
    "drift": "drift",
    "cosine": "cosine",
    "server_step": "server step",
}
"""Instruments in reading order, with the words that head their columns."""

NOTE = (
    "Distance: of the new product from the weighted mean of the hospitals' products, relative to that mean. Energy"
    " kept: what the best pair of this rank could keep of it. Gauge imbalance: 0 when B and A carry the product alike,"
    " 1 when one of them is zero. Steps: Frobenius norms; drift: 0 when hospitals step alike, 1 when steps cancel."
)


def layers_body(rows: Sequence[InstrumentRow]) -> Html:
    """The layers at the last measured round, and the singular values of their ideal means."""
    last = max(row.round for row in rows)
    parts = [tag("p", f"Instruments after round {last}, layer by layer.")]
    drawn = spectrum_drawings(rows)
    if drawn:
        parts.append(figures(each.html() for each in drawn))
    return join([*parts, details("Every layer as numbers", last_layers(rows).html())])


def last_layers(rows: Sequence[InstrumentRow]) -> Table:
    """The layers at the last measured round."""
    return layer_table(_last(rows))


def _last(rows: Sequence[InstrumentRow]) -> list[InstrumentRow]:
    last = max((row.round for row in rows), default=0)
    return [row for row in rows if row.round == last]


def spectrum_drawings(rows: Sequence[InstrumentRow]) -> list[Drawing]:
    """The singular values of the layers at the last measured round; none where all are zero."""
    pictured = [row for row in _last(rows) if any(row.spectrum)]
    return [_spectra(pictured)] if pictured else []


def layer_table(layers: Sequence[InstrumentRow]) -> Table:
    """One row per layer."""
    return Table(
        header=("layer", *COLUMNS.values()),
        rows=tuple((layer.name, *(instrument_text(getattr(layer, name)) for name in COLUMNS)) for layer in layers),
        note=NOTE,
    )


def instrument_text(value: float | None) -> str:
    """Three significant digits; instruments span many orders of magnitude."""
    return number_text(value) if value is None else f"{value:.3g}"


def _spectra(layers: Sequence[InstrumentRow]) -> Drawing:
    from .figures import INK, SKY, Line, curve_chart

    shares = [[value / layer.spectrum[0] for value in layer.spectrum] for layer in layers if layer.spectrum[0] > 0]
    longest = max(map(len, shares))
    mean = [
        sum(share[i] for share in shares if len(share) > i) / sum(len(share) > i for share in shares)
        for i in range(longest)
    ]
    thin = [Line(points=list(enumerate(share, start=1)), colour=SKY, width=0.8) for share in shares]
    lines = [*thin, Line(points=list(enumerate(mean, start=1)), colour=INK, width=2.4, marker="o")]
    alt = "Singular values relative to the first, mean over layers: " + ", ".join(f"{value:.2g}" for value in mean)
    drawing = curve_chart("spectrum", lines, x_label="direction", y_label="singular value / first", logarithmic=True)
    entries = [("━", "inherit", f"mean of {len(shares)} layers"), ("─", SKY, "one layer each")]
    caption = "Singular values of the ideal mean, relative to the largest."
    return Drawing(name="spectrum", picture=svg_picture(drawing, alt), caption=caption, entries=entries)
