"""The bare loop: what training the same batches costs without a federation around it.

Written by hand, as one writes it for one model: load the start values, make an optimizer, and for every batch forward,
loss, backward, step. No download, no update, no check, no aggregation: every round starts from the initial values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from ...clients.losses import segmentation_loss
from ...clients.sam import SamNet
from ..runtime import Runtime
from .workload import Materials, Workload, materials


class Bare:
    """The loop with its one model."""

    def __init__(self, made: Materials) -> None:
        self.made = made
        model, layout = made.model()
        self.model = model.to(made.device, made.dtype)
        named = dict(self.model.named_parameters())
        self.trained = [named[name].requires_grad_(True) for name in layout.names]
        self.start = [value.detach().clone() for value in self.trained]
        self.number = 0

    @property
    def num_trained(self) -> int:
        """Trained numbers."""
        return sum(value.numel() for value in self.trained)

    def round(self) -> float:
        """Trains every hospital from the initial values; the mean training loss."""
        self.number += 1
        losses = [loss for name in self.made.windows for loss in self.train(name)]
        return float(torch.stack(losses).double().mean())

    def train(self, hospital: str) -> list[torch.Tensor]:
        """The losses of one hospital's steps, on the device."""
        with torch.no_grad():
            for value, start in zip(self.trained, self.start, strict=True):
                value.copy_(start)
        return descend(self.made, self.model, self.trained, self.made.batches(hospital, self.number))

    def idle(self) -> None:
        """Nothing: there is no engine."""

    def aggregation_s(self) -> float | None:
        """None."""
        return None

    def facts(self) -> Mapping[str, str | float]:
        """None of its own."""
        return {}

    def close(self) -> None:
        """Nothing to do."""


def descend(
    made: Materials,
    model: SamNet,
    trained: Sequence[torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> list[torch.Tensor]:
    """The plain loop over batches of images and labels (b, D, H, W), with a fresh optimizer: the loss of every step."""
    optimizer, losses = made.training.optimizer.build(trained), []
    for images, labels in batches:
        with made.autocast():
            logits = model(images.flatten(0, 1)[:, None].to(made.dtype), images.shape[1])
        loss = segmentation_loss(logits, labels.flatten(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def prepare(workload: Workload, runtime: Runtime, device: torch.device) -> Bare:
    """The engine ``bare``."""
    return Bare(materials(workload, device))
