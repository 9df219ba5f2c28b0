"""The stages on the real engine, in float64: reductions, sensitivity, empty rounds, resuming, bytes, refusals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from rounds import advance
from torch import Tensor

from wardround.aggregators import AGGREGATORS, Krum
from wardround.aggregators.contract import ClientUpdate, Download
from wardround.aggregators.fedavg import FedAvg
from wardround.clients.hospital import Assignment, Memory, take_turn
from wardround.clients.optimizers import SGD, Schedule
from wardround.clients.training import Training
from wardround.simulator.assembly import assemble, locate
from wardround.simulator.attacks import Scaling, SignFlip
from wardround.simulator.builder import build, resolve
from wardround.simulator.checkpoint import Checkpoint, Checkpoints, state_hash
from wardround.simulator.compression import Compressed, Compression, Int8, TopK, with_feedback
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.federation import Federated, num_bytes
from wardround.simulator.privacy import AdaptiveClip, Privacy, bounded, joint_norm
from wardround.simulator.randomness import streams
from wardround.simulator.runtime import choose_device
from wardround.simulator.sampling import Cohort
from wardround.simulator.secure_sum import SecureSum
from wardround.simulator.stages import Arrived, Crossing, Stages, check_stages, cross, without_training

Make = Callable[..., tuple[Federated, Checkpoint]]

CLIPPING = Privacy(noise_multiplier=0.0, clip_norm=1e-4, delta=1e-3)
CLIPPING_RDP = replace(CLIPPING, accountant="rdp")
NOISY = Privacy(noise_multiplier=1.0, clip_norm=1e-4, delta=1e-3, accountant="rdp")
NO_LIMIT = replace(CLIPPING, clip_norm=math.inf)
NAMES = ("hospital-0", "hospital-1", "hospital-2")


@pytest.fixture
def staged(make_federated: Make) -> Make:
    """A federation of three small hospitals with stages."""

    def make(stages: Stages, aggregator: object = None, **settings: object) -> tuple[Federated, Checkpoint]:
        settings = {"uniform": stages.privacy is not None, "volumes": (1, 1, 1), **settings}
        federated, before = make_federated(aggregator or FedAvg(), **settings)
        return replace(federated, stages=stages), before

    return make


def distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    return joint_norm({name: left[name].double() - right[name].double() for name in left})


# ---- on a few numbers ------------------------------------------------------------------------------------------------


def crossed(
    stages: Stages,
    steps: Mapping[str, list[float]],
    *,
    cohort: Cohort | None = None,
    weights: Mapping[str, float] | None = None,
    dropped: tuple[str, ...] = (),
    number: int = 1,
    feedback: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Arrived:
    """Sends steps of one tensor of three numbers, from a start of (1, 2, 3), through the stages."""
    start = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    download = Download(start={"w": start}, train=("w",), returns={"w": (3,)})
    weights = weights or dict.fromkeys((*NAMES, "hospital-3"), 1.0)
    at = Crossing(
        number=number,
        stages=stages,
        cohort=cohort or Cohort(),
        weights=weights,
        downloads=dict.fromkeys((*steps, *dropped), download),
        common=download,
        memories={name: Memory(feedback=(feedback or {}).get(name, {})) for name in steps},
        state={},
        rng=lambda purpose, *keys: streams(0, purpose, *keys),
    )
    updates = [
        ClientUpdate(
            hospital=name,
            weight=weights[name],
            num_examples=1,
            num_steps=1,
            tensors={"w": start + torch.tensor(step, dtype=torch.float64)},
            bytes=24,
        )
        for name, step in sorted(steps.items())
    ]
    return cross(at, updates)


def test_clip_and_mean_by_hand() -> None:
    """S = 2: (0, 3, 4) is 5 long and becomes (0, 1.2, 1.6); (1, 0, 0) stays. m is 4, though only two came."""
    stages = Stages(privacy=replace(CLIPPING, clip_norm=2.0))
    arrived = crossed(stages, {"hospital-0": [0, 3, 4], "hospital-1": [1, 0, 0]})
    (mean,) = arrived.updates
    assert mean.tensors["w"].tolist() == pytest.approx([1 + 0.25, 2 + 0.3, 3 + 0.4])
    assert (mean.weight, mean.num_examples, mean.num_steps) == (4, 0, 0)
    assert arrived.metrics["privacy/clipped"] == 0.5
    assert arrived.metrics["privacy/clip_norm"] == 2
    assert "privacy/epsilon" not in arrived.metrics  # there is none without noise


@pytest.mark.parametrize(
    ("cohort", "m"),
    [(Cohort(), 4), (Cohort(sampling="fixed", size=2), 2), (Cohort(sampling="poisson", rate=0.75), 3)],
)
def test_the_denominator_does_not_tell_who_came(cohort: Cohort, m: int) -> None:
    arrived = crossed(Stages(privacy=NO_LIMIT), {"hospital-0": [12, 0, 0]}, cohort=cohort, dropped=("hospital-1",))
    assert arrived.updates[0].tensors["w"].tolist() == pytest.approx([1 + 12 / m, 2, 3])


@pytest.mark.parametrize(
    "stages",
    [
        Stages(privacy=CLIPPING),
        Stages(privacy=CLIPPING, secure_sum=SecureSum(bits=6, clip=1e-4)),
        Stages(privacy=CLIPPING, compression=Int8()),
        Stages(privacy=CLIPPING, attack=Scaling(hospitals=("hospital-0",), factor=1e6)),
    ],
    ids=["clip", "secure sum", "compression", "attack"],
)
def test_a_hospital_moves_the_mean_by_no_more_than_the_sensitivity(stages: Stages) -> None:
    """S / m, whatever it sends, however it is compressed or quantised, for every hospital."""
    for seed in range(20):
        drawn = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).tolist()
        steps = dict(zip(NAMES, drawn, strict=True))
        whole = crossed(stages, steps).updates[0].tensors
        for name in NAMES:
            others = {other: step for other, step in steps.items() if other != name}
            without = crossed(stages, others, dropped=(name,)).updates[0].tensors
            assert distance(whole, without) <= CLIPPING.clip_norm / 4 * (1 + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Doubled:
    """A compression that sends twice the step: an error no real one makes on purpose."""

    error_feedback: bool = False

    def compress(self, step, rng):
        return Compressed(tensors={name: 2 * value for name, value in step.items()}, bytes=1)


def test_what_compression_made_longer_is_clipped_again() -> None:
    stages = Stages(privacy=replace(CLIPPING, clip_norm=1.0), compression=Doubled())
    mean = crossed(stages, {"hospital-0": [0, 0.6, 0.8]}).updates[0]
    assert mean.tensors["w"].tolist() == pytest.approx([1, 2 + 0.6 / 4, 3 + 0.8 / 4])
    alone = crossed(Stages(compression=Doubled()), {"hospital-0": [0, 0.6, 0.8]}).updates[0]
    assert alone.tensors["w"].tolist() == pytest.approx([1, 2 + 1.2, 3 + 1.6])


@pytest.mark.parametrize(("clip_norm", "again"), [(1.0, True), (100.0, False)])
@pytest.mark.parametrize("compression", [TopK(fraction=0.3), Doubled(error_feedback=True)])
def test_what_the_second_clip_takes_away_waits_too(compression: Compression, clip_norm: float, again: bool) -> None:
    """``sum_t clip(c_t) + e_T = sum_t clip(step_t)`` over 12 rounds; top-k sends one number of three."""
    stages = Stages(privacy=replace(CLIPPING, clip_norm=clip_norm), compression=compression)
    given, arrived, lengths, feedback = torch.zeros(3).double(), torch.zeros(3).double(), [], {}
    for number in range(12):
        step = torch.tensor([1.0, 0.9, 0.8 + 0.1 * number]).double()
        given += bounded({"w": step}, clip_norm)["w"]
        outcome = crossed(stages, {"hospital-0": step.tolist()}, feedback=feedback)
        sent = 4 * (outcome.updates[0].tensors["w"] - torch.tensor([1.0, 2.0, 3.0]))  # the mean has m = 4
        lengths.append(sent.norm().item())
        arrived, feedback = arrived + sent, outcome.feedback
    assert max(lengths) <= clip_norm * (1 + 1e-12)
    assert (lengths[-1] > clip_norm * (1 - 1e-12)) == again
    torch.testing.assert_close(arrived + feedback["hospital-0"]["w"], given, rtol=0, atol=1e-12)


def test_the_attack_comes_before_the_clip() -> None:
    stages = Stages(attack=SignFlip(hospitals=("hospital-0",), strength=10.0), privacy=replace(CLIPPING, clip_norm=2.0))
    mean = crossed(stages, {"hospital-0": [4, 0, 0], "hospital-1": [0, 1, 0]}).updates[0]
    assert mean.tensors["w"].tolist() == pytest.approx([1 - 2 / 4, 2 + 1 / 4, 3])


def test_an_honest_hospital_passes_an_attack_bit_for_bit() -> None:
    arrived = crossed(
        Stages(attack=SignFlip(hospitals=("hospital-0",))), {"hospital-0": [1, 0, 0], "hospital-1": [0.1, 0.2, 0.3]}
    )
    attacker, honest = arrived.updates
    assert attacker.tensors["w"].tolist() == [0, 2, 3]
    assert honest.tensors["w"].tolist() == [1 + 0.1, 2 + 0.2, 3 + 0.3]
    assert arrived.bytes_up == {"hospital-0": 24, "hospital-1": 24}


def test_a_secure_sum_of_weighted_hospitals_by_hand() -> None:
    """Weights 1 and 3, shares 1/3 and 1; on the grid: (99, 0, 0) / 3 + (0, 100, 0) = (33, 100, 0), over 4/3.

    300 is cut to 127 before it is weighed: 42 1/3, up to one point of the grid.
    """
    weights = {"hospital-0": 1.0, "hospital-1": 3.0}
    stages = Stages(secure_sum=SecureSum(clip=127.0, bits=8, word_bits=16))
    arrived = crossed(stages, {"hospital-0": [99, 0, 0], "hospital-1": [0, 100, 0]}, weights=weights)
    assert arrived.updates[0].tensors["w"].tolist() == pytest.approx([1 + 99 / 4, 2 + 300 / 4, 3])
    assert arrived.updates[0].weight == 4
    assert arrived.metrics == {"secure_sum/cut": 0.0}
    cut = crossed(stages, {"hospital-0": [300, 0, 0], "hospital-1": [0, 2, -200]}, weights=weights)
    assert cut.metrics == {"secure_sum/cut": pytest.approx(2 / 6)}
    assert cut.updates[0].tensors["w"].tolist() == pytest.approx([1 + 127 / 4, 2 + 6 / 4, 3 - 3 * 127 / 4], abs=0.75)


@pytest.mark.parametrize("privacy", [None, NOISY])
def test_too_few_answers_fail_the_round(privacy: Privacy | None) -> None:
    stages = Stages(secure_sum=SecureSum(), privacy=privacy)
    message = (
        "1 of 3 hospitals answered, the masks are recovered from at least 2; lower .*threshold or cohort.drop_rate"
    )
    with pytest.raises(ValueError, match=message):
        crossed(stages, {"hospital-0": [1, 0, 0]}, dropped=("hospital-1", "hospital-2"))


@pytest.mark.parametrize("name", NAMES)
def test_a_hospital_that_never_answers_moves_the_count_by_a_half(name: str) -> None:
    """The clip norm moves by ``-rate (1/2 + count / m - quantile)`` in its logarithm, here -0.2 count / 4.

    Two of three are longer than S = 1, so that the count is -1/2; without a long one it is 0, without the short one -1.
    A long step against a step of zero is no neighbour: it moves the count by 1.
    """
    stages = Stages(privacy=replace(CLIPPING, clip_norm=1.0, adaptive=AdaptiveClip()))
    steps = {"hospital-0": [2, 0, 0], "hospital-1": [0, 0.5, 0], "hospital-2": [9, 9, 9]}

    def count(steps: Mapping[str, list[float]], dropped: tuple[str, ...] = ()) -> float:
        return math.log(crossed(stages, steps, dropped=dropped).state["clip_norm"].item()) * 4 / -0.2

    others = {other: step for other, step in steps.items() if other != name}
    assert count(steps) == pytest.approx(-0.5)
    assert abs(count(steps) - count(others, dropped=(name,))) == pytest.approx(0.5)
    zero = abs(count(steps) - count({**steps, name: [0, 0, 0]}))
    assert zero == pytest.approx(0.0 if name == "hospital-1" else 1.0)


@pytest.mark.parametrize("secure", [None, SecureSum()])
def test_noise_on_the_mean(secure: SecureSum | None) -> None:
    """Standard deviation z S / m = 2 * 0.5 / 4, from 900 draws, which know it to 2.4 %; another in every round."""
    stages = Stages(privacy=replace(NOISY, noise_multiplier=2.0, clip_norm=0.5), secure_sum=secure)
    quiet = replace(stages, privacy=replace(stages.privacy, noise_multiplier=0.0))
    steps = {"hospital-0": [0.1, 0, 0], "hospital-1": [0, 0.2, 0]}
    base = crossed(quiet, steps).updates[0].tensors["w"]
    noise = torch.stack([crossed(stages, steps, number=n).updates[0].tensors["w"] - base for n in range(1, 301)])
    assert noise.std().item() == pytest.approx(0.25, rel=0.1)
    assert abs(noise.mean().item()) < 4 * 0.25 / 30
    assert len(noise.unique()) == 900
    assert crossed(stages, steps).metrics["privacy/noise_std"] == 0.25


# ---- on the engine ---------------------------------------------------------------------------------------------------


def test_privacy_without_noise_and_limit_is_uniform_fedavg(staged: Make) -> None:
    volumes = (1, 2, 1)
    plain = advance(*staged(Stages(), uniform=True, volumes=volumes)).checkpoint.server
    private = advance(*staged(Stages(privacy=NO_LIMIT), volumes=volumes)).checkpoint.server
    assert distance(plain.tensors, private.tensors) < 1e-12


def test_a_secure_sum_is_fedavg_up_to_the_grid(staged: Make) -> None:
    """Weights 4, 8, 12: shares 1/3, 2/3 and 1, so that three errors below s are divided by 2."""
    secure = SecureSum(clip=1.0, bits=16)
    plain = advance(*staged(Stages(), volumes=(1, 2, 3))).checkpoint.server.tensors
    summed = advance(*staged(Stages(secure_sum=secure), volumes=(1, 2, 3))).checkpoint.server.tensors
    errors = torch.cat([(plain[name] - summed[name]).abs().flatten() for name in plain])
    assert 0 < errors.max().item() < 1.5 * secure.spacing


def test_the_mean_step_under_privacy_is_bounded(staged: Make) -> None:
    attack = Scaling(hospitals=("hospital-1",), factor=1e9)
    federated, before = staged(Stages(privacy=CLIPPING, attack=attack))
    outcome = advance(federated, before)
    moved = distance(outcome.checkpoint.server.tensors, before.server.tensors)
    assert 0.3 * CLIPPING.clip_norm < moved <= CLIPPING.clip_norm * (1 + 1e-9)


@pytest.mark.parametrize("secure", [None, SecureSum()])
def test_an_empty_poisson_round_is_noise_alone(staged: Make, secure: SecureSum | None) -> None:
    """Rate 1e-9: nobody is drawn, m = 3e-9, and the noise has standard deviation z S / m all the same."""
    cohort = Cohort(sampling="poisson", rate=1e-9)
    privacy = replace(NOISY, noise_multiplier=1.0, clip_norm=3e-9)
    federated, before = staged(Stages(privacy=privacy, secure_sum=secure), cohort=cohort)
    outcome = advance(federated, before)
    after = outcome.checkpoint.server
    assert after.round == 1
    moved = torch.cat([(after.tensors[name] - value).flatten() for name, value in before.server.tensors.items()])
    assert moved.std().item() == pytest.approx(1.0, rel=4 / math.sqrt(2 * len(moved)))
    assert outcome.rows["ledger"] == []
    assert {row["metric"] for row in outcome.rows["metrics"]} == {
        "privacy/clip_norm", "privacy/delta", "privacy/epsilon", "privacy/noise_std"
    }  # fmt: skip


def test_an_empty_round_of_a_secure_sum_changes_nothing(staged: Make) -> None:
    federated, before = staged(Stages(secure_sum=SecureSum()), cohort=Cohort(sampling="poisson", rate=1e-9))
    after = advance(federated, before).checkpoint.server
    assert after.round == 1
    assert distance(after.tensors, before.server.tensors) == 0


def test_epsilon_is_in_the_metrics_of_every_round(staged: Make) -> None:
    federated, checkpoint = staged(Stages(privacy=NOISY))
    found = []
    for _ in range(2):
        outcome = advance(federated, checkpoint)
        checkpoint = outcome.checkpoint
        found += [row["value"] for row in outcome.rows["metrics"] if row["metric"] == "privacy/epsilon"]
    from dp_accounting import GaussianDpEvent
    from dp_accounting.rdp import RdpAccountant

    expected = [RdpAccountant().compose(GaussianDpEvent(1.0), rounds).get_epsilon(1e-3) for rounds in (1, 2)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_ledger_counts_the_last_stage(staged: Make) -> None:
    parameters = sum(value.numel() for value in staged(Stages())[1].server.tensors.values())

    def up(stages: Stages, **settings: object) -> list[int]:
        return [row["bytes_up"] for row in advance(*staged(stages, **settings)).rows["ledger"]]

    secure = SecureSum(bits=12, word_bits=16)
    assert up(Stages(privacy=NOISY)) == [8 * parameters] * 3
    assert up(Stages(secure_sum=secure)) == [2 * parameters + 64 + 2 * 80 + 3 * 32] * 3
    assert up(Stages(secure_sum=secure, compression=TopK())) == up(Stages(secure_sum=secure))
    federated, before = staged(Stages(compression=Int8()))
    step = {name: torch.zeros_like(value) for name, value in before.server.tensors.items()}
    message = with_feedback(Int8(), step, {}, streams(0, "test"))[0].bytes
    assert parameters < message < 2 * parameters
    assert [row["bytes_up"] for row in advance(federated, before).rows["ledger"]] == [message] * 3


@pytest.mark.parametrize("stages", [Stages(), Stages(secure_sum=SecureSum(word_bits=48)), Stages(compression=Int8())])
def test_the_ledger_counts_reported_numbers(staged: Make, stages: Stages) -> None:
    """FedNova is FedAvg and one number of 8 bytes, whatever stage its tensors go through."""
    with_number, without = (
        [row["bytes_up"] for row in advance(*staged(stages, AGGREGATORS[name]())).rows["ledger"]]
        for name in ("fednova", "fedavg")
    )
    assert with_number == [8 + size for size in without]


def test_a_dropped_hospital_has_sent_its_keys_and_shares(staged: Make) -> None:
    cohort = Cohort(drop_rate=0.5)
    federated, before = staged(Stages(secure_sum=SecureSum(threshold=0.0)), volumes=(1, 1, 1, 1), cohort=cohort)
    rows = advance(federated, before).rows["ledger"]
    dropped = [row for row in rows if row["status"] == "dropped"]
    assert 0 < len(dropped) < 4
    assert {row["bytes_up"] for row in dropped} == {64 + 3 * 80}
    assert {row["bytes_down"] - num_bytes(before.server.tensors) for row in rows} == {3 * 144}


# ---- what is kept from round to round --------------------------------------------------------------------------------

KEEPING = Stages(
    attack=SignFlip(hospitals=("hospital-2",)),
    compression=TopK(fraction=0.2),
    secure_sum=SecureSum(),
    privacy=replace(NOISY, adaptive=AdaptiveClip(count_noise=1.0)),
)


@pytest.mark.parametrize("stages", [KEEPING, Stages(compression=TopK()), replace(KEEPING, compression=None)])
def test_a_resumed_run_is_bit_identical(staged: Make, tmp_path: Path, stages: Stages) -> None:
    cohort = Cohort(sampling="poisson", rate=0.9) if stages.privacy else None
    federated, before = staged(stages, cohort=cohort)
    halfway = advance(federated, before).checkpoint
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(halfway, changed=NAMES)
    loaded = checkpoints.load(1, before.server.setting)
    assert state_hash(loaded) == state_hash(halfway)
    uninterrupted, resumed = advance(federated, halfway), advance(federated, loaded)
    assert state_hash(resumed.checkpoint) == state_hash(uninterrupted.checkpoint)
    assert resumed.rows == uninterrupted.rows


@pytest.mark.parametrize("forgotten", ["feedback", "clip norm"])
def test_what_is_kept_matters(staged: Make, forgotten: str) -> None:
    """Without feedback or clip norm the next round is another, and the hash of the state tells."""
    federated, before = staged(KEEPING)
    checkpoint = advance(federated, before).checkpoint
    assert set(checkpoint.memories["hospital-0"].feedback) == set(before.server.tensors)
    assert set(checkpoint.stages) == {"clip_norm"}
    if forgotten == "feedback":
        memories = {name: replace(memory, feedback={}) for name, memory in checkpoint.memories.items()}
        without = replace(checkpoint, memories=memories)
    else:
        without = replace(checkpoint, stages={})
    assert state_hash(without) != state_hash(checkpoint)
    servers = [advance(federated, state).checkpoint.server for state in (checkpoint, without)]
    assert distance(servers[0].tensors, servers[1].tensors) > 0


def test_a_hospital_that_did_not_take_part_keeps_its_feedback(staged: Make) -> None:
    federated, checkpoint = staged(Stages(compression=TopK()), cohort=Cohort(sampling="fixed", size=1))
    for _ in range(3):
        outcome = advance(federated, checkpoint)
        for name in set(NAMES) - outcome.changed:
            assert outcome.checkpoint.memories[name] is checkpoint.memories[name]
        (name,) = outcome.changed
        assert outcome.checkpoint.memories[name].feedback
        checkpoint = outcome.checkpoint


# ---- what cannot work ------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize(
    "stages", [Stages(privacy=NOISY), Stages(secure_sum=SecureSum(clip=0.01, bits=28))], ids=["privacy", "secure sum"]
)
KEY = {True: "stages.privacy", False: "stages.secure_sum"}


@BOTH
@pytest.mark.parametrize("name", ["flap_sam", "scaffold", "qfedavg", "krum", "hetlora", "padded_fedavg"])
def test_algorithms_that_need_every_update_are_refused(staged: Make, stages: Stages, name: str) -> None:
    aggregator = AGGREGATORS[name]()
    volumes = (1,) * 5 if name == "krum" else (1, 1, 1)
    federated, before = staged(stages, aggregator, volumes=volumes)
    message = f"{KEY[stages.privacy is not None]}: .*{type(aggregator).__name__} needs the update of every hospital"
    with pytest.raises(ValueError, match=message):
        check_stages(federated, before.server)


@BOTH
@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedprox", "ffa_lora", "fedsvd", "rolora", "fedsa_lora"])
def test_algorithms_that_need_a_mean_pass(staged: Make, stages: Stages, name: str) -> None:
    federated, before = staged(stages, AGGREGATORS[name](), volumes=(1, 1))
    check_stages(federated, before.server)


@BOTH
def test_a_rule_that_sends_one_factor_sends_it_through(staged: Make, stages: Stages) -> None:
    """FFA-LoRA trains B: A stays bit for bit, also under noise."""
    federated, before = staged(stages, AGGREGATORS["ffa_lora"](), volumes=(1, 1))
    after = advance(federated, before).checkpoint.server
    for pair in after.setting.layout.pairs:
        assert torch.equal(after.tensors[pair.A], before.server.tensors[pair.A])
        assert not torch.equal(after.tensors[pair.B], before.server.tensors[pair.B])


@dataclass(frozen=True, kw_only=True)
class WithExtra(FedAvg):
    """Sends something beside trained tensors."""

    def broadcast(self, server, hospital):
        return replace(super().broadcast(server, hospital), returns_extra={"control": (1,)})


@dataclass(frozen=True, kw_only=True)
class OwnStarts(FedAvg):
    """Every hospital starts elsewhere."""

    def broadcast(self, server, hospital):
        moved = {name: value + float(hospital.name[-1]) for name, value in server.tensors.items()}
        return replace(super().broadcast(server, hospital), start=moved)


@dataclass(frozen=True, kw_only=True)
class OwnNames(FedAvg):
    """The first hospital sends all, the others one tensor less."""

    def broadcast(self, server, hospital):
        download = super().broadcast(server, hospital)
        returns = dict(list(download.returns.items())[hospital.name != "hospital-0" :])
        return replace(download, returns=returns)


@BOTH
@pytest.mark.parametrize(
    ("aggregator", "message"),
    [
        (WithExtra(), r"also send \['control'\]"),
        (OwnStarts(), "expected one start for all hospitals.*another at 'hospital-1'"),
        (OwnNames(), "expected the same tensors and shapes.*'hospital-1' sends others"),
        (AGGREGATORS["local"](), "hospital 'hospital-0' sends nothing"),
    ],
    ids=["extra", "starts", "names", "local"],
)
def test_what_has_no_common_mean_of_steps_is_refused(
    staged: Make, stages: Stages, aggregator: FedAvg, message: str
) -> None:
    federated, before = staged(stages, aggregator)
    with pytest.raises(ValueError, match=f"{KEY[stages.privacy is not None]}: .*{message}"):
        check_stages(federated, before.server)


@BOTH
def test_starts_are_compared_in_every_round(staged: Make, stages: Stages) -> None:
    federated, before = staged(stages, OwnStarts())
    with pytest.raises(ValueError, match=r"round 1: stages\..*: expected one start for all hospitals"):
        advance(federated, before)


def test_reports_of_a_rule_are_not_private(staged: Make) -> None:
    federated, before = staged(Stages(privacy=NOISY), AGGREGATORS["fednova"]())
    message = r"stages.privacy: hospital 'hospital-0' reports \['a_norm'\]"
    with pytest.raises(ValueError, match=f"^{message}"):
        check_stages(federated, before.server)
    with pytest.raises(ValueError, match=f"^round 1: {message}"):
        advance(federated, before)


@pytest.mark.parametrize("name", [name for name, row in AGGREGATORS.items() if row().consumes == "sum"])
def test_what_rules_report_and_remember_is_known_before_anybody_trains(staged: Make, name: str) -> None:
    """The names are those of a real turn."""
    federated, before = staged(Stages(), AGGREGATORS[name](), volumes=(1, 1))
    rule, info = federated.aggregator.rule, federated.hospitals["hospital-0"].info
    download = federated.aggregator.broadcast(before.server, info)
    untrained = without_training(rule, before.server, download)
    windows, rng = federated.hospitals["hospital-0"].train, federated.rng("local", 1)
    own = {"hospital": info, "download": download, "memory": Memory(), "windows": windows, "rng": rng, "lasting": rng}
    turn = take_turn(federated.workplace, rule, Assignment(**own))
    assert untrained.metrics.keys() == turn.result.metrics.keys()
    assert untrained.memory.keys() == turn.memory.tensors.keys()


def constant(**settings: object) -> Training:
    schedule = Schedule(warmup_steps=0, horizon_epochs=None)
    return Training(**{"batch_size": 2, "optimizer": SGD(lr=0.05), "schedule": schedule, **settings})


HISTORY = {
    "warm-up": (constant(schedule=Schedule(warmup_steps=9, horizon_epochs=None)), None, "training.schedule: {warmup"),
    "decay": (constant(schedule=Schedule(warmup_steps=0)), None, "training.schedule: {warmup_steps: 0, horizon"),
    "steps": (constant(schedule=Schedule(warmup_steps=0, horizon_epochs=None, horizon_steps=9)), None, "horizon_steps"),
    "moments": (constant(moments="keep"), None, "training.moments: reset"),
    "feedback": (constant(), TopK(), "stages.compression.error_feedback: false"),
}


@pytest.mark.parametrize(("training", "compression", "message"), HISTORY.values(), ids=HISTORY)
def test_with_fixed_cohorts_nothing_may_depend_on_earlier_rounds(
    staged: Make, training: Training, compression: Compression | None, message: str
) -> None:
    """Full and Poisson cohorts have an account of it, and without noise there is no account to keep."""
    fixed, stages = Cohort(sampling="fixed", size=2), Stages(privacy=NOISY, compression=compression)
    federated, before = staged(stages, training=training, cohort=fixed)
    with pytest.raises(ValueError, match=f"cohort.sampling 'fixed' .* Set .*{message}.*; or use poisson or full"):
        check_stages(federated, before.server)
    for cohort in (Cohort(), Cohort(sampling="poisson", rate=0.5)):
        check_stages(replace(federated, cohort=cohort), before.server)
    check_stages(replace(federated, stages=replace(stages, privacy=CLIPPING_RDP)), before.server)


def test_with_fixed_cohorts_a_constant_rate_and_no_feedback_pass(staged: Make) -> None:
    stages = Stages(privacy=NOISY, compression=TopK(error_feedback=False))
    federated, before = staged(stages, training=constant(), cohort=Cohort(sampling="fixed", size=2))
    check_stages(federated, before.server)
    assert "privacy/epsilon" in {row["metric"] for row in advance(federated, before, rounds=2).rows["metrics"]}


def test_with_fixed_cohorts_hospitals_may_remember_nothing(staged: Make) -> None:
    """FedRep's heads stay in the hospital."""
    settings = {"training": constant(), "cohort": Cohort(sampling="fixed", size=2)}
    federated, before = staged(Stages(privacy=NOISY), AGGREGATORS["fedrep"](), **settings)
    message = "stages.privacy: hospital 'hospital-[012]' remembers .* cohort.sampling 'fixed' .*Use poisson or full"
    with pytest.raises(ValueError, match=f"^{message}"):
        check_stages(federated, before.server)
    with pytest.raises(ValueError, match=f"^round 1: {message}"):
        advance(federated, before)
    check_stages(replace(federated, cohort=Cohort()), before.server)


