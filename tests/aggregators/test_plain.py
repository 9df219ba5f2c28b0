"""Plain training: one phase over what is announced."""

from __future__ import annotations

from dataclasses import replace

from pairs import one_pair, state, tensor

from wardround.aggregators import FedAvg
from wardround.aggregators.contract import Fit, Phase
from wardround.aggregators.plain import PlainTraining

DOWNLOAD = FedAvg().broadcast(state(one_pair()), one_pair().hospitals[0])


def test_one_phase_from_the_download() -> None:
    assert PlainTraining().phases(DOWNLOAD, {}) == [Phase(train=("A", "B", "w"))]
    assert PlainTraining().phases(replace(DOWNLOAD, train=("B",)), {}) == [Phase(train=("B",))]


def test_sends_what_was_announced_and_remembers_nothing() -> None:
    fit = Fit(tensors={**DOWNLOAD.start, "w": tensor(3.0)}, learning_rates=(0.1,))
    result = PlainTraining().finish(replace(DOWNLOAD, returns={"w": (1,)}), [fit], {})
    assert dict(result.tensors) == {"w": tensor(3.0)}
    assert (result.memory, result.extra) == ({}, {})
