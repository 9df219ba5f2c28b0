"""FedNova: normalised averaging (Wang et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .arithmetic import accumulator, mean_update
from .contract import (
    Aggregated,
    ClientUpdate,
    Download,
    Fit,
    LocalResult,
    LocalRule,
    Phase,
    ServerState,
    Setting,
    Streams,
    Tensors,
)
from .fedavg import FedAvg
from .plain import PlainTraining


def norm_of_steps(learning_rates: Sequence[float], momentum: float) -> float:
    """``||a_k||_1``: by how much a unit gradient, the same in every step, moves a hospital that starts at rest.

    ``sum_t eta_t v_t`` with ``v_t = rho v_(t-1) + 1``, from ``v_(-1) = 0``.

    Args:
        learning_rates: eta_t, in the order of the steps.
        momentum: rho, in [0, 1).

    Example:
        >>> norm_of_steps([0.5, 0.25], 0.0), norm_of_steps([0.5, 0.25], 0.5)  # 1/2 + 1/4, and 1/2 + 1/4 * 1.5
        (0.75, 0.875)
    """
    velocity = norm = 0.0
    for eta in learning_rates:
        velocity = momentum * velocity + 1.0
        norm += eta * velocity
    return norm


@dataclass(frozen=True, kw_only=True)
class NormalisedTraining:
    """Plain training that sends ``theta - d_k``: its step divided by ``||a_k||_1``, and that norm as a metric."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """One phase, from the download."""
        return PlainTraining().phases(download, memory)

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """The normalised step, added to the start; the start itself where no step was taken."""
        fit = fits[-1]
        norm = norm_of_steps(fit.learning_rates, fit.momentum)
        tensors = {}
        for name in download.returns:
            start = download.start[name].to(accumulator(download.start[name]))
            step = (fit.tensors[name] - start) / norm if norm else torch.zeros_like(start)
            tensors[name] = (start + step).to(fit.tensors[name])
        return LocalResult(tensors=tensors, metrics={"a_norm": norm})


@dataclass(frozen=True, kw_only=True)
class FedNova(FedAvg):
    """FedAvg of steps per unit of local work, so that hospitals with more batches do not pull harder for that alone.

    ::

        d_k = (theta - theta_k) / ||a_k||_1
        theta <- theta - tau_eff sum_k p_k d_k,    tau_eff = sum_k p_k ||a_k||_1

    ``a_k`` holds the weight of each local gradient in the local step: ``theta - theta_k = sum_i a_ki g_ki``. For SGD
    with learning rates eta_t, t = 0, 1, ..., and momentum rho, ``||a_k||_1 = sum_t eta_t (1 - rho^(t+1)) / (1 - rho)``;
    learning rates are left in it, so that hospitals at different points of a schedule are made comparable too.

    FedAvg of hospitals with tau_k steps has its fixed point where ``sum_k p_k tau_k grad F_k = 0``, which is not the
    minimum of ``sum_k p_k F_k``; FedNova's is, for small learning rates. With equal work everywhere it is FedAvg.

    It acts on factors: A and B are normalised as all other tensors. Hospitals divide before they send, so that the
    server needs only a weighted mean of what it gets and of one number.

    Traffic: r (d_out + d_in) per pair, up and down, as FedAvg, and one number up.

    Source: Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", arXiv
    2007.07481, equations for d_k, a_k and tau_eff; its code: JYWa/FedNova.

    Differs from the paper in: learning rates may change within a round; the variants with a proximal term or momentum
    at the server are left out; AdamW is refused: its steps are no fixed combination of gradients. With
    ``training.moments: keep`` a round does not begin at rest: gradients of earlier rounds are in its step, and the norm
    leaves them out. A hospital that took no step counts as one whose gradient is zero. There is no ``on: product``.
    """

    @property
    def rule(self) -> LocalRule:
        """Training that sends normalised steps."""
        return NormalisedTraining()

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0. Raises ValueError for another optimizer than SGD, and for different ranks."""
        if setting.optimizer != "sgd":
            raise ValueError(
                f"optimizer: expected 'sgd', got {setting.optimizer!r}: FedNova divides by the weight of the gradients "
                "in a local step, which is fixed for SGD and depends on the gradients for adaptive optimizers. Set "
                "training.optimizer to sgd, or use fedavg with an equal number of training.steps at every hospital"
            )
        return super().init(setting, rng)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The mean normalised step, as long as the mean of the norms; a tensor nobody sent stays."""
        mean = mean_update(updates)
        tau_eff = mean.metrics["a_norm"]
        steps = {name: tau_eff * (value - server.tensors[name]) for name, value in mean.tensors.items()}
        tensors = {**server.tensors, **{name: server.tensors[name] + step for name, step in steps.items()}}
        after = replace(server, round=server.round + 1, tensors=tensors)
        return Aggregated(server=after, diagnostics={"tau_eff": tau_eff})
