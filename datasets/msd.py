"""Any task folder in the layout of the Medical Segmentation Decathlon.

Layout::

    TaskNN_Name/dataset.json      labels {"0": "background", "1": ...}, training [{"image": ..., "label": ...}, ...]
    TaskNN_Name/imagesTr/*.nii.gz
    TaskNN_Name/labelsTr/*.nii.gz
    TaskNN_Name/sites.csv         case,site: which hospital has which case (not part of the Decathlon; optional)
    TaskNN_Name/patients.csv      case,patient: which cases are of one person (not part of the Decathlon; optional)

The Decathlon (http://medicaldecathlon.com, CC-BY-SA 4.0) carries no patient identifiers. In most tasks a case is a
patient; in Task04_Hippocampus the cases 2k - 1 and 2k look like the two sides of one head (``patients: pairs``; see
docs/data/msd.md for the evidence).

Source: Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, 2022.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from .contract import Case, Cases, Federation, Streams, Volume
from .nifti import read_case
from .split import fraction_problems, split_patients


@dataclass(frozen=True, kw_only=True)
class Msd:
    """A Decathlon task, its hospitals from ``sites.csv`` or cut at random.

    Args:
        task: Name of the task folder, needed where the data folder holds several.
        hospitals: Deal the patients at random to this many equal hospitals instead of reading ``sites.csv``.
        patients: Who is one patient where there is no ``patients.csv``: ``cases``: every case; ``pairs``: the cases
            whose numbers are 2k - 1 and 2k (``hippocampus_033`` and ``hippocampus_034``).
        test_fraction: Fraction of a hospital's patients that only test.
        validation_fraction: Fraction of its other patients that only validate.
        max_cases_per_hospital: Keep this many cases of each hospital, drawn before the split; None keeps all.
        slice_axis: Array axis along which slices are taken.
        clip_percentiles: Clip each image to these percentiles of its voxels; None leaves it.
    """

    task: str | None = None
    hospitals: int | None = None
    patients: Literal["cases", "pairs"] = "cases"
    test_fraction: float = 0.2
    validation_fraction: float = 0.0
    max_cases_per_hospital: int | None = None
    slice_axis: int = 2
    clip_percentiles: tuple[float, float] | None = (0.5, 99.5)

    def __post_init__(self) -> None:
        problems = fraction_problems(self.test_fraction, self.validation_fraction)
        for name in ("hospitals", "max_cases_per_hospital"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name}: expected a number above 0, got {value!r}")
        if self.slice_axis not in (0, 1, 2):
            problems.append(f"slice_axis: expected 0, 1 or 2, got {self.slice_axis!r}")
        if self.clip_percentiles is not None and not 0 <= self.clip_percentiles[0] < self.clip_percentiles[1] <= 100:
            problems.append(
                f"clip_percentiles: expected two of 0 to 100, the smaller first, got {self.clip_percentiles!r}"
            )
        if problems:
            raise ValueError("; ".join(problems))

    def locate(self, root: Path | None) -> Path:
        """The task folder: ``root`` or the environment's WARDROUND_DATA, or the task folder inside it.

        Raises:
            ValueError: there is none, or several and ``task`` is not set.
        """
        given = root or (Path(os.environ["WARDROUND_DATA"]) if os.environ.get("WARDROUND_DATA") else None)
        if given is None:
            raise ValueError(
                "data: no folder given; name one that holds a Decathlon task (TaskNN_Name with dataset.json, "
                "imagesTr and labelsTr; see http://medicaldecathlon.com) with --data PATH or the environment variable "
                "WARDROUND_DATA"
            )
        if not given.is_dir():
            raise ValueError(f"{given}: expected a folder that holds a Decathlon task, found none there")
        return self._task_folder(given)

    def _task_folder(self, root: Path) -> Path:
        if (root / "dataset.json").is_file() and self.task in (None, root.resolve().name):
            return root
        if self.task is not None:
            if (root / self.task / "dataset.json").is_file():
                return root / self.task
            raise ValueError(f"{root}: expected the task folder {self.task!r} with a dataset.json, found none there")
        found = sorted(path.parent.name for path in root.glob("Task*/dataset.json"))
        if len(found) != 1:
            raise ValueError(
                f"{root}: expected a dataset.json or exactly one folder Task*/ that has one, "
                f"found {found or 'neither'}{'; choose one with data.task' if found else ''}"
            )
        return root / found[0]

    def federation(self, root: Path, rng: Streams) -> Federation:
        """Finds and splits the cases. ``root`` is the task folder.

        Streams used: ``hospitals`` (dealing), ``limit`` and ``split`` with the hospital's name.

        Raises:
            ValueError: every problem of the folder at once.
        """
        description = read_description(root)
        cases = self._with_patients(root, find_cases(root, description))
        sites = self._deal(cases, rng) if self.hospitals is not None else read_sites(root, cases)
        hospitals, problems = {}, _shared_patients(sites)
        for name, members in sorted(sites.items()):
            try:
                hospitals[name] = self._split(name, members, rng)
            except ValueError as error:
                problems.append(str(error))
        raise_problems(root, problems)
        return Federation(hospitals=hospitals, classes=class_names(root, description))

    def _with_patients(self, root: Path, cases: Sequence[Case]) -> list[Case]:
        """The cases with their patients: by ``patients.csv``, by pairs of numbers, or each its own."""
        if (root / "patients.csv").is_file():
            patient = read_column(root / "patients.csv", ("case", "patient"), cases)
            return [replace(case, patient=patient[case.name]) for case in cases]
        if self.patients == "pairs":
            return [replace(case, patient=_pair(case.name)) for case in cases]
        return list(cases)

    def _deal(self, cases: Sequence[Case], rng: Streams) -> dict[str, list[Case]]:
        """The patients in random order, dealt like cards: their numbers differ by one at most."""
        assert self.hospitals is not None
        patients = sorted({case.patient for case in cases})
        if len(patients) < self.hospitals:
            raise ValueError(
                f"hospitals: expected at most {len(patients)} hospitals for {len(patients)} patients, "
                f"got {self.hospitals}"
            )
        order = torch.randperm(len(patients), generator=rng("hospitals")).tolist()
        names = hospital_names(self.hospitals)
        owner = {patients[number]: names[place % self.hospitals] for place, number in enumerate(order)}
        return {name: [case for case in cases if owner[case.patient] == name] for name in names}

    def _split(self, hospital: str, cases: Sequence[Case], rng: Streams) -> Cases:
        kept = sorted(cases, key=lambda case: case.name)
        if self.max_cases_per_hospital is not None:
            order = torch.randperm(len(kept), generator=rng("limit", hospital))
            kept = [kept[i] for i in sorted(order[: self.max_cases_per_hospital].tolist())]
        patients = [case.patient for case in kept]
        try:
            side = split_patients(patients, self.test_fraction, self.validation_fraction, rng("split", hospital))
        except ValueError as error:
            raise ValueError(f"hospital {hospital!r}: {error}") from error
        return cases_by_side(kept, {case.name: side[case.patient] for case in kept})

    def volume(self, case: Case) -> Volume:
        """Reads one case, checks it and brings slices to the front."""
        root = next(folder for folder in case.image.parents if (folder / "dataset.json").is_file())
        return read_case(
            case,
            slice_axis=self.slice_axis,
            num_classes=len(class_names(root, read_description(root))),
            clip_percentiles=self.clip_percentiles,
        )


def hospital_names(number: int) -> list[str]:
    """``hospital-1`` ..., zero-padded so that they sort by number."""
    width = len(str(number))
    return [f"hospital-{i:0{width}d}" for i in range(1, number + 1)]


def cases_by_side(cases: Sequence[Case], side: Mapping[str, str]) -> Cases:
    """Cases sorted by name, on the side that ``side`` gives for their name."""
    ordered = sorted(cases, key=lambda case: case.name)

    def on(which: str) -> tuple[Case, ...]:
        return tuple(case for case in ordered if side[case.name] == which)

    return Cases(train=on("train"), validation=on("validation"), test=on("test"))


def read_description(root: Path) -> Mapping[str, Any]:
    """The content of ``dataset.json``, with a ``labels`` mapping and a ``training`` list."""
    path = root / "dataset.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a readable JSON file, got {type(error).__name__}: {error}") from error
    wanted = {"labels": dict, "training": list}
    wrong = [
        f"{key} as {kind.__name__}"
        for key, kind in wanted.items()
        if not isinstance(description, dict) or not isinstance(description.get(key), kind) or not description[key]
    ]
    if wrong:
        raise ValueError(f"{path}: expected {' and '.join(wrong)}, not empty; see the Decathlon's layout")
    return dict(description)


def class_names(root: Path, description: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of labels 1..C."""
    labels = description["labels"]
    numbers = {str(number) for number in range(len(labels))}
    if set(labels) != numbers or len(labels) < 2:
        raise ValueError(
            f"{root / 'dataset.json'}: labels: expected the keys '0' (background), '1', '2', ... without a gap, "
            f"got {sorted(labels)}"
        )
    names = tuple(str(labels[str(number)]) for number in range(1, len(labels)))
    if len(set(names)) < len(names):
        raise ValueError(f"{root / 'dataset.json'}: labels: expected a name of its own for every class, got {names}")
    return names


