"""Centred clipping: no update may pull the model further than a given length (Karimireddy et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .arithmetic import normalised_weights
from .contract import Aggregated, ClientUpdate, ServerState, Streams
from .geometric_median import distances_to_mean
from .robust import RobustMean
from .spaces import combination, gram_of_steps


@dataclass(frozen=True, kw_only=True)
class CentredClipping(RobustMean):
    """A mean of steps that are clipped around a centre, which then moves to that mean.

    ::

        v <- v + sum_k p_k (Delta_k - v) min(1, tau / ||Delta_k - v||),   Delta_k = theta_k - theta, v = 0 at first
        theta <- theta + v

    v stays a combination ``sum_k c_k Delta_k``, so that on the product only inner products of the steps are needed and
    no product is formed. One iteration is the mean of clipped steps; more of them let the centre find the honest steps.
    A byzantine hospital moves an iteration by at most ``p_k tau``.

    The paper has one tau for all rounds. It has to be about the length of honest steps, which nobody knows before
    round 1 and which shrinks while the model learns; with a tau far above it, attackers pull that much further than
    anybody honest. The default is ours: ``tau = median_k ||Delta_k - v||``, anew for every iteration. As long as less
    than half of the hospitals are byzantine, that is no more than the distance of the furthest honest one.

    Traffic: ``r (d_out + d_in)`` up and down per pair, as FedAvg.

    Args:
        tau: Longest pull, > 0, in the units of the trained tensors, the same in every round; None: the median distance
            of the hospitals from the centre. The diagnostic ``median_step`` says how long steps are.
        iterations: How often the centre moves, >= 1.
        on: ``product`` (any ranks) or ``factors``: where lengths are measured and the step is taken.

    Source: Karimireddy et al., "Learning from History for Byzantine Robust Optimization", arXiv 2012.10333, section 4,
    not re-read; that its experiments take tau = 10 and one iteration is general knowledge of it.

    Differs from the paper in: the default of tau, see above; five iterations by default, because the first centre is
    the server's model, a whole step away from the honest, instead of the last aggregate; the hospitals send no
    momentum; weights of the run instead of 1 / n; on the product.
    """

    tau: float | None = None
    iterations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is not None and not self.tau > 0:
            raise ValueError(f"tau: expected a length above 0 or none, got {self.tau!r}")
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {self.iterations!r}")

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """Clips, moves the centre, and steps to it."""
        p = torch.tensor(normalised_weights(updates), dtype=torch.float64)
        G = gram_of_steps(self.on, server, updates)
        c = torch.zeros_like(p)
        for _ in range(self.iterations):
            distances = distances_to_mean(G, c)
            tau = distances.quantile(0.5) if self.tau is None else self.tau
            pulls = p * torch.where(distances > tau, tau / distances, 1.0)  # both may be 0
            c = (1 - pulls.sum()) * c + pulls
        tensors = combination(self.on, server, updates, c.tolist(), rng)
        diagnostics = {
            "kept_weight": float(pulls.sum()),
            "clipped": float((pulls < p).sum()),
            "median_step": float(G.diagonal().clamp(min=0).sqrt().quantile(0.5)),
        }
        return Aggregated(
            server=replace(server, round=server.round + 1, tensors=tensors),
            diagnostics=diagnostics,
        )
