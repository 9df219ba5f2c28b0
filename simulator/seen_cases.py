"""What a model was trained on, and that no later run is scored on it.

::

    a run      trained_on.txt     a SHA-256 per training case, its own and those of all models before it
    an export  wardround.json     the same lines under ``trained_on``; null: nobody says

Case by case a run may begin with a model of its own data set, if the split is the same. What a base or a model before
has seen that is in no list is known by the name of its collection alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.contract import Case
from ..datasets.fingerprints import file_hash
from ..datasets.overlaps import COLLECTIONS, name_of, overlapping
from .files import write_text
from .rundir import is_run

if TYPE_CHECKING:
    from .assembly import Located
    from .config import Experiment

TRAINED_ON = "trained_on.txt"
"""File of a run directory: a SHA-256 per training case, sorted, one per line."""

UNKNOWN = "unknown"
"""The line that says: and other cases, of which nobody says which."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a model, those before it and their bases were trained on.

    Args:
        cases: A hash per case; :data:`UNKNOWN` among them: and others.
        pretrained_on: Collections of images that the bases have seen.
        data: Collections that the training cases are of, where the table of overlaps knows them.
    """

    cases: frozenset[str] = frozenset()
    pretrained_on: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


def read_seen(path: Path) -> Seen:
    """What a donor has seen.

    Args:
        path: A run directory, an export, or the folder of an adapter that somebody else has trained.

    Raises:
        ValueError: a run of an earlier version, which has no list; or a file is damaged.
    """
    from .exports.origin import FILE, read_origin

    folder = path.expanduser()
    if is_run(folder):
        return _of_run(folder)
    if not (folder / FILE).is_file():
        return Seen(cases=frozenset({UNKNOWN}))
    said = read_origin(folder)
    lines, collections = said["trained_on"], said["collections"]
    return Seen(
        cases=frozenset({UNKNOWN} if lines is None else map(str, lines)),
        pretrained_on=tuple(collections["pretrained_on"]),
        data=tuple(collections["data"]),
    )


def _of_run(folder: Path) -> Seen:
    from .config import load_resolved

    experiment = load_resolved(folder / "config.yaml")
    pretrained_on, data = collections_of(experiment)
    return Seen(cases=_lines(folder), pretrained_on=pretrained_on, data=data)


def _lines(folder: Path) -> frozenset[str]:
    """The lines of a run's ``trained_on.txt``."""
    file = folder / TRAINED_ON
    if not file.is_file():
        raise ValueError(
            f"start_from: {folder}: expected {TRAINED_ON}, which says what it was trained on and which runs of an "
            "earlier version do not have; run it again"
        )
    lines = frozenset(file.read_text(encoding="utf-8").split())
    if not lines:
        raise ValueError(f"start_from: {file}: expected a line per training case, got none: it is damaged")
    return lines


