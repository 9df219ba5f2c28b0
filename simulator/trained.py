"""The model that a run has made: read from its checkpoint, without the data it was trained on.

What predicts, exports and starts further runs begins here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..aggregators.contract import Aggregator, HospitalInfo, Tensors
from ..aggregators.local import Local
from ..clients.replica import Replica
from .assembly import build_replica, setting_of, weights_hash
from .checkpoint import Checkpoint
from .config import load_resolved
from .randomness import streams
from .rundir import RunDirectory
from .runtime import choose_device
from .scheduling import draw_of, with_schedule

if TYPE_CHECKING:
    from .config import Experiment


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run's model after a round.

    Args:
        path: The run directory.
        experiment: What was run.
        classes: Names of the C classes; of a segmentation, of the foreground (label 1 first).
        hospitals: Those that trained, by name, sorted.
        replica: The network; holds whatever was loaded last.
        aggregator: The algorithm, with the run's schedule.
        checkpoint: The state after the round.
    """

    path: Path
    experiment: Experiment
    classes: tuple[str, ...]
    hospitals: Mapping[str, HospitalInfo]
    replica: Replica
    aggregator: Aggregator
    checkpoint: Checkpoint

    @property
    def round(self) -> int:
        """The round."""
        return self.checkpoint.round

    def tensors(self, hospital: str | None = None) -> Tensors:
        """The trainable tensors of the model that is deployed somewhere.

        Args:
            hospital: At one of the hospitals that trained; None: at a site never seen.

        Raises:
            ValueError: there is no such hospital; or none is given, and each has a model of its own alone.
        """
        deploy, server = self.aggregator.deploy, self.checkpoint.server
        if hospital is None and isinstance(self.aggregator, Local):
            raise ValueError(
                f"{self.path}: expected a hospital, as each of them trained for itself and there is no model of all; "
                f"got none: choose one of {', '.join(self.hospitals)}"
            )
        if hospital is None:
            return deploy(server, None, {})
        if hospital not in self.hospitals:
            raise ValueError(f"expected one of the hospitals {', '.join(self.hospitals)}, got {hospital!r}")
        return deploy(server, self.hospitals[hospital], self.checkpoint.memories[hospital].tensors)

    def load(self, hospital: str | None = None) -> Replica:
        """The replica with that model in it: changes to frozen weights, and trainable tensors."""
        self.replica.set_base(self.checkpoint.server.base)
        self.replica.load(self.tensors(hospital))
        return self.replica


def load_trained(path: Path, *, round_number: int | None = None, device: str = "auto") -> Trained:
    """Reads the model of a run.

    Args:
        path: The run directory; the run need not be finished.
        round_number: Which round; None: the last that was saved. Runs keep the last two.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ValueError: there is no run, no such round, the weights of the base are others now, or the device is not there.
    """
    directory = RunDirectory(path)
    manifest = _manifest(directory)
    experiment = load_resolved(path / "config.yaml")
    if weights_hash(experiment) != manifest["weights_hash"]:
        start = "" if experiment.start_from is None else f" or what it started from, {str(experiment.start_from)!r},"
        raise ValueError(
            f"{path}: its base weights {experiment.model.weights!r}{start} are other ones now; put them back"
        )
    number = _round(directory, round_number)
    classes = tuple(manifest["classes"])
    hospitals = {name: HospitalInfo(name=name, **facts) for name, facts in sorted(manifest["hospitals"].items())}
    replica = build_replica(experiment, len(classes), choose_device(device), tuple(hospitals), classes=classes)
    aggregator = with_schedule(experiment.aggregator, replica.layout, draw_of(experiment.method), experiment.seed)
    setting = setting_of(experiment, replica, tuple(hospitals.values()))
    server = aggregator.init(setting, streams(experiment.seed, "server"))
    checkpoint = directory.checkpoints.load(number, server.setting)
    return Trained(
        path=path,
        experiment=experiment,
        classes=classes,
        hospitals=hospitals,
        replica=replica,
        aggregator=aggregator,
        checkpoint=checkpoint,
    )


def _manifest(directory: RunDirectory) -> Mapping[str, Any]:
    """The manifest of a run that has a model.

    Raises:
        ValueError: there is none.
    """
    manifest = directory.manifest
    if manifest is None:
        raise ValueError(
            f"{directory.path}: expected a run directory with manifest.json; "
            "give the folder runs/<experiment>/<id> that `wardround run` printed"
        )
    if "checkpoints" in manifest.get("cleaned", []):
        raise ValueError(
            f"{directory.path}: its checkpoints were removed by `wardround clean`, and its model with them; remove the "
            "folder and run the experiment again"
        )
    absent = [key for key in ("classes", "hospitals") if key not in manifest]
    if absent:
        raise ValueError(
            f"{directory.path}: expected {' and '.join(absent)} in its manifest.json, which runs of an earlier version "
            "and runs that stopped before round 0 do not have; run it again"
        )
    return manifest


def _round(directory: RunDirectory, wanted: int | None) -> int:
    """The round to read."""
    saved = directory.checkpoints.rounds()
    if not saved:
        raise ValueError(f"{directory.path}: expected at least one checkpoint, found none; the run did not come so far")
    if wanted is None:
        return saved[-1]
    if wanted not in saved:
        raise ValueError(
            f"{directory.path}: expected one of the rounds that are kept, {', '.join(map(str, saved))}, got {wanted}"
        )
    return wanted
