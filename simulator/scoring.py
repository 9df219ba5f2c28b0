"""When a run is scored, on which volumes, and what the last scores leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .assembly import Assembled
from .assessment import HELD_SPLITS, SPLITS, Keepsakes, assess
from .checkpoint import Checkpoint
from .cross_site import assess_across
from .federation import Rows, joined
from .progress import Progress


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the rounds of a run are scored.

    Args:
        assembled: The run.
        progress: Shows the result.
        folder: Where predictions and overlays of the last round go.
        images: Whether slices of test volumes may be kept.
    """

    assembled: Assembled
    progress: Progress
    folder: Path
    images: bool

    def round(self, checkpoint: Checkpoint) -> Rows:
        """The scores after a round (0: before training), when an evaluation is due.

        Test volumes are among them, unless they wait for the end.
        """
        experiment = self.assembled.experiment
        if not experiment.evaluation.due(checkpoint.round, experiment.rounds):
            return {}
        if experiment.evaluation.test == "due":
            return self._scores(checkpoint, SPLITS)
        final = checkpoint.round == experiment.rounds
        federated, assessor = self.assembled.federated, self.assembled.assessor
        return assess(federated, assessor, checkpoint, self.progress, final=final, splits=("validation",))

    def test(self, checkpoint: Checkpoint) -> Rows:
        """The scores of test volumes that waited for the end; none where they did not."""
        if self.assembled.experiment.evaluation.test == "due":
            return {}
        return self._scores(checkpoint, HELD_SPLITS)

    def _scores(self, checkpoint: Checkpoint, splits: Sequence[str]) -> Rows:
        """Scores of splits; after the last round with all that a finished run leaves behind."""
        experiment = self.assembled.experiment
        federated, assessor = self.assembled.federated, self.assembled.assessor
        final = checkpoint.round == experiment.rounds
        keepsakes = Keepsakes(folder=self.folder, predictions=experiment.evaluation.predictions, overlays=self.images)
        kept = keepsakes if final else None
        rows = assess(federated, assessor, checkpoint, self.progress, final=final, keepsakes=kept, splits=splits)
        if final and experiment.evaluation.cross_site:
            rows = joined(rows, assess_across(federated, assessor, checkpoint))
        return rows
