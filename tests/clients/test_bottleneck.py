"""Bottleneck adapters: what they compute, by hand; where they sit; how they start."""

import math

import pytest
import torch

from wardround.clients.bottleneck import AdaptedMLP, Bottleneck, adapt_blocks, bottlenecks, initialise_bottlenecks
from wardround.clients.vit import Vit
from wardround.simulator.randomness import generator, streams

TINY = Vit(size="tiny", image_size=32)


def test_forward_by_hand() -> None:
    """With down = [1 1], bias 1; up = [2 0]^T, bias [0 3]: x = (1, 2) gives g = GELU(4) and x + (2 g, 3)."""
    adapter = Bottleneck(2, 1, torch.device("cpu")).double()
    with torch.no_grad():
        adapter.down.weight.fill_(1.0)
        adapter.down.bias.fill_(1.0)
        adapter.up.weight.copy_(torch.tensor([[2.0], [0.0]]))
        adapter.up.bias.copy_(torch.tensor([0.0, 3.0]))
    g = 4 * 0.5 * (1 + math.erf(4 / math.sqrt(2)))
    assert adapter(torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist() == pytest.approx([1 + 2 * g, 5.0], rel=1e-14)


def test_it_stands_behind_the_mlp_and_before_the_blocks_own_sum() -> None:
    net = TINY.build(3, streams(0, "init")).double()
    layer, tokens = net.vit.layers[0], torch.randn(2, 5, 32, dtype=torch.float64, generator=generator(0, "tokens"))
    base = layer.mlp
    adapt_blocks(net, 4)
    net.double()
    with torch.no_grad():
        for name, tensor in layer.mlp.adapter.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator(0, name)))
    down, up = layer.mlp.adapter.down, layer.mlp.adapter.up
    middle = tokens + layer.attention(layer.layernorm_before(tokens))[0]
    m = base(layer.layernorm_after(middle))
    h = m @ down.weight.T + down.bias
    h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    torch.testing.assert_close(layer(tokens), middle + m + h @ up.weight.T + up.bias, rtol=1e-12, atol=1e-12)


def test_the_start_changes_no_bit_and_leaves_names_as_they_are() -> None:
    net, images = TINY.build(3, streams(0, "init")), torch.rand(2, 3, 32, 32, generator=generator(0, "images"))
    before, expected = dict(net.named_parameters()), net(images)
    adapt_blocks(net, 4)
    assert net(images).isnan().all()  # a forgotten start
    initialise_bottlenecks(net, streams(0, "init"))
    assert torch.equal(net(images), expected)
    after = dict(net.named_parameters())
    assert all(after[name] is tensor for name, tensor in before.items())
    assert {name.rpartition(".adapter.")[2] for name in after.keys() - before.keys()} == {
        "down.weight",
        "down.bias",
        "up.weight",
        "up.bias",
    }


def test_down_is_uniform_within_one_over_the_root_of_the_width() -> None:
    net = Vit(size="mini", image_size=32).build(3, streams(0, "init"))
    adapt_blocks(net, 64)
    initialise_bottlenecks(net, streams(0, "init"))
    first, second, *_ = bottlenecks(net)
    assert first.down.weight.abs().max() <= 1 / math.sqrt(128)
    assert first.down.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 128), rel=0.05)
    assert not torch.equal(first.down.weight, second.down.weight)
    assert first.down.bias.any()


def test_adapters_of_another_width_are_refused() -> None:
    net = TINY.build_meta(3)
    adapt_blocks(net, 4)
    adapt_blocks(net, 4)
    assert isinstance(net.vit.layers[0].mlp, AdaptedMLP)
    with pytest.raises(ValueError, match="block 0: expected no adapter or one of width 5, got 4"):
        adapt_blocks(net, 5)
