"""Randomness is an argument: one seed, a purpose and keys name a stream.

No stream depends on another, so that adding a hospital, a tensor or a round shifts nobody else, and a resumed run needs
no saved generator state. Streams are drawn on the CPU and are the same on every device.
"""

from __future__ import annotations

import hashlib
from functools import partial

import torch

from ..aggregators.contract import Streams

Key = str | int


def generator(seed: int, purpose: str, *keys: Key) -> torch.Generator:
    """A CPU generator for the stream called ``(seed, purpose, *keys)``.

    The words are hashed (SHA-256 over their lengths and texts, with their types) and 63 bits of it seed the generator.

    Args:
        seed: The experiment's seed.
        purpose: What the numbers are for, for example ``"cohort"`` or ``"augment"``.
        keys: Round, hospital, epoch, tensor name, in the order the caller fixes once.

    Example:
        >>> a = torch.rand(2, generator=generator(0, "batches", "hospital-1", 3))
        >>> b = torch.rand(2, generator=generator(0, "batches", "hospital-1", 3))
        >>> bool((a == b).all())
        True
    """
    digest = hashlib.sha256()
    for word in (seed, purpose, *keys):
        text = f"{type(word).__name__}:{word}".encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "big") >> 1)


def streams(seed: int, purpose: str, *keys: Key) -> Streams:
    """The streams below a purpose: ``streams(0, "init")("name")`` is ``generator(0, "init", "name")``."""
    return partial(generator, seed, purpose, *keys)
