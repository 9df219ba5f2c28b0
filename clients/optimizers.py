"""How a hospital's tensors move: optimizer, learning-rate schedule, gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) with the settings of FLAP-SAM's released code.

    Args:
        lr: Learning rate at the end of the warm-up, > 0.
        weight_decay: Decoupled weight decay, >= 0.
        betas: Decay rates of the two moments, each in [0, 1).
        eps: Added to the denominator.
    """

    lr: float = 8e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        problems = [*_not_positive(lr=self.lr, eps=self.eps), *_negative(weight_decay=self.weight_decay)]
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas: expected two numbers in [0, 1), got {self.betas!r}")
        _raise(problems)

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """A fresh torch optimizer over the parameters; fused on CUDA."""
        parameters = list(parameters)
        fused = bool(parameters) and parameters[0].is_cuda
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum: ``v <- momentum v + g; theta <- theta - lr v``.

    Args:
        lr: Learning rate at the end of the warm-up, > 0.
        momentum: In [0, 1).
        weight_decay: L2 penalty added to the gradient, >= 0.
    """

    lr: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        problems = [*_not_positive(lr=self.lr), *_negative(weight_decay=self.weight_decay)]
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum: expected a number in [0, 1), got {self.momentum!r}")
        _raise(problems)

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """A fresh torch optimizer over the parameters."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


OPTIMIZERS: dict[str, type] = {"adamw": AdamW, "sgd": SGD}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then polynomial decay, over the hospital's own steps of all rounds.

    ``lr(t) = lr0 (t + 1) / warmup`` for t < warmup, then ``lr0 (1 - (t - warmup) / T)^power`` with
    ``T = horizon_epochs * steps per epoch``, or ``T = horizon_steps`` (0 beyond the horizon).

    Args:
        warmup_steps: Steps of linear warm-up, >= 0.
        horizon_epochs: Epochs after which the learning rate reaches zero; None: constant after the warm-up.
        horizon_steps: The same in steps of the hospital, where it trains a number of steps per round; not both.
        power: Exponent of the decay.

    Source: FLAP-SAM's released code (warm-up 250, power 7, horizon 200 epochs).
    """

    warmup_steps: int = 250
    horizon_epochs: float | None = 200.0
    horizon_steps: int | None = None
    power: float = 7.0

    def __post_init__(self) -> None:
        both = {"horizon_epochs": self.horizon_epochs, "horizon_steps": self.horizon_steps}
        given = {name: value for name, value in both.items() if value is not None}
        problems = [*_negative(warmup_steps=self.warmup_steps, power=self.power), *_not_positive(**given)]
        if len(given) > 1:
            problems.append(f"horizon_steps: expected null or horizon_epochs: null, got both {given!r}")
        _raise(problems)

    def lr(self, lr0: float, step: int, steps_per_epoch: int) -> float:
        """The learning rate of the hospital's step number ``step`` (from 0)."""
        if step < self.warmup_steps:
            return lr0 * (step + 1) / self.warmup_steps
        horizon = self._horizon(steps_per_epoch)
        if horizon is None:
            return lr0
        progress = (step - self.warmup_steps) / horizon
        return float(lr0 * max(0.0, 1.0 - progress) ** self.power)

    def _horizon(self, steps_per_epoch: int) -> float | None:
        """T in steps, None for a constant learning rate."""
        if self.horizon_epochs is not None:
            return self.horizon_epochs * steps_per_epoch
        return self.horizon_steps


def _not_positive(**values: float) -> list[str]:
    return [f"{name}: expected a number above 0, got {value!r}" for name, value in values.items() if not value > 0]


def _negative(**values: float) -> list[str]:
    return [f"{name}: expected at least 0, got {value!r}" for name, value in values.items() if not value >= 0]


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))
