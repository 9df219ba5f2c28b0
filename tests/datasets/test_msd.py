"""The Decathlon layout on a generated tree with its oddities, and on the real hippocampus where it is at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from wardround.datasets import msd
from wardround.datasets.contract import Cases, Federation
from wardround.datasets.msd import Msd
from wardround.simulator.randomness import streams

SITES = {"A": 5, "B": 3, "C": 2}
REAL = os.environ.get("WARDROUND_DATA")


def rng(seed: int = 0) -> Callable[..., torch.Generator]:
    return streams(seed, "data")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``TaskNN_Name`` with ten cases at three sites; label files as float32, images as three conventions."""
    root = tmp_path / "Task04_Thing"
    cases = [f"thing_{number:03d}" for number in range(sum(SITES.values()))]
    sites = [site for site, count in SITES.items() for _ in range(count)]
    for number, case in enumerate(cases):
        write_case(root, case, shape=(6, 5 + number % 3, 4))
    (root / "imagesTr" / "._thing_000.nii.gz").write_bytes(b"resource fork")
    write_description(root, cases, extra=[entry("._thing_000")])
    write_sites(root, list(zip(cases, sites, strict=True)))
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


def write_sites(root: Path, rows: list[tuple[str, str]]) -> None:
    (root / "sites.csv").write_text("case,site\n" + "".join(f"{case},{site}\n" for case, site in rows))


def counts(federation: Federation) -> dict[str, tuple[int, int, int]]:
    return {n: (len(c.train), len(c.validation), len(c.test)) for n, c in federation.hospitals.items()}


def names(cases: Cases) -> list[str]:
    return [case.name for part in (cases.train, cases.validation, cases.test) for case in part]


def test_hospitals_classes_and_split(tree: Path) -> None:
    federation = Msd().federation(tree, rng())
    assert federation.classes == ("Front", "Back")
    assert counts(federation) == {"A": (4, 0, 1), "B": (2, 0, 1), "C": (1, 0, 1)}
    assert sorted(names(federation.hospitals["B"])) == ["thing_005", "thing_006", "thing_007"]
    assert federation == Msd().federation(tree, rng())
    assert any(federation != Msd().federation(tree, rng(seed)) for seed in range(1, 4))


def test_one_hospital_does_not_shift_another(tree: Path) -> None:
    """Site A gains a case; the splits of B and C stay."""
    before = Msd().federation(tree, rng())
    write_case(tree, "thing_100", (6, 5, 4))
    cases = [f"thing_{number:03d}" for number in range(10)] + ["thing_100"]
    write_description(tree, cases)
    write_sites(tree, list(zip(cases, "AAAAABBBCCA", strict=True)))
    after = Msd().federation(tree, rng())
    assert len(names(after.hospitals["A"])) == 6
    assert (after.hospitals["B"], after.hospitals["C"]) == (before.hospitals["B"], before.hospitals["C"])


def test_hospitals_of_one_size_are_split_independently(tree: Path) -> None:
    write_sites(tree, [(f"thing_{number:03d}", "A" if number < 5 else "B") for number in range(10)])
    chosen = []
    for seed in range(6):
        hospitals = Msd().federation(tree, rng(seed)).hospitals
        chosen.append([int(hospitals[name].test[0].name[-1]) % 5 for name in "AB"])
    assert any(a != b for a, b in chosen)


def test_volume_is_read_along_the_last_axis_and_clipped(tree: Path) -> None:
    case = Msd().federation(tree, rng()).hospitals["A"].train[0]
    volume = Msd(clip_percentiles=None).volume(case)
    assert volume.image.shape[0] == 4
    assert volume.spacing_mm == (3, 1, 2)
    assert volume.image.max() == volume.image.size - 1
    assert Msd().volume(case).image.max() < volume.image.size - 1
    assert Msd(slice_axis=0).volume(case).spacing_mm == (1, 2, 3)
    assert set(np.unique(volume.label)) == {0, 1, 2}


