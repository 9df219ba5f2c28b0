"""The plug-ins keep wardround's contracts, and compute what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mywards.diloco import DiLoCo
from mywards.example import write
from mywards.norm_tuning import NormTuning
from mywards.npz_volumes import NpzVolumes

from wardround.aggregators.contract import ClientUpdate, Layout, ServerState, Setting
from wardround.aggregators.testing import Claims, check_aggregator
from wardround.clients.sam import Sam
from wardround.clients.testing import check_method
from wardround.clients.vit import Vit
from wardround.datasets.contract import DataError
from wardround.datasets.testing import check_dataset


def test_diloco_keeps_the_contract() -> None:
    check_aggregator(DiLoCo(), Claims(identity="none", reason="momentum carries it past the mean", gauge="not"))


def test_norm_tuning_keeps_the_contract() -> None:
    check_method(NormTuning())


def test_npz_volumes_keep_the_contract(tmp_path: Path) -> None:
    write(tmp_path / "npz", cases=2)
    pool = check_dataset(NpzVolumes(classes=("ball",)), tmp_path / "npz")
    assert [case.name for case in pool.cases][:3] == ["north_p0", "north_p1", "south_p0"]


def test_diloco_steps_as_torch_does() -> None:
    """One number, 3 rounds: torch.optim.SGD with the same gradients, theta minus the mean of the hospitals."""
    layout = Layout(pairs=(), dense=("w",), part={"w": "head"}, kind={"w": "weight"})
    start = {"w": torch.zeros(1, dtype=torch.float64)}
    server = ServerState(setting=Setting(trainable=start, layout=layout, hospitals=()), round=0, tensors=start)
    theirs = torch.nn.Parameter(start["w"].clone())
    optimizer = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=True)
    for means in (1.0, 3.0, -2.0):
        theirs.grad = theirs.detach() - means
        optimizer.step()
        updates = [
            ClientUpdate(hospital=name, weight=1.0, num_examples=1, num_steps=1, tensors={"w": start["w"] + value})
            for name, value in (("a", means - 1), ("b", means + 1))
        ]
        server = DiLoCo().aggregate(server, updates, rng=torch.Generator).server
        assert server.tensors["w"].item() == pytest.approx(theirs.item())


def test_norm_tuning_trains_so_many_numbers_of_a_vit() -> None:
    net = Vit(size="b16").build_meta(2)
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    assert sum(sizes[name] for name in NormTuning().attach(net).names) == 38_400 + 769 * 2


def test_without_head_norm_tuning_trains_no_decoder() -> None:
    layout = NormTuning(head=False).attach(Sam(size="tiny", image_size=32).build_meta(2))
    assert {layout.part[name] for name in layout.names} == {"encoder"}


def test_a_bad_file_is_told(tmp_path: Path) -> None:
    write(tmp_path / "npz", cases=1)
    file = tmp_path / "npz" / "north" / "p0.npz"
    data = NpzVolumes()
    case = data.pool(tmp_path / "npz").cases[0]
    right = {"image": np.ones((2, 4, 4)), "label": np.ones((2, 4, 4)), "spacing_mm": np.ones(3)}
    for name, value, problem in (
        ("image", np.full((2, 4, 4), np.nan), "image: expected finite numbers"),
        ("label", np.full((2, 4, 4), 3), "label: expected 0 to 1, got 3 to 3"),
        ("label", np.ones((1, 4, 4)), r"label: expected the image's shape \(2, 4, 4\), got \(1, 4, 4\)"),
        ("spacing_mm", np.zeros(3), "spacing_mm: expected three numbers above 0"),
    ):
        np.savez(file, **{**right, name: value})
        with pytest.raises(DataError, match=f"p0.npz: 1 problem:\\n  {problem}"):
            data.volume(case)
    np.savez(file, label=right["label"], spacing_mm=right["spacing_mm"])
    with pytest.raises(DataError, match="expected an array 'image', got none"):
        data.open_image(file)
    file.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"expected a file of numpy.savez"):
        data.volume(case)
