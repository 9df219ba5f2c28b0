"""A tiny ViT whose head trains, and hospitals with made-up images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from wardround.aggregators.contract import Layout
from wardround.clients.replica import Precision, Replica
from wardround.clients.vit import Vit
from wardround.datasets.contract import Case
from wardround.datasets.images import HospitalImages, PreparedImages
from wardround.simulator.randomness import streams

CLASSES = ("nevus", "melanoma", "keratosis")
IMAGE_SIZE = 16

LAYOUT = Layout(
    pairs=(),
    dense=("head.weight", "head.bias"),
    part={"head.weight": "head", "head.bias": "head"},
    kind={"head.weight": "head", "head.bias": "bias"},
)


def classifier(*, precision: Precision = "fp32", num_classes: int = len(CLASSES), sharpness: float = 3.0) -> Replica:
    """A replica of the tiny ViT whose predictions differ from image to image.

    The head looks for what sets a few images apart from their mean: without it a random ViT says the same of all.
    """
    model = Vit(size="tiny", image_size=IMAGE_SIZE).build(num_classes, streams(0, "init"))
    with torch.no_grad():
        images, _ = hospital([0] * num_classes, seed=99).gather(torch.arange(num_classes))
        features = model.features(images[:, 0])  # (C, D)
        apart = features - features.mean(dim=0)
        model.head.weight.copy_(sharpness * apart / apart.square().sum(dim=1, keepdim=True))
        model.head.bias.copy_(-model.head.weight @ features.mean(dim=0))
    return Replica(model, LAYOUT, precision=precision)


def hospital(
    targets: Sequence[int], *, seed: int = 0, name: str = "image", folder: Path = Path("none")
) -> HospitalImages:
    """Random images of these classes."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (len(targets), 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=draw)
    cases = [
        Case(name=f"{name}-{number:03d}", patient=f"p{number}", image=folder, label=folder, target=target, row=number)
        for number, target in enumerate(targets)
    ]
    return HospitalImages(PreparedImages(cases=tuple(cases), pixels=pixels), cases)
