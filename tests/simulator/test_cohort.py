"""Hospitals that train together and hospitals that take turns make the same rounds, in float64 to 1e-12 relative."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from rounds import advance

from wardround.aggregators import AGGREGATORS
from wardround.aggregators.contract import Aggregator, Download, Phase, Tensors
from wardround.aggregators.fedavg import FedAvg
from wardround.aggregators.plain import PlainTraining
from wardround.clients.hospital import Assignment, Turn
from wardround.clients.methods import Decoder, Full, LoraSb
from wardround.clients.optimizers import SGD, AdamW, Schedule
from wardround.clients.stack import Stack
from wardround.clients.training import Training
from wardround.datasets.augment import Augment
from wardround.simulator import cohort as cohort_module
from wardround.simulator.checkpoint import Checkpoint, state_hash
from wardround.simulator.cohort import alike_groups, phases_unlike, train_cohort
from wardround.simulator.federation import Federated
from wardround.simulator.sampling import Cohort

Make = Callable[..., tuple[Federated, Checkpoint]]

CONSTANT = Schedule(warmup_steps=0, horizon_epochs=None)
SHORT = Training(batch_size=5, optimizer=SGD(lr=0.05), schedule=CONSTANT)
"""Hospitals of 4, 4 and 8 windows take 1, 1 and 2 steps, of 4, 4 and 5 + 3 windows."""

NEEDS: dict[str, dict[str, object]] = {
    "fedbn": {"method": Decoder()},
    "fedrep": {"aggregator": {"head_epochs": 1.0}},
    "trimmed_mean": {"aggregator": {"fraction": 0.34}, "volumes": (1, 1, 2)},
    "krum": {"volumes": (1, 1, 1, 1, 2)},
    "multi_krum": {"volumes": (1, 1, 1, 1, 2)},
    "bulyan": {"volumes": (1, 1, 1, 1, 1, 1, 2)},
}
"""What an aggregator cannot do without, or is quicker with."""


def distance(left: Tensors, right: Tensors) -> float:
    """The largest difference, relative to the largest number of a tensor, where that is no smaller than 1e-3."""
    assert list(left) == list(right)
    pairs = [(left[name].double(), right[name].double()) for name in left if left[name].numel()]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-3) for a, b in pairs), default=torch.zeros(())).item()


def as_products(tensors: Tensors) -> dict[str, torch.Tensor]:
    """B A in the place of merged A and B: directions in which a product is zero to rounding may be any."""
    pairs = [name.removesuffix("A") for name in tensors if name.startswith("merged/") and name.endswith(".A")]
    factors = {f"{pair}{factor}" for pair in pairs for factor in "AB"}
    products = {pair: tensors[f"{pair}B"] @ tensors[f"{pair}A"] for pair in pairs}
    return {**products, **{name: value for name, value in tensors.items() if name not in factors}}


def both(federated: Federated, before: Checkpoint, rounds: int, stack: int = 3) -> float:
    """Runs rounds both ways; the largest difference in server, memories, rows and losses."""
    expected = advance(federated, before, rounds)
    found = advance(replace(federated, stack=stack), before, rounds)
    left, right = found.checkpoint, expected.checkpoint
    pairs = [(getattr(left.server, part), getattr(right.server, part)) for part in ("tensors", "base")]
    pairs.append((as_products(left.server.memory), as_products(right.server.memory)))
    pairs += [
        (one.tensors, other.tensors) for one, other in zip(found.step.updates, expected.step.updates, strict=True)
    ]
    pairs += [(memory.named(), right.memories[name].named()) for name, memory in left.memories.items()]
    assert [memory.steps for memory in left.memories.values()] == [m.steps for m in right.memories.values()]
    assert found.rows["ledger"] == expected.rows["ledger"]
    for one, other in zip(found.rows["metrics"], expected.rows["metrics"], strict=True):
        assert one.keys() == other.keys()
        assert one["value"] == pytest.approx(other["value"], rel=1e-9, abs=1e-12), (one, other)
    return max(distance(*pair) for pair in pairs)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_aggregator(make_federated: Make, name: str) -> None:
    """Two rounds, where the second begins with what hospitals remember; one where their half is plain training."""
    needs = NEEDS.get(name, {})
    aggregator: Aggregator = AGGREGATORS[name](**needs.get("aggregator", {}))
    rounds = 1 if type(aggregator.rule) is PlainTraining else 2
    more = {key: value for key, value in needs.items() if key != "aggregator"}
    volumes = (1, 2) if rounds == 1 else (1, 1, 2)
    federated, before = make_federated(aggregator, training=SHORT, **{"volumes": volumes, **more})
    assert both(federated, before, rounds) < 1e-12


METHODS = {"decoder": Decoder(), "lora_sb": LoraSb(rank=3)}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods(make_federated: Make, method: str) -> None:
    federated, before = make_federated(FedAvg(), training=SHORT, method=METHODS[method])
    assert both(federated, before, rounds=2) < 1e-12


@pytest.mark.parametrize("name", ["flap_sam", "fedprox", "local"])
def test_mixed_ranks(make_federated: Make, name: str) -> None:
    settings = {"on": "product"} if name == "fedprox" else {}
    ranks = {"hospital-0": 1, "hospital-1": 2}
    federated, before = make_federated(AGGREGATORS[name](**settings), training=SHORT, ranks=ranks)
    assert both(federated, before, rounds=2) < 1e-12


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": AdamW(lr=1e-3), "moments": "keep", "clip_norm": 0.5},
        {"optimizer": SGD(lr=0.05, momentum=0.5), "moments": "keep", "clip_norm": 0.1},
        {"steps": 3},
    ],
    ids=["adamw", "sgd", "steps"],
)
def test_other_training(make_federated: Make, settings: dict[str, object]) -> None:
    federated, before = make_federated(AGGREGATORS["rolora"](), training=replace(SHORT, **settings))
    assert both(federated, before, rounds=3) < 1e-12


def test_windows_with_fixed_forms(make_federated: Make) -> None:
    federated, before = make_federated(FedAvg(), training=SHORT)
    place = replace(federated.workplace, augment=Augment(variants=2))
    assert both(replace(federated, workplace=place), before, rounds=2) < 1e-12


@pytest.mark.parametrize(
    "cohort",
    [
        Cohort(sampling="poisson", rate=0.5),
        Cohort(sampling="fixed", size=3),
        Cohort(drop_rate=0.4),
    ],
    ids=["poisson", "fixed", "drop"],
)
def test_other_cohorts(make_federated: Make, cohort: Cohort) -> None:
    """MOON parts hospitals that take part for the first time from those that remember their last model."""
    federated, before = make_federated(AGGREGATORS["moon"](), training=SHORT, cohort=cohort, volumes=(1, 1, 2, 1, 2))
    assert both(federated, before, rounds=3) < 1e-12


def test_a_round_is_the_same_whoever_trains_with_whom(make_federated: Make) -> None:
    """Stacks of 2, 3 and 4 for four hospitals; the same stack gives the same bits."""
    federated, before = make_federated(FedAvg(), training=SHORT, volumes=(1, 1, 2, 1))
    for stack in (2, 3, 4):
        assert both(federated, before, rounds=1, stack=stack) < 1e-12
    shared = replace(federated, stack=2)
    hashes = {state_hash(advance(one, before).checkpoint) for one in (shared, shared, replace(federated, stack=2))}
    assert len(hashes) == 1


def test_ways_of_training_read_each_others_checkpoints(make_federated: Make) -> None:
    """Turn by turn, then together, then turn by turn, with kept moments: the rounds of either way."""
    training = replace(SHORT, optimizer=AdamW(lr=1e-3), moments="keep")
    federated, before = make_federated(FedAvg(), training=training)
    expected, found = before, before
    for stack in (1, 3, 1):
        expected = advance(federated, expected).checkpoint
        found = advance(replace(federated, stack=stack), found).checkpoint
    assert distance(found.server.tensors, expected.server.tensors) < 1e-12
    for name, memory in found.memories.items():
        assert distance(memory.named(), expected.memories[name].named()) < 1e-12


def test_room_is_made_once(make_federated: Make) -> None:
    federated, before = make_federated(FedAvg(), training=SHORT)
    assert federated.shared is None
    shared = replace(federated, stack=2)
    room = shared.shared
    advance(shared, before, rounds=2)
    assert room is not None
    assert shared.shared is room


def test_a_method_that_cannot_be_stacked_says_so(make_federated: Make) -> None:
    federated, before = make_federated(FedAvg(), training=SHORT, method=Full())
    with pytest.raises(ValueError, match=r"a method whose hospitals can share a step: 'vision_encoder.*cohort: seq"):
        advance(replace(federated, stack=2), before)


# --- who trains with whom ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed(PlainTraining):
    """Hospitals 1 and 3 train a name less, hospital 4 goes through two phases."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        odd = int(download.extra["number"]) % 2
        phase = Phase(train=download.train[odd:])
        return [phase, phase] if download.extra["number"] == 4 else [phase]


