"""The hospitals of a round train on the one replica: one after the other, or several that share every step.

Order never matters: every hospital starts from what was broadcast to it, has its own streams and its own memory. Nor
does it matter who trains with whom, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from ..aggregators.contract import HospitalInfo, LocalRule, Phase
from ..clients.hospital import Assignment, Turn, take_turn, take_turns_together
from ..clients.stack import Stack
from ..clients.stacked_training import unlike
from ..clients.training import NonFiniteLossError, Workplace
from ..datasets.examples import Examples
from ..datasets.images import HospitalImages
from ..datasets.windows import PreparedVolume
from .headline import HEADLINES, SEGMENTATION, Headline

Scored = tuple[PreparedVolume, ...] | HospitalImages
"""What a model is scored on: volumes, or images with a class each."""


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """A hospital of the run: what the server knows of it, and its data in memory."""

    info: HospitalInfo
    train: Examples
    validation: Scored
    test: Scored


@dataclass(frozen=True, kw_only=True)
class Outsider:
    """Cases that belong to no hospital of the run; scored with the model of a site never seen.

    Args:
        name: ``common``, or the site.
        split: ``test``: the common test set; ``unseen``: a site that was left out. Where all cases are pooled, also the
            ``validation`` and ``test`` cases of every hospital.
        cases: They themselves.
    """

    name: str
    split: Literal["validation", "test", "unseen"]
    cases: Scored


def volumes_of(cases: Scored) -> tuple[PreparedVolume, ...]:
    """Cases that are volumes. A run has one kind: nobody asks this of images."""
    assert isinstance(cases, tuple)
    return cases


Announce = Callable[[str, Turn | None], None]


def train_cohort(
    workplace: Workplace,
    rule: LocalRule,
    assignments: Sequence[Assignment],
    announce: Announce,
    stack: Stack | None = None,
) -> list[Turn]:
    """Trains the hospitals of a round, one after the other or several at a time.

    Args:
        workplace: The replica and the training settings.
        rule: The hospital's half of the algorithm.
        assignments: What each of them has and was sent.
        announce: Called with a name when a hospital begins, and with name and turn when it is done.
        stack: Room for hospitals that train together; None: they take turns.

    Returns:
        Their turns in order of names.

    Raises:
        ValueError: names the hospital.
    """
    turns: list[Turn] = []
    for group in _groups(rule, assignments, 1 if stack is None else stack.size):
        names = [assignment.hospital.name for assignment in group]
        announce(names[0], None)
        with _naming(names, HEADLINES[workplace.loss.task]):
            if stack is None or len(group) == 1:
                done = [take_turn(workplace, rule, assignment) for assignment in group]
            else:
                done = take_turns_together(workplace, stack, rule, group)
        for number, (name, turn) in enumerate(zip(names, done, strict=True)):
            if number:
                announce(name, None)
            announce(name, turn)
        turns += done
    return sorted(turns, key=_name)


def _groups(rule: LocalRule, assignments: Sequence[Assignment], size: int) -> Iterator[list[Assignment]]:
    """Hospitals that train together, at most ``size``; one at a time in order of names.

    Those of a group have about equally many windows, so that few of them are done long before the others.
    """
    in_order = sorted(assignments, key=_name)
    if size == 1:
        yield from ([assignment] for assignment in in_order)
        return
    in_order.sort(key=lambda assignment: -len(assignment.windows))
    for first in range(0, len(in_order), size):
        yield from alike_groups(rule, in_order[first : first + size])


def alike_groups(rule: LocalRule, assignments: Sequence[Assignment]) -> list[list[Assignment]]:
    """Hospitals parted into groups whose phases are alike, each in their order."""
    groups: list[tuple[tuple[Phase, ...], list[Assignment]]] = []
    for assignment in assignments:
        with _naming([_name(assignment)]):
            phases = assignment.phases(rule)
        fitting = next((group for of_first, group in groups if phases_unlike([of_first, phases]) is None), None)
        if fitting is None:
            groups.append((phases, [assignment]))
        else:
            fitting.append(assignment)
    return [group for _, group in groups]


def phases_unlike(hospitals: Sequence[Sequence[Phase]]) -> str | None:
    """Whether hospitals can go through all their phases together: None, or why they cannot."""
    if len({len(phases) for phases in hospitals}) > 1:
        return "the rule has another number of phases at every hospital"
    return next((reason for phases in zip(*hospitals, strict=True) if (reason := unlike(phases))), None)


def _name(of: Assignment | Turn) -> str:
    return of.hospital.name


@contextmanager
def _naming(names: Sequence[str], headline: Headline = SEGMENTATION) -> Iterator[None]:
    """What goes wrong has the name of the hospital, or of all that train together where nobody knows which it is.

    Args:
        names: Of those that train together.
        headline: What their cases are called.
    """
    try:
        yield
    except NonFiniteLossError as error:
        raise ValueError(
            f"hospital {names[error.row]!r}: {error}. Lower training.optimizer.lr, set training.clip_norm, "
            f"or look for odd intensities in its {headline.cases}"
        ) from error
    except ValueError as error:
        which = f"hospital {names[0]!r}" if len(names) == 1 else f"one of the hospitals {names!r}"
        raise ValueError(f"{which}: {error}") from error
