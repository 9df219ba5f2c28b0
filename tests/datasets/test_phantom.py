"""The phantoms: reproducible files, distinct scanners, nested targets, and a cache that two processes can share."""

from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wardround.datasets import phantom as module
from wardround.datasets.msd import Msd
from wardround.datasets.phantom import Phantom, build
from wardround.simulator.randomness import streams

SMALL = Phantom(hospitals=3, train_cases=(2, 1, 1), test_cases=1, size=32, slices=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.locate(tmp_path_factory.mktemp("cache"))


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_are_reproducible_and_follow_the_seed(folder: Path, tmp_path: Path) -> None:
    assert content(SMALL.locate(tmp_path / "again")) == content(folder)
    other = Phantom(**{**vars(SMALL), "seed": 1})
    assert other.locate(tmp_path).name != folder.name
    images = [name for name in content(folder) if name.startswith("imagesTr")]
    assert len(images) == len({content(folder)[name] for name in images}) == 7
    changed = content(other.locate(tmp_path))
    assert all(changed[name] != content(folder)[name] for name in images)


def test_validation_is_no_part_of_the_files(folder: Path) -> None:
    with_validation = Phantom(**{**vars(SMALL), "train_cases": 2, "validation_fraction": 0.5})
    assert with_validation._folder_name() == Phantom(**{**vars(SMALL), "train_cases": 2})._folder_name()


def test_a_further_hospital_or_case_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    larger = Phantom(**{**vars(SMALL), "hospitals": 4, "train_cases": 2, "test_cases": 2}).locate(tmp_path)
    old, new = content(folder), content(larger)
    scans = [name for name in old if name.endswith(".nii.gz")]
    assert len(scans) == 14
    assert all(old[name] == new[name] for name in scans)


def test_split_is_the_one_asked_for(folder: Path) -> None:
    federation = SMALL.federation(folder, streams(0, "data"))
    counts = {name: (len(cases.train), len(cases.test)) for name, cases in federation.hospitals.items()}
    assert counts == {"hospital-1": (2, 1), "hospital-2": (1, 1), "hospital-3": (1, 1)}
    assert federation == SMALL.federation(folder, streams(1, "data"))
    assert federation.classes == ("edema", "core")


def test_validation_is_drawn_from_training(tmp_path: Path) -> None:
    phantom = Phantom(hospitals=1, train_cases=4, test_cases=1, size=16, slices=2, validation_fraction=0.25)
    root = phantom.locate(tmp_path)
    drawn = [phantom.federation(root, streams(seed, "data")).hospitals["hospital-1"] for seed in range(6)]
    assert {(len(cases.train), len(cases.validation), len(cases.test)) for cases in drawn} == {(3, 1, 1)}
    assert len({cases.validation[0].name for cases in drawn}) > 1


def test_the_decathlon_loader_reads_the_same(folder: Path) -> None:
    msd = Msd(clip_percentiles=None)
    case = msd.federation(msd.locate(folder), streams(0, "data")).hospitals["hospital-2"].train[0]
    assert np.array_equal(msd.volume(case).image, SMALL.volume(case).image)
    assert msd.volume(case).spacing_mm == SMALL.volume(case).spacing_mm


def test_scanners_differ_in_grid_and_convention(folder: Path) -> None:
    federation = SMALL.federation(folder, streams(0, "data"))
    volumes = [SMALL.volume(cases.train[0]) for cases in federation.hospitals.values()]
    assert len({volume.image.shape for volume in volumes}) == 3
    assert len({volume.spacing_mm for volume in volumes}) == 3
    assert volumes[0].image.max() <= 255
    assert volumes[1].image.min() < 0
    assert volumes[2].image.max() > 1e4
    stored = [nib.load(cases.train[0].image).get_data_dtype() for cases in federation.hospitals.values()]
    assert stored == [np.uint8, np.int16, np.float32]
    affine = nib.load(federation.hospitals["hospital-1"].train[0].image).affine
    assert np.abs(affine[1, 2]) > 1e-3  # tilted
    assert affine @ [*(np.array(volumes[0].image.shape)[[1, 2, 0]] - 1) / 2, 1] == pytest.approx([0, 0, 0, 1], abs=1e-3)


def test_targets_are_there_nested_and_not_on_the_rim(tmp_path: Path) -> None:
    phantom = Phantom(hospitals=4, train_cases=2, test_cases=1, size=48, slices=12)
    federation = phantom.federation(phantom.locate(tmp_path), streams(0, "data"))
    for cases in federation.hospitals.values():
        for case in (*cases.train, *cases.test):
            label = phantom.volume(case).label
            assert 0.003 < (label > 0).mean() < 0.15
            assert (label == 2).any()
            assert not label[:, [0, -1]].any()
            assert not label[:, :, [0, -1]].any()


def test_intensity_alone_does_not_find_the_target(tmp_path: Path) -> None:
    """Even the best threshold of each volume, chosen with the truth at hand, stays far below a trained model."""
    phantom = Phantom(hospitals=2, train_cases=3, test_cases=1)
    federation = phantom.federation(phantom.locate(tmp_path), streams(0, "data"))
    best = []
    for cases in federation.hospitals.values():
        for case in cases.train:
            volume = phantom.volume(case)
            truth = volume.label == 1
            cuts = np.quantile(volume.image, np.linspace(0.5, 0.999, 40))
            masks = [(volume.image > cut) for cut in cuts]
            best.append(max(2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in masks))
    assert np.mean(best) < 0.6


def test_two_processes_at_once(tmp_path: Path) -> None:
    phantom = Phantom(hospitals=1, train_cases=1, test_cases=1, size=16, slices=2)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        folders = pool.map(phantom.locate, [tmp_path, tmp_path])
    assert folders[0] == folders[1]
    assert [path.name for path in tmp_path.iterdir()] == [folders[0].name]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_tables", stop)
    with pytest.raises(KeyboardInterrupt):
        build(SMALL, tmp_path / "phantoms")
    assert list(tmp_path.iterdir()) == []


def test_a_second_build_keeps_the_first(tmp_path: Path) -> None:
    phantom = Phantom(hospitals=1, train_cases=1, test_cases=1, size=16, slices=2)
    folder = phantom.locate(tmp_path)
    (folder / "sites.csv").write_text("mine")
    build(phantom, folder)
    assert (folder / "sites.csv").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom = Phantom(hospitals=1, train_cases=1, test_cases=1, size=16, slices=2)
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "there"))
    assert phantom.locate(None).parent == tmp_path / "there"
    monkeypatch.delenv("WARDROUND_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert phantom.locate(None).parent == tmp_path / "home" / ".cache" / "wardround"


def test_damaged_cache_says_what_to_do(tmp_path: Path) -> None:
    phantom = Phantom(hospitals=1, train_cases=1, test_cases=1, size=16, slices=2)
    folder = phantom.locate(tmp_path)
    next((folder / "imagesTr").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"(?s)is missing.*delete .*phantom-brain_mr-.* and run again"):
        phantom.federation(folder, streams(0, "data"))


def test_mistakes_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"size: expected 16 or more, got 8; .*train_cases: expected one number or 3"):
        Phantom(hospitals=3, size=8, train_cases=(1, 2))
    with pytest.raises(ValueError, match="test_cases: expected 1 or more, got 0"):
        Phantom(test_cases=0)
    with pytest.raises(ValueError, match="validation_fraction: expected 0 where a hospital has one training case"):
        Phantom(train_cases=1, validation_fraction=0.1)
    with pytest.raises(ValueError, match="family: expected one of brain_mr"):
        Phantom(family="foot")  # type: ignore[arg-type]  # on purpose
