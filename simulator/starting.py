"""``start_from``: a run that begins with what another run, or an adapter of PEFT, has learned.

The donor is a run directory, of which the last checkpoint counts (the model as it is deployed at a site never seen), or
a folder with ``adapter_config.json``. What is taken, merged and begun anew: :mod:`~wardround.clients.donor`.

A case that the donor was trained on must not be scored by the new run: :mod:`.seen_cases`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..aggregators.contract import Tensors
from ..aggregators.local import Local
from ..clients import MODELS
from ..clients.contract import Method, at_rank, rank_of
from ..clients.donor import Donor, Plan, begin, plan, taken_apart, weights_for
from ..clients.merged import LowRankChange
from ..clients.network import Model, Network
from ..clients.peft_files import CONFIG, PeftAdapter, read_peft
from ..datasets.fingerprints import file_hash, text_hash
from .builder import PLUGIN_KEYS, called, resolve, word_of
from .randomness import streams
from .resident import Resident
from .rundir import RunDirectory, is_run, run_id

if TYPE_CHECKING:
    from .config import Experiment

_FREE = ("weights", "heads", "pretrained_on")
"""Settings of a model that say where its values come from, not what it is."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins with.

    Args:
        donor: The other model.
        plan: What is taken of it.
        origin: Where it comes from, for the manifest: ``path``, ``run``, ``round``.
        base: Whether the rest comes from the weights of the experiment's own base.
        key: What it depends on; equal keys, equal weights.
    """

    donor: Donor
    plan: Plan
    origin: Mapping[str, Any]
    base: bool
    key: str

    @property
    def record(self) -> dict[str, Any]:
        """``started_from`` of the manifest."""
        return {**self.origin, **self.plan.names()}

    def weights(self, experiment: Experiment, num_classes: int) -> dict[str, Tensor]:
        """All tensors of the new network without adapters, on the CPU."""
        model = experiment.model
        loaded = model.pretrained(num_classes) if self.base else {}
        network = model.build(num_classes, streams(experiment.seed, "init"), loaded)
        return weights_for(self.donor, self.plan, network.state_dict())

    def begin(self, network: Network) -> None:
        """Sets the adapters of the new network, which are initialised already."""
        begin(network, self.donor, self.plan)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A donor that was read: the model, where it comes from, and whether the rest comes from the experiment's base."""

    donor: Donor
    origin: Mapping[str, Any]
    base: bool


def start_of(
    experiment: Experiment, method: Method, num_classes: int, classes: Sequence[str], shared: Resident
) -> Start | None:
    """What an experiment begins with; None where it starts from its base alone.

    Args:
        experiment: The experiment.
        method: Its method, at the largest rank of the federation.
        num_classes: C.
        classes: Names of the C classes; empty: nobody knows them.
        shared: What runs of this process share.

    Raises:
        ValueError: the donor is not there, is of another model, or has adapters that the method does not have.
    """
    path = experiment.start_from
    if path is None:
        return None
    donor, model = donor_hash(path), experiment.model
    key = text_hash(donor, model.weights_hash(), resolve(model), list(classes), num_classes)
    found = shared.once("donor", key, lambda: _read(path, experiment, num_classes, tuple(classes)))
    bare, network = model.build_meta(num_classes), model.build_meta(num_classes)
    smallest = _at_smallest_rank(experiment, method)
    smallest.attach(network)
    try:
        made = plan(found.donor, network, bare, tuple(classes) or None)
    except ValueError as error:
        raise ValueError(f"start_from: {path}: {error}") from error
    whole = text_hash(key, type(method).__qualname__, resolve(method), resolve(smallest), experiment.seed)
    return Start(donor=found.donor, plan=made, origin=found.origin, base=found.base, key=whole)


def _at_smallest_rank(experiment: Experiment, method: Method) -> Method:
    """The method at the rank of the hospital that has the lowest: an adapter goes on where all of them can hold it."""
    own = rank_of(experiment.method)
    return method if own is None else at_rank(method, min((own, *experiment.ranks.values())))


