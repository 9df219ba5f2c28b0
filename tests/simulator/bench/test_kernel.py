"""Three routes to the same factors: against each other, against FLAP-SAM's aggregation, and on numbers made by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from wardround.aggregators.arithmetic import effective
from wardround.aggregators.contract import ClientUpdate, HospitalInfo, Layout, Pair, Setting
from wardround.aggregators.flap_sam import FlapSam
from wardround.clients.methods import FlapSam as FlapSamMethod
from wardround.clients.sam import Sam
from wardround.simulator.bench.kernel import (
    BASELINE,
    ROUTES,
    SAM_VIT_B,
    Case,
    dense_mean,
    measure,
    randomised_svd,
)
from wardround.simulator.randomness import streams

CPU = torch.device("cpu")
SMALL = Case(name="small", shapes=((40, 30), (40, 30), (12, 30)), rank=3, hospitals=4)


def doubles(case: Case) -> list[ClientUpdate]:
    """The updates of a case in float64."""
    updates = case.updates(streams(0, "kernel"), CPU)
    return [replace(u, tensors={name: value.double() for name, value in u.tensors.items()}) for u in updates]


def spectrum(values: torch.Tensor) -> torch.Tensor:
    """A matrix (60, 40) with these singular values."""
    generator = torch.Generator().manual_seed(1)
    left, right = (
        torch.linalg.qr(torch.randn(side, len(values), generator=generator, dtype=torch.float64)).Q for side in (60, 40)
    )
    return left * values @ right.mT


def test_every_route_comes_to_the_best_approximation() -> None:
    rows = measure(SMALL, turns=1)
    assert [row.route for row in rows] == list(ROUTES)
    assert all(row.distance < 1e-5 for row in rows)
    assert all(row.ms > 0 for row in rows)
    assert next(row for row in rows if row.route == BASELINE).speedup == 1.0


def test_a_worse_rank_is_seen_in_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors of one direction too few are not the best of rank 3."""
    monkeypatch.setitem(ROUTES, "qr", lambda updates, pairs, rank, rng: ROUTES["dense"](updates, pairs, rank - 1, rng))
    assert measure(SMALL, turns=1)[0].distance > 0.1


def test_the_qr_route_is_flap_sam() -> None:
    """The products are those that the aggregator hands out, bit for bit."""
    updates, pairs = doubles(SMALL), SMALL.pairs()
    infos = tuple(HospitalInfo(name=update.hospital, num_examples=1, rank=SMALL.rank) for update in updates)
    layout = Layout(pairs=pairs, dense=(), part={}, kind={})
    setting = Setting(trainable=updates[0].tensors, layout=layout, hospitals=infos)
    server = FlapSam().init(setting, streams(0, "server"))
    after = FlapSam().aggregate(server, updates, streams(0, "aggregate")).server.tensors
    routed = ROUTES["qr"](updates, pairs, SMALL.rank, streams(0, "aggregate"))
    for pair, (B, A) in routed.items():
        assert torch.equal(effective(after, pair), B @ A)


def test_the_dense_mean_by_hand() -> None:
    """Weights 1 and 3, scale 2 / r at rank 1: 1/4 * 2 * (1 * 3) + 3/4 * 2 * (5 * 1) = 1.5 + 7.5."""
    pair = Pair(A="A", B="B", base="W", alpha=2.0, power=1.0)
    updates = [
        ClientUpdate(
            hospital=str(weight),
            weight=weight,
            num_examples=1,
            num_steps=1,
            tensors={"A": torch.tensor([[A]]), "B": torch.tensor([[B]])},
        )
        for weight, B, A in ((1.0, 1.0, 3.0), (3.0, 5.0, 1.0))
    ]
    assert dense_mean(updates, pair).tolist() == [[9.0]]


def test_randomised_svd_is_exact_up_to_the_rank_it_sketches() -> None:
    """10 directions more than asked for: a matrix of rank 13 is found whole when 3 are wanted."""
    values = torch.linspace(2, 1, 13, dtype=torch.float64)
    U, S, Vh = randomised_svd(spectrum(values), 3, torch.Generator().manual_seed(0), iterations=0)
    torch.testing.assert_close(S, values[:3], rtol=1e-12, atol=0)
    torch.testing.assert_close(U.mT @ U, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(Vh @ Vh.mT, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_power_iterations_bring_a_slow_spectrum_to_the_best_approximation() -> None:
    """Values 2 .. 1 in 40 steps: the sketch alone misses them, 600 iterations at ratio (1.67 / 1.90)^2 each do not."""
    M = spectrum(torch.linspace(2, 1, 40, dtype=torch.float64))
    best = torch.linalg.svd(M, full_matrices=False)
    exact = best.U[:, :3] * best.S[:3] @ best.Vh[:3]
    errors = []
    for iterations in (0, 5, 600):
        U, S, Vh = randomised_svd(M, 3, torch.Generator().manual_seed(0), iterations)
        errors.append(float((U * S @ Vh - exact).norm() / exact.norm()))
    assert errors[0] > errors[1] > 0.01
    assert errors[2] < 1e-10


def test_the_default_iterations_are_those_of_scikit_learn() -> None:
    """7 where the rank is below a tenth of the smaller dimension (40), else 4."""
    M = spectrum(torch.linspace(2, 1, 40, dtype=torch.float64))
    for rank, iterations in ((3, 7), (4, 4)):
        default, given = (randomised_svd(M, rank, torch.Generator().manual_seed(0), n) for n in (None, iterations))
        assert all(torch.equal(a, b) for a, b in zip(default, given, strict=True))


def test_the_layers_of_vit_b_are_those_that_flap_sam_adapts() -> None:
    model = Sam(size="vit-b", image_size=224).build_meta(2)
    layout, named = FlapSamMethod().attach(model), dict(model.named_parameters())
    assert Counter(SAM_VIT_B) == Counter((len(named[pair.B]), named[pair.A].shape[1]) for pair in layout.pairs)


def test_a_case_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ValueError, match=r"rank: expected at least 1, got 0; shapes: expected at least 1, got 0"):
        Case(name="none", shapes=(), rank=0)


@pytest.mark.gpu
def test_routes_on_the_gpu_come_to_the_best_approximation() -> None:
    assert all(row.distance < 1e-4 for row in measure(SMALL, turns=1, device=torch.device("cuda")))
