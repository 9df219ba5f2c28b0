"""FlexLoRA: FLAP-SAM's step with the singular values in B, at every hospital's own rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from algorithms import FlexLoRA
from pairs import ideal_mean, normal, one_pair, product, random_updates, state, tensor, update
from torch import Tensor, nn

from wardround.aggregators import FlapSam, FlexLora
from wardround.aggregators.contract import ServerState
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def test_two_by_two_by_hand() -> None:
    """Ranks 1 and 2 with scale 2 / r: M = (2 diag(1, 0) + diag(0, 6)) / 2 = diag(1, 3), singular values 3 and 1.

    At rank 1 the scale is 2: B = (0, 3) / 2, A = (0, 1). At rank 2 it is 1: B = U S and A = V^T as they are.
    """
    setting = one_pair(ranks=(1, 2), alpha=2.0, power=1.0)
    updates = [
        update("a", B=tensor([1.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(1.0)),
        update("b", B=tensor([0.0, 0.0], [0.0, 2.0]), A=tensor([0.0, 0.0], [0.0, 3.0]), w=tensor(3.0)),
    ]
    server = FlexLora().aggregate(state(setting), updates, streams).server
    a, b = (FlexLora().broadcast(server, hospital).start for hospital in setting.hospitals)
    torch.testing.assert_close((a["B"], a["A"]), (tensor([0.0], [1.5]), tensor([0.0, 1.0])))
    torch.testing.assert_close((b["B"], b["A"]), (tensor([0.0, 1.0], [3.0, 0.0]), tensor([0.0, 1.0], [1.0, 0.0])))
    assert a["w"] == b["w"] == 2.0


def test_is_flap_sam_with_the_other_split() -> None:
    setting = one_pair(11, 13, ranks=(1, 2, 4), alpha=4.0, power=1.0)
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    flex, left, right = (
        aggregator.aggregate(state(setting), updates, streams).server.tensors
        for aggregator in (FlexLora(), FlapSam(split="left"), FlapSam())
    )
    assert all(torch.equal(flex[name], left[name]) for name in flex)
    assert not torch.allclose(flex["B"], right["B"])
    torch.testing.assert_close(product(setting, flex), product(setting, right), rtol=0, atol=1e-12)


def test_every_hospital_loses_the_tail_beyond_its_rank() -> None:
    """``||M - W_i|| = sqrt(sum_{j > r_i} sigma_j^2)``, against a dense SVD, and A has orthonormal rows."""
    setting = one_pair(9, 8, ranks=(1, 2, 4), alpha=6.0, power=0.5)
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    M = ideal_mean(setting, updates)
    server = FlexLora().aggregate(state(setting), updates, streams).server
    S = np.linalg.svd(M.numpy(), compute_uv=False)
    for hospital in setting.hospitals:
        given, rank = FlexLora().broadcast(server, hospital).start, hospital.rank or 0
        assert (M - product(setting, given)).norm().item() == pytest.approx(np.linalg.norm(S[rank:]), rel=1e-12)
        torch.testing.assert_close(given["A"] @ given["A"].mT, torch.eye(rank).double())


def test_agrees_with_a_dense_numpy_version_over_rounds_with_different_ranks() -> None:
    world = make_world((1, 2, 3))
    models = []
    for aggregator in (FlexLora(), FlexLoRA()):
        server = initial_state(aggregator, world)
        for _ in range(3):
            server = run_round(aggregator, world, server).after
        models.append(world.model(server.tensors, {}))
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("power", [1.0, 0.5], ids=["LoRA", "rsLoRA"])
def test_agrees_with_peft(power: float) -> None:
    """PEFT's ``add_weighted_adapter(..., "svd")`` on adapters of ranks 1, 2 and 4 with their own scales.

    Compared are the merged factors as they are: PEFT means them to have the scale 1, but 0.21 gives them sqrt(rank)
    with rsLoRA.
    """
    from peft import LoraConfig, get_peft_model

    setting = one_pair(9, 8, ranks=(1, 2, 4), alpha=4.0, power=power)
    updates = random_updates(setting, [1.0, 2.0, 5.0])
    names = [f"hospital-{one.hospital}" for one in updates]
    rs = power == 0.5
    configs = [LoraConfig(r=r, lora_alpha=4, use_rslora=rs, target_modules=["0"]) for r in (1, 2, 4)]
    model = get_peft_model(nn.Sequential(nn.Linear(8, 9)), configs[0], adapter_name=names[0]).double()
    for name, config in zip(names[1:], configs[1:], strict=True):
        model.add_adapter(name, config)
    layer: Any = model.base_model.model[0]
    with torch.no_grad():
        for name, one in zip(names, updates, strict=True):
            layer.lora_A[name].weight.copy_(one.tensors["A"])
            layer.lora_B[name].weight.copy_(one.tensors["B"])
    model.add_weighted_adapter(names, [1 / 8, 2 / 8, 5 / 8], "all", combination_type="svd", svd_rank=4)
    ours = FlexLora().aggregate(state(setting), updates, streams).server.tensors
    theirs = layer.lora_B["all"].weight @ layer.lora_A["all"].weight
    torch.testing.assert_close(product(setting, ours), theirs.detach().double(), rtol=0, atol=1e-5)


# ---- rank collapse ---------------------------------------------------------------------------------------------------

RANKS = (2, 2, 4, 8)
ENERGIES = (0.25, 0.25, *[0.5 / 6] * 6)
"""Shares of the eight directions at the start: half of the energy lies in the first two."""


def spectrum_state(energies: tuple[float, ...] = ENERGIES) -> ServerState:
    """A server whose pair (32 x 24, rank 8) has these squared singular values."""
    U, V = (torch.linalg.qr(normal(size, 8, seed=size)).Q for size in (32, 24))
    before = state(one_pair(32, 24, ranks=RANKS))
    return replace(before, tensors={**before.tensors, "B": U * tensor(*energies).sqrt(), "A": V.mT.contiguous()})


def redistributed(aggregator: FlapSam, server: ServerState) -> ServerState:
    """Everybody sends back what it was handed; equal weights."""
    hospitals = server.setting.hospitals
    updates = [update(one.name, **aggregator.broadcast(server, one).start) for one in hospitals]
    return aggregator.aggregate(server, updates, streams).server


def top_two_share(server: ServerState) -> float:
    energy = torch.linalg.svdvals(product(server.setting, server.tensors)).square()
    return (energy[:2].sum() / energy.sum()).item()


def shares(aggregator: FlapSam, rounds: int = 5) -> list[float]:
    server = spectrum_state()
    result = [top_two_share(server)]
    for _ in range(rounds):
        server = redistributed(aggregator, server)
        result.append(top_two_share(server))
    return result


def collapsed(rounds: int) -> float:
    """The share in closed form: directions 3-4 lose a half per round, 5-8 three quarters, the first two nothing.

    ``0.5 / (0.5 + 2/12 (1/2)^2t + 4/12 (1/4)^2t)``: 0.5, 0.889, 0.977, 0.995, 0.999, 1.000.
    """
    return 0.5 / (0.5 + 2 / 12 * 0.5 ** (2 * rounds) + 4 / 12 * 0.25 ** (2 * rounds))


def test_ranks_collapse_without_learning() -> None:
    """Hospitals of ranks 2, 2, 4, 8 that do nothing: the energy runs into the first two directions."""
    got = shares(FlexLora())
    assert got == pytest.approx([collapsed(t) for t in range(6)], rel=1e-9)
    assert [round(share, 3) for share in got] == [0.5, 0.889, 0.977, 0.995, 0.999, 1.0]


def test_equal_ranks_do_not_collapse() -> None:
    server = spectrum_state()
    server = replace(
        server,
        setting=replace(server.setting, hospitals=tuple(replace(one, rank=8) for one in server.setting.hospitals)),
    )
    for _ in range(5):
        server = redistributed(FlexLora(), server)
    assert top_two_share(server) == pytest.approx(0.5, rel=1e-9)


def test_the_split_does_not_matter_for_the_collapse() -> None:
    assert shares(FlapSam()) == pytest.approx(shares(FlexLora()), rel=1e-9)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^split: expected one of 'right', 'left', 'symmetric', got 'middle'"):
        FlexLora(split="middle")


def test_is_handed_to_hospitals_contiguous_and_finite() -> None:
    server = redistributed(FlexLora(), spectrum_state())
    given: dict[str, Tensor] = dict(FlexLora().broadcast(server, server.setting.hospitals[0]).start)
    assert all(value.is_contiguous() and torch.isfinite(value).all() for value in given.values())