def find_cases(root: Path, description: Mapping[str, Any]) -> tuple[Case, ...]:
    """The cases of the training list, sorted by name.

    Raises:
        ValueError: every entry that is malformed or listed twice and every file that is missing.
    """
    entries, problems = [], []
    for number, entry in enumerate(description["training"]):
        if isinstance(entry, dict) and isinstance(entry.get("image"), str) and isinstance(entry.get("label"), str):
            if not Path(entry["image"]).name.startswith("._"):  # resource forks of macOS archives
                entries.append(_case(root, entry["image"], entry["label"]))
        else:
            problems.append(f"training[{number}]: expected {{'image': path, 'label': path}}, got {entry!r}")
    counts = Counter(case.name for case in entries)
    problems += [f"case {name} is listed {count} times" for name, count in counts.items() if count > 1]
    problems += [
        f"{kind} {getattr(case, kind)} is missing"
        for case in entries
        for kind in ("image", "label")
        if not getattr(case, kind).is_file()
    ]
    raise_problems(root, problems)
    return tuple(sorted(entries, key=lambda case: case.name))


def _case(root: Path, image: str, label: str) -> Case:
    name = Path(image).name.removesuffix(".gz").removesuffix(".nii")
    return Case(name=name, patient=name, image=root / image, label=root / label)