def test_reports_of_a_rule_are_summed_too(staged: Make) -> None:
    """FedNova multiplies the mean step by the mean of the hospitals' norms, 2, 4 and 6 steps of 0.05."""
    stages = Stages(secure_sum=SecureSum(clip=0.01, bits=30, word_bits=48))
    plain, summed = (
        advance(*staged(which, AGGREGATORS["fednova"](), volumes=(1, 2, 3))).checkpoint.server
        for which in (Stages(), stages)
    )
    assert 0 < distance(plain.tensors, summed.tensors) < 1e-8


@BOTH
def test_robust_weights_are_refused(staged: Make, stages: Stages) -> None:
    federated, before = staged(stages, uniform=True)
    with pytest.raises(ValueError, match="weights 'robust' look at the update of every hospital"):
        check_stages(replace(federated, rule=Krum()), before.server)


def test_privacy_wants_uniform_weights(staged: Make) -> None:
    federated, before = staged(Stages(privacy=NOISY), uniform=False, volumes=(1, 2, 1))
    with pytest.raises(ValueError, match=r"expected 'weights: uniform', got the weights .*'hospital-1': 8.0"):
        check_stages(federated, before.server)


def test_an_account_that_is_not_there_is_refused(staged: Make) -> None:
    cohort = Cohort(sampling="fixed", size=2)
    federated, before = staged(Stages(privacy=replace(NOISY, accountant="pld")), cohort=cohort)
    with pytest.raises(ValueError, match=r"accountant: expected 'rdp' with cohort.sampling 'fixed'"):
        check_stages(federated, before.server)


