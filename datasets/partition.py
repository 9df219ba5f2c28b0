"""Who gets which patients: from the cases of a pool to hospitals.

========================  ==============================================================================================
``natural``               each case stays at its site
``iid``                   patients are dealt at random: hospitals differ by chance alone
``dirichlet``             label skew: a hospital has large targets, another one small ones
``by_size``               quantity skew: a few large hospitals, many small ones
``by_acquisition``        feature skew: each hospital has images of one intensity convention, or of one spacing
========================  ==============================================================================================

Every patient is in one hospital with all cases, every hospital has a patient, and the result depends on the pool and
the streams alone, not on the order of the cases.

Legend: n patients, K hospitals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from .contract import Case, Streams
from .facts import Facts

Hospitals = dict[str, list[Case]]
"""The cases of each hospital, both sorted by name."""

Acquisition = Literal["intensity", "slice_spacing", "pixel_spacing"]
Cut = Literal["gaps", "equal"]

MAX_ALPHA = 1e6
DARKEST = 1e-9
"""What an image of zeros counts as where the logarithm of its intensity is taken."""


class Partition(Protocol):
    """A way to make hospitals."""

    def assign(self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams) -> Hospitals:
        """Gives every case to a hospital, patients whole, no hospital empty.

        Args:
            cases: The pool, in any order.
            facts: Measures a case; asked only where the result depends on it.
            rng: Keyed streams.

        Raises:
            ValueError: it cannot be done with these cases.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Natural:
    """Each case stays at its site, as the data set knows it."""

    def assign(self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams) -> Hospitals:
        """The hospitals are the sites. Raises ValueError where a case has none or a patient has several."""
        lacking = sorted(case.name for case in cases if not case.site)
        if lacking:
            others = ", ".join(name for name, cls in PARTITIONS.items() if cls is not Natural)
            raise ValueError(
                f"split.partition: expected a site for every case, {len(lacking)} of {len(cases)} have none, for "
                f"example {lacking[:3]}; make hospitals with one of {others}, for example "
                "split.partition={name: iid, hospitals: 3}"
            )
        if torn := torn_patients(cases, lambda case: str(case.site)):
            raise ValueError(f"split.partition: expected every patient at one site, got {'; '.join(torn)}")
        sites = sorted({str(case.site) for case in cases})
        return {site: list(by_name(case for case in cases if case.site == site)) for site in sites}


