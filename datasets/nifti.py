"""NIfTI files in and out, with one clear line per fault and every fault of a case at once.

A file is read once from front to end, a few planes at a time, straight into the array that is kept (float32 images,
uint8 masks, slices first); a compressed file's checksum is compared on the way.

Legend: S slices, H rows, W columns, C foreground classes; X, Y, Z the array axes of a file.
"""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from .contract import Case, DataError, ReadVolume, Volume
from .voxels import ImageCheck, LabelCheck, clip, intensities, percentiles
from .writing import write_whole

P = ParamSpec("P")
T = TypeVar("T")

AFFINE_TOLERANCE = 1e-3
"""Largest difference between the affines of image and mask, in millimetres (per voxel step and at the origin)."""

PLANES = 16
"""How many planes of X x Y voxels are in memory twice while a file is read."""

UNREADABLE = (OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError)
"""What nibabel and gzip raise at damaged files."""

BEGINNING = 1024
"""So many bytes hold the header of either version (348 and 540)."""


@dataclass(frozen=True, kw_only=True)
class NiftiFile:
    """An open file, voxels not yet read.

    Args:
        path: The file.
        image: Its nibabel image.
        zooms: Steps along X, Y and Z as they stand in the file, in the unit of its header.
        shape: (X, Y, Z) of the volume.
        channel: Which volume along a fourth axis.
    """

    path: Path
    image: Any
    zooms: tuple[float, float, float]
    shape: tuple[int, int, int]
    channel: int


