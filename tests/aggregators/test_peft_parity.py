"""The aggregators of low-rank pairs against Hugging Face's PEFT, which can combine adapters of one model.

``svd`` is FlexLoRA's aggregation and ``cat`` FLoRA's. ``linear`` is no mean of factors: it weighs each factor by the
square root of its share, so that nothing of ours compares with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pairs import one_pair, product, random_updates, state
from torch import Tensor

from wardround.aggregators import FedExLora, FedMomentum, FlapSam, Flora
from wardround.aggregators.contract import ClientUpdate, ServerState, Setting
from wardround.aggregators.toy import streams

D_OUT, D_IN, ALPHA = 12, 10, 6.0
WEIGHTS = (1.0, 2.0, 5.0)


def setting_of(ranks: Sequence[int]) -> Setting:
    """One pair on a non-square weight, scale 6 / r as PEFT has it."""
    return one_pair(D_OUT, D_IN, ranks=ranks, alpha=ALPHA, power=1.0)


def combined(updates: Sequence[ClientUpdate], combination: str, rank: int | None = None) -> Tensor:
    """What PEFT's combination of the hospitals' adapters adds to the weight, (d_out, d_in)."""
    from peft import LoraConfig, get_peft_model

    model: Any = torch.nn.Sequential(torch.nn.Linear(D_IN, D_OUT, bias=False, dtype=torch.float64))
    names = [f"hospital-{one.hospital}" for one in updates]
    for name, one in zip(names, updates, strict=True):
        config = LoraConfig(r=len(one.tensors["A"]), lora_alpha=ALPHA, target_modules=["0"])
        if name == names[0]:
            model = get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=False)
        else:
            model.add_adapter(name, config)
    layer = model.base_model.model[0].double()
    for name, one in zip(names, updates, strict=True):
        layer.lora_A[name].weight.data.copy_(one.tensors["A"])
        layer.lora_B[name].weight.data.copy_(one.tensors["B"])
    shares = [one.weight / sum(WEIGHTS) for one in updates]
    model.add_weighted_adapter(names, shares, "all", combination_type=combination, svd_rank=rank)
    return layer.get_delta_weight("all").detach().double()


def weight_of(server: ServerState) -> Tensor:
    """What the server's model adds to the weight."""
    own = product(server.setting, server.tensors)
    return own + server.base["W"] if "W" in server.base else own


@pytest.mark.parametrize("ranks", [(3, 3, 3), (1, 2, 4)])
def test_svd_is_the_product_average(ranks: tuple[int, ...]) -> None:
    setting = setting_of(ranks)
    updates = random_updates(setting, WEIGHTS)
    after = FlapSam(split="left").aggregate(state(setting), updates, streams).server
    torch.testing.assert_close(weight_of(after), combined(updates, "svd", max(ranks)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("aggregator", "ranks"),
    [
        (Flora(), (3, 3, 3)),
        (Flora(), (1, 2, 4)),
        (FedExLora(), (3, 3, 3)),
        (FedMomentum(), (3, 3, 3)),
        (FedMomentum(), (1, 2, 4)),
    ],
    ids=str,
)
def test_cat_is_what_the_merging_aggregators_arrive_at(aggregator: Any, ranks: tuple[int, ...]) -> None:
    """FLoRA merges PEFT's stack; the other two divide the same weight between the pair and the base."""
    setting = setting_of(ranks)
    updates = random_updates(setting, WEIGHTS)
    after = aggregator.aggregate(state(setting), updates, streams).server
    torch.testing.assert_close(weight_of(after), combined(updates, "cat"), rtol=1e-6, atol=1e-6)
