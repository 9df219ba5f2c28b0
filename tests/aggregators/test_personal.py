"""Personal tensors: what stays at the hospital, what travels, and what a hospital starts from."""

from __future__ import annotations

import pytest
import torch
from pairs import tensor

from wardround.aggregators import FedAvg
from wardround.aggregators.contract import Download, Fit
from wardround.aggregators.personal import KeepPersonal, keep_personal, personal_names, share_all_but, with_personal
from wardround.aggregators.toy import initial_state, make_world

DOWNLOAD = Download(
    start={"body": tensor(1.0), "head": tensor(2.0)}, train=("body", "head"), returns={"body": (1,)}, sent={}
)


def test_what_is_not_asked_back_is_personal() -> None:
    assert personal_names(DOWNLOAD) == ("head",)
    ended = {"body": tensor(3.0), "head": tensor(4.0)}
    result = keep_personal(DOWNLOAD, ended)
    assert result.tensors == {"body": tensor(3.0)}
    assert result.memory == {"head": tensor(4.0)}


def test_a_hospital_goes_on_from_its_memory() -> None:
    (first,) = KeepPersonal().phases(DOWNLOAD, {})
    assert not first.start  # nothing but the download
    (later,) = KeepPersonal().phases(DOWNLOAD, {"head": tensor(7.0)})
    assert later.start == {"head": tensor(7.0)}
    assert later.train == ("body", "head")
    fit = Fit(tensors={"body": tensor(3.0), "head": tensor(4.0)}, learning_rates=(1.0,))
    assert KeepPersonal().finish(DOWNLOAD, [fit], {"head": tensor(7.0)}).memory == {"head": tensor(4.0)}


@pytest.mark.parametrize("personal", [("head.bias",), ("encoder.q.B", "head.weight"), ()])
def test_shared_tensors_travel_and_all_are_trained(personal: tuple[str, ...]) -> None:
    world = make_world()
    download = share_all_but(initial_state(FedAvg(), world), personal)
    shared = set(world.setting.layout.names) - set(personal)
    assert set(download.traffic) == set(download.returns) == shared
    assert download.train == world.setting.layout.names
    assert set(download.start) == set(world.setting.layout.names)
    assert download.returns["decoder.token"] == (2, 4)


def test_a_model_is_the_servers_with_the_hospitals_own_tensors() -> None:
    server = initial_state(FedAvg(), make_world())
    own = {"head.bias": torch.ones(3, dtype=torch.float64)}
    model = with_personal(server, own)
    assert model["head.bias"] is own["head.bias"]
    assert model["head.weight"] is server.tensors["head.weight"]
    assert dict(with_personal(server, {})) == dict(server.tensors)
