"""How long a step and a scored slice take: measured now, or read from runs that are done.

::

    seconds of a run = steps * step_s + slices that are scored * slice_s + rest_s
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import torch

from ...aggregators.contract import Phase
from ...clients.class_losses import CrossEntropy
from ...clients.classification import classify, image_source
from ...clients.evaluation import evaluate, source_of
from ...clients.network import Model
from ...clients.optimizers import Schedule
from ...clients.training import OptimizerState, Workplace, fit
from ...datasets.contract import Case, has_classes
from ...datasets.examples import Examples
from ...datasets.images import HospitalImages, PreparedImages
from ...datasets.windows import HospitalWindows, PreparedVolume, Windows
from ..assembly import build_replica
from ..bench.timing import timed
from ..files import read_json, read_lines
from ..randomness import streams
from ..runs_table import folder_bytes
from .work import Work

if TYPE_CHECKING:
    from ..config import Experiment

STEPS = 5
"""Most steps that are timed after a first one, which warms up."""

ENOUGH_S = 1.0
"""Seconds after which no further step is begun; a first one that takes three times as long is the only one."""

SCORED = 4
"""Most slices of the volume that is scored to take its time."""

REST_S = 1.0
"""Seconds of a run beside its steps and scores: model, files, report. Of ``tiny`` on two cores; a run that is done
tells it better."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a step and a scored slice depend on; the method, the aggregator and the data matter less.

    Args:
        model: Without its weights.
        windows: How volumes are cut.
        batch_size: Windows of a step.
        scored: Slices of a forward pass when volumes are scored.
        precision: Of training.
        compile: Whether the model is compiled.
    """

    model: Model
    windows: Windows
    batch_size: int
    scored: int
    precision: str
    compile: bool

    @classmethod
    def of(cls, experiment: Experiment) -> Kind:
        """The kind of a run."""
        return cls(
            model=experiment.model.untrained(),
            windows=experiment.windows,
            batch_size=experiment.training.batch_size,
            scored=experiment.evaluation.batch_size,
            precision=experiment.training.precision,
            compile=experiment.runtime.compile,
        )


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What work takes.

    Args:
        step_s: Seconds of an optimizer step.
        slice_s: Seconds of a slice that is scored.
        rest_s: Seconds of a run beside these.
        runs: Runs it was read from; 0: measured now.
    """

    step_s: float
    slice_s: float
    rest_s: float
    runs: int = 0

    def seconds(self, work: Work) -> float:
        """What a run takes."""
        return work.steps * self.step_s + work.slices * self.slice_s + self.rest_s


# ---- runs that are done ----------------------------------------------------------------------------------------------

DONE = ("finished", "held")
"""States of a run that has nothing left to train."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a run took that is done.

    Args:
        path: Its folder.
        device: What it ran on.
        seconds: Of wall-clock time: from begin to end, or of its rounds alone where it was interrupted or is held.
        size: Bytes of its folder.
    """

    path: Path
    device: str
    seconds: float
    size: int


def spent(folder: Path) -> Spent | None:
    """What a run took, None where it is not done or cannot be read."""
    file = folder / "manifest.json"
    try:
        manifest = read_json(file, ("state", "environment")) if file.is_file() else {}
        seconds = _seconds(folder, manifest) if manifest.get("state") in DONE else None
    except ValueError:
        return None
    if seconds is None:
        return None
    device = str(manifest["environment"].get("device"))
    return Spent(path=folder, device=device, seconds=seconds, size=folder_bytes(folder))


def _seconds(folder: Path, manifest: Mapping[str, Any]) -> float:
    rounds = _of_rounds(folder)
    if manifest.get("continued") or not manifest.get("finished"):
        return rounds
    begun, ended = (datetime.fromisoformat(manifest[name]) for name in ("started", "finished"))
    return max(rounds, (ended - begun).total_seconds())


def _of_rounds(folder: Path, *stages: str) -> float:
    """Seconds of stages of all rounds; none given: of all."""
    rows = read_lines(folder / "timing.jsonl")
    return float(sum(row[key] for row in rows for key in row.keys() - {"round"} if not stages or key in stages))


def pace_of_runs(done: Sequence[tuple[Spent, Work]]) -> Pace | None:
    """The pace of runs of one kind that are done; None where none of them trained.

    Args:
        done: What they took, and what they did.
    """
    steps, slices = sum(work.steps for _, work in done), sum(work.slices for _, work in done)
    if not steps:
        return None
    trained = [_of_rounds(run.path, "train_s") for run, _ in done]
    scored = [_of_rounds(run.path, "evaluate_s") for run, _ in done]
    rest = [run.seconds - busy for (run, _), *times in zip(done, trained, scored, strict=True) for busy in [sum(times)]]
    return Pace(
        step_s=sum(trained) / steps,
        slice_s=sum(scored) / slices if slices else 0.0,
        rest_s=max(0.0, fmean(rest)),
        runs=len(done),
    )


