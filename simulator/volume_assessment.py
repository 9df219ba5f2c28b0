"""Scores of volumes: label maps on the native grid, Dice, and in the end surface distances.

The truth comes from the prepared volumes; files are read again for the last evaluation only, which leaves predictions
and pictures in the run directory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..clients.batches import Source
from ..clients.evaluation import Evaluation, ScoredVolume, evaluate, source_of, summarise
from ..clients.replica import Replica
from ..clients.training import Workplace
from ..datasets.contract import Case, Volume
from ..datasets.nifti import write_prediction
from ..datasets.windows import Windows
from .assessment import Keepsakes, Outcome, Subject
from .cohort import Scored, volumes_of
from .federation import Rows
from .files import file_stem, write_bytes


@dataclass(frozen=True, kw_only=True)
class VolumeAssessor:
    """How volumes are read and scored in this run: an :class:`~.assessment.Assessor`.

    Args:
        evaluation: When and how.
        windows: How windows are made.
        classes: Names of the foreground classes.
        read: Reads a case on its native grid. Raises ValueError where a file is not the one that the run began with.
        check_case: Raises the same, without reading the case.
    """

    evaluation: Evaluation
    windows: Windows
    classes: tuple[str, ...]
    read: Callable[[Case], Volume]
    check_case: Callable[[Case], None]

    @property
    def headline(self) -> str:
        """Dice, the mean over the classes."""
        return "dice"

    def source(self, cases: Scored, replica: Replica) -> Source:
        """See :func:`~wardround.clients.evaluation.source_of`."""
        return source_of(volumes_of(cases), self.windows, replica)

    def check(self, cases: Scored) -> None:
        """Raises ValueError where a file of a volume has changed."""
        for volume in volumes_of(cases):
            self.check_case(volume.case)

    def assess(
        self, place: Workplace, number: int, subjects: Sequence[Subject], *, final: bool, keepsakes: Keepsakes | None
    ) -> Iterator[Outcome]:
        """Dice of every volume and its mean; in the last round also HD95 and surface Dice."""
        sources = [self.source(subject.cases, place.replica) for subject in subjects]
        scored = evaluate(place, sources, self.classes, self.evaluation, surfaces=final)
        for subject in subjects:
            yield self._outcome(number, subject, islice(scored, len(subject.cases)), keepsakes)

    def _outcome(
        self, number: int, subject: Subject, scored: Iterable[ScoredVolume], keepsakes: Keepsakes | None
    ) -> Outcome:
        """The scores of a subject; what is to be kept of its volumes is kept."""
        scores, overlays, cases = [], [], list[dict[str, Any]]()
        for one in scored:
            scores.append(one.scores)
            cases += _case_rows(number, subject, one)
            if keepsakes is not None and keepsakes.wants(subject.split):
                volume = self.read(one.volume.case)
                overlays.append(_overlay(one, volume))
                keep(keepsakes, subject.name, one, volume)
        if overlays and keepsakes is not None:
            keep_overlays(keepsakes, subject.name, overlays)
        return Outcome(subject=subject, summary=summarise(scores, self.classes), rows={"cases": cases})

    def pooled(self, number: int, outcomes: Sequence[Outcome], *, final: bool) -> Rows:
        """None: a mean over volumes is a mean over sites with other weights."""
        return {}

    def values(self, place: Workplace, sources: Sequence[Source]) -> Iterator[tuple[str, float | None]]:
        """Name and Dice of every volume."""
        for one in evaluate(place, sources, self.classes, self.evaluation, surfaces=False):
            yield one.volume.case.name, one.scores["dice"]


def keep(keepsakes: Keepsakes, hospital: str, scored: ScoredVolume, volume: Volume) -> None:
    """Writes ``predictions/<hospital>/<case>.nii.gz``, the label map of one volume, onto the grid of its file."""
    if keepsakes.predictions:
        folder = keepsakes.folder / "predictions" / file_stem(hospital)
        write_prediction(folder / f"{file_stem(volume.case.name)}.nii.gz", scored.prediction, volume)


def keep_overlays(keepsakes: Keepsakes, hospital: str, overlays: Sequence[Overlay]) -> None:
    """Writes the best, the median and the worst volume of a hospital."""
    if keepsakes.overlays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **_stack(_best_median_worst(overlays)))
        write_bytes(keepsakes.folder / "overlays" / f"{file_stem(hospital)}.npz", buffer.getvalue())


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


def _case_rows(number: int, subject: Subject, scored: ScoredVolume) -> list[dict[str, Any]]:
    case = {"round": number, "hospital": subject.name, "split": subject.split, "case": scored.volume.case.name}
    return [{**case, "metric": metric, "value": value} for metric, value in scored.scores.items()]


def _overlay(scored: ScoredVolume, volume: Volume) -> Overlay:
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
