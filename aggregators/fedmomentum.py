"""FedMomentum: the first directions of the mean product are the new pair, the rest is merged (Yan et al., 2026)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .arithmetic import weighted_mean
from .contract import Aggregated, ClientUpdate, Download, HospitalInfo, Pair, ServerState, Setting, Streams
from .flap_sam import FlapSam
from .lowrank import LowRankSvd, Split, numerical_rank
from .merging import changes_for, check_bases_are_frozen, merged
from .products import Stack, factors, ideal_means


@dataclass(frozen=True, kw_only=True)
class FedMomentum(FlapSam):
    """FLAP-SAM made exact: what the cut to the rank of the federation leaves over is merged into the frozen weight.

    ::

        M = sum_k p_k s_k B_k A_k = U S V^T
        s B A <- U_r S_r V_r^T,    W <- W + sum_{i>r} S_i u_i v_i^T

    Nothing of the mean is lost, and the next round trains on in its r strongest directions (their "momentum") instead
    of starting anew. Dense tensors are averaged. With different ranks, r is the smallest of the federation, so that
    after a merge every hospital starts from the same effective weight; the directions beyond it that a larger hospital
    has are fresh (:func:`~wardround.aggregators.lowrank.resplit`). Before the first merge this holds where B starts at
    zero: with ``init_b: normal`` a hospital of lower rank starts from its first directions of a product that is not.

    Traffic: per adapted pair, up ``r_k (d_out + d_in)``. Down ``r_k (d_out + d_in)``, and the rest: for a hospital that
    took part in the last round ``(R - r)(d_out + d_in)``, with R the sum of the ranks of the last round, or
    ``d_out d_in`` where that is smaller; for one that missed rounds ``d_out d_in``
    (:mod:`~wardround.aggregators.merging`). A hospital keeps the change of its frozen weights, ``d_out d_in``, from
    round to round.

    Args:
        split: Where the singular values of the kept directions go: ``symmetric`` (half to each factor), ``right`` (to
            A) or ``left`` (to B). The product is the same, the next round's gradients are not.

    Example:
        >>> FedMomentum()
        FedMomentum(split='symmetric')

    Source: Yan et al., "FedMomentum: Preserving LoRA Training Momentum in Federated Fine-Tuning", arXiv 2603.08014.

    Differs from the paper in: an exact, sign-fixed SVD instead of a randomised one; the residual is merged in every
    round. The paper's split of the singular values could not be re-read, the balanced one is our choice; so is the rule
    for different ranks.
    """

    split: Split = "symmetric"

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values. Raises ValueError when the weight below a pair is trained itself."""
        check_bases_are_frozen(setting)
        return super().init(setting, rng)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """Everything, pairs at the hospital's rank; what was merged travels with it."""
        download = super().broadcast(server, hospital)
        return replace(download, sent={**download.start, **changes_for(server, hospital)})

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """Mean on dense tensors; on pairs the first directions of the mean product, and the rest merged."""
        layout, rank = server.setting.layout, _kept(server.setting)
        means = ideal_means(updates, layout.pairs)
        first = {pair: _directions(svd, 0, rank) for pair, svd in means.items()}
        pairs = factors(server, first, self.split, rng)
        tensors = {**server.tensors, **weighted_mean(updates, layout.dense), **pairs}
        after = merged(server, updates, _rest(means, rank))
        return Aggregated(server=replace(after, round=server.round + 1, tensors=tensors))


def _kept(setting: Setting) -> int:
    """The smallest rank of the federation: what every hospital can hold."""
    return min((hospital.rank for hospital in setting.hospitals if hospital.rank is not None), default=0)


def _rest(means: Mapping[Pair, LowRankSvd], rank: int) -> dict[Pair, Stack]:
    """Factors of all directions after the first ``rank``, rounding errors left out."""
    rest = {pair: _directions(svd, rank, max(rank, numerical_rank(svd.S))) for pair, svd in means.items()}
    return {pair: (svd.U * svd.S, svd.Vh) for pair, svd in rest.items()}


def _directions(svd: LowRankSvd, first: int, last: int) -> LowRankSvd:
    return LowRankSvd(U=svd.U[:, first:last], S=svd.S[first:last], Vh=svd.Vh[first:last])
