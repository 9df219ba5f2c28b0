"""Augmentation of training windows: what is drawn and how it is applied are two functions.

Parameters are drawn on the CPU for a whole epoch, one row per window in window order, so that what a window gets
depends on neither its batch nor the device. They are applied to a batch in one call on any device, the same draw for
all slices of a window. Rotation, scaling, quarter turns and flips become one affine map: an image is resampled once.

To add a transformation: draw its columns in :meth:`Augment.sample` *after* the others (so that theirs do not shift),
and compose it into the affine map or give :class:`AugmentParameters` a field and :func:`apply` a line.

Source: ranges and probabilities of FLAP-SAM (arXiv 2407.21739), as far as its list goes here.

Legend: n windows of an epoch, b windows of a batch, D slices, H = W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad


@dataclass(frozen=True, kw_only=True)
class AugmentParameters:
    """What was drawn; one row per window.

    Args:
        affine: (n, 2, 2) float32 map from output to input position, in (column, row) order, origin at the image centre.
        gamma: (n,) float32 exponent of the intensities; 1 leaves them alone.
    """

    affine: Tensor
    gamma: Tensor

    def select(self, index: Tensor) -> AugmentParameters:
        """The rows of the windows ``index`` (b,), for one batch."""
        return AugmentParameters(affine=self.affine[index], gamma=self.gamma[index])

    def to(self, device: torch.device | str) -> AugmentParameters:
        """The same parameters on a device."""
        return AugmentParameters(affine=self.affine.to(device), gamma=self.gamma.to(device))


class Augmentation(Protocol):
    """A plug-in of the table :data:`AUGMENTS`."""

    def sample(self, n_windows: int, rng: torch.Generator) -> AugmentParameters:
        """One row of parameters per window of the epoch, on the CPU."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoAugment:
    """Windows as they are."""

    def sample(self, n_windows: int, rng: torch.Generator) -> AugmentParameters:
        """Neutral parameters; draws nothing."""
        return AugmentParameters(affine=torch.eye(2).repeat(n_windows, 1, 1), gamma=torch.ones(n_windows))


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Quarter turn + flip, rotation, scaling and gamma, each drawn independently with its probability.

    Args:
        rot90_flip_p: Probability of a quarter turn (0-3 times) followed by a flip of rows or columns, as in SAMed.
        rotation_p: Probability of a rotation.
        rotation_degrees: Its angle is uniform in [-rotation_degrees, rotation_degrees).
        scale_p: Probability of scaling.
        scale: Range of the factor; above 1 enlarges.
        gamma_p: Probability of a gamma curve.
        gamma: Range of the exponent.
    """

    rot90_flip_p: float = 0.5
    rotation_p: float = 0.5
    rotation_degrees: float = 15.0
    scale_p: float = 0.5
    scale: tuple[float, float] = (0.8, 1.2)
    gamma_p: float = 0.5
    gamma: tuple[float, float] = (0.5, 3.5)

    def __post_init__(self) -> None:
        problems = [
            f"{name}: expected a probability between 0 and 1, got {getattr(self, name)!r}"
            for name in ("rot90_flip_p", "rotation_p", "scale_p", "gamma_p")
            if not 0 <= getattr(self, name) <= 1
        ]
        if not 0 <= self.rotation_degrees <= 180:
            problems.append(f"rotation_degrees: expected 0 to 180, got {self.rotation_degrees!r}")
        for name in ("scale", "gamma"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
                problems.append(f"{name}: expected two positive numbers, the smaller first, got {bounds!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def sample(self, n_windows: int, rng: torch.Generator) -> AugmentParameters:
        """Draws one row per window: quarter turn and flip, rotation, scale, gamma.

        The image is first turned and flipped, then rotated, then scaled. ``affine`` goes from output to input, so that
        it is the product of the inverse maps in this order.
        """
        turn_flip = _turn_flip(torch.rand(n_windows, 3, generator=rng), self.rot90_flip_p)
        degrees = _maybe(n_windows, self.rotation_p, (-self.rotation_degrees, self.rotation_degrees), 0.0, rng)
        scale = _maybe(n_windows, self.scale_p, self.scale, 1.0, rng)
        gamma = _maybe(n_windows, self.gamma_p, self.gamma, 1.0, rng)
        return AugmentParameters(affine=turn_flip @ _rotation(degrees) / scale.view(-1, 1, 1), gamma=gamma)


def _maybe(n: int, p: float, bounds: tuple[float, float], neutral: float, rng: torch.Generator) -> Tensor:
    """(n,) values uniform in ``bounds`` with probability ``p``, else ``neutral``."""
    coin, where = torch.rand(n, 2, generator=rng).unbind(1)
    return torch.where(coin < p, bounds[0] + (bounds[1] - bounds[0]) * where, neutral)


def _rotation(degrees: Tensor) -> Tensor:
    """(n, 2, 2) maps from output to input for a counter-clockwise rotation (as displayed, rows downwards)."""
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def _turn_flip(uniform: Tensor, p: float) -> Tensor:
    """(n, 2, 2) exact maps from output to input: k counter-clockwise quarter turns, then a flip of rows or columns."""
    coin, turn, axis = uniform.unbind(1)
    quarter = torch.tensor([[1.0, 0, 0, 1], [0, -1, 1, 0], [-1, 0, 0, -1], [0, 1, -1, 0]]).view(4, 2, 2)
    flip = torch.tensor([[1.0, 0, 0, -1], [-1, 0, 0, 1]]).view(2, 2, 2)  # rows: y -> -y, columns: x -> -x
    both = quarter[(turn * 4).long().clamp(max=3)] @ flip[(axis * 2).long().clamp(max=1)]
    return torch.where((coin < p).view(-1, 1, 1), both, torch.eye(2))


def apply(images: Tensor, labels: Tensor, parameters: AugmentParameters) -> tuple[Tensor, Tensor]:
    """Applies the draws to a batch; windows for which nothing was drawn come out bit-identical.

    Images are sampled bilinearly with zeros outside, then raised to ``gamma``; labels take the nearest pixel, 0
    outside. Nothing waits for the device.

    Args:
        images: (b, D, H, H) floating point in [0, 1].
        labels: (b, D, H, H) uint8.
        parameters: b rows.

    Returns:
        Images and labels of the same shapes and dtypes.
    """
    if images.shape[-1] != images.shape[-2] or len(parameters.gamma) != len(images):
        raise ValueError(
            f"augment: expected square images and as many parameter rows as images, "
            f"got images {tuple(images.shape)} and {len(parameters.gamma)} rows"
        )
    affine = parameters.affine.to(images, non_blocking=images.is_cuda)
    gamma = parameters.gamma.to(images, non_blocking=images.is_cuda)
    moved = (affine != torch.eye(2, device=affine.device, dtype=affine.dtype)).any(2).any(1).view(-1, 1, 1, 1)
    grid = affine_grid(pad(affine, (0, 1)), list(images.shape), align_corners=False)  # (b, H, H, 2)
    warped = grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    nearest = grid_sample(labels.to(images), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    images, labels = torch.where(moved, warped, images), torch.where(moved, nearest.to(labels.dtype), labels)
    exponent = gamma.view(-1, 1, 1, 1)
    return torch.where(exponent == 1, images, images**exponent), labels


AUGMENTS: Mapping[str, type] = {"standard": Augment, "none": NoAugment}
