"""The work of the bench: what is checked, what is shared, and that every engine is handed the same."""

from __future__ import annotations

import pytest
import torch

from wardround.simulator.bench.workload import Workload, materials

CPU = torch.device("cpu")
SMALL = Workload(hospitals=10, image_size=16, batch_size=2, rank=2, steps=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "flapsam"}, "unknown method 'flapsam', did you mean 'flap_sam'?"),
        ({"model": "vit-c"}, "unknown model 'vit-c', did you mean 'vit-"),
        ({"aggregator": "fedavgg"}, "unknown aggregator 'fedavgg', did you mean 'fedavg"),
        ({"augment": "nne"}, "unknown augment 'nne', did you mean 'none'?"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"hospitals": 0, "steps": 0}, "hospitals: expected at least 1, got 0; steps: expected at least 1, got 0"),
        ({"image_size": 20}, "image_size: expected a positive multiple of the patch size 8, got 20"),
    ],
)
def test_a_wrong_workload_says_so(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Workload(**given)


def test_what_is_not_given_is_the_models() -> None:
    found = Workload(model="vit-b", batch_size=2).resolved()
    assert (found.image_size, found.batch_size, found.rank) == (224, 2, 32)


def test_one_pass_over_two_shared_volumes() -> None:
    made = materials(SMALL.resolved(), CPU)
    assert len(made.windows) == 10
    assert list(made.windows) == sorted(made.windows)
    assert made.windows["hospital-8"] is made.windows["hospital-0"]
    assert made.windows["hospital-1"].volumes[0] is made.windows["hospital-0"].volumes[1]
    assert {len(windows) for windows in made.windows.values()} == {3 * 2}
    assert SMALL.images == 10 * 3 * 2


def test_batches_and_models_are_the_same_for_whoever_asks_and_differ_between_rounds() -> None:
    one, other = materials(SMALL, CPU), materials(SMALL, CPU)
    batches = [list(made.batches("hospital-3", number)) for made, number in ((one, 1), (other, 1), (one, 2))]
    assert all(torch.equal(a, b) for a, b in zip(sum(batches[0], ()), sum(batches[1], ()), strict=True))
    assert not torch.equal(batches[0][0][0], batches[2][0][0])
    assert [tuple(images.shape) for images, _ in batches[0]] == [(2, 1, 16, 16)] * 3
    states = [made.model()[0].state_dict() for made in (one, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_labels_have_every_class() -> None:
    labels = next(iter(materials(SMALL, CPU).windows.values())).volumes[0].labels
    assert labels.unique().tolist() == [0, 1, 2]
