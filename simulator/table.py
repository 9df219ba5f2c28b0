"""What each method trains and sends, counted on the meta device: no weights, seconds even for ViT-H.

With P parameters that train, and Q of them in one round (fewer than P where a schedule draws what trains)::

    bytes = 4 Q per hospital, round and direction;  paper-style overhead = 32 P rounds / 2**30

The overhead is FLAP-SAM's: gibibits one way for one client over the whole run, to two digits; there is none for a ViT.
``reduction`` is the exact ratio of the parameters that are sent in a round, ``full`` to the method; ``paper_reduction``
the ratio of the overheads as printed.

Source: FLAP-SAM (arXiv 2407.21739), Fig. 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from ..aggregators.contract import Layout
from ..clients import METHODS, MODELS, sam, vit
from ..clients.contract import LowRank, Method, at_rank, rank_of
from ..clients.lora import LoRA
from ..clients.network import Model
from ..clients.sam import Sam
from ..clients.vit import Vit
from ..clients.vit_methods import Dvpt
from .builder import unknown
from .scheduling import draw_of

if TYPE_CHECKING:
    from .config import Experiment

_LARGE: dict[str, tuple[Model, ...]] = {
    "sam": tuple(Sam(size=size, image_size=224) for size in sam.SIZES),
    "vit": tuple(Vit(size=size, image_size=224) for size in vit.SIZES),
}
"""Every model at the papers' image size, by the name of its plug-in."""


