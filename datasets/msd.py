"""Any task folder in the layout of the Medical Segmentation Decathlon.

Layout::

    TaskNN_Name/dataset.json      labels {"0": "background", "1": ...}, training [{"image": ..., "label": ...}, ...]
    TaskNN_Name/imagesTr/*.nii.gz
    TaskNN_Name/labelsTr/*.nii.gz

and, which are not part of the Decathlon and may be absent::

    TaskNN_Name/sites.csv         case,site: where each case was acquired
    TaskNN_Name/patients.csv      case,patient: which cases are of one person
    TaskNN_Name/split.csv         case,split: train, validation or test

The Decathlon (http://medicaldecathlon.com, CC-BY-SA 4.0) carries no patient identifiers. In most tasks a case is a
patient; in Task04_Hippocampus the cases 2k - 1 and 2k look like the two sides of one head (``patients: pairs``; see
docs/data/msd.md for the evidence).

Source: Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, 2022.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .contract import Case, Pool, ReadVolume, Side, Volume
from .folders import given_folder
from .nifti import case_name, open_image, read_case, reading_problems, reading_text
from .tables import read_rows, side_of, table_problems


@dataclass(frozen=True, kw_only=True)
class Msd:
    """A Decathlon task.

    Args:
        task: Name of the task folder, needed where the data folder holds several.
        patients: Who is one patient where there is no ``patients.csv``: ``cases``: every case; ``pairs``: the cases
            whose numbers are 2k - 1 and 2k (``hippocampus_033`` and ``hippocampus_034``).
        slice_axis: Array axis along which slices are taken.
        clip_percentiles: Clip each image to these percentiles of its voxels; None leaves it.
        channel: Which modality of a task with several (Task01_BrainTumour, Task05_Prostate), counted from 0; None: the
            images must be 3D.
    """

    task: str | None = None
    patients: Literal["cases", "pairs"] = "cases"
    slice_axis: int = 2
    clip_percentiles: tuple[float, float] | None = (0.5, 99.5)
    channel: int | None = None

    def __post_init__(self) -> None:
        problems = reading_problems(self.slice_axis, self.clip_percentiles, self.channel)
        if self.patients not in ("cases", "pairs"):
            problems.append(f"patients: expected cases or pairs, got {self.patients!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def locate(self, root: Path | None) -> Path:
        """The task folder: ``root`` or the environment's WARDROUND_DATA, or the task folder inside it.

        Raises:
            ValueError: there is none, or several and ``task`` is not set.
        """
        expected = "a Decathlon task (TaskNN_Name with dataset.json, imagesTr and labelsTr)"
        return self._task_folder(given_folder(root, expected=expected, source="see http://medicaldecathlon.com"))

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

    def pool(self, root: Path) -> Pool:
        """The cases of the training list, with what the tables say about them. ``root`` is the task folder.

        Raises:
            ValueError: ``dataset.json`` cannot be read, or names no classes.
        """
        description = read_description(root)
        listed, problems = listed_cases(root, description)
        columns = {}
        for attribute, (table, column) in TABLES.items():
            if (root / table).is_file():
                columns[attribute], wrong = read_column(root / table, ("case", column), listed)
                problems += wrong
        problems += _side_problems(root, columns.get("side", {}))
        if "patient" not in columns and self.patients == "pairs":
            columns["patient"], wrong = _pairs(listed)
            problems += wrong
        problems += [] if listed else [f"{root / 'dataset.json'}: training: expected at least one case, got none"]
        cases = [_described(case, columns) for case in listed if case.image.is_file() and case.label.is_file()]
        return Pool(cases=tuple(cases), classes=class_names(root, description), problems=tuple(problems))

    def volume(self, case: Case) -> Volume:
        """Reads one case, checks it and brings slices to the front."""
        root = next(folder for folder in case.image.parents if (folder / "dataset.json").is_file())
        description = read_description(root)
        return read_case(
            case,
            slice_axis=self.slice_axis,
            num_classes=len(class_names(root, description)),
            clip_percentiles=self.clip_percentiles,
            channel=self.channel,
            channel_names=modality_names(description),
        )

    @property
    def reading(self) -> str:
        """How a file is read, for people who use a model elsewhere."""
        return reading_text(self.slice_axis, self.clip_percentiles, None, self.channel)

    def open_image(self, path: Path, *, site: str | None = None) -> ReadVolume:
        """Checks the header of an image without a mask; what comes back reads it."""
        return open_image(
            path, slice_axis=self.slice_axis, clip_percentiles=self.clip_percentiles, channel=self.channel
        )


TABLES: Mapping[str, tuple[str, str]] = {
    "site": ("sites.csv", "site"),
    "patient": ("patients.csv", "patient"),
    "side": ("split.csv", "split"),
}
"""Attribute of a case: its table and column."""


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


def modality_names(description: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of an image's channels, in their order; () where the file names none."""
    modality = description.get("modality")
    if not isinstance(modality, dict):
        return ()
    return tuple(str(modality.get(str(number), "?")) for number in range(len(modality)))


