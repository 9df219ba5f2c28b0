"""Training losses of a classifier: cross-entropy and focal loss, with weights per class.

Legend: B images, C classes, N training images of the federation, n_c of them of class c, ``t`` the true class of an
image, ``p`` its probability, ``w`` its weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from ..datasets.contract import Task

ClassWeights = Literal["none", "balanced"] | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class _Weighted:
    """What both losses do about classes that are rare.

    Args:
        class_weights: ``none``, ``balanced`` (``w_c = N / (C n_c)``, every class counts alike) or one weight above 0
            per class, in the order of the classes.
    """

    task: ClassVar[Task] = "classification"

    class_weights: ClassWeights = "none"

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self) -> list[str]:
        given = self.class_weights
        if isinstance(given, str):
            known = given in ("none", "balanced")
            return [] if known else [f"class_weights: expected none, balanced or a list of numbers, got {given!r}"]
        if not given or not all(math.isfinite(weight) and weight > 0 for weight in given):
            return [f"class_weights: expected a finite number above 0 for each class, got {given!r}"]
        return []

    def fitted(self, counts: Sequence[int]) -> Self:
        """The same loss, with the weights that ``balanced`` comes to in a federation.

        ``w_c = N / (C n_c)``, as scikit-learn's ``compute_class_weight``. A class without an image, of which that says
        nothing, gets the smallest weight of the others: with 0 a batch of images that an attack relabelled as that
        class would have no mean, and label smoothing spreads over all classes. The other settings stay as they are.

        Args:
            counts: Training images of the whole federation per class, (C,).

        Raises:
            ValueError: no class has an image, or there is not one explicit weight per class.
        """
        if self.class_weights == "none":
            return self
        if self.class_weights != "balanced":
            _check_length(self.class_weights, len(counts))
            return self
        total = sum(counts)
        if total < 1:
            raise ValueError(f"loss.class_weights: balanced: expected training images, got {list(counts)!r} per class")
        balanced = [total / (len(counts) * count) if count else math.inf for count in counts]
        smallest = min(balanced)
        weights = tuple(weight if math.isfinite(weight) else smallest for weight in balanced)
        return replace(self, class_weights=weights)

    def at(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Labels as the loss takes them: a class per image is that at every resolution."""
        return labels

    def _weights(self, logits: Tensor) -> Tensor:
        """(C,) weights where the logits are, all 1 for ``none``.

        Raises:
            ValueError: ``balanced`` was not fitted, or there is not one weight per class.
        """
        if self.class_weights == "balanced":
            raise ValueError(
                "loss.class_weights: balanced: expected a loss that knows the images of the federation; call "
                "fitted(counts) first, or give a weight per class"
            )
        num_classes = logits.shape[-1]
        weights = (1.0,) * num_classes if isinstance(self.class_weights, str) else self.class_weights
        _check_length(weights, num_classes)
        return _on(weights, logits.dtype, logits.device)


def _check_length(weights: Sequence[float], num_classes: int) -> None:
    if len(weights) != num_classes:
        raise ValueError(f"loss.class_weights: expected one for each of {num_classes} classes, got {len(weights)}")


@cache
def _on(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the device, sent there once: a transfer in every step would make a GPU wait."""
    with torch.inference_mode(False):
        return torch.tensor(weights, dtype=dtype, device=device)


def _log_probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log p (B, C), that of the true class (B,), and the true class (B,) as int64; in float32 or better."""
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    log_p, target = wide.log_softmax(dim=-1), labels.long()
    return log_p, log_p.gather(-1, target[:, None])[:, 0], target


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(_Weighted):
    """``-log p_t``, weighted by class: ``sum_i w_i l_i / sum_i w_i``. The loss plug-in ``cross_entropy``.

    Args:
        class_weights: ``none``, ``balanced`` (``w_c = N / (C n_c)``, every class counts alike) or one weight above 0
            per class, in the order of the classes.
        label_smoothing: Share s of the target that is spread over all classes, in [0, 1): the target is
            ``(1 - s) onehot(t) + s / C``.

    Source: label smoothing as in Szegedy et al. 2016 (arXiv 1512.00567), section 7, in PyTorch's form for weighted
    classes.
    """

    label_smoothing: float = 0.0

    def _problems(self) -> list[str]:
        wrong = not 0 <= self.label_smoothing < 1
        found = [f"label_smoothing: expected a number in [0, 1), got {self.label_smoothing!r}"] if wrong else []
        return [*super()._problems(), *found]

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted mean over a batch, in float32 or better.

        Args:
            logits: (B, C).
            labels: (B,) integers 0..C-1.

        Returns:
            A scalar.

        Raises:
            ValueError: ``balanced`` was not fitted, or there is not one weight per class.
        """
        log_p, own_log_p, target = _log_probabilities(logits, labels)
        weights, s = self._weights(log_p), self.label_smoothing
        own = weights[target]
        # written out: torch's own cannot be mapped over hospitals where weights and smoothing come together
        losses = -(1 - s) * own * own_log_p - s * (weights * log_p).mean(dim=-1)
        return losses.sum() / own.sum()


@dataclass(frozen=True, kw_only=True)
class Focal(_Weighted):
    """``-(1 - p_t)^gamma log p_t``, weighted by class: ``sum_i w_i l_i / sum_i w_i``. The loss plug-in ``focal``.

    Images that are right already count less, the more so the larger gamma; with 0 it is the cross-entropy.

    Args:
        class_weights: ``none``, ``balanced`` (``w_c = N / (C n_c)``, every class counts alike) or one weight above 0
            per class, in the order of the classes; the paper's alpha_t.
        gamma: How much less, >= 0.

    Source: Lin et al. 2017 (arXiv 1708.02002), equations 4 and 5, where gamma is 2.
    Differs from the paper in the softmax over C classes in place of C sigmoids, and in the mean: it is over the weights
    of the images, as for the cross-entropy, not over the anchors of objects.
    """

    gamma: float = 2.0

    def _problems(self) -> list[str]:
        wrong = not (math.isfinite(self.gamma) and self.gamma >= 0)
        found = [f"gamma: expected a finite number of at least 0, got {self.gamma!r}"] if wrong else []
        return [*super()._problems(), *found]

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted mean over a batch, in float32 or better.

        Args:
            logits: (B, C).
            labels: (B,) integers 0..C-1.

        Returns:
            A scalar.

        Raises:
            ValueError: ``balanced`` was not fitted, or there is not one weight per class.
        """
        log_p, own_log_p, target = _log_probabilities(logits, labels)
        own = self._weights(log_p)[target]
        # 1 - p without cancellation; above 0, because the power has no gradient at 0 where gamma is below 1
        missing = (-torch.expm1(own_log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        losses = -own * missing**self.gamma * own_log_p
        return losses.sum() / own.sum()
