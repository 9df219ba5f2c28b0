"""From an experiment to the objects a run is made of: data in memory, model on the device, algorithm, weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..aggregators.contract import HospitalInfo, ServerState, Setting
from ..clients.hospital import Workplace
from ..clients.methods import LowRank, Method
from ..clients.optimizers import SGD
from ..clients.replica import Replica
from ..clients.training import Training
from ..datasets.contract import Case, Cases, Federation
from ..datasets.windows import HospitalWindows, PreparedVolume, prepare
from .assessment import Assessor
from .checkpoint import Checkpoint
from .cohort import Hospital
from .federation import Federated, initial_memories
from .randomness import streams

if TYPE_CHECKING:
    from .config import Experiment


@dataclass(frozen=True, kw_only=True)
class Located:
    """The cases of an experiment, found and split but not read."""

    federation: Federation
    data_hash: str
    weights_hash: str


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """Everything a run needs, ready for round 1."""

    federated: Federated
    assessor: Assessor
    initial: Checkpoint


def locate(experiment: Experiment, data: Path | None) -> Located:
    """Finds and hashes the data and the weights of an experiment.

    Args:
        experiment: The experiment.
        data: Folder of the data, None for the data set's own default.

    Raises:
        ValueError: the folder is missing or holds something else, or the cohort is larger than the federation.
    """
    root = experiment.data.locate(data)
    federation = experiment.data.federation(root, streams(experiment.split_seed, "split"))
    _check_hospitals(federation)
    experiment.cohort.check(len(federation.hospitals))
    return Located(
        federation=federation,
        data_hash=_data_hash(federation),
        weights_hash=experiment.model.weights_hash(),
    )


def assemble(experiment: Experiment, located: Located, device: torch.device) -> Assembled:
    """Reads the volumes, builds the model and initialises the algorithm.

    Raises:
        ValueError: a volume is bad, the weights do not fit, or the algorithm cannot work in this setting.
    """
    replica = build_replica(experiment, len(located.federation.classes), device, tuple(located.federation.hospitals))
    hospitals = _hospitals(experiment, located.federation)
    federated = Federated(
        aggregator=experiment.aggregator,
        workplace=Workplace(replica=replica, training=experiment.training, augment=experiment.augment),
        hospitals=hospitals,
        weights=experiment.weights.weights([hospital.info for hospital in hospitals.values()]),
        cohort=experiment.cohort,
        seed=experiment.seed,
    )
    assessor = Assessor(
        evaluation=experiment.evaluation,
        windows=experiment.windows,
        classes=located.federation.classes,
        read=experiment.data.volume,
        slice_axis=experiment.data.slice_axis,
    )
    server = _initial_server(federated)
    return Assembled(
        federated=federated,
        assessor=assessor,
        initial=Checkpoint(server=server, memories=initial_memories(hospitals)),
    )


def build_replica(
    experiment: Experiment, num_classes: int, device: torch.device, hospitals: Sequence[str] = ()
) -> Replica:
    """The model with its adapters, at the largest rank of the federation, on the device.

    Raises:
        ValueError: ``ranks`` names an unknown hospital, or the method has no rank.
    """
    rng = streams(experiment.seed, "init")
    method = _at_largest_rank(experiment.method, experiment.ranks, hospitals)
    model = experiment.model.build(num_classes, rng)
    layout = method.attach(model)
    method.initialise(model, rng)
    return Replica(model, layout, device=device, precision=experiment.training.precision)


def _at_largest_rank(method: Method, ranks: Mapping[str, int], hospitals: Sequence[str]) -> Method:
    """The method with the largest rank any hospital has; hospitals of a lower one use the first rows."""
    if not ranks:
        return method
    if not isinstance(method, LowRank):
        raise ValueError(f"ranks: expected a method with LoRA, got {type(method).__name__}")
    unknown = sorted(set(ranks) - set(hospitals))
    if unknown:
        raise ValueError(f"ranks: unknown hospitals {unknown}, expected some of {sorted(hospitals)}")
    largest = max(ranks.get(name, method.lora.rank) for name in hospitals)
    return replace(method, lora=replace(method.lora, rank=largest))


def _hospitals(experiment: Experiment, federation: Federation) -> dict[str, Hospital]:
    return {name: _hospital(experiment, name, cases) for name, cases in sorted(federation.hospitals.items())}


def _hospital(experiment: Experiment, name: str, cases: Cases) -> Hospital:
    train = HospitalWindows(_prepared(experiment, cases.train), experiment.windows)
    method = experiment.method
    rank = experiment.ranks.get(name, method.lora.rank) if isinstance(method, LowRank) else None
    return Hospital(
        info=HospitalInfo(name=name, num_examples=len(train), rank=rank),
        train=train,
        validation=tuple(_prepared(experiment, cases.validation)),
        test=tuple(_prepared(experiment, cases.test)),
    )


def _prepared(experiment: Experiment, cases: Sequence[Case]) -> list[PreparedVolume]:
    size = experiment.model.image_size
    return [prepare(experiment.data.volume(case), size, experiment.windows) for case in cases]


def make_setting(replica: Replica, hospitals: Mapping[str, Hospital], training: Training) -> Setting:
    """What an algorithm may know before round 1."""
    optimizer = training.optimizer
    return Setting(
        trainable=replica.read(),
        layout=replica.layout,
        hospitals=tuple(hospital.info for _, hospital in sorted(hospitals.items())),
        frozen=replica.frozen_shapes(),
        optimizer="sgd" if isinstance(optimizer, SGD) else "adamw",
        momentum=optimizer.momentum if isinstance(optimizer, SGD) else 0.0,
    )


def _initial_server(federated: Federated) -> ServerState:
    setting = make_setting(federated.workplace.replica, federated.hospitals, federated.workplace.training)
    try:
        return federated.aggregator.init(setting, federated.rng("server"))
    except ValueError as error:
        raise ValueError(f"aggregator {type(federated.aggregator).__name__}: {error}") from error


def _check_hospitals(federation: Federation) -> None:
    lacking = [
        f"{name} has no {split} case"
        for name, cases in federation.hospitals.items()
        for split, found in (("training", cases.train), ("test", cases.test))
        if not found
    ]
    if lacking:
        raise ValueError("every hospital needs training and test cases: " + "; ".join(lacking))


def _data_hash(federation: Federation) -> str:
    """SHA-256 over who has which case in which split, and the bytes of every file. Paths do not enter."""
    digest = hashlib.sha256(repr(federation.classes).encode())
    for hospital, split, case in _all_cases(federation):
        digest.update(f"{hospital}/{split}/{case.name}/{case.patient}".encode())
        for path in (case.image, case.label):
            digest.update(_file_hash(path))
    return digest.hexdigest()


def _all_cases(federation: Federation) -> Iterator[tuple[str, str, Case]]:
    for hospital, cases in sorted(federation.hospitals.items()):
        for split, found in (("train", cases.train), ("validation", cases.validation), ("test", cases.test)):
            for case in found:
                yield hospital, split, case


def _file_hash(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file: {error.strerror}") from error
