"""The file of named experiments: which file is read, its entries, and what an entry ``extends``.

Nothing here knows what the keys of an entry mean, so that ``wardround list`` needs no model code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import yaml12
from .builder import ConfigError, Problem, unknown

PACKAGED = Path(__file__).resolve().parents[1] / "experiments.yaml"
DOCUMENTATION = ("purpose", "paper", "expected_time", "expected_score")
"""Keys that describe an entry; they are not inherited and change no result."""

SWEEP = "sweep"
"""The key that makes an entry a sweep."""

Entry = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExperimentsFile:
    """A file and its entries by name, in the order of the file."""

    path: Path
    entries: Mapping[str, Entry]

    @property
    def packaged(self) -> bool:
        """Whether this is the file that comes with the package."""
        return self.path == PACKAGED

    @property
    def sweeps(self) -> tuple[str, ...]:
        """The entries that are sweeps: they have a ``sweep`` of their own, or extend one that has."""
        return tuple(name for name in self.entries if any(SWEEP in entry for _, entry in self._chain(name)))

    def _chain(self, name: str) -> list[tuple[str, Entry]]:
        """:meth:`layers`, none where these are broken."""
        try:
            return self.layers(name)
        except ConfigError:
            return []

    def layers(self, name: str) -> list[tuple[str, Entry]]:
        """The entry and those it extends, itself first, with their names.

        Raises:
            ConfigError: No such entry, or a circle of ``extends``.
        """
        chain: dict[str, Entry] = {}
        wanted: str | None = name
        while wanted is not None:
            where = f"{list(chain)[-1]}.extends" if chain else ""
            if wanted in chain:
                raise self._error(
                    where, f"expected entries that do not go in a circle, got {' -> '.join([*chain, wanted])}"
                )
            if wanted not in self.entries:
                raise self._error(where, unknown(f"no experiment {wanted!r}", wanted, self.entries))
            chain[wanted] = self.entries[wanted]
            wanted = chain[wanted].get("extends")
        return list(chain.items())

    def _error(self, path: str, message: str) -> ConfigError:
        return ConfigError([f"{self.path}: {Problem(path, message)}"])


def open_file(path: Path | None = None) -> ExperimentsFile:
    """Reads a file of experiments.

    Args:
        path: The file; None: ``./experiments.yaml`` if it exists, else the packaged one.

    Raises:
        ConfigError: An entry is no mapping, or a name or a description no text.
        YamlError: The file is no YAML.
        OSError: The file cannot be read.
    """
    if path is None:
        local = Path("experiments.yaml")
        path = local if local.exists() else PACKAGED
    entries = yaml12.load(path)
    problems = _problems(entries)
    if problems:
        raise ConfigError(f"{path}: {problem}" for problem in problems)
    return ExperimentsFile(path=path, entries=entries)


def _problems(entries: object) -> list[Problem]:
    if not isinstance(entries, Mapping):
        return [Problem("", f"expected a mapping of experiments by name, got {type(entries).__name__}")]
    problems = []
    for name, entry in entries.items():
        if not isinstance(name, str):
            problems.append(Problem(str(name), "expected a text as name: put it in quotes"))
        elif name in ("", ".", "..") or any(letter in name for letter in "/\\"):
            problems.append(Problem(name, "expected a name without slashes: it names a folder"))
        if not isinstance(entry, Mapping):
            problems.append(Problem(str(name), f"expected a mapping, got {entry!r}"))
            continue
        problems += [
            Problem(f"{name}.{key}", f"expected a text, got {entry[key]!r}")
            for key in ("extends", *DOCUMENTATION)
            if not isinstance(entry.get(key, ""), str)
        ]
    return problems
