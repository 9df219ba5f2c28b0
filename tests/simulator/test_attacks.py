"""What attackers send, what robust aggregators make of it, and what the mean makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from attacked import corrupted, distance, under_attack
from pairs import tensor
from rounds import advance
from torch import Tensor

from wardround.aggregators import (
    AGGREGATORS,
    Bulyan,
    CentredClipping,
    FedAvg,
    FlapSam,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    TrimmedMean,
)
from wardround.aggregators.contract import ServerState
from wardround.aggregators.toy import Round, World, initial_state, make_world, run_round, streams
from wardround.datasets.contract import Case
from wardround.datasets.images import HospitalImages, PreparedImages
from wardround.datasets.windows import HospitalWindows
from wardround.simulator.attacks import (
    ATTACKS,
    Alie,
    Attack,
    LabelFlip,
    Noise,
    Scaling,
    SignFlip,
    check_attackers,
    poisoned,
)
from wardround.simulator.builder import build
from wardround.simulator.config import Experiment
from wardround.simulator.stages import Stages
from wardround.simulator.weights import Robust, weighed

TWO = ("hospital-03", "hospital-08")
STEPS = {
    TWO[0]: {"A": tensor([1.0, 2.0]), "w": tensor(4.0)},
    TWO[1]: {"A": tensor([3.0, 2.0]), "w": tensor(0.0)},
}


def sent(attack: Attack) -> dict[str, Any]:
    return attack.corrupt(STEPS, streams)


def test_the_other_way_and_further() -> None:
    assert sent(SignFlip(hospitals=TWO, strength=2.0))[TWO[0]]["A"].tolist() == [[-2.0, -4.0]]
    assert sent(Scaling(hospitals=TWO, factor=10.0))[TWO[1]]["A"].tolist() == [[30.0, 20.0]]


def test_noise_has_its_size_and_depends_on_hospital_and_tensor() -> None:
    steps = {name: {"a": torch.zeros(4000), "b": torch.zeros(4000)} for name in TWO}
    noise = Noise(hospitals=TWO, std=3.0).corrupt(steps, streams)
    values = [value for tensors in noise.values() for value in tensors.values()]
    assert all(value.std().item() == pytest.approx(3.0, rel=0.05) for value in values)
    assert all(abs(value.mean().item()) < 0.2 for value in values)
    assert len({value[0].item() for value in values}) == 4
    again = Noise(hospitals=TWO, std=3.0).corrupt(dict(reversed(steps.items())), streams)
    assert torch.equal(again[TWO[0]]["a"], noise[TWO[0]]["a"])


def test_a_little_is_enough_by_hand() -> None:
    """A: mean (2, 2), deviation (1, 0); w: mean 2, deviation 2; all send mean - 1.5 deviations."""
    for tensors in sent(Alie(hospitals=TWO, z=1.5)).values():
        assert tensors["A"].tolist() == [[0.5, 2.0]]
        assert tensors["w"].item() == -1.0


def test_one_attacker_alone_in_a_round_sends_its_honest_step() -> None:
    alone = {TWO[0]: STEPS[TWO[0]]}
    assert torch.equal(Alie(hospitals=TWO, z=3.0).corrupt(alone, streams)[TWO[0]]["A"], alone[TWO[0]]["A"])
    assert Alie(hospitals=TWO, z=3.0).corrupt({}, streams) == {}


def test_how_many_deviations_by_the_formula() -> None:
    """Of 50 hospitals 24 attack: s = 26 - 24 = 2 and Phi(z) = (50 - 24 - 2) / (50 - 24) = 24 / 26."""
    names = tuple(f"hospital-{k}" for k in range(24))
    z = Alie(hospitals=names, num_hospitals=50).deviations
    assert NormalDist().cdf(z) == pytest.approx(24 / 26)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_keeps_names_shapes_dtypes_and_its_arguments(name: str) -> None:
    attack = build(ATTACKS[name], {"hospitals": list(TWO), **({"z": 1.0} if name == "alie" else {})})
    steps = {hospital: {key: value.float() for key, value in tensors.items()} for hospital, tensors in STEPS.items()}
    before = {hospital: {key: value.clone() for key, value in tensors.items()} for hospital, tensors in steps.items()}
    result = attack.corrupt(steps, streams)
    assert result.keys() == steps.keys()
    for hospital, tensors in steps.items():
        assert result[hospital].keys() == tensors.keys()
        for key, value in tensors.items():
            assert torch.equal(value, before[hospital][key])
            assert (result[hospital][key].shape, result[hospital][key].dtype) == (value.shape, torch.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignFlip(hospitals=()), "hospitals: .* at least one attacker"),
        (lambda: Noise(hospitals=("a", "a")), r"hospitals: expected different names, got \('a', 'a'\)"),
        (lambda: SignFlip(hospitals=TWO, strength=0.0), "strength: .* above 0, got 0.0"),
        (lambda: Scaling(hospitals=TWO, factor=1.0), "factor: .* not 1, got 1.0"),
        (lambda: Noise(hospitals=TWO, std=-1.0), "std: .* above 0, got -1.0"),
        (lambda: Alie(hospitals=("a",), z=1.0), "hospitals: .* at least two attackers"),
        (lambda: Alie(hospitals=TWO), "z: .* or num_hospitals .* got neither"),
        (lambda: Alie(hospitals=TWO, z=0.0), "z: .* above 0, got 0"),
        (lambda: Alie(hospitals=TWO, num_hospitals=4), "num_hospitals: .* twice the 2 attackers, got 4"),
        (lambda: Alie(hospitals=TWO, num_hospitals=20), "z: .* by the formula from 20 hospitals: give one"),
        (lambda: LabelFlip(hospitals=TWO, mapping=(0, 3)), r"mapping: expected a label of 0..1 .* got \(0, 3\)"),
        (lambda: LabelFlip(hospitals=TWO, mapping=(0, 1)), "mapping: expected some label to change"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_attackers_are_hospitals_of_the_federation() -> None:
    check_attackers(SignFlip(hospitals=TWO), [*TWO, "hospital-01"])
    with pytest.raises(ValueError, match=r"unknown hospitals \['hospital-08'\], expected some of \['hospital-03'\]"):
        check_attackers(SignFlip(hospitals=TWO), [TWO[0]])


# ---- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mapping", "labels"), [((), [2, 1, 0]), ((0, 2, 1), [0, 2, 1])])
def test_flipped_labels_are_read_and_no_volume_is_written(
    make_windows: Any, mapping: tuple[int, ...], labels: list[int]
) -> None:
    windows: HospitalWindows = make_windows(0)
    volume = windows.volumes[0].labels.clone()
    flipped = poisoned(LabelFlip(hospitals=("a",), mapping=mapping), "a", windows, num_classes=2)
    index = torch.arange(len(windows))
    images, truth = windows.gather(index)
    for changed in (flipped, flipped.to("cpu")):
        assert torch.equal(changed.gather(index)[0], images)
        assert torch.equal(changed.gather(index)[1], torch.tensor(labels, dtype=torch.uint8)[truth.long()])
    assert torch.equal(windows.volumes[0].labels, volume)
    assert torch.equal(windows.gather(index)[1], truth)


def test_labels_of_others_and_of_other_attacks_stay(make_windows: Any) -> None:
    windows = make_windows(0)
    assert poisoned(LabelFlip(hospitals=("a",)), "b", windows, 2) is windows
    assert poisoned(SignFlip(hospitals=("a",)), "a", windows, 2) is windows
    assert poisoned(None, "a", windows, 2) is windows


def test_a_mapping_names_every_class_of_the_data(make_windows: Any) -> None:
    with pytest.raises(ValueError, match=r"expected 3 labels \(background and 2 classes\), got 2: \(1, 0\)"):
        poisoned(LabelFlip(hospitals=("a",), mapping=(1, 0)), "a", make_windows(0), 2)


@pytest.mark.parametrize(("mapping", "labels"), [((), [2, 1, 0]), ((1, 0, 2), [1, 0, 2])])
def test_classes_of_images_have_no_background(mapping: tuple[int, ...], labels: list[int]) -> None:
    """With C = 3: 0 and 2 change places, 1 stays; or the classes that the mapping names."""
    cases = [
        Case(name=name, patient=name, image=Path(name), label=Path(name), target=target)
        for target, name in enumerate("abc")
    ]
    images = HospitalImages(
        PreparedImages(cases=tuple(cases), pixels=torch.zeros(3, 3, 2, 2, dtype=torch.uint8)), cases
    )
    attack = LabelFlip(hospitals=("a",), mapping=mapping)
    flipped = poisoned(attack, "a", images, 3, "classification")
    assert flipped.gather(torch.arange(3))[1].flatten().tolist() == labels
    assert images.targets.tolist() == [0, 1, 2]
    assert poisoned(attack, "b", images, 3, "classification") is images
    with pytest.raises(ValueError, match=r"expected 2 labels \(the 2 classes of images\), got 3: \(0, 2, 1\)"):
        LabelFlip(hospitals=("a",), mapping=(0, 2, 1)).labels(2, "classification")


# ---- breakdown: the toy federation -----------------------------------------------------------------------------------

STRONG: dict[str, Attack] = {
    "sign_flip": SignFlip(hospitals=TWO, strength=20.0),
    "scaling": Scaling(hospitals=TWO, factor=20.0),
    "noise": Noise(hospitals=TWO, std=5.0),
    "alie": Alie(hospitals=TWO, z=50.0),
}
RULES = {
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": partial(Krum, byzantine=2),
    "multi_krum": partial(MultiKrum, byzantine=2),
    "bulyan": partial(Bulyan, byzantine=2),
    "geometric_median": GeometricMedian,
    "centred_clipping": CentredClipping,
    "centred_clipping, one tau": partial(CentredClipping, tau=0.5, iterations=5),
}


@pytest.fixture(scope="module")
def world() -> World:
    """Eleven hospitals: as many as Bulyan needs with two attackers."""
    return make_world([2] * 11)


Rounds = Callable[[str], Round]


@pytest.fixture(scope="module")
def first_round(world: World) -> Rounds:
    """The first round with an aggregator, everybody honest; made once."""

    @cache
    def make(name: str) -> Round:
        aggregator = AGGREGATORS[name]()
        return run_round(aggregator, world, initial_state(aggregator, world))

    return make


def model(world: World, server: ServerState) -> dict[str, Tensor]:
    return world.model(server.tensors, server.base)


def honest_mean(world: World, last: Round, mean: Any) -> tuple[dict[str, Tensor], float]:
    """The mean of the honest, and how far the furthest honest hospital is from it."""
    honest = [update for update in last.updates if update.hospital not in TWO]
    middle = model(world, mean.aggregate(last.before, honest, streams).server)
    return middle, max(distance(world.model(update.tensors, {}), middle) for update in honest)


@pytest.mark.parametrize("on", ["factors", "product"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("attack", STRONG)
def test_two_attackers_of_eleven_do_not_move_a_robust_aggregator(
    world: World, first_round: Rounds, attack: str, rule: str, on: str
) -> None:
    """It ends no further from the honest mean than the furthest honest hospital; the mean itself ends far beyond."""
    last, mean = first_round("fedavg"), FlapSam() if on == "product" else FedAvg()
    middle, furthest = honest_mean(world, last, mean)
    updates = corrupted(last, STRONG[attack])
    robust, plain = (
        distance(model(world, aggregator.aggregate(last.before, updates, streams).server), middle)
        for aggregator in (RULES[rule](on=on), mean)
    )
    assert robust <= furthest
    assert plain > 1.5 * furthest


WEIGHERS = {"multi_krum": MultiKrum(byzantine=2), "geometric_median": GeometricMedian()}


@pytest.mark.parametrize("name", ["fedavg", "flexlora", "flap_sam", "ffa_lora"])
@pytest.mark.parametrize("rule", WEIGHERS)
@pytest.mark.parametrize("attack", STRONG)
def test_robust_weights_protect_aggregators_that_use_weights(
    world: World, first_round: Rounds, attack: str, rule: str, name: str
) -> None:
    """They end ten times nearer to the honest. A hospital of FFA-LoRA sends B only; its A is what it was handed."""
    last, aggregator = first_round(name), AGGREGATORS[name]()
    updates = corrupted(last, STRONG[attack])
    protected, _ = weighed(WEIGHERS[rule], last.before, last.downloads, updates)
    honest = [update for update in last.updates if update.hospital not in TWO]
    middle, safe, bare = (
        model(world, aggregator.aggregate(last.before, seen, streams).server) for seen in (honest, protected, updates)
    )
    assert distance(safe, middle) < 0.1 * distance(bare, middle)


@pytest.mark.parametrize("name", ["fedavg", "flap_sam"])
@pytest.mark.parametrize("rule", WEIGHERS)
def test_robust_weights_let_the_honest_learn_over_rounds(world: World, rule: str, name: str) -> None:
    """Two rounds with attackers who go the other way: the honest lose little of what they gain without them."""
    aggregator, honest = AGGREGATORS[name](), [h.name for h in world.setting.hospitals if h.name not in TWO]

    def loss(server: ServerState) -> float:
        return sum(world.loss(hospital, server.tensors, server.base).item() for hospital in honest) / len(honest)

    before = loss(initial_state(aggregator, world))
    clean = loss(under_attack(aggregator, world, LabelFlip(hospitals=TWO), rounds=2))  # nobody trains on labels here
    protected = loss(under_attack(aggregator, world, STRONG["sign_flip"], rounds=2, rule=WEIGHERS[rule]))
    bare = loss(under_attack(aggregator, world, STRONG["sign_flip"], rounds=2))
    assert clean < before < bare
    assert protected - clean < 0.1 * (before - clean)


def test_factors_of_the_same_product_mislead_the_mean_of_factors_only(world: World, first_round: Rounds) -> None:
    """Attackers send (B / 1000, 1000 A): honest on the product, where all weights stay, and far off on the factors."""
    last = first_round("fedavg")
    updates = []
    for update in last.updates:
        by = 1000.0 if update.hospital in TWO else 1.0
        factors = {p.A: update.tensors[p.A] * by for p in world.setting.layout.pairs}
        factors |= {p.B: update.tensors[p.B] / by for p in world.setting.layout.pairs}
        updates.append(replace(update, tensors={**update.tensors, **factors}))
    for rule in (MultiKrum(byzantine=2), GeometricMedian()):
        assert rule.reweigh(last.before, updates) == pytest.approx(rule.reweigh(last.before, last.updates))
    weights = MultiKrum(byzantine=2, on="factors").reweigh(last.before, updates)
    assert [u.hospital for u, weight in zip(updates, weights, strict=True) if not weight] == list(TWO)


def test_the_helper_moves_attackers_only(first_round: Rounds) -> None:
    last = first_round("fedavg")
    moved = corrupted(last, SignFlip(hospitals=TWO))
    assert [m.hospital for m, u in zip(moved, last.updates, strict=True) if m.tensors is not u.tensors] == list(TWO)


# ---- the engine ------------------------------------------------------------------------------------------------------


def test_on_the_engine_robust_weights_leave_out_the_attacker(make_federated: Any) -> None:
    """Multi-Krum of five keeps the four honest: the round is FedAvg of those, bit for bit; the fifth is paid for."""
    federated, start = make_federated(FedAvg(), volumes=(1,) * 5, same_data=True)
    attacked = replace(
        federated,
        rule=Robust(rule=MultiKrum()).rule,
        stages=Stages(attack=Scaling(hospitals=("hospital-2",), factor=-30.0)),
    )
    outcome = advance(attacked, start)
    clean = advance(federated, start)
    honest = [replace(u, weight=0.25) for u in clean.step.updates if u.hospital != "hospital-2"]
    expected = FedAvg().aggregate(start.server, honest, streams).server.tensors
    got = outcome.checkpoint.server.tensors
    assert [u.hospital for u in outcome.step.updates] == ["hospital-0", "hospital-1", "hospital-3", "hospital-4"]
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    rows = {row["metric"]: row["value"] for row in outcome.rows["metrics"] if row["hospital"] is None}
    assert rows["aggregate/robust_rejected"] == 1.0
    assert rows["aggregate/robust_kept_weight"] == pytest.approx(0.8)
    assert [row["status"] for row in outcome.rows["ledger"]] == ["ok"] * 5
    assert len({row["bytes_up"] for row in outcome.rows["ledger"]}) == 1


def test_on_the_engine_flipped_labels_change_the_attackers_update_only(make_federated: Any) -> None:
    federated, start = make_federated(FedAvg(), volumes=(1, 1))
    attack = LabelFlip(hospitals=("hospital-1",))
    hospitals = {
        name: replace(hospital, train=poisoned(attack, name, hospital.train, 2))
        for name, hospital in federated.hospitals.items()
    }
    clean = advance(federated, start).step.updates
    wrong = advance(replace(federated, hospitals=hospitals, stages=Stages(attack=attack)), start).step.updates
    changed = [
        any(not torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors) for a, b in zip(clean, wrong, strict=True)
    ]
    assert changed == [False, True]


def test_attack_and_robust_weights_are_read_from_a_file() -> None:
    stages = build(Stages, {"attack": {"name": "sign_flip", "hospitals": ["a"], "strength": 2.0}})
    assert stages.attack == SignFlip(hospitals=("a",), strength=2.0)
    assert Experiment.__dataclass_fields__["stages"].default_factory() == Stages()


def test_a_little_is_enough_needs_attackers_of_one_rank() -> None:
    attack = Alie(hospitals=TWO, z=1.0)
    steps = {TWO[0]: {"A": torch.zeros(1, 4)}, TWO[1]: {"A": torch.zeros(2, 4)}}
    with pytest.raises(ValueError, match=r"expected steps of one shape .*1, 4.*2, 4.* for 'A'; .*one LoRA rank"):
        attack.corrupt(steps, streams)