def collections_of(experiment: Experiment) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Collections that a run and those before it have seen: of their bases, and of their training cases."""
    before = [read_seen(path) for path in models_before(experiment).values()]
    name = name_of(experiment.data)
    own = (name,) if name in COLLECTIONS else ()
    bases = (experiment.model.pretrained_on, *(seen.pretrained_on for seen in before))
    return (
        tuple(dict.fromkeys(name for names in bases for name in names)),
        tuple(dict.fromkeys((*own, *(name for seen in before for name in seen.data)))),
    )


def models_before(experiment: Experiment) -> dict[str, Path]:
    """Where the trained models lie that a run begins with, by the setting that names them.

    That is ``start_from``, and ``model.weights`` where these are an export of ours.
    """
    from .exports.origin import FILE

    found = {} if experiment.start_from is None else {"start_from": experiment.start_from}
    weights = Path(experiment.model.weights).expanduser()
    folder = weights if weights.is_dir() else weights.parent
    if weights.exists() and (folder / FILE).is_file():
        found["model.weights"] = folder
    return found


# ---- a run writes it -------------------------------------------------------------------------------------------------


def case_hash(case: Case, hashes: Mapping[Path, str]) -> str:
    """SHA-256 of the image of a case: the bytes of its files, masks aside, and its row in them.

    Args:
        case: The case.
        hashes: SHA-256 of its files.
    """
    images = dict.fromkeys((case.image, *case.parts))
    return hashlib.sha256("/".join([*(hashes[path] for path in images), str(case.row)]).encode()).hexdigest()


def trained_on(experiment: Experiment, located: Located) -> list[str]:
    """The lines of ``trained_on.txt``: the training cases of a run and of all those that it starts from, sorted."""
    own = {case_hash(case, located.file_hashes) for case in _sides(located)["train"]}
    return sorted(own.union(*(read_seen(path).cases for path in models_before(experiment).values())))


def write_trained_on(folder: Path, experiment: Experiment, located: Located) -> None:
    """Writes ``trained_on.txt`` into a run directory."""
    write_text(folder / TRAINED_ON, "".join(f"{line}\n" for line in trained_on(experiment, located)))


# ---- nothing of it is scored -----------------------------------------------------------------------------------------


def check_unseen(experiment: Experiment, located: Located) -> None:
    """Refuses to score what the donor was trained on.

    Raises:
        ValueError: with the number of the cases and some of their names; with the collections of images that the
            donor's base and data share with the data set; or the donor has no whole list and nobody says what it has
            seen.
    """
    for setting, path in models_before(experiment).items():
        seen, where = read_seen(path), f"{setting}: {path}"
        _check_told(where, seen, experiment.model.pretrained_on)
        problems = [*_scored(seen, located), *_sites(seen, located), *_overlaps(seen, experiment)]
        if problems:
            raise ValueError(
                f"{where}: expected a model that has not seen the cases it is scored on; {'; '.join(problems)}. Start "
                "from a run with the same split of the same data, or from one of other data"
            )


def _check_told(where: str, seen: Seen, pretrained_on: Sequence[str]) -> None:
    """Raises ValueError where neither the donor nor the experiment says what it was trained on."""
    if UNKNOWN in seen.cases and not pretrained_on:
        raise ValueError(
            f"{where}: expected a model that says which cases it was trained on, got one that does not, or "
            "that began with one that does not, so nobody can tell whether it has seen what is scored here; say what "
            "it has seen in model.pretrained_on ('other: ...' for what has no name there)"
        )


def _scored(seen: Seen, located: Located) -> list[str]:
    """A sentence for each side that has cases of the list."""
    found = {
        side: [case.name for case in cases if case_hash(case, located.file_hashes) in seen.cases]
        for side, cases in _sides(located).items()
        if side != "train"
    }
    return [_seen_cases(side, names) for side, names in found.items() if names]


def _sites(seen: Seen, located: Located) -> list[str]:
    """A sentence for each site left out, to be scored as one never seen, of which the list has other cases."""
    found: dict[str, list[str]] = {site: [] for site in located.federation.unseen}
    for case in located.pool:
        if case.site is not None and case.site in found:
            hashes = {path: located.file_hashes.get(path) or file_hash(path) for path in case.files}
            found[case.site] += [case.name] if case_hash(case, hashes) in seen.cases else []
    return [_seen_cases(f"left-out site {site}'s", names) for site, names in found.items() if names]


def _overlaps(seen: Seen, experiment: Experiment) -> list[str]:
    """A line per collection with images of the data set. Of a whole list the data set itself is seen case by case."""
    own = () if UNKNOWN in seen.cases else (name_of(experiment.data),)
    others = (name for name in seen.data if name not in own)
    return overlapping(experiment.data, list(dict.fromkeys((*seen.pretrained_on, *others))))


def _seen_cases(side: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    word = "case" if len(names) == 1 else "cases"
    return f"it was trained on {len(names)} {side} {word}: {', '.join(names[:5])}{more}"


def _sides(located: Located) -> dict[str, list[Case]]:
    """All cases of a federation by what they are for."""
    from .assembly import all_cases

    sides: dict[str, list[Case]] = {"train": []}
    for _, side, case in all_cases(located.federation):
        sides.setdefault(side, []).append(case)
    return sides
