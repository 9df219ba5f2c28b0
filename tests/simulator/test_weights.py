"""How much a hospital counts: before the updates are seen, and after a robust rule has seen them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pairs import one_pair, random_updates, state

from wardround.aggregators import AGGREGATORS, FedAvg, FlapSam, GeometricMedian, Krum, MultiKrum
from wardround.aggregators.contract import Download, HospitalInfo
from wardround.aggregators.toy import initial_state, make_world, run_round, streams
from wardround.simulator.assembly import assemble, locate
from wardround.simulator.builder import ConfigError, build, resolve
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.weights import (
    RULES,
    WEIGHTINGS,
    Examples,
    Explicit,
    Robust,
    Uniform,
    check_rule,
    rule_of,
    weighed,
)

HOSPITALS = [HospitalInfo(name="a", num_examples=30), HospitalInfo(name="b", num_examples=10)]


def test_weights_by_examples_uniform_and_by_hand() -> None:
    assert Examples().weights(HOSPITALS) == {"a": 30.0, "b": 10.0}
    assert Uniform().weights(HOSPITALS) == {"a": 1.0, "b": 1.0}
    assert Explicit(values={"a": 0.1, "b": 0.9}).weights(HOSPITALS) == {"a": 0.1, "b": 0.9}


def test_explicit_weights_name_every_hospital_and_no_other() -> None:
    with pytest.raises(ValueError, match=r"missing \['b'\], unknown \['c'\]"):
        Explicit(values={"a": 0.5, "c": 0.5}).weights(HOSPITALS)


@pytest.mark.parametrize(("values", "message"), [({"a": -1.0}, "at least 0"), ({"a": 0.0}, "one weight above 0")])
def test_bad_explicit_weights_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Explicit(values=values)


def test_the_table_holds_all_four() -> None:
    assert {"examples": Examples, "uniform": Uniform, "explicit": Explicit, "robust": Robust} == WEIGHTINGS


# ---- robust weights --------------------------------------------------------------------------------------------------

FIVE = [HospitalInfo(name=name, num_examples=number, rank=1) for number, name in enumerate("abcde", start=1)]


def test_robust_weights_begin_with_those_of_the_base() -> None:
    assert Robust().weights(FIVE) == Examples().weights(FIVE)
    assert Robust(base="uniform").weights(FIVE) == Uniform().weights(FIVE)
    with pytest.raises(ValueError, match=r"^base: expected 'examples' or 'uniform', got 'explicit'"):
        Robust(base="explicit")  # type: ignore[arg-type]  # the point of the test


def test_a_rule_that_needs_more_hospitals_is_refused_before_round_1() -> None:
    setting = replace(one_pair(), hospitals=tuple(FIVE))
    check_rule(Krum(byzantine=1), FedAvg(), setting)
    with pytest.raises(ValueError, match=r"^weights.rule: expected at least .* = 7 hospitals .* byzantine = 2, got 5"):
        check_rule(Krum(byzantine=2), FedAvg(), setting)
    with pytest.raises(ValueError, match=r"^weights.rule: expected at least .* = 5 hospitals .* byzantine = 1, got 4"):
        check_rule(Krum(byzantine=1), FedAvg(), replace(setting, cohort_size=4))
    mixed = tuple(replace(hospital, rank=hospital.num_examples) for hospital in FIVE)
    with pytest.raises(ValueError, match=r"^weights.rule: expected one LoRA rank"):
        check_rule(Krum(on="factors"), FlapSam(), replace(setting, hospitals=mixed))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_rule_goes_before_aggregators_that_use_weights_only(name: str) -> None:
    """The contract suite checks what ``uses_weights`` says."""
    aggregator, setting = AGGREGATORS[name](), one_pair(ranks=(1,) * 5)
    check_rule(None, aggregator, setting)
    if aggregator.uses_weights:
        check_rule(MultiKrum(), aggregator, setting)
        return
    with pytest.raises(ValueError, match=f"^weights 'robust': .* got {type(aggregator).__name__}, .* Use fedavg"):
        check_rule(MultiKrum(), aggregator, setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("aggregator=scaffold", "weights={name: robust, rule: geometric_median}"), "weights 'robust': .* Scaffold"),
        (("weights={name: robust, rule: {name: krum, byzantine: 0}}",), "weights.rule: .* = 3 hospitals .* got 2"),
        (("aggregator={name: krum, byzantine: 0}",), "aggregator Krum: .* = 3 hospitals .* got 2"),
        (("aggregator={name: trimmed_mean, fraction: 0.4}",), "aggregator TrimmedMean: .* = 3 hospitals .* got 2"),
    ],
)
def test_what_cannot_work_is_refused_before_anybody_trains(settings: tuple[str, ...], message: str) -> None:
    """Two of the three hospitals of ``tiny`` are asked in a round."""
    experiment = load_experiment("tiny", open_file(PACKAGED), ("cohort={sampling: fixed, size: 2}", *settings))
    with pytest.raises(ValueError, match=f"^{message}"):
        assemble(experiment, locate(experiment, None), torch.device("cpu"))


def test_they_are_read_from_a_file_and_written_again() -> None:
    class_of = Experiment.__annotations__["weights"]
    assert "WEIGHTINGS" in class_of
    plain = {"rule": {"name": "multi_krum", "byzantine": 2, "on": "factors"}, "base": "uniform"}
    weighting = build(Robust, plain)
    assert weighting == Robust(rule=MultiKrum(byzantine=2, on="factors"), base="uniform")
    assert build(Robust, resolve(weighting)) == weighting
    with pytest.raises(ConfigError, match=r"rule: unknown name 'median' .*geometric_median, krum, multi_krum"):
        build(Robust, {"rule": "median"})


def test_other_weights_have_no_rule_and_change_no_update() -> None:
    assert [rule_of(weighting) for weighting in (Examples(), Uniform(), Robust(rule=Krum()))] == [None, None, Krum()]
    setting = one_pair(ranks=(1,) * 5)
    updates = random_updates(setting, [1.0] * 5)
    assert weighed(None, state(setting), {}, updates) == (updates, {})
    assert weighed(Krum(), state(setting), {}, []) == ([], {})


@pytest.mark.parametrize("name", RULES)
def test_an_aggregator_is_its_rule_and_then_the_mean(name: str) -> None:
    """Robust weights before FLAP-SAM give what the aggregator of the same name gives, bit for bit."""
    world, rule = make_world([2, 1, 2, 2, 1, 2, 2]), RULES[name]()
    last = run_round(FlapSam(), world, initial_state(FlapSam(), world))
    seen, notes = weighed(rule, last.before, last.downloads, last.updates)
    by_weights = FlapSam().aggregate(last.before, seen, streams)
    by_itself = rule.aggregate(last.before, last.updates, streams)
    for key, value in by_itself.server.tensors.items():
        assert torch.equal(by_weights.server.tensors[key], value)
    assert {f"robust_{key}": value for key, value in by_itself.diagnostics.items() if "energy" not in key} == notes
    assert len(seen) == len(last.updates) - notes["robust_rejected"]


@pytest.mark.parametrize("name", ["fedavg", "ffa_lora", "flora", "fedex_lora", "lora_fair", "fedper", "ditto"])
def test_a_rule_finds_what_hospitals_do_not_send(name: str) -> None:
    """Subsets, personal tensors, changes of the base: every update has a whole model to compare."""
    world, aggregator = make_world([2] * 6), AGGREGATORS[name]()
    first = run_round(aggregator, world, initial_state(aggregator, world))
    last = run_round(aggregator, world, first.after, first.memories)
    for rule in (MultiKrum(on="factors"), MultiKrum(), GeometricMedian()):
        seen, notes = weighed(rule, last.before, last.downloads, last.updates)
        assert 0 < notes["robust_kept_weight"] <= 1 + 1e-12
        assert all(one.tensors.keys() == last.updates[0].tensors.keys() for one in seen)
        assert aggregator.aggregate(last.before, seen, streams).server.round == 2


def test_what_is_not_sent_is_taken_from_the_download_and_then_from_the_server() -> None:
    """B alone is sent: products are B_k A with the A that was handed out, whatever the server keeps."""

    class Seen:
        def check(self, hospitals: Any) -> None: ...

        def reweigh(self, server: Any, updates: Any) -> list[float]:
            assert updates[0].tensors["A"] is handed
            assert torch.equal(updates[0].tensors["w"], setting.trainable["w"])
            assert updates[0].tensors["B"] is sent.tensors["B"]
            return [1.0]

    setting = one_pair()
    handed = torch.ones(1, 2, dtype=torch.float64)
    one = random_updates(setting, [1.0, 1.0])[0]
    sent = replace(one, tensors={"B": one.tensors["B"]})
    downloads = {"a": Download(start={"A": handed}, train=("B",), returns={"B": (2, 1)})}
    seen, _ = weighed(Seen(), replace(state(setting), tensors={}), downloads, [sent])
    assert seen[0].tensors.keys() == {"B"}