def test_validation_and_limit(tree: Path) -> None:
    write_sites(tree, [(f"thing_{number:03d}", "A" if number < 5 else "B") for number in range(10)])
    assert counts(Msd(validation_fraction=0.3).federation(tree, rng())) == {"A": (3, 1, 1), "B": (3, 1, 1)}
    limited = Msd(max_cases_per_hospital=3).federation(tree, rng())
    assert counts(limited) == {"A": (2, 0, 1), "B": (2, 0, 1)}
    assert limited == Msd(max_cases_per_hospital=3).federation(tree, rng())


def test_random_hospitals_need_no_sites(tree: Path) -> None:
    (tree / "sites.csv").unlink()
    federation = Msd(hospitals=3).federation(tree, rng())
    assert {name: sum(count) for name, count in counts(federation).items()} == {
        "hospital-1": 4,
        "hospital-2": 3,
        "hospital-3": 3,
    }
    assert len({name for cases in federation.hospitals.values() for name in names(cases)}) == 10
    assert federation != Msd(hospitals=3).federation(tree, rng(1))
    with pytest.raises(
        ValueError, match=r"sites.csv: expected a table .* deal the cases at random with data.hospitals"
    ):
        Msd().federation(tree, rng())
    with pytest.raises(ValueError, match="hospitals: expected at most 10 hospitals for 10 patients, got 11"):
        Msd(hospitals=11).federation(tree, rng())


def patients(federation: Federation, hospital: str) -> dict[str, str]:
    return {case.name: case.patient for part in vars(federation.hospitals[hospital]).values() for case in part}


def test_two_sides_of_one_head_stay_on_one_side_of_the_split(tree: Path) -> None:
    """thing_001 and _002 are patient 1, _003 and _004 patient 2, ...; thing_000 is alone."""
    write_sites(tree, [(f"thing_{number:03d}", "A") for number in range(10)])
    for seed in range(5):
        federation = Msd(patients="pairs", test_fraction=0.4).federation(tree, rng(seed))
        who = patients(federation, "A")
        assert len(set(who.values())) == 6
        assert who["thing_003"] == who["thing_004"] != who["thing_005"]
        sides = vars(federation.hospitals["A"])
        where = {
            patient: {s for s, cases in sides.items() for c in cases if c.patient == patient}
            for patient in who.values()
        }
        assert all(len(found) == 1 for found in where.values())


def test_a_table_of_patients_is_read_and_checked(tree: Path) -> None:
    cases = [f"thing_{number:03d}" for number in range(10)]
    write_sites(tree, [(case, "A") for case in cases])
    rows = [f"{case},p{number // 5}" for number, case in enumerate(cases)]
    (tree / "patients.csv").write_text("case,patient\n" + "\n".join(rows) + "\n")
    assert set(patients(Msd(patients="pairs").federation(tree, rng()), "A").values()) == {"p0", "p1"}
    (tree / "patients.csv").write_text("case,patient\n" + "\n".join(rows[1:]) + "\n")
    with pytest.raises(ValueError, match=r"case thing_000 has no row in patients\.csv"):
        Msd().federation(tree, rng())


def test_a_patient_of_two_hospitals_is_refused(tree: Path) -> None:
    write_sites(tree, [(f"thing_{number:03d}", "A" if number < 4 else "B") for number in range(10)])
    with pytest.raises(ValueError, match="patient patient-0002: expected all cases in one hospital, got A, B"):
        Msd(patients="pairs").federation(tree, rng())


def test_patients_whole_are_dealt_to_random_hospitals(tree: Path) -> None:
    federation = Msd(patients="pairs", hospitals=2).federation(tree, rng())
    left, right = (set(patients(federation, name).values()) for name in federation.hospitals)
    assert len(left) == len(right) == 3
    assert not left & right


def test_pairs_need_numbers(tree: Path) -> None:
    with pytest.raises(ValueError, match="expected case names that end in a number with 'pairs', got 'brain'"):
        msd._pair("brain")


def test_classes_need_names_of_their_own(tree: Path) -> None:
    description = json.loads((tree / "dataset.json").read_text())
    description["labels"]["2"] = description["labels"]["1"]
    (tree / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="expected a name of its own for every class"):
        Msd().federation(tree, rng())


