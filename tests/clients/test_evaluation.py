"""Evaluation: batches over volumes give what every window alone gives; the way back to the native grid; the scores."""

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wardround.clients.batches import Batch, Draw, Source, feed
from wardround.clients.evaluation import (
    Evaluation,
    _complete,
    _native_slices,
    evaluate,
    predict,
    predictions,
    source_of,
    summarise,
)
from wardround.clients.methods import Decoder, MaSam
from wardround.clients.replica import Replica
from wardround.clients.training import Training, Workplace
from wardround.datasets.augment import NoAugment
from wardround.datasets.contract import Case, Volume
from wardround.datasets.windows import HospitalWindows, PreparedVolume, Windows, prepare

CASE = Case(name="case", patient="patient", image=Path("none"), label=Path("none"))


def volume(slices: int = 7, rows: int = 21, columns: int = 13, seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    label = np.zeros((slices, rows, columns), dtype=np.uint8)
    label[:, 3:12, 2:9] = 1
    label[:, 5:8, 4:7] = 2
    image = (label + rng.normal(0, 0.3, label.shape)).astype(np.float32)
    return Volume(case=CASE, image=image, label=label, spacing_mm=(2.0, 1.0, 1.0), slice_axis=0)


def prepared(windows: Windows, **shape: int) -> PreparedVolume:
    return prepare(volume(**shape), 32, windows)


SLICES = (3, 9, 1, 4)
"""Of the volumes of several sources: shorter and longer than a batch, and a single slice."""


def sources(replica: Replica, windows: Windows) -> list[Source]:
    """Two sources of two volumes each, of different grids."""
    volumes = [prepared(windows, slices=n, rows=20 + i, seed=i) for i, n in enumerate(SLICES)]
    return [source_of(volumes[:2], windows, replica), source_of(volumes[2:], windows, replica)]


def volumes_of(several: Sequence[Source]) -> list[PreparedVolume]:
    return [ready for source in several for ready in source.windows.volumes]


@pytest.fixture
def replica(make_replica: Callable[..., Replica]) -> Replica:
    return make_replica(precision="fp64")


@pytest.fixture
def mixing(make_replica: Callable[..., Replica]) -> Replica:
    """A model that mixes slices; noise in its adapters, which start as if they were not there."""
    made = make_replica(precision="fp64", method=MaSam(width=4))
    rng = torch.Generator().manual_seed(0)
    made.load({name: value + 0.1 * torch.randn(value.shape, generator=rng) for name, value in made.read().items()})
    return made


# ---- batches over volumes --------------------------------------------------------------------------------------------


def slowly(replica: Replica, ready: PreparedVolume, windows: Windows) -> torch.Tensor:
    """Slow and plain: every window alone, softmax averaged slice by slice over the places that are in the volume."""
    data = HospitalWindows([ready], windows)
    seen: list[list[torch.Tensor]] = [[] for _ in range(len(data))]
    for number in range(len(data)):
        images, _ = data.gather(torch.tensor([number]))
        with torch.no_grad():
            probabilities = replica.logits(images).softmax(1)  # (D, 3, h, w)
        for place, one in enumerate(probabilities):
            index = number + place - windows.depth // 2
            if 0 <= index < len(data):
                seen[index].append(one)
    return torch.stack([torch.stack(maps).mean(0) for maps in seen])


def on_native_grid(probabilities: torch.Tensor, ready: PreparedVolume) -> np.ndarray:
    """Linear between slices, then bilinear, then argmax."""
    slices, rows, columns = ready.native_shape
    flat = probabilities.permute(1, 2, 3, 0).flatten(1, 2)  # (C+1, h * w, S')
    lines = F.interpolate(flat, slices, mode="linear").permute(2, 0, 1)  # (S, C+1, h * w)
    maps = lines.unflatten(2, probabilities.shape[2:])
    return F.interpolate(maps, size=(rows, columns), mode="bilinear", align_corners=False).argmax(1).numpy()


WINDOWS = [
    Windows(),
    Windows(depth=5),
    Windows(depth=3, normalise="window"),
    Windows(depth=3, normalise="window", grid=(4, 20, 20)),
    Windows(grid=(6, 20, 20)),
]


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
@pytest.mark.parametrize("model", ["replica", "mixing"])
def test_full_batches_give_what_every_window_alone_gives(
    request: pytest.FixtureRequest, model: str, windows: Windows
) -> None:
    """Probabilities to rounding, label maps exactly; also those of every volume alone."""
    chosen: Replica = request.getfixturevalue(model)
    several = sources(chosen, windows)
    slow = [slowly(chosen, ready, windows) for ready in volumes_of(several)]
    expected = [on_native_grid(one, ready) for one, ready in zip(slow, volumes_of(several), strict=True)]
    assert any((labels != labels[0, 0, 0]).any() for labels in expected)  # they show something
    for batch_size in (8, 1000):
        with torch.no_grad():
            means = [mean.value() for complete in _complete(chosen, several, batch_size, None) for mean in complete]
        for found, one in zip(means, slow, strict=True):
            torch.testing.assert_close(found, one, rtol=0, atol=1e-12)
        for found, labels in zip(predictions(chosen, several, batch_size), expected, strict=True):
            assert found.dtype == np.uint8
            assert np.array_equal(found, labels)
    alone = [predict(chosen, ready, windows, 8) for ready in volumes_of(several)]
    assert all(np.array_equal(found, labels) for found, labels in zip(alone, expected, strict=True))


@pytest.mark.parametrize("batch_size", [8, 9, 1000])
@pytest.mark.parametrize("windows", [Windows(), Windows(depth=3, normalise="window"), Windows(depth=5)], ids=str)
def test_batches_are_full_over_volumes_and_hospitals(
    mixing: Replica, monkeypatch: pytest.MonkeyPatch, windows: Windows, batch_size: int
) -> None:
    """As many passes as the windows of all volumes fill, the last one ragged: not one per volume, of which 4 are."""
    passes: list[int] = []
    begin = mixing.begin

    def counting(images: torch.Tensor) -> torch.Tensor:
        passes.append(len(images))
        return begin(images)

    monkeypatch.setattr(mixing, "begin", counting)
    list(predictions(mixing, sources(mixing, windows), batch_size))
    width, total = batch_size // windows.depth, sum(SLICES)
    assert len(passes) == math.ceil(total / width)
    assert passes == [width] * (total // width) + [total % width] * bool(total % width)


def test_windows_normalised_one_by_one_do_differ(replica: Replica) -> None:
    """The reason why they are averaged: otherwise the tests above would prove nothing."""
    by_window, by_volume = Windows(depth=5, normalise="window"), Windows(depth=5)
    left = slowly(replica, prepared(by_window), by_window)
    assert (left - slowly(replica, prepared(by_volume), by_volume)).abs().max() > 1e-4


def test_a_model_that_does_not_mix_is_asked_for_every_slice_once(replica: Replica, mixing: Replica) -> None:
    def depth(model: Replica, normalise: str) -> int:
        windows = Windows(depth=5, normalise=normalise)
        return source_of([prepared(windows)], windows, model).windows.windows.depth

    assert (depth(replica, "volume"), depth(replica, "window"), depth(mixing, "volume")) == (1, 5, 5)


def test_probabilities_are_let_go_volume_by_volume(replica: Replica) -> None:
    several = sources(replica, Windows())
    with torch.no_grad():
        batches = _complete(replica, several, 3, None)  # 3 windows: the first volume is the first batch
        (first,) = next(batches)
        gone = weakref.ref(first.total)
        del first
        next(batches)
    assert gone() is None


def test_a_compiled_model_sees_one_shape_only(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch is filled, and what fills it is not looked at."""
    several = sources(replica, Windows())
    expected = list(predictions(replica, several, 8))
    shapes = set()

    begin = replica.begin

    def watching(images: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(images.shape))
        return begin(images)

    replica.compiled = True  # says so; what compiling takes is not what is tested
    monkeypatch.setattr(replica, "begin", watching)
    found = list(predictions(replica, several, 8))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert shapes == {(8, 1, 32, 32)}


def test_what_is_kept_of_the_frozen_start_is_used(
    make_replica: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = make_replica(precision="fp64", method=Decoder())
    windows = Windows(depth=3, normalise="window")
    several = sources(replica, windows)
    expected = list(predictions(replica, several, 8))

    class Everything:
        """Has every window, and makes it when it is asked for."""

        def find(self, replica: Replica, draw: Draw) -> Batch | None:
            assert draw.variants is not None
            assert not draw.variants.any()
            (batch,) = feed(make_other, [[draw]])
            return batch

    make_other = make_replica(precision="fp64", method=Decoder())
    monkeypatch.setattr(replica, "begin", lambda images: pytest.fail("was kept"))
    found = list(predictions(replica, several, 8, Everything()))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_volume_without_slices_is_refused(replica: Replica) -> None:
    empty = torch.zeros(0, 32, 32)
    ready = replace(prepared(Windows()), images=empty, labels=empty.to(torch.uint8))
    with pytest.raises(ValueError, match="none: expected a volume of at least one slice, got none"):
        source_of([ready], Windows(), replica)


@pytest.mark.gpu
def test_a_gpu_predicts_the_same_and_is_not_waited_for(make_replica: Callable[..., Replica]) -> None:
    host, other = make_replica(precision="fp64"), make_replica(precision="fp64")
    device = Replica(other.model, other.layout, device="cuda", precision="fp64")
    windows = Windows(depth=3, normalise="window")
    several = sources(host, windows)
    expected = list(predictions(host, several, 8))
    list(predictions(device, several, 8))  # first calls may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(predictions(device, several, 8))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all((one == other).mean() > 0.999 for one, other in zip(found, expected, strict=True))  # ties


# ---- the native grid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("predicted", "slices"), [(2, 4), (4, 7), (7, 3), (1, 5), (5, 1)])
def test_slices_come_back_to_the_native_grid_as_interpolate_brings_them(predicted: int, slices: int) -> None:
    probabilities = torch.rand(predicted, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.interpolate(probabilities.permute(1, 2, 3, 0).flatten(1, 2), slices, mode="linear")
    parts = [_native_slices(probabilities, slices, index) for index in torch.arange(slices).split(2)]
    assert torch.allclose(torch.cat(parts).permute(1, 2, 3, 0).flatten(1, 2), expected, rtol=0, atol=1e-12)


def test_two_slices_become_four() -> None:
    """Their centres lie at -1/4, 1/4, 3/4 and 5/4; what is outside takes the nearest."""
    probabilities = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    assert _native_slices(probabilities, 4, torch.arange(4)).flatten().tolist() == [0, 0.25, 0.75, 1]


def test_slices_that_are_native_stay_bit_for_bit() -> None:
    probabilities = torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_native_slices(probabilities, 7, torch.arange(7)), probabilities)


# ---- scores ----------------------------------------------------------------------------------------------------------


class Oracle:
    """Stands where a replica stands and answers with the truth at logit resolution."""

    device, dtype = torch.device("cpu"), torch.float32
    mixes_slices = compiled = False

    def __init__(self, *ready: PreparedVolume) -> None:
        self.labels, self.next = torch.cat([one.labels for one in ready]), 0

    def begin(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(0, 1)

    def proceed(self, hidden: torch.Tensor, depth: int) -> torch.Tensor:
        return hidden

    def decode(self, embedding: torch.Tensor) -> torch.Tensor:
        labels = self.labels[self.next : self.next + len(embedding)]
        self.next += len(embedding)
        return 100.0 * F.one_hot(labels.long(), 3).permute(0, 3, 1, 2).float()

    def width(self, batch_size: int) -> int | None:
        return None


def scored_by_oracle(*ready: PreparedVolume, windows: Windows, surfaces: bool = False, **settings: object) -> list:
    oracle = Oracle(*ready)
    place = Workplace(replica=oracle, training=Training(), augment=NoAugment())
    evaluation = Evaluation(**settings)
    source = source_of(ready, windows, oracle)
    return list(evaluate(place, [source], ("organ", "lesion"), evaluation, surfaces=surfaces))


def test_a_perfect_model_scores_one_on_the_native_grid() -> None:
    """32 x 32 truth brought back to 21 x 13: what the resizing there and back costs stays small."""
    (scored,) = scored_by_oracle(prepared(Windows()), windows=Windows(), surfaces=True)
    assert scored.scores["dice/organ"] > 0.97
    assert scored.scores["dice/lesion"] > 0.9
    assert scored.scores["dice"] == pytest.approx((scored.scores["dice/organ"] + scored.scores["dice/lesion"]) / 2)
    assert scored.scores["hd95_mm/organ"] <= 1.0
    assert scored.scores["surface_dice/lesion"] == pytest.approx(1.0)


@pytest.mark.parametrize("grid", [(14, 32, 32), (4, 32, 32)])
def test_a_perfect_model_on_another_grid_is_scored_on_the_native_one(grid: tuple[int, int, int]) -> None:
    windows = Windows(grid=grid)
    (scored,) = scored_by_oracle(prepared(windows), windows=windows)
    assert scored.prediction.shape == (7, 21, 13)
    assert scored.scores["dice/organ"] > 0.95


def test_every_volume_is_scored_against_its_own_truth() -> None:
    """The second has nothing to find, so that what is found there is wrong."""
    ready = [prepared(Windows(), slices=n, seed=n) for n in (3, 5, 2)]
    ready[1] = replace(ready[1], truth=torch.zeros(5, 21, 13, dtype=torch.uint8))
    dice = [one.scores["dice/organ"] for one in scored_by_oracle(*ready, windows=Windows(), batch_size=4)]
    assert dice[0] > 0.95
    assert dice[1] == 0.0
    assert dice[2] > 0.95


def test_regions_are_unions_of_classes() -> None:
    """The lesion lies in the organ: together they are the 9 x 7 pixels that the organ has without it."""
    regions = {"whole": ("organ", "lesion"), "inner": ("lesion",)}
    (scored,) = scored_by_oracle(prepared(Windows()), windows=Windows(), regions=regions)
    scores = scored.scores
    whole = 2 * ((scored.prediction > 0) & (volume().label > 0)).sum() / ((scored.prediction > 0).sum() + 7 * 9 * 7)
    assert scores["dice_region/whole"] == pytest.approx(whole, rel=1e-6)
    assert scores["dice_region/inner"] == scores["dice/lesion"]
    assert scores["dice_regions"] == pytest.approx((scores["dice_region/whole"] + scores["dice/lesion"]) / 2)


def test_surfaces_only_when_asked() -> None:
    (scored,) = scored_by_oracle(prepared(Windows()), windows=Windows())
    assert set(scored.scores) == {"dice", "dice/organ", "dice/lesion"}


def test_means_over_volumes_then_classes_and_undefined_values_counted() -> None:
    """Two volumes: organ 0.6 and 0.8, lesion 0.2 and 0.4 -> 0.7, 0.3, 0.5; HD95 of the lesion once undefined."""
    rows = [
        {"dice": 0.4, "dice/organ": 0.6, "dice/lesion": 0.2, "hd95_mm/lesion": 4.0, "hd95_mm/organ": None},
        {"dice": 0.6, "dice/organ": 0.8, "dice/lesion": 0.4, "hd95_mm/lesion": None, "hd95_mm/organ": None},
    ]
    means = summarise(rows, ("organ", "lesion"))
    assert means["dice"] == pytest.approx(0.5)
    assert (means["dice/organ"], means["dice/lesion"]) == pytest.approx((0.7, 0.3))
    assert (means["hd95_mm/lesion"], means["undefined/hd95_mm/lesion"]) == (4.0, 1.0)
    assert (means["hd95_mm/organ"], means["undefined/hd95_mm/organ"]) == (None, 2.0)


@pytest.mark.parametrize(("every", "due"), [(None, [4]), (1, [0, 1, 2, 3, 4]), (3, [0, 3, 4])])
def test_when_evaluations_are_due(every: int | None, due: list[int]) -> None:
    evaluation = Evaluation(every=every)
    assert [number for number in range(5) if evaluation.due(number, 4)] == due


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"every": 0}, "every: expected"), ({"batch_size": 0}, "batch_size"), ({"surface_tolerance_mm": 0}, "tolerance")],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Evaluation(), **settings)
