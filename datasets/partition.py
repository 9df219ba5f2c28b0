"""Who gets which patients: from the cases of a pool to hospitals.

========================  ==============================================================================================
``natural``               each case stays at its site
``iid``                   patients are dealt at random: hospitals differ by chance alone
``dirichlet``             label skew: a hospital has large targets, another one small ones; of images, other classes
``skew``                  label skew by hand: the fractions of each class that a hospital has, for images with classes
``by_size``               quantity skew: a few large hospitals, many small ones
``by_acquisition``        feature skew: each hospital has volumes of one intensity convention, or of one spacing
========================  ==============================================================================================

Every patient is in one hospital with all cases, every hospital has a patient, and the result depends on the pool and
the streams alone, not on the order of the cases.

Images that have classes are dealt without reading a pixel. Where a patient (a lesion, in dermatology) has several of
them, the patient's class is the most frequent one; of equally frequent ones the first in the order of the classes.

Legend: n patients, K hospitals, C classes.
"""

from __future__ import annotations

import math
from collections import Counter
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
ROUNDING = 1e-6
"""What a sum of fractions may differ from 1 by."""

DARKEST = 1e-9
"""What an image of zeros counts as where the logarithm of its intensity is taken."""


class Partition(Protocol):
    """A way to make hospitals."""

    def assign(
        self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams, classes: Sequence[str] = ()
    ) -> Hospitals:
        """Gives every case to a hospital, patients whole, no hospital empty.

        Args:
            cases: The pool, in any order.
            facts: Measures a case; asked only where the result depends on it.
            rng: Keyed streams.
            classes: Names of the C classes.

        Raises:
            ValueError: it cannot be done with these cases.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Natural:
    """Each case stays at its site, as the data set knows it."""

    def assign(
        self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams, classes: Sequence[str] = ()
    ) -> Hospitals:
        """The hospitals are the sites.

        A patient with cases at several sites stays at all of them where the data set has them on one side of its split.

        Raises:
            ValueError: a case has no site, or a patient has several and not one side.
        """
        lacking = sorted(case.name for case in cases if not case.site)
        if lacking:
            unfit = (Natural, ByAcquisition if _have_targets(cases) else Skew)
            others = ", ".join(name for name, cls in PARTITIONS.items() if cls not in unfit)
            raise ValueError(
                f"split.partition: expected a site for every case, {len(lacking)} of {len(cases)} have none, for "
                f"example {lacking[:3]}; make hospitals with one of {others}, for example "
                "split.partition={name: iid, hospitals: 3}"
            )
        settled = settled_patients(cases)
        if torn := torn_patients([case for case in cases if case.patient not in settled], lambda case: str(case.site)):
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

    def assign(
        self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams, classes: Sequence[str] = ()
    ) -> Hospitals:
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
    Images that have classes are grouped by them: there is nothing to rank, and ``bins`` and ``of_class`` stay as they
    are.

    Args:
        hospitals: K, >= 1.
        alpha: Concentration, above 0, at most 1e6.
        bins: Groups of volume, >= 1; no more are made than there are patients. For volumes only.
        of_class: Rank by the volume of this class, 1..C; None: of all classes together. For volumes only.
        min_patients: Of every hospital, >= 1.

    Source: Yurochkin et al. (arXiv 1905.12022) and Li et al. (arXiv 2102.02079), one draw per class; after Hsu et al.
    (arXiv 1909.06335), one draw per hospital.
    Differs from the papers in: groups of volume where there are masks, systematic sampling, the repair of small
    hospitals.
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

    def assign(
        self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams, classes: Sequence[str] = ()
    ) -> Hospitals:
        """Draws the shares of each group. Streams used: ``hospitals``; ``shares`` with the group's number from 0."""
        whole = by_patient(cases)
        _check_number(len(whole), self.hospitals, self.min_patients)
        groups = self._classes(whole) if _have_targets(cases) else self._bins(whole, facts)
        turn = {patient: place for place, patient in enumerate(_shuffled(list(whole), rng("hospitals")))}
        members: list[list[str]] = [[] for _ in range(self.hospitals)]
        for number, group in groups.items():
            owners = self._owners(len(group), rng("shares", number))
            for patient, owner in zip(sorted(group, key=turn.__getitem__), owners, strict=True):
                members[owner].append(patient)
        ordered = [sorted(patients, key=turn.__getitem__) for patients in members]
        return _named(_with_at_least(ordered, self.min_patients), whole)

    def _classes(self, whole: Mapping[str, Sequence[Case]]) -> dict[int, list[str]]:
        """The patients of each class."""
        given = {"bins": self.bins != type(self).bins, "of_class": self.of_class is not None}
        _raise(
            [
                f"split.partition.{name}: expected none, as images are grouped by their classes, "
                f"got {getattr(self, name)!r}; leave it out"
                for name, is_set in given.items()
                if is_set
            ]
        )
        return _by_class(whole)

    def _bins(self, whole: Mapping[str, Sequence[Case]], facts: Callable[[Case], Facts]) -> dict[int, list[str]]:
        """Patients with targets of about one volume, by the number of their group."""
        volume = _mean_of(whole, lambda case: self._volume(facts(case)))
        return dict(enumerate(_equal_parts(_ranked(volume), min(self.bins, len(whole)))))

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
class Skew:
    """Label skew set by hand: which fraction of each class's patients a hospital has.

    ::

        n_hc = s_hc n_c,    sum over h of s_hc = 1

    rounded to whole patients by largest remainder, of equal remainders those of the hospitals that come first by name.
    Of a class, the hospitals that say nothing share equally what the others leave; a class that nobody names is shared
    equally by all. Who of a class comes to which hospital is drawn.

    Args:
        shares: Per hospital, the fractions s_hc by name of the class, each in [0, 1]; ``{}`` for a hospital that only
            gets what others leave.

    Example:
        Nine of ten melanomas in the north, half of all other classes::

            split.partition: {name: skew, shares: {north: {melanoma: 0.9}, south: {}}}
    """

    shares: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        problems = [] if self.shares else ["shares: expected at least one hospital, got none"]
        for hospital, wanted in self.shares.items():
            problems += [
                f"shares.{hospital}.{name}: expected a fraction from 0 to 1, got {share!r}"
                for name, share in wanted.items()
                if not 0 <= share <= 1
            ]
        _raise(problems or [f"shares: {problem}" for problem in self._wrong_sums()])

    def assign(
        self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams, classes: Sequence[str] = ()
    ) -> Hospitals:
        """Deals the patients of one class after the other. Streams used: ``hospitals``."""
        if not _have_targets(cases):
            raise ValueError(
                "split.partition: skew is made of the classes of images, expected cases that have one; for volumes "
                "with masks dirichlet makes label skew"
            )
        self._check_classes(classes)
        whole, names = by_patient(cases), sorted(self.shares)
        turn = {patient: place for place, patient in enumerate(_shuffled(list(whole), rng("hospitals")))}
        members: dict[str, list[str]] = {name: [] for name in names}
        for number, group in _by_class(whole).items():
            counts = largest_remainder(self.shares_of(classes[number]), len(group))
            ordered = sorted(group, key=turn.__getitem__)
            for name, (start, end) in zip(names, pairwise([0, *accumulate(counts)]), strict=True):
                members[name] += ordered[start:end]
        if empty := [name for name, patients in members.items() if not patients]:
            raise ValueError(
                f"split.partition.shares: expected a patient for every hospital, got none for {empty} from "
                f"{len(whole)} patients"
            )
        return {name: _cases_of(patients, whole) for name, patients in members.items()}

    def shares_of(self, name: str) -> NDArray[np.float64]:
        """(K,) what each hospital has of a class, in the order of the hospitals' names.

        Example:
            >>> Skew(shares={"north": {"melanoma": 0.9}, "south": {}}).shares_of("melanoma").round(3).tolist()
            [0.9, 0.1]
        """
        said = {hospital: wanted[name] for hospital, wanted in self.shares.items() if name in wanted}
        silent = len(self.shares) - len(said)
        rest = max(0.0, 1 - sum(said.values())) / max(silent, 1)
        return np.array([said.get(hospital, rest) for hospital in sorted(self.shares)])

    def _wrong_sums(self) -> list[str]:
        """A line per class of which hospitals take too much, or leave something that nobody gets."""
        lines = []
        for name in sorted({name for wanted in self.shares.values() for name in wanted}):
            said = [wanted[name] for wanted in self.shares.values() if name in wanted]
            all_said = len(said) == len(self.shares)
            if sum(said) > 1 + ROUNDING or (all_said and sum(said) < 1 - ROUNDING):
                expected = "1, as every hospital names it" if all_said else "at most 1"
                lines.append(f"expected fractions of {name!r} with a sum of {expected}, got {sum(said):.6g}")
        return lines

    def _check_classes(self, classes: Sequence[str]) -> None:
        unknown = sorted({name for wanted in self.shares.values() for name in wanted} - set(classes))
        if unknown:
            raise ValueError(f"split.partition.shares: expected some of the classes {list(classes)}, got {unknown} too")


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

    def assign(
        self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams, classes: Sequence[str] = ()
    ) -> Hospitals:
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
    """Feature skew: patients in the order of how their volumes were acquired or stored, cut into K hospitals.

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

    def assign(
        self, cases: Sequence[Case], facts: Callable[[Case], Facts], rng: Streams, classes: Sequence[str] = ()
    ) -> Hospitals:
        """Sorts and cuts. Streams used: none. Raises ValueError for images that have classes."""
        if _have_targets(cases):
            raise ValueError(
                "split.partition: by_acquisition sorts volumes by their intensities or their spacing, which are not "
                "known of images with classes; expected one of natural, iid, dirichlet, skew and by_size"
            )
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


def settled_patients(cases: Iterable[Case]) -> set[str]:
    """The patients whose cases the data set's own split has all on one side.

    They may be at several sites: none of them trains at one hospital and tests at another.
    """
    sides: dict[str, set[str | None]] = {}
    for case in cases:
        sides.setdefault(case.patient, set()).add(case.side)
    return {patient for patient, found in sides.items() if len(found) == 1 and None not in found}


def _named(members: Sequence[Sequence[str]], whole: Mapping[str, Sequence[Case]]) -> Hospitals:
    """The patients of each hospital as named lists of cases."""
    return {
        name: _cases_of(patients, whole) for name, patients in zip(hospital_names(len(members)), members, strict=True)
    }


def _cases_of(patients: Iterable[str], whole: Mapping[str, Sequence[Case]]) -> list[Case]:
    """The cases of some patients, sorted by name."""
    return list(by_name(case for patient in patients for case in whole[patient]))


def _have_targets(cases: Sequence[Case]) -> bool:
    """Whether cases are images with classes. Raises ValueError where only some are."""
    lacking = [case.name for case in cases if case.target is None]
    if lacking and len(lacking) < len(cases):
        raise ValueError(
            f"split.partition: expected a class for every case or for none, {len(lacking)} of {len(cases)} have none, "
            f"for example {sorted(lacking)[:3]}"
        )
    return not lacking


def class_of(cases: Sequence[Case]) -> int:
    """The most frequent class of a patient's images; of equally frequent ones the smallest number."""
    counts = Counter(case.target for case in cases if case.target is not None)
    return min(counts, key=lambda number: (-counts[number], number))


def _by_class(whole: Mapping[str, Sequence[Case]]) -> dict[int, list[str]]:
    """The patients of each class that anybody has, in the order of the classes."""
    found: dict[int, list[str]] = {}
    for patient, cases in whole.items():
        found.setdefault(class_of(cases), []).append(patient)
    return dict(sorted(found.items()))


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
    "skew": Skew,
    "by_size": BySize,
    "by_acquisition": ByAcquisition,
}
"""The ways to make hospitals, by the name that ``split.partition`` uses."""
