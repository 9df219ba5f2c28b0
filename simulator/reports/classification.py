"""What a run that classifies shows beside its scores: who has which classes, what was taken for what, and pictures.

Needs no torch.

Legend: C classes, M pictures of a hospital, S image size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import file_stem
from ..headline import CLASSIFICATION
from ..results import UNSEEN, RunRecords
from .page import (
    Drawing,
    Html,
    Section,
    Table,
    details,
    drawing_files,
    figure,
    figures,
    join,
    note,
    number_text,
    png_picture,
    svg_picture,
    tag,
)

MANY_HOSPITALS = 8
"""With more of them, the maps and pictures of each are folded away."""

MOST_MAPS = 32
"""With more hospitals, only the map of all of them together is drawn; the table has the numbers of each."""

TOGETHER = "all hospitals"
"""Who the images of all hospitals together belong to."""

Counts = Mapping[tuple[str, str], int]
"""Images by (true class, predicted class)."""


def classifies(records: RunRecords) -> bool:
    """Whether a run has images with a class each."""
    return records.headline.task == CLASSIFICATION.task


# ---- who has which classes -------------------------------------------------------------------------------------------


def class_section(records: RunRecords) -> Section | None:
    """The images of every class per hospital and split, as maps and a table; None where the run does not say."""
    counts = records.manifest.get("class_counts")
    return count_section(counts) if counts else None


def count_section(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Section:
    """The images of every class, per hospital and split, as maps and a table.

    Args:
        counts: Images by hospital, split and class; every split names every class.
    """
    classes = _classes(counts)
    drawn = [_split_drawing(split, counts, classes) for split in _splits(counts)]
    table = _class_table(counts, classes)
    body = join([figures(drawing.html() for drawing in drawn), details("Images per class as numbers", table.html())])
    return Section(title="Classes", body=body, tables={"classes": table}, drawings=drawing_files(drawn))


def _classes(counts: Mapping[str, Any]) -> list[str]:
    """Their names, in the order of the data set."""
    return list(dict.fromkeys(name for splits in counts.values() for classes in splits.values() for name in classes))


def _splits(counts: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(split for splits in counts.values() for split in splits))


def _split_drawing(split: str, counts: Mapping[str, Any], classes: Sequence[str]) -> Drawing:
    """A row per hospital that has images of the split, a column per class."""
    rows = {name: [splits[split].get(c, 0) for c in classes] for name, splits in counts.items() if split in splits}
    caption = f"Images of the split {split}: their number, coloured by the share of the hospital's images."
    words = f"Images per class and hospital, {split}: {sum(map(sum, rows.values()))} in all."
    return _map(f"classes-{split}", caption, words, rows, classes, "hospital", "class")


def _class_table(counts: Mapping[str, Any], classes: Sequence[str]) -> Table:
    rows = [
        (name, split, *(str(of.get(c, 0)) for c in classes), str(sum(of.values())))
        for name, splits in counts.items()
        for split, of in splits.items()
    ]
    return Table(header=("hospital", "split", *classes, "all"), rows=tuple(rows), note="Images of each class.")


# ---- what was taken for what -----------------------------------------------------------------------------------------


def confusion_section(records: RunRecords) -> Section | None:
    """Confusion matrices after the last round: of all hospitals together, and of each; None before there are any."""
    found = confusion_counts(records)
    splits = [split for split in ("test", UNSEEN) if any(at == split for _, at in found)] or ["validation"]
    shown = {key: counts for key, counts in found.items() if key[1] in splits}
    if not shown:
        return None
    together = [_drawing(records, *key, counts) for key, counts in shown.items() if key[0] is None]
    each = [_drawing(records, *key, counts) for key, counts in shown.items() if key[0] is not None]
    each = each if len(together) < len(each) <= MOST_MAPS else []  # one hospital is all hospitals
    table = _confusion_table(records, found)
    parts = [
        note(f"{_when(records)} Rows: the true class. Columns: the class that was predicted."),
        figures(drawing.html() for drawing in together),
        _folded("Each hospital", each),
        details("Confusion counts as numbers", table.html()),
    ]
    drawings = drawing_files([*together, *each])
    return Section(title="Confusion of classes", body=join(parts), tables={"confusion": table}, drawings=drawings)


def confusion_counts(records: RunRecords) -> dict[tuple[str | None, str], dict[tuple[str, str], int]]:
    """``{(hospital, split): {(true, predicted): images}}`` of the last round that has counts; hospital None: of all."""
    last = max((row.round for row in records.confusion), default=None)
    found: dict[tuple[str | None, str], dict[tuple[str, str], int]] = {}
    for row in records.confusion:
        if row.round == last:
            found.setdefault((row.hospital, row.split), {})[row.target, row.predicted] = row.count
    return found


def _when(records: RunRecords) -> str:
    return f"After round {max(row.round for row in records.confusion)}."


def _who(hospital: str | None, split: str) -> str:
    name = TOGETHER if hospital is None else hospital
    return name if split == "test" else f"{name} ({split})"


def _drawing(records: RunRecords, hospital: str | None, split: str, counts: Counts) -> Drawing:
    """A row per true class, coloured by the share of it that was taken for each class; the diagonal is framed."""
    classes = records.classes
    rows = {true: [counts.get((true, said), 0) for said in classes] for true in classes}
    images, right = sum(counts.values()), sum(counts.get((name, name), 0) for name in classes)
    who = _who(hospital, split)
    caption = f"{who}: {right} of {images} images right. Images, coloured by the share of their true class."
    name = f"confusion-{split}" if hospital is None else f"confusion-{split}-{file_stem(hospital)}"
    words = f"Confusion matrix, {who}: {right} of {images} images right."
    framed = [(place, place) for place in range(len(classes))]
    return _map(name, caption, words, rows, classes, "true class", "predicted class", framed)


def _confusion_table(records: RunRecords, found: Mapping[tuple[str | None, str], Counts]) -> Table:
    classes = records.classes
    rows = [
        (TOGETHER if hospital is None else hospital, split, true, *(str(counts.get((true, c), 0)) for c in classes))
        for (hospital, split), counts in found.items()
        for true in classes
    ]
    header = ("hospital", "split", "true class", *classes)
    return Table(header=header, rows=tuple(rows), note="Images of the true class by predicted class.")


def _map(
    name: str,
    caption: str,
    words: str,
    rows: Mapping[str, Sequence[int]],
    columns: Sequence[str],
    row_label: str,
    column_label: str,
    framed: Sequence[tuple[int, int]] = (),
) -> Drawing:
    """Counts as cells, coloured by their share of the row; a row of zeros has no colour."""
    from .figures import heat_map

    shares = [[count / sum(row) if sum(row) else None for count in row] for row in rows.values()]
    texts = [[str(count) for count in row] for row in rows.values()]
    drawing = heat_map(
        name,
        list(rows),
        columns,
        shares,
        texts=texts,
        value_range=(0.0, 1.0),
        framed=framed,
        row_label=row_label,
        column_label=column_label,
    )
    return Drawing(name=name, picture=svg_picture(drawing, words), caption=f"{caption} Dark blue: 0, yellow: all.")


def _folded(title: str, drawings: Sequence[Drawing]) -> Html:
    """Side by side, to be unfolded where they are many."""
    if not drawings:
        return Html("")
    shown = figures(drawing.html() for drawing in drawings)
    return details(title, shown) if len(drawings) > MANY_HOSPITALS else shown


# ---- pictures --------------------------------------------------------------------------------------------------------


def no_pictures() -> Section:
    """In place of :func:`pictures_section`, on request."""
    return Section(title="Images", body=note("Images of the hospitals were left out of this page on request."))


def pictures_section(records: RunRecords) -> Section:
    """The test images that the model was most sure of, wrong and right ones, of each hospital.

    Raises:
        ValueError: A file of pictures is damaged.
    """
    names = [*records.hospitals, *records.unseen]
    found = {name: records.path / "overlays" / f"{file_stem(name)}.npz" for name in names}
    stored = {name: path for name, path in found.items() if path.is_file()}
    if not stored:
        return Section(title="Images", body=note("No images are stored in this run directory."))
    explained = (
        "The images that the model was most sure of: first those that it got wrong, then those that it got right."
    )
    folded = len(stored) > MANY_HOSPITALS
    return Section(title="Images", body=join([note(explained), *_of_hospitals(stored, folded)]))


def _of_hospitals(stored: Mapping[str, Path], folded: bool) -> Iterator[Html]:
    for name, path in stored.items():
        shown = tag("div", *_figures(name, read_pictures(path)), class_="slices")
        yield details(name, shown) if folded else join([tag("h3", name), shown])


def _figures(hospital: str, pictures: Mapping[str, NDArray[Any]]) -> Iterable[Html]:
    from .figures import colour_png

    for place, case in enumerate(pictures["case"]):
        true, said = pictures["truth"][place], pictures["prediction"][place]
        sure = number_text(float(pictures["probability"][place]), 2)
        text = f"{said} ({sure})" if pictures["right"][place] else f"{true}, taken for {said} ({sure})"
        verdict = "Right" if pictures["right"][place] else "Wrong"
        side = int(np.clip(pictures["image"].shape[1], 160, 256))
        png = colour_png(pictures["image"][place], side)
        yield figure(png_picture(png, f"{hospital}, {case}: {text}"), f"{verdict}: {text}, {case}")


def read_pictures(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of ``overlays/<hospital>.npz``.

    Raises:
        ValueError: The file is damaged.
    """
    wanted = ("image", "case", "truth", "prediction", "probability", "right")
    try:
        with np.load(path, allow_pickle=False) as file:
            pictures = {name: file[name] for name in wanted}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path}: expected the arrays {', '.join(wanted)}, but reading it failed ({error})") from error
    image = pictures["image"]
    alike = {len(array) for array in pictures.values()} == {len(image)}
    if not alike or image.dtype != np.uint8 or image.ndim != 4 or image.shape[3] != 3:
        shapes = {name: array.shape for name, array in pictures.items()}
        raise ValueError(f"{path}: expected images (M, S, S, 3) of uint8 with M names each, got shapes {shapes!r}")
    return pictures
