"""The cases of an experiment in memory: prepared volumes or images, as hospitals train and are scored on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ..aggregators.contract import HospitalInfo
from ..datasets.cache import Announce, Preparation
from ..datasets.contract import Case, Cases, Federation, has_classes, with_masks
from ..datasets.examples import Examples
from ..datasets.fingerprints import text_hash
from ..datasets.images import HospitalImages, ImagePreparation, PreparedImages
from ..datasets.windows import HospitalWindows, PreparedVolume, Windows
from .attacks import poisoned
from .cohort import Hospital, Outsider, Scored
from .placement import place_windows
from .progress import counting
from .resident import Resident
from .results import COMMON, POOLED

if TYPE_CHECKING:
    from .assembly import Located
    from .config import Experiment


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The volumes or images of an experiment, ready to train and to be scored.

    Args:
        hospitals: Those that train, with their windows where batches are cut out, by name, sorted. Their ranks are not
            set.
        outsiders: Cases that are scored and belong to none of them.
        sizes: Training windows or images of every hospital of the federation, also where they are pooled.
    """

    hospitals: Mapping[str, Hospital]
    outsiders: tuple[Outsider, ...]
    sizes: Mapping[str, int]


def prepare(
    experiment: Experiment,
    located: Located,
    device: torch.device,
    *,
    quiet: bool = True,
    resident: Resident | None = None,
) -> Prepared:
    """Reads what is not in the cache yet, cuts windows, and brings them where batches are made.

    Args:
        experiment: The experiment.
        located: Its cases.
        device: Where to compute.
        quiet: No progress bar.
        resident: What runs of this process share: federations that have a volume in common map it once.

    Raises:
        ValueError: a volume is bad.
    """
    federation, shared = located.federation, resident or Resident()
    with counting("preparing", quiet=quiet) as announce:
        ready = _ready(experiment, located, shared, announce)
    num_classes = len(federation.classes)
    hospitals = {
        name: _hospital(experiment, name, cases, ready, num_classes)
        for name, cases in sorted(federation.hospitals.items())
    }
    sizes = {name: len(hospital.train) for name, hospital in hospitals.items()}
    outsiders = tuple(_outsiders(federation, ready))
    if experiment.pooled:
        outsiders = (*_scored_apart(hospitals), *outsiders)
        hospitals = {POOLED: _pool(federation, ready)}
    return Prepared(
        hospitals=place_windows(hospitals, device, experiment.runtime.windows), outsiders=outsiders, sizes=sizes
    )


def _hospital(experiment: Experiment, name: str, cases: Cases, ready: _Ready, num_classes: int) -> Hospital:
    attack, task = experiment.stages.attack, experiment.model.task
    train = poisoned(attack, name, ready.training(cases.train), num_classes, task)
    return Hospital(
        info=HospitalInfo(name=name, num_examples=len(train), rank=None),
        train=train,
        validation=ready.scored(cases.validation),
        test=ready.scored(cases.test),
    )


def _pool(federation: Federation, ready: _Ready) -> Hospital:
    """One hospital with the training examples of all, and nothing to be scored on."""
    train = ready.training([case for _, cases in sorted(federation.hospitals.items()) for case in cases.train])
    info = HospitalInfo(name=POOLED, num_examples=len(train), rank=None)
    return Hospital(info=info, train=train, validation=(), test=())


def _scored_apart(hospitals: Mapping[str, Hospital]) -> Iterator[Outsider]:
    """The cases that hospitals are scored on, under their own names."""
    for name, hospital in hospitals.items():
        if len(hospital.validation):
            yield Outsider(name=name, split="validation", cases=hospital.validation)
        if len(hospital.test):
            yield Outsider(name=name, split="test", cases=hospital.test)


def _outsiders(federation: Federation, ready: _Ready) -> Iterator[Outsider]:
    if federation.common:
        yield Outsider(name=COMMON, split="test", cases=ready.scored(federation.common))
    for name, cases in federation.unseen.items():
        yield Outsider(name=name, split="unseen", cases=ready.scored(cases))


def preparation_of(experiment: Experiment, num_classes: int) -> Preparation:
    """How the volumes of an experiment are prepared, and where."""
    return Preparation(
        dataset=with_masks(experiment.data),
        num_classes=num_classes,
        image_size=experiment.model.image_size,
        windows=experiment.windows,
    )


class _Ready(Protocol):
    """Cases that are prepared."""

    def training(self, cases: Sequence[Case]) -> Examples:
        """What a hospital with these cases trains on."""
        ...

    def scored(self, cases: Sequence[Case]) -> Scored:
        """The cases as they are scored."""
        ...


def _ready(experiment: Experiment, located: Located, shared: Resident, announce: Announce) -> _Ready:
    """Prepares all cases of a federation that are not prepared yet."""
    if has_classes(experiment.data):
        preparation = ImagePreparation(dataset=experiment.data, image_size=experiment.model.image_size)
        key = (preparation, located.data_hash, text_hash([str(path) for path in located.file_hashes]))
        whole = partial(preparation.prepare, located.pool, announce)  # so that every split of a folder shares one entry
        return _Images(prepared=shared.once("images", key, whole))
    volumes = _Volumes(
        preparation=preparation_of(experiment, len(located.federation.classes)),
        windows=experiment.windows,
        hashes=located.file_hashes,
        shared=shared,
    )
    volumes.preparation.prepare_all(volumes.missing(located.cases), announce)
    return volumes


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Prepared images, one tensor for the whole federation."""

    prepared: PreparedImages

    def training(self, cases: Sequence[Case]) -> Examples:
        return HospitalImages(self.prepared, cases)

    def scored(self, cases: Sequence[Case]) -> Scored:
        return HospitalImages(self.prepared, cases) if cases else ()


@dataclass(frozen=True, kw_only=True)
class _Volumes:
    """Prepared volumes; federations that have a case in common share its volume."""

    preparation: Preparation
    windows: Windows
    hashes: Mapping[Path, str]
    shared: Resident

    def training(self, cases: Sequence[Case]) -> Examples:
        return HospitalWindows(self.scored(cases), self.windows)

    def scored(self, cases: Sequence[Case]) -> tuple[PreparedVolume, ...]:
        return tuple(
            self.shared.once("volumes", self._key(case), partial(self.preparation.load, case)) for case in cases
        )

    def missing(self, cases: Sequence[Case]) -> list[Case]:
        """Those that are not there yet."""
        return [case for case in cases if self.shared.found("volumes", self._key(case)) is None]

    def _key(self, case: Case) -> object:
        return self.preparation, case, [self.hashes[path] for path in case.files]
