"""Secure summation, simulated: the server learns the sum of the hospitals' vectors and no single one.

::

    x_k = round(a_k clip(step_k, -c, c) / s) in {-h, ..., h},    h = 2^(bits - 1) - 1,  s = c / h
    y_k = x_k + PRG(b_k) + sum_{j > k} PRG(s_kj) - sum_{j < k} PRG(s_jk)    mod M = 2^word_bits
    sum_k x_k = sum_k y_k - the masks that are left                         mod M, read as a signed number

Legend: k, j hospitals of a cohort of n, d coordinates, a_k public weight in [0, 1], s_kj seed that k and j share, b_k
seed of k's own mask, t hospitals that must answer.

The sum is right while ``2 n h < M``. The server gets the own seeds b_k of those who answered and the pair seeds s_kj of
those who dropped out, never both of one hospital, when at least t hospitals give their shares of them. Here "the server
learns the seed when t answer" stands for Shamir's scheme, and the seeds come from the run's streams: this is a
simulation of what is exact, what is lost and what travels, **no cryptography**.

Source: Bonawitz et al., "Practical Secure Aggregation for Federated Learning on User-Held Data", eprint 2017/281.

Differs from the paper in: no keys, shares or signatures are made, they are counted; weights are public and multiplied
at the hospital; M is a power of two; numbers that a rule reports (the norms of FedNova) are summed exactly and travel
beside the words.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..aggregators.contract import Shape, Streams, Tensors

KEY_BYTES = 32
"""A public key of X25519."""

SHARE_BYTES = 32
"""A share of a secret of 256 bits."""

SEAL_BYTES = 16
"""What authenticated encryption adds to a message."""


@dataclass(frozen=True, kw_only=True)
class SecureSum:
    """How steps become words, and how many hospitals must answer.

    Args:
        clip: c, > 0: a coordinate of a step outside [-c, c] is cut to it.
        bits: Bits per coordinate before masking, 2 to 32: the grid has 2^bits - 1 points, 0 among them.
        word_bits: Bits per masked word, above ``bits`` and at most 62; M = 2^word_bits.
        threshold: In [0, 1): more than this share of the cohort must answer, ``t = floor(threshold n) + 1``.
    """

    clip: float = 1.0
    bits: int = 20
    word_bits: int = 32
    threshold: float = 0.5

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.clip < math.inf:
            problems.append(f"clip: expected a finite number above 0, got {self.clip!r}")
        if not 2 <= self.bits <= 32:
            problems.append(f"bits: expected 2 to 32, got {self.bits!r}")
        if not self.bits < self.word_bits <= 62:
            problems.append(f"word_bits: expected more than bits = {self.bits} and at most 62, got {self.word_bits!r}")
        if not 0 <= self.threshold < 1:
            problems.append(f"threshold: expected a number in [0, 1), got {self.threshold!r}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def largest(self) -> int:
        """h, the largest quantised value."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def spacing(self) -> float:
        """s, the distance of two points of the grid."""
        return self.clip / self.largest

    def needed(self, cohort: int) -> int:
        """t, how many of a cohort must answer."""
        return math.floor(self.threshold * cohort) + 1

    def check(self, largest_cohort: int) -> None:
        """Raises ValueError when the sum of a full cohort may not fit into a word, or there is nobody to hide among."""
        if largest_cohort < 2:
            raise ValueError(
                f"stages.secure_sum: expected at least 2 hospitals in a round, got {largest_cohort}: the sum of one "
                "is what it sent"
            )
        if 2 * largest_cohort * self.largest >= 2**self.word_bits:
            raise ValueError(
                f"stages.secure_sum.word_bits: the sum of {largest_cohort} hospitals of {self.bits} bits may overflow "
                f"{self.word_bits} bits; set it to {(2 * largest_cohort * self.largest).bit_length()} or more, or "
                "lower bits"
            )

    def check_answers(self, cohort: Collection[str], answered: Collection[str]) -> None:
        """Raises ValueError when too few answered to recover the masks."""
        if len(answered) < self.needed(len(cohort)):
            raise ValueError(
                f"stages.secure_sum: {len(answered)} of {len(cohort)} hospitals answered, the masks are recovered from "
                f"at least {self.needed(len(cohort))}; lower stages.secure_sum.threshold or cohort.drop_rate, or use a "
                "larger cohort"
            )

    def bytes_up(self, coordinates: int, cohort: int, *, answered: bool) -> int:
        """What a hospital sends: two keys, sealed shares for the others, the masked words, a share of each hospital.

        ``64 + 80 (n - 1) + ceil(d word_bits / 8) + 32 n``; one that drops out gets as far as the shares.
        """
        setup = 2 * KEY_BYTES + (cohort - 1) * (2 * SHARE_BYTES + SEAL_BYTES)
        words = math.ceil(coordinates * self.word_bits / 8)
        return setup + (words + cohort * SHARE_BYTES if answered else 0)

    def bytes_down(self, cohort: int) -> int:
        """What it gets beside the model: two keys and the sealed shares of each other, ``144 (n - 1)``."""
        return (cohort - 1) * (2 * KEY_BYTES + 2 * SHARE_BYTES + SEAL_BYTES)