def is_nifti(path: Path) -> bool:
    """Whether the name says so: ``.nii`` or ``.nii.gz``."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_case(
    case: Case,
    *,
    slice_axis: int,
    num_classes: int,
    clip_percentiles: tuple[float, float] | None = None,
    clip_range: tuple[float, float] | None = None,
    merge_foreground: bool = False,
    channel: int | None = None,
    channel_names: Sequence[str] = (),
) -> Volume:
    """Reads and checks an image and its mask, and brings slices to the front.

    In memory at most: the float32 image twice (``clip_percentiles`` sorts a copy), or image and mask once.

    Args:
        case: The two files.
        slice_axis: Array axis along which slices are taken; the other two become rows and columns, in their order.
        num_classes: C; the mask may hold 0..C.
        clip_percentiles: Clip the image to these percentiles of its own voxels, in percent.
        clip_range: Clip the image to these values, in the units of the file.
        merge_foreground: Every label above 0 becomes 1 (before the check of the range).
        channel: Which volume along the fourth axis of the image; None: the image must be 3D.
        channel_names: What there is to choose from, for the message.

    Raises:
        DataError: every problem of the two files: which file, what was expected and what came.
    """
    problems: list[str] = []
    image_file = _noted(problems, open_nifti, case.image, channel, channel_names)
    label_file = _noted(problems, open_nifti, case.label)
    image = spacing = bounds = label = None
    if image_file is not None:
        spacing = _noted(problems, _spacing, image_file, slice_axis)
        image = _noted(problems, _read_image, image_file, slice_axis)
        bounds = None if image is None else percentiles(image, clip_percentiles)
    if image_file is not None and label_file is not None:
        problems += _grid_problems(image_file, label_file)
    if label_file is not None:
        check = LabelCheck(num_classes, merge_foreground=merge_foreground)
        label = _noted(problems, _read_label, label_file, slice_axis, check, image)
    if problems or image is None or label is None or spacing is None:
        raise DataError(case.image, problems)
    before = intensities(image)
    return Volume(
        case=case,
        image=clip(image, bounds, clip_range),
        label=label,
        spacing_mm=spacing,
        slice_axis=slice_axis,
        intensities=before,
    )


def open_image(
    path: Path,
    *,
    slice_axis: int,
    clip_percentiles: tuple[float, float] | None = None,
    clip_range: tuple[float, float] | None = None,
    channel: int | None = None,
    channel_names: Sequence[str] = (),
) -> ReadVolume:
    """Checks the header of an image without a mask. Settings as :func:`read_case`.

    Returns:
        What reads the voxels: a case named after its file, with a mask of zeros.

    Raises:
        DataError: what is wrong with the header.
    """
    file = open_nifti(path, channel, channel_names)
    spacing = _spacing(file, slice_axis)

    def read() -> Volume:
        image = _read_image(file, slice_axis)
        before = intensities(image)
        name = case_name(path)
        return Volume(
            case=Case(name=name, patient=name, image=path, label=path),
            image=clip(image, percentiles(image, clip_percentiles), clip_range),
            label=np.zeros(image.shape, np.uint8),
            spacing_mm=spacing,
            slice_axis=slice_axis,
            intensities=before,
        )

    return read


def reading_text(
    slice_axis: int,
    clip_percentiles: tuple[float, float] | None = None,
    clip_range: tuple[float, float] | None = None,
    channel: int | None = None,
) -> str:
    """What :func:`open_image` makes of a file with these settings, in a sentence for people who read files themselves.

    Example:
        >>> print(reading_text(2, (0.5, 99.5)))
        Slices lie along array axis 2 of the file, counted from 0, and are not turned. First every volume is clipped to
        its own percentiles 0.5 and 99.5.
    """
    taken = "" if channel is None else f"Of the fourth axis number {channel} is taken, counted from 0. "
    axes = f"{taken}Slices lie along array axis {slice_axis} of the file, counted from 0, and are not turned."
    clips = []
    if clip_percentiles is not None:
        clips.append("its own percentiles {:g} and {:g}".format(*clip_percentiles))
    if clip_range is not None:
        clips.append("{:g} to {:g} in the units of the file".format(*clip_range))
    return f"{axes} First every volume is clipped to {', then to '.join(clips)}." if clips else axes


def reading_problems(
    slice_axis: int,
    clip_percentiles: tuple[float, float] | None,
    channel: int | None,
    clip_range: tuple[float, float] | None = None,
) -> list[str]:
    """What is wrong with settings that are passed to :func:`read_case`."""
    problems = []
    if slice_axis not in (0, 1, 2):
        problems.append(f"slice_axis: expected 0, 1 or 2, got {slice_axis!r}")
    if clip_percentiles is not None and not 0 <= clip_percentiles[0] < clip_percentiles[1] <= 100:
        problems.append(f"clip_percentiles: expected two of 0 to 100, the smaller first, got {clip_percentiles!r}")
    if clip_range is not None and not clip_range[0] < clip_range[1]:
        problems.append(f"clip_range: expected two numbers, the smaller first, got {clip_range!r}")
    if channel is not None and channel < 0:
        problems.append(f"channel: expected 0 or more, got {channel!r}")
    return problems


def case_name(path: Path) -> str:
    """The name of a file without ``.nii`` or ``.nii.gz``, in small letters or capitals."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def write_prediction(path: Path, labels: NDArray[np.uint8], volume: Volume) -> None:
    """Puts the labels of a volume back on the array axes of the file that it was read from.

    Where that is a NIfTI file, its grid and header are kept (:func:`write_label_map`). Other files know no place in
    space: the affine is diagonal then, with the spacing of the volume.

    Args:
        path: ``.nii`` or ``.nii.gz``; its folder is made where it is missing.
        labels: (S, H, W) uint8, the shape of the volume.
        volume: As it was read.

    Raises:
        ValueError: the labels have another shape.
    """
    _write_values(path, labels.astype(np.uint8), volume, "labels")


def write_probabilities(path: Path, values: NDArray[np.float32], volume: Volume) -> None:
    """The same for a probability of every voxel, in float32.

    Args:
        path: ``.nii`` or ``.nii.gz``; its folder is made where it is missing.
        values: (S, H, W), the shape of the volume.
        volume: As it was read.

    Raises:
        ValueError: there are other numbers of them.
    """
    _write_values(path, values.astype(np.float32, copy=False), volume, "probabilities")


def _write_values(path: Path, values: NDArray[Any], volume: Volume, what: str) -> None:
    """Values of every voxel, in their dtype, on the array axes of the file that a volume was read from."""
    if is_nifti(volume.case.image):
        _write_like(path, values, volume.case.image, volume.slice_axis, what)
        return
    if values.shape != volume.image.shape:
        raise ValueError(f"{path}: expected {what} of the shape {volume.image.shape}, got {values.shape}")
    zooms = list(volume.spacing_mm[1:])
    zooms.insert(volume.slice_axis, volume.spacing_mm[0])
    image = nifti_image(np.moveaxis(values, 0, volume.slice_axis), np.diag([*zooms, 1.0]))
    image.header.set_xyzt_units("mm")
    write_nifti(path, image)


