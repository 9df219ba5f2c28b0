"""Who gets which cases, and what for: from a pool to a federation, the same way for every data set.

::

    pool --partition--> hospitals --sides--> train | validation | test --limit, leave out--> Federation

Patients stay whole in every step. Only a partition that asks for the facts of a volume opens its file; everything else
is dealt by names, patients, sites, sides and classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch

from .contract import Case, Cases, DataError, Federation, Pool, Side, Streams
from .facts import Facts
from .partition import PARTITIONS, Natural, Partition, by_name, torn_patients

Sides = Mapping[str, Side]
"""What a case is for, by its name."""

DEFAULT_TEST_FRACTION = 0.2


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which hospital has which cases, and which of them train, validate and test.

    Args:
        partition: How cases become hospitals; ``natural``: each stays at its site.
        test: ``each``: every hospital has test cases of its own; ``common``: one test set is set aside before hospitals
            are made, which suits many small hospitals.
        test_fraction: Fraction of the patients (of a hospital, or of the pool for ``common``) that only test. None: the
            data set's own split; a fifth where it has none.
        validation_fraction: Fraction of a hospital's other patients that only validate. Where the data set has a split
            of its own: of the patients who train in it, in addition to its validation cases, if it has any.
        max_train_cases: Keep this many training cases of each hospital, the same first ones for every limit; None
            keeps all. Test cases stay.
        leave_out: Hospitals that do not train: their test cases are scored with the global model, as ``unseen``.
    """

    partition: Annotated[Partition, PARTITIONS] = field(default_factory=Natural)
    test: Literal["each", "common"] = "each"
    test_fraction: float | None = None
    validation_fraction: float = 0.0
    max_train_cases: int | None = None
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            problems.append(f"test_fraction: expected a number between 0 and 1, got {self.test_fraction!r}")
        if not 0 <= self.validation_fraction < 1:
            problems.append(f"validation_fraction: expected 0 or more and below 1, got {self.validation_fraction!r}")
        if self.max_train_cases is not None and self.max_train_cases < 1:
            problems.append(f"max_train_cases: expected a number above 0, got {self.max_train_cases!r}")
        if len(set(self.leave_out)) < len(self.leave_out):
            problems.append(f"leave_out: expected every hospital once, got {list(self.leave_out)!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def federation(self, pool: Pool, root: Path, rng: Streams, facts: Callable[[Case], Facts]) -> Federation:
        """Makes the hospitals of a pool.

        Streams used: those of the partition; ``split``, ``validation`` and ``limit`` with the hospital's name;
        ``common``.

        Args:
            pool: The cases.
            root: Their folder, named in errors.
            rng: Keyed streams.
            facts: Measures a case, for partitions that look at the volumes; never called for images with classes.

        Raises:
            DataError: every problem of the pool, or of every hospital, at once; nothing is left of a hospital in
                ``leave_out``.
            ValueError: the partition cannot be made, or ``leave_out`` names no hospital.
        """
        if pool.problems:
            raise DataError(root, pool.problems)
        common, rest = self._common(pool.cases, rng)
        members = self.partition.assign(rest, facts, rng, pool.classes)
        self._check_names(members)
        hospitals: dict[str, Cases] = {}
        unseen: dict[str, tuple[Case, ...]] = {}
        settled: dict[str, Side] = {}
        problems = []
        for name, cases in sorted(members.items()):
            try:
                if name in self.leave_out:
                    unseen[name] = self._unseen(name, cases, rng, settled)
                else:
                    hospitals[name] = self._cases(name, cases, rng, settled)
            except ValueError as error:
                problems.append(f"hospital {name!r}: {error}")
        if problems:
            raise DataError(root, problems)
        self._check_sides(root, hospitals)
        unseen = _without_trained(unseen, hospitals)
        _check_unseen(root, unseen)
        return Federation(hospitals=hospitals, classes=pool.classes, common=common, unseen=unseen)

    def _common(self, cases: tuple[Case, ...], rng: Streams) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """The test cases of the whole pool (none with ``each``) and the others."""
        if self.test == "each":
            return (), cases
        side = self._own_sides(cases) or self._drawn(cases, rng("common"))
        check_patients(cases, side)
        common = tuple(case for case in cases if side[case.name] == "test")
        return common, tuple(case for case in cases if side[case.name] != "test")

    def _cases(self, hospital: str, cases: Sequence[Case], rng: Streams, settled: dict[str, Side]) -> Cases:
        """One hospital's cases on their sides.

        A patient who has cases at an earlier hospital too is on the side that was drawn there; ``settled`` has the
        sides of the patients so far and gets those of this hospital.
        """
        side = self._own_sides(cases)
        if self.test == "common":
            side = {case.name: case.side if side and case.side else "train" for case in cases}
        if side is None:
            patients = [case.patient for case in cases]
            fraction = self.test_fraction or DEFAULT_TEST_FRACTION
            drawn = split_patients(patients, fraction, self.validation_fraction, rng("split", hospital))
            side = {case.name: drawn[case.patient] for case in cases}
        elif self.validation_fraction > 0:
            side = {**side, **self._validation(cases, side, rng("validation", hospital))}
        check_patients(cases, side)
        side = {case.name: settled.setdefault(case.patient, side[case.name]) for case in cases}
        return self._limited(cases_by_side(cases, side), rng("limit", hospital))

    def _unseen(self, hospital: str, cases: Sequence[Case], rng: Streams, settled: dict[str, Side]) -> tuple[Case, ...]:
        """What a hospital that does not train is scored on.

        The test cases that it would have; all it has where tests are common, or where one patient is all it has.
        """
        if self.test == "common" or len({case.patient for case in cases}) == 1:
            return by_name(cases)
        return self._cases(hospital, cases, rng, settled).test or by_name(cases)

    def _own_sides(self, cases: Sequence[Case]) -> dict[str, Side] | None:
        """The data set's own split; None where it has none, or another was asked for."""
        given = {case.name: case.side for case in cases if case.side is not None}
        if self.test_fraction is not None or not given:
            return None
        lacking = [case.name for case in cases if case.name not in given]
        if lacking:
            raise ValueError(
                f"expected a side (train, validation or test) for every case or for none, {len(lacking)} cases have "
                f"none, for example {lacking[:3]}; to draw a split of all, set split.test_fraction"
            )
        return given

    def _drawn(self, cases: Sequence[Case], rng: torch.Generator) -> dict[str, Side]:
        side = split_patients([case.patient for case in cases], self.test_fraction or DEFAULT_TEST_FRACTION, 0.0, rng)
        return {case.name: side[case.patient] for case in cases}

    def _validation(self, cases: Sequence[Case], side: Sides, rng: torch.Generator) -> dict[str, Side]:
        """The training cases that validate instead."""
        train = [case for case in cases if side[case.name] == "train"]
        drawn = split_patients([case.patient for case in train], self.validation_fraction, 0.0, rng)
        return {case.name: "validation" for case in train if drawn[case.patient] == "test"}

    def _limited(self, cases: Cases, rng: torch.Generator) -> Cases:
        """With at most ``max_train_cases``: patients in random order, of which the first ones stay."""
        if self.max_train_cases is None:
            return cases
        patients = sorted({case.patient for case in cases.train})
        place = {patients[number]: i for i, number in enumerate(torch.randperm(len(patients), generator=rng).tolist())}
        ordered = sorted(cases.train, key=lambda case: (place[case.patient], case.name))
        return replace(cases, train=by_name(ordered[: self.max_train_cases]))

    def _check_names(self, members: Mapping[str, Sequence[Case]]) -> None:
        unknown = sorted(set(self.leave_out) - set(members))
        if unknown:
            raise ValueError(f"split.leave_out: expected some of the hospitals {sorted(members)}, got {unknown} too")
        if self.test == "common" and "common" in members:
            raise ValueError("split.test: expected no hospital named 'common' beside a common test set, got one")
        if self.leave_out and set(self.leave_out) == set(members):
            raise ValueError(f"split.leave_out: expected at least one hospital to stay, got all of {sorted(members)}")

    def _check_sides(self, root: Path, hospitals: Mapping[str, Cases]) -> None:
        """Every hospital needs something to learn from, and to be scored on."""
        needed = ("train", "test") if self.test == "each" else ("train",)
        lacking = [
            f"hospital {name!r}: expected {'training' if side == 'train' else 'test'} cases, got none"
            for name, cases in hospitals.items()
            for side in needed
            if not getattr(cases, side)
        ]
        if lacking:
            hint = (
                "draw the sides anew with split.test_fraction, or set one test set aside for all with split.test=common"
            )
            raise DataError(root, [*lacking, f"where hospitals are small: {hint}"])


def split_patients(
    patients: Sequence[str], test_fraction: float, validation_fraction: float, rng: torch.Generator
) -> dict[str, Side]:
    """Draws which patients train, validate and test.

    Of n patients, ``round(test_fraction * n)`` test, but at least one; of the m others, ``round(validation_fraction *
    m)`` validate, but at least one where the fraction is above 0; at least one is left to train. For a split within
    each hospital, call it once per hospital.

    Args:
        patients: Names; repetitions and order do not matter.
        test_fraction: In (0, 1).
        validation_fraction: In [0, 1), of those who do not test.
        rng: Drawn from once.

    Returns:
        The side of every patient, by sorted name.

    Raises:
        ValueError: too few patients for one on each side.
    """
    names = sorted(set(patients))
    sides = 2 + (validation_fraction > 0)
    if len(names) < sides:
        raise ValueError(
            f"expected at least {sides} patients, one each to {'train, validate and' if sides == 3 else 'train and'} "
            f"test, got {len(names)}: {names}"
        )
    drawn = [names[position] for position in torch.randperm(len(names), generator=rng).tolist()]
    num_test = min(max(round(test_fraction * len(names)), 1), len(names) - sides + 1)
    rest = len(names) - num_test
    num_validation = min(max(round(validation_fraction * rest), 1), rest - 1) if validation_fraction > 0 else 0
    test, validation = set(drawn[:num_test]), set(drawn[num_test : num_test + num_validation])
    return {name: "test" if name in test else "validation" if name in validation else "train" for name in names}


def cases_by_side(cases: Sequence[Case], side: Sides) -> Cases:
    """Cases sorted by name, on the side that ``side`` gives for their name."""

    def on(which: str) -> tuple[Case, ...]:
        return by_name([case for case in cases if side[case.name] == which])

    return Cases(train=on("train"), validation=on("validation"), test=on("test"))


def _without_trained(
    unseen: Mapping[str, tuple[Case, ...]], hospitals: Mapping[str, Cases]
) -> dict[str, tuple[Case, ...]]:
    """The cases of sites that do not train, less those of patients who train or validate at a hospital."""
    known = {case.patient for cases in hospitals.values() for case in (*cases.train, *cases.validation)}
    return {name: tuple(case for case in cases if case.patient not in known) for name, cases in unseen.items()}


def _check_unseen(root: Path, unseen: Mapping[str, tuple[Case, ...]]) -> None:
    """Raises DataError when nothing is left of a site that does not train."""
    empty = [
        f"split.leave_out: site {name!r}: all its patients train elsewhere, nothing is left to score; take it out of "
        "leave_out, or leave out the hospitals that share its patients too"
        for name, cases in unseen.items()
        if not cases
    ]
    if empty:
        raise DataError(root, empty)


def check_patients(cases: Sequence[Case], side: Sides) -> None:
    """Raises ValueError with every patient who has cases on two sides."""
    if torn := torn_patients(cases, lambda case: side[case.name]):
        raise ValueError(f"expected every patient on one side of the split, got {'; '.join(torn)}")
