"""Reading and writing NIfTI: the grid survives, and every fault has its message."""

from __future__ import annotations

import gzip
import io
import re
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wardround.datasets import nifti
from wardround.datasets.contract import Case, DataError, Volume
from wardround.datasets.nifti import open_image, read_case, write_label_map

SHAPE = (5, 7, 3)
OBLIQUE = np.array([[1.1, 0.2, -0.3, 10.0], [-0.2, 0.9, 0.4, -20.0], [0.3, -0.3, 2.5, 30.0], [0, 0, 0, 1]])


def image_array(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def label_array(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)


@pytest.fixture
def make_case(tmp_path: Path) -> Callable[..., Case]:
    """Writes an image and a mask; both may be arrays or ready nibabel images."""

    def save(array: object, path: Path) -> Path:
        nib.save(nib.Nifti1Image(array, OBLIQUE) if isinstance(array, np.ndarray) else array, path)
        return path

    def make(image: object = None, label: object = None, suffix: str = ".nii.gz") -> Case:
        image = save(image_array() if image is None else image, tmp_path / f"image{suffix}")
        label = save(label_array() if label is None else label, tmp_path / f"label{suffix}")
        return Case(name="c", patient="c", image=image, label=label)

    return make


def read(case: Case, **settings: object) -> Volume:
    return read_case(case, **{"slice_axis": 2, "num_classes": 2, **settings})  # type: ignore[arg-type]  # plain values


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("axis", "order"), [(0, (0, 1, 2)), (1, (1, 0, 2)), (2, (2, 0, 1))])
def test_slices_come_first_with_their_spacing(
    make_case: Callable[..., Case], suffix: str, axis: int, order: tuple[int, int, int]
) -> None:
    case = make_case(suffix=suffix)
    volume = read(case, slice_axis=axis)
    zooms = np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    assert np.array_equal(volume.image, image_array().transpose(order))
    assert np.array_equal(volume.label, label_array().transpose(order))
    assert volume.spacing_mm == pytest.approx(tuple(zooms[i] for i in order), rel=1e-5)
    assert (volume.image.dtype, volume.label.dtype, volume.case) == (np.float32, np.uint8, case)
    alone = open_image(case.image, slice_axis=axis)()
    assert np.array_equal(alone.image, volume.image)
    assert (alone.spacing_mm, alone.slice_axis) == (volume.spacing_mm, volume.slice_axis) == (alone.spacing_mm, axis)
    assert alone.label.shape == alone.image.shape
    assert not alone.label.any()
    assert (alone.case.name, alone.case.image) == ("image", case.image)


def test_scaled_integers_and_a_fourth_dimension_of_one(make_case: Callable[..., Case]) -> None:
    stored = nib.Nifti1Image(image_array((*SHAPE, 1)).astype(np.int16), OBLIQUE)
    stored.header.set_slope_inter(0.5, -100)
    volume = read(make_case(stored, label_array((*SHAPE, 1))))
    assert volume.image.shape == (3, 5, 7)
    assert volume.image[0, 0, 1] == 0.5 * 3 - 100


def test_clipping(make_case: Callable[..., Case]) -> None:
    """Voxels 0..104: the 10 and 90 % percentiles (linear between ranks) are 10.4 and 93.6."""
    case = make_case()
    clipped = read(case, clip_percentiles=(10, 90)).image
    assert (clipped.min(), clipped.max()) == pytest.approx((10.4, 93.6))
    assert (read(case, clip_range=(-5, 30)).image.min(), read(case, clip_range=(-5, 30)).image.max()) == (0, 30)


def test_merged_foreground(make_case: Callable[..., Case]) -> None:
    volume = read(make_case(), num_classes=1, merge_foreground=True)
    assert np.array_equal(volume.label, (label_array() > 0).transpose(2, 0, 1))


def test_units_of_the_header(make_case: Callable[..., Case]) -> None:
    stored = nib.Nifti1Image(image_array(), np.diag([2000.0, 3000.0, 4000.0, 1]))
    stored.header.set_xyzt_units("micron")
    assert open_image(make_case(stored).image, slice_axis=2)().spacing_mm == pytest.approx((4, 2, 3))


