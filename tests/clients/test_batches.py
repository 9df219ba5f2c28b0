"""Batches: the same from wherever their windows are brought, and filled ones count what is real."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

import wardround.clients.batches as module
from wardround.clients.batches import Batch, Draw, draws, feed, filled_up, in_order
from wardround.clients.prefetch import ahead
from wardround.clients.replica import Replica
from wardround.datasets.augment import FlapSamAugment
from wardround.datasets.windows import HospitalWindows, Windows
from wardround.simulator.randomness import streams

RNG, LASTING = streams(0, "local", 1, "hospital"), streams(0, "lasting", "hospital")
Make = Callable[..., Replica]
MakeWindows = Callable[..., HospitalWindows]


class Elsewhere(HospitalWindows):
    """Windows that say they lie on another device than the model."""

    @property
    def device(self) -> torch.device:
        return torch.device("meta")


def drawn(windows: HospitalWindows, batch_size: int = 3, steps: int = 5) -> list[Draw]:
    return list(draws(windows, batch_size, FlapSamAugment(), steps, RNG, LASTING))


def equal(left: Batch, right: Batch) -> bool:
    same = torch.equal(left.hidden, right.hidden) and torch.equal(left.labels, right.labels)
    return same and left.sizes == right.sizes


def test_windows_from_elsewhere_are_cut_out_in_the_background_and_the_same(
    make_replica: Make, make_windows: MakeWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, here = make_replica(image_size=16), make_windows(volumes=2)
    there = Elsewhere(here.volumes, Windows())
    steps, far = [[draw] for draw in drawn(here)], [[draw] for draw in drawn(there)]
    expected = list(feed(replica, steps))
    used = []
    monkeypatch.setattr(module, "ahead", lambda make, items: used.append(1) or ahead(make, items))
    assert all(equal(a, b) for a, b in zip(feed(replica, steps), expected, strict=True))
    assert not used
    assert all(equal(a, b) for a, b in zip(feed(replica, far), expected, strict=True))
    assert used


def test_what_goes_wrong_in_the_background_arrives(
    make_replica: Make, make_windows: MakeWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = Elsewhere(make_windows().volumes, Windows())
    steps = [[draw] for draw in drawn(windows)]

    def lost(*_: object) -> None:
        raise OSError("the file of the volume is gone")

    monkeypatch.setattr(windows, "gather", lost)
    with pytest.raises(OSError, match="the file of the volume is gone"):
        list(feed(make_replica(image_size=16), steps))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_no_steps_make_no_batches(make_replica: Make) -> None:
    assert list(feed(make_replica(image_size=16), [])) == []


def test_filled_batches_begin_with_what_was_drawn(make_replica: Make, make_windows: MakeWindows) -> None:
    """8 windows in batches of 3: the third of an epoch has 2, and the last of them once more."""
    replica, windows = make_replica(image_size=16, precision="fp64"), make_windows(volumes=2)
    steps = [[draw] for draw in drawn(windows)]
    plain, filled = list(feed(replica, steps)), list(feed(replica, steps, width=3))
    assert [batch.sizes for batch in plain] == [batch.sizes for batch in filled] == [(3,), (3,), (2,), (3,), (3,)]
    assert {len(batch.hidden) for batch in filled} == {3}
    for left, right in zip(plain, filled, strict=True):
        assert torch.equal(right.counted(right.labels.flatten(0, 1)), left.labels.flatten(0, 1))
        torch.testing.assert_close(right.counted(right.hidden), left.hidden, rtol=1e-12, atol=1e-12)
    assert torch.equal(filled[2].hidden[1], filled[2].hidden[2])


def test_slices_that_only_fill_do_not_count() -> None:
    labels = torch.zeros(4, 3, 2, 2)
    batch = Batch(hidden=torch.arange(12), labels=labels, sizes=(2,))
    assert batch.counted(batch.hidden).tolist() == list(range(6))
    whole = Batch(hidden=torch.arange(12), labels=labels)
    assert whole.counted(whole.hidden) is whole.hidden


def test_in_order_shows_every_window_once_as_it_is(make_replica: Make, make_windows: MakeWindows) -> None:
    replica, windows = make_replica(image_size=16), make_windows(volumes=2)
    batches = list(feed(replica, ([draw] for draw in in_order(windows, 3))))
    images, labels = windows.gather(torch.arange(8))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), labels)
    expected = torch.cat([replica.begin(part) for part in images.split(3)])
    assert torch.equal(torch.cat([batch.hidden for batch in batches]), expected)


def test_a_step_of_several_hospitals_is_filled_at_its_end(make_windows: MakeWindows) -> None:
    first, second = drawn(make_windows(0), 3, 1)[0], drawn(make_windows(1), 2, 1)[0]
    full = filled_up([first, second], 9)
    assert [len(draw.index) for draw in full] == [3, 6]
    assert [draw.size for draw in full] == [3, 2]
    assert full[1].index.tolist() == [*second.index.tolist(), *[second.index[-1].item()] * 4]
    assert list(filled_up([first, second], None)) == list(filled_up([first, second], 5)) == [first, second]


class Half:
    """Keeps what the first hospital's windows come to, and nothing of the others'."""

    def __init__(self, windows: HospitalWindows) -> None:
        self.windows = windows

    def find(self, replica: Replica, draw: Draw) -> Batch | None:
        if draw.source.windows is not self.windows:
            return None
        (batch,) = feed(replica, [[draw]])
        return batch


def test_the_compiled_start_of_the_model_sees_whole_batches_only(make_replica: Make, make_windows: MakeWindows) -> None:
    """What is kept of one of two hospitals would leave it half a batch: another shape, another graph."""
    replica, windows = make_replica(image_size=16), [make_windows(0), make_windows(1)]
    seen = []
    begin = replica.begin
    replica.begin = lambda images: seen.append(len(images)) or begin(images)  # type: ignore[method-assign]
    step = [drawn(own, 3, 1)[0] for own in windows]
    (kept,) = feed(replica, [step], Half(windows[0]))
    assert seen == [3, 3]  # one of them in Half
    seen.clear()
    replica.compile("eager")
    (whole,) = feed(replica, [step], Half(windows[0]), width=3)
    assert seen == [3, 6]
    torch.testing.assert_close(whole.hidden, kept.hidden)
    assert whole.sizes == kept.sizes == (3, 3)
