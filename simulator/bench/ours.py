"""Our engine, round by round: what ``wardround run`` does between two checkpoints, without evaluation.

An idle round is a round of the same federation in which every phase of the algorithm has zero epochs
(:class:`Resting`): cohort, broadcast, swap of the tensors, checks, aggregation and bookkeeping, no step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ...aggregators.contract import (
    Aggregated,
    Aggregator,
    ClientUpdate,
    Download,
    Fit,
    HospitalInfo,
    LocalResult,
    LocalRule,
    Phase,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from ...clients.replica import Replica
from ...clients.training import Workplace
from ..assembly import keep_features, make_setting
from ..checkpoint import Checkpoint
from ..cohort import Hospital
from ..federation import Federated, Round, Stopwatch, initial_memories, run_round
from ..progress import Progress
from ..runtime import Runtime
from ..sampling import Cohort
from .workload import Materials, Workload, materials


@dataclass(frozen=True, kw_only=True)
class Resting:
    """A local rule whose phases train nothing: ``Phase.epochs`` is 0 in each of them.

    Args:
        rule: The rule that is wrapped.
    """

    rule: LocalRule

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """Those of the rule, with zero epochs and nothing measured."""
        return [replace(phase, epochs=0, measure=False) for phase in self.rule.phases(download, memory)]

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """What the rule does."""
        return self.rule.finish(download, fits, memory)


@dataclass(frozen=True, kw_only=True)
class Rested:
    """An aggregator whose hospitals rest; the server's half is as it is.

    Args:
        aggregator: The aggregator that is wrapped.
    """

    aggregator: Aggregator

    @property
    def consumes(self) -> Literal["sum", "updates"]:
        """As the aggregator says."""
        return self.aggregator.consumes

    @property
    def uses_weights(self) -> bool:
        """As the aggregator says."""
        return self.aggregator.uses_weights

    @property
    def rule(self) -> LocalRule:
        """The aggregator's, at rest."""
        return Resting(rule=self.aggregator.rule)

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """What the aggregator does."""
        return self.aggregator.init(setting, rng)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """What the aggregator does."""
        return self.aggregator.broadcast(server, hospital)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """What the aggregator does."""
        return self.aggregator.aggregate(server, updates, rng)

    def deploy(self, server: ServerState, hospital: HospitalInfo | None, memory: Tensors) -> Tensors:
        """What the aggregator does."""
        return self.aggregator.deploy(server, hospital, memory)


class Ours:
    """A federation and the state its rounds have come to."""

    def __init__(self, federated: Federated, state: Checkpoint) -> None:
        self.federated = federated
        self.state = state
        self.watch = Stopwatch()
        self._resting = replace(federated, aggregator=Rested(aggregator=federated.aggregator))

    def round(self) -> float:
        """One round; the mean of the hospitals' mean losses, as all of them take the same number of steps."""
        finished = self._round(self.federated)
        self.state = finished.checkpoint
        losses: list[float] = [row["value"] for row in finished.rows["metrics"] if row["metric"] == "loss"]
        return sum(losses) / len(losses)

    def idle(self) -> None:
        """One round at rest, which leads nowhere."""
        self._round(self._resting)

    def rest(self) -> None:
        """One round at rest whose state is kept: hospitals remember what they would after training."""
        self.state = self._round(self._resting).checkpoint

    def _round(self, federated: Federated) -> Round:
        self.watch = Stopwatch()
        with Progress(rounds=self.state.round + 1, quiet=True) as progress:
            return run_round(federated, self.state, progress, self.watch)

    def aggregation_s(self) -> float | None:
        """The stage ``aggregate_s`` of the last round: collecting, checking and combining the updates."""
        return self.watch.seconds["aggregate_s"]

    def facts(self) -> Mapping[str, str | float]:
        """None of its own."""
        return {}

    def close(self) -> None:
        """Nothing to do."""


def prepare(workload: Workload, runtime: Runtime, device: torch.device) -> Ours:
    """The engine ``ours``."""
    return Ours(*federation(materials(workload, device), runtime))


def federation(made: Materials, runtime: Runtime) -> tuple[Federated, Checkpoint]:
    """The workload as a federation of its own, and its state before round 1.

    Args:
        made: Model and data.
        runtime: ``cohort`` (``auto`` is sequential here), ``stack``, ``compile`` and what features may take.
    """
    model, layout = made.model()
    replica = Replica(model, layout, device=made.device, precision=made.workload.precision)
    if runtime.compile:
        replica.compile()
    hospitals = {
        name: Hospital(info=made.info(name), train=windows, validation=(), test=())
        for name, windows in made.windows.items()
    }
    federated = Federated(
        aggregator=made.aggregator,
        workplace=Workplace(replica=replica, training=made.training, augment=made.augment),
        hospitals=hospitals,
        weights={name: float(hospital.info.num_examples) for name, hospital in hospitals.items()},
        cohort=Cohort(),
        seed=made.workload.seed,
        stack=runtime.stack if runtime.cohort == "stacked" else 1,
    )
    features = keep_features(federated, (), runtime)
    federated = replace(federated, workplace=replace(federated.workplace, kept=features if features else None))
    setting = make_setting(replica, hospitals, made.training)
    server = made.aggregator.init(setting, federated.rng("server"))
    return federated, Checkpoint(server=server, memories=initial_memories(hospitals))
