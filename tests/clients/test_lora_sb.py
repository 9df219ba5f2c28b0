"""LoRA-SB: the forward by hand, what its two starts are, and that its mean is the mean of the updates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from rounds import advance
from torch import Tensor, nn

from wardround.aggregators import FedAvg, Local
from wardround.aggregators.contract import Layout
from wardround.clients.lora import LoRA, adapt
from wardround.clients.lora_sb import Core, CoreLinear, adapt_core, initialise_cores
from wardround.clients.methods import FlapSam, LoraSb
from wardround.clients.sam import Sam
from wardround.clients.training import Training
from wardround.simulator.assembly import build_replica
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.randomness import streams
from wardround.simulator.runtime import choose_device

FUSED = {"lora_q": (0, 4), "lora_v": (8, 12)}


def initialised(rank: int, init: str = "orthonormal", scale: float = 1.0) -> CoreLinear:
    """A layer 6 -> 12 in float64 with cores on rows 0 to 4 and 8 to 12."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(6, 12)})
    adapt_core(model, "layer", FUSED, rank, scale)
    initialise_cores(model, init, streams(0, "init"))
    return model["layer"].double().requires_grad_(False)


def change(layer: CoreLinear) -> Tensor:
    """What the cores add to the weight, through the forward alone: (12, 6)."""
    inputs = torch.eye(6).double()
    return (layer(inputs) - nn.functional.linear(inputs, layer.weight, layer.bias)).mT


def test_two_by_two_by_hand() -> None:
    """Of s B R A x with s = 2, B = A = I, R = [[0, 1], [0, 0]] and x = (3, 5) comes 2 (5, 0), beside W x = (3, 5)."""
    model = nn.ModuleDict({"layer": nn.Linear(2, 2, bias=False)})
    with torch.no_grad():
        model["layer"].weight.copy_(torch.eye(2))
    adapt_core(model, "layer", {"lora": None}, 2, 2.0)
    core = model["layer"].get_submodule("lora")
    assert isinstance(core, Core)
    for tensor, value in ((core.A, torch.eye(2)), (core.B, torch.eye(2)), (core.R, torch.tensor([[0.0, 1], [0, 0]]))):
        tensor.data.copy_(value)
    assert model["layer"](torch.tensor([3.0, 5.0])).tolist() == [13.0, 5.0]


def test_only_the_rows_of_a_core_change() -> None:
    layer = initialised(3, scale=0.5)
    core = layer.lora_v
    core.R.copy_(torch.arange(9.0).reshape(3, 3))
    expected = np.zeros((12, 6))
    expected[8:12] = 0.5 * core.B.numpy() @ core.R.numpy() @ core.A.numpy()
    np.testing.assert_allclose(change(layer).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("init", ["orthonormal", "weights"])
def test_frozen_factors_are_orthonormal_and_r_is_zero(init: str) -> None:
    layer = initialised(3, init)
    for core in (layer.lora_q, layer.lora_v):
        torch.testing.assert_close(core.A @ core.A.mT, torch.eye(3).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(core.B.mT @ core.B, torch.eye(3).double(), atol=1e-6, rtol=0)
        assert not core.R.any()
    assert not change(layer).any()


def test_the_singular_vectors_are_those_of_the_adapted_rows() -> None:
    """B R A with R = diag(S) is the best approximation of rank 2 of rows 8 to 12, by NumPy's decomposition."""
    layer = initialised(2, "weights")
    U, S, Vh = np.linalg.svd(layer.weight[8:12].numpy())
    layer.lora_v.R.copy_(torch.from_numpy(np.diag(S[:2])))
    np.testing.assert_allclose(change(layer)[8:12].numpy(), (U[:, :2] * S[:2]) @ Vh[:2], atol=1e-6)


def test_rank_two_is_the_first_two_directions_of_rank_four() -> None:
    small, large = initialised(2), initialised(4)
    torch.testing.assert_close(small.lora_q.A, large.lora_q.A[:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(small.lora_q.B, large.lora_q.B[:, :2], atol=1e-6, rtol=0)
    assert not torch.allclose(small.lora_q.A, small.lora_v.A)
    assert not torch.allclose(small.lora_q.B, small.lora_v.B)


def test_a_rank_beyond_a_width_is_that_width() -> None:
    """Four rows of six columns: R has 4 x 4 numbers, and B R A reaches every change of the rows."""
    assert initialised(64).lora_q.R.shape == (4, 4)


def test_forgotten_initial_values_are_noticed() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(6, 12)})
    adapt_core(model, "layer", FUSED, 2, 1.0)
    assert model["layer"](torch.ones(1, 6)).isnan().any()


def test_other_adapters_in_place_are_an_error() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(6, 12)})
    adapt_core(model, "layer", FUSED, 2, 1.0)
    adapt_core(model, "layer", FUSED, 2, 1.0)
    with pytest.raises(ValueError, match=r"layer 'layer': expected no adapters or cores of rank 3 and scale 1\.0, got"):
        adapt_core(model, "layer", FUSED, 3, 1.0)
    with pytest.raises(ValueError, match=r"layer 'layer': expected no adapters or those of LoRA\(rank=2"):
        adapt(model, "layer", FUSED, LoRA(rank=2))


