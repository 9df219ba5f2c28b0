"""The Decathlon layout on a generated tree with its oddities, and on the real hippocampus where it is at hand."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wardround.datasets.contract import Case, DataError, Pool
from wardround.datasets.msd import Msd

SITES = {"A": 5, "B": 3, "C": 2}
CASES = [f"thing_{number:03d}" for number in range(10)]
REAL = os.environ.get("WARDROUND_DATA")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``TaskNN_Name`` with ten cases at three sites; label files as float32, images as three conventions."""
    root = tmp_path / "Task04_Thing"
    sites = [site for site, count in SITES.items() for _ in range(count)]
    for number, case in enumerate(CASES):
        write_case(root, case, shape=(6, 5 + number % 3, 4))
    (root / "imagesTr" / "._thing_000.nii.gz").write_bytes(b"resource fork")
    write_description(root, CASES, extra=[entry("._thing_000")])
    write_column(root, "site", zip(CASES, sites, strict=True))
    return root


def write_case(root: Path, case: str, shape: tuple[int, int, int]) -> None:
    for folder, array in (
        ("imagesTr", np.arange(np.prod(shape), dtype=np.int16).reshape(shape)),
        ("labelsTr", (np.arange(np.prod(shape)).reshape(shape) % 3).astype(np.float32)),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.diag([1, 2, 3, 1.0])), root / folder / f"{case}.nii.gz")


def entry(case: str) -> dict[str, str]:
    return {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}


def write_description(root: Path, cases: list[str], extra: list[object] = [], **changes: object) -> None:  # noqa: B006
    labels = {"0": "background", "1": "Front", "2": "Back"}
    description = {"labels": labels, "training": [*map(entry, cases), *extra], **changes}
    (root / "dataset.json").write_text(json.dumps(description))


def write_column(root: Path, column: str, rows: Iterable[tuple[str, str]]) -> None:
    table = {"site": "sites.csv", "patient": "patients.csv", "split": "split.csv"}[column]
    (root / table).write_text(f"case,{column}\n" + "".join(f"{case},{value}\n" for case, value in rows))


def problems(root: Path, **settings: object) -> list[str]:
    """The lines of the pool, files named from the task folder."""
    return [line.replace(f"{root}/", "") for line in Msd(**settings).pool(root).problems]


def by_name(pool: Pool) -> dict[str, Case]:
    return {case.name: case for case in pool.cases}


def test_cases_sites_and_classes(tree: Path) -> None:
    pool = Msd().pool(tree)
    assert pool.problems == ()
    assert pool.classes == ("Front", "Back")
    assert [case.name for case in pool.cases] == CASES
    assert [case.site for case in pool.cases] == list("AAAAABBBCC")
    assert all(case.patient == case.name and case.side is None for case in pool.cases)
    assert pool.cases[3].files == (tree / "imagesTr/thing_003.nii.gz", tree / "labelsTr/thing_003.nii.gz")


def test_without_tables_nothing_is_known(tree: Path) -> None:
    (tree / "sites.csv").unlink()
    pool = Msd().pool(tree)
    assert pool.problems == ()
    assert {(case.site, case.side) for case in pool.cases} == {(None, None)}


def test_the_split_of_a_folder_is_read_and_checked(tree: Path) -> None:
    sides = ["train"] * 7 + ["validation", "test", "test"]
    write_column(tree, "split", zip(CASES, sides, strict=True))
    assert [case.side for case in Msd().pool(tree).cases] == sides
    write_column(tree, "split", zip(CASES, ["training", *sides[1:]], strict=True))
    assert problems(tree) == ["split.csv: case thing_000: expected train, validation, test, got 'training'"]
    assert by_name(Msd().pool(tree))["thing_000"].side is None


def test_volume_is_read_along_the_last_axis_and_clipped(tree: Path) -> None:
    case = Msd().pool(tree).cases[0]
    volume = Msd(clip_percentiles=None).volume(case)
    assert volume.image.shape[0] == 4
    assert (volume.spacing_mm, volume.slice_axis) == ((3, 1, 2), 2)
    assert volume.image.max() == volume.image.size - 1
    assert Msd().volume(case).image.max() < volume.image.size - 1
    assert Msd(slice_axis=0).volume(case).spacing_mm == (1, 2, 3)
    assert set(np.unique(volume.label)) == {0, 1, 2}


