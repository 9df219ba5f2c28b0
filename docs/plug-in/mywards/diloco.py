"""DiLoCo: Nesterov momentum at the server (Douillard et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from wardround.aggregators import FedAvg
from wardround.aggregators.arithmetic import weighted_mean
from wardround.aggregators.contract import Aggregated, ClientUpdate, ServerState, Streams


@dataclass(frozen=True, kw_only=True)
class DiLoCo(FedAvg):
    """FedAvg whose server takes what the mean moved by as a gradient, for SGD with Nesterov momentum.

    ::

        g = theta - sum_k p_k theta_k
        v <- momentum v + g
        theta <- theta - lr (g + momentum v)

    With ``lr`` 1 and ``momentum`` 0 it is FedAvg. Hospitals need nothing more than in FedAvg, and the server nothing
    more than their mean. v is kept in the server's memory, and so in every checkpoint; the diagnostic ``step_norm`` is
    the length of the server's step.

    Args:
        lr: Step size of the server, > 0.
        momentum: In [0, 1).

    Source: Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", arXiv 2311.08105,
    Algorithm 1 with Nesterov momentum as outer optimizer; the step as ``torch.optim.SGD(nesterov=True)`` takes it.

    Differs from the paper in: hospitals are weighted, as the run says; their optimizers begin anew in every round.
    """

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        problems = []
        if not self.lr > 0:
            problems.append(f"lr: expected a number above 0, got {self.lr!r}")
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum: expected a number of at least 0 and below 1, got {self.momentum!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """The step above; a tensor nobody sent stays, and so does its momentum."""
        tensors, memory, moved = dict(server.tensors), dict(server.memory), 0.0
        for name, mean in weighted_mean(updates).items():
            g = server.tensors[name] - mean
            v = self.momentum * memory.get(f"v/{name}", torch.zeros_like(g)) + g
            step = self.lr * (g + self.momentum * v)
            tensors[name], memory[f"v/{name}"] = server.tensors[name] - step, v
            moved += step.double().square().sum().item()
        after = replace(server, round=server.round + 1, tensors=tensors, memory=memory)
        return Aggregated(server=after, diagnostics={"step_norm": moved**0.5})
