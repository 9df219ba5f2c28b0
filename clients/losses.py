"""What a loss is, and the one of FLAP-SAM; those of classification are in :mod:`.class_losses`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from torch import Tensor

from ..datasets.contract import Task


class Loss(Protocol):
    """A training loss: a frozen dataclass, a function of logits and labels alone."""

    task: ClassVar[Task]
    """What it is for."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over the images of a batch.

        Args:
            logits: (B, C+1, h, w), or (B, C) where images have a class each.
            labels: (B, H, W), or (B,).

        Returns:
            A scalar.
        """
        ...

    def at(self, labels: Tensor, logits: Tensor) -> Tensor:
        """The labels as they are compared with logits of this shape. After it a call can be mapped over hospitals."""
        ...

    def fitted(self, counts: Sequence[int]) -> Self:
        """The loss for a federation with so many training images of each class; itself where that does not matter."""
        ...


@cache
def _dice() -> DiceLoss:
    return DiceLoss(softmax=True, batch=True, squared_pred=True, smooth_nr=1e-5, smooth_dr=1e-5)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``0.2 CE + 0.8 Dice`` over C+1 softmax channels, background included.

    Dice is computed over the whole batch, with squared denominators: ``1 - 2 sum(p g) / (sum p^2 + sum g^2)`` per
    class, averaged over classes. Computed in float32 or better whatever the dtype of the logits.

    Args:
        logits: (B, C+1, h, w) mask logits.
        labels: (B, H, W) integers 0..C; resized (nearest) to the logits where the sizes differ.

    Returns:
        A scalar.

    Source: FLAP-SAM (arXiv 2407.21739), section 3, and its released code.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    target = at_size(labels, logits.shape[-2:]).long()  # (B, h, w)
    classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
    dice: Tensor = _dice()(logits, (target[:, None] == classes).to(logits.dtype))
    return 0.2 * F.cross_entropy(logits, target) + 0.8 * dice


def at_size(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Labels (B, H, W) at another size (B, h, w), each that of the nearest pixel."""
    if labels.shape[-2:] == size:
        return labels
    resized = F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0]
    return resized.to(labels.dtype)


@dataclass(frozen=True, kw_only=True)
class SegmentationLoss:
    """The loss of FLAP-SAM: :func:`segmentation_loss`."""

    task: ClassVar[Task] = "segmentation"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :func:`segmentation_loss`."""
        return segmentation_loss(logits, labels)

    def at(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Labels (B, H, W) at the resolution of logits (..., h, w)."""
        return at_size(labels, logits.shape[-2:])

    def fitted(self, counts: Sequence[int]) -> Self:
        """Itself."""
        return self
