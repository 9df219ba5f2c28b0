"""The contract table: every row of the registry, and every hard case, passes the same suite.

The table of docs/aggregators/README.md says the same of every row, and what the toy federation really sends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from algorithms import CASES
from pairs import one_pair, tensor

from wardround.aggregators import AGGREGATORS, FlapSam, Local
from wardround.aggregators.contract import Download, Pair, Tensors
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import FROZEN, LAYOUT, World, initial_state, make_world, run_round

CLAIMS: dict[str, Claims] = {
    "fedavg": Claims(identity="exact", gauge="not"),
    "fedit": Claims(identity="exact", gauge="not"),
    "fedavgm": Claims(identity="none", reason="momentum carries the step on", gauge="not"),
    "fedadam": Claims(identity="none", reason="the step is scaled element by element", gauge="not"),
    "fedyogi": Claims(identity="none", reason="the step is scaled element by element", gauge="not"),
    "fedadagrad": Claims(identity="none", reason="the step is scaled element by element", gauge="not"),
    "fedprox": Claims(identity="exact", gauge="not"),
    "fednova": Claims(identity="none", reason="hospitals send normalised steps", gauge="not"),
    "qfedavg": Claims(
        identity="none", reason="the step is shortened by its own length", weights="uniform", gauge="not"
    ),
    "padded_fedavg": Claims(identity="exact", gauge="not", ranks="mixed"),
    "hetlora": Claims(identity="exact", gauge="not", ranks="mixed"),
    "ffa_lora": Claims(identity="exact"),
    "rolora": Claims(identity="exact"),
    "fedsa_lora": Claims(identity="exact"),
    "lora_fair": Claims(identity="exact", gauge="not"),
    "lora_fair_ridge": Claims(identity="exact", gauge="not"),
    "flora_na": Claims(identity="exact", gauge="not"),
    "fedrot_lora": Claims(identity="exact", gauge="not"),
    "fedrpca": Claims(
        identity="none",
        reason="entries that stand out are amplified, whoever agrees on them",
        weights="uniform",
        min_hospitals=2,
        gauge="not",
    ),
    "flap_sam": Claims(gauge="invariant", ranks="mixed"),
    "flexlora": Claims(gauge="invariant", ranks="mixed"),
    "raflora": Claims(ranks="mixed"),
    "florist": Claims(
        identity="none", reason="directions below the energy threshold are cut", gauge="invariant", ranks="mixed"
    ),
    "fedsvd": Claims(),
    "flora": Claims(gauge="invariant", ranks="mixed"),
    "fedex_lora": Claims(gauge="invariant"),
    "fedmomentum": Claims(gauge="invariant", ranks="mixed"),
    "scaffold": Claims(identity="exact", weights="uniform", gauge="not"),
    "feddyn": Claims(identity="exact", weights="uniform", gauge="not"),
    "moon": Claims(identity="exact", gauge="not"),
    "ditto": Claims(identity="exact", gauge="not"),
    "fedper": Claims(identity="exact", gauge="not"),
    "fedrep": Claims(identity="exact", gauge="not"),
    "fedbn": Claims(identity="exact", gauge="not"),
    "median": Claims(weights="uniform", gauge="invariant", ranks="mixed"),
    "trimmed_mean": Claims(weights="uniform", min_hospitals=5, gauge="invariant", ranks="mixed"),
    "krum": Claims(weights="uniform", min_hospitals=5, gauge="invariant", ranks="mixed"),
    "multi_krum": Claims(weights="uniform", min_hospitals=5, gauge="invariant", ranks="mixed"),
    "bulyan": Claims(weights="uniform", min_hospitals=7, gauge="invariant", ranks="mixed"),
    "geometric_median": Claims(gauge="invariant", ranks="mixed"),
    "centred_clipping": Claims(gauge="invariant", ranks="mixed"),
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


# --- the overview page ------------------------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[2] / "docs/aggregators/README.md"
COLUMNS = ("page", "exact", "gauge", "needs", "ranks", "up", "down")


def table() -> dict[str, dict[str, str]]:
    """A row per name; a line may stand for several."""
    rows = {}
    for line in re.findall(r"^\| (`.*)\|$", PAGE.read_text(), flags=re.MULTILINE):
        names, *cells = (cell.strip() for cell in line.split(" | "))
        rows |= {name: dict(zip(COLUMNS, cells, strict=True)) for name in re.findall(r"`(\w+)`", names)}
    return rows


ROWS = table()
ADAPTIVE = ("florist",)
"""Their traffic depends on the data; their own tests look at it."""


def test_every_aggregator_has_a_row() -> None:
    assert sorted(ROWS) == sorted(AGGREGATORS)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_claims_are_those_that_the_suite_checks(name: str) -> None:
    row, claims = ROWS[name], CLAIMS[name]
    assert row["gauge"] == (claims.gauge or "–")
    assert row["ranks"] == claims.ranks
    assert row["needs"] == AGGREGATORS[name]().consumes


@pytest.mark.parametrize("name", AGGREGATORS)
def test_bytes_are_those_of_the_formula(name: str) -> None:
    """In rounds 3 and 4 with everybody in them, from the traffic that the ledger counts."""
    world = make_world([2] * max(3, CLAIMS[name].min_hospitals), optimizer=CLAIMS[name].optimizer)
    aggregator = AGGREGATORS[name]()
    last = run_round(aggregator, world, initial_state(aggregator, world))
    for number in (2, 3, 4):
        last = run_round(aggregator, world, last.after, last.memories)
        if number == 2 or name in ADAPTIVE:
            continue
        place = 0 if number % 2 else -1
        first, update = next(iter(last.downloads.values())), last.updates[0]
        assert low_rank(first.traffic) == expected(ROWS[name]["down"], place, world), "down"
        assert low_rank({**update.tensors, **{f"extra.{n}": v for n, v in update.extra.items()}}) == expected(
            ROWS[name]["up"], place, world
        ), "up"


def low_rank(traffic: Tensors) -> int:
    """Scalars that travel for the pairs: all but dense tensors and single numbers for the rule."""
    dense = {*LAYOUT.dense, *(f"extra.{name}" for name in LAYOUT.dense)}
    return sum(value.numel() for name, value in traffic.items() if name not in dense and not is_number(name, traffic))


def is_number(name: str, traffic: Tensors) -> bool:
    return name.startswith("extra.") and traffic[name].numel() == 1


def expected(cell: str, place: int, world: World) -> int:
    formula = re.findall(r"`([^`]*)`", cell)[place]
    return sum(value_of(formula, shape, world) for shape in pair_shapes())


def pair_shapes() -> Iterable[Mapping[str, int]]:
    for pair in LAYOUT.pairs:
        d_out, d_in = FROZEN[pair.base]
        yield {"d_out": d_out if pair.rows is None else pair.rows[1] - pair.rows[0], "d_in": d_in}


def value_of(formula: str, shape: Mapping[str, int], world: World) -> int:
    K, r = len(world.setting.hospitals), world.setting.rank or 0
    names = {**shape, "d": shape["d_out"] + shape["d_in"], "K": K, "r": r, "R": K * r, "min": min}
    return int(eval(formula, {"__builtins__": {}}, names))
