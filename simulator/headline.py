"""What a run is judged by: Dice of volumes where it segments, accuracy of images where it classifies.

Everything that reads results speaks of the run's :class:`Headline`; ``task`` in the manifest says which one it is.
Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Task = Literal["segmentation", "classification"]

HIGHER, LOWER = 1, -1
"""Which values of a score are better."""

POOLED_PREFIX = "pooled/"
"""Before the names of scores that are computed once over the cases of all hospitals together."""


@dataclass(frozen=True, kw_only=True)
class OtherScore:
    """A score beside the headline.

    Args:
        key: The metric.
        word: Its name in tables.
        per_class: Whether the rows hold one value per class (``<key>/<class>``), and the score is their mean.
        better: :data:`HIGHER` or :data:`LOWER`: which values are better.
        digits: After the point, in tables of hospitals.
        column: Its name where there is little room; "": ``word``.
        undefined_key: In files, the name of the number of undefined values that it leaves out; "": it has none.
    """

    key: str
    word: str
    per_class: bool
    better: int = HIGHER
    digits: int = 3
    column: str = ""
    undefined_key: str = ""

    @property
    def short(self) -> str:
        """Its name in tables with many columns."""
        return self.column or self.word


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The metric that runs of a task are compared by.

    Args:
        task: ``segmentation`` or ``classification``.
        key: The metric.
        word: Its name at the head of columns and axes.
        word_inside: Its name inside a sentence.
        case: What a case is called.
        cases: The same of several.
        examples: What a hospital trains on.
        class_key: The metric that has one value per class, ``<class_key>/<class>``.
        class_word: Its name in front of that of a class.
        loss: The training loss of a run that names none.
        others: The scores beside it.
    """

    task: Task
    key: str
    word: str
    word_inside: str
    case: str
    cases: str
    examples: str
    class_key: str
    class_word: str
    loss: str
    others: tuple[OtherScore, ...]

    @property
    def pools(self) -> bool:
        """Whether scores are also computed over the cases of all hospitals together."""
        return self.task == "classification"

    def pooled_key(self, metric: str) -> str:
        """The metric over the cases of all hospitals together."""
        return f"{POOLED_PREFIX}{metric}"


SEGMENTATION = Headline(
    task="segmentation",
    key="dice",
    word="Dice",
    word_inside="Dice",
    case="volume",
    cases="volumes",
    examples="windows",
    class_key="dice",
    class_word="Dice",
    loss="segmentation",
    others=(
        OtherScore(
            key="hd95_mm", word="HD95 mm", per_class=True, better=LOWER, digits=2, undefined_key="hd95_undefined"
        ),
        OtherScore(
            key="surface_dice",
            word="surface Dice",
            per_class=True,
            column="surface",
            undefined_key="surface_undefined",
        ),
    ),
)
"""Dice of volumes, with the distances of surfaces."""

CLASSIFICATION = Headline(
    task="classification",
    key="accuracy",
    word="Accuracy",
    word_inside="accuracy",
    case="image",
    cases="images",
    examples="images",
    class_key="recall",
    class_word="recall",
    loss="cross_entropy",
    others=(
        OtherScore(key="balanced_accuracy", word="balanced accuracy", per_class=False, column="balanced"),
        OtherScore(key="macro_f1", word="macro-F1", per_class=False),
        OtherScore(key="auroc", word="AUROC", per_class=False),
    ),
)
"""Accuracy of images, with scores that count all classes alike."""

HEADLINES: Mapping[str, Headline] = {headline.task: headline for headline in (SEGMENTATION, CLASSIFICATION)}
"""The headline of every task."""


def headline_of(manifest: Mapping[str, Any]) -> Headline:
    """The headline of a run; segmentation where its manifest names no task.

    Args:
        manifest: What its ``manifest.json`` holds.

    Raises:
        ValueError: an unknown task.
    """
    task = manifest.get("task") or SEGMENTATION.task
    if task not in HEADLINES:
        raise ValueError(
            f"task: expected {' or '.join(HEADLINES)} in the manifest, got {task!r}; was the run made by a newer "
            "version of the program?"
        )
    return HEADLINES[task]


def word_of(key: str) -> str:
    """The word of a headline by its metric.

    Example:
        >>> word_of("dice")
        'Dice'
    """
    return next(headline.word for headline in HEADLINES.values() if headline.key == key)
