"""What a model says of images with a class each: a probability per class.

Batches run on over the ends of hospitals. On CUDA nothing waits for a batch: the probabilities of a hospital are
fetched when all its images have been asked about.

Legend: n_i images of source i, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..datasets.augment import AugmentParameters
from ..datasets.images import HospitalImages
from .batches import Batch, Kept, Source, feed, filled_up
from .class_metrics import Probabilities
from .evaluation import in_turn
from .replica import Replica


def image_source(examples: HospitalImages) -> Source:
    """The images that a model is asked about, each in its one form: nothing is augmented.

    Raises:
        ValueError: there is no image.
    """
    if not len(examples):
        raise ValueError("expected at least one image to classify, got none")
    return Source(windows=examples, variants=(AugmentParameters.neutral(len(examples)),))


@torch.no_grad()
def classify(
    replica: Replica, sources: Sequence[Source], batch_size: int, kept: Kept | None = None
) -> Iterator[Probabilities]:
    """The class probabilities of the images of every source, in order, with the tensors that the replica holds.

    Softmax in double precision: in single precision a logit that is 17 above the others is a certainty, and the AUROC
    takes images of which the model is surely right for ties.

    Args:
        replica: The model.
        sources: Made by :func:`image_source`.
        batch_size: Images per forward pass, >= 1.
        kept: Where to look for what the frozen start makes of the images.

    Yields:
        (n_i, C) float64, rows that sum to 1.
    """
    steps = (filled_up(step, replica.width(batch_size)) for step in in_turn(sources, batch_size))
    batches = (_logits(replica, batch) for batch in feed(replica, steps, kept))  # (b, C) each
    rest: Tensor | None = None
    for source in sources:
        parts: list[Tensor] = []
        lacking = len(source.windows)
        while lacking:
            rows = next(batches) if rest is None or not len(rest) else rest
            parts.append(rows[:lacking])
            rest = rows[lacking:]
            lacking -= len(parts[-1])
        yield torch.cat(parts).cpu().double().softmax(dim=1).numpy()


def _logits(replica: Replica, batch: Batch) -> Tensor:
    """(n, C) of the images of a batch that count."""
    return replica.decode(replica.proceed(*batch.begun))[: sum(batch.sizes)]
