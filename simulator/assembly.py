"""From an experiment to the objects a run is made of: data in memory, model on the device, algorithm, weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..aggregators.contract import HospitalInfo, Phase, ServerState, Setting, Tensors
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
from ..datasets.fingerprints import file_hash, text_hash
from ..datasets.windows import HospitalWindows, PreparedVolume, Windows
from .assessment import Assessor
from .attacks import poisoned
from .builder import resolve
from .checkpoint import Checkpoint
from .cohort import Hospital, Outsider
from .federation import Federated, initial_memories
from .placement import place_windows
from .progress import counting
from .randomness import streams
from .resident import Resident
from .results import COMMON, POOLED
from .runtime import Runtime
from .sampling import Cohort, draw, drop
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

    experiment: Experiment
    federated: Federated
    assessor: Assessor
    features: Features
    initial: Checkpoint


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The volumes of an experiment, ready to train and to be scored.

    Args:
        hospitals: Those that train, with their windows where batches are cut out, by name, sorted. Their ranks are not
            set.
        outsiders: Volumes that are scored and belong to none of them.
        sizes: Training windows of every hospital of the federation, also where they are pooled.
    """

    hospitals: Mapping[str, Hospital]
    outsiders: tuple[Outsider, ...]
    sizes: Mapping[str, int]


def locate(experiment: Experiment, data: Path | None, resident: Resident | None = None) -> Located:
    """Finds, splits and hashes the data of an experiment, and hashes its weights.

    Args:
        experiment: The experiment.
        data: Folder of the data, None for the data set's own default.
        resident: What runs of this process share.

    Raises:
        ValueError: the folder is missing or holds something else, or the cohort is larger than the federation.
    """
    shared = resident or Resident()
    key = (data, *map(resolve, (experiment.data, experiment.split)), experiment.split_seed)
    found = shared.once("cases", key, partial(_find_cases, experiment, data))
    experiment.evaluation.check(found.federation.classes)
    experiment.cohort.check(len(found.federation.hospitals))
    return replace(found, weights_hash=experiment.model.weights_hash())


def _find_cases(experiment: Experiment, data: Path | None) -> Located:
    """The cases, without the hash of the weights."""
    root = experiment.data.locate(data)
    pool = experiment.data.pool(root)
    facts = preparation_of(experiment, len(pool.classes)).facts
    federation = experiment.split.federation(pool, root, streams(experiment.split_seed, "split"), facts)
    hashes = {path: file_hash(path) for _, _, case in all_cases(federation) for path in case.files}
    return Located(federation=federation, file_hashes=hashes, data_hash=_data_hash(federation, hashes), weights_hash="")


def assemble(
    experiment: Experiment,
    located: Located,
    device: torch.device,
    *,
    quiet: bool = True,
    resident: Resident | None = None,
) -> Assembled:
    """Prepares the volumes, builds the model and initialises the algorithm.

    Args:
        experiment: The experiment.
        located: Its cases.
        device: Where to compute.
        quiet: No progress bar while volumes are prepared.
        resident: What runs of this process share.

    Raises:
        ValueError: a volume is bad, the weights do not fit, or the algorithm cannot work in this setting.
    """
    shared = resident or Resident()
    num_classes = len(located.federation.classes)
    replica = build_replica(experiment, num_classes, device, tuple(located.federation.hospitals), shared)
    if experiment.runtime.compile:
        replica.compile()
    prepared = _prepared(experiment, located, device, quiet, shared)
    hospitals = {name: _ranked(experiment, hospital) for name, hospital in prepared.hospitals.items()}
    federated = Federated(
        aggregator=experiment.aggregator,
        workplace=Workplace(replica=replica, training=_training(experiment, prepared), augment=experiment.augment),
        hospitals=hospitals,
        weights=experiment.weights.weights([hospital.info for hospital in hospitals.values()]),
        cohort=Cohort() if experiment.pooled else experiment.cohort,
        seed=experiment.seed,
        outsiders=prepared.outsiders,
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
        experiment=experiment,
        federated=federated,
        assessor=assessor,
        features=features,
        initial=Checkpoint(server=server, memories=initial_memories(hospitals)),
    )


