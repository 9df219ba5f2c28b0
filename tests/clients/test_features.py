"""What is kept equals what is made: in a batch, a fit, a federation, an evaluation, and a run that was killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from wardround.aggregators.contract import Phase
from wardround.aggregators.fedavg import FedAvg
from wardround.clients import features as module
from wardround.clients.batches import Draw, Source, cut, draws
from wardround.clients.evaluation import predictions, source_of
from wardround.clients.features import CHUNK, MB, Features, worth_keeping
from wardround.clients.lora import LoRA
from wardround.clients.methods import Decoder, FlapSam, Full, LoraOnly, MaSam, Method, PartialDecoder
from wardround.clients.optimizers import SGD, Schedule
from wardround.clients.replica import Replica
from wardround.clients.training import OptimizerState, Training, Workplace, fit
from wardround.datasets.augment import (
    Augment,
    Augmentation,
    AugmentParameters,
    FlapSamAugment,
    NoAugment,
    fixed_variants,
)
from wardround.datasets.windows import HospitalWindows, Windows
from wardround.simulator.assembly import assemble, keep_features, locate
from wardround.simulator.config import Experiment, load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.federation import Federated, Stopwatch, replace, run_round
from wardround.simulator.progress import Progress
from wardround.simulator.randomness import streams
from wardround.simulator.run import run
from wardround.simulator.runtime import Runtime, choose_device

RNG = streams(0, "local", 1, "hospital")
LASTING = streams(0, "lasting", "hospital")
SIZE = 16
ONE_BLOCK = LoraOnly(lora=LoRA(rank=2, blocks=1))
"""Trains in the last of tiny's two blocks: two of its four stages are frozen."""


@pytest.fixture
def replica(make_replica: Callable[..., Replica]) -> Callable[..., Replica]:
    def make(method: Method = Decoder(), precision: str = "fp64") -> Replica:  # noqa: B008  # it is frozen
        return make_replica(method=method, precision=precision, image_size=SIZE)

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path))
    return tmp_path / "features"


def source(windows: HospitalWindows, augment: Augmentation | None = None) -> Source:
    return Source(windows=windows, variants=fixed_variants(augment or NoAugment(), len(windows), LASTING))


def draw(of: Source, index: Sequence[int], variants: Sequence[int] | None = None) -> Draw:
    chosen = torch.zeros(len(index), dtype=torch.int64) if variants is None else torch.tensor(variants)
    rows = [of.variants[m].select(torch.tensor([n])) for m, n in zip(chosen.tolist(), index, strict=True)]
    fields = {name: torch.cat([getattr(row, name) for row in rows]) for name in vars(rows[0])}
    return Draw(
        source=of,
        index=torch.tensor(index),
        parameters=AugmentParameters(**fields),
        variants=chosen,
        size=len(index),
    )


def kept(replica: Replica, *sources: Source, memory_mb: int = 100, disk_mb: int = 0) -> Features:
    return Features(replica, sources, memory_mb=memory_mb, disk_mb=disk_mb)


def hidden(features: Features, replica: Replica, of: Draw) -> Tensor:
    batch = features.find(replica, of)
    assert batch is not None
    return batch.hidden


@pytest.mark.parametrize("method", [Decoder(), PartialDecoder(), ONE_BLOCK], ids=repr)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("normalise", ["volume", "window"])
def test_a_batch_that_is_kept_is_the_batch_that_is_made(
    replica: Callable[..., Replica],
    make_windows: Callable[..., HospitalWindows],
    method: Method,
    depth: int,
    normalise: str,
) -> None:
    """Two forms of 2 x 20 windows, some of them twice, from the ends of volumes and of chunks."""
    model = replica(method)
    volumes = make_windows(volumes=2, slices=20).volumes
    windows = HospitalWindows(volumes, Windows(depth=depth, normalise=normalise))  # type: ignore[arg-type]
    of = source(windows, FlapSamAugment(variants=2))
    features = kept(model, of)
    for index, variants in (([0, 39, 19, 20, 0], [0, 1, 1, 0, 1]), ([15, 16, 16], [0, 0, 1]), ([39], [1])):
        asked = draw(of, index, variants)
        batch = features.find(model, asked)
        images, labels = cut(asked, model.device)
        assert batch is not None
        assert torch.equal(batch.labels, labels)
        assert batch.hidden.dtype == torch.float64
        torch.testing.assert_close(batch.hidden, model.begin(images), rtol=1e-12, atol=1e-12)
    assert features.use.found == 9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [Decoder(), ONE_BLOCK], ids=repr)
