"""Whether an image is of the kind that a run was trained on, as far as its intensities tell.

Every volume is brought to [0, 1] by its own smallest and largest values, and the units of MR are arbitrary: a scale
tells nothing, and a volume that somebody normalised before tells nothing either. What does tell is air in Hounsfield
units, near -1000. A CT image shows it around the body; an MR image has no such values, whatever the scanner. So there
is one rule:

    a run all of whose training volumes show air refuses an image that shows none,
    a run none of whose training volumes shows any refuses an image that does,
    and whatever lies between passes.

Looked at is the darkest half percent of the voxels, before any clipping: a few odd voxels do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..datasets.contract import Volume
from ..datasets.facts import Facts
from ..datasets.windows import HospitalWindows
from .federation import Federated
from .prepared import preparation_of

if TYPE_CHECKING:
    from .config import Experiment

AIR = -600.0
"""An image whose 0.5 percentile is at most this shows air in HU; lung and fat are brighter than air."""

NO_AIR = -400.0
"""One that has it above shows none. MR images with an offset reach a few hundred below zero."""

Range = Sequence[float]
"""Smallest and largest."""


def seen_intensities(facts: Iterable[Facts]) -> dict[str, list[float]]:
    """What training volumes were like, for the manifest.

    Args:
        facts: One of each volume.

    Returns:
        ``low`` and ``high``: the smallest and the largest of the volumes' 0.5 and 99.5 percentiles, before clipping;
        nothing where the data set does not say for all of them.
    """
    pairs = [fact.unclipped for fact in facts]
    known = [pair for pair in pairs if pair is not None]
    if not pairs or len(known) < len(pairs):
        return {}
    lows, highs = zip(*known, strict=True)
    return {"low": [min(lows), max(lows)], "high": [min(highs), max(highs)]}


def training_intensities(experiment: Experiment, federated: Federated, num_classes: int) -> dict[str, Any]:
    """``intensities`` of the volumes that a run trains on, measured when they were prepared; nothing of pictures."""
    examples = [hospital.train for hospital in federated.hospitals.values()]
    volumes = [volume for own in examples if isinstance(own, HospitalWindows) for volume in own.volumes]
    if not volumes or not num_classes:  # a run of an earlier version that goes on does not know its classes
        return {}
    preparation = preparation_of(experiment, num_classes)
    return {"intensities": seen_intensities([preparation.facts(volume.case) for volume in volumes])}


def foreign(volume: Volume, seen: Mapping[str, Range]) -> str | None:
    """Why a volume is evidently of another kind than those a run was trained on; None where it is not.

    Args:
        volume: As it was read.
        seen: What :func:`seen_intensities` gave; empty: nothing is known.
    """
    if not seen or volume.intensities is None:
        return None
    darkest, (least, most) = volume.intensities[0], seen["low"]
    got = f"got {darkest:.4g} as its 0.5 percentile; if it is one all the same: --any-intensities"
    if most <= AIR and darkest > NO_AIR:
        return f"expected CT in Hounsfield units, with air near -1000, as the run was trained on, {got}"
    if least > NO_AIR and darkest <= AIR:
        return (
            "expected an image without the air of CT in Hounsfield units (near -1000), as the run was trained on, "
            f"{got}"
        )
    return None