def attached(method: LoraSb) -> Layout:
    return method.attach(Sam(size="tiny", image_size=32).build_meta(2))


def test_it_sits_where_lora_does_and_is_dense() -> None:
    """One R per pair of FLAP-SAM's, of kind core, and the same head; nothing else trains."""
    found, lora = attached(LoraSb()), FlapSam().attach(Sam(size="tiny", image_size=32).build_meta(2))
    assert not found.pairs
    assert [name for name in found.dense if found.kind[name] == "core"] == [
        pair.A.removesuffix("A") + "R" for pair in lora.pairs
    ]
    assert [name for name in found.dense if found.kind[name] != "core"] == list(lora.dense)
    assert {found.kind[name] for name in attached(LoraSb(head="frozen")).dense} == {"core"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: expected at least 1, got 0"),
        ({"scale": 0.0}, "scale: expected a finite number above 0, got 0.0"),
        ({"init": "gradient"}, "init: expected 'orthonormal' or 'weights', got 'gradient'"),
        ({"head": "local"}, "head: expected 'trained' or 'frozen', got 'local'"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        LoraSb(**settings)


def test_ranks_per_hospital_are_refused() -> None:
    experiment = load_experiment("tiny", open_file(PACKAGED), ["method=lora_sb", "ranks={hospital-1: 4}"])
    with pytest.raises(ValueError, match="ranks: expected a method with LoRA or low-rank prompts, got lora_sb"):
        build_replica(experiment, 2, choose_device("cpu"), ("hospital-1", "hospital-2"))


def test_two_builds_of_one_seed_have_the_same_frozen_factors() -> None:
    """They are not sent: every hospital makes them from the seed."""
    experiment = load_experiment("tiny", open_file(PACKAGED), ["method=lora_sb", "method.rank=4"])
    left, right = (build_replica(experiment, 2, choose_device("cpu")).model for _ in range(2))
    buffers = dict(right.named_buffers())
    frozen = {name: value for name, value in left.named_buffers() if name.endswith(("lora.A", "lora_q.B"))}
    assert frozen
    assert all(torch.equal(value, buffers[name]) for name, value in frozen.items())


def test_fedavg_of_r_is_the_ideal_mean(make_federated: Callable) -> None:
    """One round of three hospitals on the tiny SAM: s B (mean R) A = sum_k p_k s B R_k A, with p = (1, 2, 3) / 6."""
    method = LoraSb(rank=3, scale=2.0)
    training = Training(batch_size=4, epochs=1.0)
    federated, before = make_federated(FedAvg(), method=method, training=training)
    mean = advance(federated, before).checkpoint.server.tensors
    alone = advance(*make_federated(Local(), method=method, training=training)).checkpoint.memories
    model = federated.workplace.replica.model
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Core)]
    assert len(layers) > 4
    for name, core in layers:
        A, B = core.A.numpy(), core.B.numpy()
        updates = [2.0 * B @ memory.tensors[f"{name}.R"].numpy() @ A for _, memory in sorted(alone.items())]
        assert all(np.abs(update).max() > 1e-8 for update in updates)
        ideal = sum(p * update for p, update in zip((1 / 6, 2 / 6, 3 / 6), updates, strict=True))
        np.testing.assert_allclose(2.0 * B @ mean[f"{name}.R"].numpy() @ A, ideal, rtol=1e-6, atol=1e-12)
