"""What each method trains and sends, counted on the meta device: no weights, seconds even for ViT-H.

With P trained parameters::

    bytes = 4 P per hospital, round and direction;  paper-style overhead = 32 P rounds / 2**30

The overhead is FLAP-SAM's: gibibits one way for one client over the whole run, to two digits. ``reduction`` is the
exact ratio of parameters, ``full`` to the method; ``paper_reduction`` the ratio of the overheads as printed.

Source: FLAP-SAM (arXiv 2407.21739), Fig. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from ..clients import METHODS
from ..clients.lora import LoRA
from ..clients.methods import LowRank, Method
from ..clients.sam import SIZES, Sam
from .builder import unknown

if TYPE_CHECKING:
    from .config import Experiment


@dataclass(frozen=True, kw_only=True)
class TableSetting:
    """What the counts depend on.

    Args:
        model: The base; its weights are not looked at.
        classes: C, foreground classes, >= 1.
        method: A method that is counted with its settings as they are; the others have their defaults.
        lora: LoRA settings of all methods that have it; None: of each method its own.
        rounds: Rounds of the paper-style overhead, >= 1.
    """

    model: Sam = field(default_factory=lambda: Sam(size="vit-b", image_size=224))
    classes: int = 2
    method: Method | None = None
    lora: LoRA | None = None
    rounds: int = 25

    def __post_init__(self) -> None:
        for name in ("classes", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)!r}")

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """The setting of an experiment; 2 classes unless its data set knows its ``classes`` without being read."""
        default = cls()
        return cls(
            model=experiment.model,
            classes=len(getattr(experiment.data, "classes", ())) or default.classes,
            method=experiment.method,
            lora=getattr(experiment.method, "lora", default.lora),
            rounds=experiment.rounds,
        )

    def changed(
        self,
        *,
        model: str | None = None,
        image_size: int | None = None,
        classes: int | None = None,
        rank: int | None = None,
        rounds: int | None = None,
    ) -> Self:
        """The setting with what was given on the command line; ``model`` is ``sam-`` and a size."""
        size = self.model.size if model is None else _size(model)
        return replace(
            self,
            model=replace(
                self.model, size=size, image_size=_or(image_size, self.model.image_size), weights="random", heads="new"
            ),
            classes=_or(classes, self.classes),
            lora=self.lora if rank is None else replace(self.lora or LoRA(), rank=rank),
            rounds=_or(rounds, self.rounds),
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method: R (None without LoRA), P, bytes per round and hospital in each direction, overhead and reductions."""

    method: str
    rank: int | None
    trained_parameters: int
    bytes_up: int
    bytes_down: int
    paper_overhead: float
    reduction: float
    paper_reduction: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def rows(setting: TableSetting) -> list[Row]:
    """One row per method, in the order of their table.

    Example:
        >>> tiny = TableSetting(model=Sam(size="tiny", image_size=32), classes=1, lora=LoRA(rank=2), rounds=10)
        >>> [row.method for row in rows(tiny) if row.reduction == 1]
        ['full']
    """
    methods = {name: _method(cls, setting) for name, cls in METHODS.items()}
    counts = {name: count(method, setting) for name, method in methods.items()}
    return [_row(name, _rank(methods[name]), number, counts["full"], setting.rounds) for name, number in counts.items()]


def count(method: Method, setting: TableSetting) -> int:
    """P: the parameters that a method trains."""
    net = setting.model.build_meta(setting.classes)
    layout = method.attach(net)
    shapes = dict(net.named_parameters())
    return sum(shapes[name].numel() for name in layout.names)


def text(found: Sequence[Row]) -> str:
    """The rows for a terminal: aligned columns, and what the overhead means."""
    header = ("method", "parameters", "bytes up", "bytes down", "overhead", "reduction", "paper's")
    lines = [header, *(_cells(row) for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    )
    return "\n".join(["  ".join(cells) for cells in aligned] + ["", *_notes(found)])


def _notes(found: Sequence[Row]) -> list[str]:
    notes = [
        "bytes: per round and hospital, fp32.",
        "overhead: parameters * 32 * rounds / 2^30, gibibits one way for one hospital over the run.",
        "reduction: ratio of parameters, full to method. paper's: ratio of the overheads as printed.",
    ]
    if ranks := dict.fromkeys(row.rank for row in found if row.rank is not None):
        at = (f"{rank} ({', '.join(row.method for row in found if row.rank == rank)})" for rank in ranks)
        notes.insert(0, f"rank of LoRA: {'; '.join(at)}.")
    if any((row.method, row.paper_overhead, row.paper_reduction) == ("attention", 23.6, 2.9) for row in found):
        notes.append("FLAP-SAM's Fig. 1 prints 2.8x for attention, where its own overheads give 67.45 / 23.60 = 2.9x.")
    return notes


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.method,
        f"{row.trained_parameters:,}",
        f"{row.bytes_up:,}",
        f"{row.bytes_down:,}",
        f"{row.paper_overhead:.2f}",
        f"{row.reduction:.1f}x",
        "-" if row.paper_reduction is None else f"{row.paper_reduction:.1f}x",
    )


def _row(method: str, rank: int | None, parameters: int, full: int, rounds: int) -> Row:
    overhead, most = _overhead(parameters, rounds), _overhead(full, rounds)
    return Row(
        method=method,
        rank=rank,
        trained_parameters=parameters,
        bytes_up=4 * parameters,
        bytes_down=4 * parameters,
        paper_overhead=overhead,
        reduction=full / parameters,
        paper_reduction=round(most / overhead, 1) if overhead and most else None,
    )


def _overhead(parameters: int, rounds: int) -> float:
    return round(32 * parameters * rounds / 2**30, 2)


def _method(cls: type[Method], setting: TableSetting) -> Method:
    method = setting.method if type(setting.method) is cls else cls()
    if setting.lora is None or not isinstance(method, LowRank):
        return method
    return replace(method, lora=setting.lora)


def _rank(method: Method) -> int | None:
    return method.lora.rank if isinstance(method, LowRank) else None


def _size(model: str) -> str:
    size = model.removeprefix("sam-")
    if size == model or size not in SIZES:
        raise ValueError("--model: " + unknown(f"unknown model {model!r}", model, (f"sam-{known}" for known in SIZES)))
    return size


def _or(given: int | None, default: int) -> int:
    return default if given is None else given
