"""The work that every engine of the bench does, and what an engine is.

Every engine gets the same model with the same initial values, the same windows, draws, steps, loss and optimizer; what
differs is who does the work. The volumes are made in memory, and hospitals share them: a thousand hospitals need no
thousand data sets.

Legend: K hospitals, N windows of a hospital, b windows of a batch, D slices of a window, H = W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from ...aggregators import AGGREGATORS
from ...aggregators.contract import Aggregator, HospitalInfo, Layout, Streams
from ...clients.batches import cut, draws
from ...clients.contract import Method, at_rank, rank_of
from ...clients.methods import METHODS
from ...clients.optimizers import AdamW, Schedule
from ...clients.sam import Sam, SamNet
from ...clients.training import Training
from ...datasets.augment import AUGMENTS, Augmentation
from ...datasets.contract import Case
from ...datasets.windows import HospitalWindows, PreparedVolume, Windows, on_device
from ..builder import unknown
from ..randomness import streams
from ..runtime import Runtime

VOLUMES = 8
"""Volumes there are in all; a hospital has two of them."""

CLASSES = 2
"""C of every workload."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Image side in pixels, windows of a batch and LoRA rank that a model is measured with unless others are given."""

    image_size: int
    batch_size: int
    rank: int


SHAPES: dict[str, Shape] = {
    "tiny": Shape(image_size=32, batch_size=8, rank=8),
    "mini": Shape(image_size=64, batch_size=16, rank=8),
    "vit-b": Shape(image_size=224, batch_size=6, rank=32),
    "vit-l": Shape(image_size=224, batch_size=6, rank=32),
    "vit-h": Shape(image_size=224, batch_size=6, rank=32),
}
"""Per model. FLAP-SAM (arXiv 2407.21739) trains ViT-B at batch 6 and rank 32."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained in a round. Plain values, so that it can be handed to another process.

    Args:
        hospitals: K, >= 1.
        method: A name of :data:`~wardround.clients.methods.METHODS`.
        model: A name of :data:`SHAPES`; the weights are random.
        image_size: H = W in pixels; 0: the model's of :data:`SHAPES`.
        batch_size: b; 0: the model's.
        rank: Of LoRA, where the method has it; 0: the model's.
        steps: Optimizer steps of a hospital in a round, >= 1; one pass over its windows. Few by default: the less there
            is to train, the more an engine's own time weighs.
        aggregator: A name of :data:`~wardround.aggregators.AGGREGATORS`, with its defaults.
        augment: A name of :data:`~wardround.datasets.augment.AUGMENTS`, with its defaults.
        precision: As in :class:`~wardround.clients.training.Training`.
        seed: Of volumes, initial values and draws.
    """

    hospitals: int = 6
    method: str = "flap_sam"
    model: str = "tiny"
    image_size: int = 0
    batch_size: int = 0
    rank: int = 0
    steps: int = 5
    aggregator: str = "flap_sam"
    augment: str = "none"
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        tables: dict[str, Iterable[str]] = {
            "method": [name for name, cls in METHODS.items() if "sam" in cls.models],
            "model": SHAPES,
            "aggregator": AGGREGATORS,
            "augment": AUGMENTS,
            "precision": ("fp32", "bf16", "fp64"),
        }
        for name, known in tables.items():
            if getattr(self, name) not in known:
                raise ValueError(unknown(f"unknown {name} {getattr(self, name)!r}", getattr(self, name), known))
        least = {"hospitals": 1, "steps": 1, "image_size": 0, "batch_size": 0, "rank": 0, "seed": 0}
        wrong = [
            f"{name}: expected at least {low}, got {getattr(self, name)!r}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        Sam(size=self.model, image_size=self.image_size or SHAPES[self.model].image_size)  # checks what it is given

    def resolved(self) -> Self:
        """The same workload with the model's own shape where none was given."""
        shape = SHAPES[self.model]
        given = {name: getattr(self, name) or getattr(shape, name) for name in ("image_size", "batch_size", "rank")}
        return replace(self, **given)

    @property
    def images(self) -> int:
        """Slices that are trained on in a round."""
        return self.hospitals * self.steps * self.batch_size

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """From a mapping, of which other keys are left alone."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


class Prepared(Protocol):
    """An engine with its model and data in place, before the first round.

    The device may still be busy when one of its functions returns: whoever takes times synchronises.
    """

    def round(self) -> float:
        """Trains every hospital once, from where the last round ended, and aggregates.

        Returns:
            The mean training loss over all steps of all hospitals.
        """
        ...

    def idle(self) -> None:
        """Does everything that :meth:`round` does but the optimizer steps; the rounds are not counted on."""
        ...

    def aggregation_s(self) -> float | None:
        """Seconds that aggregation took in the last :meth:`round` or :meth:`idle`; None where nothing is aggregated."""
        ...

    def facts(self) -> Mapping[str, str | float]:
        """Columns of the row that the engine knows better (``peak_host_mb`` over processes of its own)."""
        ...

    def close(self) -> None:
        """Ends processes, removes files."""
        ...


Engine = Callable[[Workload, Runtime, torch.device], Prepared]
"""Prepares an engine: ``prepare(workload, runtime, device)``. The workload is resolved, the device is there.

Raises ``ImportError`` or ``ValueError`` with the reason where it cannot do this work; the row then says so.
"""


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Model and data of a workload, made anew for whoever asks.

    Args:
        workload: Resolved.
        device: Where ``windows`` lie and :meth:`batches` go.
        windows: Per hospital, sorted by name. Hospitals that have the same volumes share one object.
    """

    workload: Workload
    device: torch.device
    windows: Mapping[str, HospitalWindows]

    def model(self) -> tuple[SamNet, Layout]:
        """A new model with its adapters and initial values, on the CPU, fp32, and what may train."""
        method, rng = self.method, streams(self.workload.seed, "init")
        model = Sam(size=self.workload.model, image_size=self.workload.image_size).build(CLASSES, rng)
        layout = method.attach(model)
        method.initialise(model, rng)
        return model, layout

    @property
    def method(self) -> Method:
        """The method at the rank of the workload."""
        return at_rank(METHODS[self.workload.method](), self.workload.rank)

    @property
    def aggregator(self) -> Aggregator:
        """The aggregator."""
        aggregator: Aggregator = AGGREGATORS[self.workload.aggregator]()
        return aggregator

    @cached_property
    def training(self) -> Training:
        """How every hospital trains: AdamW at a constant rate, without clipping."""
        return Training(
            steps=self.workload.steps,
            batch_size=self.workload.batch_size,
            optimizer=AdamW(lr=1e-3),
            schedule=Schedule(warmup_steps=0, horizon_epochs=None),
            precision=self.workload.precision,
        )

    @cached_property
    def augment(self) -> Augmentation:
        """What is done to a window."""
        augment: Augmentation = AUGMENTS[self.workload.augment]()
        return augment

    def info(self, name: str) -> HospitalInfo:
        """What the server knows of a hospital."""
        return HospitalInfo(name=name, num_examples=len(self.windows[name]), rank=rank_of(self.method))

    def batches(self, hospital: str, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a hospital in round ``number`` (from 1).

        Yields:
            Images (b, D, H, W) float32 in [0, 1] and labels (b, D, H, W) uint8, on the device.
        """
        rng, lasting = self.rng("local", number, hospital), self.rng("lasting", hospital)
        windows, training = self.windows[hospital], self.training
        for draw in draws(windows, training.batch_size, self.augment, self.workload.steps, rng, lasting):
            yield cut(draw, self.device)

    def rng(self, purpose: str, *keys: str | int) -> Streams:
        """The streams that a run of this seed has."""
        return streams(self.workload.seed, purpose, *keys)

    def autocast(self) -> AbstractContextManager[object]:
        """Around the model, where the precision is ``bf16``."""
        if self.workload.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, images and trained tensors."""
        return torch.float64 if self.workload.precision == "fp64" else torch.float32


def materials(workload: Workload, device: torch.device) -> Materials:
    """The materials of a resolved workload."""
    volumes = [_volume(workload, number) for number in range(VOLUMES)]
    neighbours = zip(volumes, [*volumes[1:], volumes[0]], strict=True)
    shared = {str(number): HospitalWindows(pair, Windows()) for number, pair in enumerate(neighbours)}
    if device.type != "cpu":
        shared = on_device(shared, device)
    digits = len(str(workload.hospitals - 1))
    names = [f"hospital-{number:0{digits}}" for number in range(workload.hospitals)]
    windows = {name: shared[str(number % VOLUMES)] for number, name in enumerate(names)}
    return Materials(workload=workload, device=device, windows=windows)


def _volume(workload: Workload, number: int) -> PreparedVolume:
    """Noise with a bright square, in which lies a brighter one: as many slices as make two volumes one pass."""
    rng = streams(workload.seed, "volume", number)("voxels")
    slices, size = -(-workload.steps * workload.batch_size // 2), workload.image_size
    top, left = torch.randint(0, size // 2, (2,), generator=rng).tolist()
    labels = torch.zeros(slices, size, size, dtype=torch.uint8)
    labels[:, top : top + size // 2, left : left + size // 2] = 1
    labels[:, top + size // 8 : top + size // 4, left + size // 8 : left + size // 4] = 2
    case = Case(name=f"volume-{number}", patient=f"patient-{number}", image=Path("none"), label=Path("none"))
    return PreparedVolume(
        case=case,
        images=0.3 * labels + 0.3 * torch.rand(labels.shape, generator=rng),
        labels=labels,
        truth=labels,
        spacing_mm=(1.0, 1.0, 1.0),
    )
