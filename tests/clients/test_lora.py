"""LoRA layers: equal to the dense formula, exact identity at B = 0, initial values by name and row."""

import math

import pytest
import torch
from torch import Tensor, nn

from wardround.clients.lora import Adapter, LoRA, LoRALinear, Rows, adapt, initialise_adapters, pairs, set_rank
from wardround.simulator.randomness import generator, streams

FUSED: dict[str, Rows] = {"lora_q": (0, 4), "lora_v": (8, 12)}
WHOLE: dict[str, Rows] = {"lora": None}
MIDDLE: dict[str, Rows] = {"lora_k": (4, 8)}


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(0, "test", key))


def adapted(rows: dict[str, Rows], settings: LoRA, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A model of one 6 -> 12 layer with random weights, factors included."""
    model = nn.Sequential(nn.Linear(6, 12))
    adapt(model, "0", rows, settings)
    model.to(dtype)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(normal(*tensor.shape, key=name))
    return model


def dense_weight(model: nn.Sequential, scale: float) -> Tensor:
    """``W + s B A`` on the rows of each pair."""
    tensors = dict(model.named_parameters())
    weight = tensors["0.weight"].clone()
    for pair in pairs(model):
        first, last = pair.rows or (0, len(weight))
        weight[first:last] += scale * tensors[pair.B] @ tensors[pair.A]
    return weight


@pytest.mark.parametrize("rows", [FUSED, WHOLE, MIDDLE], ids=["fused", "whole", "middle"])
def test_forward_and_gradients_equal_the_dense_formula(rows: dict[str, Rows]) -> None:
    model = adapted(rows, LoRA(rank=2, alpha=3.0, power=1.0))  # s = 3 / 2
    model.requires_grad_(True)
    inputs, target = normal(5, 7, 6, key="x"), normal(5, 7, 12, key="y")
    dense = nn.functional.linear(inputs, dense_weight(model, 1.5), model[0].bias)
    torch.testing.assert_close(model(inputs), dense, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    got = torch.autograd.grad((model(inputs) * target).sum(), parameters)
    expected = torch.autograd.grad((dense * target).sum(), parameters)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_forward_by_hand() -> None:
    """W = 0, b = 0, A = [1 2], B = [3], s = 1/2, x = (1, 1): the adapted row is 1/2 * 3 * (1 + 2) = 4.5."""
    model = nn.Sequential(nn.Linear(2, 2))
    adapt(model, "0", {"lora": (1, 2)}, LoRA(rank=1, alpha=0.5))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
        model[0].lora.A.copy_(torch.tensor([[1.0, 2.0]]))
        model[0].lora.B.fill_(3.0)
    assert model(torch.ones(1, 2)).tolist() == [[0.0, 4.5]]


def test_zero_b_changes_no_bit() -> None:
    base = nn.Linear(6, 12)
    inputs = torch.randn(3, 6, generator=generator(0, "x"))
    expected = base(inputs)
    model = nn.Sequential(base)
    adapt(model, "0", FUSED, LoRA(rank=2))
    initialise_adapters(model, streams(0, "init"))
    assert torch.equal(model(inputs), expected)


def test_the_base_keeps_its_tensors_and_names() -> None:
    model = nn.Sequential(nn.Linear(6, 12))
    before = dict(model.named_parameters())
    adapt(model, "0", FUSED, LoRA(rank=2))
    after = dict(model.named_parameters())
    assert all(after[name] is tensor for name, tensor in before.items())
    assert set(after) - set(before) == {f"0.lora_{x}.{y}" for x in "qv" for y in "AB"}
    assert isinstance(model[0], nn.Linear)


def test_a_layer_without_bias() -> None:
    model = nn.Sequential(nn.Linear(6, 12, bias=False))
    adapt(model, "0", WHOLE, LoRA(rank=2))
    initialise_adapters(model, streams(0, "init"))
    assert model(torch.ones(1, 6)).isfinite().all()
    assert model[0].bias is None


def test_forgotten_initial_values_are_noticed() -> None:
    model = nn.Sequential(nn.Linear(6, 12))
    adapt(model, "0", FUSED, LoRA(rank=2))
    assert model(torch.ones(1, 6)).isnan().any()


def initialised(rank: int, seed: int = 0, init_b: str = "zero", width: int = 50) -> LoRALinear:
    model = nn.ModuleDict({"layer": nn.Linear(width, 12)})
    adapt(model, "layer", FUSED, LoRA(rank=rank, init_b=init_b))
    initialise_adapters(model, streams(seed, "init"))
    return model["layer"]


def test_rank_4_is_the_first_four_rows_of_rank_32() -> None:
    small, large = initialised(4), initialised(32)
    assert torch.equal(small.lora_q.A, large.lora_q.A[:4])
    assert not large.lora_q.B.any()


def test_initial_values_depend_on_seed_and_name() -> None:
    layer = initialised(4)
    assert not torch.equal(layer.lora_q.A, layer.lora_v.A)
    assert not torch.equal(layer.lora_q.A, initialised(4, seed=1).lora_q.A)
    assert torch.equal(layer.lora_q.A, initialised(4).lora_q.A)


def test_initial_deviations() -> None:
    """Var A = 1 / (3 * 1000) and, when B is random, Var B = 1 / (3 * 64); 64,000 and 256 numbers: 5 % and 20 %."""
    layer = initialised(64, init_b="normal", width=1000)
    assert layer.lora_q.A.std().item() == pytest.approx(1 / math.sqrt(3000), rel=0.05)
    assert layer.lora_q.B.std().item() == pytest.approx(1 / math.sqrt(192), rel=0.2)


def test_initial_values_leave_the_global_stream_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    state = torch.random.get_rng_state()
    adapt(model, "0", WHOLE, LoRA(rank=2))
    initialise_adapters(model, streams(0, "init"))
    assert torch.equal(state, torch.random.get_rng_state())


def test_rank_sets_the_scale() -> None:
    """The scale is alpha / r^power: 8 / sqrt(16) = 2 at the full rank, 8 / sqrt(4) = 4 at rank 4."""
    model = nn.Sequential(nn.Linear(6, 12))
    adapt(model, "0", FUSED, LoRA(rank=16, alpha=8.0, power=0.5))
    scale = model[0].lora_q.scale
    assert scale.item() == 2.0
    set_rank(model, 4)
    assert scale.item() == 4.0
    assert model[0].lora_q.scale is scale  # written in place, so that nothing is compiled again


def test_zero_padded_factors_at_a_lower_rank_are_exact() -> None:
    settings = LoRA(rank=3, alpha=1.0, power=1.0)
    large, small = adapted(FUSED, settings), adapted(FUSED, LoRA(rank=1, alpha=1.0, power=1.0))
    with torch.no_grad():
        for name in ("lora_q", "lora_v"):
            wide, narrow = large[0].get_submodule(name), small[0].get_submodule(name)
            wide.A.zero_()[:1] = narrow.A
            wide.B.zero_()[:, :1] = narrow.B
    set_rank(large, 1)
    inputs = normal(4, 6, key="x")
    torch.testing.assert_close(large(inputs), small(inputs), rtol=1e-12, atol=1e-12)


def test_the_scale_is_exact_in_double_precision() -> None:
    """1/3 rounded to fp32 differs from 1/3 by 1e-8."""
    model = adapted(FUSED, LoRA(rank=3, power=1.0))
    assert model[0].lora_q.scale.item() == 1 / 3


def test_scale_is_no_part_of_the_state() -> None:
    assert not any("scale" in name for name in adapted(FUSED, LoRA(rank=2)).state_dict())


def test_bf16_autocast() -> None:
    model = adapted(FUSED, LoRA(rank=2), torch.float32)
    inputs = normal(4, 6, key="x").float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(inputs)
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.float(), model(inputs), rtol=0.05, atol=0.2)


def test_pairs_describe_what_the_layer_computes() -> None:
    found = pairs(adapted(FUSED, LoRA(rank=2, alpha=3.0, power=1.0)))
    assert [(pair.A, pair.B, pair.base, pair.rows) for pair in found] == [
        ("0.lora_q.A", "0.lora_q.B", "0.weight", (0, 4)),
        ("0.lora_v.A", "0.lora_v.B", "0.weight", (8, 12)),
    ]
    assert found[0].scale(2) == 1.5
    assert pairs(adapted(WHOLE, LoRA(rank=2)))[0].rows is None


def test_adapting_twice_is_once() -> None:
    model = adapted(FUSED, LoRA(rank=2))
    layer = model[0]
    adapt(model, "0", FUSED, LoRA(rank=2))
    assert model[0] is layer
    assert sum(isinstance(module, Adapter) for module in model.modules()) == 2


def test_settings_are_checked_all_at_once() -> None:
    with pytest.raises(ValueError, match=r"rank: expected at least 1, got 0; alpha: .* got -1.0; power: .*; init_b: "):
        LoRA(rank=0, alpha=-1.0, power=math.nan, init_b="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"blocks: expected at least 1, or null for all, got 0"):
        LoRA(blocks=0)
