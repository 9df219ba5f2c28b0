"""NIfTI files in and out, with one clear error per fault.

Legend: S slices, H rows, W columns, C foreground classes.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from .contract import Case, Volume

AFFINE_TOLERANCE = 1e-3
"""Largest difference between the affines of image and mask, in millimetres (per voxel step and at the origin)."""


def read_case(
    case: Case,
    *,
    slice_axis: int,
    num_classes: int,
    clip_percentiles: tuple[float, float] | None = None,
    clip_range: tuple[float, float] | None = None,
    merge_foreground: bool = False,
) -> Volume:
    """Reads and checks an image and its mask, and brings slices to the front.

    Args:
        case: The two files.
        slice_axis: Array axis along which slices are taken; the other two become rows and columns, in their order.
        num_classes: C; the mask may hold 0..C.
        clip_percentiles: Clip the image to these percentiles of its own voxels, in percent.
        clip_range: Clip the image to these values, in the units of the file.
        merge_foreground: Every label above 0 becomes 1 (before the check of the range).

    Raises:
        ValueError: names the file, what was expected and what came.
    """
    image_file, label_file = _open(case.image), _open(case.label)
    image, label = _voxels(image_file, case.image), _voxels(label_file, case.label)
    _check_same_grid(case, image, label, image_file.affine, label_file.affine)
    label = _checked_labels(case, label, num_classes, merge_foreground)
    return Volume(
        case=case,
        image=np.ascontiguousarray(np.moveaxis(_clipped(image, clip_percentiles, clip_range), slice_axis, 0)),
        label=np.ascontiguousarray(np.moveaxis(label, slice_axis, 0)),
        spacing_mm=_spacing(image_file, slice_axis),
    )


def read_image(path: Path, *, slice_axis: int) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
    """An image without a mask: (S, H, W) float32 and its (slice, row, column) spacing in millimetres.

    Raises:
        ValueError: as :func:`read_case`.
    """
    file = _open(path)
    image = _clipped(_voxels(file, path), None, None)
    return np.ascontiguousarray(np.moveaxis(image, slice_axis, 0)), _spacing(file, slice_axis)


def write_label_map(path: Path, labels: NDArray[np.uint8], *, like: Path, slice_axis: int) -> None:
    """Puts labels back on the grid of the image they were predicted for, voxel for voxel.

    Affine, sform and qform with their codes, zooms and units are those of ``like``; the data type is uint8 without
    scaling. The file appears whole or not at all, and the same labels give the same bytes.

    Args:
        path: ``.nii`` or ``.nii.gz``; its folder is made where it is missing.
        labels: (S, H, W) uint8.
        like: The image.
        slice_axis: As it was read.

    Raises:
        ValueError: the labels do not fit the grid of the image.
    """
    source = _open(like)
    shape = tuple(source.shape[:3])
    on_grid = np.moveaxis(labels, 0, slice_axis)
    if on_grid.shape != shape:
        raise ValueError(f"{path}: expected labels on the grid {shape} of {like}, got {on_grid.shape}")
    header = source.header.copy()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header["cal_min"], header["cal_max"] = 0, 0
    header["descrip"] = b"label map"
    write_nifti(path, nifti_image(on_grid.astype(np.uint8), None, header))


def nifti_image(array: NDArray[Any], affine: NDArray[Any] | None, header: Any = None) -> Any:
    """A nibabel image in memory."""
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(array, affine, header)  # type: ignore[no-untyped-call]  # nibabel is typed in part only


def write_nifti(path: Path, image: Any) -> None:
    """Writes a nibabel image whole or not at all; compressed files carry no date: bytes depend on content only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = image.to_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".unfinished")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's file mode mask, which mkstemp ignores."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _open(path: Path) -> Any:
    """A nibabel image, voxels not yet read."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a NIfTI file (.nii, .nii.gz), found none there")
    try:
        _check_gzip(path)
        image = nib.load(path)
    except (ImageFileError, OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: expected a readable NIfTI file, got {_reason(error)}") from error
    if not isinstance(image, nib.Nifti1Pair):  # NIfTI-2 is a subclass
        raise ValueError(f"{path}: expected a NIfTI file, got {type(image).__name__}")
    return image


def _check_gzip(path: Path) -> None:
    """Reads a compressed file to its end, where its checksum is compared; nibabel stops after the last voxel."""
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass


def _voxels(image: Any, path: Path) -> NDArray[Any]:
    """The three-dimensional array of a file, finite and not empty, in the dtype of the scaled data."""
    shape = tuple(image.shape)
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3:
        raise ValueError(
            f"{path}: expected a volume of 3 dimensions (a 4th of length 1 is dropped), got shape {image.shape}"
        )
    if 0 in shape:
        raise ValueError(f"{path}: expected a volume with voxels, got shape {image.shape}")
    try:
        array = np.asarray(image.dataobj).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: expected {shape} voxels, the file is damaged: {_reason(error)}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected one real number per voxel, got data type {array.dtype}")
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        count = array.size - int(finite.sum())
        raise ValueError(f"{path}: expected finite voxels, got {count} that are not, first {array[first]} at {first}")
    return array


def _reason(error: BaseException) -> str:
    """One line of an exception."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _check_same_grid(
    case: Case, image: NDArray[Any], label: NDArray[Any], image_affine: NDArray[Any], label_affine: NDArray[Any]
) -> None:
    if image.shape != label.shape:
        raise ValueError(f"{case.label}: expected the shape {image.shape} of its image {case.image}, got {label.shape}")
    difference = float(np.abs(image_affine - label_affine).max())
    if not difference <= AFFINE_TOLERANCE:
        raise ValueError(
            f"{case.label}: expected the affine of its image {case.image} (within {AFFINE_TOLERANCE:g} mm), "
            f"got one that differs by up to {difference:g} mm"
        )


def _checked_labels(case: Case, label: NDArray[Any], num_classes: int, merge_foreground: bool) -> NDArray[np.uint8]:
    values = np.unique(label)
    if not (values == np.round(values)).all():
        wrong = float(values[values != np.round(values)][0])
        raise ValueError(f"{case.label}: expected whole numbers as labels, got {wrong!r}")
    if merge_foreground:
        label, values = (label > 0).astype(np.uint8), np.unique(values > 0).astype(np.uint8)
    if values[0] < 0 or values[-1] > num_classes:
        outside = [int(value) for value in values if not 0 <= value <= num_classes]
        raise ValueError(f"{case.label}: expected labels 0 to {num_classes}, got {outside} too")
    return label.astype(np.uint8)


def _clipped(
    image: NDArray[Any], percentiles: tuple[float, float] | None, bounds: tuple[float, float] | None
) -> NDArray[np.float32]:
    if percentiles is not None:
        image = np.clip(image, *np.percentile(image, percentiles))
    if bounds is not None:
        image = np.clip(image, *bounds)
    return image.astype(np.float32)


def _spacing(image: Any, slice_axis: int) -> tuple[float, float, float]:
    """(slice, row, column) spacing in millimetres from the header, whose unit is millimetres where it names none."""
    factor = {"meter": 1e3, "micron": 1e-3}.get(image.header.get_xyzt_units()[0], 1.0)
    zooms = [factor * float(zoom) for zoom in image.header.get_zooms()[:3]]
    if not all(0 < zoom < np.inf for zoom in zooms):
        raise ValueError(f"{image.get_filename()}: expected a spacing above 0 mm along every axis, got {zooms}")
    return (zooms.pop(slice_axis), zooms[0], zooms[1])