def write_label_map(path: Path, labels: NDArray[np.uint8], *, like: Path, slice_axis: int) -> None:
    """Puts labels back on the grid of the image they were predicted for, voxel for voxel.

    Affine, sform and qform with their codes, zooms and units are those of ``like``; the data type is uint8 without
    scaling. What its header says of the intensities or of the patient (intent, auxiliary file, name in a data base,
    extensions) is left behind. The file appears whole or not at all, and the same labels give the same bytes.

    Args:
        path: ``.nii`` or ``.nii.gz``; its folder is made where it is missing.
        labels: (S, H, W) uint8.
        like: The image.
        slice_axis: As it was read.

    Raises:
        ValueError: the labels do not fit the grid of the image.
    """
    _write_like(path, labels.astype(np.uint8), like, slice_axis, "labels")


def _write_like(path: Path, values: NDArray[Any], like: Path, slice_axis: int, what: str) -> None:
    """Values (S, H, W) in their dtype, with the header of the image that they belong to."""
    source, _ = _load(like)
    shape = tuple(source.shape[:3])
    on_grid = np.moveaxis(values, 0, slice_axis)
    if on_grid.shape != shape:
        raise ValueError(f"{path}: expected {what} on the grid {shape} of {like}, got {on_grid.shape}")
    header = source.header.copy()
    header.set_data_shape(shape)
    header.set_data_dtype(values.dtype)
    header["cal_min"], header["cal_max"] = 0, 0
    header["descrip"] = DESCRIPTIONS[what]
    _forget_the_image(header)
    write_nifti(path, nifti_image(on_grid, None, header))


def _forget_the_image(header: Any) -> None:
    """Removes what a header says of the intensities of its image, or of the patient."""
    header.set_intent("none")
    for name in {"aux_file", "db_name"} & set(header.keys()):
        header[name] = b""
    if header.extensions:
        header.extensions = type(header.extensions)()
        header.set_data_offset(0)  # that is, right behind the header


DESCRIPTIONS = {"labels": b"label map", "probabilities": b"probability"}
"""What headers say of what is written."""


def nifti_image(array: NDArray[Any], affine: NDArray[Any] | None, header: Any = None) -> Any:
    """A nibabel image in memory."""
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(array, affine, header)  # type: ignore[no-untyped-call]  # nibabel is typed in part only


def write_nifti(path: Path, image: Any) -> None:
    """Writes a nibabel image whole or not at all; compressed files carry no date: bytes depend on content only."""
    content = image.to_bytes()
    if path.suffix.lower() == ".gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    write_whole(path, content)


def open_nifti(path: Path, channel: int | None = None, channel_names: Sequence[str] = ()) -> NiftiFile:
    """Opens a file and checks its header.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        channel: Which volume along the fourth axis; None: there must be one only.
        channel_names: What there is to choose from, for the message.

    Raises:
        DataError: what is wrong with the file.
    """
    image, zooms = _load(path)
    shape = tuple(int(length) for length in image.shape)
    single = len(shape) == 3 or shape[3:] == (1,)
    if not (single if channel is None else len(shape) == 4 and channel < shape[3]):
        raise _fault(path, _dimensions(shape, channel, channel_names))
    if min(shape) < 1:
        raise _fault(path, f"expected a volume with voxels, got shape {shape}")
    if image.dataobj.dtype.kind not in "biuf":
        raise _fault(path, f"expected one real number per voxel, got data type {image.dataobj.dtype}")
    return NiftiFile(path=path, image=image, zooms=zooms, shape=(shape[0], shape[1], shape[2]), channel=channel or 0)


def _dimensions(shape: tuple[int, ...], channel: int | None, names: Sequence[str]) -> str:
    """What is wrong with the dimensions of a file."""
    listed = f" ({', '.join(f'{number} {name}' for number, name in enumerate(names))})" if names else ""
    if channel is not None:
        return f"expected a fourth axis with channel {channel}{listed}, got shape {shape}"
    advice = f"; choose one of {shape[3]} with the setting 'channel'{listed}" if len(shape) == 4 else ""
    return f"expected a volume of 3 dimensions (a 4th of length 1 is dropped), got shape {shape}{advice}"


