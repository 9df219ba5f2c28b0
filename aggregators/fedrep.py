"""FedRep: first the hospital's head, then the shared body (Collins et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .contract import Download, Fit, LocalResult, LocalRule, Phase, Tensors
from .fedper import FedPer
from .personal import keep_personal, personal_names
from .ranges import check_positive


@dataclass(frozen=True, kw_only=True)
class HeadThenBody:
    """Fits the head with the body frozen, then the body with the head frozen."""

    head_epochs: float
    body_epochs: float | None = None

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """Both from the broadcast body and the hospital's own head (the initial one in its first round)."""
        return [
            Phase(train=personal_names(download), start=memory, epochs=self.head_epochs),
            Phase(train=tuple(download.returns), epochs=self.body_epochs),
        ]

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """Sends the body and keeps the head."""
        return keep_personal(download, fits[-1].tensors)


@dataclass(frozen=True, kw_only=True)
class FedRep(FedPer):
    """FedPer with two phases: a head that fits the body it was sent, and then a body for this head.

    ::

        head_k <- train F_k(body, .) from head_k          head_epochs, body frozen
        body_k <- train F_k(., head_k) from body          then, head frozen
        body   <- sum_k p_k body_k

    The server's half is FedPer's: only the body travels, a site never seen gets the initial head, low-rank pairs are
    averaged as factors (which depends on the gauge, and needs one rank). Both phases go through the learning-rate
    schedule at the pace of the run's own epochs, so that the head's many epochs do not use it up before the run ends.

    Traffic: per pair r (d_out + d_in) up and r (d_out + d_in) down, as FedAvg; nothing for the head.

    Args:
        head_epochs: Passes over the hospital's windows for the head, > 0.
        body_epochs: Passes for the body, > 0; None: as the run says.

    Example:
        >>> FedRep(head_epochs=0.0)
        Traceback (most recent call last):
        ...
        ValueError: head_epochs: expected a number above 0, got 0.0

    Source: Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", arXiv 2102.07078,
    Algorithm 1. The default of 10 head epochs is how the paper's experiments are remembered (10 for the head, 1 for the
    body); it was not read again.

    Differs from the paper in: the common initial head is part of what every hospital installs and is not sent; each
    phase has its own optimizer state, and learning rates follow the run's schedule; means are weighted as the run says
    (the paper's are uniform).
    """

    head_epochs: float = 10.0
    body_epochs: float | None = None

    def __post_init__(self) -> None:
        check_positive(head_epochs=self.head_epochs)
        if self.body_epochs is not None:
            check_positive(body_epochs=self.body_epochs)

    @property
    def rule(self) -> LocalRule:
        """First the head, then the body."""
        return HeadThenBody(head_epochs=self.head_epochs, body_epochs=self.body_epochs)
