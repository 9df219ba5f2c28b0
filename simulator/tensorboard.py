"""``--log tensorboard``: the rows of a run as scalars, in ``<run>/tensorboard/``; steps are rounds.

The log is a view of the rows: when a run begins or goes on it is written anew from what the run kept, then follows. So
the log of a run that was killed and went on is that of one that was not, and a run that is finished can be given one.

Needs the extra ``wardround[tensorboard]``.

Tags::

    dice/test, dice/validation, dice/unseen, loss/train      means over the hospitals
    dice_test/HOSPITAL, loss_train/HOSPITAL, ...             every hospital
    accuracy/..., auroc/..., ...                             the same of a classification
    pooled/accuracy/test, pooled/auroc/validation, ...       its scores over the images of all hospitals
    instrument/..., aggregate/..., privacy/...               rows of no hospital, as they are called in metrics.jsonl
    bytes/up, bytes/down                                     of all hospitals, so far
    seconds/STAGE                                            of the round
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import yaml12
from .builder import leaves
from .files import file_stem
from .headline import headline_of
from .results import mean

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from .rundir import RunDirectory

LOGS = ("tensorboard",)
"""Where rows can be written beside the run's own files."""

FOLDER = "tensorboard"
"""The log's folder in the run's."""

ROWS = ("metrics", "ledger", "timing")
"""The files of a run that are shown."""

SHOWN = ("dice", "dice_regions", "accuracy", "balanced_accuracy", "macro_f1", "auroc", "loss")
"""Metrics of hospitals that are shown."""

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
Point = tuple[str, float]


def check_log(log: str | None) -> None:
    """Raises ValueError where a log is asked for that cannot be written here."""
    if log is None:
        return
    if log not in LOGS:
        raise ValueError(f"log: expected one of {', '.join(LOGS)}, got {log!r}")
    try:
        import torch.utils.tensorboard  # noqa: F401  only whether it can be imported
    except ImportError as error:
        raise ValueError(
            f"--log tensorboard: expected the package tensorboard, which cannot be imported ({error}); install it with "
            "pip install 'wardround[tensorboard]', or leave out --log"
        ) from error


@contextmanager
def logged(directory: RunDirectory, log: str | None) -> Iterator[None]:
    """Writes the log of a run while its rows are added in the block.

    Args:
        directory: The run.
        log: One of LOGS, or None: no log.
    """
    if log is None:
        yield
        return
    writer = TensorboardLog(directory)
    directory.log = writer.add
    try:
        yield
        writer.add({})  # where nothing was left to do, the log is made of the rows there are
    finally:
        writer.close()


def log_afterwards(directory: RunDirectory, log: str | None) -> None:
    """Gives a run that is over the log that it was not asked for before."""
    if log is not None and not (directory.path / FOLDER).exists():
        with directory.locked(), logged(directory, log):
            pass


class TensorboardLog:
    """The log of one run.

    Args:
        directory: The run, whose rows it shows.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._writer: SummaryWriter | None = None
        self._bytes = {"up": 0, "down": 0}

    def add(self, rows: Rows) -> None:
        """Shows rows that were just added to the run's files; the first time, all that are in these."""
        if self._writer is None:
            self._writer = _new_writer(self._directory.path, self._directory.manifest or {})
            kept = {name: self._directory.rows(name) for name in ROWS}
            begun = datetime.fromisoformat(str((self._directory.manifest or {})["started"])).timestamp()
            self._show(self._writer, kept, _clock(begun, kept["timing"]))
        else:
            self._show(self._writer, rows, {})
        self._writer.flush()

    def close(self) -> None:
        """Ends the log."""
        if self._writer is not None:
            self._writer.close()

    def _show(self, writer: SummaryWriter, rows: Rows, clock: Mapping[int, float]) -> None:
        """Adds scalars, round by round; ``clock`` says when old rounds ended, of others it is now."""
        for number, of_round in _by_round(rows):
            points = [*_metrics(of_round.get("metrics", ())), *self._sent(of_round.get("ledger", ()))]
            for tag, value in [*points, *_seconds(of_round.get("timing", ()))]:
                writer.add_scalar(tag, value, number, walltime=clock.get(number))

    def _sent(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Point]:
        for way in self._bytes if rows else ():
            self._bytes[way] += sum(row[f"bytes_{way}"] for row in rows)
            yield f"bytes/{way}", self._bytes[way]


def _new_writer(run: Path, manifest: Mapping[str, Any]) -> SummaryWriter:
    """A log that begins by forgetting what older ones showed (``purge_step``), also where a TensorBoard is looking.

    Older files stay: a TensorBoard that reads one stops looking when it goes.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    _wait_for_a_later_name(run / FOLDER)
    writer = SummaryWriter(str(run / FOLDER), purge_step=0)
    settings = {path: _plain(value) for path, value in leaves(yaml12.load(run / "config.yaml")).items()}
    score = f"{headline_of(manifest).key}/test"
    for summary in hparams(settings, {score: 0.0}):  # add_hparams would make a run of its own of them
        writer._get_file_writer().add_summary(summary)
    return writer


def _wait_for_a_later_name(folder: Path) -> None:
    """Logs are read in the order of their names, ``events.out.tfevents.<second>...``: at most one in a second."""
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    end = time.monotonic() + 1.1  # no longer, should the machine's clock have been set back
    while seconds and int(time.time()) <= max(seconds) and time.monotonic() < end:
        time.sleep(0.02)


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _clock(begun: float, timing: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """When rounds ended, in seconds of the epoch, as if there had been no pause; round 0 is the beginning."""
    ends = {0: begun}
    for row in timing:
        begun += sum(value for name, value in row.items() if name != "round")
        ends[int(row["round"])] = begun
    return ends


def _by_round(rows: Rows) -> Iterator[tuple[int, dict[str, list[Mapping[str, Any]]]]]:
    """The same rows in order of their rounds."""
    rounds: dict[int, dict[str, list[Mapping[str, Any]]]] = {}
    for name in ROWS:
        for row in rows.get(name, ()):
            rounds.setdefault(int(row["round"]), {}).setdefault(name, []).append(row)
    yield from sorted(rounds.items())


def _metrics(rows: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
    """Scores and losses of hospitals with their means, and what belongs to no hospital; nothing that is undefined."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        name, split, hospital, value = row["metric"], row["split"], row["hospital"], row["value"]
        if value is None:
            continue
        if hospital is None:
            yield name if split is None else f"{name}/{split}", value
        elif name in SHOWN:
            groups.setdefault((name, split), []).append(value)
            yield f"{name}_{split}/{file_stem(hospital)}", value
    for (name, split), values in groups.items():
        yield f"{name}/{split}", mean(values) or 0.0


def _seconds(rows: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
    for row in rows:
        yield from ((f"seconds/{key.removesuffix('_s')}", value) for key, value in row.items() if key != "round")
