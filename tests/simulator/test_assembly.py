"""From an experiment to a run: what is hashed, what is refused, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wardround.simulator.assembly import Located, assemble, build_replica, locate
from wardround.simulator.assessment import assess
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.progress import Progress
from wardround.simulator.runtime import choose_device


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the phantoms of this module are written."""
    return tmp_path_factory.mktemp("data")


def tiny(*settings: str) -> Experiment:
    return load_experiment("tiny", open_file(PACKAGED), settings)


@pytest.fixture
def broken(folder: Path) -> Callable[[Callable[[nib.Nifti1Image], object], str], Located]:
    """Locates ``tiny`` with one file of the first training case rewritten; the original is put back afterwards."""
    kept: list[tuple[Path, bytes]] = []

    def make(change: Callable[[nib.Nifti1Image], nib.Nifti1Image | bytes], which: str) -> Located:
        located = locate(tiny(), folder)
        path: Path = getattr(located.federation.hospitals["hospital-1"].train[0], which)
        kept.append((path, path.read_bytes()))
        changed = change(nib.load(path))
        path.unlink()
        if isinstance(changed, bytes):
            path.write_bytes(changed)
        else:
            nib.save(changed, path)
        return locate(tiny(), folder)

    yield make
    for path, content in kept:
        path.write_bytes(content)


def array(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj).copy()


