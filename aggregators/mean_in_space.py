"""FedAvg in one of two spaces: what the algorithms share that act on factors or on products, as asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from .contract import (
    Aggregated,
    Aggregator,
    ClientUpdate,
    Download,
    HospitalInfo,
    LocalRule,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from .fedavg import FedAvg
from .flap_sam import FlapSam
from .plain import PlainTraining
from .spaces import On, check_on


@dataclass(frozen=True, kw_only=True)
class MeanInSpace:
    """The weighted mean in a space (:mod:`~wardround.aggregators.spaces`): FedAvg on factors, FLAP-SAM on products.

    Algorithms that differ from it in the server's step override ``aggregate``, those that differ in the hospital's
    half override ``rule``.

    Args:
        on: ``factors``: a mean of the updates is all that is needed, and hospitals need one rank; ``product``: needs
            the factors of every hospital, which may have different ranks.
    """

    on: On = "factors"
    uses_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_on(self.on)

    @property
    def _mean(self) -> Aggregator:
        return FedAvg() if self.on == "factors" else FlapSam()

    @property
    def consumes(self) -> Literal["sum", "updates"]:
        """A mean on factors; every update on products."""
        return self._mean.consumes

    @property
    def rule(self) -> LocalRule:
        """Plain training."""
        return PlainTraining()

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values. Raises ValueError on factors when hospitals have different ranks."""
        return self._mean.init(setting, rng)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything; pairs at the hospital's rank."""
        return self._mean.broadcast(server, hospital)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The mean."""
        return self._mean.aggregate(server, updates, rng)

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """The global model, at the hospital's rank."""
        return self._mean.deploy(server, hospital, memory)
