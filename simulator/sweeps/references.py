"""Runs without a federation that the runs of a sweep are compared with.

They depend on method, data, training and seed, and not on what the server does: variants that differ in the aggregator,
the weights or the stages share them.

Source: FLAP-SAM (arXiv 2407.21739) for local-only training and the collaborative gain over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ...aggregators.fedavg import FedAvg
from ...aggregators.local import Local
from ...clients.training import Training
from ...datasets.augment import Augment
from ..config import Experiment
from ..recording import Instruments
from ..sampling import Cohort
from ..stages import Stages
from ..weights import Examples


def local(experiment: Experiment) -> Experiment:
    """Every hospital alone, with the steps it would have taken in the federation."""
    return replace(_plain(experiment), aggregator=Local(), pooled=False)


def local_everywhere(experiment: Experiment) -> Experiment:
    """The same; every hospital's model is also scored at all the others."""
    alone = local(experiment)
    return replace(alone, evaluation=replace(alone.evaluation, cross_site=True))


def pooled(experiment: Experiment) -> Experiment:
    """One model on the cases of all hospitals, with as many steps as they take together."""
    plain = _plain(experiment)
    evaluation = replace(plain.evaluation, cross_site=False)
    return replace(plain, aggregator=FedAvg(), pooled=True, ranks={}, evaluation=evaluation)


def zero_shot(experiment: Experiment) -> Experiment:
    """The base before any training. What only training looks at has its default."""
    return replace(
        _one_model(experiment),
        aggregator=FedAvg(),
        rounds=0,
        ranks={},
        cohort=Cohort(),
        pooled=False,
        augment=Augment(),
        training=Training(precision=experiment.training.precision),
    )


ROLES: Mapping[str, Callable[[Experiment], Experiment]] = {
    "local": local,
    "pooled": pooled,
    "zero_shot": zero_shot,
}
"""The references that are runs of their own, and how each is made of a variant's experiment."""


def _one_model(experiment: Experiment) -> Experiment:
    """The same, where all sites have the same model."""
    plain = _plain(experiment)
    return replace(plain, evaluation=replace(plain.evaluation, cross_site=False))


def _plain(experiment: Experiment) -> Experiment:
    """Without what only a server has."""
    return replace(experiment, weights=Examples(), stages=Stages(), instruments=Instruments())
