"""Scores of images with a class each: accuracy and its relatives per hospital and over all images of a split together.

Confusion counts, the class of every image, predictions and pictures are left by the last evaluation alone. Pictures are
those that the model saw, out of the prepared images; no file is read again.

Legend: N images of a subject, C classes, M pictures of a hospital, S image size.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..clients.batches import Source
from ..clients.class_metrics import Confusion, Probabilities, Targets, class_scores, confusion
from ..clients.classification import classify, image_source
from ..clients.evaluation import Evaluation
from ..clients.replica import Replica
from ..clients.training import Workplace
from ..datasets.examples import Examples
from ..datasets.images import HospitalImages
from .assessment import Keepsakes, Outcome, Subject
from .cohort import Scored
from .federation import Rows, metric_row
from .files import file_stem, write_bytes, write_text
from .headline import POOLED_PREFIX

PICTURES = 3
"""Pictures that are kept of a hospital's wrong answers, and of its right ones."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model said of the images of a subject.

    Args:
        probabilities: (N, C).
        targets: (N,) true classes.
    """

    probabilities: Probabilities
    targets: Targets

    @property
    def predicted(self) -> Targets:
        """(N,) the most probable class of each."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether that is the true one."""
        return np.asarray(self.predicted == self.targets)


@dataclass(frozen=True, kw_only=True)
class ImageAssessor:
    """How images are scored in this run: an :class:`~.assessment.Assessor`.

    Args:
        evaluation: When and how.
        classes: Names of the C classes.
        check_files: Raises ValueError where one of these files is not the one that the run began with.
    """

    evaluation: Evaluation
    classes: tuple[str, ...]
    check_files: Callable[[Iterable[Path]], None]

    @property
    def headline(self) -> str:
        """Accuracy, the share of images that are right."""
        return "accuracy"

    def source(self, cases: Scored, replica: Replica) -> Source:
        """See :func:`~wardround.clients.classification.image_source`."""
        return image_source(images_of(cases))

    def check(self, cases: Scored) -> None:
        """Raises ValueError where a file of an image has changed; a file of many images is looked at once."""
        self.check_files(dict.fromkeys(path for case in images_of(cases).cases for path in case.files))

    def assess(
        self, place: Workplace, number: int, subjects: Sequence[Subject], *, final: bool, keepsakes: Keepsakes | None
    ) -> Iterator[Outcome]:
        """The scores of every subject; in the last round also rows per image and per pair of classes."""
        sources = [self.source(subject.cases, place.replica) for subject in subjects]
        for subject, answers in zip(subjects, self._answers(place, sources), strict=True):
            if keepsakes is not None and keepsakes.wants(subject.split):
                keep(keepsakes, subject.name, images_of(subject.cases), answers, self.classes)
            yield Outcome(
                subject=subject,
                summary=class_scores(answers.probabilities, answers.targets, self.classes),
                rows=self._last_rows(number, subject, answers) if final else {},
                answers=answers,
            )

    def pooled(self, number: int, outcomes: Sequence[Outcome], *, final: bool) -> Rows:
        """``pooled/<metric>`` over the images of all subjects of a split together, and their confusion counts.

        Neither AUROC nor a mean over classes is a mean over hospitals: a class that one of them does not see counts
        here, and probabilities of several models are ranked together.
        """
        rows: Rows = {"metrics": [], "confusion": []}
        for split in dict.fromkeys(outcome.subject.split for outcome in outcomes):
            answers = _together([outcome.answers for outcome in outcomes if outcome.subject.split == split])
            scores = class_scores(answers.probabilities, answers.targets, self.classes)
            rows["metrics"] += [
                metric_row(number, None, split, f"{POOLED_PREFIX}{metric}", value) for metric, value in scores.items()
            ]
            if final:
                rows["confusion"] += self._confusion_rows(number, None, split, answers)
        return rows

    def values(self, place: Workplace, sources: Sequence[Source]) -> Iterator[tuple[str, float | None]]:
        """Name of every image, and 1 where it is right, 0 where it is not."""
        for source, answers in zip(sources, self._answers(place, sources), strict=True):
            cases = images_of(source.windows).cases
            yield from ((case.name, float(right)) for case, right in zip(cases, answers.right, strict=True))

    def _answers(self, place: Workplace, sources: Sequence[Source]) -> Iterator[Answers]:
        found = classify(place.replica, sources, self.evaluation.batch_size, place.kept)
        for source, probabilities in zip(sources, found, strict=True):
            yield Answers(probabilities=probabilities, targets=images_of(source.windows).targets.numpy())

    def _last_rows(self, number: int, subject: Subject, answers: Answers) -> Rows:
        where = {"round": number, "hospital": subject.name, "split": subject.split}
        named = zip(images_of(subject.cases).cases, answers.right, strict=True)
        return {
            "cases": [{**where, "case": c.name, "metric": self.headline, "value": float(right)} for c, right in named],
            "confusion": self._confusion_rows(number, subject.name, subject.split, answers),
        }

    def _confusion_rows(self, number: int, hospital: str | None, split: str, answers: Answers) -> list[dict[str, Any]]:
        """One row for each pair of classes that occurs."""
        counts: Confusion = confusion(answers.probabilities, answers.targets, len(self.classes))
        where = {"round": number, "hospital": hospital, "split": split}
        return [
            {**where, "target": self.classes[true], "predicted": self.classes[said], "count": int(counts[true, said])}
            for true, said in np.argwhere(counts)
        ]