def to_grid(secure: SecureSum, vector: Tensor, rng: Streams) -> Tensor:
    """Quantises with stochastic rounding, which is right in the mean: ``floor(x / s + u)``, u uniform in [0, 1).

    Args:
        secure: The grid.
        vector: (d,), any float.
        rng: Streams of the hospital.

    Returns:
        (d,) int64 in ``-h .. h``.
    """
    drawn = torch.rand(vector.shape, dtype=torch.float64, generator=rng())
    return (_scaled(secure, vector) + drawn).floor().clamp(-secure.largest, secure.largest).to(torch.int64)


def to_grid_inwards(secure: SecureSum, vector: Tensor) -> Tensor:
    """Quantises towards zero, so that no step gets longer: what differential privacy needs.

    Cutting to [-c, c] and dropping the fraction of x / s make every coordinate at most as large as it was,
    ``|s trunc(x / s)| <= |x|``, hence also the norm: a step within the clip norm stays within it, and the sensitivity
    is what it was before quantisation. Stochastic rounding would add up to s per coordinate, ``s sqrt(d)`` in all.
    """
    return _scaled(secure, vector).trunc().to(torch.int64)


def _scaled(secure: SecureSum, vector: Tensor) -> Tensor:
    return vector.detach().cpu().double().clamp(-secure.clip, secure.clip) / secure.spacing


def masked(secure: SecureSum, words: Tensor, name: str, cohort: Collection[str], rng: Streams) -> Tensor:
    """What a hospital uploads: its quantised vector under its own mask and one mask per other hospital.

    Args:
        secure: Gives the modulus.
        words: (d,) quantised.
        name: The hospital.
        cohort: All hospitals of the round, it among them.
        rng: Streams of the round: ``rng("own", k)`` is seed b_k, ``rng("pair", j, k)`` seed s_jk.

    Returns:
        (d,) int64 in ``0 .. M - 1``.
    """
    upload = words + _mask(secure, len(words), rng, "own", name)
    for other in cohort:
        if other != name:
            upload = upload + _pair_mask(secure, len(words), rng, name, other)
    return torch.bitwise_and(upload, 2**secure.word_bits - 1)


def unmasked_sum(secure: SecureSum, uploads: Mapping[str, Tensor], cohort: Collection[str], rng: Streams) -> Tensor:
    """The sum of the quantised vectors of those who answered.

    The pair masks of two who answered cancel. What is left are the own masks of those who answered and the pair masks
    they have with those who dropped out; the server makes both again from the recovered seeds.

    Args:
        secure: Modulus and threshold.
        uploads: Upload per hospital that answered.
        cohort: All hospitals of the round.
        rng: As in :func:`masked`.

    Raises:
        ValueError: too few answered.
    """
    secure.check_answers(cohort, uploads)
    total = torch.stack(list(uploads.values())).sum(0)
    for name in uploads:
        total = total - _mask(secure, len(total), rng, "own", name)
        for dropped in sorted(set(cohort) - set(uploads)):
            total = total - _pair_mask(secure, len(total), rng, name, dropped)
    residue = torch.bitwise_and(total, 2**secure.word_bits - 1)
    return torch.where(residue >= 2 ** (secure.word_bits - 1), residue - 2**secure.word_bits, residue)


def _mask(secure: SecureSum, coordinates: int, rng: Streams, *seed: str) -> Tensor:
    return torch.randint(2**secure.word_bits, (coordinates,), generator=rng(*seed))


def _pair_mask(secure: SecureSum, coordinates: int, rng: Streams, name: str, other: str) -> Tensor:
    """The mask that two hospitals share, with the sign that the first of the two gives it."""
    first, second = sorted((name, other))
    mask = _mask(secure, coordinates, rng, "pair", first, second)
    return mask if name == first else -mask


def flattened(step: Tensors, names: Iterable[str]) -> Tensor:
    """The tensors of a step one after the other, (d,) float64 on the CPU."""
    return torch.cat([step[name].detach().cpu().double().flatten() for name in names])


def unflattened(vector: Tensor, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """The tensors of a flat vector, by name and shape, in that order."""
    parts: Sequence[Tensor] = vector.split([math.prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
