"""Scores the federation after a round: every hospital's deployed model on that hospital's cases.

Hospitals in a row that are given the same model are scored in the same batches. What is asked of a model, and how its
answers are scored, is an :class:`Assessor`'s: of volumes (:mod:`.volume_assessment`) or of images
(:mod:`.image_assessment`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ..aggregators.contract import Tensors
from ..clients.batches import Source
from ..clients.evaluation import Evaluation
from ..clients.replica import Replica
from ..clients.training import Workplace
from .checkpoint import Checkpoint
from .cohort import Scored
from .federation import Federated, Rows, joined, metric_row
from .progress import Progress
from .results import UNSEEN, mean

SPLITS = ("validation", "test", UNSEEN)
"""What cases are for."""

HELD_SPLITS = ("test", UNSEEN)
"""The splits that wait where something is selected: nothing of them may be known before."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Cases that are scored together: a split of a hospital, or an outsider.

    Args:
        name: Of the hospital or the outsider.
        split: What its cases are for.
        cases: They themselves.
    """

    name: str
    split: str
    cases: Scored


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of scoring a subject.

    Args:
        subject: Which.
        summary: Its scores by metric, None where one is undefined.
        rows: Rows of other files than ``metrics.jsonl``.
        answers: What :meth:`Assessor.pooled` needs of it.
    """

    subject: Subject
    summary: Mapping[str, float | None]
    rows: Rows = field(default_factory=dict)
    answers: Any = None


@dataclass(frozen=True, kw_only=True)
class Keepsakes:
    """What the last evaluation leaves in the run directory: predictions and, for the report, a few pictures.

    Args:
        folder: The run directory.
        predictions: Write what was predicted, to ``predictions/<hospital>``.
        overlays: Write ``overlays/<hospital>.npz``; these hold pictures of patients.
    """

    folder: Path
    predictions: bool
    overlays: bool

    def wants(self, split: str) -> bool:
        """Whether anything is kept of the cases of a split."""
        return split != "validation" and (self.predictions or self.overlays)


class Assessor(Protocol):
    """What is asked of a model, and how its answers are scored."""

    @property
    def headline(self) -> str:
        """The metric that stands for a run."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        ...

    @property
    def evaluation(self) -> Evaluation:
        """When and how."""
        ...

    def source(self, cases: Scored, replica: Replica) -> Source:
        """The examples that a model is asked about."""
        ...

    def check(self, cases: Scored) -> None:
        """Raises ValueError where a file is not the one that the run began with."""
        ...

    def assess(
        self, place: Workplace, number: int, subjects: Sequence[Subject], *, final: bool, keepsakes: Keepsakes | None
    ) -> Iterator[Outcome]:
        """Scores subjects with the tensors that the replica holds, in their order.

        Args:
            place: The model.
            number: The round.
            subjects: What is scored.
            final: Whether this is the last round: scores that take longer are computed too.
            keepsakes: What to write.
        """
        ...

    def pooled(self, number: int, outcomes: Sequence[Outcome], *, final: bool) -> Rows:
        """Rows about all subjects of a split together, where that is another number than the mean over them."""
        ...

    def values(self, place: Workplace, sources: Sequence[Source]) -> Iterator[tuple[str, float | None]]:
        """Name and headline score of every case of sources, in their order."""
        ...


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
    """Rows of every hospital and of every outsider; also shows the mean test score.

    Args:
        federated: The run.
        assessor: How to score.
        checkpoint: The state to score.
        progress: Shows the result.
        final: Also scores that take longer, and that all files are still those that the run began with.
        keepsakes: What to write, for the last round.
        splits: What is scored.

    Raises:
        ValueError: in the last round, a file has changed.
    """
    rows: Rows = {"metrics": [], "cases": []}
    place, outcomes = federated.workplace, list[Outcome]()
    place.replica.set_base(checkpoint.server.base)
    for model, subjects in _by_model(federated, checkpoint, splits):
        if final:
            for subject in subjects:
                assessor.check(subject.cases)
        place.replica.load(model)
        for outcome in assessor.assess(place, checkpoint.round, subjects, final=final, keepsakes=keepsakes):
            outcomes.append(outcome)
            rows = joined(rows, {"metrics": _metric_rows(checkpoint.round, outcome)}, outcome.rows)
    scores = [one.summary[assessor.headline] for one in outcomes if one.subject.split == "test"]
    if scores:
        progress.score(mean(scores), assessor.headline)
    return joined(rows, assessor.pooled(checkpoint.round, outcomes, final=final))


def _metric_rows(number: int, outcome: Outcome) -> list[dict[str, Any]]:
    subject = outcome.subject
    return [metric_row(number, subject.name, subject.split, metric, value) for metric, value in outcome.summary.items()]


def _by_model(
    federated: Federated, checkpoint: Checkpoint, splits: Sequence[str]
) -> Iterator[tuple[Tensors, list[Subject]]]:
    """All that is scored, in order, together where the model that is deployed stays the same from one to the next."""
    model: Tensors = {}
    together: list[Subject] = []
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
) -> Iterator[tuple[Tensors, Subject]]:
    """What is scored, with the model that is deployed there."""
    deploy, server = federated.aggregator.deploy, checkpoint.server
    for name, hospital in federated.hospitals.items():
        own = {"validation": hospital.validation, "test": hospital.test}
        subjects = [
            Subject(name=name, split=split, cases=cases)
            for split, cases in own.items()
            if len(cases) and split in splits
        ]
        if subjects:
            model = deploy(server, hospital.info, checkpoint.memories[name].tensors)
            yield from ((model, subject) for subject in subjects)
    for outsider in federated.outsiders:
        if outsider.split not in splits:
            continue
        subject = Subject(name=outsider.name, split=outsider.split, cases=outsider.cases)
        yield deploy(server, None, {}), subject


def _equal(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        value is right[name] or torch.equal(value, right[name]) for name, value in left.items()
    )
