"""Wardround from Python: run an experiment, and look at what came of it.

Everything heavy is imported where it is used: opening a run and reading its rows needs no model code.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .results import RunRecords
from .showing import run_html, run_text, score_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from ..aggregators.contract import Aggregator, Setting
    from .config import Experiment
    from .prediction import Predicted
    from .recording import RecordedRound
    from .replay import Replayed
    from .reports.run_figure import Beside
    from .run_state import State
    from .trained import Trained

Rows = list[dict[str, Any]]
"""Plain rows: ``pandas.DataFrame(rows)`` makes a table of them."""


def run(
    experiment: str | Mapping[str, Any] | Experiment,
    *,
    root: Path | str | None = None,
    out: Path | str = "runs",
    device: str | None = None,
    quiet: bool = False,
    images: bool = True,
    record_updates: bool = False,
    allow_changed_environment: bool = False,
    experiments: Path | str | None = None,
    log: str | None = None,
    **overrides: Any,
) -> Run:
    """Runs an experiment, or goes on with it, or finds that it is finished.

    Args:
        experiment: The name of an entry, settings, or an experiment; see :func:`load_experiment`.
        root: Folder of the data (``--data`` of the command line); None: ``WARDROUND_DATA``, or the data set's own.
        out: Folder of all runs. A ``~`` in a path is your home directory.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``; None: as the experiment says.
        quiet: No progress bars; of a run that was finished before, only what other code or another machine it was made
            with is printed.
        images: Keep slices of test volumes for the report.
        record_updates: Keep what every hospital was handed and sent, for :meth:`Run.updates` and ``wardround replay``.
        allow_changed_environment: Go on although code, device or threads changed since the run began.
        experiments: File of experiments; None: ``./experiments.yaml`` if it exists, else the packaged one.
        log: Where else rows are written: ``tensorboard``, or None.
        overrides: Settings to change; see :func:`load_experiment`.

    Returns:
        The finished run.

    Raises:
        ValueError: bad input, with where and how to mend it. What was finished stays.
        OSError: the disk is full or not writable.

    Example:
        >>> import tempfile
        >>> import wardround
        >>> folder = tempfile.mkdtemp()
        >>> run = wardround.run("tiny", rounds=1, method__lora__rank=1, out=folder, quiet=True)
        >>> run
        Run('.../tiny/...'): finished, round 1 of 1, Dice ...
        >>> run.metrics[0]
        {'round': 0, 'hospital': 'hospital-1', 'split': 'test', 'metric': 'dice', 'value': ...}
        >>> sorted(run.summary)
        ['bytes_down', 'bytes_up', 'dice', 'rounds', 'seconds', 'steps']
        >>> run.state(0), run.rounds
        (State(round=0, tensors=... with ... values), [0, 1])
    """
    from .overrides import experiment_of
    from .run import run as run_to_the_end

    settings = overrides if device is None else {**overrides, "runtime__device": device}
    file, data, folder = _path("experiments", experiments), _path("root", root), _runs_folder(out)
    with _ordinary_tensors():
        outcome = run_to_the_end(
            experiment_of(experiment, file, settings, arguments=_arguments(run)),
            data=data,
            out=folder,
            quiet=quiet,
            images=images,
            record_updates=record_updates,
            allow_changed_environment=allow_changed_environment,
            experiments_file=_called(experiment, file),
            log=log,
        )
    done = Run(outcome.path)
    done._note = outcome.environment
    if record_updates and not done.manifest.get("record_updates"):
        raise ValueError(
            f"record_updates: {done.path} was finished before, without its updates; remove that folder, or give "
            "another one as `out`"
        )
    said = done.note if quiet else outcome.note
    if said:
        print(said)
    return done


def load_experiment(
    experiment: str | Mapping[str, Any] | Experiment,
    *,
    experiments: Path | str | None = None,
    **overrides: Any,
) -> Experiment:
    """Builds an experiment.

    Args:
        experiment: The name of an entry of experiments.yaml; or settings as an entry has them, with ``extends`` and
            ``name`` where wanted (it is ``notebook`` otherwise); or an experiment.
        experiments: File of experiments; None: ``./experiments.yaml`` if it exists, else the packaged one.
        overrides: Settings to change, as ``--set`` does: ``rounds=3``, ``method={"lora": {"rank": 8}}``, or with two
            underscores for a dot, ``method__lora__rank=8`` (``**{"method.lora.rank": 8}`` is the same). Numbers of
            NumPy, tuples, paths and dataclasses such as ``aggregator=FedProx(mu=0.1)`` or ``method__lora=LoRA(rank=8)``
            are welcome.

    Raises:
        ConfigError: with every problem; a ValueError too.

    Example:
        >>> import wardround
        >>> wardround.load_experiment("quickstart", method__lora__rank=4).method.lora.rank
        4
        >>> wardround.load_experiment({"extends": "tiny", "aggregator": "fedavg"}, seed=1).name
        'notebook'
        >>> wardround.load_experiment("tiny", method__lora__rnak=4)
        Traceback (most recent call last):
        ...
        wardround.simulator.builder.ConfigError: method__lora__rnak: unknown key, did you mean 'rank'? (known: ...)
    """
    from .overrides import experiment_of

    file = _path("experiments", experiments)
    return experiment_of(experiment, file, overrides, arguments=_arguments(load_experiment))


def runs(out: Path | str = "runs", name: str | None = None) -> list[Run]:
    """The runs below a folder, in the order of ``wardround runs``.

    Runs that a sweep names and that are not there, and damaged ones, are left out: ``wardround runs`` lists them.

    Args:
        out: The folder of all runs.
        name: Only the runs of this experiment, or of this sweep; None: all.

    Raises:
        ValueError: no such folder, or nothing of this name in it.
    """
    from .runs_table import list_runs

    lines = list_runs(_path("out", out), name).runs
    return [Run(line.path) for line in lines if line.state != "damaged" and (line.path / "manifest.json").is_file()]


def _called(experiment: object, experiments: Path | None) -> str:
    """Where an experiment was defined, for the manifest."""
    from .experiments import open_file

    if not isinstance(experiment, str):
        return "Python"
    file = open_file(experiments)
    return "the packaged experiments.yaml" if file.packaged else str(file.path)


def _arguments(function: Any) -> tuple[str, ...]:
    """What a function takes besides settings."""
    kinds = inspect.signature(function).parameters
    return tuple(name for name, each in kinds.items() if each.kind is inspect.Parameter.KEYWORD_ONLY)


@overload
def _path(name: str, value: None) -> None: ...


@overload
def _path(name: str, value: Path | str) -> Path: ...


def _path(name: str, value: Path | str | None) -> Path | None:
    """A path as it was given, with the home directory for ``~``. Raises ValueError where it is none."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name}: expected a path, got {value!r}")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise ValueError(f"{name}: expected a path, got {str(value)!r}: {error}") from error


