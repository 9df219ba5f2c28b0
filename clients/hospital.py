"""A hospital's turn in a round: load, fit the phases of the rule, finish. What it remembers is its only state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..aggregators.contract import Download, Fit, HospitalInfo, LocalResult, LocalRule, Phase, Streams, Tensors
from ..datasets.windows import HospitalWindows
from .flat import FlatTensors
from .replica import Replica
from .training import OptimizerState, Workplace, fit


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What belongs to a hospital between two rounds and never travels.

    Args:
        tensors: What the rule remembers (personal tensors, control variates, the previous model).
        optimizer: Per phase of the rule: kept moments and the steps taken so far.
        feedback: What compression left out of the steps sent so far, by tensor.
    """

    tensors: Tensors = field(default_factory=dict)
    optimizer: tuple[OptimizerState, ...] = ()
    feedback: Tensors = field(default_factory=dict)

    @staticmethod
    def of(tensors: Tensors, steps: Sequence[int]) -> Memory:
        """The memory that :meth:`named` took apart, in one buffer.

        Args:
            tensors: What :meth:`named` gave.
            steps: Steps taken so far, per phase.
        """
        flat = FlatTensors.of(tensors)
        optimizer = tuple(
            OptimizerState(steps=taken, moments=flat.below(f"moments-{phase}/")) for phase, taken in enumerate(steps)
        )
        return Memory(tensors=flat.below("tensors/"), optimizer=optimizer, feedback=flat.below("feedback/"))

    def named(self) -> dict[str, Tensor]:
        """All tensors by group and name: ``tensors/...``, ``feedback/...``, ``moments-0/...``."""
        groups = {"tensors": self.tensors, "feedback": self.feedback}
        groups |= {f"moments-{phase}": state.moments for phase, state in enumerate(self.optimizer)}
        return {f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()}

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps taken so far, per phase."""
        return tuple(state.steps for state in self.optimizer)

    def settled(self) -> Memory:
        """The same memory in one buffer: views of larger tensors (the replica's, the server's) no longer hold them."""
        return Memory.of(self.named(), self.steps)

    def of_phase(self, number: int) -> OptimizerState:
        """The optimizer state of a phase, fresh when there is none yet."""
        return self.optimizer[number] if number < len(self.optimizer) else OptimizerState()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What came of a hospital's turn: what it sends, what it remembers, and its fits."""

    hospital: HospitalInfo
    result: LocalResult
    memory: Memory
    fits: tuple[Fit, ...]

    @property
    def num_steps(self) -> int:
        """Optimizer steps over all phases."""
        return sum(fit.num_steps for fit in self.fits)

    @property
    def mean_loss(self) -> float | None:
        """Mean training loss of the last phase that took a step, None when none did."""
        losses = [fit.mean_loss for fit in self.fits if fit.mean_loss is not None]
        return losses[-1] if losses else None


def take_turn(
    workplace: Workplace,
    rule: LocalRule,
    hospital: HospitalInfo,
    download: Download,
    memory: Memory,
    windows: HospitalWindows,
    rng: Streams,
    lasting: Streams,
) -> Turn:
    """Runs all phases of the rule at one hospital.

    Args:
        workplace: The replica (left in an arbitrary state) and the training settings.
        rule: The hospital's half of the algorithm.
        hospital: Which hospital.
        download: What the server broadcast to it.
        memory: What it remembers.
        windows: Its training windows.
        rng: Streams of this hospital and round.
        lasting: Streams of this hospital that are the same in every round and phase.

    Raises:
        NonFiniteLossError: names the batch.
        ValueError: the rule asks for a tensor that nobody gave a value.
    """
    values, fits, states = dict(download.start), [], []
    for number, phase in enumerate(rule.phases(download, memory.tensors)):
        values |= phase.start or {}
        _check_phase(phase, workplace.replica)
        workplace.replica.load(values)
        result, state = fit(
            workplace,
            phase,
            windows,
            memory.of_phase(number),
            _below(rng, number),
            lasting,
        )
        values = dict(result.tensors)
        fits.append(result)
        states.append(state)
    finished = rule.finish(download, fits, memory.tensors)
    kept = Memory(tensors=finished.memory, optimizer=tuple(states), feedback=memory.feedback)
    return Turn(hospital=hospital, result=finished, memory=kept, fits=tuple(fits))


def _check_phase(phase: Phase, replica: Replica) -> None:
    unknown = sorted(set(phase.train) - replica.values.keys())
    if unknown:
        raise ValueError(f"the local rule trains {unknown}, which the method does not offer for training")


def _below(rng: Streams, phase: int) -> Streams:
    """The streams of one phase. The first phase uses the hospital's own, whatever the algorithm."""
    if phase == 0:
        return rng
    return lambda *keys: rng(*keys, f"phase-{phase}")
