"""What differs from what was announced is an error that names round, hospital and tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pairs import one_pair, state, tensor, update

from wardround.aggregators import FedAvg
from wardround.aggregators.checks import (
    AggregationError,
    check_download,
    check_server_state,
    check_updates,
    is_finite,
)
from wardround.aggregators.contract import ClientUpdate, Download

SETTING = one_pair(2, 3)
DOWNLOAD = FedAvg().broadcast(state(SETTING), SETTING.hospitals[0])
GOOD = update("a", **SETTING.trainable)

Change = Callable[[ClientUpdate], ClientUpdate]


def with_tensors(**tensors: torch.Tensor) -> Change:
    return lambda one: replace(one, tensors={**one.tensors, **tensors})


def without(name: str) -> Change:
    return lambda one: replace(one, tensors={n: value for n, value in one.tensors.items() if n != name})


def test_good_updates_pass() -> None:
    check_updates(1, {"a": DOWNLOAD, "b": DOWNLOAD}, [GOOD, replace(GOOD, hospital="b", weight=0.0)])
    check_updates(1, {"a": DOWNLOAD, "b": DOWNLOAD}, [GOOD])  # b dropped out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("w"), r"hospital 'a': tensors announced but not sent: 'w'"),
        (with_tensors(v=tensor(1.0)), r"hospital 'a': tensors sent but not announced: 'v'"),
        (with_tensors(A=torch.zeros(2, 3).double()), r"tensor 'A': expected shape \(1, 3\), got \(2, 3\)"),
        (with_tensors(w=torch.zeros(1)), r"tensor 'w': expected dtype torch.float64, got torch.float32"),
        (
            with_tensors(w=torch.zeros(1, dtype=torch.int64)),
            r"tensor 'w': expected dtype torch.float64, got torch.int64",
        ),
        (
            with_tensors(w=tensor(math.nan)),
            r"hospital 'a': tensor 'w': expected finite values, got 1 NaN or infinite of 1",
        ),
        (with_tensors(B=torch.full((2, 1), -math.inf).double()), r"tensor 'B': .* got 2 NaN or infinite of 2"),
        (lambda one: replace(one, metrics={"loss": math.inf}), r"metric 'loss': expected a finite number, got inf"),
        (lambda one: replace(one, extra={"c": tensor(1.0)}), r"extra tensors sent but not announced: 'c'"),
        (
            lambda one: replace(one, weight=-1.0),
            r"hospital 'a': weight: expected a finite number of at least 0, got -1.0",
        ),
        (lambda one: replace(one, weight=math.nan), r"weight: expected a finite number of at least 0, got nan"),
        (lambda one: replace(one, weight=0.0), r"expected a total weight above 0, got weight 0 from all of 'a'"),
        (lambda one: replace(one, hospital="z"), r"expected updates of the hospitals in the round, got one from 'z'"),
    ],
)
def test_each_difference_is_named(change: Change, message: str) -> None:
    with pytest.raises(AggregationError, match=r"^round 7: (.|\n)*" + message):
        check_updates(7, {"a": DOWNLOAD}, [change(GOOD)])


def test_all_problems_are_told_at_once() -> None:
    bad = with_tensors(w=tensor(math.nan), v=tensor(1.0))(GOOD)
    worse = replace(without("B")(GOOD), hospital="b", weight=-2.0)
    with pytest.raises(AggregationError) as caught:
        check_updates(3, {"a": DOWNLOAD, "b": DOWNLOAD}, [bad, worse])
    assert len(caught.value.problems) == 4
    assert all(word in str(caught.value) for word in ("round 3", "'w'", "'v'", "'B'", "-2.0", "hospital 'b'"))


def test_announced_extra_tensors_are_expected() -> None:
    download = replace(DOWNLOAD, returns_extra={"c": (2,)})
    with pytest.raises(AggregationError, match=r"extra tensors announced but not sent: 'c'"):
        check_updates(1, {"a": download}, [GOOD])
    check_updates(1, {"a": download}, [replace(GOOD, extra={"c": tensor(1.0, 2.0)})])


def test_an_empty_round_is_an_error_unless_allowed() -> None:
    with pytest.raises(AggregationError, match=r"round 2: expected the update of at least one hospital, got none"):
        check_updates(2, {"a": DOWNLOAD}, [])
    check_updates(2, {}, [], allow_empty=True)


def test_a_round_in_which_nothing_is_announced_passes() -> None:
    nothing = replace(DOWNLOAD, returns={}, sent={})
    check_updates(1, {"a": nothing}, [replace(GOOD, tensors={})])


def test_order_and_repetition_are_checked() -> None:
    both = {"a": DOWNLOAD, "b": DOWNLOAD}
    with pytest.raises(AggregationError, match=r"sorted by hospital, got the order 'b', 'a'"):
        check_updates(1, both, [replace(GOOD, hospital="b"), GOOD])
    with pytest.raises(AggregationError, match=r"one update per hospital, got several from 'a'"):
        check_updates(1, both, [GOOD, GOOD])


def test_long_lists_are_cut() -> None:
    many = {f"n{number}": tensor(0.0) for number in range(9)}
    with pytest.raises(AggregationError, match=r"'n0', 'n1', 'n2', 'n3', 'n4' and 4 more"):
        check_updates(1, {"a": DOWNLOAD}, [with_tensors(**many)(GOOD)])


@pytest.mark.parametrize(
    ("download", "message"),
    [
        (replace(DOWNLOAD, train=("w", "u")), r"train: expected names of trainable tensors, got 'u'"),
        (replace(DOWNLOAD, returns={"u": (1,)}), r"returns: expected names of trainable tensors, got 'u'"),
        (replace(DOWNLOAD, start={**DOWNLOAD.start, "u": tensor(1.0)}), r"start: expected names of trainable .* 'u'"),
        (replace(DOWNLOAD, start={**DOWNLOAD.start, "w": tensor(math.nan)}), r"tensor 'w': expected finite values"),
        (replace(DOWNLOAD, extra={"c": tensor(math.inf)}), r"extra tensor 'c': expected finite values"),
        (replace(DOWNLOAD, sent={"s": tensor(math.inf)}), r"sent tensor 's': expected finite values"),
        (replace(DOWNLOAD, start={**DOWNLOAD.start, "A": torch.zeros(4, 3)}), r"start: expected one rank .* \[1, 4\]"),
        (replace(DOWNLOAD, returns={"A": (2, 3), "B": (2, 3)}), r"returns: expected one rank .* \[2, 3\]"),
    ],
)
def test_a_bad_download_is_named(download: Download, message: str) -> None:
    with pytest.raises(AggregationError, match=r"^round 4, broadcast to hospital 'a': " + message):
        check_download(download, SETTING.layout, hospital="a", round_number=4)


def test_a_good_download_passes() -> None:
    check_download(DOWNLOAD, SETTING.layout, hospital="a", round_number=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensors": {"w": tensor(math.nan)}}, r"tensors: tensor 'w': expected finite values"),
        ({"memory": {"v": torch.zeros(2, 3).mT}}, r"memory: tensor 'v': expected a dense, contiguous tensor"),
        ({"memory": {"v": torch.zeros(2, requires_grad=True)}}, r"memory: tensor 'v': .* without gradient"),
        ({"memory": {"v": 1.0}}, r"memory: 'v': expected a tensor under a text, got float"),
        ({"memory": {3: tensor(1.0)}}, r"memory: 3: expected a tensor under a text"),
        (
            {"base": {"W": torch.zeros(2).bfloat16()}},
            r"base: tensor 'W': expected float32 or float64, got torch.bfloat16",
        ),
    ],
)
def test_a_state_that_cannot_be_saved_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(AggregationError, match=r"^server state after round 0: " + message):
        check_server_state(replace(state(SETTING), **fields))


def test_a_good_state_passes() -> None:
    check_server_state(state(SETTING))


def test_an_overflowing_sum_of_finite_values_is_finite() -> None:
    assert is_finite(torch.full((2,), 3e38))
    assert not is_finite(torch.tensor([math.inf, -math.inf]))
    assert not is_finite(torch.tensor([0.0, math.nan]))
