"""FlexLoRA: mean of the products, decomposed, handed out at every hospital's own rank (Bai et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from .flap_sam import FlapSam
from .lowrank import Split


@dataclass(frozen=True, kw_only=True)
class FlexLora(FlapSam):
    """Mean of the products of the pairs, decomposed; every hospital gets as many directions as its rank.

    ::

        M = sum_k p_k s_k B_k A_k = U S V^T,    B_i <- U_{r_i} S_{r_i} / s_i,  A_i <- V_{r_i}^T   (split "left")

    Hospital i is handed the best approximation of M at its own rank r_i, divided by its own scale s_i; what it loses is
    ``sqrt(sum_{j > r_i} sigma_j^2)``. Dense tensors are averaged.

    It is :class:`~wardround.aggregators.flap_sam.FlapSam` with another default: the singular values go into B instead
    of into A. Right after a round the two hand out the same products; what the hospitals make of them differs, because
    a gradient step on (B, A) depends on how the product is split.

    With different ranks the energy beyond the smallest rank decays from round to round even where nobody learns: a
    direction that only hospitals of total weight P hold comes back with P times its singular value (rank collapse).
    :class:`~wardround.aggregators.raflora.RaFlora` is the remedy.

    Traffic: up r_k (d_out + d_in), down r_i (d_out + d_in) of the receiver.

    Args:
        split: Where the singular values go: ``left`` into B (A orthonormal, as in the released code), ``right`` into A,
            ``symmetric`` the roots into each.

    Source: Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources",
    arXiv 2402.11505, and its released code (alibaba/FederatedScope, branch FlexLoRA).

    Differs from the released code in: QR of the stacked factors instead of a dense SVD
    (:mod:`~wardround.aggregators.lowrank`), signs fixed; the scale that is folded in is the hospital's own instead of a
    constant alpha of 16; directions in which M is zero are filled so that they can still learn
    (:func:`~wardround.aggregators.lowrank.resplit`).
    """

    split: Split = "left"
