"""From an experiment to the objects a run is made of: data in memory, model on the device, algorithm, weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..aggregators.contract import HospitalInfo, ServerState, Setting
from ..clients.batches import Source
from ..clients.evaluation import source_of
from ..clients.features import Features
from ..clients.methods import LowRank, Method
from ..clients.optimizers import SGD
from ..clients.replica import Replica
from ..clients.training import Training, Workplace
from ..datasets.augment import fixed_variants
from ..datasets.cache import Preparation
from ..datasets.contract import Case, Cases, Dataset, Federation, Volume
from ..datasets.fingerprints import file_hash
from ..datasets.windows import HospitalWindows, PreparedVolume, Windows
from .assessment import Assessor
from .attacks import poisoned
from .checkpoint import Checkpoint
from .cohort import Hospital, Outsider
from .federation import Federated, initial_memories
from .placement import place_windows
from .progress import counting
from .randomness import streams
from .results import COMMON
from .runtime import Runtime
from .stages import check_stages
from .weights import check_rule, rule_of

if TYPE_CHECKING:
    from .config import Experiment


@dataclass(frozen=True, kw_only=True)
class Located:
    """The cases of an experiment, found and split, with the SHA-256 of every file."""

    federation: Federation
    file_hashes: Mapping[Path, str]
    data_hash: str
    weights_hash: str


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """Everything a run needs, ready for round 1."""

    federated: Federated
    assessor: Assessor
    features: Features
    initial: Checkpoint


def locate(experiment: Experiment, data: Path | None) -> Located:
    """Finds, splits and hashes the data of an experiment, and hashes its weights.

    Args:
        experiment: The experiment.
        data: Folder of the data, None for the data set's own default.

    Raises:
        ValueError: the folder is missing or holds something else, or the cohort is larger than the federation.
    """
    root = experiment.data.locate(data)
    pool = experiment.data.pool(root)
    facts = preparation_of(experiment, len(pool.classes)).facts
    federation = experiment.split.federation(pool, root, streams(experiment.split_seed, "split"), facts)
    experiment.evaluation.check(federation.classes)
    experiment.cohort.check(len(federation.hospitals))
    hashes = {path: file_hash(path) for _, _, case in all_cases(federation) for path in case.files}
    return Located(
        federation=federation,
        file_hashes=hashes,
        data_hash=_data_hash(federation, hashes),
        weights_hash=experiment.model.weights_hash(),
    )


def assemble(experiment: Experiment, located: Located, device: torch.device, *, quiet: bool = True) -> Assembled:
    """Prepares the volumes, builds the model and initialises the algorithm.

    Args:
        experiment: The experiment.
        located: Its cases.
        device: Where to compute.
        quiet: No progress bar while volumes are prepared.

    Raises:
        ValueError: a volume is bad, the weights do not fit, or the algorithm cannot work in this setting.
    """
    replica = build_replica(experiment, len(located.federation.classes), device, tuple(located.federation.hospitals))
    if experiment.runtime.compile:
        replica.compile()
    preparation = preparation_of(experiment, len(located.federation.classes))
    with counting("preparing", quiet=quiet) as announce:
        preparation.prepare_all([case for _, _, case in all_cases(located.federation)], announce)
    for _, _, case in all_cases(located.federation):
        check_unchanged(case, located.file_hashes)
    hospitals = {
        name: _hospital(experiment, name, cases, preparation)
        for name, cases in sorted(located.federation.hospitals.items())
    }
    hospitals = place_windows(hospitals, device, experiment.runtime.windows)
    federated = Federated(
        aggregator=experiment.aggregator,
        workplace=Workplace(replica=replica, training=experiment.training, augment=experiment.augment),
        hospitals=hospitals,
        weights=experiment.weights.weights([hospital.info for hospital in hospitals.values()]),
        cohort=experiment.cohort,
        seed=experiment.seed,
        outsiders=tuple(_outsiders(located.federation, preparation)),
        rule=rule_of(experiment.weights),
        stages=experiment.stages,
    )
    assessor = Assessor(
        evaluation=experiment.evaluation,
        windows=experiment.windows,
        classes=located.federation.classes,
        read=partial(read_unchanged, experiment.data, located.file_hashes),
        check=partial(check_unchanged, hashes=located.file_hashes),
    )
    features = keep_features(federated, experiment.windows, experiment.runtime)
    federated = replace(federated, workplace=replace(federated.workplace, kept=features if features else None))
    server = _initial_server(federated)
    check_stages(federated, server)
    check_rule(federated.rule, federated.aggregator, server.setting)
    return Assembled(
        federated=federated,
        assessor=assessor,
        features=features,
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


def preparation_of(experiment: Experiment, num_classes: int) -> Preparation:
    """How the volumes of an experiment are prepared, and where."""
    return Preparation(
        dataset=experiment.data,
        num_classes=num_classes,
        image_size=experiment.model.image_size,
        windows=experiment.windows,
    )


def _hospital(experiment: Experiment, name: str, cases: Cases, preparation: Preparation) -> Hospital:
    windows = HospitalWindows(_loaded(preparation, cases.train), experiment.windows)
    train = poisoned(experiment.stages.attack, name, windows, preparation.num_classes)
    method = experiment.method
    rank = experiment.ranks.get(name, method.lora.rank) if isinstance(method, LowRank) else None
    return Hospital(
        info=HospitalInfo(name=name, num_examples=len(train), rank=rank),
        train=train,
        validation=_loaded(preparation, cases.validation),
        test=_loaded(preparation, cases.test),
    )


def _outsiders(federation: Federation, preparation: Preparation) -> Iterator[Outsider]:
    if federation.common:
        yield Outsider(name=COMMON, split="test", volumes=_loaded(preparation, federation.common))
    for name, cases in federation.unseen.items():
        yield Outsider(name=name, split="unseen", volumes=_loaded(preparation, cases))


def _loaded(preparation: Preparation, cases: Sequence[Case]) -> tuple[PreparedVolume, ...]:
    return tuple(preparation.load(case) for case in cases)


def make_setting(
    replica: Replica, hospitals: Mapping[str, Hospital], training: Training, cohort_size: int | None = None
) -> Setting:
    """What an algorithm may know before round 1."""
    optimizer = training.optimizer
    return Setting(
        trainable=replica.read(),
        layout=replica.layout,
        hospitals=tuple(hospital.info for _, hospital in sorted(hospitals.items())),
        frozen=replica.frozen_shapes(),
        optimizer="sgd" if isinstance(optimizer, SGD) else "adamw",
        momentum=training.momentum,
        cohort_size=cohort_size,
    )


def _initial_server(federated: Federated) -> ServerState:
    place = federated.workplace
    setting = make_setting(place.replica, federated.hospitals, place.training, federated.cohort.size)
    try:
        return federated.aggregator.init(setting, federated.rng("server"))
    except ValueError as error:
        raise ValueError(f"aggregator {type(federated.aggregator).__name__}: {error}") from error


def keep_features(federated: Federated, windows: Windows, runtime: Runtime) -> Features:
    """Room for what the frozen start of the model makes of windows: those that train, then those that are scored.

    Args:
        federated: The run.
        windows: How volumes are cut for scoring.
        runtime: How much room.
    """
    return Features(
        federated.workplace.replica,
        _lasting_sources(federated, windows),
        memory_mb=runtime.features_mb,
        disk_mb=runtime.features_disk_mb,
    )


def _lasting_sources(federated: Federated, windows: Windows) -> Iterator[Source]:
    """What batches of all rounds are cut from, in order of names; the streams are those of :func:`.run_round`."""
    place, hospitals = federated.workplace, federated.hospitals
    for name, hospital in sorted(hospitals.items()):
        forms = fixed_variants(place.augment, len(hospital.train), federated.rng("lasting", name))
        yield Source(windows=hospital.train, variants=forms)
    scored = [part for _, hospital in sorted(hospitals.items()) for part in (hospital.validation, hospital.test)]
    for volumes in (*scored, *(outsider.volumes for outsider in federated.outsiders)):
        if volumes:
            yield source_of(volumes, windows, place.replica)


def read_unchanged(dataset: Dataset, hashes: Mapping[Path, str], case: Case) -> Volume:
    """Reads a case whose files are those that the run began with.

    Raises:
        ValueError: a file is another one now.
    """
    check_unchanged(case, hashes)
    volume = dataset.volume(case)
    check_unchanged(case, hashes)
    return volume


def check_unchanged(case: Case, hashes: Mapping[Path, str]) -> None:
    """Raises ValueError when a file of a case is not the one that the run is named after."""
    for path in case.files:
        if file_hash(path) != hashes[path]:
            raise ValueError(
                f"{path}: expected the file that was there when the run began, it has changed since; put it back to go "
                "on, or run again for a run of the new data"
            )


def _data_hash(federation: Federation, hashes: Mapping[Path, str]) -> str:
    """SHA-256 over who has which case in which split, and the bytes of every file. Paths do not enter."""
    digest = hashlib.sha256(repr(federation.classes).encode())
    for hospital, split, case in all_cases(federation):
        digest.update(f"{hospital}/{split}/{case.name}/{case.patient}".encode())
        for path in case.files:
            digest.update(hashes[path].encode())
    return digest.hexdigest()


def all_cases(federation: Federation) -> Iterator[tuple[str, str, Case]]:
    """Hospital (or outsider), side and case, in a fixed order."""
    for hospital, cases in sorted(federation.hospitals.items()):
        for split, found in (("train", cases.train), ("validation", cases.validation), ("test", cases.test)):
            for case in found:
                yield hospital, split, case
    yield from (("", COMMON, case) for case in federation.common)
    for site, left_out in federation.unseen.items():
        yield from ((site, "unseen", case) for case in left_out)