def assignments(federated: Federated, before: Checkpoint) -> list[Assignment]:
    """Of all hospitals, which are told their number."""
    found = []
    for number, (name, hospital) in enumerate(federated.hospitals.items()):
        download = federated.aggregator.broadcast(before.server, hospital.info)
        found.append(
            Assignment(
                hospital=hospital.info,
                download=replace(download, extra={"number": torch.tensor(number)}),
                memory=before.memories[name],
                windows=hospital.train,
                rng=federated.rng("local", 1, name),
                lasting=federated.rng("lasting", name),
            )
        )
    return found


def names(groups: Sequence[Sequence[Assignment]]) -> list[str]:
    return ["".join(assignment.hospital.name[-1] for assignment in group) for group in groups]


def test_hospitals_are_parted_where_their_phases_are_not_alike(make_federated: Make) -> None:
    federated, before = make_federated(FedAvg(), training=SHORT, volumes=(1,) * 5)
    assert names(alike_groups(Mixed(), assignments(federated, before))) == ["02", "13", "4"]


def test_hospitals_of_about_the_same_size_train_together(make_federated: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes 1, 3, 2, 3, 1 in groups of two: 1 and 3, 2 and 0, and 4 alone; announced as they begin and end."""
    federated, before = make_federated(FedAvg(), training=SHORT, volumes=(1, 3, 2, 3, 1))
    groups, heard = [], []
    together = cohort_module.take_turns_together

    def watched(workplace: object, stack: Stack, rule: object, group: Sequence[Assignment]) -> list[Turn]:
        groups.append(group)
        return together(workplace, stack, rule, group)

    monkeypatch.setattr(cohort_module, "take_turns_together", watched)
    turns = train_cohort(
        federated.workplace,
        PlainTraining(),
        assignments(federated, before),
        lambda name, turn: heard.append(f"{name[-1]}{'' if turn is None else f' {turn.num_steps}'}"),
        Stack(federated.workplace.replica, 2),
    )
    assert names(groups) == ["13", "20"]
    assert [turn.hospital.name[-1] for turn in turns] == ["0", "1", "2", "3", "4"]
    assert heard == ["1", "1 3", "3", "3 3", "2", "2 2", "0", "0 1", "4", "4 1"]


def test_one_after_the_other_in_order_of_names(make_federated: Make) -> None:
    federated, before = make_federated(FedAvg(), training=SHORT, volumes=(1, 2))
    heard: list[str] = []
    backwards = assignments(federated, before)[::-1]
    train_cohort(federated.workplace, PlainTraining(), backwards, lambda name, turn: heard.append(name[-1]))
    assert heard == ["0", "0", "1", "1"]


def test_a_number_of_phases_of_ones_own_is_not_alike() -> None:
    phase = Phase(train=())
    assert phases_unlike([(phase, phase), (phase, phase)]) is None
    assert phases_unlike([(phase,), (phase, phase)]) == "the rule has another number of phases at every hospital"


# --- errors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(PlainTraining):
    """Hospital 1 trains a name that nobody knows, or has a loss that is not finite."""

    how: str

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        broken = download.extra["number"] == 1
        if self.how == "asks":
            raise ValueError("nothing to train")
        if self.how == "name":
            return [Phase(train=("nobody",))]
        size = torch.tensor(math.inf if broken else 1.0)
        return [Phase(train=download.train, context={"size": size}, penalty=self.penalty)]

    def penalty(self, own: Tensors, context: Tensors) -> torch.Tensor:
        return context["size"] * torch.stack([value.sum() for value in own.values()]).square().sum()


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize(
    ("how", "alone", "together"),
    [
        ("loss", "^hospital 'hospital-1': the loss of batch 1 is inf. Lower training.optimizer.lr", None),
        ("asks", "^hospital 'hospital-.': nothing to train", None),
        (
            "name",
            r"^hospital 'hospital-0': the local rule trains \['nobody'\]",
            r"^one of the hospitals \['hospital-0', 'hospital-1'\]: the local rule trains \['nobody'\]",
        ),
    ],
)
def test_errors_name_the_hospital(make_federated: Make, stack: int, how: str, alone: str, together: str | None) -> None:
    federated, before = make_federated(FedAvg(), training=SHORT, volumes=(2, 1))
    room = Stack(federated.workplace.replica, stack) if stack > 1 else None
    with pytest.raises(ValueError, match=alone if stack == 1 else together or alone):
        train_cohort(federated.workplace, Broken(how), assignments(federated, before), lambda name, turn: None, room)
