"""Running rounds in tests."""

from __future__ import annotations

from wardround.simulator.checkpoint import Checkpoint
from wardround.simulator.federation import Federated, Round, Stopwatch, run_round
from wardround.simulator.progress import Progress


def advance(federated: Federated, before: Checkpoint, rounds: int = 1) -> Round:
    """The last of so many rounds."""
    with Progress(rounds=rounds, quiet=True) as progress:
        for _ in range(rounds):
            outcome = run_round(federated, before, progress, Stopwatch())
            before = outcome.checkpoint
    return outcome
