"""FedAvgM: momentum at the server (Hsu, Qi and Brown, 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .contract import Aggregated, ClientUpdate, ServerState, Streams
from .mean_in_space import MeanInSpace
from .ranges import check_fraction, check_positive
from .spaces import coordinates, from_coordinates, mean_coordinates


@dataclass(frozen=True, kw_only=True)
class FedAvgM(MeanInSpace):
    """Gradient descent with heavy-ball momentum, in which what the hospitals moved is the gradient.

    ::

        g = theta - sum_k p_k theta_k        (the pseudo-gradient)
        v <- beta v + g,                     v = g in the first round
        theta <- theta - lr v

    A steady g moves theta by ``lr / (1 - beta)`` times g per round: a server learning rate below 1 often pays.

    On ``factors`` theta is every trainable tensor, A and B among them. On ``product`` it is ``s B A`` of every pair and
    every dense tensor: the momentum of a pair is then a dense (d_out, d_in) matrix at the server, every round takes a
    dense SVD per pair, and the new product is cut to rank r, so that part of the step may be lost.

    Traffic: r (d_out + d_in) per pair, up and down, as FedAvg. Server memory: r (d_out + d_in) per pair on
    ``factors``, d_out d_in on ``product``.

    Args:
        beta: Momentum, in [0, 1). With 0 and ``lr`` 1 it is FedAvg (on products FLAP-SAM).
        lr: Server learning rate, > 0.
        on: ``factors`` or ``product``.

    Example:
        >>> FedAvgM(beta=1.0)
        Traceback (most recent call last):
        ...
        ValueError: beta: expected a number in [0, 1), got 1.0

    Source: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", arXiv 1909.06335, section 4.3.

    Differs from the paper in: heavy-ball momentum, as in Flower, where the paper's experiments use Nesterov's (from
    memory, not re-read); the server learning rate; the space ``product``. Momentum on factors adds up steps taken with
    different factors of what may be the same product; on ``product`` it does not.
    """

    beta: float = 0.9
    lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(beta=self.beta)
        check_positive(lr=self.lr)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate], rng: Streams) -> Aggregated:
        """A step along the momentum; a tensor nobody sent stays, and so does its momentum."""
        layout, memory = server.setting.layout, dict(server.memory)
        theta = coordinates(self.on, layout, server.tensors)
        for name, mean in mean_coordinates(self.on, layout, updates).items():
            v = theta[name] - mean
            if f"momentum/{name}" in memory:
                v = self.beta * memory[f"momentum/{name}"] + v
            memory[f"momentum/{name}"] = v
            theta[name] = theta[name] - self.lr * v
        tensors = from_coordinates(self.on, server, theta, rng)
        return Aggregated(server=replace(server, round=server.round + 1, tensors=tensors, memory=memory))
