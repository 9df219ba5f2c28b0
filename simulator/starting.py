"""``start_from``: a run that begins with what another run, or an adapter of PEFT, has learned.

The donor is a run directory, of which the last checkpoint counts (the model as it is deployed at a site never seen), or
a folder with ``adapter_config.json``. What is taken, merged and begun anew: :mod:`~wardround.clients.donor`.

A case that the donor was trained on must not be scored by the new run: every run keeps the hashes of the cases that it
and those before it were trained on in ``trained_on.txt``, and exports carry them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..aggregators.contract import Tensors
from ..clients import weight_files
from ..clients.contract import Method
from ..clients.donor import Donor, Factors, Plan, begin, plan, taken_apart, weights_for
from ..clients.network import Model
from ..clients.peft_files import PeftAdapter, read_peft
from ..datasets.contract import Case
from ..datasets.fingerprints import file_hash, text_hash
from ..datasets.overlaps import COLLECTIONS, name_of, overlapping
from .builder import resolve
from .files import write_text
from .randomness import streams
from .resident import Resident
from .rundir import RunDirectory, run_id

if TYPE_CHECKING:
    from .assembly import Located
    from .config import Experiment

TRAINED_ON = "trained_on.txt"
"""File of a run directory: a SHA-256 per training case, sorted, one per line."""

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

    def weights(self, experiment: Experiment, num_classes: int) -> dict[str, Any]:
        """All tensors of the new network without adapters, on the CPU."""
        model = experiment.model
        loaded = model.pretrained(num_classes) if self.base else {}
        network = model.build(num_classes, streams(experiment.seed, "init"), loaded)
        return weights_for(self.donor, self.plan, network.state_dict())

    def begin(self, network: Any) -> None:
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
    method.attach(network)
    try:
        made = plan(found.donor, network, bare, tuple(classes) or None)
    except ValueError as error:
        raise ValueError(f"start_from: {path}: {error}") from error
    whole = text_hash(key, type(method).__qualname__, resolve(method), experiment.seed)
    return Start(donor=found.donor, plan=made, origin=found.origin, base=found.base, key=whole)


def _read(path: Path, experiment: Experiment, num_classes: int, classes: tuple[str, ...]) -> _Found:
    folder = path.expanduser()
    if _is_run(folder):
        return _read_run(path, experiment.model)
    return _read_adapter(path, experiment, num_classes, classes)


def _read_run(path: Path, ours: Model) -> _Found:
    """The model of a run, with everything in it."""
    from .trained import load_trained

    trained = load_trained(path.expanduser(), device="cpu")
    theirs = trained.experiment.model
    _check_model(path, _settings(theirs), _settings(ours))
    _check_weights(path, theirs.weights, theirs.weights_hash(), ours)
    origin = {"path": str(path), "run": f"{trained.experiment.name}/{_run_name(path)}", "round": trained.round}
    return _Found(donor=taken_apart(trained.load().model, trained.classes), origin=origin, base=False)


def _read_adapter(path: Path, experiment: Experiment, num_classes: int, classes: tuple[str, ...]) -> _Found:
    """An adapter of PEFT on its own ``base/``, or else on the base of the experiment."""
    ours = experiment.model
    folder, said = path.expanduser(), _origin(path.expanduser())
    theirs = said.get("model")
    if isinstance(theirs, Mapping):
        _check_model(path, _plain_settings(theirs), _settings(ours))
    base = folder / "base"
    has_base = base.is_dir()
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
        factors=tuple(_factors(adapter, network)),
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


def _factors(adapter: PeftAdapter, network: nn.Module) -> Iterator[Factors]:
    """The low-rank changes of an adapter of PEFT."""
    shapes = {name: value.shape for name, value in network.named_parameters()}
    unknown = sorted(change.weight for change in adapter.changes if change.weight not in shapes)
    if unknown:
        raise ValueError(
            f"start_from: expected changes of weights of this model, got {len(unknown)} others, such as {unknown[:3]}"
        )
    for change in adapter.changes:
        yield Factors(weight=change.weight, rows=change.rows, A=change.A, B=change.B)


# ---- what it is ------------------------------------------------------------------------------------------------------


def donor_hash(path: Path) -> str:
    """SHA-256 of what a run starts from: of a run its id, its round and its state, of an adapter its files.

    Where a folder lies does not enter.

    Raises:
        ValueError: there is no such folder, or it is neither of the two.
    """
    folder = path.expanduser()
    if _is_run(folder):
        return _run_hash(path, RunDirectory(folder))
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(_neither(path, folder))
    inside = (folder, folder / "base") if (folder / "base").is_dir() else (folder,)
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
    state = directory.checkpoints.folder / f"round-{number:04d}" / "server.safetensors"
    return text_hash("run", run, number, file_hash(state))


def _neither(path: Path, folder: Path) -> str:
    """What is wrong with a folder that is no donor."""
    expected = "expected a run directory (runs/<experiment>/<id>) or a folder with adapter_config.json"
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


def _is_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and (folder / "config.yaml").is_file()


def _run_name(path: Path) -> str:
    """The id of a run."""
    return str((RunDirectory(path.expanduser()).manifest or {})["id"])


def _settings(model: Model) -> dict[str, Any]:
    """What a model is, without where its values come from."""
    return {"type": type(model).__qualname__.lower(), **_plain_settings(resolve(model))}


def _plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in (*_FREE, "name", "class")}


def _check_model(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises ValueError with all settings in which two models differ."""
    differ = [key for key in theirs if key in ours and theirs[key] != ours[key]]
    if differ:
        found = "; ".join(f"model.{key}: expected {theirs[key]!r}, got {ours[key]!r}" for key in differ)
        raise ValueError(f"start_from: {path}: expected the same model as there; {found}")


