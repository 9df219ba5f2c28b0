"""FLoRIST: one global pair per layer, as thin as an energy threshold allows (2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .arithmetic import rank_of, resized, weighted_mean
from .contract import Aggregated, ClientUpdate, Download, HospitalInfo, Pair, ServerState, Streams
from .flap_sam import FlapSam
from .lowrank import LowRankSvd, Split, resplit
from .products import ideal_means
from .ranges import check_positive, check_share


@dataclass(frozen=True, kw_only=True)
class Florist(FlapSam):
    """Mean of the products, cut to the fewest directions that hold a share tau of its energy; that pair goes to all.

    No pair has more directions than the largest rank of the federation: where those do not hold tau, less is kept.

    ::

        M = sum_k p_k s_k B_k A_k = U S V^T
        r* = the smallest r with  sum_{j <= r} sigma_j^2 >= tau sum_j sigma_j^2,
             or the largest rank of the federation if that is smaller                (at least 1, per pair)
        B <- U_{r*} S_{r*} / s,  A <- V_{r*}^T                                       (split "left")

    A hospital of a lower rank than r* keeps the first directions. One of a higher rank fills up: further rows of A
    drawn from N(0, padding_std^2), further columns of B zero, so that the model is the same and the new directions can
    learn (two factors of zeros never would). The server draws these rows for all, once per round; they do not travel.

    Traffic: up r_k (d_out + d_in), down r* (d_out + d_in), to every hospital whatever its rank; before round 1 the
    hospital's own rank instead of r*. The diagnostic ``adaptive_rank`` is the mean of r* over the pairs.

    Args:
        tau: Share of the energy to keep, in (0, 1], as far as the largest rank of the federation allows: four hospitals
            of rank 2 with nothing in common keep about half of it at any tau above that. The paper works with 0.9 to
            0.99; 1 cuts what FlexLoRA cuts.
        padding_std: Standard deviation of the rows that fill A up, above 0.
        split: Where the singular values go: ``left`` into B (A orthonormal), ``right`` into A, ``symmetric`` the roots
            into each.

    Example:
        >>> Florist(tau=1.5)
        Traceback (most recent call last):
        ...
        ValueError: tau: expected a number above 0 and at most 1, got 1.5

    Source: FLoRIST, arXiv 2506.09199 (threshold and global pair); the filling is the one that SpecTraL's released code
    found best.

    Differs from the paper in: one QR of each stack instead of two thin SVDs and a third of their core, which has the
    same singular values; the bound on r*, because nobody could hold more; the side that takes the singular values is
    our choice, not re-read in the paper, and so is the reading of the ``0.02`` in SpecTraL's N(0, 0.02) as a standard
    deviation; SpecTraL's other rule for r* (ScreeNOT) is not offered.
    """

    tau: float = 0.99
    padding_std: float = 0.02
    split: Split = "left"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(tau=self.tau)
        check_positive(padding_std=self.padding_std)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything, pairs cut or filled up to the hospital's rank; only r* directions of each travel."""
        download = super().broadcast(server, hospital)
        if not server.memory:  # nothing is aggregated yet
            return download
        layout = server.setting.layout
        thin = [_thin(server, pair) for pair in layout.pairs]
        sent = {name: server.tensors[name] for name in layout.dense}
        return replace(download, sent=sent | {name: value for pair in thin for name, value in pair.items()})

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """Mean on dense tensors; on pairs the mean of the products at its adaptive rank, filled up."""
        layout = server.setting.layout
        tensors, memory = {**server.tensors, **weighted_mean(updates, layout.dense)}, {}
        for pair, svd in ideal_means(updates, layout.pairs).items():
            rank = adaptive_rank(svd.S, self.tau, rank_of(server.tensors, pair))
            tensors |= self._filled_up(server, pair, svd, rank, rng)
            memory[_rank_name(pair)] = torch.tensor(rank)
        ranks = [float(rank) for rank in memory.values()]
        return Aggregated(
            server=replace(server, round=server.round + 1, tensors=tensors, memory=memory),
            diagnostics={"adaptive_rank": sum(ranks) / len(ranks)} if ranks else {},
        )

    def _filled_up(
        self, server: ServerState, pair: Pair, svd: LowRankSvd, rank: int, rng: Streams
    ) -> dict[str, Tensor]:
        """The factors of r* directions at the server's rank, in the dtype they have there."""
        B, A = resplit(svd, rank, self.split, rng("spare directions", pair.B))  # (d_out, r*), (r*, d_in)
        full = rank_of(server.tensors, pair)
        fresh = torch.randn(full - rank, A.shape[1], generator=rng("padding", pair.A), dtype=torch.float64)
        A = torch.cat([A, self.padding_std * fresh.to(A)])
        B = resized(B, 1, full) / pair.scale(full)
        return {pair.A: A.to(server.tensors[pair.A]), pair.B: B.to(server.tensors[pair.B])}


def adaptive_rank(S: Tensor, tau: float, largest: int) -> int:
    """The fewest of the descending singular values (q,) that hold a share tau of their energy; from 1 to ``largest``.

    Example:
        >>> adaptive_rank(torch.tensor([3.0, 1.0, 1.0]), tau=0.9, largest=3)  # shares 9/11, 10/11, 1
        2
    """
    energy = S.double().square().cumsum(0)
    short = int((energy < tau * energy[-1]).sum())
    return min(short + 1, largest)


def _thin(server: ServerState, pair: Pair) -> dict[str, Tensor]:
    """The r* directions of a pair that travel, B divided by the scale of this rank."""
    full, rank = rank_of(server.tensors, pair), int(server.memory[_rank_name(pair)])
    B = server.tensors[pair.B][:, :rank] * (pair.scale(full) / pair.scale(rank))
    return {pair.A: server.tensors[pair.A][:rank], pair.B: B}


def _rank_name(pair: Pair) -> str:
    return f"rank/{pair.B}"
