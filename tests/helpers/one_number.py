"""The smallest federation of all: the model is one number, ``w``."""

from __future__ import annotations

from typing import Any

from pairs import tensor

from wardround.aggregators.contract import ClientUpdate, HospitalInfo, Layout, ServerState, Setting


def number_setting(value: float = 0.0, hospitals: str = "ab", **more: Any) -> Setting:
    return Setting(
        trainable={"w": tensor(value)},
        layout=Layout(pairs=(), dense=("w",), part={"w": "head"}, kind={"w": "weight"}),
        hospitals=tuple(HospitalInfo(name=name, num_examples=1) for name in hospitals),
        **more,
    )


def number_state(value: float = 0.0, **more: Any) -> ServerState:
    setting = number_setting(value, **more)
    return ServerState(setting=setting, round=0, tensors=setting.trainable)


def number_update(hospital: str, value: float, weight: float = 1.0, **metrics: float) -> ClientUpdate:
    return ClientUpdate(
        hospital=hospital, weight=weight, num_examples=1, num_steps=1, tensors={"w": tensor(value)}, metrics=metrics
    )
