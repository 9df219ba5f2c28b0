"""Pictures as arrays: every type of file, grey, palettes and alpha, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from picture_trees import picture, write_picture
from PIL import Image

from wardround.datasets.contract import Case, DataError
from wardround.datasets.pictures import SUFFIXES, is_picture, read_picture, read_pictures

PNG_16_BITS_RGB = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000011002000000c0e78f9d000000"
    "0f49444154789c636064626661650300003f001621bad4540000000049454e44ae426082"
)
"""One pixel of the values 258, 772 and 1286."""


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".TIFF"])
def test_files_without_losses_come_back(tmp_path: Path, suffix: str) -> None:
    pixels = picture()
    found = read_picture(write_picture(tmp_path / f"x{suffix}", pixels))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_a_jpeg_is_near(tmp_path: Path, suffix: str) -> None:
    flat = np.broadcast_to(np.uint8([200, 100, 50]), (16, 16, 3))
    found = read_picture(write_picture(tmp_path / f"x{suffix}", flat, quality=95))
    assert np.abs(found.astype(int) - flat).max() <= 2


def test_grey_alpha_palette_and_one_bit(tmp_path: Path) -> None:
    """Grey becomes three channels, alpha goes, a palette's numbers become its colours, one bit 0 or 255."""
    pixels = picture()
    grey = write_picture(tmp_path / "grey.png", pixels[..., 0])
    np.testing.assert_array_equal(read_picture(grey), np.stack([pixels[..., 0]] * 3, axis=2))
    clear = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    np.testing.assert_array_equal(read_picture(write_picture(tmp_path / "alpha.png", clear)), pixels)
    palette = Image.fromarray(np.uint8([[0, 1], [1, 0]]), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png")
    assert read_picture(tmp_path / "palette.png").tolist() == [
        [[10, 20, 30], [40, 50, 60]],
        [[40, 50, 60], [10, 20, 30]],
    ]
    write_picture(tmp_path / "bits.png", np.array([[True, False]]))
    assert read_picture(tmp_path / "bits.png").tolist() == [[[255] * 3, [0] * 3]]


def test_a_cameras_rotation_is_applied(tmp_path: Path) -> None:
    """EXIF orientation 6: the first row of the file is the right edge of the picture."""
    tags = Image.Exif()
    tags[0x0112] = 6
    pixels = picture(2, 3)
    path = write_picture(tmp_path / "turned.png", pixels, exif=tags)
    np.testing.assert_array_equal(read_picture(path), np.rot90(pixels, -1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_of_grey_are_refused(tmp_path: Path, suffix: str) -> None:
    path = write_picture(tmp_path / f"deep{suffix}", np.arange(12, dtype=np.uint16).reshape(3, 4))
    with pytest.raises(
        ValueError, match=rf"deep\{suffix}: expected 8 bits per channel, got 16 bits .*mode I;16.*choose"
    ):
        read_picture(path)


def test_sixteen_bits_of_colour_are_refused(tmp_path: Path) -> None:
    """Pillow alone would drop the lower 8 bits and say RGB."""
    path = tmp_path / "deep.png"
    path.write_bytes(PNG_16_BITS_RGB)
    with Image.open(path) as image:
        assert image.mode == "RGB"
    with pytest.raises(ValueError, match=r"expected 8 bits per channel, got 16 bits .Pillow's mode RGB of 'RGB;16B'"):
        read_picture(path)


def test_floats_and_several_pages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected 8 bits per channel, got 32 bits .Pillow's mode F"):
        read_picture(write_picture(tmp_path / "float.tif", np.ones((3, 4), np.float32)))
    pages = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"pages.tif: expected one picture in the file, got 3; write each"):
        read_picture(tmp_path / "pages.tif")


def test_what_is_no_picture_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = write_picture(tmp_path / "cut.jpg", picture(64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for name, reason in (
        ("text.png", "UnidentifiedImageError"),
        ("cut.jpg", "truncated"),
        ("none.bmp", "No such file"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: expected a picture, got .*{reason}"):
            read_picture(tmp_path / name)


def test_names_of_pictures() -> None:
    assert all(is_picture(Path(f"x{suffix}")) and is_picture(Path(f"x{suffix.upper()}")) for suffix in SUFFIXES)
    assert not any(map(is_picture, (Path("x.gif"), Path("png"), Path("x.nii.gz"))))


def test_one_after_the_other(tmp_path: Path) -> None:
    """The first picture is there before the second, a broken one, is opened."""
    first = write_picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    cases = [Case(name=path.stem, patient="p", image=path, label=path) for path in (first, tmp_path / "b.png")]
    stream = read_pictures(cases, lambda pixels: pixels[:2])
    assert next(stream).shape == (2, 8, 3)
    with pytest.raises(DataError, match=r"b: .*b.png: expected a picture"):
        next(stream)


def test_a_large_picture_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns above a number of pixels, and refuses above twice that."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(write_picture(tmp_path / "large.png", picture(10, 12))).shape == (10, 12, 3)
    with pytest.raises(ValueError, match=r"huge.png: expected a picture, got DecompressionBombError"):
        read_picture(write_picture(tmp_path / "huge.png", picture(11, 12)))
