"""How much a run is, against what a run did and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wardround.aggregators.contract import Phase
from wardround.simulator.assembly import locate
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.sampling import Cohort
from wardround.simulator.sweeps import work as work_module
from wardround.simulator.sweeps.work import Slices, count_slices, steps_alone, work_of

ONCE = (Phase(train=()),)
SLICES = Slices(train={"a": 12, "b": 20}, validation=4, test=10, native=(5, 32, 32), voxels=10 * 32 * 32)


@pytest.fixture
def tiny() -> Experiment:
    """Two rounds, batches of 8, scored after the last round only."""
    return load_experiment("tiny", open_file(PACKAGED), ["evaluation={every: null, test: due}"])


def test_steps_and_slices_by_hand(tiny: Experiment) -> None:
    """12 and 20 windows in batches of 8 are 2 + 3 steps of an epoch; two rounds. One evaluation: 4 + 10 slices."""
    assert work_of(tiny, SLICES, ONCE) == work_module.Work(steps=10, slices=14)
    every = replace(tiny, evaluation=replace(tiny.evaluation, every=1))
    assert work_of(every, SLICES, ONCE).slices == 3 * 14  # before training, too
    last = replace(every, evaluation=replace(every.evaluation, test="last"))
    assert work_of(last, SLICES, ONCE).slices == 3 * 4 + 10
    assert work_of(last, SLICES, ONCE, tested=0.5).slices == 3 * 4 + 5
    across = replace(tiny, evaluation=replace(tiny.evaluation, cross_site=True))
    assert work_of(across, SLICES, ONCE).slices == 14 + 14  # of two hospitals, each on the other's, at most


def test_phases_cohorts_and_pooling_by_hand(tiny: Experiment) -> None:
    """A head of two epochs before the body; one of two takes 2 or 3 steps a round; pooled, as many as both."""
    assert work_of(tiny, SLICES, (Phase(train=(), epochs=2), *ONCE)).steps == 30
    assert work_of(tiny, SLICES, (Phase(train=(), measure=True),)).slices == 14 + 2 * 32
    one = work_of(replace(tiny, cohort=Cohort(sampling="fixed", size=1)), SLICES, ONCE).steps
    assert one in (4, 5, 6)
    assert work_of(replace(tiny, pooled=True, aggregator=_fedavg()), SLICES, ONCE).steps == 10
    assert work_of(replace(tiny, rounds=0), SLICES, ONCE) == work_module.Work(steps=0, slices=14)


def _fedavg() -> object:
    from wardround.aggregators.fedavg import FedAvg

    return FedAvg()


def test_slices_are_counted_in_the_files(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hospitals with two training volumes and one test volume of about six slices each, or of a grid of five."""
    located = locate(tiny, None)
    grid = replace(tiny, windows=replace(tiny.windows, grid=(5, 32, 32)))
    found = count_slices(grid, located)
    assert found is not None
    assert found.train == dict.fromkeys(sorted(located.federation.hospitals), 10)
    assert (found.validation, found.test) == (0, 15)
    native = count_slices(tiny, located)
    assert native is not None
    assert native.voxels == sum(
        tiny.data.volume(case).label.size for cases in located.federation.hospitals.values() for case in cases.test
    )
    monkeypatch.setattr(work_module, "READ_MB", 0)
    assert count_slices(tiny, located) == native  # they are known now


def test_volumes_that_are_many_are_not_read(
    tiny: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    located = locate(tiny, None)
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path))
    monkeypatch.setattr(work_module, "READ_MB", 0)
    assert count_slices(tiny, located) is None


def test_steps_that_do_not_depend_on_slices(tiny: Experiment) -> None:
    assert steps_alone(tiny, ["a", "b"], ONCE) is None
    fixed = replace(tiny, training=replace(tiny.training, steps=7))
    assert steps_alone(fixed, ["a", "b"], ONCE) == work_module.Work(steps=28, slices=0)
    assert steps_alone(fixed, ["a", "b"], (Phase(train=(), epochs=1),)) is None