def _load(path: Path) -> tuple[Any, tuple[float, float, float]]:
    """A nibabel image, voxels not yet read; and the first three zooms as they stand in the file."""
    if not path.is_file():
        raise _fault(path, "expected a NIfTI file (.nii, .nii.gz), found none there")
    if not is_nifti(path):
        raise _fault(path, "expected a NIfTI file (.nii, .nii.gz), got another suffix")
    try:
        kind, stored = _stored_header(path)
        with _own_words():
            # not nib.load, which looks for scan.nii where the file is called scan.Nii
            image = kind.from_file_map(kind.make_file_map({"image": str(path)}))
    except UNREADABLE as error:
        raise _fault(path, f"expected a readable NIfTI file, got {_reason(_gzip_error(path) or error)}") from error
    x, y, z = (float(zoom) for zoom in stored["pixdim"][1:4])
    return image, (x, y, z)


def _stored_header(path: Path) -> tuple[Any, Any]:
    """The nibabel class of a file, and its header before nibabel mends anything in it."""
    with _stream(path) as stream:
        start = stream.read(BEGINNING)
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        header = kind.header_class
        if header.may_contain_header(start):  # type: ignore[no-untyped-call]  # nibabel is typed in part only
            size = header.template_dtype.itemsize
            return kind, header(start[:size], check=False)  # type: ignore[no-untyped-call]
    raise ImageFileError("no header of NIfTI-1 or NIfTI-2 at its beginning")


@contextmanager
def _own_words() -> Iterator[None]:
    """Without nibabel's lines, which name no file, on what is refused here: its own errors and the spacing."""

    def others(record: logging.LogRecord) -> bool:
        return record.levelno < imageglobals.error_level and "pixdim" not in record.getMessage()

    imageglobals.logger.addFilter(others)
    try:
        yield
    finally:
        imageglobals.logger.removeFilter(others)


def _gzip_error(path: Path) -> BaseException | None:
    """What is wrong with the compression, of which nibabel only says that it cannot tell the type of the file."""
    try:
        with _stream(path) as stream:
            while stream.read(1 << 20):
                pass
    except UNREADABLE as error:
        return error
    return None


def _fault(path: Path, *what: str) -> DataError:
    return DataError(path, [f"{path}: {line}" for line in what])


