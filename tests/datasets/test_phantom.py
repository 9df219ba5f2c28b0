"""The phantoms: reproducible files, distinct scanners, nested targets, and a cache that two processes can share."""

from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wardround.datasets import phantom as module
from wardround.datasets import scanner as scanners
from wardround.datasets.anatomy import FAMILIES
from wardround.datasets.contract import Case, DataError
from wardround.datasets.msd import Msd
from wardround.datasets.phantom import Phantom, build, make_volume, scanner_of, slots_of, write_phantom
from wardround.datasets.scanner import DIFFICULTIES, KINDS, slabs

GOLDEN = ["dddc61eb6f30", "db79aa320968", "282a91addefc", "688fd9dae0cb"]
"""Of image and label of the cases 1_train_01, 2_test_03, 3_train_05 and 4_test_01, as the first release made them."""

SMALL = Phantom(hospitals=3, train_cases=(2, 1, 1), test_cases=1, size=32, slices=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.locate(tmp_path_factory.mktemp("cache"))


def cases_of(phantom: Phantom, folder: Path, hospital: int, side: str = "train") -> list[Case]:
    return [case for case in phantom.pool(folder).cases if case.site == f"hospital-{hospital}" and case.side == side]


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


def test_a_further_hospital_or_case_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    larger = Phantom(**{**vars(SMALL), "hospitals": 4, "train_cases": 2, "test_cases": 2}).locate(tmp_path)
    old, new = content(folder), content(larger)
    scans = [name for name in old if name.endswith(".nii.gz")]
    assert len(scans) == 14
    assert all(old[name] == new[name] for name in scans)


def test_split_is_the_one_asked_for(folder: Path) -> None:
    pool = SMALL.pool(folder)
    counts = {
        number: [len(cases_of(SMALL, folder, number, side)) for side in ("train", "test")] for number in (1, 2, 3)
    }
    assert counts == {1: [2, 1], 2: [1, 1], 3: [1, 1]}
    assert len(pool.cases) == 7
    assert pool.classes == ("edema", "core")


def test_the_decathlon_loader_reads_the_same(folder: Path) -> None:
    msd = Msd(clip_percentiles=None)
    case = cases_of(SMALL, folder, 2)[0]
    assert case in msd.pool(msd.locate(folder)).cases
    assert np.array_equal(msd.volume(case).image, SMALL.volume(case).image)
    assert msd.volume(case).spacing_mm == SMALL.volume(case).spacing_mm


def test_the_default_phantom_keeps_its_voxels() -> None:
    """Published results rest on them: whoever changes them raises GENERATOR_VERSION and measures again."""
    phantom = Phantom()
    wanted = dict.fromkeys([(0, "train", 0), (1, "test", 2), (2, "train", 4), (3, "test", 0)])
    found = []
    for slot in slots_of(phantom):
        if (slot.hospital, slot.side, slot.position) in wanted:
            image, label = make_volume(phantom, scanner_of(phantom, slot.hospital), slot)
            found.append(hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()[:12])
    assert found == GOLDEN


def test_scanners_differ_in_grid_and_convention(folder: Path) -> None:
    firsts = [cases_of(SMALL, folder, number)[0] for number in (1, 2, 3)]
    volumes = [SMALL.volume(case) for case in firsts]
    assert len({volume.image.shape for volume in volumes}) == 3
    assert len({volume.spacing_mm for volume in volumes}) == 3
    assert volumes[0].image.max() <= 255
    assert volumes[1].image.min() < 0
    assert volumes[2].image.max() > 1e4
    assert [nib.load(case.image).get_data_dtype() for case in firsts] == [np.uint8, np.int16, np.float32]
    affine = nib.load(firsts[0].image).affine
    assert np.abs(affine[1, 2]) > 1e-3  # tilted
    assert affine @ [*(np.array(volumes[0].image.shape)[[1, 2, 0]] - 1) / 2, 1] == pytest.approx([0, 0, 0, 1], abs=1e-3)


SHARES = {
    "brain_mr": (0.003, 0.15),
    "kidney_ct": (0.005, 0.15),
    "brain_t1": (0.05, 0.45),
    "prostate_mr": (0.002, 0.20),
}
"""Share of the voxels that are foreground, from the least to the most."""


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_there_nested_and_not_on_the_rim(family: str) -> None:
    phantom = Phantom(family=family, hospitals=len(KINDS[family]), train_cases=2, test_cases=1, size=48, slices=12)  # type: ignore[arg-type]
    low, high = SHARES[family]
    for slot in slots_of(phantom):
        _, label = make_volume(phantom, scanner_of(phantom, slot.hospital), slot)
        assert low < (label > 0).mean() < high
        assert set(np.unique(label)) == set(range(len(FAMILIES[family].classes) + 1))
        assert not label[:, [0, -1]].any()
        assert not label[:, :, [0, -1]].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_intensity_alone_does_not_find_the_target(family: str) -> None:
    """Even the best window of each volume, chosen with the truth at hand, stays below a trained model."""
    phantom = Phantom(family=family, hospitals=2, train_cases=2, test_cases=1, size=48, slices=12)  # type: ignore[arg-type]
    best = []
    for slot in slots_of(phantom):
        image, label = make_volume(phantom, scanner_of(phantom, slot.hospital), slot)
        truth = label == len(FAMILIES[family].classes) if family == "kidney_ct" else label > 0
        cuts = np.quantile(image, np.linspace(0.3, 0.999, 12))
        masks = [(image > a) & (image <= b) for i, a in enumerate(cuts) for b in [*cuts[i + 1 :], np.inf]]
        best.append(max(2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in masks))
    assert np.mean(best) < (0.9 if family == "brain_t1" else 0.65)


@pytest.mark.parametrize("family", FAMILIES)
def test_slab_by_slab_is_the_same_subject(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom = Phantom(family=family, hospitals=1, size=32, slices=7, noise=0.0)  # type: ignore[arg-type]
    scanner, slot = scanner_of(phantom, 0), slots_of(phantom)[0]
    image, label = make_volume(phantom, scanner, slot)
    monkeypatch.setattr(scanners, "SLAB_VOXELS", 2 * scanner.fine * 32 * 32)
    assert [len(slab) for slab in slabs(scanner)] == [2, 2, 2, 1]
    parts, part_labels = make_volume(phantom, scanner, slot)
    assert np.array_equal(part_labels, label)
    assert np.abs(parts.astype(float) - image).max() <= 1  # the order of sums


def test_every_slab_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    phantom = Phantom(hospitals=3, size=32, slices=4)
    scanner, slot = scanner_of(phantom, 2), next(slot for slot in slots_of(phantom) if slot.hospital == 2)
    monkeypatch.setattr(scanners, "SLAB_VOXELS", 1)
    image, _ = make_volume(phantom, scanner, slot)
    corners = image[:, :3, :3].reshape(len(image), -1)  # air
    assert len(np.unique(corners)) == corners.size


def test_what_makes_a_federation_hard() -> None:
    assert list(DIFFICULTIES) == ["easy", "medium", "hard"]
    volume, noise, spread = {}, {}, {}
    for name in DIFFICULTIES:
        phantom = Phantom(difficulty=name, size=48, slices=8)  # type: ignore[arg-type]
        scanner, slot = scanner_of(phantom, 2), slots_of(phantom)[16]
        assert slot.hospital == 2
        _, label = make_volume(phantom, scanner, slot)
        volume[name], noise[name] = int((label > 0).sum()), scanner.noise
        spread[name] = scanner.brightness["grey"]
        edema, white = (own_brightness(scanner, tissue, name) for tissue in ("edema", "white"))
        assert edema - white == pytest.approx(DIFFICULTIES[name].contrast * (0.74 - 0.36))
    assert volume["easy"] > volume["medium"] > volume["hard"]
    assert noise == pytest.approx({"easy": 0.5 * 0.045, "medium": 0.045, "hard": 1.75 * 0.045})
    assert spread["hard"] == pytest.approx(2 * spread["medium"])
    assert spread["easy"] == pytest.approx(spread["medium"] / 2)


def own_brightness(scanner: scanners.Scanner, tissue: str, difficulty: str) -> float:
    """Of a tissue, without the hospital's own deviation: all there is at medium difficulty, scaled by the shift."""
    medium = scanner_of(Phantom(size=48, slices=8), 2).brightness[tissue]
    deviation = medium * DIFFICULTIES[difficulty].shift / DIFFICULTIES["medium"].shift
    return FAMILIES["brain_mr"].tissues[tissue] + scanner.brightness[tissue] - deviation


def test_noise_and_shift_replace_those_of_the_difficulty() -> None:
    given = Phantom(difficulty="hard", noise=0.0, shift=0.0).effective_difficulty
    assert (given.noise, given.shift, given.contrast) == (0.0, 0.0, DIFFICULTIES["hard"].contrast)
    assert Phantom(noise=1.0, shift=0.04)._folder_name() == Phantom()._folder_name()
    quiet = Phantom(hospitals=3, size=32, slices=4, noise=0.0)
    image, _ = make_volume(quiet, scanner_of(quiet, 2), slots_of(quiet)[-1])
    assert image[0, 0, 0] == 0  # air


@pytest.mark.parametrize("family", FAMILIES)
def test_distractors_are_counted_by_the_difficulty(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tissues cover more where there are more; none are left where the factor is 0."""
    tissues = {"brain_mr": ["spot", "vessel"], "kidney_ct": ["loop"], "brain_t1": ["meninges"], "prostate_mr": ["node"]}
    info = FAMILIES[family]
    numbers = [list(info.tissues).index(tissue) for tissue in tissues[family]]
    scanner = scanner_of(Phantom(family=family, size=48, slices=8), 0)  # type: ignore[arg-type]
    grid = scanners.fine_grid(scanner, range(scanner.slices))
    covered = [
        sum(
            int(
                np.isin(
                    info.grow(grid, np.random.default_rng(seed), scanners.Challenge(distractors=factor)).tissue, numbers
                ).sum()
            )
            for seed in range(4)
        )
        for factor in (0.0, 0.5, 1.75)
    ]
    assert covered[0] == 0
    assert 0 < covered[1] < covered[2]


def test_a_real_size_is_made_in_slabs() -> None:
    """512 x 512 x 600: 157 million voxels at 0.5 mm, in parts of a million; nothing is imaged here."""
    scanner = scanner_of(Phantom(layout="fed_kits19", size=512, slices=600), 0)
    assert (scanner.size, scanner.slices, scanner.thickness_mm, scanner.fine) == (512, 600, 0.5, 1)
    parts = list(slabs(scanner))
    assert [parts[0], parts[-1], len(parts)] == [range(4), range(596, 600), 150]


def test_written_where_one_wants_it(tmp_path: Path) -> None:
    phantom = Phantom(hospitals=2, train_cases=1, test_cases=1, size=16, slices=2)
    seen: list[tuple[int, int]] = []
    (tmp_path / "mine").mkdir()
    write_phantom(phantom, tmp_path / "mine", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert content(tmp_path / "mine") == content(phantom.locate(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"mine: expected a folder that is new or empty, found 'dataset.json' in it"):
        write_phantom(phantom, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="found a file"):
        write_phantom(phantom, tmp_path / "file")


def test_two_processes_at_once(tmp_path: Path) -> None:
    phantom = Phantom(hospitals=1, train_cases=1, test_cases=1, size=16, slices=2)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        folders = pool.map(phantom.locate, [tmp_path, tmp_path])
    assert folders[0] == folders[1]
    assert [path.name for path in tmp_path.iterdir()] == [folders[0].name]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_tables", stop)
    with pytest.raises(KeyboardInterrupt):
        build(SMALL, tmp_path / "phantoms")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file: expected a folder to write phantoms to: .*; set WARDROUND_CACHE"):
        build(SMALL, tmp_path / "file" / "phantoms")


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
    assert phantom.pool(folder).problems[-1] == f"these volumes are made by the program: delete {folder} and run again"
    (folder / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"(?s)dataset.json: .*delete .*phantom-msd-brain_mr-.* and run again"):
        phantom.pool(folder)


def test_mistakes_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"size: expected 16 or more, got 8; .*train_cases: expected one number or 3"):
        Phantom(hospitals=3, size=8, train_cases=(1, 2))
    with pytest.raises(ValueError, match="test_cases: expected 1 or more, got 0"):
        Phantom(test_cases=0)
    with pytest.raises(ValueError, match=r"noise: expected 0 or more, got -1\.0; shift: expected 0 or more, got nan"):
        Phantom(noise=-1.0, shift=float("nan"))
    with pytest.raises(
        ValueError, match=r"layout: expected one of msd, fed_kits19, .*'kits'; family: .*; difficulty: "
    ):
        Phantom(layout="kits", family="foot", difficulty="harder")  # type: ignore[arg-type]  # on purpose
