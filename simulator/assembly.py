"""From an experiment to the objects a run is made of: data in memory, model on the device, algorithm, weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..aggregators.contract import HospitalInfo, Phase, ServerState, Setting, Tensors
from ..aggregators.scheduled import name_of
from ..clients import METHODS
from ..clients.batches import Source
from ..clients.class_losses import CrossEntropy
from ..clients.contract import Method, at_rank, rank_of
from ..clients.features import Features
from ..clients.losses import Loss, SegmentationLoss
from ..clients.optimizers import SGD
from ..clients.replica import Replica
from ..clients.training import Training, Workplace
from ..datasets.augment import fixed_variants
from ..datasets.class_counts import histogram
from ..datasets.contract import Case, Dataset, Federation, Volume, has_classes, with_masks
from ..datasets.facts import no_facts
from ..datasets.fingerprints import file_hash, text_hash
from .assessment import Assessor
from .builder import called, resolve
from .checkpoint import Checkpoint
from .cohort import Hospital
from .federation import Federated, initial_memories
from .image_assessment import ImageAssessor
from .prepared import Prepared, preparation_of, prepare
from .randomness import streams
from .resident import Resident
from .results import COMMON
from .runtime import Runtime
from .sampling import Cohort, draw, drop
from .scheduling import draw_of, with_schedule
from .seen_cases import check_unseen
from .stages import check_stages
from .starting import Start, donor_hash, start_of
from .volume_assessment import VolumeAssessor
from .weights import check_rule, rule_of

if TYPE_CHECKING:
    from .config import Experiment


@dataclass(frozen=True, kw_only=True)
class Located:
    """The cases of an experiment, found and split, with the SHA-256 of every file.

    Args:
        federation: Who has which case.
        pool: All cases of the folder, those that nobody has included.
        file_hashes: Of the files of the federation.
        data_hash: Of who has what.
        weights_hash: Of the weights of the base, and of the run or adapter that is started from.
    """

    federation: Federation
    pool: tuple[Case, ...]
    file_hashes: Mapping[Path, str]
    data_hash: str
    weights_hash: str

    @property
    def cases(self) -> list[Case]:
        """All cases of the federation, in the order of :func:`all_cases`."""
        return [case for _, _, case in all_cases(self.federation)]


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """Everything a run needs, ready for round 1.

    Args:
        experiment: What is run.
        federated: The federation.
        assessor: How cases are scored.
        features: What is kept of the frozen start of the model.
        initial: The state before round 1.
        started_from: What was taken over of another run or adapter, for the manifest; None: nothing.
    """

    experiment: Experiment
    federated: Federated
    assessor: Assessor
    features: Features
    initial: Checkpoint
    started_from: Mapping[str, Any] | None = None


def locate(experiment: Experiment, data: Path | None, resident: Resident | None = None) -> Located:
    """Finds, splits and hashes the data of an experiment, and hashes its weights.

    Args:
        experiment: The experiment.
        data: Folder of the data, None for the data set's own default.
        resident: What runs of this process share.

    Raises:
        ValueError: the folder is missing or holds something else, the cohort is larger than the federation, or what
            is started from was trained on cases that are scored here.
    """
    shared = resident or Resident()
    key = (data, *map(resolve, (experiment.data, experiment.split)), experiment.split_seed)
    found = shared.once("cases", key, partial(_find_cases, experiment, data))
    experiment.evaluation.check(found.federation.classes)
    experiment.cohort.check(len(found.federation.hospitals))
    located = replace(found, weights_hash=weights_hash(experiment))
    check_unseen(experiment, located)
    return located


def weights_hash(experiment: Experiment) -> str:
    """Of all weights that a run begins with and that do not follow from its seed.

    Raises:
        ValueError: they are absent.
    """
    base = experiment.model.weights_hash()
    return base if experiment.start_from is None else text_hash(base, donor_hash(experiment.start_from))


def _find_cases(experiment: Experiment, data: Path | None) -> Located:
    """The cases, without the hash of the weights."""
    root = experiment.data.locate(data)
    pool = experiment.data.pool(root)
    facts = no_facts if has_classes(experiment.data) else preparation_of(experiment, len(pool.classes)).facts
    federation = experiment.split.federation(pool, root, streams(experiment.split_seed, "split"), facts)
    paths = dict.fromkeys(path for _, _, case in all_cases(federation) for path in case.files)
    hashes = {path: file_hash(path) for path in paths}
    return Located(
        federation=federation,
        pool=pool.cases,
        file_hashes=hashes,
        data_hash=_data_hash(federation, hashes),
        weights_hash="",
    )


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
    classes, names = located.federation.classes, tuple(located.federation.hospitals)
    if experiment.start_from is not None and weights_hash(experiment) != located.weights_hash:
        raise ValueError(f"start_from: {experiment.start_from}: it changed while this run began; run it again")
    start = start_of(experiment, _method(experiment, names), len(classes), classes, shared)
    replica = build_replica(experiment, len(classes), device, names, shared, classes=classes, start=start)
    if experiment.runtime.compile:
        replica.compile()
    prepared = _prepared(experiment, located, device, quiet, shared)
    hospitals = {name: _ranked(experiment, hospital) for name, hospital in prepared.hospitals.items()}
    federated = Federated(
        aggregator=with_schedule(experiment.aggregator, replica.layout, draw_of(experiment.method), experiment.seed),
        workplace=Workplace(
            replica=replica,
            training=_training(experiment, prepared),
            augment=experiment.augment,
            loss=loss_of(experiment, located.federation),
        ),
        hospitals=hospitals,
        weights=experiment.weights.weights([hospital.info for hospital in hospitals.values()]),
        cohort=Cohort() if experiment.pooled else experiment.cohort,
        seed=experiment.seed,
        outsiders=prepared.outsiders,
        rule=rule_of(experiment.weights),
        stages=experiment.stages,
    )
    assessor = assessor_of(experiment, located)
    features = keep_features(federated, _scored_sources(federated, assessor), experiment.runtime)
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
        started_from=None if start is None else start.record,
    )


def assessor_of(experiment: Experiment, located: Located) -> Assessor:
    """How the cases of an experiment are scored."""
    if has_classes(experiment.data):
        return ImageAssessor(
            evaluation=experiment.evaluation,
            classes=located.federation.classes,
            check_files=partial(check_files, hashes=located.file_hashes),
        )
    return VolumeAssessor(
        evaluation=experiment.evaluation,
        windows=experiment.windows,
        classes=located.federation.classes,
        read=partial(read_unchanged, with_masks(experiment.data), located.file_hashes),
        check_case=partial(check_unchanged, hashes=located.file_hashes),
    )


def loss_of(experiment: Experiment, federation: Federation) -> Loss:
    """The loss of an experiment; one that weighs classes counts the training images of the whole federation."""
    usual = CrossEntropy() if has_classes(experiment.data) else SegmentationLoss()
    loss = usual if experiment.loss is None else experiment.loss
    train = [case for cases in federation.hospitals.values() for case in cases.train]
    return loss.fitted(histogram(train, len(federation.classes)))


def _prepared(
    experiment: Experiment, located: Located, device: torch.device, quiet: bool, shared: Resident
) -> Prepared:
    """The volumes, which several runs share; their files are those that were located, every time."""
    parts = (experiment.data, experiment.windows, experiment.stages.attack)  # every setting that batches depend on
    files = text_hash([str(path) for path in located.file_hashes])  # equal data may lie in two folders
    where = (device, experiment.runtime.windows)
    key = (located.data_hash, files, *map(resolve, parts), experiment.model.image_size, experiment.pooled, where)
    prepared = shared.once("windows", key, partial(prepare, experiment, located, device, quiet=quiet, resident=shared))
    check_files(located.file_hashes, located.file_hashes)
    return prepared


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
    *,
    classes: Sequence[str] = (),
    start: Start | None = None,
) -> Replica:
    """The model with its adapters, at the largest rank of the federation, on the device.

    Weights that were read are there once for all runs that share ``resident``; what a run trains is its own.

    Args:
        experiment: The experiment.
        num_classes: C.
        device: Where to compute.
        hospitals: Those that train.
        resident: What runs of this process share.
        classes: Names of the C classes: where the run starts from another one, heads of other classes begin anew.
        start: What the run starts from, where somebody has read it already.

    Raises:
        ValueError: ``ranks`` names an unknown hospital, or the method has no rank; or what is started from does not
            fit.
    """
    rng = streams(experiment.seed, "init")
    method = _method(experiment, hospitals)
    shared = resident or Resident()
    start = start or start_of(experiment, method, num_classes, classes, shared)
    base = _base(experiment, num_classes, device, shared, start)
    model = experiment.model.build(num_classes, rng, base)
    layout = method.attach(model)
    method.initialise(model, rng)
    if start is not None:
        start.begin(model)
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


def _method(experiment: Experiment, hospitals: Sequence[str]) -> Method:
    """The method at the largest rank of the federation."""
    return at_largest_rank(experiment.method, experiment.ranks, hospitals)


def _base(
    experiment: Experiment, num_classes: int, device: torch.device, shared: Resident, start: Start | None
) -> Tensors:
    """The weights of the base that were read from somewhere, on the device."""
    model = experiment.model
    dtype = torch.float64 if experiment.training.precision == "fp64" else torch.float32

    def load() -> Tensors:
        found = model.pretrained(num_classes) if start is None else start.weights(experiment, num_classes)
        return {name: value.to(device, dtype) for name, value in found.items()}

    key = (resolve(model), model.weights_hash(), num_classes, device, dtype)
    return shared.once("base", key if start is None else (*key, start.key), load)


def at_largest_rank(method: Method, ranks: Mapping[str, int], hospitals: Sequence[str]) -> Method:
    """The method with the largest rank any hospital has; hospitals of a lower one use the first rows."""
    if not ranks:
        return method
    own = rank_of(method)
    if own is None:
        word = called(METHODS, type(method))
        raise ValueError(f"ranks: expected a method with LoRA or low-rank prompts, got {word}")
    unknown = sorted(set(ranks) - set(hospitals))
    if unknown:
        raise ValueError(f"ranks: unknown hospitals {unknown}, expected some of {sorted(hospitals)}")
    return at_rank(method, max(ranks.get(name, own) for name in hospitals))


def _ranked(experiment: Experiment, hospital: Hospital) -> Hospital:
    """The hospital with the rank it has in this experiment."""
    name, own = hospital.info.name, rank_of(experiment.method)
    rank = None if own is None else experiment.ranks.get(name, own)
    return replace(hospital, info=replace(hospital.info, rank=rank))


def make_setting(
    replica: Replica, hospitals: Mapping[str, Hospital], training: Training, cohort_size: int | None = None
) -> Setting:
    """What an algorithm may know before round 1."""
    infos = [hospital.info for _, hospital in sorted(hospitals.items())]
    return _setting(replica, infos, training, cohort_size)


def _setting(
    replica: Replica, hospitals: Sequence[HospitalInfo], training: Training, cohort_size: int | None
) -> Setting:
    optimizer = training.optimizer
    return Setting(
        trainable=replica.read(),
        layout=replica.layout,
        hospitals=tuple(hospitals),
        frozen=replica.frozen_shapes(),
        optimizer="sgd" if isinstance(optimizer, SGD) else "adamw",
        momentum=training.momentum,
        cohort_size=cohort_size,
    )


def setting_of(experiment: Experiment, replica: Replica, hospitals: Sequence[HospitalInfo]) -> Setting:
    """What the algorithm of a run may know, where its hospitals have no data at hand."""
    training, size = experiment.training, None if experiment.pooled else experiment.cohort.size
    return _setting(replica, hospitals, training, size)


def _initial_server(federated: Federated) -> ServerState:
    place = federated.workplace
    setting = make_setting(place.replica, federated.hospitals, place.training, federated.cohort.size)
    try:
        return federated.aggregator.init(setting, federated.rng("server"))
    except ValueError as error:
        raise ValueError(f"aggregator {name_of(federated.aggregator)}: {error}") from error


def keep_features(federated: Federated, scored: Iterable[Source], runtime: Runtime) -> Features:
    """Room for what the frozen start of the model makes of examples: those that train, then those that are scored.

    Args:
        federated: The run.
        scored: What is scored.
        runtime: How much room.
    """
    return Features(
        federated.workplace.replica,
        [*_training_sources(federated), *scored],
        memory_mb=runtime.features_mb,
        disk_mb=runtime.features_disk_mb,
    )


def _training_sources(federated: Federated) -> Iterator[Source]:
    """What batches of all rounds are cut from, in order of names; the streams are those of :func:`.run_round`."""
    augment = federated.workplace.augment
    for name, hospital in sorted(federated.hospitals.items()):
        forms = fixed_variants(augment, len(hospital.train), federated.rng("lasting", name))
        yield Source(windows=hospital.train, variants=forms)


def _scored_sources(federated: Federated, assessor: Assessor) -> Iterator[Source]:
    """What is scored, in order of names."""
    hospitals = [hospital for _, hospital in sorted(federated.hospitals.items())]
    scored = [cases for hospital in hospitals for cases in (hospital.validation, hospital.test)]
    for cases in (*scored, *(outsider.cases for outsider in federated.outsiders)):
        if len(cases):
            yield assessor.source(cases, federated.workplace.replica)


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
    check_files(case.files, hashes)


def check_files(paths: Iterable[Path], hashes: Mapping[Path, str]) -> None:
    """Raises ValueError when a file is not the one that the run is named after."""
    for path in paths:
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
        if case.target is not None:
            digest.update(f"/{case.target}/{case.row}".encode())
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
