"""Optimizers on a flat buffer: every row moves as torch.optim moves the tensors it is made of."""

import pytest
import torch
from torch import Tensor

from wardround.clients.flat_optimizers import flat_optimizer
from wardround.clients.optimizers import SGD, AdamW
from wardround.simulator.randomness import generator

SIZES = (3, 4)
RATES = [[0.1, 0.05, 0.2, 0.01], [0.3, 0.2], [0.02]]
"""Learning rates of three hospitals, most steps first."""
SETTINGS = {
    "adamw": AdamW(betas=(0.8, 0.9), eps=1e-3),
    "adamw_plain": AdamW(weight_decay=0.0),
    "sgd": SGD(momentum=0.9, weight_decay=0.1),
    "sgd_plain": SGD(momentum=0.0),
}


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(0, "test", key))


def alone(settings: AdamW | SGD, row: int, kept: dict[int, dict[str, Tensor]]) -> tuple[Tensor, list[dict]]:
    """What torch makes of the two tensors of a hospital; ``kept``: what the optimizer knew of each before."""
    tensors = list(normal(3, sum(SIZES), key="values")[row].split(SIZES))
    optimizer = settings.build(tensors)
    for number, state in kept.items():
        optimizer.state[tensors[number]].update({key: value.clone() for key, value in state.items()})
    for step, rate in enumerate(RATES[row]):
        for tensor, gradient in zip(tensors, normal(3, sum(SIZES), key=f"g{step}")[row].split(SIZES), strict=True):
            tensor.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return torch.cat([tensor.detach() for tensor in tensors]), [dict(optimizer.state[t]) for t in tensors]


def together(settings: AdamW | SGD, kept: dict[int, dict[str, Tensor]]) -> tuple[Tensor, object]:
    values = normal(3, sum(SIZES), key="values")
    optimizer = flat_optimizer(settings, values, SIZES)
    for number, state in kept.items():
        span = slice(sum(SIZES[:number]), sum(SIZES[: number + 1]))
        for key, buffer in optimizer.moments.items():
            buffer[:, span] = state[key]
        if optimizer.steps is not None:
            optimizer.steps[:, number] = state["step"]
    longest = len(RATES[0])
    padded = [[*rates, *[0.0] * (longest - len(rates))] for rates in RATES]
    optimizer.plan(torch.tensor(padded, dtype=torch.float64).mT)
    for step in range(longest):
        k = sum(len(rates) > step for rates in RATES)
        optimizer.step(step, values[:k], normal(3, sum(SIZES), key=f"g{step}")[:k])
    return values, optimizer


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("tensors_with_moments", [(), (0, 1), (1,)])
def test_every_row_is_the_optimizer_of_torch(name: str, tensors_with_moments: tuple[int, ...]) -> None:
    """Fresh, with kept moments, and with those of one tensor only, which has then taken more steps than the other."""
    settings = SETTINGS[name]
    kept = {
        number: {
            "step": torch.tensor(5.0),
            "exp_avg": normal(SIZES[number], key=f"m{number}"),
            "exp_avg_sq": normal(SIZES[number], key=f"v{number}").square(),
        }
        if name.startswith("adamw")
        else {"momentum_buffer": normal(SIZES[number], key=f"m{number}")}
        for number in (tensors_with_moments if name != "sgd_plain" else ())
    }
    values, optimizer = together(settings, kept)
    for row in range(3):
        expected, states = alone(settings, row, kept)
        torch.testing.assert_close(values[row], expected, rtol=1e-12, atol=1e-12)
        for key, buffer in optimizer.moments.items():
            moments = torch.cat([state[key] for state in states])
            torch.testing.assert_close(buffer[row], moments, rtol=1e-12, atol=1e-12)


def test_the_first_step_of_adamw_by_hand() -> None:
    """m/(1-b1) = g and v/(1-b2) = g^2, so that the step is lr: 1 -> (1 - 0.1 * 0.5) * 1 - 0.1; 0.2 for the other."""
    values = torch.ones(2, 1, dtype=torch.float64)
    optimizer = flat_optimizer(AdamW(weight_decay=0.5, eps=1e-300), values, (1,))
    optimizer.plan(torch.tensor([[0.1, 0.2]], dtype=torch.float64))
    optimizer.step(0, values, torch.tensor([[2.0], [-3.0]], dtype=torch.float64))
    torch.testing.assert_close(values, torch.tensor([[0.85], [1.1]], dtype=torch.float64), rtol=1e-12, atol=0)


def test_two_steps_of_momentum_by_hand() -> None:
    """V = 1, then 0.5 + 1: from 0 to -(0.1 * 1 + 0.2 * 1.5) = -0.4; the second row is done after one step."""
    values = torch.zeros(2, 1, dtype=torch.float64)
    optimizer = flat_optimizer(SGD(momentum=0.5), values, (1,))
    optimizer.plan(torch.tensor([[0.1, 0.3], [0.2, 0.0]], dtype=torch.float64))
    optimizer.step(0, values, torch.ones(2, 1, dtype=torch.float64))
    optimizer.step(1, values[:1], torch.ones(1, 1, dtype=torch.float64))
    torch.testing.assert_close(values, torch.tensor([[-0.4], [-0.3]], dtype=torch.float64), rtol=1e-12, atol=0)
