"""What FedAdam, FedYogi and FedAdagrad share: moments of the hospitals' mean step, and a step scaled by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .contract import Aggregated, ClientUpdate, ServerState, Streams
from .mean_in_space import MeanInSpace
from .ranges import check_fraction, check_not_negative, check_positive
from .spaces import coordinates, from_coordinates, mean_coordinates


@dataclass(frozen=True, kw_only=True)
class AdaptiveMean(MeanInSpace):
    """A step along the first moment, element by element divided by the root of the second one.

    ::

        D = sum_k p_k theta_k - theta        (the mean step)
        m <- beta1 m + (1 - beta1) D,        m = 0 before round 1
        v <- second_moment(v, D),            v = v_init before round 1
        theta <- theta + lr m / (sqrt(v) + tau)

    Algorithms differ in ``second_moment``. A tensor nobody sent stays, and so do its moments.

    Args:
        lr: Server learning rate, > 0.
        beta1: Decay of m, in [0, 1).
        tau: Degree of adaptivity, > 0.
        v_init: Every element of v before round 1, >= 0; None: ``tau^2``.

    Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2.
    """

    lr: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3
    v_init: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(lr=self.lr, tau=self.tau)
        check_fraction(beta1=self.beta1)
        check_not_negative(v_init=self.first_v)

    @property
    def first_v(self) -> float:
        """``v_init``, or its default."""
        return self.tau**2 if self.v_init is None else self.v_init

    def second_moment(self, v: Tensor, D: Tensor) -> Tensor:
        """The next v."""
        raise NotImplementedError

    def step(self, m: Tensor, v: Tensor, t: int) -> Tensor:
        """What is added to theta in the t-th step, t = 1, 2, ..."""
        return self.lr * m / (v.sqrt() + self.tau)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """A step in the chosen space, where the moments are too; on ``product`` they are dense (d_out, d_in)."""
        layout, memory = server.setting.layout, dict(server.memory)
        memory["steps"] = memory.get("steps", torch.tensor(0)) + 1  # not the round: some rounds have no update
        theta = coordinates(self.on, layout, server.tensors)
        for name, mean in mean_coordinates(self.on, layout, updates).items():
            D = mean - theta[name]
            m = memory.get(f"m/{name}", torch.zeros_like(D))
            v = memory.get(f"v/{name}", torch.full_like(D, self.first_v))
            memory[f"m/{name}"] = m = self.beta1 * m + (1 - self.beta1) * D
            memory[f"v/{name}"] = v = self.second_moment(v, D)
            theta[name] = theta[name] + self.step(m, v, int(memory["steps"]))
        tensors = from_coordinates(self.on, server, theta, rng)
        return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors, memory=memory))
