from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wardround.clients.evaluation import Evaluation, _native_slices, evaluate, predict, summarise
from wardround.clients.replica import Replica
from wardround.datasets.contract import Case, Volume
from wardround.datasets.windows import HospitalWindows, PreparedVolume, Windows, prepare

CASE = Case(name="case", patient="patient", image=Path("none"), label=Path("none"))


def volume(slices: int = 7, rows: int = 21, columns: int = 13) -> Volume:
    rng = np.random.default_rng(0)
    label = np.zeros((slices, rows, columns), dtype=np.uint8)
    label[:, 3:12, 2:9] = 1
    label[:, 5:8, 4:7] = 2
    image = (label + rng.normal(0, 0.3, label.shape)).astype(np.float32)
    return Volume(case=CASE, image=image, label=label, spacing_mm=(2.0, 1.0, 1.0), slice_axis=0)


def prepared(windows: Windows, **shape: int) -> PreparedVolume:
    return prepare(volume(**shape), 32, windows)


@pytest.fixture
def replica(make_replica: Callable[..., Replica]) -> Replica:
    return make_replica(precision="fp64")


def reference(replica: Replica, ready: PreparedVolume, windows: Windows) -> np.ndarray:
    """Slow and plain: every window alone, softmax added up slice by slice, a repeated edge slice once per window."""
    data = HospitalWindows([ready], windows)
    slices, rows, columns = ready.native_shape
    total, count = torch.zeros(slices, 3, 32, 32), torch.zeros(slices)
    for number in range(len(data)):
        images, _ = data.gather(torch.tensor([number]))
        with torch.no_grad():
            probabilities = replica.logits(images).float().softmax(1)  # (D, 3, h, w)
        seen = set()
        for place, index in enumerate(data.table[number].tolist()):
            if index not in seen:
                seen.add(index)
                total[index] += probabilities[place]
                count[index] += 1
    mean = total / count[:, None, None, None]
    return F.interpolate(mean, size=(rows, columns), mode="bilinear", align_corners=False).argmax(1).numpy()


@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize("normalise", ["volume", "window"])
@pytest.mark.parametrize("slices", [1, 2, 7])
def test_prediction_is_the_mean_over_windows_whatever_the_batch(
    replica: Replica, depth: int, normalise: str, slices: int
) -> None:
    windows = Windows(depth=depth, normalise=normalise)
    ready = prepared(windows, slices=slices)
    expected = reference(replica, ready, windows)
    for batch_size in (1, 3, 100):
        found = predict(replica, ready, windows, batch_size)
        assert found.shape == (slices, 21, 13)
        assert found.dtype == np.uint8
        assert (found == expected).mean() > 0.999  # argmax ties of rounding


def test_windows_normalised_one_by_one_do_differ(replica: Replica) -> None:
    """The reason why they are averaged: otherwise the test above would prove nothing."""
    by_window, by_volume = Windows(depth=5, normalise="window"), Windows(depth=5)
    left = reference(replica, prepared(by_window), by_window)
    assert (left != reference(replica, prepared(by_volume), by_volume)).any()


class Oracle:
    """Stands where a replica stands and answers with the truth at logit resolution."""

    device = torch.device("cpu")
    mixes_slices = False

    def __init__(self, ready: PreparedVolume) -> None:
        self.ready, self.next = ready, 0

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        labels = self.ready.labels[self.next : self.next + len(images)]
        self.next += len(images)
        return 100.0 * F.one_hot(labels.long(), 3).permute(0, 3, 1, 2).float()


def test_a_perfect_model_scores_one_on_the_native_grid() -> None:
    """32 x 32 truth brought back to 21 x 13: what the resizing there and back costs stays small."""
    windows = Windows()
    ready = prepared(windows)
    scored = next(
        evaluate(
            Oracle(ready), [ready], lambda case: volume(), windows, ("organ", "lesion"), Evaluation(), surfaces=True
        )
    )
    assert scored.scores["dice/organ"] > 0.97
    assert scored.scores["dice/lesion"] > 0.9
    assert scored.scores["dice"] == pytest.approx((scored.scores["dice/organ"] + scored.scores["dice/lesion"]) / 2)
    assert scored.scores["hd95_mm/organ"] <= 1.0
    assert scored.scores["surface_dice/lesion"] == pytest.approx(1.0)


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


@pytest.mark.parametrize("grid", [(14, 32, 32), (4, 32, 32)])
def test_a_perfect_model_on_another_grid_is_scored_on_the_native_one(grid: tuple[int, int, int]) -> None:
    windows = Windows(grid=grid)
    ready = prepared(windows)
    scored = next(
        evaluate(Oracle(ready), [ready], lambda case: volume(), windows, ("a", "b"), Evaluation(), surfaces=False)
    )
    assert scored.prediction.shape == (7, 21, 13)
    assert scored.scores["dice/a"] > 0.95


def test_prediction_on_another_grid_does_not_depend_on_the_batch(replica: Replica) -> None:
    windows = Windows(depth=3, normalise="window", grid=(4, 20, 20))
    ready = prepared(windows)
    one, many = (predict(replica, ready, windows, batch_size) for batch_size in (1, 100))
    assert one.shape == (7, 21, 13)
    assert (one == many).mean() > 0.999  # argmax ties of rounding


def test_surfaces_only_when_asked() -> None:
    windows = Windows()
    ready = prepared(windows)
    arguments = ([ready], lambda case: volume(), windows, ("organ", "lesion"), Evaluation())
    scored = next(evaluate(Oracle(ready), *arguments, surfaces=False))
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
