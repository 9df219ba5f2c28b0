from collections.abc import Callable

import pytest
import torch

from wardround.aggregators.contract import HospitalInfo
from wardround.datasets.windows import HospitalWindows, num_bytes
from wardround.simulator.cohort import Hospital
from wardround.simulator.placement import SHARE, place_windows

META, CPU = torch.device("meta"), torch.device("cpu")


@pytest.fixture
def hospitals(make_windows: Callable[..., HospitalWindows]) -> dict[str, Hospital]:
    """Of 1, 3 and 1 volumes; the last has the volume of the first."""
    windows = {"a": make_windows(0, 1), "b": make_windows(1, 3)}
    windows["c"] = HospitalWindows(windows["a"].volumes, windows["a"].windows)
    infos = {name: HospitalInfo(name=name, num_examples=len(own)) for name, own in windows.items()}
    return {name: Hospital(info=infos[name], train=own, validation=(), test=()) for name, own in windows.items()}


def moved(hospitals: dict[str, Hospital], where: str, volumes: float = 0, device: torch.device = META) -> set[str]:
    """Who is on the device, where a quarter of what is free there takes so many volumes."""
    room = volumes * num_bytes(hospitals["a"].train.volumes[0])
    placed = place_windows(hospitals, device, where, lambda _: int(SHARE * room))  # type: ignore[arg-type]
    assert list(placed) == list(hospitals)
    return {name for name, hospital in placed.items() if hospital.train.device == META}


def test_they_stay_on_the_host_or_all_go(hospitals: dict[str, Hospital]) -> None:
    assert moved(hospitals, "host", volumes=100) == set()
    assert moved(hospitals, "device", volumes=0) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("volumes", "there"), [(0.99, set()), (1, {"a", "c"}), (3.99, {"a", "c"}), (4, {"a", "b", "c"})]
)
def test_those_that_fit_go_in_order_of_names_and_a_shared_volume_counts_once(
    hospitals: dict[str, Hospital], volumes: float, there: set[str]
) -> None:
    assert moved(hospitals, "auto", volumes) == there


def test_a_cpu_has_them_already(hospitals: dict[str, Hospital]) -> None:
    for where in ("auto", "device", "host"):
        placed = place_windows(hospitals, CPU, where, lambda _: 0)  # type: ignore[arg-type]
        assert all(placed[name] is hospital for name, hospital in hospitals.items())


def test_a_device_that_does_not_say_what_is_free_gets_none(hospitals: dict[str, Hospital]) -> None:
    placed = place_windows(hospitals, META, "auto")
    assert {hospital.train.device for hospital in placed.values()} == {CPU}