def read_sites(root: Path, cases: Sequence[Case]) -> dict[str, list[Case]]:
    """The cases of each hospital by ``sites.csv``.

    Raises:
        ValueError: the file is missing; every case without a site, with two rows, or without files.
    """
    path = root / "sites.csv"
    if not path.is_file():
        raise ValueError(
            f"{path}: expected a table case,site that says which hospital has which case, found none there; "
            f"without one, deal the cases at random with data.hospitals (for example 3)"
        )
    site = read_column(path, ("case", "site"), cases)
    return {name: [case for case in cases if site[case.name] == name] for name in sorted(set(site.values()))}


def read_column(path: Path, columns: tuple[str, str], cases: Sequence[Case]) -> dict[str, str]:
    """The second column of a table that has one row for every case. Raises ValueError with every problem of it."""
    value, problems = read_table(path, columns)
    known = {case.name for case in cases}
    problems += [f"case {name} has no row in {path.name}" for name in sorted(known - set(value))]
    problems += [
        f"{path.name} names case {name}, which dataset.json does not list" for name in sorted(set(value) - known)
    ]
    raise_problems(path.parent, problems)
    return value


def _pair(name: str) -> str:
    """``hippocampus_033`` and ``hippocampus_034`` are patient 17."""
    digits = re.search(r"\d+$", name)
    if digits is None:
        raise ValueError(f"patients: expected case names that end in a number with 'pairs', got {name!r}")
    return f"patient-{(int(digits.group()) + 1) // 2:04d}"


def _shared_patients(sites: Mapping[str, Sequence[Case]]) -> list[str]:
    """One sentence per patient who has cases in several hospitals."""
    where: dict[str, set[str]] = {}
    for name, cases in sites.items():
        for case in cases:
            where.setdefault(case.patient, set()).add(name)
    return [
        f"patient {patient}: expected all cases in one hospital, got {', '.join(sorted(names))}"
        for patient, names in sorted(where.items())
        if len(names) > 1
    ]


def read_table(path: Path, columns: tuple[str, str]) -> tuple[dict[str, str], list[str]]:
    """A two-column CSV file as a mapping, and what is wrong with its rows."""
    try:
        reader = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a table in UTF-8: {error}") from error
    if not set(columns) <= set(reader.fieldnames or ()):
        raise ValueError(f"{path}: expected the columns {','.join(columns)}, got {reader.fieldnames}")
    rows = [((row[columns[0]] or "").strip(), (row[columns[1]] or "").strip()) for row in reader]
    counts = Counter(key for key, _ in rows)
    problems = [f"{path.name} names case {key} {count} times" for key, count in counts.items() if count > 1]
    problems += [f"{path.name}: case {key!r} has no {columns[1]}" for key, value in rows if not value]
    return dict(rows), problems


def raise_problems(root: Path, problems: Sequence[str], shown: int = 20) -> None:
    """One ValueError for all problems of a folder; none when there are none."""
    if not problems:
        return
    lines = [*problems[:shown], *([f"and {len(problems) - shown} more"] if len(problems) > shown else [])]
    raise ValueError(f"{root}: {len(problems)} problem{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(lines))
