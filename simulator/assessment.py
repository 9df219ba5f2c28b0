"""Scores the federation after a round: every hospital's deployed model on that hospital's volumes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..aggregators.contract import HospitalInfo, Tensors
from ..clients.evaluation import Evaluation, Scored, evaluate, summarise
from ..datasets.contract import Case, Volume
from ..datasets.nifti import write_prediction
from ..datasets.windows import PreparedVolume, Windows
from .checkpoint import Checkpoint
from .federation import Federated, Rows, metric_row
from .files import file_stem, write_bytes
from .progress import Progress
from .results import mean


@dataclass(frozen=True, kw_only=True)
class Assessor:
    """How volumes are read and scored in this run.

    Args:
        evaluation: When and how.
        windows: How windows are made.
        classes: Names of the foreground classes.
        read: Reads a case on its native grid.
    """

    evaluation: Evaluation
    windows: Windows
    classes: tuple[str, ...]
    read: Callable[[Case], Volume]


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

    def keep(self, hospital: str, scored: Scored) -> None:
        """Writes the label map of one volume."""
        if self.predictions:
            path = self.folder / "predictions" / file_stem(hospital) / f"{file_stem(scored.volume.case.name)}.nii.gz"
            write_prediction(path, scored.prediction, scored.volume)

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


def assess(
    federated: Federated,
    assessor: Assessor,
    checkpoint: Checkpoint,
    progress: Progress,
    *,
    final: bool,
    keepsakes: Keepsakes | None = None,
) -> Rows:
    """Metric and case rows of every hospital and of every outsider; also shows the mean test Dice.

    Args:
        federated: The run.
        assessor: How to score.
        checkpoint: The state to score.
        progress: Shows the result.
        final: Also HD95 and surface Dice.
        keepsakes: What to write, for the last round.
    """
    rows: Rows = {"metrics": [], "cases": []}
    federated.workplace.replica.set_base(checkpoint.server.base)
    test_dice = []
    for name, split, volumes in _deployed_one_by_one(federated, checkpoint):
        scores = _assess_split(federated, assessor, checkpoint.round, name, split, volumes, final, keepsakes, rows)
        test_dice += [scores["dice"]] if split == "test" else []
    progress.dice(mean(test_dice))
    return rows


def _deployed_one_by_one(
    federated: Federated, checkpoint: Checkpoint
) -> Iterator[tuple[str, str, tuple[PreparedVolume, ...]]]:
    """Name, split and volumes of all that is scored, while the replica holds the model that is deployed there."""
    for hospital in federated.hospitals.values():
        name = hospital.info.name
        _deploy(federated, checkpoint, hospital.info, checkpoint.memories[name].tensors)
        splits = (("validation", hospital.validation), ("test", hospital.test))
        yield from ((name, split, volumes) for split, volumes in splits if volumes)
    for outsider in federated.outsiders:
        _deploy(federated, checkpoint, None, {})
        yield outsider.name, outsider.split, outsider.volumes


def _deploy(federated: Federated, checkpoint: Checkpoint, hospital: HospitalInfo | None, memory: Tensors) -> None:
    federated.workplace.replica.load(federated.aggregator.deploy(checkpoint.server, hospital, memory))


def _assess_split(
    federated: Federated,
    assessor: Assessor,
    number: int,
    name: str,
    split: str,
    volumes: Sequence[PreparedVolume],
    final: bool,
    keepsakes: Keepsakes | None,
    rows: Rows,
) -> dict[str, float | None]:
    """Scores one split of one hospital, or an outsider, and adds its rows."""
    scores, overlays = [], []
    for scored in evaluate(
        federated.workplace.replica,
        volumes,
        assessor.read,
        assessor.windows,
        assessor.classes,
        assessor.evaluation,
        surfaces=final,
    ):
        scores.append(scored.scores)
        rows["cases"] += _case_rows(number, name, split, scored)
        if keepsakes is not None and split != "validation":
            overlays.append(_overlay(scored))
            keepsakes.keep(name, scored)
    if keepsakes is not None and split != "validation":
        keepsakes.keep_overlays(name, overlays)
    summary = summarise(scores, assessor.classes)
    rows["metrics"] += [metric_row(number, name, split, metric, value) for metric, value in summary.items()]
    return summary


def _case_rows(number: int, hospital: str, split: str, scored: Scored) -> list[dict[str, Any]]:
    case = scored.volume.case.name
    return [
        {"round": number, "hospital": hospital, "split": split, "case": case, "metric": metric, "value": value}
        for metric, value in scored.scores.items()
    ]


def _overlay(scored: Scored) -> Overlay:
    volume = scored.volume
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