def listed_cases(root: Path, description: Mapping[str, Any]) -> tuple[list[Case], list[str]]:
    """The cases of the training list, each once, sorted by name, whether their files are there or not.

    Returns:
        The cases, and one line for every entry that is malformed or listed twice and every file that is missing.
    """
    cases, problems = [], []
    for number, entry in enumerate(description["training"]):
        if isinstance(entry, dict) and isinstance(entry.get("image"), str) and isinstance(entry.get("label"), str):
            if not Path(entry["image"]).name.startswith("._"):  # resource forks of macOS archives
                cases.append(_case(root, entry["image"], entry["label"]))
        else:
            problems.append(
                f"{root / 'dataset.json'}: training[{number}]: expected {{'image': path, 'label': path}}, got {entry!r}"
            )
    counts = Counter(case.name for case in cases)
    problems += [f"case {name}: listed {count} times in dataset.json" for name, count in counts.items() if count > 1]
    once = sorted({case.name: case for case in reversed(cases)}.values(), key=lambda case: case.name)
    problems += [
        f"{path}: missing, dataset.json lists it" for case in once for path in case.files if not path.is_file()
    ]
    return once, problems


def _case(root: Path, image: str, label: str) -> Case:
    name = case_name(Path(image))
    return Case(name=name, patient=name, image=root / image, label=root / label)


def read_column(path: Path, columns: tuple[str, str], cases: Sequence[Case]) -> tuple[dict[str, str], list[str]]:
    """The second column of a table that has one row for every case, by the first; and every problem of the table."""
    key, value = columns
    try:
        rows = read_rows(path, columns)
    except ValueError as error:
        return {}, [str(error)]
    known, found = {case.name for case in cases}, {row[key] for row in rows}
    problems = table_problems(path, rows, (key,))
    problems += [f"{path}: case {row[key]} has no {value}" for row in rows if row[key] and not row[value]]
    problems += [f"{path}: case {name} has no row" for name in sorted(known - found)]
    problems += [f"{path}: case {name} is not listed in dataset.json" for name in sorted(found - known - {""})]
    return {row[key]: row[value] for row in rows if row[value]}, problems


def _side_problems(root: Path, side: Mapping[str, str]) -> list[str]:
    return [
        f"{root / 'split.csv'}: case {name}: expected {', '.join(get_args(Side))}, got {value!r}"
        for name, value in side.items()
        if value not in get_args(Side)
    ]


def _described(case: Case, columns: Mapping[str, Mapping[str, str]]) -> Case:
    """The case with its entries of the tables."""
    known: dict[str, Any] = {name: column[case.name] for name, column in columns.items() if case.name in column}
    return replace(case, **known | {"side": side_of(known.get("side", ""), get_args(Side))})


def _pairs(cases: Sequence[Case]) -> tuple[dict[str, str], list[str]]:
    """The patient of every case (``hippocampus_033`` and ``hippocampus_034`` are 17), and names without a number."""
    patients, problems = {}, []
    for case in cases:
        digits = re.search(r"\d+$", case.name)
        if digits is None:
            problems.append(f"case {case.name}: expected a name that ends in a number, as data.patients is pairs")
        else:
            patients[case.name] = f"patient-{(int(digits.group()) + 1) // 2:04d}"
    return patients, problems
