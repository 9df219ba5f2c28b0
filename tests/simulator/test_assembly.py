"""From an experiment to a run: what is hashed, what is refused, and with which words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rounds import advance

from wardround.aggregators.contract import HospitalInfo
from wardround.clients.optimizers import Schedule
from wardround.datasets.windows import HospitalWindows
from wardround.simulator.assembly import Located, assemble, build_replica, locate, pooled_training
from wardround.simulator.assessment import assess
from wardround.simulator.checkpoint import state_hash
from wardround.simulator.cohort import Hospital
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.federation import initial_memories
from wardround.simulator.progress import Progress
from wardround.simulator.randomness import streams
from wardround.simulator.reports.run_scores import results_table
from wardround.simulator.results import RunRecords, mean
from wardround.simulator.run import run
from wardround.simulator.runtime import choose_device
from wardround.simulator.sampling import Cohort, draw, drop
from wardround.simulator.stages import Stages
from wardround.simulator.sweeps.references import ROLES, zero_shot
from wardround.simulator.verify import verify


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
    outsiders = {(site.name, site.split): len(site.cases) for site in assembled.federated.outsiders}
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
        (["method=decoder", "ranks={hospital-1: 2}"], "ranks: expected a method with LoRA or low-rank prompts"),
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


# --- all cases pooled, and no rounds ---------------------------------------------------------------------------------

POOLED_TINY = ("aggregator=fedavg", "pooled=true")


def test_pooled_is_plain_fedavg_of_one_hospital_with_all_volumes(folder: Path) -> None:
    """The same volumes in the same order, steps and draws, put together by hand: bit for bit after two rounds."""
    experiment = tiny(*POOLED_TINY)
    located = locate(experiment, folder)
    pooled = assemble(experiment, located, choose_device("cpu"))
    federation = assemble(tiny("aggregator=fedavg"), located, choose_device("cpu")).federated
    volumes = [volume for hospital in federation.hospitals.values() for volume in hospital.train.volumes]
    windows = HospitalWindows(volumes, experiment.windows)
    info = HospitalInfo(name="pooled", num_examples=len(windows), rank=2)
    steps = sum(math.ceil(len(hospital.train) / 8) for hospital in federation.hospitals.values())
    training = replace(experiment.training, steps=steps, schedule=Schedule(warmup_steps=6, horizon_epochs=None))
    by_hand = replace(
        federation,
        hospitals={"pooled": Hospital(info=info, train=windows, validation=(), test=())},
        weights={"pooled": 1.0},
        workplace=replace(federation.workplace, training=training),
    )
    memories = initial_memories(by_hand.hospitals)
    one = advance(by_hand, replace(pooled.initial, memories=memories), rounds=2)
    all_cases = advance(pooled.federated, pooled.initial, rounds=2)
    assert state_hash(all_cases.checkpoint) == state_hash(one.checkpoint)
    assert all_cases.rows == one.rows


COHORTS = {
    "full": {},
    "fixed": {"sampling": "fixed", "size": 2},
    "poisson": {"sampling": "poisson", "rate": 0.4},
    "drop-outs": {"drop_rate": 0.5},
}


@pytest.mark.parametrize("cohort", COHORTS.values(), ids=COHORTS)
def test_pooled_takes_the_steps_of_all_hospitals_that_finish_a_mean_round(cohort: dict, folder: Path) -> None:
    """As many as the ledger of the federation would count: 1, 2 and 3 steps where all three take part."""
    experiment = replace(tiny("rounds=7"), cohort=Cohort(**cohort))
    sizes = {"hospital-1": 8, "hospital-2": 9, "hospital-3": 24}
    training = pooled_training(experiment, sizes)
    counted = []
    for number in range(1, 8):
        cohort_of_round = draw(experiment.cohort, list(sizes), streams(0, "cohort", number))
        left = set(cohort_of_round) - drop(experiment.cohort, cohort_of_round, streams(0, "drop", number))
        counted.append(sum({"hospital-1": 1, "hospital-2": 2, "hospital-3": 3}[name] for name in left))
    assert training.steps == round(sum(counted) / 7)
    assert (len(set(counted)) == 1) == (not cohort)
    if not cohort:
        assert training.steps == 6


@pytest.mark.parametrize(
    ("schedule", "stretched"),
    [
        (Schedule(warmup_steps=3, horizon_epochs=3.0), (6, 18)),
        (Schedule(warmup_steps=0, horizon_epochs=None, horizon_steps=9), (0, 18)),
        (Schedule(warmup_steps=250, horizon_epochs=None), (500, None)),
    ],
    ids=["epochs", "steps", "constant"],
)
def test_pooled_goes_through_the_learning_rate_in_the_same_rounds(schedule: Schedule, stretched: tuple) -> None:
    """Hospitals of 10 and 20 windows in batches of 5 take 2 and 4 steps in an epoch, the pooled model 6 in a round.

    3 epochs are 3 rounds of both hospitals, and 18 pooled steps. A hospital takes 3 steps in a mean round, so that 9 of
    them are 3 rounds, and 18 pooled steps; 3 steps of warm-up are one round, and 6.
    """
    experiment = tiny("training.batch_size=5", "training.epochs=1")
    experiment = replace(experiment, training=replace(experiment.training, schedule=schedule))
    training = pooled_training(experiment, {"a": 10, "b": 20})
    assert training.steps == 6
    assert (training.schedule.warmup_steps, training.schedule.horizon_steps) == stretched
    assert training.schedule.horizon_epochs is None
    assert training.schedule.power == schedule.power


def test_where_half_of_the_hospitals_take_part_pooled_is_as_far_in_the_schedule_as_a_hospital() -> None:
    """One of two equal hospitals per round, 4 steps each: in a mean round a hospital takes 2 and the pooled model 4.

    After 10 rounds a hospital is at step 20 of 30, two thirds of its way, and the pooled model at step 40 of 60.
    """
    experiment = tiny("rounds=10", "cohort={sampling: fixed, size: 1}", "training.batch_size=5")
    schedule = Schedule(warmup_steps=0, horizon_epochs=None, horizon_steps=30)
    experiment = replace(experiment, training=replace(experiment.training, schedule=schedule))
    training = pooled_training(experiment, {"a": 20, "b": 20})
    assert (training.steps, training.schedule.horizon_steps) == (4, 60)
    assert training.lr(40, 8) == experiment.training.lr(20, 4)


def test_pooled_is_scored_at_every_hospital_under_its_name(folder: Path) -> None:
    """Validation and test volumes, a common test set and a site left out, whatever the hospitals' own are."""
    wanted = {
        ("split.validation_fraction=0.3",): {
            *((f"hospital-{number}", split) for number in (1, 2, 3) for split in ("validation", "test"))
        },
        ("split.leave_out=[hospital-2]", "split.test=common"): {("common", "test"), ("hospital-2", "unseen")},
    }
    for settings, expected in wanted.items():
        experiment = tiny(*POOLED_TINY, *settings)
        made = assemble(experiment, locate(experiment, folder), choose_device("cpu"))
        assert list(made.federated.hospitals) == ["pooled"]
        assert {(site.name, site.split) for site in made.federated.outsiders} == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("aggregator=fedper", "aggregator: expected fedavg, as there is one hospital where all cases are pooled"),
        ("weights=uniform", "weights: expected examples"),
        ("ranks={hospital-1: 1}", "ranks: expected none"),
        ("stages.attack={name: sign_flip, hospitals: [hospital-1]}", "stages: expected none"),
        ("evaluation.cross_site=true", "evaluation.cross_site: expected false"),
    ],
)
def test_what_makes_no_sense_with_one_hospital_is_refused_where_cases_are_pooled(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(*POOLED_TINY, setting)


def test_the_references_of_every_experiment_can_be_built() -> None:
    """From settings that none of them has: they are replaced, not refused."""
    attack = "stages.attack={name: sign_flip, hospitals: [hospital-1]}"
    odd = tiny("ranks={hospital-1: 1}", "weights=uniform", "evaluation.cross_site=true", "aggregator=flap_sam", attack)
    for role, make in ROLES.items():
        assert make(odd).evaluation.cross_site == (role == "local")
        assert make(odd).stages == Stages()


def test_a_pooled_run_reads_well(folder: Path, tmp_path: Path) -> None:
    """Sites without windows or traffic of their own; the model that trained has a row in the ledger only."""
    done = run(tiny(*POOLED_TINY, "evaluation.every=null"), data=folder, out=tmp_path, quiet=True, images=False)
    records = RunRecords.load(done.path)
    assert records.hospitals == ("hospital-1", "hospital-2", "hospital-3")
    assert records.members == ("pooled",)
    assert [(score.cases, score.examples, score.score is None) for score in records.final()] == [(1, None, False)] * 3
    assert "pooled" not in results_table(records)
    page = (done.path / "report.html").read_text()
    assert "mean over 3 hospitals" in page
    assert sum(row.steps for row in records.ledger) == records.summary["steps"] > 0


def test_a_run_without_rounds_scores_the_base_and_is_finished(folder: Path, tmp_path: Path) -> None:
    """Once: what is there is not scored again, and there is no round to verify."""
    experiment = tiny("rounds=0")
    done = run(experiment, data=folder, out=tmp_path, quiet=True, images=False)
    records = RunRecords.load(done.path)
    assert records.finished
    assert (records.summary["rounds"], records.summary["steps"], records.summary["bytes_up"]) == (0, 0, 0)
    assert records.summary["dice"]["mean"] == pytest.approx(mean(score.score for score in records.final()))
    assert (done.path / "report.html").exists()
    again = run(experiment, data=folder, out=tmp_path, quiet=True)
    assert again.already_finished
    with pytest.raises(ValueError, match=r"nothing to repeat: the run has no rounds"):
        verify(done.path, data=folder)


@pytest.mark.parametrize("method", ["full", "decoder", "lora", "lora_sb", "ma_sam"])
def test_the_base_can_be_scored_with_every_kind_of_method(method: str, folder: Path) -> None:
    """Adapters start as nothing: where no head is drawn anew, all methods score the same base."""
    experiment = zero_shot(tiny(f"method={method}"))
    made = assemble(experiment, locate(experiment, folder), choose_device("cpu"))
    with Progress(rounds=0, quiet=True) as progress:
        rows = assess(made.federated, made.assessor, made.initial, progress, final=False)["cases"]
    plain = assemble(tiny(), locate(tiny(), folder), choose_device("cpu"))
    with Progress(rounds=0, quiet=True) as progress:
        expected = assess(plain.federated, plain.assessor, plain.initial, progress, final=False)["cases"]
    assert [row["value"] for row in rows] == pytest.approx([row["value"] for row in expected], abs=2e-3)
