"""Scores of class probabilities, over one set of images: those of a hospital's split, or of all hospitals together.

The predicted class is the most probable one, the first of several that are equal. A class *occurs* when it is the true
class of at least one image of the set. What is not defined is None and never 0: the recall of a class that does not
occur, the AUROC where there is nothing to tell apart. Averaging over classes is unweighted, over those that are named
at each score; averaging over sets is the caller's.

Legend: N images, C classes, ``n[t, p]`` images of class t that were predicted as p.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]
Targets = NDArray[np.int64]
Confusion = NDArray[np.int64]


def class_scores(probabilities: Probabilities, targets: Targets, classes: Sequence[str]) -> dict[str, float | None]:
    """Accuracy, balanced accuracy, macro-F1, AUROC and the recall of every class, by the name of the metric.

    Args:
        probabilities: (N, C), N >= 1.
        targets: (N,) classes 0..C-1.
        classes: Names of the C classes.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``auroc`` and ``recall/<class>``.

    Raises:
        ValueError: see :func:`confusion`.
    """
    counts = confusion(probabilities, targets, len(classes))
    of_classes = zip(classes, recall(counts), strict=True)
    return {
        "accuracy": accuracy(counts),
        "balanced_accuracy": balanced_accuracy(counts),
        "macro_f1": macro_f1(counts),
        "auroc": auroc(probabilities, targets),
        **{f"recall/{name}": value for name, value in of_classes},
    }


def confusion(probabilities: Probabilities, targets: Targets, num_classes: int) -> Confusion:
    """How many images have which true class (rows) and which predicted class (columns).

    Args:
        probabilities: (N, C), N >= 1.
        targets: (N,) classes 0..C-1.
        num_classes: C.

    Returns:
        (C, C) int64.

    Raises:
        ValueError: there is no image, a shape or a class does not fit, or a probability is not finite.
    """
    _check(probabilities, targets, num_classes)
    predicted = probabilities.argmax(axis=1)
    pairs = np.bincount(targets * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64)


def accuracy(counts: Confusion) -> float:
    """``sum_c n[c, c] / N``: the share of images whose predicted class is the true one, in [0, 1]."""
    return float(counts.trace() / counts.sum())


def recall(counts: Confusion) -> list[float | None]:
    """``n[c, c] / sum_p n[c, p]`` per class: the share of its images that were found; None where it does not occur."""
    return [int(found) / int(of) if of else None for found, of in zip(counts.diagonal(), counts.sum(1), strict=True)]


def balanced_accuracy(counts: Confusion) -> float:
    """The mean recall over the classes that occur, in [0, 1].

    Differs from scikit-learn's ``balanced_accuracy_score`` in nothing: it leaves out classes that do not occur, too.
    """
    defined = [value for value in recall(counts) if value is not None]
    return float(np.mean(defined))


def macro_f1(counts: Confusion) -> float:
    """``F1_c = 2 n[c, c] / (sum_p n[c, p] + sum_t n[t, c])``, the mean over classes that occur or were predicted.

    A class that occurs and was never predicted has 0, as has one that was predicted and does not occur. Equals
    scikit-learn's ``f1_score(average="macro")`` without its ``labels``; with ``labels=range(C)`` that also counts the
    classes that are in neither, as 0, so that a hospital would lose points for diseases that it does not see.
    """
    size = counts.sum(axis=0) + counts.sum(axis=1)
    there = size > 0
    return float(np.mean(2 * counts.diagonal()[there] / size[there]))


def auroc(probabilities: Probabilities, targets: Targets) -> float | None:
    """Area under the ROC curve, in [0, 1]: how often an image of a class is given more of it than another image is.

    With two classes that of class 1. With more the mean, over the classes that occur and are not all there is, of each
    class against the rest; equals scikit-learn's ``roc_auc_score(multi_class="ovr", average="macro")`` where all
    classes occur, which refuses everything else. Equal probabilities count one half.

    Args:
        probabilities: (N, C).
        targets: (N,) classes 0..C-1.

    Returns:
        None where all images are of one class.
    """
    from sklearn.metrics import roc_auc_score

    asked = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    truths = ((number, targets == number) for number in asked)
    areas = [roc_auc_score(true, probabilities[:, number]) for number, true in truths if 0 < true.sum() < len(true)]
    return float(np.mean(areas)) if areas else None


def _check(probabilities: Probabilities, targets: Targets, num_classes: int) -> None:
    if not len(targets):
        raise ValueError("targets: expected at least one image, got none")
    if probabilities.shape != (len(targets), num_classes):
        shape = (len(targets), num_classes)
        raise ValueError(f"probabilities: expected the shape (images, classes) {shape}, got {probabilities.shape}")
    if targets.min() < 0 or targets.max() >= num_classes:
        found = sorted({int(targets.min()), int(targets.max())})
        raise ValueError(f"targets: expected classes 0 to {num_classes - 1}, got {found}")
    wrong = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"probabilities: expected finite numbers, got {probabilities[wrong[0]].tolist()!r} for image {wrong[0]} "
            f"({len(wrong)} of {len(targets)} images): the model has diverged; lower the learning rate"
        )