def _noted(problems: list[str], read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What ``read`` returns; None where it finds problems, which are added."""
    try:
        return read(*args, **kwargs)
    except DataError as error:
        problems += error.problems
        return None


def _reason(error: BaseException) -> str:
    """One line of an exception."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _blocks(file: NiftiFile) -> Iterator[tuple[slice, NDArray[Any]]]:
    """The voxels in order: positions along Z and (X, Y, n) of them, scaled as the header says; then to the file's end.

    Raises:
        DataError: the file ends early, its checksum is wrong, or a few planes do not fit into memory.
    """
    stored = file.image.dataobj
    x, y, z = file.shape
    start_of_voxels, plane = _bytes_of(file)
    try:
        with _stream(file.path) as stream:
            stream.seek(start_of_voxels)
            for start in range(0, z, PLANES):
                count = min(PLANES, z - start)
                content = stream.read(count * plane)
                if len(content) < count * plane:
                    raise _ends_in(start + len(content) // plane, z)
                block = np.frombuffer(content, stored.dtype).reshape((x, y, count), order="F")
                yield slice(start, start + count), _scaled(block, float(stored.slope), float(stored.inter))
            while stream.read(1 << 20):  # the checksum of a compressed file comes last
                pass
    except UNREADABLE as error:
        raise _damage(file, error) from error
    except MemoryError as error:
        raise _too_large(file) from error


def _bytes_of(file: NiftiFile) -> tuple[int, int]:
    """Where the voxels of a volume begin in a file, and how long a plane (X, Y) of them is."""
    x, y, z = file.shape
    plane = x * y * int(file.image.dataobj.dtype.itemsize)
    return int(file.image.dataobj.offset) + file.channel * z * plane, plane


def _expect_length(file: NiftiFile) -> None:
    """Raises DataError where an uncompressed file is shorter than its header says, before memory is asked for."""
    start, plane = _bytes_of(file)
    whole = max(0, file.path.stat().st_size - start) // plane
    if not _is_compressed(file.path) and whole < file.shape[2]:
        raise _damage(file, _ends_in(whole, file.shape[2]))


def _ends_in(whole: int, planes: int) -> EOFError:
    """What is wrong with a file of so many whole planes."""
    return EOFError(f"it ends in plane {whole + 1} of {planes}")


def _damage(file: NiftiFile, error: BaseException) -> DataError:
    return _fault(file.path, f"expected {file.shape} voxels, the file is damaged: {_reason(error)}")


def _too_large(file: NiftiFile) -> DataError:
    return _fault(file.path, f"expected a volume that fits into memory, got shape {file.shape}")


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _stream(path: Path) -> BufferedIOBase:
    return gzip.open(path) if _is_compressed(path) else path.open("rb")


def _scaled(block: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    """``slope x + inter`` in float64; as stored where that is ``x``."""
    return block if (slope, inter) == (1, 0) else block.astype(np.float64) * slope + inter


def _empty(file: NiftiFile, slice_axis: int, dtype: type[np.generic]) -> tuple[NDArray[Any], NDArray[Any]]:
    """An array (S, H, W) to be filled, and a view of it on the axes of the file."""
    _expect_length(file)
    shape = list(file.shape)
    shape.insert(0, shape.pop(slice_axis))
    try:
        array = np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise _too_large(file) from error
    return array, np.moveaxis(array, 0, slice_axis)


def _read_image(file: NiftiFile, slice_axis: int) -> NDArray[np.float32]:
    """The image as float32 (S, H, W), finite."""
    image, on_file = _empty(file, slice_axis, np.float32)
    check = ImageCheck()
    for where, block in _blocks(file):
        on_file[:, :, where] = check.take(block, (0, 0, where.start))
    if check.problems():
        raise _fault(file.path, *check.problems())
    return image


def _read_label(
    file: NiftiFile, slice_axis: int, check: LabelCheck, image: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """The mask as uint8 (S, H, W); it must not hold the very voxels of the image (S, H, W)."""
    label, on_file = _empty(file, slice_axis, np.uint8)
    same = image is not None and image.shape == label.shape
    for where, block in _blocks(file):
        on_file[:, :, where] = check.take(block, (0, 0, where.start))
        if same and image is not None:
            same = np.array_equal(block, np.moveaxis(image, 0, slice_axis)[:, :, where])
    problems = [*check.problems(), *(["expected a mask, got the same voxels as in its image"] if same else [])]
    if problems:
        raise _fault(file.path, *problems)
    return label


def _grid_problems(image: NiftiFile, label: NiftiFile) -> list[str]:
    """Where a mask lies on another grid than its image."""
    problems = []
    if image.shape != label.shape:
        problems.append(f"{label.path}: expected the shape {image.shape} of its image {image.path}, got {label.shape}")
    difference = float(np.abs(image.image.affine - label.image.affine).max())
    if not difference <= AFFINE_TOLERANCE:
        problems.append(
            f"{label.path}: expected the affine of its image {image.path} (within {AFFINE_TOLERANCE:g} mm), "
            f"got one that differs by up to {difference:g} mm"
        )
    return problems


def _spacing(file: NiftiFile, slice_axis: int) -> tuple[float, float, float]:
    """(slice, row, column) spacing in millimetres from the header, whose unit is millimetres where it names none.

    A sign is dropped. Zero is refused, since nobody knows what was meant: nibabel would go on with 1.
    """
    try:
        unit = file.image.header.get_xyzt_units()[0]
    except KeyError as error:
        raise _fault(file.path, f"expected a unit of length in the header, got the code {error}") from error
    factor = {"meter": 1e3, "micron": 1e-3}.get(unit, 1.0)
    zooms = [factor * abs(zoom) for zoom in file.zooms]
    if not all(0 < zoom < np.inf for zoom in zooms):
        raise _fault(file.path, f"expected a spacing above 0 mm along every axis, got {zooms}")
    return (zooms.pop(slice_axis), zooms[0], zooms[1])
