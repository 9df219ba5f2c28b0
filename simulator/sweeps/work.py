"""How much a run is: optimizer steps and slices that are scored, counted from its cases before it is begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...aggregators.contract import Phase
from ...datasets.contract import Case, Federation, has_classes
from ...datasets.facts import Facts
from ...datasets.windows import prepared_shape
from ..assembly import Located, pooled_training, steps_taken
from ..prepared import preparation_of

if TYPE_CHECKING:
    from ..config import Experiment

READ_MB = 64
"""Cases whose files take no more than this are measured where nobody did yet; others are left to ``data prepare``."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run does.

    Args:
        steps: Optimizer steps of all hospitals in all rounds.
        slices: Slices that are scored, over all evaluations.
    """

    steps: int
    slices: int


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Slices of the volumes of a federation, after ``windows.grid``; where there are classes, its images.

    Args:
        train: Training windows per hospital, one for each slice.
        validation: Of all validation volumes.
        test: Of all test volumes, those of nobody and of unseen sites included.
        native: (S, H, W) of a test volume.
        voxels: Of all test volumes as their files have them.
    """

    train: Mapping[str, int]
    validation: int
    test: int
    native: tuple[int, int, int]
    voxels: int


def count_slices(experiment: Experiment, located: Located) -> Slices | None:
    """Counts the slices of all cases; None where their volumes were not measured yet and are many."""
    federation = located.federation
    if has_classes(experiment.data):
        return _count_images(experiment, federation)
    facts = _facts(experiment, located)
    if facts is None:
        return None
    windows, size = experiment.windows, experiment.model.image_size

    def slices(cases: Sequence[Case]) -> int:
        return sum(prepared_shape(facts[case.name].shape, size, windows)[0] for case in cases)

    tests = _tests(federation)
    return Slices(
        train={name: slices(cases.train) for name, cases in sorted(federation.hospitals.items())},
        validation=sum(slices(cases.validation) for cases in federation.hospitals.values()),
        test=slices(tests),
        native=facts[tests[0].name].shape if tests else next(iter(facts.values())).shape,
        voxels=sum(_voxels(facts[case.name]) for case in tests),
    )


def _count_images(experiment: Experiment, federation: Federation) -> Slices:
    """Every image is one slice, of the size that it is prepared at."""
    size = experiment.model.image_size
    return Slices(
        train={name: len(cases.train) for name, cases in sorted(federation.hospitals.items())},
        validation=sum(len(cases.validation) for cases in federation.hospitals.values()),
        test=len(_tests(federation)),
        native=(1, size, size),
        voxels=0,
    )


def _facts(experiment: Experiment, located: Located) -> Mapping[str, Facts] | None:
    preparation = preparation_of(experiment, len(located.federation.classes))
    cases = {case.name: case for case in _all(located.federation)}
    kept = {name: preparation.kept_facts(case) for name, case in cases.items()}
    files = {path for name, case in cases.items() if kept[name] is None for path in case.files}
    if sum(path.stat().st_size for path in files) > READ_MB * 10**6:
        return None
    return {name: fact if fact is not None else preparation.facts(cases[name]) for name, fact in kept.items()}


def work_of(experiment: Experiment, slices: Slices, phases: Sequence[Phase], *, tested: float = 1.0) -> Work:
    """What a run does.

    Args:
        experiment: The run.
        slices: Of its cases.
        phases: What a hospital fits in a round.
        tested: Which part of its test volumes counts: where one of several values is selected, one part in so many.
    """
    training, evaluation = experiment.training, experiment.evaluation
    steps = {name: sum(training.num_steps(phase, size) for phase in phases) for name, size in slices.train.items()}
    if experiment.pooled:
        total = experiment.rounds * (pooled_training(experiment, slices.train).steps or 0)
    else:
        total = sum(steps_taken(experiment, steps))
    due = sum(evaluation.due(number, experiment.rounds) for number in range(experiment.rounds + 1))
    at_the_end = (due if evaluation.test == "due" else 1) * slices.test
    if evaluation.cross_site:
        at_the_end += (len(slices.train) - 1) * (slices.validation + slices.test)
    measured = sum(phase.measure for phase in phases) * experiment.rounds * sum(slices.train.values())
    return Work(steps=total, slices=due * slices.validation + measured + round(at_the_end * tested))


def steps_alone(experiment: Experiment, hospitals: Sequence[str], phases: Sequence[Phase]) -> Work | None:
    """What a run trains where nobody knows its slices; None where the number of steps depends on them."""
    if experiment.training.steps is None or any(phase.epochs for phase in phases):
        return None
    nothing = Slices(train=dict.fromkeys(hospitals, 1), validation=0, test=0, native=(1, 1, 1), voxels=0)
    return replace(work_of(experiment, nothing, phases), slices=0)


def _all(federation: Federation) -> list[Case]:
    sides = [case for cases in federation.hospitals.values() for case in (*cases.train, *cases.validation)]
    return [*sides, *_tests(federation)]


def _tests(federation: Federation) -> list[Case]:
    """Every test case: those of hospitals, of nobody, of unseen sites."""
    own = [case for cases in federation.hospitals.values() for case in cases.test]
    return [*own, *federation.common, *(case for cases in federation.unseen.values() for case in cases)]


def _voxels(facts: Facts) -> int:
    slices, rows, columns = facts.shape
    return slices * rows * columns
