"""From a file to slices and back: predictions lie where their image lies, and distances are in its millimetres."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from wardround.clients.metrics import hd95_mm, surface_dice
from wardround.datasets.contract import Case, Volume
from wardround.datasets.nifti import read_case, write_prediction

ZOOMS = (0.7, 1.3, 5.0)
SHAPES = [(7, 5, 3), (9, 4, 1), (1, 6, 5), (6, 1, 21)]


def oblique(zooms: tuple[float, ...] = ZOOMS) -> np.ndarray:
    """Two tilts and a flip: no array axis is parallel to an axis of the scanner, and the first runs backwards."""
    a, b = np.radians(25), np.radians(-40)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(np.multiply(zooms, (-1, 1, 1)))
    affine[:3, 3] = (31.5, -7.25, 120)
    return affine


def scan(shape: tuple[int, ...], kind: type = nib.Nifti1Image) -> Any:
    """Scaled int16 whose qform and sform differ, with codes, units and a time unit that must all come back."""
    array = np.random.default_rng(1).integers(-1000, 1000, shape).astype(np.int16)
    image = kind(array, oblique())
    image.header.set_slope_inter(0.5, -10)
    image.set_sform(oblique(), code=4)
    image.set_qform(oblique() + np.eye(4, k=3), code=1)  # 1 mm aside
    image.header.set_xyzt_units("mm", "sec")
    return image


def mask(shape: tuple[int, ...]) -> np.ndarray:
    """Labels without any symmetry."""
    return np.random.default_rng(2).integers(0, 4, shape[:3]).astype(np.uint8)


def write(folder: Path, image: Any, label: np.ndarray, suffix: str) -> Case:
    nib.save(image, folder / f"image{suffix}")
    nib.save(nib.Nifti1Image(label, image.affine), folder / f"label{suffix}")
    return Case(name="c", patient="c", image=folder / f"image{suffix}", label=folder / f"label{suffix}")


def assert_same_grid(written: Any, source: Any) -> None:
    """Shape, affine, sform and qform with their codes, zooms and units, bit for bit."""
    assert written.shape == source.shape[:3]
    assert np.array_equal(written.affine, source.affine)
    for form in ("sform", "qform"):
        (ours, our_code), (theirs, their_code) = (
            getattr(file, f"get_{form}")(coded=True) for file in (written, source)
        )
        assert np.array_equal(ours, theirs)
        assert our_code == their_code > 0
    assert written.header.get_zooms() == source.header.get_zooms()[:3]
    assert written.header.get_xyzt_units() == source.header.get_xyzt_units()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_return_to_their_voxels(tmp_path: Path, shape: tuple[int, ...], axis: int, suffix: str) -> None:
    """What was read as the mask and written as the prediction is the mask file again, with the header of the image."""
    case = write(tmp_path, scan(shape), mask(shape), suffix)
    volume = read_case(case, slice_axis=axis, num_classes=3)
    assert volume.label.shape[0] == shape[axis]
    assert volume.image.shape == volume.label.shape
    path = tmp_path / "out" / f"prediction{suffix}"
    write_prediction(path, volume.label, volume)
    written = nib.load(path)
    assert np.array_equal(np.asarray(written.dataobj), mask(shape))
    assert written.get_data_dtype() == np.uint8
    assert_same_grid(written, nib.load(case.image))


@pytest.mark.parametrize(("kind", "shape"), [(nib.Nifti2Image, (7, 5, 3)), (nib.Nifti1Image, (7, 5, 3, 2))])
def test_nifti_2_and_four_dimensions(tmp_path: Path, kind: type, shape: tuple[int, ...]) -> None:
    case = write(tmp_path, scan(shape, kind), mask(shape), ".nii.gz")
    channel = 1 if len(shape) == 4 else None
    volume = read_case(case, slice_axis=1, num_classes=3, channel=channel)
    stored = np.asarray(nib.load(case.image).dataobj)
    assert np.array_equal(volume.image, np.moveaxis(stored if channel is None else stored[..., channel], 1, 0))
    write_prediction(tmp_path / "p.nii.gz", volume.label, volume)
    written = nib.load(tmp_path / "p.nii.gz")
    assert isinstance(written, kind)
    assert np.array_equal(np.asarray(written.dataobj), mask(shape))
    assert_same_grid(written, nib.load(case.image))


def test_a_finding_stays_where_the_patient_has_it(tmp_path: Path) -> None:
    """The voxel (5, 1, 2) of the file, in scanner coordinates, by the affine of the written file alone."""
    label = np.zeros((7, 5, 3), np.uint8)
    label[5, 1, 2] = 1
    case = write(tmp_path, scan(label.shape), label, ".nii.gz")
    for axis in range(3):
        volume = read_case(case, slice_axis=axis, num_classes=1)
        write_prediction(tmp_path / "p.nii.gz", volume.label, volume)
        written = nib.load(tmp_path / "p.nii.gz")
        [voxel] = np.argwhere(np.asarray(written.dataobj))
        assert written.affine @ [*voxel, 1] == pytest.approx(oblique() @ [5, 1, 2, 1], abs=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_image_that_is_no_nifti_file_keeps_its_array_axes_and_spacing(tmp_path: Path, axis: int) -> None:
    label = mask((4, 5, 6))
    shape = np.moveaxis(label, axis, 0).shape
    spacing = (5.0, *(zoom for position, zoom in enumerate((0.7, 1.3, 2.1)) if position != axis))
    case = Case(name="c", patient="c", image=tmp_path / "c.npy.h5", label=tmp_path / "c.npy.h5")
    image = np.zeros(shape, np.float32)
    volume = Volume(case=case, image=image, label=np.moveaxis(label, axis, 0), spacing_mm=spacing, slice_axis=axis)
    write_prediction(tmp_path / "p.nii.gz", volume.label, volume)
    written = nib.load(tmp_path / "p.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), label)
    zooms = [0.7, 1.3, 2.1]
    zooms[axis] = 5.0
    assert written.affine == pytest.approx(np.diag([*zooms, 1]))
    assert written.header.get_xyzt_units()[0] == "mm"
    with pytest.raises(ValueError, match=r"p.nii.gz: expected labels of the shape"):
        write_prediction(tmp_path / "p.nii.gz", volume.label[:-1], volume)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("moved", [0, 1, 2])
def test_distances_are_millimetres_of_the_file(tmp_path: Path, slice_axis: int, moved: int) -> None:
    """A box of 4 x 4 x 4 voxels, moved by one voxel along one axis of the file.

    Its surface has 64 - 8 = 56 voxels. The 16 of the leading face are one voxel size away from the other box, which is
    more than 5 % of all, and none is farther: HD95 is that size. Both surfaces lie within it, but not within less.
    """
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[2:6, 2:6, 2:6] = 1
    case = write(tmp_path, nib.Nifti1Image(np.float32(truth) * 7 - 3, oblique()), truth, ".nii.gz")
    volume = read_case(case, slice_axis=slice_axis, num_classes=1)
    prediction = np.moveaxis(np.roll(truth, 1, axis=moved), slice_axis, 0)
    distance = hd95_mm(prediction, volume.label, 1, volume.spacing_mm)
    assert distance == pytest.approx(ZOOMS[moved], rel=1e-5)
    near, far = (surface_dice(prediction, volume.label, 1, volume.spacing_mm, f * ZOOMS[moved]) for f in (0.99, 1.01))
    assert near is not None
    assert near < 0.95
    assert far == pytest.approx(1.0)