def test_a_table_in_another_encoding_is_named(tree: Path) -> None:
    (tree / "sites.csv").write_bytes("case,site\nthing_000,Köln\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"sites\.csv: expected a table in UTF-8"):
        Msd().federation(tree, rng())


def test_the_task_folder_may_be_the_current_one(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert Msd(task=tree.name).locate(Path()) == Path()


def test_a_hospital_of_one_case_is_named(tree: Path) -> None:
    write_sites(tree, [(f"thing_{number:03d}", "Lonely" if number == 4 else "B") for number in range(10)])
    with pytest.raises(ValueError, match=r"hospital 'Lonely': expected at least 2 patients, .* got 1: \['thing_004'\]"):
        Msd().federation(tree, rng())


def test_every_problem_of_the_files_is_listed_at_once(tree: Path) -> None:
    (tree / "imagesTr" / "thing_001.nii.gz").unlink()
    (tree / "labelsTr" / "thing_002.nii.gz").unlink()
    write_description(tree, [f"thing_{n:03d}" for n in range(10)] + ["thing_003"], extra=[{"image": 3}])
    with pytest.raises(ValueError, match="4 problems:") as caught:
        Msd().federation(tree, rng())
    for part in (
        r"training[11]: expected {'image': path, 'label': path}, got {'image': 3}",
        "case thing_003 is listed 2 times",
        "imagesTr/thing_001.nii.gz is missing",
        "labelsTr/thing_002.nii.gz is missing",
    ):
        assert part in str(caught.value)


def test_every_problem_of_the_sites_is_listed_at_once(tree: Path) -> None:
    rows = [(f"thing_{number:03d}", "A") for number in range(1, 10)]
    write_sites(tree, [*rows, ("thing_001", "B"), ("thing_077", "A"), ("thing_002", "")])
    with pytest.raises(ValueError, match=r"sites\.csv") as caught:
        Msd().federation(tree, rng())
    for part in (
        "sites.csv names case thing_001 2 times",
        "case thing_000 has no row in sites.csv",
        "names case thing_077, which dataset.json does not list",
        "case 'thing_002' has no site",
    ):
        assert part in str(caught.value)


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
    write_description(tree, [f"thing_{number:03d}" for number in range(10)], **changes)
    with pytest.raises(ValueError, match=message):
        Msd().federation(tree, rng())
    (tree / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset.json: expected a readable JSON file, got JSONDecodeError"):
        Msd().federation(tree, rng())


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
    with pytest.raises(ValueError, match=r"nowhere: expected a folder that holds a Decathlon task, found none there"):
        Msd().locate(tree / "nowhere")


def test_mistakes_in_settings_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"test_fraction: .* got 0; .*hospitals: .* got 0; slice_axis: .*; clip_perc"):
        Msd(test_fraction=0, hospitals=0, slice_axis=3, clip_percentiles=(99, 1))
    assert replace(Msd(), clip_percentiles=None).clip_percentiles is None


@pytest.mark.data
@pytest.mark.skipif(not REAL, reason="WARDROUND_DATA does not name a folder with Task04_Hippocampus")
def test_the_real_hippocampus() -> None:
    """199 cases at three sites (42 uint8, 132 float about 1e3, 25 float about 4e5), labels anterior and posterior."""
    msd = Msd(task="Task04_Hippocampus")
    federation = msd.federation(msd.locate(None), rng())
    assert federation.classes == ("Anterior", "Posterior")
    assert counts(federation) == {"A": (34, 0, 8), "B": (106, 0, 26), "C": (20, 0, 5)}
    largest = {}
    for name, cases in federation.hospitals.items():
        volumes = [msd.volume(case) for case in cases.test]
        largest[name] = np.median([volume.image.max() for volume in volumes])
        assert all(volume.spacing_mm == (1, 1, 1) for volume in volumes)
        assert all(set(np.unique(volume.label)) == {0, 1, 2} for volume in volumes)
    assert largest["A"] <= 255 < largest["B"] < 1e4 < largest["C"]
