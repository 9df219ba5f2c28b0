"""Every problem of a folder at once, each with its file; remarks stop nobody."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from wardround.datasets.check import Finding, check
from wardround.datasets.contract import Case, DataError, Pool, Volume
from wardround.datasets.msd import Msd

SHAPE = (6, 5, 4)
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Cases whose volumes are at hand, or whose reading fails with what is given."""

    content: dict[Case, Volume | Exception]
    told: tuple[str, ...] = ()

    def locate(self, root: Path | None) -> Path:
        return root or Path()

    def pool(self, root: Path) -> Pool:
        return Pool(cases=tuple(self.content), classes=("front", "back"), problems=self.told)

    def volume(self, case: Case) -> Volume:
        found = self.content[case]
        if isinstance(found, Exception):
            raise found
        return found


def image_array(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def label_array(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    label = np.zeros(shape, np.uint8)
    label[1:4, 1:3, 1:3], label[2, 2, 1] = 1, 2
    return label


def save(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def make_tree(root: Path, count: int) -> tuple[str, ...]:
    """Sound cases ``thing_000`` and so on, each with an image of its own."""
    names = tuple(f"thing_{number:03d}" for number in range(count))
    for number, name in enumerate(names):
        save(root / "imagesTr" / f"{name}.nii.gz", image_array(number))
        save(root / "labelsTr" / f"{name}.nii.gz", label_array())
    entries = [{kind: f"./{kind}sTr/{name}.nii.gz" for kind in ("image", "label")} for name in names]
    labels = {"0": "background", "1": "front", "2": "back"}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "training": entries}))
    return names


def a_case(name: str = "a", **changes: object) -> Case:
    case = Case(name=name, patient=name, image=Path(f"/data/{name}.nii"), label=Path(f"/data/{name}-mask.nii"))
    return replace(case, **changes)  # type: ignore[arg-type]  # fields by name


def a_volume(case: Case, image: NDArray[np.float32] | None = None, label: NDArray[np.uint8] | None = None) -> Volume:
    image = image_array(sum(map(ord, case.name))) if image is None else image
    label = label_array() if label is None else label
    return Volume(case=case, image=image, label=label, spacing_mm=(3.0, 1.0, 2.0), slice_axis=2)


def find(*volumes: Volume, told: tuple[str, ...] = ()) -> Finding:
    return check(Memory(content={volume.case: volume for volume in volumes}, told=told), Path("/data"))


def test_a_sound_folder_has_facts_and_no_problems(tmp_path: Path) -> None:
    names = make_tree(tmp_path, 3)
    seen: list[tuple[int, int]] = []
    finding = check(Msd(), tmp_path, lambda *count: seen.append(count))
    assert (finding.problems, finding.remarks) == ((), ())
    assert tuple(finding.facts) == names
    assert finding.facts["thing_001"].shape == (4, 6, 5)
    assert finding.facts["thing_001"].label_ml == pytest.approx((11 * 6e-3, 6e-3))  # 12 voxels of 6 mm3, one is back
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_eight_planted_faults_are_found_at_once(tmp_path: Path) -> None:
    names = make_tree(tmp_path, 12)
    images, labels = tmp_path / "imagesTr", tmp_path / "labelsTr"
    (labels / "thing_001.nii.gz").unlink()  # missing case
    save(labels / "thing_002.nii.gz", label_array((6, 5, 3)))  # wrong shape
    save(labels / "thing_003.nii.gz", label_array() * 3)  # label outside the map
    cut(images / "thing_004.nii.gz")  # corrupt gzip: truncated
    flip(labels / "thing_005.nii.gz")  # corrupt gzip: checksum
    (images / "thing_007.nii.gz").write_bytes((images / "thing_006.nii.gz").read_bytes())  # duplicate case
    (images / "thing_008.nii.gz").write_bytes((labels / "thing_008.nii.gz").read_bytes())  # image equal to mask
    patients = {name: "P" if name in ("thing_009", "thing_010") else name for name in names}
    write_table(tmp_path / "patients.csv", "patient", patients)
    sides = {name: "test" if name == "thing_010" else "train" for name in names}
    write_table(tmp_path / "split.csv", "split", sides)  # a patient in train and test
    finding = check(Msd(), tmp_path)
    assert [line.split(": ")[0] for line in finding.problems] == [
        "imagesTr/thing_004.nii.gz",
        "imagesTr/thing_007.nii.gz",
        "labelsTr/thing_001.nii.gz",
        "labelsTr/thing_002.nii.gz",
        "labelsTr/thing_003.nii.gz",
        "labelsTr/thing_005.nii.gz",
        "labelsTr/thing_008.nii.gz",
        "thing_010",
    ]
    said = ("EOFError", "own", "missing", "shape", "labels 0 to 2", "CRC", "same voxels as in its image", "patient P")
    assert all(word in line for word, line in zip(said, finding.problems, strict=True))
    assert sorted(finding.facts) == [name for name in names if int(name[-3:]) in (0, 6, 7, 9, 10, 11)]


