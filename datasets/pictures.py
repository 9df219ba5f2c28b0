"""Pictures of 8 bits per channel (PNG, JPEG, BMP, TIFF) as arrays (H, W, 3), for every data set of images."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .contract import Case, DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
"""Of the files that are pictures; capitals do not count."""

EIGHT_BITS = ("1", "CMYK", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
"""Pillow's modes of 8 bits per channel or fewer."""

Picture = NDArray[np.uint8]


def is_picture(path: Path) -> bool:
    """Whether a file is called like one."""
    return path.suffix.lower() in SUFFIXES


def read_picture(path: Path) -> Picture:
    """A picture as (H, W, 3) uint8, red, green and blue.

    Grey becomes three equal channels, a palette its colours. An alpha channel is dropped: what lies under transparent
    pixels is shown. A rotation that a camera noted in the file is applied. Pictures of 16 bits are refused: which
    values are black and white is for their owner to say.

    Args:
        path: PNG, JPEG, BMP or TIFF of one page.

    Raises:
        ValueError: it cannot be read, has several pages, or more than 8 bits per channel.
    """
    with _opened(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def check_picture(path: Path) -> None:
    """Looks at the header of a picture. Raises ValueError as :func:`read_picture` does; no pixel is read."""
    with _opened(path):
        pass


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture whose pixels may be read. Raises ValueError where anything is wrong, then or in the block."""
    try:
        with warnings.catch_warnings():  # Pillow warns of large pictures and refuses those of twice that size
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
        with opened as image:
            _check(path, image)
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a picture, got {type(error).__name__}: {reason}") from error


def _check(path: Path, image: Image.Image) -> None:
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise ValueError(f"{path}: expected one picture in the file, got {pages}; write each to a file of its own")
    if image.mode not in EIGHT_BITS or any(re.search(r";16[BLN]", kind) for kind in _raw_modes(image)):
        raw = _raw_modes(image)[0]
        bits = re.search(r";(16|32)", raw)
        got = f"Pillow's mode {image.mode} of {raw!r}"
        raise ValueError(
            f"{path}: expected 8 bits per channel, got {got if bits is None else f'{bits[1]} bits ({got})'}; choose "
            "what is black and what is white and write PNG files of 8 bits"
        )


def _raw_modes(image: Image.Image) -> list[str]:
    """How pixels lie in the file: Pillow reads colours of 16 bits as mode RGB, without their lower 8 bits."""
    arguments = [tile[3] for tile in getattr(image, "tile", [])]
    found = [kind if isinstance(kind, str) else str(kind[0]) for kind in arguments if kind]
    return found or [image.mode]


def read_pictures(
    cases: Sequence[Case], prepare: Callable[[Picture], Picture] = lambda picture: picture
) -> Iterator[Picture]:
    """The pictures of some cases, in their order, one in memory at a time.

    Args:
        cases: Their ``image`` is the file.
        prepare: What becomes of a picture.

    Raises:
        DataError: a picture cannot be read; names its case.
    """
    for case in cases:
        try:
            picture = prepare(read_picture(case.image))
        except ValueError as error:
            raise DataError(case.image, [f"{case.name}: {error}"]) from error
        yield picture