def test_a_task_of_several_modalities(tree: Path) -> None:
    """As in Task05_Prostate: (X, Y, Z, 2) images, 3D masks."""
    array = np.arange(6 * 5 * 4 * 2, dtype=np.float32).reshape(6, 5, 4, 2)
    nib.save(nib.Nifti1Image(array, np.diag([1, 2, 3, 1.0])), tree / "imagesTr" / "thing_000.nii.gz")
    write_description(tree, CASES, modality={"0": "T2", "1": "ADC"})
    case = Msd().pool(tree).cases[0]
    read = Msd(channel=1, clip_percentiles=None).volume(case)
    assert np.array_equal(read.image, np.moveaxis(array[..., 1], 2, 0))
    with pytest.raises(DataError, match=r"expected a volume of 3 dimensions .* choose one of 2 .* \(0 T2, 1 ADC\)"):
        Msd().volume(case)
    with pytest.raises(DataError, match=r"expected a fourth axis with channel 2 \(0 T2, 1 ADC\), got shape"):
        Msd(channel=2).volume(case)


def test_two_sides_of_one_head_are_one_patient(tree: Path) -> None:
    """thing_001 and _002 are patient 1, _003 and _004 patient 2, ...; thing_000 is alone."""
    patients = [case.patient for case in Msd(patients="pairs").pool(tree).cases]
    assert patients == [f"patient-{number:04d}" for number in (0, 1, 1, 2, 2, 3, 3, 4, 4, 5)]


def test_pairs_need_numbers(tree: Path) -> None:
    write_case(tree, "brain", (6, 5, 4))
    write_description(tree, [*CASES, "brain"])
    write_column(tree, "site", [(case, "A") for case in [*CASES, "brain"]])
    assert problems(tree, patients="pairs") == [
        "case brain: expected a name that ends in a number, as data.patients is pairs"
    ]


def test_a_table_of_patients_wins_and_is_checked(tree: Path) -> None:
    rows = [(case, f"p{number // 5}") for number, case in enumerate(CASES)]
    write_column(tree, "patient", rows)
    assert [case.patient for case in Msd(patients="pairs").pool(tree).cases] == ["p0"] * 5 + ["p1"] * 5
    write_column(tree, "patient", rows[1:])
    assert problems(tree) == ["patients.csv: case thing_000 has no row"]


def test_classes_need_names_of_their_own(tree: Path) -> None:
    description = json.loads((tree / "dataset.json").read_text())
    description["labels"]["2"] = description["labels"]["1"]
    (tree / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="expected a name of its own for every class"):
        Msd().pool(tree)


def test_a_table_in_another_encoding_is_named(tree: Path) -> None:
    (tree / "sites.csv").write_bytes("case,site\nthing_000,Köln\n".encode("latin-1"))
    [line] = problems(tree)
    assert line.startswith("sites.csv: expected a table in UTF-8, got UnicodeDecodeError")
    (tree / "sites.csv").write_text("case;site\nthing_000;A\n")
    assert problems(tree) == [
        "sites.csv: expected the columns case,site, got 'case;site': write commas between columns, not semicolons"
    ]