def with_pixdim(path: Path, axis: int, value: float) -> Path:
    """Writes a zoom into an uncompressed file: nibabel would not."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 76 + 4 * axis, value)
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_spacing_of_zero_is_refused_and_a_sign_is_dropped(
    make_case: Callable[..., Case], suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without this nibabel takes 1 mm for zero, and says so in a line without the file."""
    case = make_case(nib.Nifti1Image(image_array(), np.diag([2.0, 3.0, 4.0, 1])), np.zeros(SHAPE, np.uint8), ".nii")
    found = {}
    for value in (-3, 0):
        path = with_pixdim(case.image, 2, value)
        if suffix == ".nii.gz":
            path = path.with_suffix(".nii.gz")
            path.write_bytes(gzip.compress(case.image.read_bytes()))
        found[value] = path
        if value:
            assert open_image(path, slice_axis=2)().spacing_mm == (4, 2, 3)
    with pytest.raises(
        DataError, match=r"image.nii(.gz)?: expected a spacing above 0 mm along every axis, got \[2.0, 0"
    ):
        open_image(found[0], slice_axis=2)
    with pytest.raises(DataError, match=r"expected a spacing above 0 mm"):
        read(replace(case, image=found[0]))
    assert capfd.readouterr().err == ""


def test_nibabel_says_what_is_not_checked_here(
    make_case: Callable[..., Case], caplog: pytest.LogCaptureFixture
) -> None:
    case = make_case(suffix=".nii")
    content = bytearray(case.image.read_bytes())
    content[252:254] = (77).to_bytes(2, "little")  # qform_code
    case.image.write_bytes(bytes(content))
    open_image(case.image, slice_axis=2)
    assert "qform_code 77 not valid" in caplog.text