@dataclass(frozen=True, kw_only=True)
class TableSetting:
    """What the counts depend on.

    Args:
        model: The base; its weights are not looked at.
        classes: C: foreground classes of SAM, >= 1; all classes of a ViT, >= 2.
        method: A method that is counted with its settings as they are; the others have their defaults.
        lora: LoRA settings of all methods that have it; None: of each method its own.
        rank: Of all low-rank pairs, >= 1; None: as ``method``, ``lora`` and the defaults say.
        rounds: Rounds of the paper-style overhead, >= 1.
    """

    model: Model = field(default_factory=lambda: Sam(size="vit-b", image_size=224))
    classes: int = 2
    method: Method | None = None
    lora: LoRA | None = None
    rank: int | None = None
    rounds: int = 25

    def __post_init__(self) -> None:
        for name in ("classes", "rank", "rounds"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)!r}")
        if self.model.task == "classification" and self.classes < 2:
            raise ValueError(f"classes: expected at least 2, as a classifier tells them apart, got {self.classes!r}")

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """The setting of an experiment; 2 classes where :func:`known_classes` knows no number."""
        default = cls()
        return cls(
            model=experiment.model,
            classes=_or(known_classes(experiment), default.classes),
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
        """The setting with what was given on the command line; ``model`` is ``sam-`` or ``vit-`` and a size."""
        return replace(
            self,
            model=_without_weights(self.model, model, image_size),
            classes=_or(classes, self.classes),
            rank=self.rank if rank is None else rank,
            rounds=_or(rounds, self.rounds),
        )


def known_classes(experiment: Experiment) -> int | None:
    """C as the data set of an experiment says it without being read; None where it does not."""
    known = getattr(experiment.data, "classes", ())
    return (known if isinstance(known, int) else len(known)) or None


def assumed_text(classes: int) -> str:
    """What is said where the number of classes is not known."""
    return f"classes: {classes} assumed, as the data say how many there are only when they are read; --classes sets it."


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method: R (None without pairs), P, Q, bytes per round and hospital in each direction, overhead, reductions.

    The paper's figures are None for a ViT.
    """

    method: str
    rank: int | None
    trained_parameters: int
    parameters_per_round: int
    bytes_up: int
    bytes_down: int
    paper_overhead: float | None
    reduction: float
    paper_reduction: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def rows(setting: TableSetting) -> list[Row]:
    """One row per method that suits the model, in the order of their table.

    A method that says nothing by itself (``union``) has a row where it is the setting's; so has one from outside the
    package, called by its class.

    Example:
        >>> tiny = TableSetting(model=Sam(size="tiny", image_size=32), classes=1, lora=LoRA(rank=2), rounds=10)
        >>> [row.method for row in rows(tiny) if row.reduction == 1]
        ['full']
    """
    known = [*METHODS.values(), *([] if setting.method is None else [type(setting.method)])]  # the last from outside
    chosen = [cls for cls in dict.fromkeys(known) if family(setting.model) in cls.models]
    methods = {cls: _method(cls, setting) for cls in chosen if cls is type(setting.method) or not _lacks_settings(cls)}
    counts = {cls: count(method, setting) for cls, method in methods.items()}
    names = {cls: cls.__name__ for cls in chosen} | {cls: name for name, cls in METHODS.items()}
    full, papers = counts[METHODS["full"]].overall, isinstance(setting.model, Sam)
    made = (_row(names[cls], method, counts[cls], full) for cls, method in methods.items())
    return [_with_papers_figures(row, full, setting.rounds) if papers else row for row in made]


@dataclass(frozen=True, kw_only=True)
class Count:
    """P and Q: the parameters that a method trains over a run, and in one round."""

    overall: int
    per_round: int


def count(method: Method, setting: TableSetting) -> Count:
    """The parameters that a method trains."""
    net = setting.model.build_meta(setting.classes)
    layout = method.attach(net)
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    overall = sum(sizes[name] for name in layout.names)
    return Count(overall=overall, per_round=overall - _resting(layout, sizes))


def _resting(layout: Layout, sizes: Mapping[str, int]) -> int:
    """The parameters of all groups but the largest, of which a round trains one."""
    groups = [sum(sizes[name] for name in group) for group in layout.groups]
    return sum(groups) - max(groups, default=0)


def text(found: Sequence[Row]) -> str:
    """The rows for a terminal: aligned columns, and what the overhead means."""
    lines = [tuple(_cells(found[0])), *(tuple(_cells(row).values()) for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    )
    return "\n".join(["  ".join(cells) for cells in aligned] + ["", *_notes(found)])


def _notes(found: Sequence[Row]) -> list[str]:
    papers = found[0].paper_overhead is not None
    notes = _papers_notes(found) if papers else _own_notes()
    if ranks := dict.fromkeys(row.rank for row in found if row.rank is not None):
        at = (f"{rank} ({', '.join(row.method for row in found if row.rank == rank)})" for rank in ranks)
        notes.insert(0, f"rank of {'LoRA' if papers else 'LoRA and low-rank prompts'}: {'; '.join(at)}.")
    return notes


def _own_notes() -> list[str]:
    return [
        "parameters: over the run, the head included. per round: what one round trains and sends.",
        "bytes: per round and hospital, fp32; down, of a schedule that draws per hospital: at most.",
        "reduction: ratio of parameters per round, full to method.",
    ]


def _papers_notes(found: Sequence[Row]) -> list[str]:
    notes = [
        "bytes: per round and hospital, fp32.",
        "overhead: parameters * 32 * rounds / 2^30, gibibits one way for one hospital over the run.",
        "reduction: ratio of parameters, full to method. paper's: ratio of the overheads as printed.",
    ]
    if any((row.method, row.paper_overhead, row.paper_reduction) == ("attention", 23.6, 2.9) for row in found):
        notes.append("FLAP-SAM's Fig. 1 prints 2.8x for attention, where its own overheads give 67.45 / 23.60 = 2.9x.")
    return notes


def _cells(row: Row) -> dict[str, str]:
    """The cells of a row by the header of their column; with the paper's figures where it has some."""
    sent = {"bytes up": f"{row.bytes_up:,}", "bytes down": f"{row.bytes_down:,}"}
    trained = {"method": row.method, "parameters": f"{row.trained_parameters:,}"}
    reduction = {"reduction": f"{row.reduction:.1f}x"}
    if row.paper_overhead is None:
        return {**trained, "per round": f"{row.parameters_per_round:,}", **sent, **reduction}
    papers = "-" if row.paper_reduction is None else f"{row.paper_reduction:.1f}x"
    return {**trained, **sent, "overhead": f"{row.paper_overhead:.2f}", **reduction, "paper's": papers}


def _row(name: str, method: Method, counted: Count, full: int) -> Row:
    return Row(
        method=name,
        rank=rank_of(method),
        trained_parameters=counted.overall,
        parameters_per_round=counted.per_round,
        bytes_up=4 * counted.per_round,
        bytes_down=4 * _most_down(method, counted),
        paper_overhead=None,
        reduction=full / counted.per_round,
        paper_reduction=None,
    )


def _most_down(method: Method, counted: Count) -> int:
    """The parameters that a hospital which never misses a round is sent in one, at most.

    They are those that others trained in the round before: where every hospital draws for itself, up to all.
    """
    return counted.overall if draw_of(method) == "per_client" else counted.per_round  # without groups both are equal


def _with_papers_figures(row: Row, full: int, rounds: int) -> Row:
    overhead, most = _overhead(row.trained_parameters, rounds), _overhead(full, rounds)
    papers = round(most / overhead, 1) if overhead and most else None
    return replace(row, paper_overhead=overhead, paper_reduction=papers)


def _overhead(parameters: int, rounds: int) -> float:
    return round(32 * parameters * rounds / 2**30, 2)


def _method(cls: type[Method], setting: TableSetting) -> Method:
    method: Method = setting.method if type(setting.method) is cls else cls()
    if setting.lora is not None and isinstance(method, LowRank):
        method = replace(method, lora=setting.lora)
    return method if setting.rank is None else at_rank(method, _possible(method, setting.rank, setting))


def _possible(method: Method, rank: int, setting: TableSetting) -> int:
    """The rank, or the largest that prompts of the default number have; the setting's own method says what is wrong."""
    if isinstance(method, Dvpt) and method is not setting.method and isinstance(setting.model, Vit):
        return min(rank, method.most_rank(vit.SIZES[setting.model.size]))
    return rank


def _lacks_settings(cls: type[Method]) -> bool:
    """Whether a method has settings without a default."""
    return any(one.default is MISSING and one.default_factory is MISSING for one in fields(cls))  # type: ignore[arg-type]  # a dataclass, as all of the table


def family(model: Model) -> str:
    """The name of a model's plug-in, as methods say which they suit.

    Raises:
        ValueError: the plug-in is none of ours.
    """
    for name, cls in MODELS.items():
        if isinstance(model, cls):
            return name
    raise ValueError(f"model: expected one of {', '.join(MODELS)}, whose methods are known, got {type(model).__name__}")


def _without_weights(model: Model, name: str | None, image_size: int | None) -> Model:
    """A model of this or another name and image size; its weights are not looked at."""
    named = {f"{word}-{one.size}": one for word, ones in _LARGE.items() for one in ones}
    if name is not None and name not in named:
        raise ValueError("--model: " + unknown(f"unknown model {name!r}", name, named))
    chosen: Any = model if name is None else named[name]
    if type(chosen) is type(model):  # the model's own settings (SAM's upscaler) and image size
        heads = {"heads": "new"} if isinstance(model, Sam) else {}
        own: Any = model
        chosen = replace(own, size=chosen.size, weights="random", pretrained_on=(), **heads)
    result: Model = replace(chosen, image_size=_or(image_size, chosen.image_size))
    return result


def _or(given: int | None, default: int) -> int:
    return default if given is None else given
