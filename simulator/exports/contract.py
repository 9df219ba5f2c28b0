"""What a format of ``wardround export`` gives back: how its files are used, for the model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..trained import Trained


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How exported files are used.

    Args:
        library: What reads them, as model hubs call it: ``peft``, ``transformers`` or ``segment-anything``.
        code: Python that loads the model and computes logits, ready to be pasted.
        notes: What a reader has to know beside it, a sentence each.
        tags: Further words for the card's header.
    """

    library: str
    code: str
    notes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


class Format(Protocol):
    """Writes a model in one format."""

    def __call__(self, trained: Trained, folder: Path) -> Recipe:
        """Writes all files but the card.

        Args:
            trained: The run; its replica holds the model that is to be written.
            folder: An empty folder.

        Raises:
            ValueError: this model cannot be written in this format, with the reason and what can be done.
        """
        ...
