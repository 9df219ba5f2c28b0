"""The smallest federation with a low-rank pair: one weight, one dense tensor, updates written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wardround.aggregators.arithmetic import effective
from wardround.aggregators.contract import ClientUpdate, HospitalInfo, Layout, Pair, ServerState, Setting
from wardround.aggregators.toy import streams


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: object = 0) -> Tensor:
    return torch.randn(shape, generator=streams("test", str(seed)), dtype=torch.float64)


def one_pair(
    d_out: int = 2, d_in: int = 2, ranks: Sequence[int] = (1, 1), alpha: float = 1.0, power: float = 0.0
) -> Setting:
    """A setting with factors ``A`` and ``B`` of ``W``, a dense tensor ``w``, and hospitals a, b, c, ..."""
    rank = max(ranks)
    return Setting(
        trainable={"A": normal(rank, d_in), "B": torch.zeros(d_out, rank, dtype=torch.float64), "w": tensor(0.0)},
        layout=Layout(
            pairs=(Pair(A="A", B="B", base="W", alpha=alpha, power=power),),
            dense=("w",),
            part={"A": "encoder", "B": "encoder", "w": "head"},
            kind={"A": "lora_A", "B": "lora_B", "w": "weight"},
        ),
        hospitals=tuple(
            HospitalInfo(name=name, num_examples=1, rank=r) for name, r in zip("abcdefgh", ranks, strict=False)
        ),
        frozen={"W": (d_out, d_in)},
    )


def update(hospital: str, weight: float = 1.0, **tensors: Tensor) -> ClientUpdate:
    return ClientUpdate(hospital=hospital, weight=weight, num_examples=1, num_steps=1, tensors=tensors)


def random_updates(setting: Setting, weights: Sequence[float], seed: object = 0) -> list[ClientUpdate]:
    """Factors and dense tensors drawn at every hospital's rank."""
    d_out, d_in = setting.frozen["W"]
    return [
        update(
            hospital.name,
            weight,
            A=normal(hospital.rank or 0, d_in, seed=f"{seed} A {hospital.name}"),
            B=normal(d_out, hospital.rank or 0, seed=f"{seed} B {hospital.name}"),
            w=normal(1, seed=f"{seed} w {hospital.name}"),
        )
        for hospital, weight in zip(setting.hospitals, weights, strict=True)
    ]


def state(setting: Setting) -> ServerState:
    return ServerState(setting=setting, round=0, tensors=setting.trainable)


def ideal_mean(setting: Setting, updates: Sequence[ClientUpdate]) -> Tensor:
    """``sum_k p_k s_k B_k A_k``, dense."""
    total = sum(one.weight for one in updates)
    return sum(one.weight / total * product(setting, one.tensors) for one in updates)


def product(setting: Setting, tensors: Mapping[str, Tensor]) -> Tensor:
    return effective(tensors, setting.layout.pairs[0])
