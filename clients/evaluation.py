"""Evaluation per volume: every slice predicted, brought back to the native grid, scored over the whole volume.

::

    windows of all volumes, in full batches -> class probabilities -> mean per slice, volume by volume as they are
    complete -> native grid -> label map -> host -> scores

Batches run on over the ends of volumes and of hospitals; a volume is finished when its last window has been predicted,
so that the probabilities of one volume and one batch are all there is at a time. On CUDA nothing waits for a batch:
label maps are fetched, and scored on the host, while the next batch runs.

Legend: N windows, n of them in a batch, D slices of a window, S slices, H rows, W columns of the native grid, S'
prepared slices, h, w of the logits, C foreground classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.augment import AugmentParameters
from ..datasets.windows import HospitalWindows, PreparedVolume, Windows, put
from .batches import Batch, Draw, Kept, Source, feed, filled_up
from .metrics import Counts, LabelMap, counted, overlap, surface_scores
from .replica import Replica
from .training import Workplace


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
        test: When test volumes (and those of unseen sites) are scored: whenever an evaluation is ``due``, or after the
            ``last`` round only, when everything else is done; a run can then be held back before.
        cross_site: After the last round, also score every hospital's model on the test volumes of all the others.
    """

    every: int | None = None
    batch_size: int = 32
    surface_tolerance_mm: float = 1.0
    predictions: bool = True
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    test: Literal["due", "last"] = "due"
    cross_site: bool = False

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
class ScoredVolume:
    """One evaluated volume: what was asked, what was predicted (S, H, W), and its scores by metric name."""

    volume: PreparedVolume
    prediction: LabelMap
    scores: Mapping[str, float | None]


def source_of(volumes: Sequence[PreparedVolume], windows: Windows, replica: Replica) -> Source:
    """The windows in which a model is asked about volumes, each in its one form: nothing is augmented.

    A slice-wise model with normalisation per volume gives the same for a slice in every window; each slice is then
    asked for once, alone.

    Raises:
        ValueError: there is no volume, or one without slices.
    """
    slicewise = not replica.mixes_slices and windows.normalise == "volume"
    cut = HospitalWindows(volumes, replace(windows, depth=1) if slicewise else windows)
    for volume, span in zip(cut.volumes, cut.spans, strict=True):
        if not span:
            raise ValueError(f"{volume.case.image}: expected a volume of at least one slice, got none")
    return Source(windows=cut, variants=(AugmentParameters.neutral(len(cut)),))


def windows_of(source: Source) -> HospitalWindows:
    """The windows of a source that :func:`source_of` made."""
    assert isinstance(source.windows, HospitalWindows)
    return source.windows


def evaluate(
    workplace: Workplace,
    sources: Sequence[Source],
    classes: Sequence[str],
    evaluation: Evaluation,
    *,
    surfaces: bool,
) -> Iterator[ScoredVolume]:
    """Scores the volumes of all sources, in their order, with the tensors that the replica holds.

    Args:
        workplace: The model, and what is kept of its frozen start.
        sources: Made by :func:`source_of`, all of one depth.
        classes: Names of the C foreground classes.
        evaluation: Batch size and tolerance.
        surfaces: Whether to compute HD95 and surface Dice too, which takes longer.
    """
    volumes = [volume for source in sources for volume in windows_of(source).volumes]
    maps = predictions(workplace.replica, sources, evaluation.batch_size, workplace.kept)
    for volume, prediction in zip(volumes, maps, strict=True):
        truth = volume.truth.numpy()
        scores = _dice_scores(counted(prediction, truth, len(classes)), classes, evaluation.regions)
        if surfaces:
            scores |= _surface_scores(prediction, volume, classes, evaluation.surface_tolerance_mm)
        yield ScoredVolume(volume=volume, prediction=prediction, scores=scores)


def predict(replica: Replica, volume: PreparedVolume, windows: Windows, batch_size: int) -> LabelMap:
    """The label map of one volume alone: what :func:`predictions` gives for it."""
    return next(predictions(replica, [source_of([volume], windows, replica)], batch_size))


@torch.no_grad()
def class_probabilities(replica: Replica, volume: PreparedVolume, windows: Windows, batch_size: int) -> Tensor:
    """What a model says of one volume alone, in full batches of its windows.

    Returns:
        (S', C+1, h, w) probabilities of every prepared slice: softmax, averaged over the windows that contain it.
    """
    source = source_of([volume], windows, replica)
    (mean,) = [mean for complete in _complete(replica, [source], batch_size, None) for mean in complete]
    return mean.value()