def test_other_precisions_are_equal_to_rounding(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows], method: Method, precision: str
) -> None:
    """What is kept in bf16 was rounded once, by at most 2 ** -9 of its size; other batches round elsewhere too."""
    model = replica(method, precision)
    of = source(make_windows())
    asked = draw(of, [3, 1, 7])
    batch = kept(model, of).find(model, asked)
    made = model.begin(cut(asked, model.device)[0])
    assert batch is not None
    assert batch.hidden.dtype == made.dtype
    largest = float(made.abs().max())
    torch.testing.assert_close(batch.hidden, made, rtol=0, atol=largest * (1e-5 if precision == "fp32" else 2**-7))


def workplace(model: Replica, augment: Augmentation, features: Features | None) -> Workplace:
    training = Training(epochs=2.5, batch_size=3, optimizer=SGD(lr=0.05), schedule=Schedule(warmup_steps=0))
    return Workplace(replica=model, training=training, augment=augment, kept=features)


@pytest.mark.parametrize("augment", [NoAugment(), Augment(variants=2)], ids=repr)
@pytest.mark.parametrize("method", [Decoder(), ONE_BLOCK], ids=repr)
def test_a_fit_is_the_same(
    replica: Callable[..., Replica],
    make_windows: Callable[..., HospitalWindows],
    method: Method,
    augment: Augmentation,
) -> None:
    fitted = []
    for use in (False, True):
        model, windows = replica(method), make_windows()
        features = kept(model, source(windows, augment)) if use else None
        place = workplace(model, augment, features)
        result, _ = fit(place, Phase(train=tuple(model.values)), windows, OptimizerState(), RNG, LASTING)
        fitted.append(result)
    assert features is not None
    assert features.use.found == 22  # 8 steps: two epochs of 3 + 3 + 2 windows, and 3 + 3
    assert fitted[0].mean_loss == pytest.approx(fitted[1].mean_loss, rel=1e-12)
    for name, value in fitted[0].tensors.items():
        torch.testing.assert_close(fitted[1].tensors[name], value, rtol=1e-12, atol=1e-12)


def two_rounds(federated: Federated, state: object) -> object:
    for _ in range(2):
        with Progress(rounds=2, start=0, quiet=True) as progress:
            state = run_round(federated, state, progress, Stopwatch()).checkpoint  # type: ignore[arg-type]
    return state


@pytest.mark.parametrize("augment", [NoAugment(), Augment(variants=2)], ids=repr)
def test_a_federation_is_the_same(make_federated: Callable[..., tuple], augment: Augmentation) -> None:
    """Two rounds of three hospitals that train the decoder."""
    states = []
    for room in (0, 100):
        federated, state = make_federated(FedAvg(), method=Decoder())
        federated = replace(federated, workplace=replace(federated.workplace, augment=augment))
        model = federated.workplace.replica
        scored = [source_of(hospital.test, Windows(), model) for _, hospital in sorted(federated.hospitals.items())]
        features = keep_features(federated, scored, Runtime(features_mb=room))
        place = replace(federated.workplace, kept=features if features else None)
        states.append(two_rounds(replace(federated, workplace=place), state))
    assert (
        features.use.sources == features.use.offered == 6
    )  # what three hospitals train on, and what they are scored on
    assert features.use.found == 2 * 24
    for name, value in states[0].server.tensors.items():
        torch.testing.assert_close(states[1].server.tensors[name], value, rtol=1e-12, atol=1e-12)