def test_a_header_of_an_impossible_size_is_one_line(
    make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncompressed: no memory is asked for. Compressed: the planes that are read at once do not fit."""
    case = make_case(suffix=".nii")
    content = bytearray(case.image.read_bytes())
    struct.pack_into("<3h", content, 42, 32767, 32767, 3)
    case.image.write_bytes(bytes(content))
    read_short = open_image(case.image, slice_axis=2)
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("memory was asked for"))
    with pytest.raises(DataError, match=r"damaged: EOFError: it ends in plane 1 of 3"):
        read_short()
    monkeypatch.undo()

    class Full(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise MemoryError

    read_later = open_image(make_case().image, slice_axis=2)
    monkeypatch.setattr(nifti, "_stream", lambda _: Full())
    with pytest.raises(
        DataError, match=r"image.nii.gz: expected a volume that fits into memory, got shape \(5, 7, 3\)"
    ):
        read_later()


@pytest.mark.parametrize(
    ("name", "called"), [("Up.Nii", "Up"), ("UP.NII.GZ", "UP"), ("scan.NII.gz", "scan"), ("a b.nii.Gz", "a b")]
)
def test_capitals_of_a_suffix_do_not_count(
    make_case: Callable[..., Case], tmp_path: Path, name: str, called: str
) -> None:
    case = make_case(suffix=".nii.gz" if name.lower().endswith("gz") else ".nii")
    volume = open_image(case.image.rename(tmp_path / name), slice_axis=2)()
    assert np.array_equal(volume.image, image_array().transpose(2, 0, 1))
    assert volume.case.name == called


def faulty(change: Callable[[np.ndarray], None], array: np.ndarray) -> np.ndarray:
    change(array)
    return array


def put(value: float) -> Callable[[np.ndarray], None]:
    return lambda array: array.__setitem__((1, 2, 0), value)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (image_array((5, 7)), None, r"image.nii.gz: expected a volume of 3 dimensions .* got shape \(5, 7\)"),
        (image_array((5, 7, 3, 2)), None, r"image.nii.gz: expected a volume of 3 dimensions .* \(5, 7, 3, 2\)"),
        (faulty(put(np.nan), image_array()), None, r"image.nii.gz: .*finite voxels, got 1 .* nan at \(1, 2, 0\)"),
        (faulty(put(np.inf), image_array()), None, r"image.nii.gz: expected finite voxels, got 1 .* inf"),
        (faulty(put(1e300), image_array().astype(float)), None, r"got 1 that are not as float32, first 1e\+300"),
        (image_array().astype(np.complex64), None, "image.nii.gz: expected one real number per voxel, got .*complex64"),
        (None, label_array((5, 7, 4)), r"label.nii.gz: expected the shape \(5, 7, 3\) of its image .* got \(5, 7, 4\)"),
        (None, nib.Nifti1Image(label_array(), OBLIQUE + np.eye(4, k=3)), "label.nii.gz: expected the affine .* 1 mm"),
        (None, faulty(put(3), label_array()), r"label.nii.gz: expected labels 0 to 2, got \[3\]"),
        (None, faulty(put(-1), label_array().astype(np.int16)), r"label.nii.gz: expected labels 0 to 2, got \[-1\]"),
        (None, faulty(put(0.5), label_array().astype(np.float32)), "label.nii.gz: expected whole numbers .* got 0.5"),
        (None, faulty(put(np.nan), label_array().astype(np.float32)), "label.nii.gz: expected finite voxels"),
    ],
)
def test_each_fault_has_its_message(make_case: Callable[..., Case], image: object, label: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(make_case(image, label))


def test_every_problem_of_a_case_comes_at_once(make_case: Callable[..., Case]) -> None:
    """One of each kind that two readable files can have together."""
    label = faulty(put(7), label_array((5, 7, 4)).astype(np.float32))
    label[0, 0, 0], label[0, 0, 1], label[0, 0, 3] = 0.25, np.nan, -2
    image = faulty(put(np.nan), image_array())
    with pytest.raises(DataError) as caught:
        read(make_case(image, nib.Nifti1Image(label, OBLIQUE + np.eye(4, k=3))))
    lines = [
        r"image.nii.gz: expected finite voxels, got 1",
        r"label.nii.gz: expected the shape \(5, 7, 3\) .* got \(5, 7, 4\)",
        r"label.nii.gz: expected the affine",
        r"label.nii.gz: expected finite voxels, got 1 .* nan at \(0, 0, 1\)",
        r"label.nii.gz: expected whole numbers as labels, got 0.25",
        r"label.nii.gz: expected labels 0 to 2, got \[-2, 7\] too",
    ]
    assert len(caught.value.problems) == len(lines)
    assert all(re.search(line, found) for line, found in zip(lines, caught.value.problems, strict=True))


def test_two_unreadable_files_are_both_named(make_case: Callable[..., Case]) -> None:
    case = make_case()
    case.image.write_bytes(b"not a picture")
    case.label.unlink()
    with pytest.raises(DataError) as caught:
        read(case)
    assert [Path(line.split(": ")[0]).name for line in caught.value.problems] == ["image.nii.gz", "label.nii.gz"]


@pytest.mark.parametrize("merge", [False, True])
def test_a_mask_listed_as_its_own_image(make_case: Callable[..., Case], merge: bool) -> None:
    """As another file of another type too; one voxel of difference makes it an image."""
    case = make_case(label_array().astype(np.float32), label_array())
    for twin in (case, replace(case, image=case.label)):
        with pytest.raises(DataError, match=r"label.nii.gz: expected a mask, got the same voxels as in its image"):
            read(twin, merge_foreground=merge, clip_percentiles=(1, 99))
    read(make_case(faulty(put(9), label_array()), label_array()), merge_foreground=merge)


def test_a_mask_of_many_values_is_not_listed_in_full(make_case: Callable[..., Case]) -> None:
    with pytest.raises(DataError, match=r"got \[3, 4, .*, 12\] and \d+ or more others too"):
        read(make_case(image_array(), image_array()[::-1]))


def test_one_channel_of_four(make_case: Callable[..., Case]) -> None:
    stored = nib.Nifti1Image(image_array((*SHAPE, 4)), OBLIQUE)
    for suffix in (".nii", ".nii.gz"):
        case = make_case(stored, suffix=suffix)
        for channel in (0, 3):
            volume = read(case, channel=channel)
            assert np.array_equal(volume.image, np.moveaxis(image_array((*SHAPE, 4))[..., channel], 2, 0))
    names = ("FLAIR", "T1w", "t1gd", "T2w")
    with pytest.raises(
        DataError, match=r"choose one of 4 with the setting 'channel' \(0 FLAIR, 1 T1w, 2 t1gd, 3 T2w\)"
    ):
        read(case, channel_names=names)
    with pytest.raises(DataError, match=r"expected a fourth axis with channel 4 \(0 FLAIR, .*\), got shape .* 4\)"):
        read(case, channel=4, channel_names=names)
    with pytest.raises(DataError, match=r"expected a fourth axis with channel 1, got shape \(5, 7, 3\)"):
        read(make_case(), channel=1)


@pytest.mark.parametrize("dtype", [">i2", "<u2", ">f4", "<f8", "i1", ">i4"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_stored_type_reads_as_nibabel_reads_it(make_case: Callable[..., Case], dtype: str, axis: int) -> None:
    """37 planes, which is no multiple of the planes that are read at once."""
    shape = (3, 4, 37)
    array = (image_array(shape) % 100 - (0 if "u" in dtype else 50)).astype(dtype)
    header = nib.Nifti1Header(endianness="<" if dtype[0] == "<" else ">")
    header.set_data_dtype(dtype)
    stored = nib.Nifti1Image(array, OBLIQUE, header)
    stored.header.set_slope_inter(*((0.25, -3) if axis == 1 else (1, 0)))
    case = make_case(stored, label_array(shape))
    want = np.asarray(nib.load(case.image).dataobj).astype(np.float32)
    assert np.array_equal(read(case, slice_axis=axis).image, np.moveaxis(want, axis, 0))


def test_damage_far_into_a_file_is_found(make_case: Callable[..., Case]) -> None:
    shape = (16, 16, 100)
    noise = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    case = make_case(noise, label_array(shape))
    content = bytearray(case.image.read_bytes())
    content[len(content) // 2] ^= 0xFF
    case.image.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"image.nii.gz: expected \(16, 16, 100\) voxels, the file is damaged"):
        read(case)
    plain = make_case(noise, label_array(shape), suffix=".nii")
    plain.image.write_bytes(plain.image.read_bytes()[: 352 + 2 * 16 * 16 * 40 + 7])
    with pytest.raises(DataError, match=r"image.nii: expected .* damaged: EOFError: it ends in plane 41 of 100"):
        read(plain)


def test_memory_is_bounded_by_the_image(make_case: Callable[..., Case]) -> None:
    """A scaled int16 volume: twice its float32 array while percentiles are taken, and the mask beside it without."""
    shape = (96, 96, 160)
    stored = nib.Nifti1Image(np.random.default_rng(0).integers(0, 999, shape).astype(np.int16), OBLIQUE)
    stored.header.set_slope_inter(2, 1)
    case = make_case(stored, label_array(shape))
    read(case)
    for settings, bound in (({"clip_percentiles": (1, 99)}, 2.1), ({"clip_range": (0, 9)}, 1.7)):
        tracemalloc.start()
        read(case, **settings)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < bound * 4 * np.prod(shape)


def test_missing_and_foreign_files(make_case: Callable[..., Case], tmp_path: Path) -> None:
    case = make_case()
    case.label.unlink()
    with pytest.raises(ValueError, match=r"label.nii.gz: expected a NIfTI file .* found none there"):
        read(case)
    case.label.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"label.nii.gz: expected a readable NIfTI file, got BadGzipFile"):
        read(case)
    for name, message in (("x.mha", "got another suffix"), ("x.nii", "found none there")):
        if name == "x.mha":
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=message):
            read(replace(case, image=tmp_path / name))
    plain = tmp_path / "text.nii"
    plain.write_text("not a picture at all")
    with pytest.raises(ValueError, match=r"text.nii: expected a readable NIfTI file"):
        open_image(plain, slice_axis=2)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_files(make_case: Callable[..., Case], kept: float, suffix: str) -> None:
    case = make_case(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), suffix=suffix)
    content = case.image.read_bytes()
    case.image.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=f"image{suffix}: expected"):
        read(case)


def test_a_flipped_bit_is_found_by_the_checksum(make_case: Callable[..., Case]) -> None:
    case = make_case()
    content = bytearray(case.image.read_bytes())
    content[-8] ^= 1  # the stored checksum itself: every voxel still decodes
    case.image.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"image.nii.gz: expected a readable NIfTI file, got BadGzipFile: CRC"):
        read(case)


def test_the_checksum_of_a_large_file_is_compared_after_its_last_voxel(make_case: Callable[..., Case]) -> None:
    """Larger than every buffer, so that only reading on to the end meets the checksum."""
    shape = (64, 64, 90)
    case = make_case(np.random.default_rng(0).integers(-999, 999, shape).astype(np.int16), label_array(shape))
    content = bytearray(case.image.read_bytes())
    content[-8] ^= 1
    case.image.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"image.nii.gz: expected .* the file is damaged: BadGzipFile: CRC"):
        read(case)


def test_an_empty_volume(make_case: Callable[..., Case]) -> None:
    case = make_case(suffix=".nii")
    content = bytearray(case.image.read_bytes())
    content[42:44] = (0).to_bytes(2, "little")  # dim[1]
    case.image.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"image.nii: expected"):
        read(case)


@pytest.mark.parametrize("shape", [SHAPE, (9, 4, 1), (1, 6, 5)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_label_map_returns_to_the_grid_of_the_image(tmp_path: Path, shape: tuple[int, int, int], axis: int) -> None:
    """Oblique qform and a different sform, both with their own codes, must come back."""
    like = nib.Nifti1Image(image_array(shape).astype(np.int16), OBLIQUE)
    like.header.set_slope_inter(3, 7)
    like.set_sform(OBLIQUE, code=4)
    like.set_qform(np.diag([1.0, 2.0, 3.0, 1.0]), code=2)
    like.header.set_xyzt_units("mm", "sec")
    nib.save(like, tmp_path / "like.nii.gz")
    labels = np.moveaxis(label_array(shape), axis, 0)
    path = tmp_path / "new" / "prediction.nii.gz"
    write_label_map(path, labels, like=tmp_path / "like.nii.gz", slice_axis=axis)

    written, source = nib.load(path), nib.load(tmp_path / "like.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), label_array(shape))
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, source.affine)
    assert all(np.array_equal(a, b) for a, b in zip(written.get_sform(True), source.get_sform(True), strict=True))
    assert np.array_equal(written.get_qform(True)[0], source.get_qform(True)[0])
    assert written.get_qform(True)[1] == 2
    assert written.header.get_zooms() == source.header.get_zooms()
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert [file.name for file in path.parent.iterdir()] == ["prediction.nii.gz"]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_label_map_says_nothing_of_the_image_or_the_patient(tmp_path: Path, kind: type[nib.Nifti1Image]) -> None:
    like = kind(image_array(), OBLIQUE)
    nib.save(like, tmp_path / "plain.nii")
    like.header.set_intent("z score", name="of the patient")
    like.header["aux_file"] = b"John Doe.txt"
    if kind is nib.Nifti1Image:
        like.header["db_name"] = b"John Doe"
    like.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient John Doe"))
    nib.save(like, tmp_path / "like.nii")
    for name in ("plain", "like"):
        labels = np.moveaxis(label_array(), 2, 0)
        write_label_map(tmp_path / f"{name}-map.nii", labels, like=tmp_path / f"{name}.nii", slice_axis=2)
    written = nib.load(tmp_path / "like-map.nii")
    assert written.header.get_intent() == ("none", (), "")
    assert not written.header.extensions
    assert b"John Doe" in (tmp_path / "like.nii").read_bytes()
    assert (tmp_path / "like-map.nii").read_bytes() == (tmp_path / "plain-map.nii").read_bytes()


def test_what_is_written_is_what_is_read(make_case: Callable[..., Case], tmp_path: Path) -> None:
    case = make_case()
    labels = read(case).label
    for name in ("one.nii.gz", "two.nii.gz", "plain.nii"):
        write_label_map(tmp_path / name, labels, like=case.image, slice_axis=2)
        again = read(Case(name="c", patient="c", image=case.image, label=tmp_path / name))
        assert np.array_equal(again.label, labels)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.nii.gz").read_bytes()) == (tmp_path / "plain.nii").read_bytes()


def test_labels_of_another_grid_are_refused_and_leave_nothing(make_case: Callable[..., Case], tmp_path: Path) -> None:
    case = make_case()
    with pytest.raises(ValueError, match=r"expected labels on the grid \(5, 7, 3\) of .* got \(5, 7, 4\)"):
        write_label_map(tmp_path / "x.nii.gz", np.zeros((4, 5, 7), np.uint8), like=case.image, slice_axis=2)
    assert not list(tmp_path.glob("*x.nii.gz*"))
