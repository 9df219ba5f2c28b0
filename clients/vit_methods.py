"""Methods of the Vision Transformer. The linear head trains in all of them, beside what the table says.

+--------------+------------------------------------------------------------+----------------------------------------+
| method       | trains                                                     | ViT-B/16, without the head's 769 C     |
+==============+============================================================+========================================+
| full         | everything                                                 | 85,798,656                             |
+--------------+------------------------------------------------------------+----------------------------------------+
| linear       | the head alone                                             | 0                                      |
+--------------+------------------------------------------------------------+----------------------------------------+
| bias         | all biases of the backbone, those of norms too             | 102,912                                |
+--------------+------------------------------------------------------------+----------------------------------------+
| attention    | all attention layers                                       | 28,348,416                             |
+--------------+------------------------------------------------------------+----------------------------------------+
| sba          | the same, one drawn block of them in a round               | 2,362,368 in a round                   |
+--------------+------------------------------------------------------------+----------------------------------------+
| vpt_shallow  | T prompts before the first block                           | 768 T                                  |
+--------------+------------------------------------------------------------+----------------------------------------+
| vpt_deep     | T prompts before every block                               | 12 * 768 T                             |
+--------------+------------------------------------------------------------+----------------------------------------+
| dvpt         | the same as a product of rank R, per block ...             | 12 R (T + 768)                         |
|              | ... or with a shared basis                                 | R (12 T + 768)                         |
+--------------+------------------------------------------------------------+----------------------------------------+
| lora         | LoRA of rank R on m matrices of every attention            | 18,432 m R                             |
+--------------+------------------------------------------------------------+----------------------------------------+
| lora_vpt     | LoRA, and T prompts before every block                     | 18,432 m R + 12 * 768 T                |
+--------------+------------------------------------------------------------+----------------------------------------+
| adapter      | a bottleneck of width b after every MLP                    | 12 (2 * 768 b + b + 768)               |
+--------------+------------------------------------------------------------+----------------------------------------+
| union        | what several of them train                                 | the sum                                |
+--------------+------------------------------------------------------------+----------------------------------------+

``full``, ``attention`` and ``lora`` are in :mod:`.common_methods`.

Legend: T prompts of a block, R rank, b width of an adapter, C classes.

Source: arXiv 2407.11573. VPT: Jia et al. 2022, arXiv 2203.12119; bias: Ben Zaken et al. 2021 (BitFit), arXiv
2106.10199; adapter: Houlsby et al. 2019, arXiv 1902.00751.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self, get_args

import torch
from torch import nn

from ..aggregators.contract import Layout, Streams
from .bottleneck import adapt_blocks, bottlenecks, initialise_bottlenecks
from .common_methods import Attention, Full, LoraOnly
from .contract import Dense, LowRank, Method, at_rank, rank_of
from .layout import adapt_attention, layout
from .lora import initialise_adapters
from .prompts import Form, LowRankPrompts, Prompts, initialise_prompts
from .vit import VitNet, VitSize


class LinearProbe(Dense):
    """Trains the head alone. The whole backbone is frozen: what it makes of an image can be kept."""

    models: ClassVar[tuple[str, ...]] = ("vit",)

    def attach(self, model: VitNet) -> Layout:
        """See :class:`.Method`."""
        return layout(model, dense=[])


class Bias(Dense):
    """Trains all biases of the backbone, those of norms and of the patch projection too, and the head: BitFit."""

    models: ClassVar[tuple[str, ...]] = ("vit",)

    def attach(self, model: VitNet) -> Layout:
        """See :class:`.Method`."""
        held = (getattr(module, "bias", None) for module in model.vit.modules())
        return layout(model, dense=[bias for bias in held if isinstance(bias, nn.Parameter)])


@dataclass(frozen=True, kw_only=True)
class Sba(Dense):
    """Trains the attention of one block in a round, drawn anew every time, and the head: stochastic block attention.

    The layout says which tensors belong to which block (``groups``); the schedule that draws one of them for a round is
    :class:`~wardround.aggregators.scheduled.Scheduled`. Over a run all attention layers train.

    Args:
        draw: ``shared``: one draw for all hospitals; ``per_client``: every hospital has its own.

    Source: arXiv 2407.11573.
    """

    models: ClassVar[tuple[str, ...]] = ("vit",)

    draw: Literal["shared", "per_client"] = "shared"

    def __post_init__(self) -> None:
        if self.draw not in ("shared", "per_client"):
            raise ValueError(f"draw: expected 'shared' or 'per_client', got {self.draw!r}")

    def attach(self, model: VitNet) -> Layout:
        """See :class:`.Method`."""
        blocks = [{id(tensor) for tensor in block.parameters()} for block in model.attention()]
        named = [(name, id(tensor)) for name, tensor in model.named_parameters()]
        groups = tuple(tuple(name for name, key in named if key in block) for block in blocks)
        return replace(layout(model, dense=model.attention()), groups=groups)


@dataclass(frozen=True, kw_only=True)
class _Prompted:
    """What methods with prompts share.

    Args:
        prompts: T, >= 1.
    """

    models: ClassVar[tuple[str, ...]] = ("vit",)

    prompts: int = 10

    def __post_init__(self) -> None:
        if problems := _below_one(self, "prompts"):
            raise ValueError("; ".join(problems))

    def initialise(self, model: VitNet, rng: Streams) -> None:
        """Draws the prompts."""
        initialise_prompts(model, model.size.patch, rng)


@dataclass(frozen=True, kw_only=True)
class VptShallow(_Prompted):
    """Trains T prompts that are put in before the first block and stay, and the head: VPT-shallow.

    Args:
        prompts: T, >= 1.

    Source: Jia et al. 2022, arXiv 2203.12119.
    """

    def attach(self, model: VitNet) -> Layout:
        """See :class:`.Method`."""
        _prompt(model, lambda device: Prompts(1, self.prompts, model.size.width, device))
        return _with_prompts(model)


@dataclass(frozen=True, kw_only=True)
class VptDeep(_Prompted):
    """Trains T prompts of every block, which are dropped behind it, and the head: VPT-deep.

    Args:
        prompts: T, >= 1.

    Source: Jia et al. 2022, arXiv 2203.12119.
    """

    def attach(self, model: VitNet) -> Layout:
        """See :class:`.Method`."""
        _prompt(model, lambda device: Prompts(model.size.layers, self.prompts, model.size.width, device))
        return _with_prompts(model)


@dataclass(frozen=True, kw_only=True)
class Dvpt(_Prompted):
    """Trains the factors of deep prompts that are products of low rank, and the head: DVPT.

    For a server the factors are low-rank pairs, as those of LoRA are: averaged as factors or as products by the same
    aggregators. Hospitals may have ranks of their own.

    Args:
        prompts: T, >= 1.
        rank: R, from 1 to the most directions that a product has: min(T, D) with ``per_block``, min(L T, D) with
            ``shared_basis`` over L blocks.
        form: ``per_block``: every block has both factors of its own; ``shared_basis``: the right factor is one for all.

    Source: arXiv 2407.11573; how the factors start (:mod:`~wardround.clients.prompts`) is ours.
    """

    rank: int = 4
    form: Form = "per_block"

    def __post_init__(self) -> None:
        problems = _below_one(self, "prompts", "rank")
        if self.form not in get_args(Form):
            problems.append(f"form: expected 'per_block' or 'shared_basis', got {self.form!r}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def pair_rank(self) -> int | None:
        """See :class:`.Ranked`."""
        return self.rank

    def at_rank(self, rank: int) -> Self:
        """See :class:`.Ranked`."""
        return replace(self, rank=rank)

    def most_rank(self, size: VitSize) -> int:
        """Directions that the product of a pair has at most, in a model of this size."""
        rows = {"per_block": self.prompts, "shared_basis": size.layers * self.prompts}[self.form]
        return min(rows, size.width)

    def attach(self, model: VitNet) -> Layout:
        """See :class:`.Method`.

        Raises:
            ValueError: the rank is above that of any table of prompts.
        """
        size = model.size
        most = self.most_rank(size)
        if self.rank > most:
            raise ValueError(
                f"method.rank: expected at most {most}, the directions that prompts have with prompts={self.prompts}, "
                f"width {size.width} and form={self.form}, got {self.rank!r}"
            )
        _prompt(
            model,
            lambda device: LowRankPrompts(size.layers, self.prompts, size.width, self.rank, self.form, device),
        )
        return layout(model, dense=[])


@dataclass(frozen=True, kw_only=True)
class LoraVpt(LowRank):
    """Trains LoRA and T prompts of every block, and the head.

    Args:
        lora: Settings of the low-rank adapters.
        prompts: T, >= 1.
    """

    models: ClassVar[tuple[str, ...]] = ("vit",)

    prompts: int = 10

    def __post_init__(self) -> None:
        if problems := _below_one(self, "prompts"):
            raise ValueError("; ".join(problems))

    def attach(self, model: VitNet) -> Layout:
        """See :class:`.Method`."""
        adapt_attention(model, self.lora)
        return VptDeep(prompts=self.prompts).attach(model)

    def initialise(self, model: VitNet, rng: Streams) -> None:  # type: ignore[override]  # of ViTs alone
        """Draws adapters and prompts."""
        initialise_adapters(model, rng)
        initialise_prompts(model, model.size.patch, rng)


@dataclass(frozen=True, kw_only=True)
class BottleneckAdapter:
    """Trains a bottleneck behind the MLP of every block, and the head.

    Args:
        width: b, >= 1.

    Source: Houlsby et al. 2019, arXiv 1902.00751; what differs: :mod:`~wardround.clients.bottleneck`.
    """

    models: ClassVar[tuple[str, ...]] = ("vit",)

    width: int = 64

    def __post_init__(self) -> None:
        if problems := _below_one(self, "width"):
            raise ValueError("; ".join(problems))

    def attach(self, model: VitNet) -> Layout:
        """See :class:`.Method`."""
        adapt_blocks(model, self.width)
        return layout(model, dense=bottlenecks(model))

    def initialise(self, model: VitNet, rng: Streams) -> None:
        """Draws the lower half of the adapters; the upper one is zero."""
        initialise_bottlenecks(model, rng)


COMPONENTS: dict[str, type[Method]] = {
    "linear": LinearProbe,
    "bias": Bias,
    "attention": Attention,
    "vpt_shallow": VptShallow,
    "vpt_deep": VptDeep,
    "dvpt": Dvpt,
    "lora": LoraOnly,
    "lora_vpt": LoraVpt,
    "adapter": BottleneckAdapter,
}
"""Methods that a union may be made of."""

NO_COMPONENTS: dict[str, tuple[type[Method], str]] = {
    "full": (Full, "which trains everything already: it leaves a union nothing to add"),
    "sba": (Sba, "which trains one drawn block in a round: a union trains all it has in every round"),
}
"""Methods that a union cannot be made of, and why."""

_NAMED: dict[str, type[Method]] = {**COMPONENTS, **{name: cls for name, (cls, _) in NO_COMPONENTS.items()}}
"""What may be written: the others are told why not."""


@dataclass(frozen=True, kw_only=True)
class UnionOf:
    """Trains what several methods train, and the head.

    All low-rank pairs of a network have one rank, so that LoRA and DVPT go together at equal ranks only.

    Args:
        of: The methods, one or more, by name or with their settings: ``[lora, vpt_deep, {name: adapter, width: 8}]``.
            Their order is of no matter.
    """

    models: ClassVar[tuple[str, ...]] = ("vit",)

    of: tuple[Annotated[Method, _NAMED], ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of: expected at least one method, got none")
        problems = [
            f"of[{place}]: expected one of {', '.join(COMPONENTS)}, got {name}, {why}"
            for place, method in enumerate(self.of)
            for name, (cls, why) in NO_COMPONENTS.items()
            if type(method) is cls
        ]
        if problems:
            raise ValueError("; ".join(problems))
        ranks = [(_word(method), rank) for method in self.of for rank in [rank_of(method)] if rank is not None]
        if len({rank for _, rank in ranks}) > 1:
            got = ", ".join(f"{rank} ({word})" for word, rank in ranks)
            raise ValueError(f"of: expected one rank for all low-rank pairs, got {got}")

    @property
    def pair_rank(self) -> int | None:
        """See :class:`.Ranked`."""
        return next((rank for rank in map(rank_of, self.of) if rank is not None), None)

    def at_rank(self, rank: int) -> Self:
        """See :class:`.Ranked`."""
        return replace(self, of=tuple(at_rank(method, rank) for method in self.of))

    def attach(self, model: VitNet) -> Layout:
        """See :class:`.Method`.

        Raises:
            ValueError: two of the methods want different adapters in one place, or one does not suit the model.
        """
        dense: set[str] = set()
        for place, method in enumerate(self.of):
            try:
                dense.update(method.attach(model).dense)
            except ValueError as error:
                reason = str(error).removeprefix("method.")
                raise ValueError(f"method.of[{place}] ({_word(method)}): {reason}") from error
        return layout(model, dense=[model.get_parameter(name) for name in dense])

    def initialise(self, model: VitNet, rng: Streams) -> None:
        """Initialises what every method put in."""
        for method in self.of:
            method.initialise(model, rng)


def _word(method: Method) -> str:
    """The name of a method in the table; of one that is not there, its class."""
    return next((name for name, cls in COMPONENTS.items() if cls is type(method)), type(method).__name__)


def _prompt(model: VitNet, make: Callable[[torch.device], Prompts]) -> None:
    """Gives a network its prompts. Does nothing where these are there.

    Raises:
        ValueError: it has others.
    """
    wanted = make(torch.device("meta"))
    if model.prompts is None:
        model.prompts = make(model.head.weight.device)
    elif model.prompts.settings != wanted.settings:
        raise ValueError(
            f"prompts: expected one kind of them in a network, got {model.prompts.settings}"
            f" and {wanted.settings} (blocks, prompts of a block, and rank and form)"
        )


def _with_prompts(model: VitNet) -> Layout:
    return layout(model, dense=[] if model.prompts is None else [model.prompts])


def _below_one(method: object, *names: str) -> list[str]:
    """What is wrong with whole numbers that must be 1 or more."""
    values = {name: getattr(method, name) for name in names}
    return [f"{name}: expected at least 1, got {value!r}" for name, value in values.items() if value < 1]