def test_an_evaluation_is_the_same(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows]
) -> None:
    """Batches that run on over the ends of volumes; what trained before is not made again."""
    model, windows = replica(), make_windows(volumes=3, slices=5)
    features = kept(model, source(windows))
    of = source_of(windows.volumes, Windows(), model)
    maps = [*predictions(model, [of], batch_size=4, kept=features)]
    again = [*predictions(model, [source_of(windows.volumes, Windows(), model)], batch_size=7, kept=features)]
    plain = [*predictions(model, [of], batch_size=4)]
    assert all((one == other).all() for one, other in zip(maps + again, plain + plain, strict=True))
    assert (features.use.made, features.use.found) == (15, 30)


@pytest.mark.parametrize(
    ("method", "worth"),
    [
        (Decoder(), True),
        (PartialDecoder(), True),
        (ONE_BLOCK, True),
        (LoraOnly(lora=LoRA(rank=2, blocks=2)), False),
        (FlapSam(lora=LoRA(rank=2)), False),
        (MaSam(width=4), False),
        (Full(), False),
    ],
    ids=repr,
)
def test_a_short_start_is_not_kept(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows], method: Method, worth: bool
) -> None:
    """The tiny model has four stages: patches, two blocks, neck."""
    model, of = replica(method, "fp32"), source(make_windows())
    features = kept(model, of)
    assert worth_keeping(model) == worth == bool(features)
    assert (features.find(model, draw(of, [0])) is not None) == worth


def test_fresh_forms_are_not_kept(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows]
) -> None:
    model, windows = replica(), make_windows()
    features = kept(model, source(windows, Augment()), source(windows))
    assert (features.use.sources, features.use.offered) == (1, 1)
    fresh = next(draws(windows, 4, Augment(), 1, RNG, LASTING))
    assert features.find(model, fresh) is None


@pytest.fixture
def exaggerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a window gives depends on its batch by more than the last bits, on which small models often agree."""
    begin = Replica.begin
    monkeypatch.setattr(Replica, "begin", lambda model, images: begin(model, images) + images.mean())


@pytest.mark.usefixtures("exaggerated")
def test_no_bit_depends_on_who_asked_first(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows]
) -> None:
    """One window in the middle first, or all in another order; and it is made once."""
    model, of = replica(precision="fp32"), source(make_windows(volumes=1, slices=3 * CHUNK + 5), Augment(variants=2))
    first, second = kept(model, of), kept(model, of)
    hidden(first, model, draw(of, [CHUNK + 3], [1]))
    assert first.use.made == CHUNK
    everything = draw(of, [*range(3 * CHUNK + 5)], [n % 2 for n in range(3 * CHUNK + 5)])
    hidden(second, model, draw(of, [3 * CHUNK + 4, 0, 20], [0, 1, 0]))
    assert torch.equal(hidden(first, model, everything), hidden(second, model, everything))
    assert first.use.made == second.use.made == 2 * (3 * CHUNK + 5)


def test_room_is_counted_to_the_byte(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice takes 32 channels of 2 x 2 in fp64 and 16 x 16 labels: 1024 + 256 bytes. 8, 12 and 4 slices, room for 12.

    The second source does not fit any more, the third does; half of a source is never kept.
    """
    model = replica()
    sources = [source(make_windows(seed, volumes)) for seed, volumes in enumerate((2, 3, 1), start=1)]
    monkeypatch.setattr(module, "MB", 1280)
    features = kept(model, *sources, memory_mb=12)
    assert [features.find(model, draw(of, [0])) is not None for of in sources] == [True, False, True]
    assert (features.use.sources, features.use.offered, features.use.mb) == (2, 3, 12.0)
    assert not kept(model, *sources, memory_mb=3)
    monkeypatch.setattr(module, "MB", 1279)
    assert kept(model, *sources, memory_mb=12).use.sources == 1


