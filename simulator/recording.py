"""What a run keeps of the server's steps: instruments of every round, and on request the updates themselves.

::

    instruments.jsonl                a row per round and layer
    updates/setting.safetensors      what the aggregator knew before round 1, written once
    updates/round-0007.safetensors   state before the round, the updates, their weights

:mod:`.replay` reads the updates back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..aggregators.contract import Aggregator, ClientUpdate, HospitalInfo, Layout, Pair, ServerState, Setting, Tensors
from ..aggregators.instruments import measure, overall
from .federation import Rows, Step, metric_row
from .files import write_bytes


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
    """One round as it was: the shared tensors before it, changes to frozen weights, and the updates."""

    number: int
    tensors: Tensors
    base: Tensors
    updates: tuple[ClientUpdate, ...]


def record_updates(folder: Path, step: Step, number: int) -> None:
    """Writes the updates of a round (again, if it is run again after a kill).

    Args:
        folder: ``updates`` in the run directory.
        step: What went into the server's step.
        number: The round.
    """
    setting = folder / "setting.safetensors"
    if not setting.exists():
        write_bytes(setting, _pack(step.before.setting.trainable, _setting_words(step.before.setting)))
    groups = {"tensors": step.before.tensors, "base": step.before.base}
    groups |= {f"update-{k}": update.tensors for k, update in enumerate(step.updates)}
    tensors = {f"{group}/{name}": value for group, content in groups.items() for name, value in content.items()}
    words = {"round": number, "updates": [_update_words(update) for update in step.updates]}
    write_bytes(folder / f"round-{number:04d}.safetensors", _pack(tensors, words))


def read_setting(folder: Path) -> Setting:
    """What the aggregator of a recorded run knew before round 1.

    Raises:
        ValueError: nothing was recorded there, or the file is damaged.
    """
    tensors, words = _unpack(folder / "setting.safetensors")
    layout = words["layout"]
    return Setting(
        trainable=tensors,
        layout=Layout(
            pairs=tuple(Pair(**{**pair, "rows": _rows(pair["rows"])}) for pair in layout["pairs"]),
            dense=tuple(layout["dense"]),
            part=layout["part"],
            kind=layout["kind"],
        ),
        hospitals=tuple(HospitalInfo(**hospital) for hospital in words["hospitals"]),
        optimizer=words["optimizer"],
        momentum=words["momentum"],
        frozen={name: tuple(shape) for name, shape in words["frozen"].items()},
    )


def read_rounds(folder: Path) -> list[RecordedRound]:
    """All recorded rounds, in order. Raises ValueError when a file is damaged."""
    return [_read_round(path) for path in sorted(folder.glob("round-*.safetensors"))]


def _read_round(path: Path) -> RecordedRound:
    tensors, words = _unpack(path)
    updates = [
        ClientUpdate(tensors=_below(f"update-{k}/", tensors), **update) for k, update in enumerate(words["updates"])
    ]
    return RecordedRound(
        number=words["round"],
        tensors=_below("tensors/", tensors),
        base=_below("base/", tensors),
        updates=tuple(updates),
    )


def _setting_words(setting: Setting) -> dict[str, Any]:
    return {
        "layout": asdict(setting.layout),
        "hospitals": [asdict(hospital) for hospital in setting.hospitals],
        "optimizer": setting.optimizer,
        "momentum": setting.momentum,
        "frozen": dict(setting.frozen),
    }


def _update_words(update: ClientUpdate) -> dict[str, Any]:
    names = ("hospital", "weight", "num_examples", "num_steps", "metrics", "bytes")
    return {name: getattr(update, name) for name in names}


def _rows(rows: list[int] | None) -> tuple[int, int] | None:
    return None if rows is None else (rows[0], rows[1])


def _pack(tensors: Tensors, words: Mapping[str, Any]) -> bytes:
    """Safetensors bytes; the format sorts by name, so the order of the tensors goes into the words."""
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(copies, metadata={"wardround": json.dumps({**words, "order": list(tensors)})})


def _unpack(path: Path) -> tuple[dict[str, Tensor], Any]:
    if not path.exists():
        raise ValueError(f"{path}: expected updates recorded by `wardround run --record-updates`, got no such file")
    try:
        with safe_open(path, framework="pt") as file:
            words = json.loads(file.metadata()["wardround"])
            return {name: file.get_tensor(name) for name in words["order"]}, words
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a recorded round, the file is damaged: {error}") from error


def _below(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
