"""Cross-entropy and focal loss: by hand, as PyTorch and MONAI have them, and mapped over hospitals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses.focal_loss import FocalLoss
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from wardround.clients.class_losses import CrossEntropy, Focal

WEIGHTS = (0.5, 2.0, 1.0, 3.0)
LOSSES = [
    CrossEntropy(),
    CrossEntropy(class_weights=WEIGHTS),
    CrossEntropy(label_smoothing=0.2),
    CrossEntropy(label_smoothing=0.2, class_weights=WEIGHTS),
    Focal(),
    Focal(gamma=0.5, class_weights=WEIGHTS),
]
Loss = CrossEntropy | Focal


def batch(*sizes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (..., 4) and classes (...) as batches hold them: uint8."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, sizes, generator=draw, dtype=torch.uint8)
    return torch.randn(*sizes, 4, generator=draw, dtype=torch.float64), labels


# ---- values ----------------------------------------------------------------------------------------------------------


def logits_of(*probabilities: tuple[float, ...]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_cross_entropy_by_hand() -> None:
    """p_t = 0.5 and 0.2 with weights 1 and 3: (ln 2 + 3 ln 5) / 4."""
    logits, labels = logits_of((0.5, 0.5), (0.8, 0.2)), torch.tensor([0, 1])
    assert CrossEntropy(class_weights=(1.0, 3.0))(logits, labels).item() == pytest.approx(
        (math.log(2) + 3 * math.log(5)) / 4
    )


def test_focal_by_hand() -> None:
    """Gamma 2: (1 - 0.5)^2 ln 2 and (1 - 0.2)^2 ln 5; their mean, and with weights 1 and 3 over their sum 4."""
    logits, labels = logits_of((0.5, 0.5), (0.8, 0.2)), torch.tensor([0, 1])
    first, second = 0.25 * math.log(2), 0.64 * math.log(5)
    assert Focal()(logits, labels).item() == pytest.approx((first + second) / 2)
    assert Focal(class_weights=(1.0, 3.0))(logits, labels).item() == pytest.approx((first + 3 * second) / 4)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", ["none", WEIGHTS])
def test_cross_entropy_is_torchs(label_smoothing: float, weights: Any) -> None:
    logits, labels = batch(7)
    weight = None if weights == "none" else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, labels.long(), weight=weight, label_smoothing=label_smoothing)
    got = CrossEntropy(label_smoothing=label_smoothing, class_weights=weights)(logits, labels)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_focal_is_monais(gamma: float) -> None:
    logits, labels = batch(9)
    monai = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=gamma, reduction="none")
    expected = monai(logits[..., None], labels.long()[:, None, None]).double().sum() / len(labels)
    torch.testing.assert_close(Focal(gamma=gamma)(logits, labels), expected, rtol=1e-6, atol=1e-7)


def test_focal_without_gamma_is_cross_entropy() -> None:
    logits, labels = batch(7)
    left, right = Focal(gamma=0.0, class_weights=WEIGHTS), CrossEntropy(class_weights=WEIGHTS)
    torch.testing.assert_close(left(logits, labels), right(logits, labels), rtol=1e-12, atol=1e-12)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients_are_right(loss: Loss) -> None:
    logits, labels = batch(5)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_the_gradient_is_finite_where_a_prediction_is_certain(gamma: float) -> None:
    """p_t = 1 in float32: the power of 1 - p_t has no derivative there for gamma below 1."""
    logits = torch.tensor([[200.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = Focal(gamma=gamma)(logits, torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0].tolist() == [0.0, 0.0]
    assert gradient[1].isfinite().all()
    assert gradient[1, 1] > 0


# ---- in training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_mapped_over_hospitals_each_has_its_own(loss: Loss) -> None:
    logits, labels = batch(3, 6)
    logits.requires_grad_()
    together = torch.vmap(loss)(logits, labels)
    alone = torch.stack([loss(*own) for own in zip(logits, labels, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    (of_together,), (of_alone,) = (torch.autograd.grad(losses.sum(), logits) for losses in (together, alone))
    torch.testing.assert_close(of_together, of_alone, rtol=1e-12, atol=1e-12)
    assert len(set(alone.tolist())) == 3


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_half_precision_is_summed_in_single(loss: Loss) -> None:
    logits, labels = batch(6)
    half = logits.bfloat16()
    assert loss(half, labels).dtype == torch.float32
    assert loss(half, labels).item() == loss(half.float(), labels).item()


def test_labels_of_images_need_no_resizing() -> None:
    logits, labels = batch(6)
    assert CrossEntropy().at(labels, logits) is labels
    assert (CrossEntropy.task, Focal.task) == ("classification", "classification")


# ---- balanced weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CrossEntropy, Focal])
def test_balanced_weights_by_hand_and_as_scikit_learn(kind: type[Loss]) -> None:
    """60 images of 3 classes, 10, 20 and 30: 60 / (3 n_c) = 2, 1, 2/3. The other settings stay."""
    fitted = kind(class_weights="balanced").fitted([10, 20, 30])
    assert fitted.class_weights == pytest.approx((2, 1, 2 / 3))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.repeat(np.arange(3), [10, 20, 30]))
    assert fitted.class_weights == pytest.approx(tuple(expected))
    assert Focal(gamma=3.0, class_weights="balanced").fitted([1, 1]).gamma == 3.0


def test_every_class_counts_alike_in_a_balanced_loss() -> None:
    """Over the images it was fitted to, the loss is the mean over classes of the mean of each."""
    labels = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    logits = batch(7)[0]
    losses = F.cross_entropy(logits, labels, reduction="none")
    expected = torch.stack([losses[labels == number].mean() for number in range(4)]).mean()
    fitted = CrossEntropy(class_weights="balanced").fitted([3, 1, 2, 1])
    torch.testing.assert_close(fitted(logits, labels), expected, rtol=1e-12, atol=1e-12)


def test_a_class_without_an_image_has_the_smallest_weight() -> None:
    """10 images, 2 and 8 of 3 classes: 10/6, 10/24, and 10/24. A batch of such a class alone still has a mean."""
    fitted = CrossEntropy(class_weights="balanced").fitted([2, 8, 0])
    assert fitted.class_weights == pytest.approx((10 / 6, 10 / 24, 10 / 24))
    assert fitted(torch.zeros(2, 3), torch.tensor([2, 2])).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("weights", ["none", (1.0, 2.0)])
def test_other_weights_stay_as_they_are(weights: Any) -> None:
    loss = CrossEntropy(class_weights=weights)
    assert loss.fitted([5, 7]) == loss


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(label_smoothing=1.0), r"label_smoothing: expected a number in \[0, 1\), got 1.0"),
        (lambda: Focal(gamma=-1.0), "gamma: expected a finite number of at least 0, got -1.0"),
        (lambda: Focal(class_weights="equal"), "class_weights: expected none, balanced or a list of numbers, got"),
        (lambda: Focal(class_weights=(1.0, 0.0)), r"a finite number above 0 for each class, got \(1.0, 0.0\)"),
        (lambda: CrossEntropy(class_weights=()), r"a finite number above 0 for each class, got \(\)"),
        (lambda: CrossEntropy(class_weights=(1.0,)).fitted([1, 2]), "one for each of 2 classes, got 1"),
        (lambda: CrossEntropy(class_weights=(1.0,))(*batch(3)), "one for each of 4 classes, got 1"),
        (lambda: Focal(class_weights="balanced")(*batch(3)), r"balanced.*call fitted\(counts\) first"),
        (lambda: Focal(class_weights="balanced").fitted([0, 0]), r"expected training images, got \[0, 0\]"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
