"""What the runs of a process share is made once, and no run writes into it: a run after another equals it alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rounds import advance
from safetensors.torch import save_file
from torch import Tensor

from wardround.clients.sam import Sam
from wardround.simulator.assembly import Assembled, assemble, locate
from wardround.simulator.assessment import assess
from wardround.simulator.checkpoint import state_hash
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.progress import Progress
from wardround.simulator.randomness import streams
from wardround.simulator.resident import MOST, Resident

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of the tiny SAM."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    net = Sam(size="tiny", image_size=16).build(2, streams(7, "init"))
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)
    return path


@pytest.fixture
def cell(weights: Path) -> Callable[..., Experiment]:
    """``tiny``, smaller still, with settings, on the weights of the file."""

    def make(*settings: str) -> Experiment:
        return small(f"model.weights={weights}", *settings)

    return make


def small(*settings: str) -> Experiment:
    return load_experiment(
        "tiny", open_file(PACKAGED), ["data.size=16", "data.slices=3", "model.image_size=16", *settings]
    )


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What was read from weights files, one entry per reading."""
    found: list[dict[str, Tensor]] = []
    read = Sam.pretrained

    def noted(self: Sam, num_classes: int) -> dict[str, Tensor]:
        found.append(dict(read(self, num_classes)))
        return found[-1]

    monkeypatch.setattr(Sam, "pretrained", noted)
    return found


def assembled(experiment: Experiment, folder: Path, resident: Resident | None) -> Assembled:
    return assemble(experiment, locate(experiment, folder, resident), CPU, resident=resident)


def outcome(experiment: Experiment, folder: Path, resident: Resident | None) -> tuple[str, list[dict]]:
    """State and scores after two rounds, in the second of which hospitals train on a base that was written."""
    made = assembled(experiment, folder, resident)
    stack = 3 if experiment.runtime.cohort == "stacked" else 1
    made = replace(made, federated=replace(made.federated, stack=stack))
    checkpoint = advance(made.federated, made.initial, rounds=2).checkpoint
    with Progress(rounds=2, quiet=True) as progress:
        rows = assess(made.federated, made.assessor, checkpoint, progress, final=False)
    return state_hash(checkpoint), rows["metrics"]


