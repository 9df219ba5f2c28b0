"""What FLoRA, FedEx-LoRA and FedMomentum share: products that go into frozen weights, and what hospitals are sent."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from pairs import normal, one_pair, state, tensor, update
from rounds import advance
from torch import Tensor

from wardround.aggregators import FedExLora, FedMomentum, Flora
from wardround.aggregators.contract import Aggregator, HospitalInfo, ServerState, Setting, Tensors
from wardround.aggregators.merging import changes_for, merged
from wardround.aggregators.toy import LAYOUT, initial_state, make_world, run_round, streams
from wardround.simulator.sampling import Cohort

ALL: tuple[Aggregator, ...] = (Flora(), FedExLora(), FedExLora(residual_rank=1), FedMomentum())


def brought_up_to_date(weights: Mapping[str, Tensor], sent: Tensors) -> dict[str, Tensor]:
    """What a hospital makes of what it was sent: a sum for factors, a replacement for a dense change."""
    weights = {name: value.clone() for name, value in weights.items()}
    for pair in LAYOUT.pairs:
        rows = weights[pair.base][pair.slice]
        if f"base/{pair.B}" in sent:
            rows.copy_(sent[f"base/{pair.B}"])
        elif f"merged/{pair.B}" in sent:
            rows.add_(sent[f"merged/{pair.B}"] @ sent[f"merged/{pair.A}"])
    return weights


def drawn(setting: Setting, last: int, rank: int) -> dict[str, Tensor]:
    """The pairs that a hospital of a rank draws by itself, from the seed of all and the round of the last merge."""
    pairs = {}
    for pair in setting.layout.pairs:
        A, generator = setting.trainable[pair.A], streams("aggregate", last, "fresh", pair.A)
        if last:
            A = A.square().mean().sqrt() * torch.randn(A.shape, generator=generator, dtype=torch.float64)
        pairs |= {pair.A: A[:rank], pair.B: setting.trainable[pair.B][:, :rank]}
    return pairs


@pytest.mark.parametrize(
    ("aggregator", "ranks"),
    [
        (Flora(), (1, 2, 3, 2)),
        (FedMomentum(), (1, 2, 3, 2)),
        (FedExLora(), (2, 2, 2, 2)),
        (FedExLora(residual_rank=1), (2, 2, 2, 2)),
    ],
    ids=repr,
)
def test_what_is_sent_is_all_a_hospital_needs(aggregator: Aggregator, ranks: tuple[int, ...]) -> None:
    """Every hospital keeps its own copy of the frozen weights; what it is sent makes it equal to the server's.

    So it is with the trainable tensors, of which FLoRA's hospitals draw the pairs. Twelve rounds with cohorts of one to
    four of four hospitals, some of whose updates get lost; to rounds 1, 5, 6 and 9 nobody comes.
    """
    world, last = make_world(ranks), 0
    names = [hospital.name for hospital in world.setting.hospitals]
    pristine = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in world.setting.frozen.items()}
    copies = dict.fromkeys(names, pristine)
    server, draw, forms = initial_state(aggregator, world), random.Random(0), set()
    for number in range(1, 13):
        if number in (1, 5, 6, 9):
            server = replace(server, round=number)  # as the round loop does
            continue
        cohort = sorted(draw.sample(names, draw.randint(1, 4)))
        arrived = [name for name in cohort if draw.random() < 0.8] or cohort[:1]
        for name in cohort:
            info = world.hospital(name)
            download = aggregator.broadcast(server, info)
            sent = download.traffic
            forms |= {key.partition("/")[0] for key in sent}
            got = brought_up_to_date(copies[name], sent)
            for weight, value in got.items():
                torch.testing.assert_close(value, server.base.get(weight, pristine[weight]), rtol=1e-12, atol=1e-12)
            trainable = {**drawn(world.setting, last, info.rank or 0), **sent}
            assert all(torch.equal(trainable[key], value) for key, value in download.start.items())
            if name in arrived:
                copies[name] = got
        server, last = run_round(aggregator, world, server, cohort=arrived).after, number
    assert {"merged", "base"} <= forms


@pytest.mark.parametrize("aggregator", ALL, ids=repr)
def test_rounds_to_which_nobody_came_cost_nothing(aggregator: Aggregator, make_federated: Callable) -> None:
    """On the tiny SAM, Poisson sampling: after empty rounds the same is sent as if those had not been."""

    def sent(*rates: float) -> list[list[set[str]]]:
        federated, before = make_federated(aggregator, volumes=(1, 1))
        names = []
        for rate in rates:
            outcome = advance(replace(federated, cohort=Cohort(sampling="poisson", rate=rate)), before)
            before = outcome.checkpoint
            names.append([set(download.traffic) for download in outcome.step.downloads.values()])
        return names

    never, always = 1e-9, 1.0
    first, second = sent(always, always)
    assert sent(never, always, never, always) == [[], first, [], second]
    assert len(second) == 2
    assert all(any(name.startswith("merged/") for name in names) for names in second)


def merge(server: ServerState, hospitals: str, rank: int) -> ServerState:
    """A merge of a random product of a rank, with updates from these hospitals."""
    d_out, d_in = server.setting.frozen["W"]
    product = normal(d_out, rank, seed=server.round), normal(rank, d_in, seed=-server.round - 1)
    updates = [update(name) for name in hospitals]
    return replace(merged(server, updates, {server.setting.layout.pairs[0]: product}), round=server.round + 1)


def sent_to(server: ServerState, hospital: str) -> dict[str, tuple[int, ...]]:
    info = HospitalInfo(name=hospital, num_examples=1, rank=1)
    return {name: tuple(value.shape) for name, value in changes_for(server, info).items()}


FACTORS = {"merged/B": (8, 2), "merged/A": (2, 6)}
DENSE = {"base/B": (8, 6)}


def test_before_the_first_merge_nothing_is_sent() -> None:
    assert sent_to(state(one_pair(8, 6)), "a") == {}


def test_after_the_first_merge_everybody_lacks_just_that_one() -> None:
    """Also a hospital that did not take part: it has the pristine weights, as all had."""
    server = merge(state(one_pair(8, 6)), "a", rank=2)
    assert sent_to(server, "a") == sent_to(server, "b") == sent_to(server, "never seen") == FACTORS


def test_who_missed_a_round_is_sent_the_dense_change() -> None:
    server = merge(merge(state(one_pair(8, 6)), "ab", rank=2), "a", rank=2)
    assert sent_to(server, "a") == FACTORS
    assert sent_to(server, "b") == DENSE
    server = merge(server, "b", rank=2)
    assert sent_to(server, "a") == DENSE
    assert sent_to(server, "b") == FACTORS


def test_factors_that_are_larger_than_the_dense_change_are_neither_kept_nor_sent() -> None:
    """(8 + 6) q < 48 up to q = 3."""
    assert sent_to(merge(state(one_pair(8, 6)), "a", rank=3), "a") == {"merged/B": (8, 3), "merged/A": (3, 6)}
    server = merge(state(one_pair(8, 6)), "a", rank=4)
    assert sent_to(server, "a") == DENSE
    assert set(server.memory) == {"merges", "merges/a"}


def test_only_the_rows_of_a_pair_travel() -> None:
    """Q and v are 12 rows each of a fused weight of 36."""
    world = make_world()
    server = initial_state(Flora(), world)
    for cohort in (["hospital-01"], ["hospital-02"]):
        server = run_round(Flora(), world, server, cohort=cohort).after
    sent = changes_for(server, world.hospital("hospital-01"))
    assert {name: tuple(value.shape) for name, value in sent.items()} == {
        "base/encoder.q.B": (12, 16),
        "base/encoder.v.B": (12, 16),
        "base/decoder.q.B": (6, 10),
    }
    torch.testing.assert_close(sent["base/encoder.v.B"], server.base["encoder.qkv"][24:36])
    assert not server.base["encoder.qkv"][12:24].any()


@pytest.mark.parametrize("aggregator", ALL, ids=repr)
def test_a_trained_base_is_refused(aggregator: Aggregator) -> None:
    """Setting.frozen lacks a weight that is trained itself."""
    setting = replace(one_pair(), frozen={})
    with pytest.raises(ValueError, match=r"frozen weight below every low-rank pair .* 'W' is trained itself\. Use a"):
        aggregator.init(setting, streams)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_merges_add_up(dtype: torch.dtype) -> None:
    """2000 merges of 2^-20 are 2000 * 2^-20, to the last digit.

    The server keeps the change, in fp32. A weight of 1 in bf16 would stay 1: half its last digit is 2^-9.
    """
    server = state(one_pair(1, 1))
    pair = server.setting.layout.pairs[0]
    small = torch.tensor([[2.0**-10]], dtype=dtype)
    for _ in range(2000):
        server = merged(server, [], {pair: (small, small)})
    assert server.base["W"].dtype == torch.float32
    assert server.base["W"].item() == 2000 * 2.0**-20
    assert (torch.tensor(1.0, dtype=torch.bfloat16) + 2.0**-20).item() == 1.0


def test_products_of_half_precision_factors_are_not_rounded() -> None:
    """(1 + 2^-7)^2 needs 15 digits, bf16 has 8."""
    server = state(one_pair(1, 1))
    factor = torch.tensor([[1 + 2.0**-7]], dtype=torch.bfloat16)
    base = merged(server, [], {server.setting.layout.pairs[0]: (factor, factor)}).base
    assert base["W"].item() == (1 + 2.0**-7) ** 2


@pytest.mark.parametrize("aggregator", ALL, ids=repr)
def test_one_hospital_alone_gets_its_own_product(aggregator: Aggregator) -> None:
    setting = one_pair(4, 3, ranks=(2,))
    one = update("a", A=normal(2, 3, seed=1), B=normal(4, 2, seed=2), w=tensor(1.0))
    after = aggregator.aggregate(aggregator.init(setting, streams), [one], streams).server
    total = after.base["W"] + after.tensors["B"] @ after.tensors["A"]
    torch.testing.assert_close(total, one.tensors["B"] @ one.tensors["A"])
