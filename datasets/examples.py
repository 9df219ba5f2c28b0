"""What batches are cut from: the windows or the images of one hospital, counted through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor


class Examples(Protocol):
    """N examples of one hospital, to train on or to be scored.

    They are :class:`~wardround.datasets.windows.HospitalWindows` or :class:`~wardround.datasets.images.HospitalImages`.

    Attributes:
        spans: Per part that is kept together (a volume, a run of images), the range of its examples.
    """

    spans: tuple[range, ...]

    def __len__(self) -> int:
        """N."""
        ...

    @property
    def depth(self) -> int:
        """D, slices of an example; 1 for images."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they are."""
        ...

    def gather(self, index: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """The examples of these numbers.

        Args:
            index: (b,) int64 in 0..N-1, on the CPU.
            device: Where to put them; None: where they are.

        Returns:
            Windows (b, D, H, W) and labels (b, D, H, W), or images (b, 1, 3, H, W) and classes (b, 1). Float32 in
            [0, 1] and uint8.
        """
        ...

    def volume_keys(self) -> list[str]:
        """SHA-256, per part of ``spans``, of all that decides what :meth:`gather` makes of its examples."""
        ...

    def relabelled(self, labels: Sequence[int]) -> Self:
        """The same examples with other labels, which are changed when an example is read."""
        ...
