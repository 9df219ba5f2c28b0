"""What an experiment is: one frozen object, built once at the door from YAML; nothing behind it sees a mapping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from ..aggregators import AGGREGATORS
from ..aggregators.contract import Aggregator
from ..aggregators.fedavg import FedAvg
from ..clients import LOSSES, METHODS, MODELS, vit_weights, weight_files
from ..clients.evaluation import Evaluation
from ..clients.losses import Loss
from ..clients.methods import Method
from ..clients.network import Model
from ..clients.training import Training
from ..datasets import DATASETS
from ..datasets.augment import AUGMENTS, Augment, Augmentation
from ..datasets.contract import Dataset, ImageDataset, task_of
from ..datasets.image_phantom import ImagePhantom
from ..datasets.overlaps import overlapping
from ..datasets.split import Split
from ..datasets.windows import Windows
from . import yaml12
from .builder import ConfigError, Problem, build, expand, merge, resolve
from .experiments import DOCUMENTATION, ExperimentsFile
from .recording import Instruments
from .runtime import WHERE_AND_HOW, Runtime
from .sampling import Cohort
from .stages import Stages
from .weights import WEIGHTINGS, Examples, Weighting

__all__ = ["ConfigError", "Experiment", "Runtime", "build", "identity", "load_experiment", "load_resolved", "resolve"]

_OF_THE_BASE = ("model.weights", "model.pretrained_on")

_NOT_IDENTITY = ("name", "purpose", *(f"runtime.{name}" for name in WHERE_AND_HOW), *_OF_THE_BASE)
"""What does not enter a run's id: words, where and how it runs, the weights' path (their hash enters on its own), and
what they have seen."""


_IDENTITY_IF_OTHER: Mapping[str, Any] = {
    "loss": None,
    "method.lora.blocks": None,
    "method.lora.matrices": "qv",
    "pooled": False,
    "evaluation.test": "due",
    "evaluation.cross_site": False,
    "start_from": None,
}
"""Settings that came later, with the value that is left out, so that earlier runs keep their ids."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides the result of a run.

    Args:
        name: Its key in experiments.yaml; also a folder name.
        purpose: One sentence for people.
        data: Where the cases come from.
        split: Which hospital has which cases, and what for.
        windows: How volumes become training windows.
        augment: What is done to a training window.
        model: The base that every hospital starts from.
        start_from: A run directory or a folder with an adapter of PEFT whose model is taken over: its weights, and its
            adapters where the method has them too; null: the base as it is. What it has seen must not be scored here.
        method: Which tensors may train.
        training: How a hospital trains.
        loss: What it minimises; null: FLAP-SAM's loss where there are masks, cross-entropy where there are classes.
        aggregator: What the server does with the updates.
        rounds: Rounds, >= 0; 0: the base is scored as it is.
        pooled: Train one model on the training cases of all hospitals together instead, taking as many steps as all of
            them take; every hospital's volumes are still scored by themselves. What a federation is compared with.
        cohort: Who takes part in a round.
        weights: How much a hospital counts.
        stages: What happens to updates on their way to the server: attack, compression, secure sum, privacy.
        ranks: LoRA rank per hospital, >= 1; those not named have the method's.
        evaluation: When and how the model is scored.
        instruments: Which of the server's steps are measured.
        seed: Of every random stream but the split, >= 0.
        split_seed: Of everything random in ``split``, >= 0: runs of several seeds are scored on the same volumes.
        runtime: Where it runs.
    """

    name: str
    purpose: str = ""
    data: Annotated[Dataset | ImageDataset, DATASETS]
    split: Split = field(default_factory=Split)
    windows: Windows = field(default_factory=Windows)
    augment: Annotated[Augmentation, AUGMENTS] = field(default_factory=Augment)
    model: Annotated[Model, MODELS]
    start_from: Path | None = None
    method: Annotated[Method, METHODS]
    training: Training = field(default_factory=Training)
    loss: Annotated[Loss | None, LOSSES] = None
    aggregator: Annotated[Aggregator, AGGREGATORS]
    rounds: int = 25
    pooled: bool = False
    cohort: Cohort = field(default_factory=Cohort)
    weights: Annotated[Weighting, WEIGHTINGS] = field(default_factory=Examples)
    stages: Stages = field(default_factory=Stages)
    ranks: Mapping[str, int] = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)
    instruments: Instruments = field(default_factory=Instruments)
    seed: int = 0
    split_seed: int = 0
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        problems = []
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", self.name):
            problems.append(f"name: expected letters, digits and '_.+-' (it names a folder), got {self.name!r}")
        if self.rounds < 0:
            problems.append(f"rounds: expected at least 0, got {self.rounds!r}")
        for name, seed in (("seed", self.seed), ("split_seed", self.split_seed)):
            if seed < 0:
                problems.append(f"{name}: expected a number of at least 0, got {seed!r}")
        problems += [*_of_another_task(self), *_seen_before(self)]
        problems += _not_pooled(self) if self.pooled else []
        low = {name: rank for name, rank in self.ranks.items() if rank < 1}
        if low:
            problems.append(f"ranks: expected numbers of at least 1, got {low!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def __repr__(self) -> str:
        from .showing import experiment_text

        return experiment_text(self)

    def _repr_html_(self) -> str:
        from .showing import experiment_html

        return experiment_html(self)


def _of_another_task(experiment: Experiment) -> list[str]:
    """What does not go together with the model."""
    model = type(experiment.model)
    word = next((name for name, row in MODELS.items() if issubclass(model, row)), None)
    suits: tuple[str, ...] | None = getattr(experiment.method, "models", None)
    problems = []
    if task_of(experiment.data) != model.task:
        kind = {"segmentation": "volumes with masks", "classification": "images with a class each"}
        problems.append(
            f"data: expected {kind[model.task]}, as the model is for {model.task}, got {kind[task_of(experiment.data)]}"
        )
    if word is not None and suits is not None and word not in suits:
        problems.append(f"method: expected one for the model {word!r}, got one for {', '.join(suits)}")
    if model.task == "classification":
        problems += _of_volumes(experiment)
    if experiment.loss is not None and experiment.loss.task != model.task:
        problems.append(f"loss: expected one for {model.task}, got one for {experiment.loss.task}")
    return problems


def _of_volumes(experiment: Experiment) -> list[str]:
    """Settings that mean something for volumes alone, and are not at their defaults."""
    usual = Evaluation()
    given = {
        "windows": experiment.windows != Windows(),
        "evaluation.regions": experiment.evaluation.regions != usual.regions,
        "evaluation.surface_tolerance_mm": experiment.evaluation.surface_tolerance_mm != usual.surface_tolerance_mm,
    }
    chosen = [path for path, is_set in given.items() if is_set]
    return [f"{path}: expected none, as it is a setting of volumes, got one" for path in chosen]


def _seen_before(experiment: Experiment) -> list[str]:
    """Whether the weights were trained on images that are tested here."""
    if experiment.model.weights == "random" and experiment.start_from is None:
        return []
    seen = overlapping(experiment.data, experiment.model.pretrained_on) + _phantoms_seen(experiment)
    return [f"model.pretrained_on: expected weights that have not seen the federation's images; {why}" for why in seen]


def _phantoms_seen(experiment: Experiment) -> list[str]:
    """Whether a packaged base was trained on the very phantoms of this experiment."""
    data, weights = experiment.data, experiment.model.weights
    if not isinstance(data, ImagePhantom) or weights not in vit_weights.PACKAGED:
        return []
    seed = weight_files.about(weights).get("image_phantom", {}).get("seed")
    return [f"{weights} was trained on image phantoms of data.seed={seed!r}"] if data.seed == seed else []


def _not_pooled(experiment: Experiment) -> list[str]:
    """What makes no sense with one hospital that has all cases."""
    fitting = {
        "aggregator": (type(experiment.aggregator) is FedAvg, "fedavg"),
        "weights": (experiment.weights == Examples(), "examples"),
        "stages": (experiment.stages == Stages(), "none"),
        "ranks": (not experiment.ranks, "none"),
        "evaluation.cross_site": (not experiment.evaluation.cross_site, "false"),
    }
    return [
        f"{path}: expected {wanted}, as there is one hospital where all cases are pooled, got another"
        for path, (fits, wanted) in fitting.items()
        if not fits
    ]


Change = tuple[str, Mapping[str, Any]]
"""Settings to put on top of an entry, nested as in a file, and where they come from, as errors begin with it."""


def load_experiment(name: str, file: ExperimentsFile, overrides: Sequence[str] = ()) -> Experiment:
    """Builds one experiment of a file.

    Args:
        name: The entry.
        file: What :func:`.experiments.open_file` read.
        overrides: ``path=value`` with the paths of the entry and values in YAML, the later ones winning.

    Raises:
        ConfigError: with every problem of the entry, of those it extends and of the overrides.

    Example:
        >>> from wardround.simulator.experiments import open_file, PACKAGED
        >>> load_experiment("quickstart", open_file(PACKAGED), ["method.lora.rank=4"]).method.lora.rank
        4
    """
    return build_experiment(name, file, [("--set ", nested(text)) for text in overrides])


def build_experiment(name: str, file: ExperimentsFile, changes: Sequence[Change]) -> Experiment:
    """Builds one experiment of a file with changes on top, the later ones winning.

    Raises:
        ConfigError: with every problem of the entry, of those it extends and of the changes; or the entry is a sweep.
    """
    layers = layers_of(name, file)
    purpose = file.entries[name].get("purpose", "")
    return build_stacked(name, purpose, [*reversed(changes), *layers], where=f"{file.path}: {name}.")


def layers_of(name: str, file: ExperimentsFile) -> list[Change]:
    """The settings of an entry and of those it extends, the winning ones first. Raises ConfigError."""
    layers: list[Change] = [(f"{file.path}: {entry}.", settings_of(value)) for entry, value in file.layers(name)]
    if name in file.sweeps:
        raise ConfigError([f"{name!r} is a sweep of many runs: `wardround sweep {name}`"])
    return layers


def build_stacked(name: str, purpose: str, layers: Sequence[Change], *, where: str) -> Experiment:
    """Builds an experiment from settings on top of each other.

    Args:
        name: Of the experiment.
        purpose: What it is for, where no layer says it.
        layers: Settings and where they come from, the winning ones first.
        where: What errors begin with that are of no layer.

    Raises:
        ConfigError: with every problem.
    """
    stack = [(label, expand(Experiment, value)) for label, value in layers]
    merged: dict[str, Any] = {"purpose": purpose}
    for _, value in reversed(stack):
        merged = merge(merged, value)
    renamed = (
        [Problem("name", "no setting: an experiment is called by its key in the file")] if "name" in merged else []
    )
    try:
        experiment = build(Experiment, {**merged, "name": name})
    except ConfigError as error:
        raise _located([*renamed, *error.problems], stack, where) from error
    if renamed:
        raise _located(renamed, stack, where)
    return experiment


def load_resolved(path: Path) -> Experiment:
    """Reads what :func:`resolve` wrote: the ``config.yaml`` of a run. Raises ConfigError or YamlError."""
    try:
        return build(Experiment, yaml12.load(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {problem}" for problem in error.problems) from error


def identity(experiment: Experiment) -> dict[str, Any]:
    """The resolved config without what cannot change a result (words, device, threads) and without paths."""
    config: dict[str, Any] = resolve(experiment, without=Path)
    for path in _NOT_IDENTITY:
        part, last = _parent(config, path)
        part.pop(last, None)
    for path, unsaid in _IDENTITY_IF_OTHER.items():
        part, last = _parent(config, path)
        if part.get(last, ...) == unsaid:
            part.pop(last)
    return config


def _parent(config: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds the last key of a path, empty where there is none, and that key."""
    *above, last = path.split(".")
    part: Any = config
    for key in above:
        part = part.get(key) if isinstance(part, dict) else None
    return part if isinstance(part, dict) else {}, last


def settings_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without ``extends`` and without what describes it."""
    return {key: value for key, value in entry.items() if key not in ("extends", *DOCUMENTATION)}


def nested(override: str) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError([f"--set {override}: expected path=value, such as method.lora.rank=8"])
    value: Any = yaml12.loads(text, f"--set {override}")
    for key in reversed(keys):
        value = {key: value}
    return {**value}


def _located(
    problems: Iterable[Problem | str], stack: Sequence[tuple[str, Mapping[str, Any]]], entry: str
) -> ConfigError:
    """The problems with the place that brought each: an override, the entry, or one it extends."""
    lines = []
    for problem in problems:
        path = problem.path if isinstance(problem, Problem) else ""
        place = next((label for label, value in stack if path and _has(value, path)), entry)
        lines.append(f"{place}{problem}")
    return ConfigError(lines)


def _has(value: Any, path: str) -> bool:
    """Whether a nested mapping goes as deep as the path, list positions aside."""
    for key in path.partition("[")[0].split("."):
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True
