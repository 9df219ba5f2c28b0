"""What references have of a variant, and what they leave out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from wardround.aggregators.fedavg import FedAvg
from wardround.aggregators.fedprox import FedProx
from wardround.aggregators.local import Local
from wardround.datasets.augment import NoAugment
from wardround.simulator.compression import Fp16
from wardround.simulator.config import Experiment, identity, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.recording import Instruments
from wardround.simulator.sampling import Cohort
from wardround.simulator.stages import Stages
from wardround.simulator.sweeps.references import local, local_everywhere, pooled, zero_shot
from wardround.simulator.weights import Uniform


@pytest.fixture
def tiny() -> Experiment:
    return load_experiment("tiny", open_file(PACKAGED))


def test_what_a_server_does_is_left_out_of_all(tiny: Experiment) -> None:
    other = replace(
        tiny,
        aggregator=FedProx(mu=0.1),
        weights=Uniform(),
        stages=Stages(compression=Fp16()),
        instruments=Instruments(every=0),
    )
    for make in (local, local_everywhere, pooled, zero_shot):
        assert identity(make(other)) == identity(make(tiny))


def test_who_takes_part_decides_how_long_they_train(tiny: Experiment) -> None:
    """Steps of the federation are those of its cohorts; without training there are none."""
    few = replace(tiny, cohort=Cohort(sampling="fixed", size=1))
    assert identity(local(few)) != identity(local(tiny))
    assert identity(pooled(few)) != identity(pooled(tiny))
    assert identity(zero_shot(few)) == identity(zero_shot(tiny))


@pytest.mark.parametrize("make", [local, pooled])
def test_training_is_that_of_the_variant(tiny: Experiment, make: Callable[[Experiment], Experiment]) -> None:
    made = make(tiny)
    assert (made.training, made.rounds, made.method, made.seed) == (tiny.training, tiny.rounds, tiny.method, tiny.seed)


def test_each_is_what_it_is_called(tiny: Experiment) -> None:
    assert isinstance(local(tiny).aggregator, Local)
    assert not local(tiny).evaluation.cross_site
    assert local_everywhere(tiny).evaluation.cross_site
    assert pooled(tiny).pooled
    assert isinstance(pooled(tiny).aggregator, FedAvg)
    assert zero_shot(tiny).rounds == 0


def test_references_of_a_pooled_variant_with_every_score_can_be_built(tiny: Experiment) -> None:
    everywhere = replace(tiny, ranks={"hospital-1": 1}, evaluation=replace(tiny.evaluation, cross_site=True))
    one = pooled(everywhere)
    assert (one.ranks, one.evaluation.cross_site) == ({}, False)
    assert not local(one).pooled
    assert not zero_shot(one).pooled
    assert identity(pooled(one)) == identity(one)


def test_zero_shot_does_not_look_at_training(tiny: Experiment) -> None:
    other = replace(tiny, rounds=7, augment=NoAugment(), training=replace(tiny.training, batch_size=1, steps=3))
    assert identity(zero_shot(other)) == identity(zero_shot(tiny))
    double = replace(tiny, training=replace(tiny.training, precision="fp64"))
    assert identity(zero_shot(double)) != identity(zero_shot(tiny))