def write_table(path: Path, column: str, values: dict[str, str]) -> None:
    path.write_text("".join(f"{case},{value}\n" for case, value in {"case": column, **values}.items()))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def flip(path: Path) -> None:
    """One bit of the stored checksum (the last 8 bytes are CRC-32 and length): no voxel reads wrong."""
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_gzip(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    (name,) = make_tree(tmp_path, 1)
    damage(tmp_path / "imagesTr" / f"{name}.nii.gz")
    with pytest.raises((EOFError, OSError)), gzip.open(tmp_path / "imagesTr" / f"{name}.nii.gz") as file:
        file.read()
    (line,) = check(Msd(), tmp_path).problems
    assert line.startswith(f"imagesTr/{name}.nii.gz: ")


def test_another_affine(tmp_path: Path) -> None:
    (name,) = make_tree(tmp_path, 1)
    save(tmp_path / "labelsTr" / f"{name}.nii.gz", label_array(), AFFINE + np.eye(4, k=1) * 0.5)
    (line,) = check(Msd(), tmp_path).problems
    assert line.startswith(f"labelsTr/{name}.nii.gz: ")
    assert "affine" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission(tmp_path: Path) -> None:
    (name,) = make_tree(tmp_path, 1)
    (tmp_path / "imagesTr" / f"{name}.nii.gz").chmod(0)
    (line,) = check(Msd(), tmp_path).problems
    assert line.startswith(f"imagesTr/{name}.nii.gz: ")
    assert "ermission" in line


def test_voxels_that_are_not_finite(tmp_path: Path) -> None:
    (name,) = make_tree(tmp_path, 1)
    image = image_array()
    image[1, 2, 3] = np.nan
    save(tmp_path / "imagesTr" / f"{name}.nii.gz", image)
    (line,) = check(Msd(), tmp_path).problems
    assert line.startswith(f"imagesTr/{name}.nii.gz: ")
    assert "finite" in line


def test_every_line_of_a_case_is_kept_and_names_it() -> None:
    case = a_case()
    error = DataError(Path("/data/a.nii"), ["/data/a.nii: too dark", "case a is odd", "its mask is odd"])
    finding = check(Memory(content={case: error}), Path("/data"))
    assert finding.problems == ("a.nii: too dark", "a: its mask is odd", "case a is odd")
    assert not finding.facts


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("expected this,\n  got that"), "a: expected this, got that"),
        (PermissionError(13, "Permission denied", "/data/a.nii"), "a.nii: Permission denied"),
        (KeyError("label"), "a: reading failed: KeyError: 'label'"),
        (MemoryError(), "a: reading failed: MemoryError: "),
    ],
)
def test_whatever_a_reader_raises_the_next_case_is_read(error: Exception, line: str) -> None:
    a, b = a_case("a"), a_case("b")
    finding = check(Memory(content={a: error, b: a_volume(b)}), Path("/data"))
    assert finding.problems == (line.strip(),)
    assert list(finding.facts) == ["b"]


@pytest.mark.parametrize("saved", [np.uint8, np.float32])
def test_image_equal_to_mask_in_another_type(saved: type) -> None:
    case = a_case()
    assert find(a_volume(case, label_array().astype(saved).astype(np.float32))).problems == (
        "a.nii: expected an image, got its mask a-mask.nii once more",
    )


def test_image_equal_to_mask_after_clipping_and_merging() -> None:
    """The mask 0, 1, 2 as image, clipped to 1.5; as label, merged to 0, 1."""
    clipped = label_array().astype(np.float32).clip(0, 1.5)
    finding = find(a_volume(a_case(), clipped, (label_array() > 0).astype(np.uint8)))
    assert len(finding.problems) == 1


def test_an_image_that_is_dark_outside_the_mask_is_an_image() -> None:
    assert find(a_volume(a_case(), image_array() * (label_array() > 0))).problems == ()


def test_equal_voxels_under_two_names() -> None:
    twin = image_array()
    cases = [a_case(name) for name in "abc"]
    finding = find(a_volume(cases[0], twin), a_volume(cases[1]), a_volume(cases[2], twin.copy()))
    assert finding.problems == ("c.nii: expected an image of its own, got the voxels of a (a.nii)",)
    reshaped = a_volume(cases[1], twin.reshape(4, 5, 6), label_array((4, 5, 6)))
    assert find(a_volume(cases[0], twin), reshaped).problems == ()