def test_the_task_folder_may_be_the_current_one(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert Msd(task=tree.name).locate(Path()) == Path()


def test_every_problem_of_the_files_is_listed_at_once(tree: Path) -> None:
    (tree / "imagesTr" / "thing_001.nii.gz").unlink()
    (tree / "labelsTr" / "thing_002.nii.gz").unlink()
    write_description(tree, [*CASES, "thing_003"], extra=[{"image": 3}])
    assert problems(tree) == [
        "dataset.json: training[11]: expected {'image': path, 'label': path}, got {'image': 3}",
        "case thing_003: listed 2 times in dataset.json",
        "imagesTr/thing_001.nii.gz: missing, dataset.json lists it",
        "labelsTr/thing_002.nii.gz: missing, dataset.json lists it",
    ]
    assert [case.name for case in Msd().pool(tree).cases] == [CASES[0], *CASES[3:]]


def test_every_problem_of_the_sites_is_listed_at_once(tree: Path) -> None:
    rows = [(case, "A") for case in CASES[1:]]
    write_column(tree, "site", [*rows, ("thing_001", "B"), ("thing_077", "A"), ("thing_002", ""), ("", "A")])
    assert problems(tree) == [
        "sites.csv: case thing_001 has 2 rows",
        "sites.csv: case thing_002 has 2 rows",
        "sites.csv: row 14 has no case",
        "sites.csv: case thing_002 has no site",
        "sites.csv: case thing_000 has no row",
        "sites.csv: case thing_077 is not listed in dataset.json",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"0": "background"}}, r"labels: expected the keys '0' \(background\), '1'"),
        ({"labels": {"0": "background", "2": "Back"}}, r"without a gap, got \['0', '2'\]"),
        ({"labels": ["background", "Back"]}, "expected labels as dict, not empty"),
        ({"training": [], "labels": {}}, "expected labels as dict and training as list, not empty"),
    ],
)
def test_a_bad_description(tree: Path, changes: dict[str, object], message: str) -> None:
    write_description(tree, CASES, **changes)
    with pytest.raises(ValueError, match=message):
        Msd().pool(tree)
    (tree / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset.json: expected a readable JSON file, got JSONDecodeError"):
        Msd().pool(tree)


def test_locate(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARDROUND_DATA", raising=False)
    with pytest.raises(ValueError, match=r"no folder given; .* --data PATH or the environment variable WARDROUND_DATA"):
        Msd().locate(None)
    assert Msd().locate(tree) == tree
    assert Msd().locate(tree.parent) == tree
    assert Msd(task="Task04_Thing").locate(tree) == tree
    monkeypatch.setenv("WARDROUND_DATA", str(tree.parent))
    assert Msd().locate(None) == tree
    write_description_of_second = tree.parent / "Task05_Other"
    write_description_of_second.mkdir()
    write_description(write_description_of_second, [])
    assert Msd(task="Task04_Thing").locate(None) == tree
    with pytest.raises(
        ValueError, match=r"exactly one folder .* \['Task04_Thing', 'Task05_Other'\]; choose one with data.task"
    ):
        Msd().locate(None)
    with pytest.raises(ValueError, match=r"the task folder 'Task06' with a dataset.json, found none"):
        Msd(task="Task06").locate(None)
    with pytest.raises(
        ValueError, match=r"nowhere: expected a folder that holds a Decathlon task \(.*\), found none there"
    ):
        Msd().locate(tree / "nowhere")


def test_mistakes_in_settings_are_named_together() -> None:
    with pytest.raises(
        ValueError, match=r"slice_axis: .* got 3; clip_percentiles: .*; channel: .* got -1; patients: .* got 'two'"
    ):
        Msd(slice_axis=3, clip_percentiles=(99, 1), channel=-1, patients="two")  # type: ignore[arg-type]  # on purpose
    assert replace(Msd(), clip_percentiles=None).clip_percentiles is None


@pytest.mark.data
@pytest.mark.skipif(not REAL, reason="WARDROUND_DATA does not name a folder with Task04_Hippocampus")
def test_the_real_hippocampus() -> None:
    """199 cases at three sites (42 uint8, 132 float about 1e3, 25 float about 4e5), labels anterior and posterior."""
    msd = Msd(task="Task04_Hippocampus")
    pool = msd.pool(msd.locate(None))
    assert pool.problems == ()
    assert pool.classes == ("Anterior", "Posterior")
    assert Counter(case.site for case in pool.cases) == {"A": 42, "B": 132, "C": 25}
    largest: dict[str, list[float]] = {"A": [], "B": [], "C": []}
    for case in pool.cases[::8]:
        volume = msd.volume(case)
        assert volume.spacing_mm == (1, 1, 1)
        assert set(np.unique(volume.label)) == {0, 1, 2}
        largest[str(case.site)].append(float(volume.image.max()))
    assert np.median(largest["A"]) <= 255 < np.median(largest["B"]) < 1e4 < np.median(largest["C"])
