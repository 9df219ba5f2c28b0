"""Evaluation per volume: every slice predicted, brought back to the native grid, scored over the whole volume.

Legend: S slices, H rows, W columns of the native grid, h, w of the logits, D slices of a window, C foreground classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.contract import Case, Volume
from ..datasets.windows import HospitalWindows, PreparedVolume, Windows
from .metrics import LabelMap, dice, hd95_mm, surface_dice
from .replica import Replica


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and how the federation is scored.

    Args:
        every: Rounds between two evaluations, >= 1; the untrained model and the last round are then scored as well.
            None: only the last round.
        batch_size: Slices per forward pass, >= 1.
        surface_tolerance_mm: Tolerance of the surface Dice of the last round, > 0.
        predictions: Save the label maps of the last round as NIfTI files.
        regions: Unions of classes that get a Dice of their own, ``dice_region/<name>``, with ``dice_regions`` their
            mean; FLamby scores Fed-KiTS19 by ``{kidney_and_tumour: [kidney, tumour], tumour: [tumour]}``.
    """

    every: int | None = None
    batch_size: int = 32
    surface_tolerance_mm: float = 1.0
    predictions: bool = True
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = []
        if self.every is not None and self.every < 1:
            problems.append(f"every: expected at least 1, got {self.every!r}")
        if self.batch_size < 1:
            problems.append(f"batch_size: expected at least 1, got {self.batch_size!r}")
        if not self.surface_tolerance_mm > 0:
            problems.append(f"surface_tolerance_mm: expected a number above 0, got {self.surface_tolerance_mm!r}")
        problems += [
            f"regions: expected classes in {name!r}, got none" for name in self.regions if not self.regions[name]
        ]
        if problems:
            raise ValueError("; ".join(problems))

    def check(self, classes: Sequence[str]) -> None:
        """Raises ValueError when a region names a class that the data set does not have."""
        unknown = {name: sorted(set(region) - set(classes)) for name, region in self.regions.items()}
        wrong = {name: missing for name, missing in unknown.items() if missing}
        if wrong:
            raise ValueError(f"evaluation.regions: expected unions of the classes {list(classes)}, got {wrong} too")

    def due(self, round_number: int, rounds: int) -> bool:
        """Whether this round (0: before training) is scored."""
        if round_number == rounds:
            return True
        return self.every is not None and round_number % self.every == 0


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One evaluated volume: what was read, what was predicted, and its scores by metric name."""

    volume: Volume
    prediction: LabelMap
    scores: Mapping[str, float | None]


def evaluate(
    replica: Replica,
    volumes: Sequence[PreparedVolume],
    read: Callable[[Case], Volume],
    windows: Windows,
    classes: Sequence[str],
    evaluation: Evaluation,
    *,
    surfaces: bool,
) -> Iterator[Scored]:
    """Scores volumes one after the other with the tensors that the replica holds.

    Args:
        replica: The model.
        volumes: The prepared volumes.
        read: Reads a case again, for the truth on its native grid.
        windows: How the windows of the run are made.
        classes: Names of the C foreground classes.
        evaluation: Batch size and tolerance.
        surfaces: Whether to compute HD95 and surface Dice too, which takes longer.
    """
    for prepared in volumes:
        prediction = predict(replica, prepared, windows, evaluation.batch_size)
        volume = read(prepared.case)
        scores: dict[str, float | None] = dict(_dice_scores(prediction, volume, classes))
        scores |= _region_scores(prediction, volume, classes, evaluation.regions)
        if surfaces:
            scores |= _surface_scores(prediction, volume, classes, evaluation.surface_tolerance_mm)
        yield Scored(volume=volume, prediction=prediction, scores=scores)


@torch.no_grad()
def predict(replica: Replica, prepared: PreparedVolume, windows: Windows, batch_size: int) -> LabelMap:
    """The label map of one volume on its native grid.

    Softmax, averaged over the windows that contain the slice, brought back to the native grid (linear between slices
    where volumes were resampled, bilinear within them), then argmax. A slice-wise model with normalisation per volume
    gives the same for every window; each slice is then predicted once.

    Returns:
        (S, H, W) uint8 labels 0..C.
    """
    slices, height, width = prepared.native_shape
    probabilities = _probabilities(replica, prepared, windows, batch_size)
    maps = []
    for index in torch.arange(slices).split(batch_size):
        part = _native_slices(probabilities, slices, index)
        native = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)
        maps.append(native.argmax(dim=1).to(torch.uint8).cpu())
    return torch.cat(maps).numpy()


def _native_slices(probabilities: Tensor, slices: int, index: Tensor) -> Tensor:
    """Slices ``index`` of the native grid, between those that were predicted (S', C+1, h, w).

    Linear, the centres of the slices in line as in :func:`torch.nn.functional.interpolate`: native slice i lies at
    ``(i + 1/2) S' / S - 1/2``, or at the first or the last one where that is outside.
    """
    last = len(probabilities) - 1
    place = ((index.double() + 0.5) * (len(probabilities) / slices) - 0.5).clamp(0, last)
    lower = place.long()
    share = (place - lower).to(probabilities)[:, None, None, None]
    lower = lower.to(probabilities.device)
    return torch.lerp(probabilities[lower], probabilities[(lower + 1).clamp(max=last)], share)


def _probabilities(replica: Replica, prepared: PreparedVolume, windows: Windows, batch_size: int) -> Tensor:
    """(S', C+1, h, w) class probabilities of every prepared slice; S' is S without ``windows.grid``."""
    slicewise = not replica.mixes_slices and windows.normalise == "volume"
    data = HospitalWindows([prepared], replace(windows, depth=1) if slicewise else windows)
    total: Tensor | None = None
    count = torch.zeros(len(data), 1, 1, 1, device=replica.device)
    for index in torch.arange(len(data)).split(max(1, batch_size // data.windows.depth)):
        images, _ = data.gather(index, replica.device)
        probabilities = replica.logits(images).float().softmax(dim=1)  # (b * D, C+1, h, w)
        table = data.table[index]  # (b, D)
        own = _at_their_place(table, index)
        kept, slices = probabilities[own.flatten().to(replica.device)], table[own].to(replica.device)
        total = probabilities.new_zeros(len(data), *probabilities.shape[1:]) if total is None else total
        total.index_add_(0, slices, kept)
        count.index_add_(0, slices, torch.ones_like(count[slices]))
    if total is None:
        raise ValueError(f"{prepared.case.image}: expected a volume of at least one slice, got none")
    return total / count


def _at_their_place(table: Tensor, centre: Tensor) -> Tensor:
    """Which slices (b, D) of the windows around ``centre`` (b,) are no repetition of the edge.

    A model that mixes slices sees a repeated edge slice beside itself, and only the one at its place beside its
    neighbours: that one counts.
    """
    offset = torch.arange(table.shape[1]) - table.shape[1] // 2
    return table == centre[:, None] + offset


def _dice_scores(prediction: LabelMap, volume: Volume, classes: Sequence[str]) -> dict[str, float]:
    scores = {f"dice/{name}": dice(prediction, volume.label, label) for label, name in enumerate(classes, start=1)}
    return {"dice": float(np.mean(list(scores.values()))), **scores}


def _region_scores(
    prediction: LabelMap, volume: Volume, classes: Sequence[str], regions: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Dice of unions of classes, and their mean; nothing where there are no regions."""
    if not regions:
        return {}
    scores = {}
    for name, region in regions.items():
        labels = [classes.index(part) + 1 for part in region]
        predicted, true = (np.isin(found, labels).astype(np.uint8) for found in (prediction, volume.label))
        scores[f"dice_region/{name}"] = dice(predicted, true, 1)
    return {**scores, "dice_regions": float(np.mean(list(scores.values())))}


def _surface_scores(
    prediction: LabelMap, volume: Volume, classes: Sequence[str], tolerance_mm: float
) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    for label, name in enumerate(classes, start=1):
        truth, spacing = volume.label, volume.spacing_mm
        scores[f"hd95_mm/{name}"] = hd95_mm(prediction, truth, label, spacing)
        scores[f"surface_dice/{name}"] = surface_dice(prediction, truth, label, spacing, tolerance_mm)
    return scores


def summarise(scored: Iterable[Mapping[str, float | None]], classes: Sequence[str]) -> dict[str, float | None]:
    """Scores of one hospital from the scores of its volumes.

    Means over volumes per class, then Dice over classes. Undefined values are left out of a mean and counted as
    ``undefined/<metric>``; a mean of nothing is None.
    """
    rows = list(scored)
    result: dict[str, float | None] = {}
    for metric in [name for name in rows[0] if name != "dice"]:
        defined = [row[metric] for row in rows if row[metric] is not None]
        result[metric] = float(np.mean(np.array(defined, dtype=np.float64))) if defined else None
        if not metric.startswith("dice"):
            result[f"undefined/{metric}"] = float(len(rows) - len(defined))
    per_class = [result[f"dice/{name}"] for name in classes]
    return {"dice": float(np.mean(np.array(per_class, dtype=np.float64))), **result}