def test_bf16_takes_half_the_room(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows]
) -> None:
    """32 x 2 x 2 numbers of 2 bytes and 16 x 16 labels, 8 slices."""
    model = replica(precision="bf16")
    assert kept(model, source(make_windows())).use.mb == 8 * (256 + 256) / MB


def test_equal_windows_are_kept_once(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows]
) -> None:
    """Content decides: another hospital with one volume more, the same volumes read again, an evaluation."""
    model, windows = replica(), make_windows()
    more = HospitalWindows([*make_windows(seed=5, volumes=1).volumes, *make_windows().volumes], Windows())
    features = kept(model, source(windows), source(more), source_of(make_windows().volumes, Windows(), model))
    assert features.use.mb == 12 * 1280 / MB
    assert torch.equal(
        hidden(features, model, draw(source(windows), [0, 7])), hidden(features, model, draw(source(more), [4, 11]))
    )
    assert features.use.made == 8  # two volumes of four windows


def test_whatever_goes_into_the_model_is_told_apart(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows]
) -> None:
    """Slices, cut, labels and forms: 4 windows each, of three slices in one case."""
    model, windows = replica(), make_windows(volumes=1)
    other = [
        source(windows),
        source(make_windows(seed=3, volumes=1)),
        source(HospitalWindows(windows.volumes, Windows(normalise="window"))),
        source(HospitalWindows(windows.volumes, Windows(depth=3))),
        source(windows.relabelled([0, 2, 1])),
        source(windows, Augment(variants=1)),
        Source(windows=windows, variants=fixed_variants(Augment(variants=1), 4, streams(0, "lasting", "another"))),
    ]
    assert kept(model, *other).use.mb == pytest.approx(4 * (len(other) + 2) * 1280 / MB)


def test_flipped_labels_come_out_flipped(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows]
) -> None:
    model, windows = replica(), make_windows()
    honest, flipped = source(windows), source(windows.relabelled([0, 2, 1]))
    features = kept(model, honest, flipped)
    one, other = (features.find(model, draw(of, [2, 5])) for of in (honest, flipped))
    assert one is not None
    assert other is not None
    assert torch.equal(torch.tensor([0, 2, 1], dtype=torch.uint8)[one.labels.long()], other.labels)
    assert torch.equal(one.hidden, other.hidden)


def test_changed_frozen_weights_are_noticed(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows]
) -> None:
    model, of = replica(), source(make_windows())
    features, asked = kept(model, of), draw(of, [1, 2])
    before = hidden(features, model, asked)
    name = "vision_encoder.layers.0.mlp.lin1.weight"
    shape = model.model.get_parameter(name).shape
    model.set_base({name: torch.linspace(-1, 1, shape.numel()).view(shape)})
    after = hidden(features, model, asked)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model.begin(cut(asked, model.device)[0]), rtol=1e-12, atol=1e-12)
    model.set_base({})
    assert torch.equal(hidden(features, model, asked), before)


def test_a_compiled_model_is_kept_the_same(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows]
) -> None:
    """The backend counts graphs: all chunks have one shape, also the short ones at the ends of volumes."""
    shapes = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        shapes.append([tuple(value.shape) for value in inputs if value.ndim == 4 and value.shape[1] == 1])
        return graph.forward

    model, of = replica(), source(make_windows(volumes=2, slices=CHUNK + 3))
    asked = draw(of, [0, CHUNK + 1, CHUNK + 4, 2 * CHUNK + 5])
    plain = hidden(kept(model, of), model, asked)
    model.compile(backend)
    torch.testing.assert_close(hidden(kept(model, of), model, asked), plain, rtol=1e-12, atol=1e-12)
    assert shapes == [[(CHUNK, 1, SIZE, SIZE)]]