def _prepared(
    experiment: Experiment, located: Located, device: torch.device, quiet: bool, shared: Resident
) -> Prepared:
    """The volumes, which several runs share; their files are those that were located, every time."""
    parts = (experiment.data, experiment.windows, experiment.stages.attack)
    files = text_hash([str(path) for path in located.file_hashes])  # equal data may lie in two folders
    where = (device, experiment.runtime.windows)
    key = (located.data_hash, files, *map(resolve, parts), experiment.model.image_size, experiment.pooled, where)
    prepared = shared.once("windows", key, partial(prepare, experiment, located, device, quiet=quiet, resident=shared))
    for _, _, case in all_cases(located.federation):
        check_unchanged(case, located.file_hashes)
    return prepared


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
    federation = located.federation
    preparation = preparation_of(experiment, len(federation.classes))
    volumes = _Volumes(preparation=preparation, hashes=located.file_hashes, shared=resident or Resident())
    with counting("preparing", quiet=quiet) as announce:
        preparation.prepare_all(volumes.missing([case for _, _, case in all_cases(federation)]), announce)
    hospitals = {
        name: _hospital(experiment, name, cases, volumes) for name, cases in sorted(federation.hospitals.items())
    }
    sizes = {name: len(hospital.train) for name, hospital in hospitals.items()}
    outsiders = tuple(_outsiders(federation, volumes))
    if experiment.pooled:
        outsiders = (*_scored_apart(hospitals), *outsiders)
        hospitals = {POOLED: _pool(hospitals, experiment.windows)}
    return Prepared(
        hospitals=place_windows(hospitals, device, experiment.runtime.windows), outsiders=outsiders, sizes=sizes
    )


def _pool(hospitals: Mapping[str, Hospital], windows: Windows) -> Hospital:
    """One hospital with the training windows of all, and nothing to be scored on."""
    volumes = [volume for hospital in hospitals.values() for volume in hospital.train.volumes]
    train = HospitalWindows(volumes, windows)
    info = HospitalInfo(name=POOLED, num_examples=len(train), rank=None)
    return Hospital(info=info, train=train, validation=(), test=())


def _scored_apart(hospitals: Mapping[str, Hospital]) -> Iterator[Outsider]:
    """The volumes that hospitals are scored on, under their own names."""
    for name, hospital in hospitals.items():
        if hospital.validation:
            yield Outsider(name=name, split="validation", volumes=hospital.validation)
        if hospital.test:
            yield Outsider(name=name, split="test", volumes=hospital.test)


def _training(experiment: Experiment, prepared: Prepared) -> Training:
    """How hospitals train; where they are pooled, with as many steps as all of them would take."""
    if not experiment.pooled:
        return experiment.training
    return pooled_training(experiment, prepared.sizes)


def pooled_training(experiment: Experiment, sizes: Mapping[str, int]) -> Training:
    """The training of one model on all cases: per round the steps of a mean round of the federation, all hospitals.

    The learning rate goes through its schedule in the same rounds: with P pooled steps in a round and s steps of a
    hospital, the mean over the hospitals and rounds, those included in which it is not drawn or fails, warm-up and
    horizon are P / s times as many steps.

    Args:
        experiment: The run; its cohorts are those that the federation would draw.
        sizes: Training windows of every hospital.
    """
    training, whole = experiment.training, Phase(train=())
    steps = {name: training.num_steps(whole, size) for name, size in sizes.items()}
    mean = sum(steps_taken(experiment, steps)) / max(1, experiment.rounds)
    per_round = max(1, round(mean))
    stretch = per_round * len(steps) / mean if mean else len(steps)
    schedule = training.schedule
    horizon = schedule.horizon_steps
    if schedule.horizon_epochs is not None:  # of a hospital, the mean, in its steps
        per_epoch = sum(training.steps_per_epoch(size) for size in sizes.values()) / len(sizes)
        horizon = round(schedule.horizon_epochs * per_epoch)
    return replace(
        training,
        steps=per_round,
        schedule=replace(
            schedule,
            warmup_steps=round(schedule.warmup_steps * stretch),
            horizon_epochs=None,
            horizon_steps=None if horizon is None else max(1, round(horizon * stretch)),
        ),
    )