def digest(tensors: dict[str, Tensor]) -> str:
    parts = (name.encode() + value.numpy().tobytes() for name, value in sorted(tensors.items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_thing_is_made_once_and_the_oldest_goes_first() -> None:
    resident, made = Resident(), []

    def make(name: str) -> Callable[[], str]:
        return lambda: made.append(name) or name

    for name in ("a", "b", "a", "c", "a", "b"):  # of windows two stay: b goes for c, then c for b
        assert resident.once("windows", name, make(name)) == name
    assert made == ["a", "b", "c", "b"]
    assert MOST["windows"] == 2
    assert [resident.found("windows", name) for name in "abc"] == ["a", "b", None]
    resident.clear()
    assert resident.found("windows", "a") is None


def test_room_is_made_before_the_next_one_comes() -> None:
    """Two bases are never there at once."""
    resident = Resident()
    resident.once("base", 1, lambda: "first")
    assert resident.once("base", 2, lambda: str(resident.found("base", 1))) == "None"


def test_weights_are_read_once_and_the_models_of_all_cells_hold_them(cell, folder: Path, loaded) -> None:
    """Frozen weights lie where those of the file lie; what trains has a place of its own."""
    resident = Resident()
    for settings in (["aggregator=fedavg"], ["aggregator=flora", "method=lora"], ["method=full"]):
        replica = assembled(cell(*settings), folder, resident).federated.workplace.replica
        parameters = dict(replica.model.named_parameters())
        assert len(loaded) == 1
        for name in loaded[0].keys() & parameters.keys():
            shares = parameters[name].data_ptr() == loaded[0][name].data_ptr()
            assert shares == (name not in replica.values), name
    assert loaded[0].keys() & replica.values.keys()


def test_a_pass_for_unused_tensors_is_made_once_per_method(cell, folder: Path, monkeypatch) -> None:
    from wardround.clients.replica import Replica

    passes, find = [], Replica._find_unused
    monkeypatch.setattr(Replica, "_find_unused", lambda self: passes.append(1) or find(self))

    def unused(resident: Resident | None, *settings: str) -> frozenset[str]:
        return assembled(cell(*settings), folder, resident).federated.workplace.replica.unused

    resident = Resident()
    first, second = unused(resident, "aggregator=fedavg"), unused(resident, "method=decoder")
    assert first == unused(resident, "aggregator=flora") == unused(None)
    assert second == unused(resident, "method=decoder", "seed=1") == unused(None, "method=decoder")
    assert first != second
    assert len(passes) == 2 + 2


CELLS = {
    "flora": ["aggregator=flora"],
    "fedex": ["aggregator=fedex_lora"],
    "fedmomentum": ["aggregator=fedmomentum"],
    "full": ["aggregator=fedavg", "method=full"],
    "kept features": ["aggregator=fedavg", "method=partial_decoder", "augment.variants=1"],
    "plain": ["aggregator=fedavg"],
}
"""All aggregators that write frozen weights, a method that trains the base, and one that keeps what it gives."""

MORE_CELLS = {
    **{f"{aggregator}, lora": [f"aggregator={aggregator}", "method=lora"] for aggregator in ("flora", "fedex_lora")},
    "fedmomentum, lora": ["aggregator=fedmomentum", "method=lora"],
    "stacked": ["aggregator=fedex_lora", "runtime.cohort=stacked"],
    "stacked, lora": ["aggregator=flora", "method={name: lora, lora: {rank: 3}}", "runtime.cohort=stacked"],
    "svd of the base": ["aggregator=fedavg", "method={name: lora_sb, init: weights}"],
    "slice adapters": ["aggregator=fedavg", "method=ma_sam"],
    "plain": ["aggregator=fedavg"],
    "bf16": ["aggregator=flora", "training.precision=bf16"],
    "fp64": ["aggregator=flora", "training.precision=fp64"],
    "plain, again": ["aggregator=fedavg", "method=lora"],
}
"""Everything else that holds the base in its own way."""


@pytest.mark.parametrize("cells", [CELLS, pytest.param(MORE_CELLS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_no_cell_writes_into_the_base_and_each_is_what_it_is_alone(cells, cell, folder: Path, loaded) -> None:
    """Two rounds and their scores, bit for bit, one cell after the other and each in a process of its own."""
    alone = {name: outcome(cell(*settings), folder, None) for name, settings in cells.items()}
    assert len({state for state, _ in alone.values()}) == len(cells)
    pristine = digest(loaded[0])
    loaded.clear()
    resident = Resident()
    for name, settings in cells.items():
        assert outcome(cell(*settings), folder, resident) == alone[name], name
        assert digest(loaded[0]) == pristine, name
    assert len(loaded) == (1 if cells is CELLS else 3)  # in double precision, and once more after that


def test_every_aggregator_that_writes_frozen_weights_is_among_them() -> None:
    """Those that merge into it say so by what they import."""
    import wardround.aggregators as folder_of

    here = Path(folder_of.__file__).parent
    writing = {path.stem for path in here.glob("*.py") if "from .merging import" in path.read_text()}
    assert writing == {setting[0].partition("=")[2] for setting in CELLS.values()} - {"fedavg"}


@pytest.mark.slow
def test_a_compiled_cell_leaves_the_base_alone(cell, folder: Path, loaded) -> None:
    """Compiled by a backend that runs the graphs as they are; nothing is compiled again for a base that was written."""
    torch.compiler.reset()
    graphs: list[int] = []

    def compiled(resident: Resident | None) -> str:
        made = assembled(cell("aggregator=fedex_lora"), folder, resident)
        made.federated.workplace.replica.compile(lambda graph, inputs: graphs.append(1) or graph.forward)
        first = advance(made.federated, made.initial, rounds=1).checkpoint
        of_first = len(graphs)
        second = advance(made.federated, first, rounds=1).checkpoint
        assert second.server.base
        assert len(graphs) == of_first > 0
        return state_hash(second)

    alone = compiled(None)
    resident = Resident()
    outcome(cell("aggregator=flora"), folder, resident)
    before = digest(loaded[-1])
    assert compiled(resident) == alone
    assert digest(loaded[-1]) == before


PREPARED = {
    "training.optimizer.lr=0.5": True,
    "aggregator=fedavg": True,
    "method=decoder": True,
    "seed=3": True,
    "model.size=mini": True,
    "windows.normalise=window": False,
    "windows.depth=3": False,
    "windows.grid=[4, 16, 16]": False,
    "model.image_size=32": False,
    "data.seed=4": False,
    "split.leave_out=[hospital-2]": False,
    "split_seed=3": None,
    "stages.attack={name: label_flip, hospitals: [hospital-1]}": False,
    "runtime.windows=host": False,
}
"""Whether a cell with a setting shares the prepared windows of one without; None: it depends on the data."""


def test_cells_share_their_windows_exactly_where_nothing_that_makes_them_differs(folder: Path) -> None:
    """The phantoms have their own split, which ``split_seed`` does not change: the key looks at what came of it."""
    shared, resident = {}, Resident()
    for setting in PREPARED:
        first, second = (
            assembled(small(*settings), folder, resident).federated.hospitals for settings in ([], [setting])
        )
        shared[setting] = first["hospital-1"].train is second["hospital-1"].train
    assert shared == {setting: expected is not False for setting, expected in PREPARED.items()}


def test_equal_data_in_another_folder_is_prepared_from_there(folder: Path, tmp_path: Path) -> None:
    """Volumes are read again for the last scores, from where they lie."""
    resident, experiment = Resident(), small()
    here, there = (assembled(experiment, where, resident) for where in (folder, tmp_path))
    case = there.federated.hospitals["hospital-1"].test[0].case
    assert case.image.is_relative_to(tmp_path)
    assert here.federated.hospitals["hospital-1"].test[0].case.image.is_relative_to(folder)
    assert there.assessor.read(case).case == case


def test_federations_that_take_turns_map_every_volume_once(folder: Path) -> None:
    """One site left out after the other, none, and all cases pooled: five federations of the same volumes, twice."""
    resident = Resident()
    settings = [
        *([f"split.leave_out=[hospital-{number}]"] for number in (1, 2, 3)),
        [],
        ["aggregator=fedavg", "pooled=true"],
    ]
    storages = set()
    for _ in range(2):
        for changes in settings:
            federated = assembled(small(*changes), folder, resident).federated
            volumes = [volume for hospital in federated.hospitals.values() for volume in hospital.train.volumes]
            storages |= {volume.images.data_ptr() for volume in volumes}
    assert len(storages) == 6  # two training cases of each of three hospitals