def _check_weights(path: Path, name: str, digest: str, ours: Model) -> None:
    """Raises ValueError where the experiment names other base weights than the donor grew from."""
    if ours.weights_hash() != digest:
        raise ValueError(
            f"start_from: {path}: model.weights: expected the base that it was trained on, {name!r}, as its frozen "
            f"weights are taken over, got {ours.weights!r}; set model.weights={name}"
        )


def _origin(folder: Path) -> dict[str, Any]:
    """What ``wardround.json`` of an export says; nothing for the folders of others."""
    file = folder / "wardround.json"
    return weight_files.read_json(file) if file.is_file() else {}


# ---- what it has seen ------------------------------------------------------------------------------------------------


def case_hash(case: Case, hashes: Mapping[Path, str]) -> str:
    """SHA-256 of the image of a case: the bytes of its files, masks aside, and its row in them.

    Args:
        case: The case.
        hashes: SHA-256 of its files.
    """
    images = dict.fromkeys((case.image, *case.parts))
    return hashlib.sha256("/".join([*(hashes[path] for path in images), str(case.row)]).encode()).hexdigest()


def trained_on(experiment: Experiment, located: Located) -> list[str]:
    """The lines of ``trained_on.txt``: the training cases of a run and of all those that it starts from, sorted."""
    own = {case_hash(case, located.file_hashes) for case in _sides(located)["train"]}
    before = frozenset() if experiment.start_from is None else _seen(experiment.start_from) or frozenset()
    return sorted(own | before)


def write_trained_on(folder: Path, experiment: Experiment, located: Located) -> None:
    """Writes ``trained_on.txt`` into a run directory."""
    write_text(folder / TRAINED_ON, "".join(f"{line}\n" for line in trained_on(experiment, located)))


def read_trained_on(folder: Path) -> frozenset[str]:
    """The lines of a run's ``trained_on.txt``.

    Raises:
        ValueError: there is none.
    """
    file = folder / TRAINED_ON
    if not file.is_file():
        raise ValueError(
            f"start_from: {folder}: expected {TRAINED_ON}, which says what it was trained on and which runs of an "
            "earlier version do not have; run it again"
        )
    return frozenset(file.read_text(encoding="utf-8").split())


def _seen(path: Path) -> frozenset[str] | None:
    """The cases that a donor was trained on; None where nobody says."""
    folder = path.expanduser()
    if _is_run(folder):
        return read_trained_on(folder)
    lines = _origin(folder).get("trained_on")
    return None if lines is None else frozenset(map(str, lines))


def check_unseen(experiment: Experiment, located: Located) -> None:
    """Refuses to score what the donor was trained on.

    Raises:
        ValueError: with the number of the cases and some of their names, or with the collections of images that the
            donor's base and data share with the data set.
    """
    path = experiment.start_from
    if path is None:
        return
    seen = _seen(path) or frozenset()
    found = {
        side: [case.name for case in cases if case_hash(case, located.file_hashes) in seen]
        for side, cases in _sides(located).items()
        if side != "train"
    }
    problems = [_seen_cases(side, names) for side, names in found.items() if names]
    problems += overlapping(experiment.data, list(dict.fromkeys(_collections(path, name_of(experiment.data)))))
    if problems:
        raise ValueError(
            f"start_from: {path}: expected a model that has not seen the cases it is scored on; {'; '.join(problems)}. "
            "Start from a run with the same split of the same data, or from one of other data"
        )


def _seen_cases(side: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    word = "case" if len(names) == 1 else "cases"
    return f"it was trained on {len(names)} {side} {word}: {', '.join(names[:5])}{more}"


def _sides(located: Located) -> dict[str, list[Case]]:
    """All cases of a federation by what they are for."""
    from .assembly import all_cases

    sides: dict[str, list[Case]] = {"train": []}
    for _, side, case in all_cases(located.federation):
        sides.setdefault(side, []).append(case)
    return sides


def _collections(path: Path, ours: str) -> Iterator[str]:
    """Collections of images that a donor, those before it and their bases have seen, other than the new run's own."""
    from .config import load_resolved

    folder = path.expanduser()
    if not _is_run(folder):
        said = _origin(folder)
        yield from said.get("model", {}).get("pretrained_on", ())
        data = said.get("data", {})
        name = data.get("flag", data.get("name"))
        if name in COLLECTIONS and name != ours:
            yield name
        return
    experiment = load_resolved(folder / "config.yaml")
    yield from experiment.model.pretrained_on
    name = name_of(experiment.data)
    if name in COLLECTIONS and name != ours:
        yield name
    if experiment.start_from is not None:
        yield from _collections(experiment.start_from, ours)
