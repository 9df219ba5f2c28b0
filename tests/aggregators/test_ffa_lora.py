"""FFA-LoRA: A never moves, and the mean is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pairs import one_pair, product, tensor, update

from wardround.aggregators import FfaLora
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.aggregators.toy import initial_state, make_world, run_round, streams


def test_two_by_two_by_hand() -> None:
    """A = (1, 2) everywhere; weights 3 : 1: B = (3 (2, 0) + (0, 4)) / 4 = (1.5, 1), w = (3 * 1 + 5) / 4 = 2.

    B A = [[1.5, 3], [1, 2]] is the mean of [[2, 4], [0, 0]] and [[0, 0], [4, 8]] with these weights.
    """
    setting = one_pair()
    setting = type(setting)(**{**vars(setting), "trainable": {**setting.trainable, "A": tensor([1.0, 2.0])}})
    server = FfaLora().init(setting, streams)
    updates = [
        update("a", 3.0, B=tensor([2.0], [0.0]), w=tensor(1.0)),
        update("b", 1.0, B=tensor([0.0], [4.0]), w=tensor(5.0)),
    ]
    after = FfaLora().aggregate(server, updates, streams).server
    assert after.tensors["B"].tolist() == [[1.5], [1.0]]
    assert product(setting, after.tensors).tolist() == [[1.5, 3.0], [1.0, 2.0]]
    assert after.tensors["w"] == 2.0
    assert after.round == 1


def test_the_mean_of_products_is_exact_and_a_stays() -> None:
    """Three rounds on the toy federation against ``sum_k p_k s B_k A`` in NumPy; examples 3, 4, 5."""
    world = make_world()
    server = initial_state(FfaLora(), world)
    for _ in range(3):
        last = run_round(FfaLora(), world, server)
        server = last.after
        for pair in world.setting.layout.pairs:
            A = world.setting.trainable[pair.A].numpy()
            assert (server.tensors[pair.A].numpy() == A).all()
            mean = sum(
                p * (one.tensors[pair.B].numpy() @ A)
                for p, one in zip((3 / 12, 4 / 12, 5 / 12), last.updates, strict=True)
            )
            np.testing.assert_allclose(server.tensors[pair.B].numpy() @ A, mean, rtol=1e-12, atol=1e-14)


def test_a_travels_once() -> None:
    """Hospital 3 joins in round 2, and gets A then."""
    world = make_world()
    names = [hospital.name for hospital in world.setting.hospitals]
    factors = {pair.A for pair in world.setting.layout.pairs}
    first = run_round(FfaLora(), world, initial_state(FfaLora(), world), cohort=names[:2])
    second = run_round(FfaLora(), world, first.after, cohort=names)
    third = run_round(FfaLora(), world, second.after, cohort=names)
    sent = [{name: factors <= d.traffic.keys() for name, d in r.downloads.items()} for r in (first, second, third)]
    assert list(sent[0].values()) == [True, True]
    assert list(sent[1].values()) == [False, False, True]
    assert list(sent[2].values()) == [False, False, False]
    assert not factors & second.downloads[names[0]].traffic.keys()
    assert not factors & second.updates[0].tensors.keys()


def test_orthonormal_rows_span_what_the_drawn_rows_span() -> None:
    """``A A^T = I``; projecting the drawn rows onto the new ones loses nothing; Gram-Schmidt turns no row around."""
    setting = one_pair(4, 7, ranks=(3, 3))
    drawn, A = setting.trainable["A"], FfaLora(init_a="orthonormal").init(setting, streams).tensors["A"]
    torch.testing.assert_close(A @ A.mT, torch.eye(3).double())
    torch.testing.assert_close(drawn @ A.mT @ A, drawn)
    torch.testing.assert_close(A[0], drawn[0] / drawn[0].norm())
    assert ((A @ drawn.mT).diagonal() > 0).all()
    assert torch.equal(FfaLora().init(setting, streams).tensors["A"], drawn)


def test_orthonormal_keeps_the_contract() -> None:
    check_aggregator(FfaLora(init_a="orthonormal"), Claims(identity="exact"))


def test_more_rows_than_columns_cannot_be_orthonormal() -> None:
    with pytest.raises(ValueError, match=r"init_a: 'A' has 3 rows of length 2, of which at most 2 can be orthonormal"):
        FfaLora(init_a="orthonormal").init(one_pair(4, 2, ranks=(3, 3)), streams)


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^init_a: expected 'keep' or 'orthonormal', got 'svd'"):
        FfaLora(init_a="svd")