# ---- measured now ----------------------------------------------------------------------------------------------------


def measure(experiment: Experiment, num_classes: int, device: torch.device, native: tuple[int, int, int]) -> Pace:
    """The pace of a run on this machine: training steps and one pass over a few slices, on noise, with random weights.

    A model that is compiled in the run is not compiled here; hospitals that share steps there take turns.

    Args:
        experiment: The run.
        num_classes: C.
        device: Where it computes.
        native: (S, H, W) of a volume as its file has it.

    Raises:
        ValueError: the method cannot work with the model.
    """
    light = replace(experiment, model=Kind.of(experiment).model, ranks={}, start_from=None)
    training = replace(light.training, schedule=Schedule(warmup_steps=0, horizon_epochs=None), steps=1)
    replica = build_replica(light, num_classes, device)
    place = Workplace(replica=replica, training=training, augment=light.augment)
    measure_it = _of_images if has_classes(light.data) else _of_volumes
    return measure_it(light, place, num_classes, native)


def _of_images(light: Experiment, place: Workplace, num_classes: int, native: tuple[int, int, int]) -> Pace:
    """The pace on images; they have one size only, the model's."""
    place, device = replace(place, loss=CrossEntropy()), place.replica.device
    images = _noise_images(light, num_classes, light.evaluation.batch_size)
    batch = _noise_images(light, num_classes, place.training.batch_size)
    score_s = _seconds_of(partial(_classify, place, images), device) / len(images)
    return Pace(step_s=_seconds_of(partial(_step, place, batch), device), slice_s=score_s, rest_s=REST_S)


def _of_volumes(light: Experiment, place: Workplace, num_classes: int, native: tuple[int, int, int]) -> Pace:
    """The pace on slices of volumes, which are scored on the grid of their files."""
    device, slices = place.replica.device, (min(SCORED, native[0]), *native[1:])
    volume = _noise(light, num_classes, slices)
    windows = HospitalWindows([_noise(light, num_classes, (place.training.batch_size, *native[1:]))], light.windows)
    score_s = _seconds_of(partial(_score, light, place, volume), device) / slices[0]
    return Pace(step_s=_seconds_of(partial(_step, place, windows), device), slice_s=score_s, rest_s=REST_S)


def _seconds_of(call: Callable[[], None], device: torch.device) -> float:
    """The median of some calls after a first one; where that took long, it alone."""
    first, later = timed(call, device).seconds, list[float]()
    if first > 3 * ENOUGH_S:
        return first
    while len(later) < STEPS and sum(later) < ENOUGH_S:
        later.append(timed(call, device).seconds)
    return median(later)


def _step(place: Workplace, windows: Examples) -> None:
    """One step of everything that may train."""
    rng = streams(0, "pace")
    fit(place, Phase(train=place.replica.layout.names), windows, OptimizerState(), rng, rng)


def _score(experiment: Experiment, place: Workplace, volume: PreparedVolume) -> None:
    """A volume is predicted, and scored by its Dice."""
    evaluation = replace(experiment.evaluation, regions={})
    source = source_of([volume], experiment.windows, place.replica)
    classes = [f"class {number}" for number in range(1, int(volume.labels.max()) + 1)]
    for _ in evaluate(place, [source], classes, evaluation, surfaces=False):
        pass


def _classify(place: Workplace, images: HospitalImages) -> None:
    """A batch of images is classified."""
    for _ in classify(place.replica, [image_source(images)], len(images)):
        pass


def _noise_images(experiment: Experiment, num_classes: int, number: int) -> HospitalImages:
    """So many images of noise, of all classes in turn."""
    rng, size = streams(0, "pace")("images"), experiment.model.image_size
    pixels = torch.randint(0, 256, (number, 3, size, size), generator=rng, dtype=torch.uint8)
    nowhere = Path("none")
    cases = tuple(
        Case(name=f"{place:06d}", patient="nobody", image=nowhere, label=nowhere, target=place % num_classes)
        for place in range(number)
    )
    return HospitalImages(PreparedImages(cases=cases, pixels=pixels, key=""), cases)


def _noise(experiment: Experiment, num_classes: int, native: tuple[int, int, int]) -> PreparedVolume:
    """A volume of noise with every class in it."""
    rng, size = streams(0, "pace")("volume"), experiment.model.image_size
    images = torch.rand(native[0], size, size, generator=rng)
    truth = torch.randint(0, num_classes + 1, native, generator=rng).to(torch.uint8)
    truth.view(-1)[0] = num_classes
    labels = torch.randint(0, num_classes + 1, images.shape, generator=rng).to(torch.uint8)
    labels.view(-1)[0] = num_classes
    case = Case(name="noise", patient="nobody", image=Path("none"), label=Path("none"))
    return PreparedVolume(case=case, images=images, labels=labels, truth=truth, spacing_mm=(1.0, 1.0, 1.0))
