"""Scoring images: rows per hospital and of all together, what the last round leaves, pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifier import CLASSES, IMAGE_SIZE, classifier, hospital
from sklearn import metrics

from wardround.aggregators.contract import Aggregator, HospitalInfo
from wardround.aggregators.fedavg import FedAvg
from wardround.aggregators.local import Local
from wardround.clients.class_losses import CrossEntropy
from wardround.clients.class_metrics import class_scores
from wardround.clients.classification import classify, image_source
from wardround.clients.evaluation import Evaluation
from wardround.clients.optimizers import SGD, Schedule
from wardround.clients.training import Training, Workplace
from wardround.datasets.augment import NoAugment
from wardround.datasets.images import HospitalImages
from wardround.simulator.assembly import make_setting
from wardround.simulator.assessment import Keepsakes, assess
from wardround.simulator.checkpoint import Checkpoint
from wardround.simulator.cohort import Hospital, Outsider
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.cross_site import assess_across
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.federation import Federated, Rows, initial_memories
from wardround.simulator.image_assessment import PICTURES, Answers, ImageAssessor, pictures, predictions_csv
from wardround.simulator.progress import Progress
from wardround.simulator.results import RunRecords
from wardround.simulator.run import run
from wardround.simulator.sampling import Cohort

NONE = HospitalImages(hospital([0]).prepared, [])


def assessor(**settings: Any) -> ImageAssessor:
    return ImageAssessor(
        **{"evaluation": Evaluation(batch_size=4), "classes": CLASSES, "check_files": lambda paths: None, **settings}
    )


def federation(aggregator: Aggregator | None = None) -> tuple[Federated, Checkpoint]:
    """Two hospitals with test images, one of them with validation images too, and a site that does not train."""
    aggregator = aggregator or FedAvg()
    replica = classifier(precision="fp64")
    tests = [hospital([0, 1, 2, 1, 0], seed=1, name="a"), hospital([2, 2, 0], seed=2, name="b")]
    validations = [NONE, hospital([1, 0], seed=3, name="v")]
    hospitals = {}
    for number, (test, validation) in enumerate(zip(tests, validations, strict=True)):
        info = HospitalInfo(name=f"hospital-{number}", num_examples=len(test), rank=None)
        hospitals[info.name] = Hospital(info=info, train=test, validation=validation, test=test)
    training = Training(batch_size=2, optimizer=SGD(lr=0.05), schedule=Schedule(warmup_steps=0))
    far = Outsider(name="far", split="unseen", cases=hospital([0, 0, 1], seed=4, name="f"))
    federated = Federated(
        aggregator=aggregator,
        workplace=Workplace(replica=replica, training=training, augment=NoAugment(), loss=CrossEntropy()),
        hospitals=hospitals,
        weights=dict.fromkeys(hospitals, 1.0),
        cohort=Cohort(),
        seed=0,
        outsiders=(far,),
    )
    server = aggregator.init(make_setting(replica, hospitals, training), federated.rng("server"))
    return federated, Checkpoint(server=server, memories=initial_memories(hospitals))


def assessed(federated: Federated, checkpoint: Checkpoint, how: ImageAssessor | None = None, **settings: Any) -> Rows:
    with Progress(rounds=1, quiet=True) as progress:
        return assess(federated, how or assessor(), checkpoint, progress, **{"final": False, **settings})


def said(federated: Federated, parts: Sequence[HospitalImages]) -> Answers:
    """Of images of several hospitals in one heap."""
    found = list(classify(federated.workplace.replica, [image_source(part) for part in parts], 100))
    targets = np.concatenate([part.targets.numpy() for part in parts])
    return Answers(probabilities=np.concatenate(found), targets=targets)


def found(rows: Rows, hospital: str | None, split: str) -> dict[str, float | None]:
    """Metrics of one subject."""
    return {
        row["metric"]: row["value"] for row in rows["metrics"] if (row["hospital"], row["split"]) == (hospital, split)
    }


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_every_hospital_and_all_together_are_scored() -> None:
    """Those of all together are those of one heap of images, and no means over hospitals."""
    federated, checkpoint = federation()
    rows = assessed(federated, checkpoint)
    first, second = federated.hospitals.values()
    for name, split, images in (
        ("hospital-0", "test", first.test),
        ("hospital-1", "validation", second.validation),
        ("hospital-1", "test", second.test),
        ("far", "unseen", federated.outsiders[0].cases),
    ):
        answers = said(federated, [images])
        assert found(rows, name, split) == class_scores(answers.probabilities, answers.targets, CLASSES)
    heap = said(federated, [first.test, second.test])
    together = found(rows, None, "test")
    assert together == {f"pooled/{k}": v for k, v in class_scores(heap.probabilities, heap.targets, CLASSES).items()}
    mean = np.mean([found(rows, name, "test")["balanced_accuracy"] for name in federated.hospitals])
    assert together["pooled/balanced_accuracy"] != pytest.approx(mean)
    assert found(rows, None, "validation") == {
        f"pooled/{metric}": value for metric, value in found(rows, "hospital-1", "validation").items()
    }


def test_a_class_that_a_hospital_does_not_see_is_undefined_there() -> None:
    rows = assessed(*federation())
    assert found(rows, "hospital-1", "test")["recall/melanoma"] is None
    assert found(rows, None, "test")["pooled/recall/melanoma"] is not None


def test_images_and_confusion_have_rows_after_the_last_round_only() -> None:
    federated, checkpoint = federation()
    before = assessed(federated, checkpoint)
    assert not before["cases"]
    assert not before.get("confusion")
    rows = assessed(federated, checkpoint, final=True)
    own = [row for row in rows["cases"] if row["hospital"] == "hospital-0"]
    answers = said(federated, [federated.hospitals["hospital-0"].test])
    assert [(row["case"], row["metric"], row["value"]) for row in own] == [
        (f"a-{number:03d}", "accuracy", float(right)) for number, right in enumerate(answers.right)
    ]
    assert found(rows, "hospital-0", "test")["accuracy"] == np.mean([row["value"] for row in own])
    assert {(row["hospital"], row["split"]) for row in rows["confusion"]} == {
        ("hospital-0", "test"), ("hospital-1", "test"), ("hospital-1", "validation"), ("far", "unseen"),
        (None, "test"), (None, "validation"), (None, "unseen"),
    }  # fmt: skip


def test_confusion_rows_are_the_counts_by_name() -> None:
    federated, checkpoint = federation()
    rows = assessed(federated, checkpoint, final=True)
    answers = said(federated, [images.test for images in federated.hospitals.values()])
    expected = [
        (CLASSES[true], CLASSES[predicted]) for true, predicted in zip(answers.targets, answers.predicted, strict=True)
    ]
    counted = [row for row in rows["confusion"] if row["hospital"] is None and row["split"] == "test"]
    assert {(row["target"], row["predicted"]): row["count"] for row in counted} == {
        pair: expected.count(pair) for pair in expected
    }
    assert all(row["count"] > 0 for row in rows["confusion"])


def test_models_of_their_own_are_pooled_over_their_own_images() -> None:
    federated, checkpoint = federation(Local())
    name = "hospital-1"
    tensors = {key: -value for key, value in checkpoint.server.setting.trainable.items()}
    memories = {**checkpoint.memories, name: replace(checkpoint.memories[name], tensors=tensors)}
    rows = assessed(federated, replace(checkpoint, memories=memories), final=True)
    right = [row["value"] for row in rows["cases"] if row["split"] == "test"]
    assert found(rows, None, "test")["pooled/accuracy"] == pytest.approx(np.mean(right))
    shared = assessed(*federation(), final=True)
    assert found(rows, name, "test") != found(shared, name, "test")


def test_every_model_at_every_other_hospital() -> None:
    federated, checkpoint = federation()
    rows = assess_across(federated, assessor(), checkpoint)["across"]
    at = {(row["trained_at"], row["hospital"], row["split"]) for row in rows}
    assert ("hospital-0", "hospital-1", "validation") in at
    values = [row["value"] for row in rows if row["trained_at"] == "hospital-0" and row["hospital"] == "far"]
    answers = said(federated, [federated.outsiders[0].cases])
    assert values == answers.right.astype(float).tolist()
    assert {row["metric"] for row in rows} == {"accuracy"}


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_of_many_images_is_looked_at_once_and_only_in_the_end(tmp_path: Path) -> None:
    federated, checkpoint = federation()
    looked: list[list[Path]] = []
    how = assessor(check_files=lambda paths: looked.append(list(paths)))
    assessed(federated, checkpoint, how)
    assert looked == []
    assessed(federated, checkpoint, how, final=True)
    assert looked == [[Path("none")]] * 4


def test_predictions_and_pictures_are_kept_of_test_images(tmp_path: Path) -> None:
    federated, checkpoint = federation()
    keepsakes = Keepsakes(folder=tmp_path, predictions=True, overlays=True)
    assessed(federated, checkpoint, final=True, keepsakes=keepsakes)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    names = ("far", "hospital-0", "hospital-1")
    assert files == [*(f"overlays/{name}.npz" for name in names), *(f"predictions/{name}.csv" for name in names)]
    answers = said(federated, [federated.hospitals["hospital-0"].test])
    lines = list(csv.DictReader(io.StringIO((tmp_path / "predictions" / "hospital-0.csv").read_text())))
    assert [line["image"] for line in lines] == [f"a-{number:03d}" for number in range(5)]
    assert [line["predicted"] for line in lines] == [CLASSES[place] for place in answers.predicted]
    assert [line["target"] for line in lines] == [CLASSES[place] for place in (0, 1, 2, 1, 0)]
    written = [[float(line[f"probability/{name}"]) for name in CLASSES] for line in lines]
    np.testing.assert_allclose(written, answers.probabilities, rtol=1e-8)


def test_without_pictures_nothing_of_a_patient_is_written(tmp_path: Path) -> None:
    federated, checkpoint = federation()
    keepsakes = Keepsakes(folder=tmp_path, predictions=True, overlays=False)
    assessed(federated, checkpoint, final=True, keepsakes=keepsakes)
    assert not list(tmp_path.rglob("*.npz"))


def test_a_class_name_with_a_comma_is_one_column() -> None:
    answers = Answers(probabilities=np.array([[0.25, 0.75]]), targets=np.array([0]))
    text = predictions_csv(["one"], answers, ["naevus, benign", "other"])
    assert list(csv.reader(io.StringIO(text))) == [
        ["image", "target", "predicted", "probability/naevus, benign", "probability/other"],
        ["one", "naevus, benign", "other", "0.25", "0.75"],
    ]


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_the_surest_wrong_ones_come_first_then_the_surest_right_ones() -> None:
    """Two classes; probabilities of the prediction 0.9, 0.8, ... 0.6 wrong, 0.95 and 0.7 right."""
    images = hospital([0] * 6)
    of_zero = np.array([0.3, 0.95, 0.1, 0.7, 0.4, 0.2])
    answers = Answers(probabilities=np.stack([of_zero, 1 - of_zero], axis=1), targets=np.zeros(6, dtype=np.int64))
    kept = pictures(images, answers, ["mole", "cancer"])
    assert kept["case"].tolist() == ["image-002", "image-005", "image-000", "image-001", "image-003"]
    assert kept["right"].tolist() == [False] * PICTURES + [True, True]
    assert kept["probability"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.95, 0.7])
    assert (kept["truth"] == "mole").all()
    assert kept["prediction"].tolist() == ["cancer"] * 3 + ["mole"] * 2


def test_pictures_are_the_prepared_pixels() -> None:
    """Through float32 and back without a change of any of the 256 values."""
    images = hospital([0, 1])
    answers = Answers(probabilities=np.eye(3)[[0, 1]], targets=np.array([0, 1]))
    kept = pictures(images, answers, CLASSES)
    assert kept["image"].shape == (2, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert torch.equal(torch.from_numpy(kept["image"]).permute(0, 3, 1, 2), images.prepared.pixels)


# ---- a whole run -----------------------------------------------------------------------------------------------------


def tiny(*settings: str) -> Experiment:
    return load_experiment("vit-tiny", open_file(PACKAGED), ["rounds=1", "split.validation_fraction=0.3", *settings])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    experiment = tiny("evaluation.test=last", "loss={name: focal, class_weights: balanced}")
    return RunRecords.load(run(experiment, data=folder, out=tmp_path_factory.mktemp("runs"), quiet=True).path)


def test_the_files_of_a_run_agree(finished: RunRecords) -> None:
    """Scores recomputed by scikit-learn from predictions, confusion counts and the classes of the manifest."""
    targets, predicted = [], []
    for name in finished.hospitals:
        text = (finished.path / "predictions" / f"{name}.csv").read_text()
        lines = list(csv.DictReader(io.StringIO(text)))
        said = {line["image"]: line["predicted"] for line in lines}
        right = {row.case: row.value for row in finished.cases if (row.hospital, row.split) == (name, "test")}
        assert said.keys() == right.keys()
        own = [row for row in finished.confusion if (row.hospital, row.split) == (name, "test")]
        pairs = [(row.target, row.predicted) for row in own for _ in range(row.count)]
        of_class = finished.manifest["class_counts"][name]["test"]
        assert {c: sum(true == c for true, _ in pairs) for c in finished.classes} == of_class
        assert sorted(pairs) == sorted((line["target"], line["predicted"]) for line in lines)
        assert sum(true == one for true, one in pairs) == sum(right.values())
        targets += [true for true, _ in pairs]
        predicted += [one for _, one in pairs]
    scores = {row.metric: row.value for row in finished.metrics if (row.hospital, row.split) == (None, "test")}
    assert scores["pooled/accuracy"] == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert scores["pooled/balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(targets, predicted))
    assert scores["pooled/macro_f1"] == pytest.approx(metrics.f1_score(targets, predicted, average="macro"))


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_scored_ends_with_every_row_once(finished: RunRecords, folder: Path) -> None:
    """Half of the test rows were written before the kill: they are dropped, and those of validation images stay."""
    experiment = tiny("evaluation.test=last", "loss={name: focal, class_weights: balanced}")
    before = {name: (finished.path / f"{name}.jsonl").read_text() for name in ("metrics", "cases", "confusion")}
    manifest = finished.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"state": "finished"', '"state": "running"'))
    for name, text in before.items():
        lines = text.splitlines(keepends=True)
        (finished.path / f"{name}.jsonl").write_text("".join(lines[:-3]) + lines[-3][:20])
    run(experiment, data=folder, out=finished.path.parents[1], quiet=True)
    assert {name: (finished.path / f"{name}.jsonl").read_text() for name in before} == before
    assert '"split": "validation"' in before["confusion"]