def steps_taken(experiment: Experiment, steps: Mapping[str, int]) -> Iterator[int]:
    """The steps of every hospital that finishes a round, round after round."""
    for number in range(1, experiment.rounds + 1):
        drawn = draw(experiment.cohort, list(steps), streams(experiment.seed, "cohort", number))
        dropped = drop(experiment.cohort, drawn, streams(experiment.seed, "drop", number))
        yield from (steps[name] for name in drawn if name not in dropped)


def build_replica(
    experiment: Experiment,
    num_classes: int,
    device: torch.device,
    hospitals: Sequence[str] = (),
    resident: Resident | None = None,
) -> Replica:
    """The model with its adapters, at the largest rank of the federation, on the device.

    Weights that were read are there once for all runs that share ``resident``; what a run trains is its own.

    Raises:
        ValueError: ``ranks`` names an unknown hospital, or the method has no rank.
    """
    rng = streams(experiment.seed, "init")
    method = at_largest_rank(experiment.method, experiment.ranks, hospitals)
    shared = resident or Resident()
    base = _base(experiment, num_classes, device, shared)
    model = experiment.model.build(num_classes, rng, base)
    layout = method.attach(model)
    method.initialise(model, rng)
    structure = (resolve(experiment.model), num_classes, type(method), resolve(method))
    replica = Replica(
        model,
        layout,
        device=device,
        precision=experiment.training.precision,
        unused=shared.found("unused", structure),
    )
    shared.once("unused", structure, lambda: replica.unused)
    return replica


def _base(experiment: Experiment, num_classes: int, device: torch.device, shared: Resident) -> Tensors:
    """The weights of the base that were read from somewhere, on the device."""
    model = experiment.model
    dtype = torch.float64 if experiment.training.precision == "fp64" else torch.float32

    def load() -> Tensors:
        return {name: value.to(device, dtype) for name, value in model.pretrained(num_classes).items()}

    return shared.once("base", (resolve(model), model.weights_hash(), num_classes, device, dtype), load)


def at_largest_rank(method: Method, ranks: Mapping[str, int], hospitals: Sequence[str]) -> Method:
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


@dataclass(frozen=True, kw_only=True)
class _Volumes:
    """The prepared volumes of cases; federations that have a case in common share its volume."""

    preparation: Preparation
    hashes: Mapping[Path, str]
    shared: Resident

    def missing(self, cases: Sequence[Case]) -> list[Case]:
        """Those that are not there yet."""
        return [case for case in cases if self.shared.found("volumes", self._key(case)) is None]

    def of(self, cases: Sequence[Case]) -> tuple[PreparedVolume, ...]:
        """The volumes of cases, in their order."""
        return tuple(
            self.shared.once("volumes", self._key(case), partial(self.preparation.load, case)) for case in cases
        )

    def _key(self, case: Case) -> object:
        return self.preparation, case, [self.hashes[path] for path in case.files]


def _hospital(experiment: Experiment, name: str, cases: Cases, volumes: _Volumes) -> Hospital:
    windows = HospitalWindows(volumes.of(cases.train), experiment.windows)
    train = poisoned(experiment.stages.attack, name, windows, volumes.preparation.num_classes)
    return Hospital(
        info=HospitalInfo(name=name, num_examples=len(train), rank=None),
        train=train,
        validation=volumes.of(cases.validation),
        test=volumes.of(cases.test),
    )


def _ranked(experiment: Experiment, hospital: Hospital) -> Hospital:
    """The hospital with the rank it has in this experiment."""
    name, method = hospital.info.name, experiment.method
    rank = experiment.ranks.get(name, method.lora.rank) if isinstance(method, LowRank) else None
    return replace(hospital, info=replace(hospital.info, rank=rank))


def _outsiders(federation: Federation, volumes: _Volumes) -> Iterator[Outsider]:
    if federation.common:
        yield Outsider(name=COMMON, split="test", volumes=volumes.of(federation.common))
    for name, cases in federation.unseen.items():
        yield Outsider(name=name, split="unseen", volumes=volumes.of(cases))


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
