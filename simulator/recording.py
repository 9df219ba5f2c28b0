"""What a run keeps of the server's steps: instruments of every round, and on request the updates themselves.

::

    instruments.jsonl                a row per round and layer
    updates/setting.safetensors      what the aggregator knew before round 1, written once
    updates/round-0007.safetensors   state before the round, the updates, their weights

:mod:`.replay` reads the updates back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..aggregators.contract import Aggregator, ClientUpdate, HospitalInfo, Layout, Pair, ServerState, Setting, Tensors
from ..aggregators.instruments import measure, overall
from .federation import Rows, Step, metric_row
from .files import write_bytes
from .tensor_files import below, pack, unpack


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """Which of the server's steps are measured (:mod:`wardround.aggregators.instruments`).

    Args:
        every: Measure each so many rounds, >= 0; 0: never.
        spectrum: Singular values of the ideal mean to keep per layer, >= 0.
    """

    every: int = 1
    spectrum: int = 8

    def __post_init__(self) -> None:
        low = {name: value for name, value in asdict(self).items() if value < 0}
        if low:
            raise ValueError("; ".join(f"{name}: expected at least 0, got {value!r}" for name, value in low.items()))

    def due(self, number: int) -> bool:
        """Whether a round is measured."""
        return self.every > 0 and number % self.every == 0


def instrument_rows(
    instruments: Instruments, aggregator: Aggregator, step: Step, after: ServerState, number: int
) -> Rows:
    """Rows of ``instruments.jsonl``, and one ``instrument/<name>`` row per measure for the whole model.

    Args:
        instruments: What to measure.
        aggregator: The algorithm that took the step.
        step: What went in.
        after: The state after the step.
        number: The round.
    """
    if not instruments.due(number):
        return {}
    layers = measure(aggregator, step.before, step.downloads, step.updates, after, spectrum=instruments.spectrum)
    metrics = [metric_row(number, None, None, f"instrument/{name}", value) for name, value in overall(layers).items()]
    rows = [{"round": number, **asdict(layer), "spectrum": list(layer.spectrum)} for layer in layers]
    return {"metrics": metrics, "instruments": rows}


# --- updates ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RecordedRound:
    """One round as it was.

    Args:
        number: The round.
        tensors: The shared tensors before it.
        base: Changes to frozen weights before it.
        updates: The updates.
        starts: What every sender was handed.
    """

    number: int
    tensors: Tensors
    base: Tensors
    updates: tuple[ClientUpdate, ...]
    starts: Mapping[str, Tensors]


def record_updates(folder: Path, step: Step, number: int) -> None:
    """Writes the updates of a round (again, if it is run again after a kill).

    Args:
        folder: ``updates`` in the run directory.
        step: What went into the server's step.
        number: The round.
    """
    setting = folder / "setting.safetensors"
    if not setting.exists():
        write_bytes(setting, pack(step.before.setting.trainable, _setting_words(step.before.setting)))
    groups = {"tensors": step.before.tensors, "base": step.before.base}
    for k, update in enumerate(step.updates):
        groups[f"update-{k}"] = update.tensors
        groups[f"start-{k}"] = _differing(step.downloads[update.hospital].start, step.before.tensors)
    tensors = {f"{group}/{name}": value for group, content in groups.items() for name, value in content.items()}
    words = {"round": number, "updates": [_update_words(update) for update in step.updates]}
    write_bytes(_round_file(folder, number), pack(tensors, words))


def read_setting(folder: Path) -> Setting:
    """What the aggregator of a recorded run knew before round 1.

    Raises:
        ValueError: nothing was recorded there, or the file is damaged.
    """
    path = folder / "setting.safetensors"
    if not path.exists():
        raise ValueError(f"{path}: expected updates recorded by `wardround run --record-updates`, got no such file")
    tensors, words = unpack(path)
    try:
        return _setting(tensors, words)
    except (KeyError, TypeError) as error:
        raise _other(path, error) from error


def _other(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: expected what this version of wardround records, {error!r} does not fit; run again")


def _setting(tensors: Tensors, words: Mapping[str, Any]) -> Setting:
    layout = words["layout"]
    return Setting(
        trainable=tensors,
        layout=Layout(
            pairs=tuple(Pair(**{**pair, "rows": _rows(pair["rows"])}) for pair in layout["pairs"]),
            dense=tuple(layout["dense"]),
            part=layout["part"],
            kind=layout["kind"],
            groups=tuple(tuple(group) for group in layout.get("groups", ())),
        ),
        hospitals=tuple(HospitalInfo(**hospital) for hospital in words["hospitals"]),
        optimizer=words["optimizer"],
        momentum=words["momentum"],
        frozen={name: tuple(shape) for name, shape in words["frozen"].items()},
        cohort_size=words["cohort_size"],
    )


def read_rounds(folder: Path) -> list[RecordedRound]:
    """All recorded rounds, in order. Raises ValueError when a file is damaged."""
    return [_read_round(path) for path in sorted(folder.glob("round-*.safetensors"))]


def recorded(folder: Path) -> list[int]:
    """The numbers of the rounds whose updates were recorded, in order."""
    return sorted(int(path.stem.removeprefix("round-")) for path in folder.glob("round-*.safetensors"))


def read_round(folder: Path, number: int) -> RecordedRound:
    """One recorded round.

    Args:
        folder: ``updates`` in the run directory.
        number: The round, from 1.

    Raises:
        ValueError: it was not recorded, or the file is damaged.
    """
    there = recorded(folder)
    if not there:
        raise ValueError(
            f"{folder}: expected updates recorded by `wardround run --record-updates` "
            "(wardround.run(..., record_updates=True)), got none"
        )
    if number not in there:
        raise ValueError(
            f"{folder}: expected one of the rounds that were recorded, {', '.join(map(str, there))}, got {number!r}"
        )
    return _read_round(_round_file(folder, number))


def _round_file(folder: Path, number: int) -> Path:
    return folder / f"round-{number:04d}.safetensors"


def _read_round(path: Path) -> RecordedRound:
    tensors, words = unpack(path)
    try:
        return _round(tensors, words)
    except (KeyError, TypeError) as error:
        raise _other(path, error) from error


def _round(tensors: Tensors, words: Mapping[str, Any]) -> RecordedRound:
    server = below("tensors/", tensors)
    updates = [
        ClientUpdate(tensors=below(f"update-{k}/", tensors), **update) for k, update in enumerate(words["updates"])
    ]
    starts = {update.hospital: {**server, **below(f"start-{k}/", tensors)} for k, update in enumerate(updates)}
    return RecordedRound(
        number=words["round"], tensors=server, base=below("base/", tensors), updates=tuple(updates), starts=starts
    )


def _differing(start: Tensors, shared: Tensors) -> Tensors:
    """What a hospital was handed that is not what the server holds: lower ranks, personal tensors."""
    return {
        name: value
        for name, value in start.items()
        if name not in shared or value.shape != shared[name].shape or not torch.equal(value, shared[name])
    }


def _setting_words(setting: Setting) -> dict[str, Any]:
    return {
        "layout": _layout_words(setting.layout),
        "hospitals": [asdict(hospital) for hospital in setting.hospitals],
        "optimizer": setting.optimizer,
        "momentum": setting.momentum,
        "frozen": dict(setting.frozen),
        "cohort_size": setting.cohort_size,
    }


def _layout_words(layout: Layout) -> dict[str, Any]:
    words = asdict(layout)
    return words if layout.groups else {name: word for name, word in words.items() if name != "groups"}


def _update_words(update: ClientUpdate) -> dict[str, Any]:
    names = ("hospital", "weight", "num_examples", "num_steps", "metrics", "bytes")
    return {name: getattr(update, name) for name in names}


def _rows(rows: list[int] | None) -> tuple[int, int] | None:
    return None if rows is None else (rows[0], rows[1])
