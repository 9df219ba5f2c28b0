"""What FedAdam, FedYogi and FedAdagrad share: moments of the hospitals' mean step, and a step scaled by them.

::

    D = sum_k p_k theta_k - theta        (the mean step)
    m <- beta1 m + (1 - beta1) D,        m = 0 before round 1
    v <- second_moment(v, D),            v = v_init before round 1
    theta <- theta + step(m, v)

everything element by element. The three differ in ``second_moment`` (Reddi et al., arXiv 2003.00295, Algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .contract import Aggregated, ClientUpdate, ServerState, Streams
from .spaces import On, coordinates, from_coordinates, mean_coordinates

SecondMoment = Callable[[Tensor, Tensor], Tensor]
"""``second_moment(v, D)``: the next v."""

Step = Callable[[Tensor, Tensor], Tensor]
"""``step(m, v)``: what is added to theta."""


def adaptive_step(
    on: On,
    server: ServerState,
    updates: Sequence[ClientUpdate],
    rng: Streams,
    *,
    beta1: float,
    v_init: float,
    second_moment: SecondMoment,
    step: Step,
) -> Aggregated:
    """The next state: theta moved, and both moments in the memory. A tensor nobody sent stays, moments included.

    Args:
        on: The space theta is in; the moments are in it too, dense (d_out, d_in) per pair on ``product``.
        server: theta and the moments.
        updates: theta_k.
        rng: Draws directions where a product has fewer than the rank.
        beta1: Decay of the first moment.
        v_init: Every element of v before round 1.
        second_moment: How v goes on.
        step: What is made of the moments.
    """
    layout, memory = server.setting.layout, dict(server.memory)
    theta = coordinates(on, layout, server.tensors)
    for name, mean in mean_coordinates(on, layout, updates).items():
        D = mean - theta[name]
        m = memory.get(f"m/{name}", torch.zeros_like(D))
        v = memory.get(f"v/{name}", torch.full_like(D, v_init))
        memory[f"m/{name}"] = m = beta1 * m + (1 - beta1) * D
        memory[f"v/{name}"] = v = second_moment(v, D)
        theta[name] = theta[name] + step(m, v)
    tensors = from_coordinates(on, server, theta, rng)
    return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors, memory=memory))


def scaled(lr: float, tau: float) -> Step:
    """``step(m, v) = lr m / (sqrt(v) + tau)``."""
    return lambda m, v: lr * m / (v.sqrt() + tau)