def _runs_folder(out: Path | str) -> Path:
    """The folder of all runs, which need not be there. Raises ValueError where it cannot be one."""
    if out is None:
        raise ValueError("out: expected the folder of all runs, got None; leave it out for 'runs'")
    folder = _path("out", out)
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"out: expected the folder of all runs, got {str(out)!r}, but {place} is a file")
    return folder


@contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """As outside of ``torch.no_grad()`` and ``torch.inference_mode()``: training needs gradients wherever it begins."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        yield


class Run:
    """A run: what was measured, what it learned, and what can be done with it.

    Rows and numbers are read when they are asked for; of a run that is still going they are those of now.

    Args:
        path: Its folder, ``runs/<experiment>/<id>``; the run may be going on, or come from another machine. A ``~`` is
            your home directory.

    Raises:
        ValueError: there is no run.
    """

    def __init__(self, path: Path | str) -> None:
        if path is None:
            raise ValueError("path: expected the folder of a run, runs/<experiment>/<id>, got None")
        self.path = _path("path", path)
        self._records: RunRecords | None = None
        self._note = ""
        if not (self.path / "manifest.json").is_file():
            raise ValueError(
                f"{self.path}: expected a run directory, but it has no manifest.json; give a folder "
                "runs/<experiment>/<id>, or list them with wardround.runs()"
            )

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The name of its folder: a hash of everything that decides its result."""
        return self.path.name

    @cached_property
    def experiment(self) -> Experiment:
        """What was run, every setting."""
        from .config import load_resolved

        return load_resolved(self.path / "config.yaml")

    @property
    def manifest(self) -> dict[str, Any]:
        """What ran, where, with which versions, and how it ended."""
        return dict(self.records.manifest)

    @property
    def status(self) -> str:
        """``finished``, ``running``, ``stopped`` (killed), ``interrupted``, ``failed``, or ``held`` (in a sweep)."""
        from .runs_table import run_line

        return run_line(self.path).state

    @property
    def note(self) -> str:
        """Of a run that :func:`run` found finished: what was another when it was made (code, machine); else empty."""
        return self._note

    @property
    def finished(self) -> bool:
        """Whether it reached its end."""
        return self.records.finished

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; of a segmentation, of the foreground (label 1 first)."""
        return tuple(self.records.manifest.get("classes") or self.records.classes)

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Those that train, by name, sorted."""
        return tuple(sorted(self.records.manifest.get("hospitals") or self.records.members))

    @property
    def report(self) -> Path:
        """The page that is written when the run is finished."""
        return self.path / "report.html"

    # ---- what was measured -------------------------------------------------------------------------------------------

    @property
    def records(self) -> RunRecords:
        """Everything that the files hold, with functions that look things up."""
        if self._records is None or not self._records.finished:
            self._records = RunRecords.load(self.path)
        return self._records

    @property
    def metrics(self) -> Rows:
        """Losses and scores per round, hospital and split; round 0 is the model before training."""
        return _plain(self.records.metrics)

    @property
    def cases(self) -> Rows:
        """The scores of every volume, or whether every image was told right."""
        return _plain(self.records.cases)

    @property
    def ledger(self) -> Rows:
        """Who took part in a round, with bytes down and up, training examples and optimizer steps."""
        return _plain(self.records.ledger)

    @property
    def instruments(self) -> Rows:
        """The instruments of the server's steps per round and layer (:mod:`wardround.aggregators.instruments`)."""
        return _plain(self.records.instruments)

    @property
    def timing(self) -> Rows:
        """Seconds of the stages of a round."""
        return _plain(self.records.timing)

    @property
    def across(self) -> Rows:
        """The scores of every case under the models of other hospitals, where ``evaluation.cross_site`` is set."""
        return _plain(self.records.across)

    @property
    def confusion(self) -> Rows:
        """Of a classification: how many images of each class were taken for each, after the last round."""
        return _plain(self.records.confusion)

    @property
    def score(self) -> float | None:
        """The mean over hospitals of Dice or accuracy on their test cases at the last evaluation; None without one."""
        return score_of(self.records)

    @property
    def summary(self) -> dict[str, Any]:
        """The final numbers: ``summary.json``.

        Raises:
            ValueError: the run is not finished. ``score``, ``results`` and ``metrics`` say what there is so far.
        """
        if self.records.summary is None:
            raise ValueError(
                f"{self.path}: expected a finished run, this one is {self.status}; `score`, `results` and `metrics` "
                "say what there is so far"
            )
        return dict(self.records.summary)

    @property
    def results(self) -> str:
        """The table of scores that ``wardround run`` prints; ``print(run.results)``."""
        from .reports.run_scores import results_text

        return results_text(self.records)

    def plot(self, beside: Beside = "loss") -> Figure:
        """Draws the score per round, a line per hospital and their mean.

        Args:
            beside: What is drawn to the right of it: ``loss``, the training loss of the hospitals; or ``bytes``, what
                was sent so far.

        Returns:
            A figure of matplotlib; ``.savefig(file)`` writes it. A notebook shows it where ``run.plot()`` is the last
            expression of a cell, and elsewhere by ``display(run.plot())``: pyplot, whose figures are shown by
            themselves, does not know it.

        Raises:
            ValueError: nothing was measured yet, or an unknown ``beside``.
        """
        from .reports.run_figure import run_figure

        return run_figure(self.records, beside)

    # ---- what it learned ---------------------------------------------------------------------------------------------

    @property
    def rounds(self) -> list[int]:
        """The rounds whose state is kept: the last two, all of them where updates were recorded."""
        from .run_state import saved_rounds

        return saved_rounds(self.path)

    def state(self, round: int | None = None) -> State:
        """The server's tensors after a round, changes to frozen weights, and what is remembered.

        Args:
            round: One of ``rounds``, 0 before training; None: the last one.

        Raises:
            ValueError: it was not kept.
        """
        from .run_state import read_state

        return read_state(self.path, round)

    def updates(self, round: int) -> RecordedRound:
        """A round taken apart: what every hospital was handed and sent, and the server's tensors before it.

        Args:
            round: From 1.

        Raises:
            ValueError: it was not recorded (``record_updates=True``).
        """
        from .recording import read_round
        from .run_state import UPDATES, whole

        return read_round(self.path / UPDATES, whole(round))

    @property
    def setting(self) -> Setting:
        """What the aggregator of a run with recorded updates knew before round 1: initial tensors, their layout.

        Raises:
            ValueError: no updates were recorded.
        """
        from .recording import read_setting
        from .run_state import UPDATES

        return read_setting(self.path / UPDATES)

    def replay(self, aggregators: Mapping[str, Aggregator] | str) -> list[Replayed]:
        """Lets aggregators take the server's step on the recorded updates, every round: ``wardround replay``.

        Args:
            aggregators: By the name to show; or as the command takes them, ``"fedavg, {name: flap_sam, split: left}"``.

        Returns:
            A step per aggregator and round; ``step.numbers`` are its instruments, ``step.rows()`` those per layer.

        Raises:
            ValueError: no updates were recorded (``record_updates=True``), or an aggregator needs hospitals that train
                in another way than they did.
        """
        from .replay import replay

        with _ordinary_tensors():
            return replay(self.path, _aggregators(aggregators))

    def trained(self, round: int | None = None, *, device: str = "auto") -> Trained:
        """The model with its aggregator and checkpoint; gives the tensors that are deployed at a hospital.

        Args:
            round: One of the last two; None: the last one.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

        Raises:
            ValueError: the checkpoint is not there, or the base weights are absent or other ones.
        """
        from .run_state import whole
        from .trained import load_trained

        with _ordinary_tensors():
            return load_trained(self.path, round_number=whole(round), device=device)

    def network(self, hospital: str | None = None, round: int | None = None, *, device: str = "auto") -> nn.Module:
        """The torch module with a hospital's model in it, made anew by every call.

        Args:
            hospital: Whose; None: that of a site never seen, which is the global model where there is one.
            round: One of the last two; None: the last one.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

        Raises:
            ValueError: as :meth:`trained`; or no hospital is given where each has a model of its own alone.
        """
        trained = self.trained(round, device=device)
        with _ordinary_tensors():
            return trained.load(hospital).model.eval()

    # ---- what can be done with it ------------------------------------------------------------------------------------

    def predict(
        self,
        images: Path | str | Sequence[Path | str],
        out: Path | str,
        *,
        hospital: str | None = None,
        round: int | None = None,
        probabilities: bool = False,
        overlays: bool = False,
        any_intensities: bool = False,
        device: str = "auto",
        quiet: bool = False,
    ) -> Predicted:
        """Segments volumes or classifies images: ``wardround predict``.

        Args:
            images: A file, a folder, or several of them.
            out: Folder to write into.
            hospital: Whose model; None: that of a site never seen.
            round: One of the last two; None: the last one.
            probabilities: Also write the probabilities of a segmentation.
            overlays: Also write pictures.
            any_intensities: Also take volumes whose intensities are not those of the training data.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            quiet: No progress bar.
        """
        from .prediction import predict
        from .run_state import whole

        several = images if isinstance(images, Iterable) and not isinstance(images, str) else [images]
        with _ordinary_tensors():
            return predict(
                self.path,
                [_path("images", image) for image in several],
                _path("out", out),
                hospital=hospital,
                round_number=whole(round),
                probabilities=probabilities,
                overlays=overlays,
                any_intensities=any_intensities,
                device=device,
                quiet=quiet,
            )

    def export(
        self,
        form: str,
        out: Path | str | None = None,
        *,
        hospital: str | None = None,
        round: int | None = None,
        licence: str | None = None,
        base: bool = True,
    ) -> Path:
        """Writes the model for other programs: ``wardround export``.

        Args:
            form: ``peft``, ``hf`` or ``sam-pth``.
            out: Folder to write; None: ``export/FORM`` in the run's folder.
            hospital: Whose model; None: that of a site never seen.
            round: One of the last two; None: the last one.
            licence: Of the base, for the model card.
            base: Also write the base that a PEFT adapter belongs to; only ``peft`` can leave it out.

        Returns:
            The folder.
        """
        from .exports import export
        from .run_state import whole

        number, folder = whole(round), _path("out", out)
        with _ordinary_tensors():
            return export(self.path, form, folder, hospital=hospital, round_number=number, licence=licence, base=base)

    def __repr__(self) -> str:
        return run_text(self.records, self.status, self.note)

    def _repr_html_(self) -> str:
        return run_html(self.records, self.status, self.note)


def _aggregators(given: Mapping[str, Aggregator] | str) -> Mapping[str, Aggregator]:
    """Aggregators by the name to show. Raises ValueError where something else was given."""
    from .builder import ConfigError
    from .replay import named_aggregators

    if isinstance(given, str):
        try:
            return named_aggregators(given)
        except ConfigError as error:
            raise ConfigError(str(problem).removeprefix("--") for problem in error.problems) from error
    if not isinstance(given, Mapping):
        raise ValueError(f"aggregators: expected a text, or aggregators by the name to show, got {given!r}")
    classes = [each.__name__ for each in given.values() if isinstance(each, type)]
    if classes:
        raise ValueError(f"aggregators: expected objects, such as {classes[0]}(), got the class")
    return given


def _plain(rows: Sequence[Any]) -> Rows:
    return [asdict(row) for row in rows]
