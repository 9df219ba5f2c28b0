"""q-FedAvg: more weight to hospitals that do badly (Li et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from .checks import AggregationError
from .contract import (
    Aggregated,
    ClientUpdate,
    Download,
    Fit,
    LocalResult,
    LocalRule,
    Phase,
    ServerState,
    Streams,
    Tensors,
)
from .mean_in_space import MeanInSpace
from .plain import PlainTraining
from .ranges import check_not_negative, check_positive
from .spaces import combination, gram_of_steps

_SMALL = 1e-10  # keeps F^(q-1) finite where F is 0; the number of the released code


@dataclass(frozen=True, kw_only=True)
class MeasuredTraining:
    """Plain training that measures the loss of the model it was sent before it trains, and reports it."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """One phase, from the download, measured."""
        return [Phase(train=download.train, measure=True)]

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """The announced tensors, and ``loss_before``."""
        loss = fits[0].loss_before
        assert loss is not None, "the phase asked for it"
        return replace(PlainTraining().finish(download, fits, memory), metrics={"loss_before": loss})


@dataclass(frozen=True, kw_only=True)
class QFedAvg(MeanInSpace):
    """A mean in which hospitals count the more, the higher their loss is: ``sum_k F_k^(q+1) / (q+1)`` goes down.

    ::

        h_k = q F_k^(q-1) ||L (theta - theta_k)||^2 + L F_k^q
        theta <- theta - sum_k F_k^q L (theta - theta_k) / sum_k h_k

    F_k is the loss of theta at hospital k *before* it trains, the mean over its training windows. With q = 0 it is the
    uniform mean; with growing q the worst hospital counts most. h_k bounds the curvature of ``F_k^(q+1)``: it shortens
    the step where hospitals moved far.

    On ``factors`` theta is every trainable tensor, A and B among them. On ``product`` it is ``s B A`` of every pair and
    every dense tensor; lengths come from r x r blocks, the combination goes through QR, no dense matrix is formed, and
    the result is cut to rank r. Weights of the run are not used. The diagnostic ``step_length`` is
    ``sum_k F_k^q L / sum_k h_k``: 1 would be a mean.

    Traffic: r (d_out + d_in) per pair, up and down, as FedAvg, and one number up. Hospitals pass over their
    windows once more, without gradients.

    Args:
        q: Fairness, >= 0; the paper tries values between 0.001 and 15, per data set.
        lipschitz: L > 0, a bound on the curvature of the losses. The paper takes 1 / (local learning rate), for local
            steps of plain SGD. The default of 1 hardly shortens a step; it is ours.
        on: ``factors`` or ``product``.

    Example:
        >>> QFedAvg(q=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: q: expected a number of at least 0, got -1.0

    Source: Li et al., "Fair Resource Allocation in Federated Learning", arXiv 1905.10497, Algorithm 2; its code
    (litian96/fair_flearn), which adds 1e-10 to F_k, as is done here.

    Differs from the paper in: hospitals are drawn as the run says, where the paper draws them in proportion to their
    data; L is a number of its own; the space ``product``.
    """

    q: float = 1.0
    lipschitz: float = 1.0
    consumes: ClassVar[Literal["sum", "updates"]] = "updates"  # every update: its length counts
    uses_weights: ClassVar[bool] = False  # losses take the place of weights

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(q=self.q)
        check_positive(lipschitz=self.lipschitz)

    @property
    def rule(self) -> LocalRule:
        """Training that measures the loss before it begins."""
        return MeasuredTraining()

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The step above; raises AggregationError for a negative loss."""
        _check_losses(server, updates)
        q, L = self.q, self.lipschitz
        losses = [update.metrics["loss_before"] + _SMALL for update in updates]
        lengths = gram_of_steps(self.on, server, updates).diagonal().tolist()
        h = sum(q * F ** (q - 1) * L**2 * length + L * F**q for F, length in zip(losses, lengths, strict=True))
        weights = [L * F**q / h for F in losses]
        tensors = combination(self.on, server, updates, weights, rng)
        after = replace(server, round=server.round + 1, tensors=tensors)
        return Aggregated(server=after, diagnostics={"step_length": sum(weights)})


def _check_losses(server: ServerState, updates: Sequence[ClientUpdate]) -> None:
    negative = {one.hospital: one.metrics["loss_before"] for one in updates if one.metrics["loss_before"] < 0}
    if negative:
        problems = [
            f"hospital {name!r}: loss_before: expected at least 0, got {loss!r}: F^q is not defined for it. Train with "
            "a loss that is never negative, or use fedavg"
            for name, loss in negative.items()
        ]
        raise AggregationError(f"round {server.round + 1}, q-FedAvg", problems)