def test_one_name_for_two_cases_is_said_once() -> None:
    one, other = a_case("a"), a_case("a", image=Path("/data/other.nii"))
    volumes = a_volume(one), a_volume(other)
    assert find(*volumes).problems == ("a: expected a name of its own for every case, got 2 cases with it",)
    assert find(*volumes, told=("list.csv: a has 2 rows",)).problems == ("list.csv: a has 2 rows",)


def test_patients_stay_on_one_side_and_at_one_site() -> None:
    cases = [
        a_case("a", patient="P", side="train", site="X"),
        a_case("b", patient="P", side="test", site="X"),
        a_case("c", patient="P", side="train", site="Y"),
        a_case("d", patient="Q", side="test", site="Y"),
        a_case("e", patient="Q", side="test", site="Y"),
    ]
    assert find(*map(a_volume, cases)).problems == (
        "b: expected patient P on one side of the split, got test here and train for a",
        "c: expected patient P at one site, got Y here and X for a",
    )


def test_remarks_are_no_problems() -> None:
    empty = a_volume(a_case("a"), label=np.zeros(SHAPE, np.uint8))
    flat = a_volume(a_case("b"), np.full(SHAPE, 7, np.float32))
    finding = find(empty, flat)
    assert finding.problems == ()
    assert finding.remarks == ("a-mask.nii: no voxel has a label above 0", "b.nii: every voxel is 7")
    assert list(finding.facts) == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": label_array((6, 5, 3))}, "(6, 5, 4), (6, 5, 3)"),
        ({"label": label_array() * 2}, "labels 0 to 2, got [4] too"),
        ({"image": np.full(SHAPE, np.inf, np.float32)}, "got 120 that are not"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "(1.0, 0.0, 1.0)"),
    ],
)
def test_what_a_loader_should_have_refused(change: dict[str, object], said: str) -> None:
    volume = replace(a_volume(a_case()), **change)  # type: ignore[arg-type]  # fields by name
    finding = find(volume)
    (line,) = finding.problems
    assert line.startswith("a: expected")
    assert said in line
    assert not finding.facts


def test_only_the_folder_itself_is_cut_from_names() -> None:
    told = ("data/a.nii: missing", "mydata/a.nii: missing", "../data/b.nii: missing", "b (data/c.nii): missing")
    finding = check(Memory(content={}, told=told), Path("data"))
    assert finding.problems == ("../data/b.nii: missing", "a.nii: missing", "b (c.nii): missing", told[1])


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    class Nothing(Memory):
        def pool(self, root: Path) -> Pool:
            raise ValueError(f"{root}: expected cases, found none")

    with pytest.raises(ValueError, match="expected cases, found none"):
        check(Nothing(content={}), tmp_path)


def test_one_mask_listed_for_two_cases(tmp_path: Path) -> None:
    """As a copied line of a table has it: the images differ, the mask is one file."""
    make_tree(tmp_path, 2)
    mask = "./labelsTr/thing_000.nii.gz"
    text = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(text.replace("./labelsTr/thing_001.nii.gz", mask))
    (line,) = check(Msd(), tmp_path).problems
    assert line == "labelsTr/thing_000.nii.gz: expected a mask of its own for thing_001, got that of thing_000"


def test_a_task_without_cases(tmp_path: Path) -> None:
    make_tree(tmp_path, 1)
    description = json.loads((tmp_path / "dataset.json").read_text())
    description["training"] = [{"image": "./imagesTr/._a.nii.gz", "label": "./labelsTr/._a.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert check(Msd(), tmp_path).problems == ("dataset.json: training: expected at least one case, got none",)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [(70, 9999, "readable NIfTI file, got HeaderDataError"), (123, 0x37, "a unit of length in the header")],
)
def test_header_fields_that_mean_nothing(tmp_path: Path, offset: int, value: int, message: str) -> None:
    """The codes of the data type (int16 at byte 70) and of the units (byte 123)."""
    (name,) = make_tree(tmp_path, 1)
    path = tmp_path / "imagesTr" / f"{name}.nii.gz"
    data = bytearray(gzip.decompress(path.read_bytes()))
    width = 2 if offset == 70 else 1
    data[offset : offset + width] = value.to_bytes(width, "little")
    path.write_bytes(gzip.compress(bytes(data)))
    (line,) = check(Msd(), tmp_path).problems
    assert line.startswith(f"imagesTr/{name}.nii.gz: ")
    assert message in line


def test_what_the_split_does_not_keep_is_no_problem(tmp_path: Path) -> None:
    """A patient on two sides matters where the data set's own sides are used, and not where others are drawn."""
    names = make_tree(tmp_path, 2)
    write_table(tmp_path / "patients.csv", "patient", dict.fromkeys(names, "Ada"))
    write_table(tmp_path / "split.csv", "split", dict(zip(names, ("train", "test"), strict=True)))
    assert len(check(Msd(), tmp_path).problems) == 1
    assert check(Msd(), tmp_path, keeps=("site",)).problems == ()
