"""Fixtures shared by all tests: the smallest real model, small volumes, and a federation of both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from wardround.aggregators.contract import Aggregator, HospitalInfo
from wardround.clients.lora import LoRA
from wardround.clients.methods import FlapSam, Method
from wardround.clients.optimizers import SGD, Schedule
from wardround.clients.replica import Precision, Replica
from wardround.clients.sam import Sam
from wardround.clients.training import Training, Workplace
from wardround.datasets.augment import NoAugment
from wardround.datasets.contract import Case
from wardround.datasets.windows import HospitalWindows, PreparedVolume, Windows
from wardround.simulator import run as run_module
from wardround.simulator.assembly import make_setting
from wardround.simulator.checkpoint import Checkpoint
from wardround.simulator.cohort import Hospital
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.federation import Federated, initial_memories
from wardround.simulator.randomness import streams
from wardround.simulator.sampling import Cohort

sys.path.insert(0, str(Path(__file__).parent / "helpers"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``gpu`` are skipped, with the reason, where there is no such device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none")


SIZE = 16
"""Pixels of the test volumes: four patches of the tiny SAM."""


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all tests, which is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDROUND_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs an experiment with settings, the same settings once; without instruments, and with an empty page."""
    out = tmp_path_factory.mktemp("trained")

    def ran(*settings: str, name: str = "tiny") -> Path:
        fast = ("runtime.device=cpu", "instruments.every=0")
        experiment = load_experiment(name, open_file(PACKAGED), [*fast, *settings])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_module, "write_report", lambda folder, **_: (folder / "report.html").write_text(""))
            return run_module.run(experiment, out=out, quiet=True, images=False).path

    return ran


@pytest.fixture
def make_replica() -> Callable[..., Replica]:
    """Builds a replica of the tiny SAM (two classes) with FLAP-SAM's adapters, or with another method."""

    def make(
        *,
        rank: int = 4,
        precision: Precision = "fp32",
        method: Method | None = None,
        alpha: float = 1.0,
        power: float = 0.0,
        image_size: int = 32,
    ) -> Replica:
        model = Sam(size="tiny", image_size=image_size).build(2, streams(0, "init"))
        method = method or FlapSam(lora=LoRA(rank=rank, alpha=alpha, power=power))
        layout = method.attach(model)
        method.initialise(model, streams(0, "init"))
        return Replica(model, layout, precision=precision)

    return make


def make_volume(seed: int, slices: int = 4, size: int = SIZE) -> PreparedVolume:
    """A square of class 1 with a smaller one of class 2 in it, at a place and contrast of its own, in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(slices, size, size, dtype=torch.uint8)
    row, column = torch.randint(0, size // 2, (2,), generator=generator).tolist()
    labels[:, row : row + size // 2, column : column + size // 2] = 1
    labels[:, row + 2 : row + size // 4 + 2, column + 2 : column + size // 4 + 2] = 2
    images = 0.3 * labels + 0.3 * torch.rand(slices, size, size, generator=generator)
    case = Case(name=f"case-{seed}", patient=f"patient-{seed}", image=Path("none"), label=Path("none"))
    return PreparedVolume(case=case, images=images, labels=labels, truth=labels, spacing_mm=(1.0, 1.0, 1.0))


@pytest.fixture
def make_windows() -> Callable[..., HospitalWindows]:
    """Builds a hospital's windows from random volumes."""

    def make(seed: int = 0, volumes: int = 2, slices: int = 4) -> HospitalWindows:
        return HospitalWindows([make_volume(100 * seed + n, slices) for n in range(volumes)], Windows())

    return make


@pytest.fixture
def make_federated(make_replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows]):
    """Builds a federation of hospitals with different numbers of volumes, and its state before round 1."""

    def make(
        aggregator: Aggregator,
        *,
        volumes: tuple[int, ...] = (1, 2, 3),
        precision: Precision = "fp64",
        training: Training | None = None,
        cohort: Cohort | None = None,
        ranks: Mapping[str, int] | None = None,
        rank: int = 3,
        same_data: bool = False,
        uniform: bool = False,
        method: Method | None = None,
    ) -> tuple[Federated, Checkpoint]:
        replica = make_replica(rank=rank, precision=precision, image_size=SIZE, method=method)
        names = [f"hospital-{number}" for number in range(len(volumes))]
        training = training or Training(batch_size=2, optimizer=SGD(lr=0.05), schedule=Schedule(warmup_steps=0))
        hospitals = {}
        for number, (name, count) in enumerate(zip(names, volumes, strict=True)):
            windows = make_windows(0 if same_data else number, count)
            has = replica.max_rank and (ranks or {}).get(name, replica.max_rank)
            info = HospitalInfo(name=name, num_examples=len(windows), rank=has)
            hospitals[name] = Hospital(info=info, train=windows, validation=(), test=windows.volumes)
        federated = Federated(
            aggregator=aggregator,
            workplace=Workplace(replica=replica, training=training, augment=NoAugment()),
            hospitals=hospitals,
            weights={
                name: 1.0 if uniform else float(hospital.info.num_examples) for name, hospital in hospitals.items()
            },
            cohort=cohort or Cohort(),
            seed=0,
        )
        setting = make_setting(replica, hospitals, training)
        server = aggregator.init(setting, federated.rng("server"))
        return federated, Checkpoint(server=server, memories=initial_memories(hospitals))

    return make