@pytest.mark.parametrize(("bits", "cohort", "fits"), [(6, 3, False), (6, 2, True), (5, 3, True)])
def test_a_sum_that_may_overflow_is_refused(staged: Make, bits: int, cohort: int, fits: bool) -> None:
    """M = 128: 2 * 3 * 31 = 186 is too much, 2 * 2 * 31 = 124 and 2 * 3 * 15 = 90 fit."""
    sampling = Cohort(sampling="fixed", size=cohort)
    federated, before = staged(Stages(secure_sum=SecureSum(bits=bits, word_bits=7)), cohort=sampling)
    if fits:
        check_stages(federated, before.server)
        return
    with pytest.raises(ValueError, match="the sum of 3 hospitals of 6 bits may overflow 7 bits"):
        check_stages(federated, before.server)


def test_unknown_attackers_are_refused(staged: Make) -> None:
    federated, before = staged(Stages(attack=SignFlip(hospitals=("nobody",))))
    with pytest.raises(ValueError, match=r"unknown hospitals \['nobody'\]"):
        check_stages(federated, before.server)


# ---- from the file ---------------------------------------------------------------------------------------------------


def tiny(*settings: str) -> Experiment:
    return load_experiment("tiny", open_file(PACKAGED), settings)


def test_stages_are_read_and_written_out() -> None:
    experiment = tiny(
        "stages.attack={name: sign_flip, hospitals: [hospital-1]}",
        "stages.compression=top_k",
        "stages.secure_sum={bits: 12}",
        "stages.privacy={noise_multiplier: 1, clip_norm: 0.5, delta: 1e-3, adaptive: {count_noise: 1}}",
    )
    assert experiment.stages.compression == TopK()
    assert experiment.stages.secure_sum == SecureSum(bits=12)
    assert experiment.stages.privacy is not None
    assert experiment.stages.privacy.adaptive == AdaptiveClip(count_noise=1.0)
    assert build(Experiment, resolve(experiment)) == experiment
    assert tiny().stages == Stages()


def test_a_run_that_cannot_work_stops_before_round_1(tmp_path: Path) -> None:
    experiment = tiny("stages.privacy={noise_multiplier: 1, clip_norm: 0.5, delta: 1e-3}", "aggregator=flap_sam")
    with pytest.raises(ValueError, match=re.escape("such as fedavg, ffa_lora or fedsvd")):
        assemble(experiment, locate(experiment, tmp_path), choose_device("cpu"))


def test_flipped_labels_reach_the_training_windows_of_the_attacker_only(tmp_path: Path) -> None:
    experiments = tiny(), tiny("stages.attack={name: label_flip, hospitals: [hospital-2]}")
    clean, flipped = (assemble(e, locate(e, tmp_path), choose_device("cpu")).federated.hospitals for e in experiments)
    for name, hospital in flipped.items():
        everything = torch.arange(len(hospital.train))
        same = torch.equal(hospital.train.gather(everything)[1], clean[name].train.gather(everything)[1])
        assert same == (name != "hospital-2")
