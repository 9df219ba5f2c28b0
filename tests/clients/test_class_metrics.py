"""Scores of class probabilities: by hand, and as scikit-learn has them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from wardround.clients.class_metrics import (
    accuracy,
    auroc,
    balanced_accuracy,
    class_scores,
    confusion,
    macro_f1,
    recall,
)

THREE = ("a", "b", "c")


def sure_of(predicted: list[int], num_classes: int = 3) -> np.ndarray:
    """Probabilities 1 and 0."""
    return np.eye(num_classes)[predicted]


def drawn(seed: int, images: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know something of the truth; every class occurs."""
    draw = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(num_classes), draw.integers(0, num_classes, images - num_classes)])
    logits = draw.normal(size=(images, num_classes)) + 1.2 * np.eye(num_classes)[targets]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), targets


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_six_images_of_three_classes_by_hand() -> None:
    """True a a a b b c, predicted a a b b c c.

    n = [[2, 1, 0], [0, 1, 1], [0, 0, 1]]: accuracy 4/6; recalls 2/3, 1/2, 1, mean 13/18;
    F1: a 2*2/(3+2) = 4/5, b 2/(2+2) = 1/2, c 2/(1+2) = 2/3, mean 59/90.
    """
    targets = np.array([0, 0, 0, 1, 1, 2])
    scores = class_scores(sure_of([0, 0, 1, 1, 2, 2]), targets, THREE)
    assert confusion(sure_of([0, 0, 1, 1, 2, 2]), targets, 3).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert list(scores) == ["accuracy", "balanced_accuracy", "macro_f1", "auroc", "recall/a", "recall/b", "recall/c"]
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["balanced_accuracy"] == pytest.approx(13 / 18)
    assert scores["macro_f1"] == pytest.approx(59 / 90)
    assert [scores[f"recall/{name}"] for name in THREE] == pytest.approx([2 / 3, 1 / 2, 1])


def test_the_area_under_the_curve_of_class_1_by_hand() -> None:
    """Two positives 0.8, 0.4 and three negatives 0.6, 0.4, 0.1: of 6 pairs 4 in order, one tie: 4.5 / 6."""
    of_one = np.array([0.8, 0.4, 0.6, 0.4, 0.1])
    assert auroc(np.stack([1 - of_one, of_one], axis=1), np.array([1, 1, 0, 0, 0])) == pytest.approx(0.75)


def test_one_against_the_rest_by_hand() -> None:
    """Areas 3/4, 1 and 1.

    a: its 0.7, 0.2 over the others' 0.3, 0.1 in 3 of 4 pairs; b: its 0.6 over 0.2, 0.5, 0.4 in all; c: its 0.5 over
    0.1, 0.3, 0.1 in all.
    """
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.3, 0.6, 0.1], [0.1, 0.4, 0.5]])
    assert auroc(probabilities, np.array([0, 0, 1, 2])) == pytest.approx((3 / 4 + 1 + 1) / 3)


def test_of_equal_probabilities_the_first_class_is_predicted() -> None:
    counts = confusion(np.full((2, 3), 1 / 3), np.array([0, 2]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


# ---- what does not occur ---------------------------------------------------------------------------------------------


def test_a_class_without_an_image_is_undefined_and_counts_in_no_mean() -> None:
    """True a a b, predicted a b b of a, b, c: recalls 1/2, 1; F1 2/3, 2/3; of c nothing is known."""
    counts = confusion(sure_of([0, 1, 1]), np.array([0, 0, 1]), 3)
    assert recall(counts) == [0.5, 1.0, None]
    assert balanced_accuracy(counts) == pytest.approx(0.75)
    assert macro_f1(counts) == pytest.approx(2 / 3)


def test_a_class_that_is_predicted_and_does_not_occur_costs_f1() -> None:
    """True a a, predicted a c: F1 of a 2/3, of c 0; the mean recall is that of a."""
    counts = confusion(sure_of([0, 2]), np.array([0, 0]), 3)
    assert macro_f1(counts) == pytest.approx(1 / 3)
    assert balanced_accuracy(counts) == pytest.approx(0.5)


@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_images_of_one_class_have_no_area_under_a_curve(num_classes: int) -> None:
    assert auroc(np.full((4, num_classes), 1 / num_classes), np.zeros(4, dtype=np.int64)) is None


def test_only_classes_that_occur_enter_the_mean_area() -> None:
    """Of three classes, a and b occur: both areas are those of a against b; that of c would not be defined."""
    probabilities = np.array([[0.5, 0.3, 0.2], [0.4, 0.5, 0.1], [0.6, 0.1, 0.3]])
    targets = np.array([0, 1, 0])
    expected = [metrics.roc_auc_score(targets == c, probabilities[:, c]) for c in (0, 1)]
    assert auroc(probabilities, targets) == pytest.approx(np.mean(expected)) == 1.0


# ---- as scikit-learn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "num_classes"), [(9, 2), (60, 3), (500, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed: int, images: int, num_classes: int) -> None:
    probabilities, targets = drawn(seed, images, num_classes)
    predicted = probabilities.argmax(axis=1)
    counts = confusion(probabilities, targets, num_classes)
    assert counts.tolist() == metrics.confusion_matrix(targets, predicted, labels=range(num_classes)).tolist()
    assert accuracy(counts) == pytest.approx(metrics.accuracy_score(targets, predicted), abs=1e-12)
    assert balanced_accuracy(counts) == pytest.approx(metrics.balanced_accuracy_score(targets, predicted), abs=1e-12)
    assert macro_f1(counts) == pytest.approx(metrics.f1_score(targets, predicted, average="macro"), abs=1e-12)
    assert recall(counts) == pytest.approx(metrics.recall_score(targets, predicted, average=None), abs=1e-12)
    given = probabilities[:, 1] if num_classes == 2 else probabilities
    expected = metrics.roc_auc_score(targets, given, multi_class="ovr", average="macro")
    assert auroc(probabilities, targets) == pytest.approx(expected, abs=1e-12)


def test_with_all_labels_scikit_learn_counts_classes_that_are_nowhere() -> None:
    """The documented difference: nothing of class 2 is true or predicted."""
    predicted, targets = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    counts = confusion(sure_of(list(predicted)), targets, 3)
    default = metrics.f1_score(targets, predicted, average="macro")
    every = metrics.f1_score(targets, predicted, average="macro", labels=range(3), zero_division=0)
    assert macro_f1(counts) == pytest.approx(default)
    assert every == pytest.approx(default * 2 / 3)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        (np.zeros((0, 3)), [], "expected at least one image, got none"),
        (np.zeros((2, 4)), [0, 1], r"expected the shape \(images, classes\) \(2, 3\), got \(2, 4\)"),
        (np.zeros((2, 3)), [0, 3], r"expected classes 0 to 2, got \[0, 3\]"),
        (np.zeros((2, 3)), [-1, 0], r"expected classes 0 to 2, got \[-1, 0\]"),
        (np.array([[0.5, 0.5, 0.0], [np.nan, 0.0, 1.0]]), [0, 1], r"finite.*for image 1 \(1 of 2 images\).*diverged"),
    ],
)
def test_what_cannot_be_scored_is_refused(probabilities: np.ndarray, targets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_scores(probabilities, np.array(targets, dtype=np.int64), THREE)
