"""Fed-ISIC2019: skin lesions under the dermatoscope, 23,247 images of ISIC 2019, eight classes, six centres.

Layout::

    <root>/ISIC_2019_Training_Input_preprocessed/ISIC_0000000.jpg   what FLamby's script makes of the images
    <root>/ISIC_2019_Training_Input/ISIC_0000000.jpg                the images themselves, for ``images_from: original``
    <root>/ISIC_2019_Training_GroundTruth.csv                       image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK
    <root>/ISIC_2019_Training_Metadata.csv                          image,...,lesion_id,...; for ``split: lesions``
    <root>/train_test_split                                         image,target,center,fold: FLamby's table (optional)

Which centre an image comes from and whether it tests is FLamby's; ``fed_isic2019.csv`` beside this file has it. The
classes come with the images. A table ``train_test_split`` in the root, with or without ``.csv``, replaces both.

Data card: docs/data/fed_isic2019.md. Source: Tschandl et al., Scientific Data 5:180161, 2018; Codella et al., arXiv
1710.05006; Combalia et al., BCN20000, arXiv 1908.02288; Ogier du Terrail et al., FLamby, NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from .contract import Case, Pool, Side, Task
from .folders import Missing, find_folder, make_pool, missing_problems
from .ham10000 import lesion_sides
from .pictures import Picture, read_picture, read_pictures
from .tables import Row, packaged, read_rows, side_of, table_problems

FOLDERS = {"preprocessed": "ISIC_2019_Training_Input_preprocessed", "original": "ISIC_2019_Training_Input"}
TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
TABLES = ("train_test_split", "train_test_split.csv")

SHORTER_SIDE = 224
"""Pixels of the shorter side of the preprocessed images."""

POWER = 6
"""Of the mean that shades of grey takes."""

LESION_TEST_FRACTION = 0.2
"""Of the lesions of each class, with ``split: lesions``; FLamby's split has a fifth of each centre's images too."""


@dataclass(frozen=True, kw_only=True)
class FedIsic2019:
    """The images of ISIC 2019 whose origin is known, at FLamby's centres ``center-0`` to ``center-5``.

    FLamby's script makes the shorter side 224 pixels and evens out the colours (:func:`shades_of_grey`); it does not
    crop. ``images_from: original`` does the same while it reads; preprocessed images are only cropped. The centre is
    what FLamby tests on; it trains on random crops of the same size, with random turns, scales, shears, colours and
    holes.

    Args:
        images_from: ``preprocessed``: the folder that FLamby's script wrote; ``original``: the challenge's images.
        colour_constancy: Whether colours are those under a grey light. Preprocessed images have them already, and can
            be had in no other way.
        crop: Pixels of the square that is cut from the centre; None: the whole image, whose sides are unequal.
        split: ``flamby``: the published one, which has images of one lesion on both sides; ``lesions``: a fifth of the
            lesions of each class tests.
        missing: What to do about a listed image whose file is not there: ``refuse``, or ``skip`` it.
    """

    task: ClassVar[Task] = "classification"
    classes: ClassVar[tuple[str, ...]] = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")

    images_from: Literal["preprocessed", "original"] = "preprocessed"
    colour_constancy: bool = True
    crop: int | None = 200
    split: Literal["flamby", "lesions"] = "flamby"
    missing: Missing = "refuse"

    def __post_init__(self) -> None:
        problems = missing_problems(self.missing)
        if self.images_from not in FOLDERS:
            problems.append(f"images_from: expected preprocessed or original, got {self.images_from!r}")
        if self.split not in ("flamby", "lesions"):
            problems.append(f"split: expected flamby or lesions, got {self.split!r}")
        if self.crop is not None and not 1 <= self.crop <= SHORTER_SIDE:
            problems.append(f"crop: expected 1 to {SHORTER_SIDE} pixels or nothing, got {self.crop!r}")
        if self.images_from == "preprocessed" and not self.colour_constancy:
            problems.append(
                "colour_constancy: expected true with images_from: preprocessed, whose colours are evened out already, "
                "got false; images_from: original reads the images as they were"
            )
        if problems:
            raise ValueError("; ".join(problems))

    def locate(self, root: Path | None) -> Path:
        """The folder with the images' folder: ``root`` or the environment's WARDROUND_DATA, or one in it.

        Raises:
            ValueError: there is none.
        """
        return find_folder(
            root,
            holds=lambda folder: (folder / FOLDERS[self.images_from]).is_dir(),
            names=("fed_isic2019", "isic2019"),
            expected=f"a folder {FOLDERS[self.images_from]}",
            source="FLamby's scripts fetch and preprocess the images (docs/data/fed_isic2019.md)",
        )

    def pool(self, root: Path) -> Pool:
        """The images of the tables.

        Raises:
            ValueError: a table cannot be read, or none of its images is here.
        """
        own = next((root / name for name in TABLES if (root / name).is_file()), None)
        table, rows = (own, read_rows(own, COLUMNS)) if own else _with_classes(root, self.classes)
        folder = root / FOLDERS[self.images_from]
        here = {path.stem for path in folder.glob("*.jpg")}
        if self.missing == "skip":
            rows = [row for row in rows if row["image"] in here]
        problems = [*table_problems(table, rows, ("image",)), *_row_problems(table, rows, len(self.classes))]
        sound = _sound(rows, len(self.classes))
        problems += [_lost(folder / f"{name}.jpg", table) for name in sound if name not in here]
        patients, sides = {name: name for name in sound}, {n: side_of(row["fold"]) for n, row in sound.items()}
        if self.split == "lesions":
            patients, sides, lacking = _by_lesion(root / METADATA, sound)
            problems += lacking
        cases = [_case(folder, row, patients[name], sides[name]) for name, row in sound.items() if name in here]
        return make_pool(root, cases, self.classes, problems)

    def images(self, cases: Sequence[Case]) -> Iterator[Picture]:
        """The image (H, W, 3) of every case, prepared. Raises DataError where one cannot be read."""
        return read_pictures(cases, self._prepared)

    def picture(self, path: Path) -> Picture:
        """The image (H, W, 3) of a file anywhere, prepared. Raises ValueError where it cannot be read."""
        return self._prepared(read_picture(path))

    def _prepared(self, picture: Picture) -> Picture:
        if self.images_from == "original":
            picture = resized(picture, SHORTER_SIDE)
            picture = shades_of_grey(picture) if self.colour_constancy else picture
        return picture if self.crop is None else centre(picture, self.crop)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def shades_of_grey(picture: Picture, power: int = POWER) -> Picture:
    """The picture as it would be under a grey light.

    ::

        e_c = mean(I_c^p)^(1/p),  c = red, green, blue
        I_c <- I_c / (sqrt(3) e_c / ||e||)

    Args:
        picture: (H, W, 3).
        power: p; 1 is grey world, a large one approaches the brightest pixel.

    Returns:
        (H, W, 3), rounded down, at most 255. A picture with a channel of zeros is returned as it is.

    Source: Finlayson and Trezzi, Shades of gray and colour constancy, 2004; with p = 6 for skin lesions: Barata et al.,
    IEEE J. Biomed. Health Inform. 19(3), 2015. FLamby's ``color_constancy.py``.
    Differs from FLamby in: what would be brighter than 255 becomes 255, where FLamby's numbers wrap around; the mean is
    taken in float64.
    """
    light = np.mean(picture.astype(np.float64) ** power, axis=(0, 1)) ** (1 / power)  # (3,)
    if not light.all():
        return picture
    gain = np.linalg.norm(light) / (np.sqrt(3) * light)
    even: Picture = np.minimum(picture * gain, 255).astype(np.uint8)
    return even


def resized(picture: Picture, shorter: int) -> Picture:
    """The picture with ``shorter`` pixels along its shorter side, bilinear, sides in their proportion rounded down."""
    height, width = picture.shape[:2]
    ratio = shorter / min(height, width)
    size = (int(width * ratio), int(height * ratio))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def centre(picture: Picture, pixels: int) -> Picture:
    """The square of this size in the middle. Raises ValueError where the picture is smaller."""
    height, width = picture.shape[:2]
    if min(height, width) < pixels:
        raise ValueError(f"expected at least {pixels} pixels along both sides to crop, got {height} x {width}")
    top, left = (height - pixels) // 2, (width - pixels) // 2
    return picture[top : top + pixels, left : left + pixels]


# ---- tables ----------------------------------------------------------------------------------------------------------

COLUMNS = ("image", "target", "center", "fold")


def _with_classes(root: Path, classes: Sequence[str]) -> tuple[Path, list[Row]]:
    """FLamby's centres and folds with the challenge's classes: rows of :data:`COLUMNS`, and the table of the classes.

    Raises:
        ValueError: the table of the classes is not there.
    """
    table = root / TRUTH
    if not table.is_file():
        raise ValueError(f"{table}: missing; it comes with the images, or put FLamby's {TABLES[0]} in its place")
    truth = {row["image"]: row for row in read_rows(table, ("image", *classes))}
    return table, [
        {"image": image, "target": _target(truth.get(image, {}), classes), "center": row["center"], "fold": row["fold"]}
        for row in read_rows(packaged("fed_isic2019.csv"), ("center", "fold", "images"))
        for image in (f"ISIC_{number}" for number in row["images"].split())
    ]


def _target(row: Row, classes: Sequence[str]) -> str:
    """The number of the class whose cell is 1; "" where it is not exactly one."""
    found = [str(number) for number, name in enumerate(classes) if row.get(name) in ("1", "1.0")]
    return found[0] if len(found) == 1 else ""


def _row_problems(table: Path, rows: Sequence[Row], num_classes: int) -> list[str]:
    """Images without one of the classes, without a centre or a side."""
    known = {str(number) for number in range(num_classes)}
    return [
        f"{table}: image {row['image']}: expected {what}, got {row[column]!r}"
        for row in rows
        for column, what, sound in (
            ("target", f"one class, 0 to {num_classes - 1}", row["target"] in known),
            ("center", "a centre", bool(row["center"])),
            ("fold", "train or test", side_of(row["fold"]) is not None),
        )
        if row["image"] and not sound
    ]


def _sound(rows: Sequence[Row], num_classes: int) -> dict[str, Row]:
    """The rows that make a case, by the image: with one of the classes and a centre."""
    known = {str(number) for number in range(num_classes)}
    return {row["image"]: row for row in rows if row["image"] and row["target"] in known and row["center"]}


def _case(folder: Path, row: Row, patient: str, side: Side | None) -> Case:
    image = folder / f"{row['image']}.jpg"
    return Case(
        name=row["image"],
        patient=patient,
        image=image,
        label=image,
        site=f"center-{row['center']}",
        side=side,
        target=int(row["target"]),
    )


def _lost(path: Path, table: Path) -> str:
    return f"{path}: missing ({table.name} lists it); data.missing: skip leaves out what is not there"


def _by_lesion(table: Path, rows: Mapping[str, Row]) -> tuple[dict[str, str], dict[str, Side | None], list[str]]:
    """The lesion and the side of each image, and what is wrong.

    Raises:
        ValueError: there is no table of the lesions.
    """
    listed = {row["image"]: row["lesion_id"] for row in read_rows(table, ("image", "lesion_id"))}
    lesions = {image: listed.get(image) or image for image in rows}
    # images of one lesion were diagnosed one by one: the class of its first image stands for it
    classes = {lesions[image]: rows[image]["target"] for image in sorted(rows, reverse=True)}
    drawn = lesion_sides(classes, LESION_TEST_FRACTION)
    lacking = [f"{table}: image {image}: expected a lesion_id, got none" for image in rows if not listed.get(image)]
    return lesions, {image: drawn[lesion] for image, lesion in lesions.items()}, lacking
