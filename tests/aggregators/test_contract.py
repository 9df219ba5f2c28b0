"""The contract table: every row of the registry, and every hard case, passes the same suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from algorithms import CASES
from pairs import one_pair, tensor

from wardround.aggregators import AGGREGATORS, FlapSam, Local
from wardround.aggregators.contract import Download, Pair
from wardround.aggregators.testing import Claims, check_aggregator

CLAIMS: dict[str, Claims] = {
    "fedavg": Claims(identity="exact", gauge="not"),
    "fedit": Claims(identity="exact", gauge="not"),
    "flap_sam": Claims(gauge="invariant", ranks="mixed"),
    "local": Claims(identity="exact", weights="uniform", ranks="mixed"),
}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_row_keeps_the_contract(name: str) -> None:
    check_aggregator(AGGREGATORS[name](), CLAIMS[name])


@pytest.mark.parametrize("split", ["left", "symmetric"])
def test_every_split_keeps_the_contract(split: Any) -> None:
    check_aggregator(FlapSam(split=split), CLAIMS["flap_sam"])


@pytest.mark.parametrize("name", CASES)
def test_every_hard_case_keeps_the_contract(name: str) -> None:
    check_aggregator(*CASES[name])


@pytest.mark.parametrize(("power", "scale"), [(0.0, 8.0), (1.0, 2.0), (0.5, 4.0)])
def test_scale_by_hand(power: float, scale: float) -> None:
    """8 / 4^power."""
    assert Pair(A="A", B="B", base="W", alpha=8.0, power=power).scale(4) == scale


def test_names_are_pairs_first() -> None:
    assert one_pair().layout.names == ("A", "B", "w")


def test_the_rank_of_a_setting_is_that_of_its_tensors() -> None:
    assert one_pair(ranks=(1, 3, 2)).rank == 3


def test_traffic_is_start_and_extra_unless_said_otherwise() -> None:
    start, c = {"w": tensor(1.0)}, tensor(2.0)
    download = Download(start=start, train=("w",), returns={"w": (1,)}, extra={"w": c})
    assert dict(download.traffic) == {"w": tensor(1.0), "extra.w": c}
    assert Download(start=start, train=(), returns={}, sent={}).traffic == {}


def test_local_downloads_cost_nothing() -> None:
    server = Local().init(one_pair(), lambda *keys: torch.Generator())
    assert Local().broadcast(server, one_pair().hospitals[0]).traffic == {}