# --- on disk ---------------------------------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def everything(of: Source) -> Draw:
    return draw(of, [*range(len(of.windows))])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_run_reads_what_one_wrote(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows], cache: Path, precision: str
) -> None:
    model = replica(precision=precision)
    first = source(make_windows(volumes=2, slices=CHUNK + 2))
    writer = kept(model, first, disk_mb=1)
    hidden(writer, model, draw(first, [0]))
    assert not files(cache)  # a volume is not complete yet
    made = hidden(writer, model, everything(first))
    assert len(files(cache)) == 2
    again = source(make_windows(volumes=2, slices=CHUNK + 2))
    reader = kept(replica(precision=precision), again, disk_mb=1)
    batch = reader.find(model, everything(again))
    assert batch is not None
    assert torch.equal(batch.hidden, made)
    assert torch.equal(batch.labels, again.windows.gather(everything(again).index)[1])
    assert (reader.use.made, reader.use.read) == (0, 2 * (CHUNK + 2))


def test_without_room_on_disk_nothing_is_written_or_read(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows], cache: Path
) -> None:
    model, of = replica(), source(make_windows())
    hidden(kept(model, of), model, everything(of))
    assert not cache.exists()
    hidden(kept(model, of, disk_mb=1), model, everything(of))
    assert len(files(cache)) == 2
    features = kept(model, of)
    hidden(features, model, everything(of))
    assert features.use.read == 0


