"""FedRot-LoRA: factors are rotated towards the last global ones before they are averaged (Zhang et al.)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .contract import Download, Fit, HospitalInfo, LocalResult, LocalRule, ServerState, Tensors
from .fedavg import FedAvg
from .plain import PlainTraining
from .ranges import check_between

ALIGN_A, ALIGN_B = 0, 1


@dataclass(frozen=True, kw_only=True)
class RotateBeforeSending(PlainTraining):
    """Plain training; then every pair is rotated towards the factor it was handed. The product does not change.

    ``extra["align"]`` of the download says which factor of every pair is to be aligned, 0 for A and 1 for B. Without it
    nothing is rotated.

    Args:
        lam: Strength, as of :class:`FedRotLora`.
    """

    lam: float

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """The announced tensors, the pairs rotated."""
        result = super().finish(download, fits, memory)
        if "align" not in download.extra or download.layout is None:
            return result
        align_A, tensors = int(download.extra["align"]) == ALIGN_A, dict(result.tensors)
        for pair in download.layout.pairs:
            B, A = tensors[pair.B].double(), tensors[pair.A].double()
            last_B, last_A = download.start[pair.B].double(), download.start[pair.A].double()
            R = rotation(A, last_A, self.lam) if align_A else rotation(B.mT, last_B.mT, self.lam)
            tensors[pair.B] = (B @ R).to(tensors[pair.B])
            tensors[pair.A] = (R.mT @ A).to(tensors[pair.A])
        return replace(result, tensors=tensors)


def rotation(factor: Tensor, reference: Tensor, lam: float) -> Tensor:
    """The rotation R (r, r), determinant 1, for which ``R^T factor`` is closest to the reference, as far as ``lam``.

    Args:
        factor: (r, d), rows are the directions of a pair: A, or B^T.
        reference: (r, d).
        lam: Between 0 (no rotation) and 1 (all of it): ``(1 - lam) I + lam R`` projected back to a rotation.
    """
    R = _nearest_rotation(factor @ reference.mT)
    return _nearest_rotation((1 - lam) * torch.eye(len(R)).to(R) + lam * R)


def _nearest_rotation(M: Tensor) -> Tensor:
    """``U diag(1, ..., 1, det(U V^T)) V^T`` of ``M = U S V^T``; the identity where M is 0 and says nothing."""
    if not M.any():
        return torch.eye(len(M)).to(M)
    U, _, Vh = torch.linalg.svd(M)
    last = torch.ones(len(M)).to(M)
    last[-1] = torch.linalg.det(U @ Vh).sign()
    nearest: Tensor = (U * last) @ Vh
    return nearest


@dataclass(frozen=True, kw_only=True)
class FedRotLora(FedAvg):
    """FedIT on factors that every hospital has rotated towards the last global ones.

    ::

        R_k = argmin_R ||R^T A_k - A||  or  argmin_R ||B_k R - B||,  R^T R = I,  det R = 1       (A, B as handed out)
        Q_k = nearest rotation to (1 - lam) I + lam R_k
        B <- sum_k p_k B_k Q_k,    A <- sum_k p_k Q_k^T A_k

    ``(B_k Q_k)(Q_k^T A_k) = B_k A_k``: no hospital's update changes, only its coordinates. By orthogonal Procrustes,
    ``A_k A^T = U S V^T`` gives ``R_k = U diag(1, ..., 1, det(U V^T)) V^T``; for B the same with ``B_k^T B``. No
    rotation in the first round, where nothing has been learned together; then A is aligned in every second round, and B
    in those between. Rounds to which nobody came (Poisson sampling) count.

    The rotation happens at the hospital, so that the server needs a sum only. Cost O(d r^2 + r^3) per pair and
    hospital.

    Traffic: r (d_out + d_in) up, r (d_out + d_in) down per pair, and from the second round on one byte down that says
    which factor to align; all else as FedAvg.

    Args:
        lam: Strength, from 0 (FedIT) to 1 (all the way). The paper finds values between 0.4 and 0.6 best.

    Example:
        >>> FedRotLora(lam=2.0)
        Traceback (most recent call last):
        ...
        ValueError: lam: expected a number between 0 and 1, got 2.0

    Source: Zhang et al., "FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA", arXiv 2602.23638, and its
    released code (haoran-zh/FedRot-LoRA), read for the order of rounds and the formula.

    Differs from the released code in: the determinant is made 1 at every strength (there, not in the hard path); the
    first alignment is that of A, as in the paper (there, an offset decides); float64; no printed warnings. Rotated
    factors have other coordinates than the optimizer's moments: moments have to start anew in every round, as they do
    unless ``training.moments`` is ``keep``.
    """

    lam: float = 0.5

    def __post_init__(self) -> None:
        check_between(0, 1, lam=self.lam)

    @property
    def rule(self) -> LocalRule:
        """Plain training and a rotation."""
        return RotateBeforeSending(lam=self.lam)

    def broadcast(self, server: ServerState, hospital: HospitalInfo) -> Download:
        """FedAvg's download, and from the second round on which factor of the pairs is to be aligned."""
        download, layout = super().broadcast(server, hospital), server.setting.layout
        if server.round == 0 or not layout.pairs:
            return download
        align = torch.tensor(ALIGN_A if server.round % 2 else ALIGN_B, dtype=torch.uint8)
        return replace(download, extra={"align": align}, layout=layout)