def _read(path: Path, experiment: Experiment, num_classes: int, classes: tuple[str, ...]) -> _Found:
    folder = path.expanduser()
    if is_run(folder):
        return _read_run(path, experiment.model)
    return _read_adapter(path, experiment, num_classes, classes)


def _read_run(path: Path, ours: Model) -> _Found:
    """The model of a run, with everything in it."""
    from .trained import load_trained

    trained = load_trained(path.expanduser(), device="cpu")
    if isinstance(trained.aggregator, Local):
        raise ValueError(
            f"start_from: {path}: expected a run with a model of all, got one with the aggregator local, where every "
            "hospital has its own; start from an export of one: `wardround export --format peft --hospital NAME`"
        )
    theirs = trained.experiment.model
    _check_model(path, _settings(theirs), _settings(ours))
    _check_weights(path, theirs.weights, theirs.weights_hash(), ours)
    origin = {"path": str(path), "run": f"{trained.experiment.name}/{_run_name(path)}", "round": trained.round}
    return _Found(donor=taken_apart(trained.load().model, trained.classes), origin=origin, base=False)


def _read_adapter(path: Path, experiment: Experiment, num_classes: int, classes: tuple[str, ...]) -> _Found:
    """An adapter of PEFT on its own ``base/``, or else on the base of the experiment."""
    ours = experiment.model
    from .exports.origin import BASE, FILE, read_origin

    folder = path.expanduser()
    said = read_origin(folder) if (folder / FILE).is_file() else {}
    theirs = said.get("model")
    if isinstance(theirs, Mapping):
        _check_model(path, _plain_settings(theirs), _settings(ours))
    base = folder / BASE
    has_base = base.is_dir()
    if not has_base and said.get("started_from"):
        raise ValueError(
            f"start_from: {path}: expected an export with its base, as its run started from another one and no weights "
            f"file holds what that had learned; got one without the folder {BASE}: export the run again, with it"
        )
    if said.get("weights_hash") and Path(ours.weights).expanduser() != base:
        _check_weights(path, str(base if has_base else (theirs or {}).get("weights")), said["weights_hash"], ours)
    if not has_base and said.get("weights_hash") == "random" and said.get("seed") != experiment.seed:
        raise ValueError(
            f"start_from: {path}: expected seed {said.get('seed')!r}, as the random base of this adapter follows from "
            f"it, got {experiment.seed!r}; or export the adapter with its base"
        )
    known = tuple(said["classes"]) if said.get("classes") else None
    try:
        adapter = read_peft(folder)
        weights = _of_base(ours, base, num_classes, known in (None, classes)) if has_base else {}
    except ValueError as error:
        raise ValueError(f"start_from: {error}") from error
    network = ours.build_meta(num_classes)
    donor = Donor(
        weights={**weights, **adapter.saved},
        whole=False,
        factors=_changes(adapter, network),
        classes=known,
    )
    origin = {"path": str(path), "run": said.get("run"), "round": said.get("round")}
    return _Found(donor=donor, origin=origin, base=not has_base)


def _of_base(ours: Model, base: Path, num_classes: int, same_classes: bool) -> Tensors:
    """The tensors of an exported base."""
    fields: dict[str, Any] = {"weights": str(base)}
    if hasattr(ours, "heads"):
        fields["heads"] = "checkpoint" if same_classes else "new"
    changed: Any = ours
    there: Model = replace(changed, **fields)
    return there.pretrained(num_classes)


def _changes(adapter: PeftAdapter, network: nn.Module) -> tuple[LowRankChange, ...]:
    """The low-rank changes of an adapter of PEFT; ValueError where they are none of this network."""
    shapes = {name: value.shape for name, value in network.named_parameters()}
    unknown = sorted(change.weight for change in adapter.changes if change.weight not in shapes)
    if unknown:
        raise ValueError(
            f"start_from: expected changes of weights of this model, got {len(unknown)} others, such as {unknown[:3]}"
        )
    return adapter.changes


