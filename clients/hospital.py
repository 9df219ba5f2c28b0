"""A hospital's turn in a round: load, fit the phases of the rule, finish. What it remembers is its only state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..aggregators.contract import Download, Fit, HospitalInfo, LocalResult, LocalRule, Phase, Streams, Tensors
from ..datasets.examples import Examples
from .flat import FlatTensors
from .replica import Replica
from .stack import Stack
from .stacked_training import fit_together
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
class Assignment:
    """What a hospital has and was sent when its turn comes.

    Args:
        hospital: Which hospital.
        download: What the server broadcast to it.
        memory: What it remembers.
        windows: Its training windows or images.
        rng: Streams of this hospital and round.
        lasting: Streams of this hospital that are the same in every round and phase.
    """

    hospital: HospitalInfo
    download: Download
    memory: Memory
    windows: Examples
    rng: Streams
    lasting: Streams

    def phases(self, rule: LocalRule) -> tuple[Phase, ...]:
        """What the rule has it fit, in order."""
        return tuple(rule.phases(self.download, self.memory.tensors))

    def streams(self, phase: int) -> Streams:
        """The streams of one phase. The first phase uses the hospital's own, whatever the algorithm."""
        if phase == 0:
            return self.rng
        return lambda *keys: self.rng(*keys, f"phase-{phase}")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What came of a hospital's turn. It holds no tensors but those that are sent and those that are remembered.

    Args:
        hospital: Which hospital.
        result: What it sends; its memory is moved into ``memory``.
        memory: What it remembers, in one buffer.
        num_steps: Optimizer steps over all phases.
        mean_loss: Mean training loss of the last phase that took a step, None when none did.
    """

    hospital: HospitalInfo
    result: LocalResult
    memory: Memory
    num_steps: int
    mean_loss: float | None


def take_turn(workplace: Workplace, rule: LocalRule, assignment: Assignment) -> Turn:
    """Runs all phases of the rule at one hospital.

    Args:
        workplace: The replica (left in an arbitrary state) and the training settings.
        rule: The hospital's half of the algorithm.
        assignment: What the hospital has and was sent.

    Raises:
        NonFiniteLossError: names the batch.
        ValueError: the rule asks for a tensor that nobody gave a value.
    """

    def train(starts: Sequence[Tensors], phases: Sequence[Phase], number: int) -> list[Fitted]:
        workplace.replica.load(starts[0])
        windows, state = assignment.windows, assignment.memory.of_phase(number)
        return [fit(workplace, phases[0], windows, state, assignment.streams(number), assignment.lasting)]

    [turn] = _turns(workplace, rule, [assignment], train)
    return turn


def take_turns_together(
    workplace: Workplace, stack: Stack, rule: LocalRule, assignments: Sequence[Assignment]
) -> list[Turn]:
    """Runs all phases of the rule at several hospitals that share every step; their phases are alike.

    Args:
        workplace: The training settings, and the replica that the stack was made for.
        stack: Room for so many hospitals (left in an arbitrary state).
        rule: The hospital's half of the algorithm.
        assignments: What each of them has and was sent, most windows first.

    Raises:
        NonFiniteLossError: names batch and row.
        ValueError: the rule asks for a tensor that nobody gave a value, or the phases are not alike.
    """
    windows = [assignment.windows for assignment in assignments]
    lasting = [assignment.lasting for assignment in assignments]

    def train(starts: Sequence[Tensors], phases: Sequence[Phase], number: int) -> list[Fitted]:
        stack.load(starts)
        states = [assignment.memory.of_phase(number) for assignment in assignments]
        streams = [assignment.streams(number) for assignment in assignments]
        return fit_together(stack, workplace, phases, windows, states, streams, lasting)

    return _turns(workplace, rule, assignments, train)


Fitted = tuple[Fit, OptimizerState]


def _turns(
    workplace: Workplace,
    rule: LocalRule,
    assignments: Sequence[Assignment],
    train: Callable[[Sequence[Tensors], Sequence[Phase], int], list[Fitted]],
) -> list[Turn]:
    """Phase after phase at all of the hospitals; ``train`` fits them to one, given the values that they start from."""
    values: list[Tensors] = [assignment.download.start for assignment in assignments]
    fitted: list[list[Fitted]] = [[] for _ in assignments]
    every = [assignment.phases(rule) for assignment in assignments]
    for number, phases in enumerate(zip(*every, strict=True)):
        starts = [{**own, **(phase.start or {})} for own, phase in zip(values, phases, strict=True)]
        for phase in phases:
            _check_phase(phase, workplace.replica)
        for of_one, result in zip(fitted, train(starts, phases, number), strict=True):
            of_one.append(result)
        values = [of_one[-1][0].tensors for of_one in fitted]
    return [_turn(rule, assignment, of_one) for assignment, of_one in zip(assignments, fitted, strict=True)]


def _turn(rule: LocalRule, assignment: Assignment, fitted: Sequence[Fitted]) -> Turn:
    """What comes of the fits of all phases."""
    fits, states = tuple(fit for fit, _ in fitted), tuple(state for _, state in fitted)
    memory = assignment.memory
    finished = rule.finish(assignment.download, fits, memory.tensors)
    losses = [fit.mean_loss for fit in fits if fit.mean_loss is not None]
    return Turn(
        hospital=assignment.hospital,
        result=replace(finished, memory={}),
        memory=Memory(tensors=finished.memory, optimizer=states, feedback=memory.feedback).settled(),
        num_steps=sum(fit.num_steps for fit in fits),
        mean_loss=losses[-1] if losses else None,
    )


def _check_phase(phase: Phase, replica: Replica) -> None:
    unknown = sorted(set(phase.train) - replica.values.keys())
    if unknown:
        raise ValueError(f"the local rule trains {unknown}, which the method does not offer for training")