@dataclass(frozen=True, kw_only=True)
class Iid:
    """The patients in random order, dealt like cards: their numbers differ by one at most.

    Args:
        hospitals: K, >= 1.
    """

    hospitals: int

    def __post_init__(self) -> None:
        _raise(_below_one(self, "hospitals"))

    def assign(self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams) -> Hospitals:
        """Deals the patients. Streams used: ``hospitals``."""
        whole = by_patient(cases)
        _check_number(len(whole), self.hospitals)
        drawn = _shuffled(list(whole), rng("hospitals"))
        return _named([drawn[place :: self.hospitals] for place in range(self.hospitals)], whole)


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """Label skew over the volume of the target.

    Patients are ranked by volume and cut into ``bins`` groups of equal size, which take the place of classes. Each
    group g is shared out by a draw of its own::

        shares_g ~ Dirichlet(alpha, ..., alpha) over K hospitals

    and a hospital gets its share of the group's patients rounded up or down, at random such that the mean is the share
    (systematic sampling: hospitals side by side on [0, 1), patient i at (i + u) / n_g with one u from U[0, 1)). Then,
    as long as a hospital has fewer than ``min_patients``, the smallest gets one from the largest, the first of each:
    the patient who comes last in the random order of all.

    A large alpha gives every hospital the same mixture, a small one gives it a few groups and makes sizes unequal.

    Args:
        hospitals: K, >= 1.
        alpha: Concentration, above 0, at most 1e6.
        bins: Groups of volume, >= 1; no more are made than there are patients.
        of_class: Rank by the volume of this class, 1..C; None: of all classes together.
        min_patients: Of every hospital, >= 1.

    Source: Yurochkin et al. (arXiv 1905.12022) and Li et al. (arXiv 2102.02079), one draw per class; after Hsu et al.
    (arXiv 1909.06335), one draw per hospital.
    Differs from the papers in: groups of volume for classes, systematic sampling, the repair of small hospitals.
    """

    hospitals: int
    alpha: float = 0.5
    bins: int = 10
    of_class: int | None = None
    min_patients: int = 1

    def __post_init__(self) -> None:
        problems = _below_one(self, "hospitals", "bins", "of_class", "min_patients")
        if not 0 < self.alpha <= MAX_ALPHA:
            problems.append(f"alpha: expected a number above 0, at most {MAX_ALPHA:g}, got {self.alpha!r}")
        _raise(problems)

    def assign(self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams) -> Hospitals:
        """Draws the shares of each group. Streams used: ``hospitals``; ``shares`` with the group's number from 0."""
        whole = by_patient(cases)
        _check_number(len(whole), self.hospitals, self.min_patients)
        volume = _mean_of(whole, lambda case: self._volume(facts(case)))
        turn = {patient: place for place, patient in enumerate(_shuffled(list(whole), rng("hospitals")))}
        members: list[list[str]] = [[] for _ in range(self.hospitals)]
        for number, group in enumerate(_equal_parts(_ranked(volume), min(self.bins, len(whole)))):
            owners = self._owners(len(group), rng("shares", number))
            for patient, owner in zip(sorted(group, key=turn.__getitem__), owners, strict=True):
                members[owner].append(patient)
        ordered = [sorted(patients, key=turn.__getitem__) for patients in members]
        return _named(_with_at_least(ordered, self.min_patients), whole)

    def _volume(self, facts: Facts) -> float:
        if self.of_class is None:
            return sum(facts.label_ml)
        if self.of_class > len(facts.label_ml):
            raise ValueError(f"split.partition.of_class: expected 1 to {len(facts.label_ml)}, got {self.of_class}")
        return facts.label_ml[self.of_class - 1]

    def _owners(self, patients: int, rng: torch.Generator) -> list[int]:
        """The hospital, from 0, of each patient of a group."""
        generator = _numpy_generator(rng)
        shares = generator.dirichlet(np.full(self.hospitals, self.alpha))
        return systematic_sample(shares, patients, generator.random())


@dataclass(frozen=True, kw_only=True)
class BySize:
    """Quantity skew: random patients, of whom hospital k = 1..K has a number that falls with a power of k.

    ::

        n_k = n k^-exponent / (1^-exponent + ... + K^-exponent)

    rounded to whole patients by largest remainder. As long as a hospital has fewer than ``min_patients``, the smallest
    gets one from the largest.

    Args:
        hospitals: K, >= 1.
        exponent: From 0 (equal sizes) on; with 1 the second hospital has half as many patients as the first.
        min_patients: Of every hospital, >= 1.

    Source: quantity skew as in Li et al. (arXiv 2102.02079).
    Differs from the paper in: a power law instead of shares from a Dirichlet distribution, so that sizes are known
    beforehand.
    """

    hospitals: int
    exponent: float = 1.0
    min_patients: int = 1

    def __post_init__(self) -> None:
        problems = _below_one(self, "hospitals", "min_patients")
        if not 0 <= self.exponent < math.inf:
            problems.append(f"exponent: expected a number from 0 on, got {self.exponent!r}")
        _raise(problems)

    def assign(self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams) -> Hospitals:
        """Draws the patients of each hospital. Streams used: ``hospitals``."""
        whole = by_patient(cases)
        drawn = _shuffled(list(whole), rng("hospitals"))
        starts = [0, *accumulate(self.sizes(len(whole)))]
        return _named([drawn[start:end] for start, end in pairwise(starts)], whole)

    def sizes(self, patients: int) -> list[int]:
        """The number of patients of each hospital, largest first.

        Example:
            >>> BySize(hospitals=4, exponent=1.0).sizes(25)
            [12, 6, 4, 3]
        """
        _check_number(patients, self.hospitals, self.min_patients)
        weights = np.arange(1, self.hospitals + 1, dtype=np.float64) ** -self.exponent
        sizes = largest_remainder(weights / weights.sum(), patients)
        while min(sizes) < self.min_patients:
            sizes[sizes.index(min(sizes))] += 1
            sizes[len(sizes) - 1 - sizes[::-1].index(max(sizes))] -= 1  # the last of the largest: sizes stay in order
        return sizes