FAULTS = {
    "other shape": ("label", lambda im: nib.Nifti1Image(array(im)[:-1], im.affine), "shape"),
    "label out of range": ("label", lambda im: nib.Nifti1Image(array(im) + 9, im.affine), "9|10|11"),
    "not finite": ("image", lambda im: nib.Nifti1Image(array(im).astype("f4") * np.nan, im.affine), "finite"),
    "unreadable": ("image", lambda im: b"this is no gzip", "read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_volume_is_one_clear_error_that_names_the_file(broken, fault: str) -> None:
    which, change, word = FAULTS[fault]
    located = broken(change, which)
    path = getattr(located.federation.hospitals["hospital-1"].train[0], which)
    with pytest.raises(ValueError, match=word) as error:
        assemble(tiny(), located, choose_device("cpu"))
    assert path.name in str(error.value)


def test_a_common_test_set_and_a_site_left_out_are_outsiders(folder: Path) -> None:
    """Nobody of them trains; each is scored with the model of a site never seen."""
    experiment = tiny("split.leave_out=[hospital-2]", "split.test=common", "aggregator=local")
    assembled = assemble(experiment, locate(experiment, folder), choose_device("cpu"))
    assert sorted(assembled.federated.hospitals) == ["hospital-1", "hospital-3"]
    outsiders = {(site.name, site.split): len(site.volumes) for site in assembled.federated.outsiders}
    assert outsiders == {("common", "test"): 3, ("hospital-2", "unseen"): 2}
    with Progress(rounds=1, quiet=True) as progress:
        rows = assess(assembled.federated, assembled.assessor, assembled.initial, progress, final=False)
    scored = {(row["hospital"], row["split"]) for row in rows["metrics"]}
    assert scored == {("common", "test"), ("hospital-2", "unseen")}


def test_regions_must_be_made_of_the_classes(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation.regions: expected unions of the classes \['edema', 'core'\]"):
        locate(tiny("evaluation.regions={whole: [edema, cyst]}"), folder)


def test_files_that_change_during_a_run_are_noticed(folder: Path) -> None:
    """Between finding and preparing, and between training and scoring."""
    located = locate(tiny(), folder)
    case = located.federation.hospitals["hospital-1"].test[0]
    assembled = assemble(tiny(), located, choose_device("cpu"))
    assert assembled.assessor.read(case).case == case
    original = case.label.read_bytes()
    mask = nib.load(case.label)
    nib.save(nib.Nifti1Image(array(mask)[::-1], mask.affine), case.label)
    try:
        with pytest.raises(
            ValueError, match=rf"{case.label.name}: expected the file that was there when the run began"
        ):
            assembled.assessor.read(case)
        with pytest.raises(
            ValueError, match=rf"{case.label.name}: expected the file that was there when the run began"
        ):
            assemble(tiny(), located, choose_device("cpu"))
    finally:
        case.label.write_bytes(original)
    assert assembled.assessor.read(case).case == case


def test_files_are_read_for_the_last_scores_only(folder: Path, tmp_path: Path) -> None:
    """The scores are the same without the files, which the last evaluation misses."""
    located = locate(tiny(), folder)
    assembled = assemble(tiny(), located, choose_device("cpu"))
    case = located.federation.hospitals["hospital-1"].test[0]

    def scores(*, final: bool) -> list[dict]:
        with Progress(rounds=1, quiet=True) as progress:
            return assess(assembled.federated, assembled.assessor, assembled.initial, progress, final=final)["cases"]

    before = scores(final=False)
    away = case.label.rename(tmp_path / "away.nii.gz")
    try:
        assert scores(final=False) == before
        with pytest.raises(ValueError, match=rf"{case.label.name}: expected a readable file"):
            scores(final=True)
        away.with_name("other").write_bytes(b"another")
        away.with_name("other").rename(case.label)
        with pytest.raises(ValueError, match="expected the file that was there when the run began"):
            scores(final=True)
    finally:
        away.rename(case.label)
    last = {(row["case"], row["metric"]): row["value"] for row in scores(final=True)}
    assert last.items() >= {(row["case"], row["metric"]): row["value"] for row in before}.items()
    assert {metric for _, metric in last} >= {"hd95_mm/core", "surface_dice/core"}


def test_the_data_hash_is_of_content_and_split_not_of_paths(folder: Path, tmp_path: Path) -> None:
    here, there = locate(tiny(), folder), locate(tiny(), tmp_path)
    assert here.data_hash == there.data_hash
    assert here.data_hash != locate(tiny("data.seed=5"), folder).data_hash


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ranks={nobody: 2}"], r"ranks: unknown hospitals \['nobody'\]"),
        (["method=decoder", "ranks={hospital-1: 2}"], "ranks: expected a method with LoRA"),
        (["aggregator=fedavg", "ranks={hospital-1: 1}"], "aggregator FedAvg: expected one LoRA rank"),
        (["weights={name: explicit, values: {hospital-1: 1}}"], "missing .'hospital-2', 'hospital-3'."),
        (["cohort={sampling: fixed, size: 9}"], "cohort.size: expected at most 3"),
        (["model.weights=/nowhere/sam.pth"], "/nowhere/sam.pth"),
    ],
)
def test_settings_that_do_not_fit_the_federation_are_refused(folder: Path, settings: list[str], message: str) -> None:
    experiment = tiny(*settings)
    with pytest.raises(ValueError, match=message):
        assemble(experiment, locate(experiment, folder), choose_device("cpu"))


def test_the_replica_has_the_largest_rank_and_hospitals_their_own(folder: Path) -> None:
    experiment = tiny("ranks={hospital-1: 1, hospital-2: 5}")
    assembled = assemble(experiment, locate(experiment, folder), choose_device("cpu"))
    assert assembled.federated.workplace.replica.max_rank == 5
    ranks = {name: hospital.info.rank for name, hospital in assembled.federated.hospitals.items()}
    assert ranks == {"hospital-1": 1, "hospital-2": 5, "hospital-3": 2}


def test_rank_two_is_the_first_two_rows_of_rank_five_and_all_else_is_equal() -> None:
    """Common random numbers between cells of a rank ablation."""
    small, large = (build_replica(tiny(f"method.lora.rank={rank}"), 2, choose_device("cpu")) for rank in (2, 5))
    for name, value in small.read().items():
        other = large.read()[name]
        kind = small.layout.kind[name]
        cut = other[:2] if kind == "lora_A" else other[:, :2] if kind == "lora_B" else other
        assert (value == cut).all(), name


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"runtime\.device: expected a device of this machine, got 'mps'"):
        choose_device("mps")


def test_experiments_are_frozen() -> None:
    with pytest.raises(AttributeError):
        replace(tiny()).rounds = 3  # type: ignore[misc]
