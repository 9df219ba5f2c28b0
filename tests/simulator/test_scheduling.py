"""A schedule on the real engine: what a run books, resumes, sums, records and says beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rounds import advance

from wardround.aggregators import FedAvg, FlapSam, GeometricMedian
from wardround.aggregators.contract import HospitalInfo, Layout
from wardround.aggregators.instruments import measure
from wardround.aggregators.scheduled import Draw, Scheduled
from wardround.clients.methods import Decoder
from wardround.clients.optimizers import SGD, Schedule
from wardround.clients.training import Training
from wardround.simulator.assembly import assemble, locate
from wardround.simulator.checkpoint import Checkpoint, Checkpoints, state_hash
from wardround.simulator.common_numbers import common_numbers
from wardround.simulator.compression import TopK
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.federation import Federated, Round
from wardround.simulator.privacy import Privacy
from wardround.simulator.randomness import streams
from wardround.simulator.recording import Instruments, instrument_rows, read_setting, record_updates
from wardround.simulator.replay import replay
from wardround.simulator.sampling import Cohort, draw, drop
from wardround.simulator.scheduling import draw_of, with_schedule
from wardround.simulator.secure_sum import SecureSum
from wardround.simulator.stages import Stages, check_stages
from wardround.simulator.sweeps.traffic import first_round
from wardround.simulator.weights import check_rule

Make = Callable[..., tuple[Federated, Checkpoint]]

TRAINING = Training(batch_size=2, steps=1, optimizer=SGD(lr=0.05), schedule=Schedule(warmup_steps=0))
GROUPS = 3


@dataclass(frozen=True, kw_only=True)
class DrawnDecoder(Decoder):
    """The mask decoder; all of it but the head in three groups of tensors, of different sizes."""

    draw: Draw = "shared"
    models: ClassVar[tuple[str, ...]] = ("sam",)

    def attach(self, model: Any) -> Layout:
        layout = super().attach(model)
        names = [name for name in layout.names if layout.part[name] != "head"]
        return replace(layout, groups=tuple(tuple(names[k::GROUPS]) for k in range(GROUPS)))


def scheduled(draw: Draw = "shared", inner: Any = None) -> Scheduled:
    return Scheduled(aggregator=inner or FedAvg(), draw=draw, rng=streams(0, "schedule"))


@pytest.fixture
def drawn(make_federated: Make) -> Make:
    """Three hospitals of one volume each that draw parts of the decoder."""

    def make(aggregator: Scheduled, stages: Stages | None = None, **settings: Any) -> tuple[Federated, Checkpoint]:
        settings = {"volumes": (1, 1, 1), "training": TRAINING, "method": DrawnDecoder(), **settings}
        federated, before = make_federated(aggregator, **settings)
        return replace(federated, stages=stages or Stages()), before

    return make


def all_rounds(federated: Federated, before: Checkpoint, number: int) -> list[Round]:
    done = [advance(federated, before)]
    while len(done) < number:
        done.append(advance(federated, done[-1].checkpoint))
    return done


def expected_ledger(
    federated: Federated, layout: Layout, size: Mapping[str, int], rounds: int
) -> list[tuple[Any, ...]]:
    """Round, hospital, bytes down and up, from lists of who has seen what: no number of a round is compared."""
    lists: dict[str, set[int]] = {name: set() for name in federated.hospitals}  # groups that a hospital lacks
    head = sum(size[name] for name in layout.names if layout.part[name] == "head")
    of_group = [sum(size[name] for name in group) for group in layout.groups]
    assert isinstance(federated.aggregator, Scheduled)
    rows = []
    for t in range(1, rounds + 1):
        cohort = draw(federated.cohort, list(federated.hospitals), federated.rng("cohort", t))
        failed = drop(federated.cohort, cohort, federated.rng("drop", t))
        trained = {name: federated.aggregator.drawn(layout, t, name) for name in cohort if name not in failed}
        for name in cohort:
            down = head + sum(of_group[group] for group in lists[name])
            rows.append((t, name, down, head + of_group[trained[name]] if name in trained else 0))
        for name in trained:
            lists[name] = set()
        for lacking in lists.values():
            lacking.update(trained.values())
    return rows


SAMPLED = Cohort(sampling="fixed", size=2, drop_rate=0.3)


@pytest.mark.parametrize("who", ["shared", "per_client"])
def test_the_ledger_books_the_announced_tensors(drawn: Make, who: Draw) -> None:
    """Two of three hospitals in a round, of which some fail, for ten rounds; in between they catch up."""
    federated, before = drawn(scheduled(who), cohort=SAMPLED)
    layout, size = before.server.setting.layout, {name: v.nbytes for name, v in before.server.tensors.items()}
    rows = [row for one in all_rounds(federated, before, 10) for row in one.rows["ledger"]]
    expected = expected_ledger(federated, layout, size, 10)
    assert [(row["round"], row["hospital"], row["bytes_down"], row["bytes_up"]) for row in rows] == expected
    assert {row["status"] for row in rows} == {"ok", "dropped"}
    assert len({down for _, _, down, _ in expected}) > 3, "several groups at once were caught up on"


@pytest.mark.parametrize("who", ["shared", "per_client"])
def test_a_run_killed_after_any_round_goes_on_bit_for_bit(drawn: Make, tmp_path: Path, who: Draw) -> None:
    federated, before = drawn(scheduled(who), cohort=SAMPLED, training=replace(TRAINING, moments="keep"))
    straight, checkpoints = all_rounds(federated, before, 5), Checkpoints(tmp_path)
    for number, one in enumerate(straight[:-1], start=1):
        checkpoints.save(one.checkpoint, one.changed)
        loaded = checkpoints.load(number, before.server.setting)
        again = advance(federated, loaded)
        assert state_hash(again.checkpoint) == state_hash(straight[number].checkpoint)
        assert again.rows["ledger"] == straight[number].rows["ledger"]


def test_another_hospital_shifts_nobodys_draw(drawn: Make) -> None:
    both = [drawn(scheduled("per_client"), volumes=volumes) for volumes in ((1, 1), (1, 1, 1))]
    sent = [{name: set(download.returns) for name, download in advance(*one).step.downloads.items()} for one in both]
    assert sent[0].items() <= sent[1].items()


def test_compression_keeps_what_it_left_out_of_a_resting_group(drawn: Make) -> None:
    """With a tenth sent and the rest kept, the memory grows by a group when it is first drawn, and none is lost."""
    stages = Stages(compression=TopK(fraction=0.1))
    federated, before = drawn(scheduled("per_client"), stages)
    kept = [set(one.checkpoint.memories["hospital-0"].feedback) for one in all_rounds(federated, before, 4)]
    assert all(earlier <= later for earlier, later in pairwise(kept))
    assert len(kept[0]) < len(kept[-1])


# ---- sums, noise, robust weights -------------------------------------------------------------------------------------

SECURE = SecureSum(clip=1.0, bits=24, word_bits=32)
BOUNDED = Privacy(noise_multiplier=0.0, clip_norm=math.inf, delta=1e-3)


@pytest.mark.parametrize("stages", [Stages(secure_sum=SECURE), Stages(privacy=BOUNDED)])
def test_shared_draws_are_summed(drawn: Make, stages: Stages) -> None:
    """The model is that of plain FedAvg up to the grid of the sum, and so is who is sent what."""
    settings: dict[str, Any] = {"uniform": True}
    plain = all_rounds(*drawn(scheduled(), **settings), 3)
    summed = all_rounds(*drawn(scheduled(), stages, **settings), 3)
    for left, right in zip(plain, summed, strict=True):
        for name, value in left.checkpoint.server.tensors.items():
            torch.testing.assert_close(right.checkpoint.server.tensors[name], value, rtol=0, atol=1e-6)
        memories = [one.checkpoint.server.memory for one in (left, right)]
        assert all(torch.equal(memories[0][name], memories[1][name]) for name in memories[0])


def test_an_empty_round_under_noise_is_a_round(drawn: Make) -> None:
    """Nobody was drawn: noise on the drawn group all the same, and nobody has seen anything."""
    noisy = Stages(privacy=Privacy(noise_multiplier=1.0, clip_norm=1e-3, delta=1e-3, accountant="rdp"))
    federated, before = drawn(scheduled(), noisy, uniform=True, cohort=Cohort(sampling="poisson", rate=1e-9))
    after = advance(federated, before).checkpoint.server
    assert after.memory["schedule/has"].tolist() == [0, 0, 0]
    assert sorted(after.memory["schedule/changed"].tolist()) == [0, 0, 1]


@pytest.mark.parametrize("stages", [Stages(secure_sum=SECURE), Stages(privacy=BOUNDED)])
def test_own_draws_have_no_sum(drawn: Make, stages: Stages) -> None:
    federated, before = drawn(scheduled("per_client"), stages, uniform=True)
    with pytest.raises(ValueError, match=r"stages\.\w+: expected the same tensors from every hospital.*'draw: shared'"):
        check_stages(federated, before.server)


def test_an_aggregator_without_a_sum_is_called_by_its_name(drawn: Make) -> None:
    federated, before = drawn(scheduled(inner=FlapSam()), Stages(secure_sum=SECURE))
    with pytest.raises(ValueError, match="and FlapSam needs the update of every hospital"):
        check_stages(federated, before.server)


def test_robust_weights_go_with_shared_draws_only(drawn: Make) -> None:
    federated, before = drawn(scheduled())
    rule = GeometricMedian()
    check_rule(rule, federated.aggregator, before.server.setting)
    advance(replace(federated, rule=rule), before)
    with pytest.raises(ValueError, match=r"weights 'robust'.*drew different groups"):
        check_rule(rule, scheduled("per_client"), before.server.setting)


# ---- what is kept and told -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["shared", "per_client"])
def test_recorded_updates_are_replayed_with_their_schedule(drawn: Make, tmp_path: Path, who: Draw) -> None:
    """FedAvg repeats its own steps; FLAP-SAM, without pairs, takes the same."""
    federated, before = drawn(scheduled(who))
    rounds = all_rounds(federated, before, 3)
    for number, one in enumerate(rounds, start=1):
        record_updates(tmp_path / "updates", one.step, number)
    (tmp_path / "config.yaml").write_text(f"seed: 0\nmethod: {{draw: {who}}}\n")
    assert read_setting(tmp_path / "updates").layout == before.server.setting.layout
    steps = replay(tmp_path, {"fedavg": FedAvg(), "flap_sam": FlapSam()})
    for step in steps:
        one = rounds[step.round - 1]
        own = measure(
            federated.aggregator, one.step.before, one.step.downloads, one.step.updates, one.checkpoint.server
        )
        assert step.layers == own
    assert [step.round for step in steps] == [1, 2, 3] * 2
    rows = instrument_rows(Instruments(), federated.aggregator, rounds[0].step, rounds[0].checkpoint.server, 1)[
        "instruments"
    ]
    drawn_layers = {row["name"] for row in rows if "group" in row["name"]}
    assert (len(drawn_layers) == 1) == (who == "shared")


def test_draws_are_hashed_where_there_are_any(drawn: Make, make_federated: Make) -> None:
    plain, _ = make_federated(FedAvg(), volumes=(1, 1))
    assert "schedule" not in common_numbers(plain, 3)
    told = {
        (seed, who): common_numbers(replace(drawn(scheduled(who))[0], aggregator=replace(scheduled(who), rng=rng)), 3)
        for seed, rng in ((0, streams(0, "schedule")), (1, streams(1, "schedule")))
        for who in ("shared", "per_client")
    }
    found = {key: numbers["schedule"][""] for key, numbers in told.items()}
    assert len({one["drawn"][0] for one in found.values()}) == 4
    assert found[0, "shared"]["of"] == found[1, "shared"]["of"] != found[0, "per_client"]["of"]


def drawn_experiment(who: Draw, *settings: str, rounds: int = 4) -> Experiment:
    more = ["training.steps=1", "training.batch_size=2", "data.hospitals=3", f"rounds={rounds}", "aggregator=fedavg"]
    experiment = load_experiment("tiny", open_file(PACKAGED), [*more, *settings])
    return replace(experiment, method=DrawnDecoder(draw=who))


@pytest.mark.parametrize(
    ("who", "settings"),
    [
        ("shared", []),
        ("per_client", ["cohort.sampling=fixed", "cohort.size=2", "cohort.drop_rate=0.3"]),
        ("per_client", ["stages.compression=fp16"]),
    ],
)
def test_traffic_beforehand_is_the_mean_round_of_the_ledger(who: Draw, settings: list[str]) -> None:
    experiment = drawn_experiment(who, *settings)
    located = locate(experiment, None)
    made = assemble(experiment, located, torch.device("cpu"))
    assert isinstance(made.federated.aggregator, Scheduled)
    rows = [row for one in all_rounds(made.federated, made.initial, 4) for row in one.rows["ledger"]]
    infos = [HospitalInfo(name=name, num_examples=12) for name in sorted(located.federation.hospitals)]
    found = first_round(experiment, 2, infos)
    sent = [row["bytes_up"] for row in rows if row["status"] == "ok"]
    assert found.bytes_up == pytest.approx(sum(sent) / len(sent))
    assert found.bytes_down == pytest.approx(sum(row["bytes_down"] for row in rows) / len(rows))
    assert len({row["bytes_up"] for row in rows}) > 1, "groups of different sizes were drawn"


def test_a_method_without_groups_has_no_schedule(drawn: Make) -> None:
    layout = drawn(scheduled())[1].server.setting.layout
    assert with_schedule(FedAvg(), replace(layout, groups=()), draw_of(Decoder()), 0) == FedAvg()
    assert with_schedule(FedAvg(), layout, draw_of(DrawnDecoder(draw="per_client")), 0) == scheduled("per_client")
