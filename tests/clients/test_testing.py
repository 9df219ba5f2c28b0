"""The suites for losses and methods pass what keeps the contract, and name what a broken one breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from wardround.aggregators import FedAvg
from wardround.aggregators.testing import check_aggregator
from wardround.clients import LOSSES
from wardround.clients.class_losses import CrossEntropy
from wardround.clients.methods import LinearProbe
from wardround.clients.testing import check_loss, check_method


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_keeps_the_contract(name: str) -> None:
    check_loss(LOSSES[name]())


@dataclass(frozen=True, kw_only=True)
class _Constant(CrossEntropy):
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.square().mean()


@dataclass(frozen=True, kw_only=True)
class _PerImage(CrossEntropy):
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.square().mean(1)


@dataclass(frozen=True, kw_only=True)
class _Restless(CrossEntropy):
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().__call__(logits + torch.rand(1), labels * 1) + torch.rand(())


@dataclass(frozen=True, kw_only=True)
class _Detached(CrossEntropy):
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().__call__(logits.detach(), labels)


@dataclass(frozen=True)
class _Positional(CrossEntropy):
    gain: float = 1.0


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (_Constant(), "other labels give the same number"),
        (_PerImage(), r"expected one number, got a tensor of shape \(4,\)"),
        (_Restless(), "the same logits and labels give another number"),
        (_Detached(), "no gradient reaches the logits"),
        (_Positional(), r"expected keyword-only fields, these are not: \['gain'\]"),
        (CrossEntropy, r"expected an object, such as CrossEntropy\(\), got the class"),
    ],
)
def test_a_broken_loss_is_told(loss: Any, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        check_loss(loss)


def test_a_class_in_the_place_of_an_object_is_told() -> None:
    kinds: tuple[Any, Any] = (LinearProbe, FedAvg)
    with pytest.raises(AssertionError, match=r"such as LinearProbe\(\), got the class"):
        check_method(kinds[0])
    with pytest.raises(AssertionError, match=r"such as FedAvg\(\), got the class"):
        check_aggregator(kinds[1])
