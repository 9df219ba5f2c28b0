"""FLAP-SAM's aggregator: mean of dense tensors, product average and SVD of pairs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from algorithms import FlexLoRA
from pairs import ideal_mean, one_pair, product, random_updates, state, tensor, update
from torch import Tensor

from wardround.aggregators import FedAvg, FlapSam
from wardround.aggregators.contract import Aggregated, HospitalInfo, ServerState, Setting
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def aggregated(server: ServerState, updates: list, split: str = "right") -> Aggregated:
    return FlapSam(split=split).aggregate(server, updates, streams)


def by_hand(weight_a: float, weight_b: float) -> list:
    """B_a A_a = diag(2, 0) and B_b A_b = diag(0, 4)."""
    return [
        update("a", weight_a, B=tensor([2.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(1.0)),
        update("b", weight_b, B=tensor([0.0], [4.0]), A=tensor([0.0, 1.0]), w=tensor(5.0)),
    ]


@pytest.mark.parametrize(
    ("split", "B", "A"),
    [
        ("right", tensor([0.0], [1.0]), tensor([0.0, 2.0])),
        ("left", tensor([0.0], [2.0]), tensor([0.0, 1.0])),
        ("symmetric", tensor([0.0], [2**0.5]), tensor([0.0, 2**0.5])),
    ],
)
def test_two_by_two_by_hand(split: str, B: Tensor, A: Tensor) -> None:
    """Equal weights: M = diag(1, 2), singular values 2 and 1, best rank 1 is diag(0, 2).

    w = (1 + 5) / 2.
    """
    result = aggregated(state(one_pair()), by_hand(1.0, 1.0), split)
    torch.testing.assert_close(result.server.tensors["B"], B)
    torch.testing.assert_close(result.server.tensors["A"], A)
    assert result.server.tensors["w"] == 3.0
    assert result.server.round == 1


def test_two_by_two_by_hand_with_other_weights() -> None:
    """Weights 3 : 1: M = diag(3/2, 1), best rank 1 is diag(3/2, 0). w = (3 * 1 + 5) / 4 = 2."""
    result = aggregated(state(one_pair()), by_hand(3.0, 1.0))
    torch.testing.assert_close(result.server.tensors["B"], tensor([1.0], [0.0]))
    torch.testing.assert_close(result.server.tensors["A"], tensor([1.5, 0.0]))
    assert result.server.tensors["w"] == 2.0


def test_the_scale_goes_in_and_out_by_hand() -> None:
    """Scale 2: M = 2 diag(1, 2), S = 4; A = [0, 4] and B = [0, 1] / 2, so that 2 B A = diag(0, 4)."""
    result = aggregated(state(one_pair(alpha=2.0)), by_hand(1.0, 1.0))
    torch.testing.assert_close(result.server.tensors["B"], tensor([0.0], [0.5]))
    torch.testing.assert_close(result.server.tensors["A"], tensor([0.0, 4.0]))


@pytest.mark.parametrize("split", ["right", "left", "symmetric"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_is_the_best_approximation_of_the_ideal_mean(split: str, power: float) -> None:
    """Against a dense float64 SVD: the error is exactly that of Eckart and Young, and FedIT's is larger."""
    setting = one_pair(11, 13, ranks=(3, 3, 3), alpha=4.0, power=power)
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    M = ideal_mean(setting, updates)
    result = aggregated(state(setting), updates, split)
    error = (M - product(setting, result.server.tensors)).norm().item()
    best = np.linalg.norm(scipy.linalg.svdvals(M)[3:])
    assert error == pytest.approx(best, rel=1e-12)
    fedit = FedAvg().aggregate(state(setting), updates, streams).server
    assert error < (M - product(setting, fedit.tensors)).norm().item()


def test_hospitals_of_different_ranks_get_the_first_directions_at_their_scale() -> None:
    """Ranks 1, 2, 4 with a scale 6 / r: what each is handed is the best approximation of M at its own rank."""
    setting = one_pair(9, 8, ranks=(1, 2, 4), alpha=6.0, power=1.0)
    updates = random_updates(setting, [1.0, 2.0, 3.0])
    M = ideal_mean(setting, updates)
    server = aggregated(state(setting), updates).server
    U, S, Vh = np.linalg.svd(M.numpy())
    for hospital in setting.hospitals:
        rank = hospital.rank or 0
        best = torch.from_numpy((U[:, :rank] * S[:rank]) @ Vh[:rank])
        for given in (FlapSam().broadcast(server, hospital).start, FlapSam().deploy(server, hospital, {})):
            assert given["A"].shape == (rank, 8)
            torch.testing.assert_close(product(setting, given), best, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(FlapSam().deploy(server, None, {})["A"], server.tensors["A"])


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 2, 3)])
def test_agrees_with_dense_flexlora_over_rounds(ranks: tuple[int, ...]) -> None:
    """FlexLoRA by NumPy is the split "left"; three rounds of training with both end in the same effective weights."""
    world = make_world(ranks)
    models = []
    for aggregator in (FlapSam(split="left"), FlexLoRA()):
        server = initial_state(aggregator, world)
        for _ in range(3):
            server = run_round(aggregator, world, server).after
        models.append(world.model(server.tensors, {}))
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-9, atol=1e-10)


def test_pairs_of_equal_shape_go_through_the_kernel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q and v of the toy model are 12 x 16, its decoder pair 6 x 10: two calls, and the same as one by one."""
    from wardround.aggregators import products

    world = make_world()
    last = run_round(FlapSam(), world, initial_state(FlapSam(), world))
    batches = []

    def counted(B: Tensor, A: Tensor) -> products.LowRankSvd:
        batches.append(len(B))
        return original(B, A)

    original = products.svd_of_product
    monkeypatch.setattr(products, "svd_of_product", counted)
    again = FlapSam().aggregate(last.before, last.updates, lambda *keys: streams("aggregate", 1, *keys)).server
    assert batches == [2, 1]
    for pair in world.setting.layout.pairs:
        means = sum(
            update.weight / 12 * pair.scale(2) * update.tensors[pair.B] @ update.tensors[pair.A]
            for update in last.updates
        )
        U, S, Vh = np.linalg.svd(means.numpy())
        got = pair.scale(2) * again.tensors[pair.B] @ again.tensors[pair.A]
        np.testing.assert_allclose(got, (U[:, :2] * S[:2]) @ Vh[:2], rtol=0, atol=1e-12)


def test_a_round_without_training_leaves_factors_that_can_learn() -> None:
    """B is still zero everywhere, so M = 0: B becomes orthonormal, A zero, and the product stays zero."""
    setting = one_pair(5, 4, ranks=(2, 2))
    sent = setting.trainable
    result = aggregated(state(setting), [update("a", 1.0, **sent), update("b", 1.0, **sent)])
    B, A = result.server.tensors["B"], result.server.tensors["A"]
    torch.testing.assert_close(B.mT @ B, torch.eye(2).double())
    assert not A.any()


def test_without_pairs_it_is_fedavg() -> None:
    layout = one_pair().layout
    setting = Setting(
        trainable={"w": tensor(0.0)},
        layout=type(layout)(pairs=(), dense=("w",), part={"w": "head"}, kind={"w": "weight"}),
        hospitals=(HospitalInfo(name="a", num_examples=1), HospitalInfo(name="b", num_examples=1)),
    )
    result = aggregated(FlapSam().init(setting, streams), [update("a", w=tensor(1.0)), update("b", w=tensor(2.0))])
    assert result.server.tensors == {"w": tensor(1.5)}


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^split: expected one of 'right', 'left', 'symmetric', got 'middle'"):
        FlapSam(split="middle")
