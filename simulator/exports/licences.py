"""The licence of a base, as far as it is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...clients import sam_weights, vit_weights
from ...clients.network import Model
from .. import yaml12

OWN = "apache-2.0"
"""Of the packaged bases, which are made with the program from phantoms of its own; as model hubs write it."""

PACKAGED = (*sam_weights.PACKAGED, *vit_weights.PACKAGED)
"""Bases that come with the program."""

NOT_STATED = "not stated: find out before you pass this on"
"""What a card says where nobody said it."""

EXPORTER = "as the one who exported it says"
"""Who says it, where it is no file."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What is known of a base's licence.

    Args:
        header: For the card's header; None: nothing is known.
        sentence: For people.
    """

    header: str | None
    sentence: str


def base_licence(model: Model, given: str | None = None) -> Licence:
    """The licence of the base that a model began with: what the base says, else what the user says.

    Args:
        model: The model plug-in, with its ``weights``.
        given: What the user says.

    Raises:
        ValueError: the base says something else; or its README.md has a header that cannot be read, and the user says
            nothing.
    """
    if given is not None and (not given.strip() or len(given.splitlines()) > 1):
        raise ValueError(f"licence: expected its name in one line, such as apache-2.0, got {given!r}")
    if model.weights == "random":
        begun = "It began with random weights, which nobody licenses"
        return Licence(header=given, sentence=f"{begun}; it is {given}, {EXPORTER}." if given else f"{begun}.")
    said = _said(model.weights, given)
    if given is not None and said is not None and given.casefold() != said.casefold():
        raise ValueError(f"licence: expected {said!r}, which the base {model.weights!r} says of itself, got {given!r}")
    known, name = said or given, Path(model.weights).name
    source = "as it says of itself" if said else EXPORTER
    return Licence(header=known, sentence=f"Base `{name}`: {f'{known}, {source}' if known else NOT_STATED}.")


def _said(weights: str, given: str | None) -> str | None:
    """What a base says of itself: ``license:`` in the header of the README.md of its directory, read if it can be."""
    if weights in PACKAGED:
        return OWN
    readme = Path(weights).expanduser() / "README.md"
    if not readme.is_file():
        return None
    try:
        header = _header(readme)
    except yaml12.YamlError as error:
        if given is not None:
            return None
        raise ValueError(f"licence: expected a header that can be read, or the licence of the base: {error}") from error
    said = header.get("license") if isinstance(header, dict) else None
    words = said if isinstance(said, list) else [said]
    return " ".join(", ".join(str(word) for word in words if word is not None).split()) or None


def _header(readme: Path) -> object:
    """The YAML between the first two lines of dashes of a model card; None where it does not begin with one."""
    parts = readme.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").split("---\n", 2)
    return yaml12.loads(parts[1], str(readme)) if len(parts) == 3 and not parts[0].strip() else None