def test_files_of_all_runs_share_the_room_on_disk(
    replica: Callable[..., Replica],
    make_windows: Callable[..., HospitalWindows],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A volume of 4 slices takes 4 x 1280 bytes and a header. There is room for three of them, not for four."""
    model = replica()
    monkeypatch.setattr(module, "MB", 4 * 1280 + 400)
    for seed in range(4):
        of = source(make_windows(seed, volumes=1))
        hidden(kept(model, of, disk_mb=3), model, everything(of))
    assert len(files(cache)) == 3


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "another"])
def test_a_damaged_file_is_replaced(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows], cache: Path, harm: str
) -> None:
    model, of = replica(), source(make_windows(volumes=1))
    made = hidden(kept(model, of, disk_mb=1), model, everything(of))
    (path,) = files(cache)
    whole = path.read_bytes()
    middle = len(whole) // 2
    harmed = {
        "cut": whole[:-100],
        "flip": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
        "another": b"not safetensors at all",
    }
    path.write_bytes(harmed[harm])
    features = kept(model, of, disk_mb=1)
    assert torch.equal(hidden(features, model, everything(of)), made)
    assert (features.use.made, features.use.read) == (4, 0)
    assert path.read_bytes() == whole


def test_a_damaged_file_does_not_stay(
    replica: Callable[..., Replica], make_windows: Callable[..., HospitalWindows], cache: Path
) -> None:
    """Also where it is not replaced: of a volume of two chunks, the second start asks for one."""
    model, of = replica(), source(make_windows(volumes=1, slices=CHUNK + 1))
    hidden(kept(model, of, disk_mb=1), model, everything(of))
    (path,) = files(cache)
    path.write_bytes(b"damaged")
    hidden(kept(model, of, disk_mb=1), model, draw(of, [0]))
    assert not files(cache)


@pytest.mark.parametrize("change", ["weights", "precision", "prefix", "threads", "code"])
def test_a_file_belongs_to_what_computed_it(
    replica: Callable[..., Replica],
    make_windows: Callable[..., HospitalWindows],
    cache: Path,
    change: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, of = replica(), source(make_windows(volumes=1))
    hidden(kept(model, of, disk_mb=1), model, everything(of))
    if change == "weights":
        name = "vision_encoder.pos_embed"
        model.set_base({name: torch.ones(model.model.get_parameter(name).shape)})
    if change == "precision":
        model = replica(precision="fp32")
    if change == "prefix":
        model = replica(ONE_BLOCK)
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    if change == "code":
        monkeypatch.setattr(module, "_code", lambda: "other code")
    features = kept(model, of, disk_mb=1)
    hidden(features, model, everything(of))
    assert features.use.read == 0
    assert len(files(cache)) == 2


def test_a_cache_that_cannot_be_written_is_told(
    replica: Callable[..., Replica],
    make_windows: Callable[..., HospitalWindows],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "file"))
    model, of = replica(), source(make_windows())
    with pytest.raises(ValueError, match=r"file: expected a cache folder .* set the environment variable"):
        hidden(kept(model, of, disk_mb=1), model, everything(of))


# --- in a run --------------------------------------------------------------------------------------------------------


def tiny(*settings: str) -> Experiment:
    decoder = ["method=decoder", "augment=none", "evaluation.every=1", "rounds=3", "runtime.threads=1"]
    return load_experiment("tiny", open_file(PACKAGED), [*decoder, *settings])


def content(path: Path) -> dict[str, bytes]:
    names = ("checkpoint", "metrics.jsonl", "cases.jsonl", "predictions")
    found = [file for name in names for file in (path / name, *(path / name).rglob("*")) if file.is_file()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in found}


@pytest.fixture
def short_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 20 of the 54 slices of tiny: one hospital's 12 training slices and 6 to score, of 2048 + 1024 bytes."""
    monkeypatch.setattr(module, "MB", 20 * 3072)


@pytest.mark.usefixtures("short_room", "exaggerated")
def test_a_killed_run_with_little_room_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round draws two of three hospitals, so that others come first after the kill.

    The second start asks for more room, and keeps to what the run began with.
    """
    drawn = ["cohort.sampling=fixed", "cohort.size=2"]
    whole = run(tiny("runtime.features_mb=1", *drawn), out=tmp_path / "whole", quiet=True).path
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["features_mb"] == 1
    assert (manifest["features"]["sources"], manifest["features"]["offered"]) == (2, 6)
    assert manifest["features"]["found"] > 0

    from wardround.simulator import run as running

    one_round, rounds = running._one_round, iter(range(3))

    def killed(*arguments: object, **options: object) -> object:
        if next(rounds) == 1:
            raise KeyboardInterrupt
        return one_round(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(running, "_one_round", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tiny("runtime.features_mb=1", *drawn), out=tmp_path / "killed", quiet=True)
    path = run(tiny("runtime.features_mb=1000", *drawn), out=tmp_path / "killed", quiet=True).path
    assert content(path) == content(whole)
    assert json.loads((path / "manifest.json").read_text())["features"]["offered"] == 6


def test_label_flips_reach_what_is_kept(tmp_path: Path) -> None:
    """Two rounds of a poisoned federation, with and without, to rounding."""
    flip = ["stages.attack={name: label_flip, hospitals: [hospital-1]}", "training.precision=fp64", "rounds=2"]
    ends = []
    for room in (0, 100):
        experiment = tiny(*flip, f"runtime.features_mb={room}")
        path = run(experiment, out=tmp_path / str(room), quiet=True, images=False).path
        ends.append(load_file(path / "checkpoint" / "round-0002" / "server.safetensors"))
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-12, atol=1e-12)


def test_assembly_plans_every_hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny("runtime.features_mb=50")
    assembled = assemble(experiment, locate(experiment, None), choose_device("cpu"))
    assert (assembled.features.use.sources, assembled.features.use.offered) == (6, 6)
    assert assembled.federated.workplace.kept is assembled.features
    none = tiny("runtime.features_mb=0")
    assert assemble(none, locate(none, None), choose_device("cpu")).federated.workplace.kept is None


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same(make_windows: Callable[..., HospitalWindows]) -> None:
    """The batch, kept on the device, is the one that is made there."""
    from wardround.clients.sam import Sam

    net = Sam(size="tiny", image_size=SIZE).build(2, streams(0, "init"))
    model = Replica(net, Decoder().attach(net), device="cuda", precision="fp64")
    of = source(make_windows(), Augment(variants=2))
    asked = draw(of, [0, 5, 7], [1, 0, 1])
    batch = kept(model, of).find(model, asked)
    images, labels = cut(asked, model.device)
    assert batch is not None
    assert batch.hidden.device.type == batch.labels.device.type == "cuda"
    assert torch.equal(batch.labels, labels)
    torch.testing.assert_close(batch.hidden, model.begin(images), rtol=1e-12, atol=1e-12)