def images_of(cases: Scored | Examples) -> HospitalImages:
    """Cases or examples that are images. A run has one kind: nobody asks this of volumes."""
    assert isinstance(cases, HospitalImages)
    return cases


def _together(parts: Sequence[Answers]) -> Answers:
    return Answers(
        probabilities=np.concatenate([part.probabilities for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
    )


def keep(keepsakes: Keepsakes, hospital: str, images: HospitalImages, answers: Answers, classes: Sequence[str]) -> None:
    """Writes ``predictions/<hospital>.csv`` and ``overlays/<hospital>.npz``, as far as they are wanted."""
    if keepsakes.predictions:
        path = keepsakes.folder / "predictions" / f"{file_stem(hospital)}.csv"
        write_text(path, predictions_csv([case.name for case in images.cases], answers, classes))
    if keepsakes.overlays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **pictures(images, answers, classes))
        write_bytes(keepsakes.folder / "overlays" / f"{file_stem(hospital)}.npz", buffer.getvalue())


def predictions_csv(names: Sequence[str], answers: Answers, classes: Sequence[str]) -> str:
    """A line per image: its name, the true and the predicted class, and ``probability/<class>`` of every class.

    Probabilities have as many digits as tell them from their neighbours in float32.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "target", "predicted", *(f"probability/{name}" for name in classes)])
    for name, true, said, row in zip(names, answers.targets, answers.predicted, answers.probabilities, strict=True):
        writer.writerow([name, classes[true], classes[said], *(f"{value:.9g}" for value in row)])
    return text.getvalue()


def pictures(images: HospitalImages, answers: Answers, classes: Sequence[str]) -> dict[str, Any]:
    """The images that the model was most sure of: those it got wrong, then those it got right.

    Sure is who gives the predicted class a high probability; of equals the first comes first.

    Args:
        images: N images.
        answers: What was said of them.
        classes: Names of the C classes.

    Returns:
        ``image`` (M, S, S, 3) uint8, ``case``, ``truth`` and ``prediction`` (M,) as names, ``probability`` (M,) of the
        prediction and ``right`` (M,); M is at most twice :data:`PICTURES`.
    """
    sure = answers.probabilities.max(axis=1)
    order = np.argsort(-sure, kind="stable")
    right = answers.right[order]
    chosen = np.concatenate([order[~right][:PICTURES], order[right][:PICTURES]])
    pixels, _ = images.gather(torch.from_numpy(chosen), "cpu")  # (M, 1, 3, S, S)
    names = np.array(classes)
    return {
        "image": (255 * pixels[:, 0]).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(),
        "case": np.array([images.cases[place].name for place in chosen]),
        "truth": names[answers.targets[chosen]],
        "prediction": names[answers.predicted[chosen]],
        "probability": sure[chosen],
        "right": answers.right[chosen],
    }
