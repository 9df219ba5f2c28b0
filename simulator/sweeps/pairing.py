"""Whether runs of one seed drew the same random numbers where they should have. Needs no torch.

A run writes into its manifest what it draws (:mod:`..common_numbers`). Runs of one seed and data draw the same cohorts,
batches, augmentations and initial values wherever their settings ask for the same: their differences are then not those
of the draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Manifest = Mapping[str, Any]

WORDS = {
    "cohorts": "cohorts or drop-outs",
    "batches": "batches",
    "augmentation": "augmentations",
    "initial": "initial values",
    "schedule": "tensors to train",
}
"""What is drawn, in words."""


def unpaired(manifests: Sequence[Manifest]) -> list[str]:
    """A sentence for everything that runs of one seed should share and do not; none is good news.

    Runs are compared with the first of their seed and data that draws for the same settings. Those of other data, or
    without ``common_numbers`` in their manifest, are compared with none.

    Args:
        manifests: What ``manifest.json`` of every run holds.
    """
    first: dict[tuple[Any, ...], tuple[str, list[str]]] = {}
    odd: dict[tuple[Any, str, str], dict[str, list[str]]] = {}
    for manifest in manifests:
        name = f"{manifest.get('experiment')}/{manifest.get('id')}"
        for what, where, of, drawn in _draws(manifest):
            key = (manifest.get("seed"), manifest.get("data_hash"), what, where, of)
            other, expected = first.setdefault(key, (name, drawn))
            if any(one != two for one, two in zip(expected, drawn, strict=False)):
                places = odd.setdefault((manifest.get("seed"), what, other), {}).setdefault(name, [])
                places += [where] if where else []
    return [_sentence(seed, what, other, runs) for (seed, what, other), runs in odd.items()]


def _draws(manifest: Manifest) -> Iterator[tuple[str, str, str, list[str]]]:
    """What was drawn, where, for which settings, and the hashes: lists of which one may begin with the other."""
    for what, found in (manifest.get("common_numbers") or {}).items():
        for where, entry in found.items():
            of = f"{entry['of']} {manifest.get('weights_hash')}" if what == "initial" else entry["of"]
            yield what, where, of, entry["drawn"]


def _sentence(seed: Any, what: str, other: str, runs: Mapping[str, Sequence[str]]) -> str:
    where = sorted({place for places in runs.values() for place in places})
    at = f" ({', '.join(where[:3])}{', ...' if len(where) > 3 else ''})" if where else ""
    who = ", ".join([*list(runs)[:3], *([f"{len(runs) - 3} more"] if len(runs) > 3 else [])])
    return (
        f"Seed {seed}: {who} drew other {WORDS.get(what, what)}{at} than {other}, although data and settings ask for "
        "the same; a part of their difference is chance. Were they made by different code?"
    )
