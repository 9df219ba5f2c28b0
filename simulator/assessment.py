"""Scores the federation after a round: every hospital's deployed model on that hospital's volumes.

Hospitals in a row that are given the same model are scored in the same batches. The truth comes from the prepared
volumes; files are read again for the last evaluation only, which leaves predictions and pictures in the run directory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..aggregators.contract import Tensors
from ..clients.evaluation import Evaluation, Scored, evaluate, source_of, summarise
from ..datasets.contract import Case, Volume
from ..datasets.nifti import write_prediction
from ..datasets.windows import PreparedVolume, Windows
from .checkpoint import Checkpoint
from .federation import Federated, Rows, metric_row
from .files import file_stem, write_bytes
from .progress import Progress
from .results import UNSEEN, mean

SPLITS = ("validation", "test", UNSEEN)
"""What volumes are for."""

HELD_SPLITS = ("test", UNSEEN)
"""The splits that wait where something is selected: nothing of them may be known before."""


@dataclass(frozen=True, kw_only=True)
class Assessor:
    """How volumes are read and scored in this run.

    Args:
        evaluation: When and how.
        windows: How windows are made.
        classes: Names of the foreground classes.
        read: Reads a case on its native grid. Raises ValueError where a file is not the one that the run began with.
        check: Raises the same, without reading the case.
    """

    evaluation: Evaluation
    windows: Windows
    classes: tuple[str, ...]
    read: Callable[[Case], Volume]
    check: Callable[[Case], None]


@dataclass(frozen=True, kw_only=True)
class Keepsakes:
    """What the last evaluation leaves in the run directory: label maps and, for the report, a few overlays.

    Args:
        folder: The run directory.
        predictions: Write ``predictions/<hospital>/<case>.nii.gz``.
        overlays: Write ``overlays/<hospital>.npz``; these hold slices of patients.
    """

    folder: Path
    predictions: bool
    overlays: bool

    def wants(self, split: str) -> bool:
        """Whether anything is kept of the volumes of a split, which are then read again."""
        return split != "validation" and (self.predictions or self.overlays)

    def keep(self, hospital: str, scored: Scored, volume: Volume) -> None:
        """Writes the label map of one volume, onto the grid of its file."""
        if self.predictions:
            path = self.folder / "predictions" / file_stem(hospital) / f"{file_stem(volume.case.name)}.nii.gz"
            write_prediction(path, scored.prediction, volume)

    def keep_overlays(self, hospital: str, overlays: Sequence[Overlay]) -> None:
        """Writes the best, the median and the worst volume of a hospital."""
        if self.overlays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **_stack(_best_median_worst(overlays)))
            write_bytes(self.folder / "overlays" / f"{file_stem(hospital)}.npz", buffer.getvalue())


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """The slice of a volume with the largest true area: picture, truth, prediction."""

    case: str
    slice: int
    dice: float
    spacing_mm: tuple[float, float]
    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """Volumes that are scored together: a split of a hospital, or an outsider."""

    name: str
    split: str
    volumes: tuple[PreparedVolume, ...]


def assess(
    federated: Federated,
    assessor: Assessor,
    checkpoint: Checkpoint,
    progress: Progress,
    *,
    final: bool,
    keepsakes: Keepsakes | None = None,
    splits: Sequence[str] = SPLITS,
) -> Rows:
    """Metric and case rows of every hospital and of every outsider; also shows the mean test Dice.

    Args:
        federated: The run.
        assessor: How to score.
        checkpoint: The state to score.
        progress: Shows the result.
        final: Also HD95 and surface Dice, and that all files are still those that the run began with.
        keepsakes: What to write, for the last round.
        splits: What is scored.

    Raises:
        ValueError: in the last round, a file has changed.
    """
    rows: Rows = {"metrics": [], "cases": []}
    place = federated.workplace
    place.replica.set_base(checkpoint.server.base)
    test_dice = []
    for model, subjects in _by_model(federated, checkpoint, splits):
        if final:
            _check_files(assessor, subjects)
        place.replica.load(model)
        sources = [source_of(subject.volumes, assessor.windows, place.replica) for subject in subjects]
        scored = evaluate(place, sources, assessor.classes, assessor.evaluation, surfaces=final)
        for subject in subjects:
            of_subject = islice(scored, len(subject.volumes))
            summary = _record(assessor, checkpoint.round, subject, of_subject, keepsakes, rows)
            test_dice += [summary["dice"]] if subject.split == "test" else []
    if test_dice:
        progress.dice(mean(test_dice))
    return rows


def _by_model(
    federated: Federated, checkpoint: Checkpoint, splits: Sequence[str]
) -> Iterator[tuple[Tensors, list[_Subject]]]:
    """All that is scored, in order, together where the model that is deployed stays the same from one to the next."""
    model: Tensors = {}
    together: list[_Subject] = []
    for tensors, subject in _deployments(federated, checkpoint, splits):
        if together and not _equal(tensors, model):
            yield model, together
            together = []
        model = tensors
        together.append(subject)
    if together:
        yield model, together


def _deployments(
    federated: Federated, checkpoint: Checkpoint, splits: Sequence[str]
) -> Iterator[tuple[Tensors, _Subject]]:
    """What is scored, with the model that is deployed there."""
    deploy, server = federated.aggregator.deploy, checkpoint.server
    for name, hospital in federated.hospitals.items():
        own = {"validation": hospital.validation, "test": hospital.test}
        subjects = [
            _Subject(name=name, split=split, volumes=volumes)
            for split, volumes in own.items()
            if volumes and split in splits
        ]
        if subjects:
            model = deploy(server, hospital.info, checkpoint.memories[name].tensors)
            yield from ((model, subject) for subject in subjects)
    for outsider in federated.outsiders:
        if outsider.split not in splits:
            continue
        subject = _Subject(name=outsider.name, split=outsider.split, volumes=outsider.volumes)
        yield deploy(server, None, {}), subject


def _equal(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        value is right[name] or torch.equal(value, right[name]) for name, value in left.items()
    )


def _check_files(assessor: Assessor, subjects: Iterable[_Subject]) -> None:
    for subject in subjects:
        for volume in subject.volumes:
            assessor.check(volume.case)


def _record(
    assessor: Assessor,
    number: int,
    subject: _Subject,
    scored: Iterable[Scored],
    keepsakes: Keepsakes | None,
    rows: Rows,
) -> dict[str, float | None]:
    """Adds the rows of a subject, and keeps what is to be kept of its volumes. Gives its scores."""
    scores, overlays = [], []
    for one in scored:
        scores.append(one.scores)
        rows["cases"] += _case_rows(number, subject, one)
        if keepsakes is not None and keepsakes.wants(subject.split):
            volume = assessor.read(one.volume.case)
            overlays.append(_overlay(one, volume))
            keepsakes.keep(subject.name, one, volume)
    if overlays and keepsakes is not None:
        keepsakes.keep_overlays(subject.name, overlays)
    summary = summarise(scores, assessor.classes)
    rows["metrics"] += [
        metric_row(number, subject.name, subject.split, metric, value) for metric, value in summary.items()
    ]
    return summary


def _case_rows(number: int, subject: _Subject, scored: Scored) -> list[dict[str, Any]]:
    case = {"round": number, "hospital": subject.name, "split": subject.split, "case": scored.volume.case.name}
    return [{**case, "metric": metric, "value": value} for metric, value in scored.scores.items()]


def _overlay(scored: Scored, volume: Volume) -> Overlay:
    number = int((volume.label > 0).sum(axis=(1, 2)).argmax())
    low, high = float(volume.image.min()), float(volume.image.max())
    image = (volume.image[number] - low) / max(high - low, 1e-12)
    return Overlay(
        case=volume.case.name,
        slice=number,
        dice=float(scored.scores["dice"] or 0.0),
        spacing_mm=volume.spacing_mm[1:],
        image=image.astype(np.float32),
        truth=volume.label[number],
        prediction=scored.prediction[number],
    )


def _best_median_worst(overlays: Sequence[Overlay]) -> list[Overlay]:
    ranked = sorted(overlays, key=lambda overlay: (-overlay.dice, overlay.case))
    chosen = sorted({0, len(ranked) // 2, len(ranked) - 1})
    return [ranked[position] for position in chosen]


def _stack(overlays: Sequence[Overlay]) -> dict[str, Any]:
    """Arrays by name; slices of different size are padded with zeros to the largest."""
    height = max(overlay.image.shape[0] for overlay in overlays)
    width = max(overlay.image.shape[1] for overlay in overlays)

    def padded(picture: NDArray[Any]) -> NDArray[Any]:
        return np.pad(picture, [(0, height - picture.shape[0]), (0, width - picture.shape[1])])

    return {
        "image": np.stack([padded(overlay.image) for overlay in overlays]),
        "truth": np.stack([padded(overlay.truth) for overlay in overlays]),
        "prediction": np.stack([padded(overlay.prediction) for overlay in overlays]),
        "case": np.array([overlay.case for overlay in overlays]),
        "slice": np.array([overlay.slice for overlay in overlays]),
        "dice": np.array([overlay.dice for overlay in overlays]),
        "spacing_mm": np.array([overlay.spacing_mm for overlay in overlays]),
    }
