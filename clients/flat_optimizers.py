"""The local optimizers for several hospitals at once, on one flat buffer with a row per hospital.

Every row has its own learning rates and its own count of steps, and moves as ``torch.optim`` moves the tensors that it
is made of. What depends on these counts is worked out for all steps beforehand (``plan``), so that a step is a few
operations on the whole buffer and never waits for the device.

Legend: K hospitals, k of them in a step, P trained numbers of a hospital, T tensors they belong to, S steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .optimizers import SGD, AdamW


class FlatOptimizer(Protocol):
    """An optimizer on the rows of a (K, P) buffer."""

    @property
    def moments(self) -> Mapping[str, Tensor]:
        """The tensors it keeps, (K, P) by the name that ``torch.optim`` gives them; kept ones are copied into them."""
        ...

    @property
    def steps(self) -> Tensor | None:
        """Steps of every tensor before the first one planned, (K, T) on the host; None where it does not count them."""
        ...

    def plan(self, rates: Tensor) -> None:
        """Tells the learning rates of all steps, (S, K), 0 where a hospital is done; called once, before the first."""
        ...

    def step(self, number: int, values: Tensor, gradients: Tensor) -> None:
        """Moves values (k, P), those of the first k hospitals, in place; ``number`` counts from 0."""
        ...


def flat_optimizer(settings: AdamW | SGD, like: Tensor, sizes: Sequence[int]) -> FlatOptimizer:
    """A fresh optimizer.

    Args:
        settings: Which and how.
        like: (K, P), whose shape, dtype and device its moments have.
        sizes: Numbers of each of the T tensors, P in all.
    """
    return FlatAdamW(settings, like, sizes) if isinstance(settings, AdamW) else FlatSGD(settings, like)


class FlatAdamW:
    """AdamW, row by row.

    ::

        m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2
        theta <- (1 - lr w) theta - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)

    with lr a number per row and t one per row and tensor: a tensor that sat out a round has taken fewer steps.

    Args:
        settings: Decay rates of the moments, weight decay, eps.
        like: (K, P), whose shape, dtype and device the moments have.
        sizes: Numbers of each of the T tensors, P in all.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101, Algorithm 2.
    """

    def __init__(self, settings: AdamW, like: Tensor, sizes: Sequence[int]) -> None:
        self.settings = settings
        self.moments: Mapping[str, Tensor] = {"exp_avg": torch.zeros_like(like), "exp_avg_sq": torch.zeros_like(like)}
        self.steps = torch.zeros(len(like), len(sizes))
        self._sizes = torch.tensor(sizes, dtype=torch.int64, device=like.device)
        self._width = sum(sizes)

    def plan(self, rates: Tensor) -> None:
        """Tells the learning rates of all steps, (S, K), 0 where a hospital is done."""
        m, (beta1, beta2), steps = self.moments["exp_avg"], self.settings.betas, self.steps
        one_count = bool((steps == steps[:, :1]).all())
        before = (steps[:, :1] if one_count else steps).double()  # (K, 1), or (K, T)
        t = before + torch.arange(1, len(rates) + 1).view(-1, 1, 1)  # (S, K, 1 or T)
        decay = 1 - rates.double() * self.settings.weight_decay
        self._decay = decay.unsqueeze(-1).to(m)
        self._step_size = (rates.double().unsqueeze(-1) / (1 - beta1**t)).to(m)
        self._root = (1 - beta2**t).sqrt().to(m)

    def step(self, number: int, values: Tensor, gradients: Tensor) -> None:
        """Moves values (k, P), those of the first k hospitals, in place; ``number`` counts from 0."""
        k, (beta1, beta2) = len(values), self.settings.betas
        m, v = self.moments["exp_avg"][:k], self.moments["exp_avg_sq"][:k]
        m.lerp_(gradients, 1 - beta1)
        v.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        values.mul_(self._decay[number, :k])
        root, size = (self._per_number(coefficients[number, :k]) for coefficients in (self._root, self._step_size))
        values.sub_(m / v.sqrt().div_(root).add_(self.settings.eps) * size)

    def _per_number(self, coefficients: Tensor) -> Tensor:
        """(k, 1) as it is, which is one for a whole row; (k, T) as (k, P)."""
        if coefficients.shape[1] == 1:
            return coefficients
        return coefficients.repeat_interleave(self._sizes, dim=1, output_size=self._width)


class FlatSGD:
    """Stochastic gradient descent with momentum, row by row: ``v <- momentum v + g + w theta; theta <- theta - lr v``.

    Args:
        settings: Momentum and weight decay w.
        like: (K, P), whose shape, dtype and device the momentum has.
    """

    steps: Tensor | None = None

    def __init__(self, settings: SGD, like: Tensor) -> None:
        self.settings = settings
        self.moments: Mapping[str, Tensor] = {"momentum_buffer": torch.zeros_like(like)} if settings.momentum else {}
        self._like = like

    def plan(self, rates: Tensor) -> None:
        """Tells the learning rates of all steps, (S, K), 0 where a hospital is done."""
        self._rates = rates.unsqueeze(-1).to(self._like)

    def step(self, number: int, values: Tensor, gradients: Tensor) -> None:
        """Moves values (k, P), those of the first k hospitals, in place; ``number`` counts from 0."""
        k, momentum = len(values), self.settings.momentum
        way = gradients + self.settings.weight_decay * values if self.settings.weight_decay else gradients
        if momentum:
            way = self.moments["momentum_buffer"][:k].mul_(momentum).add_(way)
        values.sub_(self._rates[number, :k] * way)
