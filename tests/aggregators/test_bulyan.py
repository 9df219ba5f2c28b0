"""Bulyan: repeated Krum, then the values nearest the median."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pairs import one_pair, product, random_updates, state, tensor, update

from wardround.aggregators import Bulyan, FedAvg, FlapSam
from wardround.aggregators.bulyan import nearest_to_median
from wardround.aggregators.toy import streams

EIGHT = one_pair(6, 5, ranks=(2,) * 8)


def test_values_nearest_the_median_by_hand() -> None:
    """1, 2, 4, 5, 9: the median is 4, the nearest three are 2, 4, 5, their mean is 11 / 3."""
    assert nearest_to_median(tensor(1.0, 2.0, 4.0, 5.0, 9.0), 3) == pytest.approx(11 / 3)


def test_by_hand() -> None:
    """The hospitals differ in w = 0, 1, 2, 3, 4, 5, 100 alone. Five picks; left of the arrow what is left to pick from.

    ::

        0 1 2 3 4 5 100   4 neighbours   2 and 3 at 1 + 1 + 4 + 4                -> 2, first by name
        0 1 3 4 5 100     3 neighbours   3 at 1 + 4 + 4, 4 at 1 + 1 + 9          -> 3
        0 1 4 5 100       2 neighbours   1 at 1 + 9, 4 at 1 + 9, 5 at 1 + 16     -> 1, first by name
        0 4 5 100         1 neighbour    4 and 5 at 1                            -> 4, first by name
        0 5 100           1 neighbour    0 and 5 at 25                           -> 0, first by name

    The median of 0, 1, 2, 3, 4 is 2; the mean of the 5 - 2 = 3 values nearest to it is 2.
    """
    factors = {"A": tensor([1.0, 0.0]), "B": tensor([1.0], [0.0])}
    values = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 100.0)
    updates = [update(name, **factors, w=tensor(w)) for name, w in zip("abcdefg", values, strict=True)]
    setting = one_pair(ranks=(1,) * 7)
    chosen = Bulyan().select(state(setting), updates)
    assert [one.hospital for one in chosen] == ["c", "d", "b", "e", "a"]
    result = Bulyan().aggregate(state(setting), updates, streams)
    torch.testing.assert_close(result.server.tensors["w"], tensor(2.0))
    assert result.diagnostics == {"kept_weight": pytest.approx(3 / 7), "rejected": 2.0}


def test_without_attackers_it_is_the_mean() -> None:
    """With f = 0 it picks all and takes all values."""
    updates = random_updates(EIGHT, [1.0] * 8)
    for on, mean in (("factors", FedAvg()), ("product", FlapSam())):
        result = Bulyan(byzantine=0, on=on).aggregate(state(EIGHT), updates, streams).server.tensors
        expected = mean.aggregate(state(EIGHT), updates, streams).server.tensors
        torch.testing.assert_close(product(EIGHT, result), product(EIGHT, expected))


def test_on_the_product_against_dense_products() -> None:
    """Selection and second stage in NumPy on dense products, cut to rank 2 by a dense SVD."""
    updates = random_updates(EIGHT, [1.0] * 8)
    points = [np.append(product(EIGHT, one.tensors).numpy(), one.tensors["w"].numpy()) for one in updates]
    left, chosen = list(range(8)), []
    while len(chosen) < 6:
        scores = [
            sum(sorted(((points[i] - points[j]) ** 2).sum() for j in left if j != i)[: max(1, len(left) - 3)])
            for i in left
        ]
        chosen.append(left.pop(int(np.argmin(scores))))
    values = np.stack([points[k] for k in chosen])
    nearest = np.argsort(np.abs(values - np.median(values, axis=0)), axis=0)[:4]
    expected = np.take_along_axis(values, nearest, axis=0).mean(0)
    U, S, Vh = np.linalg.svd(expected[:-1].reshape(6, 5))
    result = Bulyan().aggregate(state(EIGHT), updates, streams).server.tensors
    np.testing.assert_allclose(product(EIGHT, result), (U[:, :2] * S[:2]) @ Vh[:2], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result["w"], expected[-1:], rtol=1e-12)
