"""Class probabilities of a model: one array per hospital, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifier import classifier, hospital

from wardround.clients.classification import classify, image_source
from wardround.clients.replica import Replica
from wardround.datasets.images import HospitalImages

HOSPITALS = [hospital([0, 1, 2, 1, 0], seed=0), hospital([2], seed=1), hospital([1, 1, 0], seed=2)]


def one_by_one(replica: Replica, images: HospitalImages) -> np.ndarray:
    """Each image alone, straight through the model."""
    rows = []
    for number in range(len(images)):
        pixels, _ = images.gather(torch.tensor([number]))
        with torch.no_grad():
            rows.append(replica.model(pixels[:, 0].to(replica.dtype)).softmax(dim=1))
    return torch.cat(rows).double().numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_every_image_has_the_probabilities_that_it_has_alone(batch_size: int) -> None:
    replica = classifier(precision="fp64")
    found = list(classify(replica, [image_source(images) for images in HOSPITALS], batch_size))
    assert [array.shape for array in found] == [(5, 3), (1, 3), (3, 3)]
    for array, images in zip(found, HOSPITALS, strict=True):
        np.testing.assert_allclose(array, one_by_one(replica, images), rtol=1e-12)
    assert len({row.argmax() for row in np.concatenate(found)}) > 1  # they show something


def test_batches_run_on_over_the_ends_of_hospitals(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, passes = classifier(), []
    begin = replica.begin
    monkeypatch.setattr(replica, "begin", lambda images: [passes.append(len(images)), begin(images)][1])
    list(classify(replica, [image_source(images) for images in HOSPITALS], 4))
    assert passes == [4, 4, 1]


def test_a_compiled_replica_sees_full_batches_and_answers_for_real_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the width is asked for here: nothing is compiled, which would take long."""
    replica, passes = classifier(precision="fp64"), []
    begin = replica.begin
    monkeypatch.setattr(replica, "begin", lambda images: [passes.append(len(images)), begin(images)][1])
    monkeypatch.setattr(replica, "compiled", True)
    found = list(classify(replica, [image_source(images) for images in HOSPITALS], 4))
    assert passes == [4, 4, 4]
    for array, images in zip(found, HOSPITALS, strict=True):
        np.testing.assert_allclose(array, one_by_one(replica, images), rtol=1e-12)


def test_the_softmax_is_in_double_precision() -> None:
    """In bfloat16 rows would sum to 1 within 2^-8 only; in single precision sure answers would be ties of an AUROC."""
    source = image_source(HOSPITALS[0])
    (half,), (single,) = (list(classify(classifier(precision=kind), [source], 4)) for kind in ("bf16", "fp32"))
    assert half.dtype == np.float64
    np.testing.assert_allclose(half.sum(axis=1), 1.0, atol=1e-14)
    np.testing.assert_allclose(half, single, atol=0.05)
    assert not np.array_equal(half, single)
    (sure,) = classify(classifier(sharpness=150.0), [source], 4)
    assert (np.partition(sure, -1, axis=1)[:, :-1] > 0).all()
    assert len(np.unique(sure.max(axis=1).astype(np.float32))) < len(np.unique(sure.max(axis=1)))


def test_no_image_is_no_source() -> None:
    with pytest.raises(ValueError, match="expected at least one image to classify, got none"):
        image_source(HospitalImages(HOSPITALS[0].prepared, []))