@dataclass(frozen=True, kw_only=True)
class ByAcquisition:
    """Feature skew: patients in the order of how their images were acquired or stored, cut into K hospitals.

    The value of a case is, to three decimals, one of::

        intensity       log10 of the larger of |0.5th| and |99.5th| percentile of the intensities
        slice_spacing   spacing of the slices in mm
        pixel_spacing   square root of the area of a pixel in mm

    and that of a patient the mean over the cases. ``gaps`` cuts at the K - 1 largest gaps between neighbours: scanners
    or file conventions that are far apart come out as they are, and sizes are what they are. ``equal`` makes parts
    whose numbers of patients differ by one at most; patients of equal value are in the order of their names, and may
    be cut apart. Nothing is drawn.

    Args:
        hospitals: K, >= 1; ``hospital-1`` has the smallest values.
        by: What the order is by.
        cut: Where to cut.

    Source: feature skew as in Li et al. (arXiv 2102.02079), made from differences that are in the data.
    """

    hospitals: int
    by: Acquisition = "intensity"
    cut: Cut = "gaps"

    def __post_init__(self) -> None:
        problems = _below_one(self, "hospitals")
        problems += [
            f"{name}: expected one of {', '.join(get_args(known))}, got {getattr(self, name)!r}"
            for name, known in (("by", Acquisition), ("cut", Cut))
            if getattr(self, name) not in get_args(known)
        ]
        _raise(problems)

    def assign(self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams) -> Hospitals:
        """Sorts and cuts. Streams used: none."""
        whole = by_patient(cases)
        _check_number(len(whole), self.hospitals)
        value = _mean_of(whole, lambda case: acquisition(facts(case), self.by))
        ordered = _ranked(value)
        if self.cut == "equal":
            return _named(_equal_parts(ordered, self.hospitals), whole)
        return _named(self._cut_at_gaps(ordered, value), whole)

    def _cut_at_gaps(self, ordered: Sequence[str], value: Mapping[str, float]) -> list[list[str]]:
        different = len(set(value.values()))
        if different < self.hospitals:
            raise ValueError(
                f"split.partition.hospitals: expected at most {different} with cut gaps, as there are not more "
                f"different values of {self.by}, got {self.hospitals}; cut: equal cuts between equal values too"
            )
        gaps = np.diff([value[patient] for patient in ordered])
        cuts = sorted(np.argsort(-gaps, kind="stable")[: self.hospitals - 1].tolist())
        starts = [0, *(cut + 1 for cut in cuts), len(ordered)]
        return [list(ordered[start:end]) for start, end in pairwise(starts)]


def acquisition(facts: Facts, by: Acquisition) -> float:
    """The value that :class:`ByAcquisition` sorts a case by, to three decimals."""
    slice_mm, row_mm, column_mm = facts.spacing_mm
    values = {
        "intensity": math.log10(max(facts.scale, DARKEST)),
        "slice_spacing": slice_mm,
        "pixel_spacing": math.sqrt(row_mm * column_mm),
    }
    return round(values[by], 3)


# ---- names and patients ----------------------------------------------------------------------------------------------


def hospital_names(number: int) -> list[str]:
    """``hospital-1`` ..., zero-padded so that they sort by number."""
    width = len(str(number))
    return [f"hospital-{i:0{width}d}" for i in range(1, number + 1)]