# ---- what it is ------------------------------------------------------------------------------------------------------


def donor_hash(path: Path) -> str:
    """SHA-256 of what a run starts from: of a run its id, its round and its state, of an adapter its files.

    Where a folder lies does not enter.

    Raises:
        ValueError: there is no such folder, or it is neither of the two.
    """
    folder = path.expanduser()
    if is_run(folder):
        return _run_hash(path, RunDirectory(folder))
    if not (folder / CONFIG).is_file():
        raise ValueError(_neither(path, folder))
    from .exports.origin import BASE

    inside = (folder, folder / BASE) if (folder / BASE).is_dir() else (folder,)
    files = sorted(file for one in inside for file in one.iterdir() if file.is_file() and file.name != "README.md")
    return text_hash("adapter", [[file.relative_to(folder).as_posix(), file_hash(file)] for file in files])


def _run_hash(path: Path, directory: RunDirectory) -> str:
    from .assembly import weights_hash
    from .config import identity, load_resolved

    manifest, number = directory.manifest or {}, directory.checkpoints.latest()
    if number is None or "checkpoints" in manifest.get("cleaned", []):
        raise ValueError(
            f"start_from: {path}: expected a run with a checkpoint, got one without; `wardround clean` removes them, "
            "and a run that was stopped early has none yet. Run it again, or give another one"
        )
    experiment = load_resolved(directory.path / "config.yaml")
    run = run_id(identity(experiment), manifest["data_hash"], weights_hash(experiment))
    return text_hash("run", run, number, directory.checkpoints.server_hash(number))


def _neither(path: Path, folder: Path) -> str:
    """What is wrong with a folder that is no donor."""
    expected = f"expected a run directory (runs/<experiment>/<id>) or a folder with {CONFIG}"
    if not folder.exists():
        return f"start_from: {path}: {expected}, got nothing; it was moved or removed, put it back or give another one"
    if (
        folder.is_file()
        or any((folder / name).exists() for name in ("config.json", "model.safetensors"))
        or any(folder.glob("*.pth"))
    ):
        return (
            f"start_from: {path}: {expected}, got the weights of a whole model; give them as a base instead: "
            f"model: {{weights: {path}}}, for SAM with heads: checkpoint to keep its masks"
        )
    return f"start_from: {path}: {expected}, got another folder"


def _run_name(path: Path) -> str:
    """The id of a run."""
    return str((RunDirectory(path.expanduser()).manifest or {})["id"])


def _settings(model: Model) -> dict[str, Any]:
    """What a model is, without where its values come from."""
    return _plain_settings({"name": called(MODELS, type(model)), **resolve(model)})


def _plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """By the path of each setting; the name of the model, or its class, is that of the plug-in itself."""
    plain = {f"model.{key}": value for key, value in settings.items() if key not in (*_FREE, *PLUGIN_KEYS)}
    return {"model": word_of(settings), **plain}


def _check_model(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises ValueError with all settings in which two models differ."""
    differ = [key for key in theirs if key in ours and theirs[key] != ours[key]]
    if differ:
        if "model" in differ:  # the settings of another model say nothing
            differ = ["model"]
        found = "; ".join(f"{key}: expected {theirs[key]!r}, got {ours[key]!r}" for key in differ)
        raise ValueError(f"start_from: {path}: expected the same model as there; {found}")


def _check_weights(path: Path, name: str, digest: str, ours: Model) -> None:
    """Raises ValueError where the experiment names other base weights than the donor grew from."""
    if ours.weights_hash() != digest:
        raise ValueError(
            f"start_from: {path}: model.weights: expected the base that it was trained on, {name!r}, as its frozen "
            f"weights are taken over, got {ours.weights!r}; set model.weights={name}"
        )
