"""Scoring a round: who is asked together, what is read, what is kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rounds import advance

from wardround.aggregators.contract import Aggregator
from wardround.aggregators.fedavg import FedAvg
from wardround.aggregators.flap_sam import FlapSam
from wardround.aggregators.local import Local
from wardround.clients.evaluation import Evaluation, ScoredVolume, evaluate, source_of, summarise
from wardround.datasets.contract import Case, Volume
from wardround.datasets.windows import PreparedVolume, Windows
from wardround.simulator.assessment import HELD_SPLITS, SPLITS, Keepsakes, assess
from wardround.simulator.checkpoint import Checkpoint
from wardround.simulator.cohort import Outsider
from wardround.simulator.federation import Federated, Rows
from wardround.simulator.progress import Progress
from wardround.simulator.volume_assessment import (
    Overlay,
    VolumeAssessor,
    _best_median_worst,
    _overlay,
    keep_overlays,
)

Make = Callable[..., tuple[Federated, Checkpoint]]


# ---- who is asked together -------------------------------------------------------------------------------------------


def assessor(**settings: object) -> VolumeAssessor:
    """Of volumes that have no files."""
    return VolumeAssessor(
        evaluation=Evaluation(batch_size=7),
        windows=Windows(),
        classes=("organ", "lesion"),
        **{"read": lambda case: pytest.fail("read a file"), "check_case": lambda case: None, **settings},
    )


def assessed(
    federated: Federated, checkpoint: Checkpoint, how: VolumeAssessor | None = None, **settings: object
) -> Rows:
    with Progress(rounds=1, quiet=True) as progress:
        return assess(federated, how or assessor(), checkpoint, progress, **{"final": False, **settings})


def with_everything(federated: Federated) -> Federated:
    """Volumes to validate on at one hospital, and two outsiders; hospital-0 has nothing to be scored on."""
    first, second, third = federated.hospitals.values()
    hospitals = (replace(first, test=()), replace(second, validation=first.test), third)
    outsiders = (
        Outsider(name="common", split="test", cases=first.test),
        Outsider(name="far", split="unseen", cases=second.test),
    )
    return replace(federated, hospitals={one.info.name: one for one in hospitals}, outsiders=outsiders)


def one_by_one(federated: Federated, checkpoint: Checkpoint) -> list[tuple]:
    """Every split alone, its model loaded for it: hospital, split, metric and value."""
    deploy, place, found = federated.aggregator.deploy, federated.workplace, []

    def score(name: str, split: str, volumes: tuple[PreparedVolume, ...]) -> None:
        how = assessor()
        source = [source_of(volumes, how.windows, place.replica)]
        scores = [one.scores for one in evaluate(place, source, how.classes, how.evaluation, surfaces=False)]
        found.extend((name, split, metric, value) for metric, value in summarise(scores, how.classes).items())

    place.replica.set_base(checkpoint.server.base)
    for name, hospital in federated.hospitals.items():
        for split, volumes in (("validation", hospital.validation), ("test", hospital.test)):
            if volumes:
                place.replica.load(deploy(checkpoint.server, hospital.info, checkpoint.memories[name].tensors))
                score(name, split, volumes)
    for outsider in federated.outsiders:
        place.replica.load(deploy(checkpoint.server, None, {}))
        score(outsider.name, outsider.split, outsider.cases)
    return found


def watched(federated: Federated, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """Loads of the replica so far, and windows of every pass through the model."""
    replica = federated.workplace.replica
    load, begin, loads, passes = replica.load, replica.begin, [], []
    monkeypatch.setattr(replica, "load", lambda tensors: [loads.append(1), load(tensors)])
    monkeypatch.setattr(replica, "begin", lambda images: [passes.append(len(images)), begin(images)][1])
    return loads, passes


@pytest.mark.parametrize(
    ("aggregator", "ranks", "loads", "passes"),
    [
        (FedAvg(), None, 1, [7, 7, 7, 7, 7, 1]),  # (4 + 8) + 12 slices of hospitals 1 and 2, 4 + 8 of outsiders
        (FlapSam(), {"hospital-1": 2}, 2, [7, 5, 7, 7, 7, 3]),  # a lower rank has a model of its own
        (Local(), None, 3, [7, 5, 7, 5, 7, 5]),
    ],
    ids=["fedavg", "mixed-ranks", "local"],
)
def test_neighbours_with_one_model_share_batches_and_are_scored_as_if_alone(
    make_federated: Make,
    monkeypatch: pytest.MonkeyPatch,
    aggregator: Aggregator,
    ranks: dict[str, int] | None,
    loads: int,
    passes: list[int],
) -> None:
    federated, before = make_federated(aggregator, ranks=ranks)
    checkpoint = advance(federated, before).checkpoint
    federated = with_everything(federated)
    expected = one_by_one(federated, checkpoint)
    assert len({value for _, _, metric, value in expected if metric == "dice"}) > 2  # they show something
    found = watched(federated, monkeypatch)
    rows = assessed(federated, checkpoint)
    keys = ("hospital", "split", "metric", "value")
    assert [tuple(row[key] for key in keys) for row in rows["metrics"]] == expected
    assert (sum(found[0]), found[1]) == (loads, passes)
    cases = {(row["hospital"], row["split"], row["case"]) for row in rows["cases"]}
    assert len(cases) == 1 + 2 + 3 + 1 + 2


# ---- what is read and kept -------------------------------------------------------------------------------------------


def test_the_last_evaluation_checks_every_file_and_reads_those_of_test_volumes(
    make_federated: Make, tmp_path: Path
) -> None:
    federated, start = make_federated(FedAvg())
    federated = with_everything(federated)
    volumes = {volume.case: volume for hospital in federated.hospitals.values() for volume in hospital.train.volumes}
    checked, read = [], []

    def reading(case: Case) -> Volume:
        read.append(case.name)
        prepared = volumes[case]
        image, label = prepared.images.numpy(), prepared.truth.numpy()
        return Volume(case=case, image=image, label=label, spacing_mm=prepared.spacing_mm, slice_axis=0)

    how = assessor(read=reading, check_case=lambda case: checked.append(case.name))
    assessed(federated, start, how)
    assert (checked, read) == ([], [])
    keepsakes = Keepsakes(folder=tmp_path, predictions=False, overlays=True)
    assessed(federated, start, how, final=True, keepsakes=keepsakes)
    first, second, third = (
        [volume.case.name for volume in hospital.train.volumes] for hospital in federated.hospitals.values()
    )
    assert checked == [*first, *second, *third, *first, *second]  # validation comes before test
    assert read == [*second, *third, *first, *second]
    assert len(list((tmp_path / "overlays").iterdir())) == 4


def test_nothing_is_read_to_keep_nothing(make_federated: Make, tmp_path: Path) -> None:
    federated, start = make_federated(FedAvg())
    assessed(
        federated, start, final=True, keepsakes=Keepsakes(folder=tmp_path, predictions=False, overlays=False)
    )  # reading fails
    assert not list(tmp_path.iterdir())


# ---- overlays --------------------------------------------------------------------------------------------------------


def scored(name: str, dice: float, rows: int = 5) -> tuple[ScoredVolume, Volume]:
    case = Case(name=name, patient=name, image=Path("none"), label=Path("none"))
    label = np.zeros((3, rows, 4), dtype=np.uint8)
    label[0, 0, 0], label[2, :2, :2] = 1, 2
    image = np.arange(label.size, dtype=np.float32).reshape(label.shape) - 7
    volume = Volume(case=case, image=image, label=label, spacing_mm=(3.0, 2.0, 1.0), slice_axis=2)
    truth = torch.from_numpy(label)
    prepared = PreparedVolume(case=case, images=truth.float(), labels=truth, truth=truth, spacing_mm=volume.spacing_mm)
    return ScoredVolume(volume=prepared, prediction=label, scores={"dice": dice}), volume


def test_the_slice_with_the_largest_truth_is_shown_in_zero_to_one() -> None:
    overlay = _overlay(*scored("case", 0.5))
    assert overlay.slice == 2
    assert overlay.spacing_mm == (2.0, 1.0)
    assert overlay.image.max() == 1.0
    assert 0 < overlay.image.min() < 1


def test_best_median_and_worst_are_chosen() -> None:
    def chosen(*values: float) -> list[float]:
        return [o.dice for o in _best_median_worst([_overlay(*scored(f"c{v}", v)) for v in values])]

    assert chosen(0.1, 0.9, 0.5, 0.3, 0.7) == [0.9, 0.5, 0.1]
    assert chosen(0.4) == [0.4]
    assert chosen(0.4, 0.6) == [0.6, 0.4]


def test_overlays_of_different_size_go_into_one_file(tmp_path: Path) -> None:
    keepsakes = Keepsakes(folder=tmp_path, predictions=False, overlays=True)
    overlays: list[Overlay] = [_overlay(*scored("a", 0.9)), _overlay(*scored("b", 0.2, rows=7))]
    keep_overlays(keepsakes, "north/east", overlays)
    file = next((tmp_path / "overlays").iterdir())
    assert file.name.startswith("north_east-")
    with np.load(file, allow_pickle=False) as kept:
        assert set(kept) == {"image", "truth", "prediction", "case", "slice", "dice", "spacing_mm"}
        assert kept["image"].shape == (2, 7, 4)
        assert not kept["truth"][0, 5:].any()
        assert kept["case"].tolist() == ["a", "b"]


def test_without_overlays_nothing_is_written(tmp_path: Path) -> None:
    keep_overlays(Keepsakes(folder=tmp_path, predictions=False, overlays=False), "a", [])
    assert not list(tmp_path.iterdir())


# ---- splits that wait ------------------------------------------------------------------------------------------------


def test_what_waits_and_what_does_not_are_all_there_is(make_federated: Make) -> None:
    """The rows of some splits are those of a whole assessment; none of a test volume come with the validation rows."""
    federated, checkpoint = make_federated(Local())
    federated = with_everything(federated)
    checkpoint = advance(federated, checkpoint).checkpoint
    whole = assessed(federated, checkpoint)
    first = assessed(federated, checkpoint, splits=("validation",))
    later = assessed(federated, checkpoint, splits=HELD_SPLITS)
    for name in ("metrics", "cases"):
        assert {row["split"] for row in first[name]} == {"validation"}
        assert {row["split"] for row in later[name]} == {"test", "unseen"}
        assert sorted(map(str, first[name] + later[name])) == sorted(map(str, whole[name]))
    assert set(SPLITS) == {"validation", *HELD_SPLITS}


def test_files_of_test_volumes_are_not_even_looked_at_while_they_wait(make_federated: Make) -> None:
    federated, checkpoint = make_federated(FedAvg())
    seen: list[str] = []
    how = assessor(check_case=lambda case: seen.append(case.name))
    federated = with_everything(federated)
    validation = [volume.case.name for hospital in federated.hospitals.values() for volume in hospital.validation]
    assessed(federated, checkpoint, how, splits=("validation",), final=True)
    assert seen == validation
