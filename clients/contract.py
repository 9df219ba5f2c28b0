"""What a method is: which tensors of a network may train; and of what rank its low-rank pairs are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, cast, runtime_checkable

from ..aggregators.contract import Layout, Streams
from .lora import LoRA, initialise_adapters
from .network import Network


class Method(Protocol):
    """Which tensors of a model may train: a frozen dataclass with two methods."""

    models: ClassVar[tuple[str, ...]]
    """Names of the models (of :data:`~wardround.clients.MODELS`) that it suits."""

    def attach(self, model: Any) -> Layout:
        """Puts adapters into a freshly built network (which may be on the meta device) and says what may train.

        No parameter's ``requires_grad`` is touched. A second call changes nothing and returns the same layout. The
        network is of one of the ``models``.
        """
        ...

    def initialise(self, model: Any, rng: Streams) -> None:
        """Fills the attached adapters with their initial values, each from the stream of its own name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Dense:
    """What methods without adapters share: nothing to initialise."""

    def initialise(self, model: Network, rng: Streams) -> None:
        """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """What methods with LoRA share: their settings and their initial adapters.

    Args:
        lora: Settings of the adapters.
    """

    lora: LoRA = field(default_factory=LoRA)

    @property
    def pair_rank(self) -> int | None:
        """See :class:`Ranked`."""
        return self.lora.rank

    def at_rank(self, rank: int) -> Self:
        """See :class:`Ranked`."""
        return replace(self, lora=replace(self.lora, rank=rank))

    def initialise(self, model: Network, rng: Streams) -> None:
        """Draws A (and B, where it does not start at zero)."""
        initialise_adapters(model, rng)


@runtime_checkable
class Ranked(Protocol):
    """A method whose adapters are low-rank pairs. Hospitals may use fewer rows of them, each its own number."""

    @property
    def pair_rank(self) -> int | None:
        """R of all its pairs; None: with these settings it has none."""
        ...

    def at_rank(self, rank: int) -> Self:
        """The same with pairs of another rank."""
        ...


def rank_of(method: Method) -> int | None:
    """The rank of a method's pairs, None where it has none."""
    return method.pair_rank if isinstance(method, Ranked) else None


def at_rank(method: Method, rank: int) -> Method:
    """The method with pairs of another rank; as it is where it has none."""
    return cast(Method, method.at_rank(rank)) if isinstance(method, Ranked) and rank_of(method) is not None else method