def label_map(volume: PreparedVolume, probabilities: Tensor, batch_size: int) -> LabelMap:
    """(S, H, W) labels on the native grid, of :func:`class_probabilities`; made ``batch_size`` slices at a time."""
    found: LabelMap = _label_map(volume, probabilities, batch_size).cpu().numpy()
    return found


def probability_slices(
    volume: PreparedVolume, probabilities: Tensor, batch_size: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The probabilities of which :func:`label_map` takes the largest, some slices at a time.

    Args:
        volume: The volume.
        probabilities: (S', C+1, h, w) of :func:`class_probabilities`.
        batch_size: Slices that come at once.

    Yields:
        Which slices of the native grid, and their (n, C+1, H, W) in [0, 1], which sum to 1 over the labels 0..C.
    """
    for where, native in _on_native_grid(volume, probabilities, batch_size):
        yield where, native.clamp(0, 1).float().cpu().numpy()


@torch.no_grad()
def predictions(
    replica: Replica, sources: Sequence[Source], batch_size: int, kept: Kept | None = None
) -> Iterator[LabelMap]:
    """The label map of every volume on its native grid, in order.

    Softmax, averaged over the windows that contain the slice, brought back to the native grid (linear between slices
    where volumes were resampled, bilinear within them), then argmax.

    Args:
        replica: The model.
        sources: Made by :func:`source_of`, all of one depth.
        batch_size: Slices per forward pass; at least one window.
        kept: Where to look for what the frozen start makes of the windows.

    Yields:
        (S, H, W) uint8 labels 0..C.
    """
    underway: list[Callable[[], LabelMap]] = []
    for complete in _complete(replica, sources, batch_size, kept):
        started = [_to_host(_label_map(mean.volume, mean.value(), batch_size)) for mean in complete]
        yield from (arrived() for arrived in underway)
        underway = started
    yield from (arrived() for arrived in underway)


def _complete(replica: Replica, sources: Sequence[Source], batch_size: int, kept: Kept | None) -> Iterator[list[_Mean]]:
    """Per batch, the volumes of which it had the last window."""
    waiting = deque(_Mean(source, number) for source in sources for number in range(len(windows_of(source).volumes)))
    depth = sources[0].windows.depth
    width = max(1, batch_size // depth)
    steps = (filled_up(step, replica.width(width)) for step in in_turn(sources, width))
    for batch in feed(replica, steps, kept):
        rest = probabilities(replica, batch)
        complete = []
        while len(rest):
            rest = waiting[0].add(rest)
            if waiting[0].is_complete:
                complete.append(waiting.popleft())
        yield complete


def in_turn(sources: Sequence[Source], width: int) -> Iterator[list[Draw]]:
    """All examples of all sources, ``width`` a batch, which runs on into the next source; the last may be shorter."""
    step: list[Draw] = []
    room = width
    for source in sources:
        index = torch.arange(len(source.windows))
        while len(index):
            step.append(_draw(source, index[:room]))
            index, room = index[room:], room - len(step[-1].index)
            if not room:
                yield step
                step, room = [], width
    if step:
        yield step


def _draw(source: Source, index: Tensor) -> Draw:
    (neutral,) = source.variants
    first = torch.zeros_like(index)
    return Draw(source=source, index=index, parameters=neutral.select(index), variants=first, size=len(index))


def probabilities(replica: Replica, batch: Batch) -> Tensor:
    """(n, D, C+1, h, w) of the windows of a batch that count, in the dtype of trained tensors also under autocast."""
    logits = replica.decode(replica.proceed(*batch.begun))[: sum(batch.sizes) * batch.depth]
    flat = logits.to(replica.dtype).softmax(dim=1)  # (n * D, C+1, h, w)
    return flat.reshape(-1, batch.depth, *flat.shape[1:])


class _Mean:
    """The class probabilities of a volume, averaged over its windows as they come in.

    Args:
        source: Has the volume.
        number: Which of its volumes.
    """

    def __init__(self, source: Source, number: int) -> None:
        windows = windows_of(source)
        self.volume = windows.volumes[number]
        span = windows.spans[number]
        self.table = windows.table[span.start : span.stop] - span.start  # (S', D) slices of this volume
        self.counts = _at_their_place(self.table)  # (S', D)
        self.seen = 0
        self.total: Tensor | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all windows have come in."""
        return self.seen == len(self.table)

    def add(self, probabilities: Tensor) -> Tensor:
        """Adds the next windows of this volume (n, D, C+1, h, w) and gives back those that belong to others."""
        coming = slice(self.seen, self.seen + len(probabilities))
        slices, counts = self.table[coming].flatten(), self.counts[coming].flatten()
        own = probabilities[: len(self.table) - self.seen]
        if self.total is None:
            self.total = own.new_zeros(len(self.table), *own.shape[2:])
        rows = counts.nonzero()[:, 0]  # known on the host: choosing by a mask would wait for the device
        values = own.flatten(0, 1)[put(rows, own.device)]
        self.total.index_add_(0, put(slices[rows], own.device), values)
        self.seen += len(own)
        return probabilities[len(own) :]

    def value(self) -> Tensor:
        """(S', C+1, h, w) probabilities of every prepared slice; S' is S without ``windows.grid``."""
        assert self.total is not None
        times = torch.bincount(self.table[self.counts], minlength=len(self.table))
        return self.total / put(times, self.total.device)[:, None, None, None]


def _at_their_place(table: Tensor) -> Tensor:
    """Which slices (S', D) of a volume's windows are no repetition of the edge.

    A model that mixes slices sees a repeated edge slice beside itself, and only the one at its place beside its
    neighbours: that one counts.
    """
    slices, depth = table.shape
    offset = torch.arange(depth) - depth // 2
    return table == torch.arange(slices)[:, None] + offset


def _label_map(volume: PreparedVolume, probabilities: Tensor, batch_size: int) -> Tensor:
    """(S, H, W) uint8 labels on the native grid, of probabilities (S', C+1, h, w)."""
    labels = torch.empty(volume.native_shape, dtype=torch.uint8, device=probabilities.device)
    for where, native in _on_native_grid(volume, probabilities, batch_size):
        labels[where] = native.max(dim=1).indices  # argmax, ten times as fast on a CPU
    return labels


def _on_native_grid(volume: PreparedVolume, probabilities: Tensor, batch_size: int) -> Iterator[tuple[slice, Tensor]]:
    """Runs of slices of the native grid with their probabilities (n, C+1, H, W)."""
    slices, height, width = volume.native_shape
    for index in torch.arange(slices).split(batch_size):
        part = _native_slices(probabilities, slices, index)
        where = slice(int(index[0]), int(index[-1]) + 1)
        yield where, F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)


def _native_slices(probabilities: Tensor, slices: int, index: Tensor) -> Tensor:
    """Slices ``index`` of the native grid, a run of them, between those that were predicted (S', C+1, h, w).

    Linear, the centres of the slices in line as in :func:`torch.nn.functional.interpolate`: native slice i lies at
    ``(i + 1/2) S' / S - 1/2``, or at the first or the last one where that is outside.
    """
    last = len(probabilities) - 1
    if len(probabilities) == slices:
        return probabilities[index[0] : index[-1] + 1]
    place = ((index.double() + 0.5) * (len(probabilities) / slices) - 0.5).clamp(0, last)
    lower = place.long()
    share = put((place - lower).to(probabilities.dtype), probabilities.device)[:, None, None, None]
    lower, upper = (put(number, probabilities.device) for number in (lower, (lower + 1).clamp(max=last)))
    return torch.lerp(probabilities[lower], probabilities[upper], share)


def _to_host(labels: Tensor) -> Callable[[], LabelMap]:
    """Begins to fetch a label map; the result waits for it. A GPU goes on meanwhile."""
    host = labels.to("cpu", non_blocking=labels.is_cuda)  # into pinned memory then
    copied = torch.cuda.Event() if labels.is_cuda else None
    if copied is not None:
        copied.record()

    def arrived() -> LabelMap:
        if copied is not None:
            copied.synchronize()
        found: LabelMap = host.numpy()
        return found

    return arrived


def _dice_scores(
    counts: Counts, classes: Sequence[str], regions: Mapping[str, Sequence[str]]
) -> dict[str, float | None]:
    """Dice of every class and their mean; where there are regions, also of these unions of classes."""
    scores = {f"dice/{name}": overlap(counts, [label]) for label, name in enumerate(classes, start=1)}
    result: dict[str, float | None] = {"dice": float(np.mean(list(scores.values()))), **scores}
    if regions:
        unions = {name: [classes.index(part) + 1 for part in region] for name, region in regions.items()}
        scores = {f"dice_region/{name}": overlap(counts, labels) for name, labels in unions.items()}
        result |= {**scores, "dice_regions": float(np.mean(list(scores.values())))}
    return result


def _surface_scores(
    prediction: LabelMap, volume: PreparedVolume, classes: Sequence[str], tolerance_mm: float
) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    for label, name in enumerate(classes, start=1):
        hd95, dice = surface_scores(prediction, volume.truth.numpy(), label, volume.spacing_mm, tolerance_mm)
        scores |= {f"hd95_mm/{name}": hd95, f"surface_dice/{name}": dice}
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
