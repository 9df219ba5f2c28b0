"""``wardround replay``: several aggregators on the very same updates of a recorded run.

Before each round the server is set to what it was in the recorded run; then every aggregator takes its step from the
recorded updates, and the instruments measure it. One step is compared, not training: after a step of another aggregator
the hospitals would have trained from another model.

What an aggregator keeps in its memory (a momentum) goes on from step to step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ..aggregators import AGGREGATORS
from ..aggregators.checks import check_updates
from ..aggregators.contract import Aggregator, Download, ServerState, Setting
from ..aggregators.instruments import Layer, measure, overall
from ..aggregators.plain import PlainTraining
from . import yaml12
from .builder import ConfigError, build
from .files import read_json
from .randomness import streams
from .recording import RecordedRound, read_rounds, read_setting
from .run_state import UPDATES
from .scheduling import with_schedule


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One step of one aggregator.

    Args:
        aggregator: As it was asked for.
        round: Which round's updates.
        layers: Its instruments.
        diagnostics: What the aggregator itself had to say.
        seconds: Wall-clock time of the step.
    """

    aggregator: str
    round: int
    layers: tuple[Layer, ...]
    diagnostics: Mapping[str, float]
    seconds: float

    @property
    def numbers(self) -> dict[str, float]:
        """The instruments of the whole model."""
        return overall(self.layers)

    def rows(self) -> list[dict[str, Any]]:
        """A row per layer, ready for JSON lines or a data frame."""
        head = {"aggregator": self.aggregator, "round": self.round}
        return [{**head, **asdict(layer), "spectrum": list(layer.spectrum)} for layer in self.layers]


@dataclass(frozen=True, kw_only=True)
class _Named:
    """For the builder: an aggregator as an experiment names it."""

    aggregator: Annotated[Aggregator, AGGREGATORS]


def replay(run: Path, aggregators: Mapping[str, Aggregator]) -> list[Replayed]:
    """Applies aggregators to the recorded updates of a run.

    Args:
        run: A run made with ``--record-updates``.
        aggregators: What to apply, by the name to show.

    Returns:
        A step per aggregator and round, aggregator by aggregator.

    Raises:
        ValueError: nothing was recorded, or an aggregator needs hospitals that train in another way than they did.
    """
    folder = run / UPDATES
    manifest = run / "manifest.json"
    if manifest.is_file() and UPDATES in read_json(manifest).get("cleaned", []):
        raise ValueError(f"{run}: its updates were removed by `wardround clean`; run it again with --record-updates")
    setting, rounds = read_setting(folder), read_rounds(folder)
    config = yaml12.load(run / "config.yaml")
    seed = int(config["seed"])
    if not any(recorded.updates for recorded in rounds):
        raise ValueError(f"{folder}: expected recorded updates, every round there is empty")
    if setting.layout.groups:  # all of them follow the schedule of the recorded run
        draw = config["method"]["draw"]
        aggregators = {name: with_schedule(one, setting.layout, draw, seed) for name, one in aggregators.items()}
    states = _initial_states(aggregators, setting, rounds, seed)
    return [
        step
        for name, aggregator in aggregators.items()
        for step in _steps(name, aggregator, states[name], rounds, seed)
    ]


def named_aggregators(text: str) -> dict[str, Aggregator]:
    """Aggregators from the words of a command line.

    Args:
        text: Names, or mappings with settings, separated by commas: ``fedit, {name: flap_sam, split: left}``.

    Raises:
        ConfigError: with every problem.

    Example:
        >>> list(named_aggregators("fedavg, {name: flap_sam, split: left}"))
        ['fedavg', 'flap_sam (split left)']
    """
    entries = yaml12.loads(f"[{text}]", "--aggregators")
    problems: list[str] = []
    result: dict[str, Aggregator] = {}
    for entry in entries:
        title = _title(entry)
        if title in result:
            problems.append(f"--aggregators: expected every aggregator once, got {title!r} twice")
        try:
            result[title] = build(_Named, {"aggregator": entry}).aggregator
        except ConfigError as error:
            problems += [f"--aggregators: {problem}" for problem in error.problems]
    if problems or not result:
        raise ConfigError(problems or ["--aggregators: expected at least one name"])
    return result


def _initial_states(
    aggregators: Mapping[str, Aggregator], setting: Setting, rounds: Sequence[RecordedRound], seed: int
) -> dict[str, ServerState]:
    """The state of every aggregator before round 1; all that cannot be replayed is named at once."""
    states, problems = {}, []
    for name, aggregator in aggregators.items():
        try:
            states[name] = aggregator.init(setting, streams(seed, "server"))
            _check_plain(aggregator, states[name], rounds)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("\n  ".join(["cannot replay", *problems]))
    return states


def _check_plain(aggregator: Aggregator, server: ServerState, rounds: Sequence[RecordedRound]) -> None:
    """Raises ValueError when hospitals would have trained otherwise under this aggregator."""
    if aggregator.rule != PlainTraining():
        raise ValueError(
            f"its hospitals do not train plainly ({type(aggregator.rule).__name__}); the recorded updates say nothing "
            "about it, run it instead"
        )
    hospitals = {hospital.name: hospital for hospital in server.setting.hospitals}
    recorded = next(recorded for recorded in rounds if recorded.updates)
    server = replace(server, round=recorded.number - 1)
    for update in recorded.updates:
        if update.hospital not in hospitals:
            raise ValueError(
                "the server of the recorded run saw one mean only (stages.privacy or stages.secure_sum); record a run "
                "without them to compare aggregators"
            )
        download = aggregator.broadcast(server, hospitals[update.hospital])
        if set(download.returns) != set(update.tensors) or download.returns_extra:
            raise ValueError("its hospitals train or send other tensors than those of the recorded run; run it instead")


def _steps(
    name: str, aggregator: Aggregator, server: ServerState, rounds: Sequence[RecordedRound], seed: int
) -> list[Replayed]:
    steps = []
    for recorded in rounds:
        if not recorded.updates:
            continue
        before = replace(server, round=recorded.number - 1, tensors=recorded.tensors, base=recorded.base)
        downloads = _downloads(recorded, aggregator, before)
        check_updates(recorded.number, downloads, recorded.updates)
        start = time.perf_counter()
        aggregated = aggregator.aggregate(before, list(recorded.updates), streams(seed, "aggregate", recorded.number))
        seconds = time.perf_counter() - start
        layers = measure(aggregator, before, downloads, recorded.updates, aggregated.server)
        steps.append(
            Replayed(
                aggregator=name,
                round=recorded.number,
                layers=layers,
                diagnostics=aggregated.diagnostics,
                seconds=seconds,
            )
        )
        server = replace(server, memory=aggregated.server.memory)
    return steps


def _downloads(recorded: RecordedRound, aggregator: Aggregator, before: ServerState) -> dict[str, Download]:
    """What the aggregator would hand out, with what was handed out in its place: steps begin there."""
    hospitals = {hospital.name: hospital for hospital in before.setting.hospitals}
    return {
        update.hospital: replace(
            aggregator.broadcast(before, hospitals[update.hospital]), start=recorded.starts[update.hospital]
        )
        for update in recorded.updates
    }


def _title(entry: Any) -> str:
    """``flap_sam (split left)``."""
    if not isinstance(entry, Mapping):
        return str(entry)
    name = str(entry.get("name", entry.get("class")))
    inner = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in ("name", "class"))
    return f"{name} ({inner})" if inner else name
