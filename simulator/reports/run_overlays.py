"""The stored slices of a run's test volumes as pictures of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import file_stem
from ..results import RunRecords
from .page import Html, Section, details, figure, join, legend, note, number_text, png_picture, tag

MANY_HOSPITALS = 8
"""With more of them, the slices of each are folded away, and smaller."""


def no_slices() -> Section:
    """In place of :func:`slices_section`, on request."""
    return Section(title="Slices", body=note("Slices of the hospitals' volumes were left out of this page on request."))


def slices_section(records: RunRecords) -> Section:
    """The best, the median and the worst test volume of each hospital.

    Raises:
        ValueError: A file of slices is damaged.
    """
    stored = stored_slices(records)
    if not stored:
        return Section(title="Slices", body=note("No slices are stored in this run directory."))
    many = len(stored) > MANY_HOSPITALS
    parts = [_hospital_slices(name, path, many) for name, path in stored.items()]
    explained = "Area: prediction. Outline: truth. Slices as stored in the file, in the proportions of the body."
    return Section(title="Slices", body=join([note(explained), class_legend(records.classes), *parts]))


def stored_slices(records: RunRecords) -> dict[str, Path]:
    """The file of slices of every hospital that has one."""
    found = {name: records.path / "overlays" / f"{file_stem(name)}.npz" for name in records.hospitals}
    return {name: path for name, path in found.items() if path.is_file()}


def class_legend(classes: Sequence[str]) -> Html:
    """The colours of the classes in slices."""
    from .figures import CLASS_COLOURS

    return legend(("■", CLASS_COLOURS[place % len(CLASS_COLOURS)], name) for place, name in enumerate(classes))


def _hospital_slices(hospital: str, path: Path, many: bool) -> Html:
    pictures = hospital_slices(hospital, path, many)
    return details(hospital, pictures) if many else join([tag("h3", hospital), pictures])


def hospital_slices(who: str, path: Path, many: bool) -> Html:
    """The slices that a run stored of one hospital beside each other.

    Args:
        who: Whose they are, for readers who do not see them.
        path: The file.
        many: Whether there are many on the page: they are smaller then.

    Raises:
        ValueError: The file is damaged.
    """
    slices = _read_overlays(path)
    ranks = {1: ("only",), 2: ("best", "worst"), 3: ("best", "median", "worst")}[len(slices["case"])]
    shown = [_slice_figure(slices, place, f"{who}, {rank} volume", many) for place, rank in enumerate(ranks)]
    return tag("div", *shown, class_="slices")


def _slice_figure(slices: Mapping[str, NDArray[Any]], place: int, what: str, many: bool) -> Html:
    from .figures import overlay_png

    most = max(slices["image"].shape[1:])
    row_mm, column_mm = slices["spacing_mm"][place].tolist()
    png = overlay_png(
        slices["image"][place],
        slices["truth"][place],
        slices["prediction"][place],
        spacing_mm=(row_mm, column_mm),
        side=int(np.clip(most, 160, 256) if many else np.clip(most, 320, 512)),
    )
    dice = float(slices["dice"][place])
    score = number_text(dice if np.isfinite(dice) else None)
    text = f"Dice {score}, {slices['case'][place]}, slice {slices['slice'][place]}"
    caption = f"{what.rpartition(', ')[2].capitalize()}: {text}"
    return figure(png_picture(png, f"Prediction and truth, {what}: {text}"), caption)


def _read_overlays(path: Path) -> dict[str, NDArray[Any]]:
    wanted = ("image", "truth", "prediction", "case", "slice", "dice", "spacing_mm")
    try:
        with np.load(path, allow_pickle=False) as file:
            slices = {name: file[name] for name in wanted}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path}: expected the arrays {', '.join(wanted)}, but reading it failed ({error})") from error
    shapes = {name: array.shape for name, array in slices.items()}
    same = len({shapes[name] for name in ("image", "truth", "prediction")}) == 1
    if not same or len({shape[0] for shape in shapes.values()}) != 1 or not 1 <= len(slices["case"]) <= 3:
        raise ValueError(f"{path}: expected 1 to 3 slices of one size in every array, got shapes {shapes!r}")
    return slices