def by_patient(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """The cases of each patient, both sorted by name."""
    whole: dict[str, list[Case]] = {patient: [] for patient in sorted({case.patient for case in cases})}
    for case in by_name(cases):
        whole[case.patient].append(case)
    return whole


def by_name(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Cases sorted by name."""
    return tuple(sorted(cases, key=lambda case: case.name))


def torn_patients(cases: Sequence[Case], value: Callable[[Case], str]) -> list[str]:
    """``Ann (north, south)`` for each patient whose cases have several values."""
    found = {patient: sorted({value(case) for case in own}) for patient, own in by_patient(cases).items()}
    return [f"{patient} ({', '.join(values)})" for patient, values in found.items() if len(values) > 1]


def _named(members: Sequence[Sequence[str]], whole: Mapping[str, Sequence[Case]]) -> Hospitals:
    """The patients of each hospital as named lists of cases."""
    return {
        name: list(by_name(case for patient in patients for case in whole[patient]))
        for name, patients in zip(hospital_names(len(members)), members, strict=True)
    }


def _mean_of(whole: Mapping[str, Sequence[Case]], value: Callable[[Case], float]) -> dict[str, float]:
    """The mean over each patient's cases."""
    return {patient: sum(map(value, cases)) / len(cases) for patient, cases in whole.items()}


def _ranked(value: Mapping[str, float]) -> list[str]:
    """Patients by value, then by name."""
    return sorted(value, key=lambda patient: (value[patient], patient))


def _shuffled(patients: Sequence[str], rng: torch.Generator) -> list[str]:
    return [patients[place] for place in torch.randperm(len(patients), generator=rng).tolist()]


# ---- shares into whole patients --------------------------------------------------------------------------------------


def largest_remainder(shares: NDArray[np.float64], total: int) -> list[int]:
    """Whole numbers in the proportion of the shares: rounded down, then one more to those that lost most.

    Args:
        shares: (K,), sum 1.
        total: The sum.

    Example:
        >>> largest_remainder(np.array([0.5, 0.3, 0.2]), 6)
        [3, 2, 1]
    """
    quota = shares * total
    sizes = np.floor(quota).astype(int)
    rest = total - int(sizes.sum())
    sizes[np.argsort(sizes - quota, kind="stable")[:rest]] += 1
    return [int(size) for size in sizes]


def systematic_sample(shares: NDArray[np.float64], total: int, offset: float) -> list[int]:
    """Places 0..K - 1, sorted, each about ``total * shares`` times: rounded up or down by the offset.

    Args:
        shares: (K,), sum 1.
        total: How many places.
        offset: u in [0, 1).

    Example:
        >>> systematic_sample(np.array([0.5, 0.25, 0.25]), 2, 0.2)  # points 0.1 and 0.6
        [0, 1]
    """
    points = (np.arange(total) + offset) / total
    places = np.searchsorted(np.cumsum(shares), points, side="right")
    return [min(int(place), len(shares) - 1) for place in places]  # the shares' sum may be a little below 1


def _equal_parts(patients: Sequence[str], number: int) -> list[list[str]]:
    """Neighbours together; the first parts have one more where it does not come out even."""
    small, larger = divmod(len(patients), number)
    starts = [part * small + min(part, larger) for part in range(number + 1)]
    return [list(patients[start:end]) for start, end in pairwise(starts)]


def _with_at_least(members: Sequence[Sequence[str]], least: int) -> list[list[str]]:
    """The last patient of the largest hospital goes to the smallest as long as it has too few."""
    filled = [list(patients) for patients in members]
    while len(min(filled, key=len)) < least:
        min(filled, key=len).append(max(filled, key=len).pop())
    return filled


def _numpy_generator(rng: torch.Generator) -> np.random.Generator:
    """For distributions that PyTorch draws without a generator only; seeded with 63 bits of the stream."""
    return np.random.Generator(np.random.PCG64(int(torch.randint(2**63 - 1, (1,), generator=rng))))


# ---- problems --------------------------------------------------------------------------------------------------------


def _check_number(patients: int, hospitals: int, least: int = 1) -> None:
    if patients < hospitals * least:
        each = "one patient each" if least == 1 else f"{least} patients each"
        raise ValueError(
            f"split.partition.hospitals: expected at most {patients // least}, {each} for {patients} patients, "
            f"got {hospitals}"
        )


def _below_one(partition: object, *names: str) -> list[str]:
    values = {name: getattr(partition, name) for name in names}
    return [
        f"{name}: expected a number above 0, got {value!r}"
        for name, value in values.items()
        if value is not None and value < 1
    ]


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))


PARTITIONS: Mapping[str, type] = {
    "natural": Natural,
    "iid": Iid,
    "dirichlet": Dirichlet,
    "by_size": BySize,
    "by_acquisition": ByAcquisition,
}
"""The ways to make hospitals, by the name that ``split.partition`` uses."""
