"""The median of every coordinate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pairs import one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import Median
from wardround.aggregators.toy import streams


def by_hand() -> list:
    """Products diag(1, 0), diag(2, 0) and diag(0, 90): B_k A_k with rank 1."""
    return [
        update("a", 1.0, B=tensor([1.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(1.0)),
        update("b", 5.0, B=tensor([2.0], [0.0]), A=tensor([1.0, 0.0]), w=tensor(7.0)),
        update("c", 9.0, B=tensor([0.0], [9.0]), A=tensor([0.0, 10.0]), w=tensor(3.0)),
    ]


def test_two_by_two_by_hand_on_the_product() -> None:
    """Entry (1, 1): 0, 1, 2 -> 1; entry (2, 2): 0, 0, 90 -> 0; w: 1, 3, 7 -> 3. One value of three is kept."""
    setting = one_pair(ranks=(1, 1, 1))
    result = Median().aggregate(state(setting), by_hand(), streams)
    torch.testing.assert_close(product(setting, result.server.tensors), tensor([1.0, 0.0], [0.0, 0.0]))
    assert result.server.tensors["w"] == 3.0
    assert result.server.round == 1
    assert result.diagnostics == {"kept_weight": pytest.approx(1 / 3), "rejected": 2.0}


def test_two_by_two_by_hand_on_the_factors() -> None:
    """B: (1, 2, 0) -> 1 and (0, 0, 9) -> 0; A: (1, 1, 0) -> 1 and (0, 0, 10) -> 0."""
    result = Median(on="factors").aggregate(state(one_pair(ranks=(1, 1, 1))), by_hand(), streams)
    torch.testing.assert_close(result.server.tensors["B"], tensor([1.0], [0.0]))
    torch.testing.assert_close(result.server.tensors["A"], tensor([1.0, 0.0]))


def test_of_two_hospitals_it_is_the_mean() -> None:
    result = Median(on="factors").aggregate(state(one_pair()), by_hand()[:2], streams)
    assert result.server.tensors["w"] == 4.0
    assert result.diagnostics == {"kept_weight": 1.0, "rejected": 0.0}


@pytest.mark.parametrize("number", [4, 5])
def test_on_the_product_it_is_the_best_approximation_of_the_dense_median(number: int) -> None:
    """Against numpy.median of the dense products, cut to rank 3 by a dense SVD."""
    setting = one_pair(8, 6, ranks=(3, 2, 1, 3, 2)[:number], alpha=2.0, power=1.0)
    updates = random_updates(setting, [1.0] * number)
    M = np.median([product(setting, one.tensors).numpy() for one in updates], axis=0)
    U, S, Vh = np.linalg.svd(M)
    result = Median().aggregate(state(setting), updates, streams).server
    np.testing.assert_allclose(product(setting, result.tensors), (U[:, :3] * S[:3]) @ Vh[:3], rtol=0, atol=1e-12)
