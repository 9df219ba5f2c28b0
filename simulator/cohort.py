"""The hospitals of a round take their turns on the one replica, one after the other.

Order never matters: every hospital starts from what was broadcast to it, has its own streams and its own memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..aggregators.contract import Download, HospitalInfo, LocalRule, Streams
from ..clients.hospital import Memory, Turn, take_turn
from ..clients.training import NonFiniteLossError, Workplace
from ..datasets.windows import HospitalWindows, PreparedVolume


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """A hospital of the run: what the server knows of it, and its data in memory."""

    info: HospitalInfo
    train: HospitalWindows
    validation: tuple[PreparedVolume, ...]
    test: tuple[PreparedVolume, ...]


@dataclass(frozen=True, kw_only=True)
class Outsider:
    """Test volumes that belong to no hospital of the run; scored with the model of a site never seen.

    Args:
        name: ``common``, or the site.
        split: ``test``: the common test set; ``unseen``: a site that was left out.
        volumes: Its volumes.
    """

    name: str
    split: Literal["test", "unseen"]
    volumes: tuple[PreparedVolume, ...]


def train_sequentially(
    workplace: Workplace,
    rule: LocalRule,
    hospitals: Mapping[str, Hospital],
    downloads: Mapping[str, Download],
    memories: Mapping[str, Memory],
    rng: Callable[[str], Streams],
    lasting: Callable[[str], Streams],
    announce: Callable[[str, Turn | None], None],
) -> list[Turn]:
    """Trains every hospital that got a download, in order of names.

    Args:
        workplace: The replica and the training settings.
        rule: The hospital's half of the algorithm.
        hospitals: All hospitals.
        downloads: Download per hospital that trains.
        memories: Memory per hospital.
        rng: Gives the streams of a hospital in this round.
        lasting: Gives the streams of a hospital that are the same in every round.
        announce: Called with a name before, and with name and turn after, each hospital.

    Raises:
        ValueError: names the hospital.
    """
    turns = []
    for name in sorted(downloads):
        announce(name, None)
        hospital, streams = hospitals[name], (rng(name), lasting(name))
        try:
            turn = take_turn(workplace, rule, hospital.info, downloads[name], memories[name], hospital.train, *streams)
        except NonFiniteLossError as error:
            raise ValueError(
                f"hospital {name!r}: {error}. Lower training.optimizer.lr, set training.clip_norm, "
                "or look for odd intensities in its volumes"
            ) from error
        except ValueError as error:
            raise ValueError(f"hospital {name!r}: {error}") from error
        announce(name, turn)
        turns.append(turn)
    return turns
